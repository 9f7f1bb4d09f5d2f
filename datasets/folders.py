"""A dataset of one's own: its sensors are in a file (datasets/own.py) or a table of datasets/sensors.py, its files lie
where these say.

    labels.csv      tile,split,<class>,<class>,...      a line a tile: its name, train, val or test, then 0 or 1 a class
Without a val tile, 15 % of train are held out for validation, stratified, the same for everybody. Where no labels are
wanted, the classes may be left out, or the whole list: then all tiles that have a file are for training.
"""
import csv
import glob
import hashlib
import io
import os
import re
from pathlib import Path

import numpy as np

from datasets.files import read_text, why
from datasets.splits import drawn_val, fingerprint
from datasets.tiles import Tiles
from utils.errors import UserError


class Folders(Tiles):
    """Tiles listed in labels.csv; see datasets.tiles.Tiles."""

    def find(self):
        self.table = os.path.join(self.root, "labels.csv")
        marker = os.path.join(self.root, "DEMO.json")
        self.has_list = self.labelled or os.path.exists(self.table)
        self.index = self.read_list() if self.has_list else self.found()
        return marker if os.path.exists(marker) else None

    def found(self):
        """Lines of a list, of all tiles that have a file of a sensor, in the order of their names."""
        tiles = set()
        for form in (sensor.files for sensor in self.sensors if sensor.files):
            first, *others = form.split("{tile}")
            name = re.escape(first) + "([^/]+)" + r"\1".join(re.escape(part) for part in others)
            paths = glob.glob("*".join(map(glob.escape, (first, *others))), root_dir=self.base())
            tiles |= {match[1] for path in paths if (match := re.fullmatch(name, path.replace(os.sep, "/")))}
        if not tiles:
            raise UserError(f"{self.root}: no labels.csv, and no file of {' or '.join(self.modalities)}: "
                            + ", ".join(str(sensor.files) for sensor in self.sensors))
        return [[tile, "train"] for tile in sorted(tiles)]

    def read_list(self):
        """The lines of labels.csv, below its header, whose classes become those of the dataset."""
        text = read_text(self.table, "expected are lines tile,split,<class>,...")
        try:
            (first, second, *self.classes), *lines = [row for row in csv.reader(io.StringIO(text)) if row]
        except (ValueError, csv.Error) as error:
            raise UserError(f"{self.table}: cannot be read ({why(error)}); expected are lines tile,split,<class>,...") from error
        is_named = "".join(self.classes).isprintable() and (self.classes or not self.labelled)
        if not is_named or len(set(self.classes)) < len(self.classes):
            raise UserError(f"{self.table}: its header names no class, or one twice; expected tile,split,<class>,...")
        seen = set()
        for row in lines:
            if (first, second) != ("tile", "split") or len(row) != 2 + len(self.classes) or row[1] not in ("train", "val", "test") \
                    or not set(row[2:]) <= {"0", "1"} or row[0] in seen or not row[0].isprintable():
                raise UserError(f"{self.table}: the line {','.join(row)[:99]!r}: expected a tile (once), train, val or test, then 0 or 1 "
                                f"for each of {', '.join(self.classes)[:400]}, below a header tile,split,<class>,...")
            seen.add(row[0])
        return lines

    def listed(self, split):
        def rows(split):
            found = [row for row in self.index if row[1] == split]
            labels = np.array([row[2:] for row in found], str).reshape(len(found), len(self.classes))
            return [row[0] for row in found], labels == "1"
        names, labels = rows(split)
        if rows("val")[0] or split == "test":
            return names, labels
        names, labels = rows("train")
        if not names:
            return names, labels
        val = set(drawn_val(self.release, names, labels, self.origin))
        kept = [i for i, name in enumerate(names) if (name in val) == (split == "val")]
        return [names[i] for i in kept], labels[kept]

    def content(self, i):
        """See Tiles. Files that cannot be read are another finding."""
        try:
            files = [Path(self.paths[sensor.key][i]).read_bytes() for sensor in self.sensors]
            return fingerprint([hashlib.sha256(content).hexdigest() for content in files])
        except (OSError, TypeError):    # TypeError: there is no path
            return None

    def paths_of(self, sensor):
        """Reads the first tile's file as well: it decides the grid, here and not in each reading process for itself."""
        paths = super().paths_of(sensor)
        if self.grid is None and paths[0] is not None:
            self.paths = {sensor.key: paths}
            try:
                self.read_file(0, sensor)
            except UserError:
                if self.findings is None:
                    raise
        return paths

    def check_grid(self, sensor, shape, path):
        """The first file read decides the grid of patches; all others must have it too."""
        if self.grid is None:
            self.grid = max(1, shape[-2] // sensor.patch), max(1, shape[-1] // sensor.patch)
        super().check_grid(sensor, shape, path)
