"""Which tile is for training, validation, test, and which labels the 10 % and 20 % runs may see.

Lists are kept as text files in datasets/splits/, named after the list they were drawn from and headed by their hash, so
that everybody trains on the same tiles. Those of the Zenodo release of TreeSatAI are committed; for any other list
(the Hugging Face release, the demo) the file is drawn with the same seed and written at the first run.
"""
import hashlib
import os
from pathlib import Path

import numpy as np

from utils.errors import UserError

FOLDER = Path(__file__).parent / "splits"


def fingerprint(names):
    """sha256 of the names, one a line, in the given order (64 hex digits)."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def stratified_subset(labels, share, seed):
    """Draw a share of the tiles that keeps the share of each class (iterative stratification, Sechidis et al. 2011).

    labels (N, K) bool. Rarest class first: of its tiles not yet decided, as many are drawn as its share still lacks, at
    random; the rest is decided against. Tiles without a label come last. Returns sorted indices int64.
    """
    rng = np.random.default_rng(seed)
    labels = np.concatenate([labels, ~labels.any(1, keepdims=True)], axis=1)      # "no label" is a class too
    lacking, undecided, drawn = labels.sum(0) * share, np.ones(len(labels), bool), []
    while undecided.any():
        left = labels[undecided].sum(0)
        rarest = np.where(left > 0, left, len(labels) + 1).argmin()
        tiles = rng.permutation(np.flatnonzero(undecided & labels[:, rarest]))
        chosen = tiles[:max(0, round(lacking[rarest]))]
        lacking = lacking - labels[chosen].sum(0)
        undecided[tiles] = False
        drawn.append(chosen)
    return np.sort(np.concatenate(drawn))


def saved_subset(release, what, names, labels, share, seed):
    """The stratified subset of a list, from its file if there is one, else drawn and written.

    release: e.g. "treesatai". what: e.g. "val" or "10percent". names: the list drawn from; labels (N, K) bool.
    Returns the names of the subset, in the list's order. Errors: UserError if the file was changed.
    """
    path = FOLDER / f"{release}-{fingerprint(names)[:8]}-{what}-seed{seed}.txt"
    if not path.exists():
        subset = [names[i] for i in stratified_subset(labels, share, seed)]
        FOLDER.mkdir(exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(f"# {len(subset)} of {len(names)} tiles, stratified, seed {seed}, "
                             f"sha256 {fingerprint(subset)}\n" + "".join(f"{name}\n" for name in subset))
        os.replace(temporary, path)
    header, *subset = path.read_text().splitlines()
    if not header.endswith(fingerprint(subset)) or not set(subset) <= set(names):
        raise UserError(f"{path}: its names do not have the hash in its first line; restore it with git, or delete it "
                        "to draw it again")
    return subset
