"""Any subset of the sensors from one checkpoint: what is left out is seen as if it were missing in the file."""
import pytest
import torch

from models.methods import build_model
from tests.test_models import S1, S2, VHR, make_batch

KEYS = [VHR.key, S2.key, S1.key]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_model("omnisat", [VHR, S2, S1], embed_dim=32, depth=2, num_classes=4).eval()


@pytest.fixture
def batch(model):
    return make_batch([VHR, S2, S1])


def without(batch, *keys):
    """The batch as a dataset of the other sensors gives it."""
    return {name: value for name, value in batch.items() if name.removesuffix("_dates").removesuffix("_padded") not in keys}


# ---- the model ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("tiles_at_once", [None, 1, 2])
@torch.no_grad()
def test_a_sensor_that_is_not_given_is_seen_as_an_empty_series(model, batch, tiles_at_once):
    model.tiles_at_once = tiles_at_once
    empty = batch | {"s1": 1e4 * torch.randn_like(batch["s1"]), "s1_padded": torch.ones_like(batch["s1_padded"])}
    assert torch.equal(model(without(batch, "s1")), model(empty))
    assert not torch.allclose(model(empty), model(batch), atol=1e-3)
    for level in ("patch", "tile"):
        assert torch.equal(model.features(without(batch, "s1"), level), model.features(empty, level))


@pytest.mark.parametrize("lost", [["vhr"], ["s2"], ["vhr", "s1"], ["s2", "s1"], ["vhr", "s2"]])
@torch.no_grad()
def test_a_masked_sensor_is_one_that_is_not_given(model, batch, lost):
    """So the tokens are computed once, and masked for each subset."""
    tokens, present, _ = model.encode(batch)
    assert present.all()
    seen = torch.tensor([key not in lost for key in KEYS])
    f = model.level_of("tile", tokens, present & seen, model.grid(batch))
    assert torch.equal(model.head(f), model(without(batch, *lost)))
    assert model.present(without(batch, *lost)).tolist() == [seen.tolist()] * 3
    for key in lost:                                                          # whatever was in it
        batch[key] = 1e6 * torch.randn_like(batch[key])
    tokens, present, _ = model.encode(batch)
    assert torch.equal(model.level_of("tile", tokens, present & seen, model.grid(batch)), f)


@torch.no_grad()
def test_what_is_not_given_is_masked_as_in_pretraining(model, batch):
    """Its tokens are the mask token, at their places: the combiner gets all M x P of them."""
    tokens, _, _ = model.encode(batch)
    is_masked = torch.zeros(tokens.shape[:3], dtype=torch.bool)
    is_masked[:, 1] = True
    f = model.combine(tokens, is_masked, model.grid(batch))
    assert torch.equal(model.features(without(batch, "s2"), "patch"), f)


def test_a_batch_without_any_sensor(model):
    with pytest.raises(ValueError, match="the batch has none of the model's sensors"):
        model({"name": ["a", "b", "c"]})
