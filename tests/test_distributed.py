"""Several processes compute what one does: gradients, running statistics, order of tiles; errors.

`python -m tests.test_distributed` prints the table of errors.
"""
import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as multiprocessing

from datasets import open_dataset
from datasets.band_statistics import training_statistics
from datasets.loading import Pools, collate, make_loader
from datasets.sensors import Sensor
from datasets.simulated.demo import write_treesatai
from engine import distributed
from engine.log import code, provenance
from models.fast.omnisat import FastOmniSat as OmniSat
from utils import memory
from utils.errors import UserError

ROOT = Path(__file__).parent.parent
SENSORS = [Sensor("a", "series", ("x", "y"), 10, 1, 366), Sensor("b", "series", ("x", "y", "z"), 10, 1, 366)]


def batch_of(indices, without):
    """Tiles whose values follow from their number; those in `without` have no dates of b."""
    batch = {}
    for s, sensor in enumerate(SENSORS):
        draws = [torch.Generator().manual_seed(100 * s + i) for i in indices]
        batch[sensor.key] = torch.stack([torch.randn(4, len(sensor.bands), 2, 2, generator=g, dtype=torch.float64)
                                         for g in draws])
        batch[f"{sensor.key}_dates"] = torch.arange(4).repeat(len(indices), 1) * 30
        batch[f"{sensor.key}_padded"] = torch.tensor([[s == 1 and i in without] * 4 for i in indices])
    return batch


def epoch(rank, world, tiles, pool, batch, without, classes=0):
    """Steps of an epoch as the scripts make them: the gradients of each step, and the model's buffers at the end.

    classes: 0 for pretraining.
    """
    torch.manual_seed(0)
    model = OmniSat(SENSORS, embed_dim=32, depth=1, num_classes=classes).double()
    pools, results, statistics = Pools(tiles, pool, batch, seed=5, rank=rank,
                                       world=world), [], distributed.RunningStatistics(model)
    pools.epoch = 2
    for step_size, step_pools in pools.steps():
        statistics.begin_step(pools.a_step)
        for number, indices in step_pools:
            content = batch_of(indices, without)
            statistics.begin_pool()
            if classes:
                labels = torch.tensor([[float(i % (k + 2) == 0) for k in range(classes)] for i in indices],
                                      dtype=torch.float64)
                loss = torch.nn.functional.binary_cross_entropy_with_logits(model(content), labels)
            else:
                loss, _ = model.pretrain_loss(content, model.draw_masks(content, torch.Generator().manual_seed(number)))
            (loss * len(indices) / step_size).backward()
            statistics.end_pool(number % pools.a_step)
        gradients = distributed.gradients(model)
        distributed.sum_over_processes([*gradients, statistics.found])
        statistics.end_step()
        results.append({name: p.grad.clone() for name, p in model.named_parameters()})
        model.zero_grad(set_to_none=True)
    return [*results,
            {name: value.double() for name, value in model.named_buffers() if "running" in name or "tracked" in name}]


# tiles, pool, batch, and classes of fine-tuning
CASES = {
    "two full steps": (12, 2, 6),
    # three pools, then one of a single tile: others have nothing to do
    "uneven last step": (7, 2, 6),
    "fewer tiles than processes": (2, 1, 6),
    # not in the first and the third pool, which process 0 of 2 and of 3 gets
    "no b on one process": (6, 2, 6),
    "fine-tuning": (12, 2, 6, 3),
    "fine-tuning, a pool of one tile": (7, 2, 6, 3),
}


def run_case(case, rank=0, world=1):
    tiles, pool, batch, *classes = CASES[case]
    pools = Pools(tiles, pool, batch, seed=5)
    pools.epoch = 2
    numbered = next(iter(pools.steps()))[1]
    without = {i for number,
               indices in numbered if number != 1 for i in indices} if case == "no b on one process" else {3}
    return epoch(rank, world, tiles, pool, batch, without, *classes)


def worker(rank, world, meeting_point, path):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{meeting_point}", rank=rank, world_size=world)
    torch.save({case: run_case(case, rank, world) for case in CASES}, f"{path}{rank}")
    torch.distributed.destroy_process_group()


def errors(world, folder):
    """{case: largest error of a gradient over its norm, of a running statistic} on `world` processes against one."""
    multiprocessing.start_processes(worker, (world, folder / f"meet{world}", folder / f"gradients{world}-"),
                                    nprocs=world, start_method="fork")
    found = {}
    for case in CASES:
        expected, worst = run_case(case), [0.0, 0.0]
        for rank in range(world):
            results = torch.load(folder / f"gradients{world}-{rank}", weights_only=True)[case]
            assert len(results) == len(expected)
            for is_last, one, other in zip([*[0] * (len(expected) - 1), 1], expected, results):
                for name, value in one.items():
                    if name == "combiner.norm.bias" and "fine-tuning" in case:
                        # the batch norm behind cancels it: a gradient of roundings
                        continue
                    error = (other[name] - value).norm() / value.norm().clamp(min=1e-12)
                    worst[is_last] = max(worst[is_last], error.item())
        found[case] = worst
    return found


@pytest.mark.parametrize("world", [2, 3])
def test_processes_compute_what_one_does(world, tmp_path):
    """Float64: gradients of every step, running statistics after the epoch."""
    for case, (gradient, statistic) in errors(world, tmp_path).items():
        assert gradient < 1e-11 and statistic < 1e-14, case


def test_float32_is_float32_on_a_gpu():
    """No TF32 in convolutions either, which torch allows by default."""
    code = ("import torch; from engine import distributed; print(torch.backends.cudnn.allow_tf32); "
            "distributed.setup(); "
            "print(torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)")
    run = subprocess.run([sys.executable, "-B", "-c", code], cwd=ROOT, capture_output=True, text=True)    # not forked
    assert run.stdout.split() == ["True", "False", "False"], run.stderr


def test_every_parameter_has_a_gradient_in_these_cases():
    assert all(gradient.abs().max() > 0 for gradient in run_case("uneven last step")[0].values())


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


def test_validation_is_mixed_and_always_the_same():
    """Of a list sorted by species, no pool has only one; the same pools on any number of processes, in each epoch."""
    species = [i // 25 for i in range(100)]

    def pools(rank=0, world=1, epoch=1, **options):
        sampler = Pools(100, 20, 20 * world, None, rank, world, **options)
        sampler.epoch = epoch
        return [pool for _, step in sampler.steps() for pool in step], list(sampler)
    mixed, sent = pools(is_mixed=True)
    assert sent == [indices for _, indices in mixed] and sorted(sum(sent, [])) == list(range(100))
    assert all(len({species[i] for i in indices}) == 4 for _, indices in mixed)
    assert pools(is_mixed=True, epoch=3)[0] == mixed and [number for number, _ in mixed] == list(range(5))
    for world in (2, 3):
        together = [pool for rank in range(world) for pool in pools(rank, world, is_mixed=True)[0]]
        assert sorted(together) == sorted(mixed)
    assert [indices for _, indices in pools()[0]] == [list(range(at, at + 20)) for at in range(0, 100, 20)]    # a test


class LargeTiles(torch.utils.data.Dataset):
    """Tiles of 6 to 12 MB; each knows what memory its reading process had at most by then (MB), beyond what it began
    with.
    """
    started = None

    def __len__(self):
        return 48

    def __getitem__(self, i):
        memory = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
        self.started = self.started or int(memory["VmHWM"].split()[0]) / 1000
        dates = 1 + i[0] % 2
        return {"name": str(i[0]), "label": torch.tensor([int(memory["VmHWM"].split()[0]) / 1000 - self.started]),
                "s2": torch.full((dates, 6, 1000, 1000), i[0], dtype=torch.int8),
                "s2_dates": torch.arange(dates) + i[0]}


@pytest.mark.skipif(sys.platform != "linux", reason="memory is looked up in /proc")
def test_a_reading_process_holds_a_pool_once():
    """Tiles are freed while they are stacked: 24 tiles are a pool of 288 MB, of which 216 MB are not padding."""
    memory.reuse_memory()
    for at, batch in enumerate(make_loader(LargeTiles(), Pools(48, 24, 24, seed=0), workers=1)):
        assert batch["s2"].shape == (24, 2, 6, 1000, 1000) and batch["s2"].is_shared()
        for name, tile, days, padded in zip(batch["name"], batch["s2"], batch["s2_dates"], batch["s2_padded"]):
            i = int(name)
            assert (tile[0] == i).all() and (tile[1] == (i if i % 2 else 0)).all()
            assert padded.tolist() == [False, i % 2 == 0] and days.tolist() == [i, i + 1 if i % 2 else 0]
        if at == 1:    # after the first pool was stacked
            assert 200 < batch["label"].min() and batch["label"].max() < 216 + 60


def test_tiles_stay_as_they_are_or_are_emptied():
    def tiles():
        return [{"name": f"{dates}", "label": torch.ones(2), "image": torch.arange(12).view(2, 2, 3).permute(2, 0, 1),
                 "s": torch.ones(dates, 1, 2, 2, dtype=kind), "s_dates": torch.arange(dates)}
                for dates, kind in ((0, torch.int16), (2, torch.float32))]
    kept, emptied = tiles(), tiles()
    one, other = collate(kept), collate(emptied, keeps=False)
    assert one["s"].dtype == torch.float32 and one["image"][0, 2].tolist() == [[2, 5], [8, 11]]
    assert all(torch.equal(one[key], other[key]) for key in one if key != "name")
    assert kept[1]["s"].shape == (2, 1, 2, 2) and [set(tile) for tile in emptied] == [{"name", "s_dates"}] * 2
    with pytest.raises(ValueError, match=r"image of 2: \(1, 2, 2\), of 0 \(3, 2, 2\)"):
        collate([kept[0], kept[1] | {"image": torch.zeros(1, 2, 2)}])


def test_an_epoch_of_few_steps_passes_over_the_tiles_again():
    """20 tiles, 9 a step: 3 steps a pass, so 3 passes for 7 steps. Each has an order and dates of its own, and goes on
    from any step.
    """
    pools = Pools(20, 3, 9, seed=1, least=7)
    pools.epoch = 2
    steps, sent = list(pools.steps()), list(pools)
    assert (pools.passes, pools.tiles, len(steps)) == (3, 60, 9) and [tiles for tiles, _ in steps] == [9, 9, 2] * 3
    passes = [[i for _, step in steps[at:at + 3] for _, indices in step for i in indices] for at in (0, 3, 6)]
    assert all(sorted(tiles) == list(range(20)) for tiles in passes) and passes[0] != passes[1] != passes[2]
    turns = [[turn for batch in sent for _, turn in batch][at:at + 20] for at in (0, 20, 40)]
    assert turns == [[4] * 20, [5] * 20, [6] * 20]                            # epoch 1 had passes 1, 2 and 3
    numbers = [number for _, step in steps for number, _ in step]
    # what is random in a pool follows from its number
    assert len(set(numbers)) == len(numbers)
    for start in range(9):
        pools.start = start
        assert list(pools.steps()) == steps[start:] and pools.before(start) == sum(tiles for tiles, _ in steps[:start])
    one = Pools(20, 3, 9, seed=1)
    one.epoch = 5
    assert [i for _, step in one.steps() for _, indices in step for i in indices] == passes[1]
    for world in (2, 3):
        ranks = [Pools(20, 3, 9, seed=1, rank=rank, world=world, least=7) for rank in range(world)]
        for rank in ranks:
            rank.epoch = 2
        assert sorted(pool for rank in ranks for _, step in rank.steps() for pool in step) == sorted(
            pool for _, step in steps for pool in step)


def test_processes_without_work_are_told():
    assert "1 of 3 processes" in Pools(20, 4, 8, 0, 0, 3).idle() and Pools(20, 3, 9, 0, 0, 3).idle() is None


def test_an_error_on_one_process_is_told_once(tmp_path):
    run = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
                          "pretrain.py",
                          "--dataset", "treesatai-ts", "--data-root", str(tmp_path), "--output", str(tmp_path / "out")],
                         cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
                         timeout=120)
    told = [line for line in run.stderr.splitlines() if line.startswith("pretrain.py: error:")]
    assert run.returncode != 0 and len(told) == 1 and str(tmp_path) in told[0]
    assert "UserError" not in run.stderr    # no trace of ours; torchrun adds its own report


def test_the_error_of_a_process_is_on_top(tmp_path):
    """A file that only process 1 reads is cut off in the middle of training: the run ends at once, its error comes
    first.
    """
    data = write_treesatai(tmp_path / "data", train=24, test=4, seed=3)
    common = ["--dataset", "treesatai-ts", "--modalities", "s2", "--data-root", str(data), "--output",
              str(tmp_path / "out"), "--batch-size", "4",
              "--pool", "2", "--workers", "1", "--embed-dim", "32", "--depth", "0", "--epochs", "1"]
    train = open_dataset("treesatai-ts", data, "train", ("s2",), labelled=False)
    training_statistics(train)                                                # before the file is damaged
    pools = Pools(len(train), 2, 4, 0, rank=1, world=2)
    pools.epoch = 1
    victim = Path(train.paths["s2"][list(pools.steps())[2][1][0][1][0]])
    victim.write_bytes(victim.read_bytes()[:5000])
    run = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
                          "pretrain.py", *common],
                         cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
                         timeout=120)
    lines = [line for line in run.stderr.splitlines() if "rror" in line or "Traceback" in line]
    assert run.returncode != 0 and lines[0].startswith("pretrain.py: error: ") and victim.name in lines[0]
    ours = run.stderr.split("torch/distributed/elastic")[0]                   # then comes torchrun's report
    assert "Traceback" not in ours and ours.count("pretrain.py: error") == 1


def test_processes_meet_although_the_store_holds_a_dead_address(monkeypatch):
    """As after a restart: first a port where something listens but nobody answers, then one where nobody listens."""
    agent, dead = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False), socket.socket()
    for name, value in (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", str(agent.port)),
                        ("TORCHELASTIC_USE_AGENT_STORE", "True")):
        monkeypatch.setenv(name, value)
    dead.bind(("127.0.0.1", 0))
    dead.listen()
    agent.set("omnisat", str(dead.getsockname()[1]))
    with ThreadPoolExecutor() as pool:
        other = pool.submit(distributed.meeting_point, 1, 2)
        time.sleep(0.5)
        assert not other.done()
        dead.close()
        first = distributed.meeting_point(0, 2)
        second = other.result(30)
    first["store"].set("word", "heard")
    assert second["store"].get("word") == b"heard" and (second["rank"], second["world_size"]) == (1, 2)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the names of threads from /proc")
def test_the_threads_of_the_group_end_with_it(tmp_path):
    """One that still runs when Python ends aborts the process now and then. It did: the first step of an optimiser
    kept the group.
    """
    script = tmp_path / "script.py"
    script.write_text("""\
from pathlib import Path

import torch

from engine import distributed

def threads():
    names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name or "store" in name]

distributed.setup()
weight = torch.nn.Parameter(torch.zeros(3))
weight.sum().backward()
distributed.sum_over_processes([weight.grad])
torch.optim.Adam([weight], fused=True).step()
assert distributed.gather(weight.grad.tolist()) == [[2, 2, 2]] * 2 and threads()
distributed.finish()
assert not threads(), threads()
""")
    run = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
                          str(script)], cwd=ROOT,
                         capture_output=True, text=True,
                         env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, timeout=120)
    assert run.returncode == 0, run.stderr


def test_nodes_are_told_from_processes_of_one_node(tmp_path):
    """Two nodes of a process each, as two torchruns on this machine: not one node of two."""
    script = tmp_path / "script.py"
    script.write_text("import json\nfrom engine import distributed\nfrom engine.log import provenance\n"
                      "rank, _, device = distributed.setup()\n"
                      "source = provenance('pretrain.py', ['--epochs', '3'], device)\n"
                      f"open(rf'{tmp_path}/{{rank}}.json', 'w').write(json.dumps(source))\ndistributed.finish()\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1",
                "--master_addr=127.0.0.1",
                f"--master_port={port}"]
    nodes = [subprocess.Popen([*launcher, f"--node_rank={n}", str(script)], cwd=ROOT, stderr=subprocess.PIPE, text=True,
                              env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}) for n in range(2)]
    for node in nodes:
        told = node.communicate(timeout=120)[1]
        assert node.returncode == 0, told
    for rank in range(2):
        source = json.loads((tmp_path / f"{rank}.json").read_text())
        assert source["processes"] == "2 x 1"
        assert source["command"] == "torchrun --nnodes=2 --nproc_per_node=1 pretrain.py --epochs 3"


@pytest.mark.parametrize("nodes, processes, command", [
    ("a", "1 x 1", "python"), ("aaa", "1 x 3", "torchrun --nproc_per_node=3"),
    ("abc", "3 x 1", "torchrun --nnodes=3 --nproc_per_node=1"),
    ("aab", "nodes of 2, 1", "torchrun --nnodes=2 --nproc_per_node=2")])
def test_provenance_is_of_all_processes(nodes, processes, command, monkeypatch):
    """Another card or checkout on the last one is told; one tree with changes is enough."""
    def gather(mine):
        last = mine | {"node": nodes[-1], "device": "A100", "commit": "decade", "dirty": True}
        other = mine | {"device": "H100", "commit": "facade", "dirty": False}
        return [other | {"node": node} for node in nodes[:-1]] + [last]
    monkeypatch.setattr("engine.log.distributed.gather", gather)
    source = provenance("pretrain.py", ["--seed", "1"], torch.device("cpu"))
    assert (source["processes"], source["command"]) == (processes, f"{command} pretrain.py --seed 1")
    assert (source["device"], source["commit"], source["dirty"]) == (
        ("A100", "decade", True) if nodes == "a" else ("H100 + A100", "facade + decade", True))


def test_code_is_that_of_the_start_of_the_process(monkeypatch):
    """What git says later is of other files than those that run."""
    before = code()
    monkeypatch.setattr("engine.log.subprocess.run", lambda *_, **__: pytest.fail("asked again"))
    assert code() == before and len(before["commit"]) in (40, len("unknown"))
    code.cache_clear()
    monkeypatch.setattr("engine.log.subprocess.run", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError("git")))
    assert code() == {"commit": "unknown", "dirty": "unknown"}                # no trace where there is no git
    code.cache_clear()


def test_one_process_needs_no_group():
    assert distributed.first_alone(lambda: 3) == 3 and distributed.gather("x") == ["x"]
    with pytest.raises(UserError, match="why"):
        distributed.first_alone(lambda: (_ for _ in ()).throw(UserError("why")))


if __name__ == "__main__":
    import tempfile
    print(f"{'case':32}{'processes':>10}{'gradient':>12}{'running statistics':>22}")
    with tempfile.TemporaryDirectory() as folder:
        for world in (1, 2, 3):
            for case, (gradient, statistic) in (errors(world, Path(folder))).items():
                print(f"{case:32}{world:10}{gradient:12.1e}{statistic:22.1e}")
