"""What the demo is to show, claim by claim: ours of each seed, the paper's, and whether it shows.

A claim is a difference of weighted F1 on TreeSatAI-TS. It shows if the mean over the seeds is above what it must be,
of several seeds by more than the mean's standard error. Printed by compare.py claims.
"""
import statistics
from typing import NamedTuple, Optional

from tables.cells import MODALITIES
from tables.collect import best_constant, collect, paired, printed_only
from utils.errors import UserError
from utils.results import PROBE_KEYS, read_rows

TABLE, DATASET, MODEL = "table2", "treesatai-ts", "omnisat"
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


def collect_claims(folder, scale):
    """The claims that the rows of a folder tell something about. Errors: UserError if there are no rows for any."""
    path = folder / f"{TABLE}.csv"
    cells, _ = collect(folder, TABLE, scale)
    constant = best_constant(path, "f1_weighted", scale).get(DATASET)
    found = of_cells(printed_only(cells), constant) + of_probe(folder / "probe.csv", scale)
    if not found:
        raise UserError(f"{path}: no claim can be looked at; it needs OmniSat's cells of {DATASET}, run_tables.sh demo "
                        "writes them")
    return found


def of_cells(cells, constant):
    """Claims of fine-tuning. cells: of table 2, from collect.collect; constant: F1 of the best constant prediction."""
    known = {(start, modality, percent): cell
             for (_, dataset, model, start, ablation, modality, percent), cell in cells.items()
             if (dataset, model, ablation) == (DATASET, MODEL, "none")}
    whole, found = {key: cell for key, cell in known.items() if key[2] == "100"}, []
    if whole and constant is not None:
        (start, modality, _), worst = min(whole.items(), key=lambda item: item[1]["mean"])
        text = f"the lowest cell with all labels ({modality}, {STARTS[start]}) - the best constant prediction"
        ours = {seed: f1 - constant for seed, f1 in worst["ours"].items()}
        found.append(Claim("it learns", text, ours, ABOVE_CONSTANT))
    for start, words in STARTS.items():
        single = {modality: known.get((start, modality, "100")) for modality in MODALITIES[1:]}
        if difference := paired(known.get((start, "all", "100")), single):
            paper, ours, best = difference
            text = f"all sensors - the best single one ({best}), {words}, all labels"
            found.append(Claim("fusion", text, ours, 0, paper))
    for percent in ("10", "100"):
        if difference := paired(known.get(("self", "s2", percent)), {"": known.get(("none", "s2", percent))}):
            paper, ours, _ = difference
            found.append(Claim("pretraining", f"pretrained - from scratch, s2, {share(percent)}", ours, 0, paper))
    return found


def of_probe(path, scale):
    """Claims of frozen features, from probe.csv: logistic regression on the tile's f*."""
    known, found = {}, []
    wanted = {"scale": scale, "dataset": DATASET, "model": MODEL, "features": "tile", "classifier": "logistic",
              "ablation": "none"}
    for row in read_rows(path, PROBE_KEYS):
        if wanted.items() <= row.items():
            cell = known.setdefault((row["pretraining"], row["modality"], row["label_percent"]), {})
            cell[row["seed"]] = float(row["f1_weighted"])
    for modality, percent in (("s2", "10"), ("s2", "100"), ("all", "10"), ("all", "100")):
        more, other = (known.get((start, modality, percent), {}) for start in ("self", "none"))
        if seeds := sorted(more.keys() & other.keys(), key=int):
            sees = "all sensors" if modality == "all" else modality
            text = f"logistic regression on f*, pretrained - random weights, {sees}, {share(percent)}"
            ours = {seed: more[seed] - other[seed] for seed in seeds}
            found.append(Claim("frozen features", text, ours, ABOVE_RANDOM))
    return found


def share(percent):
    return "all labels" if percent == "100" else f"{percent} % of the labels"


def lines(found):
    """Header and lines of claims: a column a seed."""
    seeds = sorted({seed for claim in found for seed in claim.ours}, key=int)
    rows = []
    for claim in found:
        ours = [f"{claim.ours[seed]:+.1f}" if seed in claim.ours else "" for seed in seeds]
        if len(seeds) > 1:
            ours.append(f"{statistics.mean(claim.ours.values()):+.1f} ±{claim.error():.1f}")
        paper = "" if claim.paper is None else f"{claim.paper:+.1f}"
        rows.append([claim.group, claim.text, f"over {claim.least:g}", *ours, paper, "yes" if claim.shows() else "NO"])
    return ["", "claim, points of weighted F1", "must be", *(f"seed {seed}" for seed in seeds),
            *(["mean ± standard error"] if len(seeds) > 1 else []), "paper", "shows"], rows
