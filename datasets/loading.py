"""From tiles to batches: the order of the tiles, the pools they are processed in, padding.

A step of the optimiser sees `batch` tiles in all, cut into pools of at most `pool` tiles. A pool is one forward pass on
one process, and the contrastive loss looks for negatives inside it. Pool k of a step goes to process k modulo their
number: one process with 384 tiles works through the same three pools as three processes with 128 tiles each.

An epoch is one pass over the tiles, or, where these are few steps, as many passes as make `least` steps: all that is
counted in epochs (validation, scheduler, patience, limits) then means the same with 291 tiles as with 40,000.
"""
import math
import os
import signal
import threading
import time
from functools import partial, reduce
from types import SimpleNamespace

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler, get_worker_info

from utils.errors import UserError
from utils.memory import give_memory_back


class Pools(Sampler):
    """The pools of one process; a batch sampler.

    size: tiles in the dataset. pool, batch: tiles a pool, and a step over all processes. seed: shuffles, a new order
    each pass (set .epoch, which counts from 1); None keeps the order. is_mixed: in place of it one that is always the
    same, as lists are sorted by species or place, and a pool should not have only one. rank, world: this process and
    their number. least: steps of an epoch, at least. Set .start to leave out the first steps of an epoch. tiles: of an
    epoch, all passes. Each argument decides on its own which tiles meet in which pool.
    """

    def __init__(self, size, pool, batch, seed=None, rank=0, world=1, least=1, is_mixed=False):
        self.size, self.pool, self.batch = size, min(pool, batch), batch
        self.seed, self.epoch, self.start, self.rank, self.world, self.is_mixed = seed, 1, 0, rank, world, is_mixed
        self.a_step = -(-batch // self.pool)    # pools; the last step of a pass may have fewer
        self.a_pass = -(-size // batch)                                       # steps
        self.passes = -(-least // self.a_pass)
        self.tiles = self.passes * size

    def idle(self):
        """A warning if there are more processes than pools in a step, else None."""
        if self.a_step < self.world:
            return (f"warning: a step of {self.batch} tiles has {self.a_step} pool(s) of {self.pool}, so "
                    f"{self.world - self.a_step} of {self.world} processes have nothing to do; see --pool and "
                    "--batch-size")
        return None

    def before(self, step):
        """The tiles in the steps of an epoch before one of them."""
        passes, steps = divmod(step, self.a_pass)
        return passes * self.size + steps * self.batch

    def pass_of(self, step):
        """The number of the pass that a step of this epoch is in, counted from 1 since the start of the run."""
        return (self.epoch - 1) * self.passes + step // self.a_pass + 1

    def order(self, step):
        """The tiles in the order of the pass that a step of this epoch is in."""
        if self.seed is None and not self.is_mixed:
            return np.arange(self.size)
        return np.random.default_rng(0 if self.seed is None else (self.seed, self.pass_of(step))).permutation(self.size)

    def steps(self):
        """Yields for each step the tiles in it over all processes, and this process's pools: (number, indices)."""
        for number in range(self.start, self.passes * self.a_pass):
            at = number % self.a_pass
            if at == 0 or number == self.start:
                order = self.order(number)
            step = order[at * self.batch:(at + 1) * self.batch]
            pools = [step[i:i + self.pool] for i in range(0, len(step), self.pool)]
            yield len(step), [(number * self.a_step + k, pool.tolist())
                              for k, pool in enumerate(pools) if k % self.world == self.rank]

    def __iter__(self):
        for _, pools in self.steps():
            for number, indices in pools:
                # the pass travels with the index, so that workers draw its dates
                yield indices if self.seed is None else [(i, self.pass_of(number // self.a_step)) for i in indices]

    def __len__(self):
        return sum(len(pools) for _, pools in self.steps())


def zeros(shape, kind):
    """A tensor of zeros; on a reading process in shared memory, from where it gets to the training process without a
    copy.
    """
    if get_worker_info() is None:
        return torch.zeros(shape, dtype=kind)
    storage = torch.UntypedStorage._new_shared(max(1, math.prod(shape)) * kind.itemsize)  # as torch's own collate does
    return torch.empty(0, dtype=kind).set_(storage)[:math.prod(shape)].view(shape)


def collate(items, keeps=True):
    """List of tiles to a batch: series are padded with zeros to the longest one, at least one date.

    Each tile: name, label (K,), image (C, H, W) or series (T, C, H, W) with <key>_dates (T,); <key>_missing () bool,
    where images may be. Returns the dict of models/omnisat.py with name (list) and label (B, K). keeps: whether the
    tiles stay as they are; else they are emptied on the way, as both at once would be twice the memory.
    """
    batch, keys = {"name": [item["name"] for item in items]}, [key for key in items[0] if key != "name"]
    for key in (key for key in keys if not key.endswith("_dates")):               # these come with their series
        shapes = [item[key].shape for item in items]
        kind = reduce(torch.promote_types, (item[key].dtype for item in items))   # files of one sensor may differ
        is_series = f"{key}_dates" in keys
        whole = (max(1, *(shape[0] for shape in shapes)), *shapes[0][1:]) if is_series else shapes[0]
        batch[key] = zeros((len(items), *whole), kind)
        if is_series:
            dates, padded = zeros((len(items), whole[0]), torch.int64), zeros((len(items), whole[0]), torch.bool)
            batch |= {f"{key}_dates": dates, f"{key}_padded": padded}
        for i, item in enumerate(items):
            value, days = item[key], item[f"{key}_dates"] if is_series else None
            if not keeps:
                del item[key]
            if not is_series and value.shape != shapes[0]:
                raise ValueError(f"{key} of {item['name']}: {tuple(value.shape)}, of {items[0]['name']} "
                                 f"{tuple(shapes[0])}")
            place = batch[key][i, :len(value)] if is_series else batch[key][i]
            np.copyto(place.numpy(), value.numpy())    # in half the time of torch for bands of an image
            if is_series:
                dates[i, :len(value)], padded[i, len(value):] = days, True
    return batch


class Loader(DataLoader):
    """A DataLoader that tells of a reading process that was killed by a UserError, and only where a batch is waited
    for.

    By itself torch raises a RuntimeError wherever the training process is when the system tells it: in a save, whose
    file then cannot be ended, in an except clause, whose error then hides it, or in a clean-up, where it is lost; or,
    if the reader's sockets are closed before it counts as dead, an OSError or EOFError of the connection.
    """
    def __iter__(self):
        batches = waited(super().__iter__, getattr(self._iterator, "_workers", ()))    # those kept from the last epoch
        if self.num_workers and hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
            handler = signal.getsignal(signal.SIGCHLD)
            if callable(handler) and handler is not child_ended:
                _waiting.torchs = handler
                signal.signal(signal.SIGCHLD, child_ended)
        return self._told(batches)

    def _told(self, batches):
        readers, end = getattr(batches, "_workers", ()), object()
        while (batch := waited(lambda: next(batches, end), readers)) is not end:
            yield batch


_waiting = SimpleNamespace(now=False, torchs=None)    # whether a batch is waited for; torch's handler of SIGCHLD


def child_ended(number, frame):
    """In place of torch's handler of SIGCHLD, which raises: it does while a batch is waited for, and once."""
    if _waiting.now:
        _waiting.now = False
        _waiting.torchs(number, frame)


def waited(function, readers):
    """The function's value. readers: the processes that it waits for. Errors: UserError if one of them is dead, or
    dies.
    """
    try:
        _waiting.now = True    # before the look: nothing is missed in between
        if any(not reader.is_alive() for reader in readers):
            raise UserError(killed(readers))
        return function()
    except (RuntimeError, OSError, EOFError) as error:
        _waiting.now = False
        words = "DataLoader worker (pid", "in DataLoader worker process"
        is_torchs, is_readers_own = (some in str(error) for some in words)
        if is_torchs or not is_readers_own and is_dead_soon(readers):
            raise UserError(killed(readers)) from error
        raise
    finally:
        _waiting.now = False


def is_dead_soon(readers, seconds=5):
    """Whether one of some processes ends within so many seconds: its connections are closed before it counts as dead.
    """
    end = time.time() + seconds
    while readers and time.time() < end:
        if any(not reader.is_alive() for reader in readers):
            return True
        time.sleep(0.01)
    return False


def killed(readers):
    """What to say of the one of some processes that is dead."""
    codes = [code for reader in readers if (code := reader.exitcode)]
    by = f" ({signal.Signals(-codes[0]).name if codes[0] < 0 else f'exit code {codes[0]}'})" if codes else ""
    return (f"a reading process was killed{by}; if memory or /dev/shm is short, or a file was cut off while it was "
            "read, mend that: fewer --workers (0 reads in the training process) or a smaller --pool")


def begin_reading(_):
    """Set up a reading process: it ends with the training process, and gives the memory of large tiles back.

    Signals that are meant for the run, and Ctrl-C, go past it.
    """
    if hasattr(os, "setsid"):                                                 # not on Windows
        os.setsid()
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    give_memory_back()


def whole_pools(dataset, pool, rank, world, **how):
    """Pools of one pass over a dataset, in order: each tile once. how: of Pools."""
    return Pools(len(dataset), pool, pool * world, None, rank, world, **how)


def make_loader(dataset, pools, workers):
    """DataLoader over the pools, pinned where there is a GPU, its worker processes kept between epochs.

    Each process prepares one pool ahead: 128 tiles of PASTIS-HD are 3.4 GB of shared memory, and take up to 4.3 GB in
    all.
    """
    return Loader(dataset, batch_sampler=pools, collate_fn=partial(collate, keeps=False), num_workers=workers,
                  prefetch_factor=1 if workers else None, pin_memory=torch.cuda.is_available(),
                  persistent_workers=workers > 0, worker_init_fn=begin_reading)
