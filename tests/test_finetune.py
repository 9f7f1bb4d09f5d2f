"""Which epoch fine-tuning keeps, and when it stops, in the regimes of the tables: the fewer steps an epoch, the more can go wrong."""
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import finetune
import pretrain
from datasets import open_dataset
from datasets.demo import write_treesatai
from utils import checkpoint
from utils.metrics import constant_scores, count, f1_scores

MODEL = ["--embed-dim", "32", "--depth", "1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_treesatai(tmp_path_factory.mktemp("data") / "treesatai", train=28, test=4, seed=5)


def options(data, folder, *more):
    return ["--dataset", "treesatai-ts", "--data-root", str(data), "--modalities", "s2", "--workers", "0", "--output", str(folder), *more]


def log(folder):
    header, *epochs = (json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines())
    return header, epochs


def test_the_constant_prediction():
    """Its loss is torch's of constant logits, finite for a class that no training tile or every one has; no random choice has its F1."""
    train = torch.tensor([[1, 0, 1.], [0, 0, 1.], [1, 0, 1.]])
    val = torch.tensor([[0, 1, 0.], [1, 0, 1.]])
    loss, f1 = constant_scores(train, val)
    share = torch.tensor([2.5, 0.5, 3.5], dtype=torch.float64) / 4
    assert loss == pytest.approx(F.binary_cross_entropy_with_logits(share.logit().expand(2, 3), val.double()).item())
    assert f1 == pytest.approx(100 * 2 / 3)
    rng = np.random.default_rng(0)
    labels = rng.random((500, 6)) < [0.02, 0.05, 0.1, 0.2, 0.4, 0.8]
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        assert f1_scores(count(share - rng.random(labels.shape), labels))["f1_macro"] < constant_scores(labels, labels)[1]


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
    finetune.main(options(data, tmp_path, "--init", "none", *MODEL, "--epochs", "6", "--min-epochs", "2", "--patience", "2", "--epoch-steps", "1"))
    assert checkpoint.load(tmp_path / "finetuned.pt", "finetuned")["epoch"] == kept
    told = capsys.readouterr().err
    epochs = log(tmp_path)[1]
    assert f"kept epoch {kept} of {len(epochs)}, val macro F1 {values[kept - 1][1]:.1f}, mAP {epochs[kept - 1]['val_map']:.1f}; {end}" in told


def test_one_step_a_pass_trains_until_it_has_learned(data, tmp_path):
    """All tiles in one step, as 20 % of PASTIS-HD, from a checkpoint, with the defaults of how long an epoch is.

    With an epoch a step, and F1 alone to choose by, the first epoch won: it predicts half of all classes at random.
    """
    data = write_treesatai(tmp_path / "data" / "treesatai", train=60, test=4, seed=5)
    common = ["--dataset", "treesatai", "--data-root", str(data), "--workers", "0"]
    pretrain.main([*common, "--modalities", "s2,s1", "--output", str(tmp_path / "pretrain"), *MODEL, "--batch-size", "16", "--epochs", "6",
                   "--lr", "1e-3"])
    finetune.main([*common, "--modalities", "s2", "--output", str(tmp_path), "--init", str(tmp_path / "pretrain" / "pretrained.pt"),
                   "--batch-size", "384", "--lr", "1e-3", "--epochs", "6", "--min-epochs", "6"])
    header, epochs = log(tmp_path)
    saved = checkpoint.load(tmp_path / "finetuned.pt", "finetuned")
    assert header["options"]["epoch_steps"] == 20 and saved["epoch"] > 1
    train, val = (open_dataset("treesatai", data, split, ("s2",)).labels for split in ("train", "val"))
    assert epochs[saved["epoch"] - 1]["val_f1_macro"] > constant_scores(train, val)[1]
