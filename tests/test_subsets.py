"""Any subset of the sensors from one checkpoint: what is left out is seen as if it were missing in the file."""
import csv
import json

import numpy as np
import pytest
import torch

import compare
import evaluate
import finetune
from datasets import open_dataset
from datasets.loading import collate
from datasets.sensors import Sensor
from engine import checkpoint
from models.methods import build_model
from tests.test_models import S1, S2, VHR, make_batch
from utils.errors import UserError
from utils.metrics import count, f1_scores
from utils.results import COLUMNS, SUBSET_COLUMNS, SUBSET_KEYS, read_rows

KEYS = [VHR.key, S2.key, S1.key]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_model("omnisat", [VHR, S2, S1], embed_dim=32, depth=2, num_classes=4).eval()


@pytest.fixture
def batch(model):
    return make_batch([VHR, S2, S1])


def without(batch, *keys):
    """The batch as a dataset of the other sensors gives it."""
    return {name: value for name, value in batch.items() if name.split("_")[0] not in keys}


# ---- the model ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("tiles_at_once", [None, 1, 2])
@torch.no_grad()
def test_a_sensor_that_is_not_given_is_seen_as_an_empty_series(model, batch, tiles_at_once):
    model.tiles_at_once = tiles_at_once
    empty = batch | {"s1": 1e4 * torch.randn_like(batch["s1"]), "s1_padded": torch.ones_like(batch["s1_padded"])}
    assert torch.equal(model(without(batch, "s1")), model(empty))
    assert not torch.allclose(model(empty), model(batch), atol=1e-3)
    for level in ("patch", "tile"):
        assert torch.equal(model.features(without(batch, "s1"), level), model.features(empty, level))


@pytest.mark.parametrize("lost", [["vhr"], ["s2"], ["vhr", "s1"], ["s2", "s1"], ["vhr", "s2"]])
@torch.no_grad()
def test_a_masked_sensor_is_one_that_is_not_given(model, batch, lost):
    """So the tokens are computed once, and masked for each subset."""
    tokens, present, _ = model.encode(batch)
    assert present.all()
    seen = torch.tensor([key not in lost for key in KEYS])
    f = model.level_of("tile", tokens, present & seen, model.grid(batch))
    assert torch.equal(model.head(f), model(without(batch, *lost)))
    assert model.present(without(batch, *lost)).tolist() == [seen.tolist()] * 3
    for key in lost:                                                          # whatever was in it
        batch[key] = 1e6 * torch.randn_like(batch[key])
    tokens, present, _ = model.encode(batch)
    assert torch.equal(model.level_of("tile", tokens, present & seen, model.grid(batch)), f)


@torch.no_grad()
def test_what_is_not_given_is_masked_as_in_pretraining(model, batch):
    """Its tokens are the mask token, at their places: the combiner gets all M x P of them."""
    tokens, _, _ = model.encode(batch)
    is_masked = torch.zeros(tokens.shape[:3], dtype=torch.bool)
    is_masked[:, 1] = True
    f = model.combine(tokens, is_masked, model.grid(batch))
    assert torch.equal(model.features(without(batch, "s2"), "patch"), f)


def test_a_batch_without_any_sensor(model):
    with pytest.raises(ValueError, match="the batch has none of the model's sensors"):
        model({"name": ["a", "b", "c"]})


# ---- evaluate.py ----------------------------------------------------------------------------------------------------

SMALL = ["--workers", "0", "--batch-size", "8", "--pool", "4", "--epochs", "1", "--epoch-steps", "1", "--init", "none"]


@pytest.fixture(scope="module")
def finetuned(demo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finetune")
    finetune.main(["--dataset", "treesatai-ts", "--data-root", str(demo), "--embed-dim", "32", "--depth", "1", *SMALL,
                   "--output", str(folder)])
    return folder / "finetuned.pt"


@pytest.fixture
def scored(finetuned, demo, tmp_path, capsys):
    """evaluate.py with options: what it prints, a dict a line."""
    def run(*options, table=tmp_path / "subsets.csv", checkpoint=finetuned, root=demo):
        capsys.readouterr()
        evaluate.main(["--checkpoint", str(checkpoint), "--data-root", str(root), "--workers", "0", "--csv", str(table),
                       *options])
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return run


def rows_of(tmp_path):
    return read_rows(tmp_path / "subsets.csv", SUBSET_KEYS)


def test_all_subsets_are_what_each_is_by_itself(scored, tmp_path):
    """The full set is the row of the table, to the digit."""
    whole, = scored(table=tmp_path / "table2.csv")
    every = scored("--all-subsets")
    assert [line["sensors"] for line in every] == ["vhr+s2+s1", "vhr+s2", "vhr+s1", "s2+s1", "vhr", "s2", "s1"]
    assert {name: every[0][name] for name in whole} == whole
    rows, table = rows_of(tmp_path), read_rows(tmp_path / "table2.csv")[0]
    assert len(rows) == 7
    for name in ("f1_weighted", "f1_macro", "f1_micro", "map", "test_hash", "split_hash", "modality", "scale", "seed"):
        assert rows[0][name] == table[name], name
    counts = [json.loads(line) for path in ("table2", "subsets") for line in (tmp_path / f"{path}.counts.jsonl").open()]
    assert all(counts[0][name] == counts[1][name] for name in ("classes", "tp", "fp", "fn", "tn"))
    assert len({row["f1_weighted"] for row in rows}) > 3
    assert [scored("--modalities", ",".join(line["sensors"].split("+")))[0] for line in every] == every
    assert len(rows_of(tmp_path)) == 7                                        # in place of those that there were
    assert [line["sensors"] for line in scored("--all-subsets", "--modalities", "s1,s2")] == ["s2+s1", "s2", "s1"]


def test_files_of_other_sensors_are_not_needed(scored, demo, tmp_path):
    root = tmp_path / "only-series"
    root.mkdir()
    for path in demo.iterdir():
        if path.name != "aerial":
            (root / path.name).symlink_to(path)
    assert not (root / "aerial").exists() and (demo / "aerial").exists()
    assert scored("--modalities", "s1,s2", root=root) == scored("--modalities", "s2,s1")
    with pytest.raises(UserError, match="vhr"):
        scored("--modalities", "vhr", root=root)


def test_series_are_thinned_evenly(finetuned, demo, scored, tmp_path):
    """To the dates that a test with so many at most takes; all is the row without the option."""
    lines = scored("--modalities", "s2", "--dates", "2,5,all")
    assert [line["dates"] for line in lines] == ["2", "5", "all"] == [row["dates"] for row in rows_of(tmp_path)]
    assert lines[2] == scored("--modalities", "s2")[0] and len({line["map"] for line in lines}) == 3
    few = scored("--all-subsets", "--modalities", "vhr,s2", "--dates", "5,all")
    assert [(line["sensors"], line["dates"]) for line in few] == [("vhr+s2", "5"), ("s2", "5"), ("vhr+s2", "all"), (
        "vhr", "all"), ("s2", "all")]                                         # of an image there is nothing to thin
    assert few[1] == lines[1] and few[0] != few[2] | {"dates": "5"}
    saved = checkpoint.load(finetuned, "finetuned")
    model = checkpoint.rebuild(finetuned, saved).eval()
    test, whole = (open_dataset("treesatai-ts", demo, "test", ["s2"], max_dates=number) for number in (5, None))
    days = whole[3]["s2_dates"]
    assert test[3]["s2_dates"].equal(days[np.linspace(0, len(days) - 1, 5).round()])
    with torch.no_grad():
        logits = torch.cat([model(collate([test[i]])) for i in range(len(test))]).numpy()
    f1 = f1_scores(count(logits, test.labels.numpy()))
    assert lines[1]["f1_weighted"] == pytest.approx(f1["f1_weighted"], abs=1e-3)


def test_what_cannot_be_scored_is_told_in_one_line(scored, demo, finetuned, tmp_path):
    for options, text in (
            (["--modalities", "s2,lidar"], r"--modalities s2,lidar: .*finetuned.pt was trained on vhr, s2, s1, not on "
                                           "'lidar'"),
            (["--modalities", "s1-des"], r"--modalities s1-des: .* not on 's1-des'"),
            (["--modalities", "vhr", "--dates", "5"], "--dates: none of vhr is a series; leave the option out"),
            (["--dates", "51"], "--dates 51: its training saw at most 50, which is what all means")):
        with pytest.raises(UserError, match=text):
            scored(*options)
    with pytest.raises(UserError, match="not a table of results"):
        (tmp_path / "table2.csv").write_text("table,dataset,model,seed,scale\n")
        scored("--all-subsets", table=tmp_path / "table2.csv")
    for text in ("0", "5,", "five", "-1"):
        with pytest.raises(SystemExit):
            scored("--dates", text)
    assert not (tmp_path / "subsets.csv").exists()


def test_a_compared_method_needs_all_that_it_was_trained_on(scored, finetuned, tmp_path):
    path, saved = tmp_path / "finetuned.pt", checkpoint.load(finetuned, "finetuned")
    sensors, sizes = saved["config"]["sensors"], {"num_classes": 15, "dataset": "treesatai-ts", "width": 0.1}
    model = build_model("pse_ltae", [Sensor(**sensor) for sensor in sensors], **sizes)
    checkpoint.save(path, saved | {"config": {"model": "pse_ltae", "sensors": sensors, "options": sizes},
                                   "weights": model.state_dict()})
    for options in (["--all-subsets"], ["--modalities", "s2"]):
        with pytest.raises(UserError, match="pse_ltae cannot do without a sensor that it was trained on, only omnisat"):
            scored(*options, checkpoint=path)
    whole, = scored(checkpoint=path, table=tmp_path / "table2.csv")
    few, again = scored("--dates", "3,all", checkpoint=path)
    assert {name: again[name] for name in whole} == whole and few["map"] != again["map"]


# ---- compare.py -----------------------------------------------------------------------------------------------------

MODEL = {"dataset": "treesatai-ts", "model": "omnisat", "pretraining": "self", "ablation": "none", "modality": "all",
         "label_percent": "100", "n_test": "50", "test_hash": "5ca1ab1e", "scale": "demo"}


def write_rows(path, columns, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def test_compare_tells_and_draws_the_sets(tmp_path, capsys):
    write_rows(tmp_path / "subsets.csv", SUBSET_COLUMNS, [
        MODEL | {"sensors": sensors, "dates": dates, "seed": seed, "f1_weighted": f1 + seed} for seed in (0, 2)
        for sensors, dates, f1 in (("s2", "all", 59), ("vhr+s2", "all", 70), ("vhr", "all", 40), ("s2", "5", 30))]
        + [MODEL | {"sensors": "s2", "dates": "all", "seed": 0, "f1_weighted": 99, "scale": "paper"}])
    write_rows(tmp_path / "table2.csv", COLUMNS, [
        MODEL | {"table": "table2", "modality": "s2", "seed": 0, "f1_weighted": 64.5, "status": "ok"},
        MODEL | {"table": "table2", "modality": "s2", "seed": 0, "f1_weighted": 1, "status": "ok", "label_percent": 5}])
    compare.main(["subsets", "--demo", "--results", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert "DEMO" in lines[0] and lines[2] == ("[treesatai-ts, omnisat, pretrained: self, trained on all, 100 % of the "
                                               "labels]")
    assert [line.split() for line in lines[3:]] == [["vhr+s2", "all", "71.0±1.4", "+0.0", "2"], [
        "vhr", "all", "41.0±1.4", "-30.0", "2"], ["s2", "all", "60.0±1.4", "-11.0", "64.5", "2"], [
        "s2", "5", "31.0±1.4", "-40.0", "2"]]
    assert (tmp_path / "subsets.png").stat().st_size > 20000 and "64.5" in (tmp_path / "compare.md").read_text()
    with pytest.raises(UserError, match="subsets.csv has no rows of scale paper yet; evaluate.py --all-subsets"):
        write_rows(tmp_path / "subsets.csv", SUBSET_COLUMNS, [MODEL | {"sensors": "s2", "dates": "all", "seed": 0}])
        compare.main(["subsets", "--results", str(tmp_path)])


def test_sets_scored_on_other_tiles_are_refused(tmp_path):
    write_rows(tmp_path / "subsets.csv", SUBSET_COLUMNS, [
        MODEL | {"sensors": "s2", "dates": "all", "seed": 0, "f1_weighted": 5},
        MODEL | {"sensors": "s2", "dates": "all", "seed": 1, "f1_weighted": 5, "test_hash": "0ddba11"}])
    with pytest.raises(UserError, match="subsets.csv: rows of treesatai-ts were scored on different test tiles"):
        compare.main(["subsets", "--demo", "--results", str(tmp_path)])
