"""What a pretraining left in a model, asked without fine-tuning it: frozen features, their directions, the dates of
equation 5.

Dimensions: N tiles or vectors, D embedding, K classes.
"""
import warnings
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from losses.reconstruction import top_dates
from models.fast.omnisat import FastOmniSat as OmniSat
from studies import results
from studies.data import forest, rows_of
from studies.results import append, commit
from studies.training import pretrain
from studies.variants import DEPTH, DIM, build

# ---- features -------------------------------------------------------------------------------------------------------

@torch.no_grad()
def features(model, split, size=128):
    """{"tokens <key>", "f*"}: (N, D), means over the patches, of a model in evaluation mode."""
    found = {f"tokens {key}": [] for key in model.sensors} | {"f*": []}
    model.eval()
    for at in range(0, len(split["label"]), size):
        batch = rows_of(split, slice(at, at + size))
        tokens, present, _ = model.encode(batch)
        for m, key in enumerate(model.sensors):
            found[f"tokens {key}"].append(tokens[:, m].mean(1))
        is_masked = ~present[:, :, None].expand(tokens.shape[:3])
        found["f*"].append(model.combine(tokens, is_masked, model.grid(batch)).mean(1))
    found = {name: torch.cat(parts) for name, parts in found.items()}
    return found | {"tokens all": torch.cat([value for name, value in found.items() if name != "f*"], 1)}


def probe(x, y, test, rows):
    """Logits (N, K) of logistic regressions, one a class, on standardised frozen features."""
    mean, std = x[rows].mean(0), x[rows].std(0).clamp(min=1e-6)
    x, test, logits = ((x[rows] - mean) / std).numpy(), ((test - mean) / std).numpy(), []
    for label in y[rows].numpy().T > 0:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logits.append(LogisticRegression(C=0.1, max_iter=300).fit(x, label).decision_function(test)
                          if 0 < label.sum() < len(label) else np.full(len(test), -9.0))
    return np.stack(logits, 1)


def conditioning(x):
    """Of vectors (N, D): the share of their mean square that is the same for all, and the effective rank of the rest
    (Roy and Vetterli).
    """
    spectrum = torch.linalg.svdvals(x - x.mean(0)).square()
    share = spectrum / spectrum.sum()
    constant = x.mean(0).square().sum() / x.square().sum(1).mean()
    return constant.item(), (-share * share.clamp(min=1e-20).log()).sum().exp().item()


@torch.no_grad()
def stages(model, batch):
    """{stage: vectors} on the way from the tokens to the mean of f*: where do they lose their directions?"""
    tokens, present, _ = model.eval().encode(batch)
    found = {f"tokens {key}": tokens[:, m].flatten(0, 1) for m, key in enumerate(model.sensors)}
    cross = model.combiner.cross

    def noting(name):
        return lambda _, __, y: found.update({name: y.flatten(0, 1)})
    hooks = [module.register_forward_hook(noting(name)) for name, module in (
        ("cross-attention", cross.attention), ("and its MLP", cross), ("and the last norm: f*", model.combiner.norm))]
    f = model.combine(tokens, ~present[:, :, None].expand(tokens.shape[:3]), model.grid(batch))
    for hook in hooks:
        hook.remove()
    return found | {"mean over patches": f.mean(1)}


def write_stages(work):
    """stages.csv, of the pretrainings of forest that are there."""
    tiles = forest(work)
    (results.OUT / "stages.csv").unlink(missing_ok=True)
    for weights in sorted(Path(work).glob("forest-*-*.pt")):
        variant, seed = weights.stem.split("-")[1:]
        torch.manual_seed(int(seed))
        model = build(variant, tiles.sensors, tiles.statistics())
        for start, state in (("random", model.state_dict()), ("pretrained", torch.load(weights, weights_only=True))):
            model.load_state_dict(state)
            for stage, x in stages(model, tiles.splits["val"]).items():
                constant, rank = conditioning(x)
                silent = (x.std(0) < 0.1 * x.std(0).max()).sum()
                append("stages.csv", {"variant": variant, "start": start, "seed": seed, "stage": stage,
                                      "constant_share": f"{constant:.3f}", "rank": f"{rank:.2f}", "silent": int(silent),
                                      "commit": commit()})


# ---- dates ----------------------------------------------------------------------------------------------------------

@torch.no_grad()
def chosen_dates(model, split):
    """What equation 5 looks at: of each series {key: numbers}, over all its tokens that a fixed draw masks.

    square: mean square of the standardised values of the dates that are chosen, and of all; error: of the
    reconstruction at these; attention: the share of it that the chosen dates have.
    """
    masks, found = model.eval().draw_masks(split, torch.Generator().manual_seed(0)), {}
    tokens, _, (context,) = model.encode(split)                               # one part
    f = model.combine(tokens, masks["is_masked"], model.grid(split)).flatten(0, 1)
    for key, sensor in model.sensors.items():
        if sensor.kind == "series":
            target = masks[f"{key}_targets"]
            tile = target // tokens.shape[2]
            dates, is_date = split[f"{key}_dates"][tile], ~split[f"{key}_padded"][tile]
            x, attention = model.patches(key, split[key]).flatten(0, 1)[target], context[key][0].flatten(0, 1)[target]
            error = (model.decoders[key](f[target], dates) - x).square().mean(2)
            index, is_used = top_dates(attention, ~is_date)
            is_chosen = torch.zeros_like(is_date).scatter(1, index, is_used)
            square = x.square().mean(2)
            found[key] = {"square_chosen": square[is_chosen].mean(), "square_all": square[is_date].mean(),
                          "error_chosen": error[is_chosen].mean(), "error_all": error[is_date].mean(),
                          "attention_chosen": (attention * is_chosen).sum(1).mean()}
    return found


def watch_dates(tiles, ablation, schedule):
    """Pretrain on S2 and S1 alone and write down, every 250 steps, what equation 5 looks at."""
    torch.manual_seed(schedule.seed)
    model = OmniSat(tiles.sensors[1:], DIM, DEPTH, ablation=ablation)
    model.standardize.set(tiles.statistics())
    rows = []

    def watch(step):
        for key, numbers in chosen_dates(model, tiles.splits["val"]).items():
            rows.append({"ablation": ablation, "seed": schedule.seed, "step": step, "sensor": key}
                        | {name: f"{value:.4f}" for name, value in numbers.items()} | {"commit": commit()})
    pretrain(tiles, model, schedule, watch)
    for row in rows:
        append("dates.csv", row)
