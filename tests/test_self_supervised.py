"""The compared methods that begin pretrained, as wholes: their inputs, their pretraining and fine-tuning by the
scripts.
"""
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

import finetune
import pretrain
from datasets import open_dataset
from datasets.loading import Pools, collate, make_loader
from datasets.sensors import SENSORS
from engine import checkpoint, starts
from evaluate import score, score_test
from models.compared.inputs import median, resize, season_medians
from models.methods import METHODS, build_model
from tests.test_compared import build as build_cell, make_batch
from tests.test_scripts import SMALL, torchrun
from utils import weights
from utils.errors import UserError
from utils.metrics import best_threshold, count, f1_scores
from utils.results import read_rows

PUBLISHED = Path(__file__).parent.parent.parent / "shared" / "real" / "weights"
PRETRAININGS = [("scalemae", "treesatai-ts", "vhr"), ("scalemae", "treesatai-ts", "s2"), ("satmae", "treesatai", "s2"),
                ("croma", "treesatai", "all")]


def pretraining(demo, folder, name, dataset, modality):
    return ["--dataset", dataset, "--data-root", str(demo), "--model", name, "--modalities", modality, "--width",
            "0.125", "--lr", "1e-3",
            "--output", str(folder), *SMALL, "--epochs", "4"]


@pytest.fixture(scope="module")
def pretrained(demo, tmp_path_factory):
    """{(model, modality): pretrained.pt}."""
    folders = {(name, modality): tmp_path_factory.mktemp("pretrain") for name, _, modality in PRETRAININGS}
    for name, dataset, modality in PRETRAININGS:
        pretrain.main(pretraining(demo, folders[name, modality], name, dataset, modality))
    return {key: folder / "pretrained.pt" for key, folder in folders.items()}


def build(name, dataset, keys, width=0.125, num_classes=0):
    sensors = [SENSORS[dataset][key] for key in keys]
    sensors = [sensor.with_all_bands() for sensor in sensors] if METHODS[name].all_bands else sensors
    return build_model(name, sensors, num_classes=num_classes, dataset=dataset, width=width)


# ---- what the networks see ------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, dataset, form", [
    ("satmae", "treesatai", "date"), ("scalemae", "treesatai", "date"), ("scalemae", "treesatai-ts", "seasons"),
    ("scalemae", "pastis-hd", "median"), ("scalemae", "flair", "seasons"), ("croma", "treesatai", "date"),
    ("croma", "pastis-hd", "seasons"),
    ("dofa", "treesatai", "date"), ("dofa", "treesatai-ts", "median"), ("dofa", "pastis-hd", "median"),
    ("dofa", "flair", "median")])
def test_a_series_becomes_an_image(name, dataset, form):
    """Its date, its median, or the medians of its seasons, as the official configurations have it, in every pixel."""
    model, side = build(name, dataset, ["s2"], num_classes=5), {"pastis-hd": 32}.get(dataset, 6)
    dates, bands = 1 if form == "date" else 8, len(model.sensors["s2"].bands)
    x = torch.randn(2, dates, bands, 1, 1, generator=torch.Generator().manual_seed(0))
    batch = {"s2": x.expand(-1, -1, -1, side, side), "s2_dates": (45 * torch.arange(dates)).expand(2, dates),
             "s2_padded": torch.zeros(2, dates, dtype=torch.bool)}
    batch["s2_padded"][1, 6:] = True
    wanted = {"date": x[:, 0], "median": median(x, batch["s2_padded"]),
              "seasons": season_medians(x, batch["s2_dates"], batch["s2_padded"])}[form]
    found, = model.inputs("s2", batch)
    assert wanted.shape[1] == (4 * bands if form == "seasons" else bands)
    torch.testing.assert_close(found, wanted.expand(-1, -1, model.sides["s2"], model.sides["s2"]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name, dataset, expected", [
    *((name, dataset, None) for name in ("dofa", "scalemae") for dataset in ("treesatai-ts", "pastis-hd", "flair")),
    ("croma", "pastis-hd", None), ("dofa", "treesatai", 50), ("omnisat", "pastis-hd", 50), ("utae", "pastis-hd", 50),
    ("utt", "flair", 50), ("pse_ltae", "treesatai-ts", 50)])
def test_medians_are_of_all_dates(name, dataset, expected):
    assert METHODS[name].max_dates(dataset) == expected


def test_medians_of_a_long_series(demo, tmp_path, monkeypatch):
    """In training, validation and test torch's of all dates; checkpoints of before are scored as they were trained."""
    whole = open_dataset("treesatai-ts", demo, "train", ("s2",)).read(0)["s2"]
    tiles = open_dataset("treesatai-ts", demo, "train", ("s2",), max_dates=METHODS["dofa"].max_dates("treesatai-ts"))
    model = build("dofa", "treesatai-ts", ["s2"], num_classes=15)
    model.standardize.set({"s2": {"mean": [0.] * 10, "std": [1.] * 10}})
    assert len(whole[1]) > 60 and np.array_equal(tiles[0]["s2_dates"], whole[1])
    for item in (tiles[0], tiles[0, 1], tiles[0, 2]):
        found, = model.inputs("s2", collate([item]))
        torch.testing.assert_close(found, resize(torch.tensor(whole[0]).median(0).values[None], 224))

    asked, opened = [], open_dataset

    def open_and_note(*args, **options):
        asked.append((args[2], options["max_dates"]))
        return opened(*args, **options)
    for module in ("pretrain", "finetune", "engine.inference"):
        monkeypatch.setattr(f"{module}.open_dataset", open_and_note)
    pretrain.main(pretraining(demo, tmp_path, "scalemae", "treesatai-ts", "s2")[:-2] + ["--epochs", "1"])
    finetune.main(["--dataset", "treesatai-ts", "--data-root", str(demo), "--model", "scalemae", "--modalities", "s2",
                   *SMALL, "--epochs", "1", "--init", str(tmp_path / "pretrained.pt"), "--output", str(tmp_path),
                   "--csv", str(tmp_path / "t.csv")])
    assert {most for _, most in asked} == {None} and {split for split, _ in asked} == {"train", "val", "test"}
    saved = checkpoint.load(tmp_path / "finetuned.pt", "finetuned")
    del saved["max_dates"], asked[:]
    checkpoint.save(tmp_path / "finetuned.pt", saved)
    score_test(tmp_path / "finetuned.pt", demo, 4, 0, (0, 1, torch.device("cpu")))
    assert asked == [("test", 50)]


def test_full_sizes():
    """facts/baselines.md: inputs of 224, 48 and 120 pixels, 12 and 8 layers; late fusion 43.1 and 44.6 M (Scale-MAE's
    less two unused layers of 0.385 M); CROMA's pretraining 50.3 and 51.8 M.
    """
    with torch.device("meta"):
        sat, scale = build("satmae", "treesatai", ["vhr", "s2"], 1, 15), build("scalemae", "treesatai-ts",
                                                                               ["vhr", "s2"], 1, 15)
        models = [sat, scale, build("satmae", "treesatai", ["s2"], 1),
                  *(build("croma", dataset, ["s2", "s1"], 1) for dataset in (
            "treesatai", "pastis-hd"))]
    assert sat.sides == {"vhr": 224, "s2": 224} and scale.sides == {"vhr": 224,
                                                                    "s2": 48} and models[-1].sides == {"s2": 120,
                                                                                                       "s1": 120}
    count = [sum(p.numel() for p in model.parameters()) / 1e6 for model in models]
    assert [round(count[0], 1), round(count[1] + 0.77, 1),
            *(round(number, 1) for number in count[2:])] == [43.1, 44.6, 36.1, 50.3, 51.8]
    network = models[2].networks["s2"]
    assert len(network.encoder.blocks) == 12 and len(network.decoder.blocks) == 8


def test_croma_sees_radar_and_optical():
    """All bands of the files, each sensor by its own encoder; both together are one vector that depends on each."""
    model = build_cell("croma", "treesatai", "all", 0.125).eval()
    batch = make_batch(model)
    images = model.images(batch)
    assert images["radar"].shape[:2] == (3, 3) and images["optical"].shape[:2] == (3, 12)
    logits = model(batch)
    for key in ("s1", "s2"):
        assert (model(batch | {key: batch[key].roll(1, 0)}) - logits).abs().max() > 1e-4
    alone = build_cell("croma", "treesatai", "s1", 0.125)
    assert list(alone.sensors) == ["s1"] and alone.networks["croma"].cross_encoder is None


def test_dofa_sees_each_band_at_its_wavelength():
    """Bands by name: of VHR red, green, blue, of S2 nine, whatever their order in the file; one network for all
    modalities.
    """
    model = build_cell("dofa", "treesatai", "all", 0.125).eval()
    seen, batch = [], make_batch(model)
    model.networks["dofa"].register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    model(batch)
    batch = {key: model.inputs(key, batch)[0] for key in model.sensors}
    assert torch.equal(seen[0][0], batch["vhr"][:, [3, 1, 2]])
    # of B02 B03 B04 B08 B05 B06 B07 B8A B11 B12
    assert torch.equal(seen[1][0], batch["s2"][:, [2, 1, 0, 4, 5, 6, 3, 8, 9]])
    assert torch.equal(seen[2][0], batch["s1"])
    for (_, wavelengths), wanted in zip(seen,
                                        ([0.665, 0.56, 0.49],
                                         [0.665, 0.56, 0.49, 0.705, 0.74, 0.783, 0.842, 1.61, 2.19],
                                               [5.405, 5.405])):
        torch.testing.assert_close(wavelengths, torch.tensor(wanted))
    assert list(model.networks) == ["dofa"]


def test_dofas_radar_is_no_constant_image():
    """DOFA's own statistics, of 8-bit images, left a standard deviation of 0.001 of radar in linear power; here it is
    dB, standardised.
    """
    model = build_cell("dofa", "treesatai-ts", "s1", 0.125)
    power = torch.empty(2, 5, 2, 6, 6).uniform_(0.002, 0.38)
    batch = {"s1": 10 * power.log10(), "s1_dates": torch.arange(5).expand(2, 5),
             "s1_padded": torch.zeros(2, 5, dtype=torch.bool)}
    model.standardize.set({"s1": {"mean": [-9., -9.], "std": [4., 4.]}})
    assert model.inputs("s1", batch)[0].std((2, 3)).min() > 0.1


def test_presto_sees_its_own_units():
    """Digital numbers and dB, not standardised; July; one place for all tiles."""
    model = build_cell("presto", "treesatai", "s2").eval()
    seen, batch = [], make_batch(model)
    batch["s2"] = torch.randint(1, 6000, batch["s2"].shape).to(torch.int16)
    model.networks["presto"].register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    logits = model(batch)
    groups, months, padded, latlon = seen[0]
    torch.testing.assert_close(groups["S2_NIR_10m"][:, 0, 0], batch["s2"][:, 0, 3] / 10000)
    assert groups["S2_RGB"].shape == (3, 1, 3, 6, 6) and months.tolist() == [[6]] * 3 and not padded.any()
    assert latlon.round(decimals=1).tolist() == torch.tensor([[52.6, 9.1]]).expand(3, 2).tolist()
    model.standardize.set({"s2": {"mean": [7.] * 10, "std": [3.] * 10}})
    assert torch.equal(model(batch), logits)


# ---- pretraining and what starts from it ----------------------------------------------------------------------------

def test_pretraining_lowers_its_loss(pretrained):
    for (name, _), path in pretrained.items():
        history = checkpoint.load(path, "pretrained")["history"]
        assert history[-1]["val_loss"] < history[0]["val_loss"], path
        assert set(history[0]) >= {f"{prefix}{term}" for prefix in ("", "val_") for term in METHODS[name].network.terms}


@pytest.mark.parametrize("name, dataset, modality, starts", [
    ("scalemae", "treesatai-ts", "all", ("vhr", "s2")), ("satmae", "treesatai", "s2", ("s2",)),
    ("croma", "treesatai", "s1", ("all",)),
    ("croma", "treesatai", "s2", ("all",)), ("croma", "treesatai", "all", ("all",))])
def test_fine_tuning_starts_from_the_encoders(demo, pretrained, tmp_path, monkeypatch, name, dataset, modality, starts):
    """When the script begins to train, all but the heads is the checkpoints'; then a row."""
    init, begun = [str(pretrained[name, start]) for start in starts], {}

    class Training(finetune.Training):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            begun.update({name: value.clone() for name, value in self.model.state_dict().items()})
    monkeypatch.setattr(finetune, "Training", Training)
    finetune.main(["--dataset", dataset, "--data-root", str(demo), "--model", name, "--modalities", modality, "--init",
                   *init,
                   "--output", str(tmp_path), "--csv", str(tmp_path / "table2.csv"), *SMALL])
    loaded = [checkpoint.load(path, "pretrained") for path in init]
    for parameter, value in begun.items():
        if not parameter.startswith("head"):
            sources = [saved["weights"][parameter] for saved in loaded if parameter in saved["weights"]]
            assert len(sources) == 1 and torch.equal(value, sources[0]), parameter
    row, = read_rows(tmp_path / "table2.csv")
    assert (row["model"], row["pretraining"], row["modality"], row["status"]) == (name, "self", modality, "ok")
    assert abs(float(row["pretrain_hours"]) - sum(saved["hours"] for saved in loaded)) < 1e-3
    trained = checkpoint.load(tmp_path / "finetuned.pt", "finetuned")["weights"]
    assert any(not torch.equal(trained[parameter], value) for parameter,
               value in begun.items() if "networks" in parameter)


def test_two_processes_pretrain_as_one(demo, pretrained, tmp_path):
    """CROMA: contrast is within a pool, whatever process has it."""
    done = torchrun(2, "pretrain.py", *pretraining(demo, tmp_path, "croma", "treesatai", "all"))
    assert done.returncode == 0, done.stderr
    one, two = (checkpoint.load(path, "pretrained")
                for path in (pretrained["croma", "all"], tmp_path / "pretrained.pt"))
    for before, after in zip(one["history"], two["history"], strict=True):
        for name in {*before} - {"hours"}:
            assert after[name] == pytest.approx(before[name], rel=1e-6), name
    for name, value in one["weights"].items():
        # the first gradients of queries and keys are roundings, of which Adam makes steps of its own rate, whatever
        # their size
        is_rounding = name.endswith(("query.weight", "key_value.weight"))
        torch.testing.assert_close(two["weights"][name], value, rtol=0, atol=12 * 1e-3 if is_rounding else 1e-5)


def test_pretrainings_and_models_of_before_are_refused(demo, pretrained, tmp_path):
    """CROMA's decoder had no sinusoids, PRESTO's vector no deviations: one line says so, and which commit reads it."""
    saved = checkpoint.load(pretrained["croma", "all"], "pretrained")
    del saved["weights"]["networks.croma.decoder.encoding"]
    checkpoint.save(tmp_path / "before.pt", saved)
    with pytest.raises(UserError, match="before.pt: .* not those of today's croma; .* Missing key.*encoding"):
        finetune.main(["--dataset", "treesatai", "--data-root", str(demo), "--model", "croma", "--modalities", "s1",
                       "--init", str(tmp_path / "before.pt"), "--output", str(tmp_path), *SMALL])
    model = build_cell("presto", "treesatai", "s2")
    weights = model.state_dict() | {"heads.s2.weight": torch.zeros(15, 128)}
    config = {"model": "presto", "sensors": [asdict(sensor) for sensor in model.sensors.values()],
              "options": {"num_classes": 15, "dataset": "treesatai"}}
    with pytest.raises(UserError, match="x.pt: .* not those of today's presto; commit c0ffee.*heads.s2.weight"):
        checkpoint.rebuild("x.pt", {"config": config, "weights": weights, "source": {"commit": "c0ffee"}})


@pytest.mark.parametrize("options, culprit", [
    (["--model", "scalemae", "--init", "s2"], "pretrained on s2, not on vhr"),
    (["--model", "satmae", "--dataset", "treesatai", "--init", "s2", "--modalities", "s2"],
     "pretrained scalemae, not satmae"),
    (["--init", "s2"], "pretrained scalemae, not omnisat"),
    (["--model", "scalemae", "--init", "s2", "--modalities", "s2", "--width", "0.25"], "--width 0.25: .* has 0.125"),
    (["--model", "scalemae", "--init", "imagenet", "--modalities", "s2"], "starts from its own pretrained.pt, or none"),
    (["--model", "croma", "--dataset", "treesatai", "--init", "external", "--modalities", "s2"],
     "starts from its own pretrained.pt")])
def test_wrong_starts_are_told(demo, pretrained, tmp_path, options, culprit):
    options = [str(pretrained["scalemae", word]) if word == "s2" and options[i - 1] == "--init" else word for i,
               word in enumerate(options)]
    with pytest.raises(UserError, match=culprit):
        finetune.main(["--dataset", "treesatai-ts", "--data-root", str(demo), "--output", str(tmp_path), "--workers",
                       "0", *options])


@pytest.mark.parametrize("options, culprit", [
    (["--model", "satmae", "--modalities", "all"],
     "satmae is not pretrained on all of treesatai, but on vhr or s2 of treesatai"),
    (["--model", "croma", "--modalities", "s2"],
     "croma is not pretrained on s2 of treesatai, but on all of treesatai; all of pastis-hd"),
    (["--model", "satmae", "--modalities", "s2", "--ablation", "no_contrastive"], "--ablation does nothing in satmae"),
    (["--width", "0.5"], "--width does nothing in omnisat")])
def test_wrong_pretrainings_are_told(demo, tmp_path, options, culprit):
    with pytest.raises(UserError, match=culprit):
        pretrain.main(["--dataset", "treesatai", "--data-root", str(demo), "--output", str(tmp_path), *options])


@pytest.mark.parametrize("name, dataset, keys", [("satmae", "treesatai", ["s2"]), ("croma", "pastis-hd", ["s2", "s1"])])
def test_pretraining_can_be_compiled(name, dataset, keys, monkeypatch):
    """The decoder too, which fine-tuning does not have."""
    compiled, model = [], build(name, dataset, keys)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(self))
    model.compile_networks()
    assert any(module is network.decoder for network in model.networks.values() for module in compiled)


def test_the_log_names_the_method(pretrained):
    header = json.loads((pretrained["scalemae", "s2"].parent / "log.jsonl").read_text().splitlines()[0])
    assert header["options"]["model"] == "scalemae"


# ---- published weights ----------------------------------------------------------------------------------------------

def finetuned(demo, folder, *options):
    """The row and the checkpoint of a short fine-tuning on single dates."""
    finetune.main(["--dataset", "treesatai", "--data-root", str(demo), "--output", str(folder), "--csv",
                   str(folder / "table2.csv"),
                   "--init", "external", *options])
    row, = read_rows(folder / "table2.csv")
    return row, checkpoint.load(folder / "finetuned.pt", "finetuned")


def test_dofas_weights_are_taken(demo, tmp_path, monkeypatch):
    """All of those that the file has for the network; of another width they are random, and the row says so."""
    network = build("dofa", "treesatai", ["s1"], 1, 15).networks["dofa"]
    state = {name: value for name, value in network.state_dict().items() if "fc_norm" not in name}
    model, asked = build("dofa", "treesatai", ["vhr", "s1"], 1, 15), []
    model.load_published(lambda name: asked.append(name) or state)
    assert asked == ["dofa"] and all(torch.equal(model.networks["dofa"].state_dict()[name], value) for name,
                                     value in state.items())
    monkeypatch.setattr(weights, "load", lambda name: pytest.fail("they do not fit"))
    row, saved = finetuned(demo, tmp_path, "--model", "dofa", "--modalities", "s1", "--width", "0.125", *SMALL)
    assert (row["status"], row["pretraining"], row["scale"]) == ("random-weights", "external", "demo")
    assert saved["config"]["options"]["width"] == 0.125


def test_other_weights_of_that_name_are_told(demo, tmp_path, monkeypatch):
    """On real data; in the demo the row has random weights, and the reason is shown."""
    model, args = build("dofa", "treesatai", ["s1"], 1, 15), finetune.command_line().parse_args(
        ["--dataset", "treesatai", "--data-root", "d", "--model", "dofa", "--init", "external"])
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    torch.save({"cls_tokens": torch.zeros(1)}, tmp_path / weights.TABLE["dofa"].file)
    with pytest.raises(UserError, match="dofa_base_patch16_224-a0275954.pth: not DOFA ViT-B.*cls_tokens"):
        starts.load_published(model, args, is_demo=False, rank=0)
    assert starts.load_published(model, args, is_demo=True, rank=0) == "random-weights"


def test_prestos_encoder_is_taken_whole():
    """Whatever is in the file: nothing is passed over in silence."""
    model = build_cell("presto", "treesatai", "s1")
    state = {f"encoder.{name}": torch.randn_like(value) for name,
             value in model.networks["presto"].state_dict().items()}
    asked = []
    model.load_published(lambda name: asked.append(name) or state | {"decoder.mask_token": torch.zeros(1)})
    assert asked == ["presto"]
    assert all(torch.equal(value, state[f"encoder.{name}"]) for name,
               value in model.networks["presto"].state_dict().items())
    for wrong in ({name: value for name, value in state.items() if "channel" not in name},
                  state | {"encoder.more": torch.zeros(1)}):
        with pytest.raises(RuntimeError):
            model.load_published(lambda name: wrong)


def test_prestos_weights_are_taken(demo, tmp_path, monkeypatch):
    """From the published file, where it is; training starts from them, and a checkpoint scored again has the same
    threshold.
    """
    if not (PUBLISHED / weights.TABLE["presto"].file).is_file():
        pytest.skip("PRESTO's published weights are not beside the project (../shared/real/weights)")
    monkeypatch.setattr(weights, "FOLDER", PUBLISHED)
    begun, original = {}, finetune.Training.begin_epoch
    monkeypatch.setattr(finetune.Training, "begin_epoch", lambda self, *given: (
        begun.update({name: value.clone() for name, value in self.model.networks["presto"].state_dict().items()})
        if not begun else None,
        original(self, *given))[1])
    row, saved = finetuned(demo, tmp_path, "--model", "presto", "--modalities", "s2", *SMALL)
    published = weights.load("presto")
    assert all(torch.equal(value, published[f"encoder.{name}"]) for name, value in begun.items())
    assert row["status"] == "ok"
    assert row["params"] == str(402_240 + 12 * 32 + 15 * 257)    # the table of months; the head
    again = score_test(tmp_path / "finetuned.pt", demo, 3, 0, (0, 1, torch.device("cpu")))
    assert f"{again['f1_weighted']:.4f}" == row["f1_weighted"]
    assert saved["weights"]["threshold"].item() in [pytest.approx(torch.logit(torch.tensor(p / 10)).item())
                                                    for p in range(1, 10)]


def test_prestos_threshold_is_the_best_of_the_validation_tiles(demo, tmp_path, monkeypatch):
    """It is part of the checkpoint: scored again, validation has the F1 of the log; the loss of the log is without it.
    """
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    row, saved = finetuned(demo, tmp_path, "--model", "presto", "--modalities", "s1", *SMALL, "--lr", "1e-2",
                           "--epochs", "3")
    model, logged = checkpoint.rebuild(tmp_path, saved), saved["history"][saved["epoch"] - 1]
    assert row["status"] == "random-weights" and model.threshold != 0
    val = open_dataset("treesatai", demo, "val", ["s1"], seed=0)
    pools = Pools(len(val), 4, 4, None, 0, 1)
    for tunes in (False, True):
        scores = score(model, make_loader(val, pools, 0), torch.device("cpu"), lambda tiles: None, tunes=tunes)
        assert scores["f1_macro"] == pytest.approx(logged["val_f1_macro"]) and scores["map"] == pytest.approx(
            logged["val_map"])
        assert (scores["loss"] == pytest.approx(logged["val_loss"], rel=1e-5)) == tunes
    assert scores["threshold"] == pytest.approx(logged["val_threshold"]) and round(10 * scores["threshold"],
                                                                                   4) in range(1, 10)
    # what validation chose stays in the test, whatever it is
    saved["weights"]["threshold"].fill_(99)
    checkpoint.save(tmp_path / "other.pt", saved)
    assert score_test(tmp_path / "other.pt", demo, 3, 0,
                      (0, 1, torch.device("cpu")))["f1_weighted"] == 0 < float(row["f1_weighted"])


def test_best_threshold_is_that_of_a_search():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(50, 4, generator=generator) - 2, torch.rand(50, 4, generator=generator) > 0.6
    found = {p: f1_scores(count(logits - torch.logit(torch.tensor(p / 10)), labels))["f1_weighted"]
             for p in range(1, 10)}
    best = 1 / (1 + torch.tensor(-best_threshold(logits, labels)).exp())
    assert found[round(10 * best.item())] == max(found.values()) > found[5]
    assert best_threshold(torch.full((5, 2), 9.), torch.ones(5, 2)) == 0    # of equal ones 0.5
