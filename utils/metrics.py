"""Multi-label scores from counts, so that a saved count is worth a run."""
import numpy as np
from sklearn.metrics import average_precision_score


def count(logits, labels):
    """Per-class counts at sigmoid > 0.5. logits, labels (N, K). Returns {"tp", "fp", "fn", "tn"}: lists of K ints."""
    predicted, actual = np.asarray(logits) > 0, np.asarray(labels) > 0.5
    cells = {"tp": predicted & actual, "fp": predicted & ~actual, "fn": ~predicted & actual, "tn": ~predicted & ~actual}
    return {name: cell.sum(0).tolist() for name, cell in cells.items()}


def scores(logits, labels):
    """f1_weighted, f1_macro, f1_micro, map (%), counts and n of logits and labels (N, K)."""
    counts = count(logits, labels)
    return f1_scores(counts) | {"map": mean_average_precision(logits, labels), "counts": counts, "n": len(labels)}


def f1_scores(counts):
    """F1 in % from counts: macro (mean over all K classes), weighted (by the class's number of tiles), micro.

    A class that is neither present nor predicted has F1 = 0, as in the official code's torchmetrics.
    """
    tp, fp, fn = (np.asarray(counts[name], dtype=float) for name in ("tp", "fp", "fn"))
    f1 = 2 * tp / np.maximum(1, 2 * tp + fp + fn)
    support = tp + fn
    scores = {"f1_weighted": (f1 * support).sum() / max(1, support.sum()), "f1_macro": f1.mean(),
              "f1_micro": 2 * tp.sum() / max(1, (2 * tp + fp + fn).sum())}
    return {name: 100 * float(value) for name, value in scores.items()}


def constant_scores(train, labels):
    """What the best predictions reach that are the same for all tiles: binary cross-entropy, and macro F1 in %, of
    labels (N, K).

    The loss is of each class's frequency in the training labels (half a tile more with it and half a tile without, so
    that none is 0 or 1); the F1 of every class everywhere: whoever predicts a class for some tiles at random has less.
    """
    labels = np.asarray(labels, dtype=float)
    share = (np.asarray(train, dtype=float).sum(0) + 0.5) / (len(train) + 1)
    loss = -(labels * np.log(share) + (1 - labels) * np.log(1 - share)).mean()
    return float(loss), f1_scores(count(np.ones_like(labels), labels))["f1_macro"]


def epoch_score(loss, f1_macro, constant):
    """What an epoch is compared with others by, a list, higher is better. constant: of constant_scores.

    Macro F1, of equal ones the lower loss. An epoch that is no better than a constant prediction, neither in loss nor
    in F1, comes after all others, and only its loss counts: its F1 is that of predictions that do not depend on the
    tile.
    """
    is_trained = loss < constant[0] or f1_macro > constant[1]
    return [is_trained, is_trained and f1_macro, -loss]


def best_threshold(logits, labels):
    """Of the probabilities 0.1, 0.2, ..., 0.9 that with the highest weighted F1, of equal ones the nearest to 0.5, as
    a logit.
    """
    thresholds = sorted((np.log(p / (10 - p)) for p in range(1, 10)), key=abs)
    def f1(threshold):
        return f1_scores(count(np.asarray(logits) - threshold, labels))["f1_weighted"]
    return max(thresholds, key=f1)


def mean_average_precision(logits, labels):
    """Mean over the classes with a positive tile of the average precision, in %; 0 if there is none."""
    present = np.asarray(labels).sum(0) > 0
    if not present.any():
        return 0.0
    return 100 * float(average_precision_score(np.asarray(labels)[:, present], np.asarray(logits)[:, present]))
