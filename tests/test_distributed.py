"""Several processes compute what one does: gradients, order of tiles, errors."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as multiprocessing

from datasets.loading import Pools
from datasets.sensors import Sensor
from models.omnisat import OmniSat
from utils import distributed
from utils.errors import UserError

ROOT = Path(__file__).parent.parent
SENSORS = [Sensor("a", "series", ("x", "y"), 10, 1, 366), Sensor("b", "series", ("x", "y", "z"), 10, 1, 366)]
TILES, POOL, BATCH = 7, 2, 6    # two steps: three pools, then one pool of a single tile


def batch_of(indices):
    """Tiles whose values follow from their number; tile 3 has no dates of b."""
    batch = {}
    for s, sensor in enumerate(SENSORS):
        draws = [torch.Generator().manual_seed(100 * s + i) for i in indices]
        batch[sensor.key] = torch.stack([torch.randn(4, len(sensor.bands), 2, 2, generator=g, dtype=torch.float64) for g in draws])
        batch[f"{sensor.key}_dates"] = torch.arange(4).repeat(len(indices), 1) * 30
        batch[f"{sensor.key}_padded"] = torch.tensor([[s == 1 and i == 3] * 4 for i in indices])
    return batch


def step_gradients(rank, world):
    """The gradients of both steps of an epoch, after they are summed over the processes."""
    torch.manual_seed(0)
    model = OmniSat(SENSORS, embed_dim=32, depth=1).double()
    pools, gradients = Pools(TILES, POOL, BATCH, seed=5, rank=rank, world=world), []
    pools.epoch = 2
    for step_size, step_pools in pools.steps():
        for number, indices in step_pools:
            batch = batch_of(indices)
            loss, _ = model.pretrain_loss(batch, model.draw_masks(batch, torch.Generator().manual_seed(number)))
            (loss * len(indices) / step_size).backward()
        distributed.sum_gradients(model)
        gradients.append({name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()})
        model.zero_grad(set_to_none=True)
    return gradients


def worker(rank, world, meeting_point, path):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{meeting_point}", rank=rank, world_size=world)
    torch.save(step_gradients(rank, world), f"{path}{rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("world", [2, 3])
def test_gradients_do_not_depend_on_the_number_of_processes(world, tmp_path):
    """Float64. The second step has one pool, so all processes but one have nothing to do in it."""
    multiprocessing.spawn(worker, (world, tmp_path / "meet", tmp_path / "gradients"), nprocs=world)
    expected = step_gradients(0, 1)
    for rank in range(world):
        for one, other in zip(expected, torch.load(tmp_path / f"gradients{rank}", weights_only=True)):
            for name, gradient in one.items():
                torch.testing.assert_close(other[name], gradient, rtol=1e-9, atol=1e-11, msg=name)
    assert all(gradient.abs().max() > 0 for gradient in expected[0].values())


def test_pools_are_the_same_for_any_number_of_processes():
    def pools(rank, world, epoch=1):
        sampler = Pools(20, 3, 9, seed=1, rank=rank, world=world)
        sampler.epoch = epoch
        return dict(pool for _, step in sampler.steps() for pool in step)
    one = pools(0, 1)
    assert sorted(i for indices in one.values() for i in indices) == list(range(20))    # each tile once
    assert [len(indices) for indices in one.values()] == [3] * 6 + [2]
    for world in (2, 3, 5):
        together = [pools(rank, world) for rank in range(world)]
        assert {number: indices for part in together for number, indices in part.items()} == one
        assert sum(map(len, together)) == len(one)
    assert one == pools(0, 1) and one != pools(0, 1, epoch=2)
    assert "1 of 3 processes" in Pools(20, 4, 8, 0, 0, 3).idle() and Pools(20, 3, 9, 0, 0, 3).idle() is None


def test_an_error_on_one_process_is_told_once(tmp_path):
    run = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "pretrain.py",
                          "--dataset", "treesatai-ts", "--data-root", str(tmp_path), "--output", str(tmp_path / "out")],
                         cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=120)
    told = [line for line in run.stderr.splitlines() if line.startswith("pretrain.py: error:")]
    assert run.returncode != 0 and len(told) == 1 and str(tmp_path) in told[0]
    assert "UserError" not in run.stderr    # no trace of ours; torchrun adds its own report


def test_one_process_needs_no_group():
    assert distributed.first_alone(lambda: 3) == 3 and distributed.gather("x") == ["x"]
    with pytest.raises(UserError, match="why"):
        distributed.first_alone(lambda: (_ for _ in ()).throw(UserError("why")))
