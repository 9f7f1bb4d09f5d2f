"""What a method owes the scripts, tried on a few random tiles; what it lacks is told in plain sentences.

    python -m models.contract mine                                          # in all cells that its entry fills
    python -m models.contract mine --dataset treesatai-ts --modality s2     # in one

Exit code 1 if there is anything to tell. Dimensions: B tiles, K classes, T dates, C bands, D features.
"""
import argparse
import io
import sys
from typing import NamedTuple

import torch
import torch.nn.functional as F

from datasets import READERS, default_modalities
from datasets.files import misfit
from datasets.sensors import SENSORS
from models.methods import METHODS, build_model
from utils.errors import UserError, run
from utils.results import first

TILES, CLASSES, DATES = 3, 5, 4
GRIDS = {"treesatai": 6, "treesatai-ts": 6, "pastis-hd": 8, "flair": 10}    # patches a side; pastis-hd's by --parts 4
NEEDED = "sensors", "standardize", "all_logits", "forward", "features", "compile_networks"
TOLERANCE = 1e-3    # of the largest value
DRAWS = 4           # of dropout and masks, until each parameter has had a part
EMPTY = ("a mean over no date is 0 / 0, a softmax over none too; put 0, which is the mean, or something learned in its "
         "place. A batch norm of one tile: models.norms.BatchNorm")


class Case(NamedTuple):
    """A method in a cell: its entry, its model, and tiles, of which the last has no date at all, the one before it half
    of the dates. make(classes, seed): another model of it, with other random weights.
    """
    method: object
    model: torch.nn.Module
    batch: dict
    make: object

    def series(self):
        """The keys of the series."""
        return [key for key, sensor in self.model.sensors.items() if sensor.kind == "series"]

    def has_dates(self):
        """Whether there is more than a single date, if any."""
        return all(self.batch[key].shape[1] > 1 for key in self.series())

    def tiles(self, *chosen):
        """A batch of some of the tiles."""
        return {key: [value[i] for i in chosen] if key == "name" else value[list(chosen)]
                for key, value in self.batch.items()}


# ---- a case ---------------------------------------------------------------------------------------------------------

def sensors_of(method, dataset, modality):
    """What a method sees of a cell's tiles, a list of datasets.sensors.Sensor."""
    keys = method.sees.get(modality) or (default_modalities(dataset) if modality == "all" else (modality,))
    sensors = [SENSORS[dataset][key] for key in keys]
    return [sensor.with_all_bands() for sensor in sensors] if method.all_bands else sensors


def make_batch(sensors, dataset):
    """Random tiles as datasets.loading gives them: images of 8 bits, series of one date or several."""
    dates = 1 if dataset == "treesatai" else DATES
    batch = {"name": [f"tile {i}" for i in range(TILES)]}
    for sensor in sensors:
        side, bands = GRIDS[dataset] * sensor.patch, len(sensor.bands)
        if sensor.kind == "image":
            batch[sensor.key] = torch.randint(256, (TILES, bands, side, side), dtype=torch.uint8)
            continue
        there = torch.arange(dates) < torch.tensor([*[dates] * (TILES - 2), -(-dates // 2), 0])[:, None]
        batch[sensor.key] = torch.randn(TILES, dates, bands, side, side) * there[:, :, None, None, None]
        batch[f"{sensor.key}_dates"] = (10 + 90 * torch.arange(dates)) * there
        batch[f"{sensor.key}_padded"] = ~there
    return batch


def open_case(name, dataset, modality, width):
    """The Case. width: of the layers, where the entry says that it changes something."""
    method = METHODS[name]
    sensors = sensors_of(method, dataset, modality)
    sizes = ({"embed_dim": 32, "depth": 1} if name == "omnisat" else
             {"dataset": dataset, "width": width if method.has_width(modality) else 1})

    def make(classes, seed):
        torch.manual_seed(seed)
        return build_model(name, sensors, num_classes=classes, **sizes)
    model = make(CLASSES, 0)
    if missing := [what for what in NEEDED if not hasattr(model, what)]:
        raise UserError(f"it has no {', '.join(missing)}; models.compared.supervised.Compared has all of them")
    scale = {"image": (128., 74.), "series": (0., 1.)}
    model.standardize.set({sensor.key: {name: [value] * len(sensor.bands) for name, value in zip(
        ("mean", "std"), scale[sensor.kind])} for sensor in sensors})
    return Case(method, shaken(model), make_batch(sensors, dataset), make)


def shaken(model):
    """The model without weights that are zero on purpose, behind which nothing could be seen."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter) * parameter.requires_grad
    return model


# ---- what is tried: each yields sentences ----------------------------------------------------------------------------

def training(case):
    """A training step; of what is fitted, its fit."""
    if case.method.is_fitted:
        many = case.tiles(*[0] * case.method.least_tiles, *range(TILES))
        labels = torch.arange(len(many["name"]) * CLASSES).view(-1, CLASSES) % 2 > 0
        case.model.fit(case.model.eval().collect(many), labels, 0)
    else:
        yield from gradients(case, lambda _: loss_of(case.model.train().all_logits(case.batch)))


def pretraining(case):
    """A step of the self-supervised loss, and whether a fine-tuning can begin with its weights."""
    model = case.make(0, 1)

    def loss_of_draw(number):
        masks = model.draw_masks(case.batch, torch.Generator().manual_seed(number))
        loss, terms = model.pretrain_loss(case.batch, masks)
        if loss.shape != () or set(terms) != set(model.terms) or any(term.shape != () for term in terms.values()):
            raise UserError(f"pretrain_loss must give a scalar and the terms {', '.join(model.terms)}, scalars too, "
                            f"not {shape_of(loss)} and {', '.join(terms)}")
        return loss
    yield from gradients(case._replace(model=model), loss_of_draw, "the pretraining's ")
    there = {name: value.shape for name, value in model.state_dict().items()}
    if lost := [name for name, value in case.model.state_dict().items()
                if not name.startswith("head") and there.get(name) != value.shape]:
        yield (f"a fine-tuning finds no {first(lost)} in the pretraining's state: names that begin with head are new, "
               "all others must be there, with the same shape")


def gradients(case, loss_of_draw, whose=""):
    """Parameters that the loss does not reach in several draws of dropout and masks, or that it makes infinite. Of a
    single date attention has no choice: a gradient of 0 is no fault there.
    """
    parameters = {name: parameter for name, parameter in case.model.named_parameters() if parameter.requires_grad
                  and not any(part in name for part in case.method.unused)}
    for number in range(DRAWS):
        loss_of_draw(number).backward()
        if broken := [name for name, p in parameters.items() if p.grad is not None and not p.grad.isfinite().all()]:
            yield f"{whose}gradients are not finite, of {first(broken)}: {EMPTY}"
            break
        idle = [name for name, p in parameters.items() if p.grad is None or case.has_dates() and not p.grad.any()]
        if not idle:
            break
    else:
        yield (f"{whose}gradients do not reach {first(idle)}: what has no part is left out, frozen "
               "(requires_grad_(False)) or named under unused in the entry")
    case.model.zero_grad(set_to_none=True)


def a_lone_tile(case):
    """A training step on one tile without any date: the last pool of a pass may be that."""
    if not case.method.is_fitted:
        loss = loss_of(case.model.train().all_logits(case.tiles(TILES - 1)))
        loss.backward()
        grads = [parameter.grad for parameter in case.model.parameters() if parameter.grad is not None]
        if not all(value.isfinite().all() for value in [loss, *grads, *case.model.buffers()]):
            yield f"a pool of one tile without any date gives numbers that are not finite in training: {EMPTY}"
        case.model.zero_grad(set_to_none=True)


def in_bfloat16(case):
    """Logits as a GPU computes them."""
    with torch.autocast("cpu", torch.bfloat16):
        if not evaluate(case.model, case.tiles(0)).isfinite().all():
            yield "logits are not finite in bfloat16, which a GPU computes with: sums and norms want float32"


def evaluation(case):
    """Logits, of which each tile must have its own. Errors: UserError where there is no more to be seen."""
    logits = evaluate(case.model, case.batch)
    if tuple(logits.shape) != (TILES, CLASSES):
        raise UserError(f"forward must give logits (B, K), here ({TILES}, {CLASSES}), not {shape_of(logits)}")
    is_finite = logits.isfinite().all(1)
    if not is_finite.all():
        raise UserError(f"a tile without any date of {' and '.join(case.series())} gives logits that are not finite: "
                        f"{EMPTY}" if is_finite[:-1].all() else "logits are not finite")
    if far := distance(evaluate(case.model, case.batch), logits):
        raise UserError(f"two evaluations of the same tiles differ by {far:.2g}: nothing may be drawn at random, or "
                        "moved, in evaluation (self.training is False)")
    if far := distance(evaluate(case.model, case.tiles(0)), logits[:1]):
        yield (f"the result of a tile changes by {far:.2g} without the other tiles of its batch: in evaluation no tile "
               "may see another")
    if far := distance(evaluate(reloaded(case), case.batch), logits):
        yield (f"a new model with the same state has other results, by {far:.2g}: what a result depends on must be a "
               "parameter or a buffer (register_buffer)")
    for key in case.series():
        if case.batch[key].shape[1] > 1 and (far := distance(evaluate(case.model, padded(case.batch, key)), logits)):
            yield (f"{key}: the result of a tile changes by {far:.2g} with what stands in padded dates, or how many "
                   f"there are: leave them out, they are True in {key}_padded")


def features(case):
    """What probe.py and embed.py take."""
    with torch.no_grad():
        found = case.model.eval().features(case.batch, "tile")
    if found.dim() != 2 or len(found) != TILES or not found.isfinite().all():
        yield (f"features(batch, 'tile') must give finite numbers (B, D), here ({TILES}, D), not {shape_of(found)}")


CHECKS = {"a training step on tiles of which one lacks some dates and one has none": training,
          "an evaluation of such tiles": evaluation, "taking their features": features,
          "a training step on one tile without any date, as the last pool of a pass may be": a_lone_tile,
          "an evaluation in bfloat16, as on a GPU": in_bfloat16, "a pretraining step": pretraining}


# ---- pieces ---------------------------------------------------------------------------------------------------------

@torch.no_grad()
def evaluate(model, batch):
    return model.eval()(batch)


def loss_of(outputs):
    """Cross-entropy of all_logits. Errors: UserError for other shapes."""
    is_list = isinstance(outputs, (list, tuple)) and outputs
    if not is_list or any(x.dim() != 2 or x.shape[1] != CLASSES for x in outputs):
        raise UserError(f"all_logits must give a list of logits (B, K), here of K = {CLASSES} classes, not "
                        f"{shape_of(outputs)}")
    return sum(F.binary_cross_entropy_with_logits(x.float(), torch.ones_like(x).tril().float()) for x in outputs)


def distance(values, expected):
    """The largest difference, 0 where it is only rounding."""
    far = (values - expected).abs().nan_to_num(torch.inf).max().item()
    return far if far > TOLERANCE * max(1, expected.abs().max().item()) else 0


def reloaded(case):
    """A new model with the state of the case's, by way of a file. Errors: UserError if it does not load."""
    file = io.BytesIO()
    torch.save(case.model.state_dict(), file)
    file.seek(0)
    model = case.make(CLASSES, 2)
    try:
        model.load_state_dict(torch.load(file, weights_only=True))
    except RuntimeError as error:
        raise UserError(f"its state does not load into a new model with the same options: {misfit(error)}") from error
    return model


def padded(batch, key):
    """The batch with two more padded dates of a series, and other numbers where there is none."""
    lost = F.pad(batch[f"{key}_padded"], (0, 2), value=True)
    x, dates = F.pad(batch[key], (0, 0) * 3 + (0, 2)), F.pad(batch[f"{key}_dates"], (0, 2))
    return batch | {key: x.masked_fill(lost[:, :, None, None, None], 9), f"{key}_dates": dates.masked_fill(lost, 7),
                    f"{key}_padded": lost}


def shape_of(found):
    """A shape, or those of a list, in words."""
    return (", ".join(map(shape_of, found)) or "nothing") if isinstance(found, (list, tuple)) else str(
        tuple(found.shape) if torch.is_tensor(found) else type(found).__name__)


def lacks(name, dataset, modality, width=0.25):
    """What a method lacks in a cell, a list of sentences. name: of METHODS. width: of its layers."""
    title, found = "building it", {}
    try:
        case = open_case(name, dataset, modality, width)
        for title, check in CHECKS.items():
            if check is not pretraining or METHODS[name].pretraining_rate(dataset, modality):
                for sentence in check(case):
                    found[sentence] = None
    except UserError as error:
        found[str(error)] = None
    except Exception as error:                                                # whatever it is, it is told
        found[f"{title} fails, {type(error).__name__}: {' '.join(str(error).split())[:300]}"] = None
    return [f"{dataset}, {modality}: {sentence}" for sentence in found]


# ---- the command -----------------------------------------------------------------------------------------------------

def main(argv=None):
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("method", choices=METHODS, help="its name in models/methods.py")
    arguments.add_argument("--dataset", choices=READERS, help="this one only (default: all that its entry fills)")
    arguments.add_argument("--modality", help="this one only: all, or a sensor's key (default: all it fills)")
    args = arguments.parse_args(argv)
    cells = [cell for cell in METHODS[args.method].cells() if all(
        wanted in (None, found) for wanted, found in zip((args.dataset, args.modality), cell))]
    if not cells:
        arguments.error(f"the entry of {args.method} has no such cell; it fills " + ", ".join(
            f"{modality} of {dataset}" for dataset, modality in METHODS[args.method].cells()))
    found = [sentence for cell in cells for sentence in lacks(args.method, *cell)]
    print(*found, f"{args.method}, {len(cells)} cell(s): {len(found) or 'nothing'} to be done", sep="\n")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(run(main))
