"""Is Sentinel-1 of a TreeSatAI-TS file in order inside its dates? In the 2017 files seen it is not, see
docs/sentinel1-2017.md.

There the 72 numbers of a date (2 bands x 6 x 6 pixels) are those of a transposed 18 x 4 matrix, once in the descending
orbit, twice in the ascending one. The file itself is asked, not its year: two measures, as it is stored and with the
transposition undone,
    VV - VH            dB, mean over the pixels, median over the dates: 5 to 6 over forest; where the bands are mixed
                       about 0
    of neighbours      correlation of neighbouring pixels, along x and y: 0.3 to 0.5; where pixels are misplaced about 0
                       or less
Together they say in order, scrambled, or unclear (still water, too few dates, noise). Unclear files are left as they
are.

Dimension letters: T dates; a date is flattened to 72 numbers, VV first.
"""
from typing import NamedTuple

import numpy as np

TRANSPOSED = {"s1": 2, "s1-des": 1}    # how often, in a scrambled file
MOST, FEWEST = 24, 5                   # dates looked at, evenly spread; the fewest that can tell
SCALES = 2, 0.2                        # dB and correlation that count for one; a verdict needs two


def _places(key):
    """Where the numbers of a date lie in a scrambled file, (72,)."""
    places = np.arange(72)
    for _ in range(TRANSPOSED[key]):
        places = places.reshape(4, 18).T.ravel()
    return places


PLACES = {key: _places(key) for key in TRANSPOSED}


def restored(data, key):
    """Sentinel-1 (T, 2, 6, 6) of a scrambled file with its numbers at their places. key: s1 (ascending) or s1-des."""
    return data.reshape(-1, 72)[:, PLACES[key]].reshape(data.shape)


def scrambled(data, key):
    """The opposite of restored: (T, 2, 6, 6) as the 2017 files store it. For generated tiles and tests."""
    return data.reshape(-1, 72)[:, PLACES[key].argsort()].reshape(data.shape)


class Order(NamedTuple):
    """What the numbers say. verdict: in order, scrambled or unclear; two values each: as stored, undone."""
    verdict: str
    difference: tuple = (np.nan, np.nan)    # VV - VH, dB
    neighbours: tuple = (np.nan, np.nan)    # correlation
    dates: int = 0                          # looked at

    def text(self):
        """In words, for reports."""
        if self.dates < FEWEST:
            return f"too few dates to tell: {self.dates} whole ones"
        (stored, undone), (before, after) = self.difference, self.neighbours
        return f"VV - VH {stored:.1f} dB, undone {undone:.1f}; neighbours {before:.2f}, undone {after:.2f}"


def _measures(key):
    """What order multiplies dates by: (72, 2) to VV - VH, (2, 72 x 72) to the products of neighbours, and to the
    squares.
    """
    rows, columns = np.indices((6, 6)).reshape(2, 36)
    near = abs(rows[:, None] - rows) + abs(columns[:, None] - columns) == 1      # 120 of 36 x 36
    centre = np.kron(np.eye(2), np.eye(36) - 1 / 36)                             # takes each band's mean off
    contrast, pairs, squares = [], [], []
    for place in (np.arange(72), PLACES[key]):
        at = np.eye(72)[place]    # at @ date: its numbers at their places
        contrast.append(np.repeat([1 / 36, -1 / 36], 36) @ at)
        pairs.append(at.T @ centre @ np.kron(np.eye(2), near / 120) @ centre @ at)
        squares.append(at.T @ centre @ at / 36)
    return tuple(np.array(x, np.float32) for x in (
        np.transpose(contrast), np.reshape(pairs, (2, -1)), np.reshape(squares, (2, -1))))


MEASURES = {key: _measures(key) for key in TRANSPOSED}


def order(data, key):
    """The Order of a series as the file has it: data (T, 2, 6, 6) float32, linear power. Dates with gaps or zeros do
    not count.

    A correlation is the mean product of neighbours over the mean square, all of them less their band's mean on the
    date, in dB.
    """
    dates = data.reshape(-1, 72)
    dates = dates[::-(-len(dates) // MOST) or 1]
    whole = (dates.min(1) > 0) & (dates.max(1) < np.inf)                         # NaN is neither
    if not whole.all():
        dates = dates[whole]
    if len(dates) < FEWEST:
        return Order("unclear", dates=len(dates))
    contrast, pairs, squares = MEASURES[key]
    dates = np.log(dates)                                                        # faster than log10
    difference = np.sort(dates @ contrast, 0)[(len(dates) - 1) // 2] * (10 / np.log(10))
    dates -= dates[0, 0]    # the products of large numbers would be rounded
    products = (dates.T @ dates).ravel()
    neighbours = pairs @ products / np.maximum(squares @ products, 1e-3 * len(dates))  # within 0.1 dB: pixels all alike
    score = (difference[0] - difference[1]) / SCALES[0] + (neighbours[0] - neighbours[1]) / SCALES[1]
    verdict = "in order" if score >= 2 else "scrambled" if score <= -2 else "unclear"
    return Order(verdict, tuple(difference.tolist()), tuple(neighbours.tolist()), len(dates))


def repaired(data, key):
    """A series (T, 2, 6, 6), restored if its own numbers say that it is scrambled."""
    return restored(data, key) if order(data, key).verdict == "scrambled" else data
