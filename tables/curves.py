"""What probe.py found, for compare.py: rows to curves, curves to lines of text; pictures.py draws them."""
import collections
import functools

import numpy as np

from tables.cells import MODALITIES
from utils.results import PROBE_KEYS, read_cells, read_rows

KEY = "dataset", "modality", "pretraining", "features", "classifier"
CLASSIFIERS = {"logistic": "logistic regression", "knn": "nearest neighbours"}
# by pretraining and features, in order
KINDS = {("self", "tile"): "pretrained, f*", ("self", "tokens"): "pretrained, tokens",
         ("none", "tile"): "random weights, f*", ("none", "tokens"): "random weights, tokens",
         ("none", "handmade"): "made by hand"}


@functools.cache
def metric_of(dataset):
    """The column of the F1 that the paper prints of a dataset, weighted where it prints none (one's own)."""
    printed = (cell["metric"] for cell in read_cells() if cell["dataset"] == dataset and cell["table"] != "table5")
    return next(printed, "f1_weighted")


def collect(path, scale):
    """{(dataset, modality, pretraining, features, classifier): {percent: (mean, low, high, seeds)}} of rows of a scale.

    low, high: of one seed the bootstrap's middle 95 % over the test tiles; of several the mean ± standard deviation
    over seeds.
    """
    values = collections.defaultdict(lambda: collections.defaultdict(list))
    for row in read_rows(path, PROBE_KEYS):
        if row["scale"] == scale and row["ablation"] == "none" and (row["pretraining"], row["features"]) in KINDS:
            key, name = tuple(row[column] for column in KEY), metric_of(row["dataset"])
            values[key][int(row["label_percent"])].append([float(row[f"{name}{end}"]) for end in ("", "_low", "_high")])
    found = {}
    for key, percents in values.items():
        found[key] = {}
        for percent, seeds in sorted(percents.items()):
            mean, low, high = np.mean(seeds, 0)
            if len(seeds) > 1:
                spread = np.std([seed[0] for seed in seeds], ddof=1)
                low, high = mean - spread, mean + spread
            found[key][percent] = mean, low, high, len(seeds)
    return found


def lines(found):
    """Header and lines, by dataset and modality, the mean and what it lies between."""
    percents = sorted({percent for cells in found.values() for percent in cells})
    order = {key: i for i, key in enumerate(KINDS)}
    rows = []
    for dataset in dict.fromkeys(key[0] for key in found):
        for modality in [name for name in MODALITIES if any(key[:2] == (dataset, name) for key in found)]:
            here = [key for key in found if key[:2] == (dataset, modality)]
            for key in sorted(here, key=lambda key: (key[4], order[key[2:4]])):
                cells = [found[key].get(percent) for percent in percents]
                rows.append([dataset, modality, KINDS[key[2:4]], CLASSIFIERS[key[4]],
                             *(f"{cell[0]:.1f} ({cell[1]:.1f} to {cell[2]:.1f})" if cell else "" for cell in cells)])
    return ["dataset", "sees", "features", "classifier", *(f"{percent} %" for percent in percents)], rows
