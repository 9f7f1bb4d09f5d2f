"""Simple classifiers on features, for probe.py, by scikit-learn; and what their scores lie between.

Dimensions: N tiles, F features, K classes, of which a tile has any number.
"""
import warnings

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from utils import metrics

STRENGTHS = (0.001, 0.01, 0.1, 1, 10)    # C of the logistic regression
NEIGHBOURS = (1, 3, 5, 10, 20, 50)       # k
RESAMPLES = 1000                         # of the bootstrap


def logistic(strength):
    """A logistic regression for each class. strength: C."""
    return make_pipeline(StandardScaler(), OneVsRestClassifier(LogisticRegression(C=strength, max_iter=1000)))


def neighbours(k):
    """k nearest neighbours by euclidean distance: a class is as probable as it is frequent among them."""
    return make_pipeline(StandardScaler(), KNeighborsClassifier(k))


# in the order they are tried: simplest first
CLASSIFIERS = {"logistic": (logistic, STRENGTHS), "knn": (neighbours, NEIGHBOURS)}


def scores_of(classifier, x):
    """What a fitted classifier says of tiles, (N, K), above 0 where a class is more probable than not."""
    if hasattr(classifier, "decision_function"):
        scores = classifier.decision_function(x)
        return (scores if scores.ndim == 2 else scores[:, None]).astype(np.float64)
    probabilities = classifier.predict_proba(x)                               # a list of (N, classes that occur) arrays
    probabilities = probabilities if isinstance(probabilities, list) else [probabilities]
    known = classifier[-1].classes_ if isinstance(classifier[-1].classes_, list) else [classifier[-1].classes_]
    return np.stack([p[:, list(c).index(1)] if 1 in c else np.zeros(len(p))
                     for p, c in zip(probabilities, known)], 1) - 0.5


def choose(name, train, val):
    """Fit a kind of classifier, its setting by macro F1 on validation. train, val: (x (N, F), y (N, K) 0 or 1).

    Returns the fitted classifier and its setting: of equally good ones the first tried, the more regular for logistic.
    """
    (make, settings), best = CLASSIFIERS[name], None
    for setting in settings:
        if name == "knn" and setting > len(train[0]):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")    # a class that no labelled tile has; not converged
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
