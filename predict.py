"""Write the classes of unlabelled tiles, by a fine-tuned checkpoint, as a table.

    python predict.py --checkpoint runs/treesatai-ts/NAME/finetuned.pt --data-root DIR --out predictions.csv

A line a tile: its name, the predicted classes joined by ;, and the probability of each class in a column of its name. A
class is predicted by the rule that evaluate.py scores: at a probability over 0.5 (presto: over the threshold that was
best in validation). Any number of tiles may have several classes or none.
"""
import csv
import json

import utils.threads  # noqa: F401, before torch

import torch
from tqdm import tqdm

from datasets.geotiff import coarser, write_geotiff
from engine import distributed, inference, options
from engine.shards import place_of, tif_of
from utils.errors import UserError, run
from utils.files import written_whole


@torch.no_grad()
def predictions_of(model, batch):
    """Which classes each tile of a batch has, (B, K) bool, and their probabilities (B, K), arrays."""
    logits = model(batch).float()
    inference.check_finite(logits, batch["name"], "a logit")
    threshold = getattr(model, "threshold", 0)                                # the logit that was subtracted
    return (logits > 0).cpu().numpy(), (logits + threshold).sigmoid().cpu().numpy()


def classes_of(path, saved, dataset):
    """The names of a checkpoint's classes. Errors: UserError for one of one's own dataset of before they were noted."""
    classes = saved.get("classes") or list(dataset.classes)                   # the reader's, where the dataset is known
    if len(classes) != saved["config"]["options"]["num_classes"]:
        raise UserError(f"{path}: written before checkpoints had the names of their classes; run finetune.py again")
    return classes


def write_tif(folder, dataset, i, probabilities, classes):
    """A GeoTIFF of tile i: one pixel, the whole tile, a band of probability for each class."""
    tags, corner, patch = place_of(dataset, i)
    sides = [rows * side for rows, side in zip(dataset.grid, patch)]
    about = json.dumps({"tile": dataset.names[i], "bands": classes})
    write_geotiff(tif_of(folder, dataset.names[i]), probabilities[:, None, None], coarser(tags, corner, sides), about)


def command_line():
    """The ArgumentParser."""
    arguments = options.parser(__doc__)
    inference.add_options(arguments, "finetuned.pt as finetune.py writes it, of any method")
    arguments.add_argument("--out", required=True, metavar="FILE", help="the table to write, CSV")
    arguments.add_argument("--geotiff", metavar="DIR",
                           help="write each tile's probabilities there too, as a GeoTIFF of one pixel with a band a "
                                "class, where the tile's own tif says that it lies")
    return arguments


def main(argv=None):
    args = command_line().parse_args(argv)
    rank, world, device = distributed.setup()
    saved, dataset, model = inference.opened(args, "finetuned")
    classes, model = classes_of(args.checkpoint, saved, dataset), model.to(device)
    if args.geotiff:
        distributed.first_alone(lambda: place_of(dataset, 0))                 # if there is none it is told now
    pool = inference.pool_of(args, saved, dataset, device)
    pools = [list(range(at, min(at + pool, len(dataset)))) for at in range(0, len(dataset), pool)][rank::world]
    rows = []
    with tqdm(total=sum(map(len, pools)), desc="predict", unit="tile", disable=rank > 0) as progress:
        for indices, batch in zip(pools, inference.batches(dataset, pools, args.workers, device)):
            for i, is_there, probabilities in zip(indices, *predictions_of(model, batch)):
                predicted = ";".join(name for name, there in zip(classes, is_there) if there)
                rows.append((i, [dataset.names[i], predicted, *(f"{p:.6f}" for p in probabilities)]))
                if args.geotiff:
                    write_tif(args.geotiff, dataset, i, probabilities, classes)
            progress.update(len(indices))
    rows = sorted(row for process in distributed.gather(rows) for row in process)
    if rank == 0:
        with written_whole(args.out) as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["tile", "predicted", *classes])
            writer.writerows(row for _, row in rows)
    distributed.finish()


if __name__ == "__main__":
    run(main)
