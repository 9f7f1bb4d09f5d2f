"""Command-line options that the scripts share."""
import argparse
import os
import shutil
import sys

import torch
from torch.utils._triton import has_triton

from datasets import default_modalities, own
from datasets.sensors import SENSORS
from datasets.splits import differs_from_release
from utils import plain
from utils.errors import UserError
from utils.numbers import number, number_over, whole


def parser(doc):
    """An ArgumentParser that shows the script's docstring as it is written, and each default."""
    class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
        def _get_help_string(self, action):
            return action.help if action.default is None else super()._get_help_string(action)
    return argparse.ArgumentParser(description=doc, formatter_class=Formatter)


def parse(arguments, argv, pools):
    """The arguments. pools: {model: {dataset: its own default of --pool}}."""
    args = arguments.parse_args(argv)
    check_dataset(arguments, args.dataset, args.data_root, args.sensors)
    arguments.set_defaults(pool=pools[args.model].get(args.dataset, arguments.get_default("pool")))
    return arguments.parse_args(argv)


def check_dataset(arguments, name, root, sensors):
    """Find the sensors of a dataset of one's own, --sensors or beside the data; end with a line if it is not known."""
    own.find(name, root, sensors)
    if name not in SENSORS:
        arguments.error(f"unknown dataset {name!r}: there are {', '.join(SENSORS)}; one of your own needs a file of "
                        f"its sensors, --sensors or {os.path.join(root, own.NAME)}, see docs/own.md")


def add_sensors(group):
    group.add_argument("--sensors", metavar="FILE",
                       help="the sensors of a dataset of your own (default: sensors.json in the folder of its files, "
                            "if it is there), see docs/own.md")


def add_data_options(options):
    """Which tiles, seen by which sensors."""
    group = options.add_argument_group("data")
    group.add_argument("--dataset", required=True, metavar="NAME",
                       help=f"the dataset: {', '.join(SENSORS)}, whose raw formats are read as they are, or your own")
    add_sensors(group)
    group.add_argument("--data-root", required=True, metavar="DIR", help="folder of the raw files, see README")
    group.add_argument("--modalities", default="all", metavar="KEYS",
                       help="all, or a comma-separated choice such as s2 or vhr,s1; all means those of the paper's "
                            "tables (s1 is the ascending orbit, s1-des must be asked for)")
    group.add_argument("--parts", type=whole(1), default=1, metavar="N",
                       help="cut each tile of PASTIS-HD into N x N tiles with labels of their own, where memory is "
                            "short; not in the paper")
    group.add_argument("--max-cloud", type=number(0, 100), metavar="PERCENT",
                       help="leave out Sentinel-2 dates with a higher mean cloud or snow probability; not in the "
                            "paper, whose model finds them by itself")
    group.add_argument("--s1", choices=("released", "repaired"), default="released",
                       help="of treesatai-ts: Sentinel-1 as its files are, on which the printed numbers were made, or "
                            "with the scrambled ones (2017's, as far as is known) put in order, see "
                            "docs/sentinel1-2017.md")
    add_loader_options(group)


def add_loader_options(group, pool=128):
    """How tiles are read and fed. Returns the group."""
    group.add_argument("--workers", type=whole(0), default=4,
                       help="reading processes beside each training process; 0 reads in the training process itself")
    group.add_argument("--pool", type=whole(1), default=pool, metavar="TILES",
                       help="tiles in one forward pass of one process; negatives of the contrastive loss and the "
                            "statistics of batch norm come from the same pool, so a smaller one changes them (to save "
                            "memory, see --tiles-at-once); evaluation does not depend on it. Some compared methods "
                            "have 8 or 32 on some datasets, see PAPER.md")
    return group


def add_training_options(options, epochs, epoch_steps):
    """How long and how fast."""
    group = options.add_argument_group("training")
    group.add_argument("--epochs", type=whole(1), default=epochs, help="at most so many")
    group.add_argument("--epoch-steps", type=whole(1), default=epoch_steps, metavar="STEPS",
                       help="an epoch passes over the training tiles as often as it takes to make so many steps, so "
                            "that validation, scheduler and limits do not come too early where a pass is a step or "
                            "two; 1: one pass. Not in the paper")
    group.add_argument("--batch-size", type=whole(1), default=384, metavar="TILES",
                       help="tiles a step over all processes (the paper: 3 x 128); more than a pool a process are "
                            "accumulated")
    group.add_argument("--seed", type=whole(0), default=0, help="of the weights, the order of the tiles, the dates, "
                                                                "the masks and the label subset")
    group.add_argument("--output", metavar="DIR", help="folder for checkpoint and logs (default: under runs/); a run "
                                                       "that was stopped there goes on")
    group.add_argument("--save-minutes", type=number(0), default=10,
                       help="the run is saved after each epoch, and inside one after so many minutes")
    return group


def add_machine_options(options):
    """Speed and memory; what is learned stays the same but for rounding."""
    group = options.add_argument_group("speed and memory")
    group.add_argument("--precision", choices=("float32", "bfloat16"),
                       help="bfloat16: matrix products and convolutions by torch's autocast, weights and sums in "
                            "float32 (default: bfloat16 on a GPU that computes with it, else float32); validation "
                            "likewise, the test is in float32")
    add_tiles_at_once(group)
    group.add_argument("--compile", action=argparse.BooleanOptionalAction,
                       help="compile the networks with torch.compile: minutes at the start (fewer the next time, what "
                            "was compiled is kept), faster steps on a GPU; needs a C++ compiler, on a GPU Triton too "
                            "(default: in OmniSat's pretraining on a GPU, where both are there)")
    return group


def add_tiles_at_once(group):
    group.add_argument("--tiles-at-once", type=whole(1), metavar="TILES",
                       help="of omnisat: work through a pool in parts of so many tiles, whose activations are computed "
                            "again in backward: less memory, in training about a third more time, the same result "
                            "(default: the whole pool; over 16,384 patches, as 128 tiles of PASTIS-HD have, parts of "
                            "4,096 patches)")


def check_tiles_at_once(tiles, name):
    """Errors: UserError for --tiles-at-once where it does nothing: of a compared method, or where OMNISAT_PLAIN=1."""
    if tiles is not None and name != "omnisat":
        raise UserError(f"--tiles-at-once does nothing in {name}; leave it out")
    if plain.is_plain():
        plain.refuse(tiles_at_once=tiles)


def add_model_options(options, default_dim, default_depth):
    group = options.add_argument_group("model")
    group.add_argument("--embed-dim", type=whole(32), default=default_dim, metavar="D",
                       help="embedding size of omnisat; the paper: 256")
    group.add_argument("--depth", type=whole(0), default=default_depth,
                       help="self-attention blocks of omnisat's combiner; the paper: 6")
    return group


def add_width(group):
    group.add_argument("--width", type=number_over(0, 1),
                       help="of a compared method: its layers, of satmae, scalemae, croma and dofa their number too, "
                            "and of the first three the image side, as a share of the published size, for trials "
                            "(default: 1)")


def chosen_width(args):
    """--width, by default 1."""
    return 1.0 if args.width is None else args.width


def chosen_modalities(text, dataset):
    """("vhr", "s2") from "vhr,s2" or "all". Errors: UserError that lists the dataset's modalities."""
    if text == "all":
        return default_modalities(dataset)
    keys = tuple(dict.fromkeys(text.split(",")))
    for key in keys:
        if key not in SENSORS[dataset]:
            raise UserError(f"unknown modality {key!r}: {dataset} has {', '.join(SENSORS[dataset])}")
    return tuple(key for key in SENSORS[dataset] if key in keys)


def chosen_sensors(text, there, path):
    """Of a checkpoint's sensors, there (keys), those of "s1,s2" or "all", in its order. Errors: UserError that lists
    them.
    """
    keys = list(there) if text == "all" else text.split(",")
    if unknown := [key for key in keys if key not in there]:
        raise UserError(
            f"--modalities {text}: {path} was trained on {', '.join(there)}, not on {', '.join(map(repr, unknown))}")
    return [key for key in there if key in keys]


def modality_name(modalities, dataset):
    """The word in tables: all, one key, or keys joined by +."""
    return "all" if tuple(modalities) == default_modalities(dataset) else "+".join(modalities)


def set_up(model, args, device, compiles):
    """Set the options of add_machine_options. Returns the autocast context for forward passes."""
    model.tiles_at_once = args.tiles_at_once
    if compiles:
        model.compile_networks()
    return torch.autocast(device.type, torch.bfloat16, enabled=chosen_precision(args, device) == "bfloat16")


def chosen_precision(args, device):
    """--precision, or what it is by default on the device."""
    is_fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return args.precision or ("bfloat16" if is_fast else "float32")


def chosen_compile(args, device, is_worth_it):
    """--compile, or what it is by default on the device. is_worth_it: whether the run is long enough on a GPU.

    Errors: UserError for --compile and --tiles-at-once where OMNISAT_PLAIN=1.
    """
    if plain.is_plain():
        plain.refuse(compile=args.compile, tiles_at_once=args.tiles_at_once)
        return False
    if args.compile is not None or device.type != "cuda":
        return bool(args.compile)
    compilers = os.environ.get("CC", "cc"), "gcc", "clang"
    return is_worth_it and has_triton() and any(shutil.which(compiler) for compiler in compilers)


def check_model(args):
    """Errors: UserError for a model that cannot be built; sizes that were left out (None) pass."""
    if args.model == "omnisat" and args.width is not None:
        raise UserError("--width does nothing in omnisat, whose sizes are --embed-dim and --depth; leave it out")
    if args.embed_dim is not None and args.embed_dim % 32:
        raise UserError(f"--embed-dim must be a multiple of 32, not {args.embed_dim}")


def check_s1(args, modalities, pretrained=()):
    """Errors: UserError for an --s1 that does nothing for these modalities, or that is not that of the checkpoints,
    pretrained: [(path, checkpoint)]. A dataset that has nothing to repair says so itself (datasets.tiles).
    """
    for path, saved in pretrained:
        found = saved.get("s1", "released")                                   # not in checkpoints of before
        if found != args.s1:
            raise UserError(f"{path}: pretrained with --s1 {found}, not {args.s1}; say --s1 {found} here too, or start "
                            "from another")
    if args.s1 != "released" and not pretrained and not {"s1", "s1-des"} & set(modalities):
        raise UserError(f"--s1 {args.s1} does nothing for {', '.join(modalities)}; leave it out")


def refuse(args, arguments, names, where):
    """Errors: UserError for an option that was given and does nothing there."""
    for name in names:
        if getattr(args, name) != arguments.get_default(name):
            raise UserError(f"--{name.replace('_', '-')} does nothing in {where}; leave it out")


def has_release(name, datasets, rank):
    """Whether splits have the release's tiles; if not, rank 0 says so. Of generated data nobody asks.

    name: the dataset's. datasets: {split: datasets.tiles.Tiles}.
    """
    texts = [] if any(data.is_demo for data in datasets.values()) else differs_from_release(name, datasets)
    if texts and rank == 0:
        print(f"warning: not the release's tiles, so rows have scale custom: {'; '.join(texts)}", file=sys.stderr)
    return not texts


PAPER = {"treesatai-ts": ("vhr", "s2", "s1"), "treesatai": ("vhr", "s2", "s1"), "pastis-hd": ("vhr", "s2", "s1"),
         "flair": ("vhr", "s2")}    # its datasets, and the modalities it pretrains on


def is_paper(args, arguments, modalities):
    """Whether a run has the paper's recipe: dataset, modalities, and nothing that changes its numbers is set otherwise.

    modalities: of the run; fine-tuning and compared methods may take some of the paper's, OmniSat's pretraining takes
    them all.
    """
    known, may_be_some = PAPER.get(args.dataset), hasattr(args, "label_percent") or args.model != "omnisat"
    if known is None:
        return False
    names = ("epochs", "batch_size", "pool", "lr", "patience", "min_epochs", "epoch_steps", "max_cloud", "parts")
    return ((set(modalities) <= set(known) if may_be_some else tuple(modalities) == known)
            and all(getattr(args, name) == arguments.get_default(name) for name in names if hasattr(args, name)))
