"""Train OmniSat or a compared method for multi-label classification (section 4.2).

    python finetune.py --dataset treesatai-ts --data-root DIR --init runs/treesatai-ts/pretrain-seed0/pretrained.pt
    python finetune.py --dataset treesatai-ts --data-root DIR --init none --modalities s2 --label-percent 10
    python finetune.py --dataset treesatai --data-root DIR --model resnet50 --init imagenet --modalities vhr
    torchrun --nproc_per_node=3 finetune.py ...

All weights are trained; lightgbm and mosaiks are fitted in one pass. The epoch with the best validation F1 (macro; of
equal ones the one of lower loss) is kept in finetuned.pt and, with --csv, scored on the test split at the end. Epochs
that are no better than a constant prediction, neither in loss (each class's frequency) nor in F1 (every class
everywhere), come last, and only their loss counts: such an F1 can be had without looking at the tile. Few tiles are
passed over several times an epoch (--epoch-steps). Stopped or killed, the same command goes on.
"""
import sys
from dataclasses import asdict
from pathlib import Path

import utils.threads  # noqa: F401, before torch

import torch
import torch.nn.functional as F

from datasets import open_dataset, own
from datasets.band_statistics import training_statistics
from datasets.loading import Pools, make_loader, whole_pools
from engine import checkpoint, distributed, options, starts
from engine.folder import open_folder
from engine.log import provenance
from engine.training import Training
from evaluate import score, score_test
from models.methods import METHODS, build_model
from utils import metrics
from utils.errors import UserError, run
from utils.numbers import number_over, whole
from utils.results import finetuning_folder, folder_of, read_rows


# ---- tiles and model ------------------------------------------------------------------------------------------------

def open_split(args, modalities, split, **choice):
    """A split of the dataset as the options and the method have it. choice: of datasets.tiles.Tiles."""
    method = METHODS[args.model]
    return open_dataset(args.dataset, args.data_root, split, modalities, seed=args.seed, max_cloud=args.max_cloud,
                        parts=args.parts, all_bands=method.all_bands, max_dates=method.max_dates(args.dataset),
                        s1=args.s1, **choice)


def open_splits(args, modalities, pretrained, rank):
    """The training and the validation tiles. pretrained: [(path, checkpoint)].

    Errors: UserError for too few, and for others than the checkpoints were chosen with.
    """
    def opened():
        if args.csv:
            open_split(args, modalities, "test")                              # what is missing there is told now
        train = open_split(args, modalities, "train", label_percent=args.label_percent)
        return train, open_split(args, modalities, "val")
    train, val = distributed.first_alone(opened)
    least = METHODS[args.model].least_tiles
    if len(train) < least:
        raise UserError(f"{args.data_root}: {len(train)} training tiles at {args.label_percent} % of the labels; "
                        f"{args.model} looks for the nearest {least}: give it more, or more labels", is_told=rank > 0)
    for path, saved in pretrained:
        if not saved.get("has_list", True):
            if rank == 0:
                print(f"warning: {path}: pretrained without a list of tiles, so on those of validation and test too, "
                      "if without their labels", file=sys.stderr)
        elif saved["val_hash"] != val.list_hash:
            raise UserError(f"{path}: pretrained with another list of validation tiles than {args.data_root} gives "
                            "now; was a val list added? pretrain again")
    return train, val


def loaders(args, train, val, rank, world):
    """The loaders of both; what is fitted sees each training tile once, in the list's order."""
    pools = (whole_pools(train, args.pool, rank, world) if METHODS[args.model].is_fitted else
             Pools(len(train), args.pool, args.batch_size, args.seed, rank, world, args.epoch_steps))
    return (make_loader(train, pools, args.workers),
            make_loader(val, whole_pools(val, args.pool, rank, world), args.workers))


def first_model(args, start, modalities, train, saved, rank):
    """The model that the training begins with, on the CPU: its config, itself, and the status of its row, "ok" or
    "random-weights". train: the training tiles; saved: the run's checkpoint if it goes on, else None.
    """
    config = {"model": args.model, "sensors": [asdict(sensor) for sensor in train.sensors],
              "options": start.options | {"num_classes": len(train.classes)}}
    torch.manual_seed(args.seed)                                              # here, since loaders draw numbers too
    model = build_model(args.model, train.sensors, **config["options"])
    status = "ok" if saved is None else saved["status"]
    if args.init[0] in starts.WORDS[1:] and saved is None:
        status = distributed.first_alone(lambda: starts.load_published(model, args, train.is_demo, rank))
    if start.pretrained:
        checkpoint.start_from(model, start.pretrained)
    else:
        # the statistics are those of the whole training split, as in pretraining: they need no label
        model.standardize.set(distributed.first_alone(
            lambda: training_statistics(open_split(args, modalities, "train", labelled=False), args.workers)))
    return config, model, status


# ---- training -------------------------------------------------------------------------------------------------------

def train_epoch(training, loader, autocast, progress):
    """What is left of an epoch, with binary cross-entropy. autocast: the context of the forward pass."""
    model, pools, batches = training.model.train(), loader.batch_sampler, iter(loader)
    for step_size, step_pools in pools.steps():
        training.begin_step(pools.a_step)
        for number, indices in step_pools:
            batch = distributed.to_device(next(batches), training.device)
            training.begin_pool(number, batch["name"])
            with autocast:
                outputs = model.all_logits(batch)
            loss = sum(F.binary_cross_entropy_with_logits(logits.float(), batch["label"]) for logits in outputs)
            (loss * len(indices) / step_size).backward()
            training.end_pool(number % pools.a_step, loss[None])
        progress.update(step_size)
        training.end_step()


def train_epochs(training, train_loader, val_loader, autocast, tunes):
    """Epochs until the last. tunes: whether validation chooses a threshold."""
    pools = train_loader.batch_sampler
    while not training.finished:
        with training.begin_epoch(pools, "fine-tune") as progress:
            train_epoch(training, train_loader, autocast, progress)
        losses = training.means(pools.tiles) | {"lr": training.optimizer.param_groups[0]["lr"]}
        scores = score(training.model, val_loader, training.device, lambda _: training.look_up(), tunes, autocast)
        training.scheduler.step(scores["loss"])
        end_epoch(training, losses, scores, train_loader, val_loader)


@torch.no_grad()
def fit(training, train_loader, val_loader):
    """In place of epochs: what the method takes from each tile, by all processes, then all at once, alike on each
    process.
    """
    model, pools, batches, mine = training.model.eval(), train_loader.batch_sampler, iter(train_loader), []
    with training.begin_epoch(pools, "fit") as progress:
        for step_size, step_pools in pools.steps():
            for _, indices in step_pools:
                mine.append((indices, model.collect(distributed.to_device(next(batches), training.device)).cpu()))
            progress.update(step_size)
            training.look_up()
        order, values = zip(*(pair for process in distributed.gather(mine) for pair in process))
        x = torch.cat(values)[torch.tensor(sum(order, [])).argsort()]
        model.fit(x, train_loader.dataset.labels > 0, training.args.seed)
    scores = score(model, val_loader, training.device, lambda _: training.look_up())
    end_epoch(training, {}, scores, train_loader, val_loader)


def end_epoch(training, losses, scores, train_loader, val_loader):
    """Log an epoch, and keep it if it is the best. losses: of training; scores: of validation."""
    constant = metrics.constant_scores(train_loader.dataset.labels, val_loader.dataset.labels)
    names = "loss", "f1_macro", "f1_weighted", "map", "threshold"
    training.end_epoch(losses | {f"val_{name}": scores[name] for name in names if name in scores},
                       score=metrics.epoch_score(scores["loss"], scores["f1_macro"], constant))


# ---- the script -----------------------------------------------------------------------------------------------------

def test(target, args, place):
    """With --csv: score the test split with the best epoch, and write the row."""
    if args.csv:
        scores = score_test(target, args.data_root, args.pool, args.workers, place, args.csv, args.tiles_at_once)
        if place[0] == 0:
            print(f"test: weighted F1 {scores['f1_weighted']:.1f}, macro F1 {scores['f1_macro']:.1f}, "
                  f"mAP {scores['map']:.1f} on {scores['n']} tiles; best epoch {scores['epoch']}; row added to "
                  f"{args.csv}", file=sys.stderr)
    distributed.finish()


def command_line():
    """The ArgumentParser."""
    arguments = options.parser(__doc__)
    arguments.add_argument("--model", choices=METHODS, default="omnisat", help="a method of models/methods.py")
    arguments.add_argument("--init", required=True, nargs="+", metavar="FILE",
                           help="pretrained.pt to start from (of satmae and scalemae one for each modality); none for "
                                "random weights; imagenet for the published weights of a compared method's ResNet, "
                                "external for those of dofa or presto, which are looked for in weights/ (python "
                                "prepare.py weights)")
    options.add_data_options(arguments)
    arguments.add_argument("--label-percent", type=whole(1, 100), default=100, metavar="PERCENT",
                           help="use a stratified subset of the training labels, drawn with the seed; validation and "
                                "test stay whole")
    options.add_width(options.add_model_options(arguments, None, None))
    options.add_machine_options(arguments)
    training = options.add_training_options(arguments, epochs=200, epoch_steps=20)
    training.add_argument("--lr", type=number_over(0),
                          help="of Adam (default: 2e-4, the official code's, and 2e-3 on flair from scratch; the "
                               "paper's 2e-5 is too slow for few labels, see PAPER.md; each compared method has its "
                               "own)")
    training.add_argument("--min-epochs", type=whole(0), default=50,
                          help="no early stop before; not in the paper: the official code's")
    training.add_argument("--patience", type=whole(1), default=10,
                          help="stop after so many epochs without a better validation F1")
    arguments.add_argument("--csv", metavar="FILE",
                           help="score the test split at the end and add the row to this table")
    return arguments


def target_of(args, start, modality):
    """Where the checkpoint is written."""
    folder = args.output or finetuning_folder(folder_of("runs", args.s1), args.dataset, args.model, start.pretraining,
                                              start.ablation, modality, args.label_percent, args.seed)
    return Path(folder) / "finetuned.pt"


def facts_of(args, start, train, val):
    """What the checkpoint says of tiles and start."""
    return {"dataset": args.dataset, "pretraining": start.pretraining, "label_percent": args.label_percent,
            "seed": args.seed, "max_cloud": args.max_cloud, "parts": args.parts,
            "max_dates": METHODS[args.model].max_dates(args.dataset),
            "s1": args.s1, "split_hash": train.split_hash, "val_hash": val.list_hash,
            "classes": list(train.classes), "pretrain_hours": sum(saved["hours"] for _, saved in start.pretrained),
            "pretrain_source": starts.provenance_of(start.pretrained), **own.table(args.dataset)}


def scale_of(args, arguments, modalities, start, splits, rank):
    """The scale of the row: demo, paper or custom. splits: {name: tiles}."""
    if any(tiles.is_demo for tiles in splits.values()) or any(saved["is_demo"] for _, saved in start.pretrained):
        return "demo"
    is_paper = start.is_paper and options.is_paper(args, arguments, modalities) and options.has_release(
        args.dataset, splits, rank)
    return "paper" if is_paper else "custom"


def in_words(args, modalities, loader, rate, rate_from):
    """What is trained on what. loader: of the training tiles."""
    method, tiles, pools = METHODS[args.model], loader.dataset, loader.batch_sampler
    steps = "" if method.is_fitted else f"; lr {rate:g} ({rate_from}), {pools.a_pass * pools.passes} steps an epoch"
    return (f"{'fitting' if method.is_fitted else 'training'} {args.model} on {len(tiles)} tiles of {args.dataset}"
            f"{' (demo data)' if tiles.is_demo else ''}, {', '.join(modalities)}, from {' and '.join(args.init)}"
            f"{steps}")


def main(argv=None):
    # ---- options
    arguments = command_line()
    args = options.parse(arguments, argv, {name: method.pools for name, method in METHODS.items()})
    options.check_model(args)
    if args.csv:
        read_rows(args.csv)                                                   # another kind of table is told now
    modalities = options.chosen_modalities(args.modalities, args.dataset)
    method, modality = METHODS[args.model], options.modality_name(modalities, args.dataset)
    modalities = method.sees.get(modality, modalities)

    # ---- setup
    rank, world, device = place = distributed.setup()
    source = provenance("finetune.py", argv if argv is not None else sys.argv[1:], device)
    start = starts.start_of(args, arguments, method, modality)
    options.check_s1(args, modalities, start.pretrained)
    rate, rate_from = start.rate if args.lr is None else (args.lr, "--lr")
    target, compiles = target_of(args, start, modality), options.chosen_compile(args, device, is_worth_it=False)
    saved, settings = open_folder(target, "finetuned", args, rank, **start.options, modalities=",".join(modalities),
                                  lr=rate, precision=options.chosen_precision(args, device), compile=compiles,
                                  init=start.init)
    if saved is not None and saved["finished"]:
        if rank == 0:
            print(f"{target} is finished; delete it to start anew", file=sys.stderr)
        return test(target, args, place)

    # ---- tiles, model, optimiser
    train, val = open_splits(args, modalities, start.pretrained, rank)
    train_loader, val_loader = loaders(args, train, val, rank, world)
    config, model, status = first_model(args, start, modalities, train, saved, rank)
    model.to(device)
    autocast, optimizer, scheduler = options.set_up(model, args, device, compiles), None, None
    if not method.is_fitted:
        optimizer = torch.optim.Adam(model.parameters(), rate, fused=True)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=10)

    # ---- resume
    scale = scale_of(args, arguments, modalities, start, {"train": train, "val": val}, rank)
    facts = {"config": config, **facts_of(args, start, train, val), "modality": modality, "source": source,
             "scale": scale, "status": status, "rate": "" if rate is None else f"{rate:g}",
             "rate_from": "" if rate is None else rate_from}
    if method.is_fitted:
        args.epochs = 1
    training = Training(target, "finetuned", saved, settings, facts, args, place, model, optimizer, scheduler,
                        ("loss",))
    if rank == 0:
        print(f"{in_words(args, modalities, train_loader, rate, rate_from)}; {world} process(es) on {source['device']}",
              file=sys.stderr)

    # ---- epochs, test
    with training:
        if method.is_fitted:
            fit(training, train_loader, val_loader)
        else:
            train_epochs(training, train_loader, val_loader, autocast, method.tunes_threshold)
    distributed.gather(None)                                                  # rank 0 has written finetuned.pt
    if rank == 0 and not method.is_fitted:
        print(training.ended(), file=sys.stderr)
    test(target, args, place)


if __name__ == "__main__":
    run(main)
