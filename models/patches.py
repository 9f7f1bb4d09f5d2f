"""Tiles to patches (section 3.4), which sensors a tile has, and which tokens are masked (equation 4).

Dimensions: B tiles, M modalities, P patches, T dates, C bands.
"""
import torch


def patchify(x, patch):
    """Cut into patches of patch x patch pixels, row by row (section 3.4, tokenization).

    x (B, C, H, W) -> (B, P, C, patch, patch), or a series (B, T, C, H, W) -> (B, P, T, C, patch, patch).
    """
    x = x.unflatten(-2, (-1, patch)).unflatten(-1, (-1, patch))               # ... C x rows x patch x columns x patch
    return x.movedim((-4, -2), (1, 2)).flatten(1, 2)


def shared_grid(sizes):
    """Rows and columns of patches that all modalities share. sizes: {key: (height, width, patch side)}, in
    pixels.

    Errors: ValueError if there is no modality, if one cannot be cut into whole patches, or if they do not share one
    grid.
    """
    if not sizes:
        raise ValueError("the batch has none of the model's sensors")
    grids = {}
    for key, (height, width, patch) in sizes.items():
        if height % patch or width % patch:
            raise ValueError(f"{key}: {height} x {width} pixels cannot be cut into patches of {patch}")
        grids[key] = height // patch, width // patch
    if len(set(grids.values())) > 1:
        raise ValueError("the modalities must share one grid of patches, here it is "
                         + ", ".join(f"{rows} x {columns} for {key}" for key, (rows, columns) in grids.items()))
    return grids[key]


def which_are_there(batch, sensors):
    """Which sensors each tile has, (B, M) bool. False where the batch has no such sensor, the series is empty, or the
    image is flagged as missing.
    """
    x = next(batch[sensor.key] for sensor in sensors if sensor.key in batch)
    none = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    missing = [~none if sensor.key not in batch else batch[f"{sensor.key}_padded"].all(1) if sensor.kind == "series"
               else batch.get(f"{sensor.key}_missing", none) for sensor in sensors]
    return ~torch.stack(missing, 1)


def random_mask(present, patches, share, generator=None):
    """K of equation 4: at random, `share` of the tokens that a tile has, rounded, but at least one stays.

    present (B, M) bool. Returns (B, M, P) bool, True where the token is masked. Tokens of a missing modality are masked
    too; they are not part of K.
    """
    missing = ~present[:, :, None].expand(-1, -1, patches).flatten(1)         # B x MP
    noise = torch.rand(missing.shape, generator=generator, device=present.device).masked_fill(missing, 2)
    rank = noise.argsort(1).argsort(1)                                        # of its number; missing tokens last
    there = (~missing).sum(1, keepdim=True)
    wanted = torch.minimum((there * share).round(), there - 1)                # of two tokens one stays
    return ((rank < wanted) | missing).view(len(present), -1, patches)
