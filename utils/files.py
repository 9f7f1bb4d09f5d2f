"""Files that are written whole or not at all, whenever the process or the machine is stopped; folders for one process;
orphans.
"""
import ctypes
import errno
import os
import signal
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

from utils.errors import BUSY, UserError

try:
    import fcntl
except ImportError:                                                           # Windows
    fcntl = None


POINTER = b"version https://git-lfs"    # how such a file begins


@contextmanager
def written_whole(path, mode="w"):
    """A file to write to under a temporary name; at the end it is flushed to the disk and renamed. Until then the old
    one stays.

    mode: "w" (text in UTF-8) or "wb". Errors: UserError if the disk is full or cannot be written to.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
        with open(temporary, mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        with suppress(OSError):    # of the new name too, where the system can
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        kept = "; the one of before is as it was" if path.exists() else ""
        raise UserError(f"{path}: cannot be written ({error.strerror or error}){kept}") from error
    finally:
        temporary.unlink(missing_ok=True)


def check_pointer(path):
    """Errors: UserError if a file is the few lines that Git LFS leaves in place of one, whatever its name."""
    with suppress(OSError), open(path, "rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise UserError(f"{path}: a Git LFS pointer, not the file itself; run `git lfs pull` there, or download it "
                            "again")


def lock(path, doing):
    """Take a folder for this process by a lock file in it. Returns the open file: closing it, or the end of the
    process, frees it.

    doing: what a process that has the lock does in the folder. Errors: UserError if another process has it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "w", encoding="utf-8")
    if not has_locks():
        return file
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)    # not flock: child processes would inherit it
    except OSError as error:
        file.close()
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise UserError(f"{path}: cannot be locked ({error.strerror}); choose a folder on a file system that has "
                            "locks") from error
        raise UserError(f"{path}: another process {doing}; wait for it, or choose another folder", code=BUSY) from error
    return file


def has_locks():
    """Whether the system has locks of files; if not, one line says what does not work, once."""
    if fcntl is None and not _told:
        print("warning: this system has no fcntl, as Windows: without locks, see to it that no two processes work in "
              "one folder or write to one table", file=sys.stderr)
        _told.append(True)
    return fcntl is not None


def wait_for_lock(file):
    """Take a lock of an open file for this process, as soon as no other has it; closing the file frees it."""
    if has_locks():
        fcntl.flock(file, fcntl.LOCK_EX)


_told = []    # whether has_locks has


def end_with_parent():
    """Have the system send this process SIGTERM when its parent dies, so that a killed driver or torchrun leaves
    nothing running.

    Linux only.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)                            # PR_SET_PDEATHSIG


def walk(root):
    """os.walk, folders in the order of their names, through links, but not into a folder that it is inside of."""
    above = {str(root): (os.path.realpath(root),)}
    for folder, folders, names in os.walk(root, followlinks=True):
        real = {name: os.path.realpath(os.path.join(folder, name)) for name in sorted(folders)}
        folders[:] = [name for name in real if real[name] not in above[folder]]
        yield folder, folders, names
        above |= {os.path.join(folder, name): (*above[folder], real[name]) for name in folders}
        del above[folder]
