"""Score a fine-tuned checkpoint on the test split and add the row to a table.

    python evaluate.py --checkpoint runs/treesatai-ts/NAME/finetuned.pt --data-root DIR --csv results/table2.csv

Prints weighted, macro and micro F1 at sigmoid > 0.5 (presto: at the threshold that was best in validation) and mean
average precision, in %. Each tile is scored once, whatever the number of processes (torchrun works too). finetune.py
--csv does the same at its end.
"""
import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from datasets import open_dataset
from datasets.loading import Pools, make_loader
from datasets.tiles import MAX_DATES
from engine import checkpoint, distributed, options
from engine.log import provenance, together
from models.methods import METHODS
from utils import metrics
from utils.errors import UserError, run
from utils.results import s1_of, write_row


@torch.no_grad()
def score(model, loader, device, after_step, tunes=False, autocast=nullcontext()):
    """Scores on all tiles: f1_weighted, f1_macro, f1_micro, map (%), loss, counts, n. The same on each process.

    loader: of datasets.loading.make_loader. autocast: the context of the forward pass; by default it is in float32.
    after_step(tiles): called after each step, with its number of tiles on all processes. tunes: choose the model's
    threshold on these tiles, and return it too, a probability; the loss is then without it.
    """
    model.eval()
    dataset, pools = loader.dataset, loader.batch_sampler
    if tunes:
        model.threshold.zero_()
    batches, mine = iter(loader), []
    for step_size, step_pools in pools.steps():
        for _, indices in step_pools:
            batch = distributed.to_device(next(batches), device)
            with autocast:
                outputs = model(batch)
            mine.append((indices, outputs.float().cpu().numpy()))
        after_step(step_size)
    logits = np.full(dataset.labels.shape, np.nan, np.float32)
    for indices, values in (pair for process in distributed.gather(mine) for pair in process):
        logits[indices] = values
    if not np.isfinite(logits).all():
        bad = dataset.names[int((~np.isfinite(logits)).any(1).argmax())]
        raise UserError(f"{bad}: the model gives a logit that is not finite; was it trained with too high an --lr?")
    labels = dataset.labels.numpy()
    loss = F.binary_cross_entropy_with_logits(torch.from_numpy(logits), dataset.labels).item()
    if tunes:
        model.threshold.fill_(metrics.best_threshold(logits, labels))
        logits -= model.threshold.item()
    counts = metrics.count(logits, labels)
    return metrics.f1_scores(counts) | {"map": metrics.mean_average_precision(logits, labels), "loss": loss,
                                        "counts": counts, "n": len(labels)} | (
        {"threshold": model.threshold.sigmoid().item()} if tunes else {})


def score_test(path, data_root, pool, workers, place, csv=None, tiles_at_once=None):
    """Load a fine-tuned checkpoint, score its test split, write the row. Returns the scores.

    The arguments are the options of this script, one by one, as finetune.py, which has others too, gives them as well.
    pool: tiles in a forward pass, None for the model's default. tiles_at_once: OmniSat's, see engine.options. place:
    (rank, world, device) of distributed.setup. Command, commit and date of the row are those of the training; those of
    its pretraining and of the test have columns of their own.
    """
    rank, world, device = place
    source = provenance("evaluate.py", [], device)
    saved = checkpoint.load(path, "finetuned")
    if not saved["finished"]:
        raise UserError(f"{path}: its training was stopped in epoch {len(saved['history']) + 1}; finetune.py goes on "
                        "with it")
    options.check_tiles_at_once(tiles_at_once, saved["config"]["model"])
    model = checkpoint.rebuild(path, saved).to(device)
    model.tiles_at_once = tiles_at_once
    method = METHODS[saved["config"]["model"]]
    test = open_dataset(saved["dataset"], data_root, "test", list(model.sensors), max_cloud=saved["max_cloud"],
                        parts=saved["parts"], all_bands=method.all_bands, max_dates=saved.get("max_dates", MAX_DATES),
                        s1=s1_of(saved))
    pool = pool or method.pools.get(saved["dataset"], 128)
    pools = Pools(len(test), pool, pool * world, None, rank, world)
    with tqdm(total=len(test), desc="test", unit="tile", leave=False, disable=rank > 0) as progress:
        scores = score(model, make_loader(test, pools, workers), device, progress.update)
    if rank == 0 and csv:
        scale = "demo" if test.is_demo else saved["scale"]
        if scale == "paper" and not options.has_release(saved["dataset"], {"test": test}, rank):
            scale = "custom"
        row = {"table": Path(csv).stem, "dataset": saved["dataset"], "model": saved["config"]["model"],
               "pretraining": saved["pretraining"], "ablation": saved["config"]["options"].get("ablation", "none"),
               "modality": saved["modality"], "label_percent": saved["label_percent"], "seed": saved["seed"],
               **{name: f"{scores[name]:.4f}" for name in ("f1_weighted", "f1_macro", "f1_micro", "map")},
               "n_test": scores["n"], "test_hash": test.split_hash[:12],
               "test_commit": source["commit"], "test_dirty": source["dirty"],
               "params": sum(p.numel() for p in model.parameters()) or "",
               "pretrain_hours": f"{saved['pretrain_hours']:.4f}", "finetune_hours": f"{saved['hours']:.4f}",
               "s1": s1_of(saved) if saved["dataset"] == "treesatai-ts" else "",
               "rate": saved.get("rate", ""), "rate_from": saved.get("rate_from", ""),    # not in checkpoints of before
               "scale": scale, "status": saved["status"],
               "split_hash": saved["split_hash"][:12], "val_hash": saved["val_hash"][:12],
               "checkpoint_hash": checkpoint.file_hash(path)[:12],
               **together(saved["starts"]), **saved.get("pretrain_source", {})}
        write_row(csv, row, {"classes": list(test.classes)} | scores["counts"])
    return scores | {"epoch": saved["epoch"]}


def command_line():
    """The ArgumentParser."""
    arguments = options.parser(__doc__)
    arguments.add_argument("--checkpoint", required=True, metavar="FILE", help="finetuned.pt as finetune.py writes it")
    arguments.add_argument("--data-root", required=True, metavar="DIR", help="folder of the raw files")
    arguments.add_argument("--csv", metavar="FILE", help="table to add the row to; its name is the row's table")
    options.add_tiles_at_once(options.add_loader_options(arguments, None))
    return arguments


def main(argv=None):
    # ---- options
    args = command_line().parse_args(argv)

    place = distributed.setup()
    scores = score_test(args.checkpoint, args.data_root, args.pool, args.workers, place, args.csv, args.tiles_at_once)
    distributed.finish()
    if place[0] == 0:
        names = "f1_weighted", "f1_macro", "f1_micro", "map", "n"
        print(json.dumps({name: round(scores[name], 4) for name in names}))


if __name__ == "__main__":
    run(main)
