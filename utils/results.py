"""The CSV files of results: one row a cell and seed, with where it came from; counts beside it."""
import collections
import csv
import json
from pathlib import Path

from utils.errors import UserError
from utils.files import wait_for_lock, written_whole

CELLS = Path(__file__).parent.parent / "results" / "paper" / "cells.csv"
TABLES = ("table2", "table3", "table4", "table5")
# statuses of rows with a score; the second is the demo's where published weights are not there
SCORED = ("ok", "random-weights")
KEYS = ("table", "dataset", "model", "pretraining", "ablation", "modality", "label_percent")    # as in cells.csv
# "": not noted, in rows of before. commit, torch, device, processes (nodes x GPUs): of all starts, with + between;
# dirty: whether any had changes that no commit has; date: of the first/last start; _hash: of a list of tiles, or a file
COLUMNS = KEYS + (
    "seed", "f1_weighted", "f1_macro", "f1_micro", "map", "n_test", "test_hash", "params", "pretrain_hours",
    "finetune_hours", "s1", "rate", "rate_from", "scale", "status", "commit", "dirty", "command", "split_hash",
    "val_hash", "checkpoint_hash", "torch", "device", "processes", "date", "starts", "pretrain_commit",
    "pretrain_dirty",
    "pretrain_hash", "pretrain_device", "pretrain_processes", "test_commit", "test_dirty")
# of frozen evaluation, probe.py; _low and _high: the middle 95 % of a bootstrap over the test tiles
PROBE_KEYS = ("dataset", "model", "pretraining", "ablation", "modality", "features", "classifier", "label_percent")
PROBE_COLUMNS = PROBE_KEYS + (
    "seed", "f1_weighted", "f1_weighted_low", "f1_weighted_high", "f1_macro", "f1_macro_low", "f1_macro_high",
    "f1_micro", "map", "n_test", "test_hash", "s1", "setting", "dimensions", "scale", "commit", "dirty", "command",
    "split_hash", "checkpoint_hash", "checkpoint_commit", "checkpoint_dirty", "torch", "device", "processes", "date")
# of evaluate.py --all-subsets: modality is what it was trained on, sensors and dates what it saw of the test tiles
SUBSET_KEYS = ("dataset", "model", "pretraining", "ablation", "modality", "label_percent", "sensors", "dates")
SUBSET_COLUMNS = SUBSET_KEYS + (
    "seed", "f1_weighted", "f1_macro", "f1_micro", "map", "n_test", "test_hash", "s1", "scale", "commit", "dirty",
    "command", "split_hash", "checkpoint_hash", "checkpoint_commit", "checkpoint_dirty", "torch", "device",
    "processes", "date")
COLUMNS_OF = {KEYS: COLUMNS, PROBE_KEYS: PROBE_COLUMNS, SUBSET_KEYS: SUBSET_COLUMNS}


def read_rows(path, keys=KEYS):
    """List of dicts of text, empty if there is no file. Columns that there were not when a table was written are empty.

    Errors: UserError if it is another kind of table, or has columns that are not known here.
    """
    columns = COLUMNS_OF[keys]
    if not Path(path).exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file, restval="")
        there = rows.fieldnames or ()
        if not {*keys, "seed", "scale"} <= set(there):
            raise UserError(f"{path}: not a table of results, its columns are {rows.fieldnames}; name another file")
        if unknown := [name for name in there if name not in columns]:
            raise UserError(f"{path}: its columns {', '.join(unknown)} are not known to this version; use the one that "
                            "wrote it, or name another file")
        return [dict.fromkeys(columns, "") | row for row in rows]


def read_cells():
    """The cells that the paper prints, results/paper/cells.csv: a list of dicts of text."""
    with open(CELLS, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_later():
    """Results since the paper, results/paper/later.csv: a list of dicts of text. None of them is a cell."""
    with open(CELLS.with_name("later.csv"), newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


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
    """Where a pretraining is kept: runs/treesatai-ts/pretrain-seed0 of OmniSat,
    runs/treesatai/satmae-pretrain-s2-seed0 of others.
    """
    name = "pretrain" if model == "omnisat" else f"{model}-pretrain-{modality}"
    return Path(runs, dataset, f"{name if ablation == 'none' else f'{name}-{ablation}'}-seed{seed}")


def finetuning_folder(runs, dataset, model, pretraining, ablation, modality, percent, seed):
    """Where a fine-tuning is kept: runs/treesatai-ts/omnisat-self-all-100percent-seed0. Each argument is a word of it.
    """
    name = pretraining if ablation == "none" else ablation
    return Path(runs, dataset, f"{model}-{name}-{modality}-{percent}percent-seed{seed}")


def identity(row, keys=KEYS):
    """What makes a row the row of a cell, seed, scale and choice of Sentinel-1: the key columns and these three, as
    text.
    """
    return tuple(str(row[name]) for name in keys + ("seed", "scale")) + (s1_of(row),)


def write_row(path, row, counts=None, keys=KEYS):
    """Add a row, in place of an earlier one of the same cell and seed; files are replaced whole, one writer at a time.

    counts: {"classes", "tp", "fp", "fn", "tn"}, kept in <table>.counts.jsonl, so that a metric can be recomputed; None
    for a row without a score.
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
        with written_whole(path) as file:    # last: a row without counts would not be noticed
            writer = csv.DictWriter(file, COLUMNS_OF[keys], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


# ---- rows side by side ----------------------------------------------------------------------------------------------

# what rows of one cell have in common unless something changed between them, and how it is told
ALIKE = {"rate": "learning rate", "params": "number of parameters", "val_hash": "list of validation tiles",
         "torch": "version of torch"}


def of_seed(row):
    """With few labels each seed has its own training tiles, the same for all methods."""
    seed = [] if row["label_percent"] == "100" else ["seed", row["seed"]]
    return row["dataset"], f"{row['label_percent']} %", *seed


def of_pretraining(row):
    """The cells of one pretraining: OmniSat's serves all modalities."""
    what = [row["ablation"]] * (row["ablation"] != "none") + [row["modality"]] * (row["model"] != "omnisat")
    return row["dataset"], row["model"], *what, "seed", row["seed"]


SHARED = (("split_hash", "training tiles", of_seed), ("pretrain_hash", "pretraining", of_pretraining))


def check_test_lists(path, rows):
    """Errors: UserError if rows of one dataset were scored on different test tiles, which no mean may mix."""
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        lists = collections.defaultdict(list)
        for row in rows:
            if row["dataset"] == dataset:
                lists[row["n_test"], row["test_hash"]].append(row)
        if len({tiles for tiles, _ in lists}) > 1 or len({name for _, name in lists if name}) > 1:
            told = "; ".join(f"{n} tiles, list {name or 'not noted'}: {rows_in_words(len(some))}, as "
                             f"{name_of(key_of(some[0]))}, seed {some[0]['seed']}" for (n, name), some in lists.items())
            raise UserError(f"{path}: rows of {dataset} were scored on different test tiles ({told}); score all on one "
                            "list with evaluate.py --csv, or delete those of the others")


def remarks(rows):
    """Lines on what rows of a table do not have in common, or do not say; none if there is nothing to tell."""
    code = [[row["dirty"], row["test_dirty"], *([row["pretrain_dirty"]] if row["pretraining"] == "self" else [])]
            for row in rows]
    changed = sum("True" in each for each in code)
    unknown = sum("True" not in each and not {*each} <= {"True", "False"} for each in code)
    notes = [f"{count} of {rows_in_words(len(rows))}: {what}" for count, what in (
        (changed, "pretrained, trained or scored with changes to the code that no commit has"),
        (unknown, "not noted whether the code had changes that no commit has"),
        (sum(not row["test_hash"] for row in rows), "not noted which list of test tiles")) if count]
    for what, names, length in (("commits", ("commit", "pretrain_commit", "test_commit"), 7),
                                ("devices", ("device", "pretrain_device"), None)):
        found = collections.Counter(word[:length] for row in rows for word in
                                    {word.strip() for name in names for word in row[name].split("+") if word})
        if len(found) > 1:
            told = first(f"{word} in {rows_in_words(count)}" for word, count in found.most_common())
            notes.append(f"of {len(found)} {what}: {told}")
    for name, what in ALIKE.items():
        if cells := differing(rows, key_of, name):
            notes.append(f"the {what} differs inside a cell, or not all its rows have it: {first(map(name_of, cells))}")
    for name, what, group in SHARED:
        if groups := differing([row for row in rows if row[name]], group, name):
            notes.append(f"not of the same {what}, as they should be: " + first(map(" ".join, groups)))
    return notes


def differing(rows, group, name):
    """The groups (values of a function of the row) of which rows differ in a column."""
    found = collections.defaultdict(set)
    for row in rows:
        found[group(row)].add(row[name])
    return [key for key, values in found.items() if len(values) > 1]


def rows_in_words(count):
    return f"{count} {'row' if count == 1 else 'rows'}"


def name_of(key):
    """A cell in short: treesatai-ts omnisat self s2 10 %."""
    _, dataset, model, pretraining, ablation, modality, percent = key
    return f"{dataset} {model} {pretraining if ablation == 'none' else ablation} {modality} {percent} %"


def first(texts, shown=3):
    """The first of some texts, and how many more there are."""
    texts = list(texts)
    return ", ".join(texts[:shown]) + (f" and {len(texts) - shown} more" if len(texts) > shown else "")
