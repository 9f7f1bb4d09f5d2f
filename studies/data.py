"""What the studies learn from: two small sets of tiles, in memory.

forest: simulated TreeSatAI-TS (datasets/simulated/forest.py), written and read in the raw format like the release,
then made small: the middle 3 x 3 patches, 16 dates of each series, the image at 0.5 m in place of 0.2. 996 tiles to
train on, 180 for validation, 468 for test. crops: real pixels of nine Canadian crops, seen each month of 17 by
Sentinel-1 and Sentinel-2 (ground truth of AAFC, Canada, as it lies in the tests of WorldCereal's Presto; its file is
not part of this repository). Split by place: no cell of the H3 grid is in two splits.

Dimensions: N tiles, K classes, T dates, C bands.
"""
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.model_selection import StratifiedGroupKFold
from tqdm import tqdm

from datasets import open_dataset
from datasets.loading import collate
from datasets.sensors import SENSORS, Sensor
from datasets.series import day_numbers
from datasets.simulated.demo import write_treesatai
from datasets.splits import stratified_subset
from utils.errors import UserError
from utils.files import written_whole

# of forest: patches a side, dates, pixels of an image patch, made of 2.5 each
SIDE, DATES, PATCH, SMALLER = 3, 16, 20, 2.5
CROPS = (9120, 1120, 4100, 1200, 0, 1110, 7920, 1520, 5100)    # codes with 79 pixels and more
LEAST = 5    # pixels of each crop in each split
S2 = Sensor("s2", "series", ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B11", "B12"), 10, 1, 520, "2017-01-01")
S1 = Sensor("s1", "series", ("VV", "VH"), 10, 1, 520, "2017-01-01")


class Tiles(NamedTuple):
    """sensors: of datasets.sensors. splits: {"train", "val", "test": one batch of all its tiles, as models/omnisat.py
    has it}.
    """
    sensors: list
    splits: dict

    def statistics(self):
        """{key: {"mean", "std": [C]}} of the training tiles, as models.standardize takes it."""
        found = {}
        for sensor in self.sensors:
            x = self.splits["train"][sensor.key].double()
            if sensor.kind == "series":
                x = x[~self.splits["train"][f"{sensor.key}_padded"]]          # dates that are there x C x H x W
            found[sensor.key] = {"mean": x.mean((0, 2, 3)).tolist(),
                                 "std": x.transpose(0, 1).flatten(1).std(1).tolist()}
        return found

    def labelled(self, percent, seed):
        """Rows of a stratified share of the training tiles."""
        labels = self.splits["train"]["label"].numpy() > 0
        if percent == 100:
            return torch.arange(len(labels))
        return torch.from_numpy(stratified_subset(labels, percent / 100, seed))


def rows_of(batch, rows):
    """The tiles of a batch at the rows, a tensor or a slice."""
    return {key: value[rows] for key, value in batch.items()}


def forest(folder, train=1176, test=468):
    """Tiles of forest; the raw files are written to a folder and what is made of them is kept there. train, test:
    tiles in its lists.
    """
    folder = Path(folder)
    kept = folder / f"small-{SIDE}-{DATES}-{PATCH}.pt"
    sensors = [SENSORS["treesatai-ts"][key] for key in ("vhr", "s2", "s1")]
    if not kept.exists():
        root, splits = write_treesatai(folder / "treesatai", train, test), {}
        for split in ("train", "val", "test"):
            tiles = open_dataset("treesatai-ts", root, split, [sensor.key for sensor in sensors], max_dates=DATES)
            bar = tqdm(range(len(tiles)), desc=f"forest, {split}", unit="tile")
            splits[split] = collate([smaller(tiles[i]) for i in bar])
            del splits[split]["name"]
        used = torch.stack([batch["label"].sum(0) for batch in splits.values()]).amin(0) > 0  # eight genera grow there
        for batch in splits.values():
            batch["label"] = batch["label"][:, used]
        with written_whole(kept, "wb") as file:
            torch.save(splits, file)
    image, *series = sensors
    image = Sensor("vhr", "image", image.bands, image.resolution * SMALLER, PATCH)
    return Tiles([image, *series], torch.load(kept, weights_only=True))


def smaller(item):
    """The middle SIDE x SIDE patches of a tile, its image averaged over SMALLER x SMALLER pixels."""
    image = F.interpolate(item["vhr"][None].float(), scale_factor=1 / SMALLER, mode="area")[0]
    for key, x, patch in (("vhr", image, PATCH), ("s2", item["s2"], 1), ("s1", item["s1"], 1)):
        start = (x.shape[-1] // patch - SIDE) // 2 * patch
        item[key] = x[..., start:start + SIDE * patch, start:start + SIDE * patch].float()
    return item


def crops(file):
    """Tiles of crops, one patch each. file: canada_cube.npz. Errors: UserError if it is not there."""
    cube, rows = read_cube(file)
    cells, cell = np.unique(cube["h3_l3"][rows], return_inverse=True)
    labels, split, seed = cube["croptype"][rows][:, None] == CROPS, np.zeros(len(rows)), 0
    # the first shuffle in which all classes
    while min(labels[split == part].sum(0).min() for part in range(3)) < LEAST:
        part = np.random.default_rng(seed).permutation(len(cells))[cell] / len(cells)             # are in each split
        split, seed = np.digitize(part, (0.65, 0.8)), seed + 1
    return crop_tiles(cube, rows, split, file)


def crops_fold(file, fold):
    """Tiles of crops in five folds of the H3 cells, each with about as many pixels of each crop: one for test, the
    next for validation.
    """
    cube, rows = read_cube(file)
    crop, number = cube["croptype"][rows], np.zeros(len(rows), int)
    for k, (_, test) in enumerate(StratifiedGroupKFold(5).split(rows, crop, cube["h3_l3"][rows])):
        number[test] = (k - fold) % 5
    return crop_tiles(cube, rows, np.array([2, 1, 0, 0, 0])[number], file)


def read_cube(file):
    """The Canadian pixels, and which rows of them have a crop with enough pixels. Errors: UserError if the file is not
    there.
    """
    if not Path(file).exists():
        raise UserError(f"{file}: no such file; it holds the Canadian pixels, which are not part of this repository")
    cube = np.load(file)
    return cube, np.flatnonzero(np.isin(cube["croptype"], CROPS))


def crop_tiles(cube, rows, split, file):
    """Tiles of the cube's rows. split (N,): 0 for training, 1 for validation, 2 for test."""
    batch = {"label": torch.from_numpy(cube["croptype"][rows][:, None] == CROPS).float()}
    for sensor, x in ((S2, cube["s2"][rows].astype(np.float32)), (S1, cube["s1_db"][rows])):
        missing = ~np.isfinite(x).all(2) | (x == 65535).any(2)    # a date that lacks a band goes
        days = torch.from_numpy(day_numbers(cube["dates"], sensor, file))
        batch |= {sensor.key: torch.from_numpy(np.where(missing[..., None], 0, x))[..., None, None],
                  f"{sensor.key}_padded": torch.from_numpy(missing),
                  f"{sensor.key}_dates": days.expand(len(rows), -1).clone()}
    return Tiles([S2, S1], {name: rows_of(batch, torch.from_numpy(np.flatnonzero(split == number)))
                            for number, name in enumerate(("train", "val", "test"))})
