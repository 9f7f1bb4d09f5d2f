"""Forward and backward of a pool: as it is written, compiled, or also recorded as a CUDA graph, so that no step waits
for Python.

A pool of pretraining is over a thousand kernels, which a CPU may take longer to start than a GPU to run. A CUDA graph
starts them all at once. Pools of another number of tiles (the last of an epoch) run as they are written; of several
numbers of dates each has a recording.
"""
import torch
import torch.nn.functional as F

from engine.distributed import send, to_device
from utils.errors import UserError

DATES = 10    # the dates of a compiled pool are padded to a multiple of so many


class PoolStep:
    """A pool's forward and backward pass.

    model: has pretrain_loss; autocast: the context of its forward pass. compiled_tiles: pools of so many tiles are
    compiled, for models that have fixed_size (models.fast.omnisat); 0: none. is_recorded: these are recorded too, on a
    GPU. A recording adds to the gradients where they lie: between steps they must be zeroed, not set to None.
    """

    def __init__(self, model, autocast, device, compiled_tiles=0, is_recorded=False):
        self.model, self.autocast, self.device = model, autocast, device
        self.compiled_tiles, self.is_recorded = compiled_tiles, is_recorded
        self.recordings, self.memory = {}, None

    def __call__(self, batch, masks, share):
        """Add share times the gradient of the loss to the parameters' gradients.

        batch, masks: as the loader and the model's draw_masks give them. Returns the loss and its terms, (1 + terms,).
        """
        if not self.compiled_tiles:
            return self.run(to_device(batch, self.device), masks, share)
        if len(batch["name"]) != self.compiled_tiles:
            with torch.compiler.set_stance("force_eager"):
                return self.run(to_device(batch, self.device), masks, share)
        batch, fixed = pad_dates(batch), self.model.fixed_size(masks)
        if self.is_recorded and len(self.model.parts(batch)) > 1:
            raise UserError("--record: a pool that is worked through in parts is not recorded; leave it out")
        if fixed is None or not self.is_recorded:
            return self.run(to_device(batch, self.device), masks if fixed is None else fixed, share)
        tensors = {name: value for name, value in batch.items() if torch.is_tensor(value)}
        inputs = tensors, fixed, {"share": torch.tensor(share)}
        shapes = tuple((name, value.shape, value.dtype) for tensors in inputs for name, value in tensors.items())
        if shapes not in self.recordings:    # first as it is written: things are compiled and tuned
            self.recordings[shapes] = None
            return self.run(*(to_device(tensors, self.device) for tensors in inputs[:2]), share)
        if self.recordings[shapes] is None:
            self.recordings[shapes] = self.record(inputs)
        graph, places, values = self.recordings[shapes]
        for tensors, there in zip(inputs, places):
            for name, value in tensors.items():
                there[name].copy_(send(value, self.device))
        graph.replay()
        return values.clone()

    def run(self, batch, masks, share):
        with self.autocast:
            loss, terms = self.model.pretrain_loss(batch, masks)
        (loss * share).backward()
        return torch.stack([loss, *(terms[name] for name in self.model.terms)]).detach()

    def record(self, inputs):
        """A graph, which does nothing yet; where it reads the inputs; and where it writes the values. Graphs share
        their memory.
        """
        places = [{name: torch.empty_like(value, device=self.device) for name, value in tensors.items()}
                  for tensors in inputs]
        graph, values = capture(lambda: self.run(*places[:2], places[2]["share"]), self.memory)
        self.memory = graph.pool()
        return graph, places, values


def capture(function, memory=None):
    """What the function does, as a CUDA graph, and its value, which a replay writes. memory: that of a graph before,
    to be shared.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=memory, capture_error_mode="thread_local"):    # loaders have threads of their own
        value = function()
    return graph, value


def pad_dates(batch):
    """The batch with all series but those of single dates padded to a multiple of DATES: no result depends on it."""
    batch = dict(batch)
    for name in [name for name in batch if name.endswith("_padded")]:
        key, missing = name.removesuffix("_padded"), -batch[name].shape[1] % DATES
        if missing and batch[name].shape[1] > 1:
            batch[key] = F.pad(batch[key], (0, 0) * 3 + (0, missing))
            batch[f"{key}_dates"] = F.pad(batch[f"{key}_dates"], (0, missing))
            batch[name] = F.pad(batch[name], (0, missing), value=True)
    return batch
