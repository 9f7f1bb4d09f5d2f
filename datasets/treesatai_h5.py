"""The series file of a tile of TreeSatAI-TS: HDF5 with Sentinel-2 and both orbits of Sentinel-1, read by h5py's low
level.

Dimensions: T dates, C bands.
"""
import calendar
import math
import os
import struct
from contextlib import contextmanager

import h5py
import numpy as np

from datasets.files import why
from utils.errors import UserError
from utils.files import check_pointer

GRID = 6                       # pixels of a tile, along a side
MOST = 1 << 24                 # numbers in a dataset: a year of 46,000 dates of S2
PLACES = 10 ** np.arange(8)[::-1]               # what the digits of YYYYMMDD stand for
REFERENCE, OBJECT = struct.Struct("<IQI"), struct.Struct("<H6xQ")    # of HDF5's global heap, see _read_products
IS_LEAP = np.array([calendar.isleap(year) for year in range(10_000)], int)
DAY_OF_YEAR = np.zeros((2, 10_000), np.int64)    # of a year that is leap or not, of MMDD; 0 is no date
for _year in (2019, 2020):
    _days = np.arange(f"{_year}-01-01", f"{_year + 1}-01-01", dtype="datetime64[D]").astype(str)
    DAY_OF_YEAR[IS_LEAP[_year], [int(_day[5:7] + _day[8:]) for _day in _days]] = np.arange(len(_days)) + 1
# key: (data, products, where the date stands in the product's name, bands in the file)
SERIES = {"s2": ("sen-2", 11, 10), "s1": ("sen-1-asc", 17, 2), "s1-des": ("sen-1-des", 17, 2)}


@contextmanager
def _h5(path):
    """An open series file, by h5py's low level: 2.5 times faster, and its bytes. Errors: UserError naming the file."""
    try:
        file = h5py.h5f.open(os.fsencode(path), h5py.h5f.ACC_RDONLY)
        with open(path, "rb") as content:
            yield file, content
    except UserError:
        raise
    except Exception as error:    # libhdf5 and h5py raise many kinds for damaged files
        check_pointer(path)
        raise UserError(f"{path}: cannot be read as HDF5 ({why(error)}); download it again") from error


def read_h5(path, keys, grid=GRID):
    """The series of one tile: {key: (data (T, C, grid, grid) float32, days of the year (T,) int64)}, as they are in
    the file.

    S2 in digital numbers, S1 in linear power. T = 0 is legal. Errors: UserError naming the file and the dataset.
    """
    series, texts = {}, {}
    with _h5(path) as (file, content):
        for key in keys:
            prefix, start, bands = SERIES[key]
            data = _read_dataset(file, content, path, f"{prefix}-data", np.float32)
            products = _read_products(file, content, path, f"{prefix}-products", start + 8, texts)
            if data.size == 0 and len(products) == 0:                             # however an empty series is stored
                data = np.zeros((0, bands, grid, grid), np.float32)
            if data.shape != (len(products), bands, grid, grid):
                raise UserError(f"{path}: {prefix}-data has shape {data.shape}, expected {len(products)} (as many as "
                                f"products) x {bands} x {grid} x {grid}; download it again")
            series[key] = data, days_of_year(products, start, path)
    return series


def read_cloud(path):
    """Mean over the pixels of the larger probability of snow and cloud, %, (T,)."""
    with _h5(path) as (file, content):
        masks = _read_dataset(file, content, path, "sen-2-masks", np.float32)
    if masks.ndim != 4 or masks.shape[1] < 2:    # T x 2 or 10 x 6 x 6: further ones are empty
        raise UserError(f"{path}: sen-2-masks has shape {masks.shape}, expected T x 2 or more x H x W; download it "
                        "again")
    return masks[:, :2].max(1).mean((1, 2), dtype=np.float64)


def _open_dataset(file, path, name):
    """A dataset of an open file, nothing read yet: itself, shape, type, where it begins (None if not in one piece),
    bytes.
    """
    try:
        dataset = h5py.h5d.open(file, name.encode())
    except KeyError as error:
        raise UserError(f"{path}: no dataset {name}; download it again") from error
    shape = dataset.get_space().get_simple_extent_dims()                          # in half the time of dataset.shape
    if math.prod(shape) > MOST:
        raise UserError(f"{path}: {name} has shape {shape}, more than a year can have; download it again")
    return dataset, shape, dataset.get_type(), dataset.get_offset(), dataset.get_storage_size()


def _read_dataset(file, content, path, name, dtype=None):
    """One dataset of an open file, converted to a type or (None) as it is stored."""
    dataset, shape, kind, start, size = _open_dataset(file, path, name)
    if dtype == np.float32 and start is not None and size == 4 * math.prod(shape) and kind.equal(h5py.h5t.NATIVE_FLOAT):
        array = np.empty(shape, dtype)                                            # in half of libhdf5's time
        content.seek(start)
        if content.readinto(array) != size:
            raise ValueError(f"{name} ends too early")
        return array
    stored = dataset.dtype                                                        # an error if what says it is damaged
    array = np.empty(shape, dtype or stored)
    dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, array)
    return array


def _read_products(file, content, path, name, length, texts):
    """The first bytes of the products' names, (T, length) uint8, 0 behind the end of a shorter one.

    texts: what was read of the file's heaps already, to which is added.
    The names are texts in global heaps, in which libhdf5 2.0 goes round in circles for ever if a block was lost to
    zeros. So the heaps are read here (HDF5 file format, section III.E), and what is stored in another way is left to
    libhdf5.
    """
    _, shape, kind, start, size = _open_dataset(file, path, name)
    is_text = isinstance(kind, h5py.h5t.TypeStringID) and kind.is_variable_str()
    if not is_text or len(shape) != 1 or start is None or size != REFERENCE.size * shape[0]:
        products = _read_dataset(file, content, path, name)
    else:
        content.seek(start)
        products = []
        for reference in REFERENCE.iter_unpack(content.read(size)):
            if reference not in texts:
                _read_heap(content, reference[1], texts)
                if reference not in texts:
                    raise ValueError(f"text {reference[2]} of {name} is not there")
            products.append(texts[reference])
    products = np.array(products, f"S{length}")
    return products.view(np.uint8).reshape(*products.shape, length)


def _read_heap(content, address, texts):
    """Add the objects of a global heap, as far as it is whole, to texts: {reference (length, address, number): bytes}.
    """
    content.seek(address)
    mark, size = struct.unpack("<4s4xQ", content.read(16))
    heap = content.read(max(0, min(size, MOST) - 16)) if mark == b"GCOL" else b""
    at, last, unpack = 0, len(heap) - OBJECT.size, OBJECT.unpack_from
    while at <= last:
        number, length = unpack(heap, at)
        if number == 0:                                                           # the rest is free
            break
        at += OBJECT.size
        texts[length, address, number] = heap[at:at + length]
        at += length + 7 & ~7                                                     # whole numbers of 8 bytes


def days_of_year(products, start, path):
    """Day of the year, 1..366, (T,) int64, from YYYYMMDD at a fixed place of each product's name: (T, start + 8) uint8.
    """
    digits = products[:, start:] - ord("0")                                       # what is no digit is over 9
    date = digits @ PLACES
    days = DAY_OF_YEAR[IS_LEAP[date // 10_000 % 10_000], date % 10_000]
    if not (days.all() and products.all() and digits.max(initial=0) <= 9):
        is_date = (days > 0) & (digits <= 9).all(1) & products.all(1)             # which one, in four times as long
        raise UserError(f"{path}: no date at character {start} of product {bytes(products[is_date.argmin()])!r}; "
                        "download it again")
    return days
