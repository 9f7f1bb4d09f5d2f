"""The CSV files of results: one row a cell and seed, with where it came from; counts beside it."""
import csv
import json
from pathlib import Path

from utils.errors import UserError
from utils.files import wait_for_lock, written_whole

CELLS = Path(__file__).parent.parent / "results" / "paper" / "cells.csv"
TABLES = ("table2", "table3", "table4", "table5")
SCORED = ("ok", "random-weights")    # statuses of rows with a score; the second is the demo's where published weights are not there
KEYS = ("table", "dataset", "model", "pretraining", "ablation", "modality", "label_percent")    # as in cells.csv
COLUMNS = KEYS + ("seed", "f1_weighted", "f1_macro", "f1_micro", "map", "n_test", "params", "pretrain_hours",
                  "finetune_hours", "s1", "rate", "rate_from", "scale", "status", "commit", "dirty", "command", "split_hash", "checkpoint_hash",
                  "torch", "device", "date")
# of frozen evaluation, probe.py; _low and _high: the middle 95 % of a bootstrap over the test tiles
PROBE_KEYS = ("dataset", "model", "pretraining", "ablation", "modality", "features", "classifier", "label_percent")
PROBE_COLUMNS = PROBE_KEYS + ("seed", "f1_weighted", "f1_weighted_low", "f1_weighted_high", "f1_macro", "f1_macro_low", "f1_macro_high",
                              "f1_micro", "map", "n_test", "s1", "setting", "dimensions", "scale", "commit", "dirty", "command", "split_hash",
                              "checkpoint_hash", "torch", "device", "date")


def read_rows(path, keys=KEYS):
    """List of dicts of text, empty if there is no file. Errors: UserError if it is another kind of table."""
    if not Path(path).exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        if not set(keys) <= set(rows.fieldnames or ()):
            raise UserError(f"{path}: not a table of results, its columns are {rows.fieldnames}; name another file")
        return list(rows)


def key_of(row):
    """The key of a row's cell: table, dataset, model, pretraining, ablation, modality, label_percent."""
    return tuple(row[name] for name in KEYS)


def folder_of(folder, s1):
    """Where results and runs on Sentinel-1 as released, or repaired, are kept: the folder itself, or one in it."""
    return Path(folder) if s1 == "released" else Path(folder, s1)


def s1_of(row):
    """released or repaired: a row of other data, or of before there was a choice, is released."""
    return row.get("s1") or "released"


def pretraining_folder(runs, dataset, model, modality, ablation, seed):
    """Where a pretraining is kept: runs/treesatai-ts/pretrain-seed0 of OmniSat, runs/treesatai/satmae-pretrain-s2-seed0 of others."""
    name = "pretrain" if model == "omnisat" else f"{model}-pretrain-{modality}"
    return Path(runs, dataset, f"{name if ablation == 'none' else f'{name}-{ablation}'}-seed{seed}")


def finetuning_folder(runs, dataset, model, pretraining, ablation, modality, percent, seed):
    """Where a fine-tuning is kept: runs/treesatai-ts/omnisat-self-all-100percent-seed0."""
    name = pretraining if ablation == "none" else ablation
    return Path(runs, dataset, f"{model}-{name}-{modality}-{percent}percent-seed{seed}")


def identity(row, keys=KEYS):
    """What makes a row the row of a cell, seed, scale and choice of Sentinel-1: the key columns and these three, as text."""
    return tuple(str(row[name]) for name in keys + ("seed", "scale")) + (s1_of(row),)


def write_row(path, row, counts=None, keys=KEYS, columns=COLUMNS):
    """Add a row, in place of an earlier one of the same cell and seed; files are replaced whole, one writer at a time.

    counts: {"classes", "tp", "fp", "fn", "tn"}, kept in <table>.counts.jsonl, so that a metric can be recomputed; None for a row
    without a score.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".counts.jsonl")
    with open(path.with_suffix(".lock"), "w") as lock:
        wait_for_lock(lock)
        rows = [r for r in read_rows(path, keys) if identity(r, keys) != identity(row, keys)] + [row]
        lines = [json.loads(line) for line in beside.read_text().splitlines()] if beside.exists() else []
        lines = [line for line in lines if identity(line, keys) != identity(row, keys)]
        lines += [dict(zip(keys + ("seed", "scale", "s1"), identity(row, keys))) | counts] if counts else []
        with written_whole(beside) as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        with written_whole(path) as file:                                     # last: a row without counts would not be noticed
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
