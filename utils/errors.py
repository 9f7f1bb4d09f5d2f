"""Errors that are the input's fault: one line that names the culprit and says what to do, no trace."""
import sys
from pathlib import Path


class UserError(Exception):
    """A bad file, option or checkpoint; its text names it and says what to do. is_told: another process prints it."""

    def __init__(self, text, is_told=False):
        super().__init__(text)
        self.is_told = is_told


def run(main):
    """Run a script's main(); a UserError, also one from a loader's worker process, becomes one line and exit code 1."""
    try:
        return main()
    except UserError as error:
        text = str(error).split("UserError: ")[-1].strip()    # a worker's error comes wrapped in its trace
        sys.exit(1 if error.is_told else f"{Path(sys.argv[0]).name}: error: {text}")
