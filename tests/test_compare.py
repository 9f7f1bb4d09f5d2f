"""compare.py and its pictures on hand-made tables whose means and differences are known."""
import csv
import json
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import compare
from tables import collect, curves
from utils.errors import UserError
from utils.results import COLUMNS, KEYS, PROBE_COLUMNS, PROBE_KEYS, read_later, write_row

ROOT = Path(__file__).parent.parent
DEFAULTS = {"table": "table2", "dataset": "treesatai-ts", "model": "omnisat", "pretraining": "self", "ablation": "none",
            "modality": "all", "label_percent": "100", "seed": 0, "status": "ok", "scale": "paper",
            "params": 10_000_000,
            "pretrain_hours": 20, "finetune_hours": 4, "device": "H200", "processes": "1 x 1", "n_test": 50,
            "test_hash": "5ca1ab1e", "dirty": False, "pretrain_dirty": False, "test_dirty": False, "commit": "c0ffee12"}


def write(folder, rows, table="table2"):
    """rows: (changes of DEFAULTS, F1 of seeds 0, 1, ...); the F1 that is not the table's metric is 1."""
    metric = "f1_macro" if table in ("table3", "table4") else "f1_weighted"
    folder.mkdir(exist_ok=True)
    with open(folder / f"{table}.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for changes, values in rows:
            for seed, value in enumerate(values):
                scores = {} if value is None else {"f1_weighted": 1, "f1_macro": 1} | {metric: value}
                writer.writerow(dict.fromkeys(COLUMNS, "") | DEFAULTS | {"table": table, "seed": seed} | scores
                                | changes)


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def png_size(path):
    """(width, height), from the header."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


FUSION = [({}, (80, 84)), ({"modality": "s2"}, (70, 75)), ({"modality": "s1"}, (9, 9)), ({"modality": "vhr"}, (60, 76)),
          ({"pretraining": "none"}, (77, 79, 50))]


def test_means_differences_and_files(tmp_path, capsys):
    write(tmp_path, FUSION
          + [({"scale": "custom", "seed": 7}, (99.9,)), ({"modality": "s2", "label_percent": "33"}, (88.8,)),
                              ({"status": "weights-missing: put it there", "seed": 8}, (None,)),
                              ({"status": "weights-missing: or there", "seed": 9}, (None,))])
    compare.main(["table2", "--results", str(tmp_path)])
    out = capsys.readouterr().out
    assert "table2: weighted F1" in out and "DEMO" not in out
    assert re.search(r"OmniSat +self +paper +74\.2 +56\.7 +62\.9 +70\.5\n"
                     r" +ours +82\.0±2\.8 +9\.0±0\.0 +72\.5±3\.5 +68\.0±11\.3 +2\n", out)
    # pretrained - scratch: seeds 0 and 1 are common: (80 - 77, 84 - 79) = (3, 5)
    assert re.search(r"\[pretrained - scratch\]\ntreesatai-ts, OmniSat, all +\+0\.9 +\+4\.0±1\.4 +2\n", out)
    # all - best single: s2, whose mean is best though vhr leads in seed 1: (80 - 70, 84 - 75) = (10, 9); the paper's:
    # 74.2 - 70.5
    assert re.search(
        r"\[all - best single modality\]\ntreesatai-ts, OmniSat, pretrained: self +\+3\.7 +\+9\.5±0\.7 +2\n", out)
    assert "from scratch" not in out    # its single modalities have not all been run
    assert "2 rows without a score: 2 weights-missing" in out and "1 row not of scale paper" in out
    assert "99.9" not in out and out.count("88.8") == 1    # which the paper does not print: a block of its own
    assert re.search(r"\n\ntable2, not in the paper: weighted F1 on test, %\nmethod +pretrained +s2 33% +n\n"
                     r"\[treesatai-ts\]\nOmniSat +self +ours +88\.8 +1\n\ntable2: differences", out)
    cells = {(row["pretraining"], row["modality"]): row for row in read(tmp_path / "compare.csv")}
    assert len(cells) == 5
    cell = cells["self", "all"]
    assert [cell[name] for name in ("metric", "paper", "ours_mean", "ours_std", "n", "scale")] == [
        "weighted F1", "74.2", "82.00", "2.83", "2", "paper"]
    markdown = (tmp_path / "compare.md").read_text()
    assert "| pretrained - scratch | treesatai-ts, OmniSat, all | +0.9 | +4.0±1.4 | 2 |" in markdown
    assert not (tmp_path / "fig5.csv").exists()    # not asked for


def test_what_the_paper_does_not_print_stands_below_what_it_does(tmp_path, capsys):
    """A method of one's own, in the text, the CSV and the picture, with nothing of the paper's beside it; the cells and
    claims that it prints are as they were without.
    """
    write(tmp_path / "without", FUSION)
    mine = [({"model": "mine", "pretraining": start, "modality": modality}, (50, 54))
            for start in ("none", "self") for modality in ("all", "s2")]
    write(tmp_path / "with", mine + FUSION + [({"model": "mine", "modality": "s2+s1", "label_percent": "50"}, (40,)),
                                              ({"dataset": "forest"}, (99,))])
    shown = {}
    for name in ("without", "with"):
        compare.main(["table2", "fig5", "claims", "--results", str(tmp_path / name)])
        shown[name] = capsys.readouterr().out.split("\n\n")
    assert [block for block in shown["with"] if "mine" not in block] == [
        block for block in shown["without"] if not block.startswith("fig5")]
    own, figure = (block for block in shown["with"] if "mine" in block)
    assert own.splitlines()[2:] == [
        "[treesatai-ts]",
        "mine     none        ours  52.0±2.8  52.0±2.8             2",
        "mine     self        ours  52.0±2.8  52.0±2.8  40.0       1-2",
        "[forest]",
        "OmniSat  self        ours  99.0                           1"]
    assert re.search(r"mine +none +all .* 52\.0 +2\.8 +2$", figure, re.MULTILINE) and "99.0" not in figure
    rows = read(tmp_path / "with" / "compare.csv")
    assert [(row["model"], row["paper"]) for row in rows[-6:]] == [("mine", "")] * 5 + [("omnisat", "")]
    assert rows[:-6] == read(tmp_path / "without" / "compare.csv")
    high, low = (png_size(tmp_path / name / "table2.png")[1] for name in ("with", "without"))
    assert 4 * 43 < high - low < 6 * 43    # two datasets and three methods more, a third of an inch each
    assert len(read(tmp_path / "with" / "fig5.csv")) == len(read(tmp_path / "without" / "fig5.csv")) + 2


def test_the_best_result_since_the_paper_is_a_line_of_its_own(tmp_path, capsys):
    """With its source and what differs, of the same score; no cell is made of it."""
    later = read_later()
    assert len(later) == 10 and all(row["source"] and row["protocol"] and 0 < float(row["value"]) < 100
                                    for row in later)
    write(tmp_path, FUSION)
    compare.main(["table2", "--results", str(tmp_path)])
    out = capsys.readouterr().out
    assert re.search(r"since the paper: .*\n.*\n\[treesatai-ts\]\nMAESTRO +79\.6 +.*2508\.10894\n"
                     r"MAESTRO on treesatai-ts: other splits, ", out) and "on pastis-hd" not in out
    assert "MAESTRO" not in (tmp_path / "compare.csv").read_text()
    assert "| treesatai-ts | MAESTRO | 79.6 |" in (tmp_path / "compare.md").read_text()


def test_the_best_constant_prediction_is_told(tmp_path, capsys):
    """From the counts: classes on 1 and 3 of 4 tiles have 2p / (1 + p) = 0.4 and 6 / 7, weighted (0.4 + 3 x 6 / 7) / 4.
    """
    write(tmp_path, FUSION)
    counts = {"dataset": "treesatai-ts", "tp": [0, 3], "fp": [1, 0], "fn": [1, 0], "tn": [2, 1]}
    lines = [counts | {"scale": "demo", "tp": [1, 3], "tn": [0, 0]}, counts | {"scale": "paper"}]
    (tmp_path / "table2.counts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    compare.main(["table2", "--results", str(tmp_path)])
    assert "the best constant prediction: 74.3 on treesatai-ts" in capsys.readouterr().out


def test_noise_does_not_choose_the_best_single_modality(tmp_path, capsys):
    """All of one true F1, 60: the best of each seed is 62, 62, 62 and 61, and fusion would seem to lose 1.75."""
    write(tmp_path, [({}, (60, 60, 60, 60)), ({"modality": "s2"}, (62, 58, 60, 60)),
                     ({"modality": "s1"}, (58, 62, 58, 61)), ({"modality": "vhr"}, (59, 60, 62, 58))])
    compare.main(["table2", "--results", str(tmp_path)])
    assert re.search(r"pretrained: self +\+3\.7 +[+-]0\.0±1\.6 +4\n", capsys.readouterr().out)    # s2: (-2, 2, 0, 0)


def test_rows_of_different_test_tiles_are_refused(tmp_path):
    """Also of different cells, as differences mix them; a list that is not noted counts by its number of tiles."""
    for number, (some, told) in enumerate((
            ({"test_hash": "0ddba11"},
             "50 tiles, list 5ca1ab1e: 2 rows, as treesatai-ts omnisat self all 100 %, seed 0; "
                                       "50 tiles, list 0ddba11: 1 row, as treesatai-ts omnisat self s2 100 %, seed 1"),
            ({"test_hash": "", "n_test": 49}, "49 tiles, list not noted: 1 row"))):
        write(tmp_path / str(number), [({}, (80, 84)), ({"modality": "s2", "seed": 1} | some, (70,))])
        with pytest.raises(UserError, match=rf"rows of treesatai-ts were scored on different test tiles \(.*{told}"):
            compare.main(["table2", "--results", str(tmp_path / str(number))])
    write(tmp_path / "cell", [({}, (80,)), ({"seed": 1, "test_hash": "0ddba11"}, (84,))])
    with pytest.raises(UserError, match="table2.csv: rows of treesatai-ts were scored on different test tiles"):
        compare.main(["table2", "--results", str(tmp_path / "cell")])
    write(tmp_path / "both", [({}, (80, 84)), ({"modality": "s2", "test_hash": ""}, (70,)),
                              ({"dataset": "treesatai", "test_hash": "0ddba11"}, (70,))])
    compare.main(["table2", "--results", str(tmp_path / "both")])             # another dataset's list is another


REMARKS = [    # changes of a second seed, and what is told
    ({"dirty": True}, "1 of 2 rows: pretrained, trained or scored with changes to the code that no commit has"),
    ({"test_dirty": True}, "1 of 2 rows: pretrained, trained or scored with changes"),
    ({"pretrain_dirty": True}, "1 of 2 rows: pretrained, trained or scored with changes"),
    ({"pretrain_dirty": ""}, "1 of 2 rows: not noted whether the code had changes that no commit has"),
    ({"dirty": "unknown"}, "1 of 2 rows: not noted whether the code had changes"),
    ({"test_hash": ""}, "1 of 2 rows: not noted which list of test tiles"),
    ({"commit": "c0ffee12 + decade12"}, "of 2 commits: c0ffee1 in 2 rows, decade1 in 1 row"),
    ({"pretrain_commit": "decade12"}, "of 2 commits: c0ffee1 in 2 rows, decade1 in 1 row"),
    ({"test_commit": "decade12"}, "of 2 commits: c0ffee1 in 2 rows, decade1 in 1 row"),
    ({"device": "H200 + A100"}, "of 2 devices: H200 in 2 rows, A100 in 1 row"),
    ({"rate": "2e-05"},
     "the learning rate differs inside a cell, or not all its rows have it: treesatai-ts omnisat self all 100"),
    ({"params": 7}, "the number of parameters differs inside a cell"),
    ({"val_hash": "facade"}, "the list of validation tiles differs inside a cell"),
    ({"torch": "2.9"}, "the version of torch differs inside a cell"),
    ({"split_hash": "facade"}, "not of the same training tiles, as they should be: treesatai-ts 100 %"),
]


@pytest.mark.parametrize("changes, told", REMARKS)
def test_what_rows_do_not_have_in_common_is_told(changes, told, tmp_path, capsys):
    base = {"split_hash": "decade"}
    write(tmp_path, [(base, (80,)), (base | {"seed": 1} | changes, (84,))])
    compare.main(["table2", "--results", str(tmp_path)])
    out = capsys.readouterr().out
    assert told in out and told in (tmp_path / "compare.md").read_text()
    assert len(re.findall("of 2 rows|of 2 |differs|not of the same", out)) == 1    # and nothing else


def test_rows_that_agree_have_no_remark(tmp_path, capsys):
    """With few labels a seed has tiles of its own, and each seed its pretraining: no reason to say anything."""
    few = {"label_percent": "10", "rate": "0.0002"}
    seeds = [({"seed": n, "pretrain_hash": f"{n}a"} | more, (50 + n,)) for n in (0, 1) for more in (
        {"split_hash": "facade"}, few | {"split_hash": f"{n}b"}, few | {"split_hash": f"{n}b", "modality": "s2"})]
    write(tmp_path / "alike", seeds)
    compare.main(["table2", "--results", str(tmp_path / "alike")])
    assert not re.search("rows|not of|not noted|differs", capsys.readouterr().out)
    (changes, _), *others = seeds[1:]
    write(tmp_path / "other", [seeds[0], (changes | {"pretrain_hash": "0c", "split_hash": "facade"}, (50,)), *others])
    compare.main(["table2", "--results", str(tmp_path / "other")])
    out = capsys.readouterr().out
    assert "not of the same pretraining, as they should be: treesatai-ts omnisat seed 0\n" in out
    assert "not of the same training tiles, as they should be: treesatai-ts 10 % seed 0\n" in out


def test_tables_of_before_are_read_and_those_of_later_refused(tmp_path, capsys):
    """A table without the columns that say where a row is from; one with a column that nothing here knows."""
    write(tmp_path / "now", [({}, (80, 84))])
    rows = read(tmp_path / "now" / "table2.csv")
    for folder, names in (("before", [name for name in rows[0] if name in KEYS + (
            "seed", "f1_weighted", "f1_macro", "status", "scale", "n_test", "commit", "dirty", "device", "params",
            "pretrain_hours",
            "finetune_hours")]), ("later", [*rows[0], "weather"])):
        (tmp_path / folder).mkdir()
        with open(tmp_path / folder / "table2.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, names, restval="rain", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
    compare.main(["table2", "fig5", "--results", str(tmp_path / "before")])
    out = capsys.readouterr().out
    assert "82.0±2.8" in out and "2 of 2 rows: not noted which list of test tiles" in out and "fig5" in out
    with pytest.raises(UserError, match="table2.csv: its columns weather are not known to this version"):
        compare.main(["table2", "--results", str(tmp_path / "later")])
    write_row(tmp_path / "before" / "table2.csv", dict.fromkeys(COLUMNS, "") | DEFAULTS | {"seed": 2})    # joins them
    assert [row["test_hash"] for row in read(tmp_path / "before" / "table2.csv")] == ["", "", "5ca1ab1e"]


def test_random_weights_are_not_averaged_with_published_ones(tmp_path, capsys):
    cell = {"model": "resnet50", "dataset": "treesatai", "pretraining": "imagenet", "modality": "vhr"}
    write(tmp_path, [(cell | {"status": "random-weights"}, (40,)), (cell | {"seed": 1}, (60,)),
                     (cell | {"seed": 2}, (62,))])
    compare.main(["table2", "--results", str(tmp_path)])
    out = capsys.readouterr().out
    assert re.search(r"ours +61\.0±1\.4 +2\n", out)
    assert "1 row with random weights, of cells that have others with published ones, not shown" in out


def test_random_weights_count_and_are_told(tmp_path, capsys):
    write(tmp_path, [({"model": "resnet50", "dataset": "treesatai", "pretraining": "imagenet", "modality": "vhr",
                       "status": "random-weights"}, (42.5,))])
    compare.main(["table2", "--results", str(tmp_path)])
    out = capsys.readouterr().out
    assert "42.5" in out and "1 row with random weights in place of published ones" in out


def test_the_demo_is_called_the_demo(tmp_path, monkeypatch, capsys):
    write(tmp_path / "demo", [({"scale": "demo"}, (30,)), ({"scale": "paper"}, (77.7,))])
    monkeypatch.setattr(compare, "RESULTS", tmp_path)
    compare.main(["--demo"])
    out = capsys.readouterr().out
    for title in ("table2", "fig5"):
        assert re.search(rf"^{title}: .*DEMO: simulated tiles, small models, not comparable with the paper$", out,
                         re.MULTILINE)
    assert re.search(r"ours +30\.0 +1\n", out) and "77.7" not in out    # one seed has no spread


def test_metric_of_tables_3_and_4_is_macro(tmp_path, capsys):
    write(tmp_path, [({"dataset": "pastis-hd"}, (60, 62))], "table3")
    write(tmp_path, [({"dataset": "flair", "label_percent": "10"}, (50,))], "table4")
    compare.main(["--results", str(tmp_path)])
    out = capsys.readouterr().out
    assert re.search(r"table3: macro F1.*61\.0±1\.4.*table4: macro F1.*ours +50\.0 +1", out,
                     re.DOTALL) and "fig5" not in out
    assert [row["ours_mean"] for row in read(tmp_path / "compare.csv")] == ["61.00", "50.00"]


def test_ablations_are_subtracted_from_the_full_model(tmp_path, capsys):
    write(tmp_path, [({"ablation": "no_contrastive"}, (70, 75)),
                     ({"ablation": "no_contrastive", "label_percent": "10"}, (50,)),
                     ({}, (74, 76)), ({"label_percent": "10"}, (60, 99))], "table5")
    compare.main(["table5", "--results", str(tmp_path)])
    out = capsys.readouterr().out
    assert out.index("OmniSat") < out.index("b) no contrastive loss") and "not print" not in out
    # 10 %: seed 0 only, 60 - 50; 100 %: (74 - 70, 76 - 75) = (4, 1); the paper's: 61.1 - 55.6 and 74.2 - 73.4
    assert re.search(r"\[full - ablation\]\nb\) no contrastive loss +\+5\.5 +\+10\.0 +\+0\.8 +\+2\.5±2\.1 +1-2\n", out)
    assert png_size(tmp_path / "table5.png")[1] > 300


def test_figure_5_takes_the_best_cell_of_each_method(tmp_path, capsys):
    write(tmp_path, [
        # best by mean, not by seed
        ({}, (72, 74)), ({"modality": "vhr", "params": 4_000_000}, (90, 40)),
        ({"dataset": "treesatai", "pretrain_hours": 30, "finetune_hours": 2, "params": 9_000_000, "device": "A100",
          "processes": "3 x 1", "pretrain_device": "H200", "pretrain_processes": "1 x 1"}, (75, 77)),
        ({"label_percent": "10"}, (95, 95)), ({"pretraining": "none", "pretrain_hours": 0}, (71,)),
        ({"model": "lightgbm", "dataset": "treesatai", "pretraining": "imagenet", "params": ""}, (55,)),
        ({"model": "dofa", "pretraining": "external", "pretrain_hours": ""}, (60,)),
        ({"model": "dofa", "pretraining": "external", "status": "failed", "seed": 1}, (None,))])
    compare.main(["fig5", "--results", str(tmp_path)])
    found = read(tmp_path / "fig5.csv")
    assert tuple(found[0]) == tuple(collect.FIGURE5)
    assert [(row["model"], row["pretraining"]) for row in found] == [
        ("omnisat", "self"), ("omnisat", "none"), ("dofa", "external"), ("lightgbm", "imagenet")]
    best = found[0]
    assert [best[name] for name in ("dataset", "modality", "n", "device", "scale")] == [
        "treesatai", "all", "2", "A100 (3 x 1) + H200", "paper"]
    assert [float(best[name])
            for name in ("params_millions", "pretrain_hours", "finetune_hours", "f1_weighted", "f1_std",
                                           "paper_f1_best")] == [9, 30, 2, 76, 1.4142, 74.2]
    assert found[1]["f1_std"] == "" and found[2]["pretrain_hours"] == "" and found[3]["params_millions"] == ""
    assert found[2]["n"] == "1" and float(found[2]["paper_f1_best"]) == 71.6
    assert "fig5: best weighted F1" in capsys.readouterr().out
    assert png_size(tmp_path / "fig5.png") == (1625, 975) and not (tmp_path / "compare.csv").exists()


def test_figure_5_notes_and_labels(tmp_path):
    """What the picture cannot show is said above it; no label covers another one, all are inside the panel."""
    from tables import pictures
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    entry = {"printed_name": "A", "pretraining": "external", "params_millions": 3.0, "n": 1, "device": "H200"}
    other = entry | {"printed_name": "B", "params_millions": None, "n": 3, "device": "cpu"}
    text = pictures.figure5_notes([entry, other], [entry])
    assert "n = 1, 3" in text and "not counted" in text and "no number of parameters: B" in text \
        and "H200: A; cpu: B" in text
    figure = Figure(figsize=(8, 6))
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    points = [(0.5 + 0.01 * i, 0.5 + 0.01 * (i % 4)) for i in range(15)]
    style = {"fontsize": 8, "ha": "center", "va": "center"}
    texts = [panel.text(*point, "a method, pretrained\n71.2 (paper 70.0)", **style) for point in points]
    pictures.place_labels(panel, texts, [(*panel.transData.transform(point), 8) for point in points])
    boxes = [text.get_window_extent() for text in texts]
    for i, box in enumerate(boxes):
        assert panel.bbox.x0 <= box.x0 and box.x1 <= panel.bbox.x1 and panel.bbox.y0 <= box.y0 \
            and box.y1 <= panel.bbox.y1
        assert not any(box.shrunk(0.98, 0.98).overlaps(earlier) for earlier in boxes[:i])


def test_the_whole_table_2_fits_a_screen_and_a_picture(tmp_path, capsys):
    printed = collect.paper_cells("table2").values()
    write(tmp_path, [({name: cell[name] for name in DEFAULTS.keys() & cell.keys()},
                      [float(cell["f1"]) + d for d in (0, 3)])
                     for cell in printed])
    compare.main(["--results", str(tmp_path)])
    out = capsys.readouterr().out
    blocks = out.split("\n\n")
    assert [block.split(":")[0] for block in blocks] == ["table2", "table2", "since the paper", "fig5"]
    assert max(map(len, out.splitlines())) <= 112 and max(len(block.splitlines()) for block in blocks) <= 40
    assert len(read(tmp_path / "compare.csv")) == 107 and len(read(tmp_path / "fig5.csv")) == 15
    few = tmp_path / "few"
    write(few, FUSION[-1:])
    compare.main(["table2", "--results", str(few)])
    (wide, high), (narrow, low) = png_size(tmp_path / "table2.png"), png_size(few / "table2.png")
    assert wide == 1690 and 1000 < high < 1300 and 900 < narrow < wide and 200 < low < 400


def test_without_matplotlib_the_tables_are_written(tmp_path, monkeypatch, capsys):
    write(tmp_path, FUSION)
    monkeypatch.delitem(sys.modules, "tables.pictures", raising=False)
    monkeypatch.delattr("tables.pictures", raising=False)
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)    # importing it now fails
    compare.main(["--results", str(tmp_path)])
    assert capsys.readouterr().out.count("the package matplotlib is not installed") == 1
    assert (tmp_path / "compare.md").exists() and (tmp_path / "fig5.csv").exists() and not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize("dataset, metric",
                         [("treesatai", "f1_weighted"), ("treesatai-ts", "f1_weighted"), ("pastis-hd", "f1_macro"),
                                             ("flair", "f1_macro"), ("one's own", "f1_weighted")])
def test_probes_have_the_metric_of_the_papers_table(dataset, metric):
    assert curves.metric_of(dataset) == metric


def test_probes_are_told_with_what_they_lie_between(tmp_path, capsys):
    """One seed: its bootstrap; several: mean and standard deviation over seeds; other scales and ablations are left
    out.
    """
    usual = dict.fromkeys(PROBE_COLUMNS, "") | {"dataset": "pastis-hd", "model": "omnisat", "pretraining": "self",
                                                "ablation": "none",
                                                "modality": "s2", "features": "tile", "classifier": "logistic",
                                                "scale": "paper"}
    rows = [{"label_percent": 10, "seed": seed, "f1_macro": f1, "f1_macro_low": f1 - 3, "f1_macro_high": f1 + 4,
             "f1_weighted": 1}
            for seed, f1 in enumerate((40, 44))]
    rows += [{"label_percent": 100, "seed": 0, "f1_macro": 60, "f1_macro_low": 55.5, "f1_macro_high": 66,
              "f1_weighted": 1},
             rows[0] | {"ablation": "no_contrastive", "f1_macro": 99}, rows[0] | {"scale": "custom", "f1_macro": 99}]
    for row in rows:
        write_row(tmp_path / "probe.csv", usual | row, keys=PROBE_KEYS)
    compare.main(["probe", "--results", str(tmp_path)])
    assert re.search(r"s2 +pretrained, f\* +logistic regression +42\.0 \(39\.2 to 44\.8\) +60\.0 \(55\.5 to 66\.0\)\n",
                     capsys.readouterr().out)
    assert "99" not in (tmp_path / "compare.md").read_text() and png_size(tmp_path / "probe.png")[1] > 300
    for row in rows[2], rows[2] | {"model": "handmade", "pretraining": "none", "features": "handmade"}:
        write_row(tmp_path / "probe.csv", usual | {"model": "mine", "f1_macro": 70} | row, keys=PROBE_KEYS)
    compare.main(["probe", "--results", str(tmp_path)])
    first, own = capsys.readouterr().out.strip().split("\n\n")    # no mean mixes methods; a method has its own picture
    assert "42.0 (39.2 to 44.8)" in first and "made by hand" in first and own.startswith("probe of mine: F1")
    assert re.search(r"s2 +pretrained, features +logistic regression +60\.0", own) and "made by hand" in own
    assert png_size(tmp_path / "probe-mine.png")[1] > 300
    with pytest.raises(UserError, match="no rows of scale demo yet; run_tables.sh probe writes them"):
        compare.main(["probe", "--demo", "--results", str(tmp_path)])


def test_errors_name_the_culprit(tmp_path, capsys):
    write(tmp_path, [({"scale": "custom"}, (50,)), ({"scale": "demo"}, (60,))], "table2")
    write(tmp_path, [({"dataset": "flair", "status": "failed"}, (None,))], "table4")
    write(tmp_path, [({"label_percent": "10"}, (50,))], "table5")
    ten = tmp_path / "ten"
    write(ten, [({"label_percent": "10"}, (50,))])
    for arguments, culprit in (
            (["table7"], "unknown table 'table7': there are table2, table3, table4, table5, fig5"),
            (["table3"], "table3.csv: no rows yet"),
            (["table2"], r"table2.csv has only rows of scale custom, demo; shown are those of scale paper"),
            (["table4"], "table4.csv has no score yet: 1 row without a score: 1 failed"),
            (["table5", "fig5"], "table2.csv has only rows of scale"),    # table 5 is printed before
            (["fig5", "--results", str(ten)], "table2.csv has no score yet with 100 %"),
            (["--results", str(tmp_path / "nothing")], "no rows yet: .*nothing has no table2.csv ... table5.csv")):
        with pytest.raises(UserError, match=culprit):
            compare.main(["--results", str(tmp_path), *arguments])
    assert "table5: weighted F1" in capsys.readouterr().out
    compare.main(["--results", str(tmp_path)])    # all there is: what cannot be shown is told, and no reason to stop
    told = capsys.readouterr()
    assert "table5: weighted F1" in told.out and told.err.count(
        "table2.csv has only rows") == 1 and "table4.csv" in told.err
    run = subprocess.run([sys.executable, "compare.py", "table7"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1 and run.stderr.startswith("compare.py: error: unknown table") and run.stderr.count(
        "\n") == 1


def test_repaired_sentinel_1_stands_beside_released(tmp_path, capsys):
    """Rows of each in its own folder; a row in the wrong one is never averaged with the others."""
    write(tmp_path, FUSION + [({"s1": "repaired", "seed": 9}, (1.1,))])
    write(tmp_path / "repaired", [({"s1": "repaired"} | changes, values) for changes, values in (
        ({}, (81, 87)), ({"modality": "s1"}, (11,)), ({"pretraining": "none", "modality": "s1"}, (14, 16)))]
          + [({"seed": 9}, (2.2,))])
    compare.main(["--results", str(tmp_path)])
    out = capsys.readouterr().out
    assert re.search(r"OmniSat +self +paper +74\.2 +56\.7 +62\.9 +70\.5\n"
                     r" +ours +82\.0±2\.8 +9\.0±0\.0 +72\.5±3\.5 +68\.0±11\.3 +2\n"
                     r" +ours, S1 repaired +84\.0±4\.2 +11\.0 +1-2\n", out)
    assert re.search(r"OmniSat +none +paper +73\.3 +\S+ *\n +ours +68\.7±\S+ +3\n"
                     r" +ours, S1 repaired +15\.0±1\.4 +2\n", out)
    # seeds 0 and 1: (81 - 80, 87 - 84) = (1, 3); one seed: 11 - 9; from scratch no released cell to subtract
    assert re.search(r"\[S1 repaired - as released\]\ntreesatai-ts, OmniSat, pretrained: self, all +\+2\.0±1\.4 +2\n"
                     r"treesatai-ts, OmniSat, pretrained: self, s1 +\+2\.0 +1\n", out)
    assert re.search(r"differences, S1 repaired.*pretrained - scratch\]\ntreesatai-ts, OmniSat, s1 +\S+ +-3\.0 +1", out,
                     re.S)
    assert "1 row not of --s1 released, not shown" in out \
        and "S1 repaired: 1 row not of --s1 repaired, not shown" in out
    rows = {(row["s1"], row["pretraining"], row["modality"]): row["ours_mean"]
            for row in read(tmp_path / "compare.csv")}
    assert len(rows) == 8 and rows["repaired", "self", "all"] == "84.00" and rows["released", "self", "all"] == "82.00"
    assert png_size(tmp_path / "table2.png")[0] > 500

    for table in (tmp_path / "table2.csv", tmp_path / "repaired" / "table2.csv"):    # either without the other
        kept = table.read_bytes()
        table.unlink()
        compare.main(["--results", str(tmp_path)])
        out, error = capsys.readouterr()
        assert not error and ("S1 repaired" in out) == (table.parent == tmp_path) and "- as released" not in out
        table.write_bytes(kept)
    write(tmp_path / "repaired", FUSION)
    compare.main(["--results", str(tmp_path)])
    assert "has only rows of --s1 released; they belong in" in capsys.readouterr().err


def test_no_difference_mixes_test_tiles_of_released_and_repaired(tmp_path, capsys):
    write(tmp_path, [({"s1": "released"}, (70,))])
    write(tmp_path / "repaired", [({"s1": "repaired", "test_hash": "0ddba11"}, (72,))])
    with pytest.raises(UserError, match="rows of treesatai-ts were scored on different test tiles"):
        compare.main(["table2", "--results", str(tmp_path)])
    out = capsys.readouterr().out
    assert "70.0" in out and "72.0" not in out
