"""The three scripts and the tables, run as a user runs them, on a generated miniature."""
import dataclasses
import hashlib
import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import evaluate
import finetune
import pretrain
import probe
from datasets import open_dataset
from datasets.band_statistics import training_statistics
from datasets.sensors import SENSORS
from datasets.simulated.demo import write_treesatai
from datasets.splits import RELEASED
from datasets.splits import fingerprint
from engine import checkpoint, starts
from engine.options import is_paper
from models.methods import build_model
from utils.errors import UserError
from utils.metrics import count, f1_scores, mean_average_precision
from utils.results import COLUMNS, KEYS, PROBE_KEYS, read_rows, write_row

ROOT = Path(__file__).parent.parent
SMALL = ["--workers", "0", "--batch-size", "8", "--pool", "4", "--epochs", "2", "--epoch-steps", "1"]
MODEL = ["--embed-dim", "32", "--depth", "1"]


@pytest.fixture(scope="module")
def pretrained(demo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrain")
    pretrain.main(["--dataset", "treesatai-ts", "--data-root", str(demo), "--output", str(folder), *SMALL, *MODEL])
    return folder / "pretrained.pt"


@pytest.fixture(scope="module")
def finetuned(demo, pretrained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finetune")
    finetune.main(["--dataset", "treesatai-ts", "--data-root", str(demo), "--init", str(pretrained), "--lr", "1e-3",
                   "--output", str(folder), "--csv", str(folder / "table2.csv"), *SMALL])
    return folder / "finetuned.pt"


def torchrun(processes, *command):
    """A script in several processes, in the environment that torchrun gives them; it itself is in test_distributed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        world = {"OMP_NUM_THREADS": "1", "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes),
                 "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    running = [subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                text=True, env=os.environ | world | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
               for rank in range(processes)]
    told = [process.communicate(timeout=300) for process in running]
    return subprocess.CompletedProcess(command, max(abs(process.returncode) for process in running),
                                       *map("".join, zip(*told)))


# ---- the stages -----------------------------------------------------------------------------------------------------

def test_pretraining_leaves_weights_and_logs(pretrained):
    saved = checkpoint.load(pretrained, "pretrained")
    assert saved["finished"] and saved["epoch"] == 2 and saved["is_demo"] and saved["hours"] > 0
    header, first, second = (json.loads(line) for line in (pretrained.parent / "log.jsonl").read_text().splitlines())
    assert header["command"].startswith("python pretrain.py --dataset treesatai-ts") and header["options"]["seed"] == 0
    assert second["epoch"] == 2 and {"loss", "contrastive", "reconstruction", "val_loss", "lr"} <= set(second)
    assert second["loss"] < first["loss"]
    assert first["loss"] == pytest.approx(first["contrastive"] + first["reconstruction"], rel=1e-5)
    assert any(path.name.startswith("events.out") for path in pretrained.parent.iterdir())


def test_pretraining_is_repeatable_and_the_same_on_two_processes(demo, pretrained, tmp_path):
    """The pools, the dates and the masks do not depend on the number of processes; only the order of sums does."""
    options = ["--dataset", "treesatai-ts", "--data-root", str(demo), *SMALL, *MODEL]
    pretrain.main([*options, "--output", str(tmp_path / "one")])
    run = torchrun(2, "pretrain.py", *options, "--output", str(tmp_path / "two"))
    assert run.returncode == 0, run.stderr
    first, one, two = (checkpoint.load(path, "pretrained")["weights"] for path in
                       (pretrained, tmp_path / "one" / "pretrained.pt", tmp_path / "two" / "pretrained.pt"))
    for name in first:
        assert torch.equal(first[name], one[name]), name
        assert torch.allclose(one[name].double(), two[name].double(), rtol=1e-3, atol=2e-4), name


def test_finetuning_starts_from_the_checkpoint(demo, pretrained):
    saved = checkpoint.load(pretrained, "pretrained")
    model = build_model("omnisat", [SENSORS["treesatai-ts"][key] for key in ("vhr", "s1")], embed_dim=32, depth=1,
                        num_classes=15)
    checkpoint.start_from(model, [(pretrained, saved)])
    for name, value in model.state_dict().items():
        if not name.startswith("head."):
            assert torch.equal(value, saved["weights"][name]), name
    assert model.standardize["vhr"].mean.min() > 10    # the statistics came along


def test_row_and_counts(demo, pretrained, finetuned):
    (row,) = read_rows(finetuned.parent / "table2.csv")
    assert tuple(row) == COLUMNS and (row["rate"], row["rate_from"]) == ("0.001", "--lr")
    assert [row[name] for name in KEYS] == ["table2", "treesatai-ts", "omnisat", "self", "none", "all", "100"]
    assert row["scale"] == "demo" and row["status"] == "ok" and row["n_test"] == "10" and float(
        row["pretrain_hours"]) > 0
    source = checkpoint.load(pretrained, "pretrained")["source"]
    assert {name: row[f"pretrain_{name}"] for name in ("commit", "dirty", "device", "processes")} == {
        name: str(source[name]) for name in ("commit", "dirty", "device", "processes")}
    assert row["pretrain_hash"] == checkpoint.file_hash(pretrained)[:12] != row["checkpoint_hash"]
    lists = [open_dataset("treesatai-ts", demo, split, ("s2",)).names for split in ("train", "val", "test")]
    assert [row["split_hash"], row["val_hash"], row["test_hash"]] == [fingerprint(names)[:12] for names in lists]
    (line,) = (finetuned.parent / "table2.counts.jsonl").read_text().splitlines()
    counts = json.loads(line)
    assert len(counts["classes"]) == 15 and sum(counts[cell][0] for cell in ("tp", "fp", "fn", "tn")) == 10
    for name, value in f1_scores(counts).items():
        assert float(row[name]) == pytest.approx(value, abs=1e-3)


def test_a_row_is_dirty_by_any_of_its_pretrainings(pretrained, tmp_path):
    """Of two pretrainings, one with a start in a tree with changes; the hashes are those of the files."""
    saved = checkpoint.load(pretrained, "pretrained")
    (start,) = saved["starts"]
    changed = start | {"commit": "decade", "dirty": True, "device": "H100", "processes": "3 x 1"}
    other = saved | {"starts": [changed, start]}
    checkpoint.save(tmp_path / "other.pt", other)
    told = starts.provenance_of([(pretrained, saved), (tmp_path / "other.pt", other)])
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest()[:12] for path in (pretrained, tmp_path / "other.pt")]
    assert told == {"pretrain_dirty": True, "pretrain_commit": f"{start['commit']} + decade",
                    "pretrain_hash": " + ".join(hashes),
                    "pretrain_device": f"{start['device']} + H100", "pretrain_processes": "1 x 1 + 3 x 1"}
    assert starts.provenance_of([(pretrained, saved)])["pretrain_dirty"] == start["dirty"]
    assert starts.provenance_of([]) == {}


def test_evaluation_is_the_same_again_and_on_two_processes(demo, finetuned, tmp_path):
    arguments = ["--checkpoint", str(finetuned), "--data-root", str(demo), "--workers", "0", "--pool", "3"]
    for _ in range(2):
        evaluate.main([*arguments, "--csv", str(tmp_path / "one" / "table2.csv")])
    run = torchrun(2, "evaluate.py", *arguments, "--csv", str(tmp_path / "two" / "table2.csv"))
    assert run.returncode == 0, run.stderr
    one, two = ((tmp_path / n / "table2.counts.jsonl").read_text() for n in ("one", "two"))
    assert one == two and len(one.splitlines()) == 1    # the same cell and seed again replaces its row
    assert len(read_rows(tmp_path / "one" / "table2.csv")) == 1
    assert json.loads(run.stdout)["n"] == 10


def test_single_date_one_modality_from_scratch_with_few_labels(demo, tmp_path):
    finetune.main(["--dataset", "treesatai", "--data-root", str(demo), "--init", "none", "--modalities", "s2",
                   "--label-percent",
                   "50", "--output", str(tmp_path), "--csv", str(tmp_path / "table2.csv"), *SMALL, *MODEL])
    (row,) = read_rows(tmp_path / "table2.csv")
    assert [row[name] for name in KEYS] == ["table2", "treesatai", "omnisat", "none", "none", "s2", "50"]
    assert float(row["pretrain_hours"]) == 0 and row["command"].startswith("python finetune.py --dataset treesatai ")
    assert (row["rate"], row["rate_from"]) == ("0.0002", "official code")


def test_fine_tuning_on_two_processes_writes_one_row(demo, tmp_path):
    run = torchrun(2, "finetune.py", "--dataset", "treesatai-ts", "--data-root", str(demo), "--init", "none",
                   "--modalities", "s2",
                   "--max-cloud", "90", "--output", str(tmp_path), "--csv", str(tmp_path / "table2.csv"), *SMALL,
                   *MODEL)
    assert run.returncode == 0, run.stderr
    (row,) = read_rows(tmp_path / "table2.csv")
    assert row["n_test"] == "10" and row["command"].startswith("torchrun --nproc_per_node=2 finetune.py")
    assert row["processes"] == "1 x 2"
    assert checkpoint.load(tmp_path / "finetuned.pt", "finetuned")["max_cloud"] == 90


# ---- metrics --------------------------------------------------------------------------------------------------------

def test_metrics_equal_scikit_learn():
    from sklearn.metrics import average_precision_score, f1_score
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(40, 5, generator=generator), (torch.rand(40, 5, generator=generator) < 0.3).float()
    labels[:, 3], logits[:, 3] = 0, -1    # a class that is neither there nor predicted
    scores = f1_scores(count(logits, labels))
    for average in ("weighted", "macro", "micro"):
        expected = 100 * f1_score(labels, logits > 0, average=average, zero_division=0)
        assert scores[f"f1_{average}"] == pytest.approx(expected, abs=1e-9)
    there = [0, 1, 2, 4]
    assert mean_average_precision(logits, labels) == pytest.approx(
        100 * average_precision_score(labels[:, there], logits[:, there]), abs=1e-9)


# ---- Sentinel-1, repaired -------------------------------------------------------------------------------------------

def test_the_choice_of_sentinel_1_goes_from_checkpoint_to_row(tmp_path):
    """A model that saw it repaired is fine-tuned on another sensor, scored and probed so; its row does not replace the
    released one.
    """
    planted = write_treesatai(tmp_path / "planted", train=24, test=10, seed=3, as_2017=True)
    common, table = ["--dataset", "treesatai-ts", "--data-root", str(planted), *SMALL], tmp_path / "table2.csv"
    losses = {}
    for s1 in ("released", "repaired"):
        pretrain.main([*common, *MODEL, "--modalities", "s2,s1", "--s1", s1, "--output",
                       str(tmp_path / s1 / "pretrain")])
        path = tmp_path / s1 / "pretrain" / "pretrained.pt"
        losses[s1] = checkpoint.load(path, "pretrained")["history"][-1]["loss"]
        for keys in ("s2", "s1"):
            finetune.main([*common, "--modalities", keys, "--init", str(path), "--s1", s1, "--output",
                           str(tmp_path / s1 / keys),
                           "--csv", str(table)])
            assert checkpoint.load(tmp_path / s1 / keys / "finetuned.pt", "finetuned")["s1"] == s1
    assert losses["released"] != losses["repaired"]
    rows = {(row["modality"], row["s1"]): row for row in read_rows(table)}
    assert set(rows) == {(keys, s1) for keys in ("s2", "s1")
                         for s1 in ("released", "repaired")} and len(read_rows(table)) == 4
    with pytest.raises(UserError, match="pretrained with --s1 repaired, not released; say --s1 repaired here too"):
        finetune.main([*common, "--init", str(path), "--modalities", "s1", "--output", str(tmp_path / "other")])
    with pytest.raises(UserError, match="was begun with --s1 released, not repaired"):
        pretrain.main([*common, *MODEL, "--modalities", "s2,s1", "--s1", "repaired", "--output",
                       str(tmp_path / "released" / "pretrain")])
    evaluate.main(["--checkpoint", str(tmp_path / "repaired" / "s1" / "finetuned.pt"), "--data-root", str(planted),
                   "--workers", "0",
                   "--csv", str(tmp_path / "again" / "table2.csv")])
    (again,) = read_rows(tmp_path / "again" / "table2.csv")
    assert again == rows["s1", "repaired"]
    probe.main(["--checkpoint", str(path), "--data-root", str(planted), "--modalities", "s1", "--features", "tile",
                "--weights", "own",
                "--classifiers", "knn", "--label-percent", "100", "--csv", str(tmp_path / "probe.csv")])
    (row,) = read_rows(tmp_path / "probe.csv", PROBE_KEYS)
    assert row["s1"] == "repaired"


def test_rows_and_checkpoints_of_before_are_released(tmp_path):
    row = dict.fromkeys(COLUMNS, "") | {"dataset": "treesatai-ts", "table": "table2", "seed": 0, "scale": "paper",
                                        "f1_weighted": 1}
    with open(tmp_path / "table2.csv", "w") as file:                              # without the column
        names = [name for name in COLUMNS if name != "s1"]
        file.write(",".join(names) + "\n" + ",".join(str(row[name]) for name in names) + "\n")
    write_row(tmp_path / "table2.csv", row | {"s1": "repaired", "f1_weighted": 2})
    write_row(tmp_path / "table2.csv", row | {"s1": "released", "f1_weighted": 3})
    assert [(row["s1"], row["f1_weighted"]) for row in read_rows(tmp_path / "table2.csv")] == [("repaired", "2"),
                                                                                               ("released", "3")]


# ---- bad input ------------------------------------------------------------------------------------------------------

def test_errors_are_one_line_that_names_the_culprit(demo, pretrained, finetuned, tmp_path):
    only_s2 = tmp_path / "s2" / "pretrained.pt"
    pretrain.main(["--dataset", "treesatai-ts", "--data-root", str(demo), "--modalities", "s2", "--output",
                   str(only_s2.parent),
                   *SMALL, *MODEL])
    cut = tmp_path / "cut.pt"
    cut.write_bytes(pretrained.read_bytes()[:-1000])
    stopped, foreign = tmp_path / "stopped.pt", tmp_path / "foreign.csv"
    checkpoint.save(stopped, checkpoint.load(pretrained, "pretrained") | {"finished": False})
    other_val = tmp_path / "other_val.pt"
    checkpoint.save(other_val, checkpoint.load(pretrained, "pretrained") | {"val_hash": "of another list"})
    foreign.write_text("a,b\n1,2\n")
    common = ["--dataset", "treesatai-ts", "--data-root", str(demo), "--output", str(tmp_path / "out"), *SMALL]
    for script, arguments, culprit in (
            (finetune, [*common, "--init", "none", "--modalities", "s2,s3"],
             "unknown modality 's3': treesatai-ts has vhr, s2, s1"),
            (finetune, [*common, "--init", str(only_s2), "--modalities", "vhr,s2"], "pretrained on s2, not on vhr"),
            (finetune, [*common, "--init", str(cut)], "cut.pt: cannot be read as a checkpoint"),
            (finetune, [*common, "--init", str(finetuned)], "a checkpoint of kind 'finetuned', expected 'pretrained'"),
            (finetune, [*common, "--init", str(tmp_path / "no.pt")], "no.pt: no such checkpoint"),
            (finetune, [*common, "--init", str(pretrained), "--embed-dim", "64"], "--embed-dim 64"),
            (finetune, [*common, "--init", "none", "--embed-dim", "48"], "--embed-dim must be a multiple of 32"),
            (finetune, [*common, "--init", "none", "--csv", str(foreign)], "not a table of results"),
            (finetune, [*common, "--init", str(stopped)], "stopped in epoch 2"),
            (finetune, [*common, "--init", str(other_val)], "pretrained with another list of validation tiles"),
            (finetune, [*common[:4], "--init", "none", "--output", str(finetuned.parent), *SMALL],
             "was begun with --depth 1, not 6, --embed-dim 32, not 256, --init sha256 .*, not none, --lr 0.001, not "
             "0.0002"),
            (finetune, [*common, "--init", "none", "--modalities", "vhr", "--max-cloud", "5"],
             "no cloud masks without s2"),
            (finetune, [*common, "--init", str(pretrained), "--s1", "repaired"],
             "pretrained with --s1 released, not repaired; say --s1 rel"),
            (finetune, [*common, "--init", "none", "--modalities", "vhr,s2", "--s1", "repaired"],
             "--s1 repaired does nothing for vhr, s2"),
            (pretrain, [*common, "--modalities", "s2", "--s1", "repaired"],
             "--s1 repaired does nothing for s2; leave it out"),
            (finetune, ["--dataset", "treesatai", *common[2:], "--init", "none", "--modalities", "s1", "--s1",
                        "repaired"],
             "--s1 repaired: only treesatai-ts has Sentinel-1 that can be repaired, treesatai has not; leave the "
             "option out"),
            (pretrain, ["--dataset", "pastis-hd", *common[2:], "--s1", "repaired"], "--s1 repaired: only treesatai-ts"),
            (finetune, [*common, "--init", "none", "--parts", "2"], "labels of treesatai-ts belong to whole tiles"),
            (finetune, ["--dataset", "treesatai", *common[2:], "--init", str(pretrained), "--modalities", "vhr"],
             "pretrained on treesatai-ts, not on treesatai"),
            (finetune, ["--dataset", "treesatai", *common[2:], "--init", "none", "--max-cloud", "5"], "no cloud masks"),
            (evaluate, ["--checkpoint", str(pretrained), "--data-root", str(demo)], "expected 'finetuned'"),
            (pretrain, [*common, "--output", str(pretrained.parent)],
             "was begun with --depth 1, not 6, --embed-dim 32, not 256: repeat"),
            (pretrain, ["--dataset", "treesatai-ts", "--data-root", str(tmp_path)],
             "no train_filenames.lst|no TreeSatBA")):
        with pytest.raises(UserError, match=culprit):
            script.main(arguments)
    run = subprocess.run([sys.executable, "finetune.py", *common, "--init", str(cut)], cwd=ROOT, capture_output=True,
                         text=True)
    assert run.returncode != 0 and run.stderr.startswith("finetune.py: error:") and len(run.stderr.splitlines()) == 1


@pytest.mark.parametrize("script, options, error", [
    (script, options, error) for scripts, options, error in (
        ("pretrain finetune", ["--seed", "-1"], "--seed: must be a whole number from 0 to 2,147,483,647, not -1"),
        ("pretrain finetune", ["--seed", str(2 ** 64)],
         f"--seed: must be a whole number from 0 to 2,147,483,647, not {2 ** 64}"),
        ("pretrain finetune", ["--seed", "9" * 5000],
         "--seed: must be a whole number from 0 to 2,147,483,647, not " + "9" * 40),
        ("pretrain finetune evaluate probe prepare", ["--workers", "-1"],
         "--workers: must be a whole number from 0 to"),
        ("pretrain finetune", ["--lr", "nan"], "--lr: must be a number over 0, not nan"),
        ("pretrain finetune", ["--lr", "-1"], "--lr: must be a number over 0, not -1"),
        ("pretrain finetune", ["--lr", "inf"], "--lr: must be a number over 0, not inf"),
        ("pretrain finetune", ["--lr", "0"], "--lr: must be a number over 0, not 0"),
        ("pretrain finetune", ["--max-cloud", "nan"], "--max-cloud: must be a number from 0 to 100, not nan"),
        ("pretrain finetune", ["--max-cloud", "-3"], "--max-cloud: must be a number from 0 to 100, not -3"),
        ("pretrain finetune", ["--save-minutes", "nan"], "--save-minutes: must be a number from 0, not nan"),
        ("pretrain finetune", ["--width", "nan"], "--width: must be a number over 0, at most 1, not nan"),
        ("pretrain finetune", ["--width", "2"], "--width: must be a number over 0, at most 1, not 2"),
        ("pretrain finetune", ["--depth", "-1"], "--depth: must be a whole number from 0 to"),
        ("pretrain finetune", ["--embed-dim", "0"], "--embed-dim: must be a whole number from 32 to"),
        *(("pretrain finetune", [f"--{name}", value],
           f"--{name}: must be a whole number from 1 to 2,147,483,647, not {value}") for name in
          ("epochs", "epoch-steps", "batch-size", "pool", "parts", "patience", "tiles-at-once")
          for value in ("0", "1.5", str(2 ** 31))),
        ("evaluate probe", ["--pool", "0"], "--pool: must be a whole number from 1 to"),
        ("evaluate", ["--tiles-at-once", "0"], "--tiles-at-once: must be a whole number from 1 to"),
        ("finetune", ["--min-epochs", "-1"], "--min-epochs: must be a whole number from 0 to"),
        ("finetune probe", ["--label-percent", "0"], "--label-percent: must be a whole number from 1 to 100, not 0"),
        ("finetune probe", ["--label-percent", "101"],
         "--label-percent: must be a whole number from 1 to 100, not 101"),
        ("run_tables", ["--nproc", "0"], "--nproc: must be a whole number from 1 to"),
        ("run_tables", ["--jobs", "0"], "--jobs: must be a whole number from 1 to"),
        ("run_tables", ["--seeds", "0,-1"], "--seeds: must be a whole number from 0 to 2,147,483,647, not -1"),
        ("run_tables", ["--seeds", f"0,{2 ** 64}"],
         f"--seeds: must be a whole number from 0 to 2,147,483,647, not {2 ** 64}"),
        *(("benchmarks.run", [f"--{name}", "0"], f"--{name}: must be a whole number from 1 to") for name in
          ("tiles", "tiles-at-once", "threads", "repeats")),
        ("studies.claims studies.finetuning studies.rehearsal", ["--jobs", "0"],
         "--jobs: must be a whole number from 1 to"),
        ("studies.claims", ["--seeds", "x"], "--seeds: must be a whole number from 0 to 2,147,483,647, not x"),
        ("datasets.simulated.demo", ["--seed", "-1"], "--seed: must be a whole number from 0 to"),
        ("datasets.simulated.demo", ["--train", "0"], "--train: must be a whole number from 1 to"),
        ("datasets.simulated.demo", ["--test", "-1"], "--test: must be a whole number from 1 to"))
    for script in scripts.split()])
def test_a_number_out_of_its_range_is_one_line(script, options, error, capsys):
    """Before anything is read; the line names the option, and is short whatever was typed."""
    needed = {"evaluate": ["--checkpoint", "x", "--data-root", "x"], "probe": ["--checkpoint", "x", "--data-root", "x"],
              "prepare": ["treesatai-ts", "--root", "x"], "run_tables": ["demo"],
              "datasets.simulated.demo": ["--root", "x"],
              "pretrain": ["--dataset", "treesatai-ts", "--data-root", "x"],
              "finetune": ["--dataset", "treesatai-ts", "--data-root", "x", "--init", "none"]}
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(script).main([*needed.get(script, []), *options])
    last = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2 and f"error: argument {error}" in last and len(last) < 200


WINDOWS = """
import os, runpy, signal, sys
sys.modules["fcntl"] = None                                                   # its import fails, as there
del signal.SIGUSR1, signal.SIGPIPE, os.setsid
opened = os.open
def no_folders(path, *more, **choices):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", path)
    return opened(path, *more, **choices)
os.open = no_folders
sys.argv = sys.argv[1:]
sys.path.insert(0, "")
runpy.run_path(sys.argv[0] + ".py", run_name="__main__")
"""


def on_windows(*command):
    """A script in a process without what Windows lacks of Python's library."""
    return subprocess.run([sys.executable, "-c", WINDOWS, *command], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.mark.parametrize("script",
                         ["pretrain", "finetune", "evaluate", "probe", "prepare", "run_tables", "compare",
                          "datasets/simulated/demo",
                                    "benchmarks/run", "studies/finetuning"])
def test_help_without_fcntl(script):
    run = on_windows(script, "--help")
    assert run.returncode == 0 and "usage:" in run.stdout and run.stderr == "", run.stderr


def test_a_training_without_fcntl_says_what_does_not_work(demo, tmp_path):
    """One line, once: the folder and the table are not locked; the run, with a reading process, and its row are as
    ever.
    """
    command = ["finetune", "--dataset", "treesatai-ts", "--data-root", str(demo), "--init", "none", "--modalities",
               "s2", *SMALL, *MODEL,
               "--workers", "1", "--output", str(tmp_path / "run"), "--csv", str(tmp_path / "table2.csv")]
    run = on_windows(*command)
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("warning: this system has no fcntl") == 1
    assert "see to it that no two processes work in one folder or write to one table" in run.stderr
    assert checkpoint.load(tmp_path / "run" / "finetuned.pt",
                           "finetuned")["finished"] and len(read_rows(tmp_path / "table2.csv")) == 1


@pytest.mark.parametrize("option",
                         [["--seed", str(2 ** 31 - 1)], ["--max-cloud", "0"], ["--max-cloud", "100"],
                          ["--save-minutes", "inf"]])
def test_the_largest_and_smallest_numbers_are_taken(option, demo, tmp_path):
    if option[0] == "--max-cloud":
        assert pretrain.command_line().parse_args(["--dataset", "treesatai-ts", "--data-root", "x",
                                                   *option]).max_cloud == float(option[1])
        return
    finetune.main(["--dataset", "treesatai-ts", "--data-root", str(demo), "--init", "none", "--modalities", "s2",
                   "--output",
                   str(tmp_path), *SMALL, *MODEL, *option])
    assert checkpoint.load(tmp_path / "finetuned.pt", "finetuned")["finished"]


def test_an_error_in_a_reading_process_is_one_line_too(demo, tmp_path):
    broken = tmp_path / "broken"
    subprocess.run(["cp", "-r", str(demo), str(broken)], check=True)
    victim = sorted((broken / "sentinel-ts").iterdir())[4]
    victim.write_bytes(victim.read_bytes()[:5000])
    run = subprocess.run([sys.executable, "pretrain.py", "--dataset", "treesatai-ts", "--data-root", str(broken),
                          "--output",
                          str(tmp_path / "out"), "--workers", "1", *SMALL[2:], *MODEL], cwd=ROOT, capture_output=True,
                         text=True)
    last = run.stderr.splitlines()[-1]
    assert run.returncode != 0 and "error:" in last and victim.name in last and "Traceback" not in run.stderr


# ---- which rows are the paper's -------------------------------------------------------------------------------------

@pytest.mark.parametrize("script, options, modalities, expected", [
    (pretrain, [], ("vhr", "s2", "s1"), True), (pretrain, [], ("s2",), False),
    (pretrain, ["--pool", "64"], ("vhr", "s2", "s1"), False),
    (pretrain, [], ("vhr", "s2", "s1", "thermal"), False),
    (pretrain, ["--ablation", "no_contrastive"], ("vhr", "s2", "s1"), True),
    (pretrain, ["--dataset", "flair"], ("vhr", "s2"), True),
    (pretrain, ["--dataset", "pastis-hd", "--parts", "2"], ("vhr", "s2", "s1"), False),
    (finetune, ["--init", "none"], ("s2",), True), (finetune, ["--init", "none"], ("s2", "s1-des"), False),
    (finetune, ["--init", "none", "--lr", "1e-3"], ("s2",), False),
    (finetune, ["--init", "none", "--max-cloud", "50"], ("s2",), False)])
def test_only_the_papers_recipe_is_of_scale_paper(script, options, modalities, expected):
    arguments = script.command_line()
    args = arguments.parse_args(["--dataset", "treesatai-ts", "--data-root", "x", *options])
    assert is_paper(args, arguments, modalities) is expected


def test_only_the_releases_tiles_are_of_scale_paper(demo, tmp_path, monkeypatch, capsys):
    """Both for training and test; with the demo's numbers as those of the release, it is."""
    for module in ("splits", "band_statistics"):
        monkeypatch.setattr(f"datasets.{module}.FOLDER", tmp_path / module)
    root = shutil.copytree(demo, tmp_path / "release", ignore=shutil.ignore_patterns("DEMO.json", "aerial"))
    monkeypatch.setattr("engine.options.is_paper", lambda *args: True)
    start = starts.start_omnisat
    monkeypatch.setattr("engine.starts.start_omnisat", lambda *given: start(*given)._replace(is_paper=True))

    def scale(name):
        finetune.main(["--dataset", "treesatai-ts", "--data-root", str(root), "--modalities", "s1", "--init", "none",
                       *SMALL, *MODEL, "--epochs", "1", "--output", str(tmp_path / name),
                       "--csv", str(tmp_path / f"{name}.csv")])
        return read_rows(tmp_path / f"{name}.csv")[0]["scale"]
    assert scale("lacking") == "custom"
    assert "scale custom: 24 tiles in train + val, 45,337 in the release" in capsys.readouterr().err
    monkeypatch.setitem(RELEASED, "treesatai-ts", {"train + val": 24, "test": 10})
    assert scale("whole") == "paper" and "scale custom" not in capsys.readouterr().err
    monkeypatch.setitem(RELEASED, "treesatai-ts", {"train + val": 24, "test": 11})
    assert scale("test") == "custom" and "scale custom: 10 tiles in test, 11 in the release" in capsys.readouterr().err
    monkeypatch.setitem(RELEASED, "treesatai-ts", {"train + val": 20, "test": 10})
    assert scale("more") == "custom"


def test_a_dataset_of_ones_own_is_never_of_scale_paper(monkeypatch):
    monkeypatch.setitem(SENSORS, "mine", {})
    arguments = pretrain.command_line()
    assert not is_paper(arguments.parse_args(["--dataset", "mine", "--data-root", "x"]), arguments, ())
    assert not is_paper(arguments.parse_args(["--dataset", "mine", "--data-root", "x"]), arguments, ("vhr",))


def test_statistics_follow_the_sensor(demo, tmp_path, monkeypatch):
    """Statistics of other bands, another nodata or lowest value are not taken from the file, but computed again."""
    monkeypatch.setattr("datasets.band_statistics.FOLDER", tmp_path)
    first = training_statistics(open_dataset("treesatai-ts", demo, "train", ("s1",)))
    monkeypatch.setitem(SENSORS["treesatai-ts"], "s1",
                        dataclasses.replace(SENSORS["treesatai-ts"]["s1"], nodata=-12345))
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text().replace("mean", "old mean"))
    second = training_statistics(open_dataset("treesatai-ts", demo, "train", ("s1",)))
    assert first["s1"]["mean"] == second["s1"]["mean"] and "old mean" not in path.read_text()
    monkeypatch.setitem(SENSORS["treesatai-ts"], "s1", dataclasses.replace(SENSORS["treesatai-ts"]["s1"], lowest=0.01))
    third = training_statistics(open_dataset("treesatai-ts", demo, "train", ("s1",)))
    assert third["s1"]["mean"][1] > first["s1"]["mean"][1] + 0.1
