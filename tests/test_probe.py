"""Frozen evaluation: held to scikit-learn called plainly, no test label is seen, a tile's features do not depend on
its batch.
"""
import csv

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

import finetune
import pretrain
import probe
from datasets import open_dataset
from datasets.loading import collate
from engine import checkpoint, inference
from models.handmade import handmade
from models.methods import METHODS, build_model
from studies.data import rows_of
from utils import classifiers, metrics
from utils.errors import UserError
from utils.results import PROBE_KEYS, read_rows

SMALL = ["--embed-dim", "32", "--depth", "1", "--workers", "0", "--epochs", "1", "--epoch-steps", "1", "--batch-size",
         "8"]


@pytest.fixture(scope="module")
def pretrained(demo, tmp_path_factory):
    """A pretrained checkpoint of the demo's tiles, all sensors."""
    folder = tmp_path_factory.mktemp("pretrained")
    pretrain.main(["--dataset", "treesatai-ts", "--data-root", str(demo), "--output", str(folder), *SMALL])
    return folder / "pretrained.pt"


def draw(n, seed, classes=3):
    """Features and labels that hang together."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6))
    return 5 + 3 * x, (x[:, :classes] + 0.7 * rng.normal(size=(n, classes)) > 0.3).astype(int)


def test_logistic_regression_is_scikit_learns():
    train, val, test = (draw(n, seed) for seed, n in enumerate((80, 60, 50)))
    classifier, strength = classifiers.choose("logistic", train, val)
    scaler = StandardScaler().fit(train[0])

    def plain(c, x):
        models = [LogisticRegression(C=c, max_iter=1000).fit(scaler.transform(train[0]), y) for y in train[1].T]
        return np.stack([model.decision_function(scaler.transform(x)) for model in models], 1)
    f1 = {c: f1_score(val[1], plain(c, val[0]) > 0, average="macro", zero_division=0) for c in classifiers.STRENGTHS}
    assert strength == min(c for c in f1 if f1[c] >= max(f1.values()) - 1e-12)
    np.testing.assert_allclose(classifiers.scores_of(classifier, test[0]), plain(strength, test[0]), rtol=1e-6,
                               atol=1e-8)


def test_neighbours_are_scikit_learns():
    train, val, test = (draw(n, seed) for seed, n in enumerate((30, 60, 50)))
    classifier, k = classifiers.choose("knn", train, val)
    scaler = StandardScaler().fit(train[0])

    def plain(k, x):
        models = [KNeighborsClassifier(k).fit(scaler.transform(train[0]), y) for y in train[1].T]
        return np.stack([model.predict_proba(scaler.transform(x))[:, 1] for model in models], 1)
    f1 = {k: f1_score(val[1], plain(k, val[0]) > 0.5, average="macro", zero_division=0) for k in classifiers.NEIGHBOURS
          if k <= 30}
    assert k == next(k for k in f1 if f1[k] >= max(f1.values()) - 1e-12)    # 50 would be more than there are
    np.testing.assert_allclose(classifiers.scores_of(classifier, test[0]), plain(k, test[0]) - 0.5)


@pytest.mark.parametrize("name", classifiers.CLASSIFIERS)
def test_a_class_without_a_labelled_tile_is_predicted_nowhere(name):
    train, val = draw(20, 0), draw(30, 1)
    train[1][:, 1] = 0
    scores = classifiers.scores_of(classifiers.choose(name, train, val)[0], val[0])
    assert scores.shape == (30, 3) and (scores[:, 1] <= 0).all() and (scores[:, 0] > 0).any()


def test_bootstrap_holds_the_score_and_narrows_with_more_tiles():
    def ends(n):
        x, y = draw(n, 0)
        scores = (x[:, :3] - 5) / 3 - 0.3
        low, high = classifiers.bootstrap(scores, y)["f1_weighted"]
        assert low < metrics.f1_scores(metrics.count(scores, y))["f1_weighted"] < high
        return high - low
    assert 1.5 < ends(100) / ends(900) < 5                                    # about 3
    x, y = draw(50, 1)
    assert classifiers.bootstrap(x[:, :3] - 6, y) == classifiers.bootstrap(x[:, :3] - 6, y)


def test_rows_and_curve_of_a_checkpoint(pretrained, demo, tmp_path):
    """Every row once; a second run reads the features it kept; no row changes if the test labels do, but for its
    scores.
    """
    table, command = tmp_path / "probe.csv", ["--checkpoint", str(pretrained), "--data-root", str(demo), "--workers",
                                              "0"]
    probe.main([*command, "--label-percent", "25", "100", "--csv", str(table)])
    rows = read_rows(table, PROBE_KEYS)
    assert len(rows) == 4 * (2 * 2
                             + 1) * 2 * 2 and len({tuple(row[name] for name in PROBE_KEYS)
                                                   for row in rows}) == len(rows)
    assert {row["pretraining"] for row in rows} == {"self", "none"} and {row["scale"] for row in rows} == {"demo"}
    for row in rows:
        assert float(row["f1_weighted_low"]) <= float(row["f1_weighted"]) <= float(row["f1_weighted_high"])
        sizes = {"tile": 32, "tokens": 96 if row["modality"] == "all" else 32,
                 "handmade": {"vhr": 4 * 11, "s2": 10 * 9, "s1": 2 * 9, "all": 44 + 90 + 18}[row["modality"]]}
        assert int(row["dimensions"]) == sizes[row["features"]]
    kept = {path: path.stat().st_mtime_ns for path in (pretrained.parent / "features").iterdir()}
    assert len(kept) == 4 * 5 * 3
    probe.main([*command, "--label-percent", "25", "--modalities", "s2", "--features", "tile", "--csv", str(table)])
    assert {path: path.stat().st_mtime_ns for path in (pretrained.parent / "features").iterdir()} == kept
    again = read_rows(table, PROBE_KEYS)
    assert len(again) == len(rows)
    with open(table.with_suffix(".counts.jsonl")) as file:
        assert len(file.readlines()) == len(rows)


def test_no_test_label_is_seen(pretrained, demo, tmp_path, monkeypatch):
    """With every test label turned round, C, k and all predictions stay: counts change sides."""
    command = ["--checkpoint", str(pretrained), "--data-root", str(demo), "--workers", "0", "--modalities", "s2",
               "--weights", "own",
               "--features", "tile", "--label-percent", "100"]
    probe.main([*command, "--csv", str(tmp_path / "a.csv")])

    def turned(name, root, split, *args, **options):
        dataset = open_dataset(name, root, split, *args, **options)
        if split == "test":
            dataset.labels = 1 - dataset.labels
        return dataset
    monkeypatch.setattr(inference, "open_dataset", turned)
    probe.main([*command, "--csv", str(tmp_path / "b.csv")])
    import json
    before, after = ([json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
                     for name in ("a.counts.jsonl", "b.counts.jsonl"))
    for a, b in zip(before, after):
        assert (a["tp"], a["fp"], a["tn"], a["fn"]) == (b["fp"], b["tp"], b["fn"], b["tn"])
    settings = [[row["setting"] for row in csv.DictReader(open(tmp_path / name))] for name in ("a.csv", "b.csv")]
    assert settings[0] == settings[1] and len(settings[0]) == 2


def test_features_of_a_tile_alone_are_those_in_a_batch(pretrained, demo):
    saved = checkpoint.load(pretrained, "pretrained")
    dataset = open_dataset("treesatai-ts", demo, "test", ("vhr", "s2", "s1"))
    model = probe.model_of(pretrained, saved, dataset.sensors, 3, "own").eval()
    items = [dataset[i] for i in range(6)]
    for what in probe.FEATURES:
        together = probe.features_of(model, collate(items), what)
        alone = torch.cat([probe.features_of(model, collate([item]), what) for item in items])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="unknown level 'f': there are tokens, patch, tile"):
        model.features(collate(items), "f")
    f, tile, tokens = (model.features(collate(items), level) for level in ("patch", "tile", "tokens"))
    assert f.shape == (6, 36, 32) and tokens.shape == (6, 3, 36, 32)
    torch.testing.assert_close(tile, f.mean(1))


def test_random_weights_are_the_seeds_and_not_the_checkpoints(pretrained, demo):
    saved = checkpoint.load(pretrained, "pretrained")
    sensors = open_dataset("treesatai-ts", demo, "test", ("s2",)).sensors
    own, random, again = (probe.model_of(pretrained, saved, sensors, 3, weights).state_dict()
                          for weights in ("own", "random", "random"))
    assert all(torch.equal(random[name], again[name]) for name in random)
    same = {name for name in own if torch.equal(own[name], random[name])}
    assert {name for name in same if name.startswith("standardize")} and "mask_token" not in same


@pytest.mark.parametrize("name, dataset, keys", [
    ("pse", "treesatai", ("s2",)), ("mlp", "treesatai", ("s2", "s1")), ("vit", "treesatai", ("s2",)),
    ("resnet50", "treesatai", ("vhr",)),
    ("pse_ltae", "treesatai-ts", ("s2",)), ("utt", "treesatai-ts", ("s2",)), ("satmae", "treesatai", ("s2",)),
    ("croma", "treesatai", ("s2", "s1")), ("presto", "treesatai", ("s2",)), ("lightgbm", "treesatai", ("s2",))])
def test_compared_methods_have_features(name, dataset, keys, demo):
    """Their head on them gives the logits; a tile's do not depend on the batch."""
    tiles = open_dataset(dataset, demo, "test", keys, all_bands=METHODS[name].all_bands)
    model = build_model(name, tiles.sensors, num_classes=3, dataset=dataset,
                        width=1.0 if name == "presto" else 0.25).eval()
    batch = collate([tiles[i] for i in range(4)])
    model.standardize.set(
        {s.key: {"mean": batch[s.key].double().mean((0, 1, 3, 4) if s.kind == "series" else (0, 2, 3)).tolist(),
                                   "std": [100.0] * len(s.bands)} for s in tiles.sensors})
    with torch.no_grad():
        x = model.features(batch)
        one = {key: value[:1] for key, value in batch.items()}
        assert x.shape[0] == 4 and x.dim() == 2 and torch.isfinite(x).all()
        torch.testing.assert_close(x[:1], model.features(one), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="a compared method has tile"):
        model.features(batch, "tokens")


def test_handmade_features_by_hand():
    """One band, two dates in one season (their lower is its median), one in the next, a padded date that must not
    count.
    """
    from datasets.sensors import Sensor
    x = torch.tensor([1.0, 3, 8, 99])[None, :, None, None, None].expand(1, 4, 1, 1, 2).clone()
    x[0, :, 0, 0, 1] += 2
    batch = {"s": x, "s_dates": torch.tensor([[10, 20, 100, 30]]),
             "s_padded": torch.tensor([[False, False, False, True]])}
    found = handmade(batch, {"s": Sensor("s", "series", ("b",), 10, 1, 366)})
    means = torch.tensor([2.0, 4, 9])                                         # over the two pixels, of the three dates
    torch.testing.assert_close(found,
                               torch.tensor([[2.0, 9, 0, 0, 1, 1, 0, 0,
                                              means.add(-means.mean()).square().mean().sqrt()]]))


def test_errors(pretrained, demo, tmp_path, capsys):
    command = ["--checkpoint", str(pretrained), "--data-root", str(demo), "--workers", "0"]
    with pytest.raises(SystemExit):
        probe.main([*command, "--label-percent", "0"])
    assert "--label-percent" in capsys.readouterr().err
    with pytest.raises(UserError, match="--modalities s1-des: .* has vhr, s2, s1, not s1-des"):
        probe.main([*command, "--modalities", "s1-des"])
    (tmp_path / "table2.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="not a table of results"):
        probe.main([*command, "--csv", str(tmp_path / "table2.csv")])


def test_a_fine_tuned_checkpoint_has_features_too(demo, tmp_path):
    finetune.main(["--dataset", "treesatai-ts", "--data-root", str(demo), "--init", "none", "--modalities", "s2",
                   "--output", str(tmp_path),
                   *SMALL, "--min-epochs", "1"])
    table = tmp_path / "probe.csv"
    probe.main(["--checkpoint", str(tmp_path / "finetuned.pt"), "--data-root", str(demo), "--workers", "0",
                "--label-percent", "100",
                "--features", "tile", "--csv", str(table)])
    assert {row["pretraining"] for row in read_rows(table, PROBE_KEYS)} == {"none, fine-tuned", "none"}


def test_rows_of_tiles(demo):
    train = open_dataset("treesatai-ts", demo, "train", ("s2",))
    some = open_dataset("treesatai-ts", demo, "train", ("s2",), label_percent=25)
    rows = probe.rows_of(train, some)
    assert [train.names[row] for row in rows] == list(some.names)
    assert torch.equal(rows_of({"label": train.labels}, torch.from_numpy(rows))["label"], some.labels)


def test_a_row_says_of_its_checkpoint_and_its_test_tiles(pretrained, demo, tmp_path):
    """Where the checkpoint is from is not where the probe is run."""
    saved = checkpoint.load(pretrained, "pretrained")
    saved["starts"] = [saved["starts"][0] | {"commit": "decade", "dirty": True}]
    checkpoint.save(tmp_path / "pretrained.pt", saved)
    probe.main(["--checkpoint", str(tmp_path / "pretrained.pt"), "--data-root", str(demo), "--workers", "0",
                "--modalities", "s2",
                "--features", "handmade", "--classifiers", "knn", "--label-percent", "100", "--csv",
                str(tmp_path / "probe.csv")])
    row, = read_rows(tmp_path / "probe.csv", PROBE_KEYS)
    assert (row["checkpoint_commit"], row["checkpoint_dirty"], row["processes"]) == ("decade", "True", "1 x 1")
    assert row["commit"] != "decade" and row["test_hash"] == open_dataset("treesatai-ts", demo, "test", ("s2",
                                                                          )).split_hash[:12]
