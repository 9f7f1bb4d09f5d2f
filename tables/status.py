"""What a driver is at, for its own lines and for --status in another terminal; and what each job took."""
import csv
import json
import os
import platform
import time
from datetime import datetime
from pathlib import Path

from tables.cost import group_of, makespan
from utils.files import wait_for_lock, written_whole

BEAT = 20      # seconds between two signs of life of a driver
QUIET = 90     # without one for so long it counts as gone
TOOK = ("name", "kind", "dataset", "model", "seconds", "expected", "basis", "processes", "at_a_time", "ended")


class NoStatus:
    """Of a driver that nobody asks."""

    def tell(self, driver):
        """A job has begun or ended."""

    def took(self, driver, job, seconds):
        """A job has ended well after so many seconds."""

    def ends(self, driver):
        """When all will be done, seconds since 1970; None if it cannot be told."""

    def beat(self, driver):
        """To be called often."""

    def close(self):
        """The driver ends."""


class Status(NoStatus):
    """In files of a folder, runs: status/HOST-PID.json, kept up to date, deleted at the end; jobs.csv, a line a job.

    costs: of tables.cost; what jobs took is learned from jobs.csv, and from each that ends.
    """

    def __init__(self, runs, costs):
        self.path = Path(runs, "status", f"{platform.node()}-{os.getpid()}.json")
        self.table, self.costs, self.began, self.told = Path(runs, "jobs.csv"), costs, time.time(), 0.0
        learn(costs, self.table)

    def took(self, driver, job, seconds):
        expected = self.costs.expected(job).most
        self.costs.learn(group_of(job), seconds, expected)
        self.table.parent.mkdir(parents=True, exist_ok=True)
        with open(self.table, "a", newline="", encoding="utf-8") as file:
            wait_for_lock(file)
            lines = csv.writer(file, lineterminator="\n")
            if not os.fstat(file.fileno()).st_size:
                lines.writerow(TOOK)
            lines.writerow([job.name, *group_of(job), f"{seconds:.1f}", f"{expected:.1f}", self.costs.basis,
                            job.processes, driver.machine.places, datetime.now().isoformat(timespec="seconds")])

    def ends(self, driver):
        if not self.costs.calibration and not self.costs.learned:
            return None                                                       # a guess that nothing has confirmed
        now, seconds = time.time(), {job.name: self.costs.seconds(job).most for job in driver.planned}
        busy = [(max(0.0, seconds[each.job.name] - (now - each.began)), each.job) for each in driver.running]
        return now + makespan(driver.waiting, seconds, driver.machine.places, busy)

    def tell(self, driver):
        self.told = time.time()
        with written_whole(self.path) as file:
            json.dump({"host": platform.node(), "pid": os.getpid(), "began": self.began, "told": self.told,
                       "jobs": len(driver.planned), "left": len(driver.waiting), "failed": list(driver.failed),
                       "running": [{"name": each.job.name, "began": each.began, "log": str(each.job.log)}
                                   for each in driver.running], "ends": self.ends(driver)}, file)

    def beat(self, driver):
        if time.time() - self.told > BEAT:
            self.tell(driver)

    def close(self):
        self.path.unlink(missing_ok=True)


def learn(costs, table):
    """What earlier jobs took, of those that were expected on the same basis. table: jobs.csv. Returns their number."""
    if not table.exists():
        return 0
    with open(table, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["basis"] == costs.basis]
    for row in rows:
        costs.learn((row["kind"], row["dataset"], row["model"]), float(row["seconds"]), float(row["expected"]))
    return len(rows)


def drivers(runs):
    """Lines on the drivers that work in a folder, or were killed there."""
    lines = []
    for path in sorted(Path(runs, "status").glob("*.json")):
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:                                             # it has just ended
            continue
        done, now = told["jobs"] - told["left"] - len(told["running"]), time.time()
        where = f"driver {told['pid']} on {told['host']}"
        if now - told["told"] > QUIET:
            lines.append(f"{where}: not heard of since {clock(told['told'])}, so it was killed; the same command goes "
                         f"on. Delete {path} to forget it")
            continue
        lines.append(f"{where}, since {clock(told['began'])}: {done} of {told['jobs']} jobs done"
                     + (f", {len(told['failed'])} of them failed" if told["failed"] else "")
                     + f", {len(told['running'])} running, {told['left']} left"
                     + (f", until about {clock(told['ends'])}" if told["ends"] else ""))
        lines += [f"  {now - each['began']:6.0f} s  {each['name']}  ({each['log']})" for each in told["running"]]
    return lines or [f"no driver is at work in {runs}"]


def clock(seconds):
    """14:32, with the date if that is another day. seconds: since 1970."""
    when = datetime.fromtimestamp(seconds)
    return f"{when:%H:%M}" if when.date() == datetime.now().date() else f"{when:%Y-%m-%d %H:%M}"
