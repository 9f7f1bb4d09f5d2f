"""Time, memory and operations of each part of pretraining, on the machine that this runs on, against the plain form.

    python -m benchmarks.run                                        # every part for every dataset
    python -m benchmarks.run --datasets treesatai-ts --parts step   # one of them
    python -m benchmarks.run --parts contrastive --tiles 32

On a CPU each row is measured in a process of its own: the best of --repeats after a first run. On a GPU what is
compiled serves several rows, so that they share a process; runs of under half a second are timed eight in a row. GB is
the peak above the inputs. GFLOP counts what is computed, also again. "share" is operations a second out of those of a
matrix product measured in the same run; it can be over 100 % on a CPU where convolutions come from a faster library
than matrix products. Forms: ours; plain, the model with every fast operation off (models/omnisat.py); ours and plain
once more with the memory settings of the other (CPU only). Values are random, shapes the real ones, 35 to 50 dates a
series. Hours are those of 250 epochs at that rate. Without a GPU the figures are this CPU's; nothing else is needed to
run it on one.
"""
import argparse
import json
import os
import platform
import sys
from pathlib import Path

import utils.threads  # noqa: F401, before torch

import torch
from tqdm import tqdm

from benchmarks.measure import in_a_process, measure
from benchmarks.readers import readers
from datasets import default_modalities
from engine import options
from engine.log import provenance
from utils.errors import UserError
from utils.errors import run as run_script
from utils.numbers import whole

EPOCHS = 250
# patches a side; training tiles; tiles of a row on a CPU
DATASETS = {"treesatai-ts": (6, 38_537, 16), "pastis-hd": (32, 1_455, 1), "flair": (10, 47_712, 4)}
PARTS = ("reader", "encoder", "combiner", "contrastive", "decoders", "optimiser", "step")
GPU_TILES = 128
MORE_TOKENS = (24_624, 49_140, 98_280)    # of contrastive: its memory grows with them
MORE_SIDES = (16, 24)                     # of step on PASTIS-HD: likewise


def rows_of(args, device):
    """What to measure, a dict each."""
    rows = []

    def add(dataset, part, form, tiles, side=None, keys=None, **more):
        keys = list(keys or default_modalities(dataset))
        rows.append({"dataset": dataset, "part": part, "form": form, "tiles": tiles,
                     "side": side or DATASETS[dataset][0], "keys": keys, "device": str(device),
                     "precision": args.precision, "compile": args.compile, "record": args.record,
                     "threads": args.threads, "repeats": args.repeats, "tiles_at_once": args.tiles_at_once} | more)
    for dataset in args.datasets:
        tiles = args.tiles or (GPU_TILES if device.type == "cuda" else DATASETS[dataset][2])
        for part in args.parts:
            forms = ["plain", "ours"]
            if part in ("step", "contrastive") and device.type == "cpu" and dataset == "treesatai-ts":
                forms = ["plain", "plain, memory kept", "ours", "ours, memory given back"]
            if part == "encoder":
                for key in default_modalities(dataset):
                    for form in forms:
                        add(dataset, part, form, tiles, keys=[key])
            elif part == "contrastive":
                is_large = device.type == "cuda" or dataset == "treesatai-ts"
                pool = args.tiles or (GPU_TILES if is_large else DATASETS[dataset][2] * 4)
                for form in forms:
                    add(dataset, part, form, pool)
                if dataset == "treesatai-ts" and args.tiles is None:
                    for tokens in MORE_TOKENS:
                        add(dataset, part, "ours", tokens // 108, repeats=1)
            elif part != "reader":
                for form in forms:
                    add(dataset, part, form, tiles)
                if part == "step" and dataset == "pastis-hd" and args.tiles is None:
                    for side in MORE_SIDES:
                        add(dataset, part, "ours", tiles, side)
    return [row for row in rows if row["form"].split(",")[0] in args.forms]


def line(row):
    """One row of the table."""
    what = f"{row['part']} {row['keys'][0]}" if row["part"] == "encoder" else row["part"]
    size = f"{row['tiles']} x {row['side'] ** 2}"
    start = f"{row['dataset']:13}{what:13}{row['form']:25}{size:>10}"
    if "error" in row:
        return start + "  " + row["error"]
    return (f"{start}{row['seconds']:10.4f}{row['tiles_per_second']:10.2f}{row['gb']:8.2f}"
            f"{row['gflop'] / row['tiles']:10.1f}{row['share']:7.0%}"
            + (f"{row['hours']:9.1f}" if "hours" in row else ""))


def write_json(path, source, flops, rows):
    """The rows, the machine and the rate of its matrix product."""
    Path(path).write_text(json.dumps({"source": source, "flops": flops, "rows": rows}, indent=1))


def command_line():
    """The ArgumentParser."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", choices=list(DATASETS), default=list(DATASETS), metavar="NAME",
                        help=f"of {', '.join(DATASETS)} (default: all)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART",
                        help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--forms", nargs="+", choices=("ours", "plain"), default=["ours", "plain"], metavar="FORM",
                        help="ours, plain (default: both)")
    parser.add_argument("--tiles", type=whole(1),
                        help=f"of a pool (default: {GPU_TILES} on a GPU; on a CPU 16 of TreeSatAI-TS, 1 of PASTIS-HD, "
                             "4 of FLAIR, more in the contrastive loss)")
    parser.add_argument("--precision", choices=("float32", "bfloat16"),
                        help="default: bfloat16 on a GPU, float32 on a CPU")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction,
                        help="our networks with torch.compile (default: on a GPU)")
    parser.add_argument("--record", action="store_true", help="ours as CUDA graphs, as pretrain.py's")
    parser.add_argument("--tiles-at-once", type=whole(1), help="as pretrain.py's")
    parser.add_argument("--threads", type=whole(1), default=torch.get_num_threads(),
                        help="of the CPU (default: %(default)s)")
    parser.add_argument("--repeats", type=whole(1), default=2,
                        help="timed runs of a row, after one that is not (default: %(default)s)")
    parser.add_argument("--roots", nargs="+", default=[], metavar="NAME=DIR",
                        help="raw files for the readers; else generated ones in the same formats")
    parser.add_argument("--json", metavar="FILE", help="also write the rows there")
    return parser


def figures_of(row, device, rate):
    """The row with its figures, or with an "error". rate: operations a second of a matrix product."""
    figures = in_a_process(row) if device.type == "cpu" else measure(row)    # what is compiled serves several rows
    if isinstance(figures, str):
        return row | {"error": figures}
    row = row | figures | {"tiles_per_second": row["tiles"] / figures["seconds"],
                           "share": figures["gflop"] * 1e9 / figures["seconds"] / rate}
    if row["part"] == "step" and row["form"] == "ours" and row["side"] == DATASETS[row["dataset"]][0]:
        row["hours"] = EPOCHS * DATASETS[row["dataset"]][1] / row["tiles_per_second"] / 3600
    return row


def comparisons(rows):
    """A line for each part that was measured in both forms."""
    found = {}
    for row in rows:
        if "seconds" in row:
            key = row["dataset"], row["part"], *row["keys"], row["tiles"], row["side"]
            found.setdefault(key, {})[row["form"]] = row
    for (dataset, part, *rest), forms in found.items():
        if {"ours", "plain"} <= set(forms):
            ours, other = forms["ours"], forms["plain"]
            keys = f" {rest[0]}" if part == "encoder" else ""
            yield (f"{dataset}: {part}{keys} {other['seconds'] / ours['seconds']:.1f} times faster than plain, "
                   f"{ours['gb'] / max(other['gb'], 1e-3):.2f} of its memory")


def read(dataset, roots):
    """The row of a dataset's readers. roots: {dataset: folder of raw files}."""
    return {"dataset": dataset, "part": "reader", "root": dataset in roots, **readers(dataset, roots.get(dataset), 200)}


def reader_line(row):
    mended = f", Sentinel-1 repaired {1000 * row['repaired']:.2f}" if "repaired" in row else ""
    return (f"{row['dataset']}: reader {1000 * row['ours']:.2f} ms a tile{mended}, reading alone "
            f"{1000 * row['reading']:.2f}, plain calls {1000 * row['plain']:.2f}"
            f"{'' if row['root'] else ' (generated tiles)'}")


def main(argv=None):
    args = command_line().parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    args.precision = options.chosen_precision(args, device)
    args.compile = options.chosen_compile(args, device, is_worth_it=True)
    if args.record and (device.type != "cuda" or not args.compile):
        raise UserError("--record is for what is compiled on a GPU; leave it out")
    source = provenance("-m benchmarks.run", sys.argv[1:] if argv is None else argv, device) | {
        "threads": args.threads, "cpus": os.cpu_count(), "python": platform.python_version()}
    rate = in_a_process({"part": "ceiling", "form": "", "device": str(device), "precision": args.precision,
                         "threads": args.threads})["flops"]
    print(f"{source['device']}, {args.threads} threads, {args.precision}{', compiled' * args.compile}"
          f"{', recorded' * args.record}; matrix product {rate / 1e9:,.0f} GFLOP/s")
    print(f"\n{'dataset':13}{'part':13}{'form':25}{'tiles':>10}{'seconds':>10}{'tiles/s':>10}{'GB':>8}{'GFLOP':>10}"
          f"{'share':>7}{'hours':>9}\n"
          f"{'':51}{'x patches':>10}{'':28}{'a tile':>10}")
    done = []
    for row in tqdm(rows_of(args, device), unit="row", leave=False, disable=None):
        done.append(figures_of(row, device, rate))
        tqdm.write(line(done[-1]))
        if args.json:                                                         # also if it is stopped on the way
            write_json(args.json, source, rate, done)
    print()
    for dataset in args.datasets if "reader" in args.parts else ():
        done.append(read(dataset, dict(text.split("=", 1) for text in args.roots)))
        print(reader_line(done[-1]))
    for text in comparisons(row for row in done if row["part"] != "reader"):
        print(text)
    if device.type == "cpu":
        print("no GPU here: run the same command where there is one")
    if args.json:
        write_json(args.json, source, rate, done)


if __name__ == "__main__":
    run_script(main)
