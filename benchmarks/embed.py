"""Tiles a second of embed.py out of those of its forward passes alone, on the machine that this runs on.

    python -m benchmarks.embed                            # generated tiles of full size in the format of TreeSatAI-TS
    python -m benchmarks.embed --root DIR --workers 4     # real ones

The model has full size and random weights. Both are measured in turn, --rounds times; files are in memory after the
first round, which is not counted. All of embed.py is, once its model is there: reading processes start, tiles are
read and put together, features are checked and written. The forward passes alone take the same batches from memory.
On a machine that does other things the two are not alike; there look at the second figure, how much of embed.py's own
time is in its forward passes: the rest is waiting for tiles, checking and writing.
"""
import argparse
import multiprocessing
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import utils.threads  # noqa: F401, before torch

import torch
from tqdm import tqdm

import embed
from datasets import default_modalities, open_dataset
from datasets.loading import collate
from datasets.sensors import SENSORS
from datasets.simulated.demo import write_treesatai
from engine import distributed, inference
from engine.shards import Shards
from models.methods import build_model
from utils.errors import run
from utils.numbers import whole

NAME = "treesatai-ts"


def random_model():
    """OmniSat of full size that nobody trained."""
    torch.manual_seed(0)
    sensors = [SENSORS[NAME][key] for key in default_modalities(NAME)]
    model = build_model("omnisat", sensors)
    model.standardize.set({sensor.key: {"mean": [0.0] * len(sensor.bands), "std": [100.0] * len(sensor.bands)}
                           for sensor in sensors})
    return model.eval()


def timed(function, spent):
    """The function; what each call takes is added to spent, a list."""
    def call(*values):
        start = time.perf_counter()
        result = function(*values)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        spent.append(time.perf_counter() - start)
        return result
    return call


def embed_all(args, model, dataset, device):
    """What embed.py does once its model is there."""
    with tempfile.TemporaryDirectory() as out, tqdm(total=len(dataset), disable=True) as progress:
        files = Shards(out, "npz", dataset, args.shard, {})
        pools = files.pools(range(len(files.indices)), args.pool)
        batches = inference.batches(dataset, sum(pools.values(), []), args.workers, device)
        embed.write_shards(files, pools, batches, model, args.level, progress)


def forward_all(args, model, batches, device):
    """Forward passes alone."""
    with torch.no_grad():
        for batch in batches:
            model.features(distributed.to_device(batch, device), args.level)


def measure(args, root, is_whole):
    """Seconds of one of the two, of them in forward passes, and tiles. In a process of its own, as embed.py is: one
    that has allocated much before is slow to start readers.
    """
    _, _, device = distributed.setup()
    torch.set_num_threads(args.threads)
    model = random_model().to(device)
    dataset = open_dataset(NAME, root, "all", list(model.sensors), labelled=False)
    inside, total = [], []
    model.features = timed(model.features, inside)
    if is_whole:
        timed(embed_all, total)(args, model, dataset, device)
    else:
        batches = [collate([dataset[i] for i in range(at, min(at + args.pool, len(dataset)))])
                   for at in range(0, len(dataset), args.pool)]
        timed(forward_all, total)(args, model, batches, device)
    return sum(total), sum(inside), len(dataset)


def command_line():
    """The ArgumentParser."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.embed", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", metavar="DIR", help="tiles of TreeSatAI-TS; else generated ones")
    parser.add_argument("--tiles", type=whole(1), default=64, help="generated ones (default: %(default)s)")
    parser.add_argument("--level", choices=embed.LEVELS, default="patch", help="default: %(default)s")
    parser.add_argument("--pool", type=whole(1), default=16, help="tiles in a forward pass (default: %(default)s)")
    parser.add_argument("--shard", type=whole(1), default=256, help="tiles a shard (default: %(default)s)")
    parser.add_argument("--workers", type=whole(0), default=1, help="reading processes (default: %(default)s)")
    parser.add_argument("--threads", type=whole(1), default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--rounds", type=whole(1), default=5, help="default: %(default)s")
    return parser


def main(argv=None):
    args = command_line().parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        root = args.root or write_treesatai(Path(folder, "tiles"), train=args.tiles - 1, test=1, seed=0)

        def in_a_process(is_whole):
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
                return process.submit(measure, args, root, is_whole).result()
        print(f"pools of {args.pool} tiles, level {args.level}, {args.threads} threads, "
              f"{args.workers} reading processes", flush=True)
        shares = []
        for number in range(args.rounds + 1):
            (alone, _, tiles), (whole, inside, _) = in_a_process(False), in_a_process(True)
            if number:                                                        # the first has read files from the disk
                shares.append((alone / whole, inside / whole))
                print(f"{tiles} tiles: forward alone {tiles / alone:.2f} a second, embed.py {tiles / whole:.2f}: "
                      f"{shares[-1][0]:.0%}; {shares[-1][1]:.0%} of its time in forward passes", flush=True)
    print("median {:.0%}; {:.0%}".format(*map(statistics.median, zip(*shares))))


if __name__ == "__main__":
    run(main)
