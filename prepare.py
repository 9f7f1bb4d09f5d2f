"""Unpack and check a downloaded dataset, once, before the tables: every file of every tile is read.

    python prepare.py treesatai-ts --root data/treesatai       # stopped, the same command goes on where it was
    python prepare.py pastis-hd --root data/pastis-hd --fresh  # check everything again
    python prepare.py weights                                  # download the published weights that some rows start from

Zips are unpacked beside themselves; nothing that was downloaded is changed or deleted. What is found has one of three severities:
error (the tables cannot be made), repaired (the readers deal with it), note (legal, but worth knowing). All of it goes to the
CSV, a summary to the terminal. Without errors, the statistics of the bands and the label subsets of the tables are written too.
Exit code: 0 if the tables can be made, 1 if not, 130 if stopped.
"""
import csv
import hashlib
import json
import os
import re
import signal
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset
from tqdm import tqdm

from datasets import READERS, band_statistics, open_dataset, orders, splits
from datasets.loading import Loader
from datasets.sensors import SENSORS
from datasets.series import clean, missing, uncovered
from engine import options
from run_tables import FOLDERS
from utils import weights
from utils.errors import UserError, run
from utils.files import written_whole
from utils.numbers import whole
from utils.unpack import unpack

VERSION = 4                    # of the checks: results of another version are not taken over
SPLITS, SEEDS, PERCENT = ("train", "val", "test"), (0, 1, 2), {"pastis-hd": 20}    # of the labels; 10 elsewhere
CLOUDY = 80                    # %, mean over the pixels
TABLES = {"treesatai-ts": "table2", "treesatai": "table2", "pastis-hd": "table3", "flair": "table4"}
SEVERITIES = {
    "error": ("missing", "double", "broken", "same tile", "too few tiles", "not listed", "not written"),
    "repaired": ("NaN", "infinite", "nodata", "partly covered", "date without data", "same day", "dates unsorted",
                 "crop moved"),
    "note": ("empty series", "nothing left", "cloudy only", "cloud masks", "constant", "radar units", "no label",
             "scrambled", "order unclear", "number of tiles", "only a centre", "broken zip", "unsafe member", "damaged member")}


class Finding(NamedTuple):
    """A row of the CSV."""
    dataset: str
    split: str
    tile: str
    modality: str
    severity: str
    kind: str
    detail: str
    file: str


def finding(name, kind, text, split="", tile="", modality="", file=""):
    """A Finding; a file that the text begins with goes to its own column, the tile's name is there already."""
    text = " ".join(str(text).split()).removeprefix(f"{tile}: ")
    first, _, rest = text.partition(": ")
    if not file and os.path.isfile(first):
        file, text = first, rest
    severity = next(severity for severity, kinds in SEVERITIES.items() if kind in kinds)
    return Finding(name, split, tile, modality, severity, kind, text, str(file))


# ---- one tile -------------------------------------------------------------------------------------------------------

def kind_of(text, default):
    """The kind of an error about a file, from the readers' words."""
    return "missing" if re.search(r"\bno files? of\b", text) else "double" if re.search(r"\b\d+ files of\b", text) else default


def check_tile(dataset, i):
    """What is wrong with tile i, [(modality, kind, text)], and its classes as numbers, None if they cannot be read."""
    found, label = [], None
    for sensor in (*dataset.sensors, None):                                       # None: the labels
        key = sensor.key if sensor else "labels"
        try:
            if sensor is None:
                label = np.flatnonzero(dataset.check_label(i)).tolist()
                found += [] if label else [(key, "no label", "none of the classes")]
            elif dataset.paths[key][i] is not None:                               # else it is the dataset's own finding
                found += [(key, *what) for what in check_data(dataset, i, sensor, *dataset.raw(i, [key])[key])]
        except Exception as error:    # whatever a damaged file makes a library raise
            text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            found.append((key, kind_of(text, "broken"), text))
    return found, label


def check_data(dataset, i, sensor, data, days):
    """Yield (kind, text). data: image (C, H, W), days None; or series (T, C, H, W) with days (T,), as the file has them."""
    for text in dataset.remarks(i, sensor.key):
        yield "crop moved", text
    if days is not None and not len(days):
        yield "empty series", "no dates"
        return
    # with their numbers for days, none is there twice: what is left are the dates with data
    whole, kept = (dataset.cleaned_image(i, sensor.key, data), None) if days is None else clean(
        data, np.arange(len(days)), nodata=sensor.nodata, lowest=sensor.lowest)
    if not len(whole):
        yield "nothing left", f"{len(days)} dates, none with data"
    elif whole.min() == whole.max():
        yield "constant", f"all values are {whole.min()}"
    if days is None:
        if (pixels := np.any(whole != data, axis=0)).any():
            yield "nodata", f"{pixels.sum()} pixels"
        return
    if not len(kept):
        return
    if len(kept) < len(days):
        yield "date without data", f"{len(days) - len(kept)} of {len(days)} dates"
    is_float = data.dtype.kind == "f"
    wrong = {"NaN": np.isnan(data) if is_float else None, "infinite": np.isinf(data) if is_float else None,
             "nodata": missing(data, sensor.nodata, sensor.lowest) & np.isfinite(data)}
    if data.shape[1] > 1 and (pixels := uncovered(data)[kept]).any():
        yield "partly covered", (f"{pixels.sum()} pixels on {pixels.any((1, 2)).sum()} of {len(days)} dates are 0 in all "
                                 "bands")
    for kind, is_wrong in wrong.items():
        if is_wrong is not None and (pixels := is_wrong[kept].any(1)).any():
            yield kind, f"{pixels.sum()} pixels on {pixels.any((1, 2)).sum()} of {len(days)} dates"
    if same := len(kept) - len(np.unique(days[kept])):
        yield "same day", f"{same} of {len(days)} dates"
    if (np.diff(days[kept]) < 0).any():
        yield "dates unsorted", f"{len(days)} dates"
    if "VV" in sensor.bands:
        radar = dataset.finish(sensor.key, whole)[:, sensor.bands.index("VV")]
        if radar.min() >= 0 or radar.max() < -39:                                 # power taken for dB, or dB for power
            yield "radar units", f"VV from {radar.min():.3g} to {radar.max():.3g} dB; was the file converted?"
    if sensor.key == "s2" and dataset.has_cloud_masks:
        yield from check_cloud(dataset, i, kept, len(days))


def check_cloud(dataset, i, kept, dates):
    """Yield (kind, text) about the cloud masks; only --max-cloud needs them."""
    try:
        cloud = dataset.cloud(i)
        if len(cloud) != dates:
            yield "cloud masks", f"{dates} dates but {len(cloud)} masks"
        elif (cloud[kept] > CLOUDY).all():
            yield "cloudy only", f"{len(kept)} dates, all with over {CLOUDY} % cloud or snow"
    except UserError as error:
        yield "cloud masks", str(error)


# ---- all tiles, with what an earlier run found ----------------------------------------------------------------------

class Records(Dataset):
    """What was found in each tile of a split, and (True, False) whether it was checked now or is taken over from `known`."""

    def __init__(self, dataset, known):
        self.dataset, self.known = dataset, known

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, i):
        signature = self.signature(i)
        if signature in self.known:
            return self.known[signature], False
        found, label = check_tile(self.dataset, i)
        order = self.dataset.orders(i)
        return {"tile": self.dataset.names[i], "signature": signature, "found": found + orders.found_in(order), "label": label,
                "orders": order, "content": self.dataset.content(i)}, signature is not None

    def signature(self, i):
        """Changes with the files of the tile (their size and time), None if it has none."""
        paths = [os.path.abspath(path) for path in self.dataset.sources(i)]
        stats = [os.stat(path) if os.path.exists(path) else None for path in paths]
        files = [f"{path} {s and (s.st_size, s.st_mtime_ns)}" for path, s in zip(paths, stats)]
        about = [VERSION, self.dataset.name, self.dataset.names[i], *self.dataset.modalities, self.dataset.labels[i].tolist()]
        return splits.fingerprint([*map(str, about), *files])[:32] if files else None


def same_tiles(name, datasets, records):
    """Findings about tiles whose files another split has too, under whatever name: copies and links."""
    first, found = {}, []
    for split, dataset in datasets.items():
        for tile, record in zip(dataset.names, records[split]):
            where, other = first.setdefault(record["content"], (split, tile))
            if record["content"] is not None and where != split:
                found.append(finding(name, "same tile", f"its files are those of {other} in {where}, byte by byte: a score "
                                     "would be of tiles trained on; keep one of the two", split, tile))
    return found


def _same(record):
    return record


def read_progress(path):
    """{signature: record} of earlier runs; a line that was cut off does not count."""
    known = {}
    for line in path.read_text(errors="replace").split("\n") if path.exists() else ():
        try:
            record = json.loads(line)
            known[record["signature"]] = record
        except (ValueError, KeyError, TypeError):
            continue
    return known


def check_all(datasets, progress, workers):
    """Check every tile. Returns ({split: [record of each tile]}, number of tiles that were checked now)."""
    known, records, new = read_progress(progress), {split: [] for split in datasets}, 0
    is_cut_off = progress.exists() and not progress.read_bytes().endswith(b"\n")
    total = sum(len(dataset) for dataset in datasets.values())
    with open(progress, "a") as file, tqdm(total=total, desc="checking", unit="tile") as bar:
        file.write("\n" if is_cut_off else "")
        for split, dataset in datasets.items():
            loader = Loader(Records(dataset, known), batch_size=None, collate_fn=_same,
                            num_workers=workers if len(dataset) > 64 else 0)  # few tiles are not worth a start
            for record, is_new in loader:
                records[split].append(record)
                if is_new:
                    file.write(json.dumps(record) + "\n")
                    file.flush()
                    new += 1
                bar.update()
    return records, new


def open_splits(name, root, keys):
    """({split: dataset}, findings): the splits that can be listed; files missing or double, numbers that are not the release's.

    Errors: UserError if no split can be listed.
    """
    datasets, findings, error = {}, [], None
    for split in SPLITS:
        found = []
        try:
            datasets[split] = open_dataset(name, root, split, keys, labelled=False, findings=found)
        except UserError as problem:
            error = problem
            findings.append(finding(name, "not listed", error, split))
        own = set(datasets[split].names) if split in datasets else ()
        findings += [finding(name, "only a centre" if key == "centroids" else kind_of(text, "missing"), text,
                             split if tile in own else "", tile, key) for tile, key, text in found]
    if not datasets:
        raise error
    sizes = {split: len(dataset) for split, dataset in datasets.items()}
    sizes["train + val"] = sizes.get("train", 0) + sizes.get("val", 0)
    is_demo = any(dataset.is_demo for dataset in datasets.values())
    for part, number in ({} if is_demo else splits.RELEASED.get(name, {})).items():
        if (found := sizes.get(part, 0)) != number:
            kind = "too few tiles" if found < splits.ENOUGH * number else "number of tiles"
            findings.append(finding(name, kind, f"{found:,} tiles in {part}, {number:,} in the release", part))
    for split, dataset in ({} if is_demo else datasets).items():
        if dataset.lost:
            findings.append(finding(name, "too few tiles", f"no tile of {', '.join(dataset.lost)}", split))
    return datasets, list(dict.fromkeys(findings))                                # val is drawn from train: both tell the same


# ---- what the tables need, and the report ---------------------------------------------------------------------------

def write_lists(args, datasets, keys, records, is_new):
    """Statistics of the bands, collected labels, label subsets. Returns their files, also those that were there already.

    is_new: whether a tile was read anew: then what an earlier run wrote may be of files that were changed since.
    """
    train, percent, files = datasets["train"], PERCENT.get(args.dataset, 10), []
    band_statistics.training_statistics(train, args.workers if len(train) > 64 else 0, fresh=is_new)
    for split, data in datasets.items():
        path = splits.list_path(data.release, data.names, data.origin, "labels")
        if data.has_label_files and (is_new or not path.exists()):
            splits.write_labels(path, data.names, [record["label"] for record in records[split]], data.classes)
        files += [path] if data.has_label_files else []
    for seed in SEEDS:
        open_dataset(args.dataset, args.root, "train", keys, label_percent=percent, seed=seed)
        files.append(splits.list_path(train.release, train.names, train.origin, f"{percent}percent-seed{seed}"))
    if any(sensor.extra_bands for sensor in train.sensors):                       # some compared methods see these
        train = open_dataset(args.dataset, args.root, "train", keys, labelled=False, all_bands=True)
        band_statistics.training_statistics(train, args.workers if len(train) > 64 else 0, fresh=is_new)
        files.append(band_statistics.statistics_path(train))
    return [band_statistics.statistics_path(datasets["train"]), *files]


def count_status(datasets, findings):
    """{modality: Counter of the worst that was found in each tile: fine, repaired, missing, double or broken}."""
    order = ("fine", "repaired", "missing", "double", "broken")
    worst = {(key, split, tile): 2 * (key != "labels" and data.paths[key][i] is None)    # of no use without another file
             for split, data in datasets.items() for key in (*data.modalities, "labels") for i, tile in enumerate(data.names)}
    for row in findings:
        status = row.kind if row.kind in order else row.severity
        if row.tile and status in order:
            place = row.modality, row.split, row.tile
            worst[place] = max(worst.get(place, 0), order.index(status))
    counts = {}
    for (key, _, _), status in worst.items():
        counts.setdefault(key, Counter())[order[status]] += 1
    return counts


def print_report(args, unpacked, datasets, records, new, findings, files):
    """One screen."""
    data = next(iter(datasets.values()))
    print(f"\n{args.dataset} in {args.root}" + (" (demo data)" if data.is_demo else ""))
    for line in unpacked[:3] + [f"... and {len(unpacked) - 3} more"] * (len(unpacked) > 3):
        print(f"  unpacked  {line}")
    released = ", ".join(f"{part} {number:,}" for part, number in splits.RELEASED.get(args.dataset, {}).items())
    print("  tiles     " + ", ".join(f"{split} {len(datasets[split]) if split in datasets else 0:,}" for split in SPLITS)
          + (f" (the release: {released})" if released and not data.is_demo else ""))
    total, empty = sum(map(len, records.values())), sum(row["signature"] is None for rows in records.values() for row in rows)
    print(f"  checked   {new:,} tiles now, {total - new - empty:,} unchanged since an earlier run, {empty:,} without any file")

    columns = ("fine", "repaired", "double", "broken", "missing")
    print(f"\n  {'':15}{'files there':>19}" + "".join(f"{column:>10}" for column in columns))
    counts = count_status(datasets, findings)
    for key in (*data.modalities, "labels"):
        there = f"{counts[key].total() - counts[key]['missing']:,} of {counts[key].total():,}"
        print(f"  {key:15}{there:>19}" + "".join(f"{counts[key][column]:10,}" for column in columns))
    of_sentinel1 = orders.lines(orders.count(records))
    print(*of_sentinel1, sep="\n", end="\n" * bool(of_sentinel1))
    print_findings(findings, most=18 - len(files) - len(of_sentinel1))

    classes = {split: Counter(k for row in rows for k in row["label"] or ()) for split, rows in records.items()}
    text = ", ".join(f"{name} {'/'.join(str(count[k]) for count in classes.values())}".replace(" ", "\0")
                     for k, name in enumerate(data.classes))
    print("\n" + textwrap.fill(f"tiles of each class ({'/'.join(classes)}): {text}", 110, initial_indent="  ",
                               subsequent_indent="    ").replace("\0", " "))
    for path in files:
        print(f"  {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}  {os.path.relpath(path)}")


def print_findings(findings, most):
    """How many of each kind, the worst first, with one example."""
    groups = {}
    for row in findings:
        groups.setdefault((row.severity, row.kind, row.modality), []).append(row)
    order = sorted(groups, key=lambda group: (list(SEVERITIES).index(group[0]), -len(groups[group])))
    head = f"{'severity':10}{'finding':19}{'of':14}{'number':>7}  for example"
    print(f"\n  {head if groups else 'nothing was found to be wrong'}")
    for group in order[:most]:
        rows = groups[group]
        name = rows[0].tile or rows[0].file
        name = name if len(name) <= 36 else "..." + name[-33:]                # which file it is must not be cut off
        line = f"{name}: {rows[0].detail}" if name else rows[0].detail
        print(f"  {group[0]:10}{group[1]:19}{group[2]:14}{len(rows):7,}  {line if len(line) <= 56 else line[:53] + '...'}")
    if len(order) > most:
        print(f"  ... and {len(order) - most} more kinds")


def write_report(path, findings):
    """The CSV, written whole."""
    with written_whole(path) as file:
        csv.writer(file).writerows([Finding._fields, *findings])


def next_command(args, is_demo):
    """What to type after this."""
    root = Path(os.path.normpath(args.root))
    if is_demo:
        return "bash run_tables.sh demo"
    if root.name != FOLDERS.get(args.dataset):                            # a dataset, or a place, of one's own
        return f"python pretrain.py --dataset {args.dataset} --data-root {args.root}"
    return f"bash run_tables.sh {TABLES[args.dataset]}" + ("" if str(root.parent) == "data" else f" --data {root.parent}")


# ---- the script -----------------------------------------------------------------------------------------------------

def command_line():
    """The ArgumentParser."""
    arguments = options.parser(__doc__)
    arguments.add_argument("dataset", choices=[*SENSORS, "weights"], help="a table of datasets/sensors.py; or weights")
    arguments.add_argument("--root", metavar="DIR", help="folder of what was downloaded, see README; weights go to weights/")
    arguments.add_argument("--modalities", default="all", metavar="KEYS",
                           help="what to check, such as s2 or vhr,s1-des; all means those of the paper's tables")
    arguments.add_argument("--workers", type=whole(0), default=os.cpu_count(), help="reading processes; the default is all cores")
    arguments.add_argument("--report", metavar="FILE", help="CSV of all findings (default: results/prepare/DATASET.csv); what was "
                                                            "checked is kept beside it, for the next run")
    arguments.add_argument("--fresh", action="store_true", help="check every tile again, also those that did not change")
    return arguments


def prepare(args, report, progress):
    """Everything but the options. Returns whether the tables can be made."""
    keys = options.chosen_modalities(args.modalities, args.dataset)
    if not os.path.isdir(args.root):
        raise UserError(f"{args.root}: no such folder; --root is the folder of what was downloaded, see README")

    # ---- unpack, list, check
    unpacked, found_in_zips = unpack(args.root, READERS[args.dataset].skipped if args.dataset in READERS else ())
    findings = [finding(args.dataset, kind, text, modality="zip", file=path) for kind, text, path in found_in_zips]
    try:
        datasets, found = open_splits(args.dataset, args.root, keys)
    except UserError as error:
        write_report(report, findings + [finding(args.dataset, "not listed", error)])
        broken = [f"{path}: {kind}, {text}" for kind, text, path in found_in_zips if kind == "broken zip"]
        if broken:                                                                # what is not listed may be in there
            raise UserError("; ".join([*broken[:3], *([f"{len(broken) - 3} more"] if len(broken) > 3 else []), str(error)])) from error
        raise
    records, new = check_all(datasets, progress, args.workers)
    findings += found + [finding(args.dataset, kind, text, split, tile, key) for split, dataset in datasets.items()
                         for tile, record in zip(dataset.names, records[split]) for key, kind, text in record["found"]]
    findings += same_tiles(args.dataset, datasets, records)

    # ---- write what the tables need
    files = []
    if not any(row.severity == "error" for row in findings):
        try:
            files = write_lists(args, datasets, keys, records, new > 0)
        except UserError as error:
            findings.append(finding(args.dataset, "not written", error))

    # ---- report
    write_report(report, findings)
    print_report(args, unpacked, datasets, records, new, findings, files)
    errors = [row for row in findings if row.severity == "error"]
    print(f"\n  All findings: {report}")
    if told := orders.draw(report.with_name(f"{report.stem}-sentinel1.png"), datasets, records):
        print(f"  Scrambled Sentinel-1: docs/sentinel1-2017.md says what it is; {told}")
    if errors:
        print(f"  {args.dataset} is NOT ready: {len(errors):,} errors in {len({row.tile for row in errors}):,} tiles. Statistics and "
              "label subsets were not written.\n  Get what is missing or broken and run this again: it reads only what changed.")
    else:
        print(f"  {args.dataset} is ready. Next: {next_command(args, any(data.is_demo for data in datasets.values()))}")
    return not errors


def main(argv=None):
    arguments = command_line()
    args = arguments.parse_args(argv)
    if args.dataset == "weights":
        if args.root is not None:
            arguments.error("--root: weights go to weights/; leave it out")
        failed = 0
        for name in weights.TABLE:                                                # one that cannot be had does not keep back the others
            try:
                print(f"{weights.fetch(name)}: {weights.TABLE[name].about}")
            except UserError as error:
                print(error, file=sys.stderr)
                failed = 1
        return failed
    if args.root is None:
        arguments.error("--root is required: the folder of what was downloaded")
    report = Path(args.report or f"results/prepare/{args.dataset}.csv")
    progress = report.with_suffix(".progress.jsonl")
    report.parent.mkdir(parents=True, exist_ok=True)
    if args.fresh:
        progress.unlink(missing_ok=True)

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)            # stopped from outside is like Ctrl-C
    try:
        return 0 if prepare(args, report, progress) else 1
    except KeyboardInterrupt:
        print(f"\nstopped; the same command goes on from {progress}", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(run(main))
