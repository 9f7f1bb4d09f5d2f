"""Features in files: a shard of tiles each, or a GeoTIFF a tile, in a folder that says what they are features of."""
import importlib.util
import json
from pathlib import Path, PurePath

import numpy as np

from datasets.geotiff import coarser, read_place, write_geotiff
from utils.errors import UserError
from utils.files import lock, written_whole

FORMATS = {"npz": "arrays of numpy",
           "parquet": "a row a tile, of all levels but dates (needs pyarrow)",
           "geotiff": "of level patch: a file a tile in place of one a shard, whose pixels are patches and whose bands "
                      "are the D numbers of f*, on the ground where the tile's own tif says it is"}
_locks = []    # of the folders that this process writes in, kept until it ends


# ---- kinds of files -------------------------------------------------------------------------------------------------

def write_npz(path, names, arrays, about):
    """Arrays by name, "tile" (N,) and "about", JSON."""
    with written_whole(path, "wb") as file:
        np.savez(file, tile=np.array(names), about=json.dumps(about), **arrays)


def write_parquet(path, names, arrays, about):
    """Columns tile, features (a tile's numbers in C order) and present; about and a tile's shape with the schema."""
    import pyarrow
    from pyarrow import parquet
    x = arrays["features"]
    columns = {"tile": pyarrow.array(names), "features": pyarrow.FixedSizeListArray.from_arrays(x.ravel(), x[0].size)}
    if "present" in arrays:
        columns["present"] = pyarrow.array(arrays["present"].tolist())
    table = pyarrow.table(columns)
    table = table.replace_schema_metadata({"about": json.dumps(about), "shape": json.dumps(x.shape[1:])})
    with written_whole(path, "wb") as file:
        parquet.write_table(table, file)


def check_parquet():
    """Errors: UserError if the package is not there."""
    if importlib.util.find_spec("pyarrow") is None:
        raise UserError("--format parquet needs pyarrow, which is not installed: pip install pyarrow, or choose npz")


def place_of(dataset, i):
    """Where tile i lies, by the first of its sensors whose tif says so: its tags, the first row and column of the tile
    in that file, and the rows and columns of a patch. Errors: UserError if none does.
    """
    for key, sensor in dataset.sensor.items():
        path = dataset.paths[key][i]
        if path is None or not str(path).lower().endswith((".tif", ".tiff")):
            continue
        tags, size = read_place(path)
        if not tags:
            continue
        if hasattr(dataset, "is_part") and dataset.is_part(i):
            corner = [dataset.window(i, pixels, axis).start for axis, pixels in enumerate(size)]
        else:                                                                 # of larger files the middle is read
            corner = [(pixels - rows * sensor.patch) // 2 for pixels, rows in zip(size, dataset.grid)]
        return tags, corner, (sensor.patch, sensor.patch)
    raise UserError(f"{dataset.names[i]}: no tif of {', '.join(dataset.sensor)} says where it lies; a GeoTIFF cannot "
                    "be written without that")


def tif_of(folder, name):
    """The path of a tile's GeoTIFF. Errors: UserError for a name that leads out of the folder."""
    path = PurePath(f"{name.removesuffix('.tif')}.tif")
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{name}: a tile's name that leads out of {folder}; rename it")
    return Path(folder, path)


# ---- a folder of them -----------------------------------------------------------------------------------------------

class Shards:
    """The files of a folder. kind: of FORMATS. size: tiles a shard. about: what they are features of."""

    def __init__(self, folder, kind, dataset, size, about):
        self.folder, self.kind, self.dataset, self.about = Path(folder), kind, dataset, about
        self.indices = [list(range(at, min(at + size, len(dataset)))) for at in range(0, len(dataset), size)]

    def pools(self, numbers, size):
        """{number: its tiles, cut into pools of so many} of some shards."""
        return {number: [self.indices[number][at:at + size] for at in range(0, len(self.indices[number]), size)]
                for number in numbers}

    def paths(self, number):
        """The files of a shard."""
        if self.kind == "geotiff":
            return [tif_of(self.folder, self.dataset.names[i]) for i in self.indices[number]]
        return [self.folder / f"{number:05d}.{self.kind}"]

    def is_there(self, number):
        """Whether all files of a shard are."""
        return all(path.exists() for path in self.paths(number))

    def write(self, number, arrays, grid):
        """The files of a shard. grid: rows and columns of patches, None of a compared method."""
        names, about = [self.dataset.names[i] for i in self.indices[number]], self.about | {"grid": grid}
        if self.kind == "npz":
            write_npz(*self.paths(number), names, arrays, about)
        elif self.kind == "parquet":
            write_parquet(*self.paths(number), names, arrays, about)
        else:
            for i, path, name, f in zip(self.indices[number], self.paths(number), names, arrays["features"]):
                image = f.reshape(*grid, -1).transpose(2, 0, 1)
                write_geotiff(path, image, coarser(*place_of(self.dataset, i)), json.dumps(about | {"tile": name}))


def open_folder(folder, run, source):
    """Take the folder for this process, and note in about.json what is written there. run: what a later start must
    repeat. source: provenance.

    Errors: UserError if another process has it, or if it was begun with something else.
    """
    folder, path, run = Path(folder), Path(folder, "about.json"), json.loads(json.dumps(run))
    _locks.append(lock(folder / ".lock", "writes features there"))
    for half in folder.rglob(".*.tmp"):                                       # written when a run was killed
        half.unlink()
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))["run"]
            others = [name for name in run if found.get(name) != run[name]]
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: not what embed.py writes; choose another --out") from error
        if others:
            raise UserError(f"{folder} was begun with another {', '.join(others)}; choose another --out, or delete it")
    else:
        with written_whole(path) as file:
            json.dump({"run": run, "source": source}, file, indent=1)
