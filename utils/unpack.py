"""Unpacking what was downloaded as zips, beside them; the zips stay."""
import errno
import os
import re
import shutil
import stat
import zipfile
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from utils.errors import UserError
from utils.files import check_pointer, walk

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)    # errors of the place, not of the zip


def places(path, size):
    """What tells a file that was unpacked by hand: its size and its last three names, or its own where it had fewer
    folders.
    """
    parts = PurePosixPath(path).parts
    return {(parts[-3:], size), (parts[-1:], size)}


def unpack(root, skipped=()):
    """Unpack every zip below the root into the folder of its name beside it; skipped: names of folders and zips to
    leave alone.

    Returns (lines for a report, [(kind, text, zip)] of what is wrong: "broken zip", "unsafe member" or "damaged
    member"). Members that lie unpacked in their size, in their zip's folder or anywhere below the root but in that of
    another zip, are left alone. Errors: UserError if the disk is too small.
    """
    files = []
    for folder, folders, names in walk(root):
        folders[:] = [name for name in folders if name not in skipped]
        files += [os.path.join(folder, name) for name in names if name.removesuffix(".zip") not in skipped]
    zips = sorted(path for path in files if path.endswith(".zip"))
    # in the folder of another zip there may be other files of the same name and size: of a release with a zip a region
    folders = {path.removesuffix(".zip") for path in zips}
    by_hand = [path for path in files
               if zips and folders.isdisjoint(map(str, Path(path).parents)) and os.path.exists(path)]
    there = {place for path in by_hand for place in places(path, os.path.getsize(path))}
    lines, unpacked, findings = [], 0, []
    for path in zips:
        try:
            with zipfile.ZipFile(path) as archive:
                written, found = unpack_one(archive, Path(path), there)
        except (zipfile.BadZipFile, OSError) as error:
            try:
                check_pointer(path)
                why = f"{error}; download it again"
            except UserError as pointer:
                why = str(pointer).removeprefix(f"{path}: ")
            written, found = [], [("broken zip", why)]
        findings += [(kind, text, path) for kind, text in found]
        lines += [f"{path}: {len(written):,} files, {sum(written) / 1e9:.1f} GB"] if written else []
        unpacked += not written and not found
    return lines + ([f"{unpacked} zips were unpacked before"] if unpacked else []), findings


def unpack_one(archive, path, there):
    """Returns (bytes of each file written, [(kind, text)]). there: places of the files that were unpacked by hand."""
    folder, members, written, found = path.with_suffix(""), [], [], []
    for member in archive.infolist():
        name, parts = member.filename, PurePosixPath(member.filename).parts
        if member.is_dir() or "__MACOSX" in parts:
            continue
        if name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name) or stat.S_ISLNK(member.external_attr >> 16):
            found.append(("unsafe member", f"{name!r}: a link, or a name that leads out of the folder; left out"))
            continue
        place = parts[-3:] if len(parts) > 2 else parts[-1:], member.file_size
        if place not in there and not is_whole(folder / name, member):
            members.append(member)
    needed, free = sum(member.file_size for member in members), shutil.disk_usage(path.parent).free
    if needed > free:
        raise UserError(f"{path}: to unpack it {needed / 1e9:.3g} GB are needed, {free / 1e9:.3g} GB are free in "
                        f"{path.parent}")
    with tqdm(total=needed, desc=f"unpacking {path.name}", unit="B", unit_scale=True, disable=not members) as bar:
        for member in members:
            try:
                write_member(archive, member, folder / member.filename)
                written.append(member.file_size)
            except Exception as error:    # zipfile raises many kinds for damaged members
                if isinstance(error, OSError) and error.errno in DISK:
                    raise UserError(f"{path}: cannot be unpacked into {folder} ({error.strerror})") from error
                found.append(("damaged member", f"{member.filename!r}: {type(error).__name__} {error}; left out"))
            bar.update(member.file_size)
    return written, found


def is_whole(file, member):
    """Whether a member was unpacked before."""
    return os.path.isfile(file) and os.path.getsize(file) == member.file_size


def write_member(archive, member, file):
    """Unpack one member under a temporary name, then rename it; what is there is not overwritten."""
    if os.path.lexists(file):
        raise ValueError(f"{file} is there in another size")
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.part")
    try:
        with archive.open(member) as source, open(temporary, "wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
        os.rename(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
