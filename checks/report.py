"""One screen of what was found, and the CSV."""
import csv
import hashlib
import os
import textwrap
from collections import Counter
from pathlib import Path

from checks import orders
from checks.records import SPLITS
from checks.tile import SEVERITIES, Finding
from datasets import splits
from tables.commands import FOLDERS
from utils.files import written_whole

TABLES = {"treesatai-ts": "table2", "treesatai": "table2", "pastis-hd": "table3", "flair": "table4"}


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
        sensors = f" --sensors {args.sensors}" if getattr(args, "sensors", None) else ""
        return f"python pretrain.py --dataset {args.dataset} --data-root {args.root}{sensors}"
    return f"bash run_tables.sh {TABLES[args.dataset]}" + ("" if str(root.parent) == "data" else f" --data {root.parent}")
