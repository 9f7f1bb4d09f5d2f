"""What the rows of benchmarks.run measure: a part of pretraining, forward and backward, plain or ours."""
import torch

from datasets.sensors import SENSORS
from engine.distributed import to_device
from engine.pool_step import PoolStep, capture
from losses.contrastive import contrastive_loss as plain_loss
from models.fast.contrastive import contrastive_loss
from models.fast.omnisat import FastOmniSat
from models.omnisat import OmniSat

DIM, DATES = 256, 50


def random_batch(sensors, tiles, side, device):
    """A batch of random values in the types that the readers give; a series has 35 to DATES dates, that of the first
    tile DATES.
    """
    batch, random = {}, torch.Generator().manual_seed(0)
    for sensor in sensors:
        shape = len(sensor.bands), side * sensor.patch, side * sensor.patch
        if sensor.kind == "image":
            batch[sensor.key] = torch.randint(256, (tiles, *shape), dtype=torch.uint8, generator=random)
            continue
        is_optical = len(sensor.bands) > 3
        values = torch.randn(tiles, DATES, *shape, generator=random, dtype=torch.float32)
        batch[sensor.key] = (1000 * values).short() if is_optical else values
        batch[f"{sensor.key}_dates"] = torch.randint(1, sensor.period, (tiles, DATES), generator=random)
        lengths = torch.randint(35, DATES + 1, (tiles, 1), generator=random)
        lengths[0] = DATES
        batch[f"{sensor.key}_padded"] = torch.arange(DATES) >= lengths
    return to_device(batch, device)


def model_of(row, sensors, device):
    """The plain model, or ours, with the row's settings."""
    torch.manual_seed(0)
    model = (OmniSat if row["form"].startswith("plain") else FastOmniSat)(sensors, DIM)
    bands = {sensor.key: len(sensor.bands) for sensor in sensors}
    model.standardize.set({key: {"mean": [0.] * n, "std": [1000. if n > 3 else 50.] * n} for key, n in bands.items()})
    model.to(device)
    if isinstance(model, FastOmniSat):
        model.tiles_at_once = row["tiles_at_once"]
        if row["compile"]:
            model.compile_networks()
    return model


def task(row, device):
    """What a row is about: a function that does it once, forward and backward, and returns a scalar (None of the
    optimiser).

    is_counted: an argument of it, True where operations are to be counted, which those of a CUDA graph are not.
    """
    sensors, is_plain = [SENSORS[row["dataset"]][key] for key in row["keys"]], row["form"].startswith("plain")
    model = model_of(row, sensors, device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=row["precision"] == "bfloat16")
    optimizer = torch.optim.Adam(model.parameters(), 1e-4, **({"foreach": False} if is_plain else {"fused": True}))
    if row["part"] == "optimiser":
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        return lambda is_counted=False: optimizer.step()

    batch = random_batch(sensors, row["tiles"], row["side"], device)
    masks = model.draw_masks({key: value.cpu() for key, value in batch.items()}, torch.Generator().manual_seed(0))
    if row["part"] == "step" and not is_plain:
        return our_step(row, model, autocast, optimizer, batch, masks)
    masks = to_device(masks, device)
    forward = part_of_step(row, model, batch, masks)

    def run(is_counted=False):
        with autocast:
            loss = forward()
        loss.backward()
        if row["part"] == "step":
            optimizer.step()
            optimizer.zero_grad()
        return loss.detach()
    return run


def our_step(row, model, autocast, optimizer, batch, masks):
    """A step as pretrain.py takes it, with masks from the CPU."""
    pool_step = PoolStep(model, autocast, model.mask_token.device, row["tiles"] if row["compile"] else 0)
    batch["name"] = [""] * row["tiles"]

    def step(is_counted=False):
        pool_step.is_recorded = row["record"] and not is_counted
        loss, *_ = pool_step(batch, masks, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        return loss
    return step


def part_of_step(row, model, batch, masks):
    """The forward pass of a part, a function that returns a scalar; of "step" the plain model's."""
    part, device, shape = row["part"], model.mask_token.device, masks["is_masked"].shape    # B x M x P
    tokens = torch.randn(*shape, DIM, device=device, requires_grad=part in ("contrastive", "combiner"))
    if part == "step":
        return lambda: model.pretrain_loss(batch, masks)[0]
    if part == "contrastive":
        present = torch.ones(shape[:2], dtype=torch.bool, device=device)
        if row["form"].startswith("plain"):
            return lambda: plain_loss(tokens, present)
        return lambda: contrastive_loss(tokens, present, compiled=model.is_compiled)
    if part == "encoder":
        return lambda: model.encode(batch)[0].square().mean()
    if part == "combiner":
        return lambda: model.combine(tokens, masks["is_masked"], (row["side"], row["side"])).square().mean()
    f = torch.randn(shape[0], shape[2], DIM, device=device, requires_grad=True)
    with torch.no_grad():
        *_, context = model.encode(batch)
    return lambda: model.reconstruct(f, masks, batch, context).sum() / masks["count"]


def recorded(run):
    """The same as a CUDA graph, so that a part is not measured by how fast Python starts its kernels."""
    for _ in range(2):                                                        # compiling and tuning are not recorded
        run()
    graph, loss = capture(run)
    return lambda is_counted=False: run() if is_counted else (graph.replay(), loss)[1]
