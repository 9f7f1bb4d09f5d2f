"""What a tile takes on this machine: each kind of training step measured on a few tiles, in two minutes if it can.

    python -m tables.calibrate < asked.json > measured.jsonl     # as run_tables.sh --plan starts it, once a place

Tiles are those of the download, or, where there is none yet, simulated ones of the same size in the raw format. Steps
are timed after one that is not; as many tiles are taken at once as the time allows, at most as in training, and what
more tiles would add by the contrastive loss, which grows with their square, is measured by itself. Nothing is compiled.
"""
import json
import platform
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F

from datasets import open_dataset
from datasets.loading import collate
from engine import distributed, options
from engine.pool_step import PoolStep
from models.fast.contrastive import contrastive_loss
from models.methods import METHODS, build_model
from tables.cost import Work
from utils.classifiers import bootstrap, choose
from utils.errors import UserError, run
from utils.memory import memory

SECONDS = 120             # all that is measured
LEAST = 0.3               # of one kind of steps, when all that is left is less: then one tile, once
READING, AT_LEAST = 1.0, 2    # seconds of reading tiles of a choice of sensors; tiles, whatever they take
ROWS, TOKENS = 128, 1024  # of classifiers and of what is fitted; of the contrastive loss


def some_tiles(work, root):
    """A few tiles as training has them: dataset, [item], and the seconds to read one."""
    method = METHODS[work.model]
    dataset = open_dataset(work.dataset, root, "train", work.keys(), labelled=False, all_bands=method.all_bands,
                           max_dates=method.max_dates(work.dataset))
    items, start = [], time.perf_counter()
    while len(items) < min(16, len(dataset)) and (len(items) < AT_LEAST or time.perf_counter() - start < READING):
        items.append(dataset[len(items), 1])
    return dataset, items, (time.perf_counter() - start) / len(items)


def model_of(work, dataset):
    """A model as the script builds it, with random weights."""
    sizes = ({"embed_dim": work.size[0], "depth": work.size[1], "ablation": "none"} if work.model == "omnisat" else
             {"dataset": work.dataset, "width": work.size[0]})
    if work.mode != "pretrain":
        sizes["num_classes"] = len(dataset.classes)
    elif work.model != "omnisat":
        sizes["num_classes"] = 0
    torch.manual_seed(0)
    model = build_model(work.model, dataset.sensors, **sizes)
    model.standardize.set({sensor.key: {"mean": [0.0] * len(sensor.bands), "std": [1000.0] * len(sensor.bands)}
                           for sensor in dataset.sensors})
    return model


class Steps:
    """Training steps and forward passes of a work, on batches of some tiles."""

    def __init__(self, work, dataset, items, device):
        self.work, self.items, self.device, self.model = work, items, device, model_of(work, dataset).to(device)
        precision = options.chosen_precision(SimpleNamespace(precision=None), device)
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
        self.pool_step = PoolStep(self.model, self.autocast, device)
        learned = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(learned, 1e-6, fused=True) if work.mode != "fit" else None
        self.classes = len(dataset.classes)
        self.params = sum(p.numel() for p in self.model.parameters())

    def batch(self, tiles):
        return collate([self.items[i % len(self.items)] for i in range(tiles)])

    def masks(self, batch):
        return self.model.draw_masks(batch, torch.Generator().manual_seed(0))

    def train(self, batch):
        """Forward, backward, update."""
        self.model.train()
        if self.work.mode == "pretrain":
            self.pool_step(batch, self.masks(batch), 1.0)
        else:
            with self.autocast:
                outputs = self.model.all_logits(distributed.to_device(batch, self.device))
            sum(F.binary_cross_entropy_with_logits(logits.float(), torch.zeros_like(logits, dtype=torch.float32))
                for logits in outputs).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)

    @torch.no_grad()
    def look(self, batch):
        """A forward pass as in validation, or what is fitted takes from each tile. Returns the latter."""
        self.model.eval()
        moved = distributed.to_device(batch, self.device)
        if self.work.mode == "fit":
            return self.model.collect(moved)
        with self.autocast:
            if self.work.mode == "pretrain":
                self.model.pretrain_loss(moved, distributed.to_device(self.masks(batch), self.device))
            else:
                self.model.all_logits(moved)

    def timed(self, function, batch):
        """Seconds of a call, when the device is done."""
        wait = torch.cuda.synchronize if self.device.type == "cuda" else lambda: None
        wait()
        start = time.perf_counter()
        function(batch)
        wait()
        return time.perf_counter() - start


def measured(steps, seconds):
    """Seconds a tile takes in a step and in a forward pass, GB of a process in training. seconds: there are."""
    most, is_short = steps.work.tiles, seconds <= LEAST
    tiles, function = min(1 if is_short else 2, most), steps.look if steps.optimizer is None else steps.train
    end, before = time.perf_counter() + seconds, memory(steps.device, peak=False)
    while True:
        batch = steps.batch(tiles)
        first = steps.timed(function, batch)                                  # memory is taken, kernels are chosen
        if tiles == most or time.perf_counter() + 3 * first > end:
            break
        tiles = min(most, max(tiles + 1, int(tiles * (end - time.perf_counter()) / (4 * first))))
    step = [first]
    while len(step) < 4 and time.perf_counter() + 1.5 * step[-1] < end:
        step.append(steps.timed(function, batch))
    step, part = min(step[1:] or step) / tiles, in_a_part(steps, batch, most)
    activations = (memory(steps.device, peak=True) - before) * part / min(tiles, part)
    gb = activations + 16e-9 * steps.params + (0.5 if steps.device.type == "cpu" else 0.0)    # Adam has 16 bytes each
    looks = 0 if steps.optimizer is None else 2 - is_short
    forward = min(steps.timed(steps.look, batch) for _ in range(looks)) / tiles if looks else step
    again = forward if part < most and in_a_part(steps, batch, tiles) == tiles else 0.0    # of parts, in backward
    return {"step": step + again + quadratic(steps, batch, most - tiles), "forward": forward, "tiles": tiles,
            "gb": gb, "params": steps.params}


def in_a_part(steps, batch, tiles):
    """Of so many tiles, those whose activations are there at a time: all, or a part of a large pool of OmniSat's."""
    if not hasattr(steps.model, "tiles_in_a_part"):
        return tiles
    rows, columns = steps.model.grid(batch)
    return min(tiles, steps.model.tiles_in_a_part(tiles, rows * columns))


def quadratic(steps, batch, more):
    """Seconds that a tile takes longer in OmniSat's pretraining with so many tiles more in the pool."""
    if steps.work.model != "omnisat" or steps.work.mode != "pretrain" or not more:
        return 0.0
    shape = steps.masks(batch)["is_masked"].shape                             # B x M x P
    a_tile, dim = shape[1] * shape[2], steps.work.size[0]
    tokens = torch.randn(max(1, TOKENS // a_tile), *shape[1:], dim, device=steps.device, requires_grad=True)
    present = torch.ones(tokens.shape[:2], dtype=torch.bool, device=steps.device)

    def loss(_):
        contrastive_loss(tokens, present).backward()
    seconds = min(steps.timed(loss, None) for _ in range(3))
    return seconds / len(tokens) ** 2 * more                                  # of n tiles: c n^2, so c n each


def fitting(steps, batch):
    """Seconds a tile takes in what is fitted at the end."""
    x = steps.look(batch).cpu()
    x = x[torch.arange(ROWS) % len(x)] + 1e-3 * torch.randn(ROWS, *x.shape[1:])
    labels = torch.rand(ROWS, steps.classes, generator=torch.Generator().manual_seed(0)) > 0.5
    return steps.timed(lambda _: steps.model.fit(x, labels, 0), None) / ROWS


def classifying(features, classes=12):
    """Seconds a training tile takes in the classifiers of probe.py, of one kind of features."""
    random = np.random.default_rng(0)
    x, y = random.standard_normal((ROWS, features)), random.integers(0, 2, (ROWS, classes))
    start = time.perf_counter()
    for name in ("logistic", "knn"):
        choose(name, (x, y), (x, y))
        bootstrap(x[:, :classes], y)
    return 1.41 * (time.perf_counter() - start) / ROWS                        # of 1, 5, 10, 25 and 100 % of the tiles


def measure(asked, emit):
    """Measure what is asked for: {"works": [[work, root]], "seconds"}. emit: called with each result, a dict."""
    _, _, device = distributed.setup()
    end, read = time.perf_counter() + asked["seconds"], {}
    for number, (fields, root) in enumerate(asked["works"]):
        work = Work(*(tuple(field) if isinstance(field, list) else field for field in fields))
        left = (end - time.perf_counter()) / (len(asked["works"]) - number)
        try:
            dataset, items, seconds = some_tiles(work, root)
            read.setdefault(" ".join([work.dataset, *work.keys()]), seconds)
            steps = Steps(work, dataset, items, device)
            found = measured(steps, max(LEAST, left))
            if work.mode == "fit":
                found["fit"] = fitting(steps, steps.batch(AT_LEAST))
            emit({"name": work.name(), **found})
        except (UserError, RuntimeError, ValueError) as error:
            emit({"name": work.name(), "failed": str(error).splitlines()[0]})
    emit({"read": read, "classify": classifying(64) if asked["classifies"] else 0.0,
          "device": name_of(device)})


def name_of(device):
    """Of the GPU, or of the processor (Linux)."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    known = Path("/proc/cpuinfo")
    lines = known.read_text(encoding="utf-8").splitlines() if known.exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


def main():
    warnings.simplefilter("ignore")
    measure(json.load(sys.stdin), lambda found: print(json.dumps(found), flush=True))


if __name__ == "__main__":
    run(main)
