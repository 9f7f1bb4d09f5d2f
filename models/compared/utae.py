"""U-TAE (Garnot and Landrieu, 2021): a U-Net over the dates of a series, whose temporal attention collapses the map of
each level.

Dimensions: B tiles, T dates, C bands, H x W pixels, D channels, h heads.
Maps are kept channels last, the layout that convolutions are fastest in.
"""
import torch
import torch.nn.functional as F
from torch import nn

from models.compared.ltae import LTAE, scaled
from models.norms import GroupNorm

HEADS, KEY_DIM = 16, 4                     # of the temporal attention
GROUP = 8                                  # channels that its norms take together: 128 / 16 heads, as published


class Conv(nn.Conv2d):
    """A convolution that pads each side with one pixel, the reflection of its neighbour; (B, D, H, W) -> (B, outputs,
    H', W').
    """

    def forward(self, x):
        mode = "reflect" if min(x.shape[-2:]) > 1 else "replicate"            # a single pixel has no other to reflect
        return super().forward(F.pad(x, (1, 1, 1, 1), mode))


def encoding(inputs, outputs, kernel=3, stride=1):
    """Convolution, GroupNorm(4), ReLU: dates of a series are normed each on its own."""
    return nn.Sequential(Conv(inputs, outputs, kernel, stride), GroupNorm(4, outputs), nn.ReLU())


def decoding(inputs, outputs):
    """Convolution, batch norm, ReLU."""
    return nn.Sequential(Conv(inputs, outputs, 3, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class Down(nn.Module):
    """Halves the size: (B, inputs, H, W) -> (B, outputs, H', W')."""

    def __init__(self, inputs, outputs, kernel):
        super().__init__()
        self.down = encoding(inputs, inputs, kernel, stride=2)
        self.first, self.second = encoding(inputs, outputs), encoding(outputs, outputs)

    def forward(self, x):
        x = self.first(self.down(x))
        return x + self.second(x)


class Up(nn.Module):
    """Doubles the size and takes in the map of the encoder: (B, inputs, H', W'), (B, skip, H, W) -> (B, outputs, H, W).
    """

    def __init__(self, inputs, outputs, skip, kernel):
        super().__init__()
        self.up = nn.ConvTranspose2d(inputs, outputs, kernel, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.skip = nn.Sequential(nn.Conv2d(skip, skip, 1, bias=False), nn.BatchNorm2d(skip), nn.ReLU())
        self.first, self.second = decoding(outputs + skip, outputs), decoding(outputs, outputs)

    def forward(self, x, skip):
        x = F.relu(self.norm(self.up(x, output_size=skip.shape[-2:])))
        x = self.first(torch.cat([x, self.skip(skip)], dim=1))
        return x + self.second(x)


def collapse(x, attention):
    """A level's maps x (BT, D, H, W) to one map (B, D, H, W): each head's attention (B, T, h, H', W') weighs its share
    of the channels.
    """
    tiles, heads = attention.shape[0], attention.shape[2]
    # BT x h x H x W
    attention = F.interpolate(attention.flatten(0, 1), size=x.shape[-2:], mode="bilinear").to(x.dtype)
    x = x.unflatten(1, (heads, -1)) * attention[:, :, None]                   # BT x h x D/h x H x W
    return x.flatten(1, 2).unflatten(0, (tiles, -1)).sum(1)


class UTAE(nn.Module):
    """Series to maps of the size of their pixels. With 10 bands 0.74 M parameters for widths 64, 64, 128 and kernel 2.

    bands: C. encoder_widths, decoder_widths: D of each level, from the finest to the coarsest, where they must be
    equal. kernel: of the strided convolutions and their transposes. width: multiplies all channels but the bands.
    attention_dim, before, after: dim, before and after of LTAE. dim: D of the result, scaled.
    Errors: ValueError for widths that do not fit.
    """

    def __init__(self, bands, encoder_widths, decoder_widths, kernel, width=1.0, attention_dim=256, before=(),
                 after=()):
        super().__init__()
        if len(encoder_widths) != len(decoder_widths) or encoder_widths[-1] != decoder_widths[-1]:
            raise ValueError("encoder and decoder must have the same levels and meet in the last: "
                             f"{encoder_widths}, {decoder_widths}")
        encoder, decoder, before, after = ([scaled(channels, width, HEADS) for channels in widths]
                                           for widths in (encoder_widths, decoder_widths, before, after))
        self.kernel, self.dim = kernel, decoder[0]
        self.first = nn.Sequential(encoding(bands, encoder[0]), encoding(encoder[0], encoder[0]))
        self.down = nn.ModuleList(Down(i, o, kernel) for i, o in zip(encoder[:-1], encoder[1:]))
        self.ltae = LTAE(encoder[-1], HEADS, KEY_DIM, scaled(attention_dim, width, 2 * HEADS), encoder[-1], before,
                         after, GROUP)
        ups = zip(decoder[:0:-1], decoder[-2::-1], encoder[-2::-1])           # from the coarsest to the finest
        self.up = nn.ModuleList(Up(i, o, skip, kernel) for i, o, skip in ups)

    def forward(self, x, dates, padded):
        """x (B, T, C, H, W): standardised; dates (B, T): day numbers; padded (B, T): True where there is no date.
        Returns (B, D, H, W).

        Where there are too few pixels for the levels, the border is repeated to the right and below.
        """
        height, width = x.shape[-2:]
        least = 1
        for _ in self.down:
            least = max(1, 2 * least + self.kernel - 4)    # pixels of which a strided convolution leaves so many
        x = x.masked_fill(padded[:, :, None, None, None], 0)
        x = F.pad(x, (0, max(0, least - width), 0, max(0, least - height), 0, 0), "replicate")
        maps = [self.first(x.flatten(0, 1).contiguous(memory_format=torch.channels_last))]    # BT x D x H x W
        for down in self.down:
            maps.append(down(maps[-1]))
        x = maps.pop().unflatten(0, x.shape[:2])                              # B x T x D x H' x W'
        size = x.shape[-2:]
        x, attention = self.ltae(x.permute(0, 3, 4, 1, 2).flatten(1, 2), dates, padded)
        attention = attention.unflatten(1, size).permute(0, 3, 4, 1, 2)       # B x T x h x H' x W'
        x = x.unflatten(1, size).permute(0, 3, 1, 2)                          # B x D x H' x W'
        for up in self.up:
            x = up(x, collapse(maps.pop(), attention))
        return x[..., :height, :width]


class UTAEVector(nn.Module):
    """U-TAE's last map, three more convolutions, averaged over space. 0.35 M parameters for 10 bands and 128 outputs.

    bands: C. width: multiplies all channels but bands and outputs. The widths are the official configuration's, not
    the published.
    """

    def __init__(self, bands, outputs=128, width=1.0):
        super().__init__()
        # not in the paper: the MLP before the attention; the official one also passes 10 channels, by a mutable default
        # argument
        self.utae = UTAE(bands, (64, 32, 32), (32, 32, 32), 2, width, attention_dim=128, before=(32,), after=(256,))
        dim, hidden = self.utae.dim, scaled(64, width, HEADS)
        self.out = nn.Sequential(decoding(dim, dim), decoding(dim, hidden), decoding(hidden, outputs))

    def forward(self, x, dates, padded):
        """x (B, T, C, H, W), dates, padded (B, T): as in UTAE. Returns (B, outputs)."""
        return self.out(self.utae(x, dates, padded)).mean((2, 3))
