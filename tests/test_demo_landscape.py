"""Demo PASTIS-HD and FLAIR #2 against the facts of the real files: formats, traps, truth, signal, reproducibility."""
import hashlib
import json
import re
from datetime import date, datetime

import numpy as np
import pytest
import tifffile
from sklearn.ensemble import RandomForestClassifier

from datasets.simulated import demo
from datasets.simulated import flair as demo_flair
from datasets.simulated import pastis as demo_pastis
from datasets.simulated.landscape import Ground, Shape, ground_map, shares
from utils.errors import UserError

TRAIN, TEST, SEED = 44, 16, 1                                   # an odd seed: dates are text in metadata.geojson


@pytest.fixture(scope="module")
def pastis(tmp_path_factory):
    return demo.write_pastis(tmp_path_factory.mktemp("demo") / "pastis", TRAIN, TEST, SEED)


@pytest.fixture(scope="module")
def flair(tmp_path_factory):
    return demo.write_flair(tmp_path_factory.mktemp("demo") / "flair", TRAIN, TEST, SEED)


@pytest.fixture(scope="module")
def patches():
    return [demo_pastis.plan(SEED, i, TRAIN) for i in range(TRAIN + TEST)]


@pytest.fixture(scope="module")
def areas():
    return demo_flair.areas(TRAIN, TEST)


def digests(root):
    files = [p for p in sorted(root.rglob("*")) if p.is_file()]
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def s2_of(root, patch):
    return np.load(root / "DATA_S2" / f"S2_{patch.id}.npy")


def target_of(root, patch):
    return np.load(root / "ANNOTATIONS" / f"TARGET_{patch.id}.npy")


def spot_of(root, patch):
    return tifffile.imread(root / demo_pastis.FOLDERS[3] / f"SPOT6_RVB_1M00_2019_{patch.id}.tif")


# ---- both

@pytest.mark.parametrize("write", [demo.write_pastis, demo.write_flair])
def test_same_bytes_for_any_number_of_workers(write, tmp_path):
    one = digests(write(tmp_path / "1", 4, 2, seed=3, workers=1))
    assert one == digests(write(tmp_path / "2", 4, 2, seed=3, workers=2))
    assert one != digests(write(tmp_path / "3", 4, 2, seed=4, workers=1))


@pytest.mark.parametrize("name, extent", [("pastis-hd", 32), ("flair", 312)])
def test_marker(name, extent, tmp_path, capsys):
    root = tmp_path / "demo"
    command = ["--root", str(root), "--dataset", name, "--train", "2", "--test", "1"]
    demo.main(command)
    marker = json.loads((root / "DEMO.json").read_text())
    assert marker.items() >= dict(demo=True, dataset=name, train=2, test=1, seed=0, side=extent).items()
    want = digests(root)
    demo.main(command)
    assert "nothing to do" in capsys.readouterr().out and digests(root) == want
    with pytest.raises(UserError, match="delete the folder"):
        demo.main(command + ["--seed", "1"])
    (root / "DEMO.json").rename(root / "DEMO.json.unfinished")   # interrupted
    image = next(root.rglob("*.tif"))
    image.unlink()
    demo.main(command)
    assert digests(root) == want
    image.unlink()
    with pytest.raises(UserError, match="missing"):
        demo.main(command)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="no DEMO.json"):
        demo.main(["--root", str(tmp_path / "mine"), "--dataset", name])


def test_ground_map_by_hand():
    # two parcels left and right of x = 5, a strip 1 m to each side of it, a road along y = 2
    road = Shape(2., 5., 100., .6, np.pi / 2)
    ground = Ground(np.array([[5., 2.], [5., 8.]]), np.eye(2), 1., [road], ["a", "b", "strip", "road"])
    at = np.arange(10) + .5
    want = np.repeat([[0, 0, 0, 0, 2, 2, 1, 1, 1, 1]], 10, 0)
    want[1:3] = 3
    assert (ground_map(ground, at, at) == want).all()
    share = shares(want, 5, 4)
    assert share.shape == (4, 2, 2) and np.allclose(share.sum(0), 1)
    assert np.allclose(share[:, 0, 0], [.48, 0, .12, .4]) and np.allclose(share[:, 1, 1], [0, .8, .2, 0])


# ---- PASTIS-HD

def test_pastis_metadata(pastis, patches, tmp_path):
    features = json.loads((pastis / "metadata.geojson").read_text())["features"]
    ids = [f["properties"]["ID_PATCH"] for f in features]
    assert ids == sorted(ids) and set(ids) == {p.id for p in patches} and len(set(ids)) == TRAIN + TEST
    assert all(i % 10000 <= 540 for i in ids) and {i // 10000 for i in ids} == {1, 2, 3, 4} and max(np.diff(ids)) > 1
    assert [f["id"] for f in features] == [str(n) for n in range(len(ids))]
    assert {f["geometry"]["type"] for f in features} == {"Polygon", "MultiPolygon"}
    folds = np.array([f["properties"]["Fold"] for f in features])
    assert (folds == 5).sum() == TEST and abs((folds == 4).sum() - TRAIN / 5) <= 1 and set(folds) == {1, 2, 3, 4, 5}
    length = {"t30uxv": 43, "t31tfj": 61, "t31tfm": 46, "t32ulu": 38}
    seen = {}
    for feature in features:
        properties = feature["properties"]
        assert properties["id"] == str(properties["ID_PATCH"])
        for key in ("S2", "S1A", "S1D"):
            text = properties[f"dates-{key}"]
            assert isinstance(text, str)                        # the seed is odd
            days = json.loads(text)
            assert list(days) != sorted(days, key=int)
            days = [days[str(t)] for t in range(len(days))]
            assert days == sorted(days) and len(set(days)) == len(days)
            first, last = (datetime.strptime(str(days[t]), "%Y%m%d").date() for t in (0, -1))
            assert date(2018, 9, 1) <= first < last < date(2019, 12, 1)
            assert seen.setdefault((properties["TILE"], key), days) == days
            assert len(days) == length[properties["TILE"]] if key == "S2" else 65 <= len(days) <= 70
            assert len(np.load(pastis / f"DATA_{key}" / f"{key}_{properties['ID_PATCH']}.npy",
                               mmap_mode="r")) == len(days)
    even = json.loads(demo_pastis.metadata(2, 1, 32, [(3, .5)]))["features"][0]["properties"]
    assert isinstance(even["dates-S2"], dict) and list(even["dates-S2"]) != sorted(even["dates-S2"], key=int)


def test_pastis_arrays(pastis, patches):
    for patch in patches:
        s2, label = s2_of(pastis, patch), target_of(pastis, patch)
        assert s2.shape[1:] == (10, 32, 32) and s2.dtype == np.int16 and 38 <= len(s2) <= 61
        assert label.shape == (3, 32, 32) and label.dtype == (np.int16 if patch.wide else np.uint8)
        for orbit in ("S1A", "S1D"):
            s1 = np.load(pastis / f"DATA_{orbit}" / f"{orbit}_{patch.id}.npy")
            assert s1.shape[1:] == (3, 32, 32) and s1.dtype == np.float16
            s1 = s1.astype(np.float32)
            ok = np.isfinite(s1).all(1)
            assert np.allclose((s1[:, 0] - s1[:, 1])[ok], s1[:, 2][ok],
                               atol=.03) and -25 < s1[:, :2].mean(1)[ok].mean() < -8
        with tifffile.TiffFile(pastis / demo_pastis.FOLDERS[3] / f"SPOT6_RVB_1M00_2019_{patch.id}.tif") as tif:
            page = tif.pages[0]
            assert page.shape == (320, 320, 3) and page.dtype == np.uint8
            assert page.compression == 5 and page.planarconfig == 1          # LZW, interleaved


def test_pastis_labels_are_the_ground_map(pastis, patches):
    for i, patch in enumerate(patches):
        ground, index, void = demo_pastis.fields(SEED, i, TRAIN, 32)
        label = target_of(pastis, patch)[0]
        classes = np.array([demo_pastis.CROPS.get(name, (0,))[0] for name in ground.covers])[index]
        for row, column in ((0, 0), (7, 21), (16, 16), (31, 5)):
            pixel, out = (a[10 * row:10 * row + 10, 10 * column:10 * column + 10] for a in (classes, void[index]))
            votes = np.bincount(np.where(out & (pixel > 0), 19, pixel).ravel(), minlength=20)
            assert votes[label[row, column]] == votes.max()
        assert set(np.unique(label)) - {0, 19} == {demo_pastis.CROPS[name][0] for name in patch.crops}


def test_pastis_traps(pastis, patches):
    s2 = [s2_of(pastis, p) for p in patches]
    nodata = [(x == -10000).all(1) for x in s2]
    missing = np.concatenate([n.mean((1, 2)) for n in nodata])
    assert ((missing > 0) & (missing < .01)).any() and ((missing > .02) & (missing < 1)).any() and (missing == 1).any()
    assert all((x[:, 0] == -10000).sum() == n.sum() for x, n in zip(s2, nodata))
    assert any(((x < 0) & (x > -1000)).any() for x in s2), "small negatives"
    blue = np.concatenate([x[:, 0].mean((1, 2)) for x in s2])
    assert .1 < (blue > 2000).mean() < .5, "clouds"
    s1 = [np.load(p) for p in (pastis / "DATA_S1A").iterdir()] + [np.load(p) for p in (pastis / "DATA_S1D").iterdir()]
    assert any(np.isnan(x).any() for x in s1) and any(np.isneginf(x).any() for x in s1)
    labels = [target_of(pastis, p) for p in patches]
    assert {x.dtype.itemsize for x in labels} == {1, 2}
    kinds = [set(np.unique(x[0])) for x in labels]
    assert all(0 in k for k in kinds) and any(19 in k for k in kinds) and any(k <= {0, 19} for k in kinds)
    assert all(len(k - {0, 19}) in (0, 2, 3, 4, 5) for k in kinds) and set.union(*kinds) <= set(range(20))
    assert len(set.union(*kinds) - {0, 19}) == 8


def test_pastis_sensors_complement_each_other(pastis, patches):
    """Parcels of the training patches teach a forest, those of test patches are named: fusing beats each sensor alone.
    """
    features, crops, is_train = {"s2": [], "s1": [], "vhr": []}, [], []
    for patch in patches:
        label, s2, image = target_of(pastis, patch), s2_of(pastis, patch).astype(np.float32), spot_of(pastis, patch)
        s1 = np.load(pastis / "DATA_S1D" / f"S1D_{patch.id}.npy").astype(np.float32)
        s1[~np.isfinite(s1)] = np.nan
        days = demo_pastis.dates(patch.region)
        season = {key: np.array([(d.month + 12 * (d.year - 2018)) // 2 for d in days[key]]) for key in days}
        for parcel in np.unique(label[1]):
            here = (label[1] == parcel) & (label[0] > 0) & (label[0] < 19)
            if here.sum() < 12:
                continue
            seen = s2[:, :, here].mean(2)
            clear = (seen[:, 0] < 900) & (seen[:, 6] > 600)
            ndvi = (seen[:, 6] - seen[:, 2]) / (seen[:, 6] + seen[:, 2])
            course = [ndvi[clear & (season["S2"] == k)] for k in range(5, 11)]
            features["s2"].append([np.median(x) if len(x) else .5 for x in course])
            radar = np.nanmean(s1[:, :2, here], 2)
            features["s1"].append(np.concatenate([radar[season["S1D"] == k].mean(0) for k in range(5, 11)]))
            pixels = image[np.kron(here, np.ones((10, 10), bool))]
            features["vhr"].append([*pixels.mean(0), *pixels.std(0)])
            crops.append(int(label[0][here][0]))
            is_train.append(patch.fold < 5)
    crops, is_train = np.array(crops), np.array(is_train)
    features = {key: np.array(x) for key, x in features.items()}
    features["all"] = np.concatenate(list(features.values()), 1)
    named = {key: RandomForestClassifier(100, random_state=0).fit(x[is_train], crops[is_train]).predict(x[~is_train])
             for key, x in features.items()}
    truth = crops[~is_train]
    right = {key: (x == truth).mean() for key, x in named.items()}
    chance = np.bincount(truth).max() / len(truth)
    assert min(right.values()) > chance + .25 and right["all"] > .93, right
    assert all(right["all"] > right[key] + .02 for key in ("s2", "s1", "vhr")), right

    # each sensor mixes up the pairs that the story says it does
    def recall(key, *names):
        chosen = np.isin(truth, [demo_pastis.CROPS[name][0] for name in names])
        return (named[key] == truth)[chosen].mean()
    assert recall("s2", "grapevine", "orchard") < .8 < .95 < recall("vhr", "grapevine", "orchard")
    assert recall("s2", "corn", "sunflower") < .85 < .95 < recall("s1", "corn", "sunflower")
    assert recall("vhr", "wheat", "rapeseed") < .85 < .95 < recall("s1", "wheat", "rapeseed")


# ---- FLAIR #2

def test_flair_files(flair, areas):
    assert [sum(len(a.tiles) for a in areas if a.split == s) for s in ("train", "val", "test")] == [TRAIN - 9, 9, TEST]
    centres = json.loads((flair / "flair-2_centroids_sp_to_patch.json").read_text())
    about = json.loads((flair / "flair_aerial_metadata.json").read_text())
    assert len(centres) == TRAIN + TEST and {f"{name}.tif" for name in about} == set(centres)
    for area in areas:
        assert area.domain in demo_flair.DOMAINS[area.split] and re.fullmatch(r"Z\d+_[UANF]{2}", area.zone)
        top = ("flair_2_{}_test", "flair_{}_train")[area.split != "test"]
        image_top, label_top = top.format("aerial"), top.format("labels")
        stem = flair / top.format("sen") / area.domain / area.zone / "sen" / f"SEN2_sp_{area.domain}-{area.zone}"
        data, masks = np.load(f"{stem}_data.npy"), np.load(f"{stem}_masks.npy")
        names = open(f"{stem}_products.txt").read().split()
        T, _, H, W = data.shape
        assert data.shape[1] == 10 and H != W and 20 <= T <= 60
        assert data.dtype in (np.int16, np.uint16) and 0 <= data.min() and data.max() <= 16003
        assert masks.shape == (T, 2, H, W) and masks.max() <= 100
        days = [name[11:19] for name in names]
        assert len(names) == T and days == sorted(days) and {day[:4] for day in days} == {area.domain[-4:]}
        assert all(name.split("_")[2][:8] == day for name, day in zip(names, days))
        for tile in area.tiles:
            name = f"IMG_{tile:06d}"
            image = tifffile.imread(flair / image_top / area.domain / area.zone / "img" / f"{name}.tif")
            label = tifffile.imread(flair / label_top / area.domain / area.zone / "msk" / f"MSK_{tile:06d}.tif")
            assert image.shape == (312, 312, 5) and label.shape == (312, 312) and image.dtype == label.dtype == np.uint8
            assert 1 <= label.min() and label.max() <= 19
            assert (about[name]["domain"], about[name]["zone"]) == (area.domain, area.zone)
            assert about[name]["date"][:4] == area.domain[-4:]
            row, column = centres[f"{name}.tif"]
            assert isinstance(row, int) and 12 <= row <= H - 12 and 12 <= column <= W - 12
    assert areas[0].grid != areas[1].grid and {len(a.tiles) for a in areas} == {1, 3, 4}


def test_flair_domains_layout(tmp_path):
    old = demo.write_flair(tmp_path / "old", 5, 1, seed=3)
    new = demo.write_flair(tmp_path / "new", 5, 1, seed=3, layout="domains")
    files = [{path.split("/")[-1]: digest for path, digest in digests(root).items() if path != "DEMO.json"}
             for root in (old, new)]
    assert files[0] == files[1] and len(list((new / "aux-data").iterdir())) == 2
    assert len(list((new / "data" / "train-val").glob("D*/aerial/Z*/IMG_*.tif"))) == 5
    assert len(list((new / "data" / "train-val").glob("D*/sentinel/Z*/SEN2_sp_D*-Z*_data.npy"))) == 2
    assert len(list((new / "data" / "flair#2-test").glob("D*/labels/Z*/MSK_*.tif"))) == 1
    with pytest.raises(UserError, match="layout"):
        demo.write_flair(tmp_path / "x", 1, 1, layout="zip")


def test_flair_labels_are_the_ground_map(flair, areas):
    """Also: the Sentinel crop at [row, col] shows the patch; with rows and columns swapped it does not."""
    centres = json.loads((flair / "flair-2_centroids_sp_to_patch.json").read_text())
    right, swapped = [], []
    for z, area in enumerate(areas):
        image_folder, label_folder, series_folder = demo_flair.folders(flair, "original", area)
        data = np.load(next(series_folder.glob("*_data.npy"))).astype(np.float32)
        data = data[(data[:, 0].mean((1, 2)) < 900) & (data[:, 6].mean((1, 2)) > 900)]
        ndvi = np.median((data[:, 6] - data[:, 2]) / (data[:, 6] + data[:, 2]), 0)
        ground = demo_flair.land(SEED, z, area)
        for tile, corner in zip(area.tiles, demo_flair.corners(area)):
            label = tifffile.imread(label_folder / f"MSK_{tile:06d}.tif")
            index, y, x = demo_flair.patch_map(ground, corner)
            assert (label == np.array([demo_flair.CLASSES[name] for name in ground.covers])[index]).all()
            row, column = centres[f"IMG_{tile:06d}.tif"]
            assert abs(y.mean() / 10 - row) <= .5 and abs(x.mean() / 10 - column) <= .5
            bare = np.isin(label, [1, 3, 5, 13, 18])[6:306, 6:306].reshape(6, 50, 6, 50).mean((1, 3))
            if bare.std() > .2:
                for found, (r, c) in ((right, (row, column)), (swapped, (column, row))):
                    crop = ndvi[r - 3:r + 3, c - 3:c + 3]
                    found.append(-np.corrcoef(crop.ravel(), bare.ravel())[0, 1] if crop.shape == (6, 6) else np.nan)
    assert len(right) > 10 and np.median(right) > .7
    assert np.isnan(swapped).any() and np.nanmedian(swapped) < .5


def test_flair_traps(flair, areas):
    series = []
    for path in sorted(flair.rglob("*_data.npy")):
        stem = str(path).removesuffix("_data.npy")
        series.append((np.load(path), np.load(f"{stem}_masks.npy"), open(f"{stem}_products.txt").read().split()))
    assert {x.dtype for x, _, _ in series} == {np.dtype(np.int16), np.dtype(np.uint16)}
    assert any((~x.any((1, 2, 3))).any() for x, _, _ in series), "a date of zeros"
    days = [[name[11:19] for name in names] for _, _, names in series]
    assert any(len(set(d)) < len(d) for d in days) and all(len(set(names)) == len(names) for _, _, names in series)
    assert any("20200229" in d for d in days)
    assert any((m[:, 1] > 90).any() for _, m, _ in series) and any((m[:, 0] > 40).any() for _, m, _ in series)
    blue = np.concatenate([x[:, 0].mean((1, 2)) for x, _, _ in series])
    assert .1 < (blue > 2000).mean() < .5, "clouds stay in"
    compression, kinds = set(), []
    for path in sorted(flair.rglob("IMG_*.tif")):
        with tifffile.TiffFile(path) as tif:
            compression.add(int(tif.pages[0].compression))
    for path in sorted(flair.rglob("MSK_*.tif")):
        kinds.append(set(np.unique(tifffile.imread(path))))
    assert compression == {1, 5}
    assert set.union(*kinds) == set(demo_flair.CLASSES.values()) and any(max(k) > 12 for k in kinds)
    assert np.mean([2 <= len(k) <= 6 for k in kinds]) > .85 and max(len(k) for k in kinds) <= 8


def test_flair_sensors_complement_each_other(flair, areas):
    """Pixels of one class, as the photo (colour, texture, height) and as Sentinel-2 (course of NDVI) see them."""
    centres = json.loads((flair / "flair-2_centroids_sp_to_patch.json").read_text())
    features, classes, is_train = {"s2": [], "vhr": []}, [], []
    for area in areas:
        image_folder, label_folder, series_folder = demo_flair.folders(flair, "original", area)
        data = np.load(next(series_folder.glob("*_data.npy"))).astype(np.float32)
        month = np.array([int(n[15:17]) for n in next(series_folder.glob("*_products.txt")).read_text().split()])
        clear = (data[:, 0].mean((1, 2)) < 900) & (data[:, 6].mean((1, 2)) > 900)
        data, month = data[clear], month[clear]
        ndvi = (data[:, 6] - data[:, 2]) / (data[:, 6] + data[:, 2])
        course = np.stack([np.median(ndvi[np.isin(month, k)], 0) if np.isin(month, k).any()
                           else np.full(ndvi.shape[1:], .5)
                           for k in ((1, 2, 12), (3, 4), (5, 6), (7, 8), (9, 10))])
        for tile in area.tiles:
            image = tifffile.imread(image_folder / f"IMG_{tile:06d}.tif")[6:306, 6:306].astype(np.float32)
            label = tifffile.imread(label_folder / f"MSK_{tile:06d}.tif")[6:306, 6:306]
            row, column = centres[f"IMG_{tile:06d}.tif"]
            for j, k in np.ndindex(6, 6):
                block = np.s_[50 * j:50 * j + 50, 50 * k:50 * k + 50]
                if (label[block] == label[block][0, 0]).mean() == 1:
                    features["s2"].append(course[:, row - 3 + j, column - 3 + k])
                    features["vhr"].append([*image[block].mean((0, 1)), *image[block].std((0, 1))])
                    classes.append(int(label[block][0, 0]))
                    is_train.append(area.split != "test")
    classes, is_train = np.array(classes), np.array(is_train)
    features = {key: np.array(x) for key, x in features.items()}
    features["all"] = np.concatenate(list(features.values()), 1)
    right = {key: (RandomForestClassifier(100, random_state=0).fit(x[is_train], classes[is_train]).predict(x[~is_train])
                   == classes[~is_train]).mean() for key, x in features.items()}
    chance = np.bincount(classes[~is_train]).max() / (~is_train).sum()
    assert min(right.values()) > chance + .2 and right["all"] > max(right["s2"], right["vhr"]) + .01, (chance, right)


def test_physics(flair, areas):
    """Roofs and crowns are high, roads, water and pools are not; the near infrared of plants is bright, of water dark.
    """
    height, infrared = {}, {}
    for area in areas:
        image_folder, label_folder, _ = demo_flair.folders(flair, "original", area)
        for tile in area.tiles:
            image = tifffile.imread(image_folder / f"IMG_{tile:06d}.tif")
            label = tifffile.imread(label_folder / f"MSK_{tile:06d}.tif")
            for k in np.unique(label):
                height.setdefault(int(k), []).append(np.median(image[label == k][:, 4]) / 5)
                infrared.setdefault(int(k), []).append(np.median(image[label == k][:, 3]))
    height, infrared = ({k: np.median(v) for k, v in x.items()} for x in (height, infrared))
    assert 3 < height[1] < 15 and min(height[6], height[7]) > 8 and max(height[3], height[5], height[10],
                                                                        height[13]) < 1
    assert infrared[5] < 50 and infrared[3] + 30 < min(infrared[10], infrared[11])
