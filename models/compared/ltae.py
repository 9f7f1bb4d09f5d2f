"""L-TAE (Garnot and Landrieu, 2020) as PSE+LTAE and U-TAE take it.

models/series.py is OmniSat's own encoder: another MLP before and behind the same attention.
Dimensions: B tiles, P pixels, T dates, C bands, D channels in the attention, H heads.
"""
import torch
import torch.nn.functional as F
from torch import nn

from models.norms import BatchNorm, series_group_norm
from models.series import date_encoding

PERIOD = 1000                              # days; the largest day number
DROPOUT, ATTENTION_DROPOUT = 0.2, 0.1      # not in the paper: the second, which the published code has


def scaled(channels, width, multiple):
    """width x channels, rounded to a multiple of a number, at least that number."""
    return max(multiple, round(width * channels / multiple) * multiple)


class MaskedMLP(nn.Module):
    """Linear, batch norm, ReLU, dropout for each step; is_open: the last step ends with its batch norm."""

    def __init__(self, *widths, dropout=0.0, is_open=False):
        super().__init__()
        self.is_open, self.dropout = is_open, nn.Dropout(dropout)
        self.linears = nn.ModuleList(nn.Linear(*pair, bias=False) for pair in zip(widths[:-1], widths[1:]))
        self.norms = nn.ModuleList(BatchNorm(outputs) for outputs in widths[1:])

    def forward(self, x, padded):
        """x (..., C), padded as BatchNorm has it. Returns (..., the last width)."""
        for linear, norm in zip(self.linears, self.norms):
            x = norm(linear(x), padded)
            if norm is not self.norms[-1] or not self.is_open:
                x = self.dropout(x.relu())
        return x


class LTAE(nn.Module):
    """Lightweight temporal attention: each head has one learned query, and its own share of the channels as values.

    bands: C. key_dim: numbers in a query. dim: D, a multiple of 2 H. outputs: size of the result.
    before: hidden widths of an MLP C -> D for each date; none makes it a linear layer. after: those of the MLP D ->
    outputs. group: channels that are normed together, at the input over all dates too, as in U-TAE; None: a layer norm
    of each date, as in L-TAE. The input's norm stands before the linear layer, but behind the MLP (official code),
    where it has a scale.
    Errors: ValueError if D does not divide as said.
    """

    def __init__(self, bands, heads, key_dim, dim, outputs, before=(), after=(), group=None):
        super().__init__()
        if dim % (2 * heads):
            raise ValueError(f"the size of the attention must be a multiple of {2 * heads}, not {dim}")
        self.heads, self.group, self.before = heads, group, before
        # no bias here: it would shift all dates alike, which changes no attention, and is lost in the batch norm behind
        self.embed = MaskedMLP(bands, *before, dim, dropout=DROPOUT) if before else nn.Linear(bands, dim, bias=False)
        # of the norm; its shift would do nothing, as above
        self.scale = nn.Parameter(torch.ones(dim)) if before else None
        self.key = nn.Linear(dim, heads * key_dim, bias=False)
        self.query = nn.Parameter(torch.randn(heads, key_dim))
        self.attention_dropout = nn.Dropout(ATTENTION_DROPOUT)
        self.out, self.dropout = MaskedMLP(dim, *after, outputs), nn.Dropout(DROPOUT)
        self.norm_out = nn.GroupNorm(outputs // group if group else 1, outputs)           # one group is a layer norm
        self.register_buffer("dates", date_encoding(PERIOD, dim // heads).repeat(1, heads), persistent=False)

    def forward(self, x, dates, padded):
        """x (B, P, T, C); dates (B, T): day numbers; padded (B, T): True where there is no date.

        Returns (B, P, outputs) and the attention of each head (B, P, T, H), 0 where padded.
        An empty series (all padded) gives a finite result, which no batch norm counts.
        """
        if self.before:
            x = self.normed(self.embed(x, padded[:, None]), padded) * self.scale
        else:
            x = self.embed(self.normed(x, padded))    # a norm without weights: a linear layer follows
        x = x + self.dates[dates][:, None]                                    # B x P x T x D
        # <query_h, key_h(x)> with the key's matrix folded into the query: H scores, no T x H x key_dim keys
        query = torch.einsum("hk,hkd->dh", self.query, self.key.weight.unflatten(0, (self.heads, -1)))
        scores = x @ query / self.query.shape[1] ** 0.5
        scores = scores.masked_fill(padded[:, None, :, None], torch.finfo(scores.dtype).min)
        attention = scores.softmax(dim=2).masked_fill(padded[:, None, :, None], 0)        # B x P x T x H
        attention = self.attention_dropout(attention)
        values = x.unflatten(-1, (self.heads, -1))                            # B x P x T x H x D/H
        y = torch.einsum("bpth,bpthc->bphc", attention, values).flatten(2)
        y = self.dropout(self.out(y, padded.all(1)[:, None]))                 # B x P x outputs
        return self.norm_out(y.flatten(0, 1)).unflatten(0, y.shape[:2]), attention

    def normed(self, x, padded):
        """x (B, P, T, C) of mean 0 and variance 1: over a group's channels and the dates there are, or of each date."""
        return series_group_norm(x, padded, x.shape[-1] // self.group) if self.group else F.layer_norm(x, x.shape[-1:])
