"""Fixtures: the real files beside the project, and a hand-made miniature of TreeSatAI whose every value is known."""
import json
import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import torch

from datasets.simulated.demo import write_treesatai
from tests.forked import start_forks

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))    # of run_tests.sh: one
start_forks()
REAL = Path(__file__).parent.parent.parent / "shared" / "real" / "treesatai-ts"


@pytest.fixture(scope="session")
def real():
    """The folder of real TreeSatAI files."""
    if not REAL.is_dir():
        pytest.skip("the real files are not beside the project (../shared/real)")
    return REAL


@pytest.fixture(scope="module")
def one_thread():
    """As under torchrun: with another number of threads sums are cut elsewhere. Small models gain nothing from more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def demo_tiles(tmp_path_factory):
    """A small TreeSatAI of simulated tiles, series and single dates, written once; tests get copies of it."""
    return write_treesatai(tmp_path_factory.mktemp("demo") / "treesatai", train=24, test=10, seed=3)


@pytest.fixture(scope="module")
def demo(demo_tiles, tmp_path_factory):
    """Those of a file of tests."""
    return shutil.copytree(demo_tiles, tmp_path_factory.mktemp("demo") / "treesatai")


def products(days, sensor):
    """Product names, as bytes, for days of 2021 (not a leap year)."""
    dates = [np.datetime64("2020-12-31") + np.timedelta64(int(day), "D") for day in days]
    text = [str(date).replace("-", "") for date in dates]
    return [(f"S1A_IW_GRDH_1SDV_{d}T170841_{d}T170906_030639_0382D5_360A" if sensor == 1 else
             f"S2A_MSIL2A_{d}T102421_N0213_R065_T32UNC_{d}T115419").encode() for d in text]


def write_h5(path, **changes):
    """A series file of TreeSatAI-TS. changes: datasets in place of the default ones, None to leave one out."""
    rng = np.random.default_rng(0)
    content = {"sen-2-data": rng.integers(1, 9000, (4, 10, 6, 6)).astype(np.float32), "sen-2-days": [10, 20, 30, 40],
               "sen-2-masks": np.zeros((4, 2, 6, 6), np.float32)}
    for orbit, days in (("asc", [5, 11, 17]), ("des", [6, 12])):
        content |= {f"sen-1-{orbit}-data": rng.uniform(0.01, 0.3, (len(days), 2, 6, 6)).astype(np.float32),
                    f"sen-1-{orbit}-days": days}
    content |= {name.replace("_", "-"): value for name, value in changes.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, value in content.items():
            if value is None:
                continue
            if name.endswith("-days"):
                names = np.array(products(value, int(name[4])), dtype=object)
                file.create_dataset(name.replace("days", "products"), data=names, dtype=h5py.string_dtype())
            else:
                file[name] = value
    return path


def write_tif(path, shape=(304, 304, 4), value=None, dtype=np.uint8):
    """An aerial or Sentinel image; values count up unless given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = (np.arange(np.prod(shape)) % 251).reshape(shape) if value is None else np.broadcast_to(value, shape)
    tifffile.imwrite(path, image.astype(dtype), photometric="minisblack", planarconfig="contig")
    return path


# in training and validation
TILES = ["Abies_alba_1_1005_WEFL_NLF.tif", "Betula_spec._1_15679_WEFL_NLF.tif", "Picea_abies_3_6925_BI_NLF.tif"]
TEST_TILE = "Fagus_sylvatica_5_88_WEFL_NLF.tif"


@pytest.fixture
def release(tmp_path):
    """A miniature of the release: two tiles in train, one in val, one in test; one of train has no label."""
    for tile in (*TILES, TEST_TILE):
        write_tif(tmp_path / "aerial" / tile)
        write_h5(tmp_path / "sentinel-ts" / f"{tile[:-4]}_2021.h5")
        write_tif(tmp_path / "sentinel" / "s1" / "60m" / tile, (6, 6, 3), [-9.0, -15.0, 6.0], np.float32)
        write_tif(tmp_path / "sentinel" / "s1" / "200m" / tile, (20, 20, 3), 0, np.float32)
        write_tif(tmp_path / "sentinel" / "s2" / "60m" / tile, (6, 6, 12), range(1, 13), np.uint16)
    lists = {"train": TILES[::2], "val": TILES[1:2], "test": [TEST_TILE]}
    (tmp_path / "split").mkdir()
    for split, names in lists.items():
        (tmp_path / "split" / f"{split}_filenames.lst").write_bytes("".join(f"{n}\r\n" for n in names).encode())
    labels = {TILES[0]: [["Abies", 0.9], ["Picea", 0.07]],
              TILES[1]: [["Betula", 0.5], ["Betula", 0.0], ["Fagus", 0.0701]],
              TILES[2]: [["Picea", 0.04], ["Picea", 0.05]], TEST_TILE: [["Fagus", 0.9]]}
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "TreeSatBA_v9_60m_multi_labels.json").write_text(json.dumps(labels))
    return tmp_path
