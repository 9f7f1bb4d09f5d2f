"""Fine-tune OmniSat for multi-label classification, from a pretrained checkpoint or from scratch (section 4.2).

    python finetune.py --dataset treesatai-ts --data-root DIR --init runs/treesatai-ts/pretrain-seed0/pretrained.pt
    python finetune.py --dataset treesatai-ts --data-root DIR --init none --modalities s2 --label-percent 10
    torchrun --nproc_per_node=3 finetune.py ...

All weights are trained. The checkpoint with the best validation F1 (macro; of equal ones the one of lower loss) is kept in
finetuned.pt and, with --csv, scored on the test split at the end. Stopped or killed, the same command goes on.
"""
import sys
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F

from datasets import open_dataset
from datasets.band_statistics import training_statistics
from datasets.loading import Pools, make_loader
from evaluate import score, score_test
from models import build_model
from utils import checkpoint, distributed, options
from utils.errors import UserError, run
from utils.log import provenance
from utils.results import finetuning_folder, read_rows
from utils.training import Training, open_folder

# not in the paper, which gives a rate for pretrained weights only: the official code's
SCRATCH_RATE = {"flair": 2e-3}    # 2e-4 for the others


def train_epoch(training, loader, pools, autocast, progress):
    """What is left of an epoch, with binary cross-entropy. autocast: the context of the forward pass."""
    model, batches = training.model.train(), iter(loader)
    for step_size, step_pools in pools.steps():
        training.begin_step(pools.a_step)
        for number, indices in step_pools:
            batch = distributed.to_device(next(batches), training.device)
            training.begin_pool(number, batch["name"])
            with autocast:
                logits = model(batch)
            loss = F.binary_cross_entropy_with_logits(logits.float(), batch["label"])
            (loss * len(indices) / step_size).backward()
            training.end_pool(number % pools.a_step, [loss])
        progress.update(step_size)
        training.end_step()


def test(target, args, place):
    """With --csv: score the test split with the best epoch, and write the row."""
    if args.csv:
        scores = score_test(target, args.data_root, args.pool, args.workers, place, args.csv)
        if place[0] == 0:
            print(f"test: weighted F1 {scores['f1_weighted']:.1f}, macro F1 {scores['f1_macro']:.1f}, mAP {scores['map']:.1f} "
                  f"on {scores['n']} tiles; best epoch {scores['epoch']}; row added to {args.csv}", file=sys.stderr)
    distributed.finish()


def command_line():
    """The ArgumentParser."""
    arguments = options.parser(__doc__)
    arguments.add_argument("--init", required=True, metavar="FILE",
                           help="pretrained.pt to start from, or none for random weights")
    options.add_data_options(arguments)
    arguments.add_argument("--label-percent", type=int, default=100, metavar="PERCENT",
                           help="use a stratified subset of the training labels, drawn with the seed; validation and test "
                                "stay whole")
    options.add_model_options(arguments, None, None)
    options.add_machine_options(arguments)
    training = options.add_training_options(arguments, epochs=200)
    training.add_argument("--lr", type=float, help="of Adam (default: 2e-5 from a checkpoint, the paper's; from "
                                                   "scratch the official code's, 2e-4, and 2e-3 on flair)")
    training.add_argument("--min-epochs", type=int, default=50, help="no early stop before; not in the paper: the official "
                                                                    "code's")
    training.add_argument("--patience", type=int, default=10, help="stop after so many epochs without a better validation F1")
    arguments.add_argument("--csv", metavar="FILE", help="score the test split at the end and add the row to this table")
    return arguments


def main(argv=None):
    # ---- options
    arguments = command_line()
    args = arguments.parse_args(argv)
    options.check_positive(args, "epochs", "batch_size", "pool", "patience", "label_percent", "parts", "tiles_at_once")
    options.check_model(args)
    if args.csv:
        read_rows(args.csv)                                                   # another kind of table is told now, not at the end
    if args.label_percent > 100:
        raise UserError(f"--label-percent must be between 1 and 100, not {args.label_percent}")
    modalities = options.chosen_modalities(args.modalities, args.dataset)

    # ---- setup
    rank, world, device = place = distributed.setup()
    start_point = None if args.init == "none" else checkpoint.load(args.init, "pretrained")
    size = {"embed_dim": 256 if args.embed_dim is None else args.embed_dim, "depth": 6 if args.depth is None else args.depth}
    pretraining, ablation = "none", "none"
    if start_point is not None:
        if not start_point["finished"]:
            raise UserError(f"{args.init}: its pretraining stopped in epoch {start_point['epoch']}; run it to its end first")
        if start_point["dataset"] != args.dataset:
            raise UserError(f"{args.init}: pretrained on {start_point['dataset']}, not on {args.dataset}")
        size = {name: start_point["config"]["options"][name] for name in size}
        for name, value in size.items():
            if getattr(args, name) not in (None, value):
                raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: {args.init} has {value}; leave the "
                                "option out")
        pretraining, ablation = "self", start_point["config"]["options"]["ablation"]
    scratch_rate = SCRATCH_RATE.get(args.dataset, 2e-4)
    rate = args.lr if args.lr is not None else scratch_rate if start_point is None else 2e-5
    modality = options.modality_name(modalities, args.dataset)
    output = Path(args.output or finetuning_folder("runs", args.dataset, pretraining, ablation, modality, args.label_percent,
                                                   args.seed))
    target = output / "finetuned.pt"
    saved, settings = open_folder(target, "finetuned", args, rank, **size, modalities=",".join(modalities), lr=rate,
                                  precision=options.chosen_precision(args, device),
                                  init="none" if start_point is None else f"sha256 {start_point['sha256'][:12]}")
    if saved is not None and saved["finished"]:
        if rank == 0:
            print(f"{target} is finished; delete it to start anew", file=sys.stderr)
        return test(target, args, place)

    # ---- data
    def dataset(split, **choice):
        return open_dataset(args.dataset, args.data_root, split, modalities, seed=args.seed, max_cloud=args.max_cloud,
                            parts=args.parts, **choice)
    train, val = distributed.first_alone(lambda: (dataset("train", label_percent=args.label_percent), dataset("val")))
    if start_point is not None and start_point["val_hash"] != val.list_hash:
        raise UserError(f"{args.init}: pretrained with another list of validation tiles than {args.data_root} gives now; was a val "
                        "list added? pretrain again")
    train_pools = Pools(len(train), args.pool, args.batch_size, args.seed, rank, world)
    val_pools = Pools(len(val), args.pool, args.pool * world, None, rank, world)
    train_loader, val_loader = (make_loader(data, pools, args.workers)
                                for data, pools in ((train, train_pools), (val, val_pools)))

    # ---- model, optimiser
    config = {"model": "omnisat", "sensors": [asdict(sensor) for sensor in train.sensors],
              "options": size | {"num_classes": len(train.classes), "ablation": ablation}}
    torch.manual_seed(args.seed)                                              # here, since loaders draw numbers too
    model = build_model("omnisat", train.sensors, **config["options"])
    if start_point is None:
        # the statistics are those of the whole training split, as in pretraining: they need no label
        model.standardize.set(distributed.first_alone(lambda: training_statistics(dataset("train", labelled=False),
                                                                                 args.workers)))
    else:
        checkpoint.start_from(model, start_point, args.init)
    model.to(device)
    autocast = options.set_up(model, args, device)
    optimizer = torch.optim.Adam(model.parameters(), rate, fused=True)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=10)

    is_demo = train.is_demo or (start_point is not None and start_point["is_demo"])
    is_paper = (options.is_paper(args, arguments, modalities) and size == {"embed_dim": 256, "depth": 6}
                and (start_point is None or start_point["is_paper"] and start_point["seed"] == args.seed))
    scale = "demo" if is_demo else "paper" if is_paper else "custom"

    # ---- resume
    source = provenance("finetune.py", argv if argv is not None else sys.argv[1:], device)
    facts = {"config": config, "dataset": args.dataset, "pretraining": pretraining, "label_percent": args.label_percent, "seed": args.seed,
             "max_cloud": args.max_cloud, "parts": args.parts, "split_hash": train.split_hash, "val_hash": val.list_hash,
             "pretrain_hours": start_point["hours"] if start_point else 0.0,
             "source": source, "scale": scale}
    training = Training(target, "finetuned", saved, settings, facts, args, place, model, optimizer, scheduler, ("loss",))
    if rank == 0:
        print(f"fine-tuning on {len(train)} tiles of {args.dataset}{' (demo data)' if train.is_demo else ''}, "
              f"{', '.join(modalities)}, from {args.init}; lr {rate:g}; {world} process(es) on {source['device']}",
              file=sys.stderr)

    # ---- loop
    with training:
        while not training.finished:
            with training.begin_epoch(train_pools, "fine-tune") as progress:
                train_epoch(training, train_loader, train_pools, autocast, progress)
            losses = training.means(len(train))
            scores = score(model, val, val_loader, val_pools, device, lambda _: training.look_up())
            rate = optimizer.param_groups[0]["lr"]
            scheduler.step(scores["loss"])
            training.end_epoch(losses | {"val_loss": scores["loss"], "val_f1_macro": scores["f1_macro"], "val_f1_weighted":
                                         scores["f1_weighted"], "val_map": scores["map"], "lr": rate},
                               score=[scores["f1_macro"], -scores["loss"]])   # of equal F1 the lower loss
    distributed.gather(None)                                                  # rank 0 has written finetuned.pt
    test(target, args, place)


if __name__ == "__main__":
    run(main)
