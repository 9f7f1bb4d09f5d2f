"""Download of a dataset: what the tables need of it and nothing else, each file whole and with the hash of its host.

    python prepare.py download treesatai-ts --root data/treesatai   # stopped, the same command goes on where it was
    python prepare.py download flair --root data/flair --dry-run    # what there is, in which size, and whether it fits
    python prepare.py download treesatai --root data/zenodo --source zenodo    # single dates, from the first release

Files come from the Hugging Face hub (pip install huggingface_hub; HF_ENDPOINT names a mirror), those of TreeSatAI's
first release from Zenodo. A file gets its name when it is whole and has its hash; until then what came of it is in
DIR/.download/, and so is the list of what was checked. Then `prepare.py DATASET` unpacks and checks the content. Exit
code: 0 if all files are there, 1 if not, 130 if stopped.
"""
import json
import os
import shutil
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

from checks import hosts
from engine import options
from utils.errors import UserError
from utils.files import lock
from utils.transfer import fetch, hash_file

FOLDER = ".download"    # below the root; readers and unpacking find nothing in it
AT_ONCE = 4             # files


class WrongHash(UserError):
    """What the host sent is not the file whose hash it gives."""


class Folder:
    """The folder of a dataset: which files are there, whole and checked, and what came of others.

    root: Path. origin: where its files come from. Errors: UserError if files of another origin were fetched into it.
    """

    def __init__(self, root, origin):
        self.root, self.origin, self.guard = root, origin, threading.Lock()
        self.list, self.checked = root / FOLDER / "checked.jsonl", {}
        text = self.list.read_text(encoding="utf-8", errors="replace") if self.list.exists() else ""
        self.is_cut_off = bool(text) and not text.endswith("\n")
        for line in text.split("\n"):
            try:
                entry = json.loads(line)
                self.checked[entry["file"]] = entry
            except (ValueError, LookupError, TypeError):    # the line that was being written when a run was killed
                continue
        others = {entry.get("origin") for entry in self.checked.values()} - {origin}
        if others:
            raise UserError(f"{root}: it has files of {' and '.join(map(str, sorted(others, key=str)))}; choose "
                            f"another folder for those of {origin}")

    def path(self, remote):
        return self.root / remote.path

    def part(self, remote):
        """Where the beginning of a file is kept; of another version of it, elsewhere."""
        return self.root / FOLDER / "parts" / f"{remote.path}.{remote.hash[:8]}"

    def _entry(self, remote):
        stat = self.path(remote).stat()
        return {"file": remote.path, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns, remote.kind: remote.hash,
                "origin": self.origin}

    def is_checked(self, remote):
        """Whether the file was found to have its hash, and was not written to since."""
        return self.path(remote).is_file() and self.checked.get(remote.path) == self._entry(remote)

    def note(self, remote):
        """Keep in mind that the file has its hash."""
        with self.guard:
            self.checked[remote.path] = entry = self._entry(remote)
            self.list.parent.mkdir(parents=True, exist_ok=True)
            with open(self.list, "a", encoding="utf-8") as file:
                file.write("\n" * self.is_cut_off + json.dumps(entry) + "\n")
            self.is_cut_off = False

    def begun(self, remote):
        """Bytes of the file that came in an earlier run."""
        part = self.part(remote)
        return part.stat().st_size if part.exists() else 0

    def look(self, groups):
        """({path: Remote} of what is missing, {path: what is wrong with the file that is there}); hashes what was not
        hashed before.
        """
        files = [remote for group in groups.values() for remote in group]
        missing = {remote.path: remote for remote in files if not os.path.lexists(self.path(remote))}
        unknown = [remote for remote in files if remote.path not in missing and not self.is_checked(remote)]
        wrong, to_hash = {}, []
        for remote in unknown:
            size = self.path(remote).stat().st_size if self.path(remote).is_file() else -1
            if size == remote.size:
                to_hash.append(remote)
            else:
                wrong[remote.path] = f"{size:,} bytes, expected {remote.size:,}" if size >= 0 else "not a file"
        with bar_of(sum(remote.size for remote in to_hash), "checking what is there", not to_hash) as bar:
            for remote in to_hash:
                with open(self.path(remote), "rb") as file:
                    digest = hash_file(file, remote, bar.update, lambda: False)[0].hexdigest()
                if digest == remote.hash:
                    self.note(remote)
                else:
                    wrong[remote.path] = f"{remote.kind} {digest}, expected {remote.hash}"
        return missing | {remote.path: remote for remote in unknown if remote.path in wrong}, wrong

    def bring(self, remote, tell, is_stopped):
        """Fetch one file. Errors: WrongHash; then what came is deleted, since nothing of it can be trusted."""
        part, path = self.part(remote), self.path(remote)
        got = fetch(remote, part, tell, is_stopped)
        if got is None:
            return
        if got != remote.hash or part.stat().st_size != remote.size:
            size = part.stat().st_size
            part.unlink()
            raise WrongHash(f"{remote.path}: {remote.kind} {got} of {size:,} bytes, expected {remote.hash} of "
                            f"{remote.size:,}")
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(part, path)
        self.note(remote)


def bar_of(total, what, is_hidden=False):
    return tqdm(total=total, desc=what, unit="B", unit_scale=True, disable=is_hidden)


def size(number):
    """Bytes as text."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.5 or unit == "GB":
            return f"{number:,.0f} B" if unit == "B" else f"{number:,.1f} {unit}"
        number /= 1000


def tell_before(about, groups, folder, missing, free):
    """Print what there is and what is to come. Errors: UserError if the disk is too small for it."""
    def to_fetch(group):
        return sum(max(0, remote.size - folder.begun(remote)) for remote in group if remote.path in missing)
    files, width = [remote for group in groups.values() for remote in group], max(map(len, groups))
    print(f"from {about}\ninto {folder.root}\n\n"
          f"  {'':{width}}{'files':>7}{'size':>12}{'there':>8}{'to fetch':>12}")
    for name, group in [*groups.items(), ("in all", files)]:
        there = sum(remote.path not in missing for remote in group)
        print(f"  {name:{width}}{len(group):7,}{size(sum(remote.size for remote in group)):>12}{there:8,}"
              f"{size(to_fetch(group)):>12}")
    zips = sum(remote.size for remote in files if remote.path.endswith(".zip"))
    unpacking = f"; prepare.py then unpacks the zips, which takes about as much again ({size(zips)})" if zips else ""
    print(f"\n  free disk: {size(free)}{unpacking}")
    if to_fetch(files) > free:
        raise UserError(f"{folder.root}: {size(to_fetch(files))} are to be fetched, {size(free)} are free there; make "
                        "room, or choose a folder on another disk. Nothing was fetched")
    if missing and to_fetch(files) + zips > free:
        print("  warning: after the download there may be too little room to unpack it; prepare.py says so before it "
              "unpacks a zip")


def fetch_all(folder, missing):
    """Fetch what is missing, several files at a time.

    Errors: UserError if a host cannot be read or a disk written to, at once; if files have not their hash, after the
    others.
    """
    stop, guard, failed = threading.Event(), threading.Lock(), []
    with bar_of(sum(remote.size for remote in missing.values()), "downloading", not missing) as bar:
        def tell(number):
            with guard:
                bar.update(number)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            try:
                futures = [pool.submit(folder.bring, remote, tell, stop.is_set) for remote in missing.values()]
                for future in as_completed(futures):
                    try:
                        future.result()
                    except WrongHash as error:
                        failed.append(str(error))
                        bar.write(f"  wrong  {error}; thrown away", file=sys.stderr)
            except BaseException:    # Ctrl-C too: the threads end with the block that they are at
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    if failed:
        more = f" (and {len(failed) - 3} more, see above)" if len(failed) > 3 else ""
        raise UserError(f"{'; '.join(sorted(failed)[:3])}{more}: not what {folder.origin} lists, thrown away; the same "
                        "command fetches it again")


def download(args):
    """Everything but the options."""
    root = Path(args.root)
    folder = Folder(root, hosts.origin(args.dataset, args.source))
    about, groups = hosts.listing(args.dataset, args.source)
    missing, wrong = folder.look(groups)
    existing = next(path for path in (root.absolute(), *root.absolute().parents) if path.exists())
    tell_before(about, groups, folder, missing, shutil.disk_usage(existing).free)
    for path, what in wrong.items():
        print(f"  wrong  {path}: {what}; it will be renamed to {path}.wrong and fetched again")
    if args.dry_run:
        return
    with lock(root / FOLDER / ".lock", "downloads into this folder"):
        for path in wrong:
            os.replace(root / path, f"{root / path}.wrong")
        fetch_all(folder, missing)
        shutil.rmtree(root / FOLDER / "parts", ignore_errors=True)
    print(f"\n  All files are there and have their hash. Next: python prepare.py {args.dataset} --root {args.root}")


def main(argv):
    """prepare.py download: argv is what follows. Returns the exit code."""
    arguments = options.parser(__doc__)
    arguments.prog = "prepare.py download"
    arguments.add_argument("dataset", choices=hosts.REPOSITORIES, help="which; treesatai-ts and treesatai share a "
                                                                       "folder and most of their files")
    arguments.add_argument("--root", metavar="DIR", required=True, help="where to, see README; made if need be")
    arguments.add_argument("--source", choices=hosts.SOURCES, default="huggingface",
                           help="zenodo: TreeSatAI's first release, of single dates, with published MD5 and without "
                                "the validation list; in a folder of its own")
    arguments.add_argument("--dry-run", action="store_true", help="print sizes and free disk, fetch nothing")
    args = arguments.parse_args(argv)
    if args.dataset not in hosts.SOURCES[args.source]:
        arguments.error(f"--source {args.source} has only {', '.join(hosts.SOURCES[args.source])}")
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)            # stopped from outside is like Ctrl-C
    try:
        download(args)
        return 0
    except KeyboardInterrupt:
        print(f"\nstopped; the same command goes on with what is in {Path(args.root) / FOLDER}", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
