"""A table of pixels becomes a dataset of one's own: values, dates, labels, splits by place; and what is wrong with it
is told.
"""
import csv

import numpy as np
import pytest

from datasets import open_dataset
from datasets.sensors import SENSORS, Sensor
from studies.convert import Columns, convert, series_of
from studies.data import crops_fold
from tests.conftest import REAL
from utils.errors import UserError

CANADA = REAL.parent / "canada" / "canada_cube.npz"
COLUMNS = Columns("sample", "date", "crop", "cell")


def lines(pixels=30):
    """Two dates a pixel, the later one first; one value missing."""
    for i in range(pixels):
        for date, step in (("2017-03-01", 1), ("2017-02-01", 0)):
            yield {"sample": f"p{i:02}", "date": date, "crop": ("wheat", "rye")[i // 2 % 2], "cell": f"c{i % 10}",
                   "B1": i + step, "B2": "" if i == step == 0 else 100 + i, "VV": -10 - i}


def write(path, rows):
    rows = list(rows)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_a_table_becomes_tiles(tmp_path, monkeypatch):
    monkeypatch.setitem(SENSORS, "pixels", {
        "s2": Sensor("s2", "series", ("B1", "B2"), 10, 1, 366, files="s2/{tile}.npz"),
        "s1": Sensor("s1", "series", ("VV",), 10, 1, 366, files="s1/{tile}.npz")})
    root = tmp_path / "pixels"
    assert convert(write(tmp_path / "t.csv", lines()), root, COLUMNS, series=series_of(["s2=B1,B2", "s1=VV"]),
                   nodata=104) == 30
    names = {split: open_dataset("pixels", root, split, ("s2", "s1")).names for split in ("train", "val", "test")}
    assert sorted(sum(map(list, names.values()), [])) == [f"p{i:02}" for i in range(30)]
    places = {split: {int(name[1:]) % 10 for name in found} for split, found in names.items()}
    assert not places["train"] & places["test"] and not places["val"] & places["test"] and not places["train"] & places[
        "val"]
    split, at = next((split, list(found).index("p07")) for split, found in names.items() if "p07" in found)
    dataset = open_dataset("pixels", root, split, ("s2", "s1"))
    item = dataset[at]
    assert list(dataset.classes) == ["rye", "wheat"] and item["label"].tolist() == [1, 0]
    assert item["s2"].squeeze().tolist() == [[7, 107], [8, 107]] and item["s2_dates"].tolist() == [32, 60]
    assert item["s1"].squeeze().tolist() == [-17, -17]
    with np.load(root / "s2" / "p00.npz") as file:
        assert np.isnan(file["data"][0, 1, 0, 0]) and file["data"][1, 1, 0, 0] == 100
    with np.load(root / "s2" / "p04.npz") as file:
        assert np.isnan(file["data"][:, 1]).all()                             # nodata


@pytest.mark.parametrize("change, message", [
    ({"crop": "oats"}, r"tile p29 has the crop oats and wheat, expected one"),
    ({"B1": "x"}, r"line 61: B1 is 'x', expected a number"),
    ({"sample": "../p"}, "cannot be a file's name")])
def test_what_is_wrong_is_told(tmp_path, change, message):
    rows = list(lines())
    rows[-1] |= change
    with pytest.raises(UserError, match=message):
        convert(write(tmp_path / "t.csv", rows), tmp_path / "out", COLUMNS, series={"s2": ["B1"]})
    assert not (tmp_path / "out").exists()


def test_a_missing_column_and_too_few_places(tmp_path):
    with pytest.raises(UserError, match="no column B9; there are sample, date"):
        convert(write(tmp_path / "t.csv", lines()), tmp_path, COLUMNS, series={"s2": ["B9"]})
    with pytest.raises(UserError, match="4 different places"):
        convert(write(tmp_path / "t.csv", lines(4)), tmp_path / "out", COLUMNS, series={"s2": ["B1"]})
    with pytest.raises(UserError, match="--series s2: expected once a sensor"):
        series_of(["s2"])


def test_folds_of_the_real_pixels_share_no_cell():
    """The studies' folds: each pixel in one test split, no cell of the grid in two splits of a fold."""
    if not CANADA.exists():
        pytest.skip("the Canadian pixels are not beside the project (../shared/real)")
    sizes = []
    for fold in range(5):
        splits = crops_fold(CANADA, fold).splits
        seen = {name: {tuple(row.flatten()[:40].tolist()) for row in batch["s2"]} for name, batch in splits.items()}
        assert not seen["train"] & seen["test"] and not seen["val"] & seen["test"]
        sizes.append(len(splits["test"]["label"]))
        assert all((batch["label"].sum(1) == 1).all() for batch in splits.values())
    assert sum(sizes) == 3263 and min(sizes) > 500
