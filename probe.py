"""Frozen evaluation: what simple classifiers learn from features that nobody trained for them.

    python probe.py --checkpoint runs/treesatai-ts/pretrain-seed0/pretrained.pt --data-root DIR --csv results/probe.csv
    python probe.py --checkpoint PRETRAINED.pt --data-root DIR --modalities s2 --weights own --features tile \\
        --label-percent 10

Features of each tile are computed once a split and kept beside the checkpoint. On those of the labelled training tiles
a logistic regression for each class and k nearest neighbours are fitted (scikit-learn, standardised features); C and k
are those of the best macro F1 on the validation tiles; the test tiles are scored once. By default with the
checkpoint's weights, with random ones of the same model, and with features made by hand; of all sensors and of each
alone; with 1, 5, 10, 25 and 100 % of the labels.
"""
import hashlib
import json
import sys
from pathlib import Path

import utils.threads  # noqa: F401, before torch

import numpy as np
import torch
from tqdm import tqdm

from datasets.loading import make_loader, whole_pools
from engine import checkpoint, distributed, inference, options
from engine.log import provenance, together
from models.handmade import handmade
from models.methods import METHODS, build_model
from utils import metrics
from utils.classifiers import CLASSIFIERS, bootstrap, choose, scores_of
from utils.errors import UserError, run
from utils.files import written_whole
from utils.numbers import whole
from utils.results import PROBE_KEYS, read_rows, s1_of, write_row

FEATURES = {"tile": "the mean of f* over the patches, D numbers; of a compared method what its last linear layer sees",
            "tokens": "OmniSat's tokens, their mean over the patches, the sensors' side by side, M x D numbers",
            "handmade": "statistics of the values: no network (models/handmade.py)"}
PERCENTS = (1, 5, 10, 25, 100)
SPLITS = ("train", "val", "test")


# ---- features -------------------------------------------------------------------------------------------------------

@torch.no_grad()
def features_of(model, batch, what):
    """Features (B, F) of a batch. what: of FEATURES."""
    if what == "handmade":
        return handmade(batch, model.sensors)
    if what == "tile":
        return model.features(batch, "tile")
    tokens, present = model.features(batch, "tokens"), model.present(batch)   # B x M x P x D
    return (tokens.mean(2) * present[:, :, None]).flatten(1)


def extract(model, loader, what, title, place):
    """Features (N, F) float32 of all tiles of a split, the same on each process."""
    rank, _, device = place
    dataset, batches, mine = loader.dataset, iter(loader), []
    with tqdm(total=len(dataset), desc=title, unit="tile", leave=False, disable=rank > 0) as progress:
        for step_size, step_pools in loader.batch_sampler.steps():
            for _, indices in step_pools:
                batch = distributed.to_device(next(batches), device)
                mine.append((indices, features_of(model.eval(), batch, what).float().cpu().numpy()))
            progress.update(step_size)
    order, values = zip(*(pair for process in distributed.gather(mine) for pair in process))
    x = np.concatenate(values)[np.argsort(np.concatenate(order))]
    if not np.isfinite(x).all():
        bad = dataset.names[int((~np.isfinite(x)).any(1).argmax())]
        raise UserError(f"{bad}: a feature is not finite; was the checkpoint trained with too high an --lr?")
    return x


def kept(path, about, compute, rank):
    """Features from a file, or computed and written there. about: a dict that says what they are features of."""
    mark = json.dumps(about, sort_keys=True)
    if path.exists():
        try:
            with np.load(path) as saved:
                x = saved["x"]
                if str(saved["about"]) == mark and hashlib.sha256(x.tobytes()).hexdigest() == str(saved["sha256"]):
                    return x
        except (OSError, ValueError, KeyError):                               # cut off: computed again
            pass
    x = compute()
    if rank == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path, "wb") as file:
            np.savez(file, x=x, about=mark, sha256=hashlib.sha256(x.tobytes()).hexdigest())
    return x


# ---- models ---------------------------------------------------------------------------------------------------------

def model_of(path, saved, sensors, classes, weights):
    """The checkpoint's model for some of its sensors. weights: "own", or "random", drawn with the checkpoint's seed."""
    config = saved["config"]
    torch.manual_seed(saved["seed"])
    model = build_model(config["model"], sensors, **config["options"] | {"num_classes": classes})
    if weights == "own":
        checkpoint.start_from(model, [(path, saved)])
    else:
        model.load_state_dict({name: value for name, value in saved["weights"].items()
                               if name.startswith("standardize") and name in model.state_dict()}, strict=False)
    return model


# ---- the script -----------------------------------------------------------------------------------------------------

def chosen(args, saved):
    """{modality: keys of its sensors} and [(features, weights)] that the options ask for, or all there are.

    Errors: UserError for what the checkpoint does not have.
    """
    dataset, name = saved["dataset"], saved["config"]["model"]
    there = [sensor["key"] for sensor in saved["config"]["sensors"]]
    everything, seen = options.modality_name(there, dataset), {}
    for modality in args.modalities or [everything, *([] if METHODS[name].pretrain_rate is None else there)]:
        seen[modality] = there if modality == everything else options.chosen_modalities(modality, dataset)
        if unknown := [key for key in seen[modality] if key not in there]:
            raise UserError(f"--modalities {modality}: {args.checkpoint} has {', '.join(there)}, not "
                            f"{', '.join(unknown)}")
    kinds = [what for what in args.features if what != "tokens" or name == "omnisat"]
    if not kinds:
        raise UserError(f"--features tokens: {name} has none, choose tile")
    return seen, [(what, weights) for what in kinds for weights in (["none"] if what == "handmade" else args.weights)]


def open_split(args, saved, keys, split, **choice):
    """A split of the checkpoint's dataset, as it was trained on it. choice: of datasets.tiles.Tiles."""
    return inference.open_as_trained(saved, args.data_root, split, keys, **choice)


def shares(args, saved, keys, train):
    """{percent: the training tiles of that share of the labels}."""
    percents = args.label_percent or [percent for percent in PERCENTS if len(train) * percent >= 500]
    return {percent: train if percent == 100 else distributed.first_alone(
        lambda: open_split(args, saved, keys, "train", label_percent=percent)) for percent in percents}


def features(args, saved, splits, what, weights, place):
    """Features of all splits, a list of (N, F). what: of FEATURES; weights: see model_of."""
    rank, world, device = place
    train, keys = splits[0], [sensor.key for sensor in splits[0].sensors]
    model = model_of(args.checkpoint, saved, train.sensors, len(train.classes), weights).to(device)
    model.tiles_at_once = args.tiles_at_once
    pool = args.pool or METHODS[saved["config"]["model"]].pool(saved["dataset"])
    x, folder = [], Path(args.checkpoint).parent / "features"
    for name, split in zip(SPLITS, splits):
        about = {"checkpoint": saved["sha256"][:12], "weights": weights, "features": what, "sensors": keys,
                 "tiles": split.list_hash}

        def computed():
            loader = make_loader(split, whole_pools(split, pool, rank, world), args.workers)
            return extract(model, loader, what, f"{', '.join(keys)}, {what}, {weights} weights, {name}", place)
        x.append(kept(folder / f"{what}-{weights}-{'+'.join(keys)}-{name}.npz", about, computed, rank))
    distributed.gather(None)                                                  # nobody reads what is half written
    return x


def classified(args, x, splits, subsets):
    """Yields scores of the test tiles (N, K) and what the row says of them, for each share of the labels and
    classifier. x: of features; subsets: of shares.
    """
    y = [np.asarray(split.labels > 0, dtype=int) for split in splits]
    for percent, subset in subsets.items():
        rows = rows_of(splits[0], subset)
        for name in args.classifiers:
            classifier, setting = choose(name, (x[0][rows], y[0][rows]), (x[1], y[1]))
            yield scores_of(classifier, x[2]), {
                "classifier": name, "setting": f"{setting:g}", "label_percent": percent, "dimensions": x[0].shape[1],
                "split_hash": subset.split_hash[:12]}


def rows_of(dataset, subset):
    """Where the tiles of a subset are in a dataset's list."""
    at = {name: i for i, name in enumerate(dataset.names)}
    return np.array([at[name] for name in subset.names])


def pretraining_of(saved, weights):
    """What the row says of the weights."""
    if weights != "own":
        return "none"
    return saved.get("pretraining", "self") + (", fine-tuned" if saved["kind"] == "finetuned" else "")


def report(args, saved, source, test, scores, row):
    """Print a row's scores and, with --csv, add it to the table."""
    labels = np.asarray(test.labels > 0, dtype=int)
    found = metrics.scores(scores, labels)
    weights = "no" if row["model"] == "handmade" else "random" if row["pretraining"] == "none" else "pretrained"
    print(f"{row['modality']:8} {row['features']:9} {weights:10} {row['classifier']:9} {row['label_percent']:4} %: "
          f"weighted F1 {found['f1_weighted']:5.1f}, macro F1 {found['f1_macro']:5.1f}, mAP {found['map']:5.1f}",
          file=sys.stderr)
    if args.csv:
        ends = {f"{name}_{end}": f"{value:.4f}" for name, pair in bootstrap(scores, labels).items()
                for end, value in zip(("low", "high"), pair)}
        scale = "demo" if test.is_demo else saved.get("scale") or ("paper" if saved["is_paper"] else "custom")
        write_row(args.csv, {"dataset": saved["dataset"], "seed": saved["seed"], **row, **ends, "n_test": len(labels),
                             "ablation": saved["config"]["options"].get("ablation", "none"),
                             "checkpoint_hash": saved["sha256"][:12], "scale": scale,
                             "s1": s1_of(saved) if saved["dataset"] == "treesatai-ts" else "",
                             **{name: f"{found[name]:.4f}" for name in ("f1_weighted", "f1_macro", "f1_micro", "map")},
                             "test_hash": test.split_hash[:12],
                             **{f"checkpoint_{name}": together(saved["starts"])[name] for name in ("commit", "dirty")},
                             **source}, {"classes": list(test.classes)} | found["counts"], PROBE_KEYS)


def command_line():
    """The ArgumentParser."""
    arguments = options.parser(__doc__)
    arguments.add_argument("--checkpoint", required=True, metavar="FILE",
                           help="pretrained.pt or finetuned.pt, of any method")
    arguments.add_argument("--data-root", required=True, metavar="DIR", help="folder of the raw files")
    arguments.add_argument("--modalities", nargs="+", metavar="KEYS",
                           help="all, s2, or some joined by commas, several of these (default: all and each alone)")
    arguments.add_argument("--weights", nargs="+", choices=("own", "random"), default=["own", "random"],
                           help="the checkpoint's, or random ones of the same model, drawn with its seed")
    arguments.add_argument("--features", nargs="+", choices=FEATURES, default=list(FEATURES),
                           help="; ".join(f"{name}: {what}" for name, what in FEATURES.items()))
    arguments.add_argument("--label-percent", nargs="+", type=whole(1, 100), metavar="PERCENT",
                           help="stratified shares of the training labels, as fine-tuning draws them (default: of "
                                f"{', '.join(map(str, PERCENTS))} those with five tiles and more)")
    arguments.add_argument("--classifiers", nargs="+", choices=CLASSIFIERS, default=list(CLASSIFIERS), help="which")
    arguments.add_argument("--csv", metavar="FILE", help="table to add the rows to")
    options.add_tiles_at_once(options.add_loader_options(arguments, None))
    return arguments


def main(argv=None):
    # ---- options
    args = command_line().parse_args(argv)
    if args.csv:
        read_rows(args.csv, PROBE_KEYS)                                       # another kind of table is told now
    rank, _, device = place = distributed.setup()
    saved = checkpoint.load_finished(args.checkpoint)
    options.check_tiles_at_once(args.tiles_at_once, saved["config"]["model"])
    seen, wanted = chosen(args, saved)
    source = provenance("probe.py", argv if argv is not None else sys.argv[1:], device)

    for modality, keys in seen.items():
        splits = distributed.first_alone(lambda: [open_split(args, saved, keys, name) for name in SPLITS])
        subsets = shares(args, saved, keys, splits[0])
        for what, weights in wanted:
            x = features(args, saved, splits, what, weights, place)
            if rank > 0:
                continue
            for scores, row in classified(args, x, splits, subsets):
                report(args, saved, source, splits[2], scores, {
                    "model": "handmade" if what == "handmade" else saved["config"]["model"], "modality": modality,
                    "pretraining": pretraining_of(saved, weights), "features": what, **row})
    distributed.finish()


if __name__ == "__main__":
    run(main)
