"""Write features of tiles, from a pretrained or fine-tuned checkpoint. No label is needed.

    python embed.py --checkpoint PRETRAINED.pt --data-root DIR --level patch --out features
    python embed.py --checkpoint PRETRAINED.pt --data-root DIR --modalities s2,s1 --level tile --out features
    python embed.py --checkpoint PRETRAINED.pt --data-root DIR --level patch --format geotiff --out maps
    torchrun --nproc_per_node=2 embed.py ...

Tiles go in the order of their list into shards, 00000.npz, 00001.npz, ..., one row a tile. Each holds the names of its
tiles, their features, and as JSON what these are: the checkpoint's hash, the level, the sensors, and the mean and
standard deviation by which each band was standardised. Stopped or killed, the same command goes on: shards that are
there stay. A shard is the same whatever the number of processes. docs/features.md shows how to read them.
"""
import sys
import time
from dataclasses import asdict

import utils.threads  # noqa: F401, before torch

import numpy as np
import torch
from tqdm import tqdm

from engine import distributed, inference, options, shards
from engine.log import provenance
from utils.errors import UserError, run
from utils.numbers import whole

LEVELS = {"tile": "the mean of f* over the patches, D numbers; of a compared method what its last linear layer sees",
          "patch": "f*, P x D", "tokens": "those of each sensor, M x P x D",
          "dates": "the attention of each patch over the dates of each series, P x T"}


@torch.no_grad()
def features_of(model, batch, level, keys):
    """Features of a batch by name, arrays of B tiles: "features" (B, ...), or of dates "attention_<key>" (B, P, T) and
    "days_<key>" (B, T), -1 where there is none; of OmniSat "present" (B, M), which of the sensors each tile has.

    keys: of the sensors that the batch has; tokens are theirs only. Errors: UserError for values that are not finite.
    """
    found, is_given = model.features(batch, level), [key in keys for key in model.sensors]
    if level == "dates":
        days = {f"days_{key}": batch[f"{key}_dates"].masked_fill(batch[f"{key}_padded"], -1) for key in found}
        found = {f"attention_{key}": attention for key, attention in found.items()} | days
    else:
        found = {"features": found[:, is_given] if level == "tokens" else found}
    for value in found.values():
        inference.check_finite(value, batch["name"], "a feature")
    if hasattr(model, "present"):
        found["present"] = model.present(batch)[:, is_given]
    return {name: value.cpu().numpy() for name, value in found.items()}


def joined(batches):
    """The arrays of several batches as one; where a batch has fewer dates, attention is 0 and the day -1."""
    found = {}
    for name in batches[0]:
        values = [batch[name] for batch in batches]
        if name.startswith(("attention_", "days_")):
            longest, empty = max(value.shape[-1] for value in values), -1 if name.startswith("days_") else 0
            values = [np.pad(value, [(0, 0)] * (value.ndim - 1) + [(0, longest - value.shape[-1])],
                             constant_values=empty) for value in values]
        found[name] = np.concatenate(values)
    return found


def write_shards(files, pools, batches, model, level, progress):
    """Write some shards of files, {number: its pools of tiles}, from an iterator over the batches of these pools.

    What a pool is follows from the shard alone, so that a shard is the same whoever writes it.
    """
    for number, of_shard in pools.items():
        parts = []
        for indices in of_shard:
            batch = next(batches)
            parts.append(features_of(model, batch, level, files.dataset.modalities))
            progress.update(len(indices))
        files.write(number, joined(parts), model.grid(batch) if hasattr(model, "grid") else None)


def command_line():
    """The ArgumentParser."""
    def listed(choices):
        return "; ".join(f"{name}: {what}" for name, what in choices.items())
    arguments = options.parser(__doc__)
    inference.add_options(arguments, "pretrained.pt or finetuned.pt, of any method")
    arguments.add_argument("--level", required=True, choices=LEVELS, help=listed(LEVELS))
    arguments.add_argument("--out", required=True, metavar="DIR", help="folder to write to")
    arguments.add_argument("--format", choices=shards.FORMATS, default="npz", help=listed(shards.FORMATS))
    arguments.add_argument("--shard", type=whole(1), default=256, metavar="TILES", help="tiles in a shard")
    return arguments


def check(args, saved, keys):
    """Errors: UserError for a level that the model does not have, or the format does not."""
    name, kinds = saved["config"]["model"], {sensor["key"]: sensor["kind"] for sensor in saved["config"]["sensors"]}
    if name != "omnisat" and args.level != "tile":
        raise UserError(f"--level {args.level}: {args.checkpoint} is of {name}, which has tile only")
    if args.level == "dates" and "series" not in [kinds[key] for key in keys]:
        raise UserError(f"--level dates: none of {', '.join(keys)} is a series; choose another level")
    if args.format == "geotiff" and args.level != "patch":
        raise UserError(f"--format geotiff is for --level patch, not {args.level}")
    if args.format == "parquet":
        if args.level == "dates":
            raise UserError("--format parquet is not for --level dates, whose rows differ in length; choose npz")
        shards.check_parquet()


def main(argv=None):
    # ---- options
    args = command_line().parse_args(argv)
    rank, world, device = distributed.setup()
    source = provenance("embed.py", argv if argv is not None else sys.argv[1:], device)
    saved, dataset, model = inference.opened(args, check=lambda saved, keys: check(args, saved, keys))
    model, pool = model.to(device), inference.pool_of(args, saved, dataset, device)

    # ---- the folder
    statistics = {key: {name: getattr(model.standardize[key], name).tolist() for name in ("mean", "std")}
                  for key in dataset.modalities}
    about = {"checkpoint": saved["sha256"], "dataset": saved["dataset"], "level": args.level,
             "sensors": [asdict(sensor) for sensor in dataset.sensors], "statistics": statistics}
    files = shards.Shards(args.out, args.format, dataset, args.shard, about)

    def take():
        if args.format == "geotiff":
            shards.place_of(dataset, 0)                                       # if there is none it is told now
        if rank == 0:
            shards.open_folder(args.out, about | {"tiles": dataset.split_hash, "shard": args.shard, "pool": pool,
                                                  "format": args.format}, source)
    distributed.first_alone(take)

    # ---- shards, each on one process
    mine = [number for number in range(rank, len(files.indices), world) if not files.is_there(number)]
    pools, tiles, start = files.pools(mine, pool), sum(len(files.indices[number]) for number in mine), time.time()
    batches = inference.batches(dataset, sum(pools.values(), []), args.workers, device)
    with tqdm(total=tiles, desc="embed", unit="tile", disable=rank > 0) as progress:
        write_shards(files, pools, batches, model, args.level, progress)
    done, seconds = sum(distributed.gather(tiles)), time.time() - start
    if rank == 0:
        print(f"{done:,} tiles in {seconds:.1f} s, {done / seconds:.1f} a second; all {len(dataset):,} are in "
              f"{args.out}", file=sys.stderr)
    distributed.finish()


if __name__ == "__main__":
    run(main)
