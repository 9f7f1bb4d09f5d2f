"""What evaluate.py --all-subsets and --dates found, for compare.py: rows to cells, cells to lines of text and a
picture.
"""
import collections
import math

from tables.collect import METRICS, mean_std
from tables.curves import metric_of
from tables.text import spread
from utils.results import SCORED, SUBSET_KEYS, TABLES, check_test_lists, read_rows

MODEL = SUBSET_KEYS[:6]    # the columns that say which model: dataset, name, pretraining, ablation, modality, labels


def collect(folder, scale):
    """{columns of MODEL: {(sensors, dates): {"mean", "std", "n", "alone"}}} of the rows of a scale, the largest set
    first.

    The F1 is that which the paper prints of the dataset. alone: the mean of models that were trained on these sensors
    only, of the tables in the same folder, None without.
    Errors: UserError if rows were scored on different test tiles.
    """
    rows = [row for row in read_rows(folder / "subsets.csv", SUBSET_KEYS) if row["scale"] == scale]
    check_test_lists(folder / "subsets.csv", [row | {"table": "subsets"} for row in rows])
    values, alone = collections.defaultdict(lambda: collections.defaultdict(list)), trained_alone(folder, scale)
    for row in rows:
        f1 = float(row[metric_of(row["dataset"])])
        values[tuple(row[name] for name in MODEL)][row["sensors"], row["dates"]].append(f1)
    found = {}
    for model, cells in values.items():
        found[model] = {}
        for sensors, dates in sorted(cells, key=order_of(cells)):
            mean, std = mean_std(cells[sensors, dates])
            other = alone.get((*model[:4], sensors, model[5])) if dates == "all" else None
            found[model][sensors, dates] = {"mean": mean, "std": std, "n": len(cells[sensors, dates]), "alone": other}
    return found


def order_of(cells):
    """What (sensors, dates) are sorted by: the largest set first, then as the largest has its sensors; most dates
    first.
    """
    keys = max((sensors.split("+") for sensors, _ in cells), key=len)

    def order(cell):
        seen = cell[0].split("+")
        return -len(seen), [keys.index(key) if key in keys else len(keys) for key in seen], cell[0], -number_of(cell[1])
    return order


def number_of(dates):
    """The number of dates of a row, to sort by."""
    return math.inf if dates == "all" else int(dates)


def trained_alone(folder, scale):
    """{columns of MODEL: mean F1 over seeds} of the rows of all tables in a folder."""
    values = collections.defaultdict(list)
    for table in TABLES:
        for row in read_rows(folder / f"{table}.csv"):
            if row["scale"] == scale and row["status"] in SCORED:
                values[tuple(row[name] for name in MODEL)].append(float(row[metric_of(row["dataset"])]))
    return {model: mean_std(each)[0] for model, each in values.items()}


def name_of(model):
    """A model in short: treesatai-ts, omnisat, self, trained on all, 100 % of the labels."""
    dataset, method, pretraining, ablation, modality, percent = model
    pretraining = pretraining if ablation == "none" else ablation
    return f"{dataset}, {method}, pretrained: {pretraining}, trained on {modality}, {percent} % of the labels"


def lines(found):
    """Header and lines, by model: what it sees, its F1, the difference to all it was trained on, and who was trained
    so.
    """
    rows = []
    for model, cells in found.items():
        full = next(iter(cells.values()))["mean"]
        for (sensors, dates), cell in cells.items():
            alone = "" if cell["alone"] is None else f"{cell['alone']:.1f}"
            rows.append([name_of(model), sensors, dates, spread(cell["mean"], cell["std"]),
                         f"{cell['mean'] - full:+.1f}", alone, str(cell["n"])])
    return ["model", "sees", "dates", "F1", "to the first", "trained on these alone", "n"], rows


def draw(path, found, remark):
    """A row of panels a model: left each set of sensors, its dots and its F1, right F1 over the number of dates."""
    from tables import pictures                                               # with matplotlib
    sets = {model: [cell for cell in cells if cell[1] == "all"] for model, cells in found.items()}
    heights = [1 + 0.32 * max(4, len(cells)) for cells in sets.values()]
    has_dates = any(dates != "all" for cells in found.values() for _, dates in cells)
    title = "A checkpoint that sees less than it was trained on: F1 on test"
    figure = pictures.new_figure(12 if has_dates else 7.5, 1 + sum(heights), title, remark)
    panels = figure.subplots(len(found), 2 + has_dates, squeeze=False, height_ratios=heights,
                             width_ratios=[0.8, 2.6, *[2.4] * has_dates])
    longest = max(max(cell["mean"], cell["alone"] or 0) for cells in found.values() for cell in cells.values())
    for (model, cells), row in zip(found.items(), panels):
        draw_sets(row[:2], model, sets[model], cells)
        row[1].set_xlim(0, 1.05 * longest)
        if has_dates:
            draw_dates(row[2], model, cells)
    signs = [pictures.sign("s", size=9, color=pictures.BLUE, label="this model, the tokens of the others masked"),
             pictures.sign("|", size=11, color=pictures.ORANGE, markeredgewidth=2.5,
                           label="a model trained on these alone")]
    figure.legend(handles=signs, loc="outside lower center", ncols=2, fontsize=8.5)
    figure.savefig(path)


def draw_sets(panels, model, sets, cells):
    """Sets of sensors, one a line: dots for those seen, and a bar of F1. sets: [(sensors, "all")]."""
    from tables.pictures import BLUE, ORANGE
    dots, bars = panels
    keys = list(dict.fromkeys(key for sensors, _ in sets for key in sensors.split("+")))
    for y, (sensors, dates) in enumerate(sets):
        seen, cell = [keys.index(key) for key in sensors.split("+")], cells[sensors, dates]
        dots.plot(range(len(keys)), [y] * len(keys), "o", color="0.88", markersize=9)
        dots.plot(seen, [y] * len(seen), "o-", color="0.2", markersize=9, linewidth=2)
        bars.barh(y, cell["mean"], xerr=cell["std"], color=BLUE, height=0.62, capsize=2.5, ecolor="0.3")
        bars.text(1, y, f"{cell['mean']:.1f}", va="center", fontsize=8.5, color="white", fontweight="bold")
        if cell["alone"] is not None and len(seen) < len(keys):
            bars.plot([cell["alone"]] * 2, [y - 0.38, y + 0.38], color=ORANGE, linewidth=2.5)
    for panel in panels:
        panel.set(ylim=(max(len(sets), 1) - 0.4, -0.6), yticks=[])
        panel.spines[["top", "right"]].set_visible(False)
    dots.set(xlim=(-0.5, len(keys) - 0.5), xticks=range(len(keys)), xticklabels=keys)
    dots.spines[["left", "bottom"]].set_visible(False)
    dots.tick_params(length=0)
    bars.set_xlabel(f"{METRICS[metric_of(model[0])]} (%)")
    bars.set_title(name_of(model), fontsize=9, loc="left")


def draw_dates(panel, model, cells):
    """F1 over the number of dates of a series, a curve for each set of sensors of which several are known."""
    numbers = sorted({dates for _, dates in cells}, key=number_of)
    for sensors in dict.fromkeys(sensors for sensors, _ in cells):
        there = [number for number in numbers if (sensors, number) in cells]
        if len(there) > 1:
            f1 = [cells[sensors, number]["mean"] for number in there]
            panel.plot([numbers.index(number) for number in there], f1, "o-", markersize=4, label=sensors)
    panel.set(xticks=range(len(numbers)), xticklabels=numbers, xlabel="dates of each series, evenly spread",
              ylabel=f"{METRICS[metric_of(model[0])]} (%)")
    panel.grid(color="0.9")
    if panel.lines:
        panel.legend(fontsize=8, title="sees", title_fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
