"""Errors that are the input's or the machine's fault: one line that names the culprit and says what to do, no trace."""
import os
import signal
import sys
from pathlib import Path

# of Slurm, torchrun and kill; Windows has no second one
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]
STOPPED, BUSY = 75, 76    # exit codes: stopped by a signal, after saving; another process has the output folder
CODE = "OMNISAT_CODE"     # variable: the file that the exit code is written to, as torchrun's own is 1 whatever it was


class UserError(Exception):
    """A bad file, option or checkpoint; its text names it and says what to do.

    is_told: another process prints it. code: the exit code.
    """

    def __init__(self, text, is_told=False, code=1):
        super().__init__(text)
        self.is_told, self.code = is_told, code


class Stopped(UserError):
    """A run was told to stop, and has saved where it is."""

    def __init__(self, text, is_told=False):
        super().__init__(text, is_told, STOPPED)


def run(main):
    """Run a script's main(); what is no fault of the code becomes one line and an exit code.

    That is a UserError, also one from a loader's worker process; a file that cannot be opened or written;
    Ctrl-C; and, on one of several processes, the loss of another, which has told why.
    """
    script, is_one = Path(sys.argv[0]).name, int(os.environ.get("WORLD_SIZE", 1)) == 1
    try:
        return main()
    except UserError as error:
        text = str(error).split("UserError: ")[-1].strip()    # a worker's error comes wrapped in its trace
        if not error.is_told:    # on a line of its own: another process may be drawing a bar
            print(f"{'' if is_one else chr(10)}{script}: {'' if isinstance(error, Stopped) else 'error: '}{text}",
                  file=sys.stderr)
        if path := os.environ.get(CODE):
            Path(path).write_text(str(error.code), encoding="utf-8")
        sys.exit(error.code)
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        where = f"{error.filename}: " if error.filename is not None else ""
        sys.exit(f"{script}: error: {where}{error.strerror}")
    except KeyboardInterrupt:
        print(f"{script}: interrupted; the same command goes on with what was saved (SIGTERM saves first)",
              file=sys.stderr)
        sys.exit(130)
    except RuntimeError as error:
        if is_one or not is_lost_process(error):
            raise
        sys.exit(f"{script}: process {os.environ.get('RANK')} ends, because another one did, for its own reason")


def is_lost_process(error):
    """Whether an error of torch.distributed says that another process is gone. error: RuntimeError."""
    text = str(error)
    return any(words in text for words in ("Connection closed by peer", "Connection reset by peer", "Broken pipe",
                                           "Socket closed",
                                           "remote process exited", "NCCL Error 6", "connection was closed"))
