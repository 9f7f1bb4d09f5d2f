"""prepare.py: planted defects are found and no others, a stopped run goes on, zips are unpacked safely, raw files stay.
"""
import csv
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
from conftest import write_tif

import prepare
from checks import records, report
from datasets import band_statistics, open_dataset, sentinel1, splits
from datasets.flair import CENTROIDS
from datasets.sensors import SENSORS, Sensor
from datasets.simulated import demo
from datasets.treesatai import LABELS_FILE
from utils.errors import UserError

WRITERS = {"treesatai-ts": (demo.write_treesatai, 44, 10), "pastis-hd": (demo.write_pastis, 24, 6),
           "flair": (demo.write_flair, 24, 6)}


@pytest.fixture(autouse=True)
def lists(tmp_path, monkeypatch):
    """Lists and statistics are written to a folder of the test."""
    shutil.copytree(splits.FOLDER, tmp_path / "splits", ignore=shutil.ignore_patterns("*demo*"))
    monkeypatch.setattr(splits, "FOLDER", tmp_path / "splits")
    monkeypatch.setattr(band_statistics, "FOLDER", tmp_path / "stats")
    return tmp_path


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Demo data, generated when it is asked for."""
    made = {}

    def get(name):
        if name not in made:
            write, train, test = WRITERS[name]
            made[name] = write(tmp_path_factory.mktemp("demo") / name, train, test, 5)
        return made[name]
    return get


@pytest.fixture
def copy(originals, tmp_path):
    return lambda name: shutil.copytree(originals(name), tmp_path / "data" / name)


def digests(root):
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in root.rglob("*")
            if path.is_file()}


def run(name, root, *more):
    """(exit code, rows of the CSV)."""
    report = root.parent / f"{root.name}.csv"
    code = prepare.main([name, "--root", str(root), "--report", str(report), *more])
    with open(report, newline="") as file:
        return code, list(csv.DictReader(file))


def kinds(rows):
    return {(row["tile"], row["modality"], row["kind"]) for row in rows}


def tiles_without(rows, root, name, split=None):
    """Tiles in which nothing was found."""
    marked = {row["tile"] for row in rows}
    names = [tile for part in ([split] if split else records.SPLITS)
             for tile in open_dataset(name, root, part, ["vhr"], labelled=False).names]
    return iter([tile for tile in names if tile not in marked])


def changed_h5(root, tile, changes):
    """Rewrite datasets of a series file; a function gets the old content, None deletes."""
    path = next((root / "sentinel-ts").glob(f"{tile[:-4]}_*.h5"))
    with h5py.File(path, "r+") as file:
        for key, change in changes.items():
            old = file[key][()]
            del file[key]
            if change is not None:
                new = change(old.copy())
                file.create_dataset(key, data=new, dtype=h5py.string_dtype() if new.dtype == object else None)


def assign(where, value):
    def change(array):
        array[where] = value
        return array
    return change


def cut(path):
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def check_planted(name, root, before, planted):
    """The findings after planting minus those before are the planted ones; nothing else changed, no raw file either."""
    raw = digests(root)
    code, rows = run(name, root)
    assert code == (1 if any(row["severity"] == "error" for row in rows) else 0)
    assert kinds(rows) - kinds(before) == set(planted) and kinds(before) <= kinds(rows)
    assert digests(root) == raw and len({tuple(row.values()) for row in rows}) == len(rows)
    assert not [row for row in rows if row["tile"] and row["detail"].startswith(row["tile"])]
    return rows


# ---- planted defects ------------------------------------------------------------------------------------------------

def test_defects_of_treesatai(copy, capsys):
    root = copy("treesatai-ts")
    code, before = run("treesatai-ts", root)
    assert code == 0 and not any(row["severity"] == "error" for row in before)
    of_train, of_test = (tiles_without(before, root, "treesatai-ts", split) for split in ("train", "test"))
    planted = []

    def tif(kind, change):
        tile = next(of_train)
        change(root / "aerial" / tile)
        planted.append((tile, "vhr", kind))

    def series(key, kind, *more, tile=None, **changes):
        tile = tile or next(of_train)
        prefix = {"s2": "sen-2", "s1": "sen-1-asc"}[key]
        changed_h5(root, tile, {f"{prefix}-{what}": change for what, change in changes.items()})
        planted.extend([(tile, key, kind), *((tile, *extra) for extra in more)])

    tif("missing", Path.unlink)
    tif("broken", cut)
    tif("broken", lambda path: write_tif(path, (200, 304, 4)))
    tif("broken", lambda path: write_tif(path, (304, 304, 3)))
    tif("broken", lambda path: write_tif(path, dtype=np.uint16))
    tif("constant", lambda path: write_tif(path, value=7))
    tif("double", lambda path: (root / "aerial" / "60m").mkdir() or shutil.copy(path, root / "aerial" / "60m"))
    for change in (Path.unlink, cut):
        tile = next(of_train)
        change(next((root / "sentinel-ts").glob(f"{tile[:-4]}_*.h5")))
        planted.extend((tile, key, "missing" if change is Path.unlink else "broken") for key in ("s2", "s1"))
    series("s2", "broken", products=None)
    series("s2", "broken", data=lambda data: data[:, :9])
    series("s1", "broken", products=lambda products: products[:-1])
    series("s2", "broken", products=assign(3, b"S2A_MSIL2A_2020ABCDT102421_N0213_R065_T32UNC_20200101T115419"))
    series("s1", "NaN", data=assign((0, slice(None), 2, slice(2, 4)), np.nan))
    series("s2", "date without data", data=assign(0, np.nan))
    series("s1", "infinite", data=assign((1, 0, 0, 0), np.inf))
    series("s2", "empty series", data=lambda data: data[:0], products=lambda products: products[:0],
           masks=lambda masks: masks[:0])
    series("s1", "nothing left", data=assign(slice(None), np.nan))
    series("s2", "cloudy only", masks=assign((slice(None), 1), 81))
    series("s2", "cloud masks", masks=lambda masks: masks[:-1])
    series("s2", "same day", products=lambda products: assign(1, products[0])(products))
    series("s2", "dates unsorted", products=lambda products: products[::-1].copy())
    series("s1", "radar units", data=lambda data: 10 * np.log10(np.maximum(data, 1e-6)))
    labels = root / "labels" / LABELS_FILE
    entries, lost, bare = json.loads(labels.read_text()), next(of_train), next(of_test)
    del entries[lost]
    entries[bare] = [["Abies", 0.07]]
    labels.write_text(json.dumps(entries))
    planted += [(lost, "labels", "missing"), (bare, "labels", "no label")]
    with zipfile.ZipFile(root / "more.zip", "w") as archive:
        archive.writestr("../outside.tif", b"1")
    planted += [("", "zip", "unsafe member")]

    shutil.rmtree(root.parent.parent / "stats")
    capsys.readouterr()
    rows = check_planted("treesatai-ts", root, before, planted)
    assert len(planted) == 28 and not list(root.parent.parent.rglob("outside.tif"))
    texts = {(row["tile"], row["modality"], row["kind"]): row["detail"] for row in rows}
    assert texts[next(row for row in planted if row[2] == "NaN")].startswith("2 pixels on 1 of ")
    assert not (root.parent.parent / "stats").exists()                            # errors: nothing is written
    screen = capsys.readouterr().out.replace(str(root), "data/treesatai").splitlines()
    assert len(screen) < 40 and max(map(len, screen)) <= 112
    text = "\n".join(screen)
    assert re.search(r"vhr +52 of 53 +47 +0 +1 +4 +1\n", text) and "is NOT ready: 15 errors in 13 tiles" in text
    assert re.search(r"error +broken +s2 +4 ", text) and re.search(r"repaired +infinite +s1 +1 ", text)


def test_scrambled_sentinel_1_is_found_file_by_file(tmp_path, monkeypatch, capsys):
    """In the 2017 files, and in one of another year; one of 2017 is in order; empty ones are not told."""
    root = demo.write_treesatai(tmp_path / "data" / "planted", 44, 10, 5, as_2017=True)
    files = sorted((root / "sentinel-ts").glob("*.h5"))
    of_2017, others = ([path for path in files if path.stem.endswith("_2017") == is_2017] for is_2017 in (True, False))
    def change(path, change):
        with h5py.File(path, "r+") as file:
            for key, name in (("s1", "sen-1-asc-data"), ("s1-des", "sen-1-des-data")):
                file[name][...] = change(file[name][()], key)
    change(of_2017[0], sentinel1.restored)
    change(others[0], sentinel1.scrambled)
    expected = {path.name: "scrambled" for path in (*of_2017[1:], others[0])}
    cut(others[1])
    with h5py.File(others[2], "r+") as file:                                      # four dates are too few
        for name in ("data", "products"):
            kept = file[f"sen-1-des-{name}"][()][:4]
            del file[f"sen-1-des-{name}"]
            file.create_dataset(f"sen-1-des-{name}", data=kept,
                                dtype=h5py.string_dtype() if name == "products" else None)
    raw = digests(root)
    for known in (0, 53):                                                         # and again, from what was kept
        code, rows = run("treesatai-ts", root)
        rows = [row for row in rows if row["kind"] in ("scrambled", "order unclear")]
        (few,) = [row for row in rows if row["kind"] == "order unclear"]
        assert (few["modality"], os.path.basename(few["file"]), few["severity"]) == ("s1-des", others[2].name, "note")
        assert few["detail"] == "too few dates to tell: 4 whole ones"
        rows.remove(few)
        assert {os.path.basename(row["file"]) for row in rows} == set(expected) and all(row["severity"] == "note"
                                                                                        for row in rows)
        assert {row["modality"] for row in rows} == {"s1",
                                                     "s1-des"} and len(rows) == len({(row["file"], row["modality"])
                                                                                     for row in rows})
        assert all(re.fullmatch(r"VV - VH -?\d\.\d dB, undone \d\.\d; neighbours -?0\.\d\d, undone 0\.\d\d",
                                row["detail"]) for row in rows)
        screen = capsys.readouterr().out
        assert max(len(line) for line in screen.splitlines()
                   if str(root.parent) not in line) <= 112 and len(screen.splitlines()) < 45
        counts = {line.split()[0]: [int(number) for number in line.split()[1:]] for line in screen.splitlines()
                  if re.match(r"  20\d\d  ", line)}
        assert counts["2017"][5:] == [1, len(of_2017) - 1, 0, 0,
                                      0] and counts["2017"][1] + counts["2017"][3] == len(of_2017) - 1
        assert sum(sum(numbers) for numbers in counts.values()) == 2 * 54 and sum(numbers[4]
                                                                                  for numbers in counts.values()) == 1
        assert sum(numbers[1] for year, numbers in counts.items() if year != "2017") == 1
        picture = root.parent / "planted-sentinel1.png"
        assert str(picture) in screen and picture.read_bytes().startswith(b"\x89PNG")
    assert digests(root) == raw
    for path in (*of_2017[1:], others[0]):
        change(path, sentinel1.restored)
    run("treesatai-ts", root)
    assert not picture.exists() and "scrambled          s1" not in capsys.readouterr().out


def test_defects_of_pastis(copy):
    root = copy("pastis-hd")
    code, before = run("pastis-hd", root)
    assert code == 0
    free, planted = tiles_without(before, root, "pastis-hd"), []

    def plant(key, kind, pattern, change):
        tile = next(free)
        change(next(root.rglob(pattern.format(tile))))
        planted.append((tile, key, kind))

    def array(where, value):
        return lambda path: np.save(path, assign(where, value)(np.load(path)))
    plant("labels", "missing", "TARGET_{}.npy", Path.unlink)
    plant("labels", "broken", "TARGET_{}.npy", array((0, 3, 3), 20))
    plant("labels", "broken", "TARGET_{}.npy", cut)
    plant("labels", "no label", "TARGET_{}.npy", array(0, 19))
    plant("vhr", "missing", "SPOT6_*_{}.tif", Path.unlink)
    plant("s2", "nodata", "S2_{}.npy", array((2, slice(None), 4, 4), -10000))
    plant("s2", "nodata", "S2_{}.npy", array((2, 5, 4, 4), -7324))    # mixed with it by resampling
    plant("s2", "broken", "S2_{}.npy", lambda path: np.save(path, np.load(path)[:-1]))
    plant("s1", "infinite", "S1A_{}.npy", array((0, 1, 0, 0), -np.inf))
    check_planted("pastis-hd", root, before, planted)


def test_defects_of_flair(copy):
    root = copy("flair")
    code, before = run("flair", root)
    assert code == 0
    free = list(tiles_without(before, root, "flair"))                             # the series of most have findings
    others = [row["tile"] for row in before if row["kind"] == "date without data"]
    mask = next(root.rglob(f"MSK_{others[0][-6:]}.tif"))
    tifffile.imwrite(mask, assign((5, 5), 0)(tifffile.imread(mask)))
    next(root.rglob(f"MSK_{others[1][-6:]}.tif")).unlink()
    image = next(root.rglob(f"{others[2][-10:]}.tif"))
    tifffile.imwrite(image, np.full_like(tifffile.imread(image), 9), photometric="minisblack", planarconfig="contig")
    next(root.rglob(f"{free[0][-10:]}.tif")).unlink()
    centres = json.loads((root / CENTROIDS).read_text())
    del centres[f"{free[1][-10:]}.tif"]
    centres[f"{free[2][-10:]}.tif"] = [3000, 10]
    centres[f"{free[3][-10:]}.tif"][1] = 1
    (root / CENTROIDS).write_text(json.dumps(centres))
    planted = [(others[0], "labels", "broken"), (others[1], "labels", "missing"), (others[2], "vhr", "constant"),
               (free[0][-10:], "vhr", "missing"), (free[1], "the centroids", "missing"), (free[2], "s2", "broken"),
               (free[3], "s2", "crop moved")]
    check_planted("flair", root, before, planted)


def test_what_cannot_be_listed_is_one_line(copy, tmp_path, monkeypatch):
    root = copy("treesatai-ts")
    labels = root / "labels" / LABELS_FILE
    labels.write_text(labels.read_text().replace('"Quercus"', '"Oak"', 1))
    with pytest.raises(UserError, match="not the label file"):
        run("treesatai-ts", root)
    (row,) = csv.DictReader(io.StringIO((root.parent / "treesatai-ts.csv").read_text()))
    assert (row["kind"], row["severity"], row["file"]) == ("not listed", "error", str(labels))
    with pytest.raises(UserError, match="no such folder"):
        prepare.main(["flair", "--root", str(tmp_path / "nothing"), "--report", str(tmp_path / "r.csv")])


def test_a_split_that_is_not_there_does_not_hide_the_others(copy, capsys):
    root = copy("flair")
    shutil.rmtree(root / "flair_2_aerial_test")
    code, rows = run("flair", root)
    (row,) = [row for row in rows if row["kind"] == "not listed"]
    assert code == 1 and row["split"] == "test" and "train 19, val 5, test 0" in capsys.readouterr().out


def write_own(root, tiles):
    """A dataset of one's own. tiles: {name: (split, number that the pixels come from)}."""
    for part in ("photo", "planet"):
        (root / part).mkdir(parents=True)
    for tile, (_, number) in tiles.items():
        rng = np.random.default_rng(number)
        tifffile.imwrite(root / "photo" / f"{tile}.tif", rng.integers(1, 250, (20, 20, 3), np.uint8), photometric="rgb")
        np.savez(root / "planet" / f"{tile}.npz", data=rng.integers(1, 900, (3, 2, 2, 2)).astype(np.int16),
                 dates=[20200103, 20200303, 20200503])
    (root / "labels.csv").write_text("".join(f"{line}\n" for line in (
        "tile,split,forest,lake",
        *(f"{tile},{split},{number % 2},{1 - number % 2}" for tile, (split, number) in tiles.items()))))


OWN = {sensor.key: sensor
       for sensor in (Sensor("photo", "image", ("R", "G", "B"), 1, 10, files="photo/{tile}.tif", nodata=0),
                                         Sensor("planet", "series", ("B", "G"), 10, 1, 366, files="planet/{tile}.npz"))}


def test_the_same_tile_in_two_splits(tmp_path, monkeypatch, capsys):
    """Under another name, copied or linked; one that shares an image alone is another."""
    monkeypatch.setitem(SENSORS, "mine", OWN)
    root, tiles = tmp_path / "mine", {f"t{n}": (split, n) for n,
                                      split in enumerate(["train"] * 20 + ["val"] * 2 + ["test"] * 3)}
    write_own(root, tiles)
    assert run("mine", root) == (0, [])
    for part, ending in (("photo", "tif"), ("planet", "npz")):
        shutil.copy(root / part / f"t0.{ending}", root / part / f"t23.{ending}")
        (root / part / f"t21.{ending}").unlink()
        (root / part / f"t21.{ending}").symlink_to(f"t1.{ending}")
    shutil.copy(root / "photo" / "t2.tif", root / "photo" / "t24.tif")
    shutil.copy(root / "photo" / "t2.tif", root / "photo" / "t3.tif")
    code, rows = run("mine", root)
    assert code == 1 and [(row["split"], row["tile"], row["kind"], row["severity"]) for row in rows] == [
        ("val", "t21", "same tile", "error"), ("test", "t23", "same tile", "error")]
    assert rows[1]["detail"] == (
        "its files are those of t0 in train, byte by byte: a score would be of tiles trained on; keep one of "
                                 "the two") and "mine is NOT ready: 2 errors in 2 tiles" in capsys.readouterr().out
    assert run("mine", root) == (code, rows)                                      # also from what an earlier run found


def test_lists_that_share_a_tile_are_an_error(copy):
    root = copy("treesatai-ts")
    train, test = (root / "split" / f"{split}_filenames.lst" for split in ("train", "test"))
    tile = train.read_text().split()[3]
    test.write_text(test.read_text() + tile + "\n")
    with pytest.raises(UserError, match=rf"^{tile}: in two lists, .*train_filenames.lst and .*test_filenames.lst"):
        run("treesatai-ts", root)


def test_pixels_that_were_not_seen(tmp_path, monkeypatch):
    monkeypatch.setitem(SENSORS, "mine", OWN)
    root = tmp_path / "mine"
    write_own(root, {f"t{n}": (split, n) for n, split in enumerate(["train"] * 4 + ["val"] * 2 + ["test"] * 3)})
    image = tifffile.imread(root / "photo" / "t1.tif")
    tifffile.imwrite(root / "photo" / "t1.tif", assign((slice(None), slice(3)), 0)(image), photometric="rgb")
    tifffile.imwrite(root / "photo" / "t2.tif", assign((slice(None), slice(11)), 0)(image), photometric="rgb")
    with np.load(root / "planet" / "t3.npz") as file:
        content = dict(file)
    content["data"][1, :, 0, 1] = 0
    np.savez(root / "planet" / "t3.npz", **content)
    code, rows = run("mine", root)
    assert code == 1 and sorted((row["tile"], row["kind"], row["detail"]) for row in rows) == [
        ("t1", "nodata", "60 pixels"),
        ("t2", "broken", "55% of the pixels of R are nodata, expected at most 50%: leave the tile out of the list"),
        ("t3", "partly covered", "1 pixels on 1 of 3 dates are 0 in all bands")]


def test_tiles_without_an_image_are_counted(tmp_path, monkeypatch, capsys):
    """A note, as long as something else is there of the tile; when the file comes, the tile is read anew."""
    monkeypatch.setitem(SENSORS, "mine", OWN)
    root = tmp_path / "mine"
    write_own(root, {f"t{n}": (split, n) for n, split in enumerate(["train"] * 20 + ["val"] * 2 + ["test"] * 3)})
    content = {tile: (root / "photo" / f"{tile}.tif").read_bytes() for tile in ("t0", "t7", "t22")}
    for tile in content:
        (root / "photo" / f"{tile}.tif").unlink()
    code, rows = run("mine", root)
    assert code == 0 and [(row["split"], row["tile"], row["modality"], row["severity"], row["kind"])
                          for row in rows] == [
        ("train", "t0", "photo", "note", "no image"), ("train", "t7", "photo", "note", "no image"),
        ("test", "t22", "photo", "note", "no image")]
    out = capsys.readouterr().out
    assert f"{'photo':15}{'22 of 25':>19}" in out and f"{'no image':19}{'photo':14}{3:7}" in out \
        and "mine is ready" in out
    with np.load(root / "planet" / "t7.npz") as file:
        np.savez(root / "planet" / "t7.npz", data=file["data"][:0], dates=file["dates"][:0])
    code, rows = run("mine", root)
    (row,) = [row for row in rows if row["severity"] == "error"]
    assert code == 1 and (row["tile"], row["kind"]) == ("t7", "missing")
    assert row["detail"] == "no file of it, and no date of planet: leave the tile out"
    (root / "photo" / "t7.tif").write_bytes(content["t7"])
    code, rows = run("mine", root)
    assert code == 0 and [row["kind"] for row in rows if row["tile"] == "t7"] == ["empty series"]
    # of a whole split: not single tiles any more
    for tile in ("t20", "t21"):
        (root / "photo" / f"{tile}.tif").unlink()
    code, rows = run("mine", root)
    assert code == 1 and {row["tile"] for row in rows if row["severity"] == "error"} == {"t20", "t21"}


# ---- stopping and going on ------------------------------------------------------------------------------------------

def test_stopped_and_run_again(copy, monkeypatch, capsys):
    root, check, calls = copy("treesatai-ts"), records.check_tile, []

    def counted(dataset, i, stop=False):
        if stop and len(calls) == 10:
            raise KeyboardInterrupt
        calls.append(dataset.names[i])
        return check(dataset, i)
    monkeypatch.setattr(records, "check_tile", lambda dataset, i: counted(dataset, i, stop=True))
    arguments = ["treesatai-ts", "--root", str(root), "--report", str(root.parent / "r.csv")]
    assert prepare.main(arguments) == 130 and "goes on" in capsys.readouterr().err
    progress = root.parent / "r.progress.jsonl"
    lines = progress.read_text().splitlines()
    assert [json.loads(line)["tile"] for line in lines] == calls
    progress.write_text("\n".join(lines)[:-20])                                   # the last line is cut off

    first, calls[:] = calls[:9], []
    monkeypatch.setattr(records, "check_tile", counted)
    assert prepare.main(arguments) == 0
    assert len(calls) == 54 - 9 and not set(first) & set(calls)
    report, calls[:] = (root.parent / "r.csv").read_text(), []
    assert prepare.main(arguments) == 0
    assert not calls and (root.parent / "r.csv").read_text() == report

    os.utime(root / "aerial" / first[0])                                          # a changed file is checked again
    next((root / "sentinel-ts").glob(f"{first[1][:-4]}_*.h5")).unlink()
    assert prepare.main(arguments) == 1 and calls == first[:2]
    calls.clear()
    assert prepare.main([*arguments, "--fresh"]) == 1 and len(calls) == 54


def test_sigterm_leaves_what_was_checked(copy):
    root = copy("treesatai-ts")
    progress = root.parent / "r.progress.jsonl"
    code = (f"import pathlib, sys, time, prepare\nfrom checks import records\nprepare.splits.FOLDER = "
            f"pathlib.Path({str(root.parent)!r})\ncheck = records.check_tile\n"
            "records.check_tile = lambda *a: time.sleep(0.2) or check(*a)\n"
            f"sys.exit(prepare.main(['treesatai-ts', '--root', {str(root)!r}, '--report', "
            f"{str(root.parent / 'r.csv')!r}]))")
    process = subprocess.Popen([sys.executable, "-c", code], cwd=Path(prepare.__file__).parent, stderr=subprocess.PIPE,
                               text=True)
    deadline = time.time() + 60
    while not (progress.exists() and progress.read_text().count("\n") >= 3) and time.time() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 130 and "Traceback" not in process.stderr.read()
    assert 3 <= len(records.read_progress(progress)) < 20


# ---- unpacking ------------------------------------------------------------------------------------------------------

def zipped(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def test_zips_are_unpacked_and_the_data_is_the_same(originals, tmp_path, capsys):
    source, root = originals("treesatai-ts"), tmp_path / "zipped"
    root.mkdir()
    for folder in ("aerial", "sentinel-ts", "labels", "split"):
        zipped(root / f"{folder}.zip",
               {f"{folder}/{path.name}": path.read_bytes() for path in (source / folder).iterdir()})
    shutil.copy(source / "DEMO.json", root)
    raw = digests(root)
    assert run("treesatai-ts", root)[0] == 0
    assert "4 zips" not in (text := capsys.readouterr().out) and "aerial.zip: 54 files" in text
    assert {path.name for path in root.iterdir() if path.is_dir()} == {"aerial", "sentinel-ts", "labels", "split"}
    after = digests(root)
    assert raw.items() <= after.items() and not [name for name in after if name.endswith(".part")]
    for path in (source / "aerial").iterdir():
        assert (root / "aerial" / "aerial" / path.name).read_bytes() == path.read_bytes()
    assert run("treesatai-ts", root)[0] == 0 and digests(root) == after           # nothing is unpacked twice
    assert "4 zips were unpacked before" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["", "aerial/60m"])
def test_what_was_unpacked_by_hand_is_left_alone(tmp_path, place):
    zipped(tmp_path / "aerial_60m_abies_alba.zip", {"Abies_1.tif": b"one", "Abies_2.tif": b"three"})
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    (tmp_path / place / "Abies_1.tif").write_bytes(b"one")
    lines, findings = prepare.unpack(tmp_path)
    assert not findings and "1 files" in lines[0]
    assert [path.name for path in (tmp_path / "aerial_60m_abies_alba").iterdir()] == ["Abies_2.tif"]


def test_same_names_in_other_folders_are_other_members(tmp_path):
    zipped(tmp_path / "sentinel.zip", {f"{sensor}/60m/Abies_1.tif": b"same" for sensor in ("s1", "s2")})
    (tmp_path / "s1" / "60m").mkdir(parents=True)
    (tmp_path / "s1" / "60m" / "Abies_1.tif").write_bytes(b"same")
    prepare.unpack(tmp_path)
    assert [path.relative_to(tmp_path).as_posix()
            for path in (tmp_path / "sentinel").rglob("*.tif")] == ["sentinel/s2/60m/Abies_1.tif"]


def test_bad_members_and_zips(tmp_path):
    root = tmp_path / "in" / "root"
    root.mkdir(parents=True)
    content = os.urandom(100_000)
    link = zipfile.ZipInfo("link.tif")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(root / "a.zip", "w") as archive:
        for name in ("good.tif", "../up.tif", "/abs.tif", "x/../../up.tif", "bad.tif"):
            archive.writestr(name, content if name == "bad.tif" else b"1")
        archive.writestr(link, "/etc/passwd")
    whole = (root / "a.zip").read_bytes()
    (root / "a.zip").write_bytes(whole.replace(content[500:600], bytes(100)))
    (root / "half.zip").write_bytes(whole[:70_000])
    (root / "a").mkdir()
    (root / "a" / ".good.tif.part").write_bytes(b"of a stopped run")
    raw = digests(root)
    lines, findings = prepare.unpack(root)
    assert [(kind, text.split(":")[0].strip("'")) for kind, text, _ in findings] == [
        *(("unsafe member", name) for name in ("../up.tif", "/abs.tif", "x/../../up.tif", "link.tif")),
        ("damaged member", "bad.tif"), ("broken zip", "File is not a zip file; download it again")]
    assert digests(tmp_path / "in").keys() == {"root/a.zip", "root/half.zip", "root/a/good.tif"} and len(lines) == 1
    assert {name: digests(root)[name] for name in ("a.zip", "half.zip")} == {name: raw[name]
                                                                             for name in ("a.zip", "half.zip")}

    (root / "a" / "good.tif").write_bytes(b"changed by hand")                     # not overwritten
    lines, findings = prepare.unpack(root)
    assert (root / "a" / "good.tif").read_bytes() == b"changed by hand" and not lines
    assert any("in another size" in text for _, text, _ in findings)


def test_no_space_is_told_before_unpacking(tmp_path, monkeypatch):
    zipped(tmp_path / "aerial.zip", {"a.tif": bytes(3_000_000_000 // 1000)})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 2_000_000))
    with pytest.raises(UserError, match=r"aerial.zip: to unpack it 0.003 GB are needed, 0.002 GB are free"):
        prepare.unpack(tmp_path)
    assert not (tmp_path / "aerial").exists()


# ---- what is written, the real files --------------------------------------------------------------------------------

@pytest.mark.parametrize("name, percent, labels", [("treesatai-ts", 10, 0), ("pastis-hd", 20, 3), ("flair", 10, 3)])
def test_lists_that_training_will_use(originals, lists, capsys, name, percent, labels):
    root = originals(name)
    prepare.main([name, "--root", str(root), "--report", str(lists / "r.csv")])
    told = dict(reversed(line.split()) for line in capsys.readouterr().out.splitlines()
                if re.match(r"  [0-9a-f]{12}  ", line))
    told = {Path(path).name: digest for path, digest in told.items()}
    files = {path.name: path for folder in ("splits", "stats") for path in (lists / folder).iterdir()}
    assert sum("labels" in path for path in told) == labels and sum(f"{percent}percent" in path for path in told) == 3
    assert all(hashlib.sha256(files[path].read_bytes()).hexdigest()[:12] == digest for path, digest in told.items())
    # training reads them and writes no other
    before = digests(lists)
    keys = prepare.options.chosen_modalities("all", name)
    band_statistics.training_statistics(open_dataset(name, root, "train", keys, labelled=False))
    for seed in prepare.SEEDS:
        open_dataset(name, root, "train", keys, label_percent=percent, seed=seed)
    for split in records.SPLITS:
        open_dataset(name, root, split, keys)
    assert digests(lists) == before


def test_partial_download(real, lists, capsys):
    arguments = ["treesatai-ts", "--root", str(real), "--report", str(lists / "r.csv"), "--workers", "2"]
    assert prepare.main(arguments) == 1
    screen = capsys.readouterr().out
    assert len(screen.splitlines()) < 40
    for text in ("train 38,564, val 6,773, test 5,044 (the release: train + val 45,337, test 5,044)",
                 "checked   1 tiles now",
                 "50,380 without any file", "Quercus 8974/1584/1151", "is NOT ready: 151,140 errors in 50,380 tiles"):
        assert text in screen
    assert re.search(r"vhr +1 of 50,381 +1 +0 +0 +0 +50,380", screen) and re.search(r"note +no label +labels +7 ",
                                                                                    screen)
    assert not (lists / "stats").exists()


def test_next_command():
    def command(*arguments):
        return prepare.next_command(prepare.command_line().parse_args(arguments), is_demo=False)
    assert command("pastis-hd", "--root", "data/pastis-hd/") == "bash run_tables.sh table3"
    assert command("flair", "--root", "/big/flair") == "bash run_tables.sh table4 --data /big"
    assert command("flair", "--root", "/big/f") == "python pretrain.py --dataset flair --data-root /big/f"


def raise_error(text):
    raise UserError(text)


def test_weights_are_fetched_by_name(monkeypatch, capsys):
    """All of the table, and nothing of a dataset is asked for; a dataset needs its folder."""
    asked = []
    monkeypatch.setattr(prepare.weights, "fetch", lambda name: asked.append(name) or f"weights/{name}")
    assert prepare.main(["weights"]) == 0
    assert asked == list(prepare.weights.TABLE) and "weights/resnet50: ResNet-50, ImageNet" in capsys.readouterr().out
    monkeypatch.setattr(prepare.weights, "fetch",
                        lambda name: asked.append(name) if name != "resnet50" else raise_error("not there"))
    assert prepare.main(["weights"]) == 1 and asked[4:] == [name for name in prepare.weights.TABLE
                                                            if name != "resnet50"]
    assert "not there" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        prepare.main(["treesatai"])
    assert "--root is required" in capsys.readouterr().err


def test_a_broken_zip_is_named_before_the_list_that_it_may_hold(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "labels.zip").write_bytes(b"PK, cut off")
    with pytest.raises(UserError, match=r"raw/labels.zip: broken zip, .*download it again; .*no TreeSatBA_v9"):
        prepare.main(["treesatai-ts", "--root", str(tmp_path / "raw"), "--report", str(tmp_path / "report.csv"),
                      "--workers", "0"])


def test_the_terminal_names_the_file_of_a_finding(capsys):
    """However long its path and what is wrong with it."""
    path = "/data/" + "somewhere/" * 8 + "sentinel-ts.zip"
    report.print_findings(
        [prepare.finding("treesatai-ts", "broken zip", "File is not a zip file; " * 9, modality="zip", file=path)], 5)
    line = capsys.readouterr().out.splitlines()[-1]
    assert "sentinel-ts.zip: File is not" in line and len(line) < 120
