"""Jobs run as soon as what they need is done, several side by side, each on GPUs or cores of its own."""
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from tables.status import NoStatus, clock
from utils.errors import BUSY, CODE, SIGNALS, STOPPED
from utils.files import end_with_parent

ROOT = Path(__file__).parent.parent
RETRY = 30     # seconds until a job whose folder is taken is tried again
READERS = 4    # reading processes of a script that is not told otherwise (engine/options.py)


class Machine(NamedTuple):
    """Where jobs run: on so many places, one process each.

    gpus: as CUDA numbers them; place k has the one of number k modulo theirs. (): places are shares of the cores.
    """
    places: int = 1
    gpus: tuple = ()
    cores: int = os.cpu_count() or 1

    def take(self, free, wanted):
        """So many of the free places, on GPUs that differ where there are any; None if there are not enough."""
        found = {}
        for place in sorted(free):
            found.setdefault(place % len(self.gpus) if self.gpus else place, place)
        return list(found.values())[:wanted] if len(found) >= wanted else None

    def most(self):
        """Processes that one job can have."""
        return min(self.places, len(self.gpus) or self.places)

    def readers(self):
        """Reading processes beside each process: its share of the cores; None, as many as by default, if that is more.
        """
        share = max(1, self.cores // self.places - 1)
        return share if self.places > 1 and share < READERS else None

    def variables(self, places):
        """The environment of a job on these places: its GPUs, its share of the cores."""
        found = {"OMP_NUM_THREADS": str(max(1, self.cores // self.places))} if self.places > 1 else {}
        if self.gpus:
            found["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus[place % len(self.gpus)] for place in places)
        return found


class AtWork(NamedTuple):
    """A job that runs. shown: bytes of its output that were shown, or were there before."""
    job: object
    process: subprocess.Popen
    places: list
    began: float
    shown: int


class Driver:
    """Runs jobs (tables.jobs.Job), the first that can run first. The arguments are those of run_all.

    failed: {name: why} of those that failed. Errors of a job stop only those that need it.
    """

    def __init__(self, planned, machine, status, is_done):
        self.planned, self.machine, self.status, self.is_done = list(planned), machine, status, is_done
        self.waiting, self.running, self.failed = list(planned), [], {}
        self.undone, self.later = {job.name for job in planned}, {}           # later: not to be tried before
        self.is_alone = machine.places == 1                                   # then its output is shown

    def begin(self):
        """Start what can be. A job of several processes that could run, but for its places, is waited for."""
        for job in list(self.waiting):
            if lost := [need for need in job.needs if need in self.failed]:
                self.failed[job.name] = f"not run, {lost[0]} failed"
                self.undone.discard(job.name)
                self.waiting.remove(job)
            elif self.undone.isdisjoint(job.needs) and time.time() > self.later.get(job.name, 0):
                taken = {place for each in self.running for place in each.places}
                places = self.machine.take({*range(self.machine.places)} - taken, job.processes)
                if places is None:
                    break
                self.waiting.remove(job)
                if self.is_done(job):
                    self.undone.discard(job.name)
                    print(f"{self.count()} another driver has done {job.name}", file=sys.stderr, flush=True)
                    continue
                if self.is_alone:
                    print(f"\n[{len(self.planned) - len(self.waiting)}/{len(self.planned)}] {job.name}\n"
                          f"{shlex.join(job.command)}", file=sys.stderr)
                log = ROOT / job.log
                shown = log.stat().st_size if log.exists() else 0             # of an earlier start
                self.running.append(AtWork(job, start(job, self.machine.variables(places)), places, time.time(), shown))
                self.status.tell(self)

    def look(self):
        """What the running jobs have printed, and which of them have ended."""
        if self.is_alone:
            self.running = [each._replace(shown=show(each.job.log, each.shown)) for each in self.running]
        for each in list(self.running):
            code = each.process.poll()
            if code is not None:
                self.running = [other for other in self.running if other.process is not each.process]
                if self.is_alone:
                    show(each.job.log, each.shown)
                self.end(each, meaning(each.job, code))
                self.status.tell(self)

    def end(self, each, code):
        """A job has ended with an exit code."""
        job = each.job
        if code == BUSY:
            if job.name not in self.later:
                print(f"another process is at work on {job.name}: waiting for it", file=sys.stderr, flush=True)
            self.later[job.name] = time.time() + RETRY
            self.waiting.append(job)
            return
        self.undone.discard(job.name)
        if code:
            self.failed[job.name] = f"exit code {code}, output in {job.log}: {shlex.join(job.command)}"
            print(f"FAILED {job.name}: {self.failed[job.name]}" + ("" if self.is_alone else f"\n{tail(job.log)}"),
                  file=sys.stderr)
            return
        seconds = time.time() - each.began
        self.status.took(self, job, seconds)
        print(f"{self.count()} {seconds:5.0f} s  {job.name}; {self.left()}", file=sys.stderr, flush=True)

    def count(self):
        return f"[{len(self.planned) - len(self.undone)}/{len(self.planned)}]"

    def left(self):
        """What runs and waits, and when it will end, in words."""
        if not self.running and not self.waiting:
            return "the last one"
        ends = self.status.ends(self)
        return (f"{len(self.running)} running, {len(self.waiting)} left"
                + (f", until about {clock(ends)}" if ends else ""))

    def run(self):
        """All of them. Stopping this process stops what it started, which saves where it is."""
        before = {sent: signal.signal(sent, lambda *_: sys.exit(STOPPED)) for sent in SIGNALS}
        try:
            while self.waiting or self.running:
                self.begin()
                time.sleep(0.05)
                self.look()
                self.status.beat(self)
        finally:
            for each in self.running:
                each.process.terminate()
            for each in self.running:
                each.process.wait()
            self.status.close()
            for sent, handler in before.items():
                signal.signal(sent, handler)
        return self.failed


def run_all(planned, machine, status=None, is_done=lambda job: False):
    """Run the jobs on the machine. Returns {name: why} of those that failed.

    Each job writes to its own file; where one runs at a time it is shown as well. A job whose folder another driver is
    at work in is tried again later. status: of tables.status, told of each beginning and end, or None. is_done(job):
    whether another driver has done it in the meantime.
    """
    return Driver(planned, machine, status or NoStatus(), is_done).run()


def start(job, variables):
    """A job's process; its output is added to its file. variables: of its environment."""
    (ROOT / job.log).parent.mkdir(parents=True, exist_ok=True)
    told = code_file(job)
    told.unlink(missing_ok=True)
    with open(ROOT / job.log, "a", encoding="utf-8") as log:
        return subprocess.Popen(job.command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT,
                                preexec_fn=end_with_parent if os.name == "posix" else None,
                                env=os.environ | {"TQDM_MININTERVAL": "1"} | variables
                                | ({CODE: str(told)} if job.processes > 1 else {}))


def code_file(job):
    """Where the processes of a job write why they end: torchrun's own exit code is 1, whatever theirs was."""
    return (ROOT / job.log).with_suffix(".code")


def meaning(job, code):
    """The exit code of a job, of several processes theirs."""
    told = code_file(job)
    if code and told.exists():
        code = int(told.read_text() or code)
        told.unlink()
    return code


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
