"""Norms that leave padding out of their statistics, and one that leaves the type of its input alone.

Dimensions: B tiles, P pixels, T dates, C channels, G groups of channels.
"""
import torch
import torch.nn.functional as F
from torch import nn


class GroupNorm(nn.GroupNorm):
    """nn.GroupNorm in the type of its input, which autocast would widen."""

    def forward(self, x):
        with torch.autocast(x.device.type, enabled=False):
            return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


def mean_variance(x, padded, count, dims):
    """Mean and variance of x over dims, which stay with size 1, without what is padded; count: of the others. None
    gives 0.
    """
    mean = x.masked_fill(padded, 0).sum(dims, keepdim=True) / count.clamp(min=1)
    return mean, (x - mean).masked_fill(padded, 0).square().sum(dims, keepdim=True) / count.clamp(min=1)


class BatchNorm(nn.BatchNorm1d):
    """nn.BatchNorm1d of the last dimension that leaves padded rows out of its statistics; one row alone is no error.

    The running statistics do not move if fewer than two rows count. affine: False for a norm without weights.
    """

    def forward(self, x, padded=None):
        """x (..., C); padded, of a shape that broadcasts to (...): True for rows that do not count; None counts all.
        Returns (..., C).
        """
        with torch.autocast(x.device.type, enabled=False):
            y, mean, variance = x.to(self.running_mean.dtype), self.running_mean, self.running_var
            if self.training:
                padded = x.new_zeros((), dtype=torch.bool) if padded is None else padded
                mean, variance = self.batch_statistics(y, padded)
            y = (y - mean) * (variance + self.eps).rsqrt()
            return (y * self.weight + self.bias if self.affine else y).to(x.dtype)

    def batch_statistics(self, x, padded):
        """Mean and variance (C,) of the rows that count; moves the running statistics as nn.BatchNorm1d does."""
        padded = padded.expand(x.shape[:-1]).flatten()[:, None]
        count = (~padded).sum()
        mean, variance = torch.cat(mean_variance(x.flatten(0, -2), padded, count, 0))
        self.move(mean, variance, count)
        return mean, variance

    def move(self, mean, variance, count):
        """Move the running statistics by a pool's mean and variance (C,) of so many rows."""
        with torch.no_grad():
            unbiased = variance * count / (count - 1).clamp(min=1)
            self.num_batches_tracked += (count > 1)                           # one row says nothing of the variance
            for running, new in ((self.running_mean, mean), (self.running_var, unbiased)):
                running += self.momentum * (new - running) * (count > 1)


def series_group_norm(x, padded, groups, epsilon=1e-5):
    """Group norm of each pixel's series x (B, P, T, C) over the channels of a group and all dates but the padded (B,
    T).
    """
    with torch.autocast(x.device.type, enabled=False):
        y = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (groups, -1))    # B x P x T x G x C/G
        count = (~padded).sum(1)[:, None, None, None, None] * y.shape[-1]
        mean, variance = mean_variance(y, padded[:, None, :, None, None], count, (2, 4))
        return ((y - mean) * (variance + epsilon).rsqrt()).flatten(-2).to(x.dtype)
