"""What tests of embed.py and predict.py share: ten tiles of a dataset of one's own, that know where they lie, and
checkpoints of it.
"""
import numpy as np
import pytest

import embed
import finetune
import pretrain
from datasets.geotiff import write_geotiff
from datasets.sensors import SENSORS, Sensor

MODEL = ["--embed-dim", "32", "--depth", "1"]
SHORT = ["--workers", "0", "--epochs", "1", "--epoch-steps", "1", "--batch-size", "8"]
TABLE = [    # patches of 8 m; a tile has 3 x 2 of them
    Sensor("drone", "image", ("R", "G", "B"), 1, 8, files="drone/{tile}.tif"),
    Sensor("planet", "series", ("B", "NIR"), 4, 2, 366, files="planet/{tile}.npz"),
]


def options(path, root, out, *more):
    """Of embed.py, with shards of four tiles."""
    return ["--checkpoint", str(path), "--data-root", str(root), "--out", str(out), "--workers", "0", "--shard", "4",
            *more]


def embedded(path, root, out, *more):
    embed.main(options(path, root, out, *more))
    return out


def read(folder):
    """The shards of a folder as one: {name: array}."""
    files = [np.load(path) for path in sorted(folder.glob("*.npz"))]
    return {name: np.concatenate([file[name] for file in files]) for name in files[0].files if name != "about"}


PLACE = {33550: (1.0, 1.0, 0.0), 34735: (1, 1, 0, 1, 3072, 0, 1, 32632), 34737: "WGS 84 / UTM 32N|"}


@pytest.fixture(scope="module", autouse=True)
def own_table(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        for module in ("splits", "band_statistics"):
            patch.setattr(f"datasets.{module}.FOLDER", tmp_path_factory.mktemp(module))
        patch.setitem(SENSORS, "mine", {sensor.key: sensor for sensor in TABLE})
        yield


def write_mine(root, number, rows=3):
    """A tile whose upper left corner is 16 m further east than the last one's."""
    rng, place = np.random.default_rng(number), PLACE | {33922: (0, 0, 0, 600000 + 16 * number, 5800000, 0)}
    photo, series = rng.integers(255, size=(3, 8 * rows, 16)), rng.integers(1, 3000, size=(5, 2, 2 * rows, 4))
    write_geotiff(root / "drone" / f"t{number}.tif", photo.astype(np.uint8), place, "a tile")
    (root / "planet").mkdir(exist_ok=True)
    np.savez(root / "planet" / f"t{number}.npz", data=series.astype(np.int16), dates=20210101 + 100 * np.arange(5))


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """(folder with labels, folder without, pretrained.pt, finetuned.pt) of a dataset of one's own."""
    root, bare, runs = (tmp_path_factory.mktemp(name) for name in ("mine", "bare", "runs"))
    for number in range(10):
        write_mine(root, number)
    lines = [f"t{n},{'train' if n < 6 else 'val' if n < 8 else 'test'},{n % 2},{int(n % 3 == 0)}" for n in range(10)]
    (root / "labels.csv").write_text("\n".join(["tile,split,Forest,Water; open", *lines]) + "\n")
    for key in ("drone", "planet"):
        (bare / key).symlink_to(root / key)
    common = ["--dataset", "mine", "--data-root", str(root), "--output", str(runs)]
    pretrain.main([*common, *MODEL, *SHORT])
    finetune.main([*common, "--init", str(runs / "pretrained.pt"), *SHORT, "--min-epochs", "1"])
    return root, bare, runs / "pretrained.pt", runs / "finetuned.pt"
