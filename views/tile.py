"""What show.py shows of a tile, as numbers in the units of its files. Nothing here draws: picture.py does.

Dimensions: M modalities, P patches, T dates, C bands, D embedding, K classes, H x W pixels, W x W of them a patch.
"""
from dataclasses import dataclass, field
from typing import Optional

import numpy as np
import torch
import torch.nn.functional as F

from datasets.loading import collate
from losses.reconstruction import top_dates
from models.omnisat import DATE_SHARE, OmniSat, patchify


@dataclass
class View:
    """One tile under a model.

    sensors: {key: datasets.sensors.Sensor}. grid: rows and columns of patches. patch: the one that is looked at.
    values: {key: image (C, H, W) or series (T, C, H, W)}; days: {key: (T,)} of a series; present: {key: whether the
    tile has the modality}.
    attention (P, T) of a series, the mean of its heads; is_kept (P, T) bool: its dates with most attention, the ones
    that are reconstructed, share of them; curves (P, T, C): the mean of each patch's pixels.
    is_masked: (M, P) bool, K of equation 4, None without decoders. rebuilt: what decoders make of masked tokens, NaN
    elsewhere: an image (C, H, W), of a series as curves, at the dates that are kept.
    similarity (M, M, P): cosine of the patch's token of each modality with all tokens, NaN where there is none.
    f (P, D): f*, of all tokens.
    probabilities, truth: (K,) of classes, None without a classifier.
    """
    name: str
    sensors: dict
    grid: tuple
    patch: int
    values: dict
    days: dict
    present: dict
    attention: dict
    is_kept: dict
    share: float
    curves: dict
    is_masked: Optional[np.ndarray]
    similarity: np.ndarray
    f: np.ndarray
    rebuilt: dict = field(default_factory=dict)
    classes: tuple = ()
    probabilities: Optional[np.ndarray] = None
    truth: Optional[np.ndarray] = None


@torch.no_grad()
def look(model, item, seed=0, patch=None):
    """The View of a tile. model: OmniSat, in evaluation, on the CPU. item: of datasets.tiles.Tiles. seed: of the masks.

    patch: its number, row by row; None takes of those with most series masked the one nearest to the middle.
    """
    batch, keys = collate([item]), list(model.sensors)
    tokens, present, context = OmniSat.encode(model, batch)                   # of the plain form: in one part
    grid = model.grid(batch)
    masks = {} if model.decoders is None else model.draw_masks(batch, torch.Generator().manual_seed(seed))
    is_masked = masks["is_masked"][0].numpy() if masks else None
    if patch is None:
        series = [m for m, key in enumerate(keys) if model.sensors[key].kind == "series"] or [0]
        patch = default_patch(np.zeros((1, grid[0] * grid[1])) if is_masked is None else is_masked[series], grid)
    f = model.combine(tokens, ~present[:, :, None].expand(tokens.shape[:3]), grid)
    view = View(item["name"], model.sensors, grid, patch, values={key: batch[key][0].numpy() for key in keys},
                days={}, present=dict(zip(keys, present[0].tolist())), attention={}, is_kept={}, curves={},
                share=share_of(model), is_masked=is_masked,
                similarity=similarity(tokens[0], present[0], patch), f=f[0].numpy())
    for key, sensor in model.sensors.items():
        if sensor.kind == "series":
            padded = batch[f"{key}_padded"].expand(grid[0] * grid[1], -1)
            view.days[key], view.attention[key] = batch[f"{key}_dates"][0].numpy(), context[key][0][0].numpy()
            view.is_kept[key] = kept_dates(context[key][0][0], padded, share_of(model)).numpy()
            view.curves[key] = patchify(batch[key].float(), sensor.patch)[0].mean((3, 4)).numpy()
    if masks:
        f = model.combine(tokens, masks["is_masked"], grid)[0]                # of what is left
        view.rebuilt = {key: rebuilt(model, key, f, masks[f"{key}_targets"], batch, context[key]).numpy()
                        for key in keys}
    return view


def share_of(model):
    """Which share of the dates is reconstructed."""
    return 1 if model.ablation == "no_date_filtering" else DATE_SHARE


def default_patch(is_masked, grid):
    """The patch with most True of is_masked (M, P), of these the first that is nearest to the middle of the grid."""
    rows, columns = np.unravel_index(np.arange(grid[0] * grid[1]), grid)
    far = (rows - (grid[0] - 1) / 2) ** 2 + (columns - (grid[1] - 1) / 2) ** 2
    return int(np.lexsort((far, -is_masked.sum(0)))[0])


def similarity(tokens, present, patch):
    """Cosines of the patch's token of each modality with all tokens (M, P, D): (M, M, P), NaN where one is missing."""
    f = F.normalize(tokens, dim=-1)
    found = torch.einsum("md,npd->mnp", f[:, patch], f)
    return found.masked_fill(~(present[:, None] & present)[:, :, None], torch.nan).numpy()


def kept_dates(attention, padded, share):
    """Which dates of each patch the reconstruction looks at, (P, T) bool. attention (P, T), padded (P, T)."""
    index, is_used = top_dates(attention, padded, share)
    return torch.zeros_like(padded).scatter(1, index, is_used)


def rebuilt(model, key, f, target, batch, context):
    """View.rebuilt of one modality. f (P, D): of masked tokens. target (N,): the patches it is asked for, as
    OmniSat.draw_masks gives them for this one tile. context: of OmniSat.encode.
    """
    sensor, standardize, decoder = model.sensors[key], model.standardize[key], model.decoders[key]
    mean, std = standardize.mean[:, None, None], standardize.std[:, None, None]
    if sensor.kind == "image":
        patches = torch.full((len(f), len(mean), sensor.patch, sensor.patch), torch.nan)
        patches[target] = decoder(f[target], [index[0, target] for index in context]) * std + mean
        return together(patches, model.grid(batch))
    dates, padded = batch[f"{key}_dates"].expand(len(target), -1), batch[f"{key}_padded"].expand(len(target), -1)
    index, is_used = top_dates(context[0][0, target], padded, share_of(model))    # N x K dates
    values = decoder(f[target], dates.gather(1, index)).unflatten(2, (len(mean), sensor.patch, sensor.patch))
    curves = torch.full((len(f), dates.shape[1], len(mean)), torch.nan)
    n, k = is_used.nonzero(as_tuple=True)
    curves[target[n], index[n, k]] = (values * std + mean).mean((3, 4))[n, k]
    return curves


def together(patches, grid):
    """The inverse of models.omnisat.patchify: (P, C, W, W) -> (C, H, W)."""
    return patches.unflatten(0, grid).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)


@torch.no_grad()
def probabilities(model, item):
    """(K,) of a fine-tuned model."""
    return model(collate([item]))[0].sigmoid().numpy()


@torch.no_grad()
def features(model, item):
    """f* (P, D) of a tile, and its grid of patches."""
    batch = collate([item])
    return model.features(batch, "patch")[0].numpy(), model.grid(batch)
