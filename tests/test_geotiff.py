"""Features in their place: a GeoTIFF's tags, scaled, shifted and read again."""
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile

from datasets import open_dataset
from datasets.files import read_tif
from datasets.geotiff import coarser, read_place
from engine import shards
from tests.own import embedded, mine, own_table, read  # noqa: F401
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")


def ground(path):
    """Where the corners of a tif's image lie, and the middles of its pixels, by its tags: (x, y) arrays."""
    place, (rows, columns) = read_place(path)
    (across, down, _), (column, row, _, x, y, _) = place[33550], place[33922]

    def at(i, j):
        return x + (i - column) * across, y - (j - row) * down
    i, j = np.meshgrid(np.arange(columns), np.arange(rows))
    return at(np.array([0, columns]), np.array([0, rows])), at(i + 0.5, j + 0.5)


def test_features_lie_where_the_tiles_do(mine, tmp_path):
    """A pixel is a patch, a band one of D."""
    _, bare, pretrained, _ = mine
    embedded(pretrained, bare, tmp_path / "npz", "--level", "patch")
    embedded(pretrained, bare, tmp_path / "tif", "--level", "patch", "--format", "geotiff")
    found = read(tmp_path / "npz")
    assert sorted(path.name for path in (tmp_path / "tif").glob("*.tif")) == [f"t{n}.tif" for n in range(10)]
    for number, f in enumerate(found["features"]):
        path, source = tmp_path / "tif" / f"t{number}.tif", bare / "drone" / f"t{number}.tif"
        image = read_tif(path, 32)
        assert image.dtype == np.float32 and np.array_equal(image, f.reshape(3, 2, 32).transpose(2, 0, 1))
        (corners, middles), (wanted, pixels) = ground(path), ground(source)
        assert np.array_equal(corners, wanted)
        for at, of in zip(middles, pixels):                                   # a patch's middle is that of its pixels
            np.testing.assert_allclose(at, of.reshape(3, 8, 2, 8).mean((1, 3)), rtol=0, atol=1e-6)
        place, (original, _) = read_place(path)[0], read_place(source)
        assert place[33550] == (8, 8, 0) and (place[34735], place[34737]) == (original[34735], original[34737])
        with tifffile.TiffFile(path) as tif:
            assert json.loads(tif.pages[0].description)["tile"] == f"t{number}"


def test_rasterio_agrees(mine, tmp_path):
    rasterio = pytest.importorskip("rasterio")
    _, bare, pretrained, _ = mine
    embedded(pretrained, bare, tmp_path, "--level", "patch", "--format", "geotiff")
    with rasterio.open(tmp_path / "t3.tif") as ours, rasterio.open(bare / "drone" / "t3.tif") as source:
        assert ours.bounds == source.bounds and ours.crs == source.crs and (ours.count, ours.res) == (32, (8, 8))


def test_geotiffs_of_a_killed_run_are_made_whole(mine, tmp_path):
    _, bare, pretrained, _ = mine
    embedded(pretrained, bare, tmp_path / "a", "--level", "patch", "--format", "geotiff")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "t5.tif").unlink()
    embedded(pretrained, bare, tmp_path / "b", "--level", "patch", "--format", "geotiff")
    for path in (tmp_path / "a").glob("*.tif"):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_the_real_tile_is_cut_in_its_middle(real):
    """304 pixels of 0.2 m, of which the reader leaves out 2 at each side: its patches begin 0.4 m further in."""
    dataset = open_dataset("treesatai-ts", real, "all", ("vhr",), labelled=False)
    tags, corner, patch = shards.place_of(dataset, 0)
    x, y = tags[33922][3:5]
    assert corner == [2, 2] and patch == (50, 50)
    place = coarser(tags, corner, patch)
    assert place[33550][:2] == pytest.approx((10, 10)) and place[33922][3:5] == pytest.approx((x + 0.4, y - 0.4))
    assert place[34735] == tags[34735]


def test_a_part_of_a_tile_has_its_own_corner(mine):
    """As of PASTIS-HD, --parts 2: 16 of 32 pixels, the lower left quarter here."""
    path = mine[1] / "drone" / "t1.tif"
    whole = open_dataset("mine", mine[1], "all", ("drone",), labelled=False)
    whole.names, whole.is_part = ["t1-1-0"], lambda i: True
    whole.paths["drone"] = [path]
    whole.window = lambda i, size, axis: slice(*[(size // 2, size), (0, size // 2)][axis])
    tags, corner, patch = shards.place_of(whole, 0)
    assert corner == [12, 0] and coarser(tags, corner, patch)[33922][3:5] == (600016, 5800000 - 12)


@pytest.mark.parametrize("is_point", [False, True])
@pytest.mark.parametrize("kind", ["scale", "transformation", "points"])
def test_places_of_each_kind(kind, is_point):
    """The ground under a corner of a new pixel, held to that of the old pixels around it."""
    keys = (1, 1, 0, 1, 1025, 0, 1, 2 if is_point else 1)
    matrix = np.array([[0.5, 0.1, 0, 100], [0.2, -0.5, 0, 200], [0, 0, 0, 0], [0, 0, 0, 1.0]])

    def affine(i, j, of):
        return of.reshape(4, 4)[:2] @ [i, j, 0, 1]
    points = [[i, j, 0, *affine(i, j, matrix), 0] for i, j in ((0, 0), (9, 0), (0, 9))]
    old = {"scale": {33550: (0.5, 0.25, 0), 33922: (3.0, 4.0, 0, 100, 200, 0)},
           "transformation": {34264: tuple(matrix.ravel())}, "points": {33922: tuple(np.ravel(points))}}[kind]
    new = coarser(old | {34735: keys}, (2, 1), (4, 6))
    half = 0.5 if is_point else 0                                             # I = J = 0 is the middle of a pixel then

    def where(place, i, j):
        """Of the corner at the left and top of pixel (i, j)."""
        i, j = i - half, j - half
        if 33550 in place:
            (across, down, _), (column, row, _, x, y, _) = place[33550], place[33922]
            return np.array([x + (i - column) * across, y - (j - row) * down])
        if 34264 in place:
            return affine(i, j, np.array(place[34264]))
        points = np.reshape(place[33922], (-1, 6))
        solved = np.linalg.solve(np.c_[points[:, :2], np.ones(3)], points[:, 3:5])
        return np.array([i, j, 1]) @ solved
    for column, row in ((0, 0), (1, 0), (2, 3)):
        np.testing.assert_allclose(where(new, column, row), where(old, 1 + 6 * column, 2 + 4 * row), atol=1e-9)


def test_a_name_that_leads_out_of_the_folder():
    with pytest.raises(UserError, match="../x: a tile's name that leads out of maps"):
        shards.tif_of("maps", "../x")
    assert shards.tif_of("maps", "a/x.tif") == Path("maps/a/x.tif")
