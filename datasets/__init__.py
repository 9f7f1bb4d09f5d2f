"""Readers of the raw datasets, one file each, by the name used in arguments and CSV."""
from datasets import own
from datasets.flair import Flair
from datasets.folders import Folders
from datasets.pastis import Pastis
from datasets.sensors import SENSORS
from datasets.tiles import Choices
from datasets.treesatai import TreeSatAI

READERS = {"treesatai-ts": TreeSatAI, "treesatai": TreeSatAI, "pastis-hd": Pastis, "flair": Flair}


def open_dataset(name, root, split, modalities, findings=None, **choices):
    """A split of a dataset. name: of a table of datasets.sensors; a table without a reader is a dataset of one's own.

    The other arguments are those of datasets.tiles.Tiles; choices: the fields of datasets.tiles.Choices.
    """
    own.check_beside(name, root)
    return READERS.get(name, Folders)(root, split, modalities, name, Choices(**choices), findings)


def default_modalities(name):
    """What "all" means for a dataset."""
    return tuple(key for key, sensor in SENSORS[name].items() if sensor.in_all)
