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

DATASETS = {"treesatai": "TreeSatAI (single dates)", "treesatai-ts": "TreeSatAI-TS (time series)",
            "pastis-hd": "PASTIS-HD", "flair": "FLAIR"}
MODALITIES = {"all": "all modalities", "s1": "Sentinel-1", "s2": "Sentinel-2", "vhr": "VHR image"}
PRETRAINING = {"none": "from scratch", "self": "self-supervised", "imagenet": "ImageNet", "external": "external data"}
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"    # of Okabe and Ito: told apart by the colour-blind
# of cells by the share of the labels, such as the paper has: colour, marker, place beside the line
LOOKS = {"10": (BLUE, "o", -0.17), "20": (BLUE, "o", -0.17), "100": (ORANGE, "s", 0.17)}
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
    """Rows are methods (ablations in table 5), below them those that the paper does not print; panels are modalities.
    cells, repaired: as collect.collect gives them.
    """
    repaired = repaired or {}
    every = cells | {key: cell for key, cell in repaired.items() if key not in cells}
    every = dict(sorted(every.items(), key=lambda item: item[1]["paper"] is None))
    table, metric = next(iter(every))[0], next(iter(every.values()))["metric"]
    there = {key[5] for key in every}
    modalities = [m for m in MODALITIES if m in there] + sorted(there - MODALITIES.keys())
    looks = {p: LOOKS.get(p, (GREEN, "^", 0)) for p in sorted({key[6] for key in every}, key=int)}
    labels = labels_of(every)
    heights = {row: height for height, row in enumerate(labels)}

    seeds = ", ".join(sorted({str(cell["n"]) for cell in (*cells.values(), *repaired.values())}))
    title = (f"The cells of table {table[-1]}: {metric} on the test set, n = {seeds} seeds" if remark else
             f"Table {table[-1]}: {metric} on the test set, our runs (seeds: n = {seeds}) beside the paper's values")
    figure = new_figure(max(8.5, 3 + 2.5 * len(modalities)), 1.9 + 0.33 * len(labels), title, remark)
    panels = figure.subplots(1, len(modalities), sharex=True, sharey=True, squeeze=False)[0]
    for panel, modality in zip(panels, modalities):
        for key, cell in every.items():
            if key[5] == modality:
                color, marker, shift = looks[key[6]]
                y = heights[row_of(key, cell)] + shift * (len(looks) > 1)
                look = {"color": color, "marker": marker}
                if key in cells:
                    panel.errorbar(cell["mean"], y, xerr=cell["std"], markersize=4.5, capsize=2.5, linewidth=1.2,
                                   **look)
                if key in repaired:
                    panel.plot(repaired[key]["mean"], y, markersize=7, **look | {"marker": "x"})
                if cell["paper"] is not None:
                    panel.plot(cell["paper"], y, markersize=9, fillstyle="none",
                               **look | ({"color": "0.75"} if remark else {}))
        panel.set_title(MODALITIES.get(modality, modality), fontsize=10)
        panel.set_xlabel(f"{metric} (%)")
        panel.grid(color="0.9")
        panel.set_axisbelow(True)
    panels[0].set_yticks(range(len(labels)), labels.values())
    panels[0].set(ylim=(len(labels) - 0.4, -0.6),
                  ylabel="ablation" if table == "table5" else "method and its pretraining")
    for row, height in heights.items():
        if len(row) == 2:
            panels[0].get_yticklabels()[height].set_fontweight("bold")
            for panel in panels:
                panel.axhline(height, color="black" if row[0] else "0.55", linewidth=0.8, zorder=1)
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


def row_of(key, cell):
    """Whether the paper does not print a cell, its dataset, method, ...: the row that it is drawn in."""
    return (cell["paper"] is None, *key[1:5])


def labels_of(cells):
    """{row: label} from above: (is not printed, dataset), then its methods."""
    labels = {}
    for key, cell in cells.items():
        row = is_below, dataset, *_ = row_of(key, cell)
        labels.setdefault(row[:2], ("not in the paper: " if is_below else "") + DATASETS.get(dataset, dataset))
        start = "" if key[0] == "table5" else f", {PRETRAINING.get(key[3], key[3])}"
        labels.setdefault(row, cell["name"] + start)
    return labels


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
                        + (f" (paper {e['paper_f1_best']:.1f})" if e["paper_f1_best"] else " (not in the paper)"),
                        fontsize=8, ha="center", va="center", zorder=5, in_layout=False)
             for e, point in zip(shown, points)]
    figure.draw_without_rendering()
    figure.set_layout_engine("none")    # the panel stays where the labels are placed for
    place_labels(panel, texts, [(*panel.transData.transform(point), max(4, diameter(hours) / 2 * figure.dpi / 72))
                                for point, hours in zip(points, total)])
    figure.savefig(path)
