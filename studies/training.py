"""The two loops of the studies: pretraining, and fine-tuning with the choice of the epoch that finetune.py makes.

Tiles are those of studies/data.py. Dimensions: N tiles, K classes.
"""
import copy
import itertools
from typing import NamedTuple

import torch
import torch.nn.functional as F

from studies.data import rows_of
from utils.metrics import constant_scores, count, epoch_score, f1_scores

BATCH = {"forest": 16, "crops": 32}    # tiles a step
EPOCH = 20                             # steps


class Schedule(NamedTuple):
    """batch: tiles a step. rate: of Adam. seed: of the order of the tiles, and of the masks."""
    batch: int
    rate: float
    steps: int
    seed: int


def steps_of(rows, schedule):
    """The rows of each step, an order a pass."""
    generator = torch.Generator().manual_seed(schedule.seed)
    passes = (rows[torch.randperm(len(rows), generator=generator)].split(schedule.batch) for _ in itertools.count())
    return itertools.islice(itertools.chain.from_iterable(passes), schedule.steps)


def descend(optimizer, loss):
    """A step of the optimiser."""
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def pretrain(tiles, model, schedule, watch=lambda step: None):
    """Pretrain a model. watch(step): called every 250 steps, before them and at the end. Returns its weights."""
    train, optimizer = tiles.splits["train"], torch.optim.Adam(model.parameters(), schedule.rate, fused=True)
    generator = torch.Generator().manual_seed(schedule.seed)
    for step, rows in enumerate(steps_of(torch.arange(len(train["label"])), schedule)):
        if step % 250 == 0:
            watch(step)
        part = rows_of(train, rows)
        descend(optimizer, model.train().pretrain_loss(part, model.draw_masks(part, generator))[0])
    watch(schedule.steps)
    return model.state_dict()


def start_from(model, weights, what):
    """Load what a pretraining has for a model: all but its head, which is new. what: for the error, RuntimeError."""
    known = model.state_dict()
    wanted = {name: value for name, value in weights.items() if name in known and not name.startswith("head")}
    missing = model.load_state_dict(wanted, strict=False).missing_keys
    if any(not name.startswith("head") for name in missing):
        raise RuntimeError(f"{what}: its pretraining lacks {missing}")


@torch.no_grad()
def predict(model, split, size=128):
    """Logits (N, K) of a whole split."""
    model.eval()
    return torch.cat([model(rows_of(split, slice(at, at + size))) for at in range(0, len(split["label"]), size)])


class Epoch(NamedTuple):
    """step: its last. loss, f1_macro: of the validation tiles. rate: of the next epoch. is_best: of all so far."""
    step: int
    loss: float
    f1_macro: float
    rate: float
    is_best: bool


def epochs(tiles, model, rows, schedule, size=128):
    """Train on the rows by finetune.py's rules; yields an Epoch after each. size: tiles in a validation's batch."""
    optimizer = torch.optim.Adam(model.parameters(), schedule.rate, fused=True)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=10)
    train, val = tiles.splits["train"], tiles.splits["val"]
    constant, best = constant_scores(train["label"][rows], val["label"]), None
    for step, some in enumerate(steps_of(rows, schedule), 1):
        part = rows_of(train, some)
        outputs = model.train().all_logits(part)
        descend(optimizer, sum(F.binary_cross_entropy_with_logits(logits, part["label"]) for logits in outputs))
        if step % EPOCH == 0:
            logits = predict(model, val, size)
            loss = F.binary_cross_entropy_with_logits(logits, val["label"]).item()
            scheduler.step(loss)
            f1_macro = f1_scores(count(logits, val["label"]))["f1_macro"]
            score = epoch_score(loss, f1_macro, constant)
            is_best = best is None or score > best
            best = score if is_best else best
            yield Epoch(step, loss, f1_macro, optimizer.param_groups[0]["lr"], is_best)


def finetune(tiles, model, rows, schedule):
    """Train on the rows. Returns the test logits of the epoch kept, and its step."""
    for epoch in epochs(tiles, model, rows, schedule):
        if epoch.is_best:
            kept, weights = epoch.step, copy.deepcopy(model.state_dict())
    model.load_state_dict(weights)
    return predict(model, tiles.splits["test"]), kept
