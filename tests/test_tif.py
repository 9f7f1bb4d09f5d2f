"""TIFF files as other programs write them: planes, tiles over the border, strips that were left out, endings."""
import struct

import numpy as np
import pytest
import tifffile

from datasets import files
from datasets.files import read_tif
from utils.errors import UserError

RNG = np.random.default_rng(0)


def image_of(height, width, bands, dtype):
    return RNG.integers(1, 250, (height, width, bands)).astype(dtype)


def write(path, image, planes=False, **options):
    """image: (H, W, C)."""
    if image.shape[2] == 1:
        tifffile.imwrite(path, image[..., 0], photometric="minisblack", metadata=None, **options)
    else:
        tifffile.imwrite(path, image.transpose(2, 0, 1) if planes else image, photometric="minisblack",
                         planarconfig="separate" if planes else "contig", metadata=None, **options)
    return path


def wrong(path, bands):
    with pytest.raises(UserError) as error:
        read_tif(path, bands)
    return str(error.value)


# ---- what a band is, the tag decides --------------------------------------------------------------------------------

@pytest.mark.parametrize("height, width, bands",
                         [(304, 304, 3), (60, 3, 3), (3, 60, 3), (3, 3, 3), (4, 40, 3), (9, 2, 1)])
@pytest.mark.parametrize("compression", [None, "lzw", "zlib"])
@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("cut", [{}, {"rowsperstrip": 7}, {"tile": (256, 256)}, {"tile": (16, 32)}])
def test_every_layout_is_the_same_image(tmp_path, height, width, bands, compression, planes, cut):
    """Also where there are as many columns or rows as bands, and where tiles stick out over the border."""
    for dtype in (np.uint8, np.uint16, np.float32):
        image = image_of(height, width, bands, dtype)
        path = write(tmp_path / "image.tif", image, planes, compression=compression, **cut)
        found = read_tif(path, bands)
        assert found.dtype == dtype and np.array_equal(found, image.transpose(2, 0, 1))


@pytest.mark.parametrize("height, width", [(3, 8), (8, 3)])
def test_columns_and_rows_are_no_bands(tmp_path, height, width):
    path = tmp_path / "image.tif"
    write(path, image_of(height, width, 1, np.uint8))
    assert wrong(path, 3) == f"{path}: shape ({height}, {width}, 1), expected 3 bands"
    write(path, image_of(height, width, 5, np.uint8), planes=True)
    assert wrong(path, 3) == f"{path}: shape ({height}, {width}, 5), expected 3 bands"


def test_bands_as_images_of_their_own_are_refused(tmp_path):
    """Of these the first would be all that is read; smaller images are overviews and change nothing."""
    path, image = tmp_path / "image.tif", image_of(20, 20, 1, np.uint8)
    tifffile.imwrite(path, np.stack([image[..., 0]] * 3), photometric="minisblack", metadata=None)
    assert wrong(path, 1) == f"{path}: 3 images in one file, expected one that has all bands; write it so"
    with tifffile.TiffWriter(path) as file:
        file.write(image, photometric="minisblack", subifds=0)
        file.write(image[::2, ::2], photometric="minisblack", subfiletype=1)
    assert np.array_equal(read_tif(path, 1), image.transpose(2, 0, 1))


# ---- strips and tiles that were left out ----------------------------------------------------------------------------

def sparse(path, image, left_out, nodata=None, planes=False, **options):
    """Write an image and then leave out some of its strips or tiles, as GDAL's SPARSE_OK does: no bytes at no place."""
    tags = [] if nodata is None else [(42113, 2, 0, nodata, True)]
    write(path, image, planes, extratags=tags, **options)
    with tifffile.TiffFile(path) as file:
        page, content = file.pages[0], bytearray(path.read_bytes())
        form, is_tiled = file.byteorder, page.is_tiled
        for code in (324, 325) if is_tiled else (273, 279):
            tag = page.tags[code]
            size = {3: 2, 4: 4}[int(tag.dtype)]
            for k in left_out:
                struct.pack_into(form + {2: "H", 4: "I"}[size], content, tag.valueoffset + k * size, 0)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("dtype, nodata, value", [
    (np.uint8, None, 0), (np.uint8, "255", 255), (np.uint8, "-9999", 0), (np.int16, "-9999", -9999),
    (np.int16, "-9999.0", -9999),
    (np.float32, "-3.4028234663852886e+38", np.finfo(np.float32).min), (np.float32, "nan", np.nan),
    (np.uint16, "none", 0)])
@pytest.mark.parametrize("planes", [False, True])
def test_left_out_tiles_hold_nodata_or_zeros(tmp_path, compression, dtype, nodata, value, planes):
    image = image_of(304, 304, 2, dtype)
    path = sparse(tmp_path / "image.tif", image, [1, 2], nodata, planes, compression=compression, tile=(256, 256))
    expected = image.transpose(2, 0, 1).copy()
    if planes:
        expected[0, :256, 256:] = expected[0, 256:, :256] = value
    else:
        expected[:, :256, 256:] = expected[:, 256:, :256] = value
    assert np.array_equal(read_tif(path, 2), expected, equal_nan=dtype == np.float32)


@pytest.mark.parametrize("compression", [None, "lzw"])
@pytest.mark.parametrize("left_out", [[0], [3], [1, 2], [4], [0, 1, 2, 3, 4]])
def test_left_out_strips_hold_nodata(tmp_path, compression, left_out):
    image = image_of(34, 20, 3, np.uint8)
    path = sparse(tmp_path / "image.tif", image, left_out, "7", compression=compression, rowsperstrip=8)
    for k in left_out:
        image[8 * k:8 * k + 8] = 7
    assert np.array_equal(read_tif(path, 3), image.transpose(2, 0, 1))


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("code", [325, 324])
def test_a_tile_without_a_size_or_without_a_place_is_damage(tmp_path, code, compression):
    image = image_of(304, 304, 3, np.uint8)
    path = write(tmp_path / "image.tif", image, tile=(256, 256), compression=compression)
    with tifffile.TiffFile(path, mode="r+") as file:
        values = list(file.pages[0].tags[code].value)
        file.pages[0].tags[code].overwrite([*values[:2], 0, *values[3:]])
    assert wrong(path, 3).startswith(f"{path}: cannot be read as TIFF")


def test_a_tile_over_the_border_that_was_cut_is_damage(tmp_path):
    path = write(tmp_path / "image.tif", image_of(304, 304, 3, np.uint8), tile=(256, 256))
    with tifffile.TiffFile(path, mode="r+") as file:
        sizes = list(file.pages[0].tags[325].value)
        file.pages[0].tags[325].overwrite([*sizes[:3], 48 * 48 * 3])
    assert "its strips are not those of an image of shape (304, 304, 3)" in wrong(path, 3)


def test_the_short_way_is_still_taken(tmp_path, real, monkeypatch):
    """Of the real tile, and of what the demo writes: a third of the time."""
    monkeypatch.setattr(files, "_read_any_tif", None)
    (path,) = (real / "aerial").glob("*.tif")
    assert read_tif(path, 4).shape == (4, 304, 304)
    assert read_tif(write(tmp_path / "image.tif", image_of(60, 60, 4, np.uint8)), 4).shape == (4, 60, 60)
