"""What jobs cost before they run: tiles, steps, seconds, memory, disk.

A job is read as its script would read it, from its command; what a tile takes comes from a calibration
(tables.calibrate), where there is none from a guess that only serves to put jobs in order, and what jobs took corrects
both.
"""
import contextlib
import functools
import importlib
import os
from typing import NamedTuple

from datasets.loading import Pools
from datasets.sensors import SENSORS
from datasets.splits import RELEASED, VAL_SHARE
from engine.options import chosen_modalities
from models.methods import METHODS
from tables.commands import DEMO_MODEL, DEMO_WIDTH, FOLDERS

STARTUP = 8.0                                     # seconds of a job besides its tiles, if nobody measured
IMAGE, SERIES = 0.02, 0.005                       # seconds a tile takes in a step, for each such sensor, likewise
FORWARD, READ, GENERATE = 1 / 3, 0.2, 0.3         # shares of a step; seconds to simulate a tile
PASSES = 5    # over all tiles of a choice of modalities in probe.py: features of two kinds and weights, and by hand
DEMO_VAL = {"pastis-hd": 1 / 5, "flair": 1 / 5}   # of the training tiles


class Work(NamedTuple):
    """What a calibration measures: mode is pretrain, finetune or fit; modality a word of the tables; size OmniSat's
    (embed_dim, depth), or the width of a compared method; tiles: of a forward pass in training.
    """
    mode: str
    dataset: str
    model: str
    modality: str
    size: tuple
    tiles: int

    def keys(self):
        """Of the sensors that it sees."""
        seen = METHODS[self.model].sees.get(self.modality)
        return tuple(seen or chosen_modalities(self.modality, self.dataset))

    def name(self):
        return " ".join([self.mode, self.dataset, self.model, self.modality, *map(str, self.size), str(self.tiles)])


class Load(NamedTuple):
    """What a job does. The numbers of training have a least, where it may stop early, and a most.

    trained: tiles in training steps; validated: tiles in forward passes between them; scored: at the end; steps.
    """
    work: Work
    trained: tuple = (0, 0)
    validated: tuple = (0, 0)
    scored: int = 0
    steps: tuple = (0, 0)
    workers: int = 0


class Estimate(NamedTuple):
    """Seconds of a job, least and most, and the seconds in the latter that it waits for files."""
    least: float
    most: float
    reading: float


class Costs:
    """What jobs of some commands (tables.commands.Commands) cost. calibration: of tables.plan, None or empty if nobody
    measured.
    """

    def __init__(self, commands, calibration=None):
        self.commands, self.calibration = commands, calibration or {}
        self.learned, self.loads = {}, {}    # learned: {group: [seconds, expected]}

    @property
    def basis(self):
        """What the estimates are from."""
        return self.calibration.get("date", "guess")

    # ---- what it does

    def tiles(self, dataset):
        """{split: tiles}: the demo's, the release's; of a download the same, as it is complete."""
        if self.commands.demo:
            words = self.commands.demo.data[FOLDERS[dataset]]
            train, test = (int(words[words.index(name) + 1]) for name in ("--train", "--test"))
            val = round(train * DEMO_VAL.get(dataset, VAL_SHARE))
            return {"train": train - val, "val": val, "test": test}
        known = RELEASED[dataset]
        if "train" in known:
            return known
        val = round(known["train + val"] * VAL_SHARE)
        return {"train": known["train + val"] - val, "val": val, "test": known["test"]}

    def load(self, job):
        """The Load of a job; None of generating data, and of a command that its script will refuse."""
        if job.name not in self.loads:
            args = arguments(job) if job.kind in MODES else None
            self.loads[job.name] = args and self.read(job, args)
        return self.loads[job.name]

    def size(self, model):
        """Of the model, as the commands have it."""
        if model == "omnisat":
            return (int(DEMO_MODEL[1]), int(DEMO_MODEL[3])) if self.commands.demo else (256, 6)
        return (float(DEMO_WIDTH[1]) if self.commands.demo else 1.0,)

    def read(self, job, args):
        """The Load of a job that trains, scores or probes. args: its options."""
        cell, model = job.cell, job.cell["model"]
        dataset, method, tiles = cell["dataset"], METHODS[model], self.tiles(cell["dataset"])
        mode = "fit" if method.is_fitted and job.kind != "pretraining" else MODES[job.kind]
        pool = args.pool if "--pool" in job.command else method.pool(dataset)
        batch = min(pool, getattr(args, "batch_size", pool))
        work = Work(mode, dataset, model, job.modality or cell["modality"], self.size(model), batch)
        if job.kind == "test":
            return Load(work, scored=tiles["test"], workers=args.workers)
        if job.kind == "probe":
            seen = len(self.commands.probed(cell))
            return Load(work, scored=PASSES * seen * sum(tiles.values()), workers=args.workers)
        share = int(cell["label_percent"]) / 100 if job.kind == "fine-tuning" else 1
        test = tiles["test"] if job.kind == "fine-tuning" else 0
        if mode == "fit":
            return Load(work, scored=round(share * tiles["train"]) + tiles["val"] + test, workers=args.workers)
        pools = Pools(max(1, round(share * tiles["train"])), pool, args.batch_size, least=args.epoch_steps)
        early = max(getattr(args, "min_epochs", 0), args.patience + 1)
        epochs = min(args.epochs, early), args.epochs
        return Load(work, tuple(n * pools.tiles for n in epochs), tuple(n * tiles["val"] for n in epochs), test,
                    tuple(n * pools.passes * pools.a_pass for n in epochs), args.workers)

    # ---- what it takes

    def of_work(self, work):
        """Seconds a tile takes: in a training step, in a forward pass, and to read it."""
        keys = work.keys()
        guess = sum(IMAGE if SENSORS[work.dataset][key].kind == "image" else SERIES for key in keys)
        measured = self.measured(work)
        read = self.calibration.get("read", {}).get(" ".join([work.dataset, *keys]), READ * guess)
        return measured.get("step", guess), measured.get("forward", guess * FORWARD), read

    def expected(self, job):
        """The Estimate from calibration or guess alone."""
        load, startup = self.load(job), self.calibration.get("startup", STARTUP)
        if load is None:
            known = self.calibration.get("generate", {}).get(FOLDERS.get(job.cell.get("dataset")), GENERATE)
            tiles = sum(self.tiles(job.cell["dataset"]).values()) if job.kind == "data" else 0
            return Estimate(*[startup + known * tiles] * 2, 0.0)
        step, forward, read = self.of_work(load.work)
        wait = read if not load.workers else read / load.workers

        def seconds(end):
            spent = reading = 0.0
            for tiles, each in ((load.trained[end], step), (load.validated[end] + load.scored, forward)):
                whole = each + wait if not load.workers else max(each, wait)
                spent, reading = spent + tiles * whole, reading + tiles * (whole - each)
            return spent / job.processes, reading / job.processes
        extra = startup + self.classifying(job)
        return Estimate(extra + seconds(0)[0], extra + seconds(1)[0], seconds(1)[1])

    def classifying(self, job):
        """Seconds that classifiers take, on features (probe.py) or of what is fitted."""
        if job.kind == "probe":
            tiles = self.tiles(job.cell["dataset"])["train"]
            return self.calibration.get("classify", 0.0) * tiles * PASSES * len(self.commands.probed(job.cell))
        load = self.load(job)
        return self.measured(load.work).get("fit", 0.0) * load.scored

    def seconds(self, job):
        """The Estimate, corrected by what jobs alike took, or all."""
        factor = self.factor(group_of(job))
        return Estimate(*(factor * value for value in self.expected(job)))

    def factor(self, group):
        for known in (group, None):
            spent, expected = self.learned.get(known, (0.0, 0.0))
            if expected:
                return spent / expected
        return 1.0

    def learn(self, group, seconds, expected):
        """What a job took, and what was expected without any correction."""
        for known in (group, None):
            spent = self.learned.setdefault(known, [0.0, 0.0])
            spent[0] += seconds
            spent[1] += expected

    def measured(self, work):
        """What tables.calibrate.measured says of a work, {} if nobody measured."""
        return self.calibration.get("works", {}).get(work.name(), {})


MODES = {"pretraining": "pretrain", "fine-tuning": "finetune", "test": "finetune", "probe": "pretrain"}


def group_of(job):
    """Jobs that are corrected by the same factor."""
    return job.kind, job.cell["dataset"], job.cell.get("model", "")


@functools.cache
def script_of(name):
    """The ArgumentParser of a script."""
    return importlib.import_module(name.removesuffix(".py")).command_line()


def arguments(job):
    """The options of a job as its script reads them, None if it will refuse them."""
    at = next(i for i, word in enumerate(job.command) if word.endswith(".py") and "/" not in word)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            return script_of(job.command[at]).parse_args(job.command[at + 1:])
    except SystemExit:
        return None


def in_order(planned, costs):
    """The jobs that others wait for first; the longest first, with what waits for it."""
    waits, chain = {}, {}
    for job in planned:
        for need in job.needs:
            waits.setdefault(need, []).append(job)

    def length(job):
        if job.name not in chain:
            chain[job.name] = costs.seconds(job).most + max(map(length, waits.get(job.name, ())), default=0.0)
        return chain[job.name]
    return sorted(planned, key=lambda job: (job.name not in waits, -length(job)))


def makespan(waiting, seconds, places, busy=()):
    """Seconds until the last job is done, if the first that can run is always run first.

    waiting: jobs in their order; seconds: {name: of it}; busy: [(seconds that it will still take, job)] of those at
    work.
    """
    waiting, ends, now = list(waiting), list(busy), 0.0
    undone = {job.name for job in waiting} | {job.name for _, job in busy}
    while waiting or ends:
        free = places - sum(job.processes for _, job in ends)
        for job in list(waiting):
            if undone.isdisjoint(job.needs):
                if job.processes > free:
                    break
                free -= job.processes
                ends.append((now + seconds[job.name], job))
                waiting.remove(job)
        if not ends:
            break                                                             # what is left waits for what is not there
        ends.sort(key=lambda end: end[0])
        now, job = ends.pop(0)
        undone.discard(job.name)
    return now
