"""What prepare.py tells of Sentinel-1 inside its dates (datasets/sentinel1.py): findings, a count by year and orbit, a
picture.
"""
import os
from collections import Counter

from datasets.sentinel1 import PLACES
from datasets.treesatai_h5 import read_h5

KINDS = {"scrambled": "scrambled", "unclear": "order unclear"}    # verdict: kind of the finding
COLUMNS = {"in order": 10, "scrambled": 11, "unclear": 9, "no dates": 10, "broken": 8}


def found_in(orders):
    """[(modality, kind, text)] of a file. orders: of TreeSatAI.orders, {} without one."""
    return [(key, KINDS[orders[key][0]], f"{orders['file']}: {orders[key][1]}")
            for key in PLACES if orders and orders[key][0] in KINDS]


def count(records):
    """{year: {key: Counter of verdicts}}, a file once, whatever splits it is in. records: of prepare.check_all."""
    counts, files = {}, {row["orders"]["file"]: row["orders"]
                         for rows in records.values() for row in rows if row["orders"]}
    for orders in files.values():
        for key in PLACES:
            counts.setdefault(orders["year"], {}).setdefault(key, Counter())[orders[key][0]] += 1
    return dict(sorted(counts.items()))


def lines(counts):
    """The count as lines of text, one a year; a single one where all is in order, none where there is nothing to count.
    """
    total = sum((counter for keys in counts.values() for counter in keys.values()), Counter())
    if not any(total[verdict] for verdict in KINDS):
        line = f"  Sentinel-1 is in order inside its dates: {total['in order']:,} series of both orbits"
        return [line] * bool(counts)
    head = f"  {'Sentinel-1':12}" + "".join(f"{key:>{sum(COLUMNS.values())}}"
                                           for key in ("s1, ascending", "s1-des, descending"))
    names = f"  {'year of file':12}" + "".join(f"{word:>{width}}" for _ in PLACES for word, width in COLUMNS.items())
    numbers = {year: [f"{keys[key][word]:{width},}" for key in PLACES for word, width in COLUMNS.items()]
               for year, keys in counts.items()}
    return ["", head, names, *(f"  {year:12}{''.join(cells)}" for year, cells in numbers.items())]


def draw(path, datasets, records):
    """A picture of one scrambled file before and after, the first with both orbits if there is one. Returns a line
    about it, or None.

    datasets, records: by split. path: of the picture; an older one is deleted.
    """
    path.unlink(missing_ok=True)
    found = [(keys, split, i) for split, rows in records.items() for i, row in enumerate(rows)
             if (keys := [key for key in PLACES if row["orders"] and row["orders"][key][0] == "scrambled"])]
    if not found:
        return None
    keys, split, i = max(found, key=lambda item: len(item[0]))
    file = datasets[split].series_file(i)
    try:
        from tables import pictures
    except ModuleNotFoundError as error:
        if error.name.split(".")[0] != "matplotlib":
            raise
        return "no picture of it: the package matplotlib is not installed (pip install matplotlib)"
    pictures.draw_order(path, os.path.basename(file), read_h5(file, keys))
    return f"one file before and after: {path}"
