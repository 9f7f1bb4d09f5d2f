"""How long the readers of a dataset take for a tile."""
import statistics
import tempfile
import time
from datetime import datetime
from pathlib import Path

import h5py
import numpy as np
import tifffile

from datasets import default_modalities, open_dataset
from datasets.simulated.demo import write_flair, write_pastis, write_treesatai
from utils.errors import UserError


def readers(name, root, reads):
    """Median seconds a tile, from the page cache in one process, of so many reads, one form after the other.

    "ours": as training has it, dates chosen and cleaned; "repaired", of treesatai-ts: the same with --s1 repaired;
    "reading": the whole files alone, ours; "plain": these with the usual calls.
    """
    with tempfile.TemporaryDirectory() as folder:
        if root is None:
            write = {"treesatai-ts": write_treesatai, "pastis-hd": write_pastis, "flair": write_flair}[name]
            root = write(folder, train=8, test=4, **({"side": 128} if name == "pastis-hd" else {}))
        data = open_dataset(name, str(root), "train", default_modalities(name), labelled=False, findings=[])
        mended = open_dataset(name, str(root), "train", default_modalities(name), labelled=False, findings=[],
                              s1="repaired") if name == "treesatai-ts" else None
        # a part of a release will do
        whole = [i for i, paths in enumerate(zip(*data.paths.values())) if None not in paths][:8]
        if not whole:
            raise UserError(f"{root}: no tile of {name} has all its files")
        forms = {"ours": lambda i: data[i, 0], "reading": lambda i: data.raw(i, data.modalities),
                 "plain": lambda i: read_plainly(data.sources(i))}
        forms = forms if mended is None else {"ours": forms["ours"], "repaired": lambda i: mended[i, 0]} | forms
        times = {form: [] for form in forms}
        for form, read in forms.items():
            for i in (whole * reads)[:reads]:
                start = time.perf_counter()
                read(i)
                times[form].append(time.perf_counter() - start)
    return {form: statistics.median(taken) for form, taken in times.items()}


def read_plainly(paths):
    """Every array of the files, whole, in float32, and every date, with the usual calls."""
    for path in map(Path, paths):
        if path.suffix == ".tif":
            tifffile.imread(path).astype(np.float32)
        elif path.suffix == ".npy" and "TARGET" not in path.name and "masks" not in path.name:
            np.load(path).astype(np.float32)
        elif path.suffix == ".h5":
            with h5py.File(path) as file:
                for sensor, start in (("sen-2", 11), ("sen-1-asc", 17)):
                    file[f"{sensor}-data"][()]
                    for product in file[f"{sensor}-products"][()]:
                        datetime.strptime(product.decode()[start:start + 8], "%Y%m%d").timetuple().tm_yday
