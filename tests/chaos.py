"""Kill training runs at random moments, start them again, and compare what they end with to runs that nobody disturbed.

    python -m tests.chaos --kills 40          # the long form, some minutes; tests/test_resume.py runs a short one

Pretraining and fine-tuning on generated tiles, each on 1 and on 2 processes. A kill is a SIGKILL to all processes of a
run, or, on two processes, to one of them. Weights must be equal bit by bit, and so must logs but for hours, dates and
starts.
"""
import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from datasets.simulated.demo import write_treesatai
from engine import checkpoint
from utils.numbers import whole

ROOT = Path(__file__).parent.parent
SMALL = ["--dataset", "treesatai-ts", "--workers", "1", "--batch-size", "6", "--pool", "3", "--modalities", "s2,s1",
         "--save-minutes", "0.01", "--lr", "1e-3"]
MODEL = ["--embed-dim", "32", "--depth", "1"]


def command(script, processes, data, output, start, epochs):
    """A script's command line. start: the checkpoint that fine-tuning starts from."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    # fine-tuning passes over its tiles twice an epoch
    own = ["--init", str(start), "--min-epochs", str(epochs), "--epoch-steps",
           "16"] if script == "finetune.py" else MODEL
    return [sys.executable, *launcher, script, *SMALL, *own, "--epochs", str(epochs), "--data-root", str(data),
            "--output", str(output)]


def launch(words, log):
    """A process with one thread a process, its output added to a file."""
    with open(log, "a", encoding="utf-8") as file:
        return subprocess.Popen(words, cwd=ROOT, stdout=file, stderr=file,
                                env=os.environ | {"OMP_NUM_THREADS": "1"})


def children(pid):
    """Process numbers of the processes that a process has started (Linux)."""
    return [int(number) for path in Path(f"/proc/{pid}/task").glob("*/children") for number in path.read_text().split()]


def kill_all(process):
    """SIGKILL to a process and all that it has started; torchrun gives each of its own a group."""
    found = [process.pid]
    for pid in found:
        found += children(pid)
    for pid in found:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    process.wait()


def disturb(words, log, kills, chance, seconds):
    """Run a command to its end, with at most so many kills on the way, each after up to so many seconds. Returns the
    kills that hit.
    """
    hits = 0
    while True:
        process, is_last = launch(words, log), hits == kills
        try:
            process.wait(None if is_last else chance.uniform(0, seconds))
        except subprocess.TimeoutExpired:
            one = chance.random() < 0.5 and children(process.pid)
            if one and "torch.distributed.run" in words:
                os.kill(chance.choice(one), signal.SIGKILL)                       # torchrun must take the other down
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired as error:
                    raise SystemExit("one of two processes was killed, the other still runs after a minute:\n"
                                     f"{log.read_text()[-5000:]}") from error
            else:
                kill_all(process)
            hits += 1
            continue
        if process.returncode == 0:
            return hits
        raise SystemExit(f"{words[1:6]} ended with code {process.returncode} by itself:\n{log.read_text()[-5000:]}")


def epochs_of(folder):
    """The lines of a log, without what depends on the clock."""
    _, *lines = (json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name != "hours"} for line in lines]


def differences(kind, one, other):
    """Names of weights that are not equal bit by bit in two runs, and "log" if their logs are not equal."""
    first, second = (checkpoint.load(folder / f"{kind}.pt", kind) for folder in (one, other))
    assert first["finished"] and second["finished"] and first["weights"].keys() == second["weights"].keys()
    return [name for name, value in first["weights"].items() if not torch.equal(value, second["weights"][name])] + (
        ["log"] if epochs_of(one) != epochs_of(other) else [])


def compare(folder, kills, seed, tiles=60, epochs=4,
            cases=(("pretrain.py", 1), ("pretrain.py", 2), ("finetune.py", 1), ("finetune.py", 2))):
    """Yields for each run of each case: script, number of processes, kills that hit, starts that got to train,
    differences.

    A case is run again until it has had its share of the kills: a run may end before the next kill.
    """
    chance = random.Random(seed)
    data = write_treesatai(folder / "data", train=tiles, test=4, seed=seed)
    start, log = folder / "pretrained-undisturbed-1" / "pretrained.pt", folder / "log.txt"

    def undisturbed(script, processes, output):
        """Seconds of a run that nobody kills."""
        began = time.time()
        disturb(command(script, processes, data, output, start, epochs), log, 0, chance, 0)
        return time.time() - began
    first = undisturbed("pretrain.py", 1, start.parent)
    for number, (script, processes) in enumerate(cases):
        kind = {"pretrain.py": "pretrained", "finetune.py": "finetuned"}[script]
        quiet, disturbed = (folder / f"{kind}-{name}-{processes}" for name in ("undisturbed", "disturbed"))
        seconds = first if start.parent == quiet else undisturbed(script, processes, quiet)
        share, runs = kills // len(cases) + (number < kills % len(cases)), 0
        while share > 0:
            output, runs = disturbed.with_name(f"{disturbed.name}-{runs}"), runs + 1
            hits = disturb(command(script, processes, data, output, start, epochs), log, share, chance, seconds)
            starts = checkpoint.load(output / f"{kind}.pt", kind)["starts"]
            share -= hits
            yield script, processes, hits, len(starts), differences(kind, quiet, output)


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=whole(1), default=40, help="over all four cases (default: %(default)s)")
    parser.add_argument("--seed", type=whole(0), default=0, help="of the moments and the tiles")
    parser.add_argument("--epochs", type=whole(1), default=6)
    args = parser.parse_args()
    total, is_equal = 0, True
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for script, processes, hits, starts, found in compare(Path(folder), args.kills, args.seed, epochs=args.epochs):
            print(f"{script:12} {processes} process(es): {hits} kills, {starts} starts got to train, "
                  f"{'weights and log equal' if not found else 'DIFFERENT: ' + ', '.join(found)}", flush=True)
            total, is_equal = total + hits, is_equal and not found
    print(f"{total} kills, {'all equal bit by bit' if is_equal else 'NOT equal'}")
    sys.exit(0 if is_equal else 1)


if __name__ == "__main__":
    main()
