"""All tiles of a dataset, with what an earlier run found."""
import json
import os

from torch.utils.data import Dataset
from tqdm import tqdm

from checks import orders
from checks.tile import check_tile, finding, kind_of
from datasets import open_dataset, splits
from datasets.loading import Loader
from utils.errors import UserError

VERSION = 4                    # of the checks: results of another version are not taken over
SPLITS = "train", "val", "test"


class Records(Dataset):
    """What was found in each tile of a split, and (True, False) whether it was checked now or is taken over from
    `known`.
    """

    def __init__(self, dataset, known):
        self.dataset, self.known = dataset, known

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, i):
        signature = self.signature(i)
        if signature in self.known:
            return self.known[signature], False
        found, label = check_tile(self.dataset, i)
        order = self.dataset.orders(i)
        return {"tile": self.dataset.names[i], "signature": signature, "found": found + orders.found_in(order),
                "label": label,
                "orders": order, "content": self.dataset.content(i)}, signature is not None

    def signature(self, i):
        """Changes with the files of the tile (their size and time), None if it has none."""
        paths = [os.path.abspath(path) for path in self.dataset.sources(i)]
        stats = [os.stat(path) if os.path.exists(path) else None for path in paths]
        files = [f"{path} {s and (s.st_size, s.st_mtime_ns)}" for path, s in zip(paths, stats)]
        about = [VERSION, self.dataset.name, self.dataset.names[i], *self.dataset.modalities,
                 self.dataset.labels[i].tolist()]
        return splits.fingerprint([*map(str, about), *files])[:32] if files else None


def same_tiles(name, datasets, records):
    """Findings about tiles whose files another split has too, under whatever name: copies and links."""
    first, found = {}, []
    for split, dataset in datasets.items():
        for tile, record in zip(dataset.names, records[split]):
            where, other = first.setdefault(record["content"], (split, tile))
            if record["content"] is not None and where != split:
                text = (f"its files are those of {other} in {where}, byte by byte: a score would be of tiles trained "
                        "on; keep one of the two")
                found.append(finding(name, "same tile", text, split, tile))
    return found


def _same(record):
    return record


def read_progress(path):
    """{signature: record} of earlier runs; a line that was cut off does not count."""
    known = {}
    for line in path.read_text(errors="replace").split("\n") if path.exists() else ():
        try:
            record = json.loads(line)
            known[record["signature"]] = record
        except (ValueError, KeyError, TypeError):
            continue
    return known


def check_all(datasets, progress, workers):
    """Check every tile. Returns ({split: [record of each tile]}, number of tiles that were checked now)."""
    known, records, new = read_progress(progress), {split: [] for split in datasets}, 0
    is_cut_off = progress.exists() and not progress.read_bytes().endswith(b"\n")
    total = sum(len(dataset) for dataset in datasets.values())
    with open(progress, "a") as file, tqdm(total=total, desc="checking", unit="tile") as bar:
        file.write("\n" if is_cut_off else "")
        for split, dataset in datasets.items():
            loader = Loader(Records(dataset, known), batch_size=None, collate_fn=_same,
                            num_workers=workers if len(dataset) > 64 else 0)  # few tiles are not worth a start
            for record, is_new in loader:
                records[split].append(record)
                if is_new:
                    file.write(json.dumps(record) + "\n")
                    file.flush()
                    new += 1
                bar.update()
    return records, new


def open_splits(name, root, keys):
    """({split: dataset}, findings): the splits that can be listed; files missing or double, numbers that are not the
    release's.

    Errors: UserError if no split can be listed.
    """
    datasets, findings, error = {}, [], None
    for split in SPLITS:
        found = []
        try:
            datasets[split] = open_dataset(name, root, split, keys, labelled=False, findings=found)
        except UserError as problem:
            error = problem
            findings.append(finding(name, "not listed", error, split))
        own = set(datasets[split].names) if split in datasets else ()
        findings += [finding(name, "only a centre" if key == "centroids" else kind_of(text, "missing"), text,
                             split if tile in own else "", tile, key) for tile, key, text in found]
    if not datasets:
        raise error
    sizes = {split: len(dataset) for split, dataset in datasets.items()}
    sizes["train + val"] = sizes.get("train", 0) + sizes.get("val", 0)
    is_demo = any(dataset.is_demo for dataset in datasets.values())
    for part, number in ({} if is_demo else splits.RELEASED.get(name, {})).items():
        if (found := sizes.get(part, 0)) != number:
            kind = "too few tiles" if found < splits.ENOUGH * number else "number of tiles"
            findings.append(finding(name, kind, f"{found:,} tiles in {part}, {number:,} in the release", part))
    for split, dataset in ({} if is_demo else datasets).items():
        if dataset.lost:
            findings.append(finding(name, "too few tiles", f"no tile of {', '.join(dataset.lost)}", split))
    return datasets, list(dict.fromkeys(findings))    # val is drawn from train: both tell the same
