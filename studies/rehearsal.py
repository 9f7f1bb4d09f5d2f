"""Every short training of the tables, rehearsed: does it converge before it may stop?

    python -m studies.rehearsal --work DIR        # hours on 2 cores; goes on where it stopped
    python -m studies.rehearsal --list            # only the list of regimes
    python -m studies.rehearsal --report          # PAPER.md's table, of what is there

A regime is a dataset, a method, a share of the labels and what the method starts from: from these follow its steps an
epoch, and the steps at which its training stops at the earliest (50 epochs) and at the latest (200). Those of under
2,000 steps at the earliest are rehearsed, and pass if the epoch kept by then has 95 % of the mean average precision of
the epoch kept after four times as many steps. One that does not, but still improves then, is not stopped there: the
table says when, and with what.

What is rehearsed is the number of steps, not the tiles: 696 simulated tiles, 16 a step, an epoch of 20 steps, rule and
scheduler of finetune.py, one seed. OmniSat has its full size and sees S2 alone, 4 patches, 8 dates, from 800 steps of
pretraining on S2 and S1. Compared methods are narrower (WIDTHS; DOFA has 4 tiles a step; PRESTO, ImageNet's and DOFA's
weights are not at hand) and see few pixels; one that pretrains itself does so for 300 steps. A narrow network learns
more slowly at a given rate, so what passes here is no closer at full width. Precisions are of 300 simulated tiles that
nothing was chosen on: they say nothing of any real data.

Writes results/study/rehearsal.jsonl, a line a training, and results/study/rehearsal.csv, a line a regime.
"""
import argparse
import json
import multiprocessing
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from models.compared.inputs import median
from models.methods import METHODS, build_model
from models.norms import BatchNorm
from studies import results
from studies.data import Tiles, forest, rows_of
from studies.regimes import LATEST, TRIED, regimes, trainings
from studies.rehearsal_report import read_lines, table, write_table
from studies.training import EPOCH, Schedule, epochs, predict, pretrain, start_from
from utils.files import written_whole
from utils.metrics import count, f1_scores, mean_average_precision
from utils.numbers import whole

ASIDE, BATCH = 300, 16
WIDTHS = {"pse": 1, "mlp": 1, "pse_ltae": 1, "resnet50": 0.125, "satmae": 0.125, "scalemae": 0.125,
          "dofa": 0.125}    # others: 0.25


# ---- tiles ----------------------------------------------------------------------------------------------------------

def seen(model, batch, keys):
    """A batch with what the method sees of the sensors: one date for some, more and larger pixels than forest's for
    others.
    """
    out = {"label": batch["label"]}
    for key in keys:
        x = batch[key]
        if key != "vhr":
            dates, padded = batch[f"{key}_dates"], batch[f"{key}_padded"]
            if model in ("pse", "vit", "mlp", "dofa", "croma", "satmae", "scalemae"):
                x, dates, padded = median(x, padded)[:, None], dates[:, :1], padded.all(1, keepdim=True)
            else:
                x, dates, padded = x[:, ::2], dates[:, ::2], padded[:, ::2]
            x = x[..., :2, :2] if model == "omnisat" else x.repeat_interleave(2, -1).repeat_interleave(2, -2)
            out |= {f"{key}_dates": dates, f"{key}_padded": padded}
        out[key] = (F.avg_pool2d(x, 2) if key == "vhr" else x).contiguous()
    return out


def tiles_of(model, keys, work):
    """Tiles of splits train, val, and test: these are ASIDE of the training tiles, since no test tile may choose a
    default.
    """
    tiles = forest(work)
    train = tiles.splits["train"]
    # the list is sorted by species
    order = torch.randperm(len(train["label"]), generator=torch.Generator().manual_seed(0))
    splits = {"train": rows_of(train, order[ASIDE:]), "val": tiles.splits["val"], "test": rows_of(train, order[:ASIDE])}
    return Tiles([sensor for sensor in tiles.sensors if sensor.key in keys],
                 {name: seen(model, batch, keys) for name, batch in splits.items()})


# ---- trainings ------------------------------------------------------------------------------------------------------

def options_of(model, modality, classes):
    """Options of the method's constructor."""
    if model == "omnisat":
        return {"embed_dim": 256, "depth": 6, "num_classes": classes}
    dataset = next(dataset for dataset in ("treesatai", "treesatai-ts", "pastis-hd")
                   if modality in METHODS[model].rates.get(dataset, ()))
    return {"num_classes": classes, "dataset": dataset, "width": WIDTHS.get(model, 0.25)}


def new_model(name, tiles, modality, classes):
    model = build_model(name, tiles.sensors, **options_of(name, modality, classes))
    model.standardize.set(tiles.statistics())
    return model


def pretrained(name, modality, work):
    """The weights of a method that pretrains itself, kept in a file."""
    target = Path(work) / f"rehearsal-{name}-{modality}.pt"
    if not target.exists():
        keys = ("s2", "s1") if name in ("omnisat", "croma") else (modality,)
        steps, rate = (800, 1e-4) if name == "omnisat" else (300, 1e-3)
        tiles = tiles_of(name, keys, work)
        torch.manual_seed(0)
        weights = pretrain(tiles, new_model(name, tiles, modality, 0), Schedule(BATCH, rate, steps, 0))
        with written_whole(target, "wb") as file:
            torch.save(weights, file)
    return torch.load(target, weights_only=True)


def set_head(model, head, labels):
    """The head of what was tried besides: linear, batch (norm) or odds, whose bias begins at the log-odds."""
    dim, classes = model.head[1].in_features, model.head[1].out_features
    norm = BatchNorm(dim, affine=False) if head != "linear" else torch.nn.Identity()
    model.head = torch.nn.Sequential(norm, torch.nn.Linear(dim, classes))
    if head == "odds":
        model.head[1].bias.data = torch.logit(labels.mean(0))


def scores_of(logits, labels):
    """Mean average precision and weighted F1."""
    return [round(mean_average_precision(logits, labels), 3), round(f1_scores(count(logits, labels))["f1_weighted"], 3)]


def rehearse(job):
    """One training of LATEST epochs; its line is added.

    kept: the epochs that were the best so far, with their precision and weighted F1 of the tiles set aside. epochs: of
    each one loss and macro F1 of the validation tiles, the rate, which the scheduler cuts, and those two; null for what
    was not written down in the first lines.
    """
    (called, modality, rate, start), work = job
    name, _, head = called.partition(", ")
    torch.set_num_threads(1)
    began, tiles = time.time(), tiles_of(name, (modality,), work)
    weights = pretrained(name, modality, work) if start == "self" else {}
    train, aside = tiles.splits["train"]["label"], tiles.splits["test"]
    torch.manual_seed(0)
    model = new_model(name, tiles, modality, train.shape[1])
    if head:
        set_head(model, head, train)
    if weights:
        start_from(model, weights, name)
    kept, curve = [], []
    batch = 4 if name == "dofa" else BATCH    # of 197 tokens each, whatever their pixels
    schedule = Schedule(batch, rate, EPOCH * LATEST, 0)
    for number, epoch in enumerate(epochs(tiles, model, torch.arange(len(train)), schedule, size=64), 1):
        scores = scores_of(predict(model, aside, 64), aside["label"])
        curve.append([round(epoch.loss, 4), round(epoch.f1_macro, 2), epoch.rate, *scores])
        if epoch.is_best:
            kept.append([number, *scores])
    constant = mean_average_precision(torch.zeros_like(aside["label"]), aside["label"])
    line = {"model": called, "modality": modality, "rate": rate, "start": start, "kept": kept, "epochs": curve,
            "seconds": round(time.time() - began), "constant": constant, "commit": results.commit()}
    results.OUT.mkdir(parents=True, exist_ok=True)
    with open(results.OUT / "rehearsal.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", default="data/study", help="folder for the simulated tiles and the pretrainings")
    parser.add_argument("--list", action="store_true", help="print the regimes and what is rehearsed of them, and end")
    parser.add_argument("--jobs", type=whole(1), default=2, help="processes, one thread each")
    parser.add_argument("--report", action="store_true", help="write the table of what is there into PAPER.md, and end")
    args = parser.parse_args(argv)
    if args.report:
        write_table()
        return results.publish("studies.rehearsal", table())
    if args.list:
        for regime in regimes():
            print("{dataset:13} {model:9} {label_percent:3} % from {start:9} {tiles:6} tiles {steps_an_epoch:4} steps "
                  "an epoch, stops after {steps} to {latest}".format(**regime))
        return
    forest(args.work)
    wanted = [training for training in dict.fromkeys([*TRIED, *trainings()]) if training not in read_lines()]
    # the slower, and the less in doubt
    last = ("mlp", "pse_ltae", "scalemae", "vit", "satmae", "resnet50", "dofa")
    wanted.sort(key=lambda training: last.index(training[0]) if training[0] in last else -1)
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        for number, _ in enumerate(pool.imap_unordered(rehearse, [(training, args.work) for training in wanted]), 1):
            print(f"{number} of {len(wanted)} trainings", file=sys.stderr, flush=True)
            write_table()
    write_table()


if __name__ == "__main__":
    main()
