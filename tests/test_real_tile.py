"""The real tile through every stage, at the paper's full size."""
import json

import numpy as np
import torch
import torch.nn.functional as F

import evaluate
import finetune
import pretrain
from datasets.loading import collate
from datasets.sensors import SENSORS
from datasets.series import choose_dates, clean, uncovered
from datasets.treesatai import LABELS_FILE, decibel, read_vhr
from datasets.treesatai_h5 import read_h5
from models.omnisat import OmniSat
from utils.results import read_rows

STEM = "Abies_alba_1_1005_WEFL_NLF"


def real_batch(real, keys):
    """The tile with at most 50 dates, and a second one: the same turned by 180 degrees."""
    image, series = read_vhr(real / "aerial" / f"{STEM}.tif"), read_h5(real / "sentinel-ts" / f"{STEM}_2020.h5",
                                                                       ["s2", "s1"])
    tiles = []
    for turn in (0, 2):
        tile = {"name": STEM, "label": F.one_hot(torch.tensor(0), 15).float()}
        for key in keys:
            data, days = (image, None) if key == "vhr" else clean(*series[key])
            if days is not None:
                data = decibel(data) if key == "s1" else data
                chosen = choose_dates(len(days), 50)
                data, tile[f"{key}_dates"] = data[chosen], torch.from_numpy(days[chosen])
            tile[key] = torch.rot90(torch.from_numpy(data), turn, (-2, -1))
        tiles.append(tile)
    return collate(tiles)


def full_model(batch, keys, **options):
    torch.manual_seed(0)
    model = OmniSat([SENSORS["treesatai-ts"][key] for key in keys], **options)
    statistics = {}
    for key in keys:
        x = batch[key].float().transpose(0, -3).flatten(1)
        statistics[key] = {"mean": x.mean(1).tolist(), "std": x.std(1).tolist()}
    model.standardize.set(statistics)
    return model


def test_pretraining_steps_lower_the_loss(real):
    keys = ("vhr", "s2", "s1")
    batch = real_batch(real, keys)
    assert batch["vhr"].shape == (2, 4, 300, 300) and batch["s2"].shape == (2, 50, 10, 6,
                                                                            6) and batch["s1"].shape == (2, 50, 2, 6, 6)
    model = full_model(batch, keys)
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    losses = []
    for _ in range(4):
        loss, terms = model.pretrain_loss(batch, model.draw_masks(batch, torch.Generator().manual_seed(0)))
        losses.append((loss.item(), terms["contrastive"].item()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1][0] < losses[0][0] and losses[-1][1] < losses[0][1]


def test_fine_tuning_steps_and_evaluation(real):
    for keys in (("vhr", "s2", "s1"), ("s2",)):
        batch = real_batch(real, keys)
        model = full_model(batch, keys, num_classes=15)
        optimizer = torch.optim.Adam(model.parameters(), 2e-4)
        losses = []
        for _ in range(3):
            loss = F.binary_cross_entropy_with_logits(model(batch), batch["label"])
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert losses[-1] < losses[0]
        with torch.no_grad():
            assert model.eval()(batch).shape == (2, 15)


def test_the_scripts_take_the_real_files(real, tmp_path, monkeypatch, capsys):
    """A root with the real tile, and again under other names for validation and test, through the scripts in the
    paper's sizes.
    """
    monkeypatch.setattr("datasets.band_statistics.FOLDER", tmp_path / "stats")
    root, names = tmp_path / "root", {"train": STEM, "val": "Abies_alba_1_1006_WEFL_NLF",
                                      "test": "Abies_alba_1_1007_WEFL_NLF"}
    root.mkdir()
    labels = json.loads((real / "labels" / LABELS_FILE).read_text())
    (root / LABELS_FILE).write_text(json.dumps({f"{name}.tif": labels[f"{STEM}.tif"] for name in names.values()}))
    for folder, ending in (("aerial", ".tif"), ("sentinel-ts", "_2020.h5")):
        (root / folder).mkdir()
        for name in names.values():
            (root / folder / f"{name}{ending}").symlink_to(real / folder / f"{STEM}{ending}")
    for split, name in names.items():
        (root / f"{split}_filenames.lst").write_text(f"{name}.tif\r\n")
    common = ["--dataset", "treesatai-ts", "--data-root", str(root), "--workers", "0"]
    pretrain.main([*common, "--epochs", "3", "--output", str(tmp_path / "pretrain")])
    lines = [json.loads(line) for line in (tmp_path / "pretrain" / "log.jsonl").read_text().splitlines()[1:]]
    assert lines[-1]["loss"] < lines[0]["loss"]
    finetune.main([*common, "--epochs", "2", "--epoch-steps", "1", "--output", str(tmp_path / "finetune"), "--csv",
                   str(tmp_path / "table2.csv"),
                   "--init", str(tmp_path / "pretrain" / "pretrained.pt")])
    capsys.readouterr()
    evaluate.main(["--checkpoint", str(tmp_path / "finetune" / "finetuned.pt"), "--data-root", str(root), "--workers",
                   "0"])
    (row,) = read_rows(tmp_path / "table2.csv")
    assert row["scale"] == "custom" and row["n_test"] == "1"    # not the paper's number of epochs
    assert json.loads(capsys.readouterr().out)["n"] == 1


def test_no_pixel_of_the_real_tiles_is_taken_for_uncovered(real):
    """In every series the least of S2 is 1, and radar is 0 in one polarisation alone: nothing is filled that is there.
    """
    zeros = 0
    for path in sorted(real.parent.glob("*/sentinel-ts/*.h5")):
        for key, (data, days) in read_h5(path, ["s2", "s1", "s1-des"]).items():
            cleaned, _ = clean(data, np.arange(len(days)))
            whole = np.isfinite(data).all((1, 2, 3))
            assert np.array_equal(cleaned,
                                  np.where(np.isfinite(data), data, cleaned)) and np.array_equal(cleaned[whole],
                                                                                                 data[whole])
            assert not uncovered(data).any() and (key != "s2" or data.min() == 1)
            zeros += (data == 0).sum()
    assert zeros == (16 if (real.parent / "treesatai-ts-years").is_dir() else 0)
