"""Which epoch fine-tuning keeps, and when it stops, in the regimes of the tables: the fewer steps an epoch, the more can go wrong."""
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import finetune
import pretrain
from datasets.demo import write_treesatai
from utils import checkpoint
from utils.metrics import constant_loss, count, f1_scores, frequencies

MODEL = ["--embed-dim", "32", "--depth", "1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_treesatai(tmp_path_factory.mktemp("data") / "treesatai", train=48, test=4, seed=5)


def options(data, folder, *more):
    return ["--dataset", "treesatai-ts", "--data-root", str(data), "--modalities", "s2", "--workers", "0", "--output", str(folder), *more]


def log(folder):
    header, *epochs = (json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines())
    return header, epochs


def test_the_constant_prediction():
    """Its loss is torch's of constant logits; a class that no training tile or every one has costs no infinite loss elsewhere."""
    train = torch.tensor([[1, 0, 1.], [0, 0, 1.], [1, 0, 1.]])
    val = torch.tensor([[0, 1, 0.], [1, 0, 1.]])
    share = torch.from_numpy(frequencies(train))
    torch.testing.assert_close(share, torch.tensor([2.5, 0.5, 3.5], dtype=torch.float64) / 4)
    expected = F.binary_cross_entropy_with_logits(share.logit().expand(2, 3), val.double()).item()
    assert constant_loss(train, val) == pytest.approx(expected) and np.isfinite(expected)


def scripted(monkeypatch, values):
    """Have validation find these (loss, macro F1), one an epoch."""
    values, original = iter(values), finetune.score

    def score(*arguments, **choices):
        loss, f1 = next(values)
        return original(*arguments, **choices) | {"loss": loss, "f1_macro": f1}
    monkeypatch.setattr(finetune, "score", score)


@pytest.mark.parametrize("values, kept, end", [
    # untrained probabilities around 0.5 give every class everywhere, an F1 that no later epoch reaches: it does not count
    ([(0.7, 40), (0.6, 30), (0.2, 0), (0.19, 20), (0.25, 30), (0.9, 25)], 5, "ended by --epochs 6"),
    # once below the constant's, overconfidence may raise the loss again
    ([(0.2, 10), (0.9, 20), (2.0, 30), (3.0, 10), (3.0, 10), (3.0, 10)], 3, "ended by 2 epochs without a better one"),
    # never below: the loss decides
    ([(0.9, 40), (0.8, 30), (0.75, 20), (0.7, 10), (0.72, 50), (0.71, 60)], 4, "ended by --epochs 6"),
    # of equal F1 the lower loss
    ([(0.3, 0), (0.25, 0), (0.28, 0), (0.3, 0), (0.3, 0), (0.3, 0)], 2, "ended by 2 epochs without a better one")])
def test_the_epoch_that_is_kept(values, kept, end, data, tmp_path, monkeypatch, capsys):
    scripted(monkeypatch, values)
    monkeypatch.setattr("utils.metrics.constant_loss", lambda train, labels: 0.4)
    finetune.main(options(data, tmp_path, "--init", "none", *MODEL, "--epochs", "6", "--min-epochs", "2", "--patience", "2", "--epoch-steps", "1"))
    assert checkpoint.load(tmp_path / "finetuned.pt", "finetuned")["epoch"] == kept
    told = capsys.readouterr().err
    epochs = log(tmp_path)[1]
    assert f"kept epoch {kept} of {len(epochs)}, val macro F1 {values[kept - 1][1]:.1f}, mAP {epochs[kept - 1]['val_map']:.1f}; {end}" in told


def test_a_run_that_goes_on_knows_that_it_was_trained(data, tmp_path, monkeypatch):
    """Stopped after the one epoch whose loss was below the constant's: the next epochs are compared by F1 as if nobody had stopped it."""
    values = [(0.2, 10), (0.9, 20), (0.8, 15)]
    monkeypatch.setattr("utils.metrics.constant_loss", lambda train, labels: 0.4)
    common = options(data, tmp_path, "--init", "none", *MODEL, "--epochs", "3", "--epoch-steps", "1")
    scripted(monkeypatch, values[:1])
    with pytest.raises(StopIteration):                                        # dies in the second epoch's validation
        finetune.main(common)
    monkeypatch.undo()
    monkeypatch.setattr("utils.metrics.constant_loss", lambda train, labels: 0.4)
    scripted(monkeypatch, values[1:])
    finetune.main(common)
    assert checkpoint.load(tmp_path / "finetuned.pt", "finetuned")["epoch"] == 2


def test_one_step_a_pass_trains_until_it_has_learned(data, tmp_path):
    """All tiles in one step, as 20 % of PASTIS-HD, from a checkpoint, with the defaults of how long an epoch is.

    With an epoch a step, and F1 alone to choose by, the first epoch won: it predicts half of all classes at random.
    """
    pretrain.main(["--dataset", "treesatai-ts", "--data-root", str(data), "--modalities", "s2,s1", "--workers", "0", "--output",
                   str(tmp_path / "pretrain"), *MODEL, "--batch-size", "16", "--epochs", "4", "--lr", "1e-3"])
    finetune.main(options(data, tmp_path, "--init", str(tmp_path / "pretrain" / "pretrained.pt"), "--batch-size", "384", "--lr", "1e-3",
                          "--epochs", "6", "--min-epochs", "6"))
    header, epochs = log(tmp_path)
    saved = checkpoint.load(tmp_path / "finetuned.pt", "finetuned")
    assert header["options"]["epoch_steps"] == 20 and saved["epoch"] > 1
    from datasets import open_dataset
    train, val = (open_dataset("treesatai-ts", data, split, ("s2",)).labels for split in ("train", "val"))
    everywhere = f1_scores(count(np.ones(val.shape), val))["f1_macro"]        # the best constant prediction
    never = constant_loss(train, val)
    kept = epochs[saved["epoch"] - 1]
    assert kept["val_f1_macro"] > everywhere and kept["val_loss"] < never
