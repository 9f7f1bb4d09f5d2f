"""Features made by hand, the yardstick of frozen ones: statistics of the values, without a network.

Dimensions: B tiles, T dates, C bands, H x W pixels, F features.
"""
import torch

from models.compared.inputs import season_medians
from models.compared.lightgbm import image_features


def series_features(x, dates, padded):
    """Of a series (B, T, C, H, W): of each season's median of each band mean and standard deviation over the tile, and
    how the tile's mean varies over the dates. Returns (B, 9 C), zeros for an empty one.
    """
    medians = season_medians(x, dates, padded)                                # B x 4 C x H x W
    there = (~padded)[:, :, None]                                             # B x T x 1
    mean, count = x.mean((3, 4)), there.sum(1).clamp(min=1)                   # B x T x C
    middle = (mean * there).sum(1) / count
    spread = (((mean - middle[:, None]).square() * there).sum(1) / count).sqrt()
    return torch.cat([medians.mean((2, 3)), medians.std((2, 3), correction=0), spread], 1)


def handmade(batch, sensors):
    """Features (B, F) of a batch, as models/omnisat.py has it: 11 a band of an image (models/compared/lightgbm.py), 9
    a band of a series; zeros for what a tile lacks.
    """
    found = []
    for key, sensor in sensors.items():
        x = batch[key].float()
        features = (image_features(x) if sensor.kind == "image" else
                    series_features(x, batch[f"{key}_dates"], batch[f"{key}_padded"]))
        missing = batch.get(f"{key}_missing")                                 # of images, where they may be
        found.append(features if missing is None else features.masked_fill(missing[:, None], 0))
    return torch.cat(found, 1)
