"""What the readers share: a split of tiles, and files in the common formats.

Series are repaired as series.py has it. Whatever else is wrong with a file is a UserError that names it. A value that
was changed is taken as it is: only npz files have checksums.

Dimensions: N tiles, K classes, T dates, C bands, H x W pixels.
"""
import glob
import os
import re

import numpy as np
import torch

from datasets.files import read_json, read_npy, read_npz, read_text, read_tif
from datasets.sensors import SENSORS
from datasets.series import MISSING_SHARE, choose_dates, clean, day_numbers, fetch, filled, missing, native
from datasets.splits import fingerprint, saved_labels, saved_subset
from utils.errors import UserError

MAX_DATES = 50                 # of a series
ENDINGS = (".tif", ".tiff", ".npy", ".npz")    # of files in the common formats, in small letters or large


def demo_side(marker, side):
    """Pixels a side of a tile: the release's, or what DEMO.json, the marker of generated data, says. marker: its path,
    or None.
    """
    about = read_json(marker, "the marker of generated data") if marker else {}
    found = about.get("side", side) if isinstance(about, dict) else None
    if type(found) is not int or found < 1:
        raise UserError(f"{marker}: says side {found}, expected pixels; delete the folder and generate it again")
    return found


# ---- the dataset ----------------------------------------------------------------------------------------------------

class Tiles(torch.utils.data.Dataset):
    """Tiles of one split; each dataset is a subclass that finds its files.

    root: the raw files. split: train, val or test; or all, every tile that has files, without lists and labels.
    modalities: keys of datasets.sensors. name: the dataset's.
    label_percent: of the training tiles, a stratified subset that follows the seed. labelled: False leaves labels out
    (pretraining). max_dates: of a series; None keeps all. max_cloud (%): leave out optical dates whose mean
    probability of cloud or snow is higher; None keeps all. parts: cut each tile into parts x parts tiles. all_bands:
    the sensors' extra bands too.
    findings: a list to add what is wrong with single tiles to, as (tile, modality, text), instead of stopping at the
    first (prepare.py). s1: "repaired" puts scrambled Sentinel-1 of TreeSatAI-TS in order, see datasets/sentinel1.py.
    dataset[i] takes evenly spread dates of a long series, dataset[i, n] random ones, the same for the same seed and n
    (the pass).

    A subclass sets `classes`, `folder` (of the release's name) and `grid` (patches: rows, columns), and has
    find(): looks for the files (self.index, if it needs one); returns the path of DEMO.json, which marks generated data,
        or None.
    listed(split): all tiles of a split and their labels (N, K) bool.
    own_paths(sensor): one file a tile, and read_own(i, sensors): their content, for sensors without `files` in their entry.
    present(i): the classes of tile i, (K,) bool, where has_label_files.
    """
    classes, folder, grid = (), None, None
    drops_unlabelled = False    # whether a tile without any label is left out of training and test
    has_cloud_masks = False     # whether cloud(i) can tell
    has_label_files = False     # whether labels are collected from a mask a tile, see datasets.splits.saved_labels
    lost = ()                   # what a split of the release has and is not here, by names such as a region's
    skipped = ()                # folders and zips below the root that are not part of the dataset

    def __init__(self, root, split, modalities, name, label_percent=100, seed=0, labelled=True, max_dates=MAX_DATES,
                 max_cloud=None, parts=1, all_bands=False, findings=None, s1="released"):
        if not os.path.isdir(root):
            raise UserError(f"{root}: no such folder; --data-root is the folder of the raw files, see README")
        self.root, self.name, self.modalities, self.seed = str(root), name, tuple(modalities), seed
        self.sensor = {key: SENSORS[name][key].with_all_bands() if all_bands else SENSORS[name][key] for key in modalities}
        self.sensors, self.all_bands = list(self.sensor.values()), all_bands
        self.labelled, self.max_dates, self.max_cloud, self.parts = labelled, max_dates, max_cloud, parts
        self.findings = findings
        if s1 != "released" and not any(map(self.can_repair, SENSORS[name])):
            raise UserError(f"--s1 {s1}: only treesatai-ts has Sentinel-1 that can be repaired, {name} has not; leave the option out")
        self.s1 = s1 if any(map(self.can_repair, modalities)) else "released"
        self.split = split
        marker = self.find()
        self.is_demo = marker is not None
        self.release = f"{self.folder or name}-demo" if self.is_demo else self.folder or name
        # what files of labels and statistics depend on besides the tiles: for generated data what it was generated from
        self.origin = read_text(marker) if self.is_demo else ""

        if max_cloud is not None and not (self.has_cloud_masks and "s2" in modalities):
            raise UserError(f"--max-cloud: {name} has no cloud masks{' without s2' if self.has_cloud_masks else ''}; leave the option out")

        names, labels = self.everything() if split == "all" else self.listed(split)
        self.list_hash, self.list_size = fingerprint(names), len(names)
        if split == "train" and label_percent < 100 and names:
            row = {tile: i for i, tile in enumerate(names)}
            names = saved_subset(self.release, f"{label_percent}percent", names, labels, label_percent / 100, seed, self.origin)
            labels = labels[[row[tile] for tile in names]]
        if parts > 1:
            names, labels = self.cut(names)
        if labelled and self.drops_unlabelled:
            names, labels = [tile for tile, there in zip(names, labels.any(1)) if there], labels[labels.any(1)]
        if not names:
            raise UserError(f"{root}: no tile in {split}" + (f" at {label_percent} % of the labels" if label_percent < 100 else ""))
        self.names, self.labels = names, torch.from_numpy(labels.astype(np.float32))
        self.paths = {sensor.key: self.paths_of(sensor) for sensor in self.sensors}
        self.index = None                                                         # of all files: not sent to the readers
        self.split_hash = fingerprint(names)
        self.data_hash = fingerprint([*names, str(max_cloud), self.origin, *([] if self.s1 == "released" else [f"s1 {s1}"])])

    def can_repair(self, key):
        """Whether the reader knows how to repair a sensor's files, for s1="repaired"."""
        return False

    def cut(self, names):
        """Names and labels of the parts of the tiles."""
        raise UserError(f"--parts: the labels of {self.name} belong to whole tiles; leave the option out")

    def base(self):
        """The folder that `files` of a sensor's entry starts from."""
        return self.root

    def tile(self, i):
        """The name of the tile that i is, or is a part of."""
        return self.names[i]

    # ---- every tile that there is

    def everything(self):
        """The tiles that have files, whatever lists say, in the order of their names, and no label, (N, K) False.

        Errors: UserError naming a sensor of which there is no file.
        """
        found = {sensor.key: self.there(sensor) for sensor in self.sensors}
        if lacks := [sensor for sensor in self.sensors if not found[sensor.key]]:
            form = f" ({lacks[0].files})" if lacks[0].files else ""
            raise UserError(f"{self.root}: no file of {lacks[0].key}{form} of any tile; is this the folder of "
                            f"{self.name}? else leave the sensor out, see --modalities")
        names = sorted(set().union(*found.values()))
        return names, np.zeros((len(names), len(self.classes)), bool)

    def there(self, sensor):
        """The names of the tiles that have a file of a sensor; here of one with `files`, which is looked for by it."""
        form = sensor.files or "{tile}"                                           # without: paths_of tells
        same = re.escape(form).replace(r"\{tile\}", "(?P<tile>[^/]+)", 1).replace(r"\{tile\}", "(?P=tile)")
        paths = glob.glob("*".join(map(glob.escape, form.split("{tile}"))), root_dir=self.base())
        return {match["tile"] for match in (re.fullmatch(same, path.replace(os.sep, "/")) for path in paths) if match}

    def paths_of(self, sensor):
        """The file of each tile, None where it is missing and `findings` took note. Errors: UserError naming the tile.
        """
        if sensor.files is None:
            return self.own_paths(sensor)
        if not sensor.files.lower().endswith(ENDINGS):
            raise UserError(f"{sensor.key}: its entry in datasets/sensors.py has files={sensor.files!r}, expected one "
                            f"of {', '.join(ENDINGS)} at its end")
        paths = [os.path.join(self.base(), sensor.files.format(tile=self.tile(i))) for i in range(len(self.names))]
        folders = {os.path.dirname(path) for path in paths}
        there = {os.path.join(folder, name) for folder in folders if os.path.isdir(folder) for name in os.listdir(folder)}
        return self.one_each(sensor.key, [[path] if path in there else [] for path in paths], sensor.files)

    def own_paths(self, sensor):
        """paths_of for a sensor without `files`."""
        raise UserError(f"{sensor.key}: its entry for {self.name} in datasets/sensors.py needs files=, such as "
                        f"'{sensor.key}/{{tile}}.npz'")

    def labels_of(self, names):
        """Which classes are present in each tile, (N, K) bool, collected from its mask; none is read if no labels are
        wanted.
        """
        if not self.labelled:
            return np.zeros((len(names), len(self.classes)), bool)
        self.names = names
        return saved_labels(self.release, names, self.origin, self.present, self.classes)

    def one_each(self, key, found, form):
        """The one file of each tile out of those found for it. form: how the file is named, for the error."""
        wrong = [(tile, f"no file of {key} ({form}) under {self.root}" if not paths else
                  f"{len(paths)} files of {key}, {' and '.join(paths)}: keep one")
                 for tile, paths in zip(self.names, found) if len(paths) != 1]
        if wrong and self.findings is None:
            raise UserError(f"{wrong[0][0]}: {wrong[0][1]}; {len(wrong)} of {len(self.names)} tiles have none or several")
        if wrong:
            self.findings.extend((tile, key, text) for tile, text in wrong)
        return [paths[0] if len(paths) == 1 else None for paths in found]

    # ---- for prepare.py

    def check_label(self, i):
        """The classes of tile i, (K,) bool, read anew. Errors: UserError; here they were read with the list of tiles.
        """
        return self.present(i) if self.has_label_files else self.labels[i].numpy() > 0

    def sources(self, i):
        """The files that tile i is made from; one that is not there counts too, as it may come."""
        return [path for path in dict.fromkeys(self.paths[sensor.key][i] for sensor in self.sensors) if path is not None]

    def orders(self, i):
        """What stands of a file whose Sentinel-1 may be scrambled: see TreeSatAI.orders; {} of all others."""
        return {}

    def content(self, i):
        """A hash of all that the files of tile i hold, None where the release's names tell tiles apart."""

    def remarks(self, i, key):
        """What a reader had to do about a tile beyond cleaning its series, a text each."""
        return []

    def __len__(self):
        return len(self.names)

    # ---- one tile

    def days(self, i, sensor, path):
        """Dates (T,) as YYYYMMDD of a series whose file holds none, and what they are from, for errors."""
        raise UserError(f"{path}: a series needs its dates: an npz file with data and dates")

    def stored(self, i, keys):
        """raw, but series of .npy files are memory-mapped, in the file's type, their pixels not read yet."""
        sensors = [self.sensor[key] for key in keys]
        tile = self.read_own(i, [sensor for sensor in sensors if sensor.files is None])
        return tile | {sensor.key: self.read_file(i, sensor) for sensor in sensors if sensor.files}

    def raw(self, i, keys):
        """One tile as the files have it: {key: (image (C, H, W), None) or (series (T, C, H, W), day numbers (T,))}."""
        return {key: (self.whole(key, data), days) for key, (data, days) in self.stored(i, keys).items()}

    def whole(self, key, data):
        """All dates of a stored series; other data as it is."""
        nodata = self.sensor[key].nodata
        return fetch(data, np.arange(len(data)), nodata) if isinstance(data, np.memmap) else native(data, nodata)

    def read_own(self, i, sensors):
        """stored for sensors without `files`."""
        return {}

    def read_file(self, i, sensor):
        """stored for a file of the common formats, checked against the sensor's entry."""
        path, dates = self.paths[sensor.key][i], None
        source = path                                                             # of the dates
        kind = os.path.splitext(path)[1].lower()
        if kind in (".tif", ".tiff"):
            data = read_tif(path, len(sensor.bands))
        elif kind == ".npz":
            data, dates = read_npz(path)
        else:
            data = read_npy(path)
        if data.ndim != (3 if sensor.kind == "image" else 4) or data.shape[-3] != len(sensor.bands) or data.dtype.kind not in "iuf":
            raise UserError(f"{path}: shape {data.shape} of type {data.dtype}, expected "
                            f"{'' if sensor.kind == 'image' else 'T x '}{len(sensor.bands)} x H x W numbers")
        self.check_grid(sensor, data.shape, path)
        if self.parts > 1:
            data = data[..., self.window(i, data.shape[-2], 0), self.window(i, data.shape[-1], 1)]
        if sensor.kind == "image":
            return native(np.array(data), sensor.nodata), None
        if dates is None:
            dates, source = self.days(i, sensor, path)
        if len(dates) != len(data):
            raise UserError(f"{path}: {len(data)} images but {len(dates)} dates" + (f" in {source}" if source != path else "")
                            + ", expected one each")
        return data if isinstance(data, np.memmap) else native(data, sensor.nodata), day_numbers(dates, sensor, source)

    def check_grid(self, sensor, shape, path):
        """Errors: UserError if a file's pixels (H, W last in shape) are not the dataset's grid of patches."""
        if self.grid is None:
            return
        rows, columns = self.grid
        if tuple(shape[-2:]) != (rows * sensor.patch, columns * sensor.patch):
            raise UserError(f"{path}: shape {tuple(shape)}, expected {rows * sensor.patch} x {columns * sensor.patch} pixels: "
                            f"{rows} x {columns} patches of {sensor.patch} pixels")

    def finish(self, key, data):
        """What is left to do with a cleaned series."""
        return data

    def cloud(self, i):
        """Mean over the pixels of the larger probability of snow and cloud, %, (T,) beside the raw dates of s2."""
        raise NotImplementedError                                                 # has_cloud_masks says where it is

    def cloud_path(self, i):
        """The file that cloud reads."""
        return self.paths["s2"][i]

    def is_cloudy(self, i, key, days):
        """Which dates of a series max_cloud leaves out, (T,) bool."""
        if key != "s2" or self.max_cloud is None:
            return np.zeros(len(days), bool)
        cloud = self.cloud(i)
        if len(cloud) != len(days) or not np.isfinite(cloud).all():
            raise UserError(f"{self.cloud_path(i)}: {len(days)} dates of s2 but {np.isfinite(cloud).sum()} cloud masks with numbers; "
                            "leave out --max-cloud, or download it again")
        return cloud > self.max_cloud

    def cleaned_image(self, i, key, data):
        """An image (C, H, W), its missing pixels filled as those of a series if its sensor's entry has a nodata value.

        Errors: UserError naming the file if a band lacks over half of its pixels, or if NaN comes without an entry.
        """
        sensor = self.sensor[key]
        is_missing = missing(data, sensor.nodata, sensor.lowest)
        if not is_missing.any():
            return data
        if sensor.nodata is None:
            raise UserError(f"{self.paths[key][i]}: holds values that are not finite, expected numbers in every pixel of an "
                            f"image; if such were not seen, the entry of {key} in datasets/sensors.py needs nodata=, and they "
                            "are filled")
        share = is_missing.mean((1, 2))
        if share.max() > MISSING_SHARE:
            raise UserError(f"{self.paths[key][i]}: {share.max():.0%} of the pixels of {sensor.bands[share.argmax()]} are "
                            f"nodata, expected at most {MISSING_SHARE:.0%}: leave the tile out of the list")
        return filled(data, is_missing)

    def cleaned(self, key, data, days, is_cloudy=False):
        """What is usable of a raw series, in time order: data (T, C, H, W), days (T,)."""
        data, days = clean(data, days, is_cloudy, self.sensor[key].nodata, self.sensor[key].lowest)
        return self.finish(key, data), days

    def read(self, i):
        """One tile, cleaned, all dates: {key: (image (C, H, W), None) or (series (T, C, H, W), day numbers (T,))}."""
        return {key: (self.cleaned_image(i, key, data), None) if days is None else
                self.cleaned(key, data, days, self.is_cloudy(i, key, days))
                for key, (data, days) in self.raw(i, self.modalities).items()}

    def chosen(self, i, key, data, days, rng):
        """At most max_dates of a stored series, cleaned: data (T, C, H, W), days (T,). rng: see choose_dates.

        Of a memory-mapped file, days are chosen first and only these are read. If one of them turns out to be of no
        use, all are read and the choice is made anew among what is: a series has fewer than max_dates only if there
        are no more.
        """
        is_cloudy = self.is_cloudy(i, key, days)
        distinct = np.unique(days[~is_cloudy])
        if self.max_dates is not None and isinstance(data, np.memmap) and len(distinct) > self.max_dates:
            state = rng and rng.bit_generator.state
            wanted = distinct[choose_dates(len(distinct), self.max_dates, rng)]
            dates = np.flatnonzero(np.isin(days, wanted) & ~is_cloudy)            # all acquisitions: the first may be of no use
            some, usable = self.cleaned(key, fetch(data, dates, self.sensor[key].nodata), days[dates])
            if len(usable) == len(wanted):
                return some, usable
            if rng:
                rng.bit_generator.state = state                                   # as if these dates had not been chosen
        data, days = self.cleaned(key, self.whole(key, data), days, is_cloudy)
        chosen = choose_dates(len(days), self.max_dates, rng)
        return data[chosen], days[chosen]

    def __getitem__(self, index):
        i, turn = index if isinstance(index, tuple) else (index, None)
        rng = None if turn is None else np.random.default_rng((self.seed, turn, i))
        item = {"name": self.names[i], "label": self.labels[i]}
        for key, (data, days) in self.stored(i, self.modalities).items():
            if days is not None:
                data, days = self.chosen(i, key, data, days, rng)
                item[f"{key}_dates"] = torch.from_numpy(days)
            else:
                data = self.cleaned_image(i, key, data)
            item[key] = torch.from_numpy(data)
        return item
