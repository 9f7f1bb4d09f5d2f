"""Encoder and decoder of image patches (section 3.1, figure 3a).

Dimensions: N patches, C bands, W patch side in pixels, D embedding.
A strided convolution, then max-pools with residual blocks between them, collapse the patch to one pixel. The decoder
walks the same sizes back and puts each value where the encoder's max-pool took it from ("index bypass", as in SegNet,
Badrinarayanan et al. 2017): the token need not store the layout of the patch, only its radiometry.
Sizes for W = 50: 24 -> 12 -> 6 -> 3 -> 1, for W = 40: 20 -> 10 -> 5 -> 2 -> 1.
Both keep their activations channels last, the layout that convolutions are fastest in, on CPU and GPU alike.
"""
import torch
import torch.nn.functional as F
from torch import nn


def _stem_padding(patch):
    """0 or 1, whichever gives the 4 x 4 convolution of stride 2 an even output: then the first pool drops no pixel.

    Later pools of an odd size drop a row and a column, which the convolutions before them have spread.
    """
    return 1 if (patch // 2) % 2 == 0 else 0


def pooled_sizes(patch):
    """The side (pixels) before each max-pool, down to the last one, which takes all that is left.

    Errors: ValueError for a patch of under 4 or an odd number of pixels. Returns e.g. [24, 12, 6, 3] for 50.
    """
    if patch < 4 or patch % 2 or patch > 360:                                     # indices are int16
        raise ValueError(f"the side of an image patch must be an even number of 4 to 360 pixels, not {patch}")
    sizes = [(patch + 2 * _stem_padding(patch) - 4) // 2 + 1]
    while sizes[-1] > 3:
        sizes.append(sizes[-1] // 2)
    return sizes


class GroupNorm(nn.GroupNorm):
    """nn.GroupNorm that leaves type and layout of its input alone; autocast would widen it, and a GPU's kernel reorder it."""

    def forward(self, x):
        with torch.autocast(x.device.type, enabled=False):
            y = F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)
        return y.contiguous(memory_format=torch.channels_last)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with GroupNorm(4) and a skip; (N, D, w, w) -> (N, D, w, w). Its GELU is that of gelu_pool."""

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

        Returns tokens (N, D) and for the decoder the indices of each max-pool (N, D, w, w) int16, within the pixels before it.
        """
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        indices = []
        for block in self.blocks:
            x, index = gelu_pool(x, 2)
            indices.append(index)
            x = block(x)
        x, index = gelu_pool(x, self.sizes[-1])                            # N x D x 1 x 1
        return x.flatten(1), [*indices, index]


class ImageDecoder(nn.Module):
    """Tokens and pooling indices to image patches. 1.79 M parameters for 4 bands and D = 256 (the paper: 1.8 M).

    bypass: False for the ablation of table 5, which copies a value to all pixels of its cell instead of the one that the
    encoder's max-pool chose; the parameters are the same.
    """

    def __init__(self, bands, patch, dim, bypass=True):
        super().__init__()
        self.sizes, self.bypass = pooled_sizes(patch), bypass
        self.blocks = nn.ModuleList(nn.ConvTranspose2d(dim, dim, 3, padding=1) for _ in self.sizes[1:])
        self.last = nn.ConvTranspose2d(dim, bands, 4, stride=2, padding=_stem_padding(patch))

    def forward(self, token, indices):
        """token (N, D), indices: those of ImageEncoder for the same N patches. Returns (N, C, W, W)."""
        x = self._unpool(token[:, :, None, None], indices[-1], self.sizes[-1])
        for block, index, size in zip(self.blocks, reversed(indices[:-1]), reversed(self.sizes[:-1])):
            x = self._unpool(F.gelu(block(x)), index, size)
        return self.last(x)

    def _unpool(self, x, index, size):
        """The inverse of a max-pool: (N, D, w, w) -> (N, D, size, size)."""
        return put(x, index, size) if self.bypass else F.interpolate(x, size=(size, size))


def gelu_pool(x, window):
    """Max-pool of GELU(x): (N, D, w, w) -> (N, D, w // window, w // window) and int16 indices of the same shape.

    Only where a pixel is the largest does a gradient come back to it, so nothing of the other pixels is kept for backward.
    """
    with torch.no_grad():
        index = F.max_pool2d(F.gelu(x), window, return_indices=True)[1].short()
    return F.gelu(Take.apply(x, index)), index


class Take(torch.autograd.Function):
    """The pixels at a max-pool's indices; backward puts their gradients back there, one each."""

    @staticmethod
    def forward(ctx, x, index):
        ctx.save_for_backward(index)
        ctx.size = x.shape[-1]
        return images(rows(x).gather(1, rows(index).long()), index.shape[-1])

    @staticmethod
    def backward(ctx, gradient):
        index, = ctx.saved_tensors
        return put(gradient, index, ctx.size), None


def put(x, index, size):
    """max_unpool2d to size x size pixels, for images whose channels are last: (N, D, w, w) -> (N, D, size, size)."""
    return images(x.new_zeros(len(x), size * size, x.shape[1]).scatter_(1, rows(index).long(), rows(x)), size)


def rows(x):
    """(N, D, w, w) -> (N, w w, D), no copy if channels are last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def images(x, size):
    """(N, size x size, D) -> (N, D, size, size), channels last."""
    return x.unflatten(1, (size, size)).permute(0, 3, 1, 2)
