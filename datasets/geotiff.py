"""Where an image lies on the ground, as GeoTIFF 1.1 has it in a file's tags: read, and written for coarser pixels.

A point (I, J) of the pixels, column and row, lies at a map's (X, Y) by the tags
    33550 ModelPixelScale     ground units a pixel, of columns, rows and heights
    33922 ModelTiepoint       points I, J, K and where each lies, X, Y, Z
    34264 ModelTransformation 4 x 4, from I, J, K, 1, in place of the above; for images that are turned
    34735 GeoKeyDirectory     which map, with 34736 and 34737, numbers and texts of it
Most files count I and J from the corner of the first pixel; a key may have them count from its centre.
"""
import numpy as np
import tifffile

from datasets.files import why
from utils.errors import UserError
from utils.files import check_pointer, written_whole

SCALE, TIEPOINT, TRANSFORMATION, KEYS, NUMBERS, TEXTS = 33550, 33922, 34264, 34735, 34736, 34737
TYPES = {SCALE: "d", TIEPOINT: "d", TRANSFORMATION: "d", KEYS: "H", NUMBERS: "d", TEXTS: "s"}
RASTER_TYPE, POINT = 1025, 2    # a key, and its value where pixels are counted from their centres


def read_place(path):
    """Tags of a TIFF's place, {tag: tuple or text}, {} if it has none, and its (height, width) in pixels."""
    try:
        with tifffile.TiffFile(path) as tif:
            page = tif.pages[0]
            place = {tag: page.tags[tag].value for tag in TYPES if tag in page.tags}
            size = page.imagelength, page.imagewidth
        has_place = TRANSFORMATION in place or TIEPOINT in place
        return {tag: value if tag == TEXTS else tuple(np.ravel(value).tolist())
                for tag, value in place.items()} if has_place else {}, size
    except Exception as error:    # tifffile raises many kinds for damaged files
        check_pointer(path)
        raise UserError(f"{path}: cannot be read as TIFF ({why(error)}); download it again") from error


def is_point(place):
    """Whether I and J count from the centre of the first pixel."""
    keys = place.get(KEYS, ())
    return any(keys[at:at + 2] == (RASTER_TYPE, 0) and keys[at + 3] == POINT for at in range(4, len(keys) - 3, 4))


def coarser(place, corner, step):
    """The place of an image whose pixels are step (rows, columns) of the old ones, from a corner (row, column) on."""
    (top, left), (down, across), place = corner, step, dict(place)
    if is_point(place):                                                       # from the centre of the first new pixel
        top, left = top + (down - 1) / 2, left + (across - 1) / 2
    if SCALE in place:
        x, y, *z = place[SCALE]
        place[SCALE] = (x * across, y * down, *z)
    if TIEPOINT in place:
        points = np.array(place[TIEPOINT], float).reshape(-1, 6)
        points[:, 0], points[:, 1] = (points[:, 0] - left) / across, (points[:, 1] - top) / down
        if SCALE in place:                                                    # of (0, 0), which some readers expect
            (column, row, depth, x, y, z), (across, down, *_) = points[0], place[SCALE]
            points = np.array([0, 0, depth, x - column * across, y + row * down, z])
        place[TIEPOINT] = tuple(points.ravel().tolist())
    if TRANSFORMATION in place:
        matrix, new = np.reshape(place[TRANSFORMATION], (4, 4)), np.diag([across, down, 1.0, 1.0])
        new[:2, 3] = left, top
        place[TRANSFORMATION] = tuple((matrix @ new).ravel().tolist())
    return place


def write_geotiff(path, image, place, about):
    """An image (C, H, W) with a place, whole or not at all. about: text that goes with it, in ASCII."""
    place = {tag: value.encode("ascii", "replace") if tag == TEXTS else value for tag, value in place.items()}
    tags = [(tag, TYPES[tag], len(value), value, True) for tag, value in place.items()]
    with written_whole(path, "wb") as file:
        tifffile.imwrite(file, np.ascontiguousarray(image.transpose(1, 2, 0)), photometric="minisblack",
                         planarconfig="contig", description=about, metadata=None, software="", extratags=tags)
