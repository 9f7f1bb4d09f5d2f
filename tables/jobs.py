"""The jobs that are still to do for some cells: what has a row, or a checkpoint, is not done again."""
import functools
from pathlib import Path
from typing import NamedTuple

from tables.cells import key, method_of, published_start
from tables.commands import FOLDERS
from utils.errors import UserError
from utils.results import PROBE_KEYS, SCORED, TABLES, identity, key_of, read_rows


class Job(NamedTuple):
    """A command, the names of the jobs it needs, and where its output goes.

    kind: data, pretraining, fine-tuning, test or probe. cell, seed: the first that it is for; of data only a dataset.
    modality: of a compared method's pretraining. processes: that it has.
    """
    name: str
    command: list
    needs: tuple
    log: Path
    kind: str = ""
    cell: dict = {}
    seed: str = ""
    modality: str = ""
    processes: int = 1


class Jobs:
    """Jobs at the scale of the commands (tables.commands.Commands), of every cell and seed that is added.

    planned: {name: Job}, each after those it needs. blocked: {name: why} of those that cannot be done. without:
    [(table, row)] of those among them that lack published weights. is_dry: plan these too.
    """

    def __init__(self, commands, is_dry=False):
        self.commands, self.is_dry, self.scale = commands, is_dry, "demo" if commands.demo else "paper"
        self.planned, self.blocked, self.without, self.trained = {}, {}, [], {}    # trained: {checkpoint: needs}

    def plan(self, *job, **about):
        """Plan a Job, once. Returns what needs it: (name,)."""
        job = Job(*job, **about)
        self.planned.setdefault(job.name, job)
        return job.name,

    def data(self, dataset):
        """The demo's tiles."""
        if not self.commands.demo:
            return ()
        folder = FOLDERS[dataset]
        return self.plan(f"data of {folder}", self.commands.generate(dataset), (),
                         self.commands.runs / folder / "output.txt", "data", {"dataset": dataset})

    def pretrainings(self, cell, seed):
        """Those that are not done of the checkpoints that a cell starts from."""
        dataset, found = cell["dataset"], ()
        for modality, start in self.commands.pretrained(cell, seed).items():
            if not finished_scale(start):
                title = (f"pretraining {cell['model']}, {modality}," if cell["model"] != "omnisat" else
                         "pretraining" if cell["ablation"] == "none" else f"pretraining, {cell['ablation']},")
                found += self.plan(f"{title} on {dataset}, seed {seed}", self.commands.pretrain(cell, modality, seed),
                                   self.data(dataset), start.parent / "output.txt", "pretraining", cell, seed,
                                   modality, self.commands.nproc)
        return found

    def is_blocked(self, name, paths):
        """Whether one of the checkpoints stands in a job's way; why is noted."""
        try:
            foreign = [path for path in paths if finished_scale(path) not in (None, self.scale)]
        except UserError as error:                                            # a damaged checkpoint
            self.blocked[name] = str(error)
            return True
        if foreign:
            self.blocked[name] = f"{foreign[0].parent} holds a run that is not of scale {self.scale}: move it away"
        return bool(foreign)

    def add_cells(self, cells, seeds):
        """What the rows of cells take: pretraining, fine-tuning or fitting, test."""
        done = self.scored(TABLES)
        for seed in seeds:
            for cell in cells:
                if key_of(cell) + (seed, self.scale, self.commands.s1) not in done:
                    self.add_cell(cell, seed)

    def scored(self, tables):
        """The identities of the rows with a score in some tables."""
        return {identity(row) for table in tables for row in read_rows(self.commands.results / f"{table}.csv")
                if row["status"] in SCORED}

    def add_cell(self, cell, seed):
        name, target = f"{key(cell)}, seed {seed}", self.commands.finetuned(cell, seed)
        if self.is_blocked(name, (target, *self.commands.pretrained(cell, seed).values())):
            return
        data = self.data(cell["dataset"])
        if target in self.trained or finished_scale(target):                  # trained for another table
            self.plan(name, self.commands.evaluate(cell, seed), self.trained.get(target, data),
                      target.parent / cell["table"] / "output.txt", "test", cell, seed)
            return
        if not (self.commands.demo or self.is_dry) and published_start(cell) and (missing := missing_weights(cell)):
            row = cell | {"seed": seed, "scale": self.scale, "s1": self.commands.s1, "status": missing}
            self.blocked[name] = missing
            self.without.append((self.commands.csv(cell), row))
            return
        needs = self.pretrainings(cell, seed) or data
        self.trained[target] = self.plan(name, self.commands.finetune(cell, seed), needs,
                                         target.parent / "output.txt", "fine-tuning", cell, seed)

    def add_probes(self, cells, seeds):
        """What frozen evaluation of the cells' pretrainings takes."""
        for seed in seeds:
            for cell in cells:
                if not self.is_probed(cell, seed):
                    self.add_probe(cell, seed)

    def is_probed(self, cell, seed):
        """Whether the last rows of each choice of modalities are there: of the method's own features, and by hand."""
        model, dataset = cell["model"], cell["dataset"]
        there = {(row["model"], row["features"], row["modality"])
                 for row in read_rows(self.commands.results / "probe.csv", PROBE_KEYS)
                 if (row["dataset"], row["seed"], row["scale"]) == (dataset, seed, self.scale)
                 and (row["pretraining"], row["classifier"], row["label_percent"]) == ("none", "knn", "100")}
        last = (model, "tokens" if model == "omnisat" else "tile"), ("handmade", "handmade")
        return all((*features, modality) in there for features in last for modality in self.commands.probed(cell))

    def add_probe(self, cell, seed):
        whose = "" if cell["model"] == "omnisat" else f"{cell['model']}, {cell['modality']}, on "
        name = f"probe of {whose}{cell['dataset']}, seed {seed}"
        start, = self.commands.pretrained(cell, seed).values()
        if not self.is_blocked(name, [start]):
            data = self.data(cell["dataset"])
            needs = self.pretrainings(cell, seed) or data
            self.plan(name, self.commands.probe(cell, seed), needs, start.parent / "probe.txt", "probe", cell,
                      seed)

    def is_done(self, job):
        """Whether another driver has done a planned job since. Data tells that itself, after a look at them."""
        if job.kind == "pretraining":
            return finished_scale.__wrapped__(job.log.parent / "pretrained.pt") == self.scale
        if job.kind == "probe":
            return self.is_probed(job.cell, job.seed)
        return job.kind in ("fine-tuning", "test") and (
            key_of(job.cell) + (job.seed, self.scale, self.commands.s1) in self.scored([job.cell["table"]]))


def missing_weights(cell):
    """Where the published weights belong that a cell starts from, None if they are there."""
    from utils import weights
    try:
        weights.find(method_of(cell).network.weights)
        return None
    except UserError as error:
        return f"weights-missing: {error}"


@functools.cache
def finished_scale(path):
    """The scale of a training that ran to its end (paper, demo or custom), None if there is none."""
    if not path.exists():
        return None
    from engine.checkpoint import load                                        # torch is only loaded where it is needed
    saved = load(path, path.stem)
    if not saved["finished"]:
        return None
    return saved.get("scale") or ("demo" if saved["is_demo"] else "paper" if saved["is_paper"] else "custom")
