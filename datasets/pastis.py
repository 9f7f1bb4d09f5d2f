"""PASTIS-HD, read as it is distributed (Sainte Fare Garnot and Landrieu 2021; Sainte Fare Garnot et al. 2022; Astruc
et al. 2024).

    metadata.geojson                                     folds and dates; it marks the dataset's folder
    DATA_S2/S2_<id>.npy, DATA_S1A/S1A_<id>.npy, DATA_S1D/S1D_<id>.npy     series, 128 x 128 pixels of 10 m
    DATA_SPOT/PASTIS_SPOT6_RVB_1M00_2019/SPOT6_RVB_1M00_2019_<id>.tif    image, 1280 x 1280 pixels of 1 m
    ANNOTATIONS/TARGET_<id>.npy                          crop of each pixel, in channel 0
"""
import json
import math
import os
from pathlib import Path

import numpy as np

from datasets.files import read_json, read_npy, why
from datasets.tiles import Tiles, demo_side
from utils.errors import UserError

# pixel values 1..18; 0 is background and 19 void (parcels mostly outside the tile), both no label
CLASSES = ("Meadow", "Soft winter wheat", "Corn", "Winter barley", "Winter rapeseed", "Spring barley", "Sunflower",
           "Grapevine", "Beet", "Winter triticale", "Winter durum wheat", "Fruits, vegetables, flowers", "Potatoes",
           "Leguminous fodder", "Soybeans", "Orchard", "Mixed cereal", "Sorghum")
VOID = len(CLASSES) + 1
FOLDS = {"train": (1, 2, 3), "val": (4,), "test": (5,)}
SIDE, PATCH = 128, 4           # pixels of the series; 40 m patches


def whole_number(value, name):
    """1 of 1, 1.0, "1" or "1.0": tools that save the file again write each. Errors: ValueError naming the property."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (ValueError, TypeError):
        number = math.nan
    if not 0 <= number < 2 ** 53 or number != int(number):
        raise ValueError(f"{name} is not a whole number but {repr(value)[:40]}")
    return int(number)


def read_metadata(path):
    """{tile: {"fold": 1..5, "dates": {"S2": [YYYYMMDD], "S1A": ..., "S1D": ...}}}, tiles in the order of their numbers.

    The dates of a sensor are a dict {"0": date, "1": date, ...} or the same as JSON text, depending on what wrote the
    file; its keys are put in order as numbers. Errors: UserError naming the file and the tile.
    """
    tiles, tile, content = {}, "first feature", read_json(path, "the metadata of PASTIS")
    if not isinstance(content, dict) or not content.get("features"):
        raise UserError(f"{path}: not the metadata of PASTIS (no features); download it again")
    try:
        for properties in (feature["properties"] for feature in content["features"]):
            tile, dates = str(properties["ID_PATCH"]), {}
            tile = str(whole_number(properties["ID_PATCH"], "ID_PATCH"))
            fold = whole_number(properties["Fold"], "Fold")
            for name, value in properties.items():
                if name.startswith("dates-"):
                    value = json.loads(value) if isinstance(value, str) else value
                    dates[name[len("dates-"):]] = [value[k] for k in sorted(value, key=int)]
            if tile in tiles or fold not in range(1, 6):
                raise ValueError(f"fold {fold}, expected 1 to 5" if tile not in tiles else "it is there twice")
            tiles[tile] = {"fold": fold, "dates": dates}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: tile {tile}: {type(error).__name__} {why(error)}; download it again") from error
    return {tile: tiles[tile] for tile in sorted(tiles, key=int)}


def read_target(path):
    """The crop of each pixel, (H, W) int64: channel 0, whatever the number of channels and the type (one or two bytes).
    """
    target = read_npy(path)
    if target.ndim != 3 or not target.size or target.dtype.kind not in "iu":
        raise UserError(f"{path}: shape {target.shape} of type {target.dtype}, expected 3 x {SIDE} x {SIDE} whole "
                        "numbers; download it again")
    target = np.array(target[0], dtype=np.int64)
    if not 0 <= target.min() <= target.max() <= VOID:
        raise UserError(f"{path}: values from {target.min()} to {target.max()}, expected 0 to {VOID}; download it "
                        "again")
    return target


class Pastis(Tiles):
    """PASTIS-HD; see datasets.tiles.Tiles. Tiles are named by their number, parts by number, row and column."""
    classes, has_label_files = CLASSES, True

    def find(self):
        found = [folder for folder, _, names in self._folders() if "metadata.geojson" in names]
        if len(found) != 1:
            raise UserError(f"{self.root}: {' and '.join(found) or 'no folder'} at the root or up to two folders below "
                            "has a metadata.geojson, expected one; is this the folder of PASTIS-HD?")
        self.folder_of_files = found[0]
        self.metadata = read_metadata(os.path.join(found[0], "metadata.geojson"))
        marker = os.path.join(found[0], "DEMO.json")
        marker = marker if os.path.exists(marker) else None
        side = demo_side(marker, SIDE) // PATCH
        if side % self.choices.parts:
            raise UserError(f"--parts {self.choices.parts}: a tile of {side} x {side} patches cannot be cut so; 2 and "
                            "4 will do")
        self.grid = side, side
        return marker

    def _folders(self):
        """Folders at most two below the root (zips are unpacked into one of their name), not those full of tiles."""
        for folder, below, names in os.walk(self.root, followlinks=True):
            is_deep = len(Path(folder).relative_to(self.root).parts) == 2
            below[:] = [] if is_deep else [f for f in below if "ANNOTATIONS" not in f and not f.startswith("DATA_")]
            yield folder, below, names

    def base(self):
        return self.folder_of_files

    def listed(self, split):
        names = [tile for tile, entry in self.metadata.items() if entry["fold"] in FOLDS[split]]
        return names, self.labels_of(names)

    def everything(self):
        """Those of the metadata, which have the dates."""
        return list(self.metadata), np.zeros((len(self.metadata), len(self.classes)), bool)

    def target(self, i):
        return os.path.join(self.base(), "ANNOTATIONS", f"TARGET_{self.tile(i)}.npy")

    def present(self, i):
        """The crops of tile or part i, (18,) bool: one pixel is enough."""
        path = self.target(i)
        if not os.path.exists(path):
            raise UserError(f"{self.tile(i)}: no file of the labels, {path}")
        target = read_target(path)
        if target.shape != (self.grid[0] * PATCH, self.grid[1] * PATCH):
            raise UserError(f"{path}: shape {target.shape}, expected {self.grid[0] * PATCH} x {self.grid[1] * PATCH}")
        if self.is_part(i):
            target = target[self.window(i, target.shape[0], 0), self.window(i, target.shape[1], 1)]
        return np.isin(np.arange(1, VOID), target)

    def sources(self, i):
        return super().sources(i) + [self.target(i), os.path.join(self.base(), "metadata.geojson")]

    # ---- parts

    def cut(self, names):
        cells = [f"{row}-{column}" for row in range(self.choices.parts) for column in range(self.choices.parts)]
        names = [f"{tile}-{cell}" for tile in names for cell in cells]
        return names, self.labels_of(names)

    def is_part(self, i):
        return "-" in self.names[i]

    def tile(self, i):
        return self.names[i].split("-")[0]

    def window(self, i, size, axis):
        """The rows (axis 0) or columns (axis 1) of part i, of `size` pixels in all."""
        step, at = size // self.choices.parts, int(self.names[i].split("-")[1 + axis])
        return slice(at * step, (at + 1) * step)

    def days(self, i, sensor, path):
        """From the metadata's column of the file's prefix: S2, S1A or S1D."""
        column = Path(sensor.files).name.split("_")[0]
        source, dates = os.path.join(self.base(), "metadata.geojson"), self.metadata[self.tile(i)]["dates"].get(column)
        if dates is None:
            raise UserError(f"{source}: no dates-{column} for tile {self.tile(i)}, needed for {path}; download it "
                            "again")
        return dates, f"{source}: tile {self.tile(i)}"
