"""3 x 3 convolutions by Winograd's minimal filtering (Lavin and Gray 2016, arXiv:1509.09308), for the CPU.

Dimensions: N images, C and D channels, w pixels a side, t = w / 4 tiles a side.
A tile of 4 x 4 outputs takes 36 products for a pair of channels in place of 144: images and weights are transformed,
multiplied as 36 matrices, and transformed back. A GPU's library has this; what torch uses on a CPU does without. In
float32 the error is about seven times that of the plain form: for 256 channels 2e-6 of the result and of its
gradients, as root mean squares.
"""
import functools

import torch
import torch.nn.functional as F

POINTS = 0, 1, -1, 0.5, -2    # where the polynomials are evaluated, besides infinity; the error depends on them
AT_ONCE = 2 ** 22             # numbers of transformed images that are worked on at a time: they stay in the cache


def is_faster(x, weight):
    """Whether convolution can be used, and is worth its transforms: measured for the patches of a tile and more (N >=
    36).
    """
    return (x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
            and not torch.is_autocast_enabled("cpu") and min(weight.shape[:2]) >= 256
            and x.shape[-1] == x.shape[-2] >= 8 and x.shape[-1] % 4 == 0)


def turned(weight):
    """Weights (D, C, 3, 3) whose convolution is the transpose of that of weights (C, D, 3, 3)."""
    return weight.flip(2, 3).transpose(0, 1)


def convolution(x, weight, bias):
    """F.conv2d(x, weight, bias, padding=1). x (N, C, w, w), weight (D, C, 3, 3), bias (D,). Returns (N, D, w, w),
    channels last.
    """
    return Filters.apply(x, weight, bias)


class Filters(torch.autograd.Function):
    """convolution. Both gradients are such filters too: by x the same with turned weights, by the weights with the
    transforms transposed.
    """

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return filtered(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        by_x = by_weight = None
        with torch.autocast("cpu", enabled=False):                                # of whoever calls backward
            if ctx.needs_input_grad[0]:
                by_x = filtered(gradient, turned(weight), weight.new_zeros(weight.shape[1]))
            if ctx.needs_input_grad[1]:
                by_weight = weight_gradient(x, gradient)
        return by_x, by_weight, gradient.sum((0, 2, 3))


@functools.cache
def transforms(dtype):
    """Matrices of outputs (4, 6), of weights (6, 3) and of inputs (6, 6), for both_ways."""
    points = torch.tensor(POINTS, dtype=torch.float64)

    def values(terms):
        """Of the polynomials 1, x, x^2, ..., so many, at the points; at infinity the last alone counts."""
        return torch.cat([points[:, None] ** torch.arange(terms), torch.eye(terms, dtype=torch.float64)[-1:]])
    return [one.to(dtype) for one in (values(4).t(), values(3), torch.linalg.inv(values(6)).t())]


def both_ways(matrix, x):
    """A x A^T of squares x: the matrix (m, k) applied to rows and columns of (k, k, ...) or (k k, ...). Returns (m m,
    -1).
    """
    rows, columns = matrix.shape
    return (matrix @ (matrix @ x.reshape(columns, -1)).view(rows, columns, -1)).view(rows ** 2, -1)


def parts(x):
    """Slices of the images that are worked on at a time."""
    size = max(1, AT_ONCE // (36 * x.shape[1] * (x.shape[-1] // 4) ** 2))
    return [slice(at, at + size) for at in range(0, len(x), size)]


def transformed(x):
    """Images (N, C, w, w) as factors of the 36 products, (36, N t t, C)."""
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).unfold(1, 6, 4).unfold(2, 6, 4)      # N x t x t x C x 6 x 6
    return both_ways(transforms(x.dtype)[2], x.permute(4, 5, 0, 1, 2, 3)).view(36, -1, x.shape[3])


def tiles(x):
    """A view of the pixels of (N, w, w, C) by tiles: 4 x 4 x N x t x t x C."""
    return x.unflatten(2, (-1, 4)).unflatten(1, (-1, 4)).permute(2, 4, 0, 1, 3, 5)


def filtered(x, weight, bias):
    """The convolution, without gradients."""
    output, of_weight, _ = transforms(x.dtype)
    weight = both_ways(of_weight, weight.permute(2, 3, 1, 0)).view(36, *weight.shape[1::-1])    # 36 x C x D
    result = x.new_empty(len(x), *x.shape[2:], weight.shape[2])
    for part in parts(x):
        y, place = both_ways(output, transformed(x[part]) @ weight), tiles(result[part])
        torch.add(y.view(place.shape), bias, out=place)
    return result.permute(0, 3, 1, 2)


def weight_gradient(x, gradient):
    """Of the weights (D, C, 3, 3), given that of the result (N, D, w, w)."""
    output, of_weight, _ = transforms(x.dtype)
    total = x.new_zeros(36, x.shape[1], gradient.shape[1])
    for part in parts(x):
        y = both_ways(output.t(), tiles(gradient[part].permute(0, 2, 3, 1)))
        torch.baddbmm(total, transformed(x[part]).transpose(1, 2), y.view(36, -1, gradient.shape[1]), out=total)
    return both_ways(of_weight.t(), total).view(3, 3, *total.shape[1:]).permute(3, 2, 0, 1)
