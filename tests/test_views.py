"""What is drawn of a tile is what the model says, in the units of the files; the drawing has the names of the code."""
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets import open_dataset
from datasets.loading import collate
from datasets.sensors import SENSORS
from datasets.simulated.demo import write_treesatai
from losses import contrastive, reconstruction
from models import omnisat
from models.methods import build_model
from models.omnisat import patchify
from utils.errors import UserError
from views import tile
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


def item_of(data, keys=KEYS, i=0):
    return open_dataset("treesatai-ts", data, "test", keys, labelled=False)[i]


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


# ---- the drawing of the architecture --------------------------------------------------------------------------------

def test_names_in_the_drawing_are_those_of_the_code():
    text = (Path(__file__).parent.parent / "docs" / "architecture.svg").read_text(encoding="utf-8")
    names = re.findall(r'class="code[^>]*>([^<]+)<', text)
    places = omnisat, contrastive, reconstruction, model_of(classes=2)
    assert {"patchify", "pretrain_loss", "token_error", "head"} < set(names)
    assert [name for name in names if not any(hasattr(place, name) for place in places)] == []
