"""What the demo is to show, claim by claim: ours of each seed, the paper's, and whether it shows. For compare.py claims.

A claim is a difference of weighted F1 on TreeSatAI-TS. It shows if the mean over the seeds is above what it must be, of several
seeds by more than the mean's standard error.
"""
import statistics
from typing import NamedTuple, Optional

from utils.results import PROBE_KEYS, read_rows

TABLE, DATASET, MODEL = "table2", "treesatai-ts", "omnisat"
SINGLE = ("s1", "s2", "vhr")
STARTS = {"none": "from scratch", "self": "pretrained"}
ABOVE_CONSTANT, ABOVE_RANDOM = 10, 15    # points


class Claim(NamedTuple):
    """ours: {seed: points}; least: what they must exceed; paper: its points, None where it has none."""
    group: str
    text: str
    ours: dict
    least: float
    paper: Optional[float] = None

    def error(self):
        """Standard error of the mean, 0 of one seed."""
        return statistics.stdev(self.ours.values()) / len(self.ours) ** 0.5 if len(self.ours) > 1 else 0.0

    def shows(self):
        return statistics.mean(self.ours.values()) - self.error() > self.least


def less(more, other):
    """{seed: difference} over the seeds that both have."""
    return {seed: more[seed] - other[seed] for seed in sorted(more.keys() & other.keys(), key=int)}


def of_cells(cells, constant):
    """Claims of fine-tuning. cells: as compare.collect gives them of table 2; constant: F1 of the best constant prediction."""
    known = {(start, modality, percent): cell for (_, dataset, model, start, ablation, modality, percent), cell in cells.items()
             if (dataset, model, ablation) == (DATASET, MODEL, "none")}
    whole = {key: cell for key, cell in known.items() if key[2] == "100"}
    found = []
    if whole and constant is not None:
        (start, modality, _), worst = min(whole.items(), key=lambda item: item[1]["mean"])
        found.append(Claim("it learns", f"the lowest cell with all labels ({modality}, {STARTS[start]}) - the best constant prediction",
                           {seed: f1 - constant for seed, f1 in worst["ours"].items()}, ABOVE_CONSTANT))
    for start in STARTS:
        every, single = known.get((start, "all", "100")), {key: known.get((start, key, "100")) for key in SINGLE}
        if every and all(single.values()):
            best = max(single, key=lambda key: single[key]["mean"])
            found.append(Claim("fusion", f"all sensors - the best single one ({best}), {STARTS[start]}, all labels",
                               less(every["ours"], single[best]["ours"]), 0,
                               every["paper"] - max(cell["paper"] for cell in single.values())))
    for percent in ("10", "100"):
        more, other = known.get(("self", "s2", percent)), known.get(("none", "s2", percent))
        if more and other:
            found.append(Claim("pretraining", f"pretrained - from scratch, s2, {share(percent)}", less(more["ours"], other["ours"]), 0,
                               more["paper"] - other["paper"]))
    return found


def of_probe(path, scale):
    """Claims of frozen features, from probe.csv: logistic regression on the tile's f*."""
    found = {}
    for row in read_rows(path, PROBE_KEYS) if path.exists() else ():
        if (row["scale"], row["dataset"], row["model"], row["features"], row["classifier"], row["ablation"]) == (
                scale, DATASET, MODEL, "tile", "logistic", "none"):
            found.setdefault((row["modality"], row["label_percent"], row["pretraining"]), {})[row["seed"]] = float(row["f1_weighted"])
    return [Claim("frozen features", f"logistic regression on f*, pretrained - random weights, {'all sensors' if modality == 'all' else modality}, {share(percent)}",
                  less(found[modality, percent, "self"], found[modality, percent, "none"]), ABOVE_RANDOM)
            for modality in ("s2", "all") for percent in ("10", "100")
            if (modality, percent, "self") in found and (modality, percent, "none") in found]


def share(percent):
    return "all labels" if percent == "100" else f"{percent} % of the labels"


def lines(found):
    """Header and lines of claims: a column a seed."""
    seeds = sorted({seed for claim in found for seed in claim.ours}, key=int)
    rows = []
    for claim in found:
        mean = statistics.mean(claim.ours.values())
        rows.append([claim.group, claim.text, f"over {claim.least:g}", *(f"{claim.ours[seed]:+.1f}" if seed in claim.ours else "" for seed in seeds),
                     *([f"{mean:+.1f} ±{claim.error():.1f}"] if len(seeds) > 1 else []),
                     "" if claim.paper is None else f"{claim.paper:+.1f}", "yes" if claim.shows() else "NO"])
    return ["", "claim, points of weighted F1", "must be", *(f"seed {seed}" for seed in seeds),
            *(["mean ± standard error"] if len(seeds) > 1 else []), "paper", "shows"], rows
