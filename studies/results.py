"""Rows of the studies, in results/study/, and the pages that show them."""
import csv
import functools
import math
from pathlib import Path

import numpy as np
import torch
from scipy.stats import t as student

from engine.log import provenance
from utils.errors import UserError
from utils.files import wait_for_lock, written_whole

ROOT = Path(__file__).parent.parent
OUT, PAPER = ROOT / "results" / "study", ROOT / "PAPER.md"


@functools.cache
def commit():
    """Of the code, short; + where files differ from it."""
    source = provenance("", [], torch.device("cpu"))
    return source["commit"][:7] + ("+" if source["dirty"] else "")


def append(name, row):
    """Add a row (a dict) to a table in OUT; several processes may do so."""
    path = OUT / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", newline="", encoding="utf-8") as file:
        wait_for_lock(file)
        writer = csv.DictWriter(file, row, lineterminator="\n")
        if file.tell() == 0:
            writer.writeheader()
        writer.writerow(row)


def read(name):
    """Rows of a table in OUT, a list of dicts of text."""
    path = OUT / name
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def interval(values):
    """Mean of the seeds' values, and half of its 95 % interval (Student's t)."""
    values = np.asarray(values)
    if len(values) < 2:
        return values.mean(), math.nan
    return values.mean(), student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))


def publish(name, text, page=PAPER):
    """Put a text into a page, PAPER.md or another, between <!-- name --> and <!-- end of name -->."""
    before, _, rest = page.read_text(encoding="utf-8").partition(f"<!-- {name} -->\n")
    _, mark, after = rest.partition(f"<!-- end of {name} -->\n")
    if not mark:
        raise UserError(f"{page}: no <!-- {name} --> and <!-- end of {name} --> in it; put them where the tables "
                        "belong")
    with written_whole(page) as file:
        file.write(f"{before}<!-- {name} -->\n{text}{mark}{after}")
