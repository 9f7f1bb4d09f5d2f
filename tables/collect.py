"""Rows of results to cells: means over seeds beside the printed values, differences, figure 5."""
import collections
import json
import statistics

import numpy as np

from tables.cells import MODALITIES
from utils.errors import UserError
from utils.metrics import f1_scores
from utils.results import (KEYS, SCORED, check_test_lists, folder_of, key_of, read_cells, read_later, read_rows,
                           remarks, rows_in_words, s1_of)

METRICS = {"f1_weighted": "weighted F1", "f1_macro": "macro F1", "f1_as_printed": "weighted F1"}
COLUMN = {"f1_as_printed": "f1_weighted"}    # the values of table 5 are weighted F1, see PAPER.md
# columns of fig5.csv: their names in the terminal, if shown there
FIGURE5 = {"model": "", "printed_name": "method", "pretraining": "pretrained", "dataset": "dataset",
           "modality": "modality", "params_millions": "M params", "pretrain_hours": "pretrain h",
           "finetune_hours": "finetune h", "f1_weighted": "ours", "f1_std": "std", "n": "n", "paper_f1_best": "paper",
           "scale": "", "device": ""}


def paper_cells(table):
    """The cells that the paper prints: {key: row of cells.csv}; of table 5 the full model first, then by letter."""
    rows = [row for row in read_cells() if row["table"] == table]
    if table == "table5":
        rows.sort(key=lambda row: (row["ablation"] != "none", row["printed_name"]))
    return {key_of(row): row for row in rows}


def mean_std(values):
    """(mean, standard deviation or None for a single value)."""
    values = list(values)
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


def collect(folder, table, scale, s1="released"):
    """(cells, notes): the cells of which we have scores at this scale, and lines on what is left out.

    s1: those on Sentinel-1 as released, or repaired.

    cells: {key: {"paper": F1, "name", "metric", "ours": {seed: F1}, "mean", "std", "n", "rows"}}, in the paper's order;
    below them those that it does not print, "paper" None, by dataset.
    Errors: UserError naming the file if there is no such cell, or if rows were scored on different test tiles.
    """
    path = folder_of(folder, s1) / f"{table}.csv"
    rows, others, ours = rows_of(folder, table, scale, s1)
    printed, scored = paper_cells(table), collections.defaultdict(dict)
    for row in ours:
        if row["status"] in SCORED:
            scored[key_of(row)][row["seed"]] = row
    mixed = 0
    for seeds in scored.values():                                             # another start: no sample of the same
        if len({row["status"] for row in seeds.values()}) > 1:
            mixed += len(random := [seed for seed, row in seeds.items() if row["status"] == "random-weights"])
            for seed in random:
                del seeds[seed]
    order = printed_first(scored, printed)
    shown = [row for key in order for row in scored[key].values()]
    check_test_lists(path, shown)
    without = collections.Counter(row["status"].split(":")[0] or "no status" for row in ours
                                  if row["status"] not in SCORED)
    notes = [f"{rows_in_words(count)} {what}" for count, what in (
        (without.total(), "without a score: " + ", ".join(f"{n} {status}" for status, n in without.items())),
        (sum(row["status"] == "random-weights" for row in shown), "with random weights in place of published ones"),
        (mixed, "with random weights, of cells that have others with published ones, not shown"),
        (len(rows) - len(ours), f"not of scale {scale}, not shown"),
        (len(others), f"not of --s1 {s1}, not shown")) if count]
    metric = next(iter(printed.values()))["metric"]
    column = COLUMN.get(metric, metric)
    cells = {key: cell_of(key, printed.get(key), scored[key], column) | {"metric": METRICS[metric]} for key in order}
    notes += remarks(shown)
    if not cells:
        raise UserError(f"{path} has no score yet: {'; '.join(notes)}")
    constant = best_constant(path, column, scale)
    if constant:
        notes.insert(0, "every class for every tile, the best constant prediction: " +
                     ", ".join(f"{value:.1f} on {dataset}" for dataset, value in constant.items()))
    return cells, notes


def rows_of(folder, table, scale, s1):
    """The rows of a table on this choice of Sentinel-1, those on the other, and of the first those of the scale.

    Errors: UserError if there are none.
    """
    path = folder_of(folder, s1) / f"{table}.csv"
    if not path.exists() or not (rows := read_rows(path)):
        raise UserError(f"{path}: no rows yet; run_tables.sh {table} writes them")
    others = [row for row in rows if s1_of(row) != s1]
    rows = [row for row in rows if s1_of(row) == s1]
    ours = [row for row in rows if row["scale"] == scale]
    if not rows:
        other = s1_of(others[0])
        raise UserError(f"{path} has only rows of --s1 {other}; they belong in {folder_of(folder, other)}")
    if not ours:
        raise UserError(f"{path} has only rows of scale {', '.join(sorted({row['scale'] for row in rows}))}; "
                        f"shown are those of scale {scale}")
    return rows, others, ours


def printed_first(scored, printed):
    """The keys of cells with a score: the paper's in its order, then others, by dataset."""
    datasets = [key[1] for key in printed]
    return [key for key in printed if key in scored] + sorted(
        [key for key in scored if key not in printed],
        key=lambda key: (datasets.index(key[1]) if key[1] in datasets else len(datasets), key[:5]))


def cell_of(key, printed, rows, column):
    """What collect says of a cell. printed: its row of cells.csv, None where the paper does not print it. rows: {seed:
    row}; column: of their F1.
    """
    values = {seed: float(row[column]) for seed, row in rows.items()}
    mean, std = mean_std(values.values())
    if printed:
        paper, name = float(printed["f1"]), printed["printed_name"]
    else:
        names = {cell["model"]: cell["printed_name"] for cell in read_cells() if cell["ablation"] == "none"}
        paper, name = None, names.get(key[2], key[2]) + (f", {key[4]}" if key[4] != "none" else "")
    return {"paper": paper, "name": name, "ours": values, "mean": mean, "std": std, "n": len(values),
            "rows": list(rows.values())}


def printed_only(cells):
    """Those of the cells that the paper prints."""
    return {key: cell for key, cell in cells.items() if cell["paper"] is not None}


def best_constant(path, column, scale):
    """{dataset: F1 in %} of the best prediction that is the same for all tiles, every class: what a method must beat.

    From the counts that were saved beside the table, path; nothing if there are none.
    """
    path, found = path.with_suffix(".counts.jsonl"), {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        counts = json.loads(line)
        if counts["scale"] == scale and counts["dataset"] not in found:
            tp, fp, fn, tn = (np.array(counts[name]) for name in ("tp", "fp", "fn", "tn"))
            found[counts["dataset"]] = f1_scores({"tp": tp + fn, "fp": fp + tn, "fn": 0 * fn})[column]
    return found


def best_since(tables):
    """The best results since the paper, rows of later.csv, one for each dataset of the tables' cells and score."""
    shown = {(key[1], cell["metric"]) for both in tables.values() for cells in both for key, cell in cells.items()}
    best = {}
    for row in sorted(read_later(), key=lambda row: -float(row["value"])):
        best.setdefault((row["dataset"], METRICS[row["metric"]]), row)
    return [row for place, row in best.items() if place in shown]


def paired(more, others):
    """A cell against the best of others, {name: cell}: the paper's difference, ours {seed: difference} over the seeds
    that all have, and the name of the best. None where a cell is missing, or there is no such seed.
    """
    if not more or not others or not all(others.values()):
        return None
    seeds = [seed for seed in more["ours"] if all(seed in cell["ours"] for cell in others.values())]
    if not seeds:
        return None
    # by the mean, not the best of each seed, which noise makes too good
    best = max(others, key=lambda name: statistics.mean(others[name]["ours"][seed] for seed in seeds))
    return (more["paper"] - max(cell["paper"] for cell in others.values()),
            {seed: more["ours"][seed] - others[best]["ours"][seed] for seed in seeds}, best)


def differences(cells):
    """The differences behind the paper's claims: {(claim, where): {percent: (the paper's, {seed: ours})}}. cells: those
    that it prints.
    """
    found, printed = collections.defaultdict(dict), paper_cells(next(iter(cells))[0])
    for key, cell in cells.items():
        _, dataset, _, pretraining, ablation, modality, percent = key

        def with_(**changes):
            return tuple((dict(zip(KEYS, key)) | changes).values())
        start = "from scratch" if pretraining == "none" else f"pretrained: {pretraining}"
        claims = []    # (claim, where, cell, cells of which the best by the mean is subtracted)
        if ablation != "none":
            claims.append(("full - ablation", cell["name"], cells.get(with_(ablation="none")), {"": cell}))
        elif pretraining == "self":
            claims.append(("pretrained - scratch", f"{dataset}, {cell['name']}, {modality}", cell,
                           {"": cells.get(with_(pretraining="none"))}))
        if modality == "all":
            single = {name: with_(modality=name) for name in MODALITIES[1:]}
            claims.append(("all - best single modality", f"{dataset}, {cell['name']}, {start}", cell,
                           {name: cells.get(k) for name, k in single.items() if k in printed}))
        for claim, where, more, others in claims:
            if difference := paired(more, others):
                found[claim, where][percent] = difference[:2]
    return dict(sorted(found.items(), key=lambda item: item[0][0]))


def repairs(cells, repaired):
    """What repairing Sentinel-1 changes, as differences gives it; the paper has no such number."""
    found = collections.defaultdict(dict)
    for key, cell in repaired.items():
        released = cells.get(key, {"ours": {}})["ours"]
        if ours := {seed: value - released[seed] for seed, value in cell["ours"].items() if seed in released}:
            _, dataset, _, pretraining, ablation, modality, percent = key
            start = ("" if ablation != "none" else ", from scratch" if pretraining == "none" else
                     f", pretrained: {pretraining}")
            found["S1 repaired - as released", f"{dataset}, {cell['name']}{start}, {modality}"][percent] = None, ours
    return dict(found)


def machines(row):
    """Where the hours of a row are from, its pretraining's too: H200, or H200 (3 x 1) for three nodes with one each."""
    found = []
    for what in ("", *(["pretrain_"] if row["pretrain_device"] else [])):
        device, processes = row[f"{what}device"] or "not noted", row[f"{what}processes"]
        found.append(device if processes in ("", "1 x 1") else f"{device} ({processes})")
    return found


def figure5(cells, scale):
    """Rows of fig5.csv, best first: each method of table 2, pretrained or not, in its best cell with 100 % of the
    labels; of the paper's methods in one that it prints.
    """
    best, rows, printed = {}, [], paper_cells("table2")
    known = {key[2:4] for key in printed}
    shown = [key for key, cell in cells.items() if key[6] == "100" and (cell["paper"] or key[2:4] not in known)]
    for key in sorted(shown, key=lambda key: -cells[key]["mean"]):
        best.setdefault(key[2:4], key)
    for method, key in best.items():
        cell = cells[key]

        def mean(column, factor=1.0):    # over the seeds that have it
            values = [float(row[column]) * factor for row in cell["rows"] if row[column]]
            return statistics.mean(values) if values else None
        paper = max((float(row["f1"]) for k, row in printed.items() if k[2:4] == method and k[6] == "100"),
                    default=None)
        devices = " + ".join(sorted({machine for row in cell["rows"] for machine in machines(row)}))
        rows.append(dict(zip(FIGURE5, (
            key[2], cell["name"], key[3], key[1], key[5], mean("params", 1e-6), mean("pretrain_hours"),
            mean("finetune_hours"), cell["mean"], cell["std"], cell["n"], paper, scale, devices))))
    return rows
