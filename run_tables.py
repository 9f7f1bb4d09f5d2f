"""Produce the cells of the paper's tables, a command a row. Called by run_tables.sh, which looks after the packages.

    bash run_tables.sh demo                          what OmniSat can do, on simulated tiles with a small model: 8 minutes on 2 CPU cores
    bash run_tables.sh table2                        the paper's configuration on the release, in data/ or --data DIR
    bash run_tables.sh table3 --dry-run              only print the commands, each of them can be run alone
    bash run_tables.sh all --demo                    every table on simulated data
    bash run_tables.sh probe                         frozen evaluation of OmniSat's pretrainings, results/probe.csv (also --demo)
    bash run_tables.sh table2 --s1 repaired          the cells that see Sentinel-1 of TreeSatAI-TS, its scrambled files put in order

Rows go to results/TABLE.csv (demo: results/demo/; with --demo: results/demo-all/; repaired: results/repaired/), checkpoints and logs to
runs/. What is there already is not run again, what was stopped goes on. The exit code is 0 if all rows are there, 1 if some failed, 75 if it was stopped by a signal.
"""
import argparse
import functools
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from utils.errors import BUSY, SIGNALS, STOPPED, UserError, run
from utils.files import end_with_parent
from utils.numbers import whole, whole_list
from utils.results import (COLUMNS, KEYS, PROBE_KEYS, SCORED, TABLES, finetuning_folder, folder_of, identity,
                           key_of, pretraining_folder, read_cells, read_rows, write_row)

ROOT = Path(__file__).parent
RETRY = 30    # seconds until a job whose folder is taken is tried again
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


def paper_cells(table):
    """Rows of cells.csv, of a table or of all; fig5: those of table 2 with all labels; demo: OmniSat's of TreeSatAI-TS in table 2;
    probe: of each dataset OmniSat's that begins with the pretraining."""
    rows = [row for row in read_cells() if row["table"] in TABLES]
    if table == "probe":
        wanted = {"model": "omnisat", "pretraining": "self", "ablation": "none", "modality": "all", "label_percent": "100"}
        return list({row["dataset"]: row for row in reversed(rows) if wanted.items() <= row.items()}.values())[::-1]
    if table == "demo":
        return [row for row in rows if (row["table"], row["dataset"], row["model"]) == ("table2", "treesatai-ts", "omnisat")]
    if table == "fig5":
        return [row for row in rows if row["table"] == "table2" and row["label_percent"] == "100"]
    return [row for row in rows if table in ("all", row["table"])]


def method_of(cell):
    """The class of the cell's model."""
    from models import MODELS                                                 # torch is only loaded where it is needed
    return MODELS[cell["model"]]


def published_start(cell):
    """"imagenet" or "external" if a part of the cell's model begins with published weights, else None."""
    return method_of(cell).init if cell["modality"] in method_of(cell).published else None


def pretrained_on(cell):
    """The modalities of the pretrainings that a cell starts from: one for each that it sees, or one of all of them."""
    if cell["pretraining"] != "self":
        return ()
    if cell["model"] == "omnisat":
        return ("all",)
    method = method_of(cell)
    known, seen = method.pretrain_rates.get(cell["dataset"], {}), method.sees.get(cell["modality"], (cell["modality"],))
    return tuple(modality for modality in seen if modality in known) or tuple(known)


def sees_s1(cell):
    """Whether Sentinel-1 of TreeSatAI-TS is among what a cell, or a pretraining that it starts from, sees."""
    if cell["dataset"] != "treesatai-ts":
        return False
    sees = method_of(cell).sees
    return any({"all", "s1"} & {*sees.get(modality, (modality,))} for modality in (cell["modality"], *pretrained_on(cell)))


def key(cell):
    """The cell's key columns as a CSV line, what --only is matched against."""
    return ",".join(key_of(cell))


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


# ---- commands -------------------------------------------------------------------------------------------------------

class Commands:
    """The command lines, at the paper's or the demo's scale, on Sentinel-1 as released or repaired (s1).

    demo: "" at the paper's scale, "demo" for what `demo` shows, "demo-all" for tables with --demo: the name of its folders.
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
        """{modality: checkpoint} that a cell's fine-tuning starts from, none if from scratch; folders are pretrain.py's defaults."""
        return {modality: pretraining_folder(self.runs, cell["dataset"], cell["model"], modality, cell["ablation"], seed) / "pretrained.pt"
                for modality in pretrained_on(cell)}

    def finetuned(self, cell, seed):
        """The checkpoint that a cell is scored with, the same for a cell that two tables print; finetune.py's default."""
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
    """The jobs that are still to do, each after the one it needs; {name: why} of those that cannot be done; and (table, row) of
    those among them that lack published weights. is_dry: plan these too."""
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
    """The jobs of frozen evaluation that are still to do, and what they need; {name: why} of those that cannot be done."""
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
        weights.find(method_of(cell).weights)
        return None
    except UserError as error:
        return f"weights-missing: {error}"


@functools.cache
def finished_scale(path):
    """The scale of a training that ran to its end (paper, demo or custom), None if there is none."""
    if not path.exists():
        return None
    from engine.checkpoint import load                                         # torch is only loaded where it is needed
    saved = load(path, path.stem)
    if not saved["finished"]:
        return None
    return saved.get("scale") or ("demo" if saved["is_demo"] else "paper" if saved["is_paper"] else "custom")


# ---- running --------------------------------------------------------------------------------------------------------

def run_all(planned, at_a_time):
    """Run the jobs, as soon as what they need is done. Returns {name: why} of those that failed.

    Each writes to its own file; one at a time is shown as well, several have one core each. A job whose folder another driver is
    at work in is tried again later. Stopping this process stops what it started, which saves where it is.
    """
    waiting, running, failed, number = list(planned), {}, {}, 0
    names, later = {job.name for job in planned}, {}                          # not done yet; not to be tried before
    before = {sent: signal.signal(sent, lambda *_: sys.exit(STOPPED)) for sent in SIGNALS}
    try:
        while waiting or running:
            for job in list(waiting):
                if lost := [need for need in job.needs if need in failed]:
                    failed[job.name] = f"not run, {lost[0]} failed"
                    names.discard(job.name)
                    waiting.remove(job)
                elif names.isdisjoint(job.needs) and len(running) < at_a_time and time.time() > later.get(job.name, 0):
                    waiting.remove(job)
                    if at_a_time == 1:
                        print(f"\n[{len(planned) - len(waiting)}/{len(planned)}] {job.name}\n{shlex.join(job.command)}", file=sys.stderr)
                    shown = (ROOT / job.log).stat().st_size if (ROOT / job.log).exists() else 0    # of an earlier start
                    running[start(job, at_a_time)] = job, time.time(), shown
            time.sleep(0.05)
            for process, (job, began, shown) in list(running.items()):
                code = process.poll()
                if at_a_time == 1:
                    running[process] = job, began, show(job.log, shown)
                if code is None:
                    continue
                del running[process]
                if code == BUSY:
                    if job.name not in later:
                        print(f"another process is at work on {job.name}: waiting for it", file=sys.stderr, flush=True)
                    later[job.name] = time.time() + RETRY
                    waiting.append(job)
                    continue
                names.discard(job.name)
                number += 1
                if code:
                    failed[job.name] = f"exit code {code}, output in {job.log}: {shlex.join(job.command)}"
                    print(f"FAILED {job.name}: {failed[job.name]}" + (f"\n{tail(job.log)}" if at_a_time > 1 else ""), file=sys.stderr)
                elif at_a_time > 1:
                    print(f"[{number}/{len(planned)}] {time.time() - began:5.0f} s  {job.name}", file=sys.stderr, flush=True)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
        for sent, handler in before.items():
            signal.signal(sent, handler)
    return failed


def start(job, at_a_time):
    """A job's process; its output is added to its file."""
    (ROOT / job.log).parent.mkdir(parents=True, exist_ok=True)
    threads = {"OMP_NUM_THREADS": "1"} if at_a_time > 1 else {}
    with open(ROOT / job.log, "a", encoding="utf-8") as log:
        return subprocess.Popen(job.command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, preexec_fn=end_with_parent if os.name == "posix" else None,
                                env=os.environ | {"TQDM_MININTERVAL": "1"} | threads)


def show(log, start):
    """Print what was added to a file. Returns its size."""
    with open(ROOT / log, "rb") as file:
        file.seek(start)
        added = file.read()
    sys.stderr.write(added.decode(errors="replace"))
    sys.stderr.flush()
    return start + len(added)


def tail(log):
    """The last lines of a job's output."""
    lines = (ROOT / log).read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
    return "\n".join([f"  {log} ends with:", *(f"  {line}" for line in lines)])


def main(argv=None):
    arguments = argparse.ArgumentParser(prog="run_tables.sh", description=__doc__,
                                        formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("table", choices=[*TABLES, "fig5", "all", "demo", "probe"],
                           help="a table; fig5: what figure 5 shows; all; probe: frozen evaluation, not in the paper; or demo: OmniSat's cells of TreeSatAI-TS and "
                                "their probe, on simulated tiles, and what they show: 8 minutes on 2 cores")
    arguments.add_argument("--list", action="store_true", help="print the cells, as CSV, and stop")
    arguments.add_argument("--dry-run", action="store_true", help="print the commands that would run, one a line, and stop")
    arguments.add_argument("--only", metavar="PATTERN", help="only cells whose line of --list matches this regular expression, "
                                                             "e.g. 'treesatai-ts,omnisat,.*,s2,10$'")
    arguments.add_argument("--seeds", type=whole_list(0), default=[0], metavar="LIST", help="comma-separated; each has its own pretraining and label subset (default: 0)")
    arguments.add_argument("--nproc", type=whole(1), default=1, help="processes, one a GPU (default: 1)")
    arguments.add_argument("--jobs", type=whole(1), metavar="N", help="for the demo: commands at a time, each on one core, their output in "
                                                                  "runs/demo (with --demo: runs/demo-all; default: the number of cores, at most 8)")
    arguments.add_argument("--data", metavar="DIR", help="folder of the datasets, see README; relative to the repository (default: data)")
    arguments.add_argument("--demo", action="store_true", help="the table on generated data with small models")
    arguments.add_argument("--s1", choices=("released", "repaired"), default="released",
                           help="repaired: scrambled Sentinel-1 of TreeSatAI-TS put in order (docs/sentinel1-2017.md), a table of its own "
                                "with the cells that see it; the demo then has such files (default: released)")
    arguments.add_argument("--python", default=sys.executable, help=argparse.SUPPRESS)    # as run_tables.sh found it
    args = arguments.parse_args(argv)
    demo = "demo" if args.table == "demo" else "demo-all" if args.demo else ""    # the name of its folders
    try:
        cells = [cell for cell in paper_cells(args.table) if re.search(args.only or "", key(cell))]
    except re.error as error:
        arguments.error(f"--only: {args.only!r} is no regular expression: {error}")
    if not cells:
        arguments.error(f"--only: no cell matches {args.only!r}; see --list")
    if args.s1 == "repaired":
        every, cells = len(cells), [cell for cell in cells if sees_s1(cell)]
        if not cells:
            arguments.error(f"--s1 repaired: none of these {every} cells sees Sentinel-1 of treesatai-ts; leave it out")
        print(f"{len(cells)} of {every} cells see Sentinel-1 of treesatai-ts; the others would be what they are", file=sys.stderr)
    seeds = list(dict.fromkeys(map(str, args.seeds)))
    at_a_time = args.jobs if args.jobs is not None else min(8, os.cpu_count() or 1) if demo and args.nproc == 1 else 1
    if at_a_time > 1 and not demo:
        arguments.error("--jobs: several commands at a time would share one GPU; it is for the demo")

    if (args.list or args.dry_run) and hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)                         # `| head` is no error
    if args.list:
        print(",".join(KEYS), *map(key, cells), sep="\n")
        return 0
    if demo and args.data:
        arguments.error(f"--data: the demo makes its own data in {demo}/; leave the option out")
    if demo == "demo" and args.s1 == "repaired":
        arguments.error("--s1 repaired: the demo's Sentinel-1 is in order; table2 --demo has scrambled files")
    data = str(folder_of(demo, args.s1)) if demo else args.data or "data"
    if not demo and not args.dry_run and not Path(data).is_dir():
        arguments.error(f"{data}: no such folder; put or link the datasets there, or name their folder with --data (see README)")
    commands = Commands(args.python, data, demo, args.nproc, args.s1)
    planned, failed, *without = (probe_jobs(cells, seeds, commands) if args.table == "probe" else
                                 jobs(cells, seeds, commands, args.dry_run))
    is_shown = demo == "demo" and not args.only                               # all that the claims are about
    if is_shown:
        probed = [cell for cell in cells if cell["pretraining"] == "self"][:1]
        more, lost = probe_jobs(probed, seeds, commands)
        planned = list({job.name: job for job in (*more, *planned)}.values())
        failed |= lost
    planned = needed_first(planned)
    for name, why in failed.items():
        print(f"FAILED {name}: {why}", file=sys.stderr)
    if args.dry_run:
        print(*(shlex.join(job.command) for job in planned), sep="\n")
        return 0

    for path, row in sum(without, []):
        write_row(path, {name: row.get(name, "") for name in COLUMNS})
    total = len(planned) + len(failed)
    if at_a_time > 1:
        print(f"{len(planned)} jobs, {at_a_time} at a time; what each prints is in {commands.runs}/", file=sys.stderr, flush=True)
    failed |= run_all(planned, at_a_time)
    results = commands.results.parent if args.s1 == "repaired" else commands.results
    shown = ["table2", "probe", "claims"] if is_shown else []
    compare = [args.python, "compare.py", *shown, "--results", str(results), *(["--demo"] if demo else [])]
    compared = subprocess.run(compare, cwd=ROOT).returncode
    if failed:
        print(f"\n{len(failed)} of {total} jobs failed; the same command runs them again:", file=sys.stderr)
        print(*(f"  {name}: {why}" for name, why in failed.items()), sep="\n", file=sys.stderr)
    return 1 if failed or compared else 0


if __name__ == "__main__":
    sys.exit(run(main))
