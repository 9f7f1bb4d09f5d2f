"""Score a fine-tuned checkpoint on the test split and add the row to a table.

    python evaluate.py --checkpoint runs/treesatai-ts/NAME/finetuned.pt --data-root DIR --csv results/table2.csv
    python evaluate.py --checkpoint FINETUNED.pt --data-root DIR --all-subsets --csv results/subsets.csv
    python evaluate.py --checkpoint FINETUNED.pt --data-root DIR --modalities s2,s1 --dates 5,10,20,all

Prints weighted, macro and micro F1 at sigmoid > 0.5 (presto: at the threshold that was best in validation) and mean
average precision, in %. Each tile is scored once, whatever the number of processes (torchrun works too). finetune.py
--csv does the same at its end.

With --modalities, --all-subsets or --dates: what the same model says when it sees less than it was trained on. Rows go
to a table of their own, a row for each set of sensors and number of dates.
"""
import json
import sys
from contextlib import nullcontext
from itertools import combinations
from pathlib import Path

import utils.threads  # noqa: F401, before torch

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from datasets.loading import make_loader, whole_pools
from datasets.tiles import MAX_DATES
from engine import checkpoint, distributed, inference, options
from engine.log import provenance, together
from models.methods import METHODS
from utils import metrics
from utils.errors import UserError, run
from utils.numbers import whole
from utils.results import SUBSET_KEYS, read_rows, s1_of, write_row

SCORES = ("f1_weighted", "f1_macro", "f1_micro", "map")


# ---- scores ---------------------------------------------------------------------------------------------------------

@torch.no_grad()
def logits_of(outputs_of, loader, device, after_step, autocast=nullcontext()):
    """What outputs_of(batch), logits (..., B, K), says of all tiles: (..., N, K) float32, the same on each process.

    loader, autocast, after_step: see score.
    """
    dataset, pools, batches, mine = loader.dataset, loader.batch_sampler, iter(loader), []
    for step_size, step_pools in pools.steps():
        for _, indices in step_pools:
            batch = distributed.to_device(next(batches), device)
            with autocast:
                outputs = outputs_of(batch)
            mine.append((indices, outputs.float().cpu().numpy()))
        after_step(step_size)
    order, values = zip(*(pair for process in distributed.gather(mine) for pair in process))
    logits = np.concatenate(values, -2)[..., np.argsort(np.concatenate(order)), :]
    is_bad = ~np.isfinite(logits).all(-1)
    if is_bad.any():
        bad = dataset.names[int(is_bad.reshape(-1, is_bad.shape[-1]).any(0).argmax())]
        raise UserError(f"{bad}: the model gives a logit that is not finite; was it trained with too high an --lr?")
    return logits


@torch.no_grad()
def score(model, loader, device, after_step, tunes=False, autocast=nullcontext()):
    """Scores on all tiles: f1_weighted, f1_macro, f1_micro, map (%), loss, counts, n. The same on each process.

    loader: of datasets.loading.make_loader. autocast: the context of the forward pass; by default it is in float32.
    after_step(tiles): called after each step, with its number of tiles on all processes. tunes: choose the model's
    threshold on these tiles, and return it too, a probability; the loss is then without it.
    """
    model.eval()
    if tunes:
        model.threshold.zero_()
    logits, labels = logits_of(model, loader, device, after_step, autocast), loader.dataset.labels
    loss = F.binary_cross_entropy_with_logits(torch.from_numpy(logits), labels).item()
    if tunes:
        model.threshold.fill_(metrics.best_threshold(logits, labels.numpy()))
        logits -= model.threshold.item()
    return metrics.scores(logits, labels.numpy()) | {"loss": loss} | (
        {"threshold": model.threshold.sigmoid().item()} if tunes else {})


# ---- a fine-tuned checkpoint ----------------------------------------------------------------------------------------

def read_finetuned(path, place, tiles_at_once=None):
    """(checkpoint, its model on the device). Errors: UserError for one that is not finished."""
    saved = checkpoint.load(path, "finetuned")
    if not saved["finished"]:
        raise UserError(f"{path}: its training was stopped in epoch {len(saved['history']) + 1}; finetune.py goes on "
                        "with it")
    options.check_tiles_at_once(tiles_at_once, saved["config"]["model"])
    model = checkpoint.rebuild(path, saved).to(place[2]).eval()
    model.tiles_at_once = tiles_at_once
    return saved, model


def open_test(saved, model, data_root, keys=None, dates=None):
    """The test split, seen by some of the model's sensors (None: all), of a series at most so many dates (None: as in
    training).
    """
    return inference.open_as_trained(saved, data_root, "test", list(model.sensors) if keys is None else keys,
                                     **({} if dates is None else {"max_dates": dates}))


def feed(saved, test, pool, workers, place):
    """The loader of a test split. pool: None for the method's default."""
    rank, world, _ = place
    pool = pool or METHODS[saved["config"]["model"]].pool(saved["dataset"])
    return make_loader(test, whole_pools(test, pool, rank, world), workers)


def about(saved, test, rank):
    """Columns of a row that a table and one of subsets have in common."""
    scale = "demo" if test.is_demo else saved["scale"]
    if scale == "paper" and not options.has_release(saved["dataset"], {"test": test}, rank):
        scale = "custom"
    return {"dataset": saved["dataset"], "model": saved["config"]["model"], "pretraining": saved["pretraining"],
            "ablation": saved["config"]["options"].get("ablation", "none"), "modality": saved["modality"],
            "label_percent": saved["label_percent"], "seed": saved["seed"],
            "n_test": len(test), "test_hash": test.split_hash[:12],
            "s1": s1_of(saved) if saved["dataset"] == "treesatai-ts" else "", "scale": scale,
            "split_hash": saved["split_hash"][:12]}


def score_test(path, data_root, pool, workers, place, csv=None, tiles_at_once=None):
    """Load a fine-tuned checkpoint, score its test split, write the row. Returns the scores.

    The arguments are the options of this script, one by one, as finetune.py, which has others too, gives them as well.
    pool: tiles in a forward pass, None for the model's default. tiles_at_once: OmniSat's, see engine.options. place:
    (rank, world, device) of distributed.setup. Command, commit and date of the row are those of the training; those of
    its pretraining and of the test have columns of their own.
    """
    rank, _, device = place
    source = provenance("evaluate.py", [], device)
    saved, model = read_finetuned(path, place, tiles_at_once)
    test = open_test(saved, model, data_root)
    loader = feed(saved, test, pool, workers, place)
    with tqdm(total=len(test), desc="test", unit="tile", leave=False, disable=rank > 0) as progress:
        scores = score(model, loader, device, progress.update)
    if rank == 0 and csv:
        row = about(saved, test, rank) | {
            "table": Path(csv).stem, **{name: f"{scores[name]:.4f}" for name in SCORES},
            "test_commit": source["commit"], "test_dirty": source["dirty"],
            "params": sum(p.numel() for p in model.parameters()) or "",
            "pretrain_hours": f"{saved['pretrain_hours']:.4f}", "finetune_hours": f"{saved['hours']:.4f}",
            "rate": saved.get("rate", ""), "rate_from": saved.get("rate_from", ""),    # not in checkpoints of before
            "status": saved["status"], "val_hash": saved["val_hash"][:12],
            "checkpoint_hash": checkpoint.file_hash(path)[:12],
            **together(saved["starts"]), **saved.get("pretrain_source", {})}
        write_row(csv, row, {"classes": list(test.classes)} | scores["counts"])
    return scores | {"epoch": saved["epoch"]}


# ---- seen by less ---------------------------------------------------------------------------------------------------

def subsets_of(keys):
    """All sets of some sensors but the empty one, the largest first."""
    return [subset for size in range(len(keys), 0, -1) for subset in combinations(keys, size)]


def seen_by(model, subsets):
    """The function batch -> logits (S, B, K) of a model that sees each of S subsets of its sensors; tokens are computed
    once.

    The tokens of the others are masked, as those of a sensor that a tile's files lack.
    """
    def outputs_of(batch):
        (tokens, present, _), grid = model.encode(batch), model.grid(batch)
        seen = [torch.tensor([key in subset for key in model.sensors], device=tokens.device) for subset in subsets]
        return torch.stack([model.head(model.level_of("tile", tokens, present & each, grid)) for each in seen])
    return outputs_of


def check_seen(saved, keys, subsets, dates):
    """Errors: UserError for sensors or dates that a checkpoint cannot be scored with."""
    name, there, most = saved["config"]["model"], saved["config"]["sensors"], saved.get("max_dates", MAX_DATES)
    if any(len(subset) < len(there) for subset in subsets):
        inference.check_can_lack(name, "--all-subsets")
    if dates != [None] and not any(sensor["kind"] == "series" for sensor in there if sensor["key"] in keys):
        raise UserError(f"--dates: none of {', '.join(keys)} is a series; leave the option out")
    if most is not None and (more := [number for number in dates if number is not None and number > most]):
        raise UserError(f"--dates {more[0]}: its training saw at most {most}, which is what all means; ask for fewer")


def score_subsets(args, place, source):
    """Score a checkpoint with less than it was trained on, print and write the rows. args: of command_line."""
    rank, _, device = place
    if args.csv:
        read_rows(args.csv, SUBSET_KEYS)                                      # another kind of table is told now
    saved, model = read_finetuned(args.checkpoint, place, args.tiles_at_once)
    keys = inference.chosen_sensors(args.checkpoint, saved, args.modalities or "all")
    subsets, dates = subsets_of(keys) if args.all_subsets else [tuple(keys)], args.dates or [None]
    check_seen(saved, keys, subsets, dates)
    outputs_of = seen_by(model, subsets) if saved["config"]["model"] == "omnisat" else lambda batch: model(batch)[None]
    for number in dates:
        test = open_test(saved, model, args.data_root, keys, number)
        loader = feed(saved, test, args.pool, args.workers, place)
        with tqdm(total=len(test), desc="test", unit="tile", leave=False, disable=rank > 0) as progress:
            logits = logits_of(outputs_of, loader, device, progress.update)
        if rank > 0:
            continue
        common = about(saved, test, rank) | source | {"checkpoint_hash": saved["sha256"][:12]} | {
            f"checkpoint_{name}": together(saved["starts"])[name] for name in ("commit", "dirty")}
        for subset, some in zip(subsets, logits):
            if number is not None and all(model.sensors[key].kind == "image" for key in subset):
                continue                                                      # there is nothing to thin
            scores = metrics.scores(some, test.labels.numpy())
            what = {"sensors": "+".join(subset), "dates": "all" if number is None else str(number)}
            print(json.dumps(what | {name: round(scores[name], 4) for name in (*SCORES, "n")}))
            if args.csv:
                row = common | what | {name: f"{scores[name]:.4f}" for name in SCORES}
                write_row(args.csv, row, {"classes": list(test.classes)} | scores["counts"], SUBSET_KEYS)


# ---- the script -----------------------------------------------------------------------------------------------------

def dates_of(text):
    """[5, 10, None] of "5,10,all"."""
    return [None if word == "all" else whole(1)(word) for word in dict.fromkeys(text.split(","))]


def command_line():
    """The ArgumentParser."""
    arguments = options.parser(__doc__)
    arguments.add_argument("--checkpoint", required=True, metavar="FILE", help="finetuned.pt as finetune.py writes it")
    arguments.add_argument("--data-root", required=True, metavar="DIR", help="folder of the raw files")
    arguments.add_argument("--csv", metavar="FILE", help="table to add the row to; its name is the row's table, but "
                                                         "for those that see less, which have a table of their own")
    arguments.add_argument("--modalities", metavar="KEYS",
                           help="of omnisat: see these sensors only, such as s2,s1; the tokens of its others are "
                                "masked, their files not needed (default: all that it was trained on)")
    arguments.add_argument("--all-subsets", action="store_true",
                           help="of omnisat: see each subset of these sensors, all in one pass over the tiles")
    arguments.add_argument("--dates", type=dates_of, metavar="NUMBERS",
                           help="thin each series to so many dates, evenly spread over those it has (a shorter one "
                                "stays as it is), such as 5,10,20,all: a pass over the tiles each; all is as without "
                                "this option, 50 at most")
    options.add_tiles_at_once(options.add_loader_options(arguments, None))
    return arguments


def main(argv=None):
    # ---- options
    args = command_line().parse_args(argv)

    place = distributed.setup()
    if args.modalities or args.all_subsets or args.dates:
        score_subsets(args, place, provenance("evaluate.py", argv if argv is not None else sys.argv[1:], place[2]))
        return distributed.finish()
    scores = score_test(args.checkpoint, args.data_root, args.pool, args.workers, place, args.csv, args.tiles_at_once)
    distributed.finish()
    if place[0] == 0:
        print(json.dumps({name: round(scores[name], 4) for name in (*SCORES, "n")}))


if __name__ == "__main__":
    run(main)
