"""Which tile is for training, validation, test, and which labels the 10 % and 20 % runs may see.

Lists are kept as text files in datasets/splits/, named after the list they were drawn from and headed by their hash,
so that everybody trains on the same tiles; so are labels that had to be collected from one mask a tile. Those of the
Zenodo release of TreeSatAI are committed; for any other list (the Hugging Face release, the demo) the file is drawn
with the same seed and written at the first run.
"""
import hashlib
import os
from itertools import combinations
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset
from tqdm import tqdm

from datasets.files import read_text
from datasets.loading import Loader
from utils.errors import UserError
from utils.files import written_whole

FOLDER = Path(__file__).parent / "splits"
ADVICE = "restore it with git, or, if git does not have it, delete it: it is made again"
VAL_SHARE, SPLIT_SEED = 0.15, 0
RELEASED = {"treesatai-ts": {"train + val": 45337, "test": 5044}, "treesatai": {"train + val": 45337, "test": 5044},
            "pastis-hd": {"train": 1455, "val": 482, "test": 496}, "flair": {"train + val": 61712, "test": 16050}}
ENOUGH = 0.99    # of the release's tiles; with fewer, zips are missing


def fingerprint(names):
    """sha256 of the names, one a line, in the given order (64 hex digits)."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def differs_from_release(name, datasets):
    """In what the tiles of some splits are not the release's: texts, none if they are.

    name: the dataset's. datasets: {split: datasets.tiles.Tiles}; a number of two splits is looked at if both are there.
    """
    texts = []
    for part, number in RELEASED.get(name, {}).items():
        if set(splits := part.split(" + ")) <= set(datasets):
            found = sum(datasets[split].list_size for split in splits)
            if not ENOUGH * number <= found <= number / ENOUGH:
                texts.append(f"{found:,} tiles in {part}, {number:,} in the release")
    return texts + [f"no tile of {', '.join(data.lost)} in {split}" for split, data in datasets.items() if data.lost]


def check_apart(lists):
    """Errors: UserError that names the tiles which are in two lists. lists: {what a list is called: its tiles}."""
    for (one, names), (other, others) in combinations(lists.items(), 2):
        if both := sorted(set(names) & set(others)):
            some = ", ".join(both[:5]) + (f" and {len(both) - 5:,} more" if len(both) > 5 else "")
            raise UserError(f"{some}: in two lists, {one} and {other}, so that a score would be of tiles trained on; "
                            "keep each tile in one of them, or download the lists of one release")


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


def list_path(release, names, origin, what):
    """The file of what is kept about a list of tiles. origin: text that tells generated data apart, "" otherwise."""
    return FOLDER / f"{release}-{fingerprint([*names, origin] if origin else names)[:8]}-{what}.txt"


def saved_subset(release, what, names, labels, share, seed, origin=""):
    """The stratified subset of a list, from its file if there is one, else drawn and written.

    release: e.g. "treesatai". what: e.g. "val" or "10percent". names: the list drawn from; labels (N, K) bool. From
    all these follow the file's name or its content.
    Returns the names of the subset, in the list's order. A file that is not there is made again, the same. Errors:
    UserError if it was changed.
    """
    path = list_path(release, names, origin, f"{what}-seed{seed}")
    if not path.exists():
        subset = [names[i] for i in stratified_subset(labels, share, seed)]
        _write(path, f"{len(subset)} of {len(names)} tiles, stratified, seed {seed}", subset)
    subset = read_lines(path)
    if not set(subset) <= set(names) or len(set(subset)) < len(subset):
        raise UserError(f"{path}: holds tiles that are not in the list it was drawn from, or twice; {ADVICE}")
    return subset


def drawn_val(release, names, labels, origin):
    """The validation tiles, out of the training list (N names), of a release that has no list of them."""
    return saved_subset(release, "val", names, labels, VAL_SHARE, SPLIT_SEED, origin)


def saved_labels(release, names, origin, read, classes):
    """Which classes are present in each tile, from a file of this list of tiles if there is one, else read and written.

    read(i): the classes present in tile i, (K,) bool; called on all cores. classes: K names. Returns (N, K) bool.
    Errors: UserError if the file was changed.
    """
    path = list_path(release, names, origin, "labels")
    if not path.exists():
        workers = min(16, os.cpu_count() or 1) if len(names) > 500 else 0         # few tiles are not worth a start
        loader = Loader(_Calls(len(names), read), batch_size=None, num_workers=workers)
        present = tqdm(loader, desc=f"labels of {release}", unit="tile", total=len(names), leave=False)
        write_labels(path, names, [np.flatnonzero(row).tolist() for row in present], classes)
    labels = np.zeros((len(names), len(classes)), bool)
    lines, known = [line.split() for line in read_lines(path)], {str(k) for k in range(len(classes))}
    found = {k for line in lines for k in line[1:]}
    if [line[:1] for line in lines] != [[name] for name in names] or not found <= known:
        raise UserError(f"{path}: not the {len(names)} tiles with their classes, 0 to {len(classes) - 1}, that it is "
                        f"about; {ADVICE}")
    for row, (_, *present) in zip(labels, lines):
        row[[int(k) for k in present]] = True
    return labels


def write_labels(path, names, present, classes):
    """The file of saved_labels. present: for each tile the numbers of its classes."""
    lines = [" ".join([name, *map(str, numbers)]) for name, numbers in zip(names, present)]
    _write(path, f"numbers of the classes present in {len(names)} tiles, of {', '.join(classes)}", lines)


class _Calls(Dataset):
    """A function of 0..size-1, for a DataLoader to call on many processes."""

    def __init__(self, size, function):
        self.size, self.function = size, function

    def __len__(self):
        return self.size

    def __getitem__(self, i):
        return self.function(i)


def _write(path, title, lines):
    """A text file headed by its title and hash, written whole."""
    with written_whole(path) as file:
        file.write(f"# {title}, sha256 {fingerprint(lines)}\n" + "".join(f"{line}\n" for line in lines))


def read_lines(path):
    """The lines of a file that is headed by their hash. Errors: UserError if they do not have it."""
    header, *lines = read_text(path, ADVICE).splitlines() or [""]
    if not header.endswith(fingerprint(lines)):
        raise UserError(f"{path}: its lines do not have the hash in the first one; {ADVICE}")
    return lines
