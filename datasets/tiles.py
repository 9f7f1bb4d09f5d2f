"""What the readers share: a split of tiles, their labels, and where the files of each are.

Dimensions: N tiles, K classes.
"""
import glob
import os
import re
from dataclasses import dataclass
from typing import Optional

import numpy as np
import torch

from datasets.files import read_json, read_text
from datasets.reading import ENDINGS, Reading
from datasets.sensors import SENSORS
from datasets.splits import fingerprint, saved_labels, saved_subset
from utils.errors import UserError

MAX_DATES = 50                 # of a series


def demo_side(marker, side):
    """Pixels a side of a tile: the release's, or what DEMO.json, the marker of generated data, says. marker: its path,
    or None.
    """
    about = read_json(marker, "the marker of generated data") if marker else {}
    found = about.get("side", side) if isinstance(about, dict) else None
    if type(found) is not int or found < 1:
        raise UserError(f"{marker}: says side {found}, expected pixels; delete the folder and generate it again")
    return found


@dataclass(frozen=True)
class Choices:
    """What the options of the scripts choose of a split's tiles, and how these are seen.

    label_percent: of the training tiles, a stratified subset that follows the seed. labelled: False leaves labels out
    (pretraining). max_dates: of a series; None keeps all. max_cloud (%): leave out optical dates whose mean
    probability of cloud or snow is higher; None keeps all. parts: cut each tile into parts x parts tiles. all_bands:
    the sensors' extra bands too. s1: "repaired" puts scrambled Sentinel-1 of TreeSatAI-TS in order, see
    datasets/sentinel1.py; "released" leaves it.
    """
    label_percent: int = 100
    seed: int = 0
    labelled: bool = True
    max_dates: Optional[int] = MAX_DATES
    max_cloud: Optional[float] = None
    parts: int = 1
    all_bands: bool = False
    s1: str = "released"


class Tiles(Reading):
    """Tiles of one split; each dataset is a subclass that finds its files. How one is read: datasets/reading.py.

    root: the raw files. split: train, val or test, or all, every tile that has files, without lists and labels.
    modalities: keys of datasets.sensors. name: the dataset's. choices: of Choices. findings: a list to add what is
    wrong with single tiles to, as (tile, modality, text), instead of stopping at the first (prepare.py).

    A subclass sets `classes`, `folder` (of the release's name) and `grid` (patches: rows, columns), and has
    find(): looks for the files (self.index, if it needs one); returns the path of DEMO.json, which marks generated
        data, or None.
    listed(split): all tiles of a split and their labels (N, K) bool.
    own_paths(sensor): one file a tile, and read_own(i, sensors): their content, for sensors without `files` in their
        entry.
    present(i): the classes of tile i, (K,) bool, where has_label_files.
    """
    classes, folder, grid = (), None, None
    drops_unlabelled = False    # whether a tile without any label is left out of training and test
    has_cloud_masks = False     # whether cloud(i) can tell
    may_lack_images = False     # whether a tile may be without the file of an image, see lacks
    has_label_files = False     # whether labels are collected from a mask a tile, see datasets.splits.saved_labels
    has_list = True             # whether a list says which tile is in which split
    lost = ()                   # what a split of the release has and is not here, by names such as a region's
    skipped = ()                # folders and zips below the root that are not part of the dataset

    def __init__(self, root, split, modalities, name, choices=Choices(), findings=None):
        if not os.path.isdir(root):
            raise UserError(f"{root}: no such folder; --data-root is the folder of the raw files, see README")
        self.root, self.name, self.modalities, self.split = str(root), name, tuple(modalities), split
        self.choices, self.findings = choices, findings
        sensors = [SENSORS[name][key] for key in modalities]
        self.sensors = [sensor.with_all_bands() for sensor in sensors] if choices.all_bands else sensors
        self.sensor = {sensor.key: sensor for sensor in self.sensors}
        self.repaired = self.repairable() if choices.s1 == "repaired" else ()
        marker = self.find()
        self.is_demo = marker is not None
        self.release = f"{self.folder or name}-demo" if self.is_demo else self.folder or name
        # what files of labels and statistics depend on besides the tiles: for generated data what it was generated from
        self.origin = read_text(marker) if self.is_demo else ""
        if choices.max_cloud is not None and not (self.has_cloud_masks and "s2" in modalities):
            without = " without s2" if self.has_cloud_masks else ""
            raise UserError(f"--max-cloud: {name} has no cloud masks{without}; leave the option out")

        names, labels = self.chosen_tiles(split)
        self.names, self.labels = names, torch.from_numpy(labels.astype(np.float32))
        self.paths = {sensor.key: self.paths_of(sensor) for sensor in self.sensors}
        self.index = None    # of all files: not sent to the readers
        self.check_sensors()
        self.split_hash = fingerprint(names)
        repair = ["s1 repaired"] if self.repaired else []
        self.data_hash = fingerprint([*names, str(choices.max_cloud), self.origin, *repair])

    def chosen_tiles(self, split):
        """The names of the tiles that the choices leave of a split, and their labels (N, K) bool. Errors: UserError if
        there are none.
        """
        percent = self.choices.label_percent
        names, labels = self.everything() if split == "all" else self.listed(split)
        self.list_hash, self.list_size = fingerprint(names), len(names)
        if split == "train" and percent < 100 and names:
            row = {tile: i for i, tile in enumerate(names)}
            names = saved_subset(self.release, f"{percent}percent", names, labels, percent / 100, self.choices.seed,
                                 self.origin)
            labels = labels[[row[tile] for tile in names]]
        if self.choices.parts > 1:
            names, labels = self.cut(names)
        if self.choices.labelled and self.drops_unlabelled:
            has_label = labels.any(1)
            names, labels = [tile for tile, there in zip(names, has_label) if there], labels[has_label]
        if not names:
            raise UserError(f"{self.root}: no tile in {split}"
                            + (f" at {percent} % of the labels" if percent < 100 else ""))
        return names, labels

    def repairable(self):
        """The modalities whose files s1="repaired" puts in order. Errors: UserError if the dataset has none such."""
        raise UserError(f"--s1 repaired: only treesatai-ts has Sentinel-1 that can be repaired, {self.name} has not; "
                        "leave the option out")

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
        folders = [folder for folder in {os.path.dirname(path) for path in paths} if os.path.isdir(folder)]
        there = {os.path.join(folder, name) for folder in folders for name in os.listdir(folder)}
        return self.one_each(sensor.key, [[path] if path in there else [] for path in paths], sensor.files)

    def own_paths(self, sensor):
        """paths_of for a sensor without `files`."""
        raise UserError(f"{sensor.key}: its entry for {self.name} in datasets/sensors.py needs files=, such as "
                        f"'{sensor.key}/{{tile}}.npz'")

    def labels_of(self, names):
        """Which classes are present in each tile, (N, K) bool, collected from its mask; none is read if no labels are
        wanted.
        """
        if not self.choices.labelled:
            return np.zeros((len(names), len(self.classes)), bool)
        self.names = names
        return saved_labels(self.release, names, self.origin, self.present, self.classes)

    def one_each(self, key, found, form):
        """The one file of each tile out of those found for it. form: how the file is named, for the error."""
        wrong = [(tile, f"no file of {key} ({form}) under {self.root}" if not paths else
                  f"{len(paths)} files of {key}, {' and '.join(paths)}: keep one")
                 for tile, paths in zip(self.names, found) if len(paths) != 1]
        if wrong and self.findings is None:
            raise UserError(f"{wrong[0][0]}: {wrong[0][1]}; {len(wrong)} of {len(self.names)} tiles have none or "
                            "several")
        if wrong:
            self.findings.extend((tile, key, text) for tile, text in wrong)
        return [paths[0] if len(paths) == 1 else None for paths in found]

    def lacks(self, i, key):
        """Whether tile i is without the image of a sensor: it is read as zeros, and masked."""
        return self.may_lack_images and self.sensor[key].kind == "image" and self.paths[key][i] is None

    def check_sensors(self):
        """Errors: UserError naming a tile that lacks all its sensors, unless `findings` take note."""
        for i, tile in enumerate(self.names if self.may_lack_images else ()):
            if all(self.lacks(i, key) for key in self.modalities):
                text = (f"no file of {', '.join(self.modalities)}, and each tile needs one sensor at least; leave it "
                        "out of the list, or choose other --modalities")
                if self.findings is None:
                    raise UserError(f"{tile}: {text}")
                self.findings.append((tile, self.modalities[0], text))

    # ---- for prepare.py

    def check_label(self, i):
        """The classes of tile i, (K,) bool, read anew. Errors: UserError; here they were read with the list of tiles.
        """
        return self.present(i) if self.has_label_files else self.labels[i].numpy() > 0

    def sources(self, i):
        """The files that tile i is made from; one that is not there counts too, as it may come."""
        paths = dict.fromkeys(self.paths[sensor.key][i] for sensor in self.sensors)
        return [path for path in paths if path is not None]

    def orders(self, i):
        """What stands of a file whose Sentinel-1 may be scrambled: see TreeSatAI.orders; {} of all others."""
        return {}

    def content(self, i):
        """A hash of all that the files of tile i hold, None where the release's names tell tiles apart."""

    def remarks(self, i, key):
        """What a reader had to do about a tile beyond cleaning its series, a text each."""
        return []
