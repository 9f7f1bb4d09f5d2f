"""What studies/rehearsal.py found: results/study/rehearsal.csv, a line a regime, and the table of PAPER.md."""
import csv
import json

from studies import results
from studies.regimes import EARLIEST, LATEST, PATIENCE, TRIED, trainings
from utils.files import written_whole

PASSES = 0.95    # the share of precision that must be there at the earliest stop
COLUMNS = ("dataset", "model", "label_percent", "start", "modality", "rate", "tiles", "steps_an_epoch", "steps", "map",
           "map_four_times", "ratio", "passes", "reason")


def read_lines():
    """{(model, modality, rate, start): line} of rehearsal.jsonl."""
    path = results.OUT / "rehearsal.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {(line["model"], line["modality"], line["rate"], line["start"]): line for line in lines}


def kept_by(line, epoch):
    """Precision and weighted F1 of the epoch kept by then."""
    return [scores for at, *scores in line["kept"] if at <= epoch][-1]


def stop_of(line):
    """The epoch after which finetune.py would stop: 10 without a better one, at the earliest after EARLIEST."""
    epochs = [at for at, *_ in line["kept"]]
    return next((epoch for epoch in range(EARLIEST, LATEST)
                 if epoch - max(at for at in epochs if at <= epoch) >= PATIENCE), LATEST)


# why a default that fails altogether is left as it is
LEFT = {
    ("croma", 2e-5): "at a quarter of its width, where a rate is slower than at full width, it still gains at the "
                     "150th. Its authors' rate is left",
    ("utae", 1e-3): "at a quarter of its width, one seed; a better epoch comes five later. The official rate and "
                    "patience are left",
    ("utt", 1e-3): "it misses 95 % by half a point at a quarter of its width; the official rate, 1e-3, is high already "
                   "and is left",
}


def reason_of(line):
    """Why a training that does not pass need not, from its own numbers, or why it is left; "" for one that passes."""
    early, late, stop = kept_by(line, EARLIEST)[0], kept_by(line, LATEST)[0], stop_of(line)
    at_stop = kept_by(line, stop)[0]
    if early >= PASSES * late:
        return ""
    if at_stop < PASSES * late:
        return (f"fails: it stops after {stop} epochs with {at_stop:.1f}, {at_stop / late:.3f} of what {LATEST} reach: "
                + LEFT[line["model"], line["rate"]])
    return (f"it still improves after {EARLIEST} epochs, so it is not stopped there but after {stop}, with "
            f"{at_stop:.1f}: {at_stop / late:.3f} of what {LATEST} reach")


def table():
    """A line for each training, markdown: those of the defaults, then what else was tried."""
    lines = ["| method | sees | rate | from | mAP / weighted F1 after 50 epochs | after 200 | ratio of mAP | "
             "stops after, with | stands for |", "|" + "---|" * 9]
    found, measured = trainings(), read_lines()
    for training in dict.fromkeys([*found, *TRIED]):
        if training in measured:
            (early, f1), (late, late_f1) = (kept_by(measured[training], epoch) for epoch in (EARLIEST, LATEST))
            stands_for = ", ".join(f"{regime['dataset']} {regime['label_percent']} %"
                                   for regime in found.get(training, ())) or "tried only"
            lines.append(f"| {training[0]} | {training[1]} | {training[2]:g} | {training[3]} | {early:.1f} / {f1:.1f} "
                         f"| {late:.1f} / {late_f1:.1f} | {early / late:.3f} | {stop_of(measured[training])}, "
                         f"{kept_by(measured[training], stop_of(measured[training]))[0]:.1f} | {stands_for} |")
    return "\n".join(lines) + "\n"


def write_table():
    """rehearsal.csv, of the lines that are there."""
    lines, rows = read_lines(), []
    for training, found in trainings().items():
        if training not in lines:
            continue
        early, late = (kept_by(lines[training], epoch)[0] for epoch in (EARLIEST, LATEST))
        measured = {"modality": training[1], "rate": f"{training[2]:g}", "map": f"{early:.1f}",
                    "map_four_times": f"{late:.1f}", "ratio": f"{early / late:.3f}", "passes": early >= PASSES * late,
                    "reason": reason_of(lines[training])}
        rows += [{name: regime[name] for name in COLUMNS if name in regime} | measured for regime in found]
    with written_whole(results.OUT / "rehearsal.csv") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
