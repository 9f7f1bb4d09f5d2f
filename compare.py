"""Our cells beside the paper's: mean, standard deviation and number of seeds.

    python compare.py                  all there is: results/table2.csv ... table5.csv and figure 5, the paper's configuration
    python compare.py table3 fig5      these only
    python compare.py --demo           results/demo/TABLE.csv, simulated data and small models
    python compare.py claims --demo    what the demo is to show, claim by claim, of each seed

Where there are tables on repaired Sentinel-1 too (run_tables.sh --s1 repaired, results/repaired), they have a line
beside ours. Prints the tables and writes beside them, for what was printed: compare.md (the same tables), compare.csv
(a line a cell), fig5.csv, and a picture each (table2.png ... fig5.png; these need matplotlib). Differences behind the
paper's claims (pretrained against scratch, all modalities against the one that is best by the mean over seeds, full
against ablated) are paired by seed. Rows that were scored on different test tiles are refused; other code, tiles and
rates are told.
"""
import argparse
import csv
import sys
from pathlib import Path

from tables import claims, curves, subsets
from tables.collect import FIGURE5, claims_of, collect, differences, figure5, repairs
from tables.text import LINES, as_markdown, as_text, difference_lines, figure5_lines, table_lines
from utils.errors import UserError, run
from utils.results import KEYS, TABLES, check_test_lists, folder_of

RESULTS = Path(__file__).parent / "results"
OTHERS = "fig5", "probe", "subsets", "claims"
DEMO = "DEMO: simulated tiles, small models, not comparable with the paper"


def decimals(value, places):
    """A number with so many decimals, nothing for None."""
    return "" if value is None else f"{value:.{places}f}"


def write_csv(path, header, lines):
    """A CSV file; None is left empty."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *lines])


def draw(folder, tables, entries, probes, seen, remark):
    """A picture of each table, of figure 5, of frozen evaluation and of sets of sensors; without matplotlib a line
    that says so.
    """
    try:
        from tables import pictures
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
    if seen:
        subsets.draw(folder / "subsets.png", seen, remark)


def main(argv=None):
    # ---- options
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("tables", nargs="*", metavar="TABLE",
                           help="table2 ... table5, fig5, probe, subsets, claims (default: all there is, but for claims)")
    arguments.add_argument("--demo", action="store_true", help="the demo's results instead of the paper-scale ones")
    arguments.add_argument("--results", metavar="DIR", help="folder of the tables (default: results, or results/demo)")
    args = arguments.parse_args(argv)
    folder, scale = Path(args.results or (RESULTS / "demo" if args.demo else RESULTS)), "demo" if args.demo else "paper"
    for name in args.tables:
        if name not in TABLES + OTHERS:
            raise UserError(f"unknown table '{name}': there are {', '.join(TABLES + OTHERS)}")
    there = [table for table in TABLES if any((folder_of(folder, s1) / f"{table}.csv").exists() for s1 in LINES)]
    has_probe, has_subsets = (name in args.tables or (not args.tables and (folder / f"{name}.csv").exists())
                              for name in ("probe", "subsets"))
    if not args.tables and not there and not has_probe and not has_subsets:
        raise UserError(f"no rows yet: {folder} has no table2.csv ... table5.csv; run_tables.sh writes them")

    # ---- cells
    blocks, tables, entries, problems = [], {}, [], []    # blocks: (title, (header, lines), notes)
    remark, end = (DEMO, f". {DEMO}") if args.demo else ("", "")
    shown = [name for name in args.tables if name not in OTHERS[1:]]
    if not args.tables:
        shown = there + ["fig5"] * (folder / "table2.csv").exists()
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

    seen = subsets.collect(folder, scale) if has_subsets else {}
    if seen:
        blocks.append((f"subsets: F1 on test of a checkpoint that sees less than it was trained on, %{end}",
                       subsets.lines(seen), []))
    elif has_subsets:
        problems.append(f"{folder / 'subsets.csv'} has no rows of scale {scale} yet; evaluate.py --all-subsets writes "
                        "them")

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
        draw(folder, tables, entries, probes, seen, remark)
        print("\n\n".join("\n".join([title, as_text(*lines), *notes]) for title, lines, notes in blocks))
    if problems:
        text = "\n".join(dict.fromkeys(problems))
        if args.tables or not blocks:
            raise UserError(text)
        print(f"\n{text}", file=sys.stderr)


if __name__ == "__main__":
    run(main)
