"""The pictures of compare.py, a table's cells beside the paper's, and figure 5; and of prepare.py. Drawn without a
display (Agg).
"""
import math
import textwrap

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import Bbox

from datasets.sentinel1 import restored
from tables.curves import KINDS, metric_of

DATASETS = {"treesatai": "TreeSatAI (single dates)", "treesatai-ts": "TreeSatAI-TS (time series)",
            "pastis-hd": "PASTIS-HD", "flair": "FLAIR"}
MODALITIES = {"all": "all modalities", "s1": "Sentinel-1", "s2": "Sentinel-2", "vhr": "VHR image"}
PRETRAINING = {"none": "from scratch", "self": "self-supervised", "imagenet": "ImageNet", "external": "external data"}
BLUE, ORANGE = "#0072B2", "#D55E00"    # of Okabe and Ito: told apart by the colour-blind
# colour and marker, by curves.KINDS
PROBES = {("self", "tile"): (BLUE, "o"), ("self", "tokens"): (BLUE, "s"), ("none", "tile"): ("0.55", "o"),
          ("none", "tokens"): ("0.55", "s"), ("none", "handmade"): (ORANGE, "^")}
LARGEST = 56    # diameter of figure 5's largest disc, points
DURATIONS = {"1 s": 1 / 3600, "5 s": 1 / 720, "20 s": 1 / 180, "1 min": 1 / 60, "5 min": 1 / 12, "20 min": 1 / 3,
             "1 h": 1, "5 h": 5, "1 day": 24, "4 days": 96, "16 days": 384}    # hours


def new_figure(width, height, title, remark):
    """A figure on the Agg backend, laid out around its legend and title. width, height (inches); remark: e.g. the
    demo's.
    """
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    figure.get_layout_engine().set(wspace=0.03)
    FigureCanvasAgg(figure)
    lines = [line for text in (title, remark) for line in textwrap.wrap(text, int(10 * width))]
    figure.suptitle("\n".join(lines), fontsize=11, fontweight="bold", color="#B00000" if remark else "black")
    return figure


def sign(marker="o", size=6, color="0.3", **options):
    """A marker, for the legend or to be drawn."""
    return Line2D([], [], marker=marker, markersize=size, color=color, linestyle="none", **options)


# ---- a table --------------------------------------------------------------------------------------------------------

def draw_table(path, cells, remark, repaired=None):
    """Rows are methods (ablations in table 5), panels are modalities. cells, repaired: as collect.collect gives them.
    """
    repaired = repaired or {}
    every = cells | {key: cell for key, cell in repaired.items() if key not in cells}
    table, metric = next(iter(every))[0], next(iter(every.values()))["metric"]
    modalities = [m for m in MODALITIES if any(key[5] == m for key in every)]
    percents = sorted({key[6] for key in every}, key=int)
    looks = {p: (ORANGE, "s", 0.17) if p == "100" else (BLUE, "o", -0.17) for p in percents}
    heights, labels = {}, []    # heights: by dataset, method, ...; labels from above: a dataset, then its methods
    for key, cell in every.items():
        if (key[1],) not in heights:
            heights[key[1],] = len(labels)
            labels.append(DATASETS[key[1]])
        if key[:5] not in heights:
            heights[key[:5]] = len(labels)
            labels.append(cell["name"] + ("" if table == "table5" else f", {PRETRAINING[key[3]]}"))

    seeds = ", ".join(sorted({str(cell["n"]) for cell in (*cells.values(), *repaired.values())}))
    title = (f"The cells of table {table[-1]}: {metric} on the test set, n = {seeds} seeds" if remark else
             f"Table {table[-1]}: {metric} on the test set, our runs (seeds: n = {seeds}) beside the paper's values")
    figure = new_figure(max(8.5, 3 + 2.5 * len(modalities)), 1.9 + 0.33 * len(labels), title, remark)
    panels = figure.subplots(1, len(modalities), sharex=True, sharey=True, squeeze=False)[0]
    for panel, modality in zip(panels, modalities):
        for key, cell in every.items():
            if key[5] == modality:
                color, marker, shift = looks[key[6]]
                y = heights[key[:5]] + shift * (len(looks) > 1)
                look = {"color": color, "marker": marker}
                if key in cells:
                    panel.errorbar(cell["mean"], y, xerr=cell["std"], markersize=4.5, capsize=2.5, linewidth=1.2,
                                   **look)
                if key in repaired:
                    panel.plot(repaired[key]["mean"], y, markersize=7, **look | {"marker": "x"})
                panel.plot(cell["paper"], y, markersize=9, fillstyle="none",
                           **look | ({"color": "0.75"} if remark else {}))
        panel.set_title(MODALITIES[modality], fontsize=10)
        panel.set_xlabel(f"{metric} (%)")
        panel.grid(color="0.9")
        panel.set_axisbelow(True)
    panels[0].set_yticks(range(len(labels)), labels)
    panels[0].set(ylim=(len(labels) - 0.4, -0.6),
                  ylabel="ablation" if table == "table5" else "method and its pretraining")
    for group, height in heights.items():
        if len(group) == 1:
            panels[0].get_yticklabels()[height].set_fontweight("bold")
            for panel in panels:
                panel.axhline(height, color="0.55", linewidth=0.8, zorder=1)
    signs = [sign(marker, color=color, label=f"{p} % of the training labels")
             for p, (color, marker, _) in looks.items()]
    signs.append(sign(size=4.5, label="filled: ours, mean over seeds"))
    signs.append(sign(size=9, fillstyle="none", color="0.75" if remark else "0.3", label="hollow: the paper's value"
                      + (", of real tiles" if remark else "")))
    signs += [sign("x", size=7, label="cross: ours, Sentinel-1 repaired")] if repaired else []
    if seeds != "1":
        signs.append(Line2D([], [], color="0.3", marker="|", label="bar: ± standard deviation over seeds"))
    figure.legend(handles=signs, loc="outside lower center", ncols=len(signs) if len(modalities) > 3 else 2,
                  fontsize=8.5)
    figure.savefig(path)


# ---- scrambled Sentinel-1 --------------------------------------------------------------------------------------------

def draw_order(path, name, series):
    """Sentinel-1 of a scrambled file as stored and undone: time means of VV and VH, and VV - VH date by date.

    name: of the file. series: {key: (data (T, 2, 6, 6) linear power, days (T,))} of its scrambled orbits.
    """
    title = f"Sentinel-1 of {name}, dB: time mean of each pixel, and VV - VH of each date"
    figure = new_figure(13, 0.8 + 2.6 * len(series), title, "")
    rows = figure.subplots(len(series), 5, squeeze=False, width_ratios=(1, 1, 1, 1, 2.4))
    for panels, (key, (data, days)) in zip(rows, series.items()):
        whole = (data > 0).all((1, 2, 3)) & np.isfinite(data).all((1, 2, 3))
        forms = [10 * np.log10(form[whole]) for form in (data, restored(data, key))]
        means = np.array([form.mean(0) for form in forms])                    # (2, 2, 6, 6)
        titles = [f"{band}, {what}" for what in ("as stored", "undone") for band in ("VV", "VH")]
        for panel, title, mean in zip(panels, titles, means.reshape(4, 6, 6)):
            image = panel.imshow(mean, vmin=means.min(), vmax=means.max(), cmap="viridis")
            panel.set_title(title, fontsize=9)
            panel.set(xticks=[], yticks=[])
        panels[0].set_ylabel(f"{key}, {whole.sum()} dates")
        figure.colorbar(image, ax=panels[3])
        for form, color, what in zip(forms, (ORANGE, BLUE), ("as stored", "undone")):
            panels[4].plot(days[whole], (form[:, 0] - form[:, 1]).mean((1, 2)), ".", color=color, label=what)
        panels[4].set(xlabel="day of the year", ylabel="VV - VH, mean of pixels (dB)")
        panels[4].grid(color="0.9")
        panels[4].legend(fontsize=8, ncols=2, loc=(0.01, 0.3))
    figure.savefig(path)


# ---- figure 5 -------------------------------------------------------------------------------------------------------

def place_labels(panel, texts, discs):
    """Move each text to the nearest place where it covers no text and no disc; a line, past other centres, leads to
    its own.

    discs: (x, y, radius) of each, pixels.
    """
    circles = [Bbox.from_extents(x - r, y - r, x + r, y + r) for x, y, r in discs]
    taken, to_data = [], panel.transData.inverted().transform

    def shared(a, b):
        both = Bbox.intersection(a, b)
        return both.width * both.height if both else 0
    for i, (text, (x, y, r)) in enumerate(zip(texts, discs)):
        (w, h), choices = text.get_window_extent().size, []
        for gap in (8, 16, 30, 50, 75, 105, 140):
            for angle in (math.radians(degrees) for degrees in range(0, 360, 20)):
                left = x + math.cos(angle) * (r + gap + w / 2) - w / 2
                box = Bbox.from_bounds(left, y + math.sin(angle) * (r + gap + h / 2) - h / 2, w, h)
                covered = sum(shared(box, other) for other in taken + circles) + w * h - shared(box, panel.bbox)
                edge = min(max(x, box.x0), box.x1), min(max(y, box.y0), box.y1)    # where the line meets the text
                line = [(x + (edge[0] - x) * t / 10, y + (edge[1] - y) * t / 10) for t in range(11)]
                near = sum(math.dist(point, disc[:2]) < 10 for point in line for disc in discs[:i] + discs[i + 1:])
                choices.append((covered * 10 + near * 50 + gap, len(choices), box, edge))
        *_, box, edge = min(choices)
        taken.append(box)
        text.set_position(to_data(((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2)))
        panel.plot(*zip(to_data(edge), to_data((x, y))), color="0.25", linewidth=0.7, zorder=3)


def figure5_notes(entries, shown):
    """Lines above the panel: what the labels say, what the time does not count, what is not drawn, the machines."""
    seeds = ", ".join(sorted({str(e["n"]) for e in entries}))
    lines = [f"beside each method: our F1, mean ± standard deviation over seeds (n = {seeds}), and the paper's best "
             "cell"]
    if any(e["pretraining"] in ("imagenet", "external") for e in entries):
        lines.append("pretraining by others (ImageNet, external data) is not counted as time")
    if missing := [e["printed_name"] for e in entries if e not in shown]:
        lines.append(f"not drawn, since it has no number of parameters: {', '.join(missing)}")
    machines = {}
    for e in entries:
        machines.setdefault(e["device"], {})[e["printed_name"]] = None
    if len(machines) > 1:
        lines.append("times of different machines: "
                     + "; ".join(f"{device}: {', '.join(m)}" for device, m in machines.items()))
    return "\n".join(textwrap.fill(line, 145) for line in lines)


def draw_figure5(path, entries, remark):
    """Size against score; a disc's area is the training time: inside the pretraining, the ring the fine-tuning.

    entries: rows of fig5.csv as compare.figure5 gives them; those without a number of parameters are named in a note.
    """
    shown = [entry for entry in entries if entry["params_millions"]]
    points = [(entry["params_millions"], entry["f1_weighted"]) for entry in shown]
    pretraining = [entry["pretrain_hours"] or 0 for entry in shown]
    total = [hours + (entry["finetune_hours"] or 0) for hours, entry in zip(pretraining, shown)]
    longest = max(total, default=0) or 1

    def diameter(hours):    # so that the area is proportional to the hours
        return LARGEST * math.sqrt(hours / longest)
    title = "Figure 5: best weighted F1 of each method on TreeSatAI and TreeSatAI-TS, 100 % of the labels"
    figure = new_figure(12.5, 7.5, title, remark)
    panel = figure.subplots()
    panel.set(xscale="log", xlabel="model size (million parameters, log scale)",
              ylabel="weighted F1 on the test set (%)")
    panel.set_title(figure5_notes(entries, shown), fontsize=8.5, loc="left")
    for point, inner, outer in zip(points, pretraining, total):
        front = 2.9 - 0.8 * outer / longest    # small discs in front of large ones
        for hours, color in ((outer, ORANGE), (inner, BLUE)):
            panel.plot(*point, "o", color=color, markersize=diameter(hours), markeredgecolor="white", alpha=0.9,
                       zorder=front)
        panel.plot(*point, "o", color="black", markersize=3, zorder=4)
    if points:
        (left, right), (low, high) = ((min(values), max(values)) for values in zip(*points))
        panel.set(xlim=(left / 2.5, right * 2.5), ylim=(low - 0.15 * (high - low) - 2, high + 0.15 * (high - low) + 2))
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.grid(color="0.92")
    panel.set_axisbelow(True)

    signs = [sign(size=size, color=color, label=label) for size, color, label in (
        (3, "black", "size and mean F1"), (12, BLUE, "inner disc:\npretraining time"),
        (12, ORANGE, "ring, or whole disc:\nfine-tuning time"))]
    signs += [sign(size=diameter(hours), color="0.7", label=f"area of {text}")
              for text, hours in [item for item in DURATIONS.items() if item[1] <= longest][-3:]]
    figure.legend(handles=signs, loc="outside right center", fontsize=9, handletextpad=2.6, labelspacing=4,
                  borderpad=2.8)
    texts = [panel.text(*point, f"{e['printed_name']}, {PRETRAINING[e['pretraining']]}\n{e['f1_weighted']:.1f}"
                        + (f"±{e['f1_std']:.1f}" if e["f1_std"] is not None else "")
                        + f" (paper {e['paper_f1_best']:.1f})",
                        fontsize=8, ha="center", va="center", zorder=5, in_layout=False)
             for e, point in zip(shown, points)]
    figure.draw_without_rendering()
    figure.set_layout_engine("none")    # the panel stays where the labels are placed for
    place_labels(panel, texts, [(*panel.transData.transform(point), max(4, diameter(hours) / 2 * figure.dpi / 72))
                                for point, hours in zip(points, total)])
    figure.savefig(path)


# ---- frozen evaluation ----------------------------------------------------------------------------------------------

def style_of(features):
    """How the curve of features is drawn."""
    return "--" if features == "tokens" else "-"


def draw_probe(path, found, remark):
    """F1 over the share of the labels, logistic regression: a row of panels a dataset, a panel for all sensors and for
    each alone.

    found: as curves.collect gives it.
    """
    datasets = list(dict.fromkeys(key[0] for key in found))
    modalities = [name for name in MODALITIES if any(key[1] == name for key in found)]
    title = "Logistic regression on frozen features: F1 on test, by the share of the labels"
    figure = new_figure(3.4 * len(modalities) + 1, 3 * len(datasets) + 1.4, title, remark)
    panels = figure.subplots(len(datasets), len(modalities), sharex=True, sharey="row", squeeze=False)
    for dataset, row in zip(datasets, panels):
        for modality, panel in zip(modalities, row):
            for (pretraining, features), (color, marker) in PROBES.items():
                cells = found.get((dataset, modality, pretraining, features, "logistic"), {})
                if cells:
                    means = np.array([cell[:3] for cell in cells.values()])
                    panel.plot(list(cells), means[:, 0], color=color, marker=marker, markersize=4.5, linewidth=1.3,
                               linestyle=style_of(features))
                    panel.fill_between(list(cells), means[:, 1], means[:, 2], color=color, alpha=0.13, linewidth=0)
            panel.set_xscale("log")
            panel.set_title(f"{DATASETS[dataset]}, {MODALITIES[modality]}", fontsize=9)
            panel.grid(color="0.92")
            ticks = sorted({percent for key, cells in found.items() if key[0] == dataset for percent in cells})
            panel.set_xticks(ticks, map(str, ticks))
            panel.minorticks_off()
        row[0].set_ylabel(f"{'macro' if metric_of(dataset) == 'f1_macro' else 'weighted'} F1 (%)")
    for panel in panels[-1]:
        panel.set_xlabel("share of the labels (%)")
    seeds = sorted({cell[3] for cells in found.values() for cell in cells.values()})
    signs = [Line2D([], [], marker=marker, markersize=5, color=color, linestyle=style_of(kind[1]), label=KINDS[kind])
             for kind, (color, marker) in PROBES.items()]
    spread = ("95 % of a bootstrap over the test tiles, one seed" if seeds == [1] else
              f"± standard deviation over {seeds[-1]} seeds")
    signs.append(sign("s", size=9, color="0.85", label=f"of each curve: {spread}"))
    note = ("a class counts where it is more probable than not; where features tell little, that is rare, with more "
            "labels too")
    figure.legend(handles=signs, loc="outside lower center", ncols=6 if len(modalities) > 2 else 2, fontsize=8.5,
                  title=note, title_fontsize=8)
    figure.savefig(path)
