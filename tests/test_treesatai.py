"""The reader of TreeSatAI and TreeSatAI-TS, trap by trap, and on the real files against what is known of them."""
import json
import shutil

import h5py
import numpy as np
import pytest
import tifffile
import torch
from conftest import TEST_TILE, TILES, write_h5, write_tif

from datasets import open_dataset
from datasets.files import _read_plain_tif, read_tif
from datasets.loading import collate
from datasets.series import choose_dates, clean
from datasets.splits import FOLDER, SPLIT_SEED, VAL_SHARE, fingerprint, saved_subset
from datasets.treesatai import CLASSES, LABELS_FILE, decibel, find_files, read_labels, read_list, read_vhr
from datasets.treesatai_h5 import read_cloud
from datasets.treesatai_h5 import read_h5 as raw_h5
from utils.errors import UserError

ALL = ("vhr", "s2", "s1")


def TreeSatAI(root, split, modalities, name="treesatai-ts", **options):
    return open_dataset(name, root, split, modalities, **options)


def read_h5(path, keys, max_cloud=None):
    """What the reader makes of a file: {key: (data, days)}."""
    series = {}
    for key, (data, days) in raw_h5(path, keys).items():
        data, days = clean(data, days, key == "s2" and max_cloud is not None and read_cloud(path) > max_cloud)
        series[key] = data if key == "s2" else decibel(data), days
    return series


# ---- the real files -------------------------------------------------------------------------------------------------

def test_real_labels_have_the_published_counts(real):
    labels = read_labels(real / "labels" / LABELS_FILE)
    _, others = find_files(real)
    train, test = (np.array([labels[tile] for tile in read_list(real, others, split)]) for split in ("train", "test"))
    assert train.sum(0).tolist() == [1152, 2960, 3050, 3093, 5129, 9971, 2697, 4326, 9919, 10340, 456, 353, 4046, 10558,
                                     215]
    assert test.sum(0).tolist() == [124, 328, 329, 358, 567, 1142, 285, 491, 1101, 1160, 89, 38, 450, 1151, 27]
    assert np.bincount(train.sum(1)).tolist() == [7, 26677, 14720, 3598, 322, 12, 1]
    assert np.bincount(test.sum(1)).tolist() == [0, 2928, 1669, 415, 31, 1]
    names = read_list(real, others, "train")
    assert {name for name in names if not labels[name].any()} == {f"{stem}_NLF.tif" for stem in (
        "Acer_pseudoplatanus_2_6638_BI", "Acer_pseudoplatanus_5_144434_BI", "Cleared_0_21199_WEFL",
        "Fagus_sylvatica_3_4520_BI",
        "Fagus_sylvatica_5_6221_BI", "Fagus_sylvatica_6_7050_BI", "Picea_abies_3_6925_BI")}


def test_committed_lists_are_what_the_real_labels_give(real, tmp_path, monkeypatch):
    labels = read_labels(real / "labels" / LABELS_FILE)
    _, others = find_files(real)
    names = read_list(real, others, "train")
    monkeypatch.setattr("datasets.splits.FOLDER", tmp_path)

    def draw(what, names, share, seed):
        return saved_subset("treesatai", what, names, np.array([labels[name] for name in names]), share, seed)
    val = draw("val", names, VAL_SHARE, SPLIT_SEED)
    rest = [name for name in names if name not in set(val)]
    subsets = [draw("10percent", rest, 0.1, seed) for seed in (0, 1, 2)]
    for path in tmp_path.iterdir():
        assert path.read_text() == (FOLDER / path.name).read_text()
    assert len(list(tmp_path.iterdir())) == 4 and (len(val), len(rest)) == (6773, 38564)
    counts = np.array([labels[name] for name in rest]).sum(0)
    for subset in subsets:
        assert np.abs(np.array([labels[name] for name in subset]).sum(0) - 0.1 * counts).max() <= 0.5 + 1e-9
    assert len({fingerprint(subset) for subset in subsets}) == 3


def test_real_tile(real):
    stem = "Abies_alba_1_1005_WEFL_NLF"
    image = read_vhr(real / "aerial" / f"{stem}.tif")
    assert image.shape == (4, 300, 300) and image.dtype == np.uint8
    assert image.mean((1, 2)).round().tolist() == pytest.approx([137, 86, 82, 76], abs=1.5)    # NIR, G, B, R
    series = read_h5(real / "sentinel-ts" / f"{stem}_2020.h5", ["s2", "s1", "s1-des"])
    s2, days = series["s2"]
    assert s2.shape == (146, 10, 6, 6) and s2.min() == 1 and s2.max() == 14664 and (s2 == s2.round()).all()
    assert days[[0, 1, -1]].tolist() == [2, 5, 365] and (np.diff(days) > 0).all()    # 2 January .. 30 December 2020
    # 20 m bands are replicated with a phase of one pixel, 10 m bands are not: this is the band order
    same = [bool((s2[:, band, :, 0] == s2[:, band, :, 1]).all()) for band in range(10)]
    assert same == [band in (3, 4, 5, 7, 8, 9) for band in range(10)]
    clear = read_h5(real / "sentinel-ts" / f"{stem}_2020.h5", ["s2"], max_cloud=1)["s2"][0]
    assert np.median(clear, (0, 2, 3)) == pytest.approx([400, 540, 440, 920, 2130, 2570, 2880, 2920, 1560, 840],
                                                        rel=0.35)
    assert series["s1"][0].shape == (60, 2, 6, 6) and series["s1-des"][0].shape == (61, 2, 6, 6)    # 86 with duplicates
    for key in ("s1", "s1-des"):
        vv, vh = series[key][0].mean((0, 2, 3))
        assert -11.5 < vv < -8.5 and -17.5 < vh < -14.5 and series[key][0].min() >= -40    # dB


# ---- layouts --------------------------------------------------------------------------------------------------------

def test_split_labels_and_empty_tiles(release):
    train = TreeSatAI(release, "train", ALL)
    assert train.names == [TILES[0]]    # TILES[1] is in val, TILES[2] has no entry over 0.07
    assert TreeSatAI(release, "train", ALL, labelled=False).names == [TILES[0], TILES[2]]
    assert train.labels[0].nonzero().flatten().tolist() == [CLASSES.index("Abies")]    # exactly 0.07 does not count
    val = TreeSatAI(release, "val", ALL)
    assert val.labels[0].nonzero().flatten().tolist() == [CLASSES.index("Betula"), CLASSES.index("Fagus")]
    assert TreeSatAI(release, "test", ALL).names == [TEST_TILE]


@pytest.mark.parametrize("move", [
    ("split/train_filenames.lst", "train_filenames.lst"), (f"labels/{LABELS_FILE}", LABELS_FILE),
    (f"sentinel-ts/{TILES[0][:-4]}_2021.h5", f"sentinel/{TILES[0][:-4]}.h5"),
    (f"aerial/{TILES[0]}", f"aerial/60m/{TILES[0]}"),
    (f"aerial/{TILES[0]}", f"aerial_60m_abies_alba/{TILES[0]}"), (f"sentinel-ts/{TILES[1][:-4]}_2021.h5",
                                                                  f"sentinel-ts/{TILES[1][:-4]}.h5")])
def test_layouts(release, move):
    source, target = (release / path for path in move)
    target.parent.mkdir(exist_ok=True)
    shutil.move(source, target)
    assert len(TreeSatAI(release, "train", ALL)) == len(TreeSatAI(release, "val", ALL)) == 1
    assert TreeSatAI(release, "train", ALL)[0]["s2"].shape == (4, 10, 6, 6)


def test_single_date_layouts_and_bands(release):
    for _ in range(2):    # below sentinel/ as on Hugging Face, then at the root as on Zenodo
        tile = TreeSatAI(release, "train", ALL, name="treesatai")[0]
        assert tile["s2"][0, :, 0, 0].tolist() == list(range(1, 11)) and tile["s2_dates"].tolist() == [120]
        assert tile["s1"].shape == (1, 2, 6, 6) and tile["s1"][0, :, 0, 0].tolist() == [-9, -15]
        if (release / "sentinel").exists():
            shutil.move(release / "sentinel" / "s1", release / "s1")
            shutil.move(release / "sentinel" / "s2", release / "s2")
            shutil.rmtree(release / "sentinel")


def test_drawn_lists_are_stratified_repeatable_and_guarded(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.splits.FOLDER", tmp_path / "drawn")
    names = [f"t{i}.tif" for i in range(200)]
    labels = np.random.default_rng(0).random((200, 3)) < [0.5, 0.2, 0.05]
    subset = saved_subset("x", "val", names, labels, 0.15, 0)
    assert subset == saved_subset("x", "val", names, labels, 0.15, 0) and subset == sorted(subset, key=names.index)
    chosen = np.isin(names, subset)
    assert np.abs(labels[chosen].sum(0) - 0.15 * labels.sum(0)).max() <= 1 and abs(chosen.sum() - 30) <= 3
    path = next((tmp_path / "drawn").iterdir())
    path.write_text(path.read_text().replace(subset[0], "t999.tif"))
    with pytest.raises(UserError, match="hash"):
        saved_subset("x", "val", names, labels, 0.15, 0)


# ---- traps in the series --------------------------------------------------------------------------------------------

def test_centre_crop(tmp_path):
    image = np.zeros((304, 304, 4))
    image[2, 2], image[301, 301], image[1], image[302] = 7, 8, 9, 9
    crop = read_vhr(write_tif(tmp_path / "a.tif", value=image))
    assert crop[0, 0, 0] == 7 and crop[0, -1, -1] == 8 and (crop != 9).all()


def test_duplicate_acquisitions_are_taken_once(tmp_path):
    data = np.arange(4 * 72, dtype=np.float32).reshape(4, 2, 6, 6) + 1
    series, days = read_h5(write_h5(tmp_path / "a.h5", sen_1_asc_data=data, sen_1_asc_days=[5, 5, 9, 9]), ["s1"])["s1"]
    assert days.tolist() == [5, 9] and np.allclose(series, 10 * np.log10(data[[0, 2]]))


def test_unsorted_dates_are_sorted_with_their_data(tmp_path):
    data = np.arange(1, 4, dtype=np.float32)[:, None, None, None] * np.ones((3, 2, 6, 6), np.float32)
    series, days = read_h5(write_h5(tmp_path / "a.h5", sen_1_asc_data=data, sen_1_asc_days=[90, 7, 30]), ["s1"])["s1"]
    assert days.tolist() == [7, 30, 90] and np.allclose(series[:, 0, 0, 0], 10 * np.log10([2, 3, 1]))


def test_missing_values(tmp_path):
    """A missing pixel becomes its date's and band's mean; a date without values goes together with its day."""
    data = np.full((4, 2, 6, 6), 0.1, np.float32)
    data[0, 1, 2, 3] = np.nan
    data[0, 1, 0, 0] = 0.1 * 36                  # the mean of the other 35 pixels is 0.2
    data[1, 0] = np.nan                          # one band missing: the date is of no use
    data[2] = 0                                  # the products' nodata
    data[3, 0, 0, 0] = np.inf
    series, days = read_h5(write_h5(tmp_path / "a.h5", sen_1_asc_data=data, sen_1_asc_days=[1, 2, 3, 4]), ["s1"])["s1"]
    assert days.tolist() == [1, 4] and np.isfinite(series).all()
    assert series[0, 1, 2, 3] == pytest.approx(10 * np.log10(0.2), abs=1e-5)
    assert series[1] == pytest.approx(-10, abs=1e-5)


def test_decibel_has_a_floor(tmp_path):
    data = np.full((3, 2, 6, 6), 0.1, np.float32)
    data[0, 1, 0, 0], data[1, 1, 0, 0], data[2, 1, 0, 0] = 0, 1.6e-12, -0.5
    series = read_h5(write_h5(tmp_path / "a.h5", sen_1_asc_data=data), ["s1"])["s1"][0]
    assert (series[:, 1, 0, 0] == -40).all() and (series[:, 0] == pytest.approx(-10, abs=1e-5))


def test_single_date_outliers_and_floor(release):
    image = np.full((6, 6, 3), -10.0)
    image[0, 0, 0], image[0, 1, 0], image[0, 2, 0], image[0, 3, 0] = -9999, 4000, -300, -55
    write_tif(release / "sentinel" / "s1" / "60m" / TILES[0], (6, 6, 3), image, np.float32)
    vv = TreeSatAI(release, "train", ("s1",), name="treesatai")[0]["s1"][0, 0]
    assert vv[0, 3] == pytest.approx(-40) and (vv[1:] == -10).all()
    assert vv[0, :3].numpy() == pytest.approx((32 * -10 - 55) / 33, abs=1e-4)    # missing: the mean of the others
    write_tif(release / "sentinel" / "s1" / "60m" / TILES[0], (20, 20, 3), 0, np.float32)
    with pytest.raises(UserError, match="expected 6 x 6"):
        TreeSatAI(release, "train", ("s1",), name="treesatai")[0]


def test_demo_data_is_known_by_its_marker_anywhere(release):
    (release / "labels" / "DEMO.json").write_text("{}")
    data = TreeSatAI(release, "train", ALL)
    assert data.is_demo and data.release == "treesatai-demo"


@pytest.mark.parametrize("channels", [2, 10])
def test_masks_of_2_or_10_channels(tmp_path, channels):
    masks = np.zeros((4, channels, 6, 6), np.float32)
    masks[0, 0], masks[2, 1] = 100, 80           # snow, cloud
    masks[1, :2] = 1e-9                          # dust
    path = write_h5(tmp_path / "a.h5", sen_2_masks=masks)
    assert read_h5(path, ["s2"], max_cloud=50)["s2"][1].tolist() == [20, 40]
    assert read_h5(path, ["s2"])["s2"][1].tolist() == [10, 20, 30, 40]


def test_empty_series_is_legal(release):
    write_h5(release / "sentinel-ts" / f"{TILES[0][:-4]}_2021.h5", sen_1_asc_data=np.zeros((0, 2, 6, 6), np.float32),
             sen_1_asc_days=[])
    write_tif(release / "sentinel" / "s1" / "60m" / TILES[0], (6, 6, 3), -9999, np.float32)
    for name in ("treesatai-ts", "treesatai"):
        tile = TreeSatAI(release, "train", ALL, name=name)[0]
        assert tile["s1"].shape == (0, 2, 6, 6) and tile["s1_dates"].shape == (0,)
        other = TreeSatAI(release, "val", ALL, name=name)[0]
        if name == "treesatai-ts":    # also when it is stored without its other dimensions
            write_h5(release / "sentinel-ts" / f"{TILES[0][:-4]}_2021.h5", sen_1_asc_data=np.zeros(0, np.float32),
                     sen_1_asc_days=[])
            assert TreeSatAI(release, "train", ALL)[0]["s1"].shape == (0, 2, 6, 6)
        batch = collate([tile, other])
        assert batch["s1_padded"].all(1).tolist() == [True, False] and not batch["s2_padded"].all(1).any()
        assert collate([tile])["s1"].shape == (1, 1, 2, 6, 6) and collate([tile])["s1_padded"].all()


def test_dates_of_a_long_series(release):
    days = np.arange(1, 366, 3)
    data = np.repeat(days[:, None, None, None], 10, 1) * np.ones((1, 1, 6, 6), np.float32)
    write_h5(release / "sentinel-ts" / f"{TILES[0][:-4]}_2021.h5", sen_2_data=data.astype(np.float32), sen_2_days=days,
             sen_2_masks=np.zeros((len(days), 2, 6, 6), np.float32))
    data = TreeSatAI(release, "train", ("s2",))
    fixed, first, again, second = data[0], data[0, 1], data[0, 1], data[0, 2]
    for tile in (fixed, first, second):
        assert len(tile["s2"]) == 50 and (tile["s2"][:, 3, 2,
                                                     2] == tile["s2_dates"]).all() and (tile["s2_dates"].diff()
                                                                                        > 0).all()
    assert fixed["s2_dates"][[0, -1]].tolist() == [1, 364] and fixed["s2_dates"].diff().max() <= 9
    assert torch.equal(first["s2_dates"], again["s2_dates"]) and not torch.equal(first["s2_dates"], second["s2_dates"])
    assert choose_dates(50, 50) == slice(None)


def test_padding(release):
    """Padded dates are marked and zero; the others are in place."""
    write_h5(release / "sentinel-ts" / f"{TILES[0][:-4]}_2021.h5",
             sen_1_asc_data=np.full((1, 2, 6, 6), 0.1, np.float32),
             sen_1_asc_days=[77])
    batch = collate([TreeSatAI(release, "train", ALL)[0], TreeSatAI(release, "val", ALL)[0]])
    assert batch["s1"].shape == (2, 3, 2, 6, 6) and batch["s1_padded"].tolist() == [[False, True, True], [False] * 3]
    assert batch["s1_dates"].tolist() == [[77, 0, 0], [5, 11, 17]] and (batch["s1"][0, 1:] == 0).all()
    assert batch["vhr"].dtype == torch.uint8 and batch["name"] == TILES[:2] and batch["label"].shape == (2, 15)


# ---- bad input: one clear error that names the culprit --------------------------------------------------------------

def series_path(root, tile=0):
    return root / "sentinel-ts" / f"{TILES[tile][:-4]}_2021.h5"


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-2000])


def without(path, name):
    with h5py.File(path, "r+") as file:
        del file[name]


def put(root, name, values, **how):
    """Other values in a dataset of the first tile's series."""
    with h5py.File(series_path(root), "r+") as file:
        del file[name]
        file.create_dataset(name, data=values, **how)


def huge(root):
    with h5py.File(series_path(root), "r+") as file:
        del file["sen-2-data"]
        file.create_dataset("sen-2-data", (10**9, 10, 6, 6), "f4", chunks=(1, 10, 6, 6))    # takes no room in the file


def rewrite(path, old, new):
    path.write_bytes(path.read_bytes().replace(old, new, 1))


LABELS, TRAIN = f"labels/{LABELS_FILE}", "split/train_filenames.lst"


def no_label(root):
    path = root / "labels" / LABELS_FILE
    labels = json.loads(path.read_text())
    del labels[TILES[0]]
    path.write_text(json.dumps(labels))


@pytest.mark.parametrize("one, other", [("train", "val"), ("train", "test"), ("val", "test")])
def test_a_tile_in_two_lists_is_named(release, one, other):
    """Whichever split is opened: a score would be of tiles trained on."""
    path, more = (release / "split" / f"{split}_filenames.lst" for split in (other, one))
    path.write_bytes(path.read_bytes() + more.read_bytes())
    tiles = ", ".join(sorted(more.read_text().split()))
    for split in ("train", "val", "test"):
        with pytest.raises(UserError) as error:
            TreeSatAI(release, split, ALL)
        assert str(error.value) == (
            f"{tiles}: in two lists, {more} and {path}, so that a score would be of tiles trained on; keep each "
                                    "tile in one of them, or download the lists of one release")


@pytest.mark.parametrize("damage, culprit", [
    (lambda root: series_path(root).unlink(), f"{TILES[0]}: no file of s2"),
    (lambda root: (root / "aerial" / TILES[0]).unlink(), f"{TILES[0]}: no file of vhr"),
    (lambda root: shutil.copy(series_path(root), series_path(root).with_name(f"{TILES[0][:-4]}_2020.h5")),
     "2 files of s2"),
    (lambda root: cut_off(root / "aerial" / TILES[0]), f"{TILES[0]}: cannot be read as TIFF"),
    (lambda root: (root / "aerial" / TILES[0]).write_bytes(b""), f"{TILES[0]}: cannot be read as TIFF"),
    (lambda root: write_tif(root / "aerial" / TILES[0], (299, 304, 4)), "shape"),
    (lambda root: write_tif(root / "aerial" / TILES[0], (304, 304, 3)), "4 bands"),
    (lambda root: write_tif(root / "aerial" / TILES[0], dtype=np.uint16), "uint16"),
    (lambda root: cut_off(series_path(root)), "2021.h5: cannot be read as HDF5"),
    (lambda root: series_path(root).write_bytes(b"not hdf5"), "2021.h5: cannot be read as HDF5"),
    (lambda root: without(series_path(root), "sen-2-data"), "2021.h5: no dataset sen-2-data"),
    (lambda root: without(series_path(root), "sen-1-asc-products"), "2021.h5: no dataset sen-1-asc-products"),
    (lambda root: write_h5(series_path(root), sen_2_data=np.ones((4, 9, 6, 6), np.float32)), "sen-2-data has shape"),
    (lambda root: write_h5(series_path(root), sen_2_days=[1, 2, 3]), "expected 3 (as many as products) x 10"),
    (lambda root: write_h5(series_path(root), sen_2_data=np.array([b"a"] * 4)), "2021.h5"),
    (no_label, f"{TILES[0]}: in the train list but not in"),
    (lambda root: (root / "split" / "val_filenames.lst").write_text("other.tif"),
     "other.tif: in the val list but not in"),
    (lambda root: shutil.copy(root / "labels" / LABELS_FILE, root), "2 label files"),
    (lambda root: (root / "labels" / LABELS_FILE).write_text("{"), "not the label file"),
    (lambda root: (root / "labels" / LABELS_FILE).write_text('{"a.tif": [["Oak", 0.5]]}'), "not the label file"),
    (lambda root: (root / "labels" / LABELS_FILE).unlink(), f"no {LABELS_FILE}"),
    (lambda root: (root / "split" / "train_filenames.lst").unlink(), "no train_filenames.lst"),
    (lambda root: (root / "train_filenames.lst").write_text(TILES[0]), "differ: keep one"),
    (lambda root: (root / "split" / "train_filenames.lst").write_text("Abies"), "'Abies' is no tile name"),
    (lambda root: (root / TRAIN).write_text("\n".join([*TILES, TILES[0]])),
     "train_filenames.lst: 4 tiles, 3 of them different"),
    (lambda root: (root / TRAIN).write_text(""), "train_filenames.lst: 0 tiles"),
    (lambda root: rewrite(root / TRAIN, b"_", b"\0"), r"'Abies\x00alba_1_1005_WEFL_NLF.tif' is no tile name"),
    (lambda root: (root / TRAIN).write_bytes(b"\xff\xfeA\0"), "train_filenames.lst: cannot be read ('utf-8' codec"),
    (lambda root: ((root / TRAIN).unlink(), (root / TRAIN).symlink_to(root / TRAIN)),
     "train_filenames.lst: cannot be read (Too many"),
    (lambda root: (root / LABELS).write_text("[" * 10**5), f"{LABELS_FILE}: not the label file"),
    (lambda root: rewrite(root / LABELS, b"0.9", b"NaN"), f"{LABELS_FILE}: not the label file of TreeSatAI (area nan"),
    (lambda root: rewrite(root / LABELS, b"0.9", b"-0.9"),
     f"{LABELS_FILE}: not the label file of TreeSatAI (area -0.9"),
    (huge, "sen-2-data has shape (1000000000, 10, 6, 6), more than a year can have"),
    (lambda root: put(root, "sen-2-data", np.ones((4, 10, 6, 6), "S1")), "2021.h5: cannot be read as HDF5"),
    (lambda root: put(root, "sen-2-products", [[b"S2A_MSIL2A_20210201T"] * 4]), "expected 1 (as many as products)"),
    (lambda root: put(root, "sen-2-products", [b"S2A_MSIL2A_20210229T"] * 4),
     "no date at character 11 of product b'S2A_MSIL2A_2021022"),
    (lambda root: rewrite(series_path(root), b"S2A_", b"S2A\0"), "no date at character 11 of product"),
    (lambda root: rewrite(series_path(root), b"GCOL", b"LOST"), "of sen-2-products is not there)"),
])
def test_bad_input(release, damage, culprit):
    damage(release)
    with pytest.raises(UserError) as error:
        TreeSatAI(release, "train", ALL)[0]
    assert culprit in str(error.value) and "\n" not in str(error.value).strip()


@pytest.mark.parametrize("how",
                         [{"dtype": h5py.string_dtype()}, {"dtype": "S61"},
                          {"dtype": h5py.string_dtype(), "chunks": (3,)},
                                 {"dtype": "S61", "compression": "gzip"}])
def test_products_are_read_however_they_are_stored(release, how):
    """300 names of variable length fill several heaps."""
    names = [f"S2A_MSIL2A_2020{1 + k % 12:02}{1 + k // 12:02}T102421_N0213_R065_T32UNC_{'x' * (k % 9)}"
             for k in range(300)]
    put(release, "sen-2-products", np.array(names, object if how["dtype"] != "S61" else "S61"), **how)
    put(release, "sen-2-data", np.ones((300, 10, 6, 6), np.float32))
    expected = [(np.datetime64(f"{n[11:15]}-{n[15:17]}-{n[17:19]}") - np.datetime64("2019-12-31")).astype(int)
                for n in names]
    assert raw_h5(series_path(release), ["s1", "s2"])["s2"][1].tolist() == expected


@pytest.mark.parametrize("how",
                         [{}, {"chunks": (2, 10, 6, 6)}, {"dtype": ">f4"}, {"dtype": "f8"}, {"dtype": "i2"},
                          "elsewhere"])
def test_series_are_read_however_they_are_stored(release, how):
    """Single precision in one piece is read without libhdf5."""
    values = np.random.default_rng(0).integers(1, 9000, (4, 10, 6, 6)).astype(np.float32)
    put(release, "sen-2-data", values,
        **({"external": [(str(release / "x"), 0, values.nbytes)]} if how == "elsewhere" else how))
    assert np.array_equal(raw_h5(series_path(release), ["s2"])["s2"][0], values)


@pytest.mark.parametrize("is_plain, how", [
    (True, {}), (True, {"rowsperstrip": 7}), (True, {"photometric": "rgb", "metadata": None}),
    (False, {"byteorder": ">"}),
    (False, {"tile": (16, 16)}), (False, {"compression": "lzw"}), (False, {"bigtiff": True}),
    (False, {"planarconfig": "separate"})])
def test_images_are_read_however_they_are_stored(tmp_path, is_plain, how):
    """The commonest kind without tifffile, unless something in it is odd: here a strip that is said to be empty."""
    path, image = tmp_path / "a.tif", np.random.default_rng(0).integers(0, 255, (4, 304, 320)).astype(np.uint8)
    how = {"photometric": "minisblack", "planarconfig": "contig"} | how
    tifffile.imwrite(path, image if how["planarconfig"] == "separate" else image.transpose(1, 2, 0), **how)
    assert np.array_equal(read_tif(path, 4), image)
    with open(path, "rb") as file:
        assert (_read_plain_tif(file, 4) is not None) == is_plain
    if is_plain:
        with tifffile.TiffFile(path, mode="r+") as tif:
            sizes = tif.pages[0].tags["StripByteCounts"]
            sizes.overwrite((0, *sizes.value[1:]))
        with pytest.raises(UserError, match="a.tif: cannot be read as TIFF .its strips are not those"):
            read_tif(path, 4)


def test_cloud_masks_without_numbers_and_beyond_single_precision(release):
    put(release, "sen-2-masks", np.full((4, 2, 6, 6), 1e38))
    with np.errstate(all="raise"):
        assert read_cloud(series_path(release)).tolist() == pytest.approx([1e38] * 4)
    put(release, "sen-2-masks", np.full((4, 2, 6, 6), np.nan))
    with pytest.raises(UserError, match="2021.h5: 4 dates of s2 but 0 cloud masks with numbers"):
        TreeSatAI(release, "train", ALL, max_cloud=50)[0]


def test_lists_and_labels_may_begin_with_a_byte_order_mark(release):
    for name in (LABELS, TRAIN):
        (release / name).write_bytes(b"\xef\xbb\xbf" + (release / name).read_bytes())
    assert len(TreeSatAI(release, "train", ALL)) == 1


def test_bad_date_in_a_product_name(release):
    with h5py.File(series_path(release), "r+") as file:
        file["sen-2-products"][1] = "S2A_MSIL2A_2021x102T102421_N0213"
    with pytest.raises(UserError, match="no date at character 11 of product b'S2A_MSIL2A_2021x102"):
        TreeSatAI(release, "train", ALL)[0]


def test_zip_files_are_pointed_out(tmp_path):
    (tmp_path / LABELS_FILE).write_text("{}")
    (tmp_path / "split.zip").write_bytes(b"")
    with pytest.raises(UserError, match="unpack .*split.zip first"):
        TreeSatAI(tmp_path, "train", ALL)
    with pytest.raises(UserError, match="no such folder"):
        TreeSatAI(tmp_path / "nowhere", "train", ALL)
