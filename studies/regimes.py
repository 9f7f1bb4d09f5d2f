"""The regimes of the tables: what is trained from what, for how many steps; and which of these trainings are rehearsed.

A regime is a dataset, a method, a share of the labels and what the method starts from: see studies/rehearsal.py.
"""
import math

from models.methods import METHODS
from tables.cells import paper_cells

# training tiles: TreeSatAI's list without the 15 % of its validation, folds 1 to 3, 32 domains of FLAIR
TILES = {"treesatai": 38_520, "treesatai-ts": 38_520, "pastis-hd": 1_455, "flair": 47_587}
STEP, EPOCH, EARLIEST, LATEST, PATIENCE = 384, 20, 50, 200, 10    # tiles, and finetune.py's defaults
SHORT = 2000    # steps of what is rehearsed, at the earliest stop


def regimes():
    """A dict for each regime of the tables, in their order."""
    found = {}
    for cell in paper_cells("all"):
        method, percent = METHODS[cell["model"]], int(cell["label_percent"])
        if method.is_fitted:
            continue
        key = cell["dataset"], cell["model"], percent, cell["pretraining"]
        tiles = round(TILES[cell["dataset"]] * percent / 100)
        a_pass = math.ceil(tiles / STEP)
        an_epoch = a_pass * math.ceil(EPOCH / a_pass)
        found.setdefault(key, {"dataset": key[0], "model": key[1], "label_percent": percent, "start": key[3],
                               "tiles": tiles, "steps_an_epoch": an_epoch, "steps": EARLIEST * an_epoch,
                               "latest": LATEST * an_epoch, "modalities": set()})
        found[key]["modalities"].add(cell["modality"])
    return list(found.values())


def trainings():
    """{(model, modality, rate, start): regimes}: what is rehearsed, once for all regimes that differ in their tiles
    only.

    Of each method and rate one modality, S2 where it may be. Late fusions are not rehearsed apart from their parts.
    """
    found = {}
    for regime in regimes():
        if regime["steps"] >= SHORT:
            continue
        by_rate = {}
        for modality in sorted(regime["modalities"] - {"all"}, key="s2 vhr s1".split().index):
            by_rate.setdefault(rate_of(regime, modality), modality)
        for rate, modality in by_rate.items():
            found.setdefault((regime["model"], modality, rate, regime["start"]), []).append(regime)
    return found


def rate_of(regime, modality):
    """finetune.py's default."""
    return METHODS[regime["model"]].finetune_rate(regime["dataset"], modality, regime["start"] == "self")


# what was tried besides, to find the defaults
TRIED = [("omnisat, odds", "s2", 2e-4, "self"), ("omnisat, batch", "s2", 2e-4, "self"),
         ("omnisat, odds", "s2", 2e-5, "self"), ("omnisat, batch", "s2", 2e-5, "self"),
         ("croma", "s2", 2e-5, "self"), ("croma", "s2", 2e-4, "self")]
