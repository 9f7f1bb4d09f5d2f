"""What is wrong with one tile: findings, of three severities."""
import os
import re
from typing import NamedTuple

import numpy as np

from datasets.series import clean, missing, uncovered
from utils.errors import UserError

CLOUDY = 80                    # %, mean over the pixels
SEVERITIES = {
    "error": ("missing", "double", "broken", "same tile", "too few tiles", "not listed", "not written"),
    "repaired": ("NaN", "infinite", "nodata", "partly covered", "date without data", "same day", "dates unsorted",
                 "crop moved"),
    "note": ("empty series", "no image", "nothing left", "cloudy only", "cloud masks", "constant", "radar units",
             "no label", "scrambled", "order unclear", "number of tiles", "only a centre", "broken zip",
             "unsafe member", "damaged member")}


class Finding(NamedTuple):
    """A row of the CSV."""
    dataset: str
    split: str
    tile: str
    modality: str
    severity: str
    kind: str
    detail: str
    file: str


def finding(name, kind, text, split="", tile="", modality="", file=""):
    """A Finding; a file that the text begins with goes to its own column, the tile's name is there already. The
    arguments are its fields.
    """
    text = " ".join(str(text).split()).removeprefix(f"{tile}: ")
    first, _, rest = text.partition(": ")
    if not file and os.path.isfile(first):
        file, text = first, rest
    severity = next(severity for severity, kinds in SEVERITIES.items() if kind in kinds)
    return Finding(name, split, tile, modality, severity, kind, text, str(file))


def kind_of(text, default):
    """The kind of an error about a file, from the readers' words."""
    if re.search(r"\bno image of\b", text):
        return "no image"
    if re.search(r"\bno files? of\b", text):
        return "missing"
    return "double" if re.search(r"\b\d+ files of\b", text) else default


def check_tile(dataset, i):
    """What is wrong with tile i, [(modality, kind, text)], and its classes as numbers, None if they cannot be read."""
    found, label = [], None
    for sensor in (*dataset.sensors, None):                                       # None: the labels
        key = sensor.key if sensor else "labels"
        try:
            if sensor is None:
                label = np.flatnonzero(dataset.check_label(i)).tolist()
                found += [] if label else [(key, "no label", "none of the classes")]
            elif dataset.paths[key][i] is not None:                               # else it is the dataset's own finding
                found += [(key, *what) for what in check_data(dataset, i, sensor, *dataset.raw(i, [key])[key])]
        except Exception as error:    # whatever a damaged file makes a library raise
            text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            found.append((key, kind_of(text, "broken"), text))
    lacking = [key for key in dataset.modalities if dataset.lacks(i, key)]
    empty = [key for key, kind, _ in found if kind in ("empty series", "nothing left")]
    if lacking and empty and set(lacking + empty) == set(dataset.modalities):
        found.append((lacking[0], "missing", f"no file of it, and no date of {', '.join(empty)}: leave the tile out"))
    return found, label


def check_data(dataset, i, sensor, data, days):
    """Yield (kind, text). data: image (C, H, W), days None; or series (T, C, H, W) with days (T,), as the file has
    them.
    """
    for text in dataset.remarks(i, sensor.key):
        yield "crop moved", text
    if days is not None and not len(days):
        yield "empty series", "no dates"
        return
    # with their numbers for days, none is there twice: what is left are the dates with data
    whole, kept = (dataset.cleaned_image(i, sensor.key, data), None) if days is None else clean(
        data, np.arange(len(days)), nodata=sensor.nodata, lowest=sensor.lowest)
    if not len(whole):
        yield "nothing left", f"{len(days)} dates, none with data"
    elif whole.min() == whole.max():
        yield "constant", f"all values are {whole.min()}"
    if days is None:
        if (pixels := np.any(whole != data, axis=0)).any():
            yield "nodata", f"{pixels.sum()} pixels"
        return
    if not len(kept):
        return
    if len(kept) < len(days):
        yield "date without data", f"{len(days) - len(kept)} of {len(days)} dates"
    is_float = data.dtype.kind == "f"
    wrong = {"NaN": np.isnan(data) if is_float else None, "infinite": np.isinf(data) if is_float else None,
             "nodata": missing(data, sensor.nodata, sensor.lowest) & np.isfinite(data)}
    if data.shape[1] > 1 and (pixels := uncovered(data)[kept]).any():
        yield "partly covered", (f"{pixels.sum()} pixels on {pixels.any((1, 2)).sum()} of {len(days)} dates are 0 in "
                                 "all bands")
    for kind, is_wrong in wrong.items():
        if is_wrong is not None and (pixels := is_wrong[kept].any(1)).any():
            yield kind, f"{pixels.sum()} pixels on {pixels.any((1, 2)).sum()} of {len(days)} dates"
    if same := len(kept) - len(np.unique(days[kept])):
        yield "same day", f"{same} of {len(days)} dates"
    if (np.diff(days[kept]) < 0).any():
        yield "dates unsorted", f"{len(days)} dates"
    if "VV" in sensor.bands:
        radar = dataset.finish(sensor.key, whole)[:, sensor.bands.index("VV")]
        if radar.min() >= 0 or radar.max() < -39:                                 # power taken for dB, or dB for power
            yield "radar units", f"VV from {radar.min():.3g} to {radar.max():.3g} dB; was the file converted?"
    if sensor.key == "s2" and dataset.has_cloud_masks:
        yield from check_cloud(dataset, i, kept, len(days))


def check_cloud(dataset, i, kept, dates):
    """Yield (kind, text) about the cloud masks; only --max-cloud needs them."""
    try:
        cloud = dataset.cloud(i)
        if len(cloud) != dates:
            yield "cloud masks", f"{dates} dates but {len(cloud)} masks"
        elif (cloud[kept] > CLOUDY).all():
            yield "cloudy only", f"{len(kept)} dates, all with over {CLOUDY} % cloud or snow"
    except UserError as error:
        yield "cloud masks", str(error)
