"""Ways to damage a file, for tests/fuzz.py: what disks, networks, programs and hands do to one."""
import hashlib
import json
import os
import re
import shutil
import stat
import warnings
import zipfile

import h5py
import numpy as np
import tifffile

from datasets.sentinel1 import scrambled


ORBITS = {"sen-1-asc-data": "s1", "sen-1-des-data": "s1-des"}


class Bomb:
    """Leaves a file behind if it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


# ---- bytes and places, for all files ---------------------------------------------------------------------------------

def flipped(content, rng, first, last):
    """1 to 16 random bytes between first and last changed."""
    content = bytearray(content)
    for at in rng.integers(first, max(first + 1, min(last, len(content))), rng.integers(1, 17)):
        content[at] ^= int(rng.integers(1, 256)) if rng.random() < 0.5 else 1 << int(rng.integers(8))
    return bytes(content)


def zeroed(content, rng):
    at = int(rng.integers(len(content)))
    return content[:at] + bytes(len(content[at:at + 512])) + content[at + 512:]


BYTES = {
    "cut off": lambda content, rng: content[:rng.integers(1, len(content))],
    "emptied": lambda content, rng: b"",
    "bytes flipped": lambda content, rng: flipped(content, rng, 0, len(content)),
    "bytes of the head flipped": lambda content, rng: flipped(content, rng, 0, 512),
    "bytes of the first 4 kB flipped": lambda content, rng: flipped(content, rng, 0, 4096),
    "a block of zeros": zeroed,
    "twice in one file": lambda content, rng: content + content,
}


def place(path, what):
    """Something else in place of a file."""
    if what == "unreadable":
        path.chmod(0)
        return
    if what == LOOP:
        path.with_name("loop").symlink_to(path.parent.parent)
        return
    path.unlink()
    if what == "a directory":
        path.mkdir()
    elif what != "missing":
        path.symlink_to(path if what == "a link to itself" else path.with_name("nowhere"))


LOOP = "a loop of folders beside it"
PLACES = ("missing", "a directory", "a link to itself", "a link to nowhere", "unreadable", LOOP)


# ---- arrays: npy, npz, tif, h5 ---------------------------------------------------------------------------------------

def spoilt(array, value, rng):
    """The array as float numbers, with a value at a random place: along each axis one or all."""
    array = array.astype(array.dtype if array.dtype.kind == "f" else np.float32)
    where = tuple(slice(None) if rng.random() < 0.4 else int(rng.integers(side)) for side in array.shape)
    array[where] = value
    return array


def uncovered(array, rng):
    """0 in all bands of a part of the pixels, on one date or all."""
    array, dates = array.copy(), slice(None) if rng.random() < 0.5 else int(rng.integers(len(array)))
    array[dates, ..., :int(rng.integers(1, array.shape[-1] + 1))] = 0
    return array


def structured(array):
    return np.zeros(array.shape, [("a", array.dtype), ("b", np.int8)])


ARRAYS = {
    "float64": lambda a, rng: a.astype(np.float64), "float16": lambda a, rng: a.astype(np.float16),
    "int8": lambda a, rng: a.astype(np.int8), "uint16": lambda a, rng: a.astype(np.uint16), "int64": lambda a,
    rng: a.astype(np.int64),
    "big-endian": lambda a, rng: a.astype(a.dtype.newbyteorder(">")), "complex": lambda a, rng: a.astype(np.complex64),
    "bool": lambda a, rng: a > 0, "bytes": lambda a, rng: a.astype("S6"), "text": lambda a, rng: a.astype("U6"),
    "float32": lambda a, rng: a.astype(np.float32), "high uint16": lambda a, rng: a.astype(np.uint16) | (1 << 15),
    "not covered": lambda a, rng: uncovered(a, rng),
    "uint32": lambda a, rng: a.astype(np.uint32), "structured": lambda a, rng: structured(a),
    "Fortran order": lambda a, rng: np.asfortranarray(a), "one number": lambda a, rng: a.ravel()[0],
    "no dates": lambda a, rng: a[:0], "no pixels": lambda a, rng: a[..., :0], "a date less": lambda a, rng: a[1:],
    "a date more": lambda a, rng: np.concatenate([a, a[:1]]), "fewer pixels": lambda a, rng: a[..., :-1],
    "more pixels": lambda a, rng: np.concatenate([a, a[..., :1]], -1), "one dimension more": lambda a, rng: a[None],
    "one less": lambda a, rng: a[0], "axes turned round": lambda a, rng: a.T,
    "a band more": lambda a, rng: np.concatenate([a, a[:, :1]], 1), "a band less": lambda a, rng: a[:, 1:],
    "NaN": lambda a, rng: spoilt(a, np.nan, rng), "infinity": lambda a, rng: spoilt(a, np.inf, rng),
    "-infinity": lambda a, rng: spoilt(a, -np.inf, rng), "1e38": lambda a, rng: spoilt(a, 1e38, rng),
    "-5": lambda a, rng: spoilt(a, -5, rng),
    "mixed with nodata": lambda a, rng: spoilt(a, -rng.integers(1000, 9999), rng).astype(a.dtype),
    "1e300": lambda a, rng: spoilt(a.astype(np.float64), 1e300, rng),
    "zeros": lambda a, rng: spoilt(a, 0, rng).astype(a.dtype), "only zeros": lambda a, rng: np.zeros_like(a),
}


def changed(array, rng):
    """(what was done, the array) with one of ARRAYS that can be done to it."""
    while True:
        what = str(rng.choice(list(ARRAYS)))
        try:
            with np.errstate(all="ignore"):
                return what, ARRAYS[what](array, rng)
        except (ValueError, IndexError, TypeError):    # an axis that it does not have, or text that is no number
            continue


def damage_npy(path, rng, bomb):
    if rng.random() < 0.06:
        np.save(path, np.array([Bomb(bomb)], dtype=object), allow_pickle=True)
        return "a pickle"
    if rng.random() < 0.06:
        content = path.read_bytes()
        path.write_bytes(content.replace(b"(", b"(" * int(rng.integers(2, 3000)), 1) if rng.random() < 0.5 else
                         content.replace(b"(", b"(9999999", 1))                                   # as large as a disk
        return "another shape in the header"
    what, array = changed(np.load(path), rng)
    np.save(path, array)
    return what


def damage_npz(path, rng, bomb):
    with np.load(path) as file:
        arrays = dict(file)
    name = str(rng.choice(list(arrays)))
    what = str(rng.choice(["changed", "changed", "changed", "missing", "renamed", "a pickle", "an npy file"]))
    if what == "an npy file":
        with open(path, "wb") as file:
            np.save(file, arrays[name])
        return what
    array = arrays.pop(name)
    if what == "changed":
        what, arrays[name] = changed(array, rng)
    elif what == "renamed":
        arrays[f"../{name}"] = array
    elif what == "a pickle":
        arrays[name] = np.array([Bomb(bomb)], dtype=object)
    (np.savez if rng.random() < 0.5 else np.savez_compressed)(path, **arrays)
    return f"{name}: {what}"


def damage_tif(path, rng, bomb):
    image = tifffile.imread(path)
    image = image.transpose(2, 0, 1) if image.ndim == 3 else image
    while True:
        what, array = changed(image, rng) if rng.random() < 0.7 else ("another layout", image)
        if not array.size:                                                       # tifffile writes no such files
            continue
        planes = "separate" if rng.random() < 0.4 else "contig"
        cut = [{}, {"rowsperstrip": int(rng.integers(1, 70))},
               {"tile": (16 * int(rng.integers(1, 17)),) * 2}][rng.integers(3)]
        try:
            tifffile.imwrite(path, array if planes == "separate" or array.ndim != 3 else np.moveaxis(array, 0, -1),
                             photometric="minisblack", metadata=None, compression=rng.choice([None, "lzw", "zlib"]),
                             planarconfig=planes if array.ndim == 3 else None, **cut)
            return what + leave_out(path, rng) if rng.random() < 0.3 else what
        except (ValueError, TypeError, LookupError, RuntimeError):    # a shape or type that images do not have
            continue


def leave_out(path, rng):
    """A strip or tile is left out as in sparse files, with neither bytes nor place, or damaged: with one of the two."""
    what = str(rng.choice(["sparse", "sparse", "no place", "no size"]))
    with tifffile.TiffFile(path, mode="r+") as file:
        page = file.pages[0]
        at = int(rng.integers(len(page.dataoffsets)))
        for codes, lost in (((273, 324), ("sparse", "no place")), ((279, 325), ("sparse", "no size"))):
            tag = page.tags.get(codes[page.is_tiled])
            values = list(tag.value) if isinstance(tag.value, (tuple, list)) else [tag.value]
            if what in lost:
                values[at] = 0
                tag.overwrite(values if len(values) > 1 else values[0])
    return f", {what}"


def scramble(path, name):
    """An orbit (of ORBITS) as the 2017 files of the release have it."""
    with h5py.File(path, "r+") as file:
        file[name][...] = scrambled(file[name][()], ORBITS[name])
    return f"{name}: scrambled"


def damage_h5(path, rng, bomb):
    if rng.random() < 0.1:
        return scramble(path, str(rng.choice(list(ORBITS))))
    with h5py.File(path, "r+") as file:
        name = str(rng.choice(list(file)))
        values = file[name].asstr()[()].astype("S") if name.endswith("products") else file[name][()]
        what = str(rng.choice(["changed", "changed", "changed", "missing", "a group", "a link to itself",
                               "another file", "compressed",
                               "a huge shape", "a wrong date", "no text"]))
        del file[name]
        if what == "changed":
            what, values = changed(values, rng)
            file[name] = values.astype("S") if values.dtype.kind == "U" else values
        elif what == "a group":
            file.create_group(name)
        elif what == "a link to itself":
            file[name] = h5py.SoftLink(f"/{name}")
        elif what == "another file":
            file[name] = h5py.ExternalLink("/dev/zero" if rng.random() < 0.5 else path.name, name)
        elif what == "compressed":
            file.create_dataset(name, data=values, compression="gzip", chunks=True, shuffle=True)
        elif what == "a huge shape":                                             # which takes no room in the file
            dates, image = int(rng.choice([10**6, 10**9, 10**12])), values.shape[1:]
            file.create_dataset(name, (dates, *image), values.dtype, chunks=(1, *image))
        elif what == "a wrong date" and name.endswith("products"):
            at, start = int(rng.integers(len(values))), 11 if "sen-2" in name else 17
            day = rng.choice([b"20200230", b"20201301", b"20200000", b"00000000", b"2020-1-1", b"20190229",
                              b"20200115"])
            values[at] = values[at][:start] + day + values[at][start + 8:]
            file[name] = values
        elif what == "no text":
            file[name] = np.array([b"", b"\xff\xfe\x00", b"x"])[rng.integers(0, 3, len(values))]
    return f"{name}: {what}"


def damage_zip(path, rng, bomb):
    """A member more that must not be unpacked, or not so."""
    outside = str(path.parent.parent / "outside.txt")
    names = ["../outside.txt", "../../outside.txt", "a/../../../outside.txt", outside, "//outside.txt",
             "..\\..\\outside.txt", "..",
             ".", "a//b/../c.txt", "C:\\outside.txt", "a/0.txt", "a", "a/0.txt/b", "x" * 300, "a/" * 900 + "b",
             "nul\0/../../outside.txt", "é/ü.txt", "\u202e/../b", " ", "a/.. /b", "~/b"]
    what = str(rng.choice(["a name", "a name", "a link", "a link and a file through it", "a size", "a wrong sum",
                           "encrypted",
                           "compression"]))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")                                          # a name twice
        if what == "a name":
            what = names[rng.integers(len(names))]
            archive.writestr(what, b"more")
        elif what.startswith("a link"):
            link = zipfile.ZipInfo("link")
            link.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(link, str(path.parent.parent))
            if what != "a link":
                archive.writestr("link/outside.txt", b"more")
        else:                                                                    # what the list of members says of one
            member = archive.infolist()[rng.integers(len(archive.infolist()))]
            archive._didModify = True                                            # so that the list is written
            if what == "a size":
                member.file_size = int(rng.choice([0, 1, 2**31, 2**40, 2**62]))
            elif what == "a wrong sum":
                member.CRC ^= 1
            elif what == "encrypted":
                member.flag_bits |= 1
            else:
                member.compress_type = int(rng.choice([1, 9, 12, 14, 99]))
    return what


# ---- text: lists, tables, json ---------------------------------------------------------------------------------------

def edited(content, rng):
    """(what was done, content) of a file of lines."""
    lines = content.decode().splitlines()
    at = int(rng.integers(len(lines)))
    edits = {
        "a line twice": [*lines, lines[at]], "a line missing": lines[:at] + lines[at + 1:],
        "an unknown tile": [*lines, "Nowhere_1.tif"],
        "blank lines": [line + "\n\n" for line in lines], "a long line": [*lines, "x" * 10**6], "a digit": None,
        "half a line": [*lines[:at], lines[at][:len(lines[at]) // 2], *lines[at + 1:]], "other order": lines[::-1],
        "quotes": [*lines[:at], '"' + lines[at], *lines[at + 1:]]}
    what = str(rng.choice(list(edits)))
    if what == "a digit":
        digits = [n for n, byte in enumerate(content) if chr(byte).isdigit()] or [0]
        n = int(rng.choice(digits))
        return what, content[:n] + str(rng.integers(10)).encode() + content[n + 1:]
    return what, "\n".join(edits[what]).encode() + b"\n"


def encoded(content, rng):
    """(what was done, content) of a text file in a wrong encoding."""
    at = int(rng.integers(len(content)))
    forms = {"UTF-16": content.decode().encode("utf-16"),
             "Latin-1": content[:at] + "é".encode("latin-1") + content[at:],
             "NUL": content[:at] + b"\0" + content[at:], "a byte order mark": b"\xef\xbb\xbf" + content,
             "old Mac's line ends": content.replace(b"\r\n", b"\r").replace(b"\n", b"\r")}
    what = str(rng.choice(list(forms)))
    return what, forms[what]


def forged(content, rng):
    """A cache of datasets/splits whose lines were changed and that has their hash all the same."""
    while (found := edited(content, rng))[0] not in ("a line twice", "a line missing", "an unknown tile",
                                                     "other order"):
        pass
    what, content = found
    header, *lines = content.decode().split("\n")[:-1]
    header = header.rsplit(" ", 1)[0] + " " + hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return f"{what}, hash forged", "\n".join([header, *lines, ""]).encode()


def restructured(content, rng):
    """(what was done, JSON) with a random part of it gone, renamed or replaced."""
    if rng.random() < 0.1:
        return "nested", b"[" * 10**5
    root = {"all": json.loads(content)}
    holder, key = root, "all"
    while isinstance(holder[key], (dict, list)) and holder[key] and rng.random() < 0.8:
        holder = holder[key]
        key = str(rng.choice(list(holder))) if isinstance(holder, dict) else int(rng.integers(len(holder)))
    others = [None, True, -1, 0, 0.5, 1e308, 10**400, float("nan"), float("inf"), "", "text", "20190101", [], {}, [[]],
              {"a": 1},
              [1, 2, 3]]
    what = str(rng.choice(["gone", "renamed", "replaced", "replaced", "replaced"]))
    if what == "replaced" or holder is root:
        holder[key] = others[rng.integers(len(others))]
        what = f"replaced by {str(holder[key])[:20]}"
    elif what == "gone" or isinstance(holder, list):
        del holder[key]
    else:
        holder[f"{key}x"] = holder.pop(key)
    return f"{key} {what}", json.dumps(root["all"]).encode()


# ---- one file --------------------------------------------------------------------------------------------------------

FORMATS = {".npy": damage_npy, ".npz": damage_npz, ".tif": damage_tif, ".h5": damage_h5, ".zip": damage_zip}


def damage(path, rng, bomb):
    """Damage a file in one way drawn by rng; returns what was done. bomb: a file that comes into being if a pickle is
    loaded.
    """
    family = rng.choice(["bytes", "places", "format"], p=[0.4, 0.15, 0.45])
    if family == "bytes":
        what = str(rng.choice(list(BYTES)))
        path.write_bytes(BYTES[what](path.read_bytes(), rng))
    elif family == "places":
        what = str(rng.choice(PLACES))
        place(path, what)
    elif path.suffix in FORMATS:
        what = FORMATS[path.suffix](path, rng, bomb)
    else:
        ways = [encoded, edited] + [forged] * bool(re.match(rb"# .*\d tiles", path.read_bytes()))
        ways = [encoded, restructured, restructured] if path.suffix in (".json", ".geojson") else ways
        what, content = ways[rng.integers(len(ways))](path.read_bytes(), rng)
        path.write_bytes(content)
    return what


def remove(path):
    """Whatever lies at a path."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()
