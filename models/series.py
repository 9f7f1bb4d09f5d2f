"""Encoder and decoder of time series (section 3.1, figure 3b): L-TAE (Garnot and Landrieu, 2020) and its inverse.

Dimensions: B tiles, P patches, T dates, C bands times the pixels of a patch, D embedding, H heads.
By default models/fast/series.py runs in its place, faster, to the same results; OMNISAT_PLAIN=1 runs this file.
"""
import torch
import torch.nn.functional as F
from torch import nn

from models.norms import BatchNorm

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
    """Linear, norm, ReLU for each step. norm: BatchNorm or nn.LayerNorm."""
    layers = []                                                               # batch norm would cancel a bias before it
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
        self.embed = mlp(bands, 32, 128, dim, norm=BatchNorm)
        self.norm = nn.LayerNorm(dim)
        self.key = nn.Linear(dim, HEADS * KEY_DIM, bias=False)    # a bias would shift all dates alike: no effect
        self.query = nn.Parameter(torch.randn(HEADS, KEY_DIM))
        self.out = nn.Sequential(mlp(dim, dim, 2 * dim, dim, norm=nn.LayerNorm), nn.LayerNorm(dim))
        self.register_buffer("dates", date_encoding(period, dim // HEADS).repeat(1, HEADS), persistent=False)

    def forward(self, x, dates, padded):
        """x (B, P, T, C): standardised series; dates (B, T): day numbers; padded (B, T): True where there is no date.

        Returns tokens (B, P, D) and the attention of the dates averaged over heads, (B, P, T), 0 where padded.
        An empty series (all padded) gives a finite token that the caller must not use.
        """
        for linear, norm, relu in zip(self.embed[::3], self.embed[1::3], self.embed[2::3]):
            x = relu(norm(linear(x), padded[:, None]))                        # padded dates do not count
        x = self.norm(x + self.dates[dates][:, None])                         # B x P x T x D
        scores = (self.key(x).unflatten(-1, (HEADS, KEY_DIM)) * self.query).sum(-1) / KEY_DIM ** 0.5
        scores = scores.masked_fill(padded[:, None, :, None], torch.finfo(scores.dtype).min)
        attention = scores.softmax(dim=2).masked_fill(padded[:, None, :, None], 0)    # B x P x T x H
        values = x.unflatten(-1, (HEADS, -1))                                 # B x P x T x H x D/H
        token = (attention[..., None] * values).sum(2).flatten(2)             # B x P x D
        return self.out(token), attention.mean(dim=-1)


class SeriesDecoder(nn.Module):
    """Repeats f*_p over dates, adds their encoding, maps to the bands with an MLP.

    Not in the paper: how many hidden units the MLP has. We read the printed 96 k (10 bands) and 95 k (2 bands)
    parameters as including the fixed 367 x 256 table of date encodings, which leaves room for 8 and 4 units.
    """

    def __init__(self, bands, period, dim):
        super().__init__()
        hidden = max(4, round(HIDDEN_PER_BAND * bands))
        self.hidden, self.last = nn.Linear(dim, hidden), nn.Linear(hidden, bands)
        self.register_buffer("dates", date_encoding(period, dim), persistent=False)

    def forward(self, f, dates):
        """f (N, D): f*_p; dates (N, T): day numbers to decode. Returns (N, T, C)."""
        return self.last(F.gelu(self.hidden(f[:, None] + self.dates[dates])))
