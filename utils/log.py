"""What a run leaves behind: a header, one JSON line an epoch, TensorBoard."""
import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter


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

    Silent if not on rank 0.
    """

    def __init__(self, folder, rank, header):
        self.file = None
        if rank == 0:
            self.file = open(Path(folder) / "log.jsonl", "w", encoding="utf-8")
            self.board = SummaryWriter(folder)
            self._line(header | {"python": platform.python_version(), "numpy": np.__version__})

    def _line(self, values):
        self.file.write(json.dumps(values) + "\n")
        self.file.flush()

    def epoch(self, epoch, values):
        """Numbers of one epoch: to the file, to TensorBoard and, in short, to the terminal."""
        if self.file is None:
            return
        self._line({"epoch": epoch} | values)
        for name, value in values.items():
            self.board.add_scalar(name, value, epoch)
        print(f"epoch {epoch:3d}  " + "  ".join(f"{name} {value:.4g}" for name, value in values.items()),
              file=sys.stderr, flush=True)

    def close(self):
        if self.file is not None:
            self.file.close()
            self.board.close()
