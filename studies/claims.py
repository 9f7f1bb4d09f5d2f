"""The paper's claims, tested on small sets of tiles: results/study/plan.md has questions, settings and what counts as
yes.

    python -m studies.claims --work DIR --canada canada_cube.npz     # hours on 2 cores; goes on where it stopped
    python -m studies.claims --work DIR --data forest --seeds 0,1    # some of it
    python -m studies.claims_report                                  # results/study/README.md, claims.png

Rows go to results/study/claims.csv as they come. Simulated tiles and a few thousand pixels: no number here says
anything about the paper's.
"""
import argparse
import itertools
import math
import multiprocessing
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.ensemble import RandomForestClassifier

from engine.log import provenance
from models.handmade import handmade
from models.fast.omnisat import FastOmniSat as OmniSat
from models.omnisat import ABLATIONS
from studies.data import crops_fold, forest
from studies.finetuning import PRETRAIN_STEPS, STEPS
from studies.frozen import features
from studies.results import append, read
from studies.training import BATCH, Schedule, finetune, pretrain, start_from
from studies.variants import DEPTH, DIM
from utils import classifiers, metrics
from utils.files import written_whole
from utils.numbers import whole, whole_list

RATE = 1e-3
TREES = 500         # of the yardstick
SEEDS = {"forest": range(5), "crops": range(10)}    # of crops: the fold is seed % 5
SENSORS = {"forest": ("vhr", "s2", "s1"), "crops": ("s2", "s1")}
PERCENTS = (10, 100)
PLANNED = 5    # seeds or folds: a verdict needs them, and an interval is drawn of them
TILES = {"train": 1412, "test": 468}    # of forest's lists; 212 of train are held out for validation
COMMIT = ("commit", "dirty", "torch", "device", "date")


class Run(NamedTuple):
    """A row's key. pretraining: none, all, alone, or an ablation of all. how: fine-tuned; frozen f* or tokens; random
    forest.
    """
    data: str
    seed: int
    modality: str
    percent: int
    pretraining: str
    how: str


class Start(NamedTuple):
    """A pretraining. modality: all, or the only sensor."""
    data: str
    seed: int
    modality: str
    ablation: str


def starts(data, seed):
    """The pretrainings of a seed, those of the first questions first."""
    ablations = [name for name in ABLATIONS[1:]
                 if data == "forest" or name not in ("no_index_bypass", "naive_contrastive")]
    return ([Start(data, seed, "all", "none")] + [Start(data, seed, key, "none") for key in SENSORS[data]]
            + [Start(data, seed, "all", name) for name in ablations])


def runs_of(start):
    """The runs that begin with a pretraining; those without belong to that of all sensors."""
    data, seed, modality, ablation = start
    if modality != "all":
        return [Run(data, seed, modality, percent, "alone", "fine-tuned") for percent in PERCENTS]
    if ablation != "none":
        return [Run(data, seed, "all", percent, ablation, "fine-tuned") for percent in PERCENTS]
    return [Run(data, seed, modality, percent, *kind) for modality, percent, kind in itertools.product(
        (*SENSORS[data], "all"), PERCENTS, (("none", "fine-tuned"), ("all", "fine-tuned"), ("none", "random forest")))]


# ---- running --------------------------------------------------------------------------------------------------------

_tiles = {}


def tiles_of(data, seed, work, canada):
    key = data if data == "forest" else (data, seed % 5)
    if key not in _tiles:
        _tiles.clear()
        _tiles[key] = forest(Path(work) / "claims", **TILES) if data == "forest" else crops_fold(canada, seed % 5)
    return _tiles[key]


def new_model(tiles, modality, seed, classes=0, ablation="none"):
    """OmniSat for the sensors of a modality."""
    torch.manual_seed(seed)
    sensors = [sensor for sensor in tiles.sensors if modality in ("all", sensor.key)]
    model = OmniSat(sensors, DIM, DEPTH, num_classes=classes, ablation=ablation)
    model.standardize.set({sensor.key: tiles.statistics()[sensor.key] for sensor in sensors})
    return model


def write(run, logits, labels, began, model=None, **more):
    """Add a run's row."""
    scores = metrics.scores(logits, labels)
    source = provenance("", [], torch.device("cpu"))
    append("claims.csv", run._asdict() | {
        **{name: f"{scores[name]:.3f}" for name in ("f1_weighted", "f1_macro", "map")},
        "params": sum(p.numel() for p in model.parameters()) if model is not None else "",
        "pretrain_steps": PRETRAIN_STEPS if run.pretraining != "none" else 0, "steps": "", "kept": ""} | more
        | {"seconds": f"{time.time() - began:.0f}"} | {name: source[name] for name in COMMIT})


def probes(start, tiles, model, name, done):
    """Rows of a model's frozen features, with labels of 10 and of 100 %."""
    began = time.time()
    y = {split: (batch["label"].numpy() > 0).astype(int) for split, batch in tiles.splits.items()}
    x = {split: {what: value.numpy() for what, value in features(model, batch).items()}
         for split, batch in tiles.splits.items()}
    for (how, what), percent in itertools.product((("frozen f*", "f*"), ("frozen tokens", "tokens all")), PERCENTS):
        run = Run(start.data, start.seed, start.modality, percent, name, how)
        if tuple(map(str, run)) in done:
            continue
        rows = tiles.labelled(percent, start.seed).numpy()
        classifier, strength = classifiers.choose("logistic", (x["train"][what][rows], y["train"][rows]),
                                                  (x["val"][what], y["val"]))
        write(run, classifiers.scores_of(classifier, x["test"][what]), y["test"], began, model,
              kept=f"C = {strength:g}")


def forest_of_trees(run, tiles):
    """The yardstick: a random forest on features made by hand."""
    began = time.time()
    sensors = {sensor.key: sensor for sensor in tiles.sensors if run.modality in ("all", sensor.key)}
    x = {split: handmade(batch, sensors).numpy() for split, batch in tiles.splits.items()}
    y = {split: (batch["label"].numpy() > 0).astype(int) for split, batch in tiles.splits.items()}
    rows = tiles.labelled(run.percent, run.seed).numpy()
    trees = RandomForestClassifier(TREES, random_state=run.seed).fit(x["train"][rows], y["train"][rows])
    shares = [p[:, 1] if p.shape[1] > 1 else np.full(len(p), float(c[0]))
              for p, c in zip(trees.predict_proba(x["test"]), trees.classes_)]
    write(run, np.stack(shares, 1) - 0.5, y["test"], began)


def perform(job):
    """A pretraining, unless it is done, and the runs that begin with it."""
    start, work, canada = job
    torch.set_num_threads(1)
    tiles = tiles_of(start.data, start.seed, work, canada)
    done = {tuple(row[name] for name in Run._fields) for row in read("claims.csv")}
    weights = Path(work) / f"claims-{'-'.join(map(str, start))}.pt"
    name = start.ablation if start.ablation != "none" else "all" if start.modality == "all" else "alone"
    if not weights.exists():
        model = new_model(tiles, start.modality, start.seed, ablation=start.ablation)
        with written_whole(weights, "wb") as file:
            torch.save(pretrain(tiles, model, Schedule(BATCH[start.data], 1e-3, PRETRAIN_STEPS, start.seed)), file)
    model = new_model(tiles, start.modality, start.seed, ablation=start.ablation)
    if name == "all":
        probes(start, tiles, model, "none", done)
        for key in SENSORS[start.data]:
            one = new_model(tiles, key, start.seed)
            probes(start._replace(modality=key), tiles, one, "none", done)
    pretrained = torch.load(weights, weights_only=True)
    model.load_state_dict(pretrained)
    probes(start, tiles, model, name, done)
    if name == "all":
        for key in SENSORS[start.data]:
            one = new_model(tiles, key, start.seed)
            one.load_state_dict({n: value for n, value in pretrained.items() if n in one.state_dict()})
            probes(start._replace(modality=key), tiles, one, "all", done)
    for run in runs_of(start):
        if tuple(map(str, run)) in done:
            continue
        if run.how == "random forest":
            forest_of_trees(run, tiles)
            continue
        began, labels = time.time(), tiles.splits["train"]["label"]
        model = new_model(tiles, run.modality, run.seed, labels.shape[1], start.ablation)
        if run.pretraining != "none":
            start_from(model, pretrained, run)
        logits, kept = finetune(tiles, model, tiles.labelled(run.percent, run.seed),
                                Schedule(BATCH[run.data], RATE, STEPS, run.seed))
        write(run, logits.numpy(), tiles.splits["test"]["label"].numpy(), began, model, steps=STEPS, kept=kept)


# ---- reading --------------------------------------------------------------------------------------------------------

def means(rows):
    """{(data, modality, percent, pretraining, how): {unit: (weighted F1, mAP)}}; the unit is a seed of forest, a fold
    of crops.
    """
    found = {}
    for row in rows:
        unit = int(row["seed"]) % 5
        key = row["data"], row["modality"], int(row["percent"]), row["pretraining"], row["how"]
        found.setdefault(key, {}).setdefault(unit, []).append((float(row["f1_weighted"]), float(row["map"])))
    return {key: {unit: np.mean(values, 0) for unit, values in units.items()} for key, units in found.items()}


def differences(rows, how="fine-tuned"):
    """A list of (claim, data, what, percent, {unit: difference of F1 and mAP}): questions 1 to 4 of the plan."""
    known, found = means(rows), []

    def add(claim, data, what, percent, more, less):
        a, b = (known.get((data, modality, percent, pretraining, how), {}) for modality, pretraining in (more, less))
        if paired := {unit: a[unit] - b[unit] for unit in sorted(a.keys() & b.keys())}:
            found.append((claim, data, what, percent, paired))
    for data, percent in itertools.product(SENSORS, PERCENTS):
        for modality in ("all", *SENSORS[data]):
            add("1. pretrained - from scratch", data, modality, percent, (modality, "all"), (modality, "none"))
        for pretraining in ("none", "all"):
            single = {key: np.mean([f1 for f1, _ in known[data, key, percent, pretraining, how].values()])
                      for key in SENSORS[data] if (data, key, percent, pretraining, how) in known}
            if len(single) == len(SENSORS[data]):
                best = max(single, key=single.get)
                how_begun = "pretrained" if pretraining == "all" else "from scratch"
                add("2. all sensors - best single one", data, f"{how_begun}, best {best}", percent,
                    ("all", pretraining), (best, pretraining))
        for name in ABLATIONS[1:]:
            add("3. full - ablated", data, name, percent, ("all", "all"), ("all", name))
        for modality in SENSORS[data]:
            add("4. pretrained on all - on it alone", data, modality, percent, (modality, "all"), (modality, "alone"))
    return sorted(found, key=lambda item: (item[0], item[1] != "forest"))


def verdict(middle, half, n=PLANNED):
    """By the plan. n: seeds or folds behind it."""
    if math.isnan(half) or n < PLANNED:
        return "too few"
    return "yes" if middle > half else "no" if middle < -half else "open"


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", default="data/study", help="folder for the simulated tiles and the pretrainings")
    parser.add_argument("--canada", metavar="FILE", help="canada_cube.npz; without it only the simulated tiles are "
                                                         "learned from")
    parser.add_argument("--data", choices=SENSORS, help="one of the two (default: both)")
    parser.add_argument("--seeds", type=whole_list(0), metavar="LIST", help="such as 0,1 (default: all of the plan)")
    parser.add_argument("--jobs", type=whole(1), default=2, help="processes, one thread each")
    args = parser.parse_args(argv)
    done = {tuple(row[name] for name in Run._fields) for row in read("claims.csv")}
    planned = [start for data in SENSORS if args.data in (None, data) and (data == "forest" or args.canada)
               for seed in SEEDS[data] if args.seeds is None or seed in args.seeds for start in starts(data, seed)]
    first = [start for start in planned if start.ablation == "none"]          # questions 1, 2 and 4 before 3
    planned = [start for start in (*first, *(start for start in planned if start.ablation != "none"))
               if any(tuple(map(str, run)) not in done for run in runs_of(start))]
    if any(start.data == "forest" for start in planned):
        forest(Path(args.work) / "claims", **TILES)                           # written once, before the processes begin
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        jobs = [(start, args.work, args.canada) for start in planned]
        for number, _ in enumerate(pool.imap_unordered(perform, jobs), 1):
            print(f"{number} of {len(planned)} pretrainings and what begins with them", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
