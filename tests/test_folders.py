"""A dataset of one's own, and a sensor added to a known one: what docs/own.md promises, read and trained on as a user
would.
"""
import json
from dataclasses import replace

import numpy as np
import pytest
import tifffile
import torch

import finetune
import pretrain
from datasets import open_dataset
from datasets.band_statistics import training_statistics
from datasets.loading import collate
from datasets.sensors import SENSORS, Sensor
from datasets.simulated.demo import write_treesatai
from engine import checkpoint
from losses.contrastive import contrastive_loss
from models.handmade import handmade
from models.methods import build_model
from utils.errors import UserError
from utils.results import KEYS, read_rows

TABLE = [    # patches of 20 m; a tile has 3 x 2 of them
    Sensor("photo", "image", ("R", "G", "B"), 1, 20, files="photo/{tile}.tif"),
    Sensor("height", "image", ("h",), 2, 10, files="height/{tile}/h.npy"),
    Sensor("thermal", "series", ("T1", "T2"), 10, 2, 366, files="thermal/{tile}.npz"),
    Sensor("water", "series", ("w",), 20, 1, 1200, "2019-01-01", files="water_{tile}.npz", nodata=65535),
]
ALL = tuple(sensor.key for sensor in TABLE)
LINES = ["tile,split,forest,lake", "b2,train,1,0", "a1,val,1,1", "c3,train,0,0", "d4,test,0,1", "e5,train,0,1"]
DATES = np.array([20200229, 20200301, 20201231])


@pytest.fixture(autouse=True)
def own_folders(tmp_path_factory, monkeypatch):
    """Drawn lists and statistics of this test only, and a table of its own."""
    for module in ("splits", "band_statistics"):
        monkeypatch.setattr(f"datasets.{module}.FOLDER", tmp_path_factory.mktemp(module))
    monkeypatch.setitem(SENSORS, "mine", {sensor.key: sensor for sensor in TABLE})


def path_of(root, key, tile="b2"):
    return root / SENSORS["mine"][key].files.format(tile=tile)


def values(key):
    """What a tile's file holds: numbers that count up, in the type of a typical product."""
    shape, dtype = {"photo": ((60, 40, 3), np.uint8), "height": ((1, 30, 20), np.float64),
                    "thermal": ((3, 2, 6, 4), np.float64),
                    "water": ((3, 1, 3, 2), np.uint16)}[key]
    return (1 + np.arange(np.prod(shape)) % 250).reshape(shape).astype(dtype)


def write(root, key, tile="b2", data=None, dates=DATES, save=np.savez):
    path, data = path_of(root, key, tile), values(key) if data is None else data
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(path, data, photometric="rgb", compression="lzw")
    elif path.suffix == ".npy":
        np.save(path, data)
    else:
        save(path, data=data, dates=dates)


def write_lines(root, lines, end="\n"):
    (root / "labels.csv").write_bytes("".join(line + end for line in lines).encode())


@pytest.fixture
def folder(tmp_path):
    write_lines(tmp_path, LINES)
    for line in LINES[1:]:
        for key in ALL:
            write(tmp_path, key, line[:2])
    return tmp_path


def mine(root, split="train", modalities=ALL, **options):
    return open_dataset("mine", root, split, modalities, **options)


# ---- files ----------------------------------------------------------------------------------------------------------

# as spreadsheets write it
@pytest.mark.parametrize("start, end", [("", "\n"), ("", "\r\n"), ("", "\n\n"), ("\ufeff", "\r\n")])
def test_tiles_and_labels_are_in_the_order_of_the_list(folder, start, end):
    write_lines(folder, [start + LINES[0], *LINES[1:]], end)
    data = mine(folder)
    assert data.names == ["b2", "c3", "e5"] and data.labels.tolist() == [[1, 0], [0, 0], [0, 1]]
    assert list(data.classes) == ["forest", "lake"]
    assert mine(folder, "val").names == ["a1"] and mine(folder, "test").labels.tolist() == [[0, 1]]
    assert (data.release, data.is_demo) == ("mine", False)
    (folder / "DEMO.json").write_text("{}")
    assert mine(folder).is_demo


def test_files_of_each_kind(folder):
    item = mine(folder)[0]
    assert np.array_equal(item["photo"], values("photo").transpose(2, 0, 1)) and item["photo"].dtype == torch.uint8
    assert np.array_equal(item["height"], values("height")) and item["height"].dtype == torch.float32
    assert np.array_equal(item["thermal"], values("thermal")) and item["thermal"].dtype == torch.float32
    assert np.array_equal(item["water"], values("water"))
    assert item["thermal_dates"].tolist() == [60, 61, 366]     # days of a leap year
    assert item["water_dates"].tolist() == [424, 425, 730]     # since 1 January 2019


def test_types_stay_as_narrow_as_in_the_files(folder):
    """Only double precision becomes single; where files differ, a batch is in the wider type."""
    write(folder, "thermal", data=values("thermal").astype(np.float16))
    write(folder, "thermal", "c3", data=values("thermal") * 1000)
    write(folder, "height", data=values("height").astype(">f2"))
    write(folder, "water", data=values("water").astype(">u2"))
    data = mine(folder)
    batch = collate([data[0], data[1]])
    assert data[0]["thermal"].dtype == data[0]["height"].dtype == torch.float16
    assert np.array_equal(data[0]["thermal"], values("thermal")) and np.array_equal(data[0]["height"], values("height"))
    assert data[0]["water"].dtype == torch.int32 and np.array_equal(data[0]["water"], values("water"))
    assert batch["thermal"].dtype == batch["height"].dtype == torch.float32
    assert np.array_equal(batch["thermal"], np.stack([values("thermal"), values("thermal") * 1000]))


def test_half_precision_is_cleaned_and_summed_up_in_more(folder, monkeypatch):
    """Sums over a band go far beyond 65504, the largest number of half precision; what overflowed it is missing."""
    data = np.full((3, 2, 6, 4), 60000, np.float16)
    data[0, 1, 2, 2], data[0, 0, 0, 0], data[0, 0, 0, 1], data[2], data[1, 0] = np.nan, np.inf, -np.inf, 0, 50000
    for tile in ("b2", "c3", "e5"):
        write(folder, "thermal", tile, data=data)
    item = mine(folder)[0]
    assert item["thermal"].dtype == torch.float16 and item["thermal_dates"].tolist() == [60, 61]
    assert (item["thermal"][0] == 60000).all() and (item["thermal"][1, 0] == 50000).all()
    monkeypatch.setitem(SENSORS["mine"], "thermal", replace(TABLE[2], nodata=50000))
    assert mine(folder)[0]["thermal_dates"].tolist() == [60]
    monkeypatch.setitem(SENSORS["mine"], "thermal", TABLE[2])
    data[:, 1, :3] = 10000
    for tile in ("b2", "c3", "e5"):
        write(folder, "thermal", tile, data=data[:2], dates=DATES[:2])
    found = training_statistics(mine(folder, modalities=["thermal"]))["thermal"]
    whole = np.stack([mine(folder)[0]["thermal"].numpy()] * 3).astype(float)
    assert found["mean"] == pytest.approx(whole.mean((0, 1, 3, 4))) and found["std"] == pytest.approx(
        whole.std((0, 1, 3, 4)))


def test_series_are_cleaned(folder):
    data = values("thermal")
    data[0, 1, 2, 2], data[1] = np.nan, np.inf
    write(folder, "thermal", data=data)
    expected = (values("thermal")[0, 1].sum() - values("thermal")[0, 1, 2, 2]) / 23
    item = mine(folder)[0]
    assert item["thermal_dates"].tolist() == [60, 366] and item["thermal"][0, 1, 2, 2].item() == pytest.approx(expected)
    write(folder, "thermal", dates=DATES[[1, 0, 0]])
    assert np.array_equal(mine(folder)[0]["thermal"], values("thermal")[[1, 0]])


def test_unsigned_numbers_beyond_those_torch_computes_with(folder, monkeypatch):
    """65535 often means that a pixel was not seen; without that entry it is a value. None is clipped."""
    data = np.full((3, 1, 3, 2), 1000, np.uint16)
    data[0, 0, 1, 1], data[1], data[2] = 65535, 65535, 40000
    write(folder, "water", data=data)
    item = mine(folder)[0]
    assert (item["water"][0] == 1000).all() and (item["water"][1]
                                                 == 40000).all() and item["water_dates"].tolist() == [424, 730]
    monkeypatch.setitem(SENSORS["mine"], "water", replace(TABLE[3], nodata=None))
    water = mine(folder)[0]["water"]
    assert water.dtype == torch.int32 and np.array_equal(water, data)
    data[:] = np.minimum(data, 32767)
    write(folder, "water", data=data)
    water = mine(folder)[0]["water"]
    assert water.dtype == torch.int16 and np.array_equal(water, data)


@pytest.mark.parametrize("dtype, highest, kind", [
    (np.uint16, 32767, torch.int16), (np.uint16, 32768, torch.int32), (np.uint16, 65535, torch.int32),
    (">u2", 47000, torch.int32),
    (np.uint32, 65535, torch.int32), (np.uint32, 2 ** 31, torch.int64), (np.uint64, 2 ** 63, torch.float32)])
def test_wide_numbers_of_an_image_and_a_series_are_not_clipped(folder, monkeypatch, dtype, highest, kind):
    """Aerial images of 16 bits, Landsat and thermal series hold such; also where a batch has narrower ones beside them.
    """
    for key in ("height", "thermal"):
        data = values(key).astype(dtype)
        data.ravel()[1] = highest
        write(folder, key, data=data)
        write(folder, key, "c3", values(key).astype(dtype))
    data = mine(folder)
    for key in ("height", "thermal"):
        assert data[0][key].dtype == kind and data[0][key].ravel()[:3].tolist() == [1, highest, 3]
        batch = collate([data[0], data[1]])[key]
        assert batch[0].ravel()[:3].tolist() == [1, highest, 3] and batch[1].ravel()[:3].tolist() == [1, 2, 3]
    mean = training_statistics(mine(folder, modalities=["height"]))["height"]["mean"][0]
    assert mean == pytest.approx((3 * values("height").sum() - 2 + highest) / 3 / 600)


def test_an_image_of_16_bits_as_tif(folder):
    image = (values("photo") * 257.).astype(np.uint16)
    tifffile.imwrite(path_of(folder, "photo"), image, photometric="rgb")
    assert image.max() == 64250 and np.array_equal(mine(folder)[0]["photo"], image.transpose(2, 0, 1))


# ---- what was not seen ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype, nodata", [(np.float32, -9999), (np.int16, -9999), (np.float64, -3.4028234663852886e38),
                                           (np.float32, float("nan")), (np.uint16, 65535), (np.uint8, 0)])
def test_nodata_of_an_image_is_filled(folder, monkeypatch, dtype, nodata):
    """As in a series: with the mean of its band, so that it is in no statistics either."""
    monkeypatch.setitem(SENSORS["mine"], "height", replace(TABLE[1], nodata=nodata))
    image = values("height").astype(dtype)
    image[0, 3, 4:9], lost = nodata, values("height")[0, 3, 4:9]
    write(folder, "height", data=image)
    mean = (values("height").sum() - lost.sum()) / (600 - 5)
    expected = values("height").copy()
    expected[0, 3, 4:9] = mean if image.dtype.kind == "f" else round(mean)
    data = mine(folder)
    assert all(np.allclose(found, expected)
               for found in (data[0]["height"], data[0, 1]["height"], data.read(0)["height"][0]))
    statistics = training_statistics(mine(folder, modalities=["height"]))["height"]
    assert statistics["mean"] == pytest.approx([(2 * values("height").mean() + expected.mean()) / 3])
    image[0, :16] = nodata
    write(folder, "height", data=image)
    with pytest.raises(UserError,
                       match=r"b2/h.npy: 53% of the pixels of h are nodata, expected at most 50%: leave the tile out"):
        data[0]


def test_nan_of_an_image_needs_an_entry(folder, monkeypatch):
    image = values("height")
    image[0, 3, 4] = np.nan
    write(folder, "height", data=image)
    with pytest.raises(UserError,
                       match="b2/h.npy: holds values that are not finite, .* the entry of height .* needs nodata="):
        mine(folder)[0]
    monkeypatch.setitem(SENSORS["mine"], "height", replace(TABLE[1], nodata=-9999))
    assert mine(folder)[0]["height"][0, 3, 4].item() == pytest.approx(np.nanmean(image))


def test_a_pixel_that_is_zero_in_all_bands_was_not_seen(folder):
    """At the border of a swath. A 0 in one band alone, or in the only one, is a value."""
    data, water = values("thermal"), values("water")
    data[0, :, 2, 1:3], data[1, 0, 0, 0], data[2, :, :, :3], water[0, 0, 1, 1] = 0, 0, 0, 0
    write(folder, "thermal", data=data)
    write(folder, "water", data=water)
    item = mine(folder)[0]
    # of the third date 3 of 4 columns were not seen
    assert item["thermal_dates"].tolist() == [60, 61]
    expected = data[:2].copy()
    for band in expected[0]:
        band[2, 1:3] = band[band > 0].mean()
    assert np.allclose(item["thermal"], expected) and item["thermal"][1, 0, 0, 0] == 0
    assert np.array_equal(item["water"], water)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ">f4"])
def test_dates_that_lost_their_last_digits_are_refused(folder, dtype):
    with np.errstate(over="ignore"):
        write(folder, "thermal", dates=DATES.astype(dtype))
    with pytest.raises(UserError,
                       match=r"b2.npz: .* float\d\d, which cannot hold eight digits: 20200321 becomes 20200320; int32 "
                             r"can\);"):
        mine(folder)[0]
    for wide in (np.int32, np.float64, np.uint32, "S8", "U8"):
        write(folder, "thermal", dates=DATES.astype(wide))
        assert mine(folder)[0]["thermal_dates"].tolist() == [60, 61, 366]


# ---- endings --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("ending", [".tiff", ".TIF", ".TIFF", ".Tif"])
def test_tif_by_other_endings(folder, monkeypatch, ending):
    monkeypatch.setitem(SENSORS["mine"], "photo", replace(TABLE[0], files="photo/{tile}" + ending))
    for path in (folder / "photo").iterdir():
        path.rename(path.with_suffix(ending))
    assert np.array_equal(mine(folder)[0]["photo"], values("photo").transpose(2, 0, 1))


def test_arrays_by_other_endings_and_what_is_none(folder, monkeypatch):
    for sensor, ending in ((TABLE[1], ".NPY"), (TABLE[2], ".Npz")):
        form = sensor.files[:-4] + ending
        path_of(folder, sensor.key).rename(folder / form.format(tile="b2"))
        monkeypatch.setitem(SENSORS["mine"], sensor.key, replace(sensor, files=form))
        path = folder / form.format(tile="c3")
        path_of(folder, sensor.key,
                "c3").exists() or path.write_bytes((folder / sensor.files.format(tile="c3")).read_bytes())
        (folder / form.format(tile="e5")).write_bytes((folder / sensor.files.format(tile="e5")).read_bytes())
    item = mine(folder)[0]
    assert np.array_equal(item["height"], values("height")) and np.array_equal(item["thermal"], values("thermal"))
    monkeypatch.setitem(SENSORS["mine"], "photo", replace(TABLE[0], files="photo/{tile}.jp2"))
    with pytest.raises(UserError,
                       match=r"photo: its entry .* has files='photo/{tile}.jp2', expected one of .tif, .tiff, .npy, "
                             r".npz at"):
        mine(folder)


def test_a_series_may_be_empty(folder):
    write(folder, "thermal", data=np.zeros((0, 2, 6, 4)), dates=DATES[:0])
    batch = collate([mine(folder)[0], mine(folder)[1]])
    assert batch["thermal_padded"].tolist() == [[True] * 3, [False] * 3]


# ---- images that are not there --------------------------------------------------------------------------------------

IMAGES = ("photo", "height")


def test_an_image_may_be_missing(folder):
    """Zeros of its grid, and said to be missing; the first tile may lack it too, and the file may come later."""
    whole, of_all = mine(folder)[0], mine(folder)
    assert not whole["photo_missing"] and whole["photo_missing"].dtype == torch.bool
    path_of(folder, "photo").unlink()
    path_of(folder, "height", "c3").unlink()
    data = mine(folder)
    assert data.grid == (3, 2) and (data.split_hash, data.data_hash) == (of_all.split_hash, of_all.data_hash)
    for item in (data[0], data[0, 1]):
        assert item["photo_missing"] and item["photo"].shape == (3, 60, 40) and not item["photo"].any()
        assert not item["height_missing"] and torch.equal(item["height"], whole["height"])
    batch = collate([data[i] for i in range(3)])
    assert batch["photo_missing"].tolist() == [True, False, False] and batch["photo"].dtype == torch.uint8
    assert batch["height_missing"].tolist() == [False, True, False] and batch["height"].dtype == torch.float32
    assert "thermal_missing" not in batch
    write(folder, "photo")
    assert torch.equal(mine(folder)[0]["photo"], whole["photo"]) and not mine(folder)[0]["photo_missing"]


def test_a_missing_image_does_not_count_as_nodata(folder, monkeypatch):
    monkeypatch.setitem(SENSORS["mine"], "height", replace(TABLE[1], nodata=0))
    path_of(folder, "height").unlink()
    assert mine(folder)[0]["height_missing"] and not mine(folder).read(0)["height"][0].any()


def test_statistics_leave_missing_images_out(folder):
    noise = np.random.default_rng(0).normal(5, 2, (2, 1, 30, 20)).astype(np.float32)
    for tile, data in zip(("c3", "e5"), noise):
        write(folder, "height", tile, data)
    path_of(folder, "height").unlink()
    found = training_statistics(mine(folder, modalities=["height", "water"]))
    assert found["height"]["mean"] == pytest.approx([noise.mean()], rel=1e-5)
    assert found["height"]["std"] == pytest.approx([noise.std()], rel=1e-5)
    assert (found["height"]["tiles"], found["water"]["tiles"]) == (2, 3)


def test_a_tile_needs_one_sensor(folder):
    for key in IMAGES:
        path_of(folder, key, "c3").unlink()
    with pytest.raises(UserError,
                       match="^c3: no file of photo, height, and each tile needs one sensor at least; leave it out of "
                             "the list"):
        mine(folder, modalities=IMAGES)
    assert len(mine(folder, modalities=("photo", "thermal"))) == 3
    write(folder, "thermal", "c3", np.zeros((0, 2, 6, 4)), DATES[:0])
    data = mine(folder, modalities=("photo", "thermal"))
    with pytest.raises(UserError,
                       match="^c3: no file of photo, and no date of the others; each tile needs one sensor at least"):
        data[1]
    assert mine(folder, modalities=("photo", "water"))[1]["photo_missing"]
    assert not len(mine(folder, modalities=["thermal"])[1]["thermal_dates"])      # alone it is masked, as before
    findings = []
    mine(folder, modalities=IMAGES, findings=findings)
    assert [(tile, key, text[:11]) for tile, key, text in findings] == [
        ("c3", "photo", "no image of"), ("c3", "height", "no image of"), ("c3", "photo", "no file of ")]


def batch_of(folder):
    """Tiles b2, c3, e5 in double precision, noise in their images; b2 lacks its photo, c3 its height."""
    rng = np.random.default_rng(0)
    for tile in ("b2", "c3", "e5"):
        write(folder, "photo", tile, rng.integers(0, 255, (60, 40, 3)).astype(np.uint8))
        write(folder, "height", tile, rng.normal(0, 1, (1, 30, 20)))
    path_of(folder, "photo").unlink()
    path_of(folder, "height", "c3").unlink()
    data = mine(folder)
    return training_statistics(data), collate([data[i] for i in range(3)])


def model_of(statistics, classes=0):
    torch.manual_seed(0)
    model = build_model("omnisat", TABLE, embed_dim=32, depth=1, num_classes=classes)
    model.standardize.set(statistics)
    return model.double()


def outcome(model, batch, masks=None):
    """Logits, or loss and its terms, and all gradients."""
    model.zero_grad()
    if masks is None:
        values = [model(batch)]
        values[0].square().sum().backward()
    else:
        loss, terms = model.pretrain_loss(batch, masks)
        loss.backward()
        values = [loss, *terms.values()]
    return [value.detach() for value in values] + [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("classes, tiles_at_once", [(2, None), (0, None), (0, 1)])
def test_pixels_of_a_missing_image_change_nothing(folder, classes, tiles_at_once):
    """Neither logits nor losses nor gradients; those of an image that is there do."""
    statistics, batch = batch_of(folder)
    model = model_of(statistics, classes)
    model.tiles_at_once = tiles_at_once
    masks = None if classes else model.draw_masks(batch, torch.Generator().manual_seed(0))
    assert model.present(batch).tolist() == [[False, True, True, True], [True, False, True, True], [True] * 4]
    before = outcome(model, batch, masks)
    other = batch | {key: batch[key].clone() for key in IMAGES}
    other["photo"][0], other["height"][1] = 77, 5
    assert all(map(torch.equal, before, outcome(model, other, masks)))
    other["photo"][2] = 77
    assert not any(map(torch.equal, before, outcome(model, other, masks)[:1]))
    said = {name: value for name, value in batch.items() if not name.endswith("_missing")}
    # without the flag its zeros would count
    assert not torch.equal(before[0], outcome(model, said, masks)[0])


def test_tokens_of_a_missing_image_are_masked_and_no_part_of_the_losses(folder):
    """Exactly they are masked in fine-tuning; in pretraining all of them are, and none is a target; they are neither
    anchor, positive nor negative of equation 3: whatever they are, the loss is that of the others."""
    statistics, batch = batch_of(folder)
    model = model_of(statistics)
    masks = model.draw_masks(batch, torch.Generator().manual_seed(0))
    assert masks["is_masked"][0, 0].all() and masks["is_masked"][1, 1].all() and not masks["is_masked"].all(2)[2].all()
    assert masks["photo_targets"].min() >= 6 and not ((masks["height_targets"] >= 6)
                                                      & (masks["height_targets"] < 12)).any()
    tokens, present, _ = model.encode(batch)
    loss = contrastive_loss(tokens, present)
    other = tokens.detach().clone()
    other[0, 0], other[1, 1] = torch.randn(6, 32), other[2, 0]
    assert torch.equal(contrastive_loss(other, present),
                       loss) and not torch.equal(contrastive_loss(other, torch.ones_like(present)), loss)
    alone = torch.stack([torch.stack([tokens[0, m] for m in (1, 2, 3)]),
                         torch.stack([tokens[1, m] for m in (0, 2, 3)])])
    assert contrastive_loss(tokens[:2], present[:2]).item() == pytest.approx(
        contrastive_loss(alone, torch.ones(2, 3, dtype=torch.bool)).item(), rel=1e-9)
    seen = []
    model.combiner.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.features(batch)
    is_mask = (seen[0] == model.mask_token).all(-1)
    assert torch.equal(is_mask, ~present[:, :, None].expand_as(is_mask))


def test_features_made_by_hand_are_zeros_without_the_image(folder):
    _, batch = batch_of(folder)
    sensors = {sensor.key: sensor for sensor in TABLE}
    features = handmade(batch | {"photo": batch["photo"] + 1}, sensors)
    assert not features[0, :33].any() and features[1,
                                                   :33].all(0).any() and not features[1, 33:44].any() and features[
                                                       0, 33:44].any()


def test_compared_methods_refuse_a_missing_image(folder, monkeypatch):
    statistics, batch = batch_of(folder)
    model = build_model("resnet50", TABLE[:1], num_classes=2, dataset="treesatai", width=0.125)
    with pytest.raises(UserError,
                       match="^b2: no image of photo, which only omnisat can do without; leave the tile out of the "
                             "list$"):
        model(batch)
    rest = {name: value[1:] for name, value in batch.items()}
    assert model(rest).shape == (2, 2)


# ---- splits ---------------------------------------------------------------------------------------------------------

def test_all_tiles_that_have_files_need_no_table(folder):
    """Listed or not; a name stands for itself in each place of a pattern; what a system hides there is no tile."""
    (folder / "labels.csv").unlink()
    for key in ALL:
        write(folder, key, "z[9]")
    write(folder, "height", "._b2")
    (folder / "height" / "b2" / "other.npy").write_bytes(b"")
    (folder / "photo" / "notes.txt").write_text("")
    data = mine(folder, "all", labelled=False)
    assert data.names == ["a1", "b2", "c3", "d4", "e5", "z[9]"] and data.labels.shape == (6, 0) and data.grid == (3, 2)
    assert np.array_equal(data[5]["photo"], values("photo").transpose(2, 0, 1))
    write(folder, "thermal", "f6")
    assert mine(folder, "all", ["thermal"], labelled=False).names[-2:] == ["f6", "z[9]"]
    with pytest.raises(UserError, match=r"f6: no file of water \(water_{tile}.npz\)"):
        mine(folder, "all", ["thermal", "water"], labelled=False)
    with pytest.raises(UserError, match="labels.csv: cannot be read"):
        mine(folder, "train")


def test_validation_is_drawn_where_there_is_none(folder):
    lines = [f"t{k},train,{int(k < 20)},{int(k % 4 == 0)}" for k in range(40)]
    write_lines(folder, [LINES[0], *lines, "d4,test,0,1"])
    for line in lines:
        write(folder, "water", line.split(",")[0])
    train, val = (mine(folder, split, ["water"]) for split in ("train", "val"))
    assert len(val) == 6 and not set(train.names) & set(val.names) and len(train) == 34
    assert set(train.names + val.names) == {line.split(",")[0] for line in lines}
    assert 2 <= val.labels[:, 0].sum() <= 4 and val.labels[:, 1].sum() in (1, 2)    # stratified: 3 and 1.5
    numbers = [int(name[1:]) for name in val.names]
    assert val.labels.tolist() == [[k < 20, k % 4 == 0] for k in numbers]
    assert mine(folder, "val", ["water"]).names == val.names and mine(folder, "test", ["water"]).names == ["d4"]
    assert len(mine(folder, "train", ["water"], label_percent=50)) in (16, 17, 18)


@pytest.mark.parametrize("lines, culprit", [
    ([LINES[0], "b2,train,1,2"], "the line 'b2,train,1,2'"), ([LINES[0], "b2,train,1"], "the line 'b2,train,1'"),
    ([LINES[0], "b2,train,1,0,1"], "the line 'b2,train,1,0,1'"),
    ([LINES[0], "b2,training,1,0"], "the line 'b2,training,1,0'"),
    ([*LINES, "b2,val,1,0"], "the line 'b2,val,1,0'"),
    (["name,split,forest", "b2,train,1"], "below a header tile,split"),
    ([LINES[0]], "no tile in train"), ([LINES[0], "d4,test,0,1"], "no tile in train"), ([], "cannot be read"),
    (["tile"], "cannot be read"), (["tile,split", "b2,train"], "its header names no class"),
    (["tile;split;forest", "b2;train;1"], "cannot be read"), (["\xff" * 200000], "cannot be read"),
    (["tile,split,forest,forest", "b2,train,1,0"], "names no class, or one twice"),
    ([LINES[0], "b\x07,train,1,0"], r"the line 'b\x07,"),
    (["tile,split,for\x1best", "b2,train,1"], "its header names no class")])
def test_wrong_lists(folder, lines, culprit):
    write_lines(folder, lines)
    for split in ("train", "val"):
        with pytest.raises(UserError) as error:
            mine(folder, split)
        assert culprit.replace("train", split if "no tile" in culprit else "train") in str(error.value)
        assert "labels.csv" in str(error.value) or "no tile" in culprit


# ---- bad input: one clear error that names the culprit --------------------------------------------------------------

def flip_bytes(root):
    write(root, "thermal", data=np.random.default_rng(0).random((3, 2, 6, 4)), save=np.savez_compressed)
    content = bytearray(path_of(root, "thermal").read_bytes())
    content[100:200] = bytes(100)
    path_of(root, "thermal").write_bytes(content)


def as_npy(path):
    with open(path, "wb") as file:
        np.save(file, values("thermal"))


def cut_off(path, count):
    path.write_bytes(path.read_bytes()[:-count])


@pytest.mark.parametrize("damage, culprit", [
    (lambda root: [path_of(root, "height", tile).unlink() for tile in ("b2", "c3", "e5")], "b2: no file of height"),
    (lambda root: path_of(root, "water").unlink(), "b2: no file of water"),
    (lambda root: (root / "labels.csv").unlink(), "labels.csv: cannot be read"),
    (lambda root: write(root, "photo", data=values("photo")[:50]), "b2.tif: shape (3, 50, 40), expected 40 x 40"),
    (lambda root: write(root, "thermal", data=np.ones((3, 2, 4, 4))),
     "thermal/b2.npz: shape (3, 2, 4, 4), expected 6 x 4"),
    (lambda root: write(root, "height", data=np.ones((1, 20, 30))), "b2/h.npy: shape (1, 20, 30), expected 30 x 20"),
    (lambda root: write(root, "height", data=np.ones((2, 30, 20))), "b2/h.npy: shape (2, 30, 20)"),
    (lambda root: write(root, "height", data=np.full((1, 30, 20), np.nan)),
     "b2/h.npy: holds values that are not finite"),
    (lambda root: cut_off(path_of(root, "height"), 100), "b2/h.npy: cannot be read as a numpy array"),
    (lambda root: cut_off(path_of(root, "photo"), 3000), "b2.tif: cannot be read as TIFF"),
    (lambda root: cut_off(path_of(root, "thermal"), 100), "b2.npz: cannot be read as an npz file"),
    (lambda root: np.savez(path_of(root, "thermal"), data=values("thermal")), "b2.npz: cannot be read as an npz file"),
    (lambda root: np.savez(path_of(root, "thermal"), data=np.array([{}]), dates=DATES),
     "b2.npz: cannot be read as an npz file"),
    (flip_bytes, "b2.npz: cannot be read as an npz file"),
    (lambda root: as_npy(path_of(root, "thermal")), "b2.npz: cannot be read as an npz file"),
    (lambda root: write(root, "thermal", dates=DATES[:2]), "thermal/b2.npz: 3 images but 2 dates"),
    (lambda root: write(root, "thermal", dates=np.array(20200301)), "thermal/b2.npz: 3 images but 1 dates"),
    (lambda root: write(root, "thermal", dates=np.array(["2020-03-01"] * 3)), "b2.npz: a date of thermal is not"),
    (lambda root: write(root, "thermal", dates=DATES + 1j),
     "b2.npz: cannot be read as an npz file with data and dates (dates of type"),
    (lambda root: write(root, "thermal", dates=DATES + 0.5), "b2.npz: a date of thermal is not"),
    (lambda root: write(root, "water", dates=np.array([20200101, 20220415, 20220416])),
     "the date 20220416 of water is"),
    (lambda root: write(root, "water", dates=np.array([20181231, 20190101, 20190102])),
     "the date 20181231 of water is"),
])
def test_bad_input(folder, damage, culprit):
    damage(folder)
    with pytest.raises(UserError) as error:
        mine(folder)[0]
    assert culprit in str(error.value) and "\n" not in str(error.value).strip()


def test_all_tiles_have_one_grid(folder):
    write(folder, "photo", "c3", values("photo")[:40])
    data = mine(folder)
    assert data.grid == (3, 2)    # decided before reading starts, on any number of processes
    with pytest.raises(UserError, match=r"c3.tif: shape \(3, 40, 40\), expected 60 x 40 pixels: 3 x 2 patches of 20"):
        data[1]
    assert data[0]["photo"].shape == (3, 60, 40) and data[2]["photo"].shape == (3, 60, 40)
    write(folder, "photo", data=values("photo")[:9])
    with pytest.raises(UserError, match=r"b2.tif: shape \(3, 9, 40\), expected 20 x 40 pixels"):    # less than a patch
        mine(folder, modalities=["photo"])


def test_entries_that_cannot_be_read(folder, monkeypatch):
    monkeypatch.setitem(SENSORS["mine"], "more", Sensor("more", "image", ("x",), 1, 20))
    with pytest.raises(UserError, match="more: its entry for mine in datasets/sensors.py needs files="):
        mine(folder, modalities=["more"])
    monkeypatch.setitem(SENSORS["mine"], "more", Sensor("more", "series", ("x",), 20, 1, 366, files="{tile}.npy"))
    np.save(folder / "b2.npy", np.ones((3, 1, 3, 2)))
    np.save(folder / "c3.npy", np.ones((3, 1, 3, 2)))
    np.save(folder / "e5.npy", np.ones((3, 1, 3, 2)))
    with pytest.raises(UserError, match="b2.npy: a series needs its dates"):
        mine(folder, modalities=["more"])[0]
    with pytest.raises(UserError, match="--parts: the labels of mine belong to whole tiles"):
        mine(folder, parts=2)


def test_findings_are_collected(folder):
    path_of(folder, "photo", "e5").unlink()
    path_of(folder, "water", "b2").unlink()
    path_of(folder, "photo").write_bytes(b"")    # told when it is read
    findings = []
    data = mine(folder, findings=findings)
    assert [(tile, key) for tile, key, _ in findings] == [("e5", "photo"),
                                                          ("b2", "water")] and data.paths["photo"][2] is None


# ---- through the scripts --------------------------------------------------------------------------------------------

SMALL = ["--workers", "0", "--epochs", "1", "--pool", "8", "--batch-size", "8", "--epoch-steps", "1"]


def train_and_check(dataset, root, output, added):
    """Pretrain and fine-tune on all modalities; the encoders of the added ones must have learned. Returns the row."""
    common = ["--dataset", dataset, "--data-root", str(root), *SMALL]
    pretrain.main([*common, "--embed-dim", "32", "--depth", "1", "--output", str(output / "pretrain")])
    saved = checkpoint.load(output / "pretrain" / "pretrained.pt", "pretrained")
    table = SENSORS[dataset]
    assert [sensor["key"] for sensor in saved["config"]["sensors"]] == [key for key,
                                                                        sensor in table.items() if sensor.in_all]
    torch.manual_seed(0)
    fresh = build_model("omnisat", [sensor for sensor in table.values() if sensor.in_all], embed_dim=32,
                        depth=1).state_dict()
    for part in [f"{kind}.{key}." for kind in ("encoders", "decoders") for key in added]:
        weights = [name for name,
                   value in fresh.items() if name.startswith(part) and name.endswith("weight") and value.ndim > 1]
        assert weights and not [name for name in weights if torch.equal(fresh[name], saved["weights"][name])], part
    finetune.main([*common, "--init", str(output / "pretrain" / "pretrained.pt"), "--output", str(output / "finetune"),
                   "--csv", str(output / "table2.csv")])
    tuned = checkpoint.load(output / "finetune" / "finetuned.pt", "finetuned")
    for key in added:
        names = [name for name in saved["weights"] if name.startswith(f"encoders.{key}.")
                 and saved["weights"][name].ndim > 1]
        assert any(not torch.equal(tuned["weights"][name], saved["weights"][name]) for name in names)
    (row,) = read_rows(output / "table2.csv")
    assert [row[name] for name in KEYS] == ["table2", dataset, "omnisat", "self", "none", "all",
                                            "100"] and row["status"] == "ok"
    return row


THERMAL = {
    "npz": Sensor("thermal", "series", ("T1", "T2"), 5, 2, 366, files="thermal/{tile}.npz"),
    "npy": Sensor("thermal", "image", ("T1", "T2"), 1, 10, files="thermal/{tile}.npy"),
    "tif": Sensor("thermal", "image", ("T1", "T2", "T3"), 1, 10, files="{tile}_thermal.tif"),
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo")
    write_treesatai(root, train=16, test=6, seed=3)
    return root


@pytest.mark.parametrize("kind", THERMAL)
def test_a_new_sensor_is_an_entry(kind, demo, tmp_path, monkeypatch):
    """One entry and its files: the fourth modality of TreeSatAI-TS is read, pretrained and fine-tuned."""
    root, rng, sensor = demo, np.random.default_rng(0), THERMAL[kind]
    monkeypatch.setitem(SENSORS["treesatai-ts"], "thermal", sensor)
    tiles = [path.stem for path in sorted((root / "aerial").rglob("*.tif"))]
    assert len(tiles) == 22
    for k, tile in enumerate(tiles):
        path = root / sensor.files.format(tile=tile)
        path.parent.mkdir(exist_ok=True)
        if kind == "npz":
            dates = np.array([20200115, 20200301, 20200620, 20201130])[k % 3:]
            np.savez(path, data=rng.normal(300, 9, (len(dates), 2, 12, 12)).astype(np.float32), dates=dates)
        elif kind == "npy":
            np.save(path, rng.normal(300, 9, (2, 60, 60)).astype(np.float32))
        else:
            tifffile.imwrite(path, rng.integers(0, 255, (60, 60, 3)).astype(np.uint8), photometric="rgb")
    item = open_dataset("treesatai-ts", root, "train", ("vhr", "thermal"))[0]
    file = root / sensor.files.format(tile=item["name"][:-4])
    content = tifffile.imread(file).transpose(2, 0, 1) if kind == "tif" else np.load(file)
    expected = content["data"] if kind == "npz" else content
    assert np.array_equal(item["thermal"], expected) and ("thermal_dates" in item) == (kind == "npz")
    row = train_and_check("treesatai-ts", root, tmp_path, ["thermal"])
    assert row["n_test"] == "6" and row["scale"] == "demo"


def test_a_dataset_of_ones_own_through_the_scripts(tmp_path):
    root, rng = tmp_path / "data", np.random.default_rng(0)
    root.mkdir()
    splits = ["train"] * 8 + ["val"] * 3 + ["test"] * 4
    write_lines(root, [LINES[0], *(f"t{k},{split},{k % 2},{int(k % 3 == 0)}" for k, split in enumerate(splits))])
    for k in range(len(splits)):
        for key in ALL:
            noise = rng.integers(1, 250, values(key).shape).astype(values(key).dtype)
            count = 2 + k % 2 if SENSORS["mine"][key].kind == "series" else None    # series of different lengths
            write(root, key, f"t{k}", noise[:count], DATES[:count])
    for key, k in (("photo", 0), ("photo", 9), ("height", 1), ("photo", 1), ("height", 12)):
        path_of(root, key, f"t{k}").unlink()                                      # some of each split lack an image
    row = train_and_check("mine", root, tmp_path, ALL)
    assert row["n_test"] == "4" and row["scale"] == "custom"
    counts = json.loads((tmp_path / "table2.counts.jsonl").read_text())
    assert counts["classes"] == ["forest", "lake"]
    assert np.sum([counts[cell] for cell in ("tp", "fp", "fn", "tn")], 0).tolist() == [4, 4]
