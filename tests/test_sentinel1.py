"""Scrambled Sentinel-1 of TreeSatAI-TS: found from the numbers in real and simulated tiles, put in order, and never
where it is in order.
"""
import json

import h5py
import numpy as np
import pytest
from conftest import TILES, write_h5

from datasets import band_statistics, open_dataset, sentinel1, splits
from datasets.simulated.demo import write_treesatai
from datasets.treesatai import LABELS_FILE
from datasets.treesatai_h5 import read_h5
from utils.errors import UserError

ORBITS = {"s1": 2, "s1-des": 1}    # how often the permutation was done
FILES = {"Betula_spec._9_19083_WEFL_NLF_2017": "scrambled", "Quercus_robur_7_85750_WEFL_NLF_2017": "scrambled",
         "Betula_spec._1_15679_WEFL_NLF_2019": "in order", "Abies_alba_1_1005_WEFL_NLF_2020": "in order"}


@pytest.fixture(scope="module")
def files(real):
    """{stem: path} of the real series."""
    found = {path.stem: path for folder in (real, real.parent / "treesatai-ts-years")
             for path in (folder / "sentinel-ts").glob("*.h5")}
    if set(found) != set(FILES):
        pytest.skip("the real tiles of 2017 and 2019 are not beside the project (../shared/real/treesatai-ts-years)")
    return found


def undo(data, key):
    """As the page on it has it."""
    for _ in range(ORBITS[key]):
        data = data.reshape(len(data), 4, 18).swapaxes(1, 2).reshape(len(data), 2, 6, 6)
    return data


# ---- real files -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("key", ORBITS)
@pytest.mark.parametrize("stem, verdict", FILES.items())
def test_real_files_are_told_apart(files, stem, verdict, key):
    data, _ = read_h5(files[stem], [key])[key]
    order = sentinel1.order(data, key)
    right, wrong = (1, 0) if verdict == "scrambled" else (0, 1)
    assert order.verdict == verdict and 5 < order.difference[right] < 6 and abs(order.difference[wrong]) < 0.7
    assert 0.35 < order.neighbours[right] < 0.5 and order.neighbours[wrong] < 0.25
    repaired = sentinel1.repaired(data, key)
    assert np.array_equal(repaired, undo(data, key) if verdict == "scrambled" else data, equal_nan=True)
    assert sentinel1.order(repaired, key).verdict == "in order" and sentinel1.repaired(repaired, key) is repaired
    assert sentinel1.order(sentinel1.scrambled(repaired, key), key).verdict == "scrambled"
    few = repaired[(repaired > 0).all((1, 2, 3))][:sentinel1.FEWEST]              # all in winter
    assert sentinel1.order(few, key).verdict == "in order"
    assert sentinel1.order(sentinel1.scrambled(few, key), key).verdict == "scrambled"
    assert sentinel1.order(few[1:], key).verdict == "unclear"


def test_both_orbits_see_the_same_ground_once_it_is_undone(files):
    """Time means of VV and of VH over the 36 pixels, one orbit against the other: what the test itself does not look
    at.
    """
    both = read_h5(files["Betula_spec._9_19083_WEFL_NLF_2017"], list(ORBITS))

    def agreement(change):
        ascending, descending = (10 * np.log10(change(data[(data > 0).all((1, 2, 3))], key)).mean(0) for key,
                                 (data, _) in both.items())
        return [np.corrcoef(ascending[band].ravel(), descending[band].ravel())[0, 1] for band in (0, 1)]
    assert agreement(lambda data, key: data) == pytest.approx([-0.17, -0.15], abs=0.01)
    assert agreement(sentinel1.repaired) == pytest.approx([0.64, 0.85], abs=0.005)


# ---- what it is -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("key", ORBITS)
def test_the_permutation_and_its_undoing(key):
    data = np.random.default_rng(0).random((5, 2, 6, 6)).astype(np.float32)
    stored = np.stack([date for date in data])
    for _ in range(ORBITS[key]):
        stored = np.stack([date.reshape(18, 4).T.reshape(2, 6, 6) for date in stored])
    assert np.array_equal(sentinel1.scrambled(data, key), stored) and np.array_equal(sentinel1.restored(stored, key),
                                                                                     data)
    assert np.array_equal(undo(stored, key), data) and sentinel1.restored(data[:0], key).shape == (0, 2, 6, 6)


@pytest.mark.parametrize("key", ORBITS)
def test_measures_are_what_a_loop_over_pixels_gives(key):
    data = forest(np.random.default_rng(1), 50)
    data[6, 1, 2, 2], data[9], data[12, 0, 0, 0] = 0, np.nan, np.inf              # 6, 9, 12 of every third
    looked_at = [t for t in range(0, 50, 3) if t not in (6, 9, 12)]
    order = sentinel1.order(data, key)
    assert order.dates == len(looked_at) == 14
    for n, series in enumerate((data, undo(data, key))):
        db, differences, products, squares = 10 * np.log10(series[looked_at].astype(np.float64)), [], 0, 0
        for date in db:
            differences.append(date[0].mean() - date[1].mean())
            for band in date:
                band = band - band.mean()
                for y in range(6):
                    for x in range(6):
                        squares += band[y, x] ** 2 / 36
                        products += (band[y, x] * band[y, x + 1] / 60 if x < 5
                                     else 0) + (band[y, x] * band[y + 1, x] / 60 if y < 5 else 0)
        assert order.difference[n] == pytest.approx(sorted(differences)[6], abs=1e-3)    # of 14 the lower middle one
        assert order.neighbours[n] == pytest.approx(products / squares, abs=1e-3)


# ---- what is not scrambled ------------------------------------------------------------------------------------------

def speckled(rng, level):
    """Linear power of levels (T, 2, 6, 6) dB, with speckle whose neighbours share looks, as in the demo's forest."""
    looks = rng.gamma(1.3, 1 / 1.3, (len(level), 2, 7, 7))
    looks = (looks[..., 1:, 1:] + looks[..., :-1, 1:] + looks[..., 1:, :-1] + looks[..., :-1, :-1]) / 4
    return (10 ** (level / 10) * looks).astype(np.float32)


def levels(dates, vv, vh):
    return np.broadcast_to(np.array([vv, vh]).reshape(1, 2, 1, 1), (dates, 2, 6, 6)).copy()


def forest(rng, dates):
    return speckled(rng, levels(dates, -9.5, -15))


def water(rng, dates):
    """Wind roughens it now and then, and VV more; at rest both are the noise of the instrument."""
    return speckled(rng,
                    levels(dates, -22, -25) + rng.exponential(3, (dates, 1, 1, 1)) * np.array([1, 0.3])[:, None, None])


def shore(rng, dates):
    """Forest and water, 12 dB lower in VV."""
    wet = np.add.outer(np.arange(6), rng.normal(0, 1) * np.arange(6)) > rng.uniform(0, 5)
    return speckled(rng, np.where(wet, levels(dates, -21.5, -25), levels(dates, -9.5, -15)))


def snow(rng, dates):
    """Wet snow for a third of the year: both bands fall by 5 dB, and less in the shadow of trees."""
    depth = rng.uniform(3, 6, (1, 1, 6, 6)) * (np.arange(dates) % 12 < 4).reshape(-1, 1, 1, 1)
    return speckled(rng, levels(dates, -9, -14.5) - depth)


def village(rng, dates):
    """Some pixels with houses, up to 15 dB brighter."""
    houses = np.where(rng.random((1, 1, 6, 6)) < 0.15, rng.uniform(3, 15, (1, 1, 6, 6)), 0)
    return speckled(rng, levels(dates, -9, -15) + houses)


def noise(rng, dates):
    """Still water in both bands: no ground at all."""
    return (10 ** -2.4 * rng.gamma(4.5, 1 / 4.5, (dates, 2, 6, 6))).astype(np.float32)


@pytest.mark.parametrize("key", ORBITS)
@pytest.mark.parametrize("ground, least",
                         [(forest, 1), (water, 0.95), (shore, 0.9), (snow, 1), (village, 0.9), (noise, 0)])
def test_no_ground_is_called_scrambled_nor_in_order_when_it_is(ground, least, key):
    """Of 150 tiles each with 5 to 120 dates; least: the share of which the right answer must be given, the others are
    unclear.
    """
    rng, right = np.random.default_rng(7), {"in order": 0, "scrambled": 0}
    for _ in range(150):
        data = ground(rng, int(rng.integers(5, 121)))
        for truth, series in {"in order": data, "scrambled": sentinel1.scrambled(data, key)}.items():
            verdict = sentinel1.order(series, key).verdict
            assert verdict in (truth, "unclear")
            right[truth] += verdict == truth
    assert min(right.values()) >= 150 * least and (ground is not noise or max(right.values()) < 8)


@pytest.mark.parametrize("key", ORBITS)
@pytest.mark.parametrize("data",
                         [np.zeros((0, 2, 6, 6)), np.zeros((9, 2, 6, 6)), np.full((9, 2, 6, 6), np.nan),
                          np.full((9, 2, 6, 6), 0.1),
                                  np.full((9, 2, 6, 6), -1), np.full((9, 2, 6, 6), 1e38),
                                  np.full((9, 2, 6, 6), np.inf)])
def test_empty_and_blank_series_are_unclear_and_left_alone(data, key):
    data = data.astype(np.float32)
    with np.errstate(all="raise"):
        assert sentinel1.order(data, key).verdict == "unclear" and sentinel1.repaired(data, key) is data


# ---- the reader -----------------------------------------------------------------------------------------------------

@pytest.fixture
def mixed(release):
    """The miniature release with a scrambled file, one in order, and an empty one."""
    rng = np.random.default_rng(3)
    forests = {f"sen-1-{orbit}-{what}": forest(rng, 9) if what == "data" else np.arange(1, 10) * 6
               for orbit in ("asc", "des") for what in ("data", "days")}
    forests["sen-1-asc-data"][2, :, 1, 1] = np.nan
    stored = forests | {f"sen-1-{orbit}-data": sentinel1.scrambled(forests[f"sen-1-{orbit}-data"], key)
                        for orbit, key in (("asc", "s1"), ("des", "s1-des"))}
    empty = {f"sen-1-asc-{what}": forests[f"sen-1-asc-{what}"][:0] for what in ("data", "days")}
    for tile, content in zip(TILES, (stored, forests, empty)):
        write_h5(release / "sentinel-ts" / f"{tile[:-4]}_2021.h5",
                 **{name.replace("-", "_"): value for name, value in content.items()})
    return release, forests


def test_the_reader_repairs_by_file_and_leaves_the_rest(mixed):
    root, forests = mixed
    keys = ("vhr", "s2", "s1", "s1-des")
    released, repaired = (open_dataset("treesatai-ts", root, "train", keys, s1=s1, labelled=False)
                          for s1 in ("released", "repaired"))
    truth = {"s1": forests["sen-1-asc-data"], "s1-des": forests["sen-1-des-data"]}
    for data in (released, repaired):
        at = {tile: data.raw(i, keys) for i, tile in enumerate(data.names)}
        assert len(at) == 2 and len(at[TILES[2]]["s1"][0]) == 0                   # the tile in order is val
        for key, series in truth.items():
            stored = series if data is repaired else sentinel1.scrambled(series, key)
            assert np.array_equal(at[TILES[0]][key][0], stored, equal_nan=True) and np.array_equal(at[TILES[0]][key][1],
                                                                                                   np.arange(1, 10) * 6)
    item, other = repaired[repaired.names.index(TILES[0])], released[released.names.index(TILES[0])]
    gap = np.nanmean(forests["sen-1-asc-data"][2, 0])
    # filled by its band, which is known now
    assert item["s1"][2, 0, 1, 1] == pytest.approx(10 * np.log10(gap), abs=1e-4)
    assert not np.allclose(item["s1"],
                           other["s1"]) and all(np.array_equal(item[key], other[key])
                                                for key in ("vhr", "s2", "s2_dates"))
    val = [open_dataset("treesatai-ts", root, "val", keys, s1=s1)[0] for s1 in ("released", "repaired")]
    assert all(np.array_equal(*(item[key] for item in val)) for key in keys)


def test_it_is_part_of_hashes_and_statistics(mixed, tmp_path, monkeypatch):
    monkeypatch.setattr(band_statistics, "FOLDER", tmp_path / "stats")
    root, forests = mixed
    released, repaired = (open_dataset("treesatai-ts", root, "train", ("s1",), s1=s1, labelled=False)
                          for s1 in ("released", "repaired"))
    # that of before
    assert released.data_hash == splits.fingerprint([*released.names, "None", ""]) != repaired.data_hash
    assert released.split_hash == repaired.split_hash                             # the same tiles
    mean = [band_statistics.training_statistics(data)["s1"]["mean"] for data in (released, repaired)]
    assert len(list((tmp_path / "stats").iterdir())) == 2
    assert mean[1][0] - mean[1][1] > 5 > 1 > abs(mean[0][0] - mean[0][1])


def test_other_datasets_refuse_it_and_other_sensors_do_not_change(mixed):
    root, _ = mixed
    for name in ("treesatai", "pastis-hd", "flair"):
        with pytest.raises(UserError,
                           match=f"^--s1 repaired: only treesatai-ts has Sentinel-1 that can be repaired, {name} has "
                                 f"not; leave"):
            open_dataset(name, root, "train", ("s2",), s1="repaired", findings=[])
    hashes = {open_dataset("treesatai-ts", root, "train", ("vhr", "s2"), s1=s1).data_hash
              for s1 in ("released", "repaired")}
    assert len(hashes) == 1


def test_the_demo_plants_it_on_request(tmp_path):
    roots = [write_treesatai(tmp_path / name, train=14, test=2, seed=4, workers=1, as_2017=name == "planted")
             for name in ("plain", "planted")]
    assert ["as_2017" in json.loads((root / "DEMO.json").read_text()) for root in roots] == [False, True]
    years = set()
    for path in sorted((roots[0] / "sentinel-ts").iterdir()):
        years.add(path.stem[-4:])
        series, planted = (read_h5(root / "sentinel-ts" / path.name, ["s2", *ORBITS]) for root in roots)
        for key in series:
            is_other = path.stem.endswith("2017") and key in ORBITS and len(series[key][0]) > 0
            assert np.array_equal(series[key][0], planted[key][0], equal_nan=True) == (not is_other)
            if key in ORBITS:
                assert np.array_equal(sentinel1.repaired(planted[key][0], key), series[key][0], equal_nan=True)
    assert "2017" in years and len(years) > 1
    with pytest.raises(UserError, match="data of other arguments|asked for is"):
        write_treesatai(roots[0], train=14, test=2, seed=4, workers=1, as_2017=True)
