"""Our cells beside the paper's: mean, standard deviation and number of seeds.

    python compare.py            results/TABLE.csv, the paper's configuration
    python compare.py --demo     results/demo/TABLE.csv, simulated data and small models

Prints the tables and writes compare.csv (a line a cell) and compare.md (the same tables) beside them. Differences of
claims (pretrained against scratch, all modalities against the best single one) are paired by seed.
"""
import argparse
import csv
import statistics
import sys
from pathlib import Path

from utils.results import KEYS, read_rows

RESULTS = Path(__file__).parent / "results"
CELLS = RESULTS / "paper" / "cells.csv"
METRICS = {"f1_weighted": "weighted F1", "f1_macro": "macro F1", "f1_as_printed": "weighted F1"}
COLUMN = {"f1_as_printed": "f1_weighted"}    # the values of table 5 are weighted F1, see PAPER.md
MODALITIES = ("all", "s1", "s2", "vhr")


def collect(folder, table, scale):
    """Per cell of the paper that we have a run of at this scale: {key: {"paper", "metric", "ours": {seed: F1}}}."""
    runs = {}
    for row in read_rows(folder / f"{table}.csv"):
        if row["status"] == "ok" and row["scale"] == scale:
            runs.setdefault(tuple(row[name] for name in KEYS), {})[row["seed"]] = row
    cells = {}
    for cell in read_rows(CELLS):
        key = tuple(cell[name] for name in KEYS)
        if key in runs:
            column = COLUMN.get(cell["metric"], cell["metric"])
            cells[key] = {"paper": float(cell["f1"]), "metric": cell["metric"], "printed_name": cell["printed_name"],
                          "ours": {seed: float(row[column]) for seed, row in runs[key].items()}}
    return cells


def spread(values, form=".1f"):
    """"61.1 ±2.0", without a spread for a single value, a dash for none. form: of the mean."""
    values = list(values)
    if not values:
        return "-"
    return f"{statistics.mean(values):{form}}" + (f" ±{statistics.stdev(values):.1f}" if len(values) > 1 else "")


def table_lines(cells):
    """Header and lines of one table: for each method a line of the paper's cells and one of ours."""
    percents = sorted({key[6] for key in cells}, key=int)
    columns = [(m, p) for m in MODALITIES for p in percents if any(key[5:] == (m, p) for key in cells)]
    header = ["dataset", "method", "pretraining", ""] + [f"{m} {p}%" for m, p in columns] + ["n"]
    lines = []
    for group in dict.fromkeys(key[:5] for key in cells):
        _, dataset, _, pretraining, ablation = group
        found = [cells.get(group + column) for column in columns]
        name = next(cell["printed_name"] for cell in found if cell)
        seeds = {len(cell["ours"]) for cell in found if cell}
        lines.append([dataset, name, pretraining, "paper"] + [f"{c['paper']:.1f}" if c else "" for c in found] + [""])
        lines.append(["", "", "", "ours"] + [spread(c["ours"].values()) if c else "" for c in found]
                     + ["-".join(map(str, sorted({min(seeds), max(seeds)})))])
    return header, lines


def claims(cells):
    """Lines for the paper's two claims: (claim, where, paper's difference, ours paired by seed)."""
    lines, paper = [], [tuple(cell[name] for name in KEYS) for cell in read_rows(CELLS)]
    for key, cell in cells.items():
        table, dataset, model, pretraining, ablation, modality, percent = key
        scratch = cells.get((table, dataset, model, "none", ablation, modality, percent))
        if pretraining == "self" and ablation == "none" and scratch:
            lines.append(("pretrained - scratch", f"{dataset}, {modality}, {percent} %", cell["paper"] - scratch["paper"],
                          [cell["ours"][s] - scratch["ours"][s] for s in cell["ours"].keys() & scratch["ours"].keys()]))
        printed = {k[5] for k in paper if k[:5] == key[:5] and k[6] == percent} - {"all"}
        single = [cells.get(key[:5] + (m, percent)) for m in printed]
        if modality == "all" and single and all(single):
            best = max(c["paper"] for c in single)
            ours = [value - max(c["ours"][s] for c in single) for s, value in cell["ours"].items()
                    if all(s in c["ours"] for c in single)]
            start = {"self": "pretrained", "none": "from scratch"}[pretraining]
            lines.append(("all - best single modality", f"{dataset}, {start}, {percent} %", cell["paper"] - best, ours))
    return [[claim, where, f"{paper:+.1f}", spread(ours, "+.1f"), str(len(ours))]
            for claim, where, paper, ours in sorted(lines, key=lambda x: x[0]) if ours]


def as_text(header, lines):
    """Columns padded with spaces for the terminal."""
    widths = [max(len(row[i]) for row in [header, *lines]) for i in range(len(header))]
    return "\n".join("  ".join(value.ljust(width) for value, width in zip(row, widths)).rstrip() for row in [header, *lines])


def as_markdown(header, lines):
    """The same as a markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *lines])


def main(argv=None):
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--demo", action="store_true", help="the demo's results instead of the paper-scale ones")
    arguments.add_argument("--results", metavar="DIR", help="folder of the tables (default: results, or results/demo with --demo)")
    args = arguments.parse_args(argv)
    folder = Path(args.results or (RESULTS / "demo" if args.demo else RESULTS))
    tables = sorted(path.stem for path in folder.glob("table?.csv"))
    if not tables:
        sys.exit(f"compare.py: error: no tables in {folder}; run_tables.sh writes them")

    text, markdown, lines = [], [], []
    for table in tables:
        cells = collect(folder, table, "demo" if args.demo else "paper")
        if not cells:
            continue
        metric = METRICS[next(iter(cells.values()))["metric"]]
        title = f"{table}: {metric} on test, %" + (
            ". DEMO: simulated tiles, small models; not comparable with the paper's" if args.demo else "")
        for parts, write in ((text, as_text), (markdown, as_markdown)):
            parts += [title if write is as_text else f"**{title}**", write(*table_lines(cells))]
            if found := claims(cells):
                parts.append(write(["difference", "where", "paper", "ours", "n"], found))
        for key, cell in cells.items():
            ours = list(cell["ours"].values())
            lines.append([*key, METRICS[cell["metric"]], cell["paper"], f"{statistics.mean(ours):.2f}" if ours else "",
                          f"{statistics.stdev(ours):.2f}" if len(ours) > 1 else "", len(ours), "demo" if args.demo else "paper"])
    if not text:
        sys.exit(f"compare.py: error: {folder} has no row yet of a cell that the paper prints")
    print("\n\n".join(text))
    (folder / "compare.md").write_text("\n\n".join(markdown) + "\n", encoding="utf-8")
    with open(folder / "compare.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*KEYS, "metric", "paper", "ours_mean", "ours_std", "n", "scale"])
        writer.writerows(lines)


if __name__ == "__main__":
    main()
