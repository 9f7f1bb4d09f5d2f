"""The reader of FLAIR #2, trap by trap, on a hand-made miniature: images of 112 pixels, whose centre holds 2 x 2
patches.
"""
import json
import mmap
import re
import shutil
import zipfile

import numpy as np
import pytest
import tifffile
import torch

from datasets import open_dataset
from datasets.flair import DOMAINS, Flair, crop, find_files, read_domains
from datasets.series import fetch
from datasets.splits import differs_from_release
from utils.errors import UserError
from utils.unpack import unpack

ALL = ("vhr", "s2")
# number: domain, zone. Two tiles share an area; D004 is for validation, D022 for test in FLAIR #1 and #2
TILES = {1: ("D006_2020", "Z1_NN"), 2: ("D006_2020", "Z1_NN"), 7: ("D013_2020", "Z12_UA"), 3: ("D004_2021", "Z1_NN"),
         77413: ("D022_2021", "Z2_AF")}
NAMES = ["D006_2020-Z1_NN-IMG_000001", "D006_2020-Z1_NN-IMG_000002", "D013_2020-Z12_UA-IMG_000007"]
DATES = ["20200103", "20200229", "20200301", "20201231"]    # a leap year: days 3, 60, 61, 366
CENTRES = {1: [6, 2], 2: [3, 5], 7: [7, 3], 3: [4, 4], 77413: [4, 4]}    # row, column
H, W = 9, 7
CENTROIDS = "flair-2_centroids_sp_to_patch.json"


@pytest.fixture(autouse=True)
def own_folder(tmp_path_factory, monkeypatch):
    """Label files of this test only."""
    monkeypatch.setattr("datasets.splits.FOLDER", tmp_path_factory.mktemp("splits"))


def series_values(dates=4, height=H, width=W, dtype=np.uint16):
    """5000 x date + 100 x band + number of the pixel (modulo 100), so that each value tells where it is from."""
    t, b, pixel = np.ogrid[:dates, :10, :height * width]
    return (5000 * t + 100 * b + pixel % 100).astype(dtype).reshape(dates, 10, height, width)


def image_values(side=112):
    """(side, side, 5): row, column, then 50, 60, 70."""
    at = np.arange(side)
    bands = [np.repeat(at[:, None], side, 1), np.repeat(at[None], side, 0),
             *(np.full((side, side), k) for k in (50, 60, 70))]
    return np.stack(bands, -1).astype(np.uint8)


def folders(root, layout, domain, zone):
    """Of img, msk and sen. domains: of the zips by domain; merged: these unpacked into one folder."""
    is_test = domain.startswith("D022")
    if layout != "zips":
        top = root / "data" / ("flair#2-test" if is_test else "train-val")
        top = top / domain if layout == "domains" else top
        return [top / kind / zone for kind in ("aerial", "labels", "sentinel")]
    tops = (("flair_2_aerial_test", "flair_2_labels_test", "flair_2_sen_test") if is_test else
            ("flair_aerial_train", "flair_labels_train", "flair_sen_train"))
    return [root / top / domain / zone / kind for top, kind in zip(tops, ("img", "msk", "sen"))]


def write_image(path, image, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, image, photometric="minisblack", **({"planarconfig": "contig"} if image.ndim == 3 else {}),
                     **how)


def write_series(folder, area, data=None, dates=DATES, end="\n"):
    folder.mkdir(parents=True, exist_ok=True)
    data = series_values() if data is None else data
    np.save(folder / f"SEN2_sp_{area}_data.npy", data)
    np.save(folder / f"SEN2_sp_{area}_masks.npy", np.zeros((len(data), 2, *data.shape[2:]), np.uint8))
    lines = "".join(f"S2A_MSIL2A_{date}T104031_N0214_R008_T31TFM_20231111T111111{end}" for date in dates)
    (folder / f"SEN2_sp_{area}_products.txt").write_bytes(lines.encode())


def write_flair(root, layout="zips", side=112):
    for number, (domain, zone) in TILES.items():
        image, mask, sen = folders(root, layout, domain, zone)
        write_image(image / f"IMG_{number:06d}.tif", image_values(side))
        write_image(mask / f"MSK_{number:06d}.tif", np.full((side, side), 1 + number % 5, np.uint8))
        write_series(sen, f"{domain}-{zone}")
    write_centroids(root, CENTRES)
    (root / "DEMO.json").write_text(json.dumps({"side": side}))
    return root


def write_centroids(root, centres, end=".tif"):
    (root / "flair-2_centroids_sp_to_patch.json").write_text(
        json.dumps({f"IMG_{n:06d}{end}": at for n, at in centres.items()}))


def sen(root, kind="data.npy"):
    return root / "flair_sen_train" / "D006_2020" / "Z1_NN" / "sen" / f"SEN2_sp_D006_2020-Z1_NN_{kind}"


def img(root):
    return root / "flair_aerial_train" / "D006_2020" / "Z1_NN" / "img" / "IMG_000001.tif"


def msk(root):
    return root / "flair_labels_train" / "D006_2020" / "Z1_NN" / "msk" / "MSK_000001.tif"


@pytest.fixture
def release(tmp_path):
    return write_flair(tmp_path)


def flair(root, split="train", modalities=ALL, **options):
    return open_dataset("flair", root, split, modalities, **options)


# ---- files and splits -----------------------------------------------------------------------------------------------

def write_metadata(root, tiles=TILES, name="flair_aerial_metadata.json"):
    (root / name).write_text(json.dumps({f"IMG_{n:06d}": {"domain": domain, "zone": zone, "date": "2020-05-28"}
                                         for n, (domain, zone) in tiles.items()}))


@pytest.mark.parametrize("layout", ["zips", "domains", "merged"])
def test_all_distributions(tmp_path, layout):
    """FLAIR #1's test images are left alone, though their domain is in FLAIR #2's test split too."""
    write_flair(tmp_path, layout)
    if layout == "merged":
        write_metadata(tmp_path)
    for folder in ("data/flair#1-test", "flair_1_aerial_test"):
        write_image(tmp_path / folder / "D022_2021" / "Z9_AA" / "img" / "IMG_061713.tif", image_values())
    assert flair(tmp_path).names == NAMES
    assert flair(tmp_path, "val").names == ["D004_2021-Z1_NN-IMG_000003"]
    assert flair(tmp_path, "test").names == ["D022_2021-Z2_AF-IMG_077413"]
    assert all(flair(tmp_path, split)[0]["s2"].shape == (4, 10, 2, 2) for split in ("train", "val", "test"))


def test_domains_are_the_official_ones():
    train_and_val = """
        D004_2021 D006_2020 D007_2020 D008_2019 D009_2019 D013_2020 D014_2020 D016_2020 D017_2018 D021_2020
        D023_2020 D029_2021 D030_2021 D031_2019 D032_2019 D033_2021 D034_2021 D035_2020 D038_2021 D041_2021
        D044_2020 D046_2019 D049_2020 D051_2019 D052_2019 D055_2018 D058_2020 D060_2021 D063_2019 D066_2021
        D067_2021 D070_2020 D072_2019 D074_2020 D077_2021 D078_2021 D080_2021 D081_2020 D086_2020 D091_2021""".split()
    test = "D015_2020 D022_2021 D026_2020 D036_2020 D061_2020 D064_2021 D068_2021 D069_2020 D071_2020 D084_2021".split()
    splits = {name: [domain for domain, split in read_domains().items() if split == name]
              for name in ("train", "val", "test")}
    assert {name: len(domains) for name, domains in splits.items()} == {"train": 32, "val": 8, "test": 10}
    assert [domain[:4] for domain in sorted(splits["val"])] == "D004 D014 D029 D031 D058 D066 D067 D077".split()
    assert sorted(splits["train"] + splits["val"]) == sorted(train_and_val) and sorted(splits["test"]) == test


def test_zips_by_domain_are_unpacked_and_read(tmp_path):
    """As Hugging Face has them, the domain in the zip's name alone. D006 and D004 have files of one name and size."""
    source, root = write_flair(tmp_path / "source", "domains"), tmp_path / "root"
    for folder in ("train-val", "flair#2-test"):
        (root / "data" / folder).mkdir(parents=True)
        for domain in (source / "data" / folder).iterdir():
            with zipfile.ZipFile(root / "data" / folder / f"{domain.name}.zip", "w") as archive:
                for path in sorted(domain.rglob("*.*")):    # no name tells the domain
                    name = path.relative_to(domain).as_posix()
                    name = re.sub("SEN2_sp_.*_", "SEN2_", name)
                    archive.writestr(name, path.read_bytes())
    (root / "aux-data").mkdir()
    for name in (CENTROIDS, "DEMO.json"):
        shutil.copy(source / name, root / "aux-data")
    lines, findings = unpack(root, Flair.skipped)
    assert not findings and len(lines) == 4 and unpack(root)[0] == ["4 zips were unpacked before"]
    for split in ("train", "val", "test"):
        one, other = flair(source, split), flair(root, split)
        assert other.names == one.names and torch.equal(other.labels, one.labels)
        for a, b in zip(one, other):
            assert all(torch.equal(a[key], b[key]) for key in ("vhr", "s2", "s2_dates"))
    assert flair(root, max_cloud=50)[0]["s2"].shape == (4, 10, 2, 2)    # the masks lie beside


@pytest.mark.parametrize("metadata, culprit", [
    (None, "IMG_077413.tif: no folders <domain>/<zone>/ such as D004_2021/Z1_NN/ above it, and no "
           "flair_aerial_metadata.json "
           "that has its domain; unpack the zip of each domain into a folder of its name, as prepare.py does"),
    ({n: at for n, at in TILES.items() if n != 2}, "IMG_000002.tif: no folders"),
    (TILES | {1: (None, "Z1_NN")}, "flair_aerial_metadata.json: not the metadata of FLAIR's images"),
    (TILES | {1: ("D6_2020", "Z1_NN")}, "not the metadata of FLAIR's images (domain and zone of 'IMG_000001')"),
    (TILES | {1: ("D006_2020", "")}, "flair_aerial_metadata.json: not the metadata")])
def test_all_domains_in_one_folder_without_metadata(tmp_path, metadata, culprit):
    root = write_flair(tmp_path, "merged")
    if metadata:
        write_metadata(root, metadata)
    with pytest.raises(UserError) as error:
        flair(root)
    assert culprit in str(error.value)


def test_domains_that_are_not_there_are_known(release):
    """One of them may be less than a hundredth of the tiles."""
    data = {split: flair(release, split) for split in ("train", "val", "test")}
    assert len(data["train"].lost) == 30 and not {"D006_2020", "D013_2020"} & set(data["train"].lost)
    assert sorted(domain[:4] for domain in data["val"].lost) == "D014 D029 D031 D058 D066 D067 D077".split()
    assert differs_from_release("flair", data)[:2] == ["4 tiles in train + val, 61,712 in the release",
                                                       "1 tiles in test, 16,050 in the release"]
    for split, number in (("train", 47000), ("val", 14712), ("test", 16050)):
        data[split].list_size, data[split].lost = number, []
    assert differs_from_release("flair", data) == []
    data["train"].lost = ["D035_2020"]
    assert differs_from_release("flair", data) == ["no tile of D035_2020 in train"]


def test_only_the_series_name_with_a_hyphen(release):
    index = find_files(release)
    assert sorted(index["sen"]) == ["D004_2021-Z1_NN", "D006_2020-Z1_NN", "D013_2020-Z12_UA", "D022_2021-Z2_AF"]
    shutil.move(sen(release), sen(release).with_name("SEN2_sp_D006_2020_Z1_NN_data.npy"))
    with pytest.raises(UserError, match="D006_2020-Z1_NN-IMG_000001: no file of s2"):
        flair(release)


def test_true_sizes_without_a_marker(tmp_path):
    """512 pixels: the 500 in the centre; 10 x 10 Sentinel pixels from 5 before the centre on."""
    image, mask, sen_folder = folders(tmp_path, "zips", "D006_2020", "Z1_NN")
    photo = np.zeros((512, 512, 5), np.uint8)
    photo[6, 6], photo[505, 505], photo[5], photo[506] = 7, 8, 9, 9
    write_image(image / "IMG_000001.tif", photo)
    write_image(mask / "MSK_000001.tif", np.full((512, 512), 5, np.uint8))
    data = series_values(1, 40, 30) + np.uint16(7)
    write_series(sen_folder, "D006_2020-Z1_NN", data, DATES[:1])
    write_centroids(tmp_path, {1: [21, 13]})
    tiles = flair(tmp_path)
    item = tiles[0]
    assert not tiles.is_demo and tiles.release == "flair" and item["vhr"].shape == (5, 500, 500)
    assert item["vhr"][0, 0, 0] == 7 and item["vhr"][4, -1, -1] == 8 and (item["vhr"] != 9).all()
    assert np.array_equal(item["s2"], data[:, :, 16:26, 8:18])
    write_centroids(tmp_path, {1: [38, 26]})               # too near to the border: moved inside
    assert np.array_equal(flair(tmp_path)[0]["s2"], data[:, :, 30:40, 20:30])


# ---- images ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("compression", [None, "lzw"])
def test_image_is_the_centre_with_five_bands_in_order(release, compression):
    write_image(img(release), image_values(), compression=compression)
    vhr = flair(release)[0]["vhr"]
    assert vhr.shape == (5, 100, 100) and vhr.dtype == torch.uint8
    assert vhr[0, :, 0].tolist() == vhr[1, 0].tolist() == list(range(6, 106)) and vhr[2:, 3, 4].tolist() == [50, 60, 70]


# ---- series ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("centre, rows, columns", [
    ([6, 2], (5, 7), (1, 3)), ([2, 6], (1, 3), (5, 7)),    # row first, in an area that is higher than wide
    ([8, 6], (7, 9), (5, 7)), ([0, 3], (0, 2), (2, 4)), ([0, 0], (0, 2), (0, 2)),    # moved inside at the border
    ([6.4, 1.6], (5, 7), (1, 3))])
@pytest.mark.parametrize("end", [".tif", ""])
def test_series_is_cut_around_its_centre(release, centre, rows, columns, end):
    write_centroids(release, CENTRES | {1: centre}, end)
    assert np.array_equal(flair(release)[0]["s2"], series_values()[:, :, slice(*rows), slice(*columns)])


@pytest.mark.parametrize("centre", [[9, 3], [3, 7], [-1, 3], [3, -1], [2, 8]])
def test_centre_outside_its_area(release, centre):
    write_centroids(release, CENTRES | {2: centre})
    with pytest.raises(UserError, match=r"D006_2020-Z1_NN-IMG_000002: its centre .* is not inside the 9 x 7 pixels"):
        flair(release)[1]


def test_tiles_of_one_area_see_their_own_ground(release):
    first, second, _ = flair(release)
    whole = series_values()
    assert np.array_equal(first["s2"], whole[:, :, 5:7, 1:3]) and np.array_equal(second["s2"], whole[:, :, 2:4, 4:6])
    assert torch.equal(first["s2_dates"], second["s2_dates"])


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32])
def test_only_the_crop_is_taken_from_the_memory_map(release, dtype, monkeypatch):
    def cut(array, *place):
        assert isinstance(array, np.memmap)
        return crop(array, *place)
    monkeypatch.setattr("datasets.flair.crop", cut)
    np.save(sen(release), series_values(dtype=dtype))
    data = flair(release).raw(0, ["s2"])["s2"][0]
    while data is not None:
        assert not isinstance(data, np.memmap) and data.nbytes <= 4 * 10 * 2 * 2 * 4
        data = data.base


@pytest.mark.skipif(not hasattr(mmap, "MADV_WILLNEED"), reason="the system cannot be told what will be read")
@pytest.mark.parametrize("order", ["C", "F"])
def test_only_pages_with_pixels_of_chosen_dates_are_asked_for(release, monkeypatch, order):
    """And no others are read ahead. A band of 60 x 70 pixels is 2.05 pages long, the crop in it 2 rows."""
    asked = set()

    class Map(mmap.mmap):
        def madvise(self, advice, start=0, length=0):
            if advice == mmap.MADV_WILLNEED:
                asked.update(range(start // mmap.PAGESIZE, -(-(start + length) // mmap.PAGESIZE)))
            else:
                assert advice == mmap.MADV_RANDOM and not asked
    days = [f"2020{month:02d}{day:02d}" for month in (1, 2) for day in range(1, 11)]
    data = series_values(20, 60, 70) % 30000
    write_series(sen(release).parent, "D006_2020-Z1_NN", np.asarray(data, order=order), days)
    write_centroids(release, CENTRES | {1: [33, 41]})
    tiles = flair(release, modalities=("s2",), max_dates=6)
    monkeypatch.setattr(mmap, "mmap", Map)
    item = tiles[0]
    dates = np.linspace(0, 19, 6).round().astype(int)
    assert np.array_equal(item["s2"], data[dates][..., 32:34, 40:42]) and len(item["s2_dates"]) == 6
    places = 128 + 2 * np.arange(data.size).reshape(data.shape, order=order)      # of the pixels in the file
    used = set(places[dates][..., 32:34, 40:42].ravel() // mmap.PAGESIZE)
    assert used <= asked and (order == "F" or asked == used) and len(used) < 100


@pytest.mark.parametrize("dtype, value, kept, expected", [
    (np.uint16, 32767, np.int16, 32767), (np.uint16, 40000, np.int32, 40000), (np.int16, -105, np.int16, -105),
    (">i2", -105, np.int16, -105),
    (np.uint8, 200, np.uint8, 200), (np.int32, 70000, np.int32, 70000),
    (np.float16, 0.5, np.float16, 0.5), (np.float64, 0.1, np.float32, np.float32(0.1))])
def test_types_of_the_series(release, dtype, value, kept, expected):
    """They stay what they are, where torch can compute with them and no precision is lost that matters."""
    data = series_values(dtype=dtype)
    data[0, 0, 5, 1] = value
    np.save(sen(release), data)
    s2 = flair(release)[0]["s2"].numpy()
    assert s2.dtype == kept and s2[0, 0, 0, 0] == expected and np.array_equal(s2[1:], data[1:, :, 5:7, 1:3])


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r\n\r\n"])
def test_dates_are_in_the_products_names(release, end):
    write_series(sen(release).parent, "D006_2020-Z1_NN", end=end)    # not in 20231111, when it was processed
    assert flair(release)[0]["s2_dates"].tolist() == [3, 60, 61, 366]


def test_two_products_of_a_day_and_dates_of_zeros(release):
    """The first product of use stays; a date without values goes together with its day."""
    data = series_values(6)
    data[[1, 4]] = 0
    write_series(sen(release).parent, "D006_2020-Z1_NN", data,
                 ["20200110", "20200111", "20200111", "20200111", "20200112", "20200105"])
    item = flair(release)[0]
    assert item["s2_dates"].tolist() == [5, 10, 11] and (item["s2"][:, 0, 0, 0] // 5000).tolist() == [5, 0, 2]


def test_cloud_is_looked_up_where_the_tile_is(release):
    masks = np.zeros((4, 2, H, W), np.uint8)
    masks[0], masks[1, 0, 5:7, 1:3], masks[2, 1, 5:7, 1:3], masks[3, :, 5, 1] = 100, 90, 90, 100
    masks[0, :, 5:7, 1:3] = 0                              # cloudy all around
    np.save(sen(release, "masks.npy"), masks)
    assert flair(release, max_cloud=40)[0]["s2_dates"].tolist() == [3, 366]    # snow counts too; a quarter is 25 %
    assert flair(release, max_cloud=20)[0]["s2_dates"].tolist() == [3]
    assert flair(release)[0]["s2_dates"].tolist() == [3, 60, 61, 366]


def test_dates_are_chosen_among_those_without_clouds(release, monkeypatch):
    """One product of 2 January is cloudy, and both of 4 January; the rest is not read."""
    read = []

    def counted(mapped, dates, nodata=None):
        read.append((mapped.shape[1], list(dates)))
        return fetch(mapped, dates, nodata)
    monkeypatch.setattr("datasets.reading.fetch", counted)
    data, masks = series_values(9, dtype=np.int32), np.zeros((9, 2, H, W), np.uint8)
    days = ["20200101", "20200102", "20200102", "20200103", "20200104", "20200104", "20200105", "20200106", "20200107"]
    masks[[1, 4, 5], 1] = 90
    write_series(sen(release).parent, "D006_2020-Z1_NN", data, days)
    np.save(sen(release, "masks.npy"), masks)
    tiles = flair(release, modalities=("s2",), max_dates=3, max_cloud=40)
    item = tiles[0]                                                               # evenly among 1, 2, 3, 5, 6, 7
    assert item["s2_dates"].tolist() == [1, 3, 7] and read == [(10, [0, 3, 8])]
    drawn = {tuple(tiles[0, epoch]["s2_dates"].tolist()) for epoch in range(20)}
    assert len(drawn) > 9 and {day for days in drawn for day in days} == {1, 2, 3, 5, 6, 7}
    assert 1 not in {t for _, dates in read for t in dates} and {len(dates) for _, dates in read} == {3}


# ---- labels ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("compression", [None, "lzw"])
def test_nineteen_mask_values_are_thirteen_classes(release, compression):
    for high in ([13], [14, 16], [19], []):
        mask = np.full((112, 112), 5, np.uint8)
        # one pixel is enough, also where the image is cut
        mask[0, 0], mask[-1, -1], mask[0, 50:50 + len(high)] = 1, 12, high
        write_image(msk(release), mask, compression=compression)
        data = flair(release, labelled=False)
        assert np.flatnonzero(data.present(0)).tolist() == [0, 4, 11, *([12] if high else [])]
    data = flair(release)
    assert data.labels.shape == (3, 13) and data.labels[1:].argmax(1).tolist() == [2, 2]    # 1 + number % 5 = 3
    assert (data.classes[0], data.classes[11], data.classes[12]) == ("building", "plowed land", "other")


@pytest.mark.parametrize("value", [0, 20])
def test_values_that_are_no_class(release, value):
    mask = np.ones((112, 112), np.uint8)
    mask[3, 3] = value
    write_image(msk(release), mask)
    with pytest.raises(UserError, match=r"MSK_000001.tif: shape \(112, 112\) of type uint8 with values from"):
        flair(release)


def test_pretraining_reads_no_labels(release):
    shutil.rmtree(release / "flair_labels_train")
    assert flair(release, labelled=False).names == NAMES
    every = {name for split in ("train", "val", "test") for name in flair(release, split, labelled=False).names}
    assert set(flair(release, "all", labelled=False).names) == every and len(every) > len(NAMES)


# ---- prepare.py's way: what is wrong with single tiles is collected ------------------------------------------------

def test_findings_are_collected(release):
    shutil.copy(img(release), img(release).parent.parent)    # IMG_000001 twice
    sen(release).unlink()
    write_centroids(release, {n: at for n, at in CENTRES.items() if n != 7} | {8: [3, 3]})
    findings = []
    data = flair(release, labelled=False, findings=findings)
    assert [(tile, key) for tile, key, _ in findings] == [
        ("IMG_000008", "centroids"), (NAMES[0], "vhr"), (NAMES[2], "the centroids"), (NAMES[0], "s2"), (NAMES[1], "s2")]
    assert "2 files of vhr" in findings[1][2] and data.paths["s2"] == [None] * 3


# ---- bad input: one clear error that names the culprit --------------------------------------------------------------

def cut_off(path):
    path.write_bytes(path.read_bytes()[:-2000])


def products(root, text):
    sen(root, "products.txt").write_text(text)


def second_image(root):
    shutil.copy(img(root), img(root).parent.parent)


def no_folders(root):
    shutil.copytree(root / "flair_aerial_train" / "D006_2020" / "Z1_NN", root / "images")
    shutil.rmtree(root / "flair_aerial_train" / "D006_2020")


@pytest.mark.parametrize("damage, culprit", [
    (lambda root: cut_off(sen(root)), "NN_data.npy: cannot be read as a numpy array"),
    (lambda root: np.save(sen(root), np.array([{}], object), allow_pickle=True),
     "NN_data.npy: cannot be read as a numpy array"),
    (lambda root: np.save(sen(root), series_values()[:, :9]), "NN_data.npy: shape (4, 9, 9, 7)"),
    (lambda root: np.save(sen(root), series_values()[0]), "NN_data.npy: shape (10, 9, 7)"),
    (lambda root: np.save(sen(root), series_values(3)), "NN_data.npy: shape (3, 10, 9, 7) of type uint16, expected 4"),
    (lambda root: np.save(sen(root), series_values() > 0), "NN_data.npy: shape (4, 10, 9, 7) of type bool"),
    (lambda root: np.save(sen(root), series_values()[..., :1]), "is not inside the 9 x 1 pixels"),
    (lambda root: products(root, "S2A_MSIL2A_\n" * 4), "NN_products.txt: not a list of Sentinel-2 products"),
    (lambda root: products(root, "S2A_MSIL2A_20200230T1\n" * 4), "NN_products.txt: a date of s2 is not of the form"),
    (lambda root: sen(root, "products.txt").unlink(), "NN_products.txt: cannot be read"),
    (lambda root: sen(root).unlink(), "D006_2020-Z1_NN-IMG_000001: no file of s2"),
    (lambda root: (root / CENTROIDS).unlink(), f"no {CENTROIDS} found"),
    (lambda root: (root / CENTROIDS).write_text("{"), f"{CENTROIDS}: not the centroids"),
    (lambda root: (root / CENTROIDS).write_text('{"IMG_000001.tif": 3}'), f"{CENTROIDS}: not the centroids"),
    (lambda root: write_centroids(root, {2: [3, 3], 7: [3, 3]}),
     "D006_2020-Z1_NN-IMG_000001: no file of the centroids"),
    (lambda root: cut_off(img(root)), "IMG_000001.tif: cannot be read as TIFF"),
    (lambda root: write_image(img(root), image_values(110)), "IMG_000001.tif: shape (5, 110, 110)"),
    (lambda root: write_image(img(root), image_values()[..., :4]),
     "IMG_000001.tif: shape (112, 112, 4), expected 5 bands"),
    (lambda root: write_image(img(root), image_values().astype(np.uint16)),
     "IMG_000001.tif: shape (5, 112, 112) of type uint16"),
    (second_image, "D006_2020-Z1_NN-IMG_000001: 2 files of vhr"),
    (no_folders, "IMG_000001.tif: no folders <domain>/<zone>/"),
    (lambda root: msk(root).unlink(), "D006_2020-Z1_NN-IMG_000001: no files of the labels"),
    (lambda root: shutil.copy(msk(root), root), "D006_2020-Z1_NN-IMG_000001: 2 files of the labels"),
    (lambda root: cut_off(msk(root)), "MSK_000001.tif: cannot be read as TIFF"),
    (lambda root: write_image(msk(root), np.ones((112, 100), np.uint8)), "MSK_000001.tif: shape (112, 100)"),
    (lambda root: write_image(msk(root), np.ones((112, 112), bool)), "MSK_000001.tif: shape (112, 112) of type bool"),
    (lambda root: write_image(msk(root), np.ones((112, 112), np.float32)),
     "MSK_000001.tif: shape (112, 112) of type float32"),
    (lambda root: img(root).unlink(), "D006_2020-Z1_NN-IMG_000001: no file of vhr (img/IMG_000001.tif) for the labels"),
    (lambda root: (root / CENTROIDS).write_text('{"IMG_000001.tif": [1e999, 3]}'), f"{CENTROIDS}: not the centroids"),
    (lambda root: (root / CENTROIDS).write_bytes(b"\xff"), f"{CENTROIDS}: cannot be read"),
    (lambda root: products(root, "S2A_MSIL2A_2020_103T1\n" * 4), "NN_products.txt: a date of s2 is not of the form"),
    (lambda root: products(root, "S2A_MSIL2A_20200203T1\n" * 3), "expected 3 (as many as in"),
    (lambda root: sen(root, "products.txt").write_bytes(b"\xff"), "NN_products.txt: cannot be read"),
    (lambda root: shutil.rmtree(root / "flair_aerial_train"), "no image of a train domain (D006_2020"),
])
def test_bad_input(release, damage, culprit):
    damage(release)
    with pytest.raises(UserError) as error:
        flair(release)[0]
    assert culprit in str(error.value) and "\n" not in str(error.value).strip()


def test_the_list_of_domains_is_whole(tmp_path, monkeypatch):
    changed = tmp_path / "domains.txt"
    changed.write_text(DOMAINS.read_text().replace("D015_2020 test", "D015_2020 train"))
    monkeypatch.setattr("datasets.flair.DOMAINS", changed)
    with pytest.raises(UserError,
                       match="domains.txt: its lines do not have the hash in the first one; restore it with git"):
        read_domains()


@pytest.mark.parametrize("masks, culprit", [
    (np.zeros((0, 2, H, W), np.uint8), r"NN_masks.npy: shape \(0, 2, 9, 7\)"),
    (np.zeros((4, 2, H, W), "S1"), r"NN_masks.npy: shape \(4, 2, 9, 7\) of type |S1"),
    (np.full((4, 2, H, W), np.nan, np.float32), "NN_masks.npy: 4 dates of s2 but 0 cloud masks with numbers"),
    (np.zeros((4, 1, H, W), np.uint8), r"NN_masks.npy: shape \(4, 1, 9, 7\)"),
    (np.zeros((3, 2, H, W), np.uint8), "NN_masks.npy: 4 dates of s2 but 3"),
    (np.zeros((4, 2, 4, 4), np.uint8), "is not inside the 4 x 4 pixels of its Sentinel-2 area, .*NN_masks.npy"),
    (None, "NN_masks.npy: cannot be read")])
def test_bad_masks(release, masks, culprit):
    sen(release, "masks.npy").unlink()
    if masks is not None:
        np.save(sen(release, "masks.npy"), masks)
    with pytest.raises(UserError, match=culprit):
        flair(release, max_cloud=10)[0]
    assert len(flair(release)[0]["s2"]) == 4    # they are not needed otherwise


def test_tiles_cannot_be_cut(release):
    with pytest.raises(UserError, match="--parts: the labels of flair belong to whole tiles"):
        flair(release, parts=2)
