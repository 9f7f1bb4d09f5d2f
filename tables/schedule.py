"""Jobs run as soon as what they need is done, several side by side."""
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from utils.errors import BUSY, SIGNALS, STOPPED
from utils.files import end_with_parent

ROOT = Path(__file__).parent.parent
RETRY = 30    # seconds until a job whose folder is taken is tried again


def run_all(planned, at_a_time):
    """Run the jobs, as soon as what they need is done. Returns {name: why} of those that failed.

    Each writes to its own file; one at a time is shown as well, several have one core each. A job whose folder another
    driver is at work in is tried again later. Stopping this process stops what it started, which saves where it is.
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
                        print(f"\n[{len(planned) - len(waiting)}/{len(planned)}] {job.name}\n"
                              f"{shlex.join(job.command)}", file=sys.stderr)
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
                    print(f"FAILED {job.name}: {failed[job.name]}" + (f"\n{tail(job.log)}" if at_a_time > 1 else ""),
                          file=sys.stderr)
                elif at_a_time > 1:
                    print(f"[{number}/{len(planned)}] {time.time() - began:5.0f} s  {job.name}", file=sys.stderr,
                          flush=True)
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
        return subprocess.Popen(job.command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT,
                                preexec_fn=end_with_parent if os.name == "posix" else None,
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
