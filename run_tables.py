"""Produce the cells of the paper's tables, a command a row. Called by run_tables.sh, which looks after the packages.

    bash run_tables.sh demo                          the whole path on simulated data, small models, two CPU cores
    bash run_tables.sh table2                        the paper's configuration on the release, in data/ or --data DIR
    bash run_tables.sh table2 --dry-run              only print the commands, each of them can be run alone

Rows go to results/TABLE.csv (demo: results/demo/), checkpoints and logs to runs/. What is there already is not run again.
"""
import argparse
import csv
import functools
import re
import shlex
import subprocess
import signal
import sys
from pathlib import Path

from utils.errors import run
from utils.results import KEYS, identity, read_rows

ROOT = Path(__file__).parent
CELLS = ROOT / "results" / "paper" / "cells.csv"
TABLES = ("table2",)
# The demo's choices: few tiles, a small model, minutes of training. The paper's are the scripts' defaults.
DEMO_DATA = ["--train", "160", "--test", "100"]
DEMO_MODEL = ["--embed-dim", "32", "--depth", "1"]
DEMO_COMMON = ["--workers", "0", "--lr", "1e-3"]
DEMO_PRETRAIN = ["--batch-size", "8", "--epochs", "15"]
DEMO_FINETUNE = {"10": ["--batch-size", "4", "--epochs", "30", "--min-epochs", "30"],
                 "100": ["--batch-size", "4", "--epochs", "10", "--min-epochs", "10"]}


def paper_cells(table):
    """Rows of cells.csv that can be produced: OmniSat's of the table, or of all tables."""
    with open(CELLS, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["table"] in TABLES and row["model"] == "omnisat"]
    return [row for row in rows if table in ("all", "demo", row["table"])]


def key(cell):
    """The cell's key columns as a CSV line, what --only is matched against."""
    return ",".join(cell[name] for name in KEYS)


class Commands:
    """The command lines, at the paper's or the demo's scale."""

    def __init__(self, python, data, demo, nproc):
        self.demo, self.data = demo, data
        self.results, self.runs = Path("results/demo" if demo else "results"), Path("runs/demo" if demo else "runs")
        self.python = [python]
        self.start = self.python + (["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={nproc}"]
                                    if nproc > 1 else [])

    def root(self, dataset):
        """The dataset's folder: DIR/treesatai, or DIR itself if it has no such folder but files of TreeSatAI."""
        below = Path(self.data) / "treesatai"
        is_itself = not below.is_dir() and any((Path(self.data) / name).is_dir() for name in ("aerial", "sentinel-ts", "split"))
        return str(self.data if is_itself else below)

    def generate(self):
        return self.python + ["-m", "datasets.demo", "--root", self.root("treesatai"), *DEMO_DATA]

    def pretrained(self, dataset, seed):
        return self.runs / dataset / f"pretrain-seed{seed}" / "pretrained.pt"

    def _common(self, dataset, seed):
        return ["--dataset", dataset, "--data-root", self.root(dataset), "--seed", str(seed)]

    def pretrain(self, dataset, seed):
        extra = ["--output", str(self.pretrained(dataset, seed).parent), *DEMO_MODEL, *DEMO_COMMON, *DEMO_PRETRAIN]
        return self.start + ["pretrain.py", *self._common(dataset, seed), *(extra if self.demo else [])]

    def finetune(self, cell, seed):
        dataset, init, modality, percent = (cell[n] for n in ("dataset", "pretraining", "modality", "label_percent"))
        command = self.start + ["finetune.py", *self._common(dataset, seed), "--init",
                                "none" if init == "none" else str(self.pretrained(dataset, seed)), "--modalities", modality,
                                "--label-percent", percent, "--csv", str(self.results / f"{cell['table']}.csv")]
        if self.demo:
            command += ["--output", str(self.runs / dataset / f"omnisat-{init}-{modality}-{percent}percent-seed{seed}"),
                        *(DEMO_MODEL if init == "none" else []), *DEMO_COMMON, *DEMO_FINETUNE[percent]]
        return command


def jobs(cells, seeds, commands):
    """Yields (name, command, needs): the name of the job, its command, the name of the job it needs or None."""
    scale = "demo" if commands.demo else "paper"
    done = {identity(row) for table in TABLES for row in read_rows(commands.results / f"{table}.csv") if row["status"] == "ok"}
    if commands.demo:
        yield "data", commands.generate(), None
    planned = set()
    for seed in seeds:
        for cell in cells:
            if tuple(cell[name] for name in KEYS) + (seed, scale) in done:
                continue
            needs = "data" if commands.demo else None
            if cell["pretraining"] == "self":
                name = f"pretraining on {cell['dataset']}, seed {seed}"
                if name not in planned and not is_finished(commands.pretrained(cell["dataset"], seed)):
                    planned.add(name)
                    yield name, commands.pretrain(cell["dataset"], seed), needs
                needs = name if name in planned else needs
            yield f"{key(cell)}, seed {seed}", commands.finetune(cell, seed), needs


@functools.cache
def is_finished(path):
    """Whether a pretraining ran to its end."""
    if not path.exists():
        return False
    from utils.checkpoint import load                                         # torch is only loaded where it is needed
    return load(path, "pretrained")["finished"]


def main(argv=None):
    arguments = argparse.ArgumentParser(prog="run_tables.sh", description=__doc__,
                                        formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("table", choices=[*TABLES, "all", "demo"], help="a table, all of them, or demo: all on the demo data")
    arguments.add_argument("--list", action="store_true", help="print the cells that can be produced, as CSV, and stop")
    arguments.add_argument("--dry-run", action="store_true", help="print the commands that would run, one a line, and stop")
    arguments.add_argument("--only", metavar="PATTERN", help="only cells whose line of --list matches this regular expression, "
                                                             "e.g. 'treesatai-ts,omnisat,.*,s2,10$'")
    arguments.add_argument("--seeds", default="0", help="comma-separated; each has its own pretraining and label subset (default: 0)")
    arguments.add_argument("--nproc", type=int, default=1, help="processes, one a GPU (default: 1)")
    arguments.add_argument("--data", metavar="DIR", help="folder of the datasets, see README; relative to the repository (default: data)")
    arguments.add_argument("--demo", action="store_true", help="the table on generated data with small models")
    arguments.add_argument("--python", default=sys.executable, help=argparse.SUPPRESS)    # as run_tables.sh found it
    args = arguments.parse_args(argv)
    demo = args.demo or args.table == "demo"
    try:
        cells = [cell for cell in paper_cells(args.table) if re.search(args.only or "", key(cell))]
    except re.error as error:
        arguments.error(f"--only: {args.only!r} is no regular expression: {error}")
    if not cells:
        arguments.error(f"--only: no cell matches {args.only!r}; see --list")
    seeds = args.seeds.split(",")
    if not all(seed.isdigit() for seed in seeds):
        arguments.error(f"--seeds: {args.seeds!r} is not a list like 0,1,2")
    if args.nproc < 1:
        arguments.error("--nproc must be at least 1")

    if args.list or args.dry_run:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)                         # `| head` is no error
    if args.list:
        print(",".join(KEYS), *map(key, cells), sep="\n")
        return 0
    if demo and args.data:
        arguments.error("--data: the demo makes its own data in demo/; leave the option out")
    data = "demo" if demo else args.data or "data"
    if not demo and not args.dry_run and not Path(data).is_dir():
        arguments.error(f"{data}: no such folder; put or link the datasets there, or name their folder with --data (see README)")
    commands = Commands(args.python, data, demo, args.nproc)
    planned = list(jobs(cells, seeds, commands))
    if args.dry_run:
        print(*(shlex.join(command) for _, command, _ in planned), sep="\n")
        return 0

    failed = {}
    for number, (name, command, needs) in enumerate(planned, 1):
        print(f"\n[{number}/{len(planned)}] {name}\n{shlex.join(command)}", file=sys.stderr, flush=True)
        if needs in failed:
            failed[name] = f"not run, {needs} failed"
        else:
            code = subprocess.run(command, cwd=ROOT).returncode
            if code:
                failed[name] = f"exit code {code}: {shlex.join(command)}"
        if name in failed:
            print(f"FAILED {name}: {failed[name]}", file=sys.stderr)
    compared = subprocess.run([args.python, "compare.py", "--results", str(commands.results), *(["--demo"] if demo else [])], cwd=ROOT).returncode
    if failed:
        print(f"\n{len(failed)} of {len(planned)} jobs failed; the same command runs them again:", file=sys.stderr)
        print(*(f"  {name}: {why}" for name, why in failed.items()), sep="\n", file=sys.stderr)
    return 1 if failed or compared else 0


if __name__ == "__main__":
    sys.exit(run(main))
