"""What was stopped goes on with the same result; nothing is lost or mixed up on the way."""
import errno
import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import chaos
import numpy as np
import pytest
import torch
from torch import nn

import evaluate
import finetune
import pretrain
from datasets import loading
from datasets.simulated.demo import write_treesatai
from engine import checkpoint, distributed
from engine.training import Training
from models.fast.omnisat import FastOmniSat as OmniSat
from tests.test_scripts import torchrun
from utils.errors import BUSY, STOPPED, Stopped, UserError
from utils.results import read_rows

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parent.parent
SMALL = ["--dataset", "treesatai-ts", "--modalities", "s2,s1", "--workers", "0", "--batch-size", "8", "--pool", "4",
         "--epochs", "3",
         "--epoch-steps", "1"]
MODEL = ["--embed-dim", "32", "--depth", "1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_treesatai(tmp_path_factory.mktemp("data") / "treesatai", train=36, test=6, seed=3)


def pretraining(data, folder, *more):
    pretrain.main([*SMALL, *MODEL, "--data-root", str(data), "--output", str(folder), *more])


def finetuning(data, folder, *more):
    finetune.main([*SMALL, *MODEL, "--init", "none", "--min-epochs", "3", "--data-root", str(data), "--output",
                   str(folder), *more])


STEPS = 4    # of an epoch of these tiles: 30 for training, 8 a step


# ---- exact resume ---------------------------------------------------------------------------------------------------

@pytest.fixture
def noise(monkeypatch):
    """Every forward pass in training draws from all sources of random numbers, as dropout would."""
    def noisy(function):
        def wrapped(self, *arguments):
            result = function(self, *arguments)
            factor = 1 + 0.1 * (torch.rand(()) + np.random.rand() + random.random()) if self.training else 1
            return (result[0] * factor, result[1]) if isinstance(result, tuple) else result * factor
        return wrapped
    monkeypatch.setattr(OmniSat, "pretrain_loss", noisy(OmniSat.pretrain_loss))
    monkeypatch.setattr(OmniSat, "forward", noisy(OmniSat.forward))


@pytest.mark.parametrize("script, kind", [(pretraining, "pretrained"), (finetuning, "finetuned")])
def test_a_stopped_run_ends_like_an_undisturbed_one(script, kind, data, tmp_path, monkeypatch, noise):
    """Stopped within an epoch, at its last step, in validation, and once in a start that has done nothing."""
    script(data, tmp_path / "whole")
    (tmp_path / "stopped").mkdir()
    (tmp_path / "stopped" / f".{kind}.pt.1.tmp").write_bytes(b"half of a checkpoint")
    looks, original = iter(range(10_000)), Training.look_up

    def look_up(self):
        if next(looks) in (1, 4, 5, 6, 14):
            os.kill(os.getpid(), random.choice([signal.SIGTERM, signal.SIGUSR1]))
        original(self)
    monkeypatch.setattr(Training, "look_up", look_up)
    places = []
    for _ in range(5):
        with pytest.raises(Stopped, match="the same command goes on") as stopped:
            script(data, tmp_path / "stopped")
        assert stopped.value.code == STOPPED
        state = checkpoint.load(tmp_path / "stopped" / f"{kind}.pt", kind)["training"]
        places.append((state["epoch"], state["step"]))
    assert places[0] == (1, 2) and (1, STEPS) in places and places[-1][0] > 1    # inside an epoch, in validation, later
    script(data, tmp_path / "stopped")
    assert chaos.differences(kind, tmp_path / "whole", tmp_path / "stopped") == []
    header = json.loads((tmp_path / "stopped" / "log.jsonl").read_text().splitlines()[0])
    assert [(start["epoch"], start["step"]) for start in header["starts"]] == [(1, 0), *places]
    assert not list((tmp_path / "stopped").glob(".*.tmp"))


def test_kills_at_random_moments(tmp_path):
    """The short form of tests/chaos.py, on one process, reading processes beside it."""
    for *_, hits, starts, found in chaos.compare(tmp_path, 3, 0, tiles=40, epochs=3, cases=[("pretrain.py", 1)]):
        assert not found and starts <= hits + 1


def test_one_of_two_processes_dies_and_torchrun_starts_them_again(data, tmp_path):
    """--max-restarts goes on from the last checkpoint, to the weights of an undisturbed run without torchrun."""
    options = [*SMALL, *MODEL, "--data-root", str(data), "--save-minutes", "0", "--epochs", "4", "--workers", "1"]
    outputs = tmp_path / "whole", tmp_path / "restarted"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=2",
                "pretrain.py"]
    whole = torchrun(2, "pretrain.py", *options, "--output", str(outputs[0]))
    assert whole.returncode == 0, whole.stderr
    process = chaos.launch([*launcher, *options, "--output", str(outputs[1])], tmp_path / "log.txt")
    wait_for(lambda: (outputs[1] / "pretrained.pt").exists(), process)
    os.kill(chaos.children(process.pid)[-1], signal.SIGKILL)
    assert process.wait(120) == 0, (tmp_path / "log.txt").read_text()
    assert chaos.differences("pretrained", *outputs) == []
    told = (tmp_path / "log.txt").read_text()
    assert "going on from" in told and "exitcode: -9" in told


def wait_for(condition, process, seconds=60):
    end = time.time() + seconds
    while not condition():
        assert process.poll() is None and time.time() < end, "it ended, or took too long"
        time.sleep(0.01)


def test_sigterm_from_outside(data, tmp_path):
    process = subprocess.Popen([sys.executable, "pretrain.py", *SMALL, *MODEL, "--epochs", "500", "--data-root",
                                str(data), "--output",
                                str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE, text=True,
                               env=os.environ | {"OMP_NUM_THREADS": "1"})
    wait_for(lambda: (tmp_path / "pretrained.pt").exists(), process)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == STOPPED
    assert told.splitlines()[-1].startswith("pretrain.py: stopped by SIGTERM in epoch ") and "Traceback" not in told


def test_a_killed_reading_process_is_one_line(data, tmp_path):
    log = tmp_path / "log.txt"
    process = chaos.launch([sys.executable, "pretrain.py", *SMALL, *MODEL, "--epochs", "500", "--workers", "1",
                            "--data-root", str(data),
                            "--output", str(tmp_path / "run")], log)
    wait_for(lambda: (tmp_path / "run" / "pretrained.pt").exists(), process)
    os.kill(chaos.children(process.pid)[0], signal.SIGKILL)
    assert process.wait(60) == 1
    told = log.read_text()
    assert "pretrain.py: error: a reading process was killed" in told and "--workers" in told \
        and "Traceback" not in told


# where the training process is when a reader dies
PLACES = ("save", "except", "clean-up", "between epochs", "validation")


@pytest.mark.parametrize("place", PLACES)
def test_a_reader_that_dies_anywhere_is_told_where_the_next_batch_is_waited_for(place, data, tmp_path, monkeypatch):
    """Torch would tell it there and then: in a save it breaks the file, an except clause or a clean-up swallows it."""
    target, killed = tmp_path / "pretrained.pt", []

    def kill():
        """Returns once the system has told the training process."""
        if not killed:
            reader = sorted(multiprocessing.active_children(), key=lambda child: child.pid)[-1]
            killed.append(reader.pid)
            os.kill(reader.pid, signal.SIGKILL)
            os.waitid(os.P_PID, reader.pid, os.WEXITED | os.WNOWAIT)
            time.sleep(0.1)

    def swallowing(function):
        def wrapped(self, *arguments):
            if (self.epoch, self.step) >= (1, 2):
                try:
                    kill()
                except RuntimeError:
                    pass
            return function(self, *arguments)
        return wrapped

    class Kills:
        def __del__(self):
            kill()

    if place == "save":
        original = torch.save

        def save(*arguments):
            kill()
            original(*arguments)
        monkeypatch.setattr(torch, "save", save)
    elif place == "except":
        monkeypatch.setattr(Training, "end_step", swallowing(Training.end_step))
    elif place == "clean-up":
        original_step = Training.end_step

        def end_step(self):
            Kills()
            original_step(self)
        monkeypatch.setattr(Training, "end_step", end_step)
    elif place == "between epochs":
        original_epoch = Training.end_epoch

        def end_epoch(self, *arguments, **choices):
            original_epoch(self, *arguments, **choices)
            kill()
        monkeypatch.setattr(Training, "end_epoch", end_epoch)
    else:
        monkeypatch.setattr(Training, "means", lambda self, tiles: kill() or dict.fromkeys(self.terms, 1.0))
    with pytest.raises(UserError, match=r"a reading process was killed \(SIGKILL\); if memory .*fewer --workers"):
        pretraining(data, tmp_path, "--workers", "2")
    assert killed and (place in ("except", "clean-up", "validation")
                       or not checkpoint.load(target, "pretrained")["finished"])
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_reader_whose_connection_is_closed_before_it_is_dead():
    """What a queue raises in the training process is told as the death of the reader, if that comes within seconds;
    else as it is.
    """
    def broken(*_):
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")

    def own(*_):
        raise FileNotFoundError("Caught FileNotFoundError in DataLoader worker process 0.")
    reader = multiprocessing.Process(target=time.sleep, args=(0.5,))
    reader.start()
    started = time.time()
    with pytest.raises(FileNotFoundError):
        loading.waited(own, [reader])
    assert time.time() - started < 0.4
    with pytest.raises(UserError, match="a reading process was killed"):
        loading.waited(broken, [reader])
    reader.join()
    with pytest.raises(ConnectionResetError):
        loading.waited(broken, [])


# ---- what must not be mixed up --------------------------------------------------------------------------------------

def test_another_configuration_is_refused_by_name(data, tmp_path):
    finetuning(data, tmp_path, "--csv", str(tmp_path / "table2.csv"))
    before = (tmp_path / "finetuned.pt").read_bytes()
    with pytest.raises(UserError,
                       match=r"begun with --lr 0.0002, not 0.01, --seed 0, not 1: repeat these, choose another "
                             r"--output"):
        finetuning(data, tmp_path, "--lr", "0.01", "--seed", "1")
    (tmp_path / "table2.csv").unlink()                                        # killed before the test
    # what changes no weight may change
    finetuning(data, tmp_path, "--csv", str(tmp_path / "table2.csv"), "--workers", "1")
    assert (tmp_path / "finetuned.pt").read_bytes() == before and (tmp_path / "table2.csv").exists()


def test_other_data_are_refused(data, tmp_path, monkeypatch):
    stop_after(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        pretraining(data, tmp_path / "run", "--save-minutes", "0")
    monkeypatch.undo()
    other = write_treesatai(tmp_path / "other", train=20, test=6, seed=4)
    with pytest.raises(UserError, match="its training tiles changed"):
        pretraining(other, tmp_path / "run", "--save-minutes", "0")


@pytest.mark.parametrize("script, refusal", [
    (pretraining, "the order of its validation tiles changed"), (finetuning, None)])
def test_runs_of_before_validation_was_mixed(data, tmp_path, monkeypatch, script, refusal):
    """Losses in another order do not compare; a fine-tuning goes on, though its sensors had a word less then."""
    stop_after(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        script(data, tmp_path, "--save-minutes", "0")
    monkeypatch.undo()
    (path,) = tmp_path.glob("*.pt")
    before = checkpoint.load(path, path.stem)
    before.pop("val_order", None)
    del before["s1"], before["settings"]["s1"]                                # nor was there a choice of Sentinel-1
    for sensor in before["config"]["sensors"]:
        del sensor["lowest"]
    checkpoint.save(path, before)
    if refusal:
        with pytest.raises(UserError, match=refusal):
            script(data, tmp_path, "--save-minutes", "0")
    else:
        script(data, tmp_path, "--save-minutes", "0")
        assert checkpoint.load(path, path.stem)["finished"]


def test_a_row_is_of_all_starts(data, tmp_path, monkeypatch):
    """Begun in a tree with changes on one machine, ended in a clean one on another: dirty, and both are told."""
    def on(commit, dirty, machine):
        monkeypatch.setattr("engine.log.code", lambda: {"commit": commit, "dirty": dirty})
        monkeypatch.setattr("engine.log.platform.machine", lambda: machine)
    on("decade", True, "vax")
    stop_after(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        finetuning(data, tmp_path, "--save-minutes", "0")
    monkeypatch.undo()
    on("facade", False, "cray")
    finetuning(data, tmp_path, "--save-minutes", "0", "--csv", str(tmp_path / "table2.csv"))
    row, = read_rows(tmp_path / "table2.csv")
    saved = checkpoint.load(tmp_path / "finetuned.pt", "finetuned")
    assert [row[name] for name in ("commit", "dirty", "device", "processes", "starts")] == [
        "decade + facade", "True", "cpu (vax) + cpu (cray)", "1 x 1", "2"]
    assert (row["test_commit"], row["test_dirty"]) == ("facade", "False")
    assert row["date"] == "/".join(dict.fromkeys(start["date"] for start in saved["starts"]))
    names = "commit", "dirty", "device", "processes", "torch"
    assert [[start[name] for name in names] for start in saved["starts"]] == [
        ["decade", True, "cpu (vax)", "1 x 1", torch.__version__],
        ["facade", False, "cpu (cray)", "1 x 1", torch.__version__]]
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])["dirty"] is True
    on("decade", "unknown", "cray")                                           # scored again, later, without git
    evaluate.main(["--checkpoint", str(tmp_path / "finetuned.pt"), "--data-root", str(data), "--workers", "0", "--csv",
                   str(tmp_path / "table2.csv")])
    again, = read_rows(tmp_path / "table2.csv")
    assert again == row | {"test_commit": "decade", "test_dirty": "unknown"}


def test_a_run_of_before_goes_on_and_says_what_it_knows(data, tmp_path, monkeypatch):
    """Its starts have a number of processes only; its source was that of the last start."""
    stop_after(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        finetuning(data, tmp_path, "--save-minutes", "0")
    monkeypatch.undo()
    before = checkpoint.load(tmp_path / "finetuned.pt", "finetuned")
    before["starts"] = [{name: value for name, value in start.items() if name != "processes"} | {"dirty": True}
                        for start in before["starts"]]
    del before["pretrain_source"]
    checkpoint.save(tmp_path / "finetuned.pt", before)
    monkeypatch.setattr("engine.log.code", lambda: {"commit": "facade", "dirty": False})
    finetuning(data, tmp_path, "--save-minutes", "0", "--csv", str(tmp_path / "table2.csv"))
    row, = read_rows(tmp_path / "table2.csv")
    assert (row["dirty"], row["processes"], row["starts"], row["pretrain_hash"]) == ("True", "1 + 1 x 1", "2", "")


def stop_after(monkeypatch, steps):
    """Ctrl-C after so many steps."""
    original = Training.end_step

    def end_step(self):
        original(self)
        if (self.epoch, self.step) == (1, steps):
            raise KeyboardInterrupt
    monkeypatch.setattr(Training, "end_step", end_step)


def test_processes_must_see_the_same_checkpoint(data, tmp_path, monkeypatch):
    monkeypatch.setattr("engine.training.distributed.gather",
                        lambda value: [value, value if isinstance(value, dict) else "another"])
    with pytest.raises(UserError, match="do not see the same checkpoint"):
        pretraining(data, tmp_path)


def test_a_stopped_fine_tuning_is_not_scored(data, tmp_path, monkeypatch):
    stop_after(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        finetuning(data, tmp_path, "--save-minutes", "0")
    with pytest.raises(UserError, match="its training was stopped in epoch 1; finetune.py goes on with it"):
        evaluate.main(["--checkpoint", str(tmp_path / "finetuned.pt"), "--data-root", str(data), "--csv",
                       str(tmp_path / "table2.csv")])
    assert not (tmp_path / "table2.csv").exists()


def test_a_folder_is_one_process(data, tmp_path):
    holder = subprocess.Popen([sys.executable, "-c",
                               "import sys, time; from pathlib import Path; from utils.files import lock; kept = "
                               f"lock(Path({str(tmp_path)!r}, '.lock'), ''); print('taken', flush=True); "
                               f"time.sleep(60)"], cwd=ROOT, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"taken\n"
    with pytest.raises(UserError, match="another process trains there") as busy:
        pretraining(data, tmp_path)
    assert busy.value.code == BUSY
    holder.kill()
    holder.wait()
    pretraining(data, tmp_path)                                               # the lock went with the process


# ---- faults ---------------------------------------------------------------------------------------------------------

def test_a_loss_that_is_not_finite_stops_the_run(data, tmp_path, monkeypatch):
    """In the second step of epoch 2; the checkpoint of epoch 1 stays, the tiles and their losses are told."""
    original, calls = OmniSat.pretrain_loss, iter(range(10_000))

    def broken(self, batch, masks):
        loss, terms = original(self, batch, masks)
        return (loss * float("nan"), terms) if self.training and next(calls) == 11 else (loss, terms)
    monkeypatch.setattr(OmniSat, "pretrain_loss", broken)
    with pytest.raises(UserError,
                       match=r"not finite in epoch 2, step 2; its tiles and their losses are in nonfinite.json"):
        pretraining(data, tmp_path, "--save-minutes", "0.0")
    found = json.loads((tmp_path / "nonfinite.json").read_text())
    assert (found["epoch"], found["step"], found["gradient_norm"]) == (2, 2, "nan")
    assert [pool["loss"] == "nan" for pool in found["pools"]] == [False,
                                                                  True] and [len(pool["tiles"])
                                                                             for pool in found["pools"]] == [4, 4]
    state = checkpoint.load(tmp_path / "pretrained.pt", "pretrained")["training"]
    assert (state["epoch"], state["step"]) <= (2,
                                               1) and all(value.isfinite().all()
                                                          for value in state["parts"]["model"].values())


def test_a_gradient_that_is_not_finite_stops_the_run_too(data, tmp_path, monkeypatch):
    original = distributed.gradients

    def broken(model):
        found = original(model)
        found[3].view(-1)[0] = float("inf")
        return found
    monkeypatch.setattr("engine.training.distributed.gradients", broken)
    with pytest.raises(UserError, match="not finite in epoch 1, step 1"):
        pretraining(data, tmp_path)
    assert json.loads((tmp_path / "nonfinite.json").read_text())["gradient_norm"] == "inf" and not (
        tmp_path / "pretrained.pt").exists()


def test_a_full_disk_leaves_the_older_checkpoint(data, tmp_path, monkeypatch):
    """A quota stands for the disk: the second checkpoint cannot be written."""
    stop_after(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        pretraining(data, tmp_path, "--save-minutes", "0")
    monkeypatch.undo()
    before = (tmp_path / "pretrained.pt").read_bytes()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, old[1]))
    try:
        with pytest.raises(UserError, match="pretrained.pt: cannot be written .*the one of before is as it was"):
            pretraining(data, tmp_path, "--save-minutes", "0")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert (tmp_path / "pretrained.pt").read_bytes() == before and not list(tmp_path.glob(".*.tmp"))
    pretraining(data, tmp_path, "--save-minutes", "0")
    assert checkpoint.load(tmp_path / "pretrained.pt", "pretrained")["finished"]


def test_a_full_tmpfs(tmp_path):
    """The same on a file system of 300 kB, in a mount name space of its own, where the system lets us make one."""
    script = (f"mount -t tmpfs -o size=300k none {tmp_path} && exec {sys.executable} -c \"\n"
              "import torch\nfrom engine import checkpoint\nfrom utils.errors import UserError\n"
              f"path = '{tmp_path}/pretrained.pt'\n"
              "checkpoint.save(path, {'kind': 'pretrained', 'weights': torch.ones(20_000)})\n"
              "try:\n    checkpoint.save(path, {'kind': 'pretrained', 'weights': torch.zeros(60_000)})\n"
              "except UserError as error:\n    print(error)\n"
              "print(checkpoint.load(path, 'pretrained')['weights'].sum().item())\"")
    run = subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script], cwd=ROOT,
                         capture_output=True, text=True)
    if run.returncode != 0 and "Traceback" not in run.stderr:
        pytest.skip(f"no file system can be mounted here: {run.stderr.strip()}")
    told, kept = run.stdout.splitlines()
    assert os.strerror(errno.ENOSPC) in told and "the one of before is as it was" in told and float(kept) == 20_000


def test_a_changed_or_cut_off_checkpoint_is_told(data, tmp_path):
    path = tmp_path / "pretrained.pt"
    weights = torch.arange(1000, dtype=torch.float32)
    checkpoint.save(path, {"kind": "pretrained", "weights": {"a": weights}, "n": 3, "nothing": None})
    content = path.read_bytes()
    assert torch.equal(checkpoint.load(path, "pretrained")["weights"]["a"], weights)
    at = content.index(weights.numpy().tobytes()[400:440])
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1:])
    with pytest.raises(UserError,
                       match="pretrained.pt: (its content does not have the hash|cannot be read as a checkpoint)"):
        checkpoint.load(path, "pretrained")
    for length in (0, 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match="pretrained.pt: cannot be read as a checkpoint"):
            pretraining(data, tmp_path)
    torch.save({"kind": "pretrained", "weights": {}}, path)
    with pytest.raises(UserError, match="does not have the hash"):
        checkpoint.load(path, "pretrained")


def test_a_checkpoint_of_a_model_that_has_changed_is_refused_in_one_line(data, tmp_path):
    """A head of before, without its batch norm: the error names what differs and the commit that reads it."""
    finetuning(data, tmp_path)
    saved = checkpoint.load(tmp_path / "finetuned.pt", "finetuned")
    saved["weights"] = {name.replace("head.1", "head"): value for name,
                        value in saved["weights"].items() if not name.startswith("head.0")}
    saved["source"]["commit"] = "b60390c"
    checkpoint.save(tmp_path / "finetuned.pt", saved)
    with pytest.raises(UserError,
                       match="finetuned.pt: its weights are not those of today's omnisat; commit b60390c, which wrote "
                             "it, "
                                        "reads it .*Missing key.*head.0.running_mean"):
        evaluate.main(["--checkpoint", str(tmp_path / "finetuned.pt"), "--data-root", str(data), "--workers", "0"])


def test_a_checkpoint_cannot_run_anything(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)
    torch.save({"kind": "pretrained", "weights": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        checkpoint.load(tmp_path / "trap.pt", "pretrained")
    assert not (tmp_path / "ran").exists()


# ---- batch norm -----------------------------------------------------------------------------------------------------

def test_running_statistics_are_those_of_torch():
    """One process, several pools a step: what nn.BatchNorm1d does by itself."""
    torch.manual_seed(0)
    ours, theirs = (nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2), nn.BatchNorm1d(2, momentum=0.3)).double()
                    for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    statistics = distributed.RunningStatistics(ours)
    for pools in (3, 1, 2):
        statistics.begin_step(3)
        for number in range(pools):
            x = torch.randn(10, 3, dtype=torch.float64) * 3 + 1
            statistics.begin_pool()
            ours(x)
            theirs(x)
            statistics.end_pool(number)
        statistics.end_step()
        for name, value in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-14, atol=1e-14, msg=name)
    assert [norm.momentum for norm in (ours[0], ours[2])] == [0.1, 0.3] and ours[0].num_batches_tracked == 6
