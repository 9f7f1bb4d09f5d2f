"""Pretrain OmniSat on a training split without labels (sections 3.2 and 3.3).

    python pretrain.py --dataset treesatai-ts --data-root DIR
    python pretrain.py --dataset treesatai-ts --data-root DIR --ablation no_contrastive
    torchrun --nproc_per_node=3 pretrain.py --dataset treesatai-ts --data-root DIR

The defaults are the paper's: 250 epochs at most, 3 x 128 tiles a step, Adam with 1e-4. Writes pretrained.pt (start
fine-tuning from it), log.jsonl and TensorBoard files to --output.
"""
import math
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

from datasets import open_dataset
from datasets.band_statistics import training_statistics
from datasets.loading import Pools, make_loader
from models import build_model
from models.omnisat import ABLATIONS
from utils import checkpoint, distributed, options
from utils.errors import UserError, run
from utils.log import Log, provenance
from utils.results import pretraining_folder


def run_epoch(model, loader, pools, device, autocast, seed, optimizer=None, progress=None):
    """One pass over the split: {"loss"} and the loss's terms, means over the tiles of all processes.

    autocast: the context of the forward pass. Without an optimizer nothing is learned. The masks follow (seed, epoch, number of
    the pool), whatever the process. Nothing here waits for the device before the end of the epoch.
    """
    model.train(optimizer is not None)
    generator = torch.Generator()
    batches, sums, tiles = iter(loader), 0, 0
    with torch.set_grad_enabled(optimizer is not None):
        for step_size, step_pools in pools.steps():
            for number, indices in step_pools:
                batch = next(batches)
                generator.manual_seed((seed * 10_007 + pools.epoch) * 1_000_003 + number)
                masks = model.draw_masks(batch, generator)                    # on the CPU, where the batch still is
                with autocast:
                    loss, terms = model.pretrain_loss(distributed.to_device(batch, device), masks)
                if optimizer is not None:
                    (loss * len(indices) / step_size).backward()
                sums = sums + torch.stack([loss, *(terms[name] for name in model.terms)]).detach() * len(indices)
            if optimizer is not None:
                distributed.sum_gradients(model)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            tiles += step_size
            if progress is not None:
                progress.update(step_size)
    if optimizer is not None:
        distributed.share_statistics(model)
    sums = torch.zeros(1 + len(model.terms), device=device) + sums            # a process may have had no pool at all
    means = (distributed.sum_over_processes(sums) / tiles).tolist()
    return dict(zip(("loss", *model.terms), means))


def command_line():
    """The ArgumentParser."""
    arguments = options.parser(__doc__)
    options.add_data_options(arguments)
    model = options.add_model_options(arguments, 256, 6)
    model.add_argument("--ablation", choices=ABLATIONS, default="none",
                       help="a row of table 5: no_index_bypass: the image decoder does without the encoder's pooling indices; "
                            "no_date_filtering: all dates are reconstructed; no_contrastive, no_reconstruction: without that loss; "
                            "naive_contrastive: patches of the same tile and modality are negatives too")
    options.add_machine_options(arguments)
    training = options.add_training_options(arguments, epochs=250)
    training.add_argument("--lr", type=float, default=1e-4, help="of Adam")
    training.add_argument("--patience", type=int, default=40,
                          help="stop after so many epochs without a lower validation loss; not in the paper: the official "
                               "code's")
    return arguments


def main(argv=None):
    # ---- options
    arguments = command_line()
    args = arguments.parse_args(argv)
    options.check_positive(args, "epochs", "batch_size", "pool", "patience", "parts", "tiles_at_once")
    options.check_model(args)
    modalities = options.chosen_modalities(args.modalities, args.dataset)

    # ---- setup
    rank, world, device = distributed.setup()
    output = Path(args.output or pretraining_folder("runs", args.dataset, args.ablation, args.seed))
    target = output / "pretrained.pt"
    if target.exists() and checkpoint.load(target, "pretrained")["finished"]:
        raise UserError(f"{target} is finished: choose another --output, or delete it to start anew")
    output.mkdir(parents=True, exist_ok=True)

    # ---- data
    def dataset(split):
        return open_dataset(args.dataset, args.data_root, split, modalities, seed=args.seed, labelled=False,
                            max_cloud=args.max_cloud, parts=args.parts)
    train, val = distributed.first_alone(lambda: (dataset("train"), dataset("val")))
    statistics = distributed.first_alone(lambda: training_statistics(train, args.workers))
    train_pools = Pools(len(train), args.pool, args.batch_size, args.seed, rank, world)
    val_pools = Pools(len(val), args.pool, args.pool * world, None, rank, world)
    train_loader, val_loader = (make_loader(data, pools, args.workers)
                                for data, pools in ((train, train_pools), (val, val_pools)))

    # ---- model, optimiser
    config = {"model": "omnisat", "sensors": [asdict(sensor) for sensor in train.sensors],
              "options": {"embed_dim": args.embed_dim, "depth": args.depth, "ablation": args.ablation}}
    torch.manual_seed(args.seed)                                              # here, since loaders draw numbers too
    model = build_model("omnisat", train.sensors, **config["options"])
    model.set_statistics(statistics)
    model.to(device)
    autocast = options.set_up(model, args, device)
    optimizer = torch.optim.Adam(model.parameters(), args.lr, fused=True)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=10)

    # ---- log
    source = provenance("pretrain.py", argv if argv is not None else sys.argv[1:], device)
    size = sum(p.numel() for p in model.parameters())
    log = Log(output, rank, source | {"options": vars(args), "world": world, "parameters": size})
    if rank == 0:
        print(f"pretraining on {len(train)} tiles of {args.dataset}{' (demo data)' if train.is_demo else ''}, "
              f"{', '.join(modalities)}{'' if args.ablation == 'none' else ', ' + args.ablation}; {size / 1e6:.2f} M parameters; "
              f"{args.batch_size} tiles a step in pools of {train_pools.pool}; {world} process(es) on {source['device']}", file=sys.stderr)
        if train_pools.idle():
            print(train_pools.idle(), file=sys.stderr)

    # ---- loop
    best, best_epoch, start = math.inf, 0, time.time()
    for epoch in range(1, args.epochs + 1):
        train_pools.epoch = epoch
        with tqdm(total=len(train), desc=f"pretrain {epoch}/{args.epochs}", unit="tile", leave=False,
                  disable=rank > 0) as progress:
            losses = run_epoch(model, train_loader, train_pools, device, autocast, args.seed, optimizer, progress)
        val_losses = run_epoch(model, val_loader, val_pools, device, autocast, seed=0)
        if not math.isfinite(losses["loss"] + val_losses["loss"]):
            raise UserError(f"{output}: the loss is {losses} in epoch {epoch}, on validation {val_losses}: stopped before "
                            "this epoch was saved; try a lower --lr")
        rate = optimizer.param_groups[0]["lr"]
        scheduler.step(val_losses["loss"])
        if val_losses["loss"] < best:
            best, best_epoch = val_losses["loss"], epoch
        finished = epoch == args.epochs or epoch - best_epoch >= args.patience
        hours = (time.time() - start) / 3600
        log.epoch(epoch, losses | {f"val_{name}": value for name, value in val_losses.items()} | {"lr": rate, "hours": hours})
        if rank == 0:
            checkpoint.save(target, {
                "kind": "pretrained", "finished": finished, "config": config, "weights": model.state_dict(),
                "dataset": args.dataset, "epoch": epoch, "val_loss": val_losses["loss"], "hours": hours,
                "seed": args.seed, "split_hash": train.split_hash, "val_hash": val.list_hash,
                "is_demo": train.is_demo, "source": source,
                "is_paper": options.is_paper(args, arguments, modalities) and (args.embed_dim, args.depth) == (256, 6)})
        if finished:
            break
    log.close()
    distributed.finish()
    if rank == 0:
        print(f"wrote {target}", file=sys.stderr)


if __name__ == "__main__":
    run(main)
