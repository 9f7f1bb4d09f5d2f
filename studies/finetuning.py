"""What pretraining, head and rate are worth after fine-tuning: the measurements behind the defaults (PAPER.md,
"Measured here").

    python -m studies.finetuning --work DIR --canada canada_cube.npz      # hours on 2 cores; goes on where it stopped
    python -m studies.finetuning --work DIR --only head,rate              # some of the parts
    python -m studies.finetuning --report                                 # PAPER.md's tables, of the rows that are there

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
import copy
import csv
import functools
import itertools
import math
import multiprocessing
import sys
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import t as student
from sklearn.linear_model import LogisticRegression
from torch import nn

from engine.log import provenance
from losses.reconstruction import top_dates
from models import combiner
from models.fast.image import GeluPool, ImageEncoder, images, rows as pixels
from models.fast.omnisat import FastOmniSat as OmniSat, fast_form
from models.norms import BatchNorm
from studies.data import crops, forest, rows_of
from utils.errors import UserError
from utils.files import wait_for_lock, written_whole
from utils.metrics import constant_scores, count, epoch_score, f1_scores, mean_average_precision
from utils.numbers import whole

ROOT = Path(__file__).parent.parent
OUT, PAPER = ROOT / "results" / "study", ROOT / "PAPER.md"
DIM, DEPTH, EPOCH = 64, 2, 20
DROP = 0.2                    # of variant dropout: the official code's
BATCH = {"forest": 16, "crops": 32}
PRETRAIN_STEPS, STEPS = 1500, 400
SEEDS = range(5)


# ---- what is varied -------------------------------------------------------------------------------------------------

def head(name, classes, labels):
    """The head (B, D) -> (B, K): [odds_][layer|batch]. odds: the bias begins at the log-odds of the training labels."""
    norms = {"linear": [], "layer": [nn.LayerNorm(DIM, elementwise_affine=False)], "batch": [BatchNorm(DIM, affine=False)]}
    linear = nn.Linear(DIM, classes)
    if name.startswith("odds_"):
        linear.bias.data = torch.logit(labels.mean(0).clamp(1e-3, 1 - 1e-3))
    return nn.Sequential(*norms[name.removeprefix("odds_")], linear)


class LinearToken(ImageEncoder):
    """A linear layer behind the last pool."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.last = nn.Linear(sizes[-1], sizes[-1])

    def forward(self, x):
        token, indices = super().forward(x)
        return self.last(token), indices


class NormedToken(ImageEncoder):
    """A layer norm behind the last pool, as the series' encoder ends in."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.last = nn.LayerNorm(sizes[-1])

    def forward(self, x):
        token, indices = super().forward(x)
        return self.last(token), indices


class RawToken(ImageEncoder):
    """The last max-pool without its GELU."""

    def forward(self, x):
        x, indices = self.stem(x.contiguous(memory_format=torch.channels_last)), []
        for block in self.blocks:
            x, index = GeluPool.apply(x, None, 2)
            indices.append(index)
            x = block(x)
        index = F.max_pool2d(x, self.sizes[-1], return_indices=True)[1].short()
        return images(pixels(x).gather(1, pixels(index).long()), 1).flatten(1), [*indices, index]


IMAGES = {"linear": LinearToken, "norm": NormedToken, "raw": RawToken}


class DroppedAttention(combiner.Attention):
    """The combiner's attention, a share DROP of its weights dropped; term by term, for few tokens."""

    def forward(self, x, context, buckets):
        q = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)                 # B x H x N x D/H
        k, v = self.key_value(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        by_bucket = (q @ self.relative.t()).gather(3, buckets.long().expand(*q.shape[:2], -1, -1))    # B x H x N x S
        weights = F.dropout(((q @ k.mT + by_bucket) / q.shape[-1] ** 0.5).softmax(-1), DROP, self.training)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class DroppedBlock(combiner.Block):
    """The combiner's block with the official code's dropout and drop-path.

    Dropped are a share DROP of what attention and MLP give, of the MLP's hidden units and of attention weights; and by
    drop-path attention for a share DROP of the tiles, the MLP for as many. Cross-attention has no drop-path, as all
    that a tile says goes through it.
    """

    def __init__(self, dim, heads, cross=False):
        super().__init__(dim, heads, cross)
        self.attention, self.drop_path = DroppedAttention(dim, heads), 0 if cross else DROP

    def forward(self, x, buckets, context=None):
        normed = self.norm(x)
        context = normed if context is None else self.norm_context(context)
        x = x + self.dropped(self.attention(normed, context, buckets))
        norm, first, gelu, last = self.mlp
        return x + self.dropped(last(F.dropout(gelu(first(norm(x))), DROP, self.training)))

    def dropped(self, branch):
        """Dropout, then stochastic depth: of whole tiles (B, N, D), the expectation kept."""
        path = F.dropout(branch.new_ones(len(branch), 1, 1), self.drop_path, self.training)
        return F.dropout(branch, DROP, self.training) * path


def add_dropout(model):
    """The official code's dropout in the combiner, and behind the MLP of each L-TAE; weights stay."""
    parts = model.combiner
    with torch.random.fork_rng():                                             # what is drawn later stays what it was
        for number, block in enumerate(parts.blocks):
            parts.blocks[number] = dropped_like(block, False)
        parts.cross = dropped_like(parts.cross, True)
    for key, sensor in model.sensors.items():
        if sensor.kind == "series":
            model.encoders[key].out[0].append(nn.Dropout(DROP))


def dropped_like(block, cross):
    new = DroppedBlock(block.norm.weight.numel(), block.attention.heads, cross)
    new.load_state_dict(block.state_dict())
    return new


class TileDates(OmniSat):
    """Equation 5 looks at one set of dates a tile, by the attention averaged over its patches."""

    def tokens_of(self, key, *rest):
        tokens, context = super().tokens_of(key, *rest)
        if self.sensors[key].kind == "series":
            context = [context[0].mean(1, keepdim=True).expand_as(context[0])]
        return tokens, context


def build(variant, sensors, statistics, classes=0):
    """A model: "as_now", "image_<of IMAGES>", "ltae_start" (queries, keys: N(0, 2 / d_k)), "tile_dates", "dropout"."""
    model = (TileDates if variant == "tile_dates" else OmniSat)(sensors, DIM, DEPTH, num_classes=classes)
    model.standardize.set(statistics)
    for key, sensor in model.sensors.items():
        if sensor.kind == "image" and variant.startswith("image_"):
            model.encoders[key] = IMAGES[variant.removeprefix("image_")](len(sensor.bands), sensor.patch, DIM)
        if sensor.kind == "series" and variant == "ltae_start":
            for weight in (model.encoders[key].query, model.encoders[key].key.weight):
                nn.init.normal_(weight, 0, math.sqrt(2 / model.encoders[key].query.shape[1]))
    if variant == "dropout":
        add_dropout(model)
    return fast_form(model)


# ---- training -------------------------------------------------------------------------------------------------------

def steps_of(rows, batch, steps, seed):
    """The rows of each step, an order a pass."""
    generator = torch.Generator().manual_seed(seed)
    passes = (rows[torch.randperm(len(rows), generator=generator)].split(batch) for _ in itertools.count())
    return itertools.islice(itertools.chain.from_iterable(passes), steps)


def pretrain(tiles, model, seed, batch, watch=lambda step: None):
    """Pretrain a model. watch(step): called every 250 steps, before them and at the end. Returns its weights."""
    train, optimizer = tiles.splits["train"], torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    generator = torch.Generator().manual_seed(seed)
    for step, rows in enumerate(steps_of(torch.arange(len(train["label"])), batch, PRETRAIN_STEPS, seed)):
        if step % 250 == 0:
            watch(step)
        part = rows_of(train, rows)
        loss, _ = model.train().pretrain_loss(part, model.draw_masks(part, generator))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    watch(PRETRAIN_STEPS)
    return model.state_dict()


@torch.no_grad()
def chosen_dates(model, split):
    """What equation 5 looks at: of each series {key: numbers}, over all its tokens that a fixed draw masks.

    square: mean square of the standardised values of the dates that are chosen, and of all; error: of the
    reconstruction at these; attention: the share of it that the chosen dates have.
    """
    masks, found = model.eval().draw_masks(split, torch.Generator().manual_seed(0)), {}
    tokens, _, (context,) = model.encode(split)                               # one part
    f = model.combine(tokens, masks["is_masked"], model.grid(split)).flatten(0, 1)
    for key, sensor in model.sensors.items():
        if sensor.kind == "series":
            target = masks[f"{key}_targets"]
            tile = target // tokens.shape[2]
            dates, is_date = split[f"{key}_dates"][tile], ~split[f"{key}_padded"][tile]
            x, attention = model.patches(key, split[key]).flatten(0, 1)[target], context[key][0].flatten(0, 1)[target]
            error = (model.decoders[key](f[target], dates) - x).square().mean(2)
            index, is_used = top_dates(attention, ~is_date)
            is_chosen = torch.zeros_like(is_date).scatter(1, index, is_used)
            found[key] = {"square_chosen": x.square().mean(2)[is_chosen].mean(), "square_all": x.square().mean(2)[is_date].mean(),
                          "error_chosen": error[is_chosen].mean(), "error_all": error[is_date].mean(),
                          "attention_chosen": (attention * is_chosen).sum(1).mean()}
    return found


def watch_dates(job):
    """Pretrain on S2 and S1 alone and write down, every 250 steps, what equation 5 looks at."""
    (ablation, seed), work = job
    torch.set_num_threads(1)
    tiles = forest(work)
    torch.manual_seed(seed)
    model = OmniSat(tiles.sensors[1:], DIM, DEPTH, ablation=ablation)
    model.standardize.set(tiles.statistics())
    rows = []

    def watch(step):
        for key, numbers in chosen_dates(model, tiles.splits["val"]).items():
            rows.append({"ablation": ablation, "seed": seed, "step": step, "sensor": key} | {
                name: f"{value:.4f}" for name, value in numbers.items()} | {"commit": commit()})
    pretrain(tiles, model, seed, BATCH["forest"], watch)
    for row in rows:
        append(OUT / "dates.csv", row)


def start_from(model, weights, what):
    """Load what a pretraining has for a model: all but its head, which is new. what: for the error, RuntimeError."""
    wanted = {name: value for name, value in weights.items() if name in model.state_dict() and not name.startswith("head")}
    missing = model.load_state_dict(wanted, strict=False).missing_keys
    if any(not name.startswith("head") for name in missing):
        raise RuntimeError(f"{what}: its pretraining lacks {missing}")


@torch.no_grad()
def predict(model, split, size=128):
    """Logits (N, K) of a whole split."""
    model.eval()
    return torch.cat([model(rows_of(split, slice(at, at + size))) for at in range(0, len(split["label"]), size)])


def finetune(tiles, model, rows, batch, rate, steps, seed):
    """Train on the rows. Returns the test logits of the epoch kept, and its step."""
    optimizer = torch.optim.Adam(model.parameters(), rate, fused=True)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=10)
    train, val = tiles.splits["train"], tiles.splits["val"]
    constant, best = constant_scores(train["label"][rows], val["label"]), None
    for step, some in enumerate(steps_of(rows, batch, steps, seed), 1):
        part = rows_of(train, some)
        loss = F.binary_cross_entropy_with_logits(model.train()(part), part["label"])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % EPOCH == 0:
            logits = predict(model, val)
            loss = F.binary_cross_entropy_with_logits(logits, val["label"]).item()
            scheduler.step(loss)
            score = epoch_score(loss, f1_scores(count(logits.numpy(), val["label"].numpy()))["f1_macro"], constant)
            if best is None or score > best[0]:
                best = score, step, copy.deepcopy(model.state_dict())
    model.load_state_dict(best[2])
    return predict(model, tiles.splits["test"]), best[1]


@torch.no_grad()
def features(model, split, size=128):
    """{"tokens <key>", "f*"}: (N, D), means over the patches, of a model in evaluation mode."""
    found = {f"tokens {key}": [] for key in model.sensors} | {"f*": []}
    model.eval()
    for at in range(0, len(split["label"]), size):
        batch = rows_of(split, slice(at, at + size))
        tokens, present, _ = model.encode(batch)
        for m, key in enumerate(model.sensors):
            found[f"tokens {key}"].append(tokens[:, m].mean(1))
        found["f*"].append(model.combine(tokens, ~present[:, :, None].expand(tokens.shape[:3]), model.grid(batch)).mean(1))
    found = {name: torch.cat(parts) for name, parts in found.items()}
    return found | {"tokens all": torch.cat([value for name, value in found.items() if name != "f*"], 1)}


def conditioning(x):
    """Of vectors (N, D): the share of their mean square that is the same for all, and the effective rank of the rest
    (Roy and Vetterli).
    """
    spectrum = torch.linalg.svdvals(x - x.mean(0)).square()
    share = spectrum / spectrum.sum()
    return (x.mean(0).square().sum() / x.square().sum(1).mean()).item(), (-share * share.clamp(min=1e-20).log()).sum().exp().item()


@torch.no_grad()
def stages(model, batch):
    """{stage: vectors} on the way from the tokens to the mean of f*: where do they lose their directions?"""
    tokens, present, _ = model.eval().encode(batch)
    found, cross = {f"tokens {key}": tokens[:, m].flatten(0, 1) for m, key in enumerate(model.sensors)}, model.combiner.cross
    hooks = [module.register_forward_hook(lambda _, __, y, name=name: found.update({name: y.flatten(0, 1)})) for name, module in (
        ("cross-attention", cross.attention), ("and its MLP", cross), ("and the last norm: f*", model.combiner.norm))]
    f = model.combine(tokens, ~present[:, :, None].expand(tokens.shape[:3]), model.grid(batch))
    for hook in hooks:
        hook.remove()
    return found | {"mean over patches": f.mean(1)}


def write_stages(work):
    """stages.csv, of the pretrainings of forest that are there."""
    tiles, path = forest(work), OUT / "stages.csv"
    path.unlink(missing_ok=True)
    for weights in sorted(Path(work).glob("forest-*-*.pt")):
        variant, seed = weights.stem.split("-")[1:]
        torch.manual_seed(int(seed))
        model = build(variant, tiles.sensors, tiles.statistics())
        for start, state in (("random", model.state_dict()), ("pretrained", torch.load(weights, weights_only=True))):
            model.load_state_dict(state)
            for stage, x in stages(model, tiles.splits["val"]).items():
                constant, rank = conditioning(x)
                append(path, {"variant": variant, "start": start, "seed": seed, "stage": stage, "constant_share": f"{constant:.3f}",
                              "rank": f"{rank:.2f}", "silent": int((x.std(0) < 0.1 * x.std(0).max()).sum()), "commit": commit()})


def probe(x, y, test, rows):
    """Logits (N, K) of logistic regressions, one a class, on standardised frozen features."""
    mean, std = x[rows].mean(0), x[rows].std(0).clamp(min=1e-6)
    x, test, logits = ((x[rows] - mean) / std).numpy(), ((test - mean) / std).numpy(), []
    for label in y[rows].numpy().T > 0:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logits.append(LogisticRegression(C=0.1, max_iter=300).fit(x, label).decision_function(test) if 0 < label.sum() < len(label)
                          else np.full(len(test), -9.0))
    return np.stack(logits, 1)


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


HEADS = ("linear", "odds_linear", "layer", "batch", "odds_batch")
HEAD, IMAGE = "batch", "image_linear"    # what the first question decided; of IMAGES the best by frozen features, one seed
SCORES = ("f1_weighted", "map")
DATES = [(ablation, seed) for ablation in ("none", "no_contrastive") for seed in range(2)]    # 6. which dates equation 5 looks at
SCREEN = [("forest", f"image_{name}", seed) for name in IMAGES for seed in (0,)]


def plan():
    """All runs."""
    runs = []

    def add(part, data, modalities, starts, variants=("as_now",), heads=(HEAD,), rates=(1e-3,), percents=(10, 100), seeds=SEEDS):
        runs.extend(Run(part, *values) for values in itertools.product(data, modalities, percents, starts, variants, heads, rates, seeds))
    both, starts = ("forest", "crops"), ("scratch", "pretrained")
    add("head", both, ("s2",), starts, heads=HEADS, percents=(10,))           # 1. which head
    add("head", both, ("s2",), starts, heads=("linear", "batch", "odds_batch"), percents=(100,))
    add("rate", both, ("s2",), starts, heads=("linear", "batch"), rates=(1e-4, 3e-3), percents=(10,))    # 2. at which rate
    add("rate", both, ("s2",), starts, heads=("odds_batch",), rates=(1e-4,), percents=(10,))
    add("head", ("crops",), ("all",), starts, heads=("linear", "batch"))
    add("head", ("forest",), ("all",), starts, heads=("linear", "batch"))
    add("image", ("forest",), ("vhr",), ("pretrained",), variants=("as_now", IMAGE))    # 3. the image's token
    add("image", ("forest",), ("vhr",), ("scratch",))
    add("image", ("forest",), ("all",), ("pretrained",), variants=("as_now", IMAGE), percents=(10,))
    add("ltae", both, ("s2",), starts, variants=("as_now", "ltae_start"), seeds=range(3))    # 4. where L-TAE starts from
    add("filter", ("forest",), ("s2",), ("pretrained",), variants=("as_now", "tile_dates"))    # 5. dates of a tile
    add("dropout", ("crops",), ("s2",), starts, variants=("as_now", "dropout"))    # 8. dropout, in pretraining too
    add("dropout", ("forest",), ("s2",), starts, variants=("as_now", "dropout"), seeds=range(3))
    return list(dict.fromkeys(runs))


def pretraining_of(run):
    """What a run starts from: (data, variant, seed)."""
    return run.data, run.variant, run.seed


# ---- running --------------------------------------------------------------------------------------------------------

def append(path, row):
    """Add a row (a dict) to a table; several processes may do so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", newline="", encoding="utf-8") as file:
        wait_for_lock(file)
        writer = csv.DictWriter(file, row, lineterminator="\n")
        if file.tell() == 0:
            writer.writeheader()
        writer.writerow(row)


def read(path):
    """Rows of a table, a list of dicts of text."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


_tiles = {}


@functools.cache
def commit():
    source = provenance("", [], torch.device("cpu"))
    return source["commit"][:7] + ("+" if source["dirty"] else "")


def tiles_of(data, work, canada):
    if data not in _tiles:
        _tiles[data] = forest(work) if data == "forest" else crops(canada)
    return _tiles[data]


def prepare(job):
    """Pretrain, unless it is done; score the frozen features of it and of its first, random weights."""
    (data, variant, seed), work, canada = job
    torch.set_num_threads(1)
    target, tiles = Path(work) / f"{data}-{variant}-{seed}.pt", tiles_of(data, work, canada)
    if target.exists():
        return
    began = time.time()
    torch.manual_seed(seed)
    weights = pretrain(tiles, build(variant, tiles.sensors, tiles.statistics()), seed, BATCH[data])
    torch.manual_seed(seed)
    model, y = build(variant, tiles.sensors, tiles.statistics()), tiles.splits["train"]["label"]
    for start, state in (("random", model.state_dict()), ("pretrained", weights)):
        model.load_state_dict(state)
        train, test = features(model, tiles.splits["train"]), features(model, tiles.splits["test"])
        for name, x in train.items():
            constant, rank = conditioning(x)
            about = {"constant_share": constant, "rank": rank}
            for percent in (10, 100):
                logits = probe(x, y, test[name], tiles.labelled(percent, seed))
                labels = tiles.splits["test"]["label"].numpy()
                append(OUT / "features.csv", {
                    "data": data, "variant": variant, "seed": seed, "start": start, "features": name, "percent": percent,
                    "f1_weighted": f"{f1_scores(count(logits, labels))['f1_weighted']:.3f}",
                    "map": f"{mean_average_precision(logits, labels):.3f}",
                    **{what: f"{value:.4g}" for what, value in about.items()}, "steps": PRETRAIN_STEPS,
                    "seconds": f"{time.time() - began:.0f}", "commit": commit()})
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
    logits, kept = finetune(tiles, model, rows, BATCH[run.data], run.rate, STEPS, run.seed)
    labels = tiles.splits["test"]["label"].numpy()
    scores = f1_scores(count(logits.numpy(), labels)) | {"map": mean_average_precision(logits.numpy(), labels)}
    append(OUT / "finetuning.csv", run._asdict() | {name: f"{scores[name]:.3f}" for name in ("f1_weighted", "f1_macro", "map")} | {
        "kept": kept, "steps": STEPS, "seconds": f"{time.time() - began:.1f}", "commit": commit()})


# ---- reading --------------------------------------------------------------------------------------------------------

def interval(values):
    """Mean of the seeds' values, and half of its 95 % interval (Student's t)."""
    values = np.asarray(values)
    return values.mean(), (student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan)


def compare(rows, what, against, setting):
    """A markdown table: each value of a column, and what it is above one of them, paired by seed.

    rows: dicts. what: the column that is varied. setting: the columns that make a pair together with the seed.
    Differences are means over the settings and seeds that all values have, a column for each of data; n: of the seeds
    of each.
    """
    known = {(row[what], *(row[name] for name in setting), row["seed"]): row for row in rows}
    values = list(dict.fromkeys(row[what] for row in rows))
    settings, seeds = sorted({key[1:-1] for key in known}), sorted({key[-1] for key in known})
    common = [each for each in settings if all(any((value, *each, seed) in known for seed in seeds) for value in values)]
    data = list(dict.fromkeys(each[0] for each in common)) if setting[0] == "data" else [None]
    chosen = {name: [each for each in common if name in (None, each[0])] for name in data}
    paired = {name: [seed for seed in seeds if all((value, *each, seed) in known for value in values for each in chosen[name])]
              for name in data}
    n = " and ".join(map(str, dict.fromkeys(len(paired[name]) for name in data)))
    heads = [f"minus {against}, F1 and mAP{f', {name}' if name else ''}" for name in data]
    lines = [f"| {what} | {' | '.join(' '.join(each) for each in settings)} | {' | '.join(heads)} | n |",
             "|" + "---|" * (len(settings) + len(heads) + 2)]

    def score(value, each, seed, name):
        return float(known[value, *each, seed][name])
    for value in values:
        cells = [" / ".join(f"{np.mean(found):.1f}" for found in (
            [score(value, each, seed, name) for seed in seeds if (value, *each, seed) in known] for name in SCORES) if found)
                 for each in settings]
        differences = []
        for part in data:
            pairs = [[np.mean([score(value, each, seed, name) - score(against, each, seed, name) for each in chosen[part]])
                      for seed in paired[part]] for name in SCORES] if chosen[part] and paired[part] else []
            differences.append(", ".join("{:+.1f} ±{:.1f}".format(*interval(pair)) for pair in pairs))
        lines.append(f"| {value} | {' | '.join(cells)} | {' | '.join(differences)} | {n} |")
    return "\n".join(lines)


def tables():
    """The tables of the rows that are there, markdown."""
    rows, out = read(OUT / "finetuning.csv"), []
    of = {part: [row for row in rows if row["part"] == part] for part in dict.fromkeys(row["part"] for row in rows)}
    where = ("data", "modality", "percent", "start")

    def add(title, part, what, against, setting=where):
        if len({row[what] for row in part}) > 1:
            out.append(f"**{title}**\n\n{compare(part, what, against, setting)}\n")
    for modality in ("s2", "all"):
        add(f"1. The head, {modality}", [row for row in of.get("head", ()) if row["modality"] == modality], "head", "linear")
    for name in ("linear", "batch", "odds_batch"):
        part = [row for row in of.get("rate", []) + of.get("head", []) if (row["head"], row["modality"], row["percent"]) == (name, "s2", "10")]
        add(f"2. The rate, head {name}", sorted(part, key=lambda row: float(row["rate"])), "rate", "0.001")
    for number, (name, title) in enumerate((("image", "The image's token"), ("ltae", "Where L-TAE starts from"),
                                            ("filter", "Dates chosen for a tile, not for each patch")), 3):
        add(f"{number}. {title}, fine-tuned", of.get(name, []), "variant", "as_now")
    add("8. Dropout of 0.2, as in the official code", of.get("dropout", []), "variant", "as_now")
    frozen = [row | {"what": f"{row['start']}, {row['variant']}"} for row in read(OUT / "features.csv")]
    for data in ("forest", "crops"):
        part = [row for row in frozen if row["data"] == data]
        seeds = {row["variant"]: len({r["seed"] for r in part if r["variant"] == row["variant"]}) for row in part}
        add(f"Frozen features, {data}: logistic regression", [row for row in part if seeds[row["variant"]] > 1], "what", "pretrained, as_now",
            ("percent", "features"))
        if tried := [row for row in part if seeds[row["variant"]] == 1]:
            usual = [row for row in part if row["variant"] == "as_now"]
            add(f"Frozen features, {data}, tried with one seed", usual + tried, "what", "pretrained, as_now", ("percent", "features"))
    if rows := read(OUT / "stages.csv"):
        out.append("**7. Where f\\* loses its directions**, forest, validation tiles, means over seeds: share of the mean square that is the "
                   "same for all / effective rank of the rest / dimensions of 64 that hardly vary (under a tenth of the largest standard "
                   "deviation)\n\n" + stages_table(rows) + "\n")
    if watched := read(OUT / "dates.csv"):
        out.append("**6. Which dates equation 5 looks at**, validation tiles, means over seeds\n\n" + dates_table(watched) + "\n")
    return "\n".join(out)


def stages_table(rows):
    """Of stages.csv."""
    lines = ["| weights | n | " + " | ".join(names := list(dict.fromkeys(row["stage"] for row in rows))) + " |", "|" + "---|" * (len(names) + 2)]
    for start, variant in dict.fromkeys((row["start"], row["variant"]) for row in rows):
        part = [row for row in rows if (row["start"], row["variant"]) == (start, variant)]
        cells = [" / ".join(f"{np.mean([float(row[what]) for row in part if row['stage'] == name]):.{digits}f}"
                            for what, digits in (("constant_share", 2), ("rank", 1), ("silent", 0))) for name in names]
        lines.append(f"| {start}, {variant} | {len({row['seed'] for row in part})} | {' | '.join(cells)} |")
    return "\n".join(lines)


def dates_table(rows):
    """Of dates.csv: steps beside each other."""
    names = ("square_chosen", "square_all", "error_chosen", "error_all", "attention_chosen")
    steps = [step for step in ("0", "250", "750", "1500") if any(row["step"] == step for row in rows)]
    lines = [f"| pretraining, series | | {' | '.join(f'{step} steps' for step in steps)} |", "|" + "---|" * (len(steps) + 2)]
    for ablation, sensor in itertools.product(("none", "no_contrastive"), ("s2", "s1")):
        for name in names:
            cells = [np.mean([float(row[name]) for row in rows if (row["ablation"], row["sensor"], row["step"]) == (ablation, sensor, step)]
                             or [math.nan]) for step in steps]
            lines.append(f"| {'both losses' if ablation == 'none' else 'no contrastive loss'}, {sensor} | {name.replace('_', ', ')} | "
                         f"{' | '.join(f'{cell:.2f}' for cell in cells)} |")
    return "\n".join(lines)


def publish(name, text, page=PAPER):
    """Put a text into a page, PAPER.md or another, between <!-- name --> and <!-- end of name -->."""
    before, _, rest = page.read_text(encoding="utf-8").partition(f"<!-- {name} -->\n")
    _, mark, after = rest.partition(f"<!-- end of {name} -->\n")
    if not mark:
        raise UserError(f"{page}: no <!-- {name} --> and <!-- end of {name} --> in it; put them where the tables belong")
    with written_whole(page) as file:
        file.write(f"{before}<!-- {name} -->\n{text}{mark}{after}")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", default="data/study", help="folder for the simulated tiles and the pretrainings")
    parser.add_argument("--canada", metavar="FILE", help="canada_cube.npz; without it only the simulated tiles are learned from")
    parser.add_argument("--only", default="", metavar="PARTS", help="such as head,rate; default: all parts")
    parser.add_argument("--jobs", type=whole(1), default=2, help="processes, one thread each")
    parser.add_argument("--report", action="store_true", help="write the tables of the rows that are there into PAPER.md, and end")
    args = parser.parse_args(argv)
    if args.report:
        return publish("studies.finetuning", tables())
    wanted = [run for run in plan() if (not args.only or run.part in args.only.split(",")) and (args.canada or run.data != "crops")]
    done = {tuple(row[name] for name in Run._fields) for row in read(OUT / "finetuning.csv")}
    wanted = [run for run in wanted if tuple(map(str, run)) not in done]
    forest(args.work)                                                         # written once, before the processes begin
    starts = dict.fromkeys([*(SCREEN if args.only in ("", "screen") else []),
                            *(pretraining_of(run) for run in wanted if run.start == "pretrained")])
    watched = {(row["ablation"], int(row["seed"])) for row in read(OUT / "dates.csv")}
    watched = [start for start in DATES if start not in watched and args.only in ("", "dates")]
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        for number, _ in enumerate(pool.imap_unordered(watch_dates, [(start, args.work) for start in watched]), 1):
            print(f"dates {number}/{len(watched)}", file=sys.stderr, flush=True)
        for number, _ in enumerate(pool.imap_unordered(prepare, [(start, args.work, args.canada) for start in starts]), 1):
            print(f"pretraining {number}/{len(starts)}", file=sys.stderr, flush=True)
        write_stages(args.work)
        for number, _ in enumerate(pool.imap_unordered(perform, [(run, args.work, args.canada) for run in wanted]), 1):
            print(f"run {number}/{len(wanted)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
