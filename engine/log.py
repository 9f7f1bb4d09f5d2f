"""What a run leaves behind: a header, one JSON line an epoch, TensorBoard."""
import collections
import functools
import json
import os
import platform
import shlex
import subprocess
import sys
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

from engine import distributed
from utils import plain
from utils.errors import UserError
from utils.files import written_whole


@functools.cache
def code():
    """Commit, and whether files differ from it, at the first call: a process keeps the code that it began with.

    Rows in results/ are no code: a study that adds to them does not make itself dirty.
    """
    def git(*arguments):
        try:
            run = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=Path(__file__).parent.parent)
        except OSError:                                                       # there is no git
            return None
        return run.stdout.strip() if run.returncode == 0 else None
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
    return {"commit": git("rev-parse", "HEAD") or "unknown", "dirty": "unknown" if changed is None else bool(changed)}


def provenance(script, argv, device):
    """Where a number comes from: commit, dirty, torch, device, of all processes; processes, command, date.

    processes: nodes x those of each.
    To be called by all processes, as early as can be.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})"
    node = os.environ.get("GROUP_RANK") or platform.node()                    # torchrun's number of it, or its name
    everyone = distributed.gather(code() | {"torch": str(torch.__version__), "device": name, "node": node})
    nodes = list(collections.Counter(process["node"] for process in everyone).values())
    start = "python" if len(everyone) == 1 else (
        f"torchrun {f'--nnodes={len(nodes)} ' if len(nodes) > 1 else ''}--nproc_per_node={nodes[0]}")
    return in_words(everyone) | {
        "processes": f"{len(nodes)} x {nodes[0]}" if len(set(nodes)) == 1 else f"nodes of {', '.join(map(str, nodes))}",
        "command": f"{f'{plain.NAME}=1 ' if plain.is_plain() else ''}{start} {script} {shlex.join(argv)}",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds")}


def in_words(sources):
    """{"commit", "dirty", "torch", "device"} of some processes or starts: all, joined by +; dirty if one is."""
    dirty = [source["dirty"] for source in sources]
    return {"dirty": True if True in dirty else "unknown" if "unknown" in dirty else False} | {
        name: " + ".join(dict.fromkeys(word for source in sources for word in source[name].split(" + ")))
        for name in ("commit", "torch", "device")}


def together(starts):
    """What a row says of a run that was begun and gone on with: provenance of all its starts, in order; their number.

    date: of the first and the last, with / between; command: of the last.
    """
    known = [start.get("processes") or str(start["world"]) for start in starts]    # of before: their number only
    dates = list(dict.fromkeys((starts[0]["date"], starts[-1]["date"])))
    return in_words(starts) | {"processes": " + ".join(dict.fromkeys(known)), "command": starts[-1]["command"],
                               "date": "/".join(dates), "starts": len(starts)}


class Log:
    """Log of one run in a folder: log.jsonl (the header, then a line an epoch) and TensorBoard files.

    history: the epochs of a run that goes on; whatever else the file held is gone. Silent if not on rank 0.
    """

    def __init__(self, folder, rank, header, history=()):
        self.file, self.path = None, Path(folder) / "log.jsonl"
        if rank > 0:
            return
        header |= {"python": platform.python_version(), "numpy": np.__version__}
        with written_whole(self.path) as file:
            file.writelines(json.dumps(line) + "\n" for line in (header, *history))
        self.file = open(self.path, "a", encoding="utf-8")
        self.board = SummaryWriter(folder, purge_step=0)                      # what earlier starts wrote is not shown
        for line in history:
            self._draw(line)

    def epoch(self, line):
        """Numbers of one epoch, a dict: to the file, to TensorBoard and, in short, to the terminal."""
        if self.file is None:
            return
        try:
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror}); the same command goes on once it "
                            "can") from error
        self._draw(line)
        print("  ".join(f"{name} {value:3d}" if name == "epoch" else f"{name} {value:.4g}"
                        for name, value in line.items()),
              file=sys.stderr, flush=True)

    def _draw(self, line):
        for name, value in line.items():
            if name != "epoch":
                self.board.add_scalar(name, value, line["epoch"])

    def close(self):
        if self.file is not None:
            with suppress(OSError):    # a full disk was told when a line was written
                self.file.close()
            self.board.close()
