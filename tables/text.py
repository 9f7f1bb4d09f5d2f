"""Cells as lines of text: padded for the terminal, or as markdown."""
from tables.cells import MODALITIES
from tables.collect import FIGURE5, mean_std, paper_cells

LINES = {"released": "ours", "repaired": "ours, S1 repaired"}    # what our lines are called, by what --s1 was


def spread(mean, std, form=".1f"):
    """"61.1±2.0", without a spread for a single value. form: of the mean."""
    return f"{mean:{form}}" + (f"±{std:.1f}" if std is not None else "")


def span(numbers):
    """"3", or "1-3" where they differ."""
    return "-".join(map(str, sorted({min(numbers), max(numbers)})))


def table_lines(cells, repaired=None):
    """Header and lines of one table: for each method a line of the paper's cells, if it prints any, and one of ours,
    and of those on repaired Sentinel-1.
    """
    every = in_order(cells, repaired or {})
    percents = sorted({key[6] for key in every}, key=int)
    modalities = dict.fromkeys([*MODALITIES, *(key[5] for key in every)])
    columns = [(m, p) for m in modalities for p in percents if any(key[5:] == (m, p) for key in every)]
    lines = []
    for group in dict.fromkeys(key[:5] for key in every):
        printed = [every.get(group + column) for column in columns]
        named = [group[1], next(cell["name"] for cell in printed if cell), group[3]]
        if any(cell and cell["paper"] for cell in printed):
            lines.append([*named, "paper", *(f"{c['paper']:.1f}" if c else "" for c in printed), ""])
            named = [""] * 3
        for s1, ours in (("released", cells), ("repaired", repaired or {})):
            found = [ours.get(group + column) for column in columns]
            if there := [cell for cell in found if cell]:
                lines.append([*named, LINES[s1]] + [spread(c["mean"], c["std"]) if c else "" for c in found]
                             + [span([cell["n"] for cell in there])])
                named = [""] * 3
    return ["dataset", "method", "pretrained", ""] + [f"{m} {p}%" for m, p in columns] + ["n"], lines


def in_order(cells, repaired):
    """A cell of either for each place that one has, in the paper's order, below it what the paper does not print."""
    every = repaired | cells
    return {key: every[key] for key in dict.fromkeys([*paper_cells(next(iter(every))[0]), *every]) if key in every}


def difference_lines(found):
    """Header and lines of the differences: a line a claim and place, a pair of columns a percentage of labels."""
    percents = sorted({percent for values in found.values() for percent in values}, key=int)
    lines = []
    for (claim, where), values in found.items():
        pairs = {p: ("" if paper is None else f"{paper:+.1f}", spread(*mean_std(ours.values()), "+.1f"))
                 for p, (paper, ours) in values.items()}
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
