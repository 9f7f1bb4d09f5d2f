"""What probe.py found, for compare.py: rows to curves, curves to lines of text and to a picture, of each method."""
import collections
import functools

import numpy as np

from tables.cells import MODALITIES
from utils.results import PROBE_KEYS, read_cells, read_rows

FIRST = "omnisat"
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


def kind_of(kind, model):
    """What a method's curve shows, in words. kind: of KINDS."""
    return KINDS[kind] if model == FIRST else KINDS[kind].replace("f*", "features")


def collect(path, scale):
    """{method: its curves} of rows of a scale, OmniSat first; each with those of features made by hand."""
    rows = [row for row in read_rows(path, PROBE_KEYS) if row["scale"] == scale and row["ablation"] == "none"
            and (row["pretraining"], row["features"]) in KINDS]
    found = {}
    for model in sorted({row["model"] for row in rows} - {"handmade"}, key=lambda model: (model != FIRST, model)):
        datasets = {row["dataset"] for row in rows if row["model"] == model}
        found[model] = curves_of([row for row in rows if row["model"] in (model, "handmade")
                                  and row["dataset"] in datasets])
    return found


def curves_of(rows):
    """{(dataset, modality, pretraining, features, classifier): {percent: (mean, low, high, seeds)}}.

    low, high: of one seed the bootstrap's middle 95 % over the test tiles; of several the mean ± standard deviation
    over seeds.
    """
    values = collections.defaultdict(lambda: collections.defaultdict(list))
    for row in rows:
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


def modalities_of(found, usual):
    """The modalities of curves, in the usual order, others such as s2+s1 below."""
    there = {key[1] for key in found}
    return [name for name in usual if name in there] + sorted(there - {*usual})


def lines(found, model):
    """Header and lines, by dataset and modality, the mean and what it lies between. found: a method's curves."""
    percents = sorted({percent for cells in found.values() for percent in cells})
    order = {key: i for i, key in enumerate(KINDS)}
    rows = []
    for dataset in dict.fromkeys(key[0] for key in found):
        for modality in modalities_of(found, MODALITIES):
            here = [key for key in found if key[:2] == (dataset, modality)]
            for key in sorted(here, key=lambda key: (key[4], order[key[2:4]])):
                cells = [found[key].get(percent) for percent in percents]
                rows.append([dataset, modality, kind_of(key[2:4], model), CLASSIFIERS[key[4]],
                             *(f"{cell[0]:.1f} ({cell[1]:.1f} to {cell[2]:.1f})" if cell else "" for cell in cells)])
    return ["dataset", "sees", "features", "classifier", *(f"{percent} %" for percent in percents)], rows


def style_of(features):
    """How the curve of features is drawn."""
    return "--" if features == "tokens" else "-"


def draw(path, found, model, remark):
    """F1 over the share of the labels, logistic regression: a row of panels a dataset, a panel for all sensors and for
    each alone.

    found: a method's curves.
    """
    from tables import pictures                                               # with matplotlib
    looks = {("self", "tile"): (pictures.BLUE, "o"), ("self", "tokens"): (pictures.BLUE, "s"),
             ("none", "tile"): ("0.55", "o"), ("none", "tokens"): ("0.55", "s"),
             ("none", "handmade"): (pictures.ORANGE, "^")}                    # colour and marker
    if model != FIRST:
        looks = {kind: look for kind, look in looks.items() if kind[1] != "tokens"}
    datasets = list(dict.fromkeys(key[0] for key in found))
    modalities = modalities_of(found, pictures.MODALITIES)
    whose = "" if model == FIRST else f" of {model}"
    title = f"Logistic regression on frozen features{whose}: F1 on test, by the share of the labels"
    figure = pictures.new_figure(3.4 * len(modalities) + 1, 3 * len(datasets) + 1.4, title, remark)
    panels = figure.subplots(len(datasets), len(modalities), sharex=True, sharey="row", squeeze=False)
    for dataset, row in zip(datasets, panels):
        for modality, panel in zip(modalities, row):
            for (pretraining, features), (color, marker) in looks.items():
                cells = found.get((dataset, modality, pretraining, features, "logistic"), {})
                if cells:
                    means = np.array([cell[:3] for cell in cells.values()])
                    panel.plot(list(cells), means[:, 0], color=color, marker=marker, markersize=4.5, linewidth=1.3,
                               linestyle=style_of(features))
                    panel.fill_between(list(cells), means[:, 1], means[:, 2], color=color, alpha=0.13, linewidth=0)
            panel.set_xscale("log")
            panel.set_title(f"{pictures.DATASETS.get(dataset, dataset)}, {pictures.MODALITIES.get(modality, modality)}",
                            fontsize=9)
            panel.grid(color="0.92")
            ticks = sorted({percent for key, cells in found.items() if key[0] == dataset for percent in cells})
            panel.set_xticks(ticks, map(str, ticks))
            panel.minorticks_off()
        row[0].set_ylabel(f"{'macro' if metric_of(dataset) == 'f1_macro' else 'weighted'} F1 (%)")
    for panel in panels[-1]:
        panel.set_xlabel("share of the labels (%)")
    seeds = sorted({cell[3] for cells in found.values() for cell in cells.values()})
    signs = [pictures.Line2D([], [], marker=marker, markersize=5, color=color, linestyle=style_of(kind[1]),
                             label=kind_of(kind, model)) for kind, (color, marker) in looks.items()]
    spread = ("95 % of a bootstrap over the test tiles, one seed" if seeds == [1] else
              f"± standard deviation over {seeds[-1]} seeds")
    signs.append(pictures.sign("s", size=9, color="0.85", label=f"of each curve: {spread}"))
    note = ("a class counts where it is more probable than not; where features tell little, that is rare, with more "
            "labels too")
    figure.legend(handles=signs, loc="outside lower center", ncols=6 if len(modalities) > 2 else 2, fontsize=8.5,
                  title=note, title_fontsize=8)
    figure.savefig(path)
