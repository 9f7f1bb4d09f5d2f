"""TreeSatAI (single date) and TreeSatAI-TS, read as they are distributed (Ahlswede et al. 2023; Astruc et al. 2024).

Files are found by name anywhere under the root, so any of these layouts will do:
    aerial/<tile>.tif, aerial/60m/<tile>.tif, aerial_60m_<species>/<tile>.tif     image, NIR G B R, uint8, 304 x 304
    sentinel-ts/<stem>_<year>.h5, sentinel/<stem>.h5                              series of S2 and S1, 6 x 6 pixels
    s1/60m/<tile>.tif, s2/60m/<tile>.tif, also below sentinel/                    single dates, 6 x 6 pixels
    train_filenames.lst, test_filenames.lst, val_filenames.lst (where released)   at the root or in split/
    TreeSatBA_v9_60m_multi_labels.json                                            at the root or in labels/
where <tile>.tif is the tile's name in the lists and <stem> the same without its last ".tif" (names hold other dots).
"""
import json
import logging
import os
import re
from pathlib import Path

import h5py
import numpy as np
import tifffile
import torch

from datasets.sensors import SENSORS
from datasets.splits import fingerprint, saved_subset
from utils.errors import UserError

CLASSES = ("Abies", "Acer", "Alnus", "Betula", "Cleared", "Fagus", "Fraxinus", "Larix", "Picea", "Pinus", "Populus",
           "Prunus", "Pseudotsuga", "Quercus", "Tilia")
LABELS_FILE = "TreeSatBA_v9_60m_multi_labels.json"
AREA = 0.07                    # a class counts if an entry's area is strictly larger
SIZE, GRID = 300, 6            # pixels of the image after the centre crop; pixels of the series
VAL_SHARE, SPLIT_SEED = 0.15, 0
FLOOR = 1e-4                   # linear power under this is -40 dB: below a GRD product's noise
SINGLE_DATE = 120              # the single-date release has no dates; not in the paper: the official code's day

# key: (data, products, where the date stands in the product's name, bands in the file)
SERIES = {"s2": ("sen-2", 11, 10), "s1": ("sen-1-asc", 17, 2), "s1-des": ("sen-1-des", 17, 2)}
# bands in the single-date file, in its order; nodata
SINGLE = {"s2": (("B02", "B03", "B04", "B08", "B05", "B06", "B07", "B8A", "B11", "B12", "B01", "B09"), 0),
          "s1": (("VV", "VH", "VV/VH"), -9999)}

logging.getLogger("tifffile").setLevel(logging.ERROR)    # the GDAL_NODATA tag "-9999" of the uint8 images: harmless


# ---- files ----------------------------------------------------------------------------------------------------------

def find_files(root):
    """Walk the root once. Returns {kind: {tile stem: [paths]}} for kind vhr, ts, s1, s2, and {file name: [paths]}."""
    if not os.path.isdir(root):
        raise UserError(f"{root}: no such folder; --data-root is the folder that holds aerial/, sentinel-ts/, split/ ...")
    tiles, others = {"vhr": {}, "ts": {}, "s1": {}, "s2": {}}, {}
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(f for f in folders if f != "200m" and not f.startswith("."))
        parts = [part.lower() for part in Path(folder).relative_to(root).parts]
        kind = next((k for k in ("s1", "s2") if k in parts), "vhr" if any(p.startswith("aerial") for p in parts) else None)
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
    found = {tuple(Path(path).read_text().split()) for path in others.get(name, [])}
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
        if not tile.endswith(".tif"):
            raise UserError(f"{others[name][0]}: {tile!r} is no tile name (they end in .tif)")
    return names


def read_labels(path):
    """Labels of all tiles by the area rule: an entry [genus, area] counts if area > 0.07, each entry on its own.

    Returns {tile name: (15,) bool}; a tile can be left without any. Errors: UserError naming the file or the tile.
    """
    try:
        entries = json.loads(Path(path).read_text())
        labels = {}
        for tile, areas in entries.items():
            labels[tile] = np.zeros(len(CLASSES), bool)
            for genus, area in areas:
                if area > AREA:
                    labels[tile][CLASSES.index(genus)] = True
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not the label file of TreeSatAI ({error}); download it again") from error
    return labels


# ---- one tile -------------------------------------------------------------------------------------------------------

def read_tif(path, shape, is_exact=False):
    """An image file as it is, (H, W, C). shape: least (or exact) height and width, and the number of bands."""
    try:
        with tifffile.TiffFile(path) as tif:
            image = tif.pages[0].asarray()
    except Exception as error:    # tifffile raises many kinds for damaged files, OSError and struct.error among them
        raise UserError(f"{path}: cannot be read as TIFF ({error}); download it again") from error
    if (image.ndim != 3 or image.shape[2] != shape[2] or image.shape[0] < shape[0] or image.shape[1] < shape[1]
            or is_exact and image.shape != shape):
        raise UserError(f"{path}: shape {image.shape}, expected {'' if is_exact else 'at least '}{shape[0]} x {shape[1]} "
                        f"pixels and {shape[2]} bands")
    return image


def read_vhr(path):
    """The centre 300 x 300 pixels (60 m, the Sentinel grid) of an aerial image: (4, 300, 300) uint8, NIR G B R."""
    image = read_tif(path, (SIZE, SIZE, 4))
    if image.dtype != np.uint8:
        raise UserError(f"{path}: type {image.dtype}, expected uint8")
    top, left = (image.shape[0] - SIZE) // 2, (image.shape[1] - SIZE) // 2
    return image[top:top + SIZE, left:left + SIZE].transpose(2, 0, 1)


def read_single(path, key, bands):
    """One Sentinel date of the single-date release as a series: data (T, C, 6, 6) float32, days (T,); T = 0 if nodata.

    S2 in digital numbers, S1 in dB with the floor of the series. Values beyond 60 dB are no backscatter: missing.
    """
    names, nodata = SINGLE[key]
    image = read_tif(path, (GRID, GRID, len(names)), is_exact=True).astype(np.float32)
    image[(image == nodata) | ((np.abs(image) > 60) if key == "s1" else False)] = np.nan
    data = image.transpose(2, 0, 1)[None, [names.index(band) for band in bands]]
    data, days = clean(data, np.array([SINGLE_DATE]))
    return (np.maximum(data, 10 * np.log10(np.float32(FLOOR))) if key == "s1" else data), days


def read_h5(path, keys, max_cloud=None):
    """The series of one tile: {key: (data (T, C, 6, 6) float32, days of the year (T,) int64)}.

    S2 in digital numbers, S1 in dB with a floor. max_cloud (%): leave out S2 dates whose mean probability of cloud or
    snow is higher; None keeps all. T = 0 is legal. Errors: UserError naming the file and the dataset.
    """
    series = {}
    try:
        file = h5py.h5f.open(os.fsencode(path), h5py.h5f.ACC_RDONLY)    # h5py's low level: 2.5 times faster
        for key in keys:
            prefix, start, bands = SERIES[key]
            data = _read_dataset(file, path, f"{prefix}-data", np.float32)
            products = _read_dataset(file, path, f"{prefix}-products")
            if data.size == 0 and products.size == 0:                             # however an empty series is stored
                data = np.zeros((0, bands, GRID, GRID), np.float32)
            if data.ndim != 4 or data.shape[1:] != (bands, GRID, GRID) or products.shape != data.shape[:1]:
                raise UserError(f"{path}: {prefix}-data has shape {data.shape} and {len(products)} products, expected "
                                f"T x {bands} x {GRID} x {GRID} and T")
            data, days = clean(data, days_of_year(products, start, path), key == "s2" and max_cloud is not None and
                               _cloud(file, path, len(data)) > max_cloud)
            if key != "s2":
                data = 10 * np.log10(np.maximum(data, FLOOR))
            series[key] = data, days
    except (OSError, RuntimeError, TypeError) as error:
        raise UserError(f"{path}: cannot be read as HDF5 ({error}); download it again") from error
    return series


def _read_dataset(file, path, name, dtype=None):
    """One dataset of an open file, converted to a type or (None) as it is stored."""
    try:
        dataset = h5py.h5d.open(file, name.encode())
    except KeyError as error:
        raise UserError(f"{path}: no dataset {name}; download it again") from error
    array = np.empty(dataset.shape, dtype or dataset.dtype)
    dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, array)
    return array


def _cloud(file, path, dates):
    """Mean over the pixels of the larger probability of snow (channel 0) and cloud (channel 1), %, (T,)."""
    masks = _read_dataset(file, path, "sen-2-masks", np.float32)    # T x 2 or 10 x 6 x 6: further channels are empty
    if masks.ndim != 4 or len(masks) != dates or masks.shape[1] < 2:
        raise UserError(f"{path}: sen-2-masks has shape {masks.shape}, expected {dates} x 2 or more x {GRID} x {GRID}")
    return masks[:, :2].max(1).mean((1, 2))


def days_of_year(products, start, path):
    """Day of the year, 1..366, from YYYYMMDD at a fixed place of each product's name (bytes). Returns (T,) int64."""
    if not len(products):
        return np.zeros(0, np.int64)
    text = np.array(products, dtype=f"S{start + 8}").view(np.uint8).reshape(len(products), -1)[:, start:]
    digits = text.astype(np.int64) - ord("0")
    year, month, day = digits[:, :4] @ [1000, 100, 10, 1], digits[:, 4:6] @ [10, 1], digits[:, 6:] @ [10, 1]
    bad = ((digits < 0) | (digits > 9)).any(1) | (month < 1) | (month > 12) | (day < 1) | (day > 31)
    if bad.any():
        raise UserError(f"{path}: no date at character {start} of product {products[bad.argmax()]!r}")
    is_leap = (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
    before = np.array([0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334])[month - 1]
    return before + day + (is_leap & (month > 2))


def clean(data, days, is_cloudy=False):
    """What makes a series usable: data (T, C, H, W) and days (T,) in, the same with fewer dates out, in time order.

    A date goes, and its day with it, if a band has no value at all (NaN) or all bands are 0, the products' nodata; so do
    cloudy ones (is_cloudy (T,) bool). Of several acquisitions of one day the first stays: they are slices of one pass
    with the same pixels. Single missing pixels become the mean of their band on that date.
    """
    total = data.sum((1, 2, 3))                                                   # one pass finds what is wrong
    is_bad = is_cloudy | (total == 0)
    if not np.isfinite(total).all():
        data = np.where(np.isfinite(data), data, np.nan)
        is_missing = np.isnan(data)
        is_bad |= is_missing.all((2, 3)).any(1)
        mean = np.nansum(data, (2, 3), keepdims=True) / np.maximum(1, (~is_missing).sum((2, 3), keepdims=True))
        data = np.where(is_missing, mean, data)
    kept = np.flatnonzero(~is_bad)
    kept = kept[np.unique(days[kept], return_index=True)[1]]
    if np.array_equal(kept, np.arange(len(days))):                                # nothing to leave out: no copy
        return data, days
    return data[kept], days[kept]


def choose_dates(dates, most, rng=None):
    """Which dates of a longer series are used: `most` at random in time order, or evenly spread ones without an rng."""
    if dates <= most:
        return slice(None)
    if rng is None:
        return np.linspace(0, dates - 1, most).round().astype(int)
    return np.sort(rng.choice(dates, most, replace=False))


# ---- the dataset ----------------------------------------------------------------------------------------------------

class TreeSatAI(torch.utils.data.Dataset):
    """Tiles of one split.

    root: the raw files. name: "treesatai-ts" or "treesatai" (single date). split: train, val or test. modalities: keys
    of datasets.sensors. label_percent: of the training tiles, a stratified subset that follows the seed. labelled: leave
    out tiles without any label (7 of train); pretraining keeps them. max_dates: of a series. max_cloud: see read_h5.
    dataset[i] takes evenly spread dates of a long series, dataset[i, epoch] random ones, the same for the same seed.
    """
    classes = CLASSES

    def __init__(self, root, split, modalities, name="treesatai-ts", label_percent=100, seed=0, labelled=True,
                 max_dates=50, max_cloud=None):
        self.root, self.name, self.modalities, self.seed = str(root), name, tuple(modalities), seed
        self.sensors = [SENSORS[name][key] for key in modalities]
        self.max_dates, self.max_cloud = max_dates, max_cloud
        tiles, others = find_files(root)
        marker = others.get("DEMO.json")
        self.is_demo = marker is not None
        self.release = "treesatai-demo" if self.is_demo else "treesatai"
        if LABELS_FILE not in others:
            raise UserError(f"{root}: no {LABELS_FILE} found, at the root or below")
        if len(others[LABELS_FILE]) > 1:
            raise UserError(f"{len(others[LABELS_FILE])} label files, {' and '.join(others[LABELS_FILE])}: keep one")
        labels = read_labels(others[LABELS_FILE][0])
        if max_cloud is not None and name == "treesatai":
            raise UserError("--max-cloud: the single-date release of TreeSatAI has no cloud masks; leave the option out")

        self.names = self._split(others, split, labels, label_percent)
        if labelled:
            self.names = [tile for tile in self.names if labels[tile].any()]
        self.labels = torch.from_numpy(np.array([labels[tile] for tile in self.names], np.float32))
        if not self.names:
            raise UserError(f"{root}: no tile in {split} at {label_percent} % of the labels")
        kinds = {key: "ts" if name == "treesatai-ts" and key in SERIES else key for key in self.modalities}
        self.paths = {key: self._paths(tiles[kind], key) for key, kind in kinds.items()}
        self.split_hash = fingerprint(self.names)
        # what the statistics depend on: the tiles, and for generated data what it was generated from
        self.data_hash = fingerprint([*self.names, str(max_cloud), Path(marker[0]).read_text() if self.is_demo else ""])

    def _split(self, others, split, labels, label_percent):
        """The names of the split; draws the validation tiles from train if the release has no list of them."""
        def listed(name):
            names = read_list(self.root, others, name)
            for tile in names or ():
                if tile not in labels:
                    raise UserError(f"{tile}: in the {name} list but not in {others[LABELS_FILE][0]}")
            return names
        if split == "test":
            return listed("test")
        names, val = listed("train"), listed("val")
        matrix = np.array([labels[tile] for tile in names])
        if val is None:
            val = saved_subset(self.release, "val", names, matrix, VAL_SHARE, SPLIT_SEED)
        if split == "val":
            return val
        held_out = set(val)
        names = [tile for tile in names if tile not in held_out]
        if label_percent < 100:
            matrix = np.array([labels[tile] for tile in names])
            names = saved_subset(self.release, f"{label_percent}percent", names, matrix, label_percent / 100, self.seed)
        return names

    def _paths(self, found, key):
        """One file a tile. Errors: UserError naming the tile without a file, or the two files of one tile."""
        paths = [found.get(tile[:-4], []) for tile in self.names]
        missing = [tile for tile, path in zip(self.names, paths) if not path]
        if missing:
            kind = "sentinel-ts/<stem>_<year>.h5" if self.name == "treesatai-ts" and key != "vhr" else f"tif of {key}"
            raise UserError(f"{missing[0]}: no file of {key} ({kind}) under {self.root}; {len(missing)} of "
                            f"{len(paths)} tiles lack theirs")
        for tile, path in zip(self.names, paths):
            if len(path) > 1:
                raise UserError(f"{tile}: {len(path)} files of {key}, {' and '.join(path)}: keep one")
        return [path[0] for path in paths]

    def __len__(self):
        return len(self.names)

    def read(self, i):
        """One tile, all dates: {key: (image (C, H, W), None) or (series (T, C, H, W), days (T,))}."""
        paths = {key: self.paths[key][i] for key in self.modalities}
        tile = {"vhr": (read_vhr(paths.pop("vhr")), None)} if "vhr" in paths else {}
        if self.name == "treesatai":
            return tile | {key: read_single(path, key, SENSORS[self.name][key].bands) for key, path in paths.items()}
        return tile | (read_h5(next(iter(paths.values())), paths, self.max_cloud) if paths else {})    # one file for all

    def __getitem__(self, index):
        i, epoch = index if isinstance(index, tuple) else (index, None)
        rng = None if epoch is None else np.random.default_rng((self.seed, epoch, i))
        item = {"name": self.names[i], "label": self.labels[i]}
        for key, (data, days) in self.read(i).items():
            if days is not None:
                chosen = choose_dates(len(days), self.max_dates, rng)
                data, item[f"{key}_dates"] = data[chosen], torch.from_numpy(days[chosen])
            item[key] = torch.from_numpy(data)
        return item
