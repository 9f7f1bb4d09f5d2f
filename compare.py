"""Our cells beside the paper's: mean, standard deviation and number of seeds.

    python compare.py                  all there is: results/table2.csv ... table5.csv and figure 5, the paper's configuration
    python compare.py table3 fig5      these only
    python compare.py --demo           results/demo/TABLE.csv, simulated data and small models
    python compare.py claims --demo    what the demo is to show, claim by claim, of each seed

Where there are tables on repaired Sentinel-1 too (run_tables.sh --s1 repaired, results/repaired), they have a line beside ours.
Prints the tables and writes beside them, for what was printed: compare.md (the same tables), compare.csv (a line a cell),
fig5.csv, and a picture each (table2.png ... fig5.png; these need matplotlib). Differences behind the paper's claims
(pretrained against scratch, all modalities against the one that is best by the mean over seeds, full against ablated)
are paired by seed. Rows that were scored on different test tiles are refused; other code, tiles and rates are told.
"""
import argparse
import collections
import csv
import json
import statistics
import sys
from pathlib import Path

import numpy as np

import claims
import curves
from utils.errors import UserError, run
from utils.metrics import f1_scores
from utils.results import (KEYS, SCORED, TABLES, check_test_lists, folder_of, key_of, read_cells, read_rows, remarks,
                           rows_in_words, s1_of)

RESULTS = Path(__file__).parent / "results"
METRICS = {"f1_weighted": "weighted F1", "f1_macro": "macro F1", "f1_as_printed": "weighted F1"}
COLUMN = {"f1_as_printed": "f1_weighted"}    # the values of table 5 are weighted F1, see PAPER.md
MODALITIES = ("all", "s1", "s2", "vhr")
FIGURE5 = {"model": "", "printed_name": "method", "pretraining": "pretrained", "dataset": "dataset", "modality": "modality",
           "params_millions": "M params", "pretrain_hours": "pretrain h", "finetune_hours": "finetune h",
           "f1_weighted": "ours", "f1_std": "std", "n": "n", "paper_f1_best": "paper", "scale": "",
           "device": ""}    # columns of fig5.csv: their names in the terminal, if shown there
LINES = {"released": "ours", "repaired": "ours, S1 repaired"}    # what our lines are called, by what --s1 was
DEMO = "DEMO: simulated tiles, small models, not comparable with the paper"


# ---- rows to cells --------------------------------------------------------------------------------------------------

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
    """(cells, notes): the paper's cells of which we have scores at this scale, and lines on what is left out.

    s1: those on Sentinel-1 as released, or repaired.

    cells: {key: {"paper": F1, "name", "metric", "ours": {seed: F1}, "mean", "std", "n", "rows"}}, in the paper's order.
    Errors: UserError naming the file if there is no such cell, or if rows were scored on different test tiles.
    """
    path = folder_of(folder, s1) / f"{table}.csv"
    if not path.exists() or not (rows := read_rows(path)):
        raise UserError(f"{path}: no rows yet; run_tables.sh {table} writes them")
    others = [row for row in rows if s1_of(row) != s1]
    rows = [row for row in rows if s1_of(row) == s1]
    ours = [row for row in rows if row["scale"] == scale]
    if not rows:
        raise UserError(f"{path} has only rows of --s1 {s1_of(others[0])}; they belong in {folder_of(folder, s1_of(others[0]))}")
    if not ours:
        raise UserError(f"{path} has only rows of scale {', '.join(sorted({row['scale'] for row in rows}))}; "
                        f"shown are those of scale {scale}")
    printed, scored = paper_cells(table), collections.defaultdict(dict)
    for row in ours:
        if row["status"] in SCORED:
            scored[key_of(row)][row["seed"]] = row
    mixed = 0
    for rows_of in scored.values():                                           # another start: no sample of the same
        if len({row["status"] for row in rows_of.values()}) > 1:
            mixed += len(random := [seed for seed, row in rows_of.items() if row["status"] == "random-weights"])
            for seed in random:
                del rows_of[seed]
    shown = [row for key in printed if key in scored for row in scored[key].values()]
    check_test_lists(path, shown)
    without = collections.Counter(row["status"].split(":")[0] or "no status" for row in ours if row["status"] not in SCORED)
    notes = [f"{rows_in_words(count)} {what}" for count, what in (
        (without.total(), "without a score: " + ", ".join(f"{n} {status}" for status, n in without.items())),
        (sum(row["status"] == "random-weights" for row in shown), "with random weights in place of published ones"),
        (mixed, "with random weights, of cells that have others with published ones, not shown"),
        (len(rows) - len(ours), f"not of scale {scale}, not shown"),
        (len(others), f"not of --s1 {s1}, not shown"),
        (sum(len(scored[key]) for key in scored.keys() - printed.keys()), "of cells that the paper does not print, not shown")
    ) if count]
    cells, column = {}, None
    for key, cell in printed.items():
        if key in scored:
            column = COLUMN.get(cell["metric"], cell["metric"])
            values = {seed: float(row[column]) for seed, row in scored[key].items()}
            mean, std = mean_std(values.values())
            cells[key] = {"paper": float(cell["f1"]), "name": cell["printed_name"], "metric": METRICS[cell["metric"]],
                          "ours": values, "mean": mean, "std": std, "n": len(values), "rows": list(scored[key].values())}
    notes += remarks(shown)
    if not cells:
        raise UserError(f"{path} has no score yet of a cell that the paper prints: {'; '.join(notes)}")
    constant = best_constant(path, column, scale)
    if constant:
        notes.insert(0, "every class for every tile, the best constant prediction: " +
                     ", ".join(f"{value:.1f} on {dataset}" for dataset, value in constant.items()))
    return cells, notes


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


def claims_of(folder, scale):
    """The claims of claims.py. Errors: UserError if there are no rows for any."""
    path = folder / f"{claims.TABLE}.csv"
    cells, _ = collect(folder, claims.TABLE, scale)
    constant = best_constant(path, "f1_weighted", scale).get(claims.DATASET)
    found = claims.of_cells(cells, constant) + claims.of_probe(folder / "probe.csv", scale)
    found = [claim for claim in found if claim.ours]                          # both cells, but of no seed in common
    if not found:
        raise UserError(f"{path}: no claim can be looked at; it needs OmniSat's cells of {claims.DATASET}, run_tables.sh demo writes them")
    return found


def differences(cells):
    """The differences behind the paper's claims: {(claim, where): {percent: (the paper's, [ours, paired by seed])}}."""
    found, printed = collections.defaultdict(dict), paper_cells(next(iter(cells))[0])
    for key, cell in cells.items():
        _, dataset, _, pretraining, ablation, modality, percent = key

        def with_(**changes):
            return tuple((dict(zip(KEYS, key)) | changes).values())
        single = [with_(modality=m) for m in MODALITIES[1:]]
        start = "from scratch" if pretraining == "none" else f"pretrained: {pretraining}"
        claims = []    # (claim, where, cell, cells of which the best by the mean is subtracted)
        if ablation != "none":
            claims.append(("full - ablation", cell["name"], cells.get(with_(ablation="none")), [cell]))
        elif pretraining == "self":
            scratch = cells.get(with_(pretraining="none"))
            claims.append(("pretrained - scratch", f"{dataset}, {cell['name']}, {modality}", cell, [scratch]))
        if modality == "all":
            claims.append(("all - best single modality", f"{dataset}, {cell['name']}, {start}", cell,
                           [cells.get(k) for k in single if k in printed]))
        for claim, where, more, less in claims:
            if more and less and all(less):
                seeds = [seed for seed in more["ours"] if all(seed in c["ours"] for c in less)]
                if seeds:
                    # not the best of each seed, which noise makes too good
                    best = max((c["ours"] for c in less), key=lambda f1: statistics.mean(f1[seed] for seed in seeds))
                    found[claim, where][percent] = (more["paper"] - max(c["paper"] for c in less),
                                                    [more["ours"][seed] - best[seed] for seed in seeds])
    return dict(sorted(found.items(), key=lambda item: item[0][0]))


def repairs(cells, repaired):
    """What repairing Sentinel-1 changes, as differences gives it, paired by seed; the paper has no such number."""
    found = collections.defaultdict(dict)
    for key, cell in repaired.items():
        released = cells.get(key, {"ours": {}})["ours"]
        if ours := [value - released[seed] for seed, value in cell["ours"].items() if seed in released]:
            _, dataset, _, pretraining, ablation, modality, percent = key
            start = "" if ablation != "none" else ", from scratch" if pretraining == "none" else f", pretrained: {pretraining}"
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
    """Rows of fig5.csv, best first: each method of table 2, pretrained or not, in its best cell with 100 % of the labels."""
    best, rows, printed = {}, [], paper_cells("table2")
    for key in sorted((key for key in cells if key[6] == "100"), key=lambda key: -cells[key]["mean"]):
        best.setdefault(key[2:4], key)
    for method, key in best.items():
        cell = cells[key]

        def mean(column, factor=1.0):    # over the seeds that have it
            values = [float(row[column]) * factor for row in cell["rows"] if row[column]]
            return statistics.mean(values) if values else None
        paper = max(float(row["f1"]) for k, row in printed.items() if k[2:4] == method and k[6] == "100")
        devices = " + ".join(sorted({machine for row in cell["rows"] for machine in machines(row)}))
        rows.append(dict(zip(FIGURE5, (
            key[2], cell["name"], key[3], key[1], key[5], mean("params", 1e-6), mean("pretrain_hours"), mean("finetune_hours"),
            cell["mean"], cell["std"], cell["n"], paper, scale, devices))))
    return rows


# ---- cells to text --------------------------------------------------------------------------------------------------

def spread(mean, std, form=".1f"):
    """"61.1±2.0", without a spread for a single value. form: of the mean."""
    return f"{mean:{form}}" + (f"±{std:.1f}" if std is not None else "")


def span(numbers):
    """"3", or "1-3" where they differ."""
    return "-".join(map(str, sorted({min(numbers), max(numbers)})))


def table_lines(cells, repaired=None):
    """Header and lines of one table: for each method a line of the paper's cells and one of ours, and of those on repaired Sentinel-1."""
    every = in_order(cells, repaired or {})
    percents = sorted({key[6] for key in every}, key=int)
    columns = [(m, p) for m in MODALITIES for p in percents if any(key[5:] == (m, p) for key in every)]
    lines = []
    for group in dict.fromkeys(key[:5] for key in every):
        printed = [every.get(group + column) for column in columns]
        name = next(cell["name"] for cell in printed if cell)
        lines.append([group[1], name, group[3], "paper", *(f"{c['paper']:.1f}" if c else "" for c in printed), ""])
        for s1, ours in (("released", cells), ("repaired", repaired or {})):
            found = [ours.get(group + column) for column in columns]
            if there := [cell for cell in found if cell]:
                lines.append(["", "", "", LINES[s1]] + [spread(c["mean"], c["std"]) if c else "" for c in found]
                             + [span([cell["n"] for cell in there])])
    return ["dataset", "method", "pretrained", ""] + [f"{m} {p}%" for m, p in columns] + ["n"], lines


def in_order(cells, repaired):
    """A cell of either for each of the paper's cells that one has, in the paper's order."""
    every = repaired | cells
    return {key: every[key] for key in paper_cells(next(iter(every))[0]) if key in every}


def difference_lines(found):
    """Header and lines of the differences: a line a claim and place, a pair of columns a percentage of labels."""
    percents = sorted({percent for values in found.values() for percent in values}, key=int)
    lines = []
    for (claim, where), values in found.items():
        pairs = {p: ("" if paper is None else f"{paper:+.1f}", spread(*mean_std(ours), "+.1f")) for p, (paper, ours) in values.items()}
        lines.append([claim, where] + [text for p in percents for text in pairs.get(p, ("", ""))]
                     + [span([len(ours) for _, ours in values.values()])])
    return ["difference", "where"] + [f"{who} {p}%" for p in percents for who in ("paper", "ours")] + ["n"], lines


def figure5_lines(rows):
    """Header and lines of figure 5, by dataset."""
    names = ["dataset"] + [name for name, shown in FIGURE5.items() if shown and name != "dataset"]
    return [FIGURE5[name] for name in names], [
        [f"{row[name]:{'.1f' if 'f1' in name else '.3g'}}" if isinstance(row[name], float) else str(row[name] or "")
         for name in names] for row in sorted(rows, key=lambda row: row["dataset"])]


def as_text(header, lines):
    """Columns padded with spaces; the first column (dataset, difference) becomes a line of its own where it changes."""
    widths = [max(len(row[i]) for row in [header, *lines]) for i in range(1, len(header))]
    out, above = [], header[0]
    for row in [header, *lines]:
        if row[0] not in ("", above):
            above = row[0]
            out.append(f"[{above}]")
        out.append("  ".join(value.ljust(width) for value, width in zip(row[1:], widths)).rstrip())
    return "\n".join(out)


def as_markdown(header, lines):
    """The same as a markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *lines])


# ---- files ----------------------------------------------------------------------------------------------------------

def decimals(value, places):
    """A number with so many decimals, nothing for None."""
    return "" if value is None else f"{value:.{places}f}"


def write_csv(path, header, lines):
    """A CSV file; None is left empty."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *lines])


def draw(folder, tables, entries, probes, remark):
    """A picture of each table, of figure 5 and of frozen evaluation; without matplotlib a line that says so."""
    try:
        import pictures
    except ModuleNotFoundError as error:
        if error.name.split(".")[0] != "matplotlib":
            raise
        print("no pictures: the package matplotlib is not installed (pip install matplotlib)\n")
        return
    for table, (cells, repaired) in tables.items():
        pictures.draw_table(folder / f"{table}.png", cells, remark, repaired)
    if entries:
        pictures.draw_figure5(folder / "fig5.png", entries, remark)
    if probes:
        pictures.draw_probe(folder / "probe.png", probes, remark)


def main(argv=None):
    # ---- options
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("tables", nargs="*", metavar="TABLE", help="table2 ... table5, fig5, probe, claims (default: all there is, but for claims)")
    arguments.add_argument("--demo", action="store_true", help="the demo's results instead of the paper-scale ones")
    arguments.add_argument("--results", metavar="DIR", help="folder of the tables (default: results, or results/demo)")
    args = arguments.parse_args(argv)
    folder, scale = Path(args.results or (RESULTS / "demo" if args.demo else RESULTS)), "demo" if args.demo else "paper"
    for name in args.tables:
        if name not in TABLES + ("fig5", "probe", "claims"):
            raise UserError(f"unknown table '{name}': there are {', '.join(TABLES)}, fig5, probe, claims")
    there = [table for table in TABLES if any((folder_of(folder, s1) / f"{table}.csv").exists() for s1 in LINES)]
    has_probe = "probe" in args.tables or (not args.tables and (folder / "probe.csv").exists())
    if not args.tables and not there and not has_probe:
        raise UserError(f"no rows yet: {folder} has no table2.csv ... table5.csv; run_tables.sh writes them")

    # ---- cells
    blocks, tables, entries, problems = [], {}, [], []    # blocks: (title, (header, lines), notes)
    remark, end = (DEMO, f". {DEMO}") if args.demo else ("", "")
    shown = there + ["fig5"] * (folder / "table2.csv").exists() if not args.tables else [n for n in args.tables if n not in ("probe", "claims")]
    for name in shown:
        table = "table2" if name == "fig5" else name
        both = [s1 for s1 in LINES if (folder_of(folder, s1) / f"{table}.csv").exists()] if name != "fig5" else []
        found = {}                                                            # {s1: (cells, notes)}
        for s1 in both or ["released"]:
            try:
                found[s1] = collect(folder, table, scale, s1)
                check_test_lists(folder / f"{table}.csv", [row for cells, _ in found.values() for cell in cells.values()
                                                           for row in cell["rows"]])
            except UserError as error:
                found.pop(s1, None)
                problems.append(str(error))
        if not found:
            continue
        (cells, notes), (repaired, more) = (found.get(s1, ({}, [])) for s1 in LINES)
        if name == "fig5":
            if entries := figure5(cells, scale):
                blocks.append((f"fig5: best weighted F1 of each method, %{end}", figure5_lines(entries), []))
            else:
                problems.append(f"{folder / 'table2.csv'} has no score yet with 100 % of the labels, which figure 5 shows")
        else:
            tables[name], metric = (cells, repaired), next(iter((cells or repaired).values()))["metric"]
            notes = notes + [f"S1 repaired: {note}" for note in more if note not in notes]
            blocks.append((f"{name}: {metric} on test, %{end}", table_lines(cells, repaired), notes))
            if cells and (found := differences(cells)):
                blocks.append((f"{name}: differences, paired by seed{end}", difference_lines(found), []))
            if repaired and (found := repairs(cells, repaired) | differences(repaired)):
                blocks.append((f"{name}: differences, S1 repaired, paired by seed{end}", difference_lines(found), []))

    probes = curves.collect(folder / "probe.csv", scale) if has_probe else {}
    if probes:
        blocks.append((f"probe: F1 of simple classifiers on frozen features, on test, %, between what it lies{end}", curves.lines(probes), []))
    elif has_probe:
        problems.append(f"{folder / 'probe.csv'} has no rows of scale {scale} yet; run_tables.sh probe writes them")

    if "claims" in args.tables:
        found = claims_of(folder, scale)
        blocks.append((f"claims: what {'the demo' if args.demo else 'OmniSat'} shows on {claims.DATASET}{end}", claims.lines(found), []))

    # ---- files, pictures, text
    if blocks:
        markdown = ["\n\n".join([f"**{title}**", as_markdown(*lines), *notes]) for title, lines, notes in blocks]
        (folder / "compare.md").write_text("\n\n".join(markdown) + "\n", encoding="utf-8")
        if tables:
            write_csv(folder / "compare.csv", [*KEYS, "metric", "paper", "ours_mean", "ours_std", "n", "scale", "s1"],
                      [[*key, cell["metric"], cell["paper"], decimals(cell["mean"], 2), decimals(cell["std"], 2),
                        cell["n"], scale, s1]
                       for both in tables.values() for s1, cells in zip(LINES, both) for key, cell in cells.items()])
        if entries:
            write_csv(folder / "fig5.csv", FIGURE5, [[decimals(v, 4) if isinstance(v, float) else v for v in row.values()]
                                                     for row in entries])
        draw(folder, tables, entries, probes, remark)
        print("\n\n".join("\n".join([title, as_text(*lines), *notes]) for title, lines, notes in blocks))
    if problems:
        text = "\n".join(dict.fromkeys(problems))
        if args.tables or not blocks:
            raise UserError(text)
        print(f"\n{text}", file=sys.stderr)


if __name__ == "__main__":
    run(main)
