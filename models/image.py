"""Encoder and decoder of image patches (section 3.1, figure 3a).

Dimensions: N patches, C bands, W patch side in pixels, D embedding, w side of a feature map in pixels.
A strided convolution, then max-pools with residual blocks between them, reduce the patch to one pixel. The decoder
walks the same sizes back and puts each value where the encoder's max-pool took it from ("index bypass", as in SegNet,
Badrinarayanan et al. 2017): the token need not store the layout of the patch, only its radiometry.
Sides for W = 50: 24 -> 12 -> 6 -> 3 -> 1, for W = 40: 20 -> 10 -> 5 -> 2 -> 1.
By default models/fast/image.py runs in its place, faster, to the same results; OMNISAT_PLAIN=1 runs this file.
"""
import torch.nn.functional as F
from torch import nn

from models.norms import GroupNorm


def _stem_padding(patch):
    """0 or 1, whichever gives the 4 x 4 convolution of stride 2 an even output: then the first pool drops no pixel.

    Later pools of an odd size drop a row and a column, which the convolutions before them have spread.
    """
    return 1 if (patch // 2) % 2 == 0 else 0


def pooled_sizes(patch):
    """The side (pixels) before each max-pool; the last pool takes all that is left.

    Returns [24, 12, 6, 3] for 50, [20, 10, 5, 2] for 40. Errors: ValueError for an odd number of pixels, and for one
    that is not from 4 to 360.
    """
    if patch < 4 or patch % 2 or patch > 360:                                 # the fast form's indices are int16
        raise ValueError(f"the side of an image patch must be an even number of 4 to 360 pixels, not {patch}")
    sizes = [(patch + 2 * _stem_padding(patch) - 4) // 2 + 1]
    while sizes[-1] > 3:
        sizes.append(sizes[-1] // 2)
    return sizes


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with GroupNorm(4) and a skip; (N, D, w, w) -> (N, D, w, w)."""

    def __init__(self, dim):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(dim, dim, 3, padding=1), GroupNorm(4, dim), nn.GELU(),
            nn.Conv2d(dim, dim, 3, padding=1), GroupNorm(4, dim))

    def forward(self, x):
        return x + self.body(x)


class ImageEncoder(nn.Module):
    """Image patches to tokens. 3.56 M parameters for 4 bands and D = 256 (the paper prints 3.6 M).

    No norm follows the first convolution: over a single patch it would erase the brightness the token is to carry.
    """

    def __init__(self, bands, patch, dim):
        super().__init__()
        self.sizes = pooled_sizes(patch)
        self.stem = nn.Conv2d(bands, dim, 4, stride=2, padding=_stem_padding(patch))
        self.blocks = nn.ModuleList(ResidualBlock(dim) for _ in self.sizes[1:])

    def forward(self, x):
        """x (N, C, W, W): standardised patches.

        Returns tokens (N, D) and for the decoder the indices of each max-pool (N, D, w, w), within the pixels before
        it.
        """
        x, indices = F.gelu(self.stem(x)), []
        for block in self.blocks:
            x, index = F.max_pool2d(x, 2, return_indices=True)
            indices.append(index)
            x = F.gelu(block(x))
        x, index = F.max_pool2d(x, self.sizes[-1], return_indices=True)       # N x D x 1 x 1
        return x.flatten(1), [*indices, index]


class ImageDecoder(nn.Module):
    """f*_p and pooling indices to image patches. 1.79 M parameters for 4 bands and D = 256 (the paper: 1.8 M).

    bypass: False for the ablation of table 5, which copies a value to all pixels of its cell instead of the one that
    the encoder's max-pool chose; the parameters are the same.
    """

    def __init__(self, bands, patch, dim, bypass=True):
        super().__init__()
        self.sizes, self.bypass = pooled_sizes(patch), bypass
        self.blocks = nn.ModuleList(nn.ConvTranspose2d(dim, dim, 3, padding=1) for _ in self.sizes[1:])
        self.last = nn.ConvTranspose2d(dim, bands, 4, stride=2, padding=_stem_padding(patch))

    def forward(self, f, indices):
        """f (N, D): f*_p; indices: those of ImageEncoder for the same N patches. Returns (N, C, W, W)."""
        x = self._unpool(f[:, :, None, None], indices[-1], self.sizes[-1])
        for block, index, size in zip(self.blocks, reversed(indices[:-1]), reversed(self.sizes[:-1])):
            x = self._unpool(F.gelu(block(x)), index, size)
        return self.last(x)

    def _unpool(self, x, index, size):
        """The inverse of a max-pool: (N, D, w, w) -> (N, D, size, size)."""
        if not self.bypass:
            return F.interpolate(x, size=(size, size))
        return F.max_unpool2d(x, index, size // x.shape[-1], output_size=(size, size))
