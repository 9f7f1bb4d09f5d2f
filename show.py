"""Draw what OmniSat makes of one tile, one PNG.

    python show.py --checkpoint runs/treesatai-ts/pretrain-seed0/pretrained.pt --data-root DIR --tile NAME
    python show.py --checkpoint PRETRAINED.pt FINETUNED.pt --data-root DIR --tile NAME --out tile.png
    python show.py --checkpoint PRETRAINED.pt --data-root DIR --tile NAME --projection colours.npz

The image; each series' dates with the attention they get, and which of them are reconstructed; the masked tokens, and
what is reconstructed beside what is there; the similarity of one patch's tokens to all others; f* of this tile and of
others as colours; the probabilities of the classes. A pretrained checkpoint has no classes, a fine-tuned one no
decoders; with both, only the classes are the fine-tuned one's. The picture says what is not shown and why.
"""
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from datasets.sensors import SENSORS, Sensor
from engine import checkpoint, inference, options
from engine.log import together
from utils.errors import UserError, run
from utils.numbers import whole, whole_list
from utils.results import s1_of
from views import tile
from views.colours import colours_of, fit_projection, read_projection, save_projection
from views.picture import TILES_A_ROW, draw

SPLITS = "test", "val", "train"    # in the order they are searched


# ---- checkpoints and tiles ------------------------------------------------------------------------------------------

def read_checkpoints(paths):
    """{"pretrained" or "finetuned": (path, checkpoint)}. Errors: UserError for such as cannot be drawn, or together."""
    found = {}
    for path in paths:
        saved = checkpoint.load_finished(path)
        if saved["config"]["model"] != "omnisat":
            raise UserError(f"{path}: a checkpoint of {saved['config']['model']}; show.py draws omnisat only")
        for sensor in saved["config"]["sensors"]:
            if SENSORS.get(saved["dataset"], {}).get(sensor["key"]) != Sensor(**sensor):
                raise UserError(f"{path}: trained on {sensor['key']} of {saved['dataset']}, which datasets/sensors.py "
                                "does not have, or not like this; put its entry back")
        if saved["kind"] in found:
            raise UserError(f"--checkpoint: {found[saved['kind']][0]} and {path} are both {saved['kind']}; name one of "
                            "each kind")
        found[saved["kind"]] = path, saved
    if len(found) == 2:
        (first, a), (second, b) = found.values()
        same = {"dataset": (a["dataset"], b["dataset"]), "--s1": (s1_of(a), s1_of(b))}
        for name in ("max_cloud", "parts"):
            same[f"--{name.replace('_', '-')}"] = a["settings"][name], b["settings"][name]
        for what, (value, other) in same.items():
            if value != other:
                raise UserError(f"{second}: trained with {what} {other}, {first} with {value}; they see other tiles, "
                                "draw each by itself")
    return found


def tiles_of(saved, root, split, labelled):
    """A split as a checkpoint's training saw it, with the checkpoint's sensors."""
    keys = [sensor["key"] for sensor in saved["config"]["sensors"]]
    return inference.open_as_trained(saved, root, split, keys, labelled=labelled)


def find(saved, root, name, labelled):
    """The split that has a tile, the split's tiles, and the tile's number. Errors: UserError if none has it.

    Splits that cannot be opened, as where a folder has no test tiles, only count if the tile is not in the others.
    """
    examples, errors = [], []
    for split in SPLITS:
        try:
            dataset = tiles_of(saved, root, split, labelled)
        except UserError as error:
            errors.append(error)
            continue
        if name in dataset.names:
            return split, dataset, dataset.names.index(name)
        examples.append(f"{dataset.names[0]} ({split})")
    if not examples:
        raise errors[0]
    raise UserError(f"--tile {name}: not in the lists under {root}, which have such as {', '.join(examples)}"
                    + "".join(f"; {error}" for error in errors))


def patch_number(wanted, grid):
    """--patch as a number, row by row. Errors: UserError for one outside the grid."""
    if wanted is None:
        return None
    if len(wanted) != 2 or wanted[0] >= grid[0] or wanted[1] >= grid[1]:
        raise UserError(f"--patch {','.join(map(str, wanted))}: expected ROW,COLUMN from 0,0 to {grid[0] - 1},"
                        f"{grid[1] - 1}")
    return wanted[0] * grid[1] + wanted[1]


def label_of(dataset, i):
    """What is written below a tile: its classes if they are known, else how its name ends."""
    present = [name for name, true in zip(dataset.classes, dataset.labels[i]) if true]
    return ", ".join(present) or dataset.names[i][-9:]


def colours_of_tiles(model, dataset, i, count, projection, about):
    """[(label, f* as colours (rows, columns, 3))] of tile i and `count` others, evenly spread over the split's list.

    projection: a file to take the colours' projection from, or, if it is not there, to keep that of these tiles in;
    None keeps nothing. about: the checkpoint's hash. Errors: UserError for features that are not finite.
    """
    known = read_projection(projection, about) if projection and Path(projection).exists() else None
    count = min(count, len(dataset) - 1)
    numbers = [(i + k * len(dataset) // (count + 1)) % len(dataset) for k in range(count + 1)]
    found = [tile.features(model, dataset[number]) for number in tqdm(numbers, desc="f*", unit="tile", leave=False)]
    if not all(np.isfinite(f).all() for f, _ in found):
        raise UserError("f* is not finite; was the checkpoint trained with too high an --lr?")
    if known is None:
        known = fit_projection(np.concatenate([f for f, _ in found]), about)
        if projection:
            save_projection(projection, known)
    return [(label_of(dataset, number), colours_of(known(f)).reshape(*grid, 3))
            for number, (f, grid) in zip(numbers, found)]


# ---- words ----------------------------------------------------------------------------------------------------------

def titles_of(args, split, checkpoints, is_demo):
    """The tile, texts about it, and the remark that its data are simulated, or ""."""
    lines = [args.tile, f"{next(iter(checkpoints.values()))[1]['dataset']}, {split}"
             + (f"; masks of seed {args.seed}" if "pretrained" in checkpoints else "")]
    for kind, (path, saved) in checkpoints.items():
        told = together(saved["starts"])
        lines.append(f"{kind.replace('fine', 'fine-')}: {'/'.join(Path(path).parts[-2:])}, at commit "
                     + told["commit"][:7] + (" with changes" if told["dirty"] is True else ""))
    return [*lines, "DEMO: simulated tile, not comparable with the paper" if is_demo else ""]


def notes_of(checkpoints, view):
    """What the picture lacks, and why."""
    notes = [f"{key}: this tile has no date of it." for key, there in view.present.items() if not there]
    if "pretrained" not in checkpoints:
        notes.append("masked tokens and reconstructions: a fine-tuned checkpoint has no decoders; name a pretrained "
                     "one too.")
    elif view.is_masked is None:
        notes.append("masked tokens and reconstructions: pretrained without (--ablation no_reconstruction).")
    if "finetuned" not in checkpoints:
        notes.append("classes: a pretrained checkpoint has no classifier; name a fine-tuned one too.")
    return notes


# ---- the script -----------------------------------------------------------------------------------------------------

def command_line():
    """The ArgumentParser."""
    arguments = options.parser(__doc__)
    arguments.add_argument("--checkpoint", required=True, nargs="+", metavar="FILE",
                           help="pretrained.pt, finetuned.pt, or one of each, of omnisat")
    arguments.add_argument("--data-root", required=True, metavar="DIR", help="folder of the raw files")
    arguments.add_argument("--tile", required=True, metavar="NAME", help="of the test, validation or training list")
    arguments.add_argument("--patch", type=whole_list(0), metavar="ROW,COLUMN",
                           help="the patch whose attention, curves and similarities are drawn, from 0,0 (default: of "
                                "those with most series masked the one nearest to the middle)")
    arguments.add_argument("--seed", type=whole(0), default=0, help="of the masks")
    arguments.add_argument("--others", type=whole(0, 99), default=2 * TILES_A_ROW - 1, metavar="TILES",
                           help="of the same split, evenly spread over its list, whose f* is drawn too")
    arguments.add_argument("--projection", metavar="FILE.npz",
                           help="f* to colours: taken from this file, so that pictures compare, or, if there is none "
                                "yet, fitted on the tiles of this picture and kept there (default: fitted, not kept)")
    arguments.add_argument("--out", metavar="FILE.png", help="default: show-TILE.png beside the first checkpoint")
    return arguments


def main(argv=None):
    # ---- options
    args = command_line().parse_args(argv)
    if len(args.checkpoint) > 2:
        raise UserError(f"--checkpoint: {len(args.checkpoint)} files; name one, or a pretrained and a fine-tuned one")
    if args.out and Path(args.out).suffix.lower() != ".png":
        raise UserError(f"--out {args.out}: expected a name that ends in .png")
    checkpoints = read_checkpoints(args.checkpoint)
    path, saved = checkpoints.get("pretrained") or checkpoints["finetuned"]

    # ---- tile
    split, dataset, i = find(saved, args.data_root, args.tile, "finetuned" in checkpoints)
    model, item = checkpoint.rebuild(path, saved).eval(), dataset[i]
    view = tile.look(model, item, args.seed, patch_number(args.patch, model.grid(tile.collate([item]))))
    if "finetuned" in checkpoints:
        path, other = checkpoints["finetuned"]
        labelled = tiles_of(other, args.data_root, split, True)
        item = labelled[labelled.names.index(args.tile)]
        view.probabilities = tile.probabilities(checkpoint.rebuild(path, other).eval(), item)
        view.classes, view.truth = labelled.classes, item["label"].numpy() > 0
    others = colours_of_tiles(model, dataset, i, args.others, args.projection, saved["sha256"][:12])

    # ---- picture
    out = Path(args.out or Path(args.checkpoint[0]).parent / f"show-{args.tile.replace('/', '-')}.png")
    is_demo = dataset.is_demo or any(found.get("is_demo") or found.get("scale") == "demo"
                                     for _, found in checkpoints.values())
    draw(out, view, others, titles_of(args, split, checkpoints, is_demo), notes_of(checkpoints, view))
    print(f"wrote {out}", file=sys.stderr)


if __name__ == "__main__":
    run(main)
