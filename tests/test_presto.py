"""Presto: its released weights, its embedding against the formula written out token by token, and what takes no part
in it.
"""
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from models.compared.presto import GROUPS, MAX_DATES, Presto, s1_inputs, s2_inputs

RELEASED = Path(__file__).parent.parent.parent / "shared" / "real" / "weights" / "presto_default_model.pt"
# as the single dates of TreeSatAI
S2 = "B02", "B03", "B04", "B08", "B05", "B06", "B07", "B8A", "B11", "B12", "B01", "B09"
PLACE = torch.tensor([[52.5, 9.3]])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def released():
    if not RELEASED.is_file():
        pytest.skip(f"Presto's released weights are not beside the project ({RELEASED.name})")
    return torch.load(RELEASED, map_location="cpu", weights_only=True)


@pytest.fixture(params=["random", "released"])
def network(request):
    network = Presto()
    if request.param == "released":
        network.load_published(request.getfixturevalue("released"))
    return network.double().eval()


def pixels(count, dates, names=GROUPS):
    """Series of pixels: groups, months, padded, latlon."""
    groups = {name: torch.randn(count, dates, GROUPS[name], dtype=torch.float64) for name in names if name in GROUPS}
    if "dynamic_world" in names:
        groups["dynamic_world"] = torch.randint(9, (count, dates))
    latlon = torch.stack([torch.linspace(-60, 70, count), torch.linspace(-170, 130, count)], 1).double()
    return groups, torch.randint(12, (count, dates)), torch.zeros(count, dates, dtype=torch.bool), latlon


def tiles(count, side=3, dates=1):
    """Tiles of Sentinel-2 digital numbers, and the rest of what the network takes."""
    x = torch.randint(1, 6000, (count, dates, 12, side, side)).double()
    return x, torch.full((count, dates), 6), torch.zeros(count, dates, dtype=torch.bool), PLACE.double().expand(count,
                                                                                                                -1)


def plain(weights, groups, months, padded, latlon):
    """The embedding of one pixel by the formula: groups {name: (T, C)}, months (T), padded (T), latlon (2).

    weights: a state dict with the published names. Nothing is computed for tokens that are not there.
    """
    def linear(x, name):
        return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]

    def norm(x, name):
        return (x - x.mean()) / torch.sqrt(x.var(correction=0)
                                           + 1e-5) * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    order = ["S1", "S2_RGB", "S2_Red_Edge", "S2_NIR_10m", "S2_NIR_20m", "S2_SWIR", "ERA5", "SRTM", "NDVI",
             "dynamic_world"]
    latitude, longitude = (math.radians(degrees) for degrees in latlon)
    point = [math.cos(latitude) * math.cos(longitude), math.cos(latitude) * math.sin(longitude), math.sin(latitude)]
    tokens = [linear(torch.tensor(point, dtype=torch.float64), "latlon_embed")]
    for name, series in groups.items():
        for t in range(1 if name == "SRTM" else len(series)):
            if padded[t]:
                continue
            value = weights["dw_embed.weight"][series[t]] if name == "dynamic_world" else linear(
                series[t], f"eo_patch_embed.{name}")
            angle = 2 * math.pi * months[t].item() / 12
            month = [math.sin(angle)] * 16 + [math.cos(angle)] * 16
            position = [f(t / 1000 ** (i / 64)) for i in range(0, 64, 2) for f in (math.sin, math.cos)]
            if name == "SRTM":
                month, position = [0.] * 32, [0.] * 64
            kind = weights["channel_embed.weight"][order.index(name)]
            tokens.append(value + torch.cat([torch.tensor(month), kind, torch.tensor(position)]))
    for block in ("blocks.0", "blocks.1"):
        queries = [linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv").view(3, 8, 16) for x in tokens]
        for i, x in enumerate(tokens):
            heads = []
            for h in range(8):
                score = [math.exp(queries[i][0, h] @ other[1, h] / 4) for other in queries]
                heads.append(sum(s / sum(score) * other[2, h] for s, other in zip(score, queries)))
            x = x + linear(torch.cat(heads), f"{block}.attn.proj")
            hidden = F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1"))
            tokens[i] = x + linear(hidden, f"{block}.mlp.fc2")
    return norm(sum(tokens) / len(tokens), "norm")


def test_released_weights_are_taken_strictly(released):
    """The months and positions of the file are those computed; the decoder alone is left out; all else must be there
    and fit.
    """
    network = Presto()
    for name in ("month_embed.weight", "pos_embed"):
        torch.testing.assert_close(network.state_dict()[name], released[f"encoder.{name}"], rtol=0, atol=1e-6)
    network.load_published(released)
    encoder = [name for name in released if name.startswith("encoder.")]
    assert {f"encoder.{name}" for name in network.state_dict()} == set(encoder)
    assert all(torch.equal(network.state_dict()[name[8:]], released[name]) for name in encoder)
    lacking = {name: value for name, value in released.items() if name != "encoder.norm.bias"}
    for wrong, message in ((lacking, "norm.bias"), (released | {"head.weight": torch.zeros(1)}, "head.weight"),
                           (released | {"encoder.norm.bias": torch.zeros(3)}, "norm.bias")):
        with pytest.raises(RuntimeError, match=message):
            network.load_published(wrong)


def test_size_and_device():
    """0.40 M in the paper of Presto: 402,240 that learn and the table of months."""
    network = Presto()
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == 402_240
    assert [name for name, p in network.named_parameters() if not p.requires_grad] == ["month_embed.weight"]
    x, *rest = (tensor.to("meta") for tensor in tiles(2))
    assert network.to("meta").double()(s2_inputs(x, S2), *rest).shape == (2, 256)    # nothing is made on the CPU


@pytest.mark.parametrize("names", [(*GROUPS, "dynamic_world"), ("S1",), ("SRTM", "S2_SWIR", "NDVI")])
def test_embedding_is_the_formula(network, names):
    """Tseng et al., section 3: a token for each group and date there is; places of tokens in the network do not matter.
    """
    groups, months, padded, latlon = pixels(2, 3, names)
    padded[0, 2] = padded[1, 0] = True
    expected = [plain(network.state_dict(), {name: x[i] for name, x in groups.items()}, months[i], padded[i], latlon[i])
                for i in range(2)]
    torch.testing.assert_close(network.encode(groups, months, padded, latlon), torch.stack(expected))


def test_what_is_not_there_does_not_matter(network):
    """Values at padded dates, pixels that have no date at all, other bands than Presto's."""
    groups, months, padded, latlon = pixels(3, 4, ("S1", "NDVI", "SRTM"))
    padded[0, 2:] = padded[1] = True
    first = network.encode(groups, months, padded, latlon)
    other = {name: torch.where(padded[:, :, None], 1e3, x) for name, x in groups.items()}
    torch.testing.assert_close(network.encode(other, months.where(~padded, 11), padded, latlon), first)
    short = network.encode({name: x[:1, :2] for name, x in groups.items()}, months[:1, :2], padded[:1, :2], latlon[:1])
    torch.testing.assert_close(short, first[:1])
    torch.testing.assert_close(first[1], plain(network.state_dict(), {}, months[1], padded[1], latlon[1]))
    x, *rest = tiles(2)
    changed = x.clone()
    changed[:, :, 10:] = 0                                          # B01 and B09
    assert torch.equal(network(s2_inputs(changed, S2), *rest), network(s2_inputs(x, S2), *rest))
    changed[:, :, 9] += 500
    assert (network(s2_inputs(changed, S2), *rest) - network(s2_inputs(x, S2), *rest)).abs().max() > 1e-3


def test_inputs_by_hand():
    """Released code: digital numbers / 10,000; (dB + 25) / 25; NDVI 0 where nothing is reflected; bands by their names.
    """
    x = torch.arange(100, 1300, 100).float().view(1, 1, 12, 1, 1).repeat(1, 1, 1, 1, 2)
    x[..., 1] = 0
    expected = {"S2_RGB": [0.01, 0.02, 0.03], "S2_Red_Edge": [0.05, 0.06, 0.07], "S2_NIR_10m": [0.04],
                "S2_NIR_20m": [0.08],
                "S2_SWIR": [0.09, 0.10], "NDVI": [1 / 7]}
    groups = s2_inputs(x, S2)
    assert groups.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(groups[name][0, 0, :, 0], torch.tensor([[value, 0] for value in values]))
    radar = s1_inputs(torch.tensor([-20., -25., 7.])[:, None, None], ("VH", "VV", "VV/VH"))
    torch.testing.assert_close(radar["S1"].flatten(), torch.tensor([0., 0.2]))
    with pytest.raises(ValueError, match="no band B8A"):
        s2_inputs(x[:, :, :7], S2[:7])


def test_a_tile_is_mean_and_deviation_of_its_pixels(network):
    """Each pixel is a series of its own, in any order; the deviation is unbiased; a tile does not see another."""
    x, months, padded, latlon = tiles(2, dates=2)
    latlon = latlon + torch.tensor([[0.], [40]])
    padded[1, 1] = True
    vectors = network(s2_inputs(x, S2), months, padded, latlon)
    assert vectors.shape == (2, 256)
    groups = [{name: value[..., row, column] for name, value in s2_inputs(x, S2).items()}
              for row in range(3) for column in range(3)]
    embeddings = [network.encode(pixel, months, padded, latlon) for pixel in groups]
    mean = sum(embeddings) / 9
    torch.testing.assert_close(vectors[:, :128], mean)
    torch.testing.assert_close(vectors[:, 128:], torch.sqrt(sum((one - mean) ** 2 for one in embeddings) / 8))
    moved = x.flatten(3)[..., torch.randperm(9)].view_as(x)
    torch.testing.assert_close(network(s2_inputs(moved, S2), months, padded, latlon), vectors)
    torch.testing.assert_close(network(s2_inputs(x[1:], S2), months[1:], padded[1:], latlon[1:]), vectors[1:])


@pytest.mark.parametrize("pixels", [1, 4])
def test_pixels_that_are_alike_have_no_deviation_and_finite_gradients(network, pixels):
    """A single pixel, pixels of equal values, and a tile without any date, whose pixels know their place alone."""
    x = torch.rand(2, 1, 2, 1, 1).double().expand(-1, -1, -1, 1, pixels).clone().requires_grad_()
    padded = torch.tensor([[False], [True]])
    vectors = network({"S1": x}, torch.full((2, 1), 6), padded, PLACE.double().expand(2, -1))
    assert vectors[:, 128:].abs().max() < 1e-12
    (vectors * torch.randn(256)).sum().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)
    assert x.grad[0].any() and not x.grad[1].any()


def test_gradients_reach_all_that_learn():
    """Also in bfloat16, also of one tile; the last row of land cover is for none."""
    network, (groups, months, padded, latlon) = Presto(), pixels(1, 8, (*GROUPS, "dynamic_world"))
    groups = {name: x if name == "dynamic_world" else x.float() for name, x in groups.items()}
    with torch.autocast("cpu", torch.bfloat16):
        (network.encode(groups, months, padded, latlon.float()).float() ** 3).sum().backward()
    assert [name for name,
            p in network.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())] == []


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=f"a series of {MAX_DATES + 1} dates: there are positions for {MAX_DATES}"):
        Presto().encode(*pixels(1, MAX_DATES + 1, ("S1",)))
    groups, *rest = pixels(1, 1, ("S1",))
    with pytest.raises(ValueError, match="no group S3: there are S1, S2_RGB"):
        Presto().encode({"S3": groups["S1"]}, *rest)
