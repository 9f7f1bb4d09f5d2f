"""TreeSatAI (single date) and TreeSatAI-TS, read as they are distributed (Ahlswede et al. 2023; Astruc et al. 2024).

Files are found by name anywhere under the root, so any of these layouts will do:
    aerial/<tile>.tif, aerial/60m/<tile>.tif, aerial_60m_<species>/<tile>.tif     image, NIR G B R, uint8, 304 x 304
    sentinel-ts/<stem>_<year>.h5, sentinel/<stem>.h5                              series of S2 and S1, 6 x 6 pixels
    s1/60m/<tile>.tif, s2/60m/<tile>.tif, also below sentinel/                    single dates, 6 x 6 pixels
    train_filenames.lst, test_filenames.lst, val_filenames.lst (where released)   at the root or in split/
    TreeSatBA_v9_60m_multi_labels.json                                            at the root or in labels/
where <tile>.tif is the tile's name in the lists and <stem> the same without its last ".tif" (names hold other dots).
"""
import os
import re
from pathlib import Path

import numpy as np

from datasets import sentinel1
from datasets.files import read_json, read_text, read_tif, why
from datasets.splits import check_apart, drawn_val
from datasets.tiles import Tiles, demo_side
from datasets.treesatai_h5 import GRID, SERIES, read_cloud, read_h5
from utils.errors import UserError
from utils.files import walk

CLASSES = ("Abies", "Acer", "Alnus", "Betula", "Cleared", "Fagus", "Fraxinus", "Larix", "Picea", "Pinus", "Populus",
           "Prunus", "Pseudotsuga", "Quercus", "Tilia")
LABELS_FILE = "TreeSatBA_v9_60m_multi_labels.json"
AREA = 0.07                    # a class counts if an entry's area is strictly larger
PATCH = 50                     # pixels of the image in one of the series, along a side
FLOOR = 1e-4                   # linear power under this is -40 dB: below a GRD product's noise
SINGLE_DATE = 120              # the single-date release has no dates; not in the paper: the official code's day

# bands in the single-date file, in its order; nodata
SINGLE = {"s2": (("B02", "B03", "B04", "B08", "B05", "B06", "B07", "B8A", "B11", "B12", "B01", "B09"), 0),
          "s1": (("VV", "VH", "VV/VH"), -9999)}


# ---- files ----------------------------------------------------------------------------------------------------------

def find_files(root):
    """Walk the root once. Returns {kind: {tile stem: [paths]}} for kind vhr, ts, s1, s2, and {file name: [paths]}."""
    tiles, others = {"vhr": {}, "ts": {}, "s1": {}, "s2": {}}, {}
    for folder, folders, names in walk(root):
        folders[:] = [f for f in folders if f != "200m" and not f.startswith(".")]
        parts = [part.lower() for part in Path(folder).relative_to(root).parts]
        is_aerial = any(part.startswith("aerial") for part in parts)
        kind = next((k for k in ("s1", "s2") if k in parts), "vhr" if is_aerial else None)
        for name in names:
            path = os.path.join(folder, name)
            if name.endswith(".tif") and kind:
                tiles[kind].setdefault(name[:-4], []).append(path)
            elif name.endswith(".h5"):
                tiles["ts"].setdefault(re.sub(r"_\d{4}$", "", name[:-3]), []).append(path)
            elif name.endswith((".lst", ".json", ".zip")):
                others.setdefault(name, []).append(path)
    return tiles, others


def read_list(root, others, split):
    """Tile names of one list, or None if the release has none. CRLF and blank lines are allowed."""
    name = f"{split}_filenames.lst"
    found = {tuple(read_text(path).split()) for path in others.get(name, [])}
    if len(found) > 1:
        raise UserError(f"{' and '.join(others[name])} differ: keep one")
    if not found:
        if split == "val":
            return None
        zips = sorted(path for paths in others.values() for path in paths if path.endswith(".zip"))
        raise UserError(f"{root}: no {name} found" + (f"; unpack {', '.join(zips)} first" if zips else
                        ", at the root or below; is this the folder of TreeSatAI?"))
    names = list(found.pop())
    for tile in names:
        if not re.fullmatch(r"[\w.-]+\.tif", tile):
            raise UserError(f"{others[name][0]}: {tile[:99]!r} is no tile name (they end in .tif); download it again")
    if len(set(names)) < max(1, len(names)):
        raise UserError(f"{others[name][0]}: {len(names)} tiles, {len(set(names))} of them different; download it "
                        "again")
    return names


def read_labels(path):
    """Labels of all tiles by the area rule: an entry [genus, area] counts if area > 0.07, each entry on its own.

    Returns {tile name: (15,) bool}; a tile can be left without any. Errors: UserError naming the file or the tile.
    """
    what = "the label file of TreeSatAI"
    entries, labels = read_json(path, what), {}
    try:
        for tile, areas in entries.items():
            labels[tile] = np.zeros(len(CLASSES), bool)
            for genus, area in areas:
                if not area >= 0:                                                 # NaN too
                    raise ValueError(f"area {area} in {tile}")
                if area > AREA:
                    labels[tile][CLASSES.index(genus)] = True
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not {what} ({why(error)}); download it again") from error
    return labels


# ---- one tile -------------------------------------------------------------------------------------------------------

def read_vhr(path, grid=GRID):
    """The centre 300 x 300 pixels (60 m, the Sentinel grid) of an aerial image: (4, 300, 300) uint8, NIR G B R."""
    image, size = read_tif(path, 4), grid * PATCH
    height, width = image.shape[1:]
    if image.dtype != np.uint8 or height < size or width < size:
        raise UserError(f"{path}: shape {image.shape} of type {image.dtype}, expected at least {size} x {size} pixels "
                        "of uint8")
    top, left = (height - size) // 2, (width - size) // 2
    return image[:, top:top + size, left:left + size]


def read_single(path, key, bands):
    """One Sentinel date of the single-date release as a series: data (1, C, 6, 6) float32, NaN where missing, day (1,).

    S2 in digital numbers, S1 in dB. Values beyond 60 dB are no backscatter: missing.
    """
    names, nodata = SINGLE[key]
    image = read_tif(path, len(names))
    if image.shape[1:] != (GRID, GRID) or image.dtype.kind not in "iuf":
        raise UserError(f"{path}: shape {image.shape} of type {image.dtype}, expected {GRID} x {GRID} pixels of "
                        f"{len(names)} bands")
    with np.errstate(over="ignore", invalid="ignore"):
        image = image.astype(np.float32)
    image[(image == nodata) | ((np.abs(image) > 60) if key == "s1" else False)] = np.nan
    return image[None, [names.index(band) for band in bands]], np.array([SINGLE_DATE])


def decibel(power):
    """10 log10 of linear power, not under the floor of -40 dB."""
    return 10 * np.log10(np.maximum(power, FLOOR))


# ---- the dataset ----------------------------------------------------------------------------------------------------

class TreeSatAI(Tiles):
    """TreeSatAI-TS (name "treesatai-ts") or the single-date TreeSatAI (name "treesatai"); see datasets.tiles.Tiles."""
    classes, folder, grid = CLASSES, "treesatai", (GRID, GRID)
    drops_unlabelled = True    # 7 tiles of train

    def find(self):
        self.index, self.others = find_files(self.root)
        self.is_scrambled = {}    # {(tile, key): what its numbers say}, as they are read
        self.has_cloud_masks = self.name == "treesatai-ts"
        if LABELS_FILE not in self.others and self.split != "all":
            raise UserError(f"{self.root}: no {LABELS_FILE} found, at the root or below")
        if len(self.others.get(LABELS_FILE, ())) > 1:
            raise UserError(f"{len(self.others[LABELS_FILE])} label files, {' and '.join(self.others[LABELS_FILE])}: "
                            "keep one")
        marker = self.others.get("DEMO.json", [None])[0]
        self.grid = (demo_side(marker, GRID),) * 2
        if self.repaired and self.grid != (GRID, GRID):
            raise UserError(f"--s1 repaired: tiles of {self.root} have {self.grid[0]} x {self.grid[1]} pixels; "
                            f"scrambled files have {GRID} x {GRID}; leave the option out")
        return marker

    def listed(self, split):
        """The names of the split and their labels; draws the validation tiles from train if the release has no list."""
        labels = read_labels(self.others[LABELS_FILE][0])
        paths = {f"{part}_filenames.lst": part for part in ("train", "val", "test")}
        check_apart({self.others[path][0]: read_list(self.root, self.others, part)
                     for path, part in paths.items() if path in self.others})

        def read(name):
            names = read_list(self.root, self.others, name)
            for tile in names or ():
                if tile not in labels:
                    text = (f"in the {name} list but not in {self.others[LABELS_FILE][0]}; the list is "
                            f"{self.others[f'{name}_filenames.lst'][0]}, download both again")
                    if self.findings is None:
                        raise UserError(f"{tile}: {text}")
                    self.findings.append((tile, "labels", text))
            return names and [tile for tile in names if tile in labels]

        def matrix(names):
            return np.array([labels[tile] for tile in names]).reshape(-1, len(CLASSES))
        if split == "test":
            names = read("test")
        else:
            names, val = read("train"), read("val")
            if val is None:
                val = drawn_val(self.release, names, matrix(names), self.origin)
            held_out = set(val)
            names = val if split == "val" else [tile for tile in names if tile not in held_out]
        return names, matrix(names)

    def tile(self, i):
        return self.names[i][:-len(".tif")]

    def files_of(self, sensor):
        """{tile stem: [paths]} of a sensor, and whether these are files of series."""
        is_h5 = self.name == "treesatai-ts" and sensor.key in SERIES
        return self.index["ts" if is_h5 else sensor.key], is_h5

    def there(self, sensor):
        return {f"{stem}.tif" for stem in (super().there(sensor) if sensor.files else self.files_of(sensor)[0])}

    def own_paths(self, sensor):
        found, is_h5 = self.files_of(sensor)
        return self.one_each(sensor.key, [found.get(self.tile(i), []) for i in range(len(self.names))],
                             "sentinel-ts/<stem>_<year>.h5" if is_h5 else f"tif of {sensor.key}")

    def read_own(self, i, sensors):
        """Series of TreeSatAI-TS lie in one file, which is opened once."""
        series = [sensor for sensor in sensors if sensor.key != "vhr"]
        tile = {"vhr": (read_vhr(self.paths["vhr"][i], self.grid[0]), None)} if len(series) < len(sensors) else {}
        if self.name == "treesatai":
            return tile | {sensor.key: read_single(self.paths[sensor.key][i], sensor.key, sensor.bands)
                           for sensor in series}
        tile |= read_h5(self.paths[series[0].key][i], [sensor.key for sensor in series], self.grid[0]) if series else {}
        for key in (key for key in self.repaired if key in tile):
            data, days = tile[key]
            if (i, key) not in self.is_scrambled:                                 # asked once in each process
                self.is_scrambled[i, key] = sentinel1.order(data, key).verdict == "scrambled"
            tile[key] = sentinel1.restored(data, key) if self.is_scrambled[i, key] else data, days
        return tile

    def series_file(self, i):
        """The file with the series of tile i, None if there is none or several, or none of them is among the
        modalities.
        """
        if self.name != "treesatai-ts":
            return None
        return next((self.paths[key][i] for key in SERIES if key in self.paths), None)

    def orders(self, i):
        """Whether Sentinel-1 of tile i is in order inside its dates, both orbits, whatever the modalities.

        Returns {"year", "file", key: (verdict, text)}, or {} without such a file. verdict: of
        datasets.sentinel1.Order, or no dates (none that is whole: such a file has other findings), or broken.
        """
        path = self.series_file(i)
        if path is None or self.grid != (GRID, GRID):
            return {}
        year = re.search(r"_(\d{4})\.h5$", path)
        found = {"year": year[1] if year else "no year", "file": path}
        for key in sentinel1.PLACES:
            try:
                data, _ = read_h5(path, [key], self.grid[0])[key]
                order = sentinel1.order(data, key)
                found[key] = (order.verdict, order.text()) if order.dates else ("no dates", "no whole date with data")
            except UserError as error:
                found[key] = "broken", str(error)
        return found

    def repairable(self):
        if self.name != "treesatai-ts":
            return super().repairable()
        return tuple(key for key in self.modalities if key in sentinel1.PLACES)

    def cloud(self, i):
        return read_cloud(self.paths["s2"][i])

    def finish(self, key, data):
        """Radar in dB with a floor; the single dates are in dB already."""
        if key not in ("s1", "s1-des"):
            return data
        return decibel(data) if self.name == "treesatai-ts" else np.maximum(data, decibel(FLOOR))
