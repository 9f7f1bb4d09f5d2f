"""Numbers to colours: natural ones of an image's bands, and three principal components of features.

Dimensions: N patches, D embedding, C bands, H x W pixels.
"""
import zipfile
from dataclasses import dataclass

import numpy as np

from utils.errors import UserError
from utils.files import written_whole

NATURAL = {"R", "RED", "B04"}, {"G", "GREEN", "B03"}, {"B", "BLUE", "B02"}    # names of red, green, blue bands
TAIL = 2                       # percent of the values at either end that a stretch gives away
WHITE = 0.9505, 1, 1.089       # D65, in XYZ
RGB_OF_XYZ = np.array([[3.2406, -0.9689, 0.0557], [-1.5372, 1.8758, -0.2040], [-0.4986, 0.0415, 1.0570]])    # of sRGB


def bands_to_draw(bands):
    """Which bands are red, green and blue: numbers of three, or the first one three times, to be drawn in grey."""
    found = [next((i for i, band in enumerate(bands) if band.upper() in names), None) for names in NATURAL]
    return (0, 0, 0) if None in found else tuple(found)


def stretch_of(values):
    """Ends (C, 2) of a linear stretch: percentiles of each band. values (C, H, W) or (T, C, H, W)."""
    by_band = np.moveaxis(values, -3, 0).reshape(values.shape[-3], -1).astype(np.float64)
    return np.percentile(by_band, (TAIL, 100 - TAIL), axis=1).T


def drawn(values, bands, stretch):
    """(..., C, H, W) in the files' units to (..., H, W, 3) from 0 to 1. bands: names; stretch: of stretch_of."""
    chosen = list(bands_to_draw(bands))
    (low, high), values = stretch[chosen].T, np.moveaxis(values, -3, -1)[..., chosen]
    return ((values - low) / np.maximum(high - low, 1e-9)).clip(0, 1)


# ---- features -------------------------------------------------------------------------------------------------------

@dataclass
class Projection:
    """Features to three numbers: principal components, (features - mean) @ axes.T, from low to high.

    mean (D,), axes (3, D), low and high (3,), percentiles of what it was fitted on. about: the checkpoint's hash.
    """
    mean: np.ndarray
    axes: np.ndarray
    low: np.ndarray
    high: np.ndarray
    about: str

    def __call__(self, f):
        """f (N, D) to (N, 3) from 0 to 1."""
        return (((f - self.mean) @ self.axes.T - self.low) / np.maximum(self.high - self.low, 1e-9)).clip(0, 1)


def fit_projection(f, about):
    """The Projection of features (N, D): components of most variance, each with its largest weight positive."""
    mean = f.mean(0)
    axes = np.zeros((3, f.shape[1]))
    found = np.linalg.svd((f - mean).astype(np.float64), full_matrices=False)[2][:3]
    axes[:len(found)] = found * np.sign(found[np.arange(len(found)), np.abs(found).argmax(1)])[:, None]
    return Projection(mean, axes, *np.percentile((f - mean) @ axes.T, (TAIL, 100 - TAIL), axis=0), about)


def save_projection(path, projection):
    """Write it. Errors: UserError if the file cannot be written."""
    with written_whole(path, "wb") as file:
        np.savez(file, **vars(projection))


def read_projection(path, about):
    """The Projection in a file. Errors: UserError if it is none, or of another checkpoint than about says."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found = Projection(*(file[name] for name in ("mean", "axes", "low", "high")), str(file["about"]))
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a projection as --projection writes it; delete it, or name another") from error
    if found.about != about:
        raise UserError(f"{path}: made for checkpoint {found.about}, not for {about}; name another file for this one")
    return found


def colours_of(numbers):
    """(..., 3) from 0 to 1 to sRGB: the first is lightness, the second blue to yellow, the third green to red.

    In this order (CIELAB) the colour-blind miss the least: only the third component, that of least variance.
    """
    first, second, third = np.moveaxis(np.asarray(numbers, np.float64), -1, 0)
    lightness, a, b = 25 + 65 * first, 80 * third - 40, 110 * second - 55
    y = (lightness + 16) / 116
    xyz = np.stack([y + a / 500, y, y - b / 200], -1)
    xyz = np.where(xyz > 6 / 29, xyz ** 3, 3 * (6 / 29) ** 2 * (xyz - 4 / 29)) * WHITE
    linear = (xyz @ RGB_OF_XYZ).clip(0, 1)
    return np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
