"""Classes of unlabelled tiles: the evaluation's rule, each tile once, names of classes from the checkpoint."""
import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

import embed
import evaluate
import predict
from datasets.files import read_tif
from datasets.geotiff import read_place
from engine import checkpoint
from tests.own import mine, own_table  # noqa: F401
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parent.parent
CLASSES = ["Forest", "Water; open"]


def predicted(path, root, out, *more):
    """The lines of the table as dicts, and its header."""
    predict.main(["--checkpoint", str(path), "--data-root", str(root), "--out", str(out), "--workers", "0", *more])
    with open(out, newline="", encoding="utf-8") as file:
        header, *lines = csv.reader(file)
    return [dict(zip(header, line)) for line in lines], header


def test_each_tile_and_the_names_of_its_classes(mine, tmp_path):
    """Of a folder without labels; a class is predicted where it is more probable than not."""
    _, bare, _, finetuned = mine
    lines, header = predicted(finetuned, bare, tmp_path / "x.csv", "--pool", "4")
    assert header == ["tile", "predicted", *CLASSES]
    assert [line["tile"] for line in lines] == [f"t{n}" for n in range(10)]
    for line in lines:
        assert line["predicted"] == ";".join(name for name in CLASSES if float(line[name]) > 0.5)
    assert len({line["Forest"] for line in lines}) == 10


def test_two_processes_write_the_table_of_one(mine, tmp_path, monkeypatch):
    """Each takes every other pool; the first has all lines in the end, in order."""
    _, bare, _, finetuned = mine
    lines, _ = predicted(finetuned, bare, tmp_path / "one.csv", "--pool", "3")
    found, device = {}, torch.device("cpu")
    for rank in (1, 0):
        def gather(rows, rank=rank):
            found[rank] = rows
            return [rows, found[1]]
        monkeypatch.setattr(predict.distributed, "setup", lambda rank=rank: (rank, 2, device))
        monkeypatch.setattr(predict.distributed, "gather", gather)
        predict.main(["--checkpoint", str(finetuned), "--data-root", str(bare), "--out", str(tmp_path / "two.csv"),
                      "--workers", "0", "--pool", "3"])
        assert rank == 0 or not (tmp_path / "two.csv").exists()
    assert (len(found[0]), len(found[1])) == (6, 4)
    assert (tmp_path / "two.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()


def test_the_rule_is_that_of_evaluation(mine, tmp_path, monkeypatch):
    root, _, _, finetuned = mine
    lines, _ = predicted(finetuned, root, tmp_path / "x.csv", "--split", "test")
    place, seen = (0, 1, torch.device("cpu")), []
    count = evaluate.metrics.count
    monkeypatch.setattr(evaluate.metrics, "count", lambda *values: seen.append(values[0]) or count(*values))
    evaluate.score_test(finetuned, str(root), None, 0, place)
    logits, = seen
    p = torch.tensor(logits).sigmoid().numpy()
    np.testing.assert_allclose([[float(line[name]) for name in CLASSES] for line in lines], p, atol=2e-6)
    assert [line["predicted"].startswith("Forest") for line in lines] == (logits[:, 0] > 0).tolist()


def test_a_method_with_a_threshold_of_its_own():
    """Presto's logits are what is left over it: a probability does not depend on it, the class does."""
    class Model(torch.nn.Module):
        threshold = torch.tensor(-1.0)

        def forward(self, batch):
            return batch["x"] - self.threshold
    is_there, p = predict.predictions_of(Model(), {"name": ["a"], "x": torch.tensor([[-0.5, -1.5, 2]])})
    assert is_there.tolist() == [[True, False, True]]
    np.testing.assert_allclose(p, torch.tensor([[-0.5, -1.5, 2]]).sigmoid())


def test_a_tile_is_one_pixel_in_its_place(mine, tmp_path):
    _, bare, _, finetuned = mine
    lines, _ = predicted(finetuned, bare, tmp_path / "x.csv", "--geotiff", str(tmp_path / "maps"))
    for number, line in enumerate(lines):
        path = tmp_path / "maps" / f"t{number}.tif"
        (place, size), image = read_place(path), read_tif(path, 2)
        np.testing.assert_allclose(image[:, 0, 0], [float(line[name]) for name in CLASSES], atol=1e-6)
        assert size == (1, 1) and place[33550][:2] == (16, 24) and place[33922][3:5] == (600000 + 16 * number, 5800000)
        with tifffile.TiffFile(path) as tif:
            assert json.loads(tif.pages[0].description)["bands"] == CLASSES


def test_sensors_left_out(mine, tmp_path):
    _, bare, _, finetuned = mine
    (tmp_path / "tiles").mkdir()
    (tmp_path / "tiles" / "planet").symlink_to(bare / "planet")
    some, _ = predicted(finetuned, tmp_path / "tiles", tmp_path / "x.csv", "--modalities", "planet")
    both, _ = predicted(finetuned, bare, tmp_path / "y.csv")
    assert len(some) == len(both) == 10 and some != both


def test_the_lines_of_the_documentation(mine, tmp_path, monkeypatch):
    """docs/features.md: its commands, then its Python, from a folder where its names are."""
    text, (_, bare, pretrained, finetuned) = (ROOT / "docs" / "features.md").read_text(), mine
    monkeypatch.chdir(tmp_path)
    for name, source in (("pretrained.pt", pretrained), ("finetuned.pt", finetuned), ("tiles", bare)):
        Path(name).symlink_to(source)
    lines = [line for block in text.split("```bash\n")[1:] for line in block.split("```")[0].splitlines()]
    assert len(lines) == 4
    for line in lines:
        _, script, *words = line.split("#")[0].split()
        {"embed.py": embed, "predict.py": predict}[script].main([*words, "--workers", "0"])
    names = {}
    for block in text.split("```python\n")[1:]:
        exec(block.split("```")[0], names)                                    # noqa: S102
    assert names["features"].shape == (10, 6, 32)
    with open("predictions.csv", newline="") as file:
        assert len(list(csv.reader(file))) == 11


def test_bad_input(mine, tmp_path, monkeypatch):
    root, bare, pretrained, finetuned = mine
    with pytest.raises(UserError, match="of kind 'pretrained', expected 'finetuned', as finetune.py writes it"):
        predicted(pretrained, bare, tmp_path / "x.csv")
    with pytest.raises(UserError, match="t0: no tif of planet says where it lies"):
        predicted(finetuned, bare, tmp_path / "x.csv", "--modalities", "planet", "--geotiff", str(tmp_path))
    saved = checkpoint.load(finetuned)
    del saved["classes"], saved["sha256"]
    checkpoint.save(tmp_path / "finetuned.pt", saved)
    with pytest.raises(UserError, match="finetuned.pt: written before checkpoints had the names of their classes; run"):
        predicted(tmp_path / "finetuned.pt", bare, tmp_path / "x.csv")
    checkpoint.save(tmp_path / "finetuned.pt", saved | {"classes": CLASSES, "finished": False})
    with pytest.raises(UserError, match="its training stopped in epoch"):
        predicted(tmp_path / "finetuned.pt", bare, tmp_path / "x.csv")
    bad = saved["weights"] | {"head.1.bias": torch.full((2,), torch.nan)}
    checkpoint.save(tmp_path / "finetuned.pt", saved | {"classes": CLASSES, "weights": bad})
    with pytest.raises(UserError, match="t0: a logit is not finite"):
        predicted(tmp_path / "finetuned.pt", bare, tmp_path / "x.csv")
    assert not (tmp_path / "x.csv").exists()
