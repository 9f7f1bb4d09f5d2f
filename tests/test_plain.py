"""OMNISAT_PLAIN=1: the plain model runs, nothing of models/fast does, and what is learned is the same but for rounding.
"""
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import models.fast
import pretrain
from datasets.sensors import SENSORS
from datasets.simulated.demo import write_treesatai
from models.methods import build_model
from models.fast.omnisat import FORMS, FastOmniSat
from models.omnisat import OmniSat
from tests.test_step import S1, S2, VHR, make_batch
from utils.errors import UserError

FAST = Path(models.fast.__file__).parent
ROOT = Path(__file__).parent.parent


@pytest.fixture(params=["1", "0", "", None])
def switch(request, monkeypatch):
    """Whether the plain model is asked for, said in each way that there is."""
    monkeypatch.delenv("OMNISAT_PLAIN", raising=False)
    if request.param is not None:
        monkeypatch.setenv("OMNISAT_PLAIN", request.param)
    return request.param == "1"


def fast_functions(function):
    """The names of what it calls in models/fast."""
    found = set()

    def note(frame, event, _):
        if event == "call" and Path(frame.f_code.co_filename).parent == FAST:
            found.add(frame.f_code.co_name)
    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return found


def test_nothing_fast_is_called(switch):
    torch.manual_seed(0)
    model, batch = build_model("omnisat", [VHR, S2, S1], embed_dim=32, depth=1), make_batch(torch.float32)
    masks = model.draw_masks(batch, torch.Generator().manual_seed(0))
    found = fast_functions(lambda: model.pretrain_loss(batch, masks)[0].backward())
    if switch:
        assert type(model) is OmniSat and found == set()
    else:
        assert type(model) is FastOmniSat and found >= {"stem", "is_faster", "gelu_of_largest", "put", "moments",
                                                        "attend",
                                                        "blocks", "contrastive_loss"}


@pytest.mark.parametrize("name, key", [("omnisat", "vhr"), ("vit", "vhr"), ("utae", "s2")])
def test_every_method_is_plain(name, key, switch):
    """Those that share OmniSat's image encoder and its group norm, too."""
    more = {} if name == "omnisat" else {"dataset": "treesatai-ts", "width": 0.25}
    model = build_model(name, [SENSORS["treesatai-ts"][key]], num_classes=15, **more)
    kinds = {type(module) for module in model.modules()}
    assert (kinds & set(FORMS) and not kinds & set(FORMS.values())) if switch else kinds & set(FORMS.values())


def test_another_value_is_refused_in_one_line(monkeypatch):
    monkeypatch.setenv("OMNISAT_PLAIN", "yes")
    run = subprocess.run([sys.executable, "pretrain.py", "--dataset", "flair", "--data-root", "x"], cwd=ROOT,
                         capture_output=True, text=True)
    assert run.returncode == 1 and run.stderr.strip() == (
        "pretrain.py: error: OMNISAT_PLAIN=yes: say 1, the plain model with every fast operation off, or 0, or leave "
        "it out")
    with pytest.raises(UserError, match="OMNISAT_PLAIN=yes"):
        build_model("omnisat", [VHR])


@pytest.mark.parametrize("option", [["--compile"], ["--tiles-at-once", "2"]])
def test_what_only_the_fast_form_has_is_refused(option, monkeypatch):
    monkeypatch.setenv("OMNISAT_PLAIN", "1")
    with pytest.raises(UserError, match=f"^{option[0]} is for the fast form, which OMNISAT_PLAIN=1 turns off"):
        pretrain.main(["--dataset", "flair", "--data-root", "x", *option])


def test_through_a_script(tmp_path, monkeypatch):
    """The same losses but for rounding; the log says so in its command."""
    monkeypatch.setattr("datasets.splits.FOLDER", tmp_path / "splits")
    monkeypatch.setattr("datasets.band_statistics.FOLDER", tmp_path / "stats")
    root, found = write_treesatai(tmp_path / "data", train=12, test=4, seed=3), {}
    for value in ("0", "1"):
        monkeypatch.setenv("OMNISAT_PLAIN", value)
        with monkeypatch.context() as patch:
            if value == "1":
                patch.setattr(FastOmniSat, "encode", None)
            pretrain.main(["--dataset", "treesatai-ts", "--data-root", str(root), "--workers", "0", "--batch-size", "6",
                           "--epochs", "1", "--epoch-steps", "2", "--embed-dim", "32", "--depth", "1",
                           "--output", str(tmp_path / value)])
        found[value] = [json.loads(line) for line in (tmp_path / value / "log.jsonl").read_text().splitlines()]
    fast, plain = ([line["val_loss"] for line in found[value] if "val_loss" in line] for value in ("0", "1"))
    assert fast and plain == pytest.approx(fast, rel=1e-4)
    assert '"OMNISAT_PLAIN=1 python pretrain.py' in json.dumps(found["1"]) and "OMNISAT_PLAIN" not in json.dumps(
        found["0"])
