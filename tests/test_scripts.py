"""The three scripts and the tables, run as a user runs them, on a generated miniature."""
import csv
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import compare
import evaluate
import finetune
import pretrain
import run_tables
from datasets.demo import write_treesatai
from datasets.sensors import SENSORS
from models import build_model
from utils import checkpoint
from utils.errors import UserError
from utils.metrics import count, f1_scores, mean_average_precision
from utils.options import chosen_modalities
from utils.results import COLUMNS, KEYS, read_rows

ROOT = Path(__file__).parent.parent
SMALL = ["--workers", "0", "--batch-size", "8", "--pool", "4", "--epochs", "2"]
MODEL = ["--embed-dim", "32", "--depth", "1"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo") / "treesatai"
    write_treesatai(root, train=24, test=10, seed=3)
    return root


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
    return subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}",
                           *command], cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


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
        if "running" not in name and "tracked" not in name:    # rank 0 has seen its own pools only
            assert torch.allclose(one[name], two[name], atol=2e-4), name


def test_finetuning_starts_from_the_checkpoint(demo, pretrained):
    saved = checkpoint.load(pretrained, "pretrained")
    model = build_model("omnisat", [SENSORS["treesatai-ts"][key] for key in ("vhr", "s1")], embed_dim=32, depth=1, num_classes=15)
    checkpoint.start_from(model, saved, pretrained)
    for name, value in model.state_dict().items():
        if not name.startswith("head."):
            assert torch.equal(value, saved["weights"][name]), name
    assert model.standardize["vhr"].mean.min() > 10    # the statistics came along


def test_row_and_counts(finetuned):
    (row,) = read_rows(finetuned.parent / "table2.csv")
    assert tuple(row) == COLUMNS
    assert [row[name] for name in KEYS] == ["table2", "treesatai-ts", "omnisat", "self", "none", "all", "100"]
    assert row["scale"] == "demo" and row["status"] == "ok" and row["n_test"] == "10" and float(row["pretrain_hours"]) > 0
    (line,) = (finetuned.parent / "table2.counts.jsonl").read_text().splitlines()
    counts = json.loads(line)
    assert len(counts["classes"]) == 15 and sum(counts[cell][0] for cell in ("tp", "fp", "fn", "tn")) == 10
    for name, value in f1_scores(counts).items():
        assert float(row[name]) == pytest.approx(value, abs=1e-3)


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
    finetune.main(["--dataset", "treesatai", "--data-root", str(demo), "--init", "none", "--modalities", "s2", "--label-percent",
                   "50", "--output", str(tmp_path), "--csv", str(tmp_path / "table2.csv"), *SMALL, *MODEL])
    (row,) = read_rows(tmp_path / "table2.csv")
    assert [row[name] for name in KEYS] == ["table2", "treesatai", "omnisat", "none", "none", "s2", "50"]
    assert float(row["pretrain_hours"]) == 0 and row["command"].startswith("python finetune.py --dataset treesatai ")


def test_fine_tuning_on_two_processes_writes_one_row(demo, tmp_path):
    run = torchrun(2, "finetune.py", "--dataset", "treesatai-ts", "--data-root", str(demo), "--init", "none", "--modalities", "s2",
                   "--max-cloud", "90", "--output", str(tmp_path), "--csv", str(tmp_path / "table2.csv"), *SMALL, *MODEL)
    assert run.returncode == 0, run.stderr
    (row,) = read_rows(tmp_path / "table2.csv")
    assert row["n_test"] == "10" and row["command"].startswith("torchrun --nproc_per_node=2 finetune.py")
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


# ---- the tables -----------------------------------------------------------------------------------------------------

def test_list_is_omnisat_in_the_paper(capsys):
    run_tables.main(["table2", "--list"])
    listed = capsys.readouterr().out.splitlines()
    with open(ROOT / "results" / "paper" / "cells.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["table"] == "table2" and row["model"] == "omnisat"]
    assert listed[0] == ",".join(KEYS) and len(rows) == 24
    assert sorted(listed[1:]) == sorted(",".join(row[name] for name in KEYS) for row in rows)


@pytest.mark.parametrize("options", [["table2"], ["demo", "--seeds", "0,1"], ["all", "--nproc", "3", "--data", "my data"]])
def test_dry_run_prints_lines_that_parse(options, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)    # nothing done yet, so every line is printed
    run_tables.main([*options, "--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    seeds = 2 if "--seeds" in options else 1
    assert len(lines) == (24 + 2) * seeds + ("demo" in options)
    for line in lines:
        words = shlex.split(line)
        if "datasets.demo" in words:
            continue
        script = next(word for word in words if word.endswith(".py"))
        args = {"pretrain.py": pretrain, "finetune.py": finetune}[script].command_line().parse_args(words[words.index(script) + 1:])
        modalities = chosen_modalities(args.modalities, args.dataset)
        build_model("omnisat", [SENSORS[args.dataset][key] for key in modalities], embed_dim=args.embed_dim or 256,
                    depth=args.depth or 6)
        if "demo" not in options:    # only the flags that differ: the rest is the paper's
            assert args.epochs == (250 if script == "pretrain.py" else 200) and args.batch_size == 384 and args.pool == 128
            assert (args.lr == 1e-4) if script == "pretrain.py" else (args.lr is None)


def test_driver_runs_skips_and_reports(demo, tmp_path, monkeypatch, capfd):
    """Two cells run; what is done is skipped; a failing cell is told and the exit code says so."""
    monkeypatch.setattr(run_tables, "DEMO_DATA", ["--train", "24", "--test", "10", "--seed", "3"])
    monkeypatch.setattr(run_tables, "DEMO_FINETUNE", {"10": ["--epochs", "1"], "100": ["--epochs", "1"]})
    monkeypatch.setattr(run_tables.Commands, "root", lambda self, dataset: str(demo))
    folder = os.path.relpath(tmp_path, ROOT)
    original = run_tables.Commands.__init__

    def elsewhere(self, *arguments):
        original(self, *arguments)
        self.results, self.runs = Path(folder) / "results", Path(folder) / "runs"
    monkeypatch.setattr(run_tables.Commands, "__init__", elsewhere)
    monkeypatch.chdir(ROOT)
    command = ["demo", "--only", "treesatai-ts,omnisat,none,none,s[12],100"]
    assert run_tables.main(command) == 0
    assert {row["modality"] for row in read_rows(tmp_path / "results" / "table2.csv")} == {"s1", "s2"}
    run_tables.main([*command, "--dry-run"])
    assert "finetune.py" not in capfd.readouterr().out
    monkeypatch.setattr(run_tables, "DEMO_COMMON", ["--lr", "nonsense"])
    assert run_tables.main(["demo", "--only", "treesatai-ts,omnisat,none,none,(s2,100|s1,10)$"]) == 1
    assert "1 of 2 jobs failed" in capfd.readouterr().err


def test_compare_shows_mean_and_spread(tmp_path, monkeypatch, capsys):
    base = dict.fromkeys(COLUMNS, "") | {"table": "table2", "dataset": "treesatai-ts", "model": "omnisat", "ablation": "none",
                                         "label_percent": "100", "status": "ok", "scale": "demo"}
    rows = [base | {"pretraining": init, "modality": modality, "seed": seed, "f1_weighted": value}
            for init, modality, values in (("self", "all", (80, 84)), ("self", "s2", (70, 75)),
                                             ("self", "s1", (9, 9)), ("self", "vhr", (60, 76)), ("none", "all", (77, 79)))
            for seed, value in enumerate(values)]
    rows.append(base | {"pretraining": "self", "modality": "all", "seed": 7, "f1_weighted": 99.9, "scale": "custom"})
    (tmp_path / "demo").mkdir()
    with open(tmp_path / "demo" / "table2.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    monkeypatch.setattr(compare, "RESULTS", tmp_path)
    compare.main(["--demo"])
    out = capsys.readouterr().out
    assert "DEMO" in out and "82.0 ±2.8" in out and "74.2" in out
    # pretrained - scratch: seeds (80 - 77, 84 - 79) = (3, 5); all - best single: (80 - 70, 84 - 76) = (10, 8)
    assert re.search(r"pretrained - scratch +treesatai-ts, all, 100 % +\+0\.9 +\+4\.0 ±1\.4 +2", out)
    assert re.search(r"all - best single modality +treesatai-ts, pretrained, 100 % +\+\S+ +\+9\.0 ±1\.4 +2", out)
    assert "from scratch" not in out    # its single modalities have not all been run
    assert "all 100%" in out and "99.9" not in out    # a row of another scale is not shown
    with open(tmp_path / "demo" / "compare.csv", newline="") as file:
        cell = next(row for row in csv.DictReader(file) if (row["pretraining"], row["modality"]) == ("self", "all"))
    assert (cell["paper"], cell["ours_mean"], cell["ours_std"], cell["n"], cell["scale"]) == ("74.2", "82.00", "2.83", "2", "demo")


# ---- bad input ------------------------------------------------------------------------------------------------------

def test_errors_are_one_line_that_names_the_culprit(demo, pretrained, finetuned, tmp_path):
    only_s2 = tmp_path / "s2" / "pretrained.pt"
    pretrain.main(["--dataset", "treesatai-ts", "--data-root", str(demo), "--modalities", "s2", "--output", str(only_s2.parent),
                   *SMALL, *MODEL])
    cut = tmp_path / "cut.pt"
    cut.write_bytes(pretrained.read_bytes()[:-1000])
    stopped, foreign = tmp_path / "stopped.pt", tmp_path / "foreign.csv"
    checkpoint.save(stopped, checkpoint.load(pretrained, "pretrained") | {"finished": False})
    foreign.write_text("a,b\n1,2\n")
    common = ["--dataset", "treesatai-ts", "--data-root", str(demo), "--output", str(tmp_path / "out"), *SMALL]
    for script, arguments, culprit in (
            (finetune, [*common, "--init", "none", "--modalities", "s2,s3"], "unknown modality 's3': treesatai-ts has vhr, s2, s1"),
            (finetune, [*common, "--init", str(only_s2), "--modalities", "vhr,s2"], "pretrained on s2, not on vhr"),
            (finetune, [*common, "--init", str(cut)], "cut.pt: cannot be read as a checkpoint"),
            (finetune, [*common, "--init", str(finetuned)], "a checkpoint of kind 'finetuned', expected 'pretrained'"),
            (finetune, [*common, "--init", str(tmp_path / "no.pt")], "no.pt: no such checkpoint"),
            (finetune, [*common, "--init", str(pretrained), "--embed-dim", "64"], "--embed-dim 64"),
            (finetune, [*common, "--init", "none", "--label-percent", "0"], "--label-percent must be"),
            (finetune, [*common, "--init", "none", "--embed-dim", "48"], "--embed-dim must be a multiple of 32"),
            (finetune, [*common, "--init", "none", "--csv", str(foreign)], "not a table of results"),
            (finetune, [*common, "--init", str(stopped)], "stopped in epoch 2"),
            (finetune, ["--dataset", "treesatai", *common[2:], "--init", str(pretrained), "--modalities", "vhr"],
             "pretrained on treesatai-ts, not on treesatai"),
            (finetune, ["--dataset", "treesatai", *common[2:], "--init", "none", "--max-cloud", "5"], "no cloud masks"),
            (evaluate, ["--checkpoint", str(pretrained), "--data-root", str(demo)], "expected 'finetuned'"),
            (pretrain, [*common[:-8], "--output", str(pretrained.parent)], "is finished"),
            (pretrain, ["--dataset", "treesatai-ts", "--data-root", str(tmp_path)], "no train_filenames.lst|no TreeSatBA")):
        with pytest.raises(UserError, match=culprit):
            script.main(arguments)
    run = subprocess.run([sys.executable, "finetune.py", *common, "--init", str(cut)], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode != 0 and run.stderr.startswith("finetune.py: error:") and len(run.stderr.splitlines()) == 1


def test_an_error_in_a_reading_process_is_one_line_too(demo, tmp_path):
    broken = tmp_path / "broken"
    subprocess.run(["cp", "-r", str(demo), str(broken)], check=True)
    victim = sorted((broken / "sentinel-ts").iterdir())[4]
    victim.write_bytes(victim.read_bytes()[:5000])
    run = subprocess.run([sys.executable, "pretrain.py", "--dataset", "treesatai-ts", "--data-root", str(broken), "--output",
                          str(tmp_path / "out"), "--workers", "1", *SMALL[2:], *MODEL], cwd=ROOT, capture_output=True, text=True)
    last = run.stderr.splitlines()[-1]
    assert run.returncode != 0 and "error:" in last and victim.name in last and "Traceback" not in run.stderr
