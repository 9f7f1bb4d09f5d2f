"""run_tables.sh --plan: what a table costs on this machine, before the first epoch."""
import collections
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

from datasets.simulated.demo import write_flair, write_pastis, write_treesatai
from tables.calibrate import SECONDS
from tables.commands import FOLDERS
from tables.cost import Costs, in_order, makespan
from tables.schedule import ROOT
from tables.text import as_text
from utils.errors import UserError
from utils.files import walk, written_whole

TILES, LARGE = {"train": 10, "test": 4}, {"train": 2, "test": 1}    # simulated for the calibration; of large ones
WRITERS = {"treesatai": write_treesatai, "pastis-hd": write_pastis, "flair": write_flair}
REAL_SIDE = {"pastis-hd": 128}      # pixels, where simulated tiles are smaller than the release's


# ---- calibration ----------------------------------------------------------------------------------------------------

def calibration_of(commands, machine, jobs):
    """The calibration for some jobs, kept beside the results; measured where it lacks some, or is of another machine.

    Errors: UserError if it fails.
    """
    known, costs, path = kept_calibration(commands) or {}, Costs(commands), commands.results / "calibration.json"
    here = {"places": machine.places, "gpus": len(machine.gpus), "cores": machine.cores, "host": platform.node()}
    if known.get("machine") != here:
        known = {"works": {}, "generate": {}, "disk": {}, "read": {}, "classify": 0.0, "machine": here,
                 "date": datetime.now().isoformat(timespec="seconds")}
    works = {load.work for job in jobs if (load := costs.load(job)) and load.work.name() not in known["works"]}
    classifies = any(job.kind == "probe" for job in jobs) and not known["classify"]
    if not works and not classifies:
        return known
    print(f"calibration: {len(works)} kinds of steps on a few tiles, about {SECONDS // 60} minutes, more where a step "
          f"takes seconds; kept in {path}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        roots, found = tiles_for(costs, {work.dataset for work in works}, folder)
        found |= measure(works, roots, machine, classifies)
        known = {name: value | found[name] if isinstance(value, dict) and name in found else found.get(name) or value
                 for name, value in known.items()} | {"startup": startup(folder, machine), "device": found["device"]}
    with written_whole(path) as file:
        json.dump(known, file, indent=1)
    return known


def kept_calibration(commands):
    """The calibration beside the results, None if there is none."""
    path = commands.results / "calibration.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def tiles_for(costs, datasets, folder):
    """{dataset: folder of its tiles}, simulated where there is no download; and {"generate": seconds to simulate a
    tile, "disk": bytes of all}, each by folder.
    """
    commands, roots, found = costs.commands, {}, {"generate": {}, "disk": {}}
    for dataset in sorted(datasets):
        name, root, real = FOLDERS[dataset], Path(folder, FOLDERS[dataset]), Path(commands.root(dataset))
        if not commands.demo and real.is_dir():
            roots[dataset], found["disk"][name] = str(real), size_of(real)
            continue
        if name not in found["generate"]:
            words, side, tiles = commands.demo.data[name] if commands.demo else [], {}, TILES
            if "--side" in words:
                side["side"] = int(words[words.index("--side") + 1])
            elif not commands.demo and name in REAL_SIDE:
                side["side"], tiles = REAL_SIDE[name], LARGE
            start = time.perf_counter()
            quietly(WRITERS[name], root, **tiles, **side)
            found["generate"][name] = (time.perf_counter() - start) / sum(tiles.values())
            found["disk"][name] = size_of(root) / sum(tiles.values()) * sum(costs.tiles(dataset).values())
        roots[dataset] = str(root)
    return roots, found


def size_of(folder):
    """Bytes of its files."""
    return sum(os.path.getsize(os.path.join(path, name)) for path, _, names in walk(folder) for name in names)


def measure(works, roots, machine, classifies):
    """Measure some works, as many at a time as jobs will run: {"works", "read", "classify", "device"}."""
    asked, processes = sorted(works, key=lambda work: (work.tiles, work.name())), []
    for place in range(machine.places):
        mine = [[list(work), roots[work.dataset]] for work in asked[place::machine.places]]
        process = subprocess.Popen([sys.executable, "-m", "tables.calibrate"], cwd=ROOT, stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, text=True, env=os.environ | machine.variables([place]))
        process.stdin.write(json.dumps({"works": mine, "seconds": SECONDS, "classifies": classifies and place == 0}))
        process.stdin.close()
        processes.append(process)
    found = {"works": {}, "read": {}, "classify": 0.0, "device": ""}
    try:
        for process in processes:
            for told in map(json.loads, process.stdout):
                if "failed" in told:
                    raise UserError(f"calibration of {told['name']}: {told['failed']}")
                if "read" in told:
                    found |= {"read": found["read"] | told["read"], "classify": found["classify"] + told["classify"],
                              "device": told["device"]}
                else:
                    found["works"][told.pop("name")] = told
            if process.wait():
                raise UserError(f"calibration: a process ended with exit code {process.returncode}")
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return found


def startup(folder, machine):
    """Seconds of a job besides its tiles: of a fine-tuning that has next to none, as many at a time as will run."""
    root, processes = Path(folder, "startup"), []
    quietly(write_treesatai, root, train=30, test=4, side=2)
    start = time.perf_counter()
    for place in range(machine.places):
        out = Path(folder, f"startup{place}")
        command = [sys.executable, "finetune.py", "--dataset", "treesatai-ts", "--data-root", str(root), "--init",
                   "none", "--modalities", "s2", "--embed-dim", "32", "--depth", "1", "--epochs", "1", "--epoch-steps",
                   "1", "--batch-size", "4", "--workers", "0", "--output", str(out), "--csv", str(out / "row.csv")]
        processes.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                          text=True, env=os.environ | machine.variables([place])))
    for process in processes:
        told = process.communicate()[1]
        if process.returncode:
            raise UserError(f"calibration: a small fine-tuning failed: {told.strip().splitlines()[-1]}")
    return time.perf_counter() - start


def quietly(function, *arguments, **options):
    """Call a function that draws bars."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):
        function(*arguments, **options)


# ---- the table ------------------------------------------------------------------------------------------------------

def lines_of(planned, costs):
    """Header and lines: for each table what the jobs of each method come to, and all of them. Hours are those of
    places, one job after the other.
    """
    tables = collections.defaultdict(lambda: collections.defaultdict(list))
    for job in planned:
        table = job.cell.get("table", "data") if job.kind != "probe" else "probe"
        tables[table][job.cell.get("model", "simulated tiles")].append(job)
    lines = []
    for table, methods in sorted(tables.items()):
        if len(methods) > 1:
            methods["all"] = [job for jobs in methods.values() for job in jobs]
        lines += [[table, method, *figures(jobs, costs)] for method, jobs in methods.items()]
    return ["table", "method", "jobs", "tiles, 1e3", "steps, 1e3", "checkpoints, GB", "memory, GB", "hours",
            "reading"], lines


def figures(jobs, costs):
    """What some jobs come to, as text."""
    loads = [load for job in jobs if (load := costs.load(job))]
    estimates, memory = [costs.seconds(job) for job in jobs], [costs.measured(load.work) for load in loads]
    most, reading = sum(each.most for each in estimates), sum(each.reading for each in estimates)
    return [f"{len(jobs)}", thousands(sum(load.trained[1] for load in loads)),
            thousands(sum(load.steps[1] for load in loads)), gigabytes(disk(jobs, costs)),
            f"{max((each.get('gb', 0.0) for each in memory), default=0.0):.1f}" if loads else "",
            hours([sum(each.least for each in estimates), most]), f"{reading / most:.0%}"]


def disk(jobs, costs):
    """Bytes of the checkpoints that stay: weights in float32."""
    trained = [costs.measured(load.work).get("params", 0) for job in jobs
               if job.kind in ("pretraining", "fine-tuning") and (load := costs.load(job))]
    return 4 * sum(trained)


def plan_text(planned, costs, machine, done):
    """What --plan prints. done: of jobs that are done already, their number."""
    order = in_order(planned, costs)
    spans = [makespan(order, {job.name: costs.seconds(job)[end] for job in planned}, machine.places) for end in (0, 1)]
    known, header = costs.calibration, lines_of(planned, costs)
    each = "a GPU" if machine.gpus else f"{max(1, machine.cores // machine.places)} of {machine.cores} cores"
    learned = costs.learned.get(None)
    text = [f"{len(planned)} jobs to do{f', {done} done' if done else ''}; {machine.places} at a time, each on {each} "
            f"({known['device']})",
            as_text(*header),
            f"in all {hours([sum(costs.seconds(job)[end] for job in planned) for end in (0, 1)])} hours of jobs, "
            f"{hours(spans)} hours on this machine, {gigabytes(disk(planned, costs))} GB of checkpoints; tiles take "
            + ", ".join(f"{gigabytes(size)} GB of {name}" for name, size in known["disk"].items()),
            "Two numbers: if every training stops as early as it may, and if none does. Steps were timed "
            f"{known['date'][:16].replace('T', ' ')} on a few tiles, not compiled."]
    if learned:
        text.append(f"Corrected by what {learned[0] / 3600:.1f} hours of jobs took: {learned[0] / learned[1]:.2f} "
                    "times what was expected.")
    return "\n".join(text)


def hours(seconds):
    """"0.3", or "1.2-5.0" where least and most differ."""
    least, most = (f"{each / 3600:.2g}" if each < 36000 else f"{each / 3600:,.0f}" for each in seconds)
    return least if least == most else f"{least}-{most}"


def thousands(number):
    return f"{number / 1e3:,.1f}" if number else ""


def gigabytes(number):
    return f"{number / 1e9:.2f}" if number else ""
