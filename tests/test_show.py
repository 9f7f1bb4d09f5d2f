"""Pictures of tiles: what is drawn is what the model says, in the units of the files; what is not drawn is told."""
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

import show
from datasets import open_dataset
from datasets.loading import collate
from datasets.sensors import SENSORS, Sensor
from datasets.simulated.demo import write_treesatai
from engine import checkpoint
from losses import contrastive, reconstruction
from models import build_model, omnisat
from models.omnisat import patchify
from utils.errors import UserError
from views import picture, tile
from views.colours import bands_to_draw, colours_of, drawn, fit_projection, read_projection, save_projection, stretch_of

KEYS = "vhr", "s2", "s1"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A small simulated TreeSatAI-TS of 3 x 3 patches."""
    return write_treesatai(tmp_path_factory.mktemp("data") / "treesatai", train=12, test=4, seed=3, side=3)


def model_of(keys=KEYS, classes=0, dataset="treesatai-ts", **options):
    """A small model with random weights, and statistics that are not 0 and 1."""
    torch.manual_seed(0)
    model = build_model("omnisat", [SENSORS[dataset][key] for key in keys], embed_dim=32, depth=1, num_classes=classes,
                        **options)
    model.standardize.set({key: {"mean": [3.0 + i for i in range(len(sensor.bands))],
                                 "std": [2.0 + i for i in range(len(sensor.bands))]}
                           for key, sensor in model.sensors.items()})
    return model.eval()


def write_checkpoint(path, model, kind, dataset="treesatai-ts", **changes):
    """A finished checkpoint, as the scripts write it."""
    source = {"commit": "c0ffee1234", "dirty": False, "torch": "2", "device": "cpu", "processes": "1 x 1",
              "command": "", "date": ""}
    options = {"embed_dim": 32, "depth": 1, "ablation": model.ablation,
               "num_classes": 0 if model.head is None else len(model.head[1].bias)}
    config = {"model": "omnisat", "sensors": [asdict(s) for s in model.sensors.values()], "options": options}
    checkpoint.save(path, {"kind": kind, "finished": True, "weights": model.state_dict(), "dataset": dataset, "seed": 0,
                           "source": source, "starts": [source], "settings": {"max_cloud": None, "parts": 1},
                           "s1": "released", "config": config} | changes)
    return path


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A pretrained checkpoint, and a fine-tuned one of other weights."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return (write_checkpoint(folder / "pretrained.pt", model_of(), "pretrained"),
            write_checkpoint(folder / "finetuned.pt", model_of(classes=15), "finetuned"))


def item_of(data, keys=KEYS, i=0):
    return open_dataset("treesatai-ts", data, "test", keys, labelled=False)[i]


@pytest.fixture
def drawn_with(monkeypatch):
    """What main hands to the picture, which is not drawn: the arguments of draw."""
    calls = []
    monkeypatch.setattr(show, "draw", lambda *arguments: calls.append(arguments))
    return calls


def command(data, *paths, tile=None, **options):
    name = tile or open_dataset("treesatai-ts", data, "test", ("s2",)).names[1]
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    return ["--checkpoint", *map(str, paths), "--data-root", str(data), "--tile", name, "--others", "2", *words]


# ---- what is drawn --------------------------------------------------------------------------------------------------

def test_masks_are_those_of_training_and_follow_the_seed(data):
    model, item = model_of(), item_of(data)
    view = tile.look(model, item, seed=5)
    masks = model.draw_masks(collate([item]), torch.Generator().manual_seed(5))
    assert np.array_equal(view.is_masked, masks["is_masked"][0]) and view.is_masked.sum() == 20    # of 27
    assert not np.array_equal(view.is_masked, tile.look(model, item, seed=6).is_masked)
    assert view.is_masked[1:, view.patch].sum() == view.is_masked[1:].sum(0).max()    # the one that is looked at


def test_reconstructions_are_the_losses_in_the_units_of_the_files(data):
    """Their error, standardised again, is equation 5's of pretrain_loss with the same masks; nothing else is given."""
    model, item = model_of(), item_of(data)
    view = tile.look(model, item, seed=5)
    batch = collate([item])
    with torch.no_grad():
        _, terms = model.pretrain_loss(batch, model.draw_masks(batch, torch.Generator().manual_seed(5)))
    errors = []
    for m, (key, sensor) in enumerate(model.sensors.items()):
        std = model.standardize[key].std.numpy()
        if sensor.kind == "image":
            error = torch.from_numpy((view.rebuilt[key] - view.values[key]) / std[:, None, None])
            error = patchify(error[None], sensor.patch)[0].numpy().reshape(9, -1)    # P x C W W
        else:
            assert np.array_equal(~np.isnan(view.rebuilt[key][..., 0]), view.is_kept[key] & view.is_masked[m][:, None])
            error = ((view.rebuilt[key] - view.curves[key]) / std).reshape(9, -1)
        assert np.array_equal(~np.isnan(error).all(1), view.is_masked[m])
        errors += [np.nanmean(row ** 2) for row in error[view.is_masked[m]]]
    assert np.mean(errors) == pytest.approx(terms["reconstruction"].item(), rel=1e-4)


def test_kept_are_the_quarter_with_most_attention(data):
    view = tile.look(model_of(), item_of(data))
    for key in ("s2", "s1"):
        count = len(view.days[key])
        for attention, kept in zip(view.attention[key], view.is_kept[key]):
            assert kept.sum() == -(-count // 4) and attention[kept].min() >= attention[~kept].max()
            assert attention.sum() == pytest.approx(1, abs=1e-5)
    everything = tile.look(model_of(ablation="no_date_filtering"), item_of(data))
    assert everything.share == 1 and everything.is_kept["s2"].all()


def test_similarities_are_cosines_of_tokens(data):
    model, item = model_of(), item_of(data)
    view = tile.look(model, item, patch=7)
    with torch.no_grad():
        tokens = model.features(collate([item]), "tokens")[0].numpy()         # M x P x D
    for m in range(3):
        for n in range(3):
            for p in range(9):
                a, b = tokens[m, 7], tokens[n, p]
                cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
                assert view.similarity[m, n, p] == pytest.approx(cosine, abs=1e-5)


def test_the_fine_tuned_model_has_no_reconstructions_and_its_own_probabilities(data):
    model, item = model_of(classes=15), item_of(data)
    view = tile.look(model, item)
    assert view.is_masked is None and view.rebuilt == {} and view.patch == 4 and view.is_kept["s2"].any()
    with torch.no_grad():
        assert np.allclose(tile.probabilities(model, item), model(collate([item])).sigmoid()[0])
        assert np.allclose(view.f, model.features(collate([item]), "patch")[0], atol=1e-6)


def test_a_missing_series_has_nothing_that_is_drawn(data):
    item = item_of(data)
    for name in ("s1", "s1_dates"):
        item[name] = item[name][:0]
    view = tile.look(model_of(), item)
    assert view.present == {"vhr": True, "s2": True, "s1": False}
    assert np.isnan(view.similarity[2]).all() and np.isnan(view.similarity[:, 2]).all()
    assert np.isfinite(view.similarity[:2, :2]).all()
    assert np.isnan(view.rebuilt["s1"]).all() and not view.is_kept["s1"].any() and np.isfinite(view.f).all()


def test_patches_are_put_together_where_they_came_from():
    image = torch.arange(2 * 4 * 6).view(2, 4, 6)
    assert torch.equal(tile.together(patchify(image[None], 2)[0], (2, 3)), image)


# ---- colours --------------------------------------------------------------------------------------------------------

def test_natural_colours_by_name():
    assert bands_to_draw(SENSORS["treesatai-ts"]["vhr"].bands) == (3, 1, 2)
    assert bands_to_draw(SENSORS["treesatai-ts"]["s2"].bands) == (2, 1, 0)
    assert bands_to_draw(("red", "green", "blue")) == (0, 1, 2) and bands_to_draw(("VV", "VH")) == (0, 0, 0)
    values = np.arange(303.0).reshape(3, 1, 101)                              # of each band 0 to 100, 101 to 201, ...
    assert np.allclose(stretch_of(values), [[2, 98], [103, 199], [204, 300]])
    picture = drawn(values, ("R", "G", "B"), stretch_of(values))
    assert picture.shape == (1, 101, 3)
    assert np.allclose(picture[0, [0, 2, 50, 98, 100]], np.array([0, 0, 0.5, 1, 1])[:, None])


def test_a_kept_projection_gives_the_same_colours_to_another_tile(tmp_path):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(30, 8)) * range(1, 9), rng.normal(size=(20, 8)) * range(1, 9)
    fitted = fit_projection(a, "abc")
    assert np.allclose(fitted.axes @ fitted.axes.T, np.eye(3))
    assert np.abs(fitted.axes[0]).argmax() == 7                               # of most variance
    save_projection(tmp_path / "p.npz", fitted)
    kept = read_projection(tmp_path / "p.npz", "abc")
    assert np.array_equal(colours_of(kept(b)), colours_of(fitted(b)))
    assert not np.allclose(colours_of(kept(b)), colours_of(fit_projection(b, "abc")(b)), atol=0.05)
    with pytest.raises(UserError, match="p.npz: made for checkpoint abc, not for xyz"):
        read_projection(tmp_path / "p.npz", "xyz")
    (tmp_path / "q.npz").write_text("no")
    with pytest.raises(UserError, match="q.npz: not a projection"):
        read_projection(tmp_path / "q.npz", "abc")


def test_components_are_lightness_then_blue_to_yellow():
    dark, light, blue, yellow = colours_of(np.array([[0, 0.5, 0.5], [1, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 1, 0.5]]))
    assert dark.max() < 0.35 and light.min() > 0.8 and blue[2] > blue[0] + 0.3 and yellow[0] > yellow[2] + 0.3
    one = fit_projection(np.ones((1, 8)), "")                                 # one patch in all: nothing varies
    assert np.isfinite(colours_of(one(np.ones((1, 8))))).all()


# ---- the script -----------------------------------------------------------------------------------------------------

def test_both_checkpoints(data, checkpoints, drawn_with, tmp_path):
    """Only the classes are the fine-tuned one's, in either order."""
    test = open_dataset("treesatai-ts", data, "test", KEYS)
    for paths in (checkpoints, checkpoints[::-1]):
        show.main(command(data, *paths, out=tmp_path / "a.png", seed=2))
        out, view, others, titles, notes = drawn_with.pop()
        assert np.array_equal(view.f, tile.look(model_of(), test[1], seed=2).f)
        assert np.array_equal(view.probabilities, tile.probabilities(model_of(classes=15), test[1]))
        assert np.array_equal(view.truth, test.labels[1] > 0) and view.classes == test.classes
        assert [picture.shape for _, picture in others] == [(3, 3, 3)] * 3 and notes == []
        assert titles[0] == test.names[1] and "DEMO" in titles[-1]
        assert titles[1] == "treesatai-ts, test; masks of seed 2" and all("c0ffee1" in title for title in titles[2:4])


def test_one_checkpoint_says_what_is_not_there(data, checkpoints, drawn_with):
    words_of = "classes: a pretrained checkpoint has no classifier", "reconstructions: a fine-tuned checkpoint has no"
    for path, words in zip(checkpoints, words_of):
        show.main(command(data, path))
        out, view, _, titles, notes = drawn_with.pop()
        assert len(notes) == 1 and words in notes[0] and out.parent == path.parent and out.name.startswith("show-")
        assert ("masks" in titles[1]) == (view.is_masked is not None) == ("pretrained" in path.name)
    item = item_of(data)
    view = tile.look(model_of(ablation="no_reconstruction"), item)
    assert "no_reconstruction" in show.notes_of({"pretrained": 0, "finetuned": 0}, view)[0]


def test_projection_of_a_file_compares_pictures(data, checkpoints, drawn_with, tmp_path):
    """A tile has the same colours as among the others of the picture that the projection was made for."""
    names, path = open_dataset("treesatai-ts", data, "test", KEYS).names, tmp_path / "p.npz"
    for name in names[:2]:
        show.main([*command(data, checkpoints[0], tile=name, projection=path), "--others", "3"])
    (_, _, first, *_), (_, _, second, *_) = drawn_with
    assert np.allclose(first[1][1], second[0][1]) and np.allclose(first[0][1], second[3][1])
    with pytest.raises(UserError, match="p.npz: made for checkpoint"):
        show.main(command(data, checkpoints[1], projection=path))


@pytest.mark.parametrize("keys", [KEYS, ("vhr",), ("s1",), ("s2", "s1")])
def test_pictures_of_any_sensors(data, keys, tmp_path):
    path = write_checkpoint(tmp_path / "pretrained.pt", model_of(keys), "pretrained")
    show.main(command(data, path, out=tmp_path / "a.png"))
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_a_single_date_and_a_dataset_of_ones_own_of_one_patch(tmp_path, monkeypatch):
    """Sensors without natural colours, one patch a tile, days since an origin."""
    for module in ("splits", "band_statistics"):
        monkeypatch.setattr(f"datasets.{module}.FOLDER", tmp_path / module)
    sensors = [Sensor("height", "image", ("h",), 2, 20, files="{tile}.npy"),
               Sensor("heat", "series", ("T",), 40, 1, 900, "2020-01-01", files="{tile}.npz")]
    monkeypatch.setitem(SENSORS, "mine", {sensor.key: sensor for sensor in sensors})
    root = tmp_path / "mine"
    root.mkdir()
    (root / "labels.csv").write_text("tile,split,a,b\nx,train,1,0\ny,val,1,1\nz,test,0,1\n")
    for name in "xyz":
        np.save(root / f"{name}.npy", np.random.rand(1, 20, 20).astype(np.float32))
        np.savez(root / f"{name}.npz", data=np.random.rand(1, 1, 1, 1).astype(np.float32), dates=[20210605])
    both, one = model_of(("height", "heat"), 0, "mine"), model_of(("heat",), 2, "mine")
    paths = (write_checkpoint(tmp_path / "pretrained.pt", both, "pretrained", "mine"),
             write_checkpoint(tmp_path / "finetuned.pt", one, "finetuned", "mine"))
    show.main(["--checkpoint", *map(str, paths), "--data-root", str(root), "--tile", "z", "--out",
               str(tmp_path / "z.png")])
    assert (tmp_path / "z.png").read_bytes()[:4] == b"\x89PNG"
    starts, names = picture.month_ticks([0, 20, 31, 40, 366], sensors[1])
    assert (starts, names) == ([0, 2], ["Jan", "Feb"])                        # the last date has no room for its name


# ---- errors ---------------------------------------------------------------------------------------------------------

def test_errors(data, checkpoints, tmp_path):
    pretrained, finetuned = checkpoints
    cases = {
        "--tile nowhere: none of test, val, train under .* has it; there are such as .*test":
            command(data, pretrained, tile="nowhere"),
        "--patch 3,0: expected ROW,COLUMN from 0,0 to 2,2": command(data, pretrained, patch="3,0"),
        "--patch 3: expected ROW": command(data, pretrained, patch="3"),
        "--out a.jpg: expected a name that ends in .png": command(data, pretrained, out="a.jpg"),
        "are both pretrained; name one of each kind": command(data, pretrained, pretrained),
        "3 files; name one": command(data, pretrained, pretrained, finetuned),
        "none.pt: no such checkpoint": command(data, tmp_path / "none.pt"),
        "no such folder": [*command(data, pretrained), "--data-root", str(tmp_path / "none")],
    }
    for text, words in cases.items():
        with pytest.raises(UserError, match=text):
            show.main(words)


def test_checkpoints_that_do_not_fit(data, checkpoints, tmp_path):
    saved = checkpoint.load(checkpoints[1], "finetuned")
    saved["config"]["model"] = "pse"
    checkpoint.save(tmp_path / "finetuned.pt", saved)
    with pytest.raises(UserError, match="a checkpoint of pse; show.py draws omnisat only"):
        show.main(command(data, tmp_path / "finetuned.pt"))
    other = write_checkpoint(tmp_path / "finetuned2.pt", model_of(classes=15), "finetuned", s1="repaired")
    with pytest.raises(UserError, match="finetuned2.pt: trained with --s1 repaired, .*pretrained.pt with released"):
        show.main(command(data, checkpoints[0], other))
    changed = model_of()
    changed.sensors["vhr"] = replace(changed.sensors["vhr"], bands=("R", "G", "B"))
    with pytest.raises(UserError, match="its weights are not those of today's omnisat"):
        show.main(command(data, write_checkpoint(tmp_path / "pretrained.pt", changed, "pretrained")))


# ---- the drawing of the architecture --------------------------------------------------------------------------------

def test_names_in_the_drawing_are_those_of_the_code():
    text = (Path(__file__).parent.parent / "docs" / "architecture.svg").read_text(encoding="utf-8")
    names = re.findall(r'class="code[^>]*>([^<]+)<', text)
    places = omnisat, contrastive, reconstruction, model_of(classes=2)
    assert {"patchify", "pretrain_loss", "token_error", "head"} < set(names)
    assert [name for name in names if not any(hasattr(place, name) for place in places)] == []
