"""The command of each cell, at the paper's scale or the demo's."""
from pathlib import Path
from typing import NamedTuple

from tables.cells import method_of, pretrained_on, published_start
from utils.results import finetuning_folder, folder_of, pretraining_folder

FOLDERS = {"treesatai-ts": "treesatai", "treesatai": "treesatai", "pastis-hd": "pastis-hd", "flair": "flair"}


class Demo(NamedTuple):
    """Options in place of the paper's, which are the scripts' defaults: few tiles, a small model, minutes of training.

    data: of each folder's tiles; pretrain: of all methods; finetune: of OmniSat; probed: the choices of modalities for
    frozen evaluation, () for all and each alone.
    """
    data: dict
    pretrain: list
    finetune: list
    probed: tuple = ()


DEMOS = {
    # what `demo` shows, chosen on validation tiles of other seeds of the forest (DEMO.md): tiles of 3 x 3 patches in
    # place of 6 x 6, so that there can be more of them and more steps
    "demo": Demo({"treesatai": ["--train", "800", "--test", "400", "--side", "3"]},
                 ["--batch-size", "16", "--epoch-steps", "120", "--epochs", "7", "--lr", "1e-3", "--no-compile"],
                 ["--batch-size", "16", "--epoch-steps", "40", "--epochs", "5", "--lr", "1e-3"], ("all", "s2")),
    # tables with --demo. Fine-tuning of 90 to 100 steps: the batch norm before OmniSat's head needs more than a few
    # tiles a step
    "demo-all": Demo({"treesatai": ["--train", "160", "--test", "100"], "pastis-hd": ["--train", "120", "--test", "80"],
                      "flair": ["--train", "160", "--test", "100"]},
                     ["--batch-size", "8", "--epochs", "15", "--lr", "1e-3", "--no-compile"],
                     ["--batch-size", "16", "--epoch-steps", "9", "--epochs", "10", "--min-epochs", "10", "--lr",
                      "3e-3"])}
DEMO_MODEL = ["--embed-dim", "32", "--depth", "1"]
DEMO_WIDTH = ["--width", "0.25"]    # of the compared methods
DEMO_WORKERS = 0
# epochs of the compared methods by percent of the labels: on images, which DOFA makes of everything, and on PASTIS-HD's
# large series; and on others, which take milliseconds a step
DEMO_LARGE, DEMO_SMALL = {"10": "15", "20": "10", "100": "6"}, {"10": "60", "100": "30"}


class Commands:
    """The command lines, at the paper's or the demo's scale, on Sentinel-1 as released or repaired (s1).

    demo: "" at the paper's scale, "demo" for what `demo` shows, "demo-all" for tables with --demo: the name of its
    folders. nproc: processes of a pretraining; all else has one. workers: reading processes of each, None as many as by
    default.
    """

    def __init__(self, python, data, demo, nproc, s1="released", workers=None):
        self.demo, self.data, self.s1, self.nproc = DEMOS.get(demo), data, s1, nproc
        self.results, self.runs = folder_of(Path("results", demo), s1), folder_of(Path("runs", demo), s1)
        self.python = [python]
        self.torchrun = self.python + (["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={nproc}"]
                                       if nproc > 1 else [])
        workers = DEMO_WORKERS if self.demo else workers
        self.reading = [] if workers is None else ["--workers", str(workers)]

    def root(self, dataset):
        """The dataset's folder, DIR/treesatai, DIR/pastis-hd or DIR/flair."""
        return str(Path(self.data) / FOLDERS[dataset])

    def generate(self, dataset):
        folder, scrambled = FOLDERS[dataset], ["--as-2017"] if self.s1 == "repaired" else []
        return self.python + ["-m", "datasets.simulated.demo", "--dataset", folder, "--root", self.root(dataset),
                              *self.demo.data[folder], *scrambled]

    def pretrained(self, cell, seed):
        """{modality: checkpoint} that a cell's fine-tuning starts from, none if from scratch; folders are
        pretrain.py's defaults.
        """
        return {modality: pretraining_folder(self.runs, cell["dataset"], cell["model"], modality, cell["ablation"],
                                             seed) / "pretrained.pt" for modality in pretrained_on(cell)}

    def finetuned(self, cell, seed):
        """The checkpoint that a cell is scored with, the same for a cell that two tables print; finetune.py's default.
        """
        return finetuning_folder(self.runs, *(cell[name] for name in (
            "dataset", "model", "pretraining", "ablation", "modality", "label_percent")), seed) / "finetuned.pt"

    def csv(self, cell):
        return str(self.results / f"{cell['table']}.csv")

    def _common(self, cell, seed):
        return ["--dataset", cell["dataset"], "--data-root", self.root(cell["dataset"]), "--seed", str(seed),
                *([] if self.s1 == "released" else ["--s1", self.s1]), *self.reading]

    def pretrain(self, cell, modality, seed):
        what = (["--ablation", cell["ablation"]] if cell["ablation"] != "none" else
                ["--model", cell["model"], "--modalities", modality] if cell["model"] != "omnisat" else [])
        command = [*self.torchrun, "pretrain.py", *self._common(cell, seed), *what]
        if self.demo:
            command += ["--output", str(self.pretrained(cell, seed)[modality].parent),
                        *(DEMO_MODEL if cell["model"] == "omnisat" else DEMO_WIDTH), *self.demo.pretrain]
        return command

    def finetune(self, cell, seed):
        model = [] if cell["model"] == "omnisat" else ["--model", cell["model"]]
        start = [str(path) for path in self.pretrained(cell, seed).values()] or [published_start(cell) or "none"]
        command = self.python + ["finetune.py", *self._common(cell, seed), *model, "--init", *start, "--modalities",
                                cell["modality"], "--label-percent", cell["label_percent"], "--csv", self.csv(cell)]
        if self.demo:
            is_new = not start[0].endswith(".pt")                             # a checkpoint knows its sizes
            command += ["--output", str(self.finetuned(cell, seed).parent), *self._demo_options(cell, is_new)]
        return command

    def _demo_options(self, cell, is_new):
        """Sizes and lengths of a cell's fine-tuning. is_new: whether it has no checkpoint to start from."""
        if cell["model"] == "omnisat":
            return (DEMO_MODEL if is_new else []) + self.demo.finetune
        width = DEMO_WIDTH if is_new and method_of(cell).has_width(cell["modality"]) else []
        if method_of(cell).is_fitted:
            return width
        is_large = cell["modality"] in ("vhr", "all") or cell["dataset"] == "pastis-hd" or cell["model"] == "dofa"
        epochs = (DEMO_LARGE if is_large else DEMO_SMALL)[cell["label_percent"]]
        return width + ["--batch-size", "4", "--epoch-steps", "1", "--epochs", epochs, "--min-epochs", epochs,
                        "--lr", "1e-3"]

    def evaluate(self, cell, seed):
        return self.python + ["evaluate.py", "--checkpoint", str(self.finetuned(cell, seed)), "--data-root",
                              self.root(cell["dataset"]), "--csv", self.csv(cell), *self.reading]

    def probed(self, cell):
        """The choices of modalities that frozen evaluation is done for: probe.py's, but where the demo has fewer."""
        from datasets import default_modalities                               # torch is only loaded where it is needed
        from engine.options import modality_name
        method = method_of(cell)
        if method.pretrain_rate is None:
            seen = method.sees.get(cell["modality"], (cell["modality"],))
            return modality_name(seen, cell["dataset"]),
        return self.demo and self.demo.probed or ("all", *default_modalities(cell["dataset"]))

    def probe(self, cell, seed):
        (start,) = self.pretrained(cell, seed).values()
        command = self.python + ["probe.py", "--checkpoint", str(start), "--data-root", self.root(cell["dataset"]),
                                 "--csv", str(self.results / "probe.csv"), *self.reading]
        return command + (["--modalities", *self.demo.probed] if self.demo and self.demo.probed else [])
