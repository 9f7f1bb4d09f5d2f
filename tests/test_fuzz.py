"""The short form of tests/fuzz.py, and what it found in what the readers share."""
import json
import os
from functools import partial

import numpy as np
import pytest
import tifffile
from conftest import write_h5

from datasets import band_statistics, sentinel1, splits
from datasets.files import read_npy, read_tif
from datasets.sensors import Sensor
from datasets.series import clean, day_numbers, native
from datasets.tiles import demo_side
from datasets.treesatai_h5 import read_h5
from tests.damage import ORBITS, damage, scramble
from tests.fuzz import KEYS, Process, fuzz
from utils.errors import UserError
from utils.files import walk


@pytest.mark.parametrize("name", [*KEYS, "zips"])
def test_damaged_files_are_refused_repaired_or_as_stored(name):
    bad = []
    counts = fuzz(name, 40, 1, lambda kind, path, what,
                  text: bad.append(f"{path}: {what}: {text}") if kind == "else" else None)
    assert not bad and counts.total() == 40 and counts["clear error"] > 15


def test_planted_scrambled_files_are_found_and_undone(monkeypatch):
    """And where they are not found, or not undone, that is told."""
    def plant(path, rng, bomb):
        return scramble(path, str(rng.choice(list(ORBITS)))) if path.suffix == ".h5" else damage(path, rng, bomb)
    monkeypatch.setattr("tests.fuzz.damage", plant)

    def planted():
        found = []
        fuzz("treesatai-ts", 24, 2, lambda kind, path, what,
             text: found.append((kind, text)) if "scrambled" in what else None)
        assert len(found) > 3
        return found
    assert {kind for kind, _ in planted()} == {"repair"}
    original = sentinel1.order
    for broken in (lambda data, key: original(data, key)._replace(verdict="in order"), lambda data,
                   key: sentinel1.Order("scrambled", dates=9)):
        monkeypatch.setattr(sentinel1, "order", broken)
        assert "else" in {kind for kind, _ in planted()}


# ---- images and arrays ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("gap", [16, 200])
def test_a_lost_block_in_an_hdf5_heap_is_refused(tmp_path, gap):
    """libhdf5 2.0 would go round in circles in it for ever, so another process is asked."""
    path = write_h5(tmp_path / "series.h5")
    content, process = path.read_bytes(), Process()
    at = content.index(b"GCOL") + gap
    path.write_bytes(content[:at] + bytes(512) + content[at + 512:])
    status, text = process.ask(read_h5, path, ["s2", "s1"])
    process.stop()
    assert status == "error" and text.startswith(f"{path}: cannot be read as HDF5 (text ") and text.endswith(
        "; download it again")


@pytest.mark.parametrize("tag, value", [("PlanarConfiguration", 213), ("RowsPerStrip", 4), ("StripByteCounts", 7)])
@pytest.mark.parametrize("compression", [None, "lzw"])
def test_tags_that_do_not_fit_the_strips_are_refused(tmp_path, tag, value, compression):
    """tifffile guesses: with a wrong planar configuration it takes rows of pixels for bands, and zeros for those it
    lacks.
    """
    path, image = tmp_path / "image.tif", np.arange(300, dtype=np.uint8).reshape(10, 10, 3)
    tifffile.imwrite(path, image, photometric="rgb", planarconfig="contig", compression=compression)
    assert read_tif(path, 3).shape == (3, 10, 10)
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags[tag].overwrite(value)
    with pytest.raises(UserError, match="image.tif: cannot be read as TIFF"):
        read_tif(path, 3)


def test_an_array_file_of_another_size_than_its_header_says_is_refused(tmp_path):
    path = tmp_path / "array.npy"
    np.save(path, np.zeros((4, 2, 3, 3), np.int16))
    assert read_npy(path).shape == (4, 2, 3, 3)
    path.write_bytes(path.read_bytes().replace(b"(4, 2", b"(3, 2"))
    with pytest.raises(UserError,
                       match="array.npy: cannot be read as a numpy array .272 bytes, its header says 236.; download it "
                             "again"):
        read_npy(path)


def test_folders_that_hold_themselves_are_walked_once(tmp_path):
    for folder in ("a/b", "c"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "a" / "file").touch()
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "b" / "top").symlink_to(tmp_path)
    (tmp_path / "c" / "elsewhere").symlink_to(tmp_path / "a")    # no loop: as a folder of its own
    found = [os.path.relpath(os.path.join(folder, name), tmp_path) for folder, _,
             names in walk(tmp_path) for name in names]
    assert found == ["a/file", "c/elsewhere/file"]


def test_numbers_beyond_a_type_are_missing_and_means_do_not_overflow():
    with np.errstate(all="raise"):
        wide = native(np.array([1e300, -1e300, 5]).reshape(3, 1, 1, 1))
    assert np.array_equal(wide.ravel(), np.float32([np.inf, -np.inf, 5]))
    assert native(np.array([2 ** 32 - 1], np.uint32)).dtype == np.int64
    data = np.full((1, 1, 6, 6), 1e38, np.float32)
    data[0, 0, 0, 0] = np.nan
    assert np.array_equal(clean(data, np.array([1]))[0], np.full((1, 1, 6, 6), 1e38, np.float32))
    half = np.full((1, 1, 6, 6), 3, np.float16)
    with np.errstate(all="raise"):    # 65535 is beyond half precision
        assert np.array_equal(clean(half, np.array([1]), nodata=65535)[0], half)


@pytest.mark.parametrize("date", [20190101.5, np.nan, np.inf, 190101, "0019_0101", 201901011, -2019011, 20190230, None])
def test_what_is_no_date(date):
    with pytest.raises(UserError, match="here: a date of s is not of the form YYYYMMDD"):
        day_numbers([20190131, date], Sensor("s", "series", ("b",), 10, 1, 366), "here")


@pytest.mark.parametrize("text", ["{", "[" * 10**5, '{"side": "a"}', '{"side": 0}', "[]", '{"side": true}'])
def test_a_damaged_marker_of_generated_data(tmp_path, text):
    (tmp_path / "DEMO.json").write_text(text)
    with pytest.raises(UserError, match="DEMO.json"):
        demo_side(tmp_path / "DEMO.json", 128)


# ---- caches ---------------------------------------------------------------------------------------------------------

NAMES, LABELS = ["a", "b", "c", "d"], np.eye(4, 2, dtype=bool)


def rewrite(path, lines):
    """With the right hash."""
    path.write_text("\n".join([f"# title, sha256 {splits.fingerprint(lines)}", *lines, ""]))


@pytest.mark.parametrize("damage", [
    lambda path: rewrite(path, ["a 0", "b 1", "c"]), lambda path: rewrite(path, ["a 0", "b 2", "c", "d"]),
    lambda path: rewrite(path, ["a 0", "b -1", "c", "d"]), lambda path: rewrite(path, ["a 0", "b x", "c", "d"]),
    lambda path: rewrite(path, ["a 0", "b 1", "c", "e"]), lambda path: rewrite(path, ["a 0", "b 1", "c", "d", "d"]),
    lambda path: path.write_bytes(b"\xff" * 99), lambda path: (path.unlink(), path.mkdir())])
def test_damaged_labels_are_refused(tmp_path, monkeypatch, damage):
    monkeypatch.setattr(splits, "FOLDER", tmp_path)
    collect = partial(splits.saved_labels, "release", NAMES, "", LABELS.__getitem__, ("x", "y"))
    assert np.array_equal(collect(), LABELS) and np.array_equal(collect(), LABELS)
    (path,) = tmp_path.iterdir()
    damage(path)
    with pytest.raises(UserError, match=f"{path.name}.*delete it: it is made again"):
        collect()


@pytest.mark.parametrize("lines", [["a", "a"], ["a", "e"]])
def test_a_damaged_subset_is_refused(tmp_path, monkeypatch, lines):
    monkeypatch.setattr(splits, "FOLDER", tmp_path)
    draw = partial(splits.saved_subset, "release", "half", NAMES, LABELS, 0.5, 0)
    draw()
    (path,) = tmp_path.iterdir()
    rewrite(path, lines)
    with pytest.raises(UserError, match="holds tiles that are not in the list it was drawn from, or twice; restore it"):
        draw()


def test_damaged_statistics_are_computed_again(tmp_path):
    path = tmp_path / "statistics.json"
    entries = {key: {"mean": [1.5], "std": [2.0], "sensor": {"bands": ["b"]}} for key in ("s1", "s2")}
    for entry in entries.values():
        entry["sha256"] = band_statistics.seal(entry)
    path.write_text(json.dumps(entries))
    assert band_statistics.read_statistics(path) == entries
    path.write_text(json.dumps(entries).replace("1.5", "7.5", 1))
    assert list(band_statistics.read_statistics(path)) == ["s2"]
    for text in ("", "{", "[]", '"text"', '{"s1": null}', '{"s1": {"mean": [1]}}', "[" * 10**5):
        path.write_text(text)
        assert band_statistics.read_statistics(path) == {}
    path.write_bytes(b"\xff")
    with pytest.raises(UserError, match="statistics.json: cannot be read .*; delete it: it is computed again"):
        band_statistics.read_statistics(path)
