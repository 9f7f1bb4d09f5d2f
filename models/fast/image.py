"""models/image.py, faster, and models/norms.py's GroupNorm: held to the plain forms by tests/test_step.py.

Dimensions: N patches, C bands, W patch side in pixels, D embedding, w the side of what lies between.
Activations are channels last, the layout that convolutions are fastest in, on CPU and GPU alike; 3 x 3 convolutions on
a CPU are Winograd's where that is faster; GELU and max-pool are one step that keeps nothing of the pixels that were
not chosen. Which form torch.compile traces: models/fast/forms.py. It has the bias of a convolution in the step that
follows.
"""
import math

import torch
import torch.nn.functional as F

from models import image, norms
from models.fast import winograd
from models.fast.forms import traced_as

# ---- convolutions ---------------------------------------------------------------------------------------------------


def stem_as_product(layer, x):
    """A GPU is slow in convolutions of few bands. Without the bias, which GeluPool adds: the sum of its gradient has a
    quarter of the pixels then.
    """
    windows = F.pad(x, 2 * layer.padding).unfold(2, 4, 2).unfold(3, 4, 2)     # N x C x w x w x 4 x 4
    x = F.linear(windows.permute(0, 2, 3, 1, 4, 5).flatten(3), layer.weight.flatten(1)).permute(0, 3, 1, 2)
    return x, layer.bias


@traced_as(stem_as_product)
def stem(layer, x):
    """The 4 x 4 convolution of stride 2, (N, C, W, W) -> (N, D, w, w), and a bias (D,) that is still to be added, or
    None.
    """
    return layer(x.contiguous(memory_format=torch.channels_last)), None


def convolution_and_bias(layer, x):
    x = F.conv2d(x, layer.weight, stride=layer.stride, padding=layer.padding)
    return x + layer.bias.to(x.dtype)[:, None, None]


@traced_as(convolution_and_bias)
def convolution(layer, x):
    """A 3 x 3 convolution."""
    return winograd.convolution(x, layer.weight, layer.bias) if winograd.is_faster(x, layer.weight) else layer(x)


@traced_as(lambda layer, x: layer(x))
def transposed(layer, x):
    """A transposed 3 x 3 convolution: the convolution with turned weights."""
    if winograd.is_faster(x, layer.weight):
        return winograd.convolution(x, winograd.turned(layer.weight), layer.bias)
    return layer(x)


def last_as_product(layer, x):
    # row 2 q + a of the 4 x 4 weights is for row a of the cell of 2 x 2 pixels q cells further down; columns likewise
    weight = layer.weight.view(*layer.weight.shape[:2], 2, 2, 2, 2).permute(2, 4, 1, 3, 5, 0)    # q x r x C x a x b x D
    cells = F.linear(x.permute(0, 2, 3, 1), weight.flatten(0, 4)).unflatten(-1, (2, 2, -1))    # N x w x w x q x r x 4 C
    cells = sum(F.pad(cells[..., q, r, :], (0, 0, r, 1 - r, q, 1 - q)) for q in (0, 1) for r in (0, 1))
    x, margin = F.pixel_shuffle(cells.permute(0, 3, 1, 2), 2), layer.padding[0]
    return x[..., margin:x.shape[-2] - margin, margin:x.shape[-1] - margin] + layer.bias[:, None, None]


@traced_as(last_as_product)
def last(layer, x):
    """The transpose of stem, (N, D, w, w) -> (N, C, W, W)."""
    return layer(x)


# ---- norm -----------------------------------------------------------------------------------------------------------

def scale_and_shift(norm, x):
    """Group norm as a scale and a shift of each channel, so that backward needs two sums of each: one pass, and one
    for the gradient.
    """
    y = rows(x).to(torch.promote_types(x.dtype, torch.float32))               # N x w w x D
    variance, mean = torch.var_mean(y.unflatten(-1, (norm.num_groups, -1)), (1, 3), correction=0)
    size = norm.num_channels // norm.num_groups
    scale = (variance + norm.eps).rsqrt().repeat_interleave(size, 1) * norm.weight
    shift = norm.bias - mean.repeat_interleave(size, 1) * scale               # N x D
    return (y * scale[:, None] + shift[:, None]).to(x.dtype).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


@traced_as(scale_and_shift)
def group_norm(norm, x):
    """(N, D, w, w), channels last; a GPU's kernel would reorder them."""
    return norms.GroupNorm.forward(norm, x).contiguous(memory_format=torch.channels_last)


class GroupNorm(norms.GroupNorm):
    """norms.GroupNorm."""

    def forward(self, x):
        return group_norm(self, x)


# ---- max-pool and back ----------------------------------------------------------------------------------------------

def largest_of_two(x, bias, window):
    """GELU falls and then rises, so it is largest at the largest or at the smallest x: GELU is computed of two pixels
    only.
    """
    x, kind = x if bias is None else x + bias[:, None, None], x.dtype
    size, count = x.shape[-1], x.shape[-1] // window
    corner = torch.arange(count, dtype=torch.int16, device=x.device) * window
    corner = (corner[:, None] * size + corner).expand(*x.shape[:2], -1, -1)
    first, *others = ((x[..., row:count * window:window, column:count * window:window], corner + (row * size + column))
                      for row in range(window) for column in range(window))
    (high, index_high), (low, index_low) = first, first
    for pixel, index in others:
        index_high, high = torch.where(pixel > high, index, index_high), torch.maximum(pixel, high)
        index_low, low = torch.where(pixel < low, index, index_low), torch.minimum(pixel, low)
    below_high, below_low = (0.5 + 0.5 * torch.erf(value / 2 ** 0.5) for value in (high, low))    # normal distribution
    is_high = high * below_high >= low * below_low
    value, below, index = (torch.where(is_high, *pair) for pair in (
        (high, low), (below_high, below_low), (index_high, index_low)))
    slope = below + value * (-0.5 * value ** 2).exp() / (2 * math.pi) ** 0.5
    return (value * below).to(kind), slope.to(kind), index


@traced_as(largest_of_two)
def gelu_of_largest(x, bias, window):
    """The largest GELU(x + bias) of each window of (N, D, w, w), its derivative, and the pixel's index, int16.

    bias: None here, (D,) or None where it is compiled.
    """
    index = F.max_pool2d(F.gelu(x), window, return_indices=True)[1].short()
    taken = images(rows(x).gather(1, rows(index).long()), index.shape[-1])
    return F.gelu(taken), torch.ops.aten.gelu_backward(torch.ones_like(taken), taken), index


class GeluPool(torch.autograd.Function):
    """Max-pool of GELU(x + bias): (N, D, w, w) -> (N, D, w // window, w // window) and int16 indices of the same shape.

    Only where a pixel is the largest does a gradient come back to it, so nothing of the other pixels is kept for
    backward.
    """

    @staticmethod
    def forward(ctx, x, bias, window):
        y, slope, index = gelu_of_largest(x, bias, window)
        ctx.size, ctx.bias_type = x.shape[-1], None if bias is None else bias.dtype
        ctx.mark_non_differentiable(index)
        ctx.save_for_backward(index, slope)
        return y, index

    @staticmethod
    def backward(ctx, gradient, _):
        index, slope = ctx.saved_tensors
        gradient = gradient * slope
        of_bias = None if ctx.bias_type is None else gradient.sum((0, 2, 3), dtype=ctx.bias_type)
        return put(gradient, index, ctx.size), of_bias, None


def put_where_equal(x, index, size):
    count = x.shape[-1]
    window, covered = size // count, size - size % count                      # a row and a column may be in no window
    number = torch.arange(size * size, dtype=torch.int16, device=x.device).view(size, size)[:covered, :covered]
    x, index = (value.permute(0, 2, 3, 1)[:, :, None, :, None] for value in (x, index))    # N x w x 1 x w x 1 x D
    x = torch.where(index == number.reshape(count, window, count, window, 1), x, 0).flatten(3, 4).flatten(1, 2)
    return F.pad(x, (0, 0, 0, size - covered, 0, size - covered)).permute(0, 3, 1, 2)


@traced_as(put_where_equal)
def put(x, index, size):
    """max_unpool2d to size x size pixels: (N, D, w, w) -> (N, D, size, size)."""
    return images(x.new_zeros(len(x), size * size, x.shape[1]).scatter_(1, rows(index).long(), rows(x)), size)


def rows(x):
    """(N, D, w, w) -> (N, w w, D), no copy if channels are last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def images(x, size):
    """(N, size x size, D) -> (N, D, size, size), channels last."""
    return x.unflatten(1, (size, size)).permute(0, 3, 1, 2)


# ---- networks -------------------------------------------------------------------------------------------------------

class ResidualBlock(image.ResidualBlock):
    """image.ResidualBlock."""

    def forward(self, x):
        first, norm, gelu, second, last_norm = self.body
        return x + last_norm(convolution(second, gelu(norm(convolution(first, x)))))


class ImageEncoder(image.ImageEncoder):
    """image.ImageEncoder; its indices are int16."""

    def forward(self, x):
        (x, bias), indices = stem(self.stem, x), []
        for block in self.blocks:
            x, index = GeluPool.apply(x, bias, 2)
            indices.append(index)
            x, bias = block(x), None
        x, index = GeluPool.apply(x, bias, self.sizes[-1])                    # N x D x 1 x 1
        return x.flatten(1), [*indices, index]


class ImageDecoder(image.ImageDecoder):
    """image.ImageDecoder."""

    def forward(self, token, indices):
        x = self._unpool(token[:, :, None, None], indices[-1], self.sizes[-1])
        for block, index, size in zip(self.blocks, reversed(indices[:-1]), reversed(self.sizes[:-1])):
            x = self._unpool(F.gelu(transposed(block, x)), index, size)
        return last(self.last, x)

    def _unpool(self, x, index, size):
        return put(x, index, size) if self.bypass else super()._unpool(x, index, size)
