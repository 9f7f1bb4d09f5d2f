"""Encoder and decoder of image patches (section 3.1, figure 3a).

Dimensions: N patches, C bands, W patch side in pixels, D embedding.
A strided convolution, then max-pools with residual blocks between them, collapse the patch to one pixel. The decoder
walks the same sizes back and puts each value where the encoder's max-pool took it from ("index bypass", as in SegNet,
Badrinarayanan et al. 2017): the token need not store the layout of the patch, only its radiometry.
Sizes for W = 50: 24 -> 12 -> 6 -> 3 -> 1, for W = 40: 20 -> 10 -> 5 -> 2 -> 1.
Both keep their activations channels last, the layout that convolutions are fastest in, on CPU and GPU alike.

Some steps have two forms that the tests hold together. The usual one calls the library's functions, one after the
other. The other, while torch.compile traces (`is_compiling`), is written in sums, products and choices, which the
compiler makes one kernel of: on a GPU these steps wait for memory, and each number should be read and written once.
"""
import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.compiler import is_compiling

from models.fast import winograd


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
    """nn.GroupNorm that leaves type and layout of its input alone; autocast would widen it, and a GPU's kernel reorder
    it.
    """

    def forward(self, x):
        if is_compiling():
            # as a scale and a shift of each channel, so that backward needs two sums of each: one pass, and one for the gradient
            y = rows(x).to(torch.promote_types(x.dtype, torch.float32))       # N x w w x D
            variance, mean = torch.var_mean(y.unflatten(-1, (self.num_groups, -1)), (1, 3), correction=0)
            size = self.num_channels // self.num_groups
            scale = (variance + self.eps).rsqrt().repeat_interleave(size, 1) * self.weight
            shift = self.bias - mean.repeat_interleave(size, 1) * scale       # N x D
            return (y * scale[:, None] + shift[:, None]).to(x.dtype).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
        with torch.autocast(x.device.type, enabled=False):
            y = F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)
        return y.contiguous(memory_format=torch.channels_last)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with GroupNorm(4) and a skip; (N, D, w, w) -> (N, D, w, w). Its GELU is that of GeluPool.
    """

    def __init__(self, dim):
        super().__init__()
        self.body = nn.Sequential(
            Convolution(dim), GroupNorm(4, dim), nn.GELU(),
            Convolution(dim), GroupNorm(4, dim))

    def forward(self, x):
        return x + self.body(x)


class Convolution(nn.Conv2d):
    """nn.Conv2d of 3 x 3, whose bias is part of the next step when compiled; on a CPU by models.fast.winograd where
    that is faster.
    """

    def __init__(self, dim):
        super().__init__(dim, dim, 3, padding=1)

    def forward(self, x):
        if is_compiling():
            return F.conv2d(x, self.weight, stride=self.stride, padding=self.padding) + self.bias.to(x.dtype)[:, None, None]
        if winograd.is_faster(x, self.weight):
            return winograd.convolution(x, self.weight, self.bias)
        return super().forward(x)


class TransposedConvolution(nn.ConvTranspose2d):
    """nn.ConvTranspose2d of 3 x 3, the convolution with turned weights; on a CPU likewise."""

    def __init__(self, dim):
        super().__init__(dim, dim, 3, padding=1)

    def forward(self, x):
        if not is_compiling() and winograd.is_faster(x, self.weight):
            return winograd.convolution(x, winograd.turned(self.weight), self.bias)
        return super().forward(x)


class Stem(nn.Conv2d):
    """A 4 x 4 convolution of stride 2. Compiled it is a matrix product, as a GPU is slow in convolutions of few bands.

    The product comes without the bias then, which ImageEncoder gives to GeluPool: the sum of its gradient has a
    quarter of the pixels.
    """

    def __init__(self, bands, patch, dim):
        super().__init__(bands, dim, 4, stride=2, padding=_stem_padding(patch))

    def forward(self, x):
        if not is_compiling():
            return super().forward(x.contiguous(memory_format=torch.channels_last))
        windows = F.pad(x, 2 * self.padding).unfold(2, 4, 2).unfold(3, 4, 2)             # N x C x w x w x 4 x 4
        return F.linear(windows.permute(0, 2, 3, 1, 4, 5).flatten(3), self.weight.flatten(1)).permute(0, 3, 1, 2)


class Last(nn.ConvTranspose2d):
    """The transpose of Stem, (N, D, w, w) -> (N, C, W, W); likewise a product."""

    def __init__(self, bands, patch, dim):
        super().__init__(dim, bands, 4, stride=2, padding=_stem_padding(patch))

    def forward(self, x):
        if not is_compiling():
            return super().forward(x)
        # row 2 q + a of the 4 x 4 weights is for row a of the cell of 2 x 2 pixels that lies q cells further down; columns likewise
        weight = self.weight.view(*self.weight.shape[:2], 2, 2, 2, 2).permute(2, 4, 1, 3, 5, 0)    # q x r x C x a x b x D
        cells = F.linear(x.permute(0, 2, 3, 1), weight.flatten(0, 4)).unflatten(-1, (2, 2, -1))    # N x w x w x q x r x 4 C
        cells = sum(F.pad(cells[..., q, r, :], (0, 0, r, 1 - r, q, 1 - q)) for q in (0, 1) for r in (0, 1))
        x, margin = F.pixel_shuffle(cells.permute(0, 3, 1, 2), 2), self.padding[0]
        return x[..., margin:x.shape[-2] - margin, margin:x.shape[-1] - margin] + self.bias[:, None, None]


class ImageEncoder(nn.Module):
    """Image patches to tokens. 3.56 M parameters for 4 bands and D = 256 (the paper prints 3.6 M).

    No norm follows the first convolution: over a single patch it would erase the brightness the token is to carry.
    """

    def __init__(self, bands, patch, dim):
        super().__init__()
        self.sizes = pooled_sizes(patch)
        self.stem = Stem(bands, patch, dim)
        self.blocks = nn.ModuleList(ResidualBlock(dim) for _ in self.sizes[1:])

    def forward(self, x):
        """x (N, C, W, W): standardised patches.

        Returns tokens (N, D) and for the decoder the indices of each max-pool (N, D, w, w) int16, within the pixels
        before it.
        """
        x, indices, bias = self.stem(x), [], self.stem.bias if is_compiling() else None
        for block in self.blocks:
            x, index = GeluPool.apply(x, bias, 2)
            indices.append(index)
            x, bias = block(x), None
        x, index = GeluPool.apply(x, bias, self.sizes[-1])                    # N x D x 1 x 1
        return x.flatten(1), [*indices, index]


class ImageDecoder(nn.Module):
    """Tokens and pooling indices to image patches. 1.79 M parameters for 4 bands and D = 256 (the paper: 1.8 M).

    bypass: False for the ablation of table 5, which copies a value to all pixels of its cell instead of the one that
    the encoder's max-pool chose; the parameters are the same.
    """

    def __init__(self, bands, patch, dim, bypass=True):
        super().__init__()
        self.sizes, self.bypass = pooled_sizes(patch), bypass
        self.blocks = nn.ModuleList(TransposedConvolution(dim) for _ in self.sizes[1:])
        self.last = Last(bands, patch, dim)

    def forward(self, token, indices):
        """token (N, D), indices: those of ImageEncoder for the same N patches. Returns (N, C, W, W)."""
        x = self._unpool(token[:, :, None, None], indices[-1], self.sizes[-1])
        for block, index, size in zip(self.blocks, reversed(indices[:-1]), reversed(self.sizes[:-1])):
            x = self._unpool(F.gelu(block(x)), index, size)
        return self.last(x)

    def _unpool(self, x, index, size):
        """The inverse of a max-pool: (N, D, w, w) -> (N, D, size, size)."""
        return put(x, index, size) if self.bypass else F.interpolate(x, size=(size, size))


class GeluPool(torch.autograd.Function):
    """Max-pool of GELU(x): (N, D, w, w) -> (N, D, w // window, w // window) and int16 indices of the same shape.

    bias: None or, compiled, (D,), to be added to x before. Only where a pixel is the largest does a gradient come back
    to it, so nothing of the other pixels is kept for backward.
    """

    @staticmethod
    def forward(ctx, x, bias, window):
        if is_compiling():
            y, slope, index = gelu_of_largest(x if bias is None else x + bias[:, None, None], window)
            y, slope = y.to(x.dtype), slope.to(x.dtype)
        else:
            index = F.max_pool2d(F.gelu(x), window, return_indices=True)[1].short()
            taken = images(rows(x).gather(1, rows(index).long()), index.shape[-1])
            y, slope = F.gelu(taken), torch.ops.aten.gelu_backward(torch.ones_like(taken), taken)
        ctx.size, ctx.bias_type = x.shape[-1], None if bias is None else bias.dtype
        ctx.mark_non_differentiable(index)
        ctx.save_for_backward(index, slope)
        return y, index

    @staticmethod
    def backward(ctx, gradient, _):
        index, slope = ctx.saved_tensors
        gradient = gradient * slope
        return put(gradient, index, ctx.size), None if ctx.bias_type is None else gradient.sum((0, 2, 3), dtype=ctx.bias_type), None


def gelu_of_largest(x, window):
    """The largest GELU of each window of (N, D, w, w), its derivative, and the pixel's index; GELU is computed of two
    pixels only.

    GELU falls and then rises, so it is largest at the largest or at the smallest x.
    """
    size, count = x.shape[-1], x.shape[-1] // window
    corner = torch.arange(count, dtype=torch.int16, device=x.device) * window
    corner = (corner[:, None] * size + corner).expand(*x.shape[:2], -1, -1)
    first, *others = ((x[..., row:count * window:window, column:count * window:window], corner + (row * size + column))
                      for row in range(window) for column in range(window))
    (high, index_high), (low, index_low) = first, first
    for pixel, index in others:
        index_high, high = torch.where(pixel > high, index, index_high), torch.maximum(pixel, high)
        index_low, low = torch.where(pixel < low, index, index_low), torch.minimum(pixel, low)
    below_high, below_low = (0.5 + 0.5 * torch.erf(value / 2 ** 0.5) for value in (high, low))    # the normal distribution
    is_high = high * below_high >= low * below_low
    value, below, index = (torch.where(is_high, *pair) for pair in ((high, low), (below_high, below_low), (index_high, index_low)))
    return value * below, below + value * (-0.5 * value ** 2).exp() / (2 * math.pi) ** 0.5, index


def put(x, index, size):
    """max_unpool2d to size x size pixels, for images whose channels are last: (N, D, w, w) -> (N, D, size, size)."""
    if not is_compiling():
        return images(x.new_zeros(len(x), size * size, x.shape[1]).scatter_(1, rows(index).long(), rows(x)), size)
    count = x.shape[-1]
    window, covered = size // count, size - size % count                      # a row and a column may be in no window
    number = torch.arange(size * size, dtype=torch.int16, device=x.device).view(size, size)[:covered, :covered]
    x, index = (value.permute(0, 2, 3, 1)[:, :, None, :, None] for value in (x, index))    # N x w x 1 x w x 1 x D
    x = torch.where(index == number.reshape(count, window, count, window, 1), x, 0).flatten(3, 4).flatten(1, 2)
    return F.pad(x, (0, 0, 0, size - covered, 0, size - covered)).permute(0, 3, 1, 2)


def rows(x):
    """(N, D, w, w) -> (N, w w, D), no copy if channels are last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def images(x, size):
    """(N, size x size, D) -> (N, D, size, size), channels last."""
    return x.unflatten(1, (size, size)).permute(0, 3, 1, 2)
