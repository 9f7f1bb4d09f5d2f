"""The studies: what PAPER.md shows is what their rows say, every short training of the tables was rehearsed, and they
run and go on.
"""
import csv

import pytest
import torch

from studies import (claims, claims_report, data, finetuning, frozen, regimes, rehearsal, rehearsal_report, results,
                     training, variants)


def test_paper_shows_what_the_rows_say():
    paper = results.PAPER.read_text(encoding="utf-8")
    for name, text in (("studies.finetuning", finetuning.tables()), ("studies.rehearsal", rehearsal_report.table())):
        assert f"<!-- {name} -->\n{text}<!-- end of {name} -->\n" in paper, f"python -m {name} --report"


def test_the_rehearsals_are_of_todays_regimes():
    """Each of them with under 2,000 steps was rehearsed, at today's default rates; it passes by its numbers, or says
    why not.
    """
    with open(results.OUT / "rehearsal.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    known = {(row["dataset"], row["model"], int(row["label_percent"]), row["start"]) for row in rows}
    short = [regime for regime in regimes.regimes() if regime["steps"] < regimes.SHORT]
    assert known == {(regime["dataset"], regime["model"], regime["label_percent"], regime["start"]) for regime in short}
    assert {int(regime["label_percent"]) for regime in short if regime["dataset"] != "pastis-hd"} == {10}
    for row in rows:
        assert (row["passes"] == "True") == (float(row["ratio"]) >= 0.95) == (row["reason"] == ""), row
        assert float(row["ratio"]) == pytest.approx(
            # one decimal each
            float(row["map"]) / float(row["map_four_times"]), abs=0.11 / float(row["map_four_times"]))
    assert {key[:3] for key in regimes.trainings()} == {(row["model"], row["modality"], float(row["rate"]))
                                                        for row in rows}


@pytest.mark.parametrize("dataset, percent, tiles, an_epoch, earliest", [
    ("pastis-hd", 20, 291, 20, 1000), ("pastis-hd", 100, 1455, 20, 1000), ("treesatai-ts", 10, 3852, 22, 1100),
    ("treesatai-ts", 100, 38520, 101, 5050)])
def test_regimes_by_hand(dataset, percent, tiles, an_epoch, earliest):
    """384 tiles a step: 1, 4, 11 and 101 steps a pass; an epoch has at least 20."""
    (regime,) = [regime for regime in regimes.regimes()
                 if (regime["dataset"], regime["model"], regime["label_percent"], regime["start"])
                 == (dataset, "omnisat", percent, "self")]
    assert (regime["tiles"], regime["steps_an_epoch"], regime["steps"]) == (tiles, an_epoch, earliest)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """The studies with few tiles and steps, writing below tmp_path."""
    tiles = data.forest(tmp_path, train=30, test=8)
    monkeypatch.setattr(data, "forest", lambda folder: tiles)
    for module in (finetuning, frozen, rehearsal, claims):
        monkeypatch.setattr(module, "forest", lambda folder, **lists: tiles)
    monkeypatch.setattr(results, "OUT", tmp_path / "out")
    for module in (training, rehearsal):
        monkeypatch.setattr(module, "EPOCH", 2)
    monkeypatch.setattr(claims, "STEPS", 4)
    monkeypatch.setattr(claims, "TREES", 20)
    monkeypatch.setattr(claims, "PRETRAIN_STEPS", 2)
    monkeypatch.setattr(claims, "_tiles", {})
    monkeypatch.setattr(finetuning, "PRETRAIN_STEPS", 2)
    monkeypatch.setattr(finetuning, "STEPS", 4)
    monkeypatch.setattr(finetuning, "_tiles", {})
    monkeypatch.setattr(rehearsal, "LATEST", 2)
    monkeypatch.setattr(rehearsal, "ASIDE", 10)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


def test_a_study_pretrains_fine_tunes_and_writes_rows(small):
    run = next(run for run in finetuning.plan() if (run.data, run.part, run.start) == ("forest", "image", "pretrained"))
    finetuning.prepare((finetuning.pretraining_of(run), small, None))
    finetuning.prepare((finetuning.pretraining_of(run), small, None))         # done: not again
    finetuning.perform((run, small, None))
    scored, rows = (results.read(small / "out" / name) for name in ("features.csv", "finetuning.csv"))
    assert {row["features"] for row in scored} == {"tokens vhr", "tokens s2", "tokens s1", "tokens all",
                                                   "f*"} and len(scored) == 20
    (row,) = rows
    assert tuple(row[name] for name in run._fields) == tuple(map(str, run)) and int(row["kept"]) in (2, 4)
    finetuning.dates((("none", 0), small))
    assert {row["sensor"] for row in results.read(small / "out" / "dates.csv")} == {"s2", "s1"}
    frozen.write_stages(small)
    assert "pretrained, as_now" in finetuning.tables()


def test_the_part_dropout_runs_from_scratch_and_pretrained(small):
    """10 and 100 %, five seeds of crops, three of forest, each beside the model as it is now; then its table."""
    runs = [run for run in finetuning.plan() if run.part == "dropout"]
    assert len(runs) == 2 * 2 * 2 * (5 + 3) and {(run.variant, run.modality) for run in runs} == {("as_now", "s2"),
                                                                                                  ("dropout", "s2")}
    for run in runs:
        if (run.data, run.percent, run.seed) == ("forest", 10, 0):
            if run.start == "pretrained":
                finetuning.prepare((finetuning.pretraining_of(run), small, None))
            finetuning.perform((run, small, None))
    assert len(results.read(small / "out" / "finetuning.csv")) == 4
    assert "**8. Dropout of 0.2" in finetuning.tables() and "| dropout | " in finetuning.tables()


def test_dropout_is_the_same_model_that_forgets(small):
    """The weights of the model as it is now, drawn alike; in evaluation the same logits; in training others, by the
    seed, with gradients everywhere."""
    tiles = data.forest(small)
    models, following = [], []
    for variant in ("as_now", "dropout"):
        torch.manual_seed(0)
        models.append(variants.build(variant, tiles.sensors, tiles.statistics(), classes=8))
        following.append(torch.rand(1).item())    # as the head's weights, which are drawn next
    assert following[0] == following[1]
    plain, dropped = models
    assert plain.state_dict().keys() == dropped.state_dict().keys()
    assert all(torch.equal(value, dropped.state_dict()[name]) for name, value in plain.state_dict().items())
    batch = data.rows_of(tiles.splits["train"], slice(0, 6))
    torch.testing.assert_close(dropped.eval()(batch), plain.eval()(batch), rtol=0, atol=1e-5)
    torch.manual_seed(1)
    first = dropped.train()(batch)
    assert (dropped(batch) - first).abs().max() > 1e-3
    torch.manual_seed(1)
    torch.testing.assert_close(dropped(batch), first)
    first.square().sum().backward()
    assert {name for name, p in dropped.named_parameters() if p.grad is None or not p.grad.any()} <= {"mask_token"}


def test_dropout_drops_a_fifth_and_keeps_the_expectation():
    """Numbers of a branch, and of a tile's whole branches; in the cross-attention no whole ones."""
    torch.manual_seed(0)
    block, cross = variants.DroppedBlock(16, 8), variants.DroppedBlock(16, 8, cross=True)
    ones = torch.ones(4000, 3, 16)
    out = block.dropped(ones)
    whole = (out == 0).flatten(1).all(1)
    assert whole.float().mean().item() == pytest.approx(0.2, abs=0.03)
    assert (out[~whole] == 0).float().mean().item() == pytest.approx(0.2, abs=0.01)
    assert out.mean().item() == pytest.approx(1, abs=0.03)
    out = cross.dropped(ones)
    assert not (out == 0).flatten(1).all(1).any() and (out == 0).float().mean().item() == pytest.approx(0.2, abs=0.01)
    assert torch.equal(block.eval().dropped(ones), ones)
    attention = variants.DroppedAttention(8, 8)    # one token has one weight a head, 1: then 0 or 1.25
    for weight in (attention.key_value.weight, attention.query.weight):
        torch.nn.init.zeros_(weight)
    attention.key_value.weight.data[8:] = torch.eye(8)
    torch.nn.init.eye_(attention.out.weight), torch.nn.init.zeros_(attention.out.bias)
    out = attention(torch.ones(2000, 1, 8), torch.ones(2000, 1, 8), torch.zeros(1, 1, dtype=torch.uint8))
    assert (out.isclose(torch.zeros(())) | out.isclose(torch.tensor(1.25))).all()
    assert (out == 0).float().mean().item() == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize("trained",
                         [("omnisat", "s2", 2e-4, "self"), ("omnisat, odds", "s2", 2e-4, "none"),
                          ("pse", "s1", 1e-3, "none"), ("croma", "s2", 2e-5, "self")])
def test_a_rehearsal_writes_its_line(trained, small, monkeypatch):
    steps_of = training.steps_of
    monkeypatch.setattr(training, "steps_of", lambda rows, how: steps_of(rows, how._replace(steps=min(how.steps, 4))))
    rehearsal.rehearse((trained, small))
    line = rehearsal_report.read_lines()[trained]
    assert line["kept"][0][0] == 1 and len(line["epochs"]) == 2 and rehearsal_report.kept_by(line,
                                                                                             2) == line["kept"][-1][1:]


def test_claims_run_and_go_on(small):
    """A pretraining with all that begins with it: each row of the plan once, and none a second time."""
    start = claims.starts("forest", 0)[0]
    claims.perform((start, small, None))
    rows = results.read(small / "out" / "claims.csv")
    keys = [tuple(row[name] for name in claims.Run._fields) for row in rows]
    assert len(set(keys)) == len(keys) and {tuple(map(str, run)) for run in claims.runs_of(start)} <= set(keys)
    assert {key[-1] for key in keys} == {"fine-tuned", "random forest", "frozen f*", "frozen tokens"}
    claims.perform((start, small, None))
    assert len(results.read(small / "out" / "claims.csv")) == len(rows)
    claims.perform((claims.starts("forest", 0)[2], small, None))              # S2 alone
    assert {(claim, what) for claim, _, what, _,
            _ in claims.differences(results.read(small / "out" / "claims.csv"))} >= {
        ("1. pretrained - from scratch", "all"), ("4. pretrained on all - on it alone", "s2")}


def test_every_question_of_the_plan_has_its_runs():
    """For each data and seed: scratch and pretrained of each modality, each ablation that can be asked, each sensor
    alone.
    """
    for name, sensors, ablations in (("forest", 3, 5), ("crops", 2, 3)):
        starts = claims.starts(name, 4)
        assert len(starts) == 1 + sensors + ablations
        tuned = [run for start in starts for run in claims.runs_of(start) if run.how == "fine-tuned"]
        assert len(set(tuned)) == len(tuned) == 2 * (2 * (sensors + 1) + ablations + sensors)


def test_claims_by_hand():
    """Paired by seed, folds averaged first; fusion against the sensor that is best by the mean; verdicts by the
    interval.
    """
    def row(data, seed, modality, pretraining, f1):
        return {"data": data, "seed": str(seed), "modality": modality, "percent": "10", "pretraining": pretraining,
                "how": "fine-tuned",
                "f1_weighted": str(f1), "map": "1"}
    rows = [row("crops", seed, modality, "none", f1) for seed in (0, 5, 1) for modality,
            f1 in (("s2", 10 + seed), ("s1", 12), ("all", 20))]
    rows += [row("crops", seed, "all", "all", 26 + seed) for seed in (0, 5, 1)]
    found = {(claim, what): {unit: pair[0] for unit, pair in paired.items()} for claim, _, what, _,
             paired in claims.differences(rows)}
    assert found["1. pretrained - from scratch", "all"] == {0: 8.5, 1: 7.0}   # seeds 0 and 5 are one fold
    # 12 against 12.5 and 11: 11.75
    assert found["2. all sensors - best single one", "from scratch, best s1"] == {0: 8, 1: 8}
    assert [claims.verdict(*pair) for pair in ((3, 2), (-3, 2), (1, 2), (3, float("nan")))] == ["yes", "no", "open",
                                                                                                "too few"]


def test_the_page_of_claims_is_what_the_rows_say():
    rows = results.read(results.OUT / "claims.csv")
    if not rows:
        pytest.skip("no rows yet: python -m studies.claims")
    text = f"<!-- studies.claims -->\n{claims_report.tables(rows)}<!-- end of studies.claims -->\n"
    assert text in claims_report.PAGE.read_text(encoding="utf-8"), "python -m studies.claims_report"
