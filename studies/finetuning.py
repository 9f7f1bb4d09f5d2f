"""What pretraining, head and rate are worth after fine-tuning: the measurements behind the defaults (PAPER.md,
"Measured here").

    python -m studies.finetuning --work DIR --canada canada_cube.npz      # hours on 2 cores; goes on where it stopped
    python -m studies.finetuning --work DIR --only head,rate              # some of the parts
    python -m studies.finetuning --report                                 # PAPER.md's tables, of the rows there are

Each part asks one question, changes one thing, and pairs runs by seed, which decides weights, the labelled tiles and
their order. Epochs (20 steps) are chosen on validation tiles as finetune.py does; the study's own test tiles are
scored once, at the end of a run, and no table's test tile is among them. The plan was stated before it was run, and
cut to the time at hand while it ran (git log). A change is taken if the mean paired difference of the weighted F1 over
data, labels and starts is above 0 with its 95 % interval (t over seeds), and its mean average precision does not fall.
Models have D = 64 and a combiner of depth 2; 16 tiles a step of forest, 32 of crops (studies/data.py). Small models on
simulated tiles and on pixels: no number here says anything about the paper's.

Rows go to results/study/ as they come: finetuning.csv, features.csv (frozen features) and dates.csv (what equation 5
looks at).
"""
import argparse
import itertools
import multiprocessing
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

from studies.data import crops, forest
from studies.finetuning_report import tables
from studies.frozen import conditioning, features, probe, watch_dates, write_stages
from studies.results import append, commit, publish, read
from studies.training import BATCH, Schedule, finetune, pretrain, start_from
from studies.variants import IMAGES, build, head
from utils import metrics
from utils.numbers import whole

PRETRAIN_STEPS, STEPS = 1500, 400


# ---- the plan -------------------------------------------------------------------------------------------------------

class Run(NamedTuple):
    """A row's key. part: the question; start: scratch or pretrained; variant: of build; head, rate: of fine-tuning."""
    part: str
    data: str
    modality: str
    percent: int
    start: str
    variant: str
    head: str
    rate: float
    seed: int


class Part(NamedTuple):
    """Runs of one question: each choice of these with each other, fields as of Run."""
    part: str
    data: tuple
    modalities: tuple
    percents: tuple = (10, 100)
    starts: tuple = ("scratch", "pretrained")
    variants: tuple = ("as_now",)
    heads: tuple = ("batch",)    # what the first question decided
    rates: tuple = (1e-3,)
    seeds: tuple = tuple(range(5))


FOREST, CROPS, BOTH = ("forest",), ("crops",), ("forest", "crops")
S2, ALL, FEW, NOW = ("s2",), ("all",), (10,), "as_now"
LOADED, SCRATCH, THREE = ("pretrained",), ("scratch",), (0, 1, 2)
IMAGE = "image_linear"    # of IMAGES the best by frozen features, one seed
PLAN = (
    Part("head", BOTH, S2, FEW, heads=("linear", "odds_linear", "layer", "batch", "odds_batch")),    # 1. which head
    Part("head", BOTH, S2, (100,), heads=("linear", "batch", "odds_batch")),
    Part("rate", BOTH, S2, FEW, heads=("linear", "batch"), rates=(1e-4, 3e-3)),                      # 2. at which rate
    Part("rate", BOTH, S2, FEW, heads=("odds_batch",), rates=(1e-4,)),
    Part("head", CROPS, ALL, heads=("linear", "batch")),
    Part("head", FOREST, ALL, heads=("linear", "batch")),
    Part("image", FOREST, ("vhr",), starts=LOADED, variants=(NOW, IMAGE)),    # 3. the image's token
    Part("image", FOREST, ("vhr",), starts=SCRATCH),
    Part("image", FOREST, ALL, FEW, starts=LOADED, variants=(NOW, IMAGE)),
    Part("ltae", BOTH, S2, variants=(NOW, "ltae_start"), seeds=THREE),    # 4. where L-TAE starts
    Part("filter", FOREST, S2, starts=LOADED, variants=(NOW, "tile_dates")),    # 5. dates of a tile
    Part("dropout", CROPS, S2, variants=(NOW, "dropout")),    # 8. in pretraining too
    Part("dropout", FOREST, S2, variants=(NOW, "dropout"), seeds=THREE))
# 6. which dates equation 5 looks at
DATES = [(ablation, seed) for ablation in ("none", "no_contrastive") for seed in range(2)]
SCREEN = [("forest", f"image_{name}", 0) for name in IMAGES]


def plan():
    """All runs."""
    return list(dict.fromkeys(Run(part, *values) for part, *choices in PLAN for values in itertools.product(*choices)))


def pretraining_of(run):
    """What a run starts from: (data, variant, seed)."""
    return run.data, run.variant, run.seed


# ---- running --------------------------------------------------------------------------------------------------------

_tiles = {}


def tiles_of(data, work, canada):
    if data not in _tiles:
        _tiles[data] = forest(work) if data == "forest" else crops(canada)
    return _tiles[data]


def schedule_of(data, seed):
    """Of a pretraining."""
    return Schedule(BATCH[data], 1e-3, PRETRAIN_STEPS, seed)


def prepare(job):
    """Pretrain, unless it is done; score the frozen features of it and of its first, random weights."""
    (data, variant, seed), work, canada = job
    torch.set_num_threads(1)
    target, tiles = Path(work) / f"{data}-{variant}-{seed}.pt", tiles_of(data, work, canada)
    if target.exists():
        return
    began = time.time()
    torch.manual_seed(seed)
    weights = pretrain(tiles, build(variant, tiles.sensors, tiles.statistics()), schedule_of(data, seed))
    torch.manual_seed(seed)
    model, y = build(variant, tiles.sensors, tiles.statistics()), tiles.splits["train"]["label"]
    labels = tiles.splits["test"]["label"].numpy()
    for start, state in (("random", model.state_dict()), ("pretrained", weights)):
        model.load_state_dict(state)
        train, test = features(model, tiles.splits["train"]), features(model, tiles.splits["test"])
        for (name, x), percent in itertools.product(train.items(), (10, 100)):
            constant, rank = conditioning(x)
            logits = probe(x, y, test[name], tiles.labelled(percent, seed))
            scores = metrics.scores(logits, labels)
            append("features.csv", {
                "data": data, "variant": variant, "seed": seed, "start": start, "features": name, "percent": percent,
                **{name: f"{scores[name]:.3f}" for name in ("f1_weighted", "map")}, "constant_share": f"{constant:.4g}",
                "rank": f"{rank:.4g}", "steps": PRETRAIN_STEPS, "seconds": f"{time.time() - began:.0f}",
                "commit": commit()})
    torch.save(weights, target)


def perform(job):
    """One run, its row added."""
    run, work, canada = job
    torch.set_num_threads(1)
    began, tiles = time.time(), tiles_of(run.data, work, canada)
    sensors = [sensor for sensor in tiles.sensors if run.modality in ("all", sensor.key)]
    rows, labels = tiles.labelled(run.percent, run.seed), tiles.splits["train"]["label"]
    torch.manual_seed(run.seed)
    model = build(run.variant, sensors, tiles.statistics(), classes=labels.shape[1])
    model.head = head(run.head, labels.shape[1], labels[rows])
    if run.start == "pretrained":
        weights = torch.load(Path(work) / f"{run.data}-{run.variant}-{run.seed}.pt", weights_only=True)
        start_from(model, weights, run)
    logits, kept = finetune(tiles, model, rows, Schedule(BATCH[run.data], run.rate, STEPS, run.seed))
    labels = tiles.splits["test"]["label"].numpy()
    scores = metrics.scores(logits.numpy(), labels)
    append("finetuning.csv", run._asdict() | {
        **{name: f"{scores[name]:.3f}" for name in ("f1_weighted", "f1_macro", "map")},
        "kept": kept, "steps": STEPS, "seconds": f"{time.time() - began:.1f}", "commit": commit()})


def dates(job):
    """Which dates equation 5 looks at in one pretraining, its rows added."""
    (ablation, seed), work = job
    torch.set_num_threads(1)
    watch_dates(forest(work), ablation, schedule_of("forest", seed))


def command_line():
    """The ArgumentParser."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", default="data/study", help="folder for the simulated tiles and the pretrainings")
    parser.add_argument("--canada", metavar="FILE",
                        help="canada_cube.npz; without it only the simulated tiles are learned from")
    parser.add_argument("--only", default="", metavar="PARTS", help="such as head,rate; default: all parts")
    parser.add_argument("--jobs", type=whole(1), default=2, help="processes, one thread each")
    parser.add_argument("--report", action="store_true",
                        help="write the tables of the rows that are there into PAPER.md, and end")
    return parser


def main(argv=None):
    args = command_line().parse_args(argv)
    if args.report:
        return publish("studies.finetuning", tables())
    parts = args.only.split(",") if args.only else [part.part for part in PLAN]
    done = {tuple(row[name] for name in Run._fields) for row in read("finetuning.csv")}
    wanted = [run for run in plan() if run.part in parts and (args.canada or run.data != "crops")
              and tuple(map(str, run)) not in done]
    forest(args.work)                                                         # written once, before the processes begin
    starts = dict.fromkeys([*(SCREEN if args.only in ("", "screen") else []),
                            *(pretraining_of(run) for run in wanted if run.start == "pretrained")])
    watched = {(row["ablation"], int(row["seed"])) for row in read("dates.csv")}
    watched = [start for start in DATES if start not in watched and args.only in ("", "dates")]
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        def work_through(what, function, jobs):
            for number, _ in enumerate(pool.imap_unordered(function, jobs), 1):
                print(f"{what} {number}/{len(jobs)}", file=sys.stderr, flush=True)
        work_through("dates", dates, [(start, args.work) for start in watched])
        work_through("pretraining", prepare, [(start, args.work, args.canada) for start in starts])
        write_stages(args.work)
        work_through("run", perform, [(run, args.work, args.canada) for run in wanted])


if __name__ == "__main__":
    main()
