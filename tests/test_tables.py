"""The driver: what it lists, the lines it prints, what it runs, skips, runs again and stops."""
import csv
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import evaluate
import finetune
import pretrain
import probe
import run_tables
from datasets.sensors import SENSORS
from engine import checkpoint, starts
from engine.options import chosen_modalities
from models.methods import METHODS, build_model
from models.omnisat import ABLATIONS
from tables import commands, jobs, schedule
from tables.jobs import Job
from tables.schedule import Machine, run_all
from utils import weights
from utils.errors import BUSY, STOPPED
from utils.results import KEYS, PROBE_KEYS, finetuning_folder, folder_of, pretraining_folder, read_rows, write_row

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("table, number",
                         [("table2", 107), ("table3", 52), ("table4", 30), ("table5", 12), ("all", 201)])
def test_list_is_what_the_paper_prints(table, number, capsys):
    run_tables.main([table, "--list"])
    listed = capsys.readouterr().out.splitlines()
    with open(ROOT / "results" / "paper" / "cells.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if table in ("all", row["table"])]
    assert listed[0] == ",".join(KEYS) and len(rows) == number
    assert sorted(listed[1:]) == sorted(",".join(row[name] for name in KEYS) for row in rows)


def test_figure_5_is_table_2_with_all_labels(capsys):
    run_tables.main(["fig5", "--list"])
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) == 12 + 45 and all(line.startswith("table2,") and line.endswith(",100") for line in lines)


@pytest.mark.parametrize("options, number", [
    (["table2"], 107 + 2 + 7), (["demo", "--seeds", "0,1"], (16 + 2) * 2 + 1), (["table3"], 52 + 1 + 3),
    (["table4", "--demo"], 30 + 1 + 2 + 1),
    (["table5"], 12 + 6), (["all", "--nproc", "3", "--data", "my data"], 201 + 4 + 5 + 12),
    (["all", "--demo"], 201 + 4 + 5 + 12 + 3),
    (["table2", "--s1", "repaired"], 24 + 1), (["table5", "--s1", "repaired"], 12 + 6),
    (["table2", "--demo", "--s1", "repaired"], 24 + 1 + 1),
    (["probe", "--seeds", "0,1"], 4 * 2 * 2), (["probe", "--demo"], 4 * 2 + 3)])
def test_dry_run_prints_lines_that_parse(options, number, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)    # nothing done yet, so every line is printed
    run_tables.main([*options, "--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == number == len(set(lines))
    written = set()
    for line in lines:
        words = shlex.split(line)
        flags = [word for word in words if word.startswith("--")]
        assert len(flags) == len(set(flags)), line                            # of one that stands twice the last counts
        if "datasets.simulated.demo" in words:
            continue
        script = next(word for word in words if word.endswith(".py"))
        module = {"pretrain.py": pretrain, "finetune.py": finetune, "evaluate.py": evaluate, "probe.py": probe}[script]
        args = module.command_line().parse_args(words[words.index(script) + 1:])
        if module is probe:
            assert args.checkpoint in written and args.csv.endswith("probe.csv")
            continue
        assert (args.s1 if module is not evaluate else "repaired" if "repaired/" in args.csv else "released") == (
            "repaired" if "repaired" in options else "released")
        assert module is pretrain or ("/repaired/" in args.csv) == ("repaired" in options)
        if module is evaluate:
            assert args.checkpoint in written                                 # of the same run in another table
            continue
        modalities, name = chosen_modalities(args.modalities, args.dataset), getattr(args, "model", "omnisat")
        if module is pretrain:
            sizes, _, is_whole = pretrain.choices(args, pretrain.command_line(), args.modalities)
            assert is_whole or args.width == 0.25 or args.embed_dim == 32
        elif args.init[0].endswith(".pt"):
            assert set(args.init) <= written                                  # its pretrainings come first
        if name == "omnisat":
            build_model("omnisat", [SENSORS[args.dataset][key] for key in modalities], embed_dim=args.embed_dim or 256,
                        depth=args.depth or 6, ablation=getattr(args, "ablation", "none"))
        elif module is finetune and not args.init[0].endswith(".pt"):
            start = starts.start_compared(args, finetune.command_line(), METHODS[name], args.modalities)
            assert start.is_paper or args.width == 0.25 or METHODS[name].is_fitted
        if "demo" not in options and "--demo" not in options:    # only the flags that differ: the rest is the paper's
            assert args.epochs == (250 if module is pretrain else 200) and args.batch_size == 384 and args.pool == 128
            assert args.lr is None
        # the folders that the driver counts on are the scripts' defaults
        if module is pretrain:
            default = pretraining_folder(folder_of("runs", args.s1), args.dataset, name, args.modalities, args.ablation,
                                         args.seed)
            written.add(f"{args.output or default}/pretrained.pt")
        else:
            ablation = next((each for each in ABLATIONS if f"-{each}-" in args.init[0]), "none")
            pretraining = ("self" if args.init[0].endswith(".pt") else start.pretraining if name != "omnisat"
                           else "none")
            default = finetuning_folder(folder_of("runs", args.s1), args.dataset, name, pretraining, ablation,
                                        args.modalities, args.label_percent,
                                        args.seed)
            written.add(f"{args.output or default}/finetuned.pt")


@pytest.fixture
def elsewhere(demo_tiles, tmp_path, monkeypatch):
    """The demo with few tiles and epochs, its results and runs under tmp_path."""
    for name, usual in commands.DEMOS.items():
        monkeypatch.setitem(commands.DEMOS, name, usual._replace(
            data={"treesatai": ["--train", "24", "--test", "10", "--seed", "3"]}, pretrain=["--epochs", "1"],
            finetune=["--epochs", "1", "--epoch-steps", "1", "--lr", "3e-3"]))
    data = shutil.copytree(demo_tiles, tmp_path / "data" / "treesatai")
    monkeypatch.setattr(commands.Commands, "root",
                        lambda self, dataset: str(folder_of(tmp_path / "data", self.s1) / data.name))
    folder, original = Path(os.path.relpath(tmp_path, ROOT)), commands.Commands.__init__

    def changed(self, *arguments):
        original(self, *arguments)
        self.results, self.runs = (folder_of(folder / part, self.s1) for part in ("results", "runs"))
    monkeypatch.setattr(commands.Commands, "__init__", changed)
    probe_all = commands.Commands.probe
    monkeypatch.setattr(commands.Commands, "probe", lambda *cell: [*probe_all(*cell), "--label-percent", "100"])
    monkeypatch.chdir(ROOT)
    return tmp_path


def test_driver_runs_skips_and_reports(elsewhere, monkeypatch, capfd):
    """Two cells run; what is done is skipped; a failing cell is told and the exit code says so."""
    command = ["demo", "--only", "treesatai-ts,omnisat,none,none,s[12],100"]
    assert run_tables.main(command) == 0
    assert {row["modality"] for row in read_rows(elsewhere / "results" / "table2.csv")} == {"s1", "s2"}
    run_tables.main([*command, "--dry-run"])
    assert capfd.readouterr().out.count("finetune.py") == 0
    monkeypatch.setitem(commands.DEMOS, "demo", commands.DEMOS["demo"]._replace(finetune=["--lr", "nonsense"]))
    for at_a_time in ("1", "2"):
        assert run_tables.main(["demo", "--jobs", at_a_time, "--only",
                                "treesatai-ts,omnisat,none,none,(s2,100|s1,10)$"]) == 1
        error = capfd.readouterr().err
        assert "1 of 2 jobs failed" in error and "argument --lr: must be a number over 0, not nonsense" in error


def test_without_published_weights_a_row_says_where_they_belong(elsewhere, monkeypatch, capfd):
    """At the paper's scale; the rest goes on, and the row gives way to the score once they are there."""
    monkeypatch.setattr(weights, "FOLDER", elsewhere / "weights")
    monkeypatch.setattr(run_tables, "run_all", lambda planned, *_: {})
    arguments = ["table2", "--only", "resnet50|presto|mlp,none,none,(s2|all)", "--data", str(elsewhere / "data")]
    assert run_tables.main(arguments) == 1
    rows = read_rows(elsewhere / "results" / "table2.csv")
    assert sorted((row["model"], row["modality"], row["label_percent"]) for row in rows) == [
        ("mlp", "all", "10"), ("mlp", "all", "100"), ("presto", "s1", "100"), ("presto", "s2", "100"),
        ("resnet50", "vhr", "10"),
        ("resnet50", "vhr", "100")]
    assert all(row["status"].startswith("weights-missing: ") for row in rows)
    assert all(("presto_default_model.pt" if row["model"] == "presto" else "resnet50-0676ba61.pth") in row["status"]
               for row in rows)
    assert not any(row["f1_weighted"] for row in rows)
    write_row(elsewhere / "results" / "table2.csv", rows[0] | {"status": "ok"}, {"classes": [], "tp": []})
    assert sorted(row["status"] == "ok"
                  for row in read_rows(elsewhere / "results" / "table2.csv")) == [False] * 5 + [True]
    error = capfd.readouterr().err
    assert "weights/resnet50" in error and ", and 3 more: weights-missing: " in error


def test_a_cell_of_two_tables_is_trained_once(elsewhere, capfd):
    assert run_tables.main(["all", "--demo", "--only", "treesatai-ts,omnisat,self,none,all,100$"]) == 0
    capfd.readouterr()
    first, second = (read_rows(elsewhere / "results" / f"{table}.csv") for table in ("table2", "table5"))
    assert len(first) == len(second) == 1 and first[0]["checkpoint_hash"] == second[0]["checkpoint_hash"]
    assert first[0]["f1_weighted"] == second[0]["f1_weighted"] and (first[0]["table"], second[0]["table"]) == ("table2",
                                                                                                               "table5")
    (elsewhere / "results" / "table2.csv").unlink()                           # a finished training is only scored again
    jobs.finished_scale.cache_clear()
    run_tables.main(["table2", "--demo", "--dry-run", "--only", "treesatai-ts,omnisat,self,none,all,100$"])
    assert [next(w for w in line.split() if w.endswith((".py", ".demo")))
            for line in capfd.readouterr().out.splitlines()] == [
        "datasets.simulated.demo", "evaluate.py"]


def test_probes_are_run_once(elsewhere, capfd):
    command = ["probe", "--demo", "--only", "treesatai-ts", "--jobs", "1"]
    assert run_tables.main(command) == 0
    out = capfd.readouterr()
    rows = read_rows(elsewhere / "results" / "probe.csv", PROBE_KEYS)
    assert {row["modality"] for row in rows} == {"all", "vhr", "s2",
                                                 "s1"} and {row["pretraining"] for row in rows} == {"self", "none"}
    assert "probe: F1 of simple classifiers on frozen features" in out.out and "DEMO" in out.out
    assert (elsewhere / "results" / "probe.png").stat().st_size > 20_000
    assert run_tables.main([*command, "--dry-run"]) == 0
    assert capfd.readouterr().out.strip() == ""
    jobs.finished_scale.cache_clear()                                   # another process asks
    # killed before its last modality: gone on with
    table = elsewhere / "results" / "probe.csv"
    table.write_text("".join(line for line in table.read_text().splitlines(True) if ",s1,handmade,knn," not in line))
    assert run_tables.main([*command, "--dry-run"]) == 0
    assert len(capfd.readouterr().out.strip().splitlines()) == 2              # the data, which is there, and the probe


def test_demo_begins_with_what_others_wait_for_and_ends_with_its_claims(elsewhere, monkeypatch):
    """The pretraining is the longest job, and half of the others wait for it; with --only there are no claims."""
    ran = []
    monkeypatch.setattr(run_tables, "run_all", lambda planned, *_: ran.append(planned) or {})
    monkeypatch.setattr(run_tables.subprocess, "run", lambda command,
                        cwd: ran.append(command) or subprocess.CompletedProcess(command, 0))
    assert run_tables.main(["demo"]) == 0 and run_tables.main(["demo", "--only", "none,none,s2,10$"]) == 0
    planned, compare, some, other = ran
    assert [job.name for job in planned[:3]] == ["data of treesatai", "pretraining on treesatai-ts, seed 0",
                                                 "probe of treesatai-ts, seed 0"]
    assert len(planned) == 3 + 16 and all(set(job.needs) <= {earlier.name for earlier in planned[:i]} for i,
                                          job in enumerate(planned))
    assert compare[2:5] == ["table2", "probe", "claims"] and "--demo" in compare
    assert [job.name for job in some][0] == "data of treesatai" and len(some) == 2 and "claims" not in other


def test_repaired_sentinel_1_is_a_table_of_its_own(elsewhere, capfd):
    """On scrambled files: scores are to the digit those on the same tiles in order, and what sees no Sentinel-1 is not
    run.
    """
    only = ["table2", "--demo", "--only", "treesatai-ts,omnisat,(none,none,s[12]|self,none,s2),100$"]
    assert run_tables.main(only) == 0 and run_tables.main([*only, "--s1", "repaired"]) == 0
    shown = capfd.readouterr().out
    assert "ours, S1 repaired" in shown and "[S1 repaired - as released]" in shown
    tables = [{(row["pretraining"], row["modality"]): row
               for row in read_rows(folder_of(elsewhere / "results", s1) / "table2.csv")}
              for s1 in ("released", "repaired")]
    assert [len(table) for table in tables] == [3, 2] and ("none", "s2") not in tables[1]
    for cell, row in tables[1].items():
        other = tables[0][cell]
        assert (row["s1"], other["s1"]) == ("repaired", "released") and "--s1 repaired" in row["command"]
        assert all(row[name] == other[name] for name in ("f1_weighted", "f1_macro", "map", "n_test", "scale"))
        assert row["checkpoint_hash"] != other["checkpoint_hash"]
    jobs.finished_scale.cache_clear()
    run_tables.main([*only, "--s1", "repaired", "--dry-run"])
    assert ".py" not in capfd.readouterr().out                                # nothing is left to do


def test_a_run_of_another_recipe_is_not_taken_for_the_papers(elsewhere, capfd):
    only = ["demo", "--only", "treesatai-ts,omnisat,none,none,s2,(10|100)$"]
    target = elsewhere / "runs" / "treesatai-ts" / "omnisat-none-s2-10percent-seed0" / "finetuned.pt"
    target.parent.mkdir(parents=True)
    checkpoint.save(target, {"kind": "finetuned", "finished": True, "scale": "custom"})
    assert run_tables.main(only) == 1
    told = capfd.readouterr().err
    assert "omnisat-none-s2-10percent-seed0 holds a run that is not of scale demo: move it away" in told
    # the rest goes on
    assert [row["label_percent"] for row in read_rows(elsewhere / "results" / "table2.csv")] == ["100"]


@pytest.mark.parametrize("options, error",
                         [(["table2", "--jobs", "2"], "--jobs"), (["demo", "--seeds", "0,x"], "--seeds"),
                                            (["demo", "--only", "no such cell"], "no cell matches"),
                                            (["table9"], "invalid choice"),
                                            (["table3", "--s1", "repaired"], "none of these 52 cells sees Sentinel-1"),
                                            (["table2", "--s1", "mended"], "invalid choice"),
                                            (["demo", "--s1", "repaired"],
                                             "the demo's Sentinel-1 is in order; table2 --demo has scrambled")])
def test_wrong_options_are_told(options, error, capsys):
    with pytest.raises(SystemExit):
        run_tables.main(options)
    assert error in capsys.readouterr().err


def test_seeds_are_numbers_and_each_is_run_once(capsys):
    run_tables.main(["table2", "--dry-run", "--seeds", "01,1", "--only", "treesatai-ts,omnisat,none,none,s2,10$"])
    (line,) = capsys.readouterr().out.splitlines()
    assert "--seed 1 " in line


def job(name, code, needs=(), folder="."):
    return Job(name, [sys.executable, "-c", code], needs, Path(folder) / f"{name}.txt")


def test_jobs_wait_for_what_they_need_and_run_side_by_side(tmp_path, capfd):
    note = f"import time; open(r'{tmp_path}/order', 'a').write('%s'); time.sleep(%s)"
    planned = [job("a", note % ("a", 0.6), folder=tmp_path), job("b", note % ("b", 0), ("c", "a"), tmp_path),
               job("c", note % ("c", 0), folder=tmp_path),
               job("d", "raise SystemExit(3)", folder=tmp_path), job("e", note % ("e", 0), ("a", "d"), tmp_path)]
    failed = run_all(planned, Machine(2))
    assert failed.keys() == {"d", "e"} and failed["d"].startswith("exit code 3") and failed["e"] == "not run, d failed"
    order = (tmp_path / "order").read_text()
    assert sorted(order) == ["a", "b", "c"] and order.index("b") == 2          # c did not wait for a, b did


def sleeping_driver(folder):
    """A driver at work on a job that sleeps: its process, and the job's process number."""
    script = (f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom pathlib import Path\nfrom tables.jobs import "
              f"Job\nfrom tables.schedule import Machine, run_all\n"
              f"run_all([Job('a', [sys.executable, '-c', 'import os, time; open(r\"{folder}/pid\", "
              f"\"w\").write(str(os.getpid())); "
              f"time.sleep(60)'], (), Path(r'{folder}/log'))], Machine())")
    driver, until = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL), time.time() + 30
    while not (folder / "pid").exists() or not (folder / "pid").read_text():
        assert time.time() < until and driver.poll() is None
        time.sleep(0.05)
    return driver, int((folder / "pid").read_text())


def test_stopping_the_driver_stops_its_jobs(tmp_path):
    driver, job = sleeping_driver(tmp_path)
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(10) == STOPPED
    with pytest.raises(ProcessLookupError):
        os.kill(job, 0)


def test_a_killed_driver_leaves_nothing_running(tmp_path):
    driver, job = sleeping_driver(tmp_path)
    driver.kill()
    driver.wait()
    until = time.time() + 30
    while time.time() < until:
        try:
            os.kill(job, 0)
            time.sleep(0.05)
        except ProcessLookupError:
            return
    pytest.fail("its job still runs")


def test_a_job_whose_folder_is_taken_waits(tmp_path, monkeypatch, capfd):
    """It is tried again until the other process is done."""
    monkeypatch.setattr(schedule, "RETRY", 0.1)
    tries = f"open(r'{tmp_path}/tries', 'a').write('x'); import sys; " \
            f"sys.exit({BUSY} if len(open(r'{tmp_path}/tries').read()) < 3 else 0)"
    assert run_all([job("a", tries, folder=tmp_path), job("b", "print('after')", "a", tmp_path)], Machine()) == {}
    told = capfd.readouterr().err
    assert (tmp_path / "tries").read_text() == "xxx" and told.count("waiting for it") == 1 and "after" in told


def test_two_drivers_on_one_folder_write_each_row_once(elsewhere):
    """Started together on the same two cells: one waits for the other."""
    code = ("import os, sys; sys.path.insert(0, '.'); import run_tables\nfrom tables import commands, schedule\nfrom "
            "pathlib import Path\nschedule.RETRY = 1\n"
            f"usual = commands.DEMOS['demo']\ncommands.DEMOS['demo'] = "
            f"usual._replace(data={commands.DEMOS['demo'].data!r}, finetune=['--epochs', '2', '--epoch-steps', '4'])\n"
            f"commands.Commands.root = lambda self, dataset: {str(elsewhere / 'data' / 'treesatai')!r}\n"
            "original = commands.Commands.__init__\n"
            "def changed(self, *arguments):\n    original(self, *arguments)\n"
            f"    self.results, self.runs = Path({os.path.relpath(elsewhere, ROOT)!r}, 'results'), "
            f"Path({os.path.relpath(elsewhere, ROOT)!r}, 'runs')\n"
            "commands.Commands.__init__ = changed\n"
            "sys.exit(run_tables.main(['demo', '--jobs', '1', '--only', 'treesatai-ts,omnisat,none,none,s[12],100']))")
    drivers = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, text=True,
                                env=os.environ | {"OMP_NUM_THREADS": "1"}) for _ in range(2)]
    told = [driver.communicate(timeout=180)[0] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], told
    rows = read_rows(elsewhere / "results" / "table2.csv")
    assert sorted(row["modality"] for row in rows) == ["s1", "s2"]
    assert len((elsewhere / "results" / "table2.counts.jsonl").read_text().splitlines()) == 2
    assert any("waiting for it" in text for text in told) and any("another driver has done" in text for text in told)
