"""One process and torchrun are one code path: without torchrun there is one process, of rank 0."""
import ctypes
import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist

from utils.errors import UserError


def setup():
    """Join the processes that torchrun started (nccl on GPU, gloo on CPU). Returns (rank, world, device)."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    else:
        reuse_memory()
    if world > 1:
        # others wait for rank 0 while it reads all tiles for the statistics
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(hours=2))
    return rank, world, device


def reuse_memory():
    """Have the C library keep freed memory for the next step.

    By default it gives large blocks back to the system, and to get them again page by page takes up to a third of a step on a
    CPU (benchmarks/README.md); this way the heap settles within some steps. The settings are M_MMAP_MAX and M_TRIM_THRESHOLD
    of mallopt(3); other libraries have none.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-4, 0)
        mallopt(-1, -1)


def finish():
    """Leave the group."""
    if dist.is_initialized():
        dist.destroy_process_group()


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
            failure = str(error)
    failure = gather(failure)[0]
    if failure is not None:
        raise UserError(failure, is_told=dist.get_rank() > 0)
    return value if dist.get_rank() == 0 else function()


def share_statistics(model):
    """Give all processes the running statistics of rank 0's batch norms, as DistributedDataParallel does."""
    if dist.is_initialized():
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def sum_gradients(model):
    """Sum the gradients over all processes, as one vector. A parameter that had no part here counts as zero.

    Each process has weighted its pools by their share of the whole batch, so the sum is the gradient of the mean over
    the batch, however the pools are spread; torch's DistributedDataParallel would average over processes instead.
    """
    if not dist.is_initialized():
        return
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    for p, g in zip(parameters, flat.split([g.numel() for g in gradients])):
        p.grad = g.view_as(p)


def sum_over_processes(tensor):
    """The sum of a tensor over all processes, in place, on each of them."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def gather(value):
    """List of every process's value, in the order of the ranks, on each of them."""
    if not dist.is_initialized():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def to_device(batch, device):
    """The tensors of a batch on the device; names stay a list."""
    return {key: value.to(device, non_blocking=True) if torch.is_tensor(value) else value
            for key, value in batch.items()}
