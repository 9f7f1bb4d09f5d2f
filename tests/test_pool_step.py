"""A pool's step: masks of a size that does not follow from the draw, and on a GPU its recording."""
import copy

import pytest
import torch
from test_step import S1, S2, VHR, compiler, make_batch, model  # noqa: F401: fixtures

import benchmarks.measure
import benchmarks.run
import benchmarks.tasks
from engine.pool_step import PoolStep, pad_dates
from models.fast.omnisat import FastOmniSat as OmniSat


def draw(model, batch, seed=3):
    return model.draw_masks(batch, torch.Generator().manual_seed(seed))


def step_of(model, batch, masks):
    """The values of a step, and the gradients that it leaves."""
    values = PoolStep(model, torch.autocast("cpu", enabled=False), torch.device("cpu"))(batch, masks, 0.25)
    return values, [p.grad for p in model.parameters()]


def test_a_step_adds_its_share_of_the_gradient(model):
    batch = make_batch(torch.float32)
    masks = draw(model, batch)
    loss, terms = model.pretrain_loss(batch, masks)
    wanted = [gradient / 4 for gradient in torch.autograd.grad(loss, list(model.parameters()))]
    values, gradients = step_of(model, batch, masks)
    assert values.tolist() == [loss.item(), *(term.item() for term in terms.values())] and not values.requires_grad
    torch.testing.assert_close(gradients, wanted, rtol=1e-5, atol=1e-7)
    step_of(model, batch, masks)                                    # the second one is added
    torch.testing.assert_close([p.grad / 2 for p in model.parameters()], wanted, rtol=1e-5, atol=1e-7)


def test_masks_of_fixed_size_give_the_same_loss(model):
    """Their shapes do not depend on the draw, though the number of targets of a modality does."""
    model.double()
    batch, other = make_batch(), copy.deepcopy(model)
    masks = [draw(model, batch, seed) for seed in range(9)]
    assert len({len(m["vhr_targets"]) for m in masks}) > 2
    fixed = [model.fixed_size(m) for m in masks]
    assert len({tuple((name, value.shape, value.dtype) for name, value in f.items()) for f in fixed}) == 1
    ours, wanted = step_of(model, pad_dates(batch), fixed[0]), step_of(other, batch, masks[0])
    assert pad_dates(batch)["s2"].shape[1] == pad_dates(pad_dates(batch))["s1_dates"].shape[1] == 10 and batch[
        "s2"].shape[1] == 6
    single = {name: value[:, :1] if name[:2] in ("s1", "s2") else value for name, value in batch.items()}
    assert pad_dates(single)["s2_padded"].shape[1] == 1
    torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=1e-12)


def test_no_fixed_size_where_there_is_none(model):
    """In parts, and where the draw has, by a chance of one in millions, more targets than are provided for."""
    batch = make_batch()
    masks = draw(model, batch)
    many = masks | {"s2_targets": torch.zeros(1000, dtype=torch.int64)}
    assert model.fixed_size(masks) is not None and model.fixed_size(many) is None
    model.tiles_at_once = 2
    assert model.fixed_size(masks) is None
    assert OmniSat([VHR, S2], 32, 1, ablation="no_reconstruction").fixed_size({}) == {}


@pytest.mark.parametrize("tiles", [128, 384])
def test_the_fixed_size_is_hardly_more_than_the_mean(tiles):
    """Of TreeSatAI-TS' 36 patches: a few percent is decoded for nothing, and five deviations are provided for."""
    model = OmniSat([VHR, S2, S1], 32, 1)
    batch = {"vhr": torch.zeros(tiles, 3, 60, 60, dtype=torch.uint8)} | {
        key: torch.zeros(tiles, 1, bands, 6 * patch, 6 * patch) for key, bands, patch in (("s2", 3, 1), ("s1", 2, 2))}
    batch |= {f"{key}_padded": torch.zeros(tiles, 1, dtype=torch.bool) for key in ("s2", "s1")}
    masks = draw(model, batch)
    size = len(model.fixed_size(masks)["vhr_targets"])
    assert 0.75 * 36 * tiles + 4 * (36 * tiles * 0.75 * 0.25) ** 0.5 < size < 1.05 * 0.75 * 36 * tiles


class Graph:
    """In place of a CUDA graph, where there is no GPU: nothing is done until it is replayed."""

    def __init__(self, function):
        self.function, self.values = function, torch.tensor(torch.nan)

    def replay(self):
        self.values.set_(self.function())

    def pool(self):
        return "memory"


@pytest.fixture
def graphs(monkeypatch):
    """From here on what is captured is a Graph; a list of them."""
    graphs = []

    def capture(function, memory=None):
        graphs.append(Graph(function))
        return graphs[-1], graphs[-1].values
    for where in ("benchmarks.tasks", "engine.pool_step"):
        monkeypatch.setattr(f"{where}.capture", capture)
    return graphs


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_recording_does_what_the_step_does(model, device, request):
    """Pools of one shape (as written, recorded, replayed) and one of another, with other tiles, dates and masks each.
    """
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("CUDA graphs need a GPU")
    if device == "cpu":                                             # all but the graph itself
        request.getfixturevalue("graphs")
    device = torch.device(device)
    other = copy.deepcopy(model.to(device))
    steps = [PoolStep(m, torch.autocast(device.type, enabled=False), device, *how) for m,
             how in ((model, (5, True)), (other, ()))]
    for number, tiles in enumerate((5, 5, 5, 5, 3, 5)):
        batch = make_batch(torch.float32, tiles)
        batch["s2"] += 0.1 * number
        if number == 3:
            batch = {name: value[:, :4] if name.startswith("s2") else value for name, value in batch.items()}
        masks = draw(model, batch, number)
        values = [step(batch, masks, 0.1 * number) for step in steps]
        torch.testing.assert_close(*values, rtol=1e-5, atol=1e-6)
        gradients = [torch.cat([p.grad.flatten() for p in m.parameters()]) for m in (model, other)]
        assert (gradients[0] - gradients[1]).norm() <= 1e-4 * gradients[1].norm() and (number == 0
                                                                                       or gradients[1].norm() > 0)
        torch.testing.assert_close(dict(model.named_buffers()), dict(other.named_buffers()), rtol=1e-4, atol=1e-5)
    assert [recording is not None for recording in steps[0].recordings.values()] == [True]


@pytest.mark.parametrize("part", ["encoder", "combiner", "contrastive", "decoders", "step"])
def test_recorded_rows_of_the_benchmark(part, compiler, graphs, monkeypatch):
    """What `python -m benchmarks.run --record` does on a GPU, but for the compiler's kernels and the graph itself."""
    compiler("eager")
    monkeypatch.setattr(benchmarks.measure, "reuse_memory", lambda: None)
    monkeypatch.setattr(benchmarks.tasks, "DIM", 32)
    monkeypatch.setitem(benchmarks.run.DATASETS, "treesatai-ts", (3, 10, 2))
    args = benchmarks.run.command_line().parse_args(["--forms", "ours", "--datasets", "treesatai-ts", "--parts", part,
                                                     "--repeats", "2",
                                                     "--precision", "bfloat16", "--tiles", "2", "--compile",
                                                     "--record"])
    row = benchmarks.run.rows_of(args, torch.device("cpu"))[0]
    figures = benchmarks.measure.measure(row)
    assert len(graphs) == 1 and figures["seconds"] > 0 and figures["gflop"] > 0
    value = graphs[0].values.flatten()[0]
    if part != "step":                                              # whose weights have moved
        torch.testing.assert_close(value, benchmarks.tasks.task(row, torch.device("cpu"))(is_counted=True), rtol=1e-3,
                                   atol=1e-3)
    assert value.isfinite()                                         # it was replayed
