"""One process and torchrun are one code path: without torchrun there is one process, of rank 0."""
import os
import socket
import time
from datetime import timedelta

import torch
import torch.distributed as dist
# The optimiser imports this too, but late: the defaults of its functions would take hold of the group, which then
# outlives finish(),
# and whose threads abort one process in some tens at its end. Imported before there is a group, it keeps none.
import torch.distributed.nn.functional
from torch import nn

from utils.errors import UserError
from utils.files import end_with_parent
from utils.memory import reuse_memory

PATIENCE = timedelta(hours=2)    # of processes for rank 0, while it reads all tiles for the statistics
_cpu_group = None    # of processes on GPUs: for what must not wait for these; None is the usual group


def setup():
    """Join the processes that torchrun started (nccl on GPU, gloo on CPU). Returns (rank, world, device)."""
    global _cpu_group
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = torch.device("cpu")
    exact_float32()
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    else:
        reuse_memory()
    if world > 1:
        end_with_parent()
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=PATIENCE, **meeting_point(rank, world))
        _cpu_group = dist.new_group(backend="gloo", timeout=PATIENCE) if device.type == "cuda" else None
    return rank, world, device


def exact_float32():
    """Have float32 be float32 on a GPU: by default torch's convolutions round their factors to 10 bits (TF32)."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def meeting_point(rank, world):
    """Where the processes find each other, as arguments of init_process_group.

    After a restart torchrun (of torch 2.13) gives its workers the store of before, with the addresses of dead
    processes in it: they fail or wait for ever. So rank 0 opens a store of its own and puts its port there; others try
    until it answers.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return {}
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    shared, store, end = dist.TCPStore(host, port, is_master=False), None, time.time() + 600
    if rank == 0:
        store = dist.TCPStore(host, 0, world, is_master=True, wait_for_workers=False)
        shared.set("omnisat", str(store.port))
    while store is None:
        at = int(shared.get("omnisat"))    # waits until there is one; it may be of before
        try:
            socket.create_connection((host, at), timeout=5).close()
            store = dist.TCPStore(host, at, world, is_master=False, timeout=timedelta(seconds=10))
        # nobody there; or what a killed process left, whose reading processes end in some seconds
        except (OSError, RuntimeError):
            if time.time() > end:
                raise
            time.sleep(0.1)
    store.set_timeout(PATIENCE)
    return {"store": store, "rank": rank, "world_size": world}


def finish():
    """Leave the group, and end its threads: one that still runs when Python ends may abort the process."""
    global _cpu_group
    if dist.is_initialized():
        dist.destroy_process_group()
    _cpu_group = None


def first_alone(function):
    """Run the function on rank 0 first, then on the others, which find what it wrote. Returns its value.

    A UserError on rank 0 is raised on all, and told once.
    """
    if not dist.is_initialized():
        return function()
    value, failure = None, None
    if dist.get_rank() == 0:
        try:
            value = function()
        except UserError as error:
            failure = error
    told = gather(failure and (str(failure), failure.code))[0]
    if told is not None:
        raise UserError(told[0], is_told=dist.get_rank() > 0, code=told[1])
    return value if dist.get_rank() == 0 else function()


def sum_over_processes(tensors):
    """Sum each tensor of a list over all processes, in place, as one vector."""
    if dist.is_initialized():
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, summed in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
            tensor.copy_(summed.view_as(tensor))


def gradients(model):
    """The gradients of all parameters that are trained; one that had no part in the loss counts as zero.

    Each process has weighted its pools by their share of the whole batch, so the sum over the processes is the
    gradient of the mean over the batch, however the pools are spread; DistributedDataParallel would average over
    processes instead.
    """
    for p in model.parameters():
        if p.requires_grad and p.grad is None:
            p.grad = torch.zeros_like(p)
    return [p.grad for p in model.parameters() if p.requires_grad]


class RunningStatistics:
    """The running means and variances of a model's batch norms, moved by every pool in order, whatever process had it.

    A batch norm only knows its own process. So its buffers are emptied before a pool and its momentum is 1: after the
    pool they hold what this pool found. At the end of a step the findings of all pools are collected, and enter the
    running statistics one after the other, which one process with all pools would do just so.
    """

    def __init__(self, model):
        self.norms = [m for m in model.modules()
                      if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
        self.momenta = [norm.momentum for norm in self.norms]
        self.sizes = [2 * norm.num_features for norm in self.norms]           # its mean and its variance

    def _values(self):
        return [buffer for norm in self.norms for buffer in (norm.running_mean, norm.running_var)]

    def begin_step(self, pools):
        """pools: of the step, on all processes."""
        if not self.norms:
            return
        device = self.norms[0].running_mean.device
        self.running = torch.cat(self._values())
        self.seen = torch.stack([norm.num_batches_tracked for norm in self.norms])
        self.found = torch.zeros(pools, len(self.running) + len(self.norms), device=device, dtype=self.running.dtype)
        for norm in self.norms:
            norm.momentum = 1.0

    def begin_pool(self):
        for norm in self.norms:
            norm.running_mean.zero_()
            norm.running_var.zero_()
            norm.num_batches_tracked.zero_()

    def end_pool(self, number):
        """number: of the pool in its step."""
        if self.norms:
            moved = torch.stack([norm.num_batches_tracked for norm in self.norms]).to(self.found.dtype)
            self.found[number] = torch.cat([*self._values(), moved])

    def end_step(self):
        """After `found` was summed over the processes: the running statistics."""
        if not self.norms:
            return
        total = sum(self.sizes)
        for row in self.found:                                                # a pool without any date moves nothing
            moved = row[total:]
            share = torch.cat([(m * momentum).expand(size)
                               for m, momentum, size in zip(moved, self.momenta, self.sizes)])
            self.running += share * (row[:total] - self.running)
            self.seen += moved.to(self.seen.dtype)
        sizes = [size // 2 for size in self.sizes for _ in range(2)]
        for buffer, value in zip(self._values(), self.running.split(sizes)):
            buffer.copy_(value)
        for norm, seen, momentum in zip(self.norms, self.seen, self.momenta):
            norm.num_batches_tracked.copy_(seen)
            norm.momentum = momentum


def any_process(wishes):
    """Which of some yes or no (a list) at least one process says yes to. It does not wait for the GPU."""
    if not dist.is_initialized():
        return list(wishes)
    said = torch.tensor(wishes, dtype=torch.int32)
    dist.all_reduce(said, dist.ReduceOp.MAX, group=_cpu_group)
    return said.bool().tolist()


def gather(value):
    """List of every process's value, in the order of the ranks, on each of them."""
    if not dist.is_initialized():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=_cpu_group)
    return values


def send(tensor, device):
    """A tensor to the device, without waiting for what the device is at."""
    tensor = tensor.pin_memory() if device.type == "cuda" and not tensor.is_cuda else tensor
    return tensor.to(device, non_blocking=True)


def to_device(batch, device):
    """The tensors of a batch on the device; names stay a list."""
    return {key: send(value, device) if torch.is_tensor(value) else value for key, value in batch.items()}
