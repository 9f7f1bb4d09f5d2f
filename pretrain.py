"""Pretrain OmniSat (sections 3.2 and 3.3), or a compared method that pretrains itself, on a training split without
labels.

    python pretrain.py --dataset treesatai-ts --data-root DIR
    python pretrain.py --dataset treesatai-ts --data-root DIR --ablation no_contrastive
    python pretrain.py --dataset treesatai --data-root DIR --model satmae --modalities s2
    torchrun --nproc_per_node=3 pretrain.py --dataset treesatai-ts --data-root DIR

The defaults are the paper's: 250 epochs at most, 3 x 128 tiles a step, Adam with the method's rate, 1e-4. Writes
pretrained.pt (start fine-tuning from it), log.jsonl and TensorBoard files to --output. Stopped or killed, the same
command goes on.
"""
import sys
from dataclasses import asdict
from pathlib import Path

import utils.threads  # noqa: F401, before torch

import torch

from datasets import open_dataset, own
from datasets.band_statistics import training_statistics
from datasets.loading import Pools, make_loader, whole_pools
from engine import distributed, options
from engine.folder import open_folder
from engine.log import provenance
from engine.pool_step import PoolStep
from engine.training import Training, pool_seed
from models.methods import METHODS, build_model
from models.omnisat import ABLATIONS
from utils.errors import UserError, run
from utils.numbers import number_over, whole
from utils.results import folder_of, pretraining_folder


VAL_ORDER = "mixed"    # of the tiles in validation's pools: losses in the list's order, of before, do not compare


def open_split(args, modalities, split):
    """A split of the dataset, without labels, as the options and the method have it."""
    method = METHODS[args.model]
    return open_dataset(args.dataset, args.data_root, split, modalities, seed=args.seed, labelled=False,
                        max_cloud=args.max_cloud, parts=args.parts, all_bands=method.all_bands,
                        max_dates=method.max_dates(args.dataset), s1=args.s1)


def loaders(args, train, val, rank, world):
    """The loaders of both."""
    pools = Pools(len(train), args.pool, args.batch_size, args.seed, rank, world, args.epoch_steps)
    return (make_loader(train, pools, args.workers),
            make_loader(val, whole_pools(val, args.pool, rank, world, is_mixed=True), args.workers))


def train_epoch(training, loader, pool_step, progress):
    """What is left of an epoch. Nothing here waits for the device. pool_step: engine.pool_step.PoolStep."""
    model, pools, generator, batches = training.model.train(), loader.batch_sampler, torch.Generator(), iter(loader)
    for step_size, step_pools in pools.steps():
        training.begin_step(pools.a_step)
        for number, indices in step_pools:
            batch = next(batches)
            training.begin_pool(number, batch["name"])
            generator.manual_seed(pool_seed(pools.seed, pools.epoch, number))
            masks = model.draw_masks(batch, generator)                        # on the CPU, where the batch still is
            training.end_pool(number % pools.a_step, pool_step(batch, masks, len(indices) / step_size))
        progress.update(step_size)
        training.end_step()


@torch.no_grad()
def validate(training, loader, autocast):
    """{"val_loss"} and the loss's terms, means over the tiles of all processes; the same pools and masks each time.

    Nothing is compiled for it: these are few tiles, and other networks to the compiler.
    """
    model, pools, generator, batches = training.model.eval(), loader.batch_sampler, torch.Generator(), iter(loader)
    sums = torch.zeros(len(training.terms), device=training.device)
    for _, step_pools in pools.steps():
        for number, indices in step_pools:
            batch = next(batches)
            masks = model.draw_masks(batch, generator.manual_seed(pool_seed(0, 0, number)))
            with autocast, torch.compiler.set_stance("force_eager"):
                loss, terms = model.pretrain_loss(distributed.to_device(batch, training.device), masks)
            sums += torch.stack([loss, *(terms[name] for name in model.terms)]) * len(indices)
        training.look_up()
    distributed.sum_over_processes([sums])
    return dict(zip((f"val_{term}" for term in training.terms), (sums / pools.size).tolist()))


def train_epochs(training, loader, val_loader, pool_step, autocast):
    """Epochs until the last, each validated."""
    while not training.finished:
        with training.begin_epoch(loader.batch_sampler, "pretrain") as progress:
            train_epoch(training, loader, pool_step, progress)
        losses = training.means(loader.batch_sampler.tiles) | validate(training, val_loader, autocast)
        rate = training.optimizer.param_groups[0]["lr"]
        training.scheduler.step(losses["val_loss"])
        training.end_epoch(losses | {"lr": rate}, score=[-losses["val_loss"]])


def command_line():
    """The ArgumentParser."""
    arguments = options.parser(__doc__)
    arguments.add_argument("--model", choices=[name for name, method in METHODS.items() if method.pretrains()],
                           default="omnisat", help="a method of models/methods.py that pretrains itself")
    options.add_data_options(arguments)
    model = options.add_model_options(arguments, 256, 6)
    model.add_argument("--ablation", choices=ABLATIONS, default="none",
                       help="a row of table 5: no_index_bypass: the image decoder does without the encoder's pooling "
                            "indices; no_date_filtering: all dates are reconstructed; no_contrastive, "
                            "no_reconstruction: without that loss; naive_contrastive: patches of the same tile and "
                            "modality are negatives too")
    options.add_width(model)
    options.add_machine_options(arguments).add_argument(
        "--record", action="store_true",
        help="of omnisat on a GPU: record the compiled step as a CUDA graph, for GPUs that are faster than Python "
             "starts their kernels. Experimental: it has not been run on a GPU yet")
    training = options.add_training_options(arguments, epochs=250, epoch_steps=1)
    training.add_argument("--lr", type=number_over(0), help="of Adam (default: 1e-4, or the compared method's)")
    training.add_argument("--patience", type=whole(1), default=40,
                          help="stop after so many epochs without a lower validation loss; not in the paper: the "
                               "official code's")
    return arguments


def choices(args, arguments, modality):
    """Options of the model's constructor, the learning rate, and whether it has the paper's size.

    Errors: UserError for what does not fit.
    """
    method = METHODS[args.model]
    rate = method.pretraining_rate(args.dataset, modality)
    if args.model == "omnisat":
        return ({"embed_dim": args.embed_dim, "depth": args.depth, "ablation": args.ablation},
                rate if args.lr is None else args.lr, (args.embed_dim, args.depth) == (256, 6))
    if rate is None:
        raise UserError(f"--model {args.model} is not pretrained on {modality} of {args.dataset}, but on " + "; ".join(
            f"{' or '.join(known)} of {dataset}" for dataset, known in method.pretrain_rates.items()))
    options.refuse(args, arguments, ("embed_dim", "depth", "ablation", "tiles_at_once"), args.model)
    width = options.chosen_width(args)
    return ({"num_classes": 0, "dataset": args.dataset, "width": width},
            rate if args.lr is None else args.lr, width == 1)


def target_of(args, modality):
    """Where the checkpoint is written."""
    folder = args.output or pretraining_folder(folder_of("runs", args.s1), args.dataset, args.model, modality,
                                               args.ablation, args.seed)
    return Path(folder) / "pretrained.pt"


def facts_of(args, train, val):
    """What the checkpoint says of the tiles."""
    facts = {"dataset": args.dataset, "seed": args.seed, "split_hash": train.split_hash, "val_hash": val.list_hash,
             "val_order": VAL_ORDER, "max_dates": METHODS[args.model].max_dates(args.dataset), "s1": args.s1,
             "is_demo": train.is_demo, **own.table(args.dataset)}
    return facts if train.has_list else facts | {"has_list": False}


def in_words(args, modalities, train):
    """What is pretrained on what."""
    return (f"pretraining {args.model} on {len(train)} tiles of {args.dataset}"
            f"{' (demo data)' if train.is_demo else ''}, {', '.join(modalities)}"
            f"{'' if args.ablation == 'none' else ', ' + args.ablation}")


def main(argv=None):
    # ---- options
    arguments = command_line()
    args = options.parse(arguments, argv, {name: method.pools for name, method in METHODS.items()})
    options.check_model(args)
    modalities = options.chosen_modalities(args.modalities, args.dataset)
    method, modality = METHODS[args.model], options.modality_name(modalities, args.dataset)
    sizes, rate, is_whole = choices(args, arguments, modality)
    modalities = method.sees.get(modality, modalities)
    options.check_s1(args, modalities)

    # ---- setup
    rank, world, device = place = distributed.setup()
    source = provenance("pretrain.py", argv if argv is not None else sys.argv[1:], device)
    is_omnisat, target = args.model == "omnisat", target_of(args, modality)
    compiles = options.chosen_compile(args, device, is_worth_it=is_omnisat)
    if args.record and not (device.type == "cuda" and is_omnisat and compiles):
        raise UserError("--record is for omnisat, compiled, on a GPU; leave it out", is_told=rank > 0)
    saved, settings = open_folder(target, "pretrained", args, rank, modalities=",".join(modalities), lr=rate,
                                  precision=options.chosen_precision(args, device), compile=compiles)
    if saved is not None and saved["finished"]:
        if rank == 0:
            print(f"{target} is finished; delete it to start anew", file=sys.stderr)
        return distributed.finish()

    # ---- tiles
    train, val = distributed.first_alone(lambda: [open_split(args, modalities, split) for split in ("train", "val")])
    statistics = distributed.first_alone(lambda: training_statistics(train, args.workers))
    loader, val_loader = loaders(args, train, val, rank, world)

    # ---- model, optimiser
    config = {"model": args.model, "sensors": [asdict(sensor) for sensor in train.sensors], "options": sizes}
    torch.manual_seed(args.seed)                                              # here, since loaders draw numbers too
    model = build_model(args.model, train.sensors, **sizes)
    model.standardize.set(statistics)
    model.to(device)
    autocast, pool = options.set_up(model, args, device, compiles), loader.batch_sampler.pool    # pool: tiles
    pool_step = PoolStep(model, autocast, device, pool if compiles and is_omnisat else 0, args.record)
    optimizer = torch.optim.Adam(model.parameters(), rate, fused=True)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=10)

    # ---- resume
    facts = {"config": config, **facts_of(args, train, val), "source": source,
             "is_paper": options.is_paper(args, arguments, modalities) and is_whole and options.has_release(
                 args.dataset, {"train": train, "val": val}, rank)}
    training = Training(target, "pretrained", saved, settings, facts, args, place, model, optimizer, scheduler,
                        ("loss", *model.terms))
    if rank == 0:
        size = sum(p.numel() for p in model.parameters()) / 1e6
        print(f"{in_words(args, modalities, train)}; {size:.2f} M parameters; {args.batch_size} tiles a step in pools "
              f"of {pool}; {world} process(es) on {source['device']}", file=sys.stderr)

    # ---- epochs
    with training:
        train_epochs(training, loader, val_loader, pool_step, autocast)
    distributed.finish()
    if rank == 0:
        print(f"wrote {target}", file=sys.stderr)


if __name__ == "__main__":
    run(main)
