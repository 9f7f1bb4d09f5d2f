"""OmniSat's networks against naive loops in float64, hand-worked small cases, and the properties the paper claims."""
import math

import pytest
import torch
from torch import nn

from datasets.sensors import SENSORS, Sensor
from models.combiner import Attention, Block, Combiner, distance_buckets
from models.fast import winograd
from models.fast.forms import change_classes
from models.fast.omnisat import FORMS
from models.image import ImageDecoder, ImageEncoder, pooled_sizes
from models.omnisat import OmniSat, patchify, random_mask
from models.series import SeriesDecoder, SeriesEncoder

VHR, IR = Sensor("vhr", "image", ("R", "G", "B"), 1, 10), Sensor("ir", "image", ("IR",), 2.5, 4)
S2, S1 = Sensor("s2", "series", ("a", "b", "c"), 10, 1, 30), Sensor("s1", "series", ("VV", "VH"), 5, 2, 40)
MIXTURES = [[VHR], [S1], [IR, VHR], [S2, S1], [VHR, S2], [S2, VHR, S1], [S2, IR, S1, VHR]]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def make_batch(sensors, batch=3, side=2, valid=(6, 2, 4)):
    """side x side patches; series of 6 dates, of which the first `valid` of each tile are there."""
    out = {}
    for sensor in sensors:
        pixels, bands = side * sensor.patch, len(sensor.bands)
        if sensor.kind == "image":
            out[sensor.key] = torch.randn(batch, bands, pixels, pixels)
        else:
            out[sensor.key] = torch.randn(batch, 6, bands, pixels, pixels)
            out[f"{sensor.key}_dates"] = torch.randint(sensor.period + 1, (batch, 6))
            out[f"{sensor.key}_padded"] = torch.arange(6) >= torch.tensor(valid)[:, None]
    return out


@pytest.fixture(params=["plain", "fast"])
def form(request):
    """What makes a plain model or part of one what it is called."""
    return (lambda model: model) if request.param == "plain" else lambda model: change_classes(model, FORMS)


@pytest.fixture
def toy(form):
    return lambda sensors, **options: form(OmniSat(sensors, embed_dim=32, depth=2, **options))


def assert_same(values, expected, inputs):
    """Equal values, and equal gradients of one random projection of them to each input; none of them is only zero."""
    weights = [torch.randn_like(value) for value in values]
    sums = [sum((w * x).sum() for w, x in zip(weights, outputs)) for outputs in (values, expected)]
    gradients = [torch.autograd.grad(total, inputs, retain_graph=True) for total in sums]
    torch.testing.assert_close(list(values), list(expected), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-9)
    assert all(g.abs().max() > 0 for g in gradients[0])


def test_parameter_counts_are_the_papers():
    """Section 3.4: 3.6M / 1.8M, 403k / 96k, 402k / 95k (decoders with their fixed table), combiner 3.6M."""
    model = OmniSat(list(SENSORS["treesatai-ts"].values()))

    def count(module):
        return sum(p.numel() for p in module.parameters())
    encoder, decoder = model.encoders, model.decoders
    assert count(encoder["vhr"]) == pytest.approx(3.55e6, rel=0.01)
    assert count(decoder["vhr"]) == pytest.approx(1.78e6, rel=0.01)
    assert [round(count(encoder[key]) / 1000) for key in ("s2", "s1")] == [403, 402]
    assert [round((count(decoder[key]) + decoder[key].dates.numel()) / 1000) for key in ("s2", "s1")] == [96, 95]
    assert 3.6e6 <= count(model.combiner) < 3.7e6


# Series

def naive_encoding(day, dim):
    """Sinusoids of base 1000: sin at even, cos at odd features (L-TAE), in the table's float32."""
    angles = [day / 1000 ** (2 * (i // 2) / dim) for i in range(dim)]
    return torch.tensor([math.cos(a) if i % 2 else math.sin(a) for i, a in enumerate(angles)]).double()


def naive_embed(encoder, x, padded):
    """The MLP of each date and pixel; batch norm over all dates that exist, and no other. Returns {(b, p, t): D}."""
    rows = {(b, p, t): x[b, p, t] for b in range(x.shape[0]) for p in range(x.shape[1]) for t in range(x.shape[2])
            if not padded[b, t]}
    for layer in encoder.embed:
        if isinstance(layer, nn.BatchNorm1d):
            mean = sum(rows.values()) / len(rows)
            variance = sum((row - mean) ** 2 for row in rows.values()) / len(rows)
            rows = {k: (row - mean) / (variance + layer.eps).sqrt() * layer.weight + layer.bias for k,
                    row in rows.items()}
        else:
            rows = {k: layer(row) for k, row in rows.items()}
    return rows


def naive_ltae(encoder, x, dates, padded):
    """Section 3.1, L-TAE: softmax of <q_h, k_h(t)> / sqrt(8) over valid dates; a head's values are its channels."""
    dim, heads, keys = encoder.out[1].normalized_shape[0], 16, 8
    share = dim // heads
    tokens, attention = [], torch.zeros(x.shape[:3], dtype=x.dtype)
    embedded = naive_embed(encoder, x, padded)
    for b, p in torch.cartesian_prod(torch.arange(x.shape[0]), torch.arange(x.shape[1])).tolist():
        valid = [t for t in range(x.shape[2]) if not padded[b, t]]
        e = {t: encoder.norm(embedded[b, p, t] + naive_encoding(dates[b, t].item(), share).repeat(heads))
             for t in valid}
        pieces = []
        for h in range(heads):
            w_key = encoder.key.weight[h * keys:(h + 1) * keys]
            score = {t: torch.exp(encoder.query[h] @ (w_key @ e[t]) / keys ** 0.5) for t in valid}
            weight = {t: score[t] / sum(score.values()) for t in valid}
            pieces.append(sum(weight[t] * e[t][h * share:(h + 1) * share] for t in valid))
            for t in valid:
                one = torch.zeros_like(attention)
                one[b, p, t] = 1 / heads
                attention = attention + one * weight[t]
        tokens.append(encoder.out(torch.cat(pieces)))
    return torch.stack(tokens).view(*x.shape[:2], dim), attention


def test_series_encoder_is_ltae(form):
    """Section 3.1 (b): token and attention against the loop; padded dates take no part."""
    encoder, x = form(SeriesEncoder(3, 30, 32)).double(), double(2, 2, 4, 3).requires_grad_()
    dates = torch.tensor([[3, 30, 17, 0], [8, 1, 29, 12]])
    padded = torch.tensor([[False, False, False, False], [False, True, False, True]])
    values = encoder(x, dates, padded)
    assert_same(values, naive_ltae(encoder, x, dates, padded), [x, *encoder.parameters()])
    attention = values[1]
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, 2, dtype=torch.float64))
    assert (attention[1, :, [1, 3]] == 0).all() and (attention[1, :, [0, 2]] > 0).all()
    gradient, = torch.autograd.grad(values[0].square().sum(), x)
    assert (gradient[1, :, [1, 3]] == 0).all()


def test_series_encoder_ignores_padding_and_order(form):
    """Section 3.1: appended padded dates, whatever they hold, and the order of the dates change nothing."""
    encoder, x, dates = form(SeriesEncoder(3, 30, 32)).double(), double(2, 5, 4, 3), torch.randint(31, (2, 4))
    padded = torch.zeros(2, 4, dtype=torch.bool)
    token, attention = encoder(x, dates, padded)
    more = encoder(torch.cat([x, 1e3 * double(2, 5, 3, 3)], 2), torch.cat([dates, torch.randint(31, (2, 3))], 1),
                   torch.cat([padded, ~padded[:, :3]], 1))
    torch.testing.assert_close(more, (token, torch.cat([attention, torch.zeros(2, 5, 3).double()], 2)), rtol=0,
                               atol=1e-12)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(encoder(x[:, :, order], dates[:, order], padded), (token, attention[:, :, order]))
    assert not torch.allclose(encoder(x[:, :, order], dates, padded)[0], token, atol=1e-3)    # the dates do count
    token, attention = encoder(x, dates, ~padded)                   # empty series
    assert token.isfinite().all() and (attention == 0).all()


def test_series_decoder_is_repeat_encode_mlp():
    """Section 3.1: repeat the vector over time, add the encoding of each time step, map to size C by an MLP."""
    decoder, token = SeriesDecoder(10, 30, 32).double(), double(3, 32).requires_grad_()
    dates = torch.tensor([[0, 30, 7, 7], [1, 2, 3, 4], [30, 30, 0, 11]])
    repeated = token[:, None].repeat(1, 4, 1)
    encoded = repeated + torch.stack([naive_encoding(day, 32) for day in dates.flatten().tolist()]).view(3, 4, 32)
    plain = decoder.last(nn.functional.gelu(decoder.hidden(encoded)))
    assert_same([decoder(token, dates)], [plain], [token, *decoder.parameters()])


# Combiner

def test_attention_is_contextual_relative_attention(form):
    """Section 3.1 with Wu et al.: softmax_j of q_i . (k_j + r_bucket(i,j)) / sqrt(d), one table r for all heads."""
    heads, dim, size = 2, 8, 4
    attention = form(Attention(dim, heads)).double()
    x, context = double(2, 3, dim).requires_grad_(), double(2, 5, dim).requires_grad_()
    nn.init.normal_(attention.relative)
    buckets, rows = torch.randint(4, (3, 5)), []
    w_key, w_value = attention.key_value.weight[:dim], attention.key_value.weight[dim:]
    for b in range(2):
        for i in range(3):
            q, pieces = attention.query.weight @ x[b, i], []
            for h in range(heads):
                part = slice(h * size, (h + 1) * size)
                r = [attention.relative[buckets[i, j]] for j in range(5)]
                weight = [torch.exp(q[part] @ ((w_key @ context[b, j])[part] + r[j]) / size ** 0.5) for j in range(5)]
                pieces.append(sum(weight[j] / sum(weight) * (w_value @ context[b, j])[part] for j in range(5)))
            rows.append(attention.out.weight @ torch.cat(pieces) + attention.out.bias)
    plain = torch.stack(rows).view(2, 3, dim)
    assert_same([attention(x, context, buckets)], [plain], [x, context, *attention.parameters()])


def test_blocks_are_residual(form):
    """Section 3.1, "residual self-attention blocks": x + attention(norm x), then y + MLP(y); the context has its own
    norm.
    """
    x, context, buckets = double(2, 3, 8), double(2, 5, 8), torch.randint(4, (3, 5))
    norm = nn.LayerNorm(8).double()
    for block, inputs in ((Block(8, 2), (buckets[:, :3],)), (Block(8, 2, cross=True), (buckets, context))):
        form(block).double()
        y = x + block.attention(norm(x), norm(inputs[1]) if len(inputs) > 1 else norm(x), inputs[0])
        assert_same([block(x, *inputs)], [y + block.mlp(y)], [*block.attention.parameters(), *block.mlp.parameters()])


@pytest.mark.parametrize("pairs", [1, 1000, 3000])
def test_attention_in_parts_is_attention(pairs, monkeypatch):
    """Queries one after the other, some at a time with a shorter rest, and all but a few: values and all gradients."""
    combiner = change_classes(Combiner(32, 2, 4), FORMS).double()
    tokens = double(2, 3, 16, 32).requires_grad_()    # 48 tokens
    positions = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    whole = combiner(tokens, positions)
    monkeypatch.setattr("models.fast.combiner.PAIRS", pairs)
    assert_same([combiner(tokens, positions)], [whole], [tokens, *combiner.parameters()])


def test_attention_in_parts_keeps_no_matrix_of_all_scores(monkeypatch):
    monkeypatch.setattr("models.fast.combiner.PAIRS", 2 ** 10)
    attention, x = change_classes(Attention(16, 2), FORMS), torch.randn(1, 512, 16)
    sizes, buckets = [], torch.zeros(512, 512, dtype=torch.uint8)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel() * t.element_size()) or t,
                                                  lambda t: t):
        attention(x, x, buckets).sum().backward()
    assert max(sizes) < 2 * 512 * 512 * 4 / 8    # heads x queries x keys x float32, by far


def test_distance_buckets_by_hand():
    """iRPE's piecewise index of the rounded distance d, for d > 1.9: round(1.9 + 1.9 ln(d / 1.9) / ln 8), 3 at most.

    d = 2: 1.95; 3: 2.32; 4: 2.58; 5: 2.78; 7: 3.09; 100: 5.52. sqrt 2, 5, 8, 13 round to 1, 2, 3, 4.
    """
    buckets = distance_buckets(torch.tensor([[0, 0], [0, 1], [1, 1], [0, 2], [2, 1], [2, 2], [3, 0],
                                             [3, 2], [4, 0], [3, 4], [0, 7], [100, 0]]))
    assert buckets[0].tolist() == [0, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 3]
    assert torch.equal(buckets, buckets.t()) and (buckets.diag() == 0).all()
    assert buckets[9, 10] == 3 and buckets[2, 5] == 1               # (3, 4) to (0, 7): 4.24; (1, 1) to (2, 2): 1.41


def grid(side):
    return torch.cartesian_prod(torch.arange(side), torch.arange(side))


def sharp_combiner(form):
    """A combiner in which the relative positions weigh enough to be seen."""
    combiner = form(Combiner(32, 2, 8)).double()
    for name, p in combiner.named_parameters():
        if name.endswith("relative"):
            nn.init.normal_(p)
    return combiner


def test_combiner_sees_only_relative_positions(form):
    """Section 3.1: shifting the tile, or swapping two patches with their positions, changes nothing but the order."""
    combiner, tokens, swap = sharp_combiner(form), double(2, 3, 36, 32), torch.arange(36)
    f = combiner(tokens, grid(6))
    for offset in ([1, 0], [-3, 5], [1000, -777], [0.25, 0.5]):
        torch.testing.assert_close(combiner(tokens, grid(6) + torch.tensor(offset)), f)
    swap[[4, 21]] = torch.tensor([21, 4])
    torch.testing.assert_close(combiner(tokens[:, :, swap], grid(6)[swap]), f[:, swap])
    for other in (combiner(tokens[:, :, swap], grid(6)), combiner(tokens, grid(6)[swap])):
        assert not torch.allclose(other, f[:, swap], atol=1e-3) and not torch.allclose(other, f, atol=1e-3)


def test_combiner_is_equations_1_and_2(form):
    """Equations 1 and 2: a token sits where its patch is, whatever its modality; one copy of f^comb at each patch."""
    combiner, tokens = sharp_combiner(form), double(2, 3, 6, 32)
    where = torch.tensor([[0, 0], [0, 1], [0, 3], [2, 0], [2, 1], [9, 9]])
    bucket, pairs = distance_buckets(where), [(m, p) for m in range(3) for p in range(6)]
    to_pairs = torch.tensor([[bucket[p, q] for _, q in pairs] for p in range(6)])
    g = torch.stack([tokens[:, m, p] for m, p in pairs], 1)
    for block in combiner.blocks:
        g = block(g, torch.stack([to_pairs[p] for _, p in pairs]))
    f = [combiner.cross(combiner.token.expand(2, 1, 32), to_pairs[p:p + 1], g) for p in range(6)]
    f = combiner.norm(torch.cat(f, 1))
    assert_same([combiner(tokens, where)], [f], list(combiner.parameters()))
    torch.testing.assert_close(combiner(tokens[:, [2, 0, 1]], where), f)            # modalities have no order
    tokens[:, 1] = tokens[:, 1].flip(1)                                             # one modality on the wrong patches
    assert not torch.allclose(combiner(tokens, where), f, atol=1e-3)


def test_biases_and_the_residual_that_the_official_combiner_has_otherwise(form):
    """PAPER.md says that they change nothing that can be learned: the residual of equation 2 and a bias of values are
    constants, which the bias behind the attention can be; a bias of queries is one of the layer norm before."""
    combiner, g = sharp_combiner(form), double(2, 12, 32)
    cross, buckets = combiner.cross, distance_buckets(grid(2)).repeat(1, 3)
    f = combiner.token.expand(2, 4, 32)
    expected = cross(f, buckets, g)
    attention, token = cross.attention, combiner.token.detach()
    attention.out.bias.data += token                                          # no residual
    y = attention(cross.norm(f), cross.norm_context(g), buckets)
    torch.testing.assert_close(y + cross.mlp(y), expected)
    attention.out.bias.data -= token

    values = torch.zeros(64, dtype=torch.float64)
    values[32:] = double(32)    # of the values; of keys softmax would cancel it
    hook = attention.key_value.register_forward_hook(lambda module, inputs, output: output + values)
    with_bias = cross(f, buckets, g)
    hook.remove()
    attention.out.bias.data += attention.out.weight @ values[32:]
    torch.testing.assert_close(cross(f, buckets, g), with_bias)

    queries = double(32)
    hook = attention.query.register_forward_hook(lambda module, inputs, output: output + queries)
    with_bias = cross(f, buckets, g)
    hook.remove()
    cross.norm.bias.data += torch.linalg.solve(attention.query.weight, queries)
    torch.testing.assert_close(cross(f, buckets, g), with_bias)


# Masks and patches

def test_random_mask_masks_three_quarters_of_each_tile():
    """Section 3.3: exactly 75 % of a tile's present tokens, drawn anew for each tile; missing modalities besides."""
    present = torch.tensor([[True, True, True], [True, False, True], [False, True, False], [False, False, False]])
    masked = random_mask(present, 6, 0.75, torch.Generator().manual_seed(1))
    assert masked.shape == (4, 3, 6) and masked[~present].all()
    assert (masked & present[..., None]).sum((1, 2)).tolist() == [14, 9, 4, 0]      # 13.5, 9 and 4.5, halves to even
    again, other = (random_mask(present, 6, 0.75, torch.Generator().manual_seed(s)) for s in (1, 2))
    assert torch.equal(masked, again) and not torch.equal(masked, other)


def test_random_mask_leaves_a_token():
    """Of two tokens 75 % would be both: then the combiner would learn from nothing. One alone is not masked."""
    for tokens, masked in ((1, 0), (2, 1), (3, 2), (4, 3), (5, 4)):
        assert (random_mask(torch.ones(9, 1, dtype=torch.bool), tokens, 0.75).sum((1, 2)) == masked).all()


def test_random_mask_is_uniform():
    """Section 3.3: all tokens are masked equally often, independently between tiles and across modalities."""
    masked = random_mask(torch.ones(4000, 2, dtype=torch.bool), 6, 0.75).float()
    assert (masked.sum((1, 2)) == 9).all()
    assert (masked.mean(0) - 0.75).abs().max() < 0.03               # 4.4 standard deviations
    pairs = masked.flatten(1).t() @ masked.flatten(1) / 4000
    assert (pairs[~torch.eye(12, dtype=torch.bool)] - 0.75 * 8 / 11).abs().max() < 0.04
    assert (masked[0] != masked[1:]).any(-1).any(-1).float().mean() > 0.98          # 1 in 220 is equal by chance


def test_patchify_by_hand():
    """Section 3.4: a 4 x 4 image in patches of 2 x 2, row by row; a series is cut alike."""
    x = torch.arange(16).view(1, 1, 4, 4)
    wanted = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert patchify(x, 2).shape == (1, 4, 1, 2, 2) and patchify(x, 2).flatten(2)[0].tolist() == wanted
    date = torch.cat([x + 20 * c for c in range(3)], 1)
    series = torch.stack([date + 1000 * b + 100 * t for b in range(2) for t in range(5)])
    cut = patchify(series.view(2, 5, 3, 4, 4), 2)                   # B x P x T x C x 2 x 2
    for b, p, t in [(0, 0, 0), (1, 3, 4), (0, 2, 1), (1, 1, 3)]:
        assert cut[b, p, t].flatten().tolist() == [1000 * b + 100 * t + 20 * c + v for c in range(3) for v in wanted[p]]
    images = patchify(series.view(10, 3, 4, 4), 2).view(2, 5, 4, 3, 2, 2).transpose(1, 2)
    assert torch.equal(images, cut)


# Images

class Keep(nn.Module):
    weight = torch.zeros(1, 1, 3, 3)                                # too few for Winograd's filters

    def forward(self, x, output_size=None):
        return x


def test_image_decoder_puts_the_maximum_back_where_it_was(form):
    """Section 3.1, index bypass: without convolutions only each channel's maximum is left, at its own place."""
    encoder, decoder = form(ImageEncoder(4, 50, 8)), form(ImageDecoder(4, 50, 8))
    encoder.stem = decoder.last = Keep()
    for blocks in (encoder.blocks, decoder.blocks):
        for i in range(len(blocks)):
            blocks[i] = Keep()
    x = 20 + 100 * torch.rand(5, 8, 24, 24)                         # GELU leaves such values as they are
    token, indices = encoder(x)
    maximum = x.amax((2, 3))
    torch.testing.assert_close(token, maximum)
    wanted = torch.where(x == maximum[..., None, None], x, 0)
    torch.testing.assert_close(decoder(token, indices), wanted)
    torch.testing.assert_close(decoder(2 * token, indices), 2 * wanted)


@pytest.mark.parametrize("patch", [4, 10, 16, 22, 40, 50])
def test_image_sizes_and_reach(patch, form):
    """Section 3.1: any patch side collapses to one token and comes back; every pixel counts, in and out."""
    encoder, decoder = form(ImageEncoder(2, patch, 8)), form(ImageDecoder(2, patch, 8))
    x = torch.randn(24, 2, patch, patch, requires_grad=True)
    token, indices = encoder(x)
    assert token.shape == (24, 8) and [index.shape[1] for index in indices] == [8] * len(pooled_sizes(patch))
    (token * torch.randn_like(token)).sum().backward()
    assert (x.grad.abs().sum((0, 1)) > 0).all()
    out = decoder(token, indices)
    assert out.shape == x.shape
    away = (out - decoder(token + torch.randn_like(token), indices)).abs().sum(0)
    assert (away > 0).all()


@pytest.mark.parametrize("images, channels, filters, side", [(5, 3, 2, 12), (1, 2, 4, 8), (4, 2, 2, 16), (0, 2, 2, 4)])
def test_winograds_filters_are_convolution(images, channels, filters, side, monkeypatch):
    """Values and gradients, two images at a time, a last one alone; weights that train and that do not."""
    monkeypatch.setattr(winograd, "AT_ONCE", 2 * 36 * channels * (side // 4) ** 2)
    assert len(winograd.parts(double(images, channels, side, side))) == (images + 1) // 2
    x, weight, bias = (double(*shape).requires_grad_()
                       for shape in ((images, channels, side, side), (filters, channels, 3, 3), (filters,)))
    ours, wanted = winograd.convolution(x, weight, bias), nn.functional.conv2d(x, weight, bias, padding=1)
    torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-10)
    for gradient in (double(*wanted.shape), double(filters, 1, 1).expand(wanted.shape)):
        with torch.autocast("cpu", torch.bfloat16):                 # of whoever calls backward
            gradients = [torch.autograd.grad(y, (x, weight, bias), gradient, retain_graph=True) for y in (ours, wanted)]
        torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-10)
    frozen, = torch.autograd.grad(winograd.convolution(x, weight.detach(), bias.detach()), x, gradient)
    torch.testing.assert_close(frozen, gradients[1][0], rtol=1e-9, atol=1e-10)


def test_winograds_filters_in_float32():
    """The errors that models/fast/winograd.py states, of the result and the gradients, against float64."""
    inputs, found = [torch.randn(60, 256, 12, 12), torch.randn(256, 256, 3, 3) / 48, torch.randn(256)], []
    gradient = torch.randn(60, 256, 12, 12)
    for kind, convolve in ((torch.float32, winograd.convolution),
                           (torch.float64, lambda *inputs: nn.functional.conv2d(*inputs, padding=1))):
        leaves = [value.to(kind).requires_grad_() for value in inputs]
        y = convolve(*leaves)
        found.append([y.detach(), *torch.autograd.grad(y, leaves, gradient.to(kind))])
    assert all((ours - wanted).norm() < 2.5e-6 * wanted.norm() for ours, wanted in zip(*found))


@pytest.mark.parametrize("channels, sides, more, wanted", [
    (256, (12, 12), {}, True), (256, (8, 8), {}, True), (256, (10, 10), {}, False), (256, (4, 4), {}, False),
    (256, (12, 8), {}, False),
    (128, (12, 12), {}, False), (256, (12, 12), {"device": "meta"}, False),
    (256, (12, 12), {"dtype": torch.bfloat16}, False)])
def test_where_winograds_filters_are_used(channels, sides, more, wanted):
    x, weight = torch.empty(2, channels, *sides, **more), torch.empty(256, channels, 3, 3)
    assert winograd.is_faster(x, weight) == wanted
    with torch.autocast("cpu", torch.bfloat16):
        assert not winograd.is_faster(x, weight)


# OmniSat

@pytest.mark.parametrize("sensors", MIXTURES, ids=lambda sensors: "+".join(s.key for s in sensors))
def test_any_mixture_of_sensors_pretrains_and_classifies(sensors, toy):
    """Section 3: one to four modalities, any kinds; gradients reach all that trains, and nothing else (equation 4)."""
    model, batch = toy(sensors), make_batch(sensors)
    loss, terms = model.pretrain_loss(batch, model.draw_masks(batch))
    assert loss.isfinite() and loss == terms["contrastive"] + terms["reconstruction"]
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    model = toy(sensors, num_classes=5)
    logits = model(batch)
    assert logits.shape == (3, 5)
    logits.square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == ["mask_token"]


def test_logits_are_the_mean_of_f_and_one_layer(toy):
    """Not in the paper: mean of the P outputs f*, batch norm, one linear layer. Equation 4: f^mask replaces the masked.
    """
    model, batch = toy([VHR, S2], num_classes=5), make_batch([VHR, S2], side=3)
    tokens, present, _ = model.encode(batch)
    f = model.combiner(tokens, torch.tensor([[i, j] for i in range(3) for j in range(3)]))
    assert present.all()
    mean, linear = sum(f[:, p] for p in range(9)) / 9, model.head[1]
    normed = (mean - mean.mean(0)) / (mean.var(0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(model(batch), normed @ linear.weight.t() + linear.bias)
    is_masked = torch.rand(3, 2, 9) < 0.5                           # equation 4
    replaced = tokens.clone()
    replaced[is_masked] = model.mask_token.detach()
    torch.testing.assert_close(model.combine(tokens, is_masked, (3, 3)), model.combiner(replaced, grid(3)))


def test_a_tile_alone_can_be_trained_on(toy):
    """The last pool of a pass may have one tile: its batch norm has no variance, moves no statistics, and is no error.
    """
    model, batch = toy([S2], num_classes=5), make_batch([S2], batch=1, valid=(6,))
    logits = model(batch)
    logits.sum().backward()
    torch.testing.assert_close(logits[0], model.head[1].bias)
    assert model.head[0].num_batches_tracked == 0 and model.head[1].bias.grad.eq(1).all()


def test_modalities_on_different_grids(toy):
    """Section 3.1: all modalities share the patches, in rows and columns; the error names them, or the one that does
    not fit.
    """
    model, batch = toy([S2, S1]), make_batch([S2, S1], side=4)
    for shape in ((3, 3), (2, 8)):                                  # 2 x 8 patches are as many as 4 x 4
        with pytest.raises(ValueError,
                           match=f"one grid of patches, here it is 4 x 4 for s2, {shape[0]} x {shape[1]} for s1"):
            model.encode(batch | {"s1": torch.randn(3, 6, 2, *(n * S1.patch for n in shape))})
    with pytest.raises(ValueError, match="vhr: 50 x 51 pixels"):
        toy([VHR])(make_batch([VHR]) | {"vhr": torch.zeros(3, 4, 50, 51)})


@pytest.mark.parametrize("patch", [2, 25])
def test_image_patches_that_would_lose_pixels_are_refused(patch):
    """Section 3.1: an odd side would leave pixels unseen."""
    with pytest.raises(ValueError, match=f"not {patch}"):
        ImageEncoder(4, patch, 8)


def test_empty_series_counts_as_masked(toy):
    """Equation 4: in classification the mask token stands for a missing modality, and only there."""
    model, batch = toy([VHR, S2, S1], num_classes=5), make_batch([VHR, S2, S1], valid=(6, 0, 4))
    logits = model(batch)
    logits.square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    logits = model.eval()(batch)                                    # in training, batch norm sees the pool
    batch["s2"][1], batch["s2_dates"][1] = 50 * torch.randn_like(batch["s2"][1]), 7
    assert torch.equal(model(batch), logits)
    nn.init.normal_(model.mask_token)
    changed = (model(batch) - logits).abs().sum(1) > 1e-3
    assert changed.tolist() == [False, True, False]


def test_empty_series_is_in_no_loss(toy):
    """Equations 3 and 5: tokens of an empty series are neither matched nor reconstructed."""
    model, batch = toy([VHR, S2]), make_batch([VHR, S2], valid=(6, 0, 4))
    batch["s2"].requires_grad_()
    loss, terms = model.pretrain_loss(batch, model.draw_masks(batch, torch.Generator().manual_seed(2)))
    gradient, = torch.autograd.grad(loss, batch["s2"])
    assert (gradient[1] == 0).all() and gradient[0].any() and gradient[2].any()
    changed = dict(batch, s2=batch["s2"].detach().clone())
    changed["s2"][1] = 9
    assert model.pretrain_loss(changed, model.draw_masks(changed, torch.Generator().manual_seed(2)))[1] == terms
    _, present, _ = model.encode(batch)
    assert present.tolist() == [[True, True], [True, False], [True, True]]


@pytest.mark.parametrize("sensors", [[VHR, S2, S1], [S2, S1], [S2]])
def test_modality_missing_in_all_tiles_stays_finite(sensors, toy):
    """Equations 3 and 5 over what is there, possibly nothing: finite loss, finite gradients, finite logits."""
    model, batch = toy(sensors), make_batch(sensors)
    batch["s2_padded"][:] = True
    loss, _ = model.pretrain_loss(batch, model.draw_masks(batch))
    loss.backward()
    assert loss.isfinite() and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert not any(p.grad is not None and p.grad.any() for p in model.encoders["s2"].parameters())
    assert toy(sensors, num_classes=5)(batch).isfinite().all()


def test_inputs_are_standardised(toy):
    """Not in the paper: (x - mean) / std of each band, also of bytes; the statistics are set, and saved, by modality.
    """
    model, mean, std = toy([VHR, S1]), torch.tensor([1., 2., 3.]), torch.tensor([4., 5., 6.])
    model.standardize.set({"s1": {"mean": [100., 20.], "std": [50., 10.]},
                          "vhr": {"mean": mean.tolist(), "std": std.tolist()}})
    x = torch.tensor([[[[0, 200]], [[20, 255]]]], dtype=torch.uint8)
    for shaped in (x, x[:, None]):                                  # images, series
        assert model.standardize["s1"](shaped).flatten().tolist() == [-2, 2, 0, 23.5]
    assert model.state_dict()["standardize.vhr.std"].tolist() == [4, 5, 6]
    batch = make_batch([VHR, S1])
    torch.testing.assert_close(model.patches("vhr", batch["vhr"])[0, 3, :, 9, 0],
                               (batch["vhr"][0, :, 19, 10] - mean) / std)


def test_tiles_are_not_mixed(toy):
    """Section 3: in evaluation the logits of a tile are its own (in training, batch norm sees the pool)."""
    model, batch = toy([VHR, S2, S1], num_classes=5), make_batch([VHR, S2, S1], valid=(6, 0, 4))
    model(batch)                                                    # running statistics other than 0 and 1
    logits = model.eval()(batch)
    for i in range(3):
        alone = model({key: value[i:i + 1] for key, value in batch.items()})
        torch.testing.assert_close(alone, logits[i:i + 1], rtol=0, atol=1e-5)
