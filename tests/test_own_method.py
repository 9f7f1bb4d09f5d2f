"""A method of one's own, a file and an entry of the table of methods, on its way through the scripts."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import run_tables
from engine import checkpoint
from models.methods import METHODS, Method
from tables.cells import key, paper_cells
from tests.mine import MinePretrained
from tests.test_compared import SMALL, stop_after_an_epoch, train
from utils.errors import UserError
from utils.results import PROBE_KEYS, read_rows

ROOT = Path(__file__).parent.parent
ENTRY = '"mine": Method(MinePretrained, rate=1e-3, rates_from="chosen by hand", pretrain_rate=1e-3),'
SHORT = '''
DEMOS["demo-all"] = Demo({"treesatai": ["--train", "24", "--test", "10", "--seed", "3"]},
                         ["--batch-size", "8", "--epochs", "1"],
                         ["--batch-size", "8", "--epochs", "1", "--epoch-steps", "1"])
DEMO_LARGE = DEMO_SMALL = dict.fromkeys(("10", "20", "100"), "1")
probe_all = Commands.probe
Commands.probe = lambda *cell: [*probe_all(*cell), "--label-percent", "100"]
'''


@pytest.fixture(scope="module")
def copy(demo, tmp_path_factory):
    """A copy of the source with the file and the entry, and a shorter demo."""
    root = tmp_path_factory.mktemp("source")
    for name in ("datasets", "engine", "losses", "models", "tables", "utils", "results/paper"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.glob("*.py"):
        shutil.copy(path, root)
    shutil.copy(ROOT / "tests" / "mine.py", root / "models" / "compared")
    table = root / "models" / "methods.py"
    table.write_text(table.read_text().replace("\nMETHODS = {", f"\nMETHODS = {{\n    {ENTRY}").replace(
        "\n\n\nclass Method", "\nfrom models.compared.mine import MinePretrained\n\n\nclass Method", 1))
    with open(root / "tables" / "commands.py", "a") as file:
        file.write(SHORT)
    shutil.copytree(demo, root / "demo-all" / "treesatai")                    # where the job finds it
    return root


def call(root, *command):
    """What a script prints."""
    done = subprocess.run([sys.executable, *command], cwd=root, capture_output=True, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_goes_through_a_table_to_the_picture(copy):
    """Beside OmniSat, pretrained (also on two processes) and not; a second run has nothing to do."""
    assert "mine, 1 cell(s): nothing to be done" in call(copy, "-m", "models.contract", "mine", "--dataset", "flair",
                                                       "--modality", "s2")
    only = ["table2", "--demo", "--model", "omnisat,mine", "--only", "ts,(omnisat,none|mine,....),none,s2,100"]
    told = call(copy, "run_tables.py", *only)
    assert "table2, not in the paper: weighted F1 on test, %. DEMO" in told and "OmniSat  none        paper" in told
    assert ",mine,self,none,s2,100,weighted F1,," in (copy / "results" / "demo-all" / "compare.csv").read_text()
    assert (copy / "results" / "demo-all" / "table2.png").stat().st_size > 20_000
    assert call(copy, "run_tables.py", *only, "--dry-run").strip() == ""
    call(copy, "run_tables.py", "table2", "--demo", "--model", "mine", "--nproc", "2", "--seeds", "1", "--only",
         "treesatai-ts,mine,self,none,s2,100")
    rows = [row for row in read_rows(copy / "results" / "demo-all" / "table2.csv") if row["model"] == "mine"]
    assert sorted((row["seed"], row["pretraining"], row["pretrain_processes"], row["rate_from"], row["scale"])
                  for row in rows) == [("0", "none", "", "--lr", "demo"), ("0", "self", "1 x 1", "--lr", "demo"),
                                       ("1", "self", "1 x 2", "--lr", "demo")]
    assert {row["processes"] for row in rows} == {"1 x 1"}


def test_its_pretraining_is_probed(copy):
    """All sensors and each alone; a second run has nothing to do, OmniSat's is not taken for done."""
    command = ["run_tables.py", "probe", "--demo", "--model", "mine", "--only", "treesatai-ts"]
    assert "probe of mine: F1 of simple classifiers" in call(copy, *command)
    rows = read_rows(copy / "results" / "demo-all" / "probe.csv", PROBE_KEYS)
    assert {row["modality"] for row in rows if row["model"] == "mine" and row["pretraining"] == "self"} == {
        "all", "vhr", "s2", "s1"}
    assert (copy / "results" / "demo-all" / "probe-mine.png").stat().st_size > 20_000
    assert call(copy, *command, "--dry-run").strip() == ""
    assert "probe.py" in call(copy, "run_tables.py", "probe", "--demo", "--only", "treesatai-ts", "--dry-run")


def test_it_goes_on_as_if_nobody_had_stopped_it(demo, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "mine", Method(MinePretrained, rate=1e-3))
    options = ["treesatai-ts", "--model", "mine", "--init", "none", "--modalities", "s2", *SMALL]
    row = train(demo, tmp_path / "whole", *options)
    assert (row["model"], row["rate"], row["rate_from"]) == ("mine", "0.001", "official code")
    stop_after_an_epoch(monkeypatch, demo, tmp_path / "parts", *options)
    train(demo, tmp_path / "parts", *options)
    whole, parts = (checkpoint.load(tmp_path / name / "finetuned.pt", "finetuned") for name in ("whole", "parts"))
    assert len(parts["starts"]) == 2 and all(torch.equal(value, parts["weights"][name])
                                             for name, value in whole["weights"].items())


# ---- its cells ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("more, arguments, number", [
    ({}, ["table2"], 16), ({}, ["table3"], 8), ({}, ["table4"], 6), ({}, ["all"], 30), ({}, ["fig5"], 8),
    ({"pretrain_rate": 1e-4}, ["all"], 60), ({"pretrain_rate": 1e-4}, ["probe"], 4),
    ({"rate": None, "rates": {"flair": {"s2": 1e-3}}}, ["all"], 2), ({}, ["all", "--only", ",s2,10$"], 3)])
def test_its_cells_are_the_places_of_the_table(more, arguments, number, monkeypatch, capsys):
    """That its entry fills, pretrained or not, as its entry says."""
    monkeypatch.setitem(METHODS, "mine", Method(MinePretrained, **{"rate": 1e-3} | more))
    run_tables.main([*arguments, "--list", "--model", "mine"])
    _, *lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(set(lines)) == number and all(",mine," in line for line in lines)
    run_tables.main([*arguments[:1], "--list", "--model", "mine,omnisat"])
    others = [line for line in capsys.readouterr().out.splitlines() if ",omnisat," in line]
    assert others == [key(cell) for cell in paper_cells(arguments[0]) if cell["model"] == "omnisat"] != []


@pytest.mark.parametrize("arguments, error", [
    (["table2", "--model", "mime"], "'mime' is no method of models/methods.py: there are omnisat, pse, "),
    (["table5", "--model", "mine"], "--model mine: it has no cell in table5"),
    (["table4", "--model", "pse"], "--model pse: it has no cell in table4"),
    (["probe", "--model", "mine"], "--model mine: it has no pretraining whose features could be looked at")])
def test_what_a_method_does_not_have_is_told(arguments, error, monkeypatch):
    monkeypatch.setitem(METHODS, "mine", Method(MinePretrained, rate=1e-3))
    with pytest.raises(UserError, match=error):
        run_tables.main([*arguments, "--list"])
