"""What the C library does with freed memory."""
import ctypes
import sys


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
