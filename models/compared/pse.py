"""PSE, the pixel-set encoder (Garnot et al., 2020), alone for single dates, and PSE+LTAE (Garnot and Landrieu, 2020)
for series.

All pixels of a tile are the set, no sample of them, and no feature of its shape is added.
Dimensions: B tiles, T dates, C bands, H x W pixels.
"""
import torch
from torch import nn

from models.compared.ltae import LTAE, MaskedMLP, scaled

HEADS, KEY_DIM, DIM = 16, 8, 256           # of L-TAE
EPSILON = 1e-6                             # under the root of a variance: pixels may all be equal


class PixelSet(nn.Module):
    """Each date's pixels to one vector: an MLP of each pixel, mean and standard deviation over the pixels, an MLP of
    these.

    widths: of the second MLP. Its last layer is batch-normed, without ReLU, also where it gives logits (official code).
    """

    def __init__(self, bands, widths, width):
        super().__init__()
        first, last = scaled(32, width, 8), scaled(64, width, 8)
        self.pixel, self.set = MaskedMLP(bands, first, last), MaskedMLP(2 * last, *widths, is_open=True)

    def forward(self, x, padded):
        """x (B, T, C, H, W): standardised; padded (B, T): True for dates that batch norm must not count. Returns (B,
        T, the last width).
        """
        x = self.pixel(x.flatten(3).transpose(2, 3), padded[:, :, None])      # B x T x HW x 64
        variance, mean = torch.var_mean(x, dim=2, correction=0)
        return self.set(torch.cat([mean, (variance + EPSILON).sqrt()], dim=-1), padded)


class PSE(nn.Module):
    """The pixel-set encoder of one date. 0.029 M parameters for 12 bands and 15 outputs.

    bands: C. width: multiplies the hidden layers.
    """

    def __init__(self, bands, outputs, width=1.0):
        super().__init__()
        self.encoder = PixelSet(bands, [scaled(128, width, 8), scaled(64, width, 8), outputs], width)

    def forward(self, x):
        """x (B, C, H, W): standardised. Returns (B, outputs)."""
        return self.encoder(x[:, None], x.new_zeros(len(x), 1, dtype=torch.bool)).squeeze(1)


class PSELTAE(nn.Module):
    """The pixel-set encoder of each date, then L-TAE. 0.12 M parameters for 10 bands and 128 outputs.

    bands: C. width: multiplies the hidden layers.
    """

    def __init__(self, bands, outputs, width=1.0):
        super().__init__()
        dim = scaled(128, width, 8)
        self.encoder = PixelSet(bands, [dim], width)
        self.ltae = LTAE(dim, HEADS, KEY_DIM, scaled(DIM, width, 2 * HEADS), outputs)

    def forward(self, x, dates, padded):
        """x (B, T, C, H, W): standardised; dates (B, T): day numbers; padded (B, T): True where there is no date.
        Returns (B, outputs).
        """
        x = self.encoder(x.masked_fill(padded[:, :, None, None, None], 0), padded)
        return self.ltae(x[:, None], dates, padded)[0].squeeze(1)
