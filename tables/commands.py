"""The command of each cell, at the paper's scale or the demo's, and the jobs that are still to do."""
import functools
from pathlib import Path
from typing import NamedTuple

from tables.cells import key, method_of, pretrained_on, published_start
from utils.errors import UserError
from utils.results import (PROBE_KEYS, SCORED, TABLES, finetuning_folder, folder_of, identity, key_of,
                           pretraining_folder, read_rows)

FOLDERS = {"treesatai-ts": "treesatai", "treesatai": "treesatai", "pastis-hd": "pastis-hd", "flair": "flair"}
# What `demo` shows, chosen on validation tiles of other seeds of the forest (DEMO.md): tiles of 3 x 3 patches in place of 6 x 6, so that
# there can be more of them and more steps
SHOWN_DATA = ["--train", "800", "--test", "400", "--side", "3"]
SHOWN_PRETRAIN = ["--batch-size", "16", "--epoch-steps", "120", "--epochs", "7", "--lr", "1e-3", "--no-compile"]
SHOWN_FINETUNE = ["--batch-size", "16", "--epoch-steps", "40", "--epochs", "5", "--lr", "1e-3"]
SHOWN_PROBE = ("all", "s2")
# The choices of the tables with --demo: few tiles, a small model, minutes of training. The paper's are the scripts' defaults.
DEMO_DATA = {"treesatai": ["--train", "160", "--test", "100"], "pastis-hd": ["--train", "120", "--test", "80"],
             "flair": ["--train", "160", "--test", "100"]}
DEMO_MODEL = ["--embed-dim", "32", "--depth", "1"]
DEMO_WIDTH = ["--width", "0.25"]    # of the compared methods
DEMO_COMMON = ["--workers", "0"]
DEMO_PRETRAIN = ["--batch-size", "8", "--epochs", "15", "--lr", "1e-3", "--no-compile"]
# OmniSat's, 90 to 100 steps: the batch norm before its head needs more than a few tiles a step
DEMO_FINETUNE = ["--batch-size", "16", "--epoch-steps", "9", "--epochs", "10", "--min-epochs", "10", "--lr", "3e-3"]
# of the compared methods: on images, which DOFA makes of everything, and on PASTIS-HD's large series; and on others, which take
# milliseconds a step
DEMO_LARGE, DEMO_SMALL = ({percent: ["--batch-size", "4", "--epoch-steps", "1", "--epochs", epochs, "--min-epochs",
                                     epochs, "--lr", "1e-3"]
                           for percent, epochs in numbers.items()}
                          for numbers in ({"10": "15", "20": "10", "100": "6"}, {"10": "60", "100": "30"}))


def demo_options(cell, start, demo):
    """Sizes and lengths of a cell's training. start: its --init, a list; demo: as in Commands."""
    percent = cell["label_percent"]
    is_large = cell["modality"] in ("vhr", "all") or cell["dataset"] == "pastis-hd" or cell["model"] == "dofa"
    is_new = not start[0].endswith(".pt")                                     # a checkpoint knows its sizes
    if cell["model"] == "omnisat":
        return (DEMO_MODEL if is_new else []) + DEMO_COMMON + (SHOWN_FINETUNE if demo == "demo" else DEMO_FINETUNE)
    width = DEMO_WIDTH if is_new and method_of(cell).has_width(cell["modality"]) else []
    if method_of(cell).is_fitted:
        return width + DEMO_COMMON
    return width + DEMO_COMMON + (DEMO_LARGE if is_large else DEMO_SMALL)[percent]


class Commands:
    """The command lines, at the paper's or the demo's scale, on Sentinel-1 as released or repaired (s1).

    demo: "" at the paper's scale, "demo" for what `demo` shows, "demo-all" for tables with --demo: the name of its
    folders.
    """

    def __init__(self, python, data, demo, nproc, s1="released"):
        self.demo, self.data, self.s1 = demo, data, s1
        self.results, self.runs = folder_of(Path("results", demo), s1), folder_of(Path("runs", demo), s1)
        self.python = [python]
        self.start = self.python + (["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={nproc}"]
                                    if nproc > 1 else [])

    def root(self, dataset):
        """The dataset's folder, DIR/treesatai, DIR/pastis-hd or DIR/flair."""
        return str(Path(self.data) / FOLDERS[dataset])

    def generate(self, dataset):
        return self.python + ["-m", "datasets.simulated.demo", "--dataset", FOLDERS[dataset], "--root", self.root(dataset),
                              *(SHOWN_DATA if self.demo == "demo" else DEMO_DATA[FOLDERS[dataset]]),
                              *(["--as-2017"] if self.s1 == "repaired" else [])]

    def pretrained(self, cell, seed):
        """{modality: checkpoint} that a cell's fine-tuning starts from, none if from scratch; folders are
        pretrain.py's defaults.
        """
        return {modality: pretraining_folder(self.runs, cell["dataset"], cell["model"], modality, cell["ablation"], seed) / "pretrained.pt"
                for modality in pretrained_on(cell)}

    def finetuned(self, cell, seed):
        """The checkpoint that a cell is scored with, the same for a cell that two tables print; finetune.py's default.
        """
        return finetuning_folder(self.runs, *(cell[name] for name in (
            "dataset", "model", "pretraining", "ablation", "modality", "label_percent")), seed) / "finetuned.pt"

    def csv(self, cell):
        return str(self.results / f"{cell['table']}.csv")

    def _common(self, cell, seed):
        return ["--dataset", cell["dataset"], "--data-root", self.root(cell["dataset"]), "--seed", str(seed),
                *([] if self.s1 == "released" else ["--s1", self.s1])]

    def pretrain(self, cell, modality, seed):
        what = (["--ablation", cell["ablation"]] if cell["ablation"] != "none" else
                ["--model", cell["model"], "--modalities", modality] if cell["model"] != "omnisat" else [])
        size = DEMO_MODEL if cell["model"] == "omnisat" else DEMO_WIDTH
        extra = ["--output", str(self.pretrained(cell, seed)[modality].parent), *size, *DEMO_COMMON,
                 *(SHOWN_PRETRAIN if self.demo == "demo" else DEMO_PRETRAIN)]
        return self.start + ["pretrain.py", *self._common(cell, seed), *what, *(extra if self.demo else [])]

    def finetune(self, cell, seed):
        is_omnisat, percent = cell["model"] == "omnisat", cell["label_percent"]
        start = [str(path) for path in self.pretrained(cell, seed).values()] or [published_start(cell) or "none"]
        command = self.start + ["finetune.py", *self._common(cell, seed), *([] if is_omnisat else ["--model", cell["model"]]),
                                "--init", *start, "--modalities", cell["modality"], "--label-percent", percent,
                                "--csv", self.csv(cell)]
        if self.demo:
            command += ["--output", str(self.finetuned(cell, seed).parent), *demo_options(cell, start, self.demo)]
        return command

    def evaluate(self, cell, seed):
        return self.start + ["evaluate.py", "--checkpoint", str(self.finetuned(cell, seed)), "--data-root",
                             self.root(cell["dataset"]), "--csv", self.csv(cell), *(DEMO_COMMON if self.demo else [])]

    def probed(self, dataset):
        """The choices of modalities that frozen evaluation is done for."""
        from datasets import default_modalities                               # torch is only loaded where it is needed
        return SHOWN_PROBE if self.demo == "demo" else ("all", *default_modalities(dataset))

    def probe(self, cell, seed):
        (start,) = self.pretrained(cell, seed).values()
        return self.start + ["probe.py", "--checkpoint", str(start), "--data-root", self.root(cell["dataset"]),
                             "--csv", str(self.results / "probe.csv"), *(DEMO_COMMON if self.demo else []),
                             *(["--modalities", *SHOWN_PROBE] if self.demo == "demo" else [])]


class Job(NamedTuple):
    """A command, the names of the jobs it needs, and where its output goes if several run at a time."""
    name: str
    command: list
    needs: tuple
    log: Path


def jobs(cells, seeds, commands, is_dry=False):
    """The jobs that are still to do, each after the one it needs; {name: why} of those that cannot be done; and
    (table, row) of those among them that lack published weights. is_dry: plan these too.
    """
    scale = "demo" if commands.demo else "paper"
    done = {identity(row) for table in TABLES for row in read_rows(commands.results / f"{table}.csv") if row["status"] in SCORED}
    planned, trained, blocked, without = {}, {}, {}, []

    def plan(name, command, needs, folder):
        if name not in planned:
            planned[name] = Job(name, command, needs, folder / "output.txt")
        return name
    for seed in seeds:
        for cell in cells:
            if key_of(cell) + (seed, scale, commands.s1) in done:
                continue
            dataset, name, target, needs = cell["dataset"], f"{key(cell)}, seed {seed}", commands.finetuned(cell, seed), ()
            if commands.demo:
                folder = FOLDERS[dataset]
                needs = plan(f"data of {folder}", commands.generate(dataset), (), commands.runs / folder),
            starts = commands.pretrained(cell, seed)
            try:
                foreign = [path for path in (target, *starts.values()) if finished_scale(path) not in (None, scale)]
            except UserError as error:                                            # a damaged checkpoint
                blocked[name] = str(error)
                continue
            if foreign:
                blocked[name] = f"{foreign[0].parent} holds a run that is not of scale {scale}: move it away"
                continue
            if target in trained or finished_scale(target):                       # trained for another table
                plan(name, commands.evaluate(cell, seed), (trained[target],) if target in trained else needs, target.parent / cell["table"])
                continue
            if not (commands.demo or is_dry) and published_start(cell) and (missing := missing_weights(cell)):
                blocked[name] = missing
                without.append((commands.csv(cell), cell | {"seed": seed, "scale": scale, "s1": commands.s1, "status": missing}))
                continue
            before, needs = needs, ()
            for modality, start in starts.items():
                if not finished_scale(start):
                    title = (f"pretraining {cell['model']}, {modality}," if cell["model"] != "omnisat" else
                             "pretraining" if cell["ablation"] == "none" else f"pretraining, {cell['ablation']},")
                    needs += plan(f"{title} on {dataset}, seed {seed}", commands.pretrain(cell, modality, seed), before, start.parent),
            needs = needs or before
            trained[target] = plan(name, commands.finetune(cell, seed), needs, target.parent)
    return list(planned.values()), blocked, without


def probe_jobs(cells, seeds, commands):
    """The jobs of frozen evaluation that are still to do, and what they need; {name: why} of those that cannot be done.
    """
    scale, planned, blocked = "demo" if commands.demo else "paper", {}, {}
    there = {tuple(row[name] for name in ("dataset", "seed", "modality")) for row in read_rows(
        commands.results / "probe.csv", PROBE_KEYS) if row["scale"] == scale
        and (row["features"], row["classifier"], row["label_percent"]) == ("handmade", "knn", "100")}    # a modality's last row
    for seed in seeds:
        for cell in cells:
            dataset, needs = cell["dataset"], ()
            (start,) = commands.pretrained(cell, seed).values()
            if all((dataset, seed, modality) in there for modality in commands.probed(dataset)):
                continue
            try:
                found = finished_scale(start)
            except UserError as error:                                        # a damaged checkpoint
                blocked[f"probe of {dataset}, seed {seed}"] = str(error)
                continue
            if commands.demo:
                name, folder = f"data of {FOLDERS[dataset]}", commands.runs / FOLDERS[dataset]
                planned[name], needs = Job(name, commands.generate(dataset), (), folder / "output.txt"), (name,)
            if found is None:
                name = f"pretraining on {dataset}, seed {seed}"
                planned[name] = Job(name, commands.pretrain(cell, "all", seed), needs, start.parent / "output.txt")
                needs = (name,)
            name = f"probe of {dataset}, seed {seed}"
            if found not in (None, scale):
                blocked[name] = f"{start.parent} holds a run that is not of scale {scale}: move it away"
                continue
            planned[name] = Job(name, commands.probe(cell, seed), needs, start.parent / "probe.txt")
    return list(planned.values()), blocked


def needed_first(planned):
    """The jobs in the same order, but those before the others that others wait for."""
    needed = {name for job in planned for name in job.needs}
    return sorted(planned, key=lambda job: job.name not in needed)


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
