"""The compared methods as wholes: their cells, their sizes, what they see, and their way through the scripts. Those
that begin pretrained have tests of their own, test_self_supervised.py.
"""
import csv
from pathlib import Path

import pytest
import torch

import finetune
from datasets.sensors import SENSORS
from engine import checkpoint, starts
from engine.options import chosen_modalities
from engine.training import Training
from evaluate import score_test
from models import methods
from models.compared.resnet import ResNet
from models.compared.utt import Fusion, mean_mlp, place
from models.methods import build_model
from tests.test_scripts import SMALL, torchrun
from utils import weights
from utils.errors import UserError
from utils.results import SCORED, read_rows

ROOT = Path(__file__).parent.parent
CLASSES = {"treesatai": 15, "treesatai-ts": 15, "pastis-hd": 18, "flair": 13}
SIDES = {"treesatai": 6, "treesatai-ts": 6, "pastis-hd": 16, "flair": 6}    # of series, pixels
METHODS = {name: method for name, method in methods.METHODS.items() if name != "omnisat"}
CELLS = [(name, dataset, modality) for name, method in METHODS.items() for dataset,
         rates in method.rates.items() for modality in rates]
TRAINED = [cell for cell in CELLS if not METHODS[cell[0]].is_fitted]


def build(name, dataset, modality, width=1.0):
    """A compared method, its statistics 0 and 1."""
    sensors = [SENSORS[dataset][key] for key in METHODS[name].sees.get(modality, chosen_modalities(modality, dataset))]
    sensors = [sensor.with_all_bands() for sensor in sensors] if METHODS[name].all_bands else sensors
    return build_model(name, sensors, num_classes=CLASSES[dataset], dataset=dataset, width=width)


def make_batch(model, tiles=3, dates=4):
    """Random tiles; the second one's series have their last date padded."""
    batch, dates = {"label": torch.ones(tiles, 1)}, 1 if model.dataset == "treesatai" else dates
    for key, sensor in model.sensors.items():
        side = SIDES[model.dataset] if sensor.kind == "series" else getattr(getattr(model.networks, key, None), "side",
                                                                            100)
        shape = (len(sensor.bands), side, side)
        batch[key] = torch.randn(tiles, *shape) if sensor.kind == "image" else torch.randn(tiles, dates, *shape)
        if sensor.kind == "series":
            batch[f"{key}_dates"] = torch.arange(dates).expand(tiles, dates) * 90 + 10
            batch[f"{key}_padded"] = torch.zeros(tiles, dates, dtype=torch.bool)
            batch[f"{key}_padded"][1:2, -1] = dates > 1
    return batch


# ---- the paper's cells and sizes ------------------------------------------------------------------------------------

def test_cells_are_the_papers():
    """137 cells; a part starts from ImageNet in the late fusions with a ResNet (starred) and where the column says so.
    """
    with open(ROOT / "results" / "paper" / "cells.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["model"] in METHODS]
    assert len(rows) == 137
    assert sorted({(row["model"], row["dataset"], row["modality"]) for row in rows}) == sorted(CELLS)
    for row in rows:
        method = METHODS[row["model"]]
        assert method.pretraining == row["pretraining"]
        is_image = row["pretraining"] == "imagenet" and "vhr" in chosen_modalities(row["modality"], row["dataset"])
        # whose images are statistics
        expected = (row["late_fusion"] == "yes" or is_image and row["model"] != "lightgbm" or
                    row["pretraining"] == "external")
        assert (row["modality"] in method.published) == expected, row
        assert method.init == ("external" if row["pretraining"] == "external" else "imagenet")


SIZES = {    # M, of facts/baselines.md; what differs by more than its last digit is in PAPER.md
    "pse treesatai s2": 0.029, "pse treesatai s1": 0.028, "pse treesatai all": 23.9, "vit treesatai vhr": 13.0,
    "vit treesatai s2": 0.80, "vit treesatai s1": 0.80, "vit treesatai all": 14.7, "mlp treesatai s2": 1.29,
    "mlp treesatai s1": 1.12, "mlp treesatai all": 26.3, "resnet50 treesatai vhr": 23.5, "resnet50 pastis-hd vhr": 23.5,
    "utae pastis-hd s2": 0.37, "utae pastis-hd s1": 0.37, "utae pastis-hd all": 24.5, "utt treesatai-ts vhr": 24.4,
    "utt treesatai-ts all": 27.0, "utt pastis-hd vhr": 24.4, "utt flair vhr": 24.4,
    "croma treesatai s1": 11.9, "croma treesatai s2": 22.8, "croma treesatai all": 48.8, "croma pastis-hd s1": 12.1,
    "croma pastis-hd s2": 23.5, "croma pastis-hd all": 49.8, "dofa treesatai vhr": 111, "dofa pastis-hd all": 111}


@pytest.mark.parametrize("cell, expected", SIZES.items())
def test_sizes(cell, expected):
    """To a unit of the last digit that the facts give."""
    with torch.device("meta"):
        size = sum(p.numel() for p in build(*cell.split()).parameters()) / 1e6
    digits = 3 if expected < 0.1 else 2 if expected < 2 else 1 if expected < 100 else 0
    assert abs(size - expected) <= 10 ** -digits * 1.01


# ---- one batch ------------------------------------------------------------------------------------------------------

# parameters that have no part in a cell: buckets of distances that 6 x 6 patches do not have; what makes one sensor's
# vector; groups
# of other sensors, and the table of months, which is fixed
WITHOUT = {**{f"vit {modality}": ["relative"] for modality in ("vhr", "s2", "s1", "all")},
           "croma all": ["croma.vectors"],
           "presto s1": ["patch_embed.S2", "patch_embed.NDVI", "ERA5", "SRTM", "dw_embed", "month_embed"],
           "presto s2": ["patch_embed.S1", "ERA5", "SRTM", "dw_embed", "month_embed"]}


@pytest.mark.parametrize("cell", TRAINED, ids=" ".join)
def test_a_step_and_an_evaluation(cell):
    """Gradients reach every parameter; in evaluation tiles are not mixed and padding does not matter."""
    torch.manual_seed(0)
    model = build(*cell, width=0.25)
    batch = make_batch(model)
    outputs = model.all_logits(batch)
    sum(logits.square().sum() for logits in outputs).backward()
    without = {name for name,
               p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()}
    without = {name for name in without
               if not any(part in name for part in WITHOUT.get(" ".join((cell[0], cell[2])), ()))}
    assert not without
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model.all_logits(batch)
    sum(logits.float().square().sum() for logits in outputs).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    model.eval()
    with torch.no_grad():
        logits = model(batch)
        assert logits.shape == (3, CLASSES[cell[1]]) and logits.isfinite().all()
        alone = model({key: value[1:2] for key, value in batch.items()})
        torch.testing.assert_close(alone, logits[1:2], rtol=0, atol=1e-4)
        for key in [key for key, sensor in model.sensors.items() if sensor.kind == "series" and cell[1] != "treesatai"]:
            batch[key] = torch.cat([batch[key], torch.full_like(batch[key][:, :2], 9.)], 1)
            batch[key][1, 3] = -9.
            batch[f"{key}_dates"] = torch.nn.functional.pad(batch[f"{key}_dates"], (0, 2))
            batch[f"{key}_padded"] = torch.nn.functional.pad(batch[f"{key}_padded"], (0, 2), value=True)
        torch.testing.assert_close(model(batch), logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name, dataset, modality", [("pse", "treesatai", "s2"), ("pse_ltae", "treesatai-ts", "s1"),
                                                     ("utae", "pastis-hd", "s1"), ("vit", "treesatai", "s1"),
                                                     ("satmae", "treesatai", "s2"),
                                                     ("croma", "pastis-hd", "all"), ("dofa", "pastis-hd", "all"),
                                                     ("presto", "treesatai", "s2")])
def test_a_pool_of_one_tile_without_any_date(name, dataset, modality):
    """Both are legal: everything stays finite."""
    model = build(name, dataset, modality, width=0.25)
    batch = make_batch(model, tiles=1)
    for key in [key for key in batch if key.endswith("_padded")]:
        batch[key][:] = True
    loss = model(batch).square().sum()
    loss.backward()
    assert loss.isfinite() and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert all(buffer.isfinite().all() for buffer in model.buffers())


@pytest.mark.parametrize("cell", TRAINED, ids=" ".join)
def test_compiling(cell, monkeypatch):
    """Every cell has something to compile, and it can be found."""
    compiled, model = [], build(*cell, width=0.25)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(self))
    model.compile_networks()
    assert compiled and all(module in set(model.modules()) for module in compiled)


def test_late_fusion_is_one_head_on_vectors_side_by_side():
    """Section 3.1 of the facts: LayerNorm, 128, 64, K; the order is that of the sensors."""
    model = build("vit", "treesatai", "all", width=0.25).eval()
    seen = []
    model.head[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    batch = make_batch(model)
    model(batch)
    vectors = [model.networks[key](*model.inputs(key, batch)) for key in ("vhr", "s2", "s1")]
    torch.testing.assert_close(seen[0], torch.cat(vectors, 1))
    assert [module.out_features for module in model.head if hasattr(module, "out_features")] == [128, 64, 15]


def test_resnet_sees_red_green_blue():
    """The official code gave it G, B, R of files that hold NIR, G, B, R."""
    model = build("resnet50", "treesatai", "vhr", width=0.25).eval()
    seen, batch = [], make_batch(model)
    model.networks["vhr"].resnet.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(batch)
    assert torch.equal(seen[0], batch["vhr"][:, [3, 1, 2]])


def test_single_dates_have_the_files_bands():
    """12 of Sentinel-2 and 3 of Sentinel-1, of which OmniSat takes the first."""
    for key, extra in (("s2", ("B01", "B09")), ("s1", ("VV/VH",))):
        sensor = SENSORS["treesatai"][key]
        assert build("pse", "treesatai", key).sensors[key].bands == sensor.bands + extra


# ---- UT&T -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("side, series, ratio", [(288, 6, 288 / 300), (512, 10, 512 / 500), (1280, 128, 1)])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_maps_lie_where_their_ground_is(side, series, ratio, precision):
    """A map that holds its own place, in tiles from the centre, has that of the image's pixels at every level, also
    under autocast.
    """
    ground = ((torch.arange(series) + 0.5) / series - 0.5).expand(1, 1, series, series)
    for size in (side // 2, side // 32):
        wanted = ((torch.arange(size) + 0.5) / size - 0.5) * ratio
        # outside the first and last pixel's centre it is constant
        inside = wanted.abs() <= 0.5 - 0.5 / series
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            found = place(ground, size, ratio)[0, 0]
        torch.testing.assert_close(found[3][inside], wanted[inside], rtol=0, atol=1e-5)


def test_a_map_and_its_mean_are_added_to_every_level():
    """Each level has its own convolution and its own MLP, of each tile's mean."""
    fusion, x = Fusion(2, [3, 5]).eval(), torch.randn(4, 2, 6, 6)
    for i, (size, summand) in enumerate(zip((8, 4), fusion(x, [8, 4], 1))):
        wanted = [place(fusion.maps[i](x[k:k + 1]), size, 1)[0] + fusion.means[i](x[k].mean((1, 2)))[:, None, None]
                  for k in range(4)]
        torch.testing.assert_close(summand, torch.stack(wanted), rtol=0, atol=1e-5)


def test_utts_fusion_has_the_official_widths():
    """facts: D, D ± m, D ± 2 m, level with m = int(|D - level| / 3), by way of 2 D where they are equal; 520,738
    parameters of a series; in all 26.958 M on TreeSatAI-TS without the convolutions that are not used, to 0.01 M."""
    def widths(dim, level):
        return [layer.out_features for layer in mean_mlp(dim, level) if isinstance(layer, torch.nn.Linear)]
    assert [widths(64, level) for level in (64, 128, 256, 512, 32)] == [
        [128, 128, 64], [85, 106, 128], [128, 192, 256], [213, 362, 512], [54, 44, 32]]
    with torch.device("meta"):
        fusion, model = Fusion(64, [64, 64, 128, 256, 512]), build("utt", "treesatai-ts", "all")
    assert sum(p.numel() for p in fusion.parameters()) == 520_738
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(26.958, abs=0.012)    # biases in U-TAE


def test_utt_predicts_from_the_image_and_trains_each_series_head():
    model = build("utt", "treesatai-ts", "all", width=0.25).eval()
    batch = make_batch(model)
    image, *series = model.all_logits(batch)
    assert torch.equal(model(batch), image) and len(series) == 2
    batch["s2"] = batch["s2"] + torch.randn_like(batch["s2"])
    changed, s2, s1 = model.all_logits(batch)
    assert not torch.allclose(changed, image,
                              atol=1e-6) and not torch.allclose(s2, series[0]) and torch.equal(s1, series[1])


# ---- ImageNet -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("cell",
                         [cell for cell in TRAINED if cell[2] in METHODS[cell[0]].published
                          and METHODS[cell[0]].init == "imagenet"], ids=" ".join)
def test_imagenet_weights_reach_the_network(cell):
    """Those of each method's own ResNet, all of them but the classifier."""
    model = build(*cell)
    state = {name: torch.full_like(value, 0.5) if value.is_floating_point() else value
             for name, value in build_imagenet(model.weights).state_dict().items()}
    asked = []
    model.load_published(lambda name: asked.append(name) or state)
    assert asked == [model.weights]
    filters = [value for name, value in model.state_dict().items() if "layer" in name and name.endswith("conv2.weight")]
    assert len(filters) == 16 and all((value == 0.5).all() for value in filters)


def build_imagenet(name):
    return ResNet({"resnet34": 34, "resnet50": 50}[name], 3, 1000)


# ---- the scripts ----------------------------------------------------------------------------------------------------

LENGTH = [*SMALL, "--epochs", "1"]


def train(demo, folder, dataset, *options):
    """The row that finetune.py writes."""
    finetune.main(["--dataset", dataset, "--data-root", str(demo), "--output", str(folder), "--csv",
                   str(folder / "table2.csv"), *options])
    row, = read_rows(folder / "table2.csv")
    return row


def stop_after_an_epoch(monkeypatch, *arguments):
    """train, interrupted when the first epoch was saved."""
    original = Training.end_epoch

    def end_epoch(self, *values, **named):
        original(self, *values, **named)
        raise KeyboardInterrupt
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Training, "end_epoch", end_epoch)
        train(*arguments)


def test_a_compared_method_goes_on_as_if_nobody_had_stopped_it(demo, tmp_path, monkeypatch):
    """Its dropouts and the running statistics of its masked batch norms too."""
    options = ["treesatai-ts", "--model", "pse_ltae", "--init", "none", "--modalities", "s2", "--width", "0.25", *SMALL]
    train(demo, tmp_path / "whole", *options)
    stop_after_an_epoch(monkeypatch, demo, tmp_path / "parts", *options)
    train(demo, tmp_path / "parts", *options)
    whole, parts = (checkpoint.load(tmp_path / name / "finetuned.pt", "finetuned") for name in ("whole", "parts"))
    assert len(parts["starts"]) == 2 and all(torch.equal(value, parts["weights"][name]) for name,
                                             value in whole["weights"].items())


def test_a_run_of_another_model_does_not_go_on(demo, tmp_path, monkeypatch):
    """One line says why, and what to do; the checkpoint stays."""
    options = ["treesatai", "--model", "pse", "--init", "none", "--modalities", "s2", *SMALL]
    stop_after_an_epoch(monkeypatch, demo, tmp_path, *options)
    saved = checkpoint.load(tmp_path / "finetuned.pt", "finetuned")
    saved["training"]["parts"]["model"]["networks.s2.network.encoder.new"] = torch.zeros(1)
    checkpoint.save(tmp_path / "finetuned.pt", saved)
    with pytest.raises(UserError, match="finetuned.pt: its weights are not those of today.*encoder.new") as told:
        train(demo, tmp_path, *options)
    assert "\n" not in str(told.value)
    assert checkpoint.load(tmp_path / "finetuned.pt", "finetuned")["training"] is not None


def test_a_row(demo, tmp_path):
    row = train(demo, tmp_path, "treesatai", "--model", "pse", "--init", "none", "--modalities", "s2", *LENGTH)
    assert (row["model"], row["pretraining"], row["modality"], row["status"], row["scale"]) == ("pse", "none", "s2",
                                                                                                "ok", "demo")
    assert row["params"] == "28574" and row["n_test"] == "10" and 0 <= float(row["f1_weighted"]) <= 100


@pytest.mark.parametrize("width, why",
                         [("0.25", "a width of 0.25 does not fit"), ("1", "resnet50-0676ba61.pth: no such file")])
def test_random_weights_in_the_demo_are_told(demo, tmp_path, monkeypatch, capfd, width, why):
    """Also after a stop, when the file has come in between: what was trained began at random."""
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    monkeypatch.setattr(ResNet, "forward", lambda self,
                        x: self.fc(x.mean((2, 3)).mean(1, keepdim=True).expand(-1, self.channels[-1])))
    options = ["--model", "resnet50", "--init", "imagenet", "--modalities", "vhr", "--width", width, *SMALL]
    stop_after_an_epoch(monkeypatch, demo, tmp_path / "run", "treesatai", *options)
    assert why in capfd.readouterr().err
    monkeypatch.setattr(weights, "load", lambda name: pytest.fail("a run that goes on has its weights"))
    row = train(demo, tmp_path / "run", "treesatai", *options)
    assert row["status"] == "random-weights" and row["status"] in SCORED and row["pretraining"] == "imagenet"


def test_imagenet_weights_that_are_there_are_taken(demo, tmp_path, monkeypatch):
    state = build_imagenet("resnet50").state_dict()
    monkeypatch.setattr(weights, "load", lambda name: state)
    monkeypatch.setattr(ResNet, "forward", lambda self, x: x.mean((2, 3)).mean(1, keepdim=True).expand(-1, 2048))
    row = train(demo, tmp_path, "treesatai", "--model", "lightgbm", "--init", "imagenet", "--modalities", "all",
                "--workers", "0")
    assert row["status"] == "ok" and row["params"] == "23508032"
    saved = checkpoint.load(tmp_path / "finetuned.pt", "finetuned")
    assert torch.equal(saved["weights"]["networks.vhr.resnet.layer4.2.conv3.weight"], state["layer4.2.conv3.weight"])


@pytest.mark.parametrize("name, modality",
                         [("lightgbm", "s1"), ("lightgbm", "vhr"), ("lightgbm", "all"), ("mosaiks", "s2")])
def test_what_is_fitted_goes_the_same_way(demo, tmp_path, monkeypatch, name, modality):
    """One pass, no rate; the checkpoint is scored again from the disk with the same result."""
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    start = ["--init", "imagenet", "--width", "0.25"] if modality == "all" else ["--init", "none"]
    row = train(demo, tmp_path / "run", "treesatai", "--model", name, "--modalities", modality, "--workers", "0",
                *start)
    assert (row["params"] == "") == (modality != "all")             # trees and stored tiles are none
    assert row["pretraining"] == METHODS[name].pretraining
    assert row["status"] == ("random-weights" if modality == "all" else "ok")
    saved = checkpoint.load(tmp_path / "run" / "finetuned.pt", "finetuned")
    assert saved["finished"] and len(saved["history"]) == 1
    place = 0, 1, torch.device("cpu")
    again = score_test(tmp_path / "run" / "finetuned.pt", demo, 3, 0, place)
    assert f"{again['f1_weighted']:.4f}" == row["f1_weighted"] and f"{again['map']:.4f}" == row["map"]


@pytest.mark.parametrize("name, dataset, modality",
                         [("pse_ltae", "treesatai-ts", "s2"), ("mosaiks", "treesatai", "s2")])
def test_two_processes_give_one_processs_row(demo, tmp_path, name, dataset, modality):
    """Batch norm and dropout depend on the pool, not on the process; what is fitted sees the tiles in one order."""
    options = ["--model", name, "--modalities", modality, "--init", "none", "--workers", "0", "--pool", "4"]
    options += [] if METHODS[name].is_fitted else ["--width", "0.25", *LENGTH]
    row = train(demo, tmp_path / "one", dataset, *options)
    done = torchrun(2, "finetune.py", "--dataset", dataset, "--data-root", str(demo), "--output", str(tmp_path / "two"),
                    "--csv",
                    str(tmp_path / "two" / "table2.csv"), *options)
    assert done.returncode == 0, done.stderr
    other, = read_rows(tmp_path / "two" / "table2.csv")
    assert all(row[score] == other[score] for score in ("f1_weighted", "f1_macro", "map"))


@pytest.mark.parametrize("options, culprit", [
    (["--model", "pse", "--init", "imagenet", "--modalities", "s2"], "--init imagenet: pse on s2 starts from none"),
    (["--model", "pse", "--init", "none", "--modalities", "vhr"],
     "pse is not made for vhr of treesatai, but for s1, s2, all"),
    (["--model", "utae", "--init", "none", "--modalities", "s2"], "utae is not made for s2 of treesatai"),
    (["--model", "mlp", "--init", "none", "--modalities", "s2", "--width", "0"],
     "--width: must be a number over 0, at most 1, not 0"),
    (["--model", "mlp", "--init", "none", "--modalities", "s2", "--embed-dim", "64"],
     "--embed-dim does nothing in mlp"),
    (["--model", "mosaiks", "--init", "none", "--modalities", "s2", "--epochs", "3"],
     "--epochs does nothing in mosaiks on s2"),
    (["--model", "lightgbm", "--init", "none", "--modalities", "s1", "--width", "0.5"],
     "--width does nothing in lightgbm on s1"),
    (["--model", "mlp", "--init", "none", "--modalities", "s2", "--tiles-at-once", "2"],
     "--tiles-at-once does nothing in mlp"),
    (["--init", "imagenet"], "--init imagenet: omnisat"),
    (["--init", "none", "x.pt"], "--init none x.pt: omnisat starts from one pretrained.pt, or none"),
    (["--model", "dofa", "--init", "imagenet", "--modalities", "vhr"], "dofa on vhr starts from external, or none"),
    (["--model", "presto", "--init", "external", "--modalities", "s2", "--width", "0.5"],
     "--width does nothing in presto on s2"),
    (["--init", "none", "--width", "0.5"], "--width does nothing in omnisat")])
def test_wrong_options_are_told(demo, tmp_path, options, culprit, capsys):
    with pytest.raises((UserError, SystemExit)) as error:
        finetune.main(["--dataset", "treesatai", "--data-root", str(demo), "--output", str(tmp_path), *options])
    assert culprit in f"{error.value} {capsys.readouterr().err}"              # of a number argparse tells


def test_without_weights_real_data_is_not_trained_on(monkeypatch, tmp_path):
    """The place of the file, its source and its hash are told."""
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    args = finetune.command_line().parse_args(["--dataset", "treesatai", "--data-root", "d", "--model", "resnet50",
                                               "--init", "imagenet"])
    with pytest.raises(UserError, match="resnet50-0676ba61.pth.*download.*0676ba61"):
        starts.load_published(build("resnet50", "treesatai", "vhr", 0.25), args, is_demo=False, rank=0)
