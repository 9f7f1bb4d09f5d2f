"""The pretraining step that is fast against the one that is plain, and what must not change its result."""
import argparse
import copy
import json
import multiprocessing
import shutil

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import benchmarks.measure
import benchmarks.run
import benchmarks.tasks
import models.omnisat
import pretrain
from datasets.sensors import Sensor
from engine import options
from engine.pool_step import PoolStep
from engine.training import Training
from models.fast import contrastive, winograd
from models.fast.contrastive import compile_once
from models.fast.forms import change_classes
from models.fast.omnisat import FORMS
from models.fast.omnisat import FastOmniSat as OmniSat
from models.image import ImageDecoder, ImageEncoder
from utils.errors import UserError

VHR, S2 = Sensor("vhr", "image", ("R", "G", "B"), 1, 10), Sensor("s2", "series", ("a", "b", "c"), 10, 1, 30)
S1 = Sensor("s1", "series", ("VV", "VH"), 5, 2, 40)
VALID = {"s2": (6, 2, 0, 5, 3), "s1": (1, 6, 4, 0, 2)}              # dates of each tile: one has no s2, one no s1


def make_batch(dtype=torch.float64, tiles=5):
    random = torch.Generator().manual_seed(0)
    batch = {"name": list("abcde")[:tiles],
             "vhr": torch.randint(256, (tiles, 3, 20, 20), dtype=torch.uint8, generator=random)}
    for key, bands, side in (("s2", 3, 2), ("s1", 2, 4)):
        batch[key] = torch.randn(tiles, 6, bands, side, side, dtype=dtype, generator=random)
        batch[f"{key}_dates"] = torch.randint(31, (tiles, 6), generator=random)
        batch[f"{key}_padded"] = torch.arange(6) >= torch.tensor(VALID[key][:tiles])[:, None]
    return batch


STATISTICS = {"vhr": {"mean": [120.] * 3, "std": [70.] * 3}, "s2": {"mean": [0.1] * 3, "std": [2.] * 3},
              "s1": {"mean": [0.] * 2, "std": [1.] * 2}}


def build(sensors, depth):
    torch.manual_seed(0)
    model = OmniSat(sensors, embed_dim=32, depth=depth)
    model.standardize.set({sensor.key: STATISTICS[sensor.key] for sensor in sensors})
    return model


@pytest.fixture
def model():
    return build([VHR, S2, S1], depth=2)


def plain_form(model):
    """models.omnisat.OmniSat with the weights and in the type of the model."""
    plain = models.omnisat.OmniSat([VHR, S2, S1], embed_dim=32, depth=2)
    plain.load_state_dict(model.state_dict())
    return plain.to(model.mask_token.dtype)


def results(model, batch):
    """Loss, terms, gradients and buffers after one pass of a copy of the model."""
    model = copy.deepcopy(model)
    total, terms = model.pretrain_loss(batch, model.draw_masks(batch, torch.Generator().manual_seed(3)))
    total.backward()
    return {"loss": total.detach(), **{name: term.detach() for name, term in terms.items()},
            "gradients": {name: p.grad for name, p in model.named_parameters()}, "buffers": dict(model.named_buffers())}


def test_the_step_is_the_plain_form(model):
    """Equations 1 to 5 in torch's own layers: loss, terms, gradients and running statistics, then features."""
    plain, batch = plain_form(model.double()), make_batch()
    ours, wanted = results(model, batch), results(plain, batch)
    torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=1e-12)
    assert all(gradient.abs().max() > 0 for gradient in ours["gradients"].values())
    for level in ("tokens", "patch", "tile"):
        torch.testing.assert_close(model.eval().features(batch, level), plain.eval().features(batch, level), rtol=1e-10,
                                   atol=1e-12)


def test_the_fast_model_is_the_method(model):
    """OmniSat's own methods, which a reader follows, on the fast parts give what runs: loss, gradients, buffers and
    features, bit by bit.
    """
    parts = {plain: fast for plain, fast in FORMS.items() if plain is not models.omnisat.OmniSat}
    method = change_classes(plain_form(model), parts)
    method.contrast = contrastive.contrastive_loss
    assert type(method) is models.omnisat.OmniSat
    batch = make_batch(torch.float32)
    ours, wanted = results(model, batch), results(method, batch)
    torch.testing.assert_close(ours, wanted, rtol=0, atol=0)
    model.eval(), method.eval()
    for level in ("tokens", "patch", "tile"):
        torch.testing.assert_close(model.features(batch, level), method.features(batch, level), rtol=0, atol=0)
    for each in (model, method):
        with pytest.raises(ValueError, match="unknown level 'pixel'"):
            each.features(batch, "pixel")


def test_image_networks_of_full_size_are_the_plain_form(monkeypatch):
    """Whose convolutions are torch's, where ours are Winograd's: two in the encoder's first block, the last of the
    decoder's.
    """
    used, convolution = [], winograd.convolution
    monkeypatch.setattr(winograd, "convolution", lambda x, *others: used.append(x.shape[-1]) or convolution(x, *others))
    torch.manual_seed(0)
    networks = torch.nn.ModuleList([ImageEncoder(4, 50, 256), ImageDecoder(4, 50, 256)]).double()
    x, found = torch.randn(3, 4, 50, 50, dtype=torch.float64), []
    for encoder, decoder in (change_classes(copy.deepcopy(networks), FORMS), networks):
        token, indices = encoder(x)
        image = decoder(token, indices)
        loss = (image * torch.linspace(-1, 1, image.numel()).view_as(image)).sum() + token.square().sum()
        parameters = [*encoder.parameters(), *decoder.parameters()]
        found.append((token.detach(), image.detach(), torch.autograd.grad(loss, parameters)))
        assert used == [12, 12, 12]
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("tiles_at_once", [1, 2, 4])
def test_parts_of_a_pool_give_the_whole_pools_result(model, tiles_at_once):
    """Recomputed in backward, batch norm over the whole pool, its running statistics moved once."""
    model.double()
    whole = results(model, make_batch())
    model.tiles_at_once = tiles_at_once
    torch.testing.assert_close(results(model, make_batch()), whole, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_parts_give_the_same_logits(training):
    torch.manual_seed(0)
    model, batch = OmniSat([VHR, S2, S1], embed_dim=32, depth=1, num_classes=4).double(), make_batch()
    model(batch)                                                    # running statistics other than 0 and 1
    model.train(training)
    whole = model(batch)
    model.tiles_at_once = 2
    torch.testing.assert_close(model(batch), whole, rtol=1e-10, atol=1e-12)


def test_parts_keep_the_activations_of_few_tiles(model):
    """What is kept for backward: inputs, tokens and pooling indices of all tiles, all else of none."""
    def kept(tiles_at_once):
        model.tiles_at_once, sizes = tiles_at_once, {}
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.__setitem__(t.data_ptr(), t.nbytes) or t,
                                                      lambda t: t):
            model.pretrain_loss(batch, masks)
        return sum(sizes.values())
    batch = make_batch(torch.float32)
    masks = model.draw_masks(batch)
    assert kept(1) < kept(None) / 5


def test_bfloat16_keeps_batch_norms_statistics(model):
    """Variances of bands that move together cancel in part: their sums are float32, whole and in parts."""
    batch = make_batch(torch.float32)
    batch["s2"] = (5 + torch.randn(5, 6, 1, 2, 2) + 0.01 * torch.randn(5, 6, 3, 2, 2))
    model.standardize.set({"vhr": {"mean": [120.] * 3, "std": [70.] * 3}, "s2": {"mean": [0.] * 3, "std": [1.] * 3},
                          "s1": {"mean": [0.] * 2, "std": [1.] * 2}})
    wanted = results(model.double(),
                     {key: value.double() if key == "s2" else value for key, value in batch.items()})["buffers"]
    model.float()
    for model.tiles_at_once in (None, 2):
        with torch.autocast("cpu", torch.bfloat16):
            found = results(model, batch)["buffers"]
        for name in ("running_mean", "running_var"):                # of the first layer, whose inputs are not rounded
            name = f"encoders.s2.embed.1.{name}"
            torch.testing.assert_close(found[name].double(), wanted[name], rtol=1e-4, atol=1e-5)


class Waits(TorchDispatchMode):
    """Notes operations whose result the CPU has to know before it can go on: on a GPU it would wait there."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        places = args[1] if "index" in name and isinstance(args[1], (list, tuple)) else ()
        is_mask = any(torch.is_tensor(place) and place.dtype == torch.bool for place in places)
        if is_mask or name in ("nonzero", "_local_scalar_dense", "masked_select", "_unique2", "equal", "is_nonzero"):
            self.seen.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("tiles_at_once, times", [(None, 0), (2, 3 * 2)])
def test_nothing_waits_for_the_device(model, tiles_at_once, times):
    """But for the masks, which are on the CPU: each modality's targets in a part, twice."""
    batch, model.tiles_at_once = make_batch(torch.float32), tiles_at_once
    masks = model.draw_masks(batch)
    with Waits() as ours:
        model.pretrain_loss(batch, masks)[0].backward()
    assert ours.seen == times * 3 * ["index"]
    with Waits() as other:
        plain_form(model).pretrain_loss(batch, masks)
    # the plain form does, for equation 3's anchors: it would be seen
    assert other.seen == ["index"]
    classifier = OmniSat([VHR, S2, S1], embed_dim=32, depth=1, num_classes=4)
    with Waits() as ours:
        classifier(batch).sum().backward()
    assert ours.seen == []


def test_nor_does_what_comes_after_a_pool(model, tmp_path):
    """Running statistics, sums, optimiser; that the step before was finite is read from its copy on the CPU, once."""
    batch, args = make_batch(torch.float32), argparse.Namespace(seed=0, save_minutes=60)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    training = Training(tmp_path / "pretrained.pt", "pretrained", None, {}, {}, args, (0, 1, torch.device("cpu")),
                        model, optimizer, None,
                        ("loss", *model.terms))
    for wanted in ([], ["_local_scalar_dense"]):
        training.begin_step(2)
        for number in range(2):
            loss, terms = model.pretrain_loss(batch, model.draw_masks(batch))
            loss.backward()
            with Waits() as ours:
                training.begin_pool(number, batch["name"])
                training.end_pool(number, torch.stack([loss, *terms.values()]))
            assert ours.seen == []
        with Waits() as ours:
            training.end_step()
        assert ours.seen == wanted


@pytest.mark.parametrize("tiles_at_once", [None, 2])
def test_bfloat16_stays_near_float32(model, tiles_at_once):
    batch = make_batch(torch.float32)
    wanted = results(model, batch)
    model.tiles_at_once = tiles_at_once
    with torch.autocast("cpu", torch.bfloat16):
        found = results(model, batch)
    assert found["loss"].dtype == torch.float32 and 0 < abs(found["loss"] - wanted["loss"]) < 0.01 * wanted["loss"]
    flat, flat_wanted = (torch.cat([g.flatten() for g in run["gradients"].values()]) for run in (found, wanted))
    assert flat.dtype == torch.float32 and (flat @ flat_wanted) / flat.norm() / flat_wanted.norm() > 0.98


@pytest.fixture
def compiler(monkeypatch):
    """compiler(backend): from here on torch.compile traces as ever, and has the backend run what was traced."""
    def choose(backend):
        original = torch.compile
        monkeypatch.setattr(torch, "compile", lambda function: original(function, backend=backend))
        compile_once.cache_clear()
    yield choose
    compile_once.cache_clear()
    torch._dynamo.reset()


@pytest.mark.parametrize("backend, pools", [
    pytest.param("inductor", [(5, None, 3)],
                 marks=pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs g++")),
    ("eager", [(5, None, 3), (3, 2, 4)])])
@torch._dynamo.config.patch(automatic_dynamic_shapes=False)    # whose algebra takes a minute
def test_compiled_steps_are_the_same(backend, pools, compiler):
    """What is compiled has forms of its own; tiles, parts and targets may change, which is all traced again. The names
    of the weights do not. An image, a series and one block: nearly all of the time is the compiler's.
    """
    compiler(backend)
    model = build([VHR, S2], depth=1)
    compiled = copy.deepcopy(model)
    compiled.compile_networks()
    assert list(compiled.state_dict()) == list(model.state_dict())
    for tiles, compiled.tiles_at_once, seed in pools:
        batch = make_batch(torch.float32, tiles)
        masks = model.draw_masks(batch, torch.Generator().manual_seed(seed))
        losses = [m.pretrain_loss(batch, masks)[0] for m in (model, compiled)]
        torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
        wanted, ours = (torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(m.parameters()))])
                        for loss, m in zip(losses, (model, compiled)))
        assert (ours - wanted).norm() < 1e-5 * wanted.norm()


@pytest.mark.parametrize("patch, bypass", [(10, True), (22, False), (40, True), (50, True)])
def test_the_compilers_forms_of_the_image_networks(patch, bypass, compiler):
    """Odd sizes, of which a pool leaves out a row and a column; last windows of 2 and 3; stems with and without
    padding.
    """
    compiler("eager")
    torch.manual_seed(0)
    networks = [change_classes(network, FORMS).double() for network in (ImageEncoder(3, patch, 32),
                                                                        ImageDecoder(3, patch, 32, bypass))]
    x, found = torch.randn(4, 3, patch, patch, dtype=torch.float64), []
    for encode, decode in (networks, [torch.compile(network) for network in networks]):
        token, indices = encode(x)
        image = decode(token, indices)
        loss = (image * torch.linspace(-1, 1, image.numel()).view_as(image)).sum() + token.square().sum()
        found.append((token.detach(), indices, image.detach(),
                      torch.autograd.grad(loss, [p for n in networks for p in n.parameters()])))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-10)


def test_a_compiled_pool_and_the_last_of_an_epoch(compiler):
    """Padded to ten dates, with targets of a fixed number; the shorter pool is not compiled."""
    compiler("eager")
    model = build([VHR, S2], depth=1).double()
    compiled, device = copy.deepcopy(model), torch.device("cpu")
    compiled.compile_networks()
    no_autocast = torch.autocast("cpu", enabled=False)
    steps = PoolStep(model, no_autocast, device), PoolStep(compiled, no_autocast, device, 5)
    for number, tiles in enumerate((5, 5, 3)):
        batch = make_batch(torch.float64, tiles)
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        masks = model.draw_masks(batch, torch.Generator().manual_seed(number))
        torch.testing.assert_close(*(step(batch, masks, 0.5) for step in steps), rtol=1e-9, atol=1e-10)
        assert (torch._dynamo.utils.counters["stats"]["unique_graphs"] > graphs) == (number == 0)
    torch.testing.assert_close(*([p.grad for p in m.parameters()] for m in (model, compiled)), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("said, kind, triton, compilers, wanted", [
    (None, "cuda", True, ("gcc",), True), (None, "cuda", False, ("gcc",), False), (None, "cuda", True, (), False),
    (None, "cpu", True, ("gcc",), False), (True, "cpu", False, (), True), (False, "cuda", True, ("gcc",), False)])
def test_what_is_compiled_by_default(said, kind, triton, compilers, wanted, monkeypatch):
    monkeypatch.setattr(options, "has_triton", lambda: triton)
    monkeypatch.setattr(options.shutil, "which", lambda name: name if name in compilers else None)
    args = argparse.Namespace(compile=said)
    assert options.chosen_compile(args, torch.device(kind), is_worth_it=True) is wanted
    assert options.chosen_compile(args, torch.device(kind), is_worth_it=False) is bool(said)


def test_record_is_refused_where_it_does_nothing():
    for main, what in ((pretrain.main, ["--dataset", "flair", "--data-root", "x"]), (benchmarks.run.main, [])):
        with pytest.raises(UserError, match="--record is for .*compiled.* on a GPU"):
            main([*what, "--record", "--no-compile"])


# Benchmarks

@pytest.mark.parametrize("dataset", benchmarks.run.DATASETS)
def test_every_row_of_the_benchmark_runs(dataset, monkeypatch):
    monkeypatch.setattr(benchmarks.tasks, "DIM", 32)
    monkeypatch.setitem(benchmarks.run.DATASETS, dataset, (3, 10, 1))
    args = benchmarks.run.command_line().parse_args(["--datasets", dataset, "--tiles", "1"])
    args.precision, args.compile, args.record = "float32", False, False
    rows = benchmarks.run.rows_of(args, torch.device("cpu"))
    assert {(row["part"], row["form"]) for row in rows} >= {(part, form) for part in benchmarks.run.PARTS[1:]
                                                           for form in ("ours", "plain")}
    values = {}
    for row in rows:
        value = benchmarks.tasks.task(row, torch.device("cpu"))()
        assert value is None if row["part"] == "optimiser" else value.shape == () and value.isfinite()
        values.setdefault((row["part"], *row["keys"]), []).append(value)
    for part, (first, *others) in values.items():                   # all forms do the same
        assert others and all(part[0] == "optimiser" or torch.isclose(first, value, rtol=1e-4)
                              for value in others), part


def test_the_benchmark_prints_and_saves_its_figures(capsys, tmp_path, monkeypatch):
    """In processes of their own (here forks), with the plain form beside ours, and the readers on generated tiles."""
    monkeypatch.setattr(benchmarks.measure.multiprocessing, "get_context", lambda _, get=multiprocessing.get_context: (
        get("fork")))
    benchmarks.run.main(["--datasets", "treesatai-ts", "--parts", "contrastive", "reader", "--tiles", "1", "--repeats",
                         "1",
                         "--json", str(tmp_path / "figures.json")])
    text = capsys.readouterr().out
    assert "treesatai-ts: contrastive" in text and "times faster than plain" in text and "treesatai-ts: reader" in text
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [row["part"] for row in figures["rows"]] == ["contrastive"] * 4 + ["reader"] and figures["flops"] > 0
    assert figures["rows"][0]["gflop"] == pytest.approx(4 * 108 ** 2 * 256 / 1e9)
