"""Frozen evaluation: what simple classifiers learn from features that nobody trained for them.

    python probe.py --checkpoint runs/treesatai-ts/pretrain-seed0/pretrained.pt --data-root DIR --csv results/probe.csv
    python probe.py --checkpoint PRETRAINED.pt --data-root DIR --modalities s2 --weights own --features tile --label-percent 10

Features of each tile are computed once a split and kept beside the checkpoint. On those of the labelled training tiles
a logistic regression for each class and k nearest neighbours are fitted (scikit-learn, standardised features); C and k
are those of the best macro F1 on the validation tiles; the test tiles are scored once. By default with the
checkpoint's weights, with random ones of the same model, and with features made by hand; of all sensors and of each
alone; with 1, 5, 10, 25 and 100 % of the labels.
"""
import hashlib
import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from datasets import open_dataset
from datasets.loading import Pools, make_loader
from datasets.tiles import MAX_DATES
from engine import checkpoint, distributed, options
from engine.log import provenance, together
from models import MODELS, build_model
from models.handmade import handmade
from utils import metrics
from utils.errors import UserError, run
from utils.files import written_whole
from utils.numbers import whole
from utils.results import PROBE_KEYS, read_rows, s1_of, write_row

FEATURES = {"tile": "the mean of f* over the patches, D numbers; of a compared method what its last linear layer sees",
            "tokens": "OmniSat's tokens, their mean over the patches, the sensors' side by side, M x D numbers",
            "handmade": "statistics of the values: no network (models/handmade.py)"}
PERCENTS = (1, 5, 10, 25, 100)
STRENGTHS = (0.001, 0.01, 0.1, 1, 10)    # C of the logistic regression
NEIGHBOURS = (1, 3, 5, 10, 20, 50)       # k
RESAMPLES = 1000                         # of the bootstrap


# ---- classifiers ----------------------------------------------------------------------------------------------------

def logistic(strength):
    """A logistic regression for each class. strength: C."""
    return make_pipeline(StandardScaler(), OneVsRestClassifier(LogisticRegression(C=strength, max_iter=1000)))


def neighbours(k):
    """k nearest neighbours by euclidean distance: a class is as probable as it is frequent among them."""
    return make_pipeline(StandardScaler(), KNeighborsClassifier(k))


CLASSIFIERS = {"logistic": (logistic, STRENGTHS), "knn": (neighbours, NEIGHBOURS)}    # in the order they are tried: simplest first


def scores_of(classifier, x):
    """What a fitted classifier says of tiles, (N, K), above 0 where a class is more probable than not."""
    if hasattr(classifier, "decision_function"):
        scores = classifier.decision_function(x)
        return (scores if scores.ndim == 2 else scores[:, None]).astype(np.float64)
    probabilities = classifier.predict_proba(x)                               # a list of (N, classes that occur) arrays
    probabilities = probabilities if isinstance(probabilities, list) else [probabilities]
    known = classifier[-1].classes_ if isinstance(classifier[-1].classes_, list) else [classifier[-1].classes_]
    return np.stack([p[:, list(c).index(1)] if 1 in c else np.zeros(len(p)) for p, c in zip(probabilities, known)], 1) - 0.5


def choose(name, train, val):
    """Fit a kind of classifier, its setting by macro F1 on validation. train, val: (x (N, F), y (N, K) 0 or 1).

    Returns the fitted classifier and its setting: of equally good ones the first tried, the more regular for logistic.
    """
    (make, settings), best = CLASSIFIERS[name], None
    for setting in settings:
        if name == "knn" and setting > len(train[0]):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")                                   # a class that no labelled tile has; not converged
            classifier = make(setting).fit(*train)
        f1 = metrics.f1_scores(metrics.count(scores_of(classifier, val[0]), val[1]))["f1_macro"]
        if best is None or f1 > best[0]:
            best = f1, classifier, setting
    return best[1:]


def bootstrap(scores, labels, seed=0):
    """{"f1_weighted", "f1_macro": (low, high)}: the middle 95 % of the F1 of RESAMPLES draws of as many tiles, with
    replacement.
    """
    predicted, actual, rng = scores > 0, labels > 0.5, np.random.default_rng(seed)
    cells = np.stack([predicted & actual, predicted & ~actual, ~predicted & actual]).astype(np.float64)    # 3 x N x K
    draws = rng.multinomial(len(labels), np.full(len(labels), 1 / len(labels)), RESAMPLES).astype(np.float64)
    found = {"f1_weighted": [], "f1_macro": []}
    for tp, fp, fn in (draws @ cells).transpose(1, 0, 2):
        for name, value in metrics.f1_scores({"tp": tp, "fp": fp, "fn": fn}).items():
            if name in found:
                found[name].append(value)
    return {name: tuple(np.percentile(values, (2.5, 97.5)).tolist()) for name, values in found.items()}


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


def extract(model, dataset, what, args, place, title):
    """Features (N, F) float32 of all tiles of a split, the same on each process."""
    rank, world, device = place
    pool = args.pool or model.pools.get(args.dataset, 128)
    pools, mine = Pools(len(dataset), pool, pool * world, None, rank, world), []
    batches = iter(make_loader(dataset, pools, args.workers))
    with tqdm(total=len(dataset), desc=title, unit="tile", leave=False, disable=rank > 0) as progress:
        for step_size, step_pools in pools.steps():
            for _, indices in step_pools:
                batch = distributed.to_device(next(batches), device)
                mine.append((indices, features_of(model.eval(), batch, what).float().cpu().numpy()))
            progress.update(step_size)
    order, values = zip(*(pair for process in distributed.gather(mine) for pair in process))
    x = np.concatenate(values)[np.argsort(np.concatenate(order))]
    if not np.isfinite(x).all():
        raise UserError(f"{dataset.names[int((~np.isfinite(x)).any(1).argmax())]}: a feature is not finite; was the checkpoint "
                        "trained with too high an --lr?")
    return x


def kept(path, about, compute, rank):
    """Features from a file, or computed and written there. about: a dict that says what they are features of."""
    mark = json.dumps(about, sort_keys=True)
    if path.exists():
        try:
            with np.load(path) as saved:
                if str(saved["about"]) == mark and hashlib.sha256(saved["x"].tobytes()).hexdigest() == str(saved["sha256"]):
                    return saved["x"]
        except (OSError, ValueError, KeyError):                               # cut off: computed again
            pass
    x = compute()
    if rank == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path, "wb") as file:
            np.savez(file, x=x, about=mark, sha256=hashlib.sha256(x.tobytes()).hexdigest())
    return x


# ---- models ---------------------------------------------------------------------------------------------------------

def read_checkpoint(path):
    """A finished checkpoint, pretrained or fine-tuned. Errors: UserError."""
    return checkpoint.load_finished(path)


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

def rows_of(dataset, subset):
    """Where the tiles of a subset are in a dataset's list."""
    at = {name: i for i, name in enumerate(dataset.names)}
    return np.array([at[name] for name in subset.names])


def command_line():
    """The ArgumentParser."""
    arguments = options.parser(__doc__)
    arguments.add_argument("--checkpoint", required=True, metavar="FILE", help="pretrained.pt or finetuned.pt, of any method")
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
    arguments = command_line()
    args = arguments.parse_args(argv)
    if args.csv:
        read_rows(args.csv, PROBE_KEYS)                                       # another kind of table is told now, not at the end
    rank, world, device = place = distributed.setup()
    saved = read_checkpoint(args.checkpoint)
    args.dataset, method = saved["dataset"], MODELS[saved["config"]["model"]]
    options.check_tiles_at_once(args.tiles_at_once, saved["config"]["model"])
    there = [sensor["key"] for sensor in saved["config"]["sensors"]]
    everything = options.modality_name(there, args.dataset)
    choices = args.modalities or list(dict.fromkeys([everything, *(there if method is MODELS["omnisat"] else [])]))
    wanted = [what for what in args.features if what != "tokens" or method is MODELS["omnisat"]]
    if not wanted:
        raise UserError(f"--features tokens: {saved['config']['model']} has none, choose tile")
    source = provenance("probe.py", argv if argv is not None else sys.argv[1:], device)
    folder, own_hash = Path(args.checkpoint).parent / "features", saved["sha256"][:12]

    for choice in choices:
        # ---- data
        keys = there if choice == everything else options.chosen_modalities(choice, args.dataset)
        if unknown := [key for key in keys if key not in there]:
            raise UserError(f"--modalities {choice}: {args.checkpoint} has {', '.join(there)}, not {', '.join(unknown)}")

        def dataset(split, **choice):
            return open_dataset(args.dataset, args.data_root, split, keys, seed=saved["seed"], max_cloud=saved["settings"]["max_cloud"],
                                parts=saved["settings"]["parts"], all_bands=method.all_bands,
                                max_dates=saved.get("max_dates", MAX_DATES), s1=s1_of(saved), **choice)
        train, val, test = splits = distributed.first_alone(lambda: [dataset(split) for split in ("train", "val", "test")])
        percents = args.label_percent or [percent for percent in PERCENTS if len(train) * percent >= 500]
        subsets = {percent: train if percent == 100 else
                   distributed.first_alone(lambda: dataset("train", label_percent=percent)) for percent in percents}
        y = [np.asarray(split.labels > 0, dtype=int) for split in splits]
        for what, weights in [(what, weights) for what in wanted for weights in (["none"] if what == "handmade" else args.weights)]:
            # ---- features
            model = model_of(args.checkpoint, saved, train.sensors, len(train.classes), weights).to(device)
            model.tiles_at_once = args.tiles_at_once
            x = []
            for name, split in zip(("train", "val", "test"), splits):
                about = {"checkpoint": own_hash, "weights": weights, "features": what, "sensors": list(keys),
                         "tiles": split.list_hash}
                title = f"{choice}, {what}, {weights} weights, {name}"
                x.append(kept(folder / f"{what}-{weights}-{'+'.join(keys)}-{name}.npz", about,
                              lambda: extract(model, split, what, args, place, title), rank))
            distributed.gather(None)                                          # nobody reads what is half written
            if rank > 0:
                continue
            # ---- classifiers
            for percent, subset in subsets.items():
                rows = rows_of(train, subset)
                for name in args.classifiers:
                    classifier, setting = choose(name, (x[0][rows], y[0][rows]), (x[1], y[1]))
                    scores = scores_of(classifier, x[2])
                    report(args, saved, source, test, scores, y[2], {
                        "model": "handmade" if what == "handmade" else saved["config"]["model"], "modality": choice,
                        "pretraining": pretraining_of(saved, weights), "ablation": saved["config"]["options"].get("ablation", "none"),
                        "features": what, "classifier": name, "setting": f"{setting:g}", "label_percent": percent,
                        "dimensions": x[0].shape[1], "split_hash": subset.split_hash[:12], "checkpoint_hash": own_hash})
    distributed.finish()


def pretraining_of(saved, weights):
    """What the row says of the weights."""
    return "none" if weights != "own" else saved.get("pretraining", "self") + (", fine-tuned" if saved["kind"] == "finetuned" else "")


def report(args, saved, source, test, scores, labels, row):
    """Print a row's scores and, with --csv, add it to the table."""
    counts = metrics.count(scores, labels)
    found = metrics.f1_scores(counts) | {"map": metrics.mean_average_precision(scores, labels)}
    print(f"{row['modality']:8} {row['features']:9} {'pretrained' if row['pretraining'] != 'none' else 'random' if row['model'] != 'handmade' else 'no':10} "
          f"{row['classifier']:9} {row['label_percent']:4} %: weighted F1 {found['f1_weighted']:5.1f}, macro F1 "
          f"{found['f1_macro']:5.1f}, mAP {found['map']:5.1f}", file=sys.stderr)
    if args.csv:
        ends = {f"{name}_{end}": f"{value:.4f}" for name, pair in bootstrap(scores, labels).items() for end, value in zip(("low", "high"), pair)}
        write_row(args.csv, {"dataset": saved["dataset"], "seed": saved["seed"], **row, **ends, "n_test": len(labels),
                             "s1": s1_of(saved) if saved["dataset"] == "treesatai-ts" else "",
                             **{name: f"{found[name]:.4f}" for name in ("f1_weighted", "f1_macro", "f1_micro", "map")},
                             "test_hash": test.split_hash[:12],
                             "scale": "demo" if test.is_demo else saved.get("scale") or ("paper" if saved["is_paper"] else "custom"),
                             **{f"checkpoint_{name}": together(saved["starts"])[name] for name in ("commit", "dirty")},
                             **source}, {"classes": list(test.classes)} | counts, PROBE_KEYS)


if __name__ == "__main__":
    run(main)
