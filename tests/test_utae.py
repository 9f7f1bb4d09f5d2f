"""U-TAE against naive loops in float64, and what every network of series promises."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.compared.pse import PSELTAE
from models.compared.utae import UTAE, Conv, Down, Up, UTAEVector, collapse
from tests.test_models import assert_same, double
from tests.test_pse import DATES, PADDED, count, undropped

SMALL, LARGE = ((64, 64, 128), (64, 64, 128), 2), ((64, 64, 128, 128), (64, 64, 128, 128), 4)
NETWORKS = {"utae": lambda: UTAE(3, (16, 16), (16, 16), 2, attention_dim=32),
            "utae-vector": lambda: UTAEVector(3, 8, 0.25),
            "pse-ltae": lambda: PSELTAE(3, 8, 0.25)}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(params=NETWORKS)
def network(request):
    return undropped(NETWORKS[request.param]()).double()


# Every network of series

@pytest.mark.parametrize("training", [True, False])
def test_padded_dates_do_not_matter(network, training):
    """Whatever they hold and however many they are: the same values, gradients and running statistics."""
    network.train(training)
    start, x = {name: value.clone() for name, value in network.state_dict().items()}, double(3, 4, 3, 4, 5)
    projection = torch.randn_like(network(x, DATES, PADDED))

    def run(x, dates, padded):
        network.load_state_dict(start)
        y = network(x, dates, padded)
        gradients = torch.autograd.grad((y * projection).sum(), list(network.parameters()))
        return [y, *gradients, *(value.clone() for value in network.state_dict().values())]
    expected = run(x, DATES, PADDED)
    changed, dates = x.clone(), torch.where(PADDED, 366, DATES)
    changed[PADDED] = 1e200
    more = (torch.cat([changed, 100 * double(3, 2, 3, 4, 5)], 1), F.pad(dates, (0, 2), value=77),
            F.pad(PADDED, (0, 2), value=True))
    for inputs in ((changed, dates, PADDED), more):
        torch.testing.assert_close(run(*inputs), expected, rtol=1e-9, atol=1e-9)
    x[0, 1] += 1                                                              # a date that exists does matter
    assert ((run(x, DATES, PADDED)[0] - expected[0])[0].abs() > 1e-6).any()


def test_order_counts_through_the_dates_only(network):
    """Dates in another order give the same, their contents exchanged between the days do not."""
    x, dates, padded = double(3, 4, 3, 4, 5), DATES[[0, 0, 0]], torch.zeros(3, 4, dtype=torch.bool)
    network.eval()
    y, order = network(x, dates, padded), torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(network(x[:, order], dates[:, order], padded), y)
    assert not torch.allclose(network(x[:, order], dates, padded), y, atol=1e-6)


def test_tiles_are_not_mixed_in_evaluation(network):
    x, network = double(3, 4, 3, 4, 5), network.eval()
    y = network(x, DATES, PADDED)
    for b in range(3):
        torch.testing.assert_close(network(x[b:b + 1], DATES[b:b + 1], PADDED[b:b + 1]), y[b:b + 1])


def test_every_parameter_learns(network):
    x = double(3, 4, 3, 4, 5)
    y = network(x, DATES, PADDED)
    (y * torch.randn_like(y)).sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-9] == []


@pytest.mark.parametrize("tiles", [1, 2])
def test_one_tile_and_empty_series_train(network, tiles):
    """A batch of one tile of one date, alone and beside an empty series: finite values and gradients."""
    x, padded = double(tiles, 1, 3, 4, 5), torch.tensor([[False], [True]])[:tiles]
    y = network(x, DATES[:tiles, :1], padded)
    y.square().sum().backward()
    assert y.isfinite().all() and all(p.grad.isfinite().all() for p in network.parameters())
    assert network.eval()(x, DATES[:tiles, :1], padded).isfinite().all()


def test_bfloat16(network):
    """Under autocast: near the values of 32 bits, finite gradients."""
    network.float().eval()
    x = torch.randn(3, 4, 3, 4, 5)
    y = network(x, DATES, PADDED)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = network(x, DATES, PADDED)
        low.float().square().sum().backward()
    assert (low - y).abs().mean() < 0.05 * y.abs().mean()
    assert all(p.grad.isfinite().all() for p in network.parameters())


# U-TAE

def test_parameter_counts():
    """Facts, with the linear layer to K: UT&T 0.76 M and 2.28 M, here without the 0.02 M of convolutions whose output
    it never used.

    UTAE with its head of 0.027 M: 0.37 M.
    """
    with torch.device("meta"):
        small, large, vector = UTAE(10, *SMALL), UTAE(10, *LARGE), UTAEVector(10)
    unused = 64 * 32 * 9 + 3 * 32 + 32 * 20 * 9 + 3 * 20
    assert round((count(small) + 65 * 15 + unused) / 1e6, 2) == 0.76
    assert (count(large) + 65 * 18 + unused) / 1e6 == pytest.approx(2.28, abs=0.01)
    head = 2 * 128 + 129 * 128 + 2 * 128 + 129 * 64 + 2 * 64 + 65 * 18
    assert round((count(vector) + head) / 1e6, 2) == 0.37
    # 8 channels in each
    assert [model.ltae.norm_out.num_groups for model in (small, large, vector.utae)] == [16, 16, 4]


@pytest.mark.parametrize("widths, sides", [(SMALL, [1, 2, 5, 6, 7, 10, 32]), (LARGE, [8, 10, 13, 32, 128])],
                         ids=["small", "large"])
def test_maps_are_of_the_size_of_the_pixels(widths, sides):
    """Down to any size and up again, odd ones too, and not square; every pixel reaches every level."""
    model = UTAE(3, *widths, width=0.25).eval()
    for side in sides:
        x = torch.randn(2, 1, 3, side, side + 1)
        y = model(x, DATES[:2, :1], PADDED[:2, :1])
        assert y.shape == (2, model.dim, side, side + 1) and model.dim == 16
    x = torch.randn(1, 1, 3, 10, 10, requires_grad=True)
    model(x, DATES[:1, :1], PADDED[:1, :1])[0, :, 0, 0].square().sum().backward()
    assert (x.grad.abs().sum(2) > 0).float().mean() > 0.9


def test_small_tiles_have_their_border_repeated():
    """8 pixels are the least that can be halved three times by a kernel of 4."""
    model, x = UTAE(3, *LARGE, width=0.25).eval(), torch.randn(2, 4, 3, 6, 9)
    whole = model(torch.cat([x, x[..., -1:, :], x[..., -1:, :]], -2), DATES[:2, :4], PADDED[:2, :4])
    torch.testing.assert_close(model(x, DATES[:2, :4], PADDED[:2, :4]), whole[..., :6, :])


def test_widths_that_do_not_fit_are_refused():
    for widths in (((64, 32), (32, 64)), ((64, 32), (64, 32, 32))):
        with pytest.raises(ValueError, match="the same levels and meet in the last"):
            UTAE(3, *widths, 2)


def test_padding_is_the_reflection():
    """One pixel on each side, the neighbour of the border; a single pixel is its own."""
    conv = Conv(1, 1, 3, bias=False)
    nn.init.ones_(conv.weight)                                               # the sum of 3 x 3 pixels
    x = torch.tensor([[1., 2.], [10., 20.]])[None, None]
    # rows of the padded image: 20 10 20 10 / 2 1 2 1 / 20 10 20 10 / 2 1 2 1
    assert conv(x).flatten().tolist() == [105, 84, 60, 48]
    assert conv(x[..., :1, :1]).item() == 9


def naive_conv(layers, x, stride=1):
    """Reflected border, convolution, group norm of 4 or batch norm, ReLU."""
    conv, norm, _ = layers
    x = F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), conv.weight, conv.bias, stride)
    if isinstance(norm, nn.GroupNorm):
        return F.group_norm(x, 4, norm.weight, norm.bias).relu()
    return F.batch_norm(x, None, None, norm.weight, norm.bias, training=True).relu()


def test_blocks_are_the_published():
    """Down: a strided convolution that keeps the channels, then two with a residual around the second. Up: its
    inverse, with a skip.
    """
    down, up = undropped(Down(8, 16, 4)).double(), undropped(Up(16, 8, 12, 4)).double()
    x, coarse, skip = double(2, 8, 6, 6).requires_grad_(), double(2, 16, 3,
                                                                  3).requires_grad_(), double(2, 12, 6,
                                                                                              6).requires_grad_()
    y = naive_conv(down.first, naive_conv(down.down, x, stride=2))
    assert_same([down(x)], [y + naive_conv(down.second, y)], [x, *down.parameters()])

    def normed(x, norm):
        return F.batch_norm(x, None, None, norm.weight, norm.bias, training=True).relu()
    y = normed(F.conv_transpose2d(coarse, up.up.weight, stride=2, padding=1), up.norm)
    y = naive_conv(up.first, torch.cat([y, normed(F.conv2d(skip, up.skip[0].weight), up.skip[1])], 1))
    assert_same([up(coarse, skip)], [y + naive_conv(up.second, y)], [coarse, skip, *up.parameters()])


def test_attention_weighs_the_maps_of_the_encoder():
    """Section 3 of U-TAE: the attention of a head, resized bilinearly, weighs the head's share of the channels at each
    pixel.
    """
    x, attention = double(6, 8, 5, 7).requires_grad_(), double(2, 3, 4, 2, 3).requires_grad_()
    expected = torch.zeros(2, 8, 5, 7, dtype=torch.float64)
    for b in range(2):
        for t in range(3):
            for d in range(8):
                weight = F.interpolate(attention[b, t, d // 2][None, None], size=(5, 7), mode="bilinear",
                                       align_corners=False)[0, 0]
                one = torch.zeros_like(expected)
                one[b, d] = 1
                expected = expected + one * weight * x[3 * b + t, d]
    assert_same([collapse(x, attention)], [expected], [x, attention])


def test_utae_is_its_parts():
    """The encoder sees an image at a time, the attention a pixel at a time; maps meet those of their own level."""
    model, x = undropped(UTAE(3, *SMALL, width=0.25)).double().eval(), double(3, 4, 3, 6, 6)
    for b in range(3):
        days = [t for t in range(4) if not PADDED[b, t]]
        levels = []                                                          # of each date, a list of maps
        for t in days:
            maps = [model.first(x[b, t][None])]
            for down in model.down:
                maps.append(down(maps[-1]))
            levels.append(maps)
        coarse = torch.stack([maps[-1][0] for maps in levels])               # T x D x H' x W'
        y, attention = torch.zeros_like(coarse[:1]), torch.zeros(len(days), 16, *coarse.shape[2:]).double()
        nothing = torch.zeros(1, len(days), dtype=torch.bool)
        for i in range(coarse.shape[2]):
            for j in range(coarse.shape[3]):
                token, weights = model.ltae(coarse[None, None, :, :, i, j], DATES[b, days][None], nothing)
                y[0, :, i, j], attention[:, :, i, j] = token[0, 0], weights[0, 0]
        for level, up in zip((1, 0), model.up):
            y = up(y, collapse(torch.cat([maps[level] for maps in levels]), attention[None]))
        torch.testing.assert_close(model(x, DATES, PADDED)[b], y[0])


def test_vector_is_the_mean_over_space():
    """Three more convolutions with batch norm and ReLU, then the mean of all pixels."""
    model, x = undropped(UTAEVector(3, 8, 0.25)).double(), double(3, 4, 3, 6, 6)
    y = model.utae(x, DATES, PADDED)
    for layers in model.out:
        y = naive_conv(layers, y)
    torch.testing.assert_close(model(x, DATES, PADDED), y.flatten(2).mean(2))
