"""The switch OMNISAT_PLAIN=1: every fast operation off (models/fast/), the plain model runs.

A variable, not an option: so it reaches all that a command starts, the commands of run_tables.sh and the processes of
torchrun too, and no configuration, row or checkpoint has it among its options, since it changes them by rounding only.
It is for who suspects a fast operation, and asks whether a number or an error is there without them. Rows and logs say
it in their command.
"""
import os

from utils.errors import UserError

NAME = "OMNISAT_PLAIN"


def is_plain():
    """Whether OMNISAT_PLAIN is 1. Errors: UserError for anything but 1, 0 and nothing."""
    value = os.environ.get(NAME, "")
    if value not in ("", "0", "1"):
        raise UserError(f"{NAME}={value}: say 1, the plain model with every fast operation off, or 0, or leave it out",
                        is_told=int(os.environ.get("RANK", 0)) > 0)
    return value == "1"


def refuse(**options):
    """Errors: UserError for an option {name: value} that was given, and is of the fast form only."""
    for name, value in options.items():
        if value:
            raise UserError(f"--{name.replace('_', '-')} is for the fast form, which {NAME}=1 turns off; leave one of "
                            "the two out")
