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
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

from datasets import open_dataset, own
from datasets.band_statistics import training_statistics
from datasets.files import misfit
from datasets.loading import Pools, make_loader
from datasets.tiles import MAX_DATES
from engine import checkpoint, distributed, options
from engine.log import provenance, together
from engine.training import Training, open_folder
from evaluate import score, score_test
from models import MODELS, build_model, max_dates
from utils import metrics, weights
from utils.errors import UserError, run
from utils.numbers import number_over, whole
from utils.results import finetuning_folder, folder_of, read_rows

WORDS = "none", "imagenet", "external"    # that --init takes in place of files


class Start(NamedTuple):
    """What a training begins with.

    options: of the model's constructor, but for num_classes. pretraining, ablation: as in the tables. rate: of Adam,
    and whose it is. init: what says where the weights are from, for the checkpoint. is_paper: whether all this is the
    paper's. pretrained: [(path, checkpoint)].
    """
    options: dict
    pretraining: str
    ablation: str
    rate: tuple
    init: str
    is_paper: bool
    pretrained: tuple = ()


def read_pretrained(args):
    """[(path, checkpoint)] of --init. Errors: UserError for one that does not fit."""
    pretrained = [(path, checkpoint.load(path, "pretrained")) for path in args.init]
    for path, saved in pretrained:
        if not saved["finished"]:
            raise UserError(f"{path}: its pretraining stopped in epoch {saved['epoch']}; run it to its end first")
        if saved["config"]["model"] != args.model:
            raise UserError(f"{path}: pretrained {saved['config']['model']}, not {args.model}; see --model")
        if saved["dataset"] != args.dataset:
            raise UserError(f"{path}: pretrained on {saved['dataset']}, not on {args.dataset}")
    return pretrained


def sizes_of(pretrained, args, names):
    """{option: value} that the checkpoints were pretrained with.

    Errors: UserError where the command, or another of them, says otherwise.
    """
    sizes = {name: pretrained[0][1]["config"]["options"][name] for name in names}
    for path, saved in pretrained:
        for name, value in sizes.items():
            found, option = saved["config"]["options"][name], f"--{name.replace('_', '-')}"
            if found != value:
                raise UserError(f"{path}: pretrained with {option} {found}, {pretrained[0][0]} with {value}; pretrain both alike")
            if getattr(args, name) not in (None, value):
                raise UserError(f"{option} {getattr(args, name)}: {path} has {value}; leave the option out")
    return sizes


def hashes(pretrained):
    """What says which checkpoints these are, to be compared when a run goes on."""
    return "sha256 " + "+".join(saved["sha256"][:12] for _, saved in pretrained)


def is_papers(pretrained, args):
    """Whether checkpoints have the paper's recipe and this run's seed; medians of some dates, as before, are not it."""
    return all(saved["is_paper"] and saved["seed"] == args.seed
               and saved.get("max_dates", MAX_DATES) == max_dates(args.model, args.dataset) for _, saved in pretrained)


def provenance_of(pretrained):
    """Columns of the row on the pretrainings ([(path, checkpoint)]) that it begins with; {} from scratch."""
    if not pretrained:
        return {}
    told = together([start for _, saved in pretrained for start in saved["starts"]])
    return {f"pretrain_{name}": told[name] for name in ("commit", "dirty", "processes", "device")} | {
        "pretrain_hash": " + ".join(checkpoint.file_hash(path)[:12] for path, _ in pretrained)}


def omnisat_rate(dataset, is_pretrained):
    """OmniSat's learning rate, and whose it is.

    Not in the paper, which has 2e-5 for pretrained weights: too slow for the short trainings, see the rehearsal in
    PAPER.md.
    """
    return 2e-3 if dataset == "flair" and not is_pretrained else 2e-4, "official code"


def start_omnisat(args):
    """Start of OmniSat, from a checkpoint or from scratch. Errors: UserError for a checkpoint or sizes that do not fit.
    """
    size = {"embed_dim": 256 if args.embed_dim is None else args.embed_dim, "depth": 6 if args.depth is None else args.depth}
    if args.init == ["none"]:
        return Start(size | {"ablation": "none"}, "none", "none", omnisat_rate(args.dataset, False), "none", size == {"embed_dim": 256, "depth": 6})
    if len(args.init) > 1 or args.init[0] in WORDS:
        raise UserError(f"--init {' '.join(args.init)}: omnisat starts from one pretrained.pt, or none; it has no published weights")
    pretrained = read_pretrained(args)
    size = sizes_of(pretrained, args, size)
    ablation = pretrained[0][1]["config"]["options"]["ablation"]
    return Start(size | {"ablation": ablation}, "self", ablation, omnisat_rate(args.dataset, True), hashes(pretrained),
                 size == {"embed_dim": 256, "depth": 6} and is_papers(pretrained, args), pretrained)


def start_compared(args, arguments, modality):
    """Start of a compared method. Errors: UserError for what it is not made for, and for options that would do nothing.
    """
    method = MODELS[args.model]
    if modality not in method.rates.get(args.dataset, ()):
        raise UserError(f"--model {args.model} is not made for {modality} of {args.dataset}, but for " + "; ".join(
            f"{', '.join(rates)} of {dataset}" for dataset, rates in method.rates.items()))
    unused = ["embed_dim", "depth", "tiles_at_once"]
    if method.is_fitted:
        unused += ["lr", "epochs", "min_epochs", "epoch_steps", "patience", "batch_size", "save_minutes", "precision", "compile"]
    unused += [] if method.has_width(modality) else ["width"]
    options.refuse(args, arguments, unused, f"{args.model} on {modality}")
    width = options.chosen_width(args)
    rate = method.rates[args.dataset][modality], method.rates_from
    if method.pretrain_rates and args.init[0] not in WORDS:
        pretrained = read_pretrained(args)
        width = sizes_of(pretrained, args, ["width"])["width"]
        return Start({"dataset": args.dataset, "width": width}, "self", "none", rate, hashes(pretrained),
                     width == 1 and is_papers(pretrained, args), pretrained)
    needed = method.init if modality in method.published else "none"
    if args.init not in (["none"], [needed]):
        raise UserError(f"--init {' '.join(args.init)}: {args.model} on {modality} starts from " + (
            f"{needed}, or none" if needed != "none" else "its own pretrained.pt, or none" if method.pretrain_rates else
            "none: it has no published weights"))
    is_usual = args.init == [needed] and not method.pretrain_rates
    return Start({"dataset": args.dataset, "width": width}, method.pretraining if is_usual else "none", "none", rate, args.init[0],
                 is_usual and width == 1)


def load_published(model, args, is_demo, rank):
    """Load published weights into the parts that have them. Returns the status of the row: "ok", or in the demo
    "random-weights".
    """
    try:
        if args.width not in (None, 1):
            raise UserError(f"a width of {args.width:g} does not fit the published weights; leave --width out")
        try:
            model.load_published(weights.load)
        except (RuntimeError, ValueError) as error:                           # other names or shapes, as load_state_dict has it
            raise UserError(f"{weights.find(model.weights)}: not {weights.TABLE[model.weights].about}: "
                            f"{misfit(error)}") from error
    except UserError as error:
        if not is_demo:
            raise
        if rank == 0:
            print(f"random weights in place of the published ones, in the demo only: {error}", file=sys.stderr)
        return "random-weights"
    return "ok"


def train_epoch(training, loader, pools, autocast, progress):
    """What is left of an epoch, with binary cross-entropy. autocast: the context of the forward pass."""
    model, batches = training.model.train(), iter(loader)
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


@torch.no_grad()
def fit(training, dataset, loader, pools, progress):
    """In place of epochs: what the method takes from each tile, by all processes, then all at once, alike on each
    process.
    """
    model, batches, mine = training.model.eval(), iter(loader), []
    for step_size, step_pools in pools.steps():
        for _, indices in step_pools:
            mine.append((indices, model.collect(distributed.to_device(next(batches), training.device)).cpu()))
        progress.update(step_size)
        training.look_up()
    order, values = zip(*(pair for process in distributed.gather(mine) for pair in process))
    x = torch.cat(values)[torch.tensor(sum(order, [])).argsort()]
    model.fit(x, dataset.labels > 0, training.args.seed)


def test(target, args, place):
    """With --csv: score the test split with the best epoch, and write the row."""
    if args.csv:
        scores = score_test(target, args.data_root, args.pool, args.workers, place, args.csv, args.tiles_at_once)
        if place[0] == 0:
            print(f"test: weighted F1 {scores['f1_weighted']:.1f}, macro F1 {scores['f1_macro']:.1f}, mAP {scores['map']:.1f} "
                  f"on {scores['n']} tiles; best epoch {scores['epoch']}; row added to {args.csv}", file=sys.stderr)
    distributed.finish()


def command_line():
    """The ArgumentParser."""
    arguments = options.parser(__doc__)
    arguments.add_argument("--model", choices=MODELS, default="omnisat", help="omnisat or a compared method")
    arguments.add_argument("--init", required=True, nargs="+", metavar="FILE",
                           help="pretrained.pt to start from (of satmae and scalemae one for each modality); none for random "
                                "weights; imagenet for the published weights of a compared method's ResNet, external for those of "
                                "dofa or presto, which are looked for in weights/ (python prepare.py weights)")
    options.add_data_options(arguments)
    arguments.add_argument("--label-percent", type=whole(1, 100), default=100, metavar="PERCENT",
                           help="use a stratified subset of the training labels, drawn with the seed; validation and test "
                                "stay whole")
    options.add_width(options.add_model_options(arguments, None, None))
    options.add_machine_options(arguments)
    training = options.add_training_options(arguments, epochs=200, epoch_steps=20)
    training.add_argument("--lr", type=number_over(0), help="of Adam (default: 2e-4, the official code's, and 2e-3 on flair from "
                                                   "scratch; the paper's 2e-5 is too slow for few labels, see PAPER.md; "
                                                   "each compared method has its own)")
    training.add_argument("--min-epochs", type=whole(0), default=50, help="no early stop before; not in the paper: the official "
                                                                    "code's")
    training.add_argument("--patience", type=whole(1), default=10, help="stop after so many epochs without a better validation F1")
    arguments.add_argument("--csv", metavar="FILE", help="score the test split at the end and add the row to this table")
    return arguments


def main(argv=None):
    # ---- options
    arguments = command_line()
    args = options.parse(arguments, argv, {name: model.pools for name, model in MODELS.items()})
    options.check_model(args)
    if args.csv:
        read_rows(args.csv)                                                   # another kind of table is told now, not at the end
    modalities = options.chosen_modalities(args.modalities, args.dataset)
    modality, method = options.modality_name(modalities, args.dataset), MODELS[args.model]
    modalities = method.sees.get(modality, modalities)

    # ---- setup
    rank, world, device = place = distributed.setup()
    source = provenance("finetune.py", argv if argv is not None else sys.argv[1:], device)
    start = start_omnisat(args) if args.model == "omnisat" else start_compared(args, arguments, modality)
    options.check_s1(args, modalities, start.pretrained)
    rate, rate_from = start.rate if args.lr is None else (args.lr, "--lr")
    output = Path(args.output or finetuning_folder(folder_of("runs", args.s1), args.dataset, args.model, start.pretraining,
                                                   start.ablation, modality, args.label_percent, args.seed))
    target = output / "finetuned.pt"
    compiles = options.chosen_compile(args, device, is_worth_it=False)
    saved, settings = open_folder(target, "finetuned", args, rank, **start.options, modalities=",".join(modalities), lr=rate,
                                  precision=options.chosen_precision(args, device), compile=compiles, init=start.init)
    if saved is not None and saved["finished"]:
        if rank == 0:
            print(f"{target} is finished; delete it to start anew", file=sys.stderr)
        return test(target, args, place)

    # ---- data
    dates = max_dates(args.model, args.dataset)

    def dataset(split, **choice):
        return open_dataset(args.dataset, args.data_root, split, modalities, seed=args.seed, max_cloud=args.max_cloud,
                            parts=args.parts, all_bands=method.all_bands, max_dates=dates, s1=args.s1, **choice)

    def datasets():
        if args.csv:
            dataset("test")                                                   # what is missing there is told now, not at the end
        return dataset("train", label_percent=args.label_percent), dataset("val")
    train, val = distributed.first_alone(datasets)
    if len(train) < method.least_tiles:
        raise UserError(f"{args.data_root}: {len(train)} training tiles at {args.label_percent} % of the labels; {args.model} looks for the "
                        f"nearest {method.least_tiles}: give it more, or more labels", is_told=rank > 0)
    for path, pretrained in start.pretrained:
        if not pretrained.get("has_list", True):
            if rank == 0:
                print(f"warning: {path}: pretrained without a list of tiles, so on those of validation and test too, if "
                      "without their labels", file=sys.stderr)
        elif pretrained["val_hash"] != val.list_hash:
            raise UserError(f"{path}: pretrained with another list of validation tiles than {args.data_root} gives now; was a val "
                            "list added? pretrain again")
    train_pools = (Pools(len(train), args.pool, args.pool * world, None, rank, world) if method.is_fitted else
                   Pools(len(train), args.pool, args.batch_size, args.seed, rank, world, args.epoch_steps))
    val_pools = Pools(len(val), args.pool, args.pool * world, None, rank, world)
    train_loader, val_loader = (make_loader(data, pools, args.workers)
                                for data, pools in ((train, train_pools), (val, val_pools)))

    # ---- model, optimiser
    config = {"model": args.model, "sensors": [asdict(sensor) for sensor in train.sensors],
              "options": start.options | {"num_classes": len(train.classes)}}
    torch.manual_seed(args.seed)                                              # here, since loaders draw numbers too
    model, status = build_model(args.model, train.sensors, **config["options"]), "ok" if saved is None else saved["status"]
    if args.init[0] in WORDS[1:] and saved is None:
        status = distributed.first_alone(lambda: load_published(model, args, train.is_demo, rank))
    if not start.pretrained:
        # the statistics are those of the whole training split, as in pretraining: they need no label
        model.standardize.set(distributed.first_alone(lambda: training_statistics(dataset("train", labelled=False), args.workers)))
    else:
        checkpoint.start_from(model, start.pretrained)
    model.to(device)
    autocast, optimizer, scheduler = options.set_up(model, args, device, compiles), None, None
    if not method.is_fitted:
        optimizer = torch.optim.Adam(model.parameters(), rate, fused=True)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=10)

    is_demo = train.is_demo or any(pretrained["is_demo"] for _, pretrained in start.pretrained)
    is_paper = not is_demo and start.is_paper and options.is_paper(args, arguments, modalities) and options.has_release(
        args.dataset, {"train": train, "val": val}, rank)
    scale = "demo" if is_demo else "paper" if is_paper else "custom"

    # ---- resume
    facts = {"config": config, "dataset": args.dataset, "pretraining": start.pretraining, "label_percent": args.label_percent,
             "seed": args.seed, "max_cloud": args.max_cloud, "parts": args.parts, "max_dates": dates, "s1": args.s1,
             "split_hash": train.split_hash, "val_hash": val.list_hash,
             "pretrain_hours": sum(pretrained["hours"] for _, pretrained in start.pretrained),
             "pretrain_source": provenance_of(start.pretrained),
             "modality": modality, "source": source, "scale": scale, "status": status,
             "rate": "" if rate is None else f"{rate:g}", "rate_from": "" if rate is None else rate_from,
             **own.table(args.dataset)}
    if method.is_fitted:
        args.epochs = 1
    training = Training(target, "finetuned", saved, settings, facts, args, place, model, optimizer, scheduler, ("loss",))
    if rank == 0:
        print(f"{'fitting' if method.is_fitted else 'training'} {args.model} on {len(train)} tiles of {args.dataset}"
              f"{' (demo data)' if train.is_demo else ''}, {', '.join(modalities)}, from {' and '.join(args.init)}; "
              f"{'' if method.is_fitted else f'lr {rate:g} ({rate_from}), {train_pools.a_pass * train_pools.passes} steps an epoch; '}"
              f"{world} process(es) on {source['device']}", file=sys.stderr)

    # ---- loop
    constant = metrics.constant_scores(train.labels, val.labels)
    with training:
        while not training.finished:
            with training.begin_epoch(train_pools, "fit" if method.is_fitted else "fine-tune") as progress:
                if method.is_fitted:
                    fit(training, train, train_loader, train_pools, progress)
                else:
                    train_epoch(training, train_loader, train_pools, autocast, progress)
            losses = {} if method.is_fitted else training.means(train_pools.tiles)
            scores = score(model, val, val_loader, val_pools, device, lambda _: training.look_up(),
                           tunes=True, autocast=nullcontext() if method.is_fitted else autocast)
            if not method.is_fitted:
                losses["lr"] = optimizer.param_groups[0]["lr"]
                scheduler.step(scores["loss"])
            training.end_epoch(losses | {"val_loss": scores["loss"], "val_f1_macro": scores["f1_macro"], "val_f1_weighted":
                                         scores["f1_weighted"], "val_map": scores["map"]} | (
                                             {"val_threshold": scores["threshold"]} if method.tunes_threshold else {}),
                               score=metrics.epoch_score(scores["loss"], scores["f1_macro"], constant))
    distributed.gather(None)                                                  # rank 0 has written finetuned.pt
    if rank == 0 and not method.is_fitted:
        print(training.ended(), file=sys.stderr)
    test(target, args, place)


if __name__ == "__main__":
    run(main)
