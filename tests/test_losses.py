"""The losses against loops over the paper's equations 3 and 5, in float64, values and gradients; cases worked by hand.
"""
import math

import pytest
import torch

import losses.contrastive
import models.fast.contrastive as contrastive
from datasets.sensors import Sensor
from losses.reconstruction import token_error, top_dates
from models.omnisat import OmniSat, random_mask

TOY = [Sensor("vhr", "image", ("R", "G", "B"), 1, 10), Sensor("s2", "series", ("a", "b", "c"), 10, 1, 30),
       Sensor("s1", "series", ("VV", "VH"), 5, 2, 30)]             # 2 x 2 patches

# Figure 4, from its caption and section 3.2: rows and columns in the order tile, modality, patch; + positive match,
# - negative match, o ignored. A row's positives: the same patch of the same tile in the other modalities.
FIGURE_4 = """
    oo+-+- ------
    oo-+-+ ------
    +-oo+- ------
    -+oo-+ ------
    +-+-oo ------
    -+-+oo ------
    ------ oo+-+-
    ------ oo-+-+
    ------ +-oo+-
    ------ -+oo-+
    ------ +-+-oo
    ------ -+-+oo
""".replace(" ", "").split()
SHAPES = [(2, 3, 2), (3, 2, 4), (1, 4, 3), (4, 2, 1)]         # B, M, P


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(params=[losses.contrastive, contrastive], ids=["plain", "fast"])
def contrastive_loss(request):
    return request.param.contrastive_loss


def some_tokens(batch, modalities, patches, dim=5):
    return torch.randn(batch, modalities, patches, dim, dtype=torch.float64, requires_grad=True)


def equation_3(tokens, present, temperature, naive=False):
    """Minus equation 3, token by token. A missing token takes no part; an anchor needs a positive."""
    def match(a, b):
        return torch.exp(torch.dot(a / a.norm(), b / b.norm()) / temperature)

    batch, modalities, patches, _ = tokens.shape
    there = [(i, m, p) for i in range(batch) for m in range(modalities) for p in range(patches) if present[i, m]]
    terms = []
    for i, m, p in there:
        positives = [n for n in range(modalities) if n != m and present[i, n]]
        if not positives:
            continue
        numerator = sum(match(tokens[i, m, p], tokens[i, n, p]) for n in positives)
        denominator = 0
        for j, n, q in there:
            in_t = (j, n, q) == (i, m, p) if naive else (j == i and n == m)      # T(m, p): same tile and modality
            if not in_t:
                denominator = denominator + match(tokens[i, m, p], tokens[j, n, q])
        terms.append(-torch.log(numerator / denominator))
    return sum(terms) / len(terms)


def assert_same(value, expected, inputs):
    """Same values, same gradients to the inputs, and gradients that are not just zero."""
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-10)
    gradients = torch.autograd.grad(value, inputs, retain_graph=True)
    expected = torch.autograd.grad(expected, inputs)
    torch.testing.assert_close(gradients, expected, rtol=1e-8, atol=1e-10)
    assert all(g.abs().max() > 0 for g in gradients)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("naive", [False, True])
@pytest.mark.parametrize("temperature", [0.1, 0.7])
def test_contrastive_is_equation_3(shape, naive, temperature, contrastive_loss):
    """Section 3.2, equation 3, and table 5's variant, whose denominator leaves out the anchor only."""
    tokens, present = some_tokens(*shape), torch.ones(shape[:2], dtype=torch.bool)
    loss = contrastive_loss(tokens, present, temperature, naive)
    assert_same(loss, equation_3(tokens, present, temperature, naive), tokens)


@pytest.mark.parametrize("shape", [(5, 3, 7), (4, 2, 9), (3, 3, 16), (2, 1, 4), (1, 3, 5)])
@pytest.mark.parametrize("block", [1, 10, 64])
@pytest.mark.parametrize("naive", [False, True])
def test_contrastive_in_blocks_is_the_dense_form(shape, block, naive, monkeypatch):
    """Blocks of one T(m, p) and of several, the last one shorter, tokens missing: value and gradient, in both
    precisions.
    """
    monkeypatch.setattr(contrastive, "BLOCK", block)
    present = torch.rand(shape[:2]) < 0.7
    present[0] = True
    for dtype, bound in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        tokens = torch.randn(*shape, 16, dtype=dtype, requires_grad=True)
        values = [module.contrastive_loss(tokens, present, naive=naive) for module in (contrastive, losses.contrastive)]
        ours, dense = (torch.autograd.grad(loss, tokens)[0] for loss in values)
        torch.testing.assert_close(*values, rtol=bound, atol=bound)
        assert (ours - dense).norm() <= bound * dense.norm()


def test_contrastive_memory_does_not_grow_with_the_square(monkeypatch):
    """No tensor of the backward graph or of a step is larger than the tokens and a block of similarities."""
    monkeypatch.setattr(contrastive, "BLOCK", 64)
    sizes, original = [], contrastive.block_exponentials
    monkeypatch.setattr(contrastive, "block_exponentials", lambda *a: (e := original(*a), sizes.append(e.numel()))[0])
    tokens = torch.randn(40, 3, 8, 4, requires_grad=True)    # 960 tokens
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        contrastive.contrastive_loss(tokens, torch.ones(40, 3, dtype=torch.bool)).backward()
    assert max(sizes) == max(64 * 64, tokens.numel()) and len(sizes) > 2 * 15 * 16 / 2


@pytest.mark.parametrize("naive", [False, True])
def test_contrastive_in_autocast_rounds_only_the_factors_of_products(naive, monkeypatch):
    """The denominator is the dense form's of rounded tokens, in float32; all else, and so the loss, hardly moves."""
    monkeypatch.setattr(contrastive, "BLOCK", 64)
    tokens, present = torch.randn(5, 3, 9, 64, requires_grad=True), torch.rand(5, 3) < 0.8
    f = torch.nn.functional.normalize(tokens.detach(), dim=-1).flatten(0, 2)
    is_token, group = present[:, :, None].expand(-1, -1, 9).flatten(), 1 if naive else 9
    rounded = contrastive.Denominator.apply(f, is_token, group, 0.1, torch.bfloat16, False)
    assert rounded.dtype == torch.float32
    f, number = f.bfloat16().float(), torch.arange(len(f)) // group
    is_excluded = (number[:, None] == number) | ~is_token
    dense = (f @ f.t() / 0.1).masked_fill(is_excluded, -torch.inf).logsumexp(-1)
    torch.testing.assert_close(rounded, dense, rtol=1e-5, atol=1e-5)
    whole = contrastive.contrastive_loss(tokens, present, naive=naive)
    with torch.autocast("cpu", torch.bfloat16):
        loss = contrastive.contrastive_loss(tokens, present, naive=naive)
        plain = losses.contrastive.contrastive_loss(tokens, present, naive=naive)
    torch.testing.assert_close(plain, whole, rtol=1e-5, atol=1e-5)  # which rounds nothing
    assert loss.dtype == torch.float32 and 0 < abs(loss - whole) < 1e-3
    gradient, wanted = (torch.autograd.grad(value, tokens)[0] for value in (loss, whole))
    assert 0 < (gradient - wanted).norm() < 1e-2 * wanted.norm()


def test_contrastive_default_temperature_is_a_tenth(contrastive_loss):
    """Section 3.4: gamma = 0.1; T(m, p) is excluded by default."""
    tokens, present = some_tokens(2, 3, 2), torch.ones(2, 3, dtype=torch.bool)
    assert_same(contrastive_loss(tokens, present), equation_3(tokens, present, 0.1), tokens)


def test_contrastive_matches_figure_4(contrastive_loss):
    """Figure 4: the loss built from the printed matrix, two tiles, three modalities, two patches."""
    tokens = some_tokens(2, 3, 2)
    f = [token / token.norm() for token in tokens.flatten(0, 2)]
    loss = 0
    for a, row in enumerate(FIGURE_4):
        weight = [torch.exp(f[a] @ f[b] / 0.1) for b in range(12)]
        positive = sum(weight[b] for b in range(12) if row[b] == "+")
        negative = sum(weight[b] for b in range(12) if row[b] == "-")
        loss = loss - torch.log(positive / (positive + negative)) / 12
    assert_same(contrastive_loss(tokens, torch.ones(2, 3, dtype=torch.bool)), loss, tokens)


def test_contrastive_of_equal_tokens_counts_matches(contrastive_loss):
    """Equation 3 by hand: all similarities are 1, a row of figure 4 gives log((2 + 8) / 2), naively log(11 / 2)."""
    tokens, present = torch.ones(2, 3, 2, 4, dtype=torch.float64), torch.ones(2, 3, dtype=torch.bool)
    assert contrastive_loss(tokens, present).item() == pytest.approx(math.log(5))
    assert contrastive_loss(tokens, present, naive=True).item() == pytest.approx(math.log(5.5))


@pytest.mark.parametrize("naive", [False, True])
def test_contrastive_leaves_missing_modalities_out(naive, contrastive_loss):
    """Section 3.2 over the tokens that are there: a missing one is neither anchor, positive nor negative."""
    present = torch.tensor([[True, True, True], [True, False, True], [False, True, False], [True, True, False]])
    tokens = some_tokens(4, 3, 2)
    loss = contrastive_loss(tokens, present, naive=naive)
    assert_same(loss, equation_3(tokens, present, 0.1, naive), tokens)
    gradient, = torch.autograd.grad(loss, tokens)
    assert (gradient[~present] == 0).all()
    assert (gradient[2, 1] != 0).any()                             # no anchor, yet a negative of the other tiles
    changed = tokens.detach().clone()
    changed[~present] = 100 * torch.randn_like(changed[~present])
    assert contrastive_loss(changed, present, naive=naive) == loss


@pytest.mark.parametrize("present", [[[1], [1]], [[1, 0], [0, 1]], [[0, 0], [0, 0]]])
def test_contrastive_without_positives_is_zero(present, contrastive_loss):
    """Equation 3 has no numerator with one modality a tile: loss 0, gradient 0."""
    present = torch.tensor(present).bool()
    tokens = some_tokens(2, present.shape[1], 3)
    loss = contrastive_loss(tokens, present)
    loss.backward()
    assert loss == 0 and (tokens.grad == 0).all()


def test_contrastive_ignores_the_length_of_tokens(contrastive_loss):
    """Cosine similarity: only the direction of a token counts."""
    tokens, present = some_tokens(2, 3, 2).detach(), torch.ones(2, 3, dtype=torch.bool)
    scaled = tokens * (10 * torch.rand(2, 3, 2, 1, dtype=torch.float64) + 0.1)
    torch.testing.assert_close(contrastive_loss(scaled, present), contrastive_loss(tokens, present))
    scaled[0, 0, 0] *= -1                                          # the direction does count
    assert not torch.isclose(contrastive_loss(scaled, present), contrastive_loss(tokens, present))


def test_contrastive_survives_float32_and_a_low_temperature(contrastive_loss):
    """exp(1 / 0.001) overflows; the logarithms of equation 3 do not."""
    tokens, present = some_tokens(2, 3, 2).float(), torch.ones(2, 3, dtype=torch.bool)
    loss, wanted = (contrastive_loss(x, present, temperature=0.001) for x in (tokens, tokens.double()))
    assert loss.isfinite() and loss.item() == pytest.approx(wanted.item(), rel=1e-4)


@pytest.mark.parametrize("spread, bound", [(1e-3, 2e-4), (1, 5e-6)])
def test_contrastive_in_blocks_down_to_its_lowest_temperature(spread, bound, monkeypatch):
    """In float32, tokens that are nearly equal or opposed: exp(1 / 0.025) is 2e17."""
    monkeypatch.setattr(contrastive, "BLOCK", 10)
    monkeypatch.setattr(contrastive, "plain_loss", None)            # blocks it is
    direction, sign = torch.randn(16), torch.tensor([1., -1.]).repeat(2)
    tokens = (direction * sign[:, None, None, None] + spread * torch.randn(4, 3, 7, 16)).requires_grad_()
    present, found = torch.ones(4, 3, dtype=torch.bool), []
    for values in (tokens, tokens.double()):
        loss = contrastive.contrastive_loss(values, present, temperature=0.025)
        found.append((loss.item(), torch.autograd.grad(loss, tokens)[0]))
    monkeypatch.undo()
    loss = losses.contrastive.contrastive_loss(tokens.double(), present, temperature=0.025)
    gradient = torch.autograd.grad(loss, tokens)[0]
    for value, ours in found:
        assert value == pytest.approx(loss.item(), rel=1e-5,
                                      abs=1e-5) and (ours - gradient).norm() <= bound * gradient.norm()


def test_token_error_divides_by_the_dimension():
    """Equation 5: 1 / dim(Omega) ||D(f) - x||^2; of a series, the dates that count only."""
    image, target = torch.randn(2, 3, 2, 4, 4, dtype=torch.float64, requires_grad=True).unbind()
    by_hand = torch.stack([sum((image[n, c, i, j] - target[n, c, i, j]) ** 2 for c in range(2) for i in range(4)
                               for j in range(4)) / (2 * 4 * 4) for n in range(3)])
    weight = torch.arange(1, 4)
    assert_same(token_error(image, target) @ weight.double(), by_hand @ weight.double(), [image, target])
    series = torch.tensor([[[1., 2.], [3., 0.]], [[1., 1.], [50., 60.]], [[70., 80.], [90., 10.]]])
    is_used = torch.tensor([[True, True], [True, False], [False, False]])
    error = token_error(series, torch.zeros_like(series), is_used)
    assert error.tolist() == [(1 + 4 + 9 + 0) / 4, (1 + 1) / 2, 0]


def toy_batch(batch=3, dates=9):
    """Three tiles; s1 has one date in the first, none in the second."""
    out = {"vhr": torch.randn(batch, 3, 20, 20, dtype=torch.float64)}
    for key, bands, side, valid in [("s2", 3, 2, [9, 4, 5]), ("s1", 2, 4, [1, 0, 8])]:
        out[key] = torch.randn(batch, dates, bands, side, side, dtype=torch.float64)
        out[f"{key}_dates"] = torch.randint(31, (batch, dates))
        out[f"{key}_padded"] = torch.arange(dates) >= torch.tensor(valid)[:, None]
    return out


def equation_5(model, f, is_target, batch, context):
    """Equation 5, token by token: patches cut by hand, one call of the decoder for each, top dates by sorting."""
    terms, side = [], 2
    for i, m, p in is_target.nonzero().tolist():
        sensor, decoder = TOY[m], model.decoders[TOY[m].key]
        row, column, w = p // side, p % side, sensor.patch
        x = batch[sensor.key][i][..., row * w:(row + 1) * w, column * w:(column + 1) * w]
        if sensor.kind == "image":
            indices = [index[i, p][None] for index in context[sensor.key]]
            terms.append(((decoder(f[i, p][None], indices)[0] - x) ** 2).sum() / (3 * 10 * 10))
        else:
            attention = context[sensor.key][0][i, p].tolist()
            valid = (~batch[f"{sensor.key}_padded"][i]).nonzero().flatten().tolist()
            best = sorted(valid, key=lambda t: -attention[t])[:math.ceil(len(valid) / 4)]
            square = 0
            for t in best:
                day = batch[f"{sensor.key}_dates"][i, t].view(1, 1)
                square = square + ((decoder(f[i, p][None], day)[0, 0] - x[t].flatten()) ** 2).sum()
            terms.append(square / (len(best) * x[0].numel()))
    return sum(terms) / len(terms)


def test_reconstruction_is_equation_5():
    """Section 3.3, equation 5: mean over K of each token's own mean, with unequal numbers of tokens a modality."""
    model, batch = OmniSat(TOY, embed_dim=32, depth=1).double(), toy_batch()
    _, present, context = model.encode(batch)
    is_target = torch.zeros(3, 3, 4, dtype=torch.bool)
    for imp in ["000", "003", "102", "201", "202", "011", "113", "220", "222", "021"]:        # tile, modality, patch
        is_target[tuple(map(int, imp))] = True
    f = torch.randn(3, 4, 32, dtype=torch.float64, requires_grad=True)
    targets = {f"{key}_targets": is_target[:, m].flatten().nonzero()[:, 0] for m, key in enumerate(model.sensors)}
    loss = model.reconstruct(f, targets, batch, context).mean()
    assert_same(loss, equation_5(model, f, is_target, batch, context), [f, *model.decoders.parameters()])
    is_used = is_target.any(1)
    gradient, = torch.autograd.grad(loss, f)
    assert (gradient[~is_used] == 0).all() and (gradient[is_used] != 0).any(-1).all()


def test_pretrain_loss_is_equation_3_plus_equation_5():
    """Section 3.3's last line, with equation 3 on the tokens before masking and K without the missing tokens."""
    model, batch = OmniSat(TOY, embed_dim=32, depth=1).double(), toy_batch()
    loss, terms = model.pretrain_loss(batch, model.draw_masks(batch, torch.Generator().manual_seed(3)))
    tokens, present, context = model.encode(batch)
    assert present.tolist() == [[True, True, True], [True, True, False], [True, True, True]]
    is_masked = random_mask(present, 4, 0.75, torch.Generator().manual_seed(3))
    f = model.combine(tokens, is_masked, model.grid(batch))
    wanted = {"contrastive": equation_3(tokens, present, 0.1),
              "reconstruction": equation_5(model, f, is_masked & present[..., None], batch, context)}
    torch.testing.assert_close(terms, wanted)
    assert_same(loss, sum(wanted.values()), list(model.parameters()))


def test_top_dates_by_hand():
    """Section 3.1: the top 25 % of the valid dates, rounded up; never a padded one; an empty series has none."""
    cases = [([1, 9, 2, 8, 3, 7, 4, 6], range(8), {1, 3}), ([8, 1, 7, 2, 6, 3, 5, 4], range(8), {0, 2}),    # 8 valid: 2
             # ceil(1.25) = 2
             ([1, 2, 5, 4, 3, 0, 0, 0], range(5), {2, 3}), ([5, 4, 3, 2, 1, 0, 0, 0], range(5), {0, 1}),
             ([1, 2, 4, 3, 9, 9, 9, 9], range(4), {2}), ([4, 3, 2, 1, 9, 9, 9, 9], range(4), {0}),          # 1
             # itself, seen or not
             ([0, 0, 0, 1, 0, 0, 0, 0], [3], {3}), ([0, 0, 0, 0, 0, 0, 0, 0], [3], {3}),
             ([1, 2, 3, 4, 5, 6, 7, 8], [], set())]
    padded = torch.tensor([[t not in valid for t in range(8)] for _, valid, _ in cases])
    index, is_used = top_dates(torch.tensor([attention for attention, _, _ in cases]).float(), padded)
    assert index.shape == is_used.shape == (9, 2)
    assert [set(index[i][is_used[i]].tolist()) for i in range(9)] == [chosen for _, _, chosen in cases]


def test_top_dates_of_one_date_and_of_another_share():
    """Section 3.1: a single-date series is reconstructed whole; a share of 1 takes all valid dates."""
    index, is_used = top_dates(torch.tensor([[1.], [0.]]), torch.tensor([[False], [True]]))
    assert index.tolist() == [[0], [0]] and is_used.tolist() == [[True], [False]]
    index, is_used = top_dates(torch.tensor([[1., 3., 2.]]), torch.tensor([[False, False, True]]), share=1)
    assert index[0][is_used[0]].tolist() == [1, 0]
