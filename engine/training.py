"""A training run: where it is, what each of its steps does on all processes, and the checkpoint that it goes on from.

A run that was stopped or killed, and is started again by the same command, ends with the weights and the log that it
would have had, bit by bit on a CPU. For that, nothing carries over from one pool of tiles to the next but what the
checkpoint holds: weights, optimiser, scheduler, the best epoch, the position and the sums of the losses. The order of
the tiles follows from the seed and the pass over them, every other random number from seed, epoch and pool, so there
is no random state to keep; nor is there a loss scaler, which bfloat16 does not need.
"""
import json
import math
import random
import signal
import sys
import time

import numpy as np
import torch
from tqdm import tqdm

from datasets.files import misfit
from engine import checkpoint, distributed
from engine.log import Log, together
from utils.errors import SIGNALS, Stopped, UserError
from utils.files import lock, written_whole

# options that may change from one start to the next: they change no weight, or (tiles_at_once, record) only by rounding
FREE = ("data_root", "sensors", "output", "csv", "workers", "tiles_at_once", "save_minutes", "record")
# what else has to be as it was, and what to say if it is not
SAME = {"config": "its sensors or its sizes", "split_hash": "its training tiles", "val_hash": "its validation tiles",
        "val_order": "the order of its validation tiles", "max_dates": "the number of dates it takes of a series"}
BEFORE = {"max_dates": 50}    # in runs of before this was written down
_locks = []    # of the folders that this process trains in, kept until it ends


def open_folder(target, kind, args, rank, **found):
    """Take the folder of a run. Returns its checkpoint (None if it begins), and the options that a later start must
    repeat.

    The folder is taken until this process ends; on several processes rank 0 does it. target: the checkpoint's path.
    found: options as they turned out, in place of those in args.
    Errors: UserError if another process has the folder, or if the run in it was begun with other options.
    """
    def take():
        if rank == 0:
            _locks.append(lock(target.parent / ".lock", "trains there"))
            for half in target.parent.glob(f".{target.name}.*.tmp"):          # written when the run was killed
                half.unlink()
    distributed.first_alone(take)
    settings = {name: value for name, value in vars(args).items() if name not in FREE} | found
    saved = checkpoint.load(target, kind) if target.exists() else None
    if len(set(distributed.gather(saved and saved["sha256"]))) > 1:
        raise UserError(f"{target}: the processes do not see the same checkpoint; it must be on a file system that they share",
                        is_told=rank > 0)
    if saved is not None:
        # what runs of before this option did; fine-tuning, whose head and choice of the epoch are others since, cannot go on
        before = {"s1": "released"} | ({"epoch_steps": 1} if kind == "pretrained" and "epoch_steps" in settings else {}) | saved["settings"]
        others = [f"--{name.replace('_', '-')} {before.get(name)}, not {settings.get(name)}" for name in sorted({*before, *settings})
                  if before.get(name) != settings.get(name)]
        if others:
            raise UserError(f"{target} was begun with {', '.join(others)}: repeat these, choose another --output, or delete it",
                            is_told=rank > 0)
    return saved, settings


def pool_seed(seed, epoch, pool):
    """The seed of everything random about a pool. pool: its number in the epoch."""
    return ((seed * 10_007 + epoch) * 1_000_003 + pool) % 2 ** 64                 # of torch; it has no more


class Training:
    """A run, to be used in a with statement, in which SIGTERM and SIGUSR1 have it saved at the end of the step, and
    ended.

    target, kind: of the checkpoint; its weights are those of the best epoch if it is "finetuned", else the last ones.
    saved, settings: of open_folder. facts: what goes into the checkpoint besides, with the entries of SAME.
    args: epochs, min_epochs, patience, seed, save_minutes. place: of distributed.setup. terms: names of the loss and
    its parts. optimizer, scheduler: None for a method that is fitted in a single epoch, of which only the end is
    saved.

    epoch counts from 1; step: those that are done of this epoch. finished: whether there is nothing left to do.
    """

    def __init__(self, target, kind, saved, settings, facts, args, place, model, optimizer, scheduler, terms):
        self.target, self.kind, self.settings, self.facts, self.args = target, kind, settings, facts, args
        self.rank, self.world, self.device = place
        self.model, self.optimizer, self.scheduler, self.keeps_best = model, optimizer, scheduler, kind == "finetuned"
        self.terms, self.sums = terms, torch.zeros(len(terms), device=self.device)
        self.epoch, self.step, self.best, self.best_epoch, self.history, self.kept = 1, 0, None, 0, [], None
        self.seconds, self.starts, self.finished = 0.0, [], False
        if saved is not None:
            self.resume(saved)
        self.started = self.saved_at = time.time()
        self.statistics = distributed.RunningStatistics(model)
        self.pools, self.unverified, self.signal = [], None, None

    def resume(self, saved):
        """Go on from a checkpoint. Errors: UserError if it is another run's."""
        for name, what in SAME.items():
            if saved.get(name, BEFORE.get(name)) != self.facts.get(name, BEFORE.get(name)):
                raise UserError(f"{self.target} was begun with other data: {what} changed; restore it, choose another --output, or "
                                "delete it to start anew", is_told=self.rank > 0)
        state = saved["training"]
        try:
            for part, values in state["parts"].items():
                getattr(self, part).load_state_dict(values)
        except (RuntimeError, ValueError) as error:                           # other names, shapes, or numbers of them
            raise UserError(f"{self.target}: its weights are not those of today's model; commit "
                            f"{saved['source']['commit']}, which wrote it, goes on with it; else delete it "
                            f"({misfit(error)})", is_told=self.rank > 0) from error
        self.sums.copy_(state["sums"])
        for name in ("epoch", "step", "best", "best_epoch"):
            setattr(self, name, state[name])
        self.history, self.starts, self.seconds = saved["history"], saved["starts"], saved["hours"] * 3600
        self.kept = saved["weights"] if self.keeps_best and self.best_epoch else None

    def __enter__(self):
        if self.rank == 0 and self.starts:
            print(f"going on from {self.target}: epoch {self.epoch}, {self.step} steps of it done", file=sys.stderr)
        start = self.facts["source"] | {"world": self.world, "epoch": self.epoch, "step": self.step}
        self.starts = [*self.starts, start]
        self.facts = self.facts | {"source": together(self.starts)}
        self.log = Log(self.target.parent, self.rank, self.facts["source"] | {
            "options": vars(self.args) | self.settings, "parameters": sum(p.numel() for p in self.model.parameters()),
            "starts": self.starts}, self.history)
        self.handlers = {number: signal.signal(number, self.told) for number in SIGNALS}
        return self

    def __exit__(self, *_):
        self.log.close()
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def told(self, number, _):
        """Note a signal: it counts between two steps."""
        self.signal = signal.Signals(number).name

    # ---- a step

    def begin_step(self, pools):
        """pools: of this step, on all processes."""
        self.step_sums, self.pools = torch.zeros_like(self.sums), []
        self.statistics.begin_step(pools)

    def begin_pool(self, number, names):
        """Seed what is random. number: of the pool in its epoch; names: of its tiles."""
        seed = pool_seed(self.args.seed, self.epoch, number)
        torch.manual_seed(seed)
        np.random.seed(seed % 2 ** 32)
        random.seed(seed)
        self.statistics.begin_pool()
        self.pools.append((number, names))

    def end_pool(self, number_in_step, values):
        """values: the loss and its parts, in the order of terms, a tensor; means over the tiles of the last pool."""
        values = values.detach()
        number, names = self.pools[-1]
        self.pools[-1] = number, names, values
        self.step_sums += values * len(names)
        self.statistics.end_pool(number_in_step)

    def end_step(self):
        """Sum over the processes, let the optimiser step, save where it is time. Nothing here waits for the GPU."""
        gradients = distributed.gradients(self.model)
        together = [*gradients, self.step_sums, *([self.statistics.found] if self.statistics.norms else [])]
        distributed.sum_over_processes(together)
        norm = torch.nn.utils.get_total_norm(gradients)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)                           # see engine.pool_step.PoolStep
        self.statistics.end_step()
        self.sums += self.step_sums
        self.step += 1
        before, self.unverified = self.unverified, Unverified(self.epoch, self.step, self.pools, self.step_sums, norm)
        self.verify(before)
        self.look_up()

    def verify(self, step):
        """Errors: UserError if a step (Unverified or None) was not finite, after its tiles were written to
        nonfinite.json.

        A step is looked at when the next one is on its way, so that the GPU is never without work.
        """
        if step is None or step.is_finite():
            return
        pools = sorted(sum(distributed.gather([(number, names, values.tolist()) for number, names, values in step.pools]), []))
        path = self.target.parent / "nonfinite.json"
        if self.rank == 0:
            with written_whole(path) as file:
                json.dump({"epoch": step.epoch, "step": step.step, "gradient_norm": str(step.norm()), "pools": [
                    {"pool": number, **{term: str(value) for term, value in zip(self.terms, values)}, "tiles": names}
                    for number, names, values in pools]}, file, indent=1)
        distributed.gather(None)                                              # torchrun ends all when the first one leaves
        raise UserError(f"{path.parent}: loss or gradient is not finite in epoch {step.epoch}, step {step.step}; its tiles and their "
                        f"losses are in {path.name}. No checkpoint was written since. If a tile is at fault, mend it; else try a lower --lr",
                        is_told=self.rank > 0)

    def look_up(self):
        """Save if it is time, and end if a signal came; all processes alike."""
        is_due = self.rank == 0 and time.time() - self.saved_at > 60 * self.args.save_minutes
        is_told, is_due = distributed.any_process([self.signal is not None, is_due])
        if self.optimizer is not None and (is_told or is_due):
            self.save()
        if is_told:
            distributed.gather(None)                                          # nobody leaves before it is saved
            what = (f"in epoch {self.epoch} after {self.step} steps, saved to {self.target}; the same command goes on"
                    if self.optimizer is not None else "before the end; the same command begins anew")
            raise Stopped(f"stopped by {self.signal or 'another process'} {what}", is_told=self.rank > 0)

    # ---- an epoch

    def begin_epoch(self, pools, what):
        """Set the pools (datasets.loading.Pools) to where the run is. Returns a progress bar over the tiles; what: its
        title.
        """
        pools.epoch, pools.start = self.epoch, self.step
        if self.rank == 0 and self.epoch == self.starts[-1]["epoch"] and pools.idle():
            print(pools.idle(), file=sys.stderr)
        bar = tqdm(total=pools.tiles, initial=pools.before(self.step), desc=f"{what} {self.epoch}/{self.args.epochs}", unit="tile",
                   leave=False, disable=self.rank > 0)
        if self.history and self.keeps_best:
            bar.set_postfix_str(f"val {scores_of(self.history[-1])}; kept epoch {self.best_epoch}")
        return bar

    def means(self, tiles):
        """{term: mean over the tiles of this epoch}, after all its steps. tiles: in all its passes."""
        self.verify(self.unverified)
        self.unverified = None
        return dict(zip(self.terms, (self.sums / tiles).tolist()))

    def end_epoch(self, record, score):
        """Log the numbers of an epoch (a dict), note whether it is the best (score: a list, higher is better), and
        save.
        """
        for name, value in record.items():
            if not math.isfinite(value):
                raise UserError(f"{self.target.parent}: {name} is {value} in epoch {self.epoch}; no checkpoint has this epoch; try a "
                                "lower --lr", is_told=self.rank > 0)
        self.history = [*self.history, {"epoch": self.epoch} | record | {"hours": self.hours()}]
        if self.best is None or list(score) > self.best:
            self.best, self.best_epoch = list(score), self.epoch
            if self.keeps_best:
                self.kept = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}
        self.finished = self.epoch == self.args.epochs or (self.epoch >= getattr(self.args, "min_epochs", 0)
                                                           and self.epoch - self.best_epoch >= self.args.patience)
        self.log.epoch(self.history[-1])
        self.epoch, self.step = self.epoch + 1, 0
        self.sums.zero_()
        self.save()
        if not self.finished:
            self.look_up()

    def ended(self):
        """Which epoch is kept, how good it was, and why no other follows, in words."""
        last, kept = self.history[-1]["epoch"], self.history[self.best_epoch - 1]
        limit = f"--epochs {self.args.epochs}" if last == self.args.epochs else (
            f"{last - self.best_epoch} epochs without a better one (--patience {self.args.patience}, "
            f"--min-epochs {self.args.min_epochs})")
        return f"kept epoch {self.best_epoch} of {last}, val {scores_of(kept)}; ended by {limit}"

    def hours(self):
        """Of training, over all starts."""
        return (self.seconds + time.time() - self.started) / 3600

    def save(self):
        """Write the checkpoint, unless the last step was not finite."""
        self.verify(self.unverified)
        self.unverified = None
        if self.rank == 0:
            weights = self.model.state_dict()
            state = None if self.finished else {
                "parts": {"model": weights, "optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict()},
                "sums": self.sums, "epoch": self.epoch, "step": self.step, "best": self.best, "best_epoch": self.best_epoch}
            checkpoint.save(self.target, self.facts | {
                "kind": self.kind, "finished": self.finished, "settings": self.settings, "starts": self.starts,
                "weights": self.kept if self.keeps_best else weights, "epoch": self.best_epoch if self.keeps_best else self.epoch - 1,
                "hours": self.hours(), "history": self.history, "training": state})
        self.saved_at = time.time()


def scores_of(record):
    """The validation scores of an epoch's numbers (finetune.py), in words."""
    return f"macro F1 {record['val_f1_macro']:.1f}, mAP {record['val_map']:.1f}"


class Unverified:
    """What a step came to, on its way from the device: the sums of its losses and the norm of its gradient."""

    def __init__(self, epoch, step, pools, sums, norm):
        self.epoch, self.step, self.pools = epoch, step, pools
        self.values = torch.cat([sums, norm.reshape(1).to(sums.dtype)]).to("cpu", non_blocking=True)
        self.there = torch.cuda.Event() if sums.device.type == "cuda" else None
        if self.there is not None:
            self.there.record()

    def is_finite(self):
        """Waits for this step, not for those after it."""
        if self.there is not None:
            self.there.synchronize()
        return bool(self.values.isfinite().all())

    def norm(self):
        return self.values[-1].item()
