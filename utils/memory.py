"""What the C library does with freed memory; how much a process has."""
import ctypes
import re
import sys
from pathlib import Path

import torch


def reuse_memory():
    """Have the C library keep freed memory for the next step.

    By default it gives large blocks back to the system, and to get them again page by page takes up to a quarter of a
    step on a CPU (benchmarks/README.md); this way the heap settles within some steps. The settings are M_MMAP_MAX and
    M_TRIM_THRESHOLD of mallopt(3); other libraries have none.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-4, 0)
        mallopt(-1, -1)


def give_memory_back():
    """Undo reuse_memory for blocks of over 4 MB, in a reading process: tiles of PASTIS-HD would be kept twice for
    nothing.

    The other setting is M_MMAP_THRESHOLD.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-3, 4 << 20)
        mallopt(-4, 65536)


def memory(device, peak):
    """GB of this process on the device: now, which also starts a new peak, or the peak since."""
    if device.type == "cuda":
        if not peak:
            torch.cuda.reset_peak_memory_stats()
        return (torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()) / 1e9
    if sys.platform != "linux":
        return 0.0
    if not peak:
        ctypes.CDLL(None).malloc_trim(0)                                      # what was freed does not count
        Path("/proc/self/clear_refs").write_text("5")
    text = Path("/proc/self/status").read_text()
    return int(re.search(rf"Vm{'HWM' if peak else 'RSS'}:\s+(\d+)", text)[1]) / 1e6
