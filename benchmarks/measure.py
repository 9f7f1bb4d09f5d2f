"""How a row of benchmarks.run is measured: seconds, memory, operations, in a process of its own."""
import multiprocessing
import time

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks import tasks
from engine.distributed import exact_float32
from utils.memory import memory, reuse_memory

IN_A_ROW = 8    # short runs of a GPU that are timed together: as in training, nothing waits between them


class Operations(TorchDispatchMode):
    """Adds up the operations of products and convolutions. Torch's own FlopCounterMode keeps activations that should
    be freed.
    """
    total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        value, count = function(*args, **(kwargs or {})), flop_registry.get(function.overloadpacket)
        self.total += count(*args, **(kwargs or {}), out_val=value) if count else 0
        return value


def wait(device):
    """For what the device was told to do."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure(row):
    """The figures of a row, run in this process, or a text where there are none."""
    torch.set_num_threads(row["threads"])
    device = torch.device(row["device"])
    if device.type == "cpu" and row["form"] in ("ours", "plain, memory kept"):
        reuse_memory()
    exact_float32()
    if row["part"] == "ceiling":
        return {"flops": ceiling(device, row["precision"])}
    try:
        run, before = tasks.task(row, device), memory(device, peak=False)
        if row["record"] and row["form"] == "ours" and row["part"] not in ("step", "optimiser"):
            run = tasks.recorded(run)
        seconds = best(run, row, device)
        gb = memory(device, peak=True) - before
        return {"seconds": seconds, "gb": gb, "gflop": operations_of(run, row) / 1e9}
    except torch.OutOfMemoryError:
        return "out of memory"


def best(run, row, device):
    """Seconds of the best of the row's repeats, after runs that are not counted."""
    def timed(runs):
        wait(device)
        start = time.perf_counter()
        for _ in range(runs):
            run()
        wait(device)
        return (time.perf_counter() - start) / runs
    for _ in range(3 if row["compile"] and device.type == "cuda" else 1):    # compiled, recorded
        first = timed(1)
    runs = IN_A_ROW if device.type == "cuda" and first < 0.5 else 1
    return min(timed(runs) for _ in range(row["repeats"]))


def operations_of(run, row):
    """Of one run; of the contrastive loss what ours computes, of the plain form too."""
    if row["part"] == "contrastive":
        return 4 * (row["tiles"] * len(row["keys"]) * row["side"] ** 2) ** 2 * tasks.DIM
    with Operations() as operations, torch.compiler.set_stance("force_eager"):
        run(is_counted=True)
    return operations.total


def ceiling(device, precision):
    """Operations a second of a plain matrix product, the best of several."""
    size, depth, count = (8192, 8192, 20) if device.type == "cuda" else (4096, tasks.DIM, 10)
    kind = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a, b = (torch.randn(*shape, device=device, dtype=kind) for shape in ((size, depth), (depth, size)))
    times = []
    for _ in range(count):
        wait(device)
        start = time.perf_counter()
        a @ b
        wait(device)
        times.append(time.perf_counter() - start)
    return 2 * size * size * depth / min(times)


def in_a_process(row):
    """measure(row) in a process of its own."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(row, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        return f"ended with code {process.exitcode}{': out of memory?' if process.exitcode == -9 else ''}"


def _send(row, pipe):
    pipe.send(measure(row))
