"""What studies/finetuning.py found, as the tables of PAPER.md, "Measured here"."""
import itertools
import math

import numpy as np

from studies.results import interval, read

SCORES = ("f1_weighted", "map")


def compare(rows, what, against, setting):
    """A markdown table: each value of a column, and what it is above one of them, paired by seed.

    rows: dicts. what: the column that is varied. setting: the columns that make a pair together with the seed.
    Differences are means over the settings and seeds that all values have, a column for each of data; n: of the seeds
    of each.
    """
    known = {(row[what], *(row[name] for name in setting), row["seed"]): row for row in rows}
    values = list(dict.fromkeys(row[what] for row in rows))
    settings, seeds = sorted({key[1:-1] for key in known}), sorted({key[-1] for key in known})
    common = [each for each in settings
              if all(any((value, *each, seed) in known for seed in seeds) for value in values)]
    data = list(dict.fromkeys(each[0] for each in common)) if setting[0] == "data" else [None]
    chosen = {name: [each for each in common if name in (None, each[0])] for name in data}
    paired = {name: [seed for seed in seeds
                     if all((value, *each, seed) in known for value in values for each in chosen[name])]
              for name in data}
    n = " and ".join(map(str, dict.fromkeys(len(paired[name]) for name in data)))
    heads = [f"minus {against}, F1 and mAP{f', {name}' if name else ''}" for name in data]
    lines = [f"| {what} | {' | '.join(' '.join(each) for each in settings)} | {' | '.join(heads)} | n |",
             "|" + "---|" * (len(settings) + len(heads) + 2)]

    def score(value, each, seed, name):
        return float(known[(value, *each, seed)][name])
    for value in values:
        cells = [" / ".join(f"{np.mean(found):.1f}" for found in (
            [score(value, each, seed, name) for seed in seeds if (value, *each, seed) in known]
            for name in SCORES) if found) for each in settings]
        differences = []
        for part in data:
            is_there = chosen[part] and paired[part]
            pairs = [[np.mean([score(value, each, seed, name) - score(against, each, seed, name)
                               for each in chosen[part]]) for seed in paired[part]] for name in SCORES * bool(is_there)]
            differences.append(", ".join("{:+.1f} ±{:.1f}".format(*interval(pair)) for pair in pairs))
        lines.append(f"| {value} | {' | '.join(cells)} | {' | '.join(differences)} | {n} |")
    return "\n".join(lines)


def tables():
    """The tables of the rows that are there, markdown."""
    rows, out = read("finetuning.csv"), []
    of = {part: [row for row in rows if row["part"] == part] for part in dict.fromkeys(row["part"] for row in rows)}

    def add(title, part, what, against, setting=("data", "modality", "percent", "start")):
        if len({row[what] for row in part}) > 1:
            out.append(f"**{title}**\n\n{compare(part, what, against, setting)}\n")
    for modality in ("s2", "all"):
        part = [row for row in of.get("head", ()) if row["modality"] == modality]
        add(f"1. The head, {modality}", part, "head", "linear")
    for name in ("linear", "batch", "odds_batch"):
        part = [row for row in of.get("rate", []) + of.get("head", [])
                if (row["head"], row["modality"], row["percent"]) == (name, "s2", "10")]
        add(f"2. The rate, head {name}", sorted(part, key=lambda row: float(row["rate"])), "rate", "0.001")
    for number, (name, title) in enumerate((("image", "The image's token"), ("ltae", "Where L-TAE starts from"),
                                            ("filter", "Dates chosen for a tile, not for each patch")), 3):
        add(f"{number}. {title}, fine-tuned", of.get(name, []), "variant", "as_now")
    add("8. Dropout of 0.2, as in the official code", of.get("dropout", []), "variant", "as_now")
    frozen = [row | {"what": f"{row['start']}, {row['variant']}"} for row in read("features.csv")]
    for data in ("forest", "crops"):
        part = [row for row in frozen if row["data"] == data]
        seeds = {row["variant"]: len({r["seed"] for r in part if r["variant"] == row["variant"]}) for row in part}
        against = "what", "pretrained, as_now", ("percent", "features")
        repeated = [row for row in part if seeds[row["variant"]] > 1]
        add(f"Frozen features, {data}: logistic regression", repeated, *against)
        if tried := [row for row in part if seeds[row["variant"]] == 1]:
            usual = [row for row in part if row["variant"] == "as_now"]
            add(f"Frozen features, {data}, tried with one seed", usual + tried, *against)
    if rows := read("stages.csv"):
        out.append("**7. Where f\\* loses its directions**, forest, validation tiles, means over seeds: share of the "
                   "mean square that is\nthe same for all / effective rank of the rest / dimensions of 64 that hardly "
                   "vary (under a tenth of the largest\nstandard deviation)\n\n" + stages_table(rows) + "\n")
    if watched := read("dates.csv"):
        out.append("**6. Which dates equation 5 looks at**, validation tiles, means over seeds\n\n"
                   + dates_table(watched) + "\n")
    return "\n".join(out)


def stages_table(rows):
    """Of stages.csv."""
    names = list(dict.fromkeys(row["stage"] for row in rows))
    lines = [f"| weights | n | {' | '.join(names)} |", "|" + "---|" * (len(names) + 2)]
    for start, variant in dict.fromkeys((row["start"], row["variant"]) for row in rows):
        part = [row for row in rows if (row["start"], row["variant"]) == (start, variant)]
        cells = [" / ".join(f"{np.mean([float(row[what]) for row in part if row['stage'] == name]):.{digits}f}"
                            for what, digits in (("constant_share", 2), ("rank", 1), ("silent", 0))) for name in names]
        lines.append(f"| {start}, {variant} | {len({row['seed'] for row in part})} | {' | '.join(cells)} |")
    return "\n".join(lines)


def dates_table(rows):
    """Of dates.csv: steps beside each other."""
    names = ("square_chosen", "square_all", "error_chosen", "error_all", "attention_chosen")
    steps = [step for step in ("0", "250", "750", "1500") if any(row["step"] == step for row in rows)]
    lines = [f"| pretraining, series | | {' | '.join(f'{step} steps' for step in steps)} |",
             "|" + "---|" * (len(steps) + 2)]
    for ablation, sensor in itertools.product(("none", "no_contrastive"), ("s2", "s1")):
        what = f"{'both losses' if ablation == 'none' else 'no contrastive loss'}, {sensor}"
        for name in names:
            values = [[float(row[name]) for row in rows
                       if (row["ablation"], row["sensor"], row["step"]) == (ablation, sensor, step)] for step in steps]
            cells = [f"{np.mean(found or [math.nan]):.2f}" for found in values]
            lines.append(f"| {what} | {name.replace('_', ', ')} | {' | '.join(cells)} |")
    return "\n".join(lines)
