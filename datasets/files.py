"""What a file holds, or one clear error that names it. Nothing that is in a file is ever executed: no pickles."""
import json
import logging
import math
import os
import re
import struct
from itertools import accumulate
from pathlib import Path

import numpy as np
import tifffile

from utils.errors import UserError
from utils.files import check_pointer

# what matters is raised; a GDAL_NODATA tag "-9999" of uint8 does not
logging.getLogger("tifffile").setLevel(logging.CRITICAL)
ENTRY, TYPES = struct.Struct("<HHII"), {3: "H", 4: "I"}    # of a TIFF's table: tag, type, count, value or where it is
# tags: colours, texts, place
NO_PIXELS = {262, 270, 282, 283, 296, 305, 338, 33550, 33922, 34735, 34736, 34737, 42112, 42113}


def why(error):
    """What an exception says, on one short line."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[:200]


def misfit(error):
    """What load_state_dict says of weights that do not fit, on one line: of each list of names the first three."""
    def shorter(found):
        names = found[0].split(", ")
        return f"{', '.join(names[:3])} and {len(names) - 3} more"
    text = re.sub(r'"[^"]*"(?:, "[^"]*"){3,}', shorter, " ".join(str(error).split()))
    return text if len(text) <= 600 else f"{text[:597]}..."                  # sizes that differ are told one by one


def read_text(path, advice="download it again"):
    """A text in UTF-8, with or without the mark of spreadsheets. advice: what to do if it cannot be read."""
    check_pointer(path)
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({why(error)}); {advice}") from error


def read_json(path, what, advice="download it again"):
    """What a JSON file holds. what, advice: what it should be and what to do if it is not, for the error."""
    try:
        return json.loads(read_text(path, advice))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not {what} ({why(error)}); {advice}") from error


def _read_plain_tif(file, bands):
    """The pixels (C, H, W) of the commonest kind of open TIFF, in a third of tifffile's time; None of any other.

    These are bytes, not compressed, bands interleaved, in strips that lie one behind the other, in a file of one image.
    """
    head, tags = file.read(8192), {}
    try:
        mark, start = struct.unpack_from("<4sI", head)
        count, = struct.unpack_from("<H", head, start)
        for at in range(start + 2, start + 2 + count * ENTRY.size, ENTRY.size):
            tag, kind, length, place = ENTRY.unpack_from(head, at)
            if tag not in NO_PIXELS:
                form = f"<{length}{TYPES[kind]}"
                tags[tag] = struct.unpack_from(form, head, at + 8 if struct.calcsize(form) <= 4 else place)
        another, = struct.unpack_from("<I", head, start + 2 + count * ENTRY.size)
        tags.setdefault(339, (1,) * bands)                                        # if it is left out: without sign
        (width,), (height,), (rows,), starts, sizes = (tags[tag] for tag in (256, 257, 278, 273, 279))
        one_behind_the_other = tuple(accumulate(sizes[:-1], initial=starts[0]))
        plain = {256: (width,), 257: (height,), 258: (8,) * bands, 259: (1,), 273: one_behind_the_other, 277: (bands,),
                 278: (rows,), 279: sizes, 284: (1,), 339: (1,) * bands}
        is_whole = len(sizes) == -(-height // rows) and sum(sizes) == height * width * bands
        if mark != b"II*\0" or another or tags != plain or not is_whole:
            return None
    except (struct.error, ValueError, LookupError, ArithmeticError):
        return None
    image = np.empty((height, width, bands), np.uint8)
    file.seek(starts[0])
    return image.transpose(2, 0, 1) if file.readinto(image) == image.nbytes else None


def _block_sizes(page):
    """Bytes of each strip or tile of a page without compression; tiles are whole also where they stick out."""
    whole = math.prod(page.chunks) * page.dtype.itemsize
    if page.is_tiled:
        return [whole] * math.prod(page.chunked)
    last = whole - whole // page.rowsperstrip * (-page.imagelength % page.rowsperstrip)
    planes = page.samplesperpixel if page.planarconfig == 2 else 1
    return ([whole] * (-(-page.imagelength // page.rowsperstrip) - 1) + [last]) * planes


def _nodata(page):
    """What stands in the strips that a sparse file leaves out: its GDAL_NODATA as GDAL understands it, else 0."""
    try:
        value = float(page.tags.valueof(42113, "0"))
        return page.dtype.type(value) if page.dtype.kind == "f" or value == page.dtype.type(value) else 0
    except (ValueError, OverflowError):    # no number, or none of this type
        return 0


def _read_any_tif(file):
    """The pixels (C, H, W) of the one image of an open TIFF. What is a band its tags say, never its shape."""
    file.seek(0)
    with tifffile.TiffFile(file) as tif:                                          # by its path it is opened more slowly
        page, *more = tif.pages
        starts, sizes = page.dataoffsets, page.databytecounts
        # tifffile would guess, and take zeros for missing strips; those of sparse files have neither place nor bytes
        is_whole = page.planarconfig in (1, 2) and len(starts) == len(sizes) == math.prod(page.chunked) and all(
            (start == 0) == (size == 0) for start, size in zip(starts, sizes))
        is_plain = page.compression == 1 and page.bitspersample == 8 * page.dtype.itemsize
        if not is_whole or is_plain and any(size not in (0, full) for size, full in zip(sizes, _block_sizes(page))):
            raise ValueError(f"its strips are not those of an image of shape {page.shape}")
        if any(other.shape == page.shape and not other.subfiletype for other in more):    # smaller ones are overviews
            raise UserError(f"{file.name}: {1 + len(more)} images in one file, expected one that has all bands; "
                            "write it so")
        page.nodata = _nodata(page)
        image = page.asarray().reshape(page.shaped)                               # plane, depth, row, column, sample
        if image.shape[1] != 1 or 1 not in (image.shape[0], image.shape[4]):
            raise ValueError(f"an image of shape {page.shape}")
        return image[:, 0].transpose(0, 3, 1, 2).reshape(-1, *image.shape[2:4])


def read_tif(path, bands):
    """An image of the given number of bands, (C, H, W) in the file's type, however the file orders or cuts them."""
    try:
        with open(path, "rb") as file:
            image = _read_plain_tif(file, bands)
            if image is None:
                image = _read_any_tif(file)
    except UserError:
        raise
    except Exception as error:    # tifffile and its codecs raise many kinds for damaged files
        check_pointer(path)
        raise UserError(f"{path}: cannot be read as TIFF ({why(error)}); download it again") from error
    if len(image) != bands:
        raise UserError(f"{path}: shape {(*image.shape[1:], len(image))}, expected {bands} bands")
    return image


def read_npy(path):
    """An array file, memory-mapped: nothing is read yet, see datasets.series.fetch."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("it is an npz file")
        if array.offset + array.nbytes != os.path.getsize(path):
            raise ValueError(f"{os.path.getsize(path)} bytes, its header says {array.offset + array.nbytes}")
    except Exception as error:    # numpy raises many kinds for damaged headers
        check_pointer(path)
        raise UserError(f"{path}: cannot be read as a numpy array ({why(error)}); download it again") from error
    return array


def read_npz(path, has_dates=True):
    """A series of one's own: data (T, C, H, W) and dates (T,) as YYYYMMDD; or an image, data (C, H, W) and None."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if not has_dates:
                return file["data"], None
            data, dates = file["data"], np.ravel(file["dates"])
        if dates.dtype.kind not in "iufSU":
            raise ValueError(f"dates of type {dates.dtype}")
        if dates.dtype.kind == "f" and dates.dtype.itemsize < 8:
            raise ValueError(f"dates of type {dates.dtype.name}, which cannot hold eight digits: 20200321 becomes "
                             "20200320; int32 can")
        return data, dates
    except Exception as error:    # numpy, zipfile and zlib raise many kinds for damaged files
        check_pointer(path)
        raise UserError(f"{path}: cannot be read as an npz file with data{' and dates' * has_dates} ({why(error)}); "
                        "write it again") from error
