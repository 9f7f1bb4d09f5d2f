"""Unpack and check a downloaded dataset, once, before the tables: every file of every tile is read.

    python prepare.py download treesatai-ts --root data/treesatai    # the files that the tables need; --help says more
    python prepare.py treesatai-ts --root data/treesatai       # stopped, the same command goes on where it was
    python prepare.py pastis-hd --root data/pastis-hd --fresh  # check everything again
    python prepare.py weights                                  # the published weights that some rows start from

Zips are unpacked beside themselves; nothing that was downloaded is changed or deleted. What is found has one of three
severities: error (the tables cannot be made), repaired (the readers deal with it), note (legal, but worth knowing).
All of it goes to the CSV, a summary to the terminal. Without errors, the statistics of the bands and the label subsets
of the tables are written too. Exit code: 0 if the tables can be made, 1 if not, 130 if stopped.
"""
import os
import signal
import sys
from pathlib import Path

from checks import download, orders
from checks.records import check_all, open_splits, same_tiles
from checks.report import next_command, print_report, write_report
from checks.tile import finding
from datasets import READERS, band_statistics, open_dataset, splits
from datasets.sensors import SENSORS
from engine import options
from utils import weights
from utils.errors import UserError, run
from utils.numbers import whole
from utils.unpack import unpack

SEEDS, PERCENT = (0, 1, 2), {"pastis-hd": 20}    # of the labels; 10 elsewhere


def write_lists(args, datasets, keys, records, is_new):
    """Statistics of the bands, collected labels, label subsets. Returns their files, also those that were there
    already.

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


def command_line():
    """The ArgumentParser."""
    arguments = options.parser(__doc__)
    arguments.add_argument("dataset", help=f"{', '.join(SENSORS)}, one of your own, or weights; download has "
                                             "options of its own, see prepare.py download --help")
    arguments.add_argument("--root", metavar="DIR", help="folder of what was downloaded, see README; weights go to "
                                                         "weights/")
    options.add_sensors(arguments)
    arguments.add_argument("--modalities", default="all", metavar="KEYS",
                           help="what to check, such as s2 or vhr,s1-des; all means those of the paper's tables")
    arguments.add_argument("--workers", type=whole(0), default=os.cpu_count(),
                           help="reading processes; the default is all cores")
    arguments.add_argument("--report", metavar="FILE", help="CSV of all findings (default: "
                                                            "results/prepare/DATASET.csv); what was checked is kept "
                                                            "beside it, for the next run")
    arguments.add_argument("--fresh", action="store_true", help="check every tile again, also those that did not "
                                                                "change")
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
            more = [f"{len(broken) - 3} more"] if len(broken) > 3 else []
            raise UserError("; ".join([*broken[:3], *more, str(error)])) from error
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
        print(f"  {args.dataset} is NOT ready: {len(errors):,} errors in {len({row.tile for row in errors}):,} tiles. "
              "Statistics and label subsets were not written.\n  Get what is missing or broken and run this again: it "
              "reads only what changed.")
    else:
        print(f"  {args.dataset} is ready. Next: {next_command(args, any(data.is_demo for data in datasets.values()))}")
    return not errors


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["download"]:
        return download.main(argv[1:])
    arguments = command_line()
    args = arguments.parse_args(argv)
    if args.dataset == "weights":
        if args.root is not None:
            arguments.error("--root: weights go to weights/; leave it out")
        failed = 0
        for name in weights.TABLE:    # one that cannot be had does not keep back the others
            try:
                print(f"{weights.fetch(name)}: {weights.TABLE[name].about}")
            except UserError as error:
                print(error, file=sys.stderr)
                failed = 1
        return failed
    if args.root is None:
        arguments.error("--root is required: the folder of what was downloaded")
    options.check_dataset(arguments, args.dataset, args.root, args.sensors)
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
