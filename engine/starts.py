"""What a fine-tuning begins with: sizes and weights, of checkpoints, of published files or random, and the rate.

What is asked of a method comes with it, an entry of models/methods.py.
"""
import sys
from typing import NamedTuple

from datasets.files import misfit
from datasets.tiles import MAX_DATES
from engine import checkpoint, options
from engine.log import together
from utils import weights
from utils.errors import UserError

WORDS = "none", "imagenet", "external"    # that --init takes in place of files
PAPER = {"embed_dim": 256, "depth": 6}    # OmniSat's sizes


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


def start_of(args, arguments, method, modality):
    """The Start that finetune.py's arguments ask for. method: of models/methods.py. Errors: UserError for what does
    not fit.
    """
    if args.model == "omnisat":
        return start_omnisat(args, method, modality)
    return start_compared(args, arguments, method, modality)


def start_omnisat(args, method, modality):
    """Start of OmniSat, from a checkpoint or from scratch. Errors: UserError for a checkpoint or sizes that do not fit.
    """
    def rate(is_pretrained):
        return method.finetune_rate(args.dataset, modality, is_pretrained), method.rates_from
    size = {name: value if getattr(args, name) is None else getattr(args, name) for name, value in PAPER.items()}
    if args.init == ["none"]:
        return Start(size | {"ablation": "none"}, "none", "none", rate(False), "none", size == PAPER)
    if len(args.init) > 1 or args.init[0] in WORDS:
        raise UserError(f"--init {' '.join(args.init)}: omnisat starts from one pretrained.pt, or none; it has no "
                        "published weights")
    pretrained = read_pretrained(args)
    size = sizes_of(pretrained, args, size)
    ablation = pretrained[0][1]["config"]["options"]["ablation"]
    return Start(size | {"ablation": ablation}, "self", ablation, rate(True), hashes(pretrained),
                 size == PAPER and is_papers(pretrained, args, method), pretrained)


def start_compared(args, arguments, method, modality):
    """Start of a compared method. Errors: UserError for what it is not made for, and for options that would do nothing.
    """
    if not method.fills(args.dataset, modality):
        raise UserError(f"--model {args.model} is not made for {modality} of {args.dataset}, but for " + "; ".join(
            f"{', '.join(rates)} of {dataset}" for dataset, rates in method.rates.items()))
    unused = ["embed_dim", "depth", "tiles_at_once"]
    if method.is_fitted:
        unused += ["lr", "epochs", "min_epochs", "epoch_steps", "patience", "batch_size", "save_minutes", "precision",
                   "compile"]
    unused += [] if method.has_width(modality) else ["width"]
    options.refuse(args, arguments, unused, f"{args.model} on {modality}")
    rate = method.finetune_rate(args.dataset, modality, args.init[0] not in WORDS), method.rates_from
    if method.pretrains() and args.init[0] not in WORDS:
        pretrained = read_pretrained(args)
        width = sizes_of(pretrained, args, ["width"])["width"]
        return Start({"dataset": args.dataset, "width": width}, "self", "none", rate, hashes(pretrained),
                     width == 1 and is_papers(pretrained, args, method), pretrained)
    needed = method.init if modality in method.published else "none"
    if args.init not in (["none"], [needed]):
        raise UserError(f"--init {' '.join(args.init)}: {args.model} on {modality} starts from " + (
            f"{needed}, or none" if needed != "none" else
            "its own pretrained.pt, or none" if method.pretrains() else "none: it has no published weights"))
    is_usual, width = args.init == [needed] and not method.pretrain_rates, options.chosen_width(args)
    return Start({"dataset": args.dataset, "width": width}, method.pretraining if is_usual else "none", "none", rate,
                 args.init[0], is_usual and width == 1)


# ---- from checkpoints -----------------------------------------------------------------------------------------------

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
                raise UserError(f"{path}: pretrained with {option} {found}, {pretrained[0][0]} with {value}; pretrain "
                                "both alike")
            if getattr(args, name) not in (None, value):
                raise UserError(f"{option} {getattr(args, name)}: {path} has {value}; leave the option out")
    return sizes


def hashes(pretrained):
    """What says which checkpoints these are, to be compared when a run goes on."""
    return "sha256 " + "+".join(saved["sha256"][:12] for _, saved in pretrained)


def is_papers(pretrained, args, method):
    """Whether checkpoints have the paper's recipe and this run's seed; medians of some dates, as before, are not it."""
    return all(saved["is_paper"] and saved["seed"] == args.seed
               and saved.get("max_dates", MAX_DATES) == method.max_dates(args.dataset) for _, saved in pretrained)


def provenance_of(pretrained):
    """Columns of the row on the pretrainings ([(path, checkpoint)]) that it begins with; {} from scratch."""
    if not pretrained:
        return {}
    told = together([start for _, saved in pretrained for start in saved["starts"]])
    return {f"pretrain_{name}": told[name] for name in ("commit", "dirty", "processes", "device")} | {
        "pretrain_hash": " + ".join(checkpoint.file_hash(path)[:12] for path, _ in pretrained)}


# ---- from published files -------------------------------------------------------------------------------------------

def load_published(model, args, is_demo, rank):
    """Load published weights into the parts that have them. Returns the status of the row: "ok", or in the demo
    "random-weights".
    """
    try:
        if args.width not in (None, 1):
            raise UserError(f"a width of {args.width:g} does not fit the published weights; leave --width out")
        try:
            model.load_published(weights.load)
        except (RuntimeError, ValueError) as error:                           # other names or shapes
            raise UserError(f"{weights.find(model.weights)}: not {weights.TABLE[model.weights].about}: "
                            f"{misfit(error)}") from error
    except UserError as error:
        if not is_demo:
            raise
        if rank == 0:
            print(f"random weights in place of the published ones, in the demo only: {error}", file=sys.stderr)
        return "random-weights"
    return "ok"
