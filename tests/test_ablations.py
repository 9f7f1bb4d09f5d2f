"""Table 5: each ablation's pretraining differs from the default in what its name says and in nothing else."""
import pytest
import torch

import finetune
import models.omnisat as omnisat
import pretrain
from datasets.sensors import Sensor
from datasets.simulated.demo import write_treesatai
from engine import checkpoint
from losses.contrastive import contrastive_loss
from models.fast.omnisat import FastOmniSat as OmniSat
from models.methods import build_model
from models.omnisat import ABLATIONS
from utils.results import read_rows

SENSORS = [Sensor("photo", "image", ("r", "g"), 1, 8), Sensor("series", "series", ("x", "y", "z"), 8, 1, 366),
           Sensor("radar", "series", ("v",), 4, 2, 366)]


def batch():
    g = torch.Generator().manual_seed(1)
    days = torch.arange(1, 13).repeat(3, 1) * 20
    padded = torch.zeros(3, 12, dtype=torch.bool)
    padded[1, 8:] = True                                                      # 12, 8 and 12 dates
    return {"name": list("abc"), "photo": torch.rand(3, 2, 16, 16, generator=g),
            "series": torch.randn(3, 12, 3, 2, 2, generator=g),
            "series_dates": days, "series_padded": padded, "radar": torch.randn(3, 12, 1, 4, 4, generator=g),
            "radar_dates": days, "radar_padded": torch.zeros(3, 12, dtype=torch.bool)}


def pretraining(ablation, monkeypatch):
    """One step of pretraining, with everything that it draws, chooses, predicts and learns."""
    seen = {"masks": [], "dates": [], "predictions": {}, "combined": []}
    torch.manual_seed(0)
    model = OmniSat(SENSORS, embed_dim=32, depth=1, ablation=ablation)
    with monkeypatch.context() as patch:
        def spy(name, note):
            function = getattr(omnisat, name)

            def wrapped(*arguments, **options):
                value = function(*arguments, **options)
                note(value, *arguments)
                return value
            patch.setattr(omnisat, name, wrapped)
        spy("random_mask", lambda mask, *_: seen["masks"].append(mask))
        spy("top_dates", lambda value, attention, padded, *_: seen["dates"].append((*value, (~padded).sum(1))))
        spy("token_error", lambda value, prediction,
            *_: seen["predictions"].setdefault(len(seen["predictions"]), prediction.detach()))
        model.combiner.register_forward_hook(lambda module, inputs, output: seen["combined"].append(output.detach()))
        loss, terms = model.pretrain_loss(batch(), model.draw_masks(batch(), torch.Generator().manual_seed(5)))
    loss.backward()
    assert set(terms) == set(model.terms) and torch.equal(loss, sum(terms.values()))
    return seen | {"terms": {name: term.item() for name, term in terms.items()}, "model": model,
                   "learned": {name for name,
                               p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}}


def same(a, b):
    """Whether nested lists, tuples and dicts of tensors hold equal values."""
    if torch.is_tensor(a):
        return a.shape == b.shape and bool((a == b).all())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return len(a) == len(b) and all(map(same, a, b))


@pytest.mark.parametrize("ablation", ABLATIONS[1:])
def test_differs_in_what_it_says_and_nothing_else(ablation, monkeypatch):
    default, other = pretraining("none", monkeypatch), pretraining(ablation, monkeypatch)
    parameters, others = (dict(run["model"].named_parameters()) for run in (default, other))
    # number, shape, start
    assert same({k: v.data for k, v in parameters.items()}, {k: v.data for k, v in others.items()})

    equal = {name: same(default[name], other[name]) for name in ("masks", "dates", "combined")}
    equal |= {f"prediction {key}": k in other["predictions"]
              and same(default["predictions"][k], other["predictions"][k])
              for k, key in enumerate(("photo", "series", "radar"))}
    equal |= {name: default["terms"][name] == other["terms"].get(name) for name in default["terms"]}
    differing = {name for name, is_equal in equal.items() if not is_equal}
    assert differing == {
        "no_index_bypass": {"prediction photo", "reconstruction"},
        "no_date_filtering": {"dates", "prediction series", "prediction radar", "reconstruction"},
        "no_contrastive": {"contrastive"},
        "naive_contrastive": {"contrastive"},
        "no_reconstruction": {"masks", "dates", "combined", "prediction photo", "prediction series", "prediction radar",
                              "reconstruction"}}[ablation]
    unlearned = default["learned"] - other["learned"]
    if ablation == "no_reconstruction":                                       # only the encoders are learned
        assert {name.split(".")[0] for name in other["learned"]} == {"encoders"}
        assert unlearned == {name for name in default["learned"] if not name.startswith("encoders.")}
    else:
        assert not unlearned and other["learned"] == default["learned"] == set(parameters)


def test_no_date_filtering_takes_every_valid_date_and_the_default_a_quarter(monkeypatch):
    for ablation, expected in (("none", [{(12, 3), (8, 2)}, {(12, 3)}]),
                               ("no_date_filtering", [{(12, 12), (8, 8)}, {(12, 12)}])):
        # of the targets of series, of those of radar
        seen = pretraining(ablation, monkeypatch)["dates"]
        assert [set(zip(valid.tolist(), is_used.sum(1).tolist())) for _, is_used, valid in seen] == expected
    for index, _, valid in seen:
        for chosen, number in zip(index, valid):
            assert (chosen[:number].sort().values == torch.arange(number)).all()    # valid ones, each once


def test_naive_contrastive_is_the_loss_with_more_negatives(monkeypatch):
    run = pretraining("naive_contrastive", monkeypatch)
    torch.manual_seed(0)
    tokens, present, _ = OmniSat(SENSORS, embed_dim=32, depth=1).encode(batch())
    assert run["terms"]["contrastive"] == pytest.approx(contrastive_loss(tokens, present, naive=True).item(), rel=1e-5)
    assert run["terms"]["contrastive"] > pretraining("none", monkeypatch)["terms"]["contrastive"]


def test_decoder_without_bypass_copies_values_and_needs_no_indices():
    from models.image import ImageDecoder
    torch.manual_seed(0)
    decoder = ImageDecoder(4, 50, 32, bypass=False)
    assert sum(p.numel() for p in ImageDecoder(4, 50, 256, bypass=False).parameters()) == 1_786_628    # as the default
    token = torch.randn(2, 32)
    image = decoder(token, [None] * len(decoder.sizes))
    assert image.shape == (2, 4, 50, 50)
    x = decoder._unpool(torch.arange(4.).view(1, 1, 2, 2), None, 5)
    assert x[0, 0, 0].tolist() == [0, 0, 0, 1, 1] and x[0, 0, 4].tolist() == [2, 2, 2, 3, 3]


def test_an_unknown_ablation_is_refused(capsys):
    with pytest.raises(ValueError, match="unknown ablation 'no_sleep': there are none, no_index_bypass"):
        OmniSat(SENSORS, embed_dim=32, ablation="no_sleep")
    with pytest.raises(SystemExit):
        pretrain.main(["--dataset", "flair", "--data-root", "x", "--ablation", "no_sleep"])
    assert "invalid choice: 'no_sleep'" in capsys.readouterr().err


def test_through_the_scripts(tmp_path, monkeypatch):
    """Without reconstruction, fine-tuning starts from learned encoders and a combiner as it was drawn; the row says so.
    """
    monkeypatch.setattr("datasets.splits.FOLDER", tmp_path / "splits")
    monkeypatch.setattr("datasets.band_statistics.FOLDER", tmp_path / "stats")
    root = write_treesatai(tmp_path / "data", train=12, test=4, seed=3)
    common = ["--dataset", "treesatai-ts", "--data-root", str(root), "--workers", "0", "--batch-size", "6", "--epochs",
              "1", "--epoch-steps", "1"]
    pretrain.main([*common, "--embed-dim", "32", "--depth", "1", "--ablation", "no_reconstruction", "--output",
                   str(tmp_path / "p")])
    saved = checkpoint.load(tmp_path / "p" / "pretrained.pt", "pretrained")
    torch.manual_seed(0)
    fresh = build_model("omnisat", [Sensor(**s) for s in saved["config"]["sensors"]],
                        **saved["config"]["options"]).state_dict()
    changed = {name.split(".")[0] for name, value in saved["weights"].items() if not torch.equal(value, fresh[name])}
    assert changed == {"encoders", "standardize"}
    finetune.main([*common, "--init", str(tmp_path / "p" / "pretrained.pt"), "--output", str(tmp_path / "f"), "--csv",
                   str(tmp_path / "table5.csv")])
    (row,) = read_rows(tmp_path / "table5.csv")
    assert (row["table"], row["pretraining"], row["ablation"]) == ("table5", "self", "no_reconstruction")
