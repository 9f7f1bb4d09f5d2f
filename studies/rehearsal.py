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
import csv
import json
import math
import multiprocessing
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from models.compared.inputs import median
from models.methods import METHODS, build_model
from models.norms import BatchNorm
from tables.cells import paper_cells
from studies.data import Tiles, forest, rows_of
from studies.finetuning import OUT, commit, predict, publish, start_from, steps_of
from utils import metrics
from utils.files import written_whole
from utils.numbers import whole

# training tiles: TreeSatAI's list without the 15 % of its validation, folds 1 to 3, 32 domains of FLAIR
TILES = {"treesatai": 38_520, "treesatai-ts": 38_520, "pastis-hd": 1_455, "flair": 47_587}
STEP, EPOCH, EARLIEST, LATEST, PATIENCE = 384, 20, 50, 200, 10    # tiles, and finetune.py's defaults
SHORT, PASSES = 2000, 0.95    # steps of what is rehearsed, at the earliest stop; the share of precision that must be there by then
ASIDE, BATCH = 300, 16
WIDTHS = {"pse": 1, "mlp": 1, "pse_ltae": 1, "resnet50": 0.125, "satmae": 0.125, "scalemae": 0.125, "dofa": 0.125}    # others: 0.25


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
        found.setdefault(key, {"dataset": key[0], "model": key[1], "label_percent": percent, "start": key[3], "tiles": tiles,
                               "steps_an_epoch": an_epoch, "steps": EARLIEST * an_epoch, "latest": LATEST * an_epoch, "modalities": set()})
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
TRIED = [("omnisat, odds", "s2", 2e-4, "self"), ("omnisat, batch", "s2", 2e-4, "self"), ("omnisat, odds", "s2", 2e-5, "self"),
         ("omnisat, batch", "s2", 2e-5, "self"), ("croma", "s2", 2e-5, "self"),
         ("croma", "s2", 2e-4, "self")]


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
    order = torch.randperm(len(train["label"]), generator=torch.Generator().manual_seed(0))    # the list is sorted by species
    splits = {"train": rows_of(train, order[ASIDE:]), "val": tiles.splits["val"], "test": rows_of(train, order[:ASIDE])}
    return Tiles([sensor for sensor in tiles.sensors if sensor.key in keys],
                 {name: seen(model, batch, keys) for name, batch in splits.items()})


# ---- trainings ------------------------------------------------------------------------------------------------------

def options_of(model, modality, classes):
    """Options of the method's constructor."""
    if model == "omnisat":
        return {"embed_dim": 256, "depth": 6, "num_classes": classes}
    rates = METHODS[model].rates
    dataset = next(dataset for dataset in ("treesatai", "treesatai-ts", "pastis-hd") if modality in rates.get(dataset, ()))
    return {"num_classes": classes, "dataset": dataset, "width": WIDTHS.get(model, 0.25)}


def new_model(name, tiles, modality, classes):
    model = build_model(name, tiles.sensors, **options_of(name, modality, classes))
    model.standardize.set(tiles.statistics())
    return model


def pretrained(name, modality, work):
    """The weights of a method that pretrains itself, kept in a file."""
    target = Path(work) / f"rehearsal-{name}-{modality}.pt"
    if not target.exists():
        keys, steps, rate = (("s2", "s1"), 800, 1e-4) if name == "omnisat" else (("s2", "s1") if name == "croma" else (modality,), 300, 1e-3)
        tiles = tiles_of(name, keys, work)
        torch.manual_seed(0)
        model, generator = new_model(name, tiles, modality, 0), torch.Generator().manual_seed(0)
        optimizer = torch.optim.Adam(model.parameters(), rate, fused=True)
        for rows in steps_of(torch.arange(len(tiles.splits["train"]["label"])), BATCH, steps, 0):
            batch = rows_of(tiles.splits["train"], rows)
            model.pretrain_loss(batch, model.draw_masks(batch, generator))[0].backward()
            optimizer.step()
            optimizer.zero_grad()
        with written_whole(target, "wb") as file:
            torch.save(model.state_dict(), file)
    return torch.load(target, weights_only=True)


def rehearse(job):
    """One training of LATEST epochs; its line is added.

    kept: the epochs that were the best so far, with their precision and weighted F1 of the tiles set aside. epochs: of
    each one loss and macro F1 of the validation tiles, the rate, which the scheduler cuts, and those two.
    """
    (called, modality, rate, start), work = job
    name, _, head = called.partition(", ")
    torch.set_num_threads(1)
    began, tiles = time.time(), tiles_of(name, (modality,), work)
    weights = pretrained(name, modality, work) if start == "self" else {}
    torch.manual_seed(0)
    model = new_model(name, tiles, modality, tiles.splits["train"]["label"].shape[1])
    train, val, aside = tiles.splits["train"], tiles.splits["val"], tiles.splits["test"]
    if head:
        dim, classes = model.head[1].in_features, model.head[1].out_features
        model.head = torch.nn.Sequential(BatchNorm(dim, affine=False) if head != "linear" else torch.nn.Identity(), torch.nn.Linear(dim, classes))
        if head == "odds":
            model.head[1].bias.data = torch.logit(train["label"].mean(0))
    if weights:
        start_from(model, weights, name)
    optimizer = torch.optim.Adam(model.parameters(), rate, fused=True)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=10)
    constant, best, kept, curve = metrics.constant_scores(train["label"], val["label"]), None, [], []
    batch_size = 4 if name == "dofa" else BATCH                               # of 197 tokens each, whatever their pixels
    for step, rows in enumerate(steps_of(torch.arange(len(train["label"])), batch_size, EPOCH * LATEST, 0), 1):
        batch = rows_of(train, rows)
        loss = sum(F.binary_cross_entropy_with_logits(logits, batch["label"]) for logits in model.train().all_logits(batch))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % EPOCH:
            continue
        logits = predict(model, val, 64)
        loss = F.binary_cross_entropy_with_logits(logits, val["label"]).item()
        scheduler.step(loss)
        f1 = metrics.f1_scores(metrics.count(logits, val["label"]))["f1_macro"]
        logits = predict(model, aside, 64)
        scores = [round(metrics.mean_average_precision(logits, aside["label"]), 3),
                  round(metrics.f1_scores(metrics.count(logits, aside["label"]))["f1_weighted"], 3)]
        curve.append([round(loss, 4), round(f1, 2), optimizer.param_groups[0]["lr"], *scores])
        if best is None or metrics.epoch_score(loss, f1, constant) > best:
            best = metrics.epoch_score(loss, f1, constant)
            kept.append([step // EPOCH, *scores])
    line = {"model": called, "modality": modality, "rate": rate, "start": start, "kept": kept, "epochs": curve,
            "seconds": round(time.time() - began), "constant": metrics.mean_average_precision(torch.zeros_like(aside["label"]), aside["label"]), "commit": commit()}
    OUT.mkdir(parents=True, exist_ok=True)
    with open(OUT / "rehearsal.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


# ---- the table ------------------------------------------------------------------------------------------------------

COLUMNS = ("dataset", "model", "label_percent", "start", "modality", "rate", "tiles", "steps_an_epoch", "steps", "map", "map_four_times",
           "ratio", "passes", "reason")


def read_lines():
    """{(model, modality, rate, start): line} of rehearsal.jsonl."""
    path = OUT / "rehearsal.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {(line["model"], line["modality"], line["rate"], line["start"]): line for line in lines}


def kept_by(line, epoch):
    """Precision and weighted F1 of the epoch kept by then."""
    return [scores for at, *scores in line["kept"] if at <= epoch][-1]


def stop_of(line):
    """The epoch after which finetune.py would stop: 10 without a better one, at the earliest after EARLIEST."""
    epochs = [at for at, *_ in line["kept"]]
    return next((epoch for epoch in range(EARLIEST, LATEST) if epoch - max(at for at in epochs if at <= epoch) >= PATIENCE), LATEST)


# why a default that fails altogether is left as it is
LEFT = {
    ("croma", 2e-5): "it misses 95 % by a little at a quarter of its width, where a rate is slower than at full width; 2e-4 reaches its "
                     "end in 28 epochs, one point higher, one seed. Its authors' rate is left",
    ("utt", 1e-3): "it misses 95 % by half a point at a quarter of its width; the official rate, 1e-3, is high already and is left",
}


def reason_of(line):
    """Why a training that does not pass need not, from its own numbers, or why it is left; "" for one that passes."""
    early, late, stop = kept_by(line, EARLIEST)[0], kept_by(line, LATEST)[0], stop_of(line)
    at_stop = kept_by(line, stop)[0]
    if early >= PASSES * late:
        return ""
    if at_stop < PASSES * late:
        return (f"fails: it stops after {stop} epochs with {at_stop:.1f}, {at_stop / late:.3f} of what {LATEST} reach: "
                + LEFT[line["model"], line["rate"]])
    return (f"it still improves after {EARLIEST} epochs, so it is not stopped there but after {stop}, with {at_stop:.1f}: "
            f"{at_stop / late:.3f} of what {LATEST} reach")


def table():
    """A line for each training, markdown: those of the defaults, then what else was tried."""
    lines = ["| method | sees | rate | from | mAP / weighted F1 after 50 epochs | after 200 | ratio of mAP | stops after, with | stands for |",
             "|" + "---|" * 9]
    found, measured = trainings(), read_lines()
    for training in dict.fromkeys([*found, *TRIED]):
        if training in measured:
            (early, f1), (late, late_f1) = (kept_by(measured[training], epoch) for epoch in (EARLIEST, LATEST))
            stands_for = ", ".join(f"{regime['dataset']} {regime['label_percent']} %" for regime in found.get(training, ())) or "tried only"
            lines.append(f"| {training[0]} | {training[1]} | {training[2]:g} | {training[3]} | {early:.1f} / {f1:.1f} | "
                         f"{late:.1f} / {late_f1:.1f} | {early / late:.3f} | {stop_of(measured[training])}, "
                         f"{kept_by(measured[training], stop_of(measured[training]))[0]:.1f} | {stands_for} |")
    return "\n".join(lines) + "\n"


def write_table():
    """rehearsal.csv, of the lines that are there."""
    lines, rows = read_lines(), []
    for training, found in trainings().items():
        if training not in lines:
            continue
        early, late = (kept_by(lines[training], epoch)[0] for epoch in (EARLIEST, LATEST))
        for regime in found:
            rows.append({name: regime[name] for name in COLUMNS if name in regime} | {
                "modality": training[1], "rate": f"{training[2]:g}", "map": f"{early:.1f}", "map_four_times": f"{late:.1f}",
                "ratio": f"{early / late:.3f}", "passes": early >= PASSES * late, "reason": reason_of(lines[training])})
    with written_whole(OUT / "rehearsal.csv") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", default="data/study", help="folder for the simulated tiles and the pretrainings")
    parser.add_argument("--list", action="store_true", help="print the regimes and what is rehearsed of them, and end")
    parser.add_argument("--jobs", type=whole(1), default=2, help="processes, one thread each")
    parser.add_argument("--report", action="store_true", help="write the table of what is there into PAPER.md, and end")
    args = parser.parse_args(argv)
    if args.report:
        write_table()
        return publish("studies.rehearsal", table())
    if args.list:
        for regime in regimes():
            print("{dataset:13} {model:9} {label_percent:3} % from {start:9} {tiles:6} tiles {steps_an_epoch:4} steps an epoch, stops after "
                  "{steps} to {latest}".format(**regime))
        return
    forest(args.work)
    wanted = [training for training in dict.fromkeys([*TRIED, *trainings()]) if training not in read_lines()]
    last = ("mlp", "pse_ltae", "scalemae", "vit", "satmae", "resnet50", "dofa")    # the slower, and the less in doubt
    wanted.sort(key=lambda training: last.index(training[0]) if training[0] in last else -1)
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        for number, _ in enumerate(pool.imap_unordered(rehearse, [(training, args.work) for training in wanted]), 1):
            print(f"{number} of {len(wanted)} trainings", file=sys.stderr, flush=True)
            write_table()
    write_table()


if __name__ == "__main__":
    main()
