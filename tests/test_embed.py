"""Features in files: every tile once, without labels, the same on any number of processes and after a kill."""
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import embed
import finetune
import pretrain
from datasets import open_dataset, own
from datasets.loading import collate
from datasets.sensors import SENSORS
from datasets.simulated.demo import write_treesatai
from engine import checkpoint, shards
from models.methods import build_model
from models.omnisat import OmniSat
from tests.own import mine, own_table  # noqa: F401
from tests.own import MODEL, SHORT, TABLE, embedded, options, read, write_mine
from tests.test_models import S1, S2, VHR, make_batch
from tests.test_scripts import torchrun
from utils.errors import UserError, run

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parent.parent
KEYS = ("vhr", "s2", "s1")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """17 simulated tiles of TreeSatAI-TS, 2 x 2 patches."""
    return write_treesatai(tmp_path_factory.mktemp("data") / "treesatai", train=12, test=5, seed=3, side=2)


@pytest.fixture(scope="module")
def unlabelled(data, tmp_path_factory):
    """The same tiles, with neither labels nor lists."""
    folder = tmp_path_factory.mktemp("unlabelled")
    for name in ("aerial", "sentinel-ts", "DEMO.json"):
        (folder / name).symlink_to(data / name)
    return folder


@pytest.fixture(scope="module")
def pretrained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    pretrain.main(["--dataset", "treesatai-ts", "--data-root", str(data), "--output", str(folder), *MODEL, *SHORT])
    return folder / "pretrained.pt"


@pytest.fixture(scope="module")
def whole(pretrained, unlabelled, tmp_path_factory):
    """f* of all tiles, in five shards."""
    return embedded(pretrained, unlabelled, tmp_path_factory.mktemp("whole") / "x", "--level", "patch")


def open_all(root):
    return open_dataset("treesatai-ts", root, "all", KEYS, labelled=False)


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.npz"))}


# ---- the model ------------------------------------------------------------------------------------------------------

@torch.no_grad()
def test_attention_over_dates_is_a_feature():
    """Of the series alone; it sums to 1, is 0 where padded, and the same in parts, pretrained or fine-tuned."""
    torch.manual_seed(0)
    model, batch = build_model("omnisat", [VHR, S2, S1], embed_dim=32, depth=1).eval(), make_batch([VHR, S2, S1])
    batch["s1_padded"][1] = True
    found, (_, _, context) = model.features(batch, "dates"), OmniSat.encode(model, batch)
    assert list(found) == ["s2", "s1"] and found["s2"].shape == (3, 4, 6)
    for key, attention in found.items():
        assert torch.equal(attention, context[key][0])
        assert (attention.masked_select(batch[f"{key}_padded"][:, None].expand_as(attention)) == 0).all()
        sums = (~batch[f"{key}_padded"].all(1)).float()[:, None].expand(-1, 4)
        torch.testing.assert_close(attention.sum(2), sums)
    finetuned = build_model("omnisat", [VHR, S2, S1], embed_dim=32, depth=1, num_classes=4).eval()
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("decoders")}
    assert not finetuned.load_state_dict(weights, strict=False).unexpected_keys
    for other, tiles in ((finetuned, None), (model, 1), (model, 2)):
        other.tiles_at_once = tiles
        torch.testing.assert_close(other.features(batch, "dates"), found)
    without = {name: value for name, value in batch.items() if not name.startswith("s2")}
    assert list(model.features(without, "dates")) == ["s1"]


# ---- shards ---------------------------------------------------------------------------------------------------------

def test_every_tile_once_without_labels(whole, unlabelled, pretrained):
    found, names = read(whole), sorted(path.name for path in (unlabelled / "aerial").iterdir())
    assert found["tile"].tolist() == names and len(names) == 17 and len(content(whole)) == 5
    dataset, saved = open_all(unlabelled), checkpoint.load(pretrained, "pretrained")
    model = checkpoint.rebuild(pretrained, saved).eval()
    with torch.no_grad():
        f = model.features(collate([dataset[i] for i in range(4, 8)]), "patch")
    assert np.array_equal(np.load(whole / "00001.npz")["features"], f) and f.shape == (4, 4, 32)
    about, *others = [json.loads(str(np.load(path)["about"])) for path in sorted(whole.glob("*.npz"))]
    assert all(other == about for other in others) and about["checkpoint"] == saved["sha256"]
    assert (about["level"], about["dataset"], about["grid"]) == ("patch", "treesatai-ts", [2, 2])
    assert [sensor["key"] for sensor in about["sensors"]] == list(KEYS)
    assert about["statistics"]["s2"]["mean"] == saved["weights"]["standardize.s2.mean"].tolist()
    assert len(about["statistics"]["s1"]["std"]) == 2
    lengths = [[1, len(dataset[i]["s2_dates"]), len(dataset[i]["s1_dates"])] for i in range(17)]
    assert found["present"].tolist() == [[length > 0 for length in tile] for tile in lengths]
    assert not found["present"].all()


def test_a_split_is_that_of_training(data, pretrained, tmp_path):
    names = read(embedded(pretrained, data, tmp_path / "x", "--level", "tile", "--split", "test"))["tile"].tolist()
    assert names == list(open_dataset("treesatai-ts", data, "test", KEYS, labelled=False).names) and len(names) == 5


def test_levels(pretrained, unlabelled, whole, tmp_path):
    f = read(whole)["features"]
    found = {level: read(embedded(pretrained, unlabelled, tmp_path / level, "--level", level))
             for level in ("tile", "tokens", "dates")}
    np.testing.assert_allclose(found["tile"]["features"], f.mean(1), rtol=1e-5, atol=1e-6)
    assert found["tokens"]["features"].shape == (17, 3, 4, 32)
    with np.load(tmp_path / "dates" / "00000.npz") as shard:
        dataset = open_all(unlabelled)
        for key in ("s2", "s1"):
            days, attention = shard[f"days_{key}"], shard[f"attention_{key}"]
            for i in range(4):
                real = dataset[i][f"{key}_dates"].numpy()
                assert np.array_equal(days[i, :len(real)], real) and (days[i, len(real):] == -1).all()
                assert (attention[i][:, len(real):] == 0).all()
                np.testing.assert_allclose(attention[i].sum(1), float(len(real) > 0), rtol=1e-5)


def test_a_tile_alone_and_in_a_batch(pretrained, unlabelled, whole, tmp_path):
    """Equal to rounding: a matrix product of other sizes adds in another order."""
    alone = read(embedded(pretrained, unlabelled, tmp_path / "x", "--level", "patch", "--pool", "1"))
    np.testing.assert_allclose(alone["features"], read(whole)["features"], rtol=1e-4, atol=1e-5)
    assert alone["tile"].tolist() == read(whole)["tile"].tolist()


def test_two_processes_write_the_same_shards(pretrained, unlabelled, whole, tmp_path):
    """Bit by bit, and each tile once."""
    done = torchrun(2, "embed.py", *options(pretrained, unlabelled, tmp_path, "--level", "patch", "--workers", "1"))
    assert done.returncode == 0, done.stderr
    assert content(tmp_path) == content(whole)
    assert "17 tiles in" in done.stderr and "a second; all 17 are in" in done.stderr
    assert json.loads((tmp_path / "about.json").read_text())["source"]["processes"] == "1 x 2"


def test_killed_and_started_again(pretrained, unlabelled, whole, tmp_path):
    """Shards that are there stay as they are, what was half written goes."""
    code = ("import sys, time, embed; from engine.shards import Shards; write = Shards.write; "
            "Shards.write = lambda *values: (time.sleep(0.5), write(*values)); embed.main(sys.argv[1:])")
    command = options(pretrained, unlabelled, tmp_path, "--level", "patch")
    process = subprocess.Popen([sys.executable, "-c", code, *command], cwd=ROOT, stderr=subprocess.DEVNULL)
    while not (tmp_path / "00001.npz").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 2 <= len(content(tmp_path)) < 5
    (tmp_path / ".00002.npz.77.tmp").write_bytes(b"half")
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.npz")}
    embed.main(command)
    assert content(tmp_path) == content(whole) and not list(tmp_path.glob(".*.tmp"))
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_other_sensors_are_masked_and_their_files_not_needed(pretrained, unlabelled, tmp_path):
    (tmp_path / "sentinel-ts").symlink_to(unlabelled / "sentinel-ts")
    shutil.copy(unlabelled / "DEMO.json", tmp_path)
    found = {level: read(embedded(pretrained, tmp_path, tmp_path / level, "--level", level, "--modalities", "s1,s2"))
             for level in ("patch", "tokens")}
    assert found["tokens"]["features"].shape == (17, 2, 4, 32) and found["patch"]["present"].shape == (17, 2)
    dataset, model = open_all(unlabelled), checkpoint.rebuild(pretrained, checkpoint.load(pretrained)).eval()
    batch = collate([dataset[i] for i in range(4)])
    with torch.no_grad():
        tokens, is_masked = model.features(batch, "tokens"), ~model.present(batch)[:, :, None].repeat(1, 1, 4)
        is_masked[:, 0] = True
        f = model.combine(tokens, is_masked, (2, 2))
    np.testing.assert_allclose(found["patch"]["features"][:4], f, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["tokens"]["features"][:4], tokens[:, 1:], rtol=1e-5, atol=1e-6)


# ---- a folder of one's own ------------------------------------------------------------------------------------------

def test_a_folder_of_ones_own_needs_no_labels(mine, tmp_path):
    root, bare, pretrained, finetuned = mine
    for path in (pretrained, finetuned):
        found = read(embedded(path, bare, tmp_path / path.stem, "--level", "patch"))
        assert found["tile"].tolist() == [f"t{n}" for n in range(10)] and found["features"].shape == (10, 6, 32)
    test = read(embedded(pretrained, root, tmp_path / "test", "--level", "patch", "--split", "test"))
    assert test["tile"].tolist() == ["t8", "t9"]
    np.testing.assert_allclose(test["features"], read(tmp_path / "pretrained")["features"][8:], rtol=1e-4, atol=1e-5)


# ---- other forms ----------------------------------------------------------------------------------------------------

def test_parquet(mine, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    _, bare, pretrained, _ = mine
    embedded(pretrained, bare, tmp_path / "npz", "--level", "patch")
    embedded(pretrained, bare, tmp_path / "parquet", "--level", "patch", "--format", "parquet")
    tables = [parquet.read_table(path) for path in sorted((tmp_path / "parquet").glob("*.parquet"))]
    found = read(tmp_path / "npz")
    assert sum((table["tile"].to_pylist() for table in tables), []) == found["tile"].tolist()
    shape = json.loads(tables[0].schema.metadata[b"shape"])
    x = np.concatenate([np.array(table["features"].to_pylist(), np.float32).reshape(-1, *shape) for table in tables])
    assert np.array_equal(x, found["features"]) and json.loads(tables[0].schema.metadata[b"about"])["level"] == "patch"


def test_parquet_is_refused_where_its_package_is_not(mine, tmp_path, monkeypatch):
    monkeypatch.setattr(shards.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="--format parquet needs pyarrow, which is not installed: pip install"):
        embed.main(options(mine[2], mine[1], tmp_path, "--level", "patch", "--format", "parquet"))


# ---- bad input ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("words, told", [
    (["--level", "pixel"], "invalid choice: 'pixel'"),
    (["--level", "tile", "--modalities", "radar"], "radar: .* was trained on drone, planet, not on 'radar'"),
    (["--level", "dates", "--modalities", "drone"], "--level dates: none of drone is a series"),
    (["--level", "tile", "--format", "geotiff"], "--format geotiff is for --level patch, not tile"),
    (["--level", "dates", "--format", "parquet"], "--format parquet is not for --level dates"),
    (["--level", "patch", "--format", "geotiff", "--modalities", "planet"], "t0: no tif of planet says where it lies"),
    (["--level", "tile", "--split", "val"], "labels.csv: cannot be read"),
    (["--level", "tile", "--checkpoint", "no.pt"], "no.pt: no such checkpoint"),
    (["--level", "tile", "--data-root", "nowhere"], "nowhere: no such folder")])
def test_options_that_do_not_fit(mine, tmp_path, capsys, words, told):
    """One line, before anything is written."""
    _, bare, pretrained, _ = mine
    with pytest.raises(SystemExit):
        run(lambda: embed.main(options(pretrained, bare, tmp_path / "x", *words)))
    text = capsys.readouterr().err
    assert re.search(told, text.replace("\n", " ")) and "Traceback" not in text
    assert not list(tmp_path.glob("x/*.npz"))


def test_sensors_that_are_not_those_of_the_checkpoint(mine, tmp_path, monkeypatch):
    monkeypatch.setitem(SENSORS["mine"], "planet", replace(TABLE[1], bands=("B", "R", "NIR")))
    with pytest.raises(UserError, match="pretrained.pt: its planet of mine is .* restore the entry"):
        embed.main(options(mine[2], mine[1], tmp_path, "--level", "tile"))
    embed.main(options(mine[2], mine[1], tmp_path / "drone", "--level", "tile", "--modalities", "drone"))
    monkeypatch.delitem(SENSORS["mine"], "planet")
    with pytest.raises(UserError, match="datasets/sensors.py has no such entry; restore"):
        embed.main(options(mine[2], mine[1], tmp_path, "--level", "tile"))
    monkeypatch.setattr(own, "OWN", {})                                       # a dataset that is not in there at all
    monkeypatch.delitem(SENSORS, "mine")
    embed.main(options(mine[2], mine[1], tmp_path / "both", "--level", "tile"))
    assert list(SENSORS["mine"]) == ["drone", "planet"]                       # the checkpoint's


def test_folders_that_do_not_fit(mine, unlabelled, pretrained, tmp_path):
    with pytest.raises(UserError, match=r"no file of drone \(drone/{tile}.tif\) of any tile; is this the folder of"):
        embed.main(options(mine[2], unlabelled, tmp_path / "x", "--level", "tile"))
    with pytest.raises(UserError, match="no file of vhr of any tile; is this the folder of treesatai-ts"):
        embed.main(options(pretrained, mine[1], tmp_path / "x", "--level", "tile"))
    for number in range(3):
        write_mine(tmp_path / "sizes", number, rows=3 if number < 2 else 4)
    with pytest.raises(UserError, match=r"t2.tif: shape \(3, 32, 16\), expected 24 x 16 pixels: 3 x 2 patches of 8"):
        embed.main(options(mine[2], tmp_path / "sizes", tmp_path / "x", "--level", "tile"))
    (tmp_path / "sizes" / "planet" / "t1.npz").unlink()
    with pytest.raises(UserError, match="t1: no file of planet"):
        embed.main(options(mine[2], tmp_path / "sizes", tmp_path / "y", "--level", "tile"))


def test_a_folder_of_other_features(mine, tmp_path):
    _, bare, pretrained, finetuned = mine
    embedded(pretrained, bare, tmp_path, "--level", "tile")
    for path, words, what in ((pretrained, ["--level", "patch"], "level"),
                              (finetuned, ["--level", "tile"], "checkpoint"),
                              (pretrained, ["--level", "tile", "--modalities", "drone"], "sensors, statistics"),
                              (pretrained, ["--level", "tile", "--shard", "3"], "shard")):
        with pytest.raises(UserError, match=f"was begun with another {what}"):
            embed.main(options(path, bare, tmp_path, *words))
    (tmp_path / "about.json").write_text("[]")
    with pytest.raises(UserError, match="about.json: not what embed.py writes"):
        embed.main(options(pretrained, bare, tmp_path, "--level", "tile"))


def test_compared_methods_have_one_vector_a_tile(data, unlabelled, tmp_path):
    finetune.main(["--dataset", "treesatai-ts", "--data-root", str(data), "--model", "pse_ltae", "--init", "none",
                   "--modalities", "s2", "--output", str(tmp_path), "--width", "0.25", *SHORT, "--min-epochs", "1"])
    found = read(embedded(tmp_path / "finetuned.pt", unlabelled, tmp_path / "x", "--level", "tile"))
    assert found["features"].shape[0] == 17 and "present" not in found
    with pytest.raises(UserError, match="--level patch: .* is of pse_ltae, which has tile only"):
        embed.main(options(tmp_path / "finetuned.pt", unlabelled, tmp_path / "y", "--level", "patch"))
