"""Masked norms, L-TAE, PSE and PSE+LTAE against naive loops in float64, and the properties their papers claim."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.compared.ltae import LTAE
from models.compared.pse import PSE, PSELTAE
from models.norms import BatchNorm, series_group_norm
from tests.test_models import assert_same, double, naive_encoding

DATES = torch.tensor([[3, 300, 17, 0], [8, 1, 29, 12], [5, 5, 5, 5]])
PADDED = torch.tensor([[False, False, False, False], [False, True, False, True], [False, True, True, True]])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def undropped(model):
    """The model without dropout, so that training can be compared, and with batch norms and group norms that do
    something.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            if hasattr(module, "running_var"):
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def count(module):
    return sum(p.numel() for p in module.parameters())


# Norms

@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_is_torchs_over_the_rows_that_count(training):
    """Values, gradients and running statistics are those of nn.BatchNorm1d that never sees the padded rows."""
    norm, plain = (undropped(BatchNorm(5)).double().train(training), nn.BatchNorm1d(5).double().train(training))
    plain.load_state_dict(norm.state_dict())
    # T is in the middle: padded is broadcast over the 2
    x, padded = double(3, 4, 2, 5).requires_grad_(), PADDED[:, :, None]
    for _ in range(2):
        y = norm(x, padded)
    for _ in range(2):
        expected = plain(x[~PADDED].flatten(0, 1))
    assert_same([y[~PADDED].flatten(0, 1)], [expected], [x])
    torch.testing.assert_close(norm.state_dict(), plain.state_dict())
    assert y.isfinite().all()
    torch.testing.assert_close(norm(x), plain(x.flatten(0, 2)).view(x.shape))    # nothing padded


def test_batch_norm_of_one_row_and_of_none():
    """One row becomes the bias; it or no row moves nothing, two do; gradients stay finite."""
    norm, x = undropped(BatchNorm(5)), torch.randn(4, 5, requires_grad=True)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    norm(x, torch.ones(4, dtype=torch.bool)).sum().backward()
    torch.testing.assert_close(norm.state_dict(), before, rtol=0, atol=0)
    assert x.grad.isfinite().all()
    torch.testing.assert_close(norm(x[:1])[0], norm.bias)
    torch.testing.assert_close(norm.state_dict(), before, rtol=0, atol=0)
    norm(x[:2])
    torch.testing.assert_close(norm.running_mean, 0.9 * before["running_mean"] + 0.1 * x[:2].mean(0))
    assert norm.num_batches_tracked == 1


def test_series_group_norm_is_group_norm_of_the_dates_that_exist():
    """Each pixel's series is normed as if it were no longer than its dates."""
    x = double(3, 2, 4, 6).requires_grad_()
    y = series_group_norm(x, PADDED, 2)
    picked, expected = [], []
    for b in range(3):
        for p in range(2):
            series = x[b, p, ~PADDED[b]].t()[None]                               # 1 x C x the dates that exist
            expected.append(F.group_norm(series, 2)[0].t())
            picked.append(y[b, p, ~PADDED[b]])
    assert_same(picked, expected, [x])
    assert series_group_norm(x, torch.ones_like(PADDED), 2).isfinite().all()


# L-TAE

def naive_mlp(mlp, x):
    """x (rows, C), only those that count: linear, batch norm, ReLU for each step, the last without if the MLP is open.
    """
    for i, (linear, norm) in enumerate(zip(mlp.linears, mlp.norms)):
        x = F.batch_norm(x @ linear.weight.t(), norm.running_mean.clone(), norm.running_var.clone(), norm.weight,
                         norm.bias, mlp.training)
        x = x if mlp.is_open and i == len(mlp.norms) - 1 else x.relu()
    return x


def naive_ltae(ltae, x, dates, padded):
    """Garnot and Landrieu (2020), a pixel, a date and a head at a time; {(b, p): tokens} and {(b, p, t, h): weights}.
    """
    pixels = [(b, p) for b in range(x.shape[0]) for p in range(x.shape[1])]
    series = {(b, p): x[b, p, ~padded[b]] for b, p in pixels}

    def normed(s, scale=None):
        if not ltae.group:
            return F.layer_norm(s, s.shape[1:], scale)
        return F.group_norm(s.t()[None], s.shape[1] // ltae.group, scale)[0].t()
    if ltae.before:    # U-TAE's, in OmniSat's code: behind the MLP
        rows = naive_mlp(ltae.embed, torch.cat(list(series.values())))
        series = {key: normed(s, ltae.scale)
                  for key, s in zip(pixels, rows.split([len(s) for s in series.values()]))}
        rows = torch.cat(list(series.values()))
    else:
        rows = ltae.embed(torch.cat([normed(s) for s in series.values()]))
    embedded = dict(zip(pixels, rows.split([len(s) for s in series.values()])))
    heads, keys = ltae.query.shape
    share = rows.shape[1] // heads
    tokens, weights = [], {}
    for b, p in pixels:
        days, pieces = [t for t in range(x.shape[2]) if not padded[b, t]], []
        e = {t: row + naive_encoding(dates[b, t].item(), share).repeat(heads) for t, row in zip(days, embedded[b, p])}
        for h in range(heads):
            key = {t: ltae.key.weight[h * keys:(h + 1) * keys] @ e[t] for t in days}
            score = {t: torch.exp(ltae.query[h] @ key[t] / keys ** 0.5) for t in days}
            weights.update({(b, p, t, h): score[t] / sum(score.values()) for t in days})
            pieces.append(sum(weights[b, p, t, h] * e[t][h * share:(h + 1) * share] for t in days))
        tokens.append(torch.cat(pieces))
    tokens = naive_mlp(ltae.out, torch.stack(tokens))
    groups = tokens.shape[1] // ltae.group if ltae.group else 1
    return F.group_norm(tokens, groups, ltae.norm_out.weight, ltae.norm_out.bias).unflatten(0, x.shape[:2]), weights


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{}, {"group": 4}, {"group": 4, "before": (10, 6), "after": (9,)}],
                         ids=["l-tae", "u-tae", "mlp"])
def test_ltae_is_the_loop(options, training):
    """Tokens, attention and all gradients; padded dates take no part."""
    ltae, x = undropped(LTAE(8, 4, 3, 16, 12, **options)).double().train(training), double(3, 2, 4, 8).requires_grad_()
    tokens, attention = ltae(x, DATES, PADDED)
    expected, weights = naive_ltae(ltae, x, DATES, PADDED)
    inputs = [x, *ltae.parameters()]
    assert_same([tokens, *(attention[key] for key in weights)], [expected, *weights.values()], inputs)
    torch.testing.assert_close(attention.sum(2), torch.ones(3, 2, 4).double())
    assert (attention.transpose(1, 2)[PADDED] == 0).all()


@pytest.mark.parametrize("options", [{}, {"group": 4, "before": (10,)}])
def test_ltae_of_an_empty_series(options):
    """A finite token, no attention, and no influence on the others, though batch norms see all."""
    ltae, x, padded = undropped(LTAE(8, 4, 3, 16, 12, **options)), torch.randn(3, 2, 4, 8), PADDED.clone()
    padded[1] = True
    tokens, attention = ltae(x, DATES, padded)
    assert tokens.isfinite().all() and (attention[1] == 0).all()
    others, _ = ltae(x[[0, 2]], DATES[[0, 2]], padded[[0, 2]])
    torch.testing.assert_close(tokens[[0, 2]], others)


def test_dropout_is_in_training_only():
    """A tenth of the attention's weights is dropped, the others grow; results and an MLP's numbers are dropped too."""
    ltae, mlp, x = LTAE(8, 16, 3, 32, 12), LTAE(8, 16, 3, 32, 12, before=(9,)), torch.randn(50, 1, 12, 8)
    inputs = x, torch.zeros(50, 12, dtype=torch.int64), torch.zeros(50, 12, dtype=torch.bool)
    dropped = ltae(*inputs)[1]
    ltae.attention_dropout.p = 0.0
    assert not torch.equal(ltae(*inputs)[0], ltae(*inputs)[0])
    mlp.attention_dropout.p = mlp.dropout.p = 0.0
    assert not torch.equal(mlp(*inputs)[0], mlp(*inputs)[0])
    tokens, attention = ltae.eval()(*inputs)
    assert torch.equal(ltae(*inputs)[0], tokens)
    assert 0.08 < (dropped == 0).float().mean() < 0.12
    torch.testing.assert_close(dropped, torch.where(dropped > 0, attention / 0.9, 0))


def test_ltae_refuses_a_size_its_heads_cannot_share():
    with pytest.raises(ValueError, match="multiple of 32, not 48"):
        LTAE(8, 16, 4, 48, 12)


# Pixel sets

def test_parameter_counts():
    """Facts: 0.029 M for the pixel-set encoder alone; PSE+LTAE 0.12 M (the official code's other temporal encoder
    makes more).
    """
    assert round(count(PSE(12, 15)) / 1e6, 3) == 0.029
    assert round(count(PSELTAE(10, 128)) / 1e6, 2) == 0.12
    assert count(PSE(12, 15, 0.25)) < count(PSE(12, 15)) / 4 and count(PSELTAE(10, 128, 0.25)) < count(PSELTAE(10,
                                                                                                               128)) / 4


@pytest.mark.parametrize("training", [True, False])
def test_pse_is_the_loop(training):
    """Garnot et al. (2020): an MLP of each pixel, mean and std over the pixels, an MLP of both; the last without ReLU.
    """
    model, x = undropped(PSE(3, 7)).double().train(training), double(4, 3, 5, 6).requires_grad_()
    y, mlp = model(x), model.encoder.pixel
    pixels = naive_mlp(mlp,
                       torch.stack([x[b, :, i, j] for b in range(4) for i in range(5) for j in range(6)])).view(4, 30,
                                                                                                                -1)
    mean = sum(pixels.unbind(1)) / 30
    std = (sum((pixel - mean) ** 2 for pixel in pixels.unbind(1)) / 30 + 1e-6).sqrt()
    assert_same([y], [naive_mlp(model.encoder.set, torch.cat([mean, std], 1))], [x, *model.parameters()])
    assert (y < 0).any()


@pytest.mark.parametrize("dates", [(), (4,)], ids=["pse", "pse-ltae"])
def test_pixels_are_a_set(dates):
    """Any order of the pixels, the same for all dates, gives the same; a change of one pixel does not."""
    model, x = (PSELTAE if dates else PSE)(3, 8).double().eval(), double(3, *dates, 3, 6, 6)
    rest = (DATES, PADDED) if dates else ()
    y, shuffled = model(x, *rest), x.flatten(-2)[..., torch.randperm(36)].view_as(x)
    torch.testing.assert_close(model(shuffled, *rest), y, rtol=0, atol=1e-12)
    x[:, ..., 2, 3] += 3
    assert ((model(x, *rest) - y).abs().amax(1) > 1e-3).all()


def test_equal_pixels_have_finite_gradients():
    """The root of a variance of 0 has an infinite slope; a lake, or a date read as 0, has equal pixels."""
    model, x = PSE(3, 7), torch.randn(4, 3, 1, 1).expand(4, 3, 6, 6).clone().requires_grad_()
    model(x).square().sum().backward()
    assert all(g.isfinite().all() for g in [x.grad, *(p.grad for p in model.parameters())])


def test_pse_ltae_is_its_parts():
    """The set of each date on its own, then the temporal attention over the dates' vectors."""
    model, x = PSELTAE(3, 8).double().eval(), double(3, 4, 3, 6, 6)
    alone = torch.zeros(1, 1, dtype=torch.bool)
    vectors = torch.stack([torch.cat([model.encoder(x[b:b + 1, t:t + 1], alone)[0] for t in range(4)])
                           for b in range(3)])
    torch.testing.assert_close(model(x, DATES, PADDED), model.ltae(vectors[:, None], DATES, PADDED)[0][:, 0])
