"""show.py: which checkpoint a panel is from, what is told where one is not there, any sensors, errors in one line."""
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

import show
from datasets import open_dataset
from datasets.sensors import SENSORS, Sensor
from engine import checkpoint
from tests.test_views import KEYS, data, item_of, model_of    # noqa: F401 (data is a fixture)
from utils.errors import UserError
from views import picture, tile


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


@pytest.mark.parametrize("keys", [KEYS, ("vhr",), ("s1",)])
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
    (root / "labels.csv").write_text("tile,split,a,b\nx,train,1,0\ny,val,1,1\nz,val,0,1\n")    # no test tile
    for name in "xyz":
        np.save(root / f"{name}.npy", np.random.rand(1, 20, 20).astype(np.float32))
        np.savez(root / f"{name}.npz", data=np.random.rand(1, 1, 1, 1).astype(np.float32), dates=[20210605])
    both, one = model_of(("height", "heat"), 0, "mine"), model_of(("heat",), 2, "mine")
    paths = (write_checkpoint(tmp_path / "pretrained.pt", both, "pretrained", "mine"),
             write_checkpoint(tmp_path / "finetuned.pt", one, "finetuned", "mine"))
    show.main(["--checkpoint", *map(str, paths), "--data-root", str(root), "--tile", "z", "--out",
               str(tmp_path / "z.png")])
    assert (tmp_path / "z.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(UserError, match=r"--tile w: .* such as y \(val\), x \(train\); .*mine: no tile in test"):
        show.main(["--checkpoint", str(paths[0]), "--data-root", str(root), "--tile", "w"])
    starts, names = picture.month_ticks([0, 20, 31, 40, 366], sensors[1])
    assert (starts, names) == ([0, 2], ["Jan", "Feb"])                        # the last date has no room for its name


# ---- errors ---------------------------------------------------------------------------------------------------------

def test_errors(data, checkpoints, tmp_path):
    pretrained, finetuned = checkpoints
    cases = {
        "--tile nowhere: not in the lists under .*, which have such as .*test.*val.*train":
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
    with pytest.raises(UserError, match="trained on vhr of treesatai-ts, which datasets.sensors.py does not have"):
        show.main(command(data, write_checkpoint(tmp_path / "pretrained.pt", changed, "pretrained")))
    with torch.no_grad():
        (broken := model_of()).mask_token.fill_(torch.nan)
        broken.combiner.token.fill_(torch.nan)
    with pytest.raises(UserError, match="f. is not finite; was the checkpoint trained with too high an --lr"):
        show.main(command(data, write_checkpoint(tmp_path / "pretrained.pt", broken, "pretrained")))
