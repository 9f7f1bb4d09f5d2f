"""Our cells beside the paper's: mean, standard deviation and number of seeds.

    python compare.py                  all there is: results/table2.csv ... table5.csv and figure 5, the paper's
                                       configuration
    python compare.py table3 fig5      these only
    python compare.py --demo           results/demo/TABLE.csv, simulated data and small models
    python compare.py claims --demo    what the demo is to show, claim by claim, of each seed

Rows that the paper does not print, of a method of one's own or of other sensors, are shown below those that it does.
Below them is the best that was reported since the paper, by other protocols (results/paper/later.csv).
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
from tables.collect import FIGURE5, best_since, collect, differences, figure5, printed_only, repairs
from tables.text import LINES, as_markdown, as_text, difference_lines, figure5_lines, table_lines
from utils.errors import UserError, run
from utils.results import KEYS, TABLES, check_test_lists, folder_of

RESULTS = Path(__file__).parent / "results"
OTHERS = "fig5", "probe", "subsets", "claims"    # what is shown besides the tables, in this order
DEMO = "DEMO: simulated tiles, small models, not comparable with the paper"


def decimals(value, places):
    """A number with so many decimals, nothing for None."""
    return "" if value is None else f"{value:.{places}f}"


def write_csv(path, header, lines):
    """A CSV file; None is left empty."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *lines])


class Findings:
    """What a folder of results holds, and what it lacks.

    blocks: [(title, (header, lines), notes)], the text; tables: {name: (cells, cells on repaired Sentinel-1)};
    entries: of figure 5; probes: of frozen evaluation; seen: of sets of sensors; problems: lines on what is missing.
    """

    def __init__(self, folder, is_demo):
        self.folder, self.is_demo, self.scale = folder, is_demo, "demo" if is_demo else "paper"
        self.blocks, self.tables, self.entries, self.probes, self.seen, self.problems = [], {}, [], {}, {}, []

    def add_block(self, title, lines, notes=()):
        self.blocks.append((f"{title}{f'. {DEMO}' if self.is_demo else ''}", lines, list(notes)))

    def cells(self, table, kinds):
        """{s1: (cells, notes)} of a table, of the kinds of Sentinel-1 that there are without a problem."""
        found = {}
        for s1 in kinds:
            try:
                found[s1] = collect(self.folder, table, self.scale, s1)
                check_test_lists(self.folder / f"{table}.csv", [row for cells, _ in found.values()
                                                                for cell in cells.values() for row in cell["rows"]])
            except UserError as error:
                found.pop(s1, None)
                self.problems.append(str(error))
        return found

    def add_table(self, name):
        """A table beside the paper's, and the differences that its claims are about."""
        found = self.cells(name, [s1 for s1 in LINES if path_of(self.folder, name, s1).exists()] or ["released"])
        if not found:
            return
        (cells, notes), (repaired, more) = (found.get(s1, ({}, [])) for s1 in LINES)
        self.tables[name], metric = (cells, repaired), next(iter((cells or repaired).values()))["metric"]
        notes = notes + [f"S1 repaired: {note}" for note in more if note not in notes]
        printed, own = [printed_only(each) for each in (cells, repaired)], [
            {key: cell for key, cell in each.items() if cell["paper"] is None} for each in (cells, repaired)]
        titles = f"{name}: {metric} on test, %", f"{name}, not in the paper: {metric} on test, %"
        for title, both in zip(titles, (printed, own)):
            if any(both):
                self.add_block(title, table_lines(*both), notes)
                notes = []                                                    # of both, told once
        cells, repaired = printed
        if cells and (found := differences(cells)):
            self.add_block(f"{name}: differences, paired by seed", difference_lines(found))
        if repaired and (found := repairs(cells, repaired) | differences(repaired)):
            self.add_block(f"{name}: differences, S1 repaired, paired by seed", difference_lines(found))

    def add_later(self):
        """The best since the paper, a block of its own: none of it was made by the paper's protocol."""
        if best := best_since(self.tables):
            self.add_block("since the paper: the best reported with all labels, %, by other protocols", (
                ["dataset", "method", "F1", "source"],
                [[row["dataset"], row["method"], f"{float(row['value']):.1f}", row["source"]] for row in best]),
                [f"{row['method']} on {row['dataset']}: {row['protocol']}" for row in best])

    def add_figure5(self):
        found = self.cells("table2", ["released"])
        if not found:
            return
        self.entries = figure5(found["released"][0], self.scale)
        if self.entries:
            self.add_block("fig5: best weighted F1 of each method, %", figure5_lines(self.entries))
        else:
            self.problems.append(f"{self.folder / 'table2.csv'} has no score yet with 100 % of the labels, which "
                                 "figure 5 shows")

    def add_probe(self):
        path = self.folder / "probe.csv"
        self.probes = curves.collect(path, self.scale)
        for model, found in self.probes.items():
            whose = "" if model == curves.FIRST else f" of {model}"
            self.add_block(f"probe{whose}: F1 of simple classifiers on frozen features, on test, %, between "
                           "what it lies", curves.lines(found, model))
        if not self.probes:
            self.problems.append(f"{path} has no rows of scale {self.scale} yet; run_tables.sh probe writes them")

    def add_subsets(self):
        self.seen = subsets.collect(self.folder, self.scale)
        if self.seen:
            self.add_block("subsets: F1 on test of a checkpoint that sees less than it was trained on, %",
                           subsets.lines(self.seen))
        else:
            self.problems.append(f"{self.folder / 'subsets.csv'} has no rows of scale {self.scale} yet; evaluate.py "
                                 "--all-subsets writes them")

    def add_claims(self):
        found = claims.collect_claims(self.folder, self.scale)
        self.add_block(f"claims: what {'the demo' if self.is_demo else 'OmniSat'} shows on {claims.DATASET}",
                       claims.lines(found))

    def write(self):
        """The same as files, text and numbers; and as pictures."""
        markdown = ["\n\n".join([f"**{title}**", as_markdown(*lines), *notes]) for title, lines, notes in self.blocks]
        (self.folder / "compare.md").write_text("\n\n".join(markdown) + "\n", encoding="utf-8")
        if self.tables:
            write_csv(self.folder / "compare.csv",
                      [*KEYS, "metric", "paper", "ours_mean", "ours_std", "n", "scale", "s1"],
                      [[*key, cell["metric"], cell["paper"], decimals(cell["mean"], 2), decimals(cell["std"], 2),
                        cell["n"], self.scale, s1]
                       for both in self.tables.values() for s1, cells in zip(LINES, both)
                       for key, cell in cells.items()])
        if self.entries:
            write_csv(self.folder / "fig5.csv", FIGURE5, [[decimals(v, 4) if isinstance(v, float) else v
                                                           for v in row.values()] for row in self.entries])
        self.draw(DEMO if self.is_demo else "")

    def draw(self, remark):
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
        for table, (cells, repaired) in self.tables.items():
            pictures.draw_table(self.folder / f"{table}.png", cells, remark, repaired)
        if self.entries:
            pictures.draw_figure5(self.folder / "fig5.png", self.entries, remark)
        for model, found in self.probes.items():
            name = "probe" if model == curves.FIRST else f"probe-{model}"
            curves.draw(self.folder / f"{name}.png", found, model, remark)
        if self.seen:
            subsets.draw(self.folder / "subsets.png", self.seen, remark)


def path_of(folder, table, s1):
    return folder_of(folder, s1) / f"{table}.csv"


def command_line():
    """The ArgumentParser."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("tables", nargs="*", metavar="TABLE",
                           help="table2 ... table5, fig5, probe, subsets, claims (default: all there is, but for "
                                "claims)")
    arguments.add_argument("--demo", action="store_true", help="the demo's results instead of the paper-scale ones")
    arguments.add_argument("--results", metavar="DIR", help="folder of the tables (default: results, or results/demo)")
    return arguments


def chosen(tables, folder):
    """What is shown, in order: what was asked for, else all there is, but for claims. Errors: UserError."""
    known = (*TABLES, *OTHERS)
    for name in tables:
        if name not in known:
            raise UserError(f"unknown table '{name}': there are {', '.join(known)}")
    if tables:
        return sorted(tables, key=lambda name: known.index(name) if name in OTHERS[1:] else -1)
    there = [table for table in TABLES if any(path_of(folder, table, s1).exists() for s1 in LINES)]
    more = {"fig5": folder / "table2.csv", **{name: folder / f"{name}.csv" for name in ("probe", "subsets")}}
    found = there + [name for name, path in more.items() if path.exists()]
    if not found:
        raise UserError(f"no rows yet: {folder} has no table2.csv ... table5.csv; run_tables.sh writes them")
    return found


def main(argv=None):
    args = command_line().parse_args(argv)
    findings = Findings(Path(args.results or (RESULTS / "demo" if args.demo else RESULTS)), args.demo)
    more = {"fig5": findings.add_figure5, "probe": findings.add_probe, "subsets": findings.add_subsets,
            "claims": findings.add_claims}
    names = chosen(args.tables, findings.folder)
    for name in [name for name in names if name not in more]:
        findings.add_table(name)
    findings.add_later()
    for name in [name for name in names if name in more]:
        more[name]()
    if findings.blocks:
        findings.write()
        print("\n\n".join("\n".join([title, as_text(*lines), *notes]) for title, lines, notes in findings.blocks))
    if findings.problems:
        text = "\n".join(dict.fromkeys(findings.problems))
        if args.tables or not findings.blocks:
            raise UserError(text)
        print(f"\n{text}", file=sys.stderr)


if __name__ == "__main__":
    run(main)
