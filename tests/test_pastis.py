"""The reader of PASTIS-HD, trap by trap, on a hand-made miniature: tiles of 8 x 8 Sentinel and 80 x 80 SPOT pixels."""
import json
import shutil

import numpy as np
import pytest
import tifffile
import torch

from datasets import default_modalities, open_dataset
from datasets.loading import collate
from datasets.pastis import CLASSES, read_metadata
from datasets.sensors import SENSORS
from datasets.series import choose_dates, fetch, missing
from models.omnisat import patchify
from utils.errors import UserError

ALL = ("vhr", "s2", "s1")
FOLDS = {30001: 5, 10000: 1, 20005: 3, 10002: 2, 10007: 4}    # ids with gaps; train is 10000, 10002, 20005
# days since 1 September 2018, counted by hand
S2_DATES = {20180917: 16, 20181001: 30, 20181101: 61, 20181201: 91, 20190101: 122, 20190201: 153, 20190301: 181,
            20190401: 212,
            20190501: 242, 20190601: 273, 20190701: 303, 20191027: 421}
DATES = {"S2": list(S2_DATES), "S1A": [20180918, 20190101], "S1D": [20180903, 20190601, 20191231]}


@pytest.fixture(autouse=True)
def own_folder(tmp_path_factory, monkeypatch):
    """Label files of this test only. Returns their folder."""
    folder = tmp_path_factory.mktemp("splits")
    monkeypatch.setattr("datasets.splits.FOLDER", folder)
    return folder


def s2_path(root, tile=10000):
    return root / "DATA_S2" / f"S2_{tile}.npy"


def s1_path(root, orbit="A", tile=10000):
    return root / f"DATA_S1{orbit}" / f"S1{orbit}_{tile}.npy"


def spot_path(root, tile=10000):
    return root / "DATA_SPOT" / "PASTIS_SPOT6_RVB_1M00_2019" / f"SPOT6_RVB_1M00_2019_{tile}.tif"


def target_path(root, tile=10000):
    return root / "ANNOTATIONS" / f"TARGET_{tile}.npy"


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


def s2_values(dates=12, side=8):
    """2000 x date + 100 x band + number of the pixel (modulo 100), so that each value tells where it is from."""
    t, b, pixel = np.ogrid[:dates, :10, :side * side]
    return (2000 * t + 100 * b + pixel % 100).astype(np.int16).reshape(dates, 10, side, side)


def s1_values(dates, level, side=8):
    """level - date, VH 5 dB lower, and 5 dB, as half-precision numbers."""
    one = np.array([level, level - 5, 5.])[:, None, None] * np.ones((side, side))
    return np.stack([one - [[[t]], [[t]], [[0]]] for t in range(dates)]).astype(np.float16)


def write_spot(path, image, compression=None, planar=False):
    """image (H, W, 3)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, image.transpose(2, 0, 1) if planar else image, photometric="rgb", compression=compression,
                     planarconfig="separate" if planar else "contig")


def write_tile(root, tile, side=8, dates=DATES):
    save(s2_path(root, tile), s2_values(len(dates["S2"]), side))
    save(s1_path(root, "A", tile), s1_values(len(dates["S1A"]), -10, side))
    save(s1_path(root, "D", tile), s1_values(len(dates["S1D"]), -20, side))
    write_spot(spot_path(root, tile), np.arange(300 * side * side).reshape(10 * side, 10 * side, 3).astype(np.uint8))
    save(target_path(root, tile), np.stack([np.full((side, side), k, np.uint8) for k in (1, 7, 9)]))


def write_metadata(root, folds=FOLDS, as_text=False, dates=DATES, **changes):
    """changes: properties of tile 10000."""
    features = []
    for n, (tile, fold) in enumerate(folds.items()):
        properties = {"Fold": fold, "ID_PATCH": tile, "N_Parcel": 3, "Parcel_Cover": 0.5, "TILE": "t30uxv",
                      "id": str(tile)}
        for name, values in dates.items():
            keys = sorted(str(k) for k in range(len(values)))    # "10" before "2"
            entry = {key: values[int(key)] for key in keys}
            properties[f"dates-{name}"] = json.dumps(entry) if as_text else entry
        if tile == 10000:
            properties |= changes
        ring = [[0, 0], [1, 0], [1, 1], [0, 0]]
        geometry = {"type": "MultiPolygon", "coordinates": [[ring]]} if n % 2 else {"type": "Polygon",
                                                                                    "coordinates": [ring]}
        features.append({"id": str(n), "type": "Feature", "properties": properties, "geometry": geometry})
    (root / "metadata.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))


@pytest.fixture
def release(tmp_path):
    root = tmp_path / "PASTIS-HD"
    root.mkdir()
    for tile in FOLDS:
        write_tile(root, tile)
    write_metadata(root)
    (root / "DEMO.json").write_text('{"side": 8}')
    return root


def pastis(root, split="train", modalities=ALL, **options):
    return open_dataset("pastis-hd", root, split, modalities, **options)


# ---- tiles, folds, layouts ------------------------------------------------------------------------------------------

def test_folds_are_splits_and_tiles_are_in_the_order_of_their_numbers(release):
    assert pastis(release).names == ["10000", "10002", "20005"]
    assert pastis(release, "val").names == ["10007"] and pastis(release, "test").names == ["30001"]
    item = pastis(release)[1]
    assert item["name"] == "10002" and item["vhr"].shape == (3, 80, 80) and item["vhr"].dtype == torch.uint8
    assert item["s2"].shape == (12, 10, 8, 8) and item["s2"].dtype == torch.int16
    assert np.array_equal(item["s2"], s2_values())    # bands and pixels in the order of the file


@pytest.mark.parametrize("depth", [1, 2])
def test_the_root_may_be_folders_above(release, tmp_path, depth):
    (tmp_path / "data").mkdir()
    shutil.move(release, tmp_path / "data")
    assert len(pastis((tmp_path / "data", tmp_path)[depth - 1])) == 3


def test_true_sizes_without_a_marker(tmp_path):
    dates = {"S2": [20180924, 20191019], "S1A": [20180918], "S1D": [20180919]}
    for tile, fold in FOLDS.items():
        if fold == 1:
            write_tile(tmp_path, tile, 128, dates)
    write_metadata(tmp_path, {10000: 1}, dates=dates)
    data = pastis(tmp_path)
    item = data[0]
    assert not data.is_demo and data.release == "pastis-hd" and data.grid == (32, 32)
    assert item["s2"].shape == (2, 10, 128,
                                128) and item["vhr"].shape == (3, 1280, 1280) and item["s1"].shape == (1, 3, 128, 128)
    assert len(patchify(item["vhr"][None], 40)[0]) == len(patchify(item["s2"][None], 4)[0]) == 1024
    assert len(pastis(tmp_path, parts=4)) == 16 and pastis(tmp_path, parts=4)[5]["vhr"].shape == (3, 320, 320)


# ---- dates ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("as_text", [False, True])
def test_dates_are_days_since_september_in_the_order_of_the_keys_as_numbers(release, as_text):
    write_metadata(release, as_text=as_text)
    item = pastis(release, modalities=("s2", "s1", "s1-des"))[0]
    assert item["s2_dates"].tolist() == list(S2_DATES.values())    # 16 is 17 September 2018, 421 is 27 October 2019
    assert (item["s2"][:, 0, 0, 0] // 2000).tolist() == list(range(12))
    # lists of their own
    assert item["s1_dates"].tolist() == [17, 122] and item["s1-des_dates"].tolist() == [2, 273, 486]


def test_unsorted_and_double_days(release):
    """Images are put in time order; of one day the first that is of use stays."""
    save(s1_path(release), s1_values(5, -10))
    data = np.load(s1_path(release))
    data[3] = np.nan
    save(s1_path(release), data)
    dates = DATES | {"S1A": [20190101, 20190101, 20180918, 20190601, 20190601]}
    write_metadata(release, dates=dates)
    item = pastis(release)[0]
    assert item["s1_dates"].tolist() == [17, 122, 273] and item["s1"][:, 0, 0, 0].tolist() == [-12, -10, -14]


def test_the_descending_orbit_only_if_asked_for(release):
    both = pastis(release, modalities=("s1", "s1-des"))[0]
    assert both["s1"][0, :, 0, 0].tolist() == [-10, -15, 5] and both["s1-des"][0, :, 0, 0].tolist() == [-20, -25, 5]
    assert default_modalities("pastis-hd") == ALL
    shutil.rmtree(release / "DATA_S1D")
    assert "s1-des" not in pastis(release)[0]


# ---- long series: dates are chosen, then read -----------------------------------------------------------------------

LONG = {"S2": [*S2_DATES, 20181001, 20190915], "S1A": [20190600 + day for day in (5, 3, 9, 12, 1, 20, 3, 28)],
        "S1D": DATES["S1D"]}


@pytest.fixture
def long_series(release, monkeypatch):
    """Series with unsorted and double days. Returns the root and the list that the dates read from files are added to.
    """
    write_tile(release, 10000, dates=LONG)
    write_metadata(release, dates=LONG)
    read = []

    def counted(mapped, dates, nodata=None):
        read.append(dates.tolist())
        return fetch(mapped, dates, nodata)
    monkeypatch.setattr("datasets.reading.fetch", counted)
    return release, read


def check_plain(tiles, i, epoch, read):
    """tiles[i, epoch] is what choosing after reading and cleaning everything gives. Returns it, and in `read` what it
    read.
    """
    rng = None if epoch is None else np.random.default_rng((tiles.choices.seed, epoch, i))
    expected = {}
    for key, (data, days) in tiles.read(i).items():
        dates = choose_dates(len(days), tiles.choices.max_dates, rng)
        expected[key] = data[dates], days[dates]
    read.clear()
    item = tiles[i] if epoch is None else tiles[i, epoch]
    for key, (data, days) in expected.items():
        assert np.array_equal(item[f"{key}_dates"], days) and np.array_equal(item[key], data)
        assert item[key].numpy().dtype == data.dtype
    return item


@pytest.mark.parametrize("epoch", [None, 0, 1, 2, 3])
@pytest.mark.parametrize("parts", [1, 2])
def test_only_chosen_dates_are_read(long_series, epoch, parts):
    """And they are the same as if all were read first: of s2 13 distinct days, of s1 7, of s1-des 3."""
    root, read = long_series
    tiles = pastis(root, modalities=("s2", "s1", "s1-des"), max_dates=5, parts=parts, seed=7)
    item = check_plain(tiles, parts - 1, epoch, read)
    assert [len(item[f"{key}_dates"]) for key in ("s2", "s1", "s1-des")] == [5, 5, 3]
    days = [{tuple(values)[t] for t in dates} for values, dates in zip(LONG.values(), read)]
    assert [len(of_key) for of_key in days] == [5, 5, 3]
    for values, dates, of_key in zip(LONG.values(), read, days):                  # all acquisitions of a day
        assert dates == [t for t, day in enumerate(values) if day in of_key]


@pytest.mark.parametrize("epoch", [None, 0, 1, 2, 3])
def test_chosen_dates_that_are_of_no_use(long_series, epoch):
    """Dates that are not chosen may hold anything; if a chosen one is of no use, the choice is made among those that
    are.
    """
    root, read = long_series
    tiles = pastis(root, modalities=("s2", "s1"), max_dates=5)
    before = check_plain(tiles, 0, epoch, read)
    chosen, data = read[0], np.load(s2_path(root))
    data[np.setdiff1d(np.arange(len(data)), chosen)] = -10000
    save(s2_path(root), data)
    after = tiles[0] if epoch is None else tiles[0, epoch]
    assert all(torch.equal(after[key], before[key]) for key in ("s2", "s2_dates", "s1", "s1_dates"))

    data = s2_values(len(LONG["S2"]))
    data[chosen[2]] = -10000
    save(s2_path(root), data)
    # s1 too: as many random numbers were drawn
    item = check_plain(tiles, 0, epoch, read)
    assert len(item["s2"]) == 5 and read[0] == chosen and (item["s2"] >= 0).all()
    data[4:] = -10000
    save(s2_path(root), data)
    assert len(check_plain(tiles, 0, epoch, read)["s2"]) == 4 - (chosen[2] < 4)    # all that are left


def test_of_one_day_the_second_acquisition_may_be_the_one(long_series):
    root, read = long_series
    data = s1_values(len(LONG["S1A"]), -10)
    data[1] = np.nan                                                              # 3 June, which is there twice
    save(s1_path(root), data)
    tiles = pastis(root, modalities=("s1",), max_dates=6)
    for epoch in range(6):
        check_plain(tiles, 0, epoch, read)
        assert len(read) == 1


# ---- values ---------------------------------------------------------------------------------------------------------

def test_nodata_of_sentinel_2(release):
    data = s2_values()
    data[0, 3] = 500
    data[0, 3, 0, 0], data[0, 3, 1, 2] = -105, -10000          # a small negative value is a value
    data[1, 7].flat[:33] = -10000                              # more than half of a band: the date is of no use
    data[2, 7].flat[:32] = -10000                              # half of it: kept
    data[4] = -10000
    save(s2_path(release), data)
    item = pastis(release)[0]
    days = list(S2_DATES.values())
    assert item["s2_dates"].tolist() == [days[t] for t in range(12) if t not in (1, 4)]
    assert item["s2"][0, 3, 0, 0] == -105 and item["s2"][0, 3, 1, 2] == 490    # (62 x 500 - 105) / 63 = 490.4
    kept = data[2, 7].flatten()[32:]
    assert (item["s2"][1, 7].flatten()[:32] == round(kept.mean())).all() and item["s2"].dtype == torch.int16
    assert np.array_equal(item["s2"][2], data[3])


@pytest.mark.parametrize("value, is_missing", [
    (-7324, True), (-4758, True), (-1001, True), (-1000, False), (-105, False)])
def test_mixtures_with_nodata_are_missing(release, value, is_missing):
    """No reflectance is below -0.1. The lowest value in public is a mixture too: 9/16 nodata, 7/16 of a reflectance."""
    data = s2_values()
    data[0, 3], data[1, 7] = 500, 700
    data[0, 3, 1, 2] = value
    data[1, 7].flat[:33] = value                               # more than half of a band
    save(s2_path(release), data)
    item = pastis(release)[0]
    assert item["s2"][0, 3, 1, 2] == (500 if is_missing else value)
    assert (item["s2"][0, 3].flatten()[torch.arange(64) != 10] == 500).all()
    days = list(S2_DATES.values())
    assert item["s2_dates"].tolist() == [days[0], *days[1 + is_missing:]]
    for share, reflectance in ((9, 1982), (12, 704), (9, 10500)):    # sixteenths of a gap's own pixels
        mixed = round((share * -10000 + (16 - share) * reflectance) / 16)
        lost = missing(np.array([mixed, reflectance]), -10000, SENSORS["pastis-hd"]["s2"].lowest)
        assert lost.tolist() == [True, False]


def test_missing_values_and_half_precision_of_sentinel_1(release):
    data = s1_values(2, -20)
    data[0, 0, 0, 0], data[0, 0, 0, 1] = np.nan, -20.5
    data[0, 1, 2, 2], data[0, 2, 2, 2] = np.inf, -np.inf
    save(s1_path(release), data)
    s1 = pastis(release)[0]["s1"]
    assert s1.dtype == torch.float16 and torch.isfinite(s1).all() and len(s1) == 2    # as in the file: half the bytes
    # half precision has steps of 0.016
    assert s1[0, 0, 0, 0].item() == pytest.approx(-(62 * 20 + 20.5) / 63, abs=0.01)
    assert s1[0, 1:, 2, 2].tolist() == [-25, 5]
    data[1, 2].flat[:33] = np.nan
    save(s1_path(release), data)
    assert pastis(release)[0]["s1_dates"].tolist() == [17]


@pytest.mark.parametrize("compression", [None, "lzw", "deflate"])
@pytest.mark.parametrize("planar", [False, True])
def test_spot_compressed_and_interleaved_either_way(release, compression, planar):
    image = np.random.default_rng(0).integers(0, 256, (80, 80, 3)).astype(np.uint8)
    write_spot(spot_path(release), image, compression, planar)
    assert np.array_equal(pastis(release)[0]["vhr"], image.transpose(2, 0, 1))


# ---- labels ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16])
@pytest.mark.parametrize("channels", [3, 1])
def test_labels_are_the_crops_present_in_channel_0(release, dtype, channels):
    target = np.full((channels, 8, 8), 5, dtype)
    target[0] = 0
    target[0, 7, 7], target[0, 0, 3], target[0, 0, :2] = 18, 1, 19    # one pixel is enough; 19 is void
    save(target_path(release), target)
    data = pastis(release)
    assert data.labels.shape == (3, 18) and data.labels[0].nonzero().flatten().tolist() == [0, 17]
    assert (data.classes[0], data.classes[17]) == ("Meadow", "Sorghum") and data[0]["label"].sum() == 2


def test_a_tile_without_crops_keeps_its_empty_label(release):
    save(target_path(release), np.stack([np.full((8, 8), k) for k in (19, 3, 3)]).astype(np.uint8))
    save(target_path(release, 10002), np.zeros((3, 8, 8), np.uint8))
    assert pastis(release).labels.sum(1).tolist() == [0, 0, 1]


def test_pretraining_reads_no_labels(release):
    shutil.rmtree(release / "ANNOTATIONS")
    assert pastis(release, labelled=False).names == ["10000", "10002", "20005"]
    assert pastis(release, "all", labelled=False).names == ["10000", "10002", "10007", "20005", "30001"]


# ---- one ground -----------------------------------------------------------------------------------------------------

def test_a_patch_is_the_same_ground_in_all_modalities(release):
    """Sentinel pixel (r, c) of a patch lies on SPOT rows 10 r .. 10 r + 9; a patch's pixels are flattened row by row.
    """
    number = np.arange(64).reshape(8, 8)
    save(s2_path(release), np.broadcast_to(number + 1, (12, 10, 8, 8)).astype(np.int16))
    write_spot(spot_path(release), np.repeat(np.kron(number + 1, np.ones((10, 10)))[..., None], 3, 2).astype(np.uint8))
    batch = collate([pastis(release)[0]])
    table = SENSORS["pastis-hd"]
    vhr, s2 = (patchify(batch[key], table[key].patch)[0] for key in ("vhr", "s2"))
    assert vhr.shape == (4, 3, 40, 40) and s2.shape == (4, 12, 10, 4, 4)
    for patch, (row, column) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        expected = number[4 * row:4 * row + 4, 4 * column:4 * column + 4] + 1
        assert (s2[patch].flatten(1).numpy() == np.tile(expected.flatten(), 10)).all()
        assert (vhr[patch].numpy() == np.kron(expected, np.ones((10, 10)))).all()


def test_parts_have_their_own_labels_and_ground(release):
    target = np.zeros((3, 8, 8), np.uint8)
    target[0, 0, 7], target[0, 4, 0], target[0, 7, 7] = 2, 3, 19    # upper right, lower left, lower right
    save(target_path(release), target)
    image = np.zeros((80, 80, 3), np.uint8)
    image[:40, 40:], image[40:, :40], image[40:, 40:] = 1, 2, 3
    write_spot(spot_path(release), image)
    data = pastis(release, parts=2)
    assert data.names[:5] == ["10000-0-0", "10000-0-1", "10000-1-0", "10000-1-1", "10002-0-0"] and len(data) == 12
    assert [row.nonzero().flatten().tolist() for row in data.labels[:4]] == [[], [1], [2], []]
    for i, (row, column) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        item = data[i]
        assert item["vhr"].shape == (3, 40, 40) and (item["vhr"] == i).all()
        assert np.array_equal(item["s2"], s2_values()[..., 4 * row:4 * row + 4, 4 * column:4 * column + 4])
        assert item["s1"].shape == (2, 3, 4, 4)


def test_few_labels_are_drawn_over_whole_tiles(release, own_folder):
    folds = {10000 + 3 * k: 1 for k in range(10)}
    for k, tile in enumerate(folds):
        save(s2_path(release, tile), s2_values())
        save(target_path(release, tile), np.full((3, 8, 8), 1 + k % 2, np.uint8))
    write_metadata(release, folds)
    names = pastis(release, modalities=("s2",), parts=2, label_percent=20).names
    tiles = [name[:5] for name in names]
    assert len(names) == 8 and len(set(tiles)) == 2 and tiles == sorted(tiles)
    (drawn,) = own_folder.glob("pastis-hd-demo-*-20percent-seed0.txt")
    assert drawn.read_text().splitlines()[1:] == list(dict.fromkeys(tiles))
    whole = pastis(release, modalities=("s2",), label_percent=20)
    assert whole.names == list(dict.fromkeys(tiles)) and sorted(whole.labels.argmax(1).tolist()) == [0, 1]


# ---- prepare.py's way: what is wrong with single tiles is collected ------------------------------------------------

def test_findings_are_collected(release):
    s2_path(release, 10002).unlink()
    spot_path(release, 20005).unlink()
    findings = []
    data = pastis(release, labelled=False, findings=findings)
    assert [(tile, key) for tile, key, _ in findings] == [("20005", "vhr"), ("10002", "s2")]
    assert data.paths["s2"][1] is None and data[0]["name"] == "10000"
    target_path(release).unlink()
    with pytest.raises(UserError, match="10000: no file of the labels"):
        data.check_label(0)
    data.check_label(1)


# ---- bad input: one clear error that names the culprit --------------------------------------------------------------

def cut_off(path):
    path.write_bytes(path.read_bytes()[:-2000])


def pickled(path):
    np.save(path, np.array([{}], object), allow_pickle=True)


def fill(path, value=1, shape=(3, 8, 8), dtype=np.uint8):
    """Zeros, but for one pixel of channel 0."""
    array = np.zeros(shape, dtype)
    array[0, 1, 1] = value
    np.save(path, array)


def second_metadata(root):
    (root / "old").mkdir()
    shutil.copy(root / "metadata.geojson", root / "old")


def twice(root):
    content = json.loads((root / "metadata.geojson").read_text())
    content["features"] *= 2
    (root / "metadata.geojson").write_text(json.dumps(content))


def as_npz(path):
    np.savez(path.with_suffix(""), a=s2_values())
    shutil.move(path.with_suffix(".npz"), path)


@pytest.mark.parametrize("damage, culprit", [
    (lambda root: cut_off(s2_path(root)), "S2_10000.npy: cannot be read as a numpy array"),
    (lambda root: s2_path(root).write_bytes(b""), "S2_10000.npy: cannot be read as a numpy array"),
    (lambda root: pickled(s2_path(root)), "S2_10000.npy: cannot be read as a numpy array"),
    (lambda root: as_npz(s2_path(root)), "S2_10000.npy: cannot be read as a numpy array"),
    (lambda root: cut_off(spot_path(root)), "SPOT6_RVB_1M00_2019_10000.tif: cannot be read as TIFF"),
    (lambda root: write_spot(spot_path(root), np.zeros((80, 76, 3), np.uint8)),
     "tif: shape (3, 80, 76), expected 80 x 80"),
    (lambda root: write_spot(spot_path(root), np.zeros((80, 80, 4), np.uint8)),
     "tif: shape (80, 80, 4), expected 3 bands"),
    (lambda root: save(s2_path(root), s2_values()[..., :4]), "S2_10000.npy: shape (12, 10, 8, 4), expected 8 x 8"),
    (lambda root: save(s2_path(root), s2_values()[:, :9]), "S2_10000.npy: shape (12, 9, 8, 8)"),
    (lambda root: save(s2_path(root), s2_values() > 0), "S2_10000.npy: shape (12, 10, 8, 8) of type bool"),
    (lambda root: save(s1_path(root), s1_values(2, -10)[:, :2]), "S1A_10000.npy: shape (2, 2, 8, 8)"),
    (lambda root: save(s2_path(root), s2_values(11)), "S2_10000.npy: 11 images but 12 dates"),
    (lambda root: write_metadata(root, dates=DATES | {"S1A": [20180918, 20200101]}),
     "geojson: tile 10000: the date 20200101 of s1"),
    (lambda root: write_metadata(root, dates=DATES | {"S1A": [20180831, 20190101]}),
     "geojson: tile 10000: the date 20180831 of s1"),
    (lambda root: write_metadata(root, dates=DATES | {"S1A": [20181301, 20190101]}),
     "metadata.geojson: tile 10000: a date of s1 is not"),
    (lambda root: write_metadata(root, dates={"S2": DATES["S2"]}), "metadata.geojson: no dates-S1A for tile 10000"),
    (lambda root: s1_path(root).unlink(), "10000: no file of s1"),
    (lambda root: shutil.rmtree(root / "DATA_SPOT"), "10000: no file of vhr"),
    (lambda root: target_path(root).unlink(), "10000: no file of the labels"),
    (lambda root: fill(target_path(root), value=20), "TARGET_10000.npy: values from 0 to 20"),
    (lambda root: fill(target_path(root), value=-1, dtype=np.int16), "TARGET_10000.npy: values from -1 to 0"),
    (lambda root: fill(target_path(root), dtype=np.float32), "TARGET_10000.npy: shape (3, 8, 8) of type float32"),
    (lambda root: fill(target_path(root), shape=(3, 8, 4)), "TARGET_10000.npy: shape (8, 4), expected 8 x 8"),
    (lambda root: cut_off(target_path(root)), "TARGET_10000.npy: cannot be read"),
    (second_metadata, " and "),
    (lambda root: (root / "metadata.geojson").unlink(),
     "no folder at the root or up to two folders below has a metadata.geojson"),
    (lambda root: (root / "metadata.geojson").write_text("{"), "metadata.geojson: not the metadata of PASTIS"),
    (lambda root: (root / "metadata.geojson").write_text("{}"), "metadata.geojson: not the metadata of PASTIS"),
    (lambda root: write_metadata(root, Fold=6), "metadata.geojson: tile 10000: ValueError fold 6"),
    (lambda root: write_metadata(root, ID_PATCH="abc"), "metadata.geojson: tile abc: ValueError ID_PATCH is not"),
    (lambda root: write_metadata(root, **{"dates-S2": [20180917]}), "metadata.geojson: tile 10000"),
    (lambda root: write_metadata(root, **{"dates-S2": "{"}), "metadata.geojson: tile 10000"),
    (twice, "metadata.geojson: tile 30001: ValueError it is there twice"),
    (lambda root: write_metadata(root, {30001: 5}), "no tile in train"),
    (lambda root: (root / "metadata.geojson").write_text('{"features": []}'),
     "geojson: not the metadata of PASTIS (no features)"),
    (lambda root: (root / "metadata.geojson").write_text("[" * 10**5), "metadata.geojson: not the metadata of PASTIS"),
    (lambda root: (root / "metadata.geojson").write_bytes(b"\xff{"), "metadata.geojson: cannot be read"),
    (lambda root: write_metadata(root, **{"dates-S2": {"0": 1e999}}), "S2_10000.npy: 12 images but 1 dates in"),
    (lambda root: write_metadata(root, **{"dates-S2": "[" * 10**5}), "metadata.geojson: tile 10000: RecursionError"),
    (lambda root: fill(target_path(root), shape=(3, 8, 8, 1)), "TARGET_10000.npy: shape (3, 8, 8, 1)"),
    (lambda root: np.save(target_path(root), np.zeros((0, 8, 8), np.uint8)), "TARGET_10000.npy: shape (0, 8, 8)"),
    (lambda root: s2_path(root).write_bytes(s2_path(root).read_bytes() * 2),
     "S2_10000.npy: cannot be read as a numpy array"),
])
def test_bad_input(release, damage, culprit):
    damage(release)
    with pytest.raises(UserError) as error:
        pastis(release)[0]
    assert culprit in str(error.value) and "\n" not in str(error.value).strip()


def test_options_that_do_not_fit(release):
    with pytest.raises(UserError, match="--parts 3: a tile of 2 x 2 patches cannot be cut so"):
        pastis(release, parts=3)
    with pytest.raises(UserError, match="--max-cloud: pastis-hd has no cloud masks"):
        pastis(release, max_cloud=5)[0]
    write_metadata(release, {30001: 5})
    with pytest.raises(UserError, match="no tile in train at 10 % of the labels"):
        pastis(release, label_percent=10)
    assert len(CLASSES) == 18


@pytest.mark.parametrize("fold, number", [("1", 10000.0), (1.0, "10000"), ("1.0", "10000.0"), (1, 10000)])
def test_metadata_that_another_tool_saved(fold, number, tmp_path):
    """The numbers as text, or with a decimal point; the tile's name stays that of its files."""
    path = tmp_path / "metadata.geojson"
    path.write_text(
        json.dumps({"features": [{"properties": {"ID_PATCH": number, "Fold": fold, "dates-S2": {"0": 20190101}}}]}))
    assert read_metadata(path) == {"10000": {"fold": 1, "dates": {"S2": [20190101]}}}


@pytest.mark.parametrize("fold, number, error",
                         [("x", 1, "Fold is not a whole number but 'x'"), (6, 1, "fold 6, expected 1 to 5"),
                          (1.5, 1, "Fold is not a whole number but 1.5"),
                                                 (None, 1, "but None"), (True, 1, "but True"),
                                                 (1, 1.5, "ID_PATCH is not a whole number but 1.5"),
                                                 (1, -1, "but -1"), (1, "nan", "but 'nan'")])
def test_metadata_whose_numbers_are_none(fold, number, error, tmp_path):
    path = tmp_path / "metadata.geojson"
    path.write_text(json.dumps({"features": [{"properties": {"ID_PATCH": number, "Fold": fold}}]}))
    with pytest.raises(UserError, match=f"metadata.geojson: tile .*{error}"):
        read_metadata(path)
