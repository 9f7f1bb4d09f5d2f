"""A table of pixels and dates, to a dataset of one's own (datasets/folders.py).

    python -m studies.convert --table pixels.csv --root data/pixels \\
        --tile sample_id --date date --label croptype --place h3_l3 \\
        --series s2=B02,B03,B04,B08 --series s1=VV,VH --nodata 65535

The table has a line a pixel and date, as CSV: the pixel's name, the date (YYYYMMDD or YYYY-MM-DD), its label, the
place it lies in, and a column a band. Each pixel becomes a tile of one patch: a series .npz a sensor, with NaN where a
band is missing, and a line of labels.csv, a class a label. Places (cells of a grid, fields, regions) are never in two
splits: of five parts of them, with about the same share of each class, one is for test, one for validation. Prints the
sensors.json that it needs (docs/own.md).
"""
import argparse
import csv
import io
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from datasets.files import read_text
from utils.errors import UserError, run
from utils.files import written_whole

NEEDED = "expected is CSV, a header and lines with the columns that are named"


def read_table(path, columns):
    """{column: list of text} of a CSV file. Errors: UserError naming the file, and the columns it lacks."""
    reader = csv.DictReader(io.StringIO(read_text(path, NEEDED)))
    if missing := [name for name in columns if name not in (reader.fieldnames or ())]:
        raise UserError(f"{path}: no column {', '.join(missing)}; there are {', '.join(reader.fieldnames or ())[:400]}")
    rows = list(reader)
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise UserError(f"{path}: line {number} has another number of columns than the header")
    return {name: [row[name] for row in rows] for name in columns}


def numbers(path, name, values, nodata):
    """A column as float32, NaN where it is empty or nodata. Errors: UserError naming the line."""
    found = np.full(len(values), np.nan, np.float32)
    for i, text in enumerate(values):
        if text.strip():
            try:
                found[i] = float(text)
            except ValueError as error:
                raise UserError(f"{path}: line {i + 2}: {name} is {text!r}, expected a number, or nothing where it is "
                                "missing") from error
    if nodata is not None:
        found[found == np.float32(nodata)] = np.nan
    return found


def splits_of(labels, places):
    """"train", "val" or "test" of each tile (N,), by place. Errors: UserError for under five places."""
    if len(set(places)) < 5:
        raise UserError(f"--place: {len(set(places))} different places; at least five are needed for splits that share "
                        "none")
    split = np.full(len(labels), "train", dtype="<U5")
    for name, (_, part) in zip(("test", "val"), StratifiedGroupKFold(5).split(labels, labels, places)):
        split[part] = name
    return split


class Columns(NamedTuple):
    """The names of the columns that are no bands."""
    tile: str
    date: str
    label: str
    place: str


def convert(path, root, columns, series, nodata=None):
    """Write the dataset. path: the table; columns: of Columns. series: {sensor key: [band columns]}. Returns the number
    of tiles.

    Errors: UserError for a table that lacks a column, a name that is no file name, a pixel of two labels or places.
    """
    bands = [band for names in series.values() for band in names]
    table = read_table(path, [*columns, *bands])
    values = {band: numbers(path, band, table[band], nodata) for band in bands}
    digits = [text.strip().replace("-", "") for text in table[columns.date]]
    days = np.array([int(text) if text.isdigit() else 0 for text in digits])
    lines = {}
    for i, name in enumerate(table[columns.tile]):
        lines.setdefault(name, []).append(i)
    names = sorted(lines)
    for name in names:
        if not name or not name.isprintable() or name != Path(name).name or name in (".", "..") or "," in name:
            raise UserError(f"{path}: the tile {name!r} cannot be a file's name")
        for what in (columns.label, columns.place):
            if len(found := {table[what][i] for i in lines[name]}) > 1:
                raise UserError(f"{path}: tile {name} has the {what} {' and '.join(sorted(found))}, expected one")
    labels, places = (np.array([table[what][lines[name][0]] for name in names])
                      for what in (columns.label, columns.place))
    classes, split = sorted(set(labels)), splits_of(labels, places)
    for key, wanted in series.items():
        (Path(root) / key).mkdir(parents=True, exist_ok=True)
        for name in names:
            rows = np.array(lines[name])
            rows = rows[np.argsort(days[rows], kind="stable")]
            data = np.stack([values[band][rows] for band in wanted], 1)[:, :, None, None]    # T x C x 1 x 1
            with written_whole(Path(root) / key / f"{name}.npz", "wb") as file:
                np.savez(file, data=data, dates=days[rows])
    with written_whole(Path(root) / "labels.csv") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["tile", "split", *classes])
        writer.writerows([name, part, *(int(own == other) for other in classes)]
                         for name, part, own in zip(names, split, labels))
    return len(names)


def series_of(texts):
    """{"s2": ["B02", ...]} from ["s2=B02,..."]. Errors: UserError."""
    found = {}
    for text in texts:
        key, mark, bands = text.partition("=")
        if not mark or not key.isidentifier() or not all(bands.split(",")) or key in found:
            raise UserError(f"--series {text}: expected once a sensor, its key and its columns, such as s2=B02,B03,B04")
        found[key] = bands.split(",")
    return found


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", required=True, metavar="FILE", help="the pixels, CSV")
    parser.add_argument("--root", required=True, metavar="DIR", help="where the dataset is written")
    for name, what in (("tile", "pixel's name"), ("date", "date"), ("label", "label"), ("place", "place")):
        parser.add_argument(f"--{name}", required=True, metavar="COLUMN", help=f"column of the {what}")
    parser.add_argument("--series", required=True, action="append", metavar="KEY=COLUMNS",
                        help="a sensor and its bands; once for each")
    parser.add_argument("--nodata", type=float, help="what stands for a missing value")
    args = parser.parse_args(argv)
    series = series_of(args.series)
    count = convert(args.table, args.root, Columns(args.tile, args.date, args.label, args.place), series, args.nodata)
    print(f"{args.root}: {count} tiles of one patch. Its sensors.json, with your resolution, first day and largest day "
          "number:")
    print(json.dumps([{"key": key, "kind": "series", "bands": list(bands), "resolution": 10, "patch": 1, "period": 520,
                       "origin": "2017-01-01", "files": f"{key}/{{tile}}.npz"} for key, bands in series.items()],
                     indent=1))


if __name__ == "__main__":
    run(main)
