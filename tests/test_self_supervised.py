"""SatMAE and Scale-MAE as wholes: their inputs, their pretraining and fine-tuning by the scripts."""
import json

import pytest
import torch

import finetune
import pretrain
from datasets.sensors import SENSORS
from models import build_model
from models.inputs import median, season_medians
from tests.test_scripts import SMALL
from utils import checkpoint
from utils.errors import UserError
from utils.results import read_rows

@pytest.fixture(scope="module")
def pretrained(demo, tmp_path_factory):
    """{modality: pretrained.pt} of Scale-MAE on time series."""
    folder = tmp_path_factory.mktemp("pretrain")
    for modality in ("vhr", "s2"):
        pretrain.main(["--dataset", "treesatai-ts", "--data-root", str(demo), "--model", "scalemae", "--modalities", modality, "--width",
                       "0.125", "--lr", "1e-3", "--output", str(folder / modality), *SMALL, "--epochs", "4"])
    return {modality: folder / modality / "pretrained.pt" for modality in ("vhr", "s2")}


def build(name, dataset, keys, width=0.125, num_classes=0):
    return build_model(name, [SENSORS[dataset][key] for key in keys], num_classes=num_classes, dataset=dataset, width=width)


@pytest.mark.parametrize("name, dataset, channels", [("satmae", "treesatai", 10), ("scalemae", "treesatai", 10), ("scalemae", "treesatai-ts", 40),
                                                     ("scalemae", "pastis-hd", 10), ("scalemae", "flair", 40)])
def test_a_series_becomes_an_image(name, dataset, channels):
    """Its date, its median, or the medians of its seasons, as the official configurations have it, then the size."""
    model, side = build(name, dataset, ["s2"]), {"pastis-hd": 32}.get(dataset, 6)
    dates = 1 if dataset == "treesatai" else 8
    batch = {"s2": torch.randn(2, dates, 10, side, side), "s2_dates": (45 * torch.arange(dates)).expand(2, dates),
             "s2_padded": torch.zeros(2, dates, dtype=torch.bool)}
    batch["s2_padded"][1, 2:] = True
    x, = model.inputs("s2", batch)
    assert x.shape == (2, channels, model.sides["s2"], model.sides["s2"])
    wanted = (median(batch["s2"], batch["s2_padded"]) if channels == 10 else
              season_medians(batch["s2"], batch["s2_dates"], batch["s2_padded"]))
    torch.testing.assert_close(x.mean((2, 3)), wanted.mean((2, 3)), rtol=0, atol=0.2 if side > 6 else 0.35)
    assert model.pretrain_loss(batch, model.draw_masks(batch))[0].isfinite()


def test_full_sizes():
    """facts/baselines.md: inputs of 224 and 48 pixels, 12 and 8 layers; late fusion 43.1 and 44.6 M (Scale-MAE's less two unused
    layers of 0.385 M)."""
    with torch.device("meta"):
        sat, scale = build("satmae", "treesatai", ["vhr", "s2"], 1, 15), build("scalemae", "treesatai-ts", ["vhr", "s2"], 1, 15)
        pretraining = build("satmae", "treesatai", ["s2"], 1)
    assert sat.sides == {"vhr": 224, "s2": 224} and scale.sides == {"vhr": 224, "s2": 48}
    count = [sum(p.numel() for p in model.parameters()) / 1e6 for model in (sat, scale, pretraining)]
    assert [round(count[0], 1), round(count[1] + 0.77, 1), round(count[2], 1)] == [43.1, 44.6, 36.1]
    assert len(pretraining.networks["s2"].encoder.blocks) == 12 and len(pretraining.networks["s2"].decoder.blocks) == 8


def test_pretraining_lowers_its_loss(pretrained):
    for path in pretrained.values():
        history = checkpoint.load(path, "pretrained")["history"]
        assert history[-1]["val_loss"] < history[0]["val_loss"] and set(history[0]) >= {"reconstruction", "val_reconstruction"}


def test_fine_tuning_starts_from_both_encoders(demo, pretrained, tmp_path):
    """A row of the late fusion; at its start all but the heads are the checkpoints'."""
    init = [str(path) for path in pretrained.values()]
    finetune.main(["--dataset", "treesatai-ts", "--data-root", str(demo), "--model", "scalemae", "--init", *init, "--output", str(tmp_path),
                   "--csv", str(tmp_path / "table2.csv"), *SMALL])
    row, = read_rows(tmp_path / "table2.csv")
    assert (row["model"], row["pretraining"], row["modality"], row["status"]) == ("scalemae", "self", "all", "ok")
    loaded = [(path, checkpoint.load(path, "pretrained")) for path in init]
    assert abs(float(row["pretrain_hours"]) - sum(saved["hours"] for _, saved in loaded)) < 1e-3
    model = build("scalemae", "treesatai-ts", ["vhr", "s2"], num_classes=15)
    checkpoint.start_from(model, loaded)
    for name, value in model.state_dict().items():
        if not name.startswith("head"):
            key = "vhr" if ".vhr." in name else "s2"
            assert torch.equal(value, loaded[["vhr", "s2"].index(key)][1]["weights"][name]), name


@pytest.mark.parametrize("options, culprit", [
    (["--model", "scalemae", "--init", "s2"], "pretrained on s2, not on vhr"),
    (["--model", "satmae", "--dataset", "treesatai", "--init", "s2", "--modalities", "s2"], "pretrained scalemae, not satmae"),
    (["--init", "s2"], "pretrained scalemae, not omnisat"),
    (["--model", "scalemae", "--init", "s2", "--modalities", "s2", "--width", "0.25"], "--width 0.25: .* has 0.125"),
    (["--model", "scalemae", "--init", "imagenet", "--modalities", "s2"], "starts from its own pretrained.pt, or none")])
def test_wrong_starts_are_told(demo, pretrained, tmp_path, options, culprit):
    options = [str(pretrained[word]) if word == "s2" and options[i - 1] == "--init" else word for i, word in enumerate(options)]
    with pytest.raises(UserError, match=culprit):
        finetune.main(["--dataset", "treesatai-ts", "--data-root", str(demo), "--output", str(tmp_path), "--workers", "0", *options])


@pytest.mark.parametrize("options, culprit", [
    (["--model", "satmae", "--modalities", "all"], "satmae is not pretrained on all of treesatai, but on vhr or s2 of treesatai"),
    (["--model", "satmae", "--modalities", "s2", "--ablation", "no_contrastive"], "--ablation does nothing in satmae"),
    (["--width", "0.5"], "--width does nothing in omnisat")])
def test_wrong_pretrainings_are_told(demo, tmp_path, options, culprit):
    with pytest.raises(UserError, match=culprit):
        pretrain.main(["--dataset", "treesatai", "--data-root", str(demo), "--output", str(tmp_path), *options])


def test_the_log_names_the_method(pretrained):
    header = json.loads((pretrained["s2"].parent / "log.jsonl").read_text().splitlines()[0])
    assert header["options"]["model"] == "scalemae"
