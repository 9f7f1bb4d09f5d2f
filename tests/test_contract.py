"""What a method owes the scripts: every entry of the table keeps it, and what is planted is found and named."""
import re

import pytest
import torch

from models import contract
from models.methods import METHODS, Method
from models.template import Mine

pytestmark = pytest.mark.usefixtures("one_thread")


def cells():
    """(name, dataset, modality): all sensors, or each where a method does not take all; and what it pretrains on."""
    found = {}
    for name, method in METHODS.items():
        for dataset, modality in method.cells():
            if modality == "all" or not method.fills(dataset, "all") or method.pretraining_rate(dataset, modality) and (
                    method.pretrain_rate is None):
                found.setdefault((name, dataset), []).append(modality)
    return [(*key, modality) for key, modalities in found.items() for modality in modalities]


@pytest.mark.parametrize("cell", cells(), ids=" ".join)
def test_every_method_keeps_the_contract(cell):
    assert contract.lacks(*cell, width=0.125) == []


@pytest.fixture
def entered(monkeypatch):
    """Enters a network in the table as mine."""
    def enter(network, **more):
        monkeypatch.setitem(METHODS, "mine", Method(network, **{"rate": 1e-3} | more))
    return enter


def test_the_template_keeps_it_in_every_cell(entered, capsys):
    """Also as a command, which says so."""
    entered(Mine)
    assert contract.main(["mine"]) == 0
    assert capsys.readouterr().out == "mine, 15 cell(s): nothing to be done\n"


# ---- planted faults --------------------------------------------------------------------------------------------------

class WrongShape(Mine):
    def all_logits(self, batch):
        return [logits[:, 1:] for logits in super().all_logits(batch)]


class NoList(Mine):
    def all_logits(self, batch):
        return super().all_logits(batch)[0]


class ReadsPadding(Mine):
    def inputs(self, key, batch):
        x, *series = super().inputs(key, batch)
        return (x.mean(1), ) if series else (x,)


class Mixes(Mine):
    def vector(self, batch):
        x = super().vector(batch)
        return x - x.mean(0)


class Reorders(Mine):
    def all_logits(self, batch):
        return [super().all_logits(batch)[0].flip(0)]


class DividesByNothing(Mine):
    def inputs(self, key, batch):
        x, *series = super().inputs(key, batch)
        if not series:
            return x,
        there = ~series[1][:, :, None, None, None]
        return (x * there).sum(1) / there.sum(1),


class NeedsTwoTiles(Mine):
    def build(self, num_classes, width):
        super().build(num_classes, width)
        self.head = torch.nn.Sequential(torch.nn.BatchNorm1d(self.head.in_features), self.head)


class HasAnIdleLayer(Mine):
    def build(self, num_classes, width):
        super().build(num_classes, width)
        self.second = torch.nn.Linear(3, 3)


class Detaches(Mine):
    def vector(self, batch):
        return super().vector(batch).detach()


class ForgetsItsState(Mine):
    def build(self, num_classes, width):
        super().build(num_classes, width)
        self.projection = torch.randn(self.head.in_features, self.head.in_features)

    def vector(self, batch):
        return super().vector(batch) @ self.projection


class Grows(Mine):
    def forward(self, batch):
        if "seen" not in self._buffers:
            self.register_buffer("seen", torch.zeros(1))
        return super().forward(batch)


class IsRandom(Mine):
    def vector(self, batch):
        return torch.nn.functional.dropout(super().vector(batch))


class IsFlat(Mine):
    def features(self, batch, level="tile"):
        return super().features(batch, level).flatten()


class HasNoStandardize(torch.nn.Module):
    def __init__(self, sensors, num_classes, dataset, width=1.0):
        super().__init__()


PLANTED = {
    WrongShape: r"all_logits must give a list of logits \(B, K\), here of K = 5 classes, not \(3, 4\)",
    NoList: r"all_logits must give a list of logits \(B, K\), here of K = 5 classes, not \(3, 5\)",
    ReadsPadding: r"s2: the result of a tile changes by \S+ with what stands in padded dates, or how many there are: "
                  r"leave them out, they are True in s2_padded",
    Mixes: r"the result of a tile changes by \S+ without the other tiles of its batch: in evaluation no tile may see",
    Reorders: r"the result of a tile changes by \S+ without the other tiles of its batch",
    DividesByNothing: r"gradients are not finite, of .*: a mean over no date is 0 / 0",
    NeedsTwoTiles: r"a training step on one tile without any date, as the last pool of a pass may be fails, ValueError",
    HasAnIdleLayer: r"gradients do not reach second\.weight, second\.bias: what has no part is left out",
    Detaches: r"gradients do not reach networks\.s2\.0\.weight, networks\.s2\.0\.bias",
    ForgetsItsState: r"a new model with the same state has other results, by \S+: what a result depends on must be",
    Grows: r"its state does not load into a new model with the same options: .*seen",
    IsRandom: r"two evaluations of the same tiles differ by \S+: nothing may be drawn at random",
    IsFlat: r"features\(batch, 'tile'\) must give finite numbers \(B, D\), here \(3, D\), not \(48,\)",
    HasNoStandardize: r"it has no sensors, standardize, all_logits, features, compile_networks; models\.compared\."}


@pytest.mark.parametrize("fault", PLANTED, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_told_in_its_sentence(entered, fault):
    entered(fault)
    found = contract.lacks("mine", "treesatai-ts", "s2")
    assert len(found) == (2 if fault is DividesByNothing else 1), found
    assert found[0].startswith("treesatai-ts, s2: ") and re.search(PLANTED[fault], found[0])
