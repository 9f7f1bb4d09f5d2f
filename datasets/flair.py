"""FLAIR #2, read as it is distributed (Garioud et al. 2023).

Files are found by name anywhere under the root; their folders say domain and zone. So have it the original zips
(flair_aerial_train/<domain>/<zone>/img/..., flair_2_sen_test/...) and the zips by domain of Hugging Face, each unpacked
into a folder of its name (<domain>/aerial/<zone>/...). Where all domains lie in one folder, the metadata say it.
    IMG_<number>.tif                                                  512 x 512 pixels of 0.2 m: R G B NIR elevation
    MSK_<number>.tif                                                  land cover of each pixel, 1..19
    SEN2_sp_<domain>-<zone>_data.npy, _masks.npy, _products.txt       Sentinel-2 of a whole zone, shared by its tiles
    flair-2_centroids_sp_to_patch.json                                row and column of each tile's centre in these
    flair_aerial_metadata.json                                        domain and zone of images whose folders do not say
"""
import os
import re
from functools import lru_cache
from pathlib import PurePath

import numpy as np

from datasets.files import read_json, read_npy, read_text, read_tif, why
from datasets.series import day_numbers, fetch
from datasets.splits import FOLDER, read_lines
from datasets.tiles import Tiles, demo_side
from utils.errors import UserError
from utils.files import walk

# mask values 1..12, and all that are higher
CLASSES = ("building", "pervious surface", "impervious surface", "bare soil", "water", "coniferous", "deciduous",
           "brushwood", "vineyard", "herbaceous vegetation", "agricultural land", "plowed land", "other")
HIGHEST = 19
DOMAINS = FOLDER / "flair-domains.txt"
CENTROIDS = "flair-2_centroids_sp_to_patch.json"
DOMAIN, ZONE = re.compile(r"D\d{3}_\d{4}"), re.compile(r"Z\d+_\w+")    # names of folders
METADATA = "flair_aerial_metadata.json"    # or flair-2_aerial_metadata.json
SIDE, PATCH = 512, 50          # pixels of an image; of a patch of 10 m
SKIPPED = ("flair#1-test", "flair_1_aerial_test", "flair_1_labels_test")    # another test set, of older images


def read_domains():
    """{domain: split}: the 32 training, 8 validation and 10 test domains."""
    return dict(line.split() for line in read_lines(DOMAINS))


def find_files(root):
    """Walk the root once. Returns {"img", "msk": {number: [paths]}, "sen": {area: [paths of data.npy]}, "json": {name:
    path}}.
    """
    index = {"img": {}, "msk": {}, "sen": {}, "json": {}}
    for folder, folders, names in walk(root):
        folders[:] = [f for f in folders if f not in SKIPPED and not f.startswith(".")]
        for name in names:
            path = os.path.join(folder, name)
            if found := re.fullmatch(r"(IMG|MSK)_(\d{6})\.tif", name):
                index[found[1].lower()].setdefault(found[2], []).append(path)
            elif found := re.fullmatch(r"SEN2_sp_(D\d{3}_\d{4}-Z\d+_\w+)_data\.npy", name):
                index["sen"].setdefault(found[1], []).append(path)
            elif name.endswith("data.npy") and not DOMAIN.search(name) and (area := area_of(folder)):
                index["sen"].setdefault(area, []).append(path)
            elif name.endswith(".json"):
                index["json"][name] = path
    return index


@lru_cache(4096)
def area_of(folder):
    """Domain and zone, as D004_2021-Z1_NN, where folders down to this one are named so, the domain's above; else None.
    """
    folders = PurePath(folder).parts
    zones = [at for at, folder in enumerate(folders) if ZONE.fullmatch(folder)]
    domains = [at for at, folder in enumerate(folders) if DOMAIN.fullmatch(folder) and zones and at < zones[-1]]
    return f"{folders[domains[-1]]}-{folders[zones[-1]]}" if domains else None


def read_areas(path):
    """{number: domain and zone} of the metadata of the images. Errors: UserError."""
    what, areas = "the metadata of FLAIR's images", {}
    try:
        for name, entry in read_json(path, what).items():
            is_area = DOMAIN.fullmatch(entry["domain"]) and ZONE.fullmatch(entry["zone"])
            if not (is_area and re.fullmatch(r"IMG_\d{6}(\.tif)?", name)):
                raise ValueError(f"domain and zone of {name[:20]!r}")
            areas[name[4:10]] = f"{entry['domain']}-{entry['zone']}"
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not {what} ({why(error)}); download it again") from error
    return areas


def beside(path, end):
    """Another file of the same area as ..._data.npy: masks.npy, products.txt."""
    return path.removesuffix("data.npy") + end


def read_products(path, sensor):
    """Day numbers (T,) from the lines of a products file: Sentinel-2 products, their date in characters 11 to 18."""
    try:
        dates = [int(line[11:19]) for line in read_text(path).split()]
    except ValueError as error:
        raise UserError(f"{path}: not a list of Sentinel-2 products ({why(error)}); download it again") from error
    return day_numbers(dates, sensor, path)


def crop(array, centroid, side, name, path):
    """side x side pixels of array (..., H, W) around the centroid (row, column); moved inside where the border is
    nearer.

    Errors: UserError naming the tile and the array's file if the centroid is not inside the array at all.
    """
    height, width = array.shape[-2:]
    row, column = centroid
    if not (0 <= row < height and 0 <= column < width) or side > min(height, width):
        raise UserError(f"{name}: its centre {tuple(centroid)} is not inside the {height} x {width} pixels of its "
                        f"Sentinel-2 area, {path}; download it and {CENTROIDS} again")
    top, left = first_pixel(row, side, height), first_pixel(column, side, width)
    return array[..., top:top + side, left:left + side]


def first_pixel(centre, side, size):
    """Where side pixels around the centre begin, all of them within 0..size."""
    return int(np.clip(centre - side // 2, 0, size - side))


class Flair(Tiles):
    """FLAIR #2; see datasets.tiles.Tiles. Tiles are named by domain, zone and image, as D004_2021-Z1_NN-IMG_000001."""
    classes = CLASSES
    has_cloud_masks = has_label_files = True
    skipped = SKIPPED

    def find(self):
        self.index, self.areas = find_files(self.root), None
        self.masks, self.centres = self.index["msk"], self.index["json"].get(CENTROIDS, "")
        marker = self.index["json"].get("DEMO.json")
        self.side = demo_side(marker, SIDE)
        self.grid = (self.side // PATCH,) * 2
        return marker

    def listed(self, split):
        domains, names = read_domains(), []
        for number, paths in self.index["img"].items():
            area = self._area(number, paths[0])
            if domains.get(area.split("-")[0]) == split:
                names.append(f"{area}-IMG_{number}")
        names.sort(key=lambda name: name[-6:])
        there = {name.split("-")[0] for name in names}
        self.lost = [domain for domain, of_split in domains.items() if of_split == split and domain not in there]
        if self.findings is not None and split == "train":    # nobody else lists what should be there
            for name in sorted(self._centroids()):
                if name[-6:] not in self.index["img"]:
                    has_mask = name[-6:] in self.masks    # else it may belong to another test set
                    what = (("vhr", "its mask is there, but no file of vhr (img/IMG_<number>.tif)") if has_mask else
                            ("centroids", "its centre is listed, but there is no image and no mask"))
                    self.findings.append((name, *what))
        if not names:
            raise UserError(f"{self.root}: no image of a {split} domain ({', '.join(self.lost)}) found, no "
                            "IMG_<number>.tif below a folder of its zone; unpack the zips first")
        for number, paths in self.index["msk"].items() if self.findings is None else ():
            if number in self.index["img"]:
                continue
            if domains.get((area := self._area(number, paths[0])).split("-")[0]) == split:
                raise UserError(f"{area}-IMG_{number}: no file of vhr (img/IMG_{number}.tif) for the labels "
                                f"{paths[0]}; download it again")
        return names, self.labels_of(names)

    def everything(self):
        """Those with an image, of any domain, in the order of their numbers."""
        names = [f"{self._area(number, paths[0])}-IMG_{number}" for number, paths in sorted(self.index["img"].items())]
        return names, np.zeros((len(names), len(self.classes)), bool)

    def _area(self, number, path):
        """Domain and zone of an image, as D004_2021-Z1_NN, from its folders, else from the metadata."""
        if area := area_of(os.path.dirname(path)):
            return area
        if self.areas is None:
            found = [path for name, path in sorted(self.index["json"].items()) if name.endswith("aerial_metadata.json")]
            self.areas = {number: area for file in found for number, area in read_areas(file).items()}
        if number not in self.areas:
            raise UserError(f"{path}: no folders <domain>/<zone>/ such as D004_2021/Z1_NN/ above it, and no {METADATA} "
                            "that has its domain; unpack the zip of each domain into a folder of its name, as "
                            f"prepare.py does, or put that file below {self.root}")
        return self.areas[number]

    def present(self, i):
        """The land cover of tile i, (13,) bool: one pixel of the whole mask is enough."""
        path, *more = self.masks.get(self.names[i][-6:], [None])
        if path is None or more:
            raise UserError(f"{self.names[i]}: {len(more) + 1 if path else 'no'} files of the labels "
                            f"(msk/MSK_<number>.tif) under {self.root}, expected one")
        mask = read_tif(path, 1)[0]
        is_one = mask.shape == (self.side, self.side) and mask.dtype.kind in "iu"
        if not is_one or not 1 <= mask.min() <= mask.max() <= HIGHEST:
            raise UserError(f"{path}: shape {mask.shape} of type {mask.dtype} with values from {mask.min()} to "
                            f"{mask.max()}, expected {self.side} x {self.side} whole numbers from 1 to {HIGHEST}")
        return np.isin(np.arange(1, len(CLASSES) + 1), np.minimum(mask, len(CLASSES)))

    def sources(self, i):
        series = self.paths.get("s2", [None] * len(self))[i]
        others = [beside(series, end) for end in ("masks.npy", "products.txt")] if series else []
        return super().sources(i) + others + self.masks.get(self.names[i][-6:], []) + [self.centres]

    def remarks(self, i, key):
        """Whether the crop had to be moved inside its area."""
        if key != "s2":
            return []
        height, width = read_npy(self.paths[key][i]).shape[-2:]
        side, moved = self.grid[0], []
        for what, at, size in zip(("rows", "columns"), self.centroids[i], (height, width)):
            if shift := first_pixel(at, side, size) - (at - side // 2):
                moved.append(f"{shift:+d} {what}")
        text = f"the centre {self.centroids[i]} is near the border of {height} x {width} pixels"
        return [f"by {' and '.join(moved)}: {text}"] if moved else []

    def own_paths(self, sensor):
        if sensor.key == "vhr":
            return self.one_each("vhr", [self.index["img"][name[-6:]] for name in self.names], "img/IMG_<number>.tif")
        centroids = self._centroids()
        found = [[at] if (at := centroids.get(name[-10:])) else [] for name in self.names]
        self.centroids = self.one_each("the centroids", found, CENTROIDS)
        paths = self.one_each("s2", [self.index["sen"].get(name[:-11], []) for name in self.names],
                              "sen/SEN2_sp_<domain>-<zone>_data.npy")
        return [path if at is not None else None for path, at in zip(paths, self.centroids)]

    def _centroids(self):
        """{"IMG_000001": (row, column)} in pixels of the area's series."""
        path = self.index["json"].get(CENTROIDS)
        if path is None:
            raise UserError(f"{self.root}: no {CENTROIDS} found, at the root or below")
        what = "the centroids of FLAIR #2"
        content = read_json(path, what)
        try:
            return {name.removesuffix(".tif"): (int(round(row)), int(round(column)))
                    for name, (row, column) in content.items()}
        except (ValueError, TypeError, AttributeError, OverflowError) as error:
            raise UserError(f"{path}: not {what} ({why(error)}); download it again") from error

    def read_own(self, i, sensors):
        """The centre of the image (100 of 102.4 m), and the series of the same ground out of its area's."""
        return {sensor.key: self._image(i) if sensor.key == "vhr" else self._series(i, sensor) for sensor in sensors}

    def _image(self, i):
        path, size = self.paths["vhr"][i], self.grid[0] * PATCH
        image = read_tif(path, 5)
        if image.shape[1:] != (self.side, self.side) or image.dtype != np.uint8:
            raise UserError(f"{path}: shape {image.shape} of type {image.dtype}, expected {self.side} x {self.side} "
                            "pixels of uint8")
        at = (self.side - size) // 2
        return image[:, at:at + size, at:at + size], None

    def _series(self, i, sensor):
        path = self.paths["s2"][i]
        products = beside(path, "products.txt")
        data, days = read_npy(path), read_products(products, sensor)
        if data.ndim != 4 or data.shape[:2] != (len(days), len(sensor.bands)) or data.dtype.kind not in "iuf":
            raise UserError(f"{path}: shape {data.shape} of type {data.dtype}, expected {len(days)} (as many as in "
                            f"{products}) x {len(sensor.bands)} x H x W numbers")
        return crop(data, self.centroids[i], self.grid[0], self.names[i], path), days

    def cloud_path(self, i):
        return beside(self.paths["s2"][i], "masks.npy")

    def cloud(self, i):
        path = self.cloud_path(i)
        masks = read_npy(path)
        if masks.ndim != 4 or masks.shape[1] < 2 or not masks.size or masks.dtype.kind not in "iuf":
            raise UserError(f"{path}: shape {masks.shape} of type {masks.dtype}, expected T x 2 (snow, cloud) x H x W "
                            "numbers")
        masks = crop(masks[:, :2], self.centroids[i], self.grid[0], self.names[i], path)
        return fetch(masks, np.arange(len(masks))).max(1).mean((1, 2))
