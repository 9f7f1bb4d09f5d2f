"""What studies/claims.py found, as text and as a picture: results/study/README.md and claims.png.

    python -m studies.claims_report
"""
import itertools

import numpy as np

from tables.pictures import BLUE, ORANGE, new_figure, sign
from studies.claims import PERCENTS, PLANNED, SEEDS, SENSORS, differences, means, verdict
from studies.results import OUT, interval, publish, read

PAGE, PICTURE = OUT / "README.md", OUT / "claims.png"
NAMES = {"forest": "simulated forest", "crops": "real Canadian crops"}
HEADS = {"1": "1. Pretrained minus from scratch", "2": "2. All sensors minus the best single one",
         "3": "3. Whole method minus an ablation", "4": "4. Pretrained on all sensors minus on this one"}
WORDS = {"all": "all sensors", "vhr": "image alone", "s2": "Sentinel-2 alone", "s1": "Sentinel-1 alone",
         "no_index_bypass": "without index bypass", "no_date_filtering": "without date filter",
         "no_contrastive": "without contrastive loss", "no_reconstruction": "without reconstruction",
         "naive_contrastive": "naive negatives"}
UNITS = {"forest": "seeds", "crops": "folds"}
REMARK = "STUDY: small models on simulated tiles and a few thousand pixels, not comparable with the paper"


def claims_table(rows, how):
    """Markdown: a line a claim, data and case; a column a share of labels; mAP's difference in brackets."""
    heads = " | ".join(f"{percent} %: F1, mAP, verdict, n" for percent in PERCENTS)
    lines = [f"| claim | data | case | {heads} |", "|" + "---|" * 5]
    found = differences(rows, how)
    for claim, data, what in dict.fromkeys((claim, data, what.split(", best")[0]) for claim, data, what, _, _ in found):
        cells = {}
        for claim_, data_, what_, percent, paired in found:
            if (claim_, data_, what_.split(", best")[0]) == (claim, data, what):
                (middle, half), (precision, wide) = (interval([pair[k] for pair in paired.values()]) for k in (0, 1))
                best = f", over {what_.split('best ')[1]}" if "best" in what_ else ""
                cells[percent] = (f"{middle:+.1f} ±{half:.1f}, {precision:+.1f} ±{wide:.1f}, "
                                  f"**{verdict(middle, half, len(paired))}**, {len(paired)}{best}")
        cells = " | ".join(cells.get(percent, "") for percent in PERCENTS)
        lines.append(f"| {claim} | {NAMES[data]} | {what} | {cells} |")
    return "\n".join(lines)


def scores_table(rows):
    """Markdown: the scores behind the differences, F1 / mAP, means over seeds or folds, and the yardstick."""
    known, lines = means(rows), []
    for data in SENSORS:
        columns = [(modality, percent) for modality in ("all", *SENSORS[data]) for percent in PERCENTS]
        kinds = dict.fromkeys((how, pretraining) for d, _, _, pretraining, how in known if d == data)
        if not kinds:
            continue
        lines += [f"\n{NAMES[data][0].upper()}{NAMES[data][1:]}:\n",
                  f"| how | pretraining | {' | '.join(f'{m} {p} %' for m, p in columns)} |",
                  "|" + "---|" * (len(columns) + 2)]
        for how, pretraining in kinds:
            cells = [known.get((data, modality, percent, pretraining, how)) for modality, percent in columns]
            lines.append(f"| {how} | {pretraining} | " + " | ".join(
                "{:.1f} / {:.1f}".format(*np.mean(list(cell.values()), 0)) if cell else "" for cell in cells) + " |")
    return "\n".join(lines)


def tables(rows):
    """What stands between the marks of README.md."""
    done = {data: len({row["seed"] for row in rows if row["data"] == data}) for data in SENSORS}
    steps = sorted({row["steps"] for row in rows if row["steps"]})
    params = sorted({int(row["params"]) for row in rows if row["params"] and row["how"] == "fine-tuned"})
    commits = ", ".join(dict.fromkeys(row["commit"][:7] for row in rows))
    blocks = ["![differences with their intervals](claims.png)",
              f"{len(rows)} rows; "
              + ", ".join(f"{done[data]} of {len(SEEDS[data])} seeds of {NAMES[data]}" for data in SENSORS)
              + f". Parameters {params[0]:,} to {params[-1]:,}, by the number of sensors; {', '.join(steps)} steps of "
                f"fine-tuning. Commits {commits}.",
              "**Fine-tuned**\n\n" + claims_table(rows, "fine-tuned")]
    for how in ("frozen f*", "frozen tokens"):
        blocks.append(f"**{how.capitalize()}, logistic regression**\n\n" + claims_table(rows, how))
    return "\n\n".join(blocks) + "\n\n**The scores behind them**, weighted F1 / mAP\n" + scores_table(rows) + "\n"


def draw(rows):
    """claims.png: each difference with its interval, fine-tuned, a panel a set of tiles. Question 4 cannot be asked of
    the crops, see the page.
    """
    found = [item for item in differences(rows) if item[:2] != ("4. pretrained on all - on it alone", "crops")]
    figure = new_figure(13, 9, "The paper's claims on small sets of tiles: weighted F1 of one fine-tuned model minus "
                               f"another's, mean and 95 % interval of {PLANNED} pairs", REMARK)
    there = [data for data in SENSORS if any(item[1] == data for item in found)]
    for panel, data in zip(figure.subplots(1, len(there), squeeze=False)[0], there):
        draw_claims(panel, data, [item for item in found if item[1] == data])
    signs = [sign(color=BLUE, label="10 % of the labels"), sign("s", color=ORANGE, label="all labels"),
             sign("D", label="filled: the interval lies on one side of 0"),
             sign("D", markerfacecolor="white", label="hollow: it holds 0, open")]
    figure.legend(handles=signs, loc="outside lower center", ncols=4, fontsize=9)
    figure.savefig(PICTURE)


def draw_claims(panel, data, part):
    """The claims of a set of tiles. part: of differences."""
    cases = list(dict.fromkeys((claim, what.split(", best")[0]) for claim, _, what, _, _ in part))
    labels, height = [], {}
    for claim, group in itertools.groupby(cases, key=lambda case: case[0]):
        labels.append(HEADS[claim[0]])
        for case in group:
            height[case] = len(labels)
            labels.append(WORDS.get(case[1], case[1]))
    for claim, _, what, percent, paired in part:
        middle, half = interval([f1 for f1, _ in paired.values()])
        is_known = len(paired) >= PLANNED
        y = height[claim, what.split(", best")[0]] + (0.15 if percent == 100 else -0.15)
        color, marker = (ORANGE, "s") if percent == 100 else (BLUE, "o")
        panel.errorbar(middle, y, xerr=half if is_known else None, color=color, marker=marker, markersize=5,
                       capsize=2.5, markerfacecolor=color if is_known and abs(middle) > half else "white")
    panel.axvline(0, color="0.3", linewidth=1)
    panel.set_yticks(range(len(labels)), labels, fontsize=9)
    panel.tick_params(axis="y", length=0)
    for text, label in zip(panel.get_yticklabels(), labels):
        text.set_fontweight("bold" if label in HEADS.values() else "normal")
    panel.set(ylim=(len(labels) - 0.5, -0.5), title=f"{NAMES[data]}, pairs are {UNITS[data]}",
              xlabel="points of weighted F1")
    panel.grid(color="0.92", axis="x")
    panel.set_axisbelow(True)


def report():
    """Write both, of the rows that are there."""
    rows = read(OUT / "claims.csv")
    publish("studies.claims", tables(rows), PAGE)
    draw(rows)


if __name__ == "__main__":
    report()
