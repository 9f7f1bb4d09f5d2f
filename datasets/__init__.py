"""Readers of the raw datasets, one file each; DATASETS finds them by the name used in arguments and CSV."""
from datasets.treesatai import TreeSatAI

DATASETS = {"treesatai-ts": TreeSatAI, "treesatai": TreeSatAI}
DEFAULT_MODALITIES = {"treesatai-ts": ("vhr", "s2", "s1"), "treesatai": ("vhr", "s2", "s1")}    # what "all" means
