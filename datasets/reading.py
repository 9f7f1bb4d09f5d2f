"""One tile, from its files to tensors: files in the common formats, cleaned, and the dates that are taken of a series.

Series are repaired as series.py has it. Whatever else is wrong with a file is a UserError that names it. A value that
was changed is taken as it is: only npz files have checksums.

Dimensions: K classes, T dates, C bands, H x W pixels.
"""
import os

import numpy as np
import torch

from datasets.files import read_npy, read_npz, read_tif
from datasets.series import MISSING_SHARE, choose_dates, clean, day_numbers, fetch, filled, missing, native
from utils.errors import UserError

ENDINGS = (".tif", ".tiff", ".npy", ".npz")    # of files in the common formats, in small letters or large


class Reading(torch.utils.data.Dataset):
    """How datasets.tiles.Tiles, which knows the files, reads a tile.

    dataset[i] takes evenly spread dates of a long series, dataset[i, n] random ones, the same for the same seed and n
    (the pass): {"name", "label" (K,), <key>: image (C, H, W) or series (T, C, H, W) with <key>_dates (T,)}. Where
    images may be missing, <key>_missing () bool says whether this one is: then it is zeros.
    """

    def __len__(self):
        return len(self.names)

    # ---- files

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
        """stored for a file of the common formats, checked against the sensor's entry; zeros for a missing image."""
        if self.lacks(i, sensor.key):
            return np.zeros((len(sensor.bands), *(side * sensor.patch for side in self.grid)), np.uint8), None
        path, dates = self.paths[sensor.key][i], None
        source = path                                                             # of the dates
        kind = os.path.splitext(path)[1].lower()
        if kind in (".tif", ".tiff"):
            data = read_tif(path, len(sensor.bands))
        elif kind == ".npz":
            data, dates = read_npz(path, sensor.kind == "series")
        else:
            data = read_npy(path)
        is_image = sensor.kind == "image"
        if data.ndim != 4 - is_image or data.shape[-3] != len(sensor.bands) or data.dtype.kind not in "iuf":
            raise UserError(f"{path}: shape {data.shape} of type {data.dtype}, expected "
                            f"{'' if is_image else 'T x '}{len(sensor.bands)} x H x W numbers")
        self.check_grid(sensor, data.shape, path)
        if self.choices.parts > 1:
            data = data[..., self.window(i, data.shape[-2], 0), self.window(i, data.shape[-1], 1)]
        if is_image:
            return native(np.array(data), sensor.nodata), None
        if dates is None:
            dates, source = self.days(i, sensor, path)
        if len(dates) != len(data):
            raise UserError(f"{path}: {len(data)} images but {len(dates)} dates"
                            + (f" in {source}" if source != path else "") + ", expected one each")
        return (data if isinstance(data, np.memmap) else native(data, sensor.nodata),
                day_numbers(dates, sensor, source))

    def check_grid(self, sensor, shape, path):
        """Errors: UserError if a file's pixels (H, W last in shape) are not the dataset's grid of patches."""
        if self.grid is None:
            return
        rows, columns = self.grid
        if tuple(shape[-2:]) != (rows * sensor.patch, columns * sensor.patch):
            raise UserError(f"{path}: shape {tuple(shape)}, expected {rows * sensor.patch} x {columns * sensor.patch} "
                            f"pixels: {rows} x {columns} patches of {sensor.patch} pixels")

    # ---- cleaning

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
        most = self.choices.max_cloud
        if key != "s2" or most is None:
            return np.zeros(len(days), bool)
        cloud = self.cloud(i)
        if len(cloud) != len(days) or not np.isfinite(cloud).all():
            raise UserError(f"{self.cloud_path(i)}: {len(days)} dates of s2 but {np.isfinite(cloud).sum()} cloud masks "
                            "with numbers; leave out --max-cloud, or download it again")
        return cloud > most

    def cleaned_image(self, i, key, data):
        """An image (C, H, W), its missing pixels filled as those of a series if its sensor's entry has a nodata value.

        Errors: UserError naming the file if a band lacks over half of its pixels, or if NaN comes without an entry.
        """
        sensor = self.sensor[key]
        is_missing = missing(data, sensor.nodata, sensor.lowest)
        if not is_missing.any() or self.lacks(i, key):
            return data
        if sensor.nodata is None:
            raise UserError(f"{self.paths[key][i]}: holds values that are not finite, expected numbers in every pixel "
                            f"of an image; if such were not seen, the entry of {key} in datasets/sensors.py needs "
                            "nodata=, and they are filled")
        share = is_missing.mean((1, 2))
        if share.max() > MISSING_SHARE:
            raise UserError(f"{self.paths[key][i]}: {share.max():.0%} of the pixels of {sensor.bands[share.argmax()]} "
                            f"are nodata, expected at most {MISSING_SHARE:.0%}: leave the tile out of the list")
        return filled(data, is_missing)

    def cleaned(self, key, data, days, is_cloudy=False):
        """What is usable of a raw series, in time order: data (T, C, H, W), days (T,)."""
        data, days = clean(data, days, is_cloudy, self.sensor[key].nodata, self.sensor[key].lowest)
        return self.finish(key, data), days

    # ---- a tile

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
        is_cloudy, most = self.is_cloudy(i, key, days), self.choices.max_dates
        distinct = np.unique(days[~is_cloudy])
        if most is not None and isinstance(data, np.memmap) and len(distinct) > most:
            state = rng and rng.bit_generator.state
            wanted = distinct[choose_dates(len(distinct), most, rng)]
            # all acquisitions: the first may be of no use
            dates = np.flatnonzero(np.isin(days, wanted) & ~is_cloudy)
            some, usable = self.cleaned(key, fetch(data, dates, self.sensor[key].nodata), days[dates])
            if len(usable) == len(wanted):
                return some, usable
            if rng:
                rng.bit_generator.state = state                               # as if these dates had not been chosen
        data, days = self.cleaned(key, self.whole(key, data), days, is_cloudy)
        chosen = choose_dates(len(days), most, rng)
        return data[chosen], days[chosen]

    def __getitem__(self, index):
        i, turn = index if isinstance(index, tuple) else (index, None)
        rng = None if turn is None else np.random.default_rng((self.choices.seed, turn, i))
        item, seen = {"name": self.names[i], "label": self.labels[i]}, 0
        lacking = [key for key in self.modalities if self.lacks(i, key)]
        for key, (data, days) in self.stored(i, self.modalities).items():
            if days is not None:
                data, days = self.chosen(i, key, data, days, rng)
                item[f"{key}_dates"], seen = torch.from_numpy(days), seen + len(days)
            else:
                data, seen = self.cleaned_image(i, key, data), seen + (key not in lacking)
                if self.may_lack_images:
                    item[f"{key}_missing"] = torch.tensor(key in lacking)
            item[key] = torch.from_numpy(data)
        if lacking and not seen:
            raise UserError(f"{self.names[i]}: no file of {', '.join(lacking)}, and no date of the others; each tile "
                            "needs one sensor at least: leave it out of the list, or choose other --modalities")
        return item
