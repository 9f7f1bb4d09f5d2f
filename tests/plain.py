"""Small releases, and plain readers of them, for tests/fuzz.py.

The readers do by the plainest means what the formats say, and share nothing with datasets/. data: a dataset of
datasets.tiles.Tiles, asked only for its name, folder, options and the path of each file. i: a tile of it.
"""
import json
import re
import shutil
import zlib
from datetime import date
from pathlib import Path

import h5py
import imagecodecs
import numpy as np
import tifffile

from datasets.sensors import Sensor
from datasets.simulated import flair as demo_flair
from datasets.simulated.demo import write_flair, write_pastis, write_treesatai

REAL = Path(__file__).parent.parent.parent / "shared" / "real" / "treesatai-ts"
STEM = "Abies_alba_1_1005_WEFL_NLF"
OWN = {sensor.key: sensor for sensor in (
    Sensor("photo", "image", ("R", "G", "B"), 1, 20, files="photo/{tile}.tif"),
    Sensor("height", "image", ("h",), 2, 10, files="height/{tile}.npy", nodata=-9999),
    Sensor("planet", "series", ("B", "G"), 10, 2, 366, files="planet/{tile}.npz"),
    Sensor("water", "series", ("w",), 20, 1, 1200, "2019-01-01", files="water/{tile}.npz", nodata=65535))}
KEYS = {"treesatai-ts": ("vhr", "s2", "s1", "s1-des"), "treesatai": ("vhr", "s2", "s1"),
        "pastis-hd": ("vhr", "s2", "s1"), "flair": ("vhr", "s2"), "own": tuple(OWN)}


# ---- releases --------------------------------------------------------------------------------------------------------

def build(name, root):
    """Write a release of 18 tiles."""
    if name == "pastis-hd":
        write_pastis(root, train=16, test=2, workers=1, side=16)
    elif name == "flair":
        write_flair(root, train=16, test=2, workers=1)
        repackage(root, "val", "data/train-val/{domain}")
        repackage(root, "test", "data/flair#2-test")                             # the metadata say the domain
    elif name == "own":
        write_own(root)
    else:
        write_treesatai(root, train=16, test=2, workers=1)
        train, test = (root / "split" / f"{split}_filenames.lst" for split in ("train", "test"))
        if name == "treesatai":                                                  # some have a list for validation
            tiles = train.read_text().split()
            for path, some in ((train.with_name("val_filenames.lst"), tiles[:2]), (train, tiles[2:])):
                path.write_text("".join(f"{tile}\r\n" for tile in some))
        elif REAL.is_dir():
            for folder, file in (("aerial", f"{STEM}.tif"), ("sentinel-ts", f"{STEM}_2020.h5")):
                shutil.copyfile(REAL / folder / file, root / folder / file)
            labels = root / "labels" / "TreeSatBA_v9_60m_multi_labels.json"
            real = {f"{STEM}.tif": [["Abies", 0.93], ["Larix", 0.05]]}
            labels.write_text(json.dumps(json.loads(labels.read_text()) | real))
            test.write_text(test.read_text() + f"{STEM}.tif\n")


def repackage(root, split, top):
    """Move FLAIR's files of a split to where Hugging Face has them: top, kind, zone."""
    for kind, folder in (("img", "aerial"), ("msk", "labels"), ("sen", "sentinel")):
        for area in demo_flair.areas(16, 2):
            if area.split == split:
                old, = root.glob(f"flair*/{area.domain}/{area.zone}/{kind}")
                new = root / top.format(domain=area.domain) / folder / area.zone
                new.parent.mkdir(parents=True, exist_ok=True)
                old.rename(new)


def write_own(root):
    """A dataset of one's own with the sensors of OWN."""
    rng, lines = np.random.default_rng(0), ["tile,split,forest,lake"]
    for key in OWN:
        (root / key).mkdir(parents=True)
    for n in range(18):
        tile, year, save = f"north_{n}", 2019 + n % 3, (np.savez, np.savez_compressed)[n % 2]
        lines.append(f"{tile},{'train' if n < 16 else 'test'},{n % 2},{n // 2 % 2}")
        photo = rng.integers(0, 255, (60, 40, 3)).astype(np.uint8)
        tifffile.imwrite(root / "photo" / f"{tile}.tif", photo, photometric="rgb",
                         compression=(None, "lzw", "zlib")[n % 3])
        height = rng.normal(20, 5, (1, 30, 20))
        height[0, :n, 3] = -9999
        np.save(root / "height" / f"{tile}.npy", height.astype((np.float64, np.float16)[n % 2]))
        dates = np.array([year * 10000 + month * 100 + day for month in range(1, 13) for day in (3, 17)])
        save(root / "planet" / f"{tile}.npz", data=rng.normal(500, 90, (24, 2, 6, 4)).astype(np.float32), dates=dates)
        water = rng.integers(0, 40000, (24, 1, 3, 2)).astype(np.uint16)
        water[3, 0, 1, 1], water[5] = 65535, 65535
        save(root / "water" / f"{tile}.npz", data=water, dates=dates)
    (root / "labels.csv").write_text("\n".join(lines) + "\n")


# ---- readers --------------------------------------------------------------------------------------------------------

class Different(Exception):
    """What was read is not what a plain reader gives."""


def demand(holds, text):
    if not holds:
        raise Different(text)


def plain_tif(path):
    """(C, H, W) of an image in strips or tiles, each of them whole or, in sparse files, without bytes and place: 0."""
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        demand(page.predictor == 1 and page.fillorder == 1, f"{path}: layout that nothing here writes")
        decode = {1: lambda code: code, 5: imagecodecs.lzw_decode, 8: zlib.decompress, 32946: zlib.decompress}
        decode = decode[int(page.compression)]
        content, dtype = Path(path).read_bytes(), page.dtype.newbyteorder(file.byteorder)
        bands, height, width = page.samplesperpixel, page.imagelength, page.imagewidth
        rows, columns = (page.tilelength, page.tilewidth) if page.is_tiled else (min(page.rowsperstrip, height), width)
        planes, samples = (bands, 1) if page.planarconfig == 2 else (1, bands)   # a band by itself, or all of a pixel
        blocks = iter(list(zip(page.dataoffsets, page.databytecounts, strict=True)))
        image = np.zeros((planes, height, width, samples), dtype.newbyteorder("="))
        for plane in range(planes):
            for top in range(0, height, rows):
                for left in range(0, width, columns):
                    (at, size), there = next(blocks), image[plane, top:top + rows, left:left + columns]
                    demand((at == 0) == (size == 0), f"{path}: a block of {size} bytes at {at}")
                    if size:
                        shape = (rows if page.is_tiled else len(there)), columns, samples
                        part, length = decode(content[at:at + size]), int(np.prod(shape)) * dtype.itemsize
                        demand(len(part) >= length, f"{path}: a block of {len(part)} bytes, not {length}")
                        part = np.frombuffer(part[:length], dtype).reshape(shape)
                        there[:] = part[:there.shape[0], :there.shape[1]]
        demand(next(blocks, None) is None, f"{path}: more blocks than there is room for")
        return image.transpose(0, 3, 1, 2).reshape(bands, height, width)


def plain_days(texts, origin=None):
    """Day numbers of texts YYYYMMDD."""
    for text in texts:
        demand(re.fullmatch("[0-9]{8}", text), f"date {text!r}")
    dates = [date(int(text[:4]), int(text[4:6]), int(text[6:])) for text in texts]
    return [(day - date.fromisoformat(origin)).days if origin else day.timetuple().tm_yday for day in dates]


def plain_series(data, i, sensor):
    """As stored: data (T, C, H, W), days (T,), whether --max-cloud leaves them out (T,), nodata."""
    path, is_cloudy = data.paths[sensor.key][i], None
    if data.name == "treesatai-ts":
        name, start = {"s2": ("sen-2", 11), "s1": ("sen-1-asc", 17), "s1-des": ("sen-1-des", 17)}[sensor.key]
        with h5py.File(path) as file:
            series, names = file[f"{name}-data"][()].astype(np.float32), file[f"{name}-products"][()]
            if sensor.key == "s2" and data.choices.max_cloud:
                is_cloudy = file["sen-2-masks"][:, :2].astype(np.float64).max(1).mean((1, 2)) > data.choices.max_cloud
        days = plain_days([name.decode("latin-1")[start:start + 8] for name in names])
        return series.reshape(-1, len(sensor.bands), 6, 6), days, is_cloudy, None
    if data.name == "treesatai":
        image = plain_tif(path).astype(np.float64)
        bands = range(10) if sensor.key == "s2" else range(2)
        image[(image == 0) if sensor.key == "s2" else (image == -9999) | (abs(image) > 60)] = np.nan
        return image[None, bands], [120], None, None
    if data.name == "pastis-hd":
        features = json.loads((Path(data.root) / "metadata.geojson").read_text("utf-8-sig"))["features"]
        (about,) = [about for about in (feature["properties"] for feature in features)
                    if str(about["ID_PATCH"]) == data.names[i]]
        dates = about["dates-S2" if sensor.key == "s2" else "dates-S1A"]
        dates = json.loads(dates) if isinstance(dates, str) else dates
        series = np.load(path)
        days = plain_days([str(dates[str(t)]) for t in range(len(series))], "2018-09-01")
        return series, days, None, sensor.nodata
    if data.name == "flair":
        series, masks = (np.load(path.replace("data.npy", end)) for end in ("data.npy", "masks.npy"))
        texts = Path(path.replace("data.npy", "products.txt")).read_text("utf-8-sig").split()
        centroids = json.loads(next(Path(data.root).rglob("flair-2_cent*")).read_text("utf-8-sig"))
        row, column = centroids[f"{data.names[i][-10:]}.tif"]
        side = data.side // 50
        top, left = (max(0, min(round(at) - side // 2, size - side))
                     for at, size in zip((row, column), series.shape[2:]))
        series, masks = (array[:, :, top:top + side, left:left + side] for array in (series, masks))
        is_cloudy = masks[:, :2].max(1).mean((1, 2)) > data.choices.max_cloud if data.choices.max_cloud else None
        return series, plain_days([text[11:19] for text in texts]), is_cloudy, None
    with np.load(path) as file:
        series, texts = file["data"], [str(int(day)) for day in np.ravel(file["dates"])]
    return series, plain_days(texts, sensor.origin), None, sensor.nodata


def plain_clean(series, days, is_cloudy, nodata, lowest=None):
    """What datasets.series.clean documents, date by date. Returns {day: image (C, H, W) float64} and the number of
    repairs.
    """
    is_cloudy = [False] * len(days) if is_cloudy is None else is_cloudy
    demand(len(series) == len(days) == len(is_cloudy),
           f"{len(series)} images, {len(days)} dates, {len(is_cloudy)} cloud masks")
    images, repairs = {}, 0
    for image, day, is_out in zip(series.astype(np.float64), days, is_cloudy):
        if series.dtype.kind == "f" and series.dtype.itemsize == 8:
            image = image.astype(np.float32)
        lost = ~np.isfinite(image) | (False if nodata is None else image == nodata)
        lost |= False if lowest is None else image < lowest
        lost |= (image == 0).all(0) if len(image) > 1 else False
        if (lost.mean((1, 2)) > 0.5).any() or (image == 0).all() or is_out or day in images:
            repairs += 1
            continue
        for band, gaps in zip(image, lost):
            if gaps.any():
                mean = band[~gaps].mean()
                band[gaps] = mean if series.dtype.kind == "f" else round(mean)
        repairs += lost.sum()
        images[day] = image
    return images, repairs


def plain_image(data, i, sensor):
    """(C, H, W), the centre where a release has more than the grid."""
    path = data.paths[sensor.key][i]
    image = np.load(path) if path.endswith(".npy") else plain_tif(path)
    if data.name in ("pastis-hd", "own"):
        image = image.astype(np.float32) if image.dtype.kind == "f" and image.dtype.itemsize == 8 else image
        if sensor.nodata is not None:
            for band in (lost := ~np.isfinite(image) | (image == sensor.nodata)).any((1, 2)).nonzero()[0]:
                demand(lost[band].mean() <= 0.5, f"{path}: more is missing than there is")
                mean = image[band][~lost[band]].mean(dtype=np.float64)
                image[band][lost[band]] = mean if image.dtype.kind == "f" else round(mean)
        return image
    side = data.side // 50 * 50 if data.name == "flair" else 300
    top, left = ((size - side) // 2 for size in image.shape[1:])
    return image[:, top:top + side, left:left + side]


def plain_label(data, i):
    """The numbers of the tile's classes."""
    root, tile = Path(data.root), data.names[i]
    if data.name.startswith("treesatai"):
        names = ("Abies Acer Alnus Betula Cleared Fagus Fraxinus Larix Picea Pinus Populus Prunus Pseudotsuga Quercus "
                 "Tilia").split()
        entries = json.loads(next(root.rglob("TreeSatBA*.json")).read_text("utf-8-sig"))[tile]
        return {names.index(genus) for genus, area in entries if area > 0.07}
    if data.name == "pastis-hd":
        return {int(k) - 1 for k in np.unique(np.load(root / "ANNOTATIONS" / f"TARGET_{tile}.npy")[0]) if 1 <= k <= 18}
    if data.name == "flair":
        return {min(int(k), 13) - 1 for k in np.unique(plain_tif(next(root.rglob(f"MSK_{tile[-6:]}.tif"))))}
    lines = [line.split(",") for line in (root / "labels.csv").read_text("utf-8-sig").split("\n")]
    return {k for line in lines if line[0].strip('"') == tile
            for k, value in enumerate(line[2:]) if value.strip('"\r') == "1"}
