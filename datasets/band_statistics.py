"""Mean and standard deviation of each band over the training split, computed once and kept in datasets/stats/."""
import json
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from datasets.files import read_text
from datasets.loading import Loader
from datasets.splits import fingerprint
from utils.errors import UserError
from utils.files import written_whole

FOLDER = Path(__file__).parent / "stats"
RULES = 2    # of what is missing, and of the types that are read: statistics made by others are not used


def statistics_path(dataset):
    """The file of a dataset's statistics."""
    bands = "-all-bands" if dataset.choices.all_bands else ""
    return FOLDER / f"{dataset.release}-{dataset.name}{bands}-{dataset.data_hash[:8]}.json"


def seal(entry):
    """Hash of the statistics of one modality."""
    return fingerprint([json.dumps({name: value for name, value in entry.items() if name != "sha256"}, sort_keys=True)])


def read_statistics(path):
    """{key: statistics} of a file, those that are as they were written. Errors: UserError if it cannot be read at all.
    """
    try:
        known = json.loads(read_text(path, "delete it: it is computed again") if path.exists() else "{}")
        return {key: entry for key, entry in known.items() if entry["sha256"] == seal(entry)}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


class _Sums(torch.utils.data.Dataset):
    """Number, sum and sum of squares of each band of one tile, all dates, (3, C) float64 for each modality."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, i):
        sums = {}
        for key, (data, _) in self.dataset.read(i).items():
            x = np.asarray(data, dtype=np.float64)                                # (T x) C x H x W
            if self.dataset.lacks(i, key):
                x = x[:, :0]    # an image that is not there has no pixels
            axes = tuple(a for a in range(x.ndim) if a != x.ndim - 3)
            count = np.full(x.shape[-3], x.size // x.shape[-3])
            sums[key] = np.stack([count, x.sum(axes), (x ** 2).sum(axes)])
        return sums


def training_statistics(dataset, workers=0, fresh=False):
    """{key: {"mean": [C], "std": [C]}} of a dataset's training split, in the units of its batches.

    Read from the file of this very list of tiles and sensors if there is one and it was not changed, else (or if
    fresh) computed over every tile and written. Call it on one process first. Errors: UserError for a modality without
    data or a constant band.
    """
    path = statistics_path(dataset)
    known = {} if fresh else read_statistics(path)
    about = {sensor.key: {"bands": list(sensor.bands), "nodata": sensor.nodata, "lowest": sensor.lowest, "rules": RULES}
             for sensor in dataset.sensors}
    if all(key in known and known[key]["sensor"] == about[key] for key in dataset.modalities):
        return {key: known[key] for key in dataset.modalities}
    loader = Loader(_Sums(dataset), batch_size=None, num_workers=workers)
    total = None
    for sums in tqdm(loader, desc=f"statistics of {dataset.name}", unit="tile"):
        total = sums if total is None else {key: total[key] + sums[key] for key in sums}
    for key, value in total.items():
        count, first, second = value.numpy()
        mean = first / count
        std = (second / count - mean ** 2).clip(0) ** 0.5
        if not (np.isfinite(mean).all() and (std > 0).all()):
            raise UserError(f"{dataset.root}: band without data or without variation in {key} of {dataset.name}: "
                            f"mean {mean.tolist()}, std {std.tolist()}")
        tiles = sum(not dataset.lacks(i, key) for i in range(len(dataset)))
        known[key] = {"mean": mean.tolist(), "std": std.tolist(), "tiles": tiles, "sensor": about[key]}
        known[key]["sha256"] = seal(known[key])
    with written_whole(path) as file:
        file.write(json.dumps(known, indent=1))
    return {key: known[key] for key in dataset.modalities}
