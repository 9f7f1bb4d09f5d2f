"""A series as arrays: read as far as it is needed, cleaned, and cut to a number of dates.

Two things are repaired, by clean(): dates without data are left out, and single missing pixels filled.

Dimensions: T dates, C bands, H x W pixels.
"""
import mmap

import numpy as np

from datasets.files import why
from utils.errors import UserError

MISSING_SHARE = 0.5            # a date goes if a band lacks more of its pixels


# ---- arrays ---------------------------------------------------------------------------------------------------------

def fetch(mapped, dates, nodata=None):
    """Some dates (n,) of a memory-mapped series or of a window in its images, (T, C, H, W): (n, C, H, W), as native.

    Left to itself the system reads more from the disk than what is touched, for a small window the whole file. So it
    is told where each band of each date lies beforehand: it reads these pages only, and all at once instead of one
    after the other.
    """
    if hasattr(mmap, "MADV_WILLNEED"):                                            # not on Windows
        mapped._mmap.madvise(mmap.MADV_RANDOM)
        start = mapped.ctypes.data - np.frombuffer(mapped._mmap, np.uint8).ctypes.data
        date, band, row, column = mapped.strides
        length = (mapped.shape[2] - 1) * row + (mapped.shape[3] - 1) * column + mapped.itemsize
        for at in (start + np.add.outer(np.multiply(dates, date), np.arange(mapped.shape[1]) * band)).ravel().tolist():
            page = at - at % mmap.PAGESIZE
            mapped._mmap.madvise(mmap.MADV_WILLNEED, page, at + length - page)
    return native(mapped[dates], nodata)


def native(data, nodata=None):
    """Numbers in a type that torch computes with, no wider than needed: float64 becomes float32, half precision stays.

    Unsigned numbers of over one byte become int16, or what is wide enough for the largest of them and for nodata: no
    value changes. Double precision beyond the range of single becomes infinite, and so missing.
    """
    dtype = data.dtype.newbyteorder("=")
    if dtype.kind == "u" and dtype.itemsize > 1:
        highest = max(int(data.max(initial=0)), nodata or 0)
        fitting = (signed for signed in (np.int16, np.int32, np.int64) if highest <= np.iinfo(signed).max)
        dtype = next(fitting, np.float32)
    elif dtype.kind == "f" and dtype.itemsize > 4:
        dtype = np.float32
    with np.errstate(over="ignore", invalid="ignore"):
        return data.astype(dtype, copy=False)


# ---- series ---------------------------------------------------------------------------------------------------------

def day_numbers(dates, sensor, source):
    """Day numbers (T,) int64 of dates given as whole numbers YYYYMMDD: days of the year, or since the sensor's origin.

    source: where the dates are from, for the error.
    """
    try:
        text = [str(int(date)) for date in dates]
        if any(len(d) != 8 or int(d) != float(date) for d, date in zip(text, dates)):
            raise ValueError("not eight digits")
        days = np.array([f"{d[:4]}-{d[4:6]}-{d[6:]}" for d in text], dtype="datetime64[D]")
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{source}: a date of {sensor.key} is not of the form YYYYMMDD ({why(error)}); expected is "
                        "such as 20190131") from error
    new_year = days.astype("datetime64[Y]").astype("datetime64[D]")
    first = new_year - 1 if sensor.origin is None else np.datetime64(sensor.origin)
    numbers = (days - first).astype(np.int64)
    if len(numbers) and not 0 <= numbers.min() <= numbers.max() <= sensor.period:
        bad = text[int(((numbers < 0) | (numbers > sensor.period)).argmax())]
        raise UserError(f"{source}: the date {bad} of {sensor.key} is outside the {sensor.period} days from "
                        f"{sensor.origin or 'New Year'} that its entry in datasets/sensors.py allows")
    return numbers


def missing(data, nodata=None, lowest=None):
    """Which numbers are NaN, infinite, nodata or below the lowest: bool of the same shape, or one False for all."""
    is_missing = np.False_ if lowest is None else data < lowest
    if data.dtype.kind != "f":
        return is_missing if nodata is None else is_missing | (data == nodata)
    if data.dtype == np.float16:    # np.isfinite takes 15 times longer on these
        is_missing = is_missing | ((data.view(np.uint16) & 0x7C00) == 0x7C00)
    else:
        is_missing = is_missing | ~np.isfinite(data)
    with np.errstate(over="ignore"):    # a nodata value that half precision cannot hold
        return is_missing if nodata is None else is_missing | (data == nodata)


def uncovered(data):
    """Which pixels of a series (T, C, H, W) are 0 in all bands, (T, H, W) bool: outside of what the products cover.

    No ground is: in real tiles the least of an optical band is 1, and radar has zeros in one polarisation alone. With
    one band that is not certain: clean keeps such a 0 beside others that are not, and `nodata` of the sensor's entry
    can tell.
    """
    outside = data[:, 0] == 0
    if outside.any():                                                             # one band clears most
        dates = np.flatnonzero(outside.any((1, 2)))
        outside[dates] = ~data[dates].any(1)
    return outside


def filled(data, is_missing):
    """The mean of a band's others (of a date) in place of missing pixels: data (..., H, W), bool of the same shape."""
    values = np.where(is_missing, np.zeros((), data.dtype), data)
    count = np.maximum(1, (~is_missing).sum((-2, -1), keepdims=True))
    mean = values.sum((-2, -1), dtype=np.float64, keepdims=True) / count
    return np.where(is_missing, mean if data.dtype.kind == "f" else mean.round(), values).astype(data.dtype)


def clean(data, days, is_cloudy=False, nodata=None, lowest=None):
    """What makes a series usable: data (T, C, H, W) and days (T,) in, the same with fewer dates out, in time order.

    A date goes, and its day with it, if a band lacks over half of its pixels (see missing and uncovered), or all bands
    are 0; so do cloudy ones (is_cloudy (T,) bool). Of several acquisitions of one day the first that is left stays:
    they are slices of one pass. Other missing pixels become the mean of their band on that date.
    """
    is_bad, is_missing = np.zeros(len(data), bool) | is_cloudy, missing(data, nodata, lowest)
    if (outside := uncovered(data)).any():
        is_bad |= outside.all((1, 2))
        if data.shape[1] > 1:
            is_missing = is_missing | outside[:, None]
    if is_missing.any():
        is_missing = np.broadcast_to(is_missing, data.shape)
        is_bad |= (is_missing.mean((2, 3)) > MISSING_SHARE).any(1)
        data = filled(data, is_missing)
    if not is_bad.any() and (days[1:] > days[:-1]).all():                         # nothing to leave out: no copy
        return data, days
    kept = np.flatnonzero(~is_bad)
    kept = kept[np.unique(days[kept], return_index=True)[1]]
    return data[kept], days[kept]


def choose_dates(dates, most, rng=None):
    """Which dates of a longer series are used, None: all. At random in time order, or evenly spread without an rng."""
    if most is None or dates <= most:
        return slice(None)
    if rng is None:
        return np.linspace(0, dates - 1, most).round().astype(int)
    return np.sort(rng.choice(dates, most, replace=False))
