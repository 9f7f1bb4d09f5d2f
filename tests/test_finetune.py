"""Which epoch fine-tuning keeps, and when it stops, in the regimes of the tables: the fewer steps an epoch, the more
can go wrong.
"""
import itertools
import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import evaluate
import finetune
import pretrain
import probe
from datasets import open_dataset
from datasets.loading import Pools, make_loader
from datasets.simulated.demo import write_treesatai
from engine import checkpoint
from evaluate import score, score_test
from models.fast.omnisat import FastOmniSat as OmniSat
from utils.errors import UserError
from utils.metrics import constant_scores, count, f1_scores
from utils.results import read_rows

MODEL = ["--embed-dim", "32", "--depth", "1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_treesatai(tmp_path_factory.mktemp("data") / "treesatai", train=28, test=4, seed=5)


def options(data, folder, *more):
    return ["--dataset", "treesatai-ts", "--data-root", str(data), "--modalities", "s2", "--workers", "0", "--output",
            str(folder), *more]


def log(folder):
    header, *epochs = (json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines())
    return header, epochs


def test_the_constant_prediction():
    """Its loss is torch's of constant logits, finite for a class that no training tile or every one has; no random
    choice has its F1.
    """
    train = torch.tensor([[1, 0, 1.], [0, 0, 1.], [1, 0, 1.]])
    val = torch.tensor([[0, 1, 0.], [1, 0, 1.]])
    loss, f1 = constant_scores(train, val)
    share = torch.tensor([2.5, 0.5, 3.5], dtype=torch.float64) / 4
    assert loss == pytest.approx(F.binary_cross_entropy_with_logits(share.logit().expand(2, 3), val.double()).item())
    assert f1 == pytest.approx(100 * 2 / 3)
    rng = np.random.default_rng(0)
    labels = rng.random((500, 6)) < [0.02, 0.05, 0.1, 0.2, 0.4, 0.8]
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        assert f1_scores(count(share - rng.random(labels.shape), labels))["f1_macro"] < constant_scores(labels,
                                                                                                        labels)[1]


def scripted(monkeypatch, values):
    """Have validation find these (loss, macro F1), one an epoch."""
    values, original = iter(values), finetune.score

    def score(*arguments, **choices):
        loss, f1 = next(values)
        return original(*arguments, **choices) | {"loss": loss, "f1_macro": f1}
    monkeypatch.setattr(finetune, "score", score)


@pytest.mark.parametrize("values, kept, end", [
    # untrained probabilities around 0.5 give classes everywhere, an F1 that no later epoch reaches: it does not count
    ([(0.7, 24), (0.6, 20), (0.2, 0), (0.19, 10), (0.25, 15), (0.9, 14)], 5, "ended by --epochs 6"),
    # overconfidence may raise the loss above the constant's: an F1 above every constant's counts all the same
    ([(0.2, 10), (0.9, 30), (2.0, 35), (3.0, 30), (3.0, 10), (3.0, 10)], 3, "ended by 2 epochs without a better one"),
    # never better than a constant: the loss decides
    ([(0.9, 24), (0.8, 20), (0.75, 15), (0.7, 10), (0.72, 24), (0.71, 24)], 4, "ended by --epochs 6"),
    # of equal F1 the lower loss
    ([(0.3, 0), (0.25, 0), (0.28, 0), (0.3, 0), (0.3, 0), (0.3, 0)], 2, "ended by 2 epochs without a better one")])
def test_the_epoch_that_is_kept(values, kept, end, data, tmp_path, monkeypatch, capsys):
    scripted(monkeypatch, values)
    monkeypatch.setattr("utils.metrics.constant_scores", lambda train, labels: (0.4, 25))
    finetune.main(options(data, tmp_path, "--init", "none", *MODEL, "--epochs", "6", "--min-epochs", "2", "--patience",
                          "2", "--epoch-steps", "1"))
    assert checkpoint.load(tmp_path / "finetuned.pt", "finetuned")["epoch"] == kept
    told = capsys.readouterr().err
    epochs = log(tmp_path)[1]
    scores = f"val macro F1 {values[kept - 1][1]:.1f}, mAP {epochs[kept - 1]['val_map']:.1f}"
    assert f"kept epoch {kept} of {len(epochs)}, {scores}; {end}" in told


def test_one_step_a_pass_trains_until_it_has_learned(data, tmp_path):
    """All tiles in one step, as 20 % of PASTIS-HD, from a checkpoint, with the defaults of how long an epoch is.

    With an epoch a step, and F1 alone to choose by, the first epoch won: it predicts half of all classes at random.
    """
    data = write_treesatai(tmp_path / "data" / "treesatai", train=60, test=4, seed=5)
    common = ["--dataset", "treesatai", "--data-root", str(data), "--workers", "0"]
    pretrain.main([*common, "--modalities", "s2,s1", "--output", str(tmp_path / "pretrain"), *MODEL, "--batch-size",
                   "16", "--epochs", "6",
                   "--lr", "1e-3"])
    finetune.main([*common, "--modalities", "s2", "--output", str(tmp_path), "--init",
                   str(tmp_path / "pretrain" / "pretrained.pt"),
                   "--batch-size", "384", "--lr", "1e-3", "--epochs", "6", "--min-epochs", "6"])
    header, epochs = log(tmp_path)
    saved = checkpoint.load(tmp_path / "finetuned.pt", "finetuned")
    assert header["options"]["epoch_steps"] == 20 and saved["epoch"] > 1
    train, val = (open_dataset("treesatai", data, split, ("s2",)).labels for split in ("train", "val"))
    assert epochs[saved["epoch"] - 1]["val_f1_macro"] > constant_scores(train, val)[1]


def test_validation_has_the_trainings_precision_and_the_test_float32(data, tmp_path, monkeypatch):
    """In bfloat16: validation's log has the loss of bfloat16, the row the scores of float32."""
    seen, original = [], OmniSat.forward

    def forward(self, batch):
        seen.append((self.training, torch.is_autocast_enabled("cpu")))
        return original(self, batch)
    monkeypatch.setattr(OmniSat, "forward", forward)
    place = 0, 1, torch.device("cpu")
    finetune.main(options(data, tmp_path, "--init", "none", *MODEL, "--epochs", "3", "--epoch-steps", "1", "--lr",
                          "1e-2",
                          "--batch-size", "8", "--precision", "bfloat16", "--csv", str(tmp_path / "table2.csv")))
    assert [kind for kind, group in itertools.groupby(seen)] == [(True, True), (False, True)] * 3 + [(False, False)]
    path, (_, epochs) = tmp_path / "finetuned.pt", log(tmp_path)
    saved = checkpoint.load(path, "finetuned")
    model, val = checkpoint.rebuild(path, saved), open_dataset("treesatai-ts", data, "val", ("s2",))
    pools, losses = Pools(len(val), 128, 128, None, 0, 1), []
    for is_narrow in (True, False):
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=is_narrow)
        losses.append(score(model, make_loader(val, pools, 0), place[2], lambda tiles: None, autocast=autocast)["loss"])
    assert losses[0] == pytest.approx(epochs[saved["epoch"] - 1]["val_loss"], rel=1e-6)
    assert 1e-5 < abs(losses[1] / losses[0] - 1) < 0.1
    row, = read_rows(tmp_path / "table2.csv")
    assert row["map"] == f"{score_test(path, data, None, 0, place)['map']:.4f}"


# ---- what is told before the training, not after --------------------------------------------------------------------

def test_the_test_split_is_looked_at_first(data, tmp_path):
    """A file of a test tile that is not there ends a run with --csv before its first epoch; without --csv it is not
    needed.
    """
    broken = tmp_path / "data"
    shutil.copytree(data, broken)
    tile = (broken / "split" / "test_filenames.lst").read_text().split()[0][:-len(".tif")]
    (victim,) = (broken / "sentinel-ts").glob(f"{tile}_*.h5")
    victim.unlink()
    more = ["--init", "none", *MODEL, "--epochs", "1", "--epoch-steps", "1"]
    with pytest.raises(UserError, match=f"{tile}.tif: no file of s2 "):
        finetune.main(options(broken, tmp_path / "run", *more, "--csv", str(tmp_path / "table2.csv")))
    assert not (tmp_path / "run" / "finetuned.pt").exists() and not (tmp_path / "run" / "log.jsonl").exists()
    finetune.main(options(broken, tmp_path / "run", *more))
    assert (tmp_path / "run" / "finetuned.pt").exists()


def test_all_that_score_obey_tiles_at_once(data, tmp_path, monkeypatch):
    """The last test of finetune.py, evaluate.py and probe.py, whose parts have the same scores as the whole."""
    seen, original, run = [], OmniSat.encode, tmp_path / "run"

    def encode(self, batch):
        if not self.training:
            seen.append((self.tiles_at_once, len(self.parts(batch))))
        return original(self, batch)
    monkeypatch.setattr(OmniSat, "encode", encode)
    finetune.main(options(data, run, "--init", "none", *MODEL, "--epochs", "1", "--epoch-steps", "1", "--tiles-at-once",
                          "2", "--csv",
                          str(tmp_path / "table2.csv")))
    assert seen.pop() == (2, 2) and {tiles for tiles, _ in seen} == {2}       # the test's 4 tiles, and validation's
    (first,) = read_rows(tmp_path / "table2.csv")
    again = ["--checkpoint", str(run / "finetuned.pt"), "--data-root", str(data), "--workers", "0", "--csv"]
    for tiles, parts in ((["--tiles-at-once", "3"], {(3, 2)}), ([], {(None, 1)})):
        seen.clear()
        evaluate.main([*again, str(tmp_path / "again" / "table2.csv"), *tiles])
        assert set(seen) == parts
        (row,) = read_rows(tmp_path / "again" / "table2.csv")
        assert [row[name]
                for name in ("f1_weighted", "f1_macro", "map")] == [first[name]
                                                                    for name in ("f1_weighted", "f1_macro", "map")]
    seen.clear()
    probe.main([*again[:-1], "--features", "tile", "--weights", "own", "--modalities", "s2", "--classifiers", "knn",
                "--label-percent",
                "100", "--tiles-at-once", "1"])
    assert seen and {tiles for tiles, _ in seen} == {1}


def test_tiles_at_once_is_refused_where_it_does_nothing(data, tmp_path):
    few = ["--dataset", "treesatai", "--data-root", str(data), "--modalities", "s2", "--workers", "0", "--model",
           "mosaiks", "--init", "none"]
    finetune.main([*few, "--output", str(tmp_path)])
    for script in (evaluate, probe):
        with pytest.raises(UserError, match="--tiles-at-once does nothing in mosaiks; leave it out"):
            script.main(["--checkpoint", str(tmp_path / "finetuned.pt"), "--data-root", str(data), "--workers", "0",
                         "--tiles-at-once", "2"])


@pytest.mark.parametrize("model", ["mosaiks", "lightgbm"])
def test_few_tiles_for_what_is_fitted(model, data, tmp_path):
    """mosaiks looks for five neighbours; the trees make do with two tiles."""
    few = ["--dataset", "treesatai", "--data-root", str(data), "--modalities", "s2", "--workers", "0", "--model", model,
           "--init", "none",
           "--label-percent", "10", "--output", str(tmp_path)]
    if model == "lightgbm":
        finetune.main(few)
        return
    with pytest.raises(UserError,
                       match="2 training tiles at 10 % of the labels; mosaiks looks for the nearest 5: give it more"):
        finetune.main(few)
    assert not (tmp_path / "finetuned.pt").exists()
