"""models/series.py, faster, and in parts of a pool: held to the plain form by tests/test_step.py.

Dimensions: B tiles, P patches, T dates, C bands, D embedding, H heads.
A batch norm behind a linear layer is the same layer with other weights: nothing is normalised row by row, and
statistics come from the layer's inputs, which are narrower. The key's matrix is folded into the query: H scores a
date, no H x KEY_DIM keys.
"""
import torch
import torch.nn.functional as F

from models import series
from models.fast.forms import traced_as
from models.series import HEADS, KEY_DIM


def weighted_sum(attention, values):
    """A sum that needs no products of matrices, in one kernel."""
    return (attention[..., None] * values).sum(2)


@traced_as(weighted_sum)
def weighted(attention, values):
    """Values (B, P, T, H, D/H) summed over the dates, weighted by attention (B, P, T, H). Returns (B, P, H, D/H)."""
    return torch.einsum("bpth,bpthc->bphc", attention, values)


class SeriesEncoder(series.SeriesEncoder):
    """series.SeriesEncoder."""

    def forward(self, x, dates, padded, statistics=None):
        """As series.SeriesEncoder.forward. statistics: those of pool_statistics, where these tiles are a part of the
        pool; None takes these tiles' own.
        """
        x = self.norm(self.embedding(x, padded, statistics) + self.dates[dates][:, None])     # B x P x T x D
        query = torch.einsum("hk,hkd->dh", self.query, self.key.weight.view(HEADS, KEY_DIM, -1)) / KEY_DIM ** 0.5
        scores = x @ query
        scores = scores.masked_fill(padded[:, None, :, None], torch.finfo(scores.dtype).min)
        attention = scores.softmax(dim=2).masked_fill(padded[:, None, :, None], 0)    # B x P x T x H
        token = weighted(attention, x.unflatten(-1, (HEADS, -1))).flatten(2)
        return self.out(token), attention.mean(dim=-1)

    def embedding(self, x, padded, statistics=None):
        """The MLP of each date, (B, P, T, C) -> (B, P, T, D); statistics of its first layers only: so many layers of
        it.
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
        """Mean and variance of a linear layer's outputs, from the moments of its inputs.

        parts: a pool's, one or more. Moves the running statistics, as the norm does; in evaluation returns those.
        """
        if not self.training:
            return norm.running_mean, norm.running_var
        with torch.autocast(linear.weight.device.type, enabled=False):        # variances, not products of activations
            count, mean, scatter = merged(parts)
            weight = linear.weight.to(mean.dtype)
            mean, variance = weight @ mean, ((weight @ scatter) * weight).sum(1).clamp(min=0) / count.clamp(min=1)
        norm.move(mean, variance, count)
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
