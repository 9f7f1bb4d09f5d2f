"""Damage the files of every dataset in every way, read them as training does, and sort what comes out.

    python -m tests.fuzz                                  # 500 files a dataset, 2 minutes; test_fuzz.py is shorter
    python -m tests.fuzz --datasets flair zips --files 50 --seed 3 --verbose

A small release of each dataset is generated (TreeSatAI-TS with the real tile, where it is beside the project). One
file at a time is damaged (tests/damage.py): data of every sensor, masks, lists, tables, and the caches of
datasets/splits and datasets/stats. Another process opens the dataset, reads what the file belongs to, and compares it
to plain readers (tests/plain.py). It came out as

    clear error   a UserError of one line that names the file, or the tile that has none, and says what to do or what
                  was expected
    repair        dates left out, pixels filled, a cache made again, as documented in datasets/reading.py, splits.py and
                  band_statistics.py, and equal to a plain computation of it; scrambled Sentinel-1 that prepare.py
                  finds, and --s1 repaired reads as it was
    as stored     finite, of the right shape, and what the plain readers give for the damaged file too. These formats
                  have no checksums (npz and zip do): nobody can tell a flipped bit of a pixel from data, nor a list
                  that ends early
    no effect     the same as before
    else          other exceptions and warnings, crashes, hangs, too much memory, something executed, other numbers:
                  must not be

"zips" is utils/unpack.py on damaged zips: each member is unpacked as it was or reported, and nothing is written
anywhere else.
"""
import argparse
import hashlib
import json
import multiprocessing
import os
import re
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from datasets import band_statistics, flair, open_dataset, splits
from datasets.sensors import SENSORS
from tests.damage import ORBITS, damage, remove
from tests.plain import KEYS, OWN, STEM, build, demand, plain_clean, plain_image, plain_label, plain_series
from utils.errors import UserError
from utils.numbers import whole
from utils.unpack import unpack

DATES, CLOUD = 8, 60                   # --max-dates; --max-cloud, %
SECONDS, MEMORY = 20, 2 << 30          # that reading a file may take, s; bytes, beyond those of importing
KINDS = ("clear error", "repair", "as stored", "no effect", "else")


# ---- one damaged file, in a process of its own ----------------------------------------------------------------------

def open_split(name, root, split, max_cloud=None):
    return open_dataset(name, root, split, KEYS[name], label_percent=50 if split == "train" else 100, max_dates=DATES,
                        max_cloud=max_cloud)


def examine(name, root, split, tile, max_cloud):
    """Read a split, or one tile of it, as training does, and compare.

    Returns (names, fingerprint of all that was read, repairs, or None where the library of a plain reader refuses the
    file). Errors: those of our readers; tests.plain.Different.
    """
    data = open_split(name, root, split, max_cloud)
    statistics, repairs = band_statistics.training_statistics(data) if split == "train" else {}, 0
    seen = hashlib.sha256(json.dumps([data.names, data.labels.tolist(), statistics]).encode())
    demand(len(set(data.names)) == len(data.names), "a tile twice")
    demand(all(np.isfinite(of["mean"]).all() and np.min(of["std"]) > 0 for of in statistics.values()), "statistics")
    for i in range(len(data)) if tile is None else [data.names.index(tile)]:
        label = data.check_label(i)
        demand(set(np.flatnonzero(label)) == plain_label(data, i) and (data.labels[i].numpy() == label).all(),
               f"label {label}")
        whole, even, drawn = data.read(i), data[i], data[i, 3]
        for sensor in data.sensors:
            key, (values, days) = sensor.key, whole[sensor.key]
            shape = len(sensor.bands), *(side * sensor.patch for side in data.grid)
            demand(values.shape[-3:] == shape and np.isfinite(values).all(), f"{key}: {values.shape}, or not finite")
            seen.update(values.tobytes() + (b"" if days is None else days.tobytes()))
            if days is None:
                image = plain_image(data, i, sensor)
                demand(all(np.array_equal(each, image) for each in (values, even[key], drawn[key])), f"{key}: pixels")
                continue
            try:
                with np.errstate(all="ignore"):
                    lowest = -1000 if (name, key) == ("pastis-hd", "s2") else None
                    images, changes = plain_clean(*plain_series(data, i, sensor), lowest)
            except OSError:
                repairs = None
                continue
            repairs = None if repairs is None else repairs + int(changes)
            demand(days.tolist() == sorted(images), f"{key}: days {days.tolist()}, plainly {sorted(images)}")
            expected = np.array([images[day] for day in days.tolist()]).reshape(values.shape)
            if "VV" in sensor.bands and name != "pastis-hd":                     # what the reader's finish documents
                expected = 10 * np.log10(np.maximum(expected, 1e-4)) if name == "treesatai-ts" else np.maximum(expected,
                                                                                                               -40)
            demand(np.allclose(values, expected, rtol=2e-3 if values.dtype == np.float16 else 1e-5, atol=1e-4),
                   f"{key}: values")
            for item in (even, drawn):
                chosen = np.searchsorted(days, item[f"{key}_dates"])
                demand(len(chosen) == min(DATES, len(days)) and np.array_equal(days[chosen], item[f"{key}_dates"])
                       and np.array_equal(values[chosen], item[key]), f"{key}: chosen dates")
    return data.names, seen.hexdigest(), repairs


def examine_order(name, root, split, tile, key):
    """What prepare.py says of Sentinel-1 of a tile, and fingerprints of the series as it is read: released, repaired.
    """
    prints = []
    for s1 in ("released", "repaired"):
        data = open_dataset(name, root, split, KEYS[name], s1=s1)
        i = data.names.index(tile)
        prints.append(hashlib.sha256(data.read(i)[key][0].tobytes()).hexdigest())
    return data.orders(i)[key][0], *prints


def answer_jobs(pipe):
    """What the process does: call functions and send (how it ended, result or text) back."""
    memory = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (memory + MEMORY,) * 2)
    # bars, and what libraries say of damaged files
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    warnings.simplefilter("error", RuntimeWarning)
    torch.set_num_threads(1)
    while True:
        function, is_nobody, job = pipe.recv()
        os.seteuid(65534 if is_nobody else os.getuid())                           # root may read everything
        try:
            answer = "read", function(*job)
        except UserError as error:
            answer = "error", str(error)
        except Exception:    # what this file looks for
            answer = "else", traceback.format_exc()
        finally:
            os.seteuid(os.getuid())
        pipe.send(answer)


class Process:
    """Answers jobs; where it dies or hangs, another one is started for the next."""
    process = None

    def ask(self, function, *job, is_nobody=False):
        if self.process is None:
            self.pipe, theirs = multiprocessing.Pipe()
            self.process = multiprocessing.get_context("fork").Process(target=answer_jobs, args=(theirs,), daemon=True)
            self.process.start()
            theirs.close()
        self.pipe.send((function, is_nobody, job))
        try:
            if self.pipe.poll(SECONDS):
                return self.pipe.recv()
            fate = f"no answer after {SECONDS} s"
        except EOFError:
            self.process.join()
            fate = f"the process ended with code {self.process.exitcode}"
        self.stop()
        return "else", fate

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


# ---- many damaged files ---------------------------------------------------------------------------------------------

def is_clear(text, path, tile):
    """Whether an error is one line that names the file, or the tile that has none, and says what to do or what was
    expected.
    """
    is_lost = re.search(r"\bno files? of\b", text) and (tile is None or tile.removesuffix(".tif") in text)
    return (path.name in text or is_lost) and text.isprintable() and len(text) < 1000 and re.search(
        r"download|unpack|expected|delete|keep|restore|write it again|\bno \S*files? of\b|found, at the root or below",
        text)


def cases(name, root, caches):
    """[[(path, split, tile)]]: what can be damaged, in groups of files of one kind, kinds with a file a tile three
    times.

    split: what to read. tile: the one tile that the file belongs to, or None.
    """
    groups, known = {}, {flair.DOMAINS}
    for split in ("val", "test", "train"):
        data = open_split(name, root, split)
        for i, tile in enumerate(data.names):
            for path in map(Path, data.sources(i)):
                if path.suffix not in (".json", ".geojson"):
                    kind = re.search(f"{STEM}|IMG_|MSK_|_data|_masks|_products|$", path.name)[0] or path.parent
                    groups.setdefault(kind, {})[path] = split, None if "SEN2" in path.name else tile
        new = set(caches.rglob("*.txt")) - known                                  # what opening this split has written
        groups |= {path: {path: (split, None)} for path in sorted(new)}
        known |= new
    for share in (None, CLOUD if data.has_cloud_masks else None):
        band_statistics.training_statistics(open_split(name, root, "train", share))
    for path in (*sorted(caches.rglob("*.json")), *[flair.DOMAINS] * (name == "flair"), *sorted(root.rglob("*.*"))):
        is_read = not re.search("SEN2|DEMO.json", path.name)
        if is_read and path.suffix in (".txt", ".json", ".lst", ".geojson", ".csv"):
            groups[path] = {path: ("test" if "test" in path.name else "train", None)}
    return [[(path, *rest) for path, rest in group.items()] for group in groups.values()
            for _ in range(1 if len(group) == 1 else 3)]


def fuzz_dataset(name, files, seed, folder, report):
    """Counter of KINDS. report(kind, path, what, text) is called for each damaged file."""
    root, caches, kept, bomb = (folder / part for part in ("root", "caches", "kept", "EXECUTED"))
    process, before, counts = Process(), {}, Counter()
    build(name, root)
    (caches / "splits").mkdir(parents=True)
    domains = Path(shutil.copy(flair.DOMAINS, caches / "splits"))
    with mock.patch.object(splits, "FOLDER", caches / "splits"), mock.patch.object(band_statistics, "FOLDER",
                                                                                   caches / "stats"), \
            mock.patch.object(flair, "DOMAINS", domains), mock.patch.dict(SENSORS, own=OWN):
        groups = cases(name, root, caches)
        for path in (caches, *caches.iterdir()):
            path.chmod(0o777)                                                     # for the user nobody
        shutil.copytree(caches, kept)
        for n in range(files):
            rng = np.random.default_rng((seed, n))
            group = groups[rng.integers(len(groups))]
            path, split, tile = group[rng.integers(len(group))]
            has_clouds = name in ("treesatai-ts", "flair") and (rng.random() < 0.5 or "masks" in path.name)
            job = name, str(root), split, tile, CLOUD if has_clouds else None
            if job not in before:
                status, before[job] = process.ask(examine, *job)
                assert status == "read", f"{job}, before any damage: {before[job]}"
            content, is_cache = path.read_bytes(), caches in path.parents
            what = damage(path, rng, bomb)
            for labels in caches.rglob("*-labels.txt") if not is_cache else ():
                labels.unlink()                                                   # so that masks are read again
            start = time.time()
            status, answer = process.ask(examine, *job, is_nobody=what == "unreadable")
            kind = sort(status, answer, before[job], path, tile, is_cache)
            key = ORBITS.get(what.removesuffix(": scrambled"))
            after = process.ask(examine_order, *job[:4], key) if key else None
            if bomb.exists():
                kind = "else"
                bomb.unlink()
            for each in (path, path.with_name("loop")):
                remove(each)
            path.write_bytes(content)
            # found, and undone as if it had not been
            if key:
                kind = "repair" if is_undone(process.ask(examine_order, *job[:4], key),
                                             after) and kind != "else" else "else"
                answer = f"{answer if status != 'read' else ''} {after}"
            counts[kind] += 1
            report(kind, path.relative_to(folder), what,
                   f"{'' if status == 'read' and not key else answer} ({time.time() - start:.1f} s)")
            shutil.rmtree(caches)
            shutil.copytree(kept, caches)
    process.stop()
    return counts


def is_undone(before, after):
    """Whether a file that was scrambled is found to be, and its repaired form is what it was. before, after: of
    examine_order.
    """
    if {before[0], after[0]} != {"read"}:
        return False
    (was, series, _), (now, stored, repaired) = before[1], after[1]
    return (was, now) in (("in order", "scrambled"), ("no dates", "no dates")) and repaired == series and (
        was == "no dates" or stored != series)


def sort(status, answer, before, path, tile, is_cache):
    """One of KINDS. status, answer: from a Process. before: the answer before the damage."""
    if status != "read":
        return "clear error" if status == "error" and is_clear(answer, path, tile) else "else"
    names, seen, repairs = answer
    if seen == before[1]:
        return "repair" if is_cache else "no effect"                              # a cache was made again, the same
    if repairs is None:
        return "else"
    return "repair" if names == before[0] and repairs != before[2] else "as stored"


# ---- zips -----------------------------------------------------------------------------------------------------------

def fuzz_zips(name, files, seed, folder, report):
    """fuzz_dataset for utils.unpack."""
    root, process, counts = folder / "root", Process(), Counter()
    path = root / "some.zip"
    known = {f"{part}/{n}.txt": np.random.default_rng(n).bytes(700 * n) for part in ("a", "b/c") for n in range(4)}
    for n in range(files):
        rng = np.random.default_rng((seed, n))
        root.mkdir()
        root.chmod(0o777)
        with zipfile.ZipFile(path, "w") as archive:
            for member, content in known.items():
                archive.writestr(member, content, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[rng.integers(2)])
        what = damage(path, rng, folder / "EXECUTED")
        status, answer = process.ask(unpack, root, is_nobody=what == "unreadable")
        files_there = [file for file in root.rglob("*") if file != path and not file.is_dir()]
        found = {str(file.relative_to(root)): file.read_bytes() for file in files_there if not file.is_symlink()}
        is_safe = set(folder.iterdir()) == {root} and len(found) == len(files_there) and all(
            part.startswith("some/") and content in (*known.values(), b"more") for part, content in found.items())
        texts = [f"{zipped}: {kind}: {text}" for kind, text, zipped in answer[1]] if status == "read" else [answer]
        # a zip that is not there needs no unpacking; a list of members that ends early is a list
        listed = () if texts or not path.is_file() else zipfile.ZipFile(path).namelist()
        if not is_safe or status == "else" or not all(str(path) in text for text in texts):
            kind = "else"
        elif texts:
            kind = "clear error"
        elif any(found.get(f"some/{member}") != content for member, content in known.items() if member in listed):
            kind = "else"
        else:
            kind = "no effect" if set(listed) >= set(known) else "as stored"
        counts[kind] += 1
        report(kind, path.relative_to(folder), what, "; ".join(texts))
        for left in folder.iterdir():
            remove(left)
    process.stop()
    return counts


# ---- the script -----------------------------------------------------------------------------------------------------

def fuzz(name, files, seed, report):
    """Counter of KINDS for one of KEYS, or for "zips"; see fuzz_dataset."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)                                                   # for the user nobody
        return (fuzz_zips if name == "zips" else fuzz_dataset)(name, files, seed, Path(folder), report)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=whole(1), default=500, help="damaged files a dataset")
    parser.add_argument("--seed", type=whole(0), default=0, help="decides what is damaged, and how")
    parser.add_argument("--datasets", nargs="+", default=[*KEYS, "zips"], choices=[*KEYS, "zips"])
    parser.add_argument("--verbose", action="store_true", help="a line a file, not only what must not be")
    args = parser.parse_args()

    def report(kind, path, what, text):
        if args.verbose or kind == "else":
            print(f"{kind:12}{path}: {what}: {text}", flush=True)
    print(f"{'':14}{'files':>7}" + "".join(f"{kind:>13}" for kind in KINDS) + f"{'seconds':>9}", flush=True)
    bad = 0
    for name in args.datasets:
        start, counts = time.time(), fuzz(name, args.files, args.seed, report)
        bad += counts["else"]
        print(f"{name:14}{counts.total():7}" + "".join(f"{counts[kind]:13}" for kind in KINDS)
              + f"{time.time() - start:9.0f}", flush=True)
    return bad > 0


if __name__ == "__main__":
    sys.exit(main())
