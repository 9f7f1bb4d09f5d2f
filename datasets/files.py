"""What a file holds, or one clear error that names it. Nothing that is in a file is ever executed: no pickles."""
import json
import logging
import math
import os
from pathlib import Path

import numpy as np
import tifffile

from utils.errors import UserError

logging.getLogger("tifffile").setLevel(logging.CRITICAL)    # what matters is raised; a GDAL_NODATA tag "-9999" of uint8 does not


def why(error):
    """What an exception says, on one short line."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[:200]


def walk(root):
    """os.walk, folders in the order of their names, through links, but not into a folder that it is inside of."""
    above = {str(root): (os.path.realpath(root),)}
    for folder, folders, names in os.walk(root, followlinks=True):
        real = {name: os.path.realpath(os.path.join(folder, name)) for name in sorted(folders)}
        folders[:] = [name for name in real if real[name] not in above[folder]]
        yield folder, folders, names
        above |= {os.path.join(folder, name): (*above[folder], real[name]) for name in folders}
        del above[folder]


def read_text(path, advice="download it again"):
    """A text in UTF-8, with or without the mark of spreadsheets. advice: what to do if it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({why(error)}); {advice}") from error


def read_json(path, what):
    """What a JSON file holds. what: what it should be, for the error."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not {what} ({why(error)}); download it again") from error


def read_tif(path, bands):
    """An image of the given number of bands, (C, H, W) in the file's type, however the file interleaves them."""
    try:
        with open(path, "rb") as file, tifffile.TiffFile(file) as tif:        # by its path it is opened more slowly
            page = tif.pages[0]
            # tifffile would guess, and take zeros for missing strips
            is_whole = page.planarconfig in (1, 2) and len(page.dataoffsets) == len(page.databytecounts) == math.prod(page.chunked)
            is_plain = page.compression == 1 and page.bitspersample == 8 * page.dtype.itemsize
            if not is_whole or is_plain and sum(page.databytecounts) != page.nbytes:
                raise ValueError(f"its strips are not those of an image of shape {page.shape}")
            image = page.asarray()
    except Exception as error:    # tifffile and its codecs raise many kinds for damaged files
        raise UserError(f"{path}: cannot be read as TIFF ({why(error)}); download it again") from error
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim == 3 and image.shape[-1] == bands:
        return image.transpose(2, 0, 1)
    if image.ndim != 3 or image.shape[0] != bands:
        raise UserError(f"{path}: shape {image.shape}, expected {bands} bands")
    return image


def read_npy(path):
    """An array file, memory-mapped: nothing is read yet, see datasets.tiles.fetch."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("it is an npz file")
        if array.offset + array.nbytes != os.path.getsize(path):
            raise ValueError(f"{os.path.getsize(path)} bytes, its header says {array.offset + array.nbytes}")
    except Exception as error:    # numpy raises many kinds for damaged headers
        raise UserError(f"{path}: cannot be read as a numpy array ({why(error)}); download it again") from error
    return array


def read_npz(path):
    """A series of one's own: data (T, C, H, W) and dates (T,) as YYYYMMDD."""
    try:
        with np.load(path, allow_pickle=False) as file:
            data, dates = file["data"], np.ravel(file["dates"])
        if dates.dtype.kind not in "iufSU":
            raise ValueError(f"dates of type {dates.dtype}")
        return data, dates
    except Exception as error:    # numpy, zipfile and zlib raise many kinds for damaged files
        raise UserError(f"{path}: cannot be read as an npz file with data and dates ({why(error)}); write it again") from error
