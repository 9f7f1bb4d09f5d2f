"""Encoder and decoder of time series (section 3.1, figure 3b): L-TAE (Garnot and Landrieu, 2020) and its inverse.

Dimensions: B tiles, P patches, T dates, C bands, D embedding, H heads.
"""
import torch
import torch.nn.functional as F
from torch import nn
from torch.compiler import is_compiling

HEADS, KEY_DIM = 16, 8         # of L-TAE
HIDDEN_PER_BAND = 0.8          # of the decoder, see SeriesDecoder


def date_encoding(period, dim):
    """Sinusoids of the day number, the positional encoding of L-TAE (base 1000).

    period (days): the largest day number. dim: an even number of features. Returns (period + 1, dim).
    """
    day = torch.arange(period + 1, dtype=torch.float64)[:, None]
    angle = day / 1000 ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1).float()


def mlp(*widths, norm):
    """Linear, norm, ReLU for each step. norm: nn.BatchNorm1d (which would cancel a bias before it) or nn.LayerNorm."""
    layers = []
    for inputs, outputs in zip(widths[:-1], widths[1:]):
        layers += [nn.Linear(inputs, outputs, bias=norm is nn.LayerNorm), norm(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class SeriesEncoder(nn.Module):
    """L-TAE: each head has one learned query, and its own share of the channels as values.

    403 k parameters for 10 bands and 402 k for 2, as printed in section 3.4 (D = 256).
    """

    def __init__(self, bands, period, dim):
        super().__init__()
        if dim % (2 * HEADS):
            raise ValueError(f"the embedding size must be a multiple of {2 * HEADS}, not {dim}")
        # batch norm, as L-TAE; a norm of each date alone learned more slowly on the demo's Sentinel-2, see PAPER.md
        self.embed = mlp(bands, 32, 128, dim, norm=nn.BatchNorm1d)
        self.norm = nn.LayerNorm(dim)
        self.key = nn.Linear(dim, HEADS * KEY_DIM, bias=False)    # a bias would shift all dates alike: no effect
        self.query = nn.Parameter(torch.randn(HEADS, KEY_DIM))
        self.out = nn.Sequential(mlp(dim, dim, 2 * dim, dim, norm=nn.LayerNorm), nn.LayerNorm(dim))
        self.register_buffer("dates", date_encoding(period, dim // HEADS).repeat(1, HEADS), persistent=False)

    def forward(self, x, dates, padded, statistics=None):
        """x (B, P, T, C): standardised series; dates (B, T): day numbers; padded (B, T): True where there is no date.

        statistics: those of pool_statistics, where these tiles are a part of the pool; None takes these tiles' own.
        Returns tokens (B, P, D) and the attention of the dates averaged over heads, (B, P, T), 0 where padded.
        An empty series (all padded) gives a finite token that the caller must not use.
        """
        x = self.norm(self.embedding(x, padded, statistics) + self.dates[dates][:, None])     # B x P x T x D
        # <query_h, key_h(x)> with the key's matrix folded into the query: H scores, no T x H x KEY_DIM keys
        query = torch.einsum("hk,hkd->dh", self.query, self.key.weight.view(HEADS, KEY_DIM, -1)) / KEY_DIM ** 0.5
        scores = x @ query
        scores = scores.masked_fill(padded[:, None, :, None], torch.finfo(scores.dtype).min)
        attention = scores.softmax(dim=2).masked_fill(padded[:, None, :, None], 0)    # B x P x T x H
        values = x.unflatten(-1, (HEADS, -1))                                 # B x P x T x H x D/H
        if is_compiling():                                                    # sums that need no products of matrices, in one kernel
            token = (attention[..., None] * values).sum(2).flatten(2)
        else:
            token = torch.einsum("bpth,bpthc->bphc", attention, values).flatten(2)
        return self.out(token), attention.mean(dim=-1)

    def embedding(self, x, padded, statistics=None):
        """The MLP of each date, (B, P, T, C) -> (B, P, T, D); statistics of its first layers only: so many layers of
        it.

        A batch norm after a linear layer is the same layer with other weights: nothing is normalised row by row.
        """
        for number, (linear, norm) in enumerate(zip(self.embed[::3], self.embed[1::3])):
            if statistics is None:
                mean, variance = self.output_moments(linear, norm, [moments(x, padded)])
            elif number < len(statistics):
                mean, variance = statistics[number]
            else:
                break
            scale = norm.weight * (variance + norm.eps).rsqrt()
            x = F.linear(x, linear.weight * scale[:, None], norm.bias - mean * scale).relu()
        return x

    def output_moments(self, linear, norm, parts):
        """Mean and variance of a linear layer's outputs, from the moments of its inputs, which are narrower.

        parts: a pool's, one or more. Moves the running statistics, as nn.BatchNorm1d does; in evaluation returns those.
        """
        if not self.training:
            return norm.running_mean, norm.running_var
        with torch.autocast(linear.weight.device.type, enabled=False):        # variances, not products of activations
            count, mean, scatter = merged(parts)
            weight = linear.weight.to(mean.dtype)
            mean, variance = weight @ mean, ((weight @ scatter) * weight).sum(1).clamp(min=0) / count.clamp(min=1)
        with torch.no_grad():
            unbiased = variance * count / (count - 1).clamp(min=1)
            norm.num_batches_tracked += (count > 0)
            for running, new in ((norm.running_mean, mean), (norm.running_var, unbiased)):
                running += norm.momentum * (new - running) * (count > 0)
        return mean, variance

    def pool_statistics(self, patches_of, parts, in_parts):
        """What batch norm needs of a pool that is encoded in parts: mean and variance of each layer, for forward.

        patches_of(part): x and padded of forward for a part. in_parts(function, parts): its values, as
        FastOmniSat.in_parts.
        """
        statistics = ()
        for linear, norm in zip(self.embed[::3], self.embed[1::3]):
            def inputs_of(part, known=statistics):
                x, padded = patches_of(part)
                return moments(self.embedding(x, padded, known), padded)
            found = in_parts(inputs_of, parts) if self.training else ()
            statistics += self.output_moments(linear, norm, found),
        return statistics


def moments(x, padded):
    """x (B, P, T, C) over the dates that exist, padded (B, T): their number (), mean (C,), and scatter (C, C) about
    the mean.

    Not in the autocast type: the variances come from these sums.
    """
    with torch.autocast(x.device.type, enabled=False):
        rows = x.to(torch.promote_types(x.dtype, torch.float32)).flatten(0, 2)
        is_date = (~padded[:, None]).expand(x.shape[:3]).flatten().to(rows.dtype)
        count = is_date.sum()
        mean = is_date @ rows / count.clamp(min=1)
        rows = (rows - mean) * is_date[:, None]
        return count, mean, rows.t() @ rows


def merged(parts):
    """The moments of all from those of the parts (Chan et al., 1979)."""
    counts, means, scatters = (torch.stack(values) for values in zip(*parts))
    count = counts.sum()
    mean = counts @ means / count.clamp(min=1)
    apart = means - mean
    return count, mean, scatters.sum(0) + (counts[:, None] * apart).t() @ apart


class SeriesDecoder(nn.Module):
    """Repeats the token over dates, adds their encoding, maps to the bands with an MLP.

    The paper's 96 k (10 bands) and 95 k (2 bands) parameters are mostly the fixed 367 x 256 table of date encodings;
    they leave room for 8 and 4 hidden units. Not in the paper: that these units exist. Without them (one linear layer)
    the decoded series would be a(patch) + b(date), the same curve for all patches up to a shift.
    """

    def __init__(self, bands, period, dim):
        super().__init__()
        hidden = max(4, round(HIDDEN_PER_BAND * bands))
        self.hidden, self.last = nn.Linear(dim, hidden), nn.Linear(hidden, bands)
        self.register_buffer("dates", date_encoding(period, dim), persistent=False)

    def forward(self, token, dates):
        """token (N, D), dates (N, T): day numbers to decode. Returns (N, T, C)."""
        return self.last(F.gelu(self.hidden(token[:, None] + self.dates[dates])))
