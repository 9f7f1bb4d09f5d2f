"""How much a machine that others use too costs, by threads and by how these wait for each other.

    python -m benchmarks.busy                  # five minutes on 2 cores; nothing else should run
    python -m benchmarks.busy --tiles 32       # a smaller pool

Each setting is a process of its own that computes the contrastive loss of a pool, forward and backward, plain and ours,
and a training step of a small OmniSat: alone, and beside one process that keeps a core busy. Seconds are the median of
some runs. Variables of OpenMP only count when torch is loaded, so they are set for the process.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from utils.errors import run
from utils.numbers import whole

ROOT = Path(__file__).parent.parent
BUSY = "while True: pass"
SETTINGS = {"as torch comes": {}, "passive": {"OMP_WAIT_POLICY": "passive"}, "short spin": {"GOMP_SPINCOUNT": "10000"}}


def measure(tiles, runs):
    """{part: seconds} in this process."""
    import torch

    from benchmarks.tasks import DIM, random_batch
    from datasets.sensors import SENSORS
    from engine.pool_step import PoolStep
    from losses.contrastive import contrastive_loss as plain_loss
    from models.fast.contrastive import contrastive_loss
    from models.fast.omnisat import FastOmniSat
    from utils.memory import reuse_memory
    reuse_memory()
    torch.manual_seed(0)
    sensors = [SENSORS["treesatai-ts"][key] for key in ("s2", "s1")]
    model = FastOmniSat(sensors, 64, 2)
    model.standardize.set({sensor.key: {"mean": [0.0] * len(sensor.bands), "std": [1000.0] * len(sensor.bands)}
                           for sensor in sensors})
    batch = random_batch(sensors, 16, 6, torch.device("cpu")) | {"name": [""] * 16}
    masks = model.draw_masks(batch, torch.Generator().manual_seed(0))
    pool_step = PoolStep(model, torch.autocast("cpu", torch.bfloat16, enabled=False), torch.device("cpu"))
    tokens = torch.randn(tiles, 3, 36, DIM, requires_grad=True)
    present = torch.ones(tiles, 3, dtype=torch.bool)
    parts = {"contrastive, plain": lambda: plain_loss(tokens, present).backward(),
             "contrastive, ours": lambda: contrastive_loss(tokens, present).backward(),
             "small step": lambda: pool_step(batch, masks, 1.0)}
    found = {}
    for name, function in parts.items():
        function()
        times = []
        for _ in range(runs if name != "contrastive, plain" else 2):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        found[name] = statistics.median(times)
    return found


def in_a_process(args, threads, variables, is_busy):
    """measure in a process with so many threads; is_busy: beside another one that keeps a core busy."""
    other = subprocess.Popen([sys.executable, "-c", BUSY]) if is_busy else None
    try:
        command = [sys.executable, "-m", "benchmarks.busy", "--tiles", str(args.tiles), "--runs", str(args.runs),
                   "--here"]
        told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True,
                              env=os.environ | {"OMP_NUM_THREADS": str(threads)} | variables).stdout
    finally:
        if other is not None:
            other.kill()
    return json.loads(told)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--tiles", type=whole(1), default=128, help="of the pool, 108 tokens each")
    arguments.add_argument("--runs", type=whole(1), default=5, help="of each part; the median counts")
    arguments.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = arguments.parse_args()
    if args.here:
        print(json.dumps(measure(args.tiles, args.runs)))
        return
    cores = os.cpu_count()
    print("| threads | waiting | part | quiet s | busy s |\n|---|---|---|---|---|")
    for threads in dict.fromkeys((cores, max(1, cores // 2))):
        for name, variables in SETTINGS.items() if threads > 1 else [("", {})]:
            quiet, busy = (in_a_process(args, threads, variables, is_busy) for is_busy in (False, True))
            for part, seconds in quiet.items():
                print(f"| {threads} | {name} | {part} | {seconds:.3f} | {busy[part]:.3f} |", flush=True)


if __name__ == "__main__":
    run(main)
