"""Types for argparse: a number out of its range, or none at all, is told in one line with its option's name."""
import argparse
import math

MOST = 2 ** 31 - 1    # a whole number that torch, numpy, scikit-learn and LightGBM all take


def whole(least, most=MOST):
    """A whole number from least to most."""
    return _type(int, f"a whole number from {least} to {most:,}", lambda value: least <= value <= most)


def whole_list(least, most=MOST):
    """Whole numbers joined by commas."""
    read = whole(least, most)
    return lambda text: [read(part) for part in text.split(",")]


def number(least, most=math.inf):
    """A number from least to most, both allowed; NaN never is."""
    text = f"a number from {least:g}" + ("" if most == math.inf else f" to {most:g}")
    return _type(float, text, lambda value: least <= value <= most)


def number_over(least, most=math.inf):
    """A finite number over least, at most most."""
    return _type(float, f"a number over {least:g}" + ("" if most == math.inf else f", at most {most:g}"),
                 lambda value: least < value <= most and math.isfinite(value))


def _type(kind, what, is_allowed):
    def read(text):
        try:
            if is_allowed(value := kind(text)):
                return value
        except ValueError:                                                    # thousands of digits too
            pass
        raise argparse.ArgumentTypeError(f"must be {what}, not {text[:40]}")
    return read
