"""What a run leaves behind: a header, one JSON line an epoch, TensorBoard."""
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

from utils.errors import UserError
from utils.files import written_whole


def provenance(script, argv, device):
    """Where a number comes from: commit, dirty, command, torch, device, date."""
    def git(*arguments):
        run = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=Path(__file__).parent.parent)
        return run.stdout.strip() if run.returncode == 0 else None
    changed = git("status", "--porcelain", "--untracked-files=no")
    world = os.environ.get("WORLD_SIZE", "1")
    start = "python" if world == "1" else f"torchrun --nproc_per_node={world}"
    return {"commit": git("rev-parse", "HEAD") or "unknown", "dirty": "unknown" if changed is None else bool(changed),
            "command": f"{start} {script} {shlex.join(argv)}", "torch": str(torch.__version__),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})",
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds")}


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
            raise UserError(f"{self.path}: cannot be written ({error.strerror}); the same command goes on once it can") from error
        self._draw(line)
        print("  ".join(f"{name} {value:3d}" if name == "epoch" else f"{name} {value:.4g}" for name, value in line.items()),
              file=sys.stderr, flush=True)

    def _draw(self, line):
        for name, value in line.items():
            if name != "epoch":
                self.board.add_scalar(name, value, line["epoch"])

    def close(self):
        if self.file is not None:
            with suppress(OSError):                                           # a full disk was told when a line was written
                self.file.close()
            self.board.close()
