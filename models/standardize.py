"""What every model does first: bands on one scale."""
import torch
from torch import nn


class Standardize(nn.Module):
    """(x - mean) / std of each band, with the statistics of the training split; they are part of the checkpoint."""

    def __init__(self, bands):
        super().__init__()
        self.register_buffer("mean", torch.zeros(bands))
        self.register_buffer("std", torch.ones(bands))

    def forward(self, x):
        """x (..., C, H, W) of any number type. Returns the same shape in the statistics' floating type."""
        return (x.to(self.mean.dtype) - self.mean[:, None, None]) / self.std[:, None, None]


class Standardization(nn.ModuleDict):
    """A Standardize for each sensor (datasets.sensors.Sensor), by key."""

    def __init__(self, sensors):
        super().__init__({sensor.key: Standardize(len(sensor.bands)) for sensor in sensors})

    def set(self, statistics):
        """statistics: {key: {"mean": [C], "std": [C]}} of the training split, in the file's units (dB for radar)."""
        for key, module in self.items():
            if len(statistics[key]["mean"]) != len(module.mean):
                raise ValueError(f"{key}: statistics of {len(statistics[key]['mean'])} bands for {len(module.mean)}")
            module.mean.copy_(torch.tensor(statistics[key]["mean"]))
            module.std.copy_(torch.tensor(statistics[key]["std"]))
