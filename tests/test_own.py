"""A dataset of one's own by its sensors.json: what docs/own.md promises, by the very lines that it shows."""
import importlib
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import tifffile

import evaluate
import pretrain
import probe
from datasets import open_dataset, own
from datasets.sensors import SENSORS, Sensor
from engine import checkpoint
from utils.errors import UserError
from utils.results import SUBSET_KEYS, read_rows

DOCS = (Path(__file__).parent.parent / "docs" / "own.md").read_text()
EXAMPLE = json.loads(re.search(r"```json\n(.*?)```", DOCS, re.DOTALL)[1])
SHELL = re.search(r"```bash\n(.*?)```", DOCS, re.DOTALL)[1].replace("\\\n", "")
COMMANDS = [shlex.split(line)[1:] for line in SHELL.splitlines()]
SMALL = {"pretrain.py": ["--embed-dim", "32", "--depth", "1"], "finetune.py": []}
TRAINING = ["--workers", "0", "--epochs", "1", "--pool", "8", "--batch-size", "8", "--epoch-steps", "1"]
OTHERS = {"evaluate.py": ["--workers", "0"], "prepare.py": ["--workers", "0"]}


@pytest.fixture(autouse=True)
def anew(tmp_path_factory, monkeypatch):
    """Lists and statistics of this test only, and no dataset known from another one."""
    for module in ("splits", "band_statistics"):
        monkeypatch.setattr(f"datasets.{module}.FOLDER", tmp_path_factory.mktemp(module))
    forget()
    yield
    forget()


def forget():
    """As a new process begins."""
    for name in list(own.OWN):
        del SENSORS[name], own.OWN[name]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """data/mine with the example's files, 28 tiles of 2 x 1 patches, and no labels."""
    monkeypatch.chdir(tmp_path)
    root, rng = tmp_path / "data" / "mine", np.random.default_rng(0)
    (root / "drone").mkdir(parents=True)
    (root / "planet").mkdir()
    for k in range(28):
        image, count = rng.integers(1, 250, (80, 40, 3)).astype(np.uint8), 2 + k % 2
        tifffile.imwrite(root / "drone" / f"t{k}.tif", image, photometric="rgb")
        np.savez(root / "planet" / f"t{k}.npz", data=rng.integers(1, 9999, (count, 4, 2, 1)).astype(np.uint16),
                 dates=np.array([20200229, 20200301, 20201231])[:count])
    (root / "sensors.json").write_text(json.dumps(EXAMPLE))
    return root


def label(root):
    splits = ["train"] * 20 + ["val"] * 4 + ["test"] * 4
    lines = ["tile,split,Forest,Water", *(f"t{k},{split},{k % 2},{int(k % 3 == 0)}" for k, split in enumerate(splits))]
    (root / "labels.csv").write_text("\n".join(lines))


def call(script, *options):
    """A line of the docs, small."""
    more = SMALL[script] + TRAINING if script in SMALL else OTHERS.get(script, [])
    forget()
    return importlib.import_module(script.removesuffix(".py")).main([*options, *more])


# ---- from files to scores -------------------------------------------------------------------------------------------

def test_the_lines_of_the_docs(folder, tmp_path, capsys):
    """Pretraining without labels; then with them to the scores of all sets of sensors, at last without the file."""
    first, *rest, predict, embed, show = COMMANDS
    assert [line[0] for line in COMMANDS] == ["pretrain.py", "prepare.py", "finetune.py", "evaluate.py", "predict.py",
                                              "embed.py", "show.py"]
    call(*first)
    call(*embed)
    call(*show[:-1], "t3")                                                    # the name of a tile that there is
    with np.load("features/00000.npz") as shard:
        assert shard["tile"].tolist() == sorted(f"t{k}" for k in range(28))
    assert Path("runs/mine/pretrain-seed0/show-t3.png").read_bytes().startswith(b"\x89PNG")
    saved = checkpoint.load(tmp_path / "runs/mine/pretrain-seed0/pretrained.pt", "pretrained")
    assert [sensor["key"] for sensor in saved["config"]["sensors"]] == ["drone", "planet"] and saved["finished"]
    label(folder)
    capsys.readouterr()
    for line in rest:
        if line[0] == "evaluate.py":
            (folder / "sensors.json").unlink()
        assert not call(*line)
    assert re.search("warning: .*pretrained.pt: pretrained without a list of tiles", capsys.readouterr().err)
    call(*predict)
    assert len(Path("results/classes.csv").read_text().splitlines()) == 1 + 28
    rows = read_rows(tmp_path / "results/subsets.csv", SUBSET_KEYS)
    assert [row["sensors"] for row in rows] == ["drone+planet", "drone", "planet"]
    for row in rows:
        assert [row[name] for name in ("dataset", "modality", "scale", "n_test")] == ["mine", "all", "custom", "4"]
    call("probe.py", "--checkpoint", "runs/mine/pretrain-seed0/pretrained.pt", "--data-root", "data/mine", "--workers",
         "0", "--features", "tile", "--weights", "own", "--classifiers", "logistic", "--label-percent", "100")
    assert re.findall(r"(\w+) +tile +pretrained +logistic", capsys.readouterr().err) == ["all", "drone", "planet"]


def test_features_and_classes_without_list_and_file(folder, tmp_path):
    """The sensors come along in the checkpoint; tiles are those that have files, in any of them an image may lack."""
    call(*COMMANDS[0])
    label(folder)
    call(*COMMANDS[2])
    pretrained, (finetuned,) = "runs/mine/pretrain-seed0/pretrained.pt", Path("runs/mine").glob("omni*/finetuned.pt")
    (folder / "labels.csv").unlink()
    (folder / "sensors.json").unlink()
    (folder / "drone" / "t3.tif").unlink()
    line = ["--data-root", str(folder), "--workers", "0"]
    call("embed.py", "--checkpoint", pretrained, *line, "--level", "patch", "--out", "features")
    with np.load("features/00000.npz") as shard:
        assert shard["features"].shape == (28, 2, 32)
        assert dict(zip(shard["tile"].tolist(), shard["present"].tolist())) == {
            f"t{k}": [k != 3, True] for k in range(28)}
    call("embed.py", "--checkpoint", pretrained, *line, "--level", "tile", "--split", "val", "--out", "val")
    call("predict.py", "--checkpoint", str(finetuned), *line, "--modalities", "planet", "--out", "classes.csv")
    header, *rows = Path("classes.csv").read_text().splitlines()
    assert header == "tile,predicted,Forest,Water" and len(rows) == 28
    with pytest.raises(UserError, match="labels.csv: cannot be read.* --split val needs the list that training had"):
        call("predict.py", "--checkpoint", str(finetuned), *line, "--split", "val", "--out", "classes.csv")
    (folder / "sensors.json").write_text(changed(1, bands=["B", "G", "R", "X"]))
    for script, path in (("embed.py", pretrained), ("predict.py", str(finetuned))):
        with pytest.raises(UserError, match=r"sensors.json: sensor planet: bands is .*'X'.* another dataset"):
            call(script, "--checkpoint", path, *line, "--out", "x", *["--level", "tile"] * (script == "embed.py"))


def test_pretraining_takes_every_tile_where_there_is_no_list(folder):
    own.find("mine", folder)
    keys = ["drone", "planet"]
    train, val = (open_dataset("mine", folder, split, keys, labelled=False) for split in ("train", "val"))
    assert sorted(train.names + val.names) == sorted(f"t{k}" for k in range(28)) and len(val) == 4
    assert train.labels.shape == (24, 0)
    with pytest.raises(UserError, match="labels.csv: cannot be read"):
        open_dataset("mine", folder, "train", ["drone"])
    (folder / "labels.csv").write_text("tile,split\nt1,train\nt2,val\nt3,test\n")
    assert open_dataset("mine", folder, "train", ["drone"], labelled=False).names == ["t1"]
    with pytest.raises(UserError, match="its header names no class"):
        open_dataset("mine", folder, "train", ["drone"])
    (folder / "labels.csv").unlink()
    (folder / "planet" / "t3.npz").unlink()
    with pytest.raises(UserError, match="t3: no file of planet"):                  # of drone there is one
        open_dataset("mine", folder, "train", ["drone", "planet"], labelled=False)
    with pytest.raises(UserError, match=r"no labels.csv, and no file of drone: drone/\{tile\}.tif"):
        open_dataset("mine", folder / "planet", "train", ["drone"], labelled=False)


@pytest.mark.parametrize("form, names", [
    ("a_{tile}_b.npy", ["a_7_b.npy", "a_x.y_b.npy"]), ("{tile}/h.NPY", ["7/h.NPY", "x.y/h.NPY"]),
    ("h[1]/{tile}/{tile}.tif", ["h[1]/7/7.tif", "h[1]/x.y/x.y.tif", "h[1]/x.y/7.tif"])])
def test_tiles_are_found_by_their_files(tmp_path, form, names):
    for name in [*names, "a_7_b.npy.part", "other.npy"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        with open(tmp_path / name, "wb") as file:
            if name.endswith("tif"):
                tifffile.imwrite(file, np.ones((20, 20), np.uint8))
            else:
                np.save(file, np.ones((1, 20, 20), np.uint8))
    entry = {"key": "h", "kind": "image", "bands": ["h"], "resolution": 1, "patch": 20, "files": form}
    (tmp_path / "sensors.json").write_text(json.dumps([entry]))
    own.find("mine", tmp_path)
    assert open_dataset("mine", tmp_path, "train", ["h"], labelled=False).names == ["7", "x.y"]


def test_an_image_as_npz(folder):
    entry = EXAMPLE[0] | {"files": "drone/{tile}.npz"}
    (folder / "sensors.json").write_text(json.dumps([entry, EXAMPLE[1]]))
    for path in (folder / "drone").glob("*.tif"):
        np.savez(path.with_suffix(".npz"), data=tifffile.imread(path).transpose(2, 0, 1))
    own.find("mine", folder)
    item = open_dataset("mine", folder, "train", ["drone", "planet"], labelled=False)[0]
    image = tifffile.imread(folder / "drone" / f"{item['name']}.tif")
    assert np.array_equal(item["drone"], image.transpose(2, 0, 1))
    np.savez(folder / "drone" / f"{item['name']}.npz", other=np.ones(3))
    with pytest.raises(UserError, match=r"npz: cannot be read as an npz file with data \("):
        open_dataset("mine", folder, "train", ["planet", "drone"], labelled=False)[0]


# ---- the file -------------------------------------------------------------------------------------------------------

def test_the_example_is_these_sensors(folder, tmp_path):
    own.find("mine", folder)
    table = {"drone": Sensor("drone", "image", ("R", "G", "B"), 0.1, 40, files="drone/{tile}.tif"),
             "planet": Sensor("planet", "series", ("B", "G", "R", "NIR"), 4, 1, 366, files="planet/{tile}.npz")}
    assert [*map(vars, SENSORS["mine"].values())] == [*map(vars, table.values())] and SENSORS["mine"] == table
    forget()
    assert open_dataset("mine", folder, "train", ["drone"], labelled=False).sensor == {"drone": table["drone"]}
    with pytest.raises(UserError, match="unknown dataset 'yours': there are .*, and no .*planet/sensors.json"):
        open_dataset("yours", folder / "planet", "train", ["drone"])
    (tmp_path / "my.txt").write_text(json.dumps(EXAMPLE[:1]))
    own.find("mine", folder, tmp_path / "my.txt")                                # what is asked for goes first
    assert list(SENSORS["mine"]) == ["drone"]


def changed(number=0, **fields):
    """The example with other fields in one entry; None leaves one out."""
    entries = json.loads(json.dumps(EXAMPLE))
    entries[number] = {name: value for name, value in (entries[number] | fields).items() if value is not None}
    return json.dumps(entries)


@pytest.mark.parametrize("content, text", [
    ("{", "not a list of sensors .*; docs/own.md has an example"), ("{}", "not a list of sensors"),
    ("[]", "not a list of sensors"), ("[7]", "1 is 7, expected are fields"),
    (changed(key=None), "1: has no field key, expected is letters, digits"),
    (changed(bands=None), "drone: has no field bands, expected is a list of names"),
    (changed(files=None), "drone: has no field files, expected is a path with {tile} in it"),
    (changed(band=["R"]), "drone: 'band' is no field; there are key, kind, bands,"),
    (changed(key="dr_one"), "dr_one: key is 'dr_one', expected is letters, digits and -"),
    (changed(kind="video"), "drone: kind is 'video', expected is \"image\" or \"series\""),
    (changed(bands="RGB"), "drone: bands is 'RGB', expected is a list"), (changed(bands=[]), r"drone: bands is \[\]"),
    (changed(bands=["R", "R"]), "drone: bands is"), (changed(bands=["R", 7]), "drone: bands is"),
    (changed(patch=40.5), "drone: patch is 40.5, expected is pixels a side"), (changed(patch=0), "drone: patch is 0"),
    (changed(patch=True), "drone: patch is True"), (changed(patch=45), "drone: patch is 45, of an image .* an even"),
    (changed(resolution="1 m"), "drone: resolution is '1 m', expected is metres"),
    (changed(resolution=-1), "drone: resolution is -1"), (changed(period=366), "drone: period is for a series"),
    (changed(1, period=None), "planet: has no field period, a series needs it"),
    (changed(1, period=1.5), "planet: period is 1.5"),
    (changed(1, origin="2018"), "planet: origin is '2018', expected is a date"),
    (changed(nodata="0"), "drone: nodata is '0'"), (changed(in_all="no"), "drone: in_all is 'no', expected is true or"),
    (changed(files="drone.tif"), "drone: files is 'drone.tif'"), (changed(files="{tile.tif"), "drone: files is"),
    (changed(files="{tile}_{year}.tif"), "drone: files is '{tile}_{year}.tif'"),
    (changed(files="{tile}.jp2"), "drone: files is '{tile}.jp2', of this kind it must end in .tif or .tiff or .npy or"),
    (changed(1, files="{tile}.npy"), "planet: files is '{tile}.npy', of this kind it must end in .npz"),
    (changed(1, key="drone"), "drone: its key is there twice"),
    (changed(patch=20), "resolution x patch must be the same ground .*: drone 2 m, planet 4 m")])
def test_what_is_wrong_with_it_is_one_line(folder, content, text):
    (folder / "sensors.json").write_text(content)
    with pytest.raises(UserError, match=rf"sensors.json: (sensor )?{text}") as error:
        own.find("mine", folder)
    assert "\n" not in str(error.value) and "mine" not in SENSORS


def test_names_that_are_not_known_or_taken(folder, capsys):
    line = ["--dataset", "mine", "--data-root", str(folder / "planet")]
    with pytest.raises(SystemExit):
        pretrain.main(line)
    told = capsys.readouterr().err
    assert re.search(r"unknown dataset 'mine': there are treesatai-ts, .*--sensors or .*planet/sensors.json", told)
    with pytest.raises(SystemExit):
        importlib.import_module("prepare").main(["mine", "--root", str(folder / "planet")])
    with pytest.raises(UserError, match="treesatai-ts is in datasets/sensors.py; give a dataset of your own another"):
        pretrain.main(["--dataset", "treesatai-ts", *line[2:], "--sensors", str(folder / "sensors.json")])
    with pytest.raises(UserError, match="nothing.json: cannot be read"):
        pretrain.main([*line, "--sensors", str(folder / "nothing.json")])


# ---- checkpoints ----------------------------------------------------------------------------------------------------

def test_a_checkpoint_of_other_sensors_is_refused(folder, tmp_path):
    call(*COMMANDS[0])
    label(folder)
    call(*COMMANDS[2])
    line = [*COMMANDS[3][1:3], "--data-root", "data/mine", "--workers", "0"]
    (folder / "sensors.json").write_text(changed(1, bands=["B", "G", "R", "X"]))
    refused = (r"sensors.json: sensor planet: bands is \('B', 'G', 'R', 'X'\), in .*pt it is \('B', 'G', 'R', 'NIR'\): "
               "another dataset")
    for script, path in ((evaluate, line[1]), (probe, "runs/mine/pretrain-seed0/pretrained.pt")):
        forget()
        with pytest.raises(UserError, match=refused):
            script.main(["--checkpoint", path, *line[2:]])
    with pytest.raises(UserError, match=refused):                                 # here the file is read first
        call("finetune.py", *COMMANDS[2][1:], "--output", "other")
    for path in list((folder / "drone").iterdir()):                               # the files may lie elsewhere
        path.rename(path.with_name(f"new_{path.name}"))
    (folder / "sensors.json").write_text(changed(files="drone/new_{tile}.tif"))
    forget()
    evaluate.main(line)
