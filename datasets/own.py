"""The sensors of a dataset of one's own, from a file in place of an edit of datasets/sensors.py.

    [{"key": "drone", "kind": "image", "bands": ["R", "G", "B"], "resolution": 0.1, "patch": 40,
      "files": "drone/{tile}.tif"},
     {"key": "planet", "kind": "series", "bands": ["B", "G", "R", "NIR"], "resolution": 4, "patch": 1, "period": 366,
      "files": "planet/{tile}.npz"}]

The fields are those of datasets.sensors.Sensor. The file is --sensors, or sensors.json in the folder of the data; from
then on SENSORS has the dataset, by the name that --dataset gives it. Checkpoints take the table along.
"""
import re
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from string import Formatter

import numpy as np

from datasets.files import read_json
from datasets.sensors import SENSORS, Sensor, table_of
from utils.errors import UserError

NAME = "sensors.json"
ENDINGS = {"image": (".tif", ".tiff", ".npy", ".npz"), "series": (".npz",)}    # a series needs its dates
OWN = {}    # {dataset: (what its table is from, whether that is such a file)}, of those not in datasets/sensors.py


def is_number(value):
    return type(value) in (int, float) and np.isfinite(value)


def is_text(value):
    return isinstance(value, str) and value.isprintable() and value != ""


def is_list(value, least=1):
    """Whether a value is a list of texts, each once."""
    return isinstance(value, list) and least <= len(value) == len({*filter(is_text, value)})


def is_pattern(value):
    """Whether a text says where the files of tiles lie."""
    try:
        return is_text(value) and {name for _, name, *_ in Formatter().parse(value) if name is not None} == {"tile"}
    except ValueError:                                                        # braces that do not close
        return False


def is_date(value):
    try:
        return is_text(value) and np.datetime64(value, "D").astype(str) == value
    except ValueError:
        return False


# of each field: whether a value is one, and what is expected
FORMS = {"key": (lambda v: is_text(v) and re.fullmatch("[A-Za-z0-9-]+", v), "letters, digits and -"),
         "kind": (lambda v: v in ("image", "series"), '"image" or "series"'),
         "bands": (is_list, "a list of names, each once"),
         "resolution": (lambda v: is_number(v) and v > 0, "metres a pixel"),
         "patch": (lambda v: type(v) is int and v > 0, "pixels a side, a whole number"),
         "period": (lambda v: v is None or type(v) is int and v > 0, "days of a series, a whole number such as 366"),
         "origin": (lambda v: v is None or is_date(v), 'a date such as "2018-09-01"'),
         "files": (is_pattern, 'a path with {tile} in it, such as "thermal/{tile}.npz"'),
         "nodata": (lambda v: v is None or is_number(v), "a number"),
         "lowest": (lambda v: v is None or is_number(v), "a number"),
         "in_all": (lambda v: type(v) is bool, "true or false"),
         "extra_bands": (lambda v: is_list(v, 0), "a list of names, each once")}
NEEDED = [field.name for field in fields(Sensor) if field.default is MISSING] + ["files"]


def read_sensor(path, entry, number):
    """The Sensor of an entry of the file. number: its place, from 1. Errors: UserError that names file, sensor, field.
    """
    if not isinstance(entry, dict):
        raise UserError(f"{path}: sensor {number} is {entry!r:.60}, expected are fields, "
                        "{\"key\": ..., \"kind\": ...}; docs/own.md has an example")
    name = f"{path}: sensor {entry['key'] if is_text(entry.get('key')) else number}"
    for field in entry:
        if field not in FORMS:
            raise UserError(f"{name}: {field!r:.60} is no field; there are {', '.join(FORMS)}")
    for field in NEEDED:
        if field not in entry:
            raise UserError(f"{name}: has no field {field}, expected is {FORMS[field][1]}")
    for field, value in entry.items():
        if not FORMS[field][0](value):
            raise UserError(f"{name}: {field} is {value!r:.60}, expected is {FORMS[field][1]}")
    if entry["kind"] == "series" and entry.get("period") is None:
        raise UserError(f"{name}: has no field period, a series needs it: {FORMS['period'][1]}")
    if entry["kind"] == "image" and entry.get("period") is not None:
        raise UserError(f"{name}: period is for a series; an image has none")
    if entry["kind"] == "image" and (entry["patch"] % 2 or not 4 <= entry["patch"] <= 360):
        raise UserError(f"{name}: patch is {entry['patch']}, of an image it must be an even number of 4 to 360 pixels")
    if Path(entry["files"]).suffix.lower() not in (endings := ENDINGS[entry["kind"]]):
        raise UserError(f"{name}: files is {entry['files']!r:.60}, of this kind it must end in {' or '.join(endings)}")
    return Sensor(**{field: tuple(value) if isinstance(value, list) else value for field, value in entry.items()})


def read_table(path):
    """{key: Sensor} of a file. Errors: UserError that names it."""
    entries = read_json(path, "a list of sensors", "docs/own.md has an example")
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path}: not a list of sensors, [{{\"key\": ...}}, ...]; docs/own.md has an example")
    sensors = [read_sensor(path, entry, number) for number, entry in enumerate(entries, 1)]
    keys = [sensor.key for sensor in sensors]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise UserError(f"{path}: sensor {twice[0]}: its key is there twice")
    try:
        return table_of(*sensors)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def find(name, root, path=None):
    """Have SENSORS know a dataset by the file of its sensors, if there is one: path (--sensors), or sensors.json in
    root.

    Errors: UserError for a file that is not needed, or not right.
    """
    if path is not None and name in SENSORS and name not in OWN:
        raise UserError(f"--sensors {path}: {name} is in datasets/sensors.py; give a dataset of your own another name")
    if name in SENSORS and name not in OWN or not re.fullmatch("[A-Za-z0-9][A-Za-z0-9._-]*", name):
        return
    source = path or Path(root) / NAME
    if path is not None or source.exists():
        SENSORS[name], OWN[name] = read_table(source), (source, True)


def adopt(name, entries, path):
    """Have SENSORS know the dataset of a checkpoint. entries: its table, a list of dicts. path: the checkpoint's.

    Errors: UserError if a file of sensors that was read says otherwise.
    """
    if name in SENSORS and name not in OWN:
        return
    table = table_of(*(Sensor(**entry) for entry in entries))
    source, is_file = OWN.get(name, (path, False))
    if is_file:
        check_same(SENSORS[name], source, table, path)
    else:
        SENSORS[name], OWN[name] = table, (path, False)


def check_beside(name, root):
    """Where a dataset is not known, find it; where its table came along in a checkpoint, sensors.json in root, if there
    is one, says where its files are.

    Errors: UserError for a dataset that is nowhere, or if its sensors are others.
    """
    path = Path(root) / NAME
    if name not in SENSORS:
        find(name, root)
    if name not in SENSORS:
        raise UserError(f"unknown dataset {name!r}: there are {', '.join(SENSORS)}, and no {path}")
    source, is_file = OWN.get(name, (None, True))
    if not is_file and path.exists():
        table = read_table(path)
        check_same(table, path, SENSORS[name], source)
        SENSORS[name] = SENSORS[name] | table


def check_same(table, path, other, source):
    """Errors: UserError if sensors of two tables differ in what is learned. path, source: where they are from."""
    for key in other:
        if key in table and table[key] != other[key]:
            one, two = asdict(table[key]), asdict(other[key])
            field = next(f.name for f in fields(Sensor) if f.compare and one[f.name] != two[f.name])
            raise UserError(f"{path}: sensor {key}: {field} is {one[field]}, in {source} it is {two[field]}: another "
                            "dataset; restore it, or give it a name of its own")


def table(name):
    """What a checkpoint takes along of a dataset of one's own: {"table": its sensors}, else {}."""
    return {"table": [asdict(sensor) for sensor in SENSORS[name].values()]} if name in OWN else {}
