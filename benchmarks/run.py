"""Time, memory and operations of each part of pretraining, on the machine that this runs on, against the plain form.

    python -m benchmarks.run                                        # every part for every dataset
    python -m benchmarks.run --datasets treesatai-ts --parts step   # one of them
    python -m benchmarks.run --parts contrastive --tiles 32

On a CPU each row is measured in a process of its own: the best of --repeats after a first run. On a GPU what is
compiled serves several rows, so that they share a process; runs of under half a second are timed eight in a row. GB is
the peak above the inputs. GFLOP counts what is computed, also again. "share" is operations a second out of those of a
matrix product measured in the same run; it can be over 100 % on a CPU where convolutions come from a faster library
than matrix products. Forms: ours; plain, the straightforward form of benchmarks/plain.py; ours and plain once more
with the memory settings of the other (CPU only). Values are random, shapes the real ones, 35 to 50 dates a series.
Hours are those of 250 epochs at that rate. Without a GPU the figures are this CPU's; nothing else is needed to run it
on one.
"""
import argparse
import ctypes
import json
import multiprocessing
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

import h5py
import numpy as np
import tifffile
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from tqdm import tqdm

from benchmarks import plain
from datasets import default_modalities, open_dataset
from datasets.sensors import SENSORS
from datasets.simulated.demo import write_flair, write_pastis, write_treesatai
from engine import options
from engine.distributed import exact_float32, to_device
from engine.log import provenance
from engine.pool_step import PoolStep, capture
from losses.contrastive import contrastive_loss
from models.fast.omnisat import FastOmniSat as OmniSat
from models.fast.omnisat import part_of, part_of_targets
from utils.errors import UserError
from utils.errors import run as run_script
from utils.memory import reuse_memory
from utils.numbers import whole

DIM, DATES, EPOCHS = 256, 50, 250
# patches a side; training tiles; tiles of a row on a CPU
DATASETS = {"treesatai-ts": (6, 38_537, 16), "pastis-hd": (32, 1_455, 1), "flair": (10, 47_712, 4)}
PARTS = ("reader", "encoder", "combiner", "contrastive", "decoders", "optimiser", "step")
GPU_TILES = 128
IN_A_ROW = 8    # short runs of a GPU that are timed together: as in training, nothing waits between them
MORE_TOKENS = (24_624, 49_140, 98_280)    # of contrastive: its memory grows with them
MORE_SIDES = (16, 24)                     # of step on PASTIS-HD: likewise


# ---- what is measured -----------------------------------------------------------------------------------------------

def random_batch(sensors, tiles, side, device):
    """A batch of random values in the types that the readers give; a series has 35 to DATES dates, that of the first
    tile DATES.
    """
    batch, random = {}, torch.Generator().manual_seed(0)
    for sensor in sensors:
        shape = len(sensor.bands), side * sensor.patch, side * sensor.patch
        if sensor.kind == "image":
            batch[sensor.key] = torch.randint(256, (tiles, *shape), dtype=torch.uint8, generator=random)
            continue
        is_optical = len(sensor.bands) > 3
        values = torch.randn(tiles, DATES, *shape, generator=random, dtype=torch.float32)
        batch[sensor.key] = (1000 * values).short() if is_optical else values
        batch[f"{sensor.key}_dates"] = torch.randint(1, sensor.period, (tiles, DATES), generator=random)
        lengths = torch.randint(35, DATES + 1, (tiles, 1), generator=random)
        lengths[0] = DATES
        batch[f"{sensor.key}_padded"] = torch.arange(DATES) >= lengths
    return to_device(batch, device)


def task(row, device):
    """What a row is about: a function that does it once, forward and backward, and returns a scalar (None of the
    optimiser).

    is_counted: an argument of it, True where operations are to be counted, which those of a CUDA graph are not.
    """
    sensors, is_plain = [SENSORS[row["dataset"]][key] for key in row["keys"]], row["form"].startswith("plain")
    tiles, side = row["tiles"], row["side"]
    shape = tiles, len(sensors), side ** 2
    torch.manual_seed(0)
    model = OmniSat(sensors, DIM)
    model.standardize.set({s.key: {"mean": [0.] * len(s.bands), "std": [1000. if len(s.bands) > 3 else 50.] * len(s.bands)}
                           for s in sensors})
    model.to(device).tiles_at_once = row["tiles_at_once"]
    if row["compile"] and not is_plain:
        model.compile_networks()
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=row["precision"] == "bfloat16")
    optimizer = torch.optim.Adam(model.parameters(), 1e-4, **({"foreach": False} if is_plain else {"fused": True}))
    if row["part"] == "optimiser":
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        return lambda is_counted=False: optimizer.step()

    batch = random_batch(sensors, tiles, side, device)
    masks = model.draw_masks({key: value.cpu() for key, value in batch.items()}, torch.Generator().manual_seed(0))
    if row["part"] == "step" and not is_plain:
        pool_step = PoolStep(model, autocast, device, tiles if row["compile"] else 0)
        batch["name"] = [""] * tiles

        def step(is_counted=False):
            pool_step.is_recorded = row["record"] and not is_counted
            loss, *_ = pool_step(batch, masks, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
            return loss
        return step

    masks = to_device(masks, device)
    forward = part_of_step(row["part"], is_plain, model, batch, masks, shape, (side, side))

    def run(is_counted=False):
        with autocast:
            loss = forward()
        loss.backward()
        if row["part"] == "step":
            optimizer.step()
            optimizer.zero_grad()
        return loss.detach()
    return run


def part_of_step(part, is_plain, model, batch, masks, shape, grid):
    """The forward pass of a part, a function that returns a scalar; of "step" the plain form. shape: tiles,
    modalities, patches.
    """
    device = masks["is_masked"].device
    tokens = torch.randn(*shape, DIM, device=device, requires_grad=part in ("contrastive", "combiner"))
    if part == "step":
        return lambda: plain.pretrain_loss(model, batch, masks)[0]
    if part == "contrastive":
        present = torch.ones(shape[:2], dtype=torch.bool, device=device)
        return lambda: plain.contrastive(tokens, present) if is_plain else contrastive_loss(tokens, present, compiled=model.is_compiled)
    if part == "encoder":
        return lambda: (plain if is_plain else OmniSat).encode(model, batch)[0].square().mean()
    if part == "combiner":
        if is_plain:
            return lambda: plain.combine(model, tokens, masks["is_masked"]).square().mean()
        return lambda: torch.cat(model.in_parts(lambda tiles: model.combine(tokens[tiles], masks["is_masked"][tiles], grid),
                                                model.parts(batch))).square().mean()
    f = torch.randn(shape[0], shape[2], DIM, device=device, requires_grad=True)
    with torch.no_grad():
        *_, context = (plain if is_plain else OmniSat).encode(model, batch)
    if is_plain:
        return lambda: plain.reconstruct(model, f, masks["is_masked"], batch, context)

    parts = [(tiles, found, masks if len(context) == 1 else part_of_targets(masks, tiles, shape[2]))
             for tiles, found in zip(model.parts(batch), context)]

    def decode(part):
        tiles, found, targets = part
        return model.reconstruct(f[tiles], targets, part_of(batch, tiles), found)
    return lambda: torch.cat(model.in_parts(decode, parts)).mean()


def recorded(run):
    """The same as a CUDA graph, so that a part is not measured by how fast Python starts its kernels."""
    for _ in range(2):                                                        # what is compiled and tuned is not recorded
        run()
    graph, loss = capture(run)
    return lambda is_counted=False: run() if is_counted else (graph.replay(), loss)[1]


# ---- how ------------------------------------------------------------------------------------------------------------

def memory(device, peak):
    """GB of this process on the device: now, which also starts a new peak, or the peak since."""
    if device.type == "cuda":
        if not peak:
            torch.cuda.reset_peak_memory_stats()
        return (torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()) / 1e9
    if not peak:
        ctypes.CDLL(None).malloc_trim(0)                                      # what was freed does not count
        Path("/proc/self/clear_refs").write_text("5")
    text = Path("/proc/self/status").read_text()
    return int(re.search(rf"Vm{'HWM' if peak else 'RSS'}:\s+(\d+)", text)[1]) / 1e6


class Operations(TorchDispatchMode):
    """Adds up the operations of products and convolutions. Torch's own FlopCounterMode keeps activations that should
    be freed.
    """
    total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        value, count = function(*args, **(kwargs or {})), flop_registry.get(function.overloadpacket)
        self.total += count(*args, **(kwargs or {}), out_val=value) if count else 0
        return value


def wait(device):
    """For what the device was told to do."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure(row):
    """The figures of a row, run in this process, or a text where there are none."""
    torch.set_num_threads(row["threads"])
    device = torch.device(row["device"])
    if device.type == "cpu" and row["form"] in ("ours", "plain, memory kept"):
        reuse_memory()
    exact_float32()
    if row["part"] == "ceiling":
        return {"flops": ceiling(device, row["precision"])}
    try:
        run, before = task(row, device), memory(device, peak=False)
        if row["record"] and row["form"] == "ours" and row["part"] not in ("step", "optimiser"):
            run = recorded(run)

        def timed(runs):
            wait(device)
            start = time.perf_counter()
            for _ in range(runs):
                run()
            wait(device)
            return (time.perf_counter() - start) / runs
        for _ in range(3 if row["compile"] and device.type == "cuda" else 1):    # not counted: compiled, recorded
            first = timed(1)
        runs = IN_A_ROW if device.type == "cuda" and first < 0.5 else 1
        figures = {"seconds": min(timed(runs) for _ in range(row["repeats"])), "gb": memory(device, peak=True) - before}
        if row["part"] == "contrastive":                                      # what ours computes, of the plain form too
            flops = 4 * (row["tiles"] * len(row["keys"]) * row["side"] ** 2) ** 2 * DIM
        else:
            with Operations() as operations, torch.compiler.set_stance("force_eager"):
                run(is_counted=True)
            flops = operations.total
        return figures | {"gflop": flops / 1e9}
    except torch.OutOfMemoryError:
        return "out of memory"


def ceiling(device, precision):
    """Operations a second of a plain matrix product, the best of several."""
    size, depth, count = (8192, 8192, 20) if device.type == "cuda" else (4096, DIM, 10)
    kind = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a, b, times = torch.randn(size, depth, device=device, dtype=kind), torch.randn(depth, size, device=device, dtype=kind), []
    for _ in range(count):
        wait(device)
        start = time.perf_counter()
        a @ b
        wait(device)
        times.append(time.perf_counter() - start)
    return 2 * size * size * depth / min(times)


def in_a_process(row):
    """measure(row) in a process of its own."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(row, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        return f"ended with code {process.exitcode}{': out of memory?' if process.exitcode == -9 else ''}"


def _send(row, pipe):
    pipe.send(measure(row))


def readers(name, root, reads):
    """Median seconds a tile, from the page cache in one process, of so many reads, one form after the other.

    "ours": as training has it, dates chosen and cleaned; "repaired", of treesatai-ts: the same with --s1 repaired;
    "reading": the whole files alone, ours; "plain": these with the usual calls.
    """
    with tempfile.TemporaryDirectory() as folder:
        if root is None:
            write = {"treesatai-ts": write_treesatai, "pastis-hd": write_pastis, "flair": write_flair}[name]
            root = write(folder, train=8, test=4, **({"side": 128} if name == "pastis-hd" else {}))
        data = open_dataset(name, str(root), "train", default_modalities(name), labelled=False, findings=[])
        mended = open_dataset(name, str(root), "train", default_modalities(name), labelled=False, findings=[],
                              s1="repaired") if name == "treesatai-ts" else None
        whole = [i for i, paths in enumerate(zip(*data.paths.values())) if None not in paths][:8]    # a part of a release will do
        if not whole:
            raise UserError(f"{root}: no tile of {name} has all its files")
        forms = {"ours": lambda i: data[i, 0], "reading": lambda i: data.raw(i, data.modalities),
                 "plain": lambda i: read_plainly(data.sources(i))}
        forms = forms if mended is None else {"ours": forms["ours"], "repaired": lambda i: mended[i, 0]} | forms
        times = {form: [] for form in forms}
        for form, read in forms.items():
            for i in (whole * reads)[:reads]:
                start = time.perf_counter()
                read(i)
                times[form].append(time.perf_counter() - start)
    return {form: statistics.median(taken) for form, taken in times.items()}


def read_plainly(paths):
    """Every array of the files, whole, in float32, and every date, with the usual calls."""
    for path in map(Path, paths):
        if path.suffix == ".tif":
            tifffile.imread(path).astype(np.float32)
        elif path.suffix == ".npy" and "TARGET" not in path.name and "masks" not in path.name:
            np.load(path).astype(np.float32)
        elif path.suffix == ".h5":
            with h5py.File(path) as file:
                for sensor, start in (("sen-2", 11), ("sen-1-asc", 17)):
                    file[f"{sensor}-data"][()]
                    for product in file[f"{sensor}-products"][()]:
                        datetime.strptime(product.decode()[start:start + 8], "%Y%m%d").timetuple().tm_yday


# ---- the table ------------------------------------------------------------------------------------------------------

def rows_of(args, device):
    """What to measure, a dict each."""
    rows = []

    def add(dataset, part, form, tiles, side=None, keys=None, **more):
        keys = list(keys or default_modalities(dataset))
        rows.append({"dataset": dataset, "part": part, "form": form, "tiles": tiles, "side": side or DATASETS[dataset][0],
                     "keys": keys, "device": str(device), "precision": args.precision, "compile": args.compile, "record": args.record,
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
                pool = args.tiles or (GPU_TILES if device.type == "cuda" or dataset == "treesatai-ts" else DATASETS[dataset][2] * 4)
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
    return (f"{start}{row['seconds']:10.4f}{row['tiles_per_second']:10.2f}{row['gb']:8.2f}{row['gflop'] / row['tiles']:10.1f}"
            f"{row['share']:7.0%}"
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
    parser.add_argument("--tiles", type=whole(1), help=f"of a pool (default: {GPU_TILES} on a GPU; on a CPU 16 of TreeSatAI-TS, 1 of "
                                                  "PASTIS-HD, 4 of FLAIR, more in the contrastive loss)")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), help="default: bfloat16 on a GPU, float32 on a CPU")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction,
                        help="our networks with torch.compile (default: on a GPU)")
    parser.add_argument("--record", action="store_true", help="ours as CUDA graphs, as pretrain.py's")
    parser.add_argument("--tiles-at-once", type=whole(1), help="as pretrain.py's")
    parser.add_argument("--threads", type=whole(1), default=torch.get_num_threads(), help="of the CPU (default: %(default)s)")
    parser.add_argument("--repeats", type=whole(1), default=2,
                        help="timed runs of a row, after one that is not (default: %(default)s)")
    parser.add_argument("--roots", nargs="+", default=[], metavar="NAME=DIR",
                        help="raw files for the readers; else generated ones in the same formats")
    parser.add_argument("--json", metavar="FILE", help="also write the rows there")
    return parser


def main(argv=None):
    args = command_line().parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    args.precision, args.compile = options.chosen_precision(args, device), options.chosen_compile(args, device, is_worth_it=True)
    if args.record and (device.type != "cuda" or not args.compile):
        raise UserError("--record is for what is compiled on a GPU; leave it out")
    source = provenance("-m benchmarks.run", sys.argv[1:] if argv is None else argv, device) | {
        "threads": args.threads, "cpus": os.cpu_count(), "python": platform.python_version()}
    rate = in_a_process({"part": "ceiling", "form": "", "device": str(device), "precision": args.precision,
                         "threads": args.threads})["flops"]
    print(f"{source['device']}, {args.threads} threads, {args.precision}{', compiled' * args.compile}{', recorded' * args.record}; matrix product {rate / 1e9:,.0f} GFLOP/s")
    print(f"\n{'dataset':13}{'part':13}{'form':25}{'tiles':>10}{'seconds':>10}{'tiles/s':>10}{'GB':>8}{'GFLOP':>10}{'share':>7}"
          f"{'hours':>9}\n"
          f"{'':51}{'x patches':>10}{'':28}{'a tile':>10}")
    done, found = [], {}
    rows = rows_of(args, device)
    with tqdm(total=len(rows), unit="row", leave=False, disable=None) as progress:
        for row in rows:
            figures = in_a_process(row) if device.type == "cpu" else measure(row)    # what is compiled serves several rows of a GPU
            if isinstance(figures, str):
                row["error"] = figures
            else:
                row |= figures | {"tiles_per_second": row["tiles"] / figures["seconds"],
                                  "share": figures["gflop"] * 1e9 / figures["seconds"] / rate}
                if row["part"] == "step" and row["form"] == "ours" and row["side"] == DATASETS[row["dataset"]][0]:
                    row["hours"] = EPOCHS * DATASETS[row["dataset"]][1] / row["tiles_per_second"] / 3600
                found.setdefault((row["dataset"], row["part"], *row["keys"], row["tiles"], row["side"]), {})[row["form"]] = row
            done.append(row)
            tqdm.write(line(row))
            progress.update()
            if args.json:                                                     # also if it is stopped on the way
                write_json(args.json, source, rate, done)
    print()
    for dataset in args.datasets if "reader" in args.parts else ():
        roots = dict(text.split("=", 1) for text in args.roots)
        taken = readers(dataset, roots.get(dataset), 200)
        done.append({"dataset": dataset, "part": "reader", "root": dataset in roots, **taken})
        mended = f", Sentinel-1 repaired {1000 * taken['repaired']:.2f}" if "repaired" in taken else ""
        print(f"{dataset}: reader {1000 * taken['ours']:.2f} ms a tile{mended}, reading alone {1000 * taken['reading']:.2f}, "
              f"plain calls {1000 * taken['plain']:.2f}{'' if dataset in roots else ' (generated tiles)'}")
    for (dataset, part, *rest), forms in found.items():
        if {"ours", "plain"} <= set(forms):
            ours, other = forms["ours"], forms["plain"]
            keys = f" {rest[0]}" if part == "encoder" else ""
            print(f"{dataset}: {part}{keys} {other['seconds'] / ours['seconds']:.1f} times faster than plain, "
                  f"{ours['gb'] / max(other['gb'], 1e-3):.2f} of its memory")
    if device.type == "cpu":
        print("no GPU here: run the same command where there is one")
    if args.json:
        write_json(args.json, source, rate, done)


if __name__ == "__main__":
    run_script(main)
