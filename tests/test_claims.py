"""What the demo is to show: differences and verdicts by hand."""
import pytest

from tables import claims
import compare
from utils.errors import UserError
from utils.results import KEYS, PROBE_KEYS, write_row

# weighted F1 of two seeds: {(start, modality, percent): ...}; as few as each claim needs
SCORES = {("none", "all", "100"): (60, 64), ("none", "s1", "100"): (48, 49), ("none", "s2", "100"): (52, 58),
          ("none", "vhr", "100"): (54, 54),
          ("self", "all", "100"): (61, 64), ("self", "s2", "100"): (50, 62), ("none", "s2", "10"): (30, 32),
          ("self", "s2", "10"): (41, 41)}
# two classes, there in 10 and in 5 of 50 tiles: F1 of saying yes everywhere, by their frequency
COUNTS = {"classes": ["A", "B"], "tp": [5, 2], "fp": [0, 0], "fn": [5, 3], "tn": [40, 45]}
CONSTANT = 100 * (2 / 3 * 20 / 60 + 1 / 3 * 10 / 55)


@pytest.fixture
def folder(tmp_path):
    for (start, modality, percent), seeds in SCORES.items():
        for seed, f1 in enumerate(seeds):
            write_row(tmp_path / "table2.csv",
                      dict(zip(KEYS, ("table2", "treesatai-ts", "omnisat", start, "none", modality, percent))) | {
                "seed": seed, "f1_weighted": f1, "status": "ok", "scale": "demo", "test_hash": "t"}, COUNTS)
    for pretraining, seeds in (("self", (50, 52)), ("none", (30, 36)), ("self, fine-tuned", (90, 90))):
        for seed, f1 in enumerate(seeds):
            write_row(tmp_path / "probe.csv",
                      dict(zip(PROBE_KEYS,
                               ("treesatai-ts", "omnisat", pretraining, "none", "s2", "tile", "logistic", "10"))) | {
                "seed": seed, "f1_weighted": f1, "scale": "demo",
                **{f"{name}_{end}": f1 for name in ("f1_weighted", "f1_macro") for end in ("low", "high")}},
                {"classes": ["A"], "tp": [1]}, PROBE_KEYS)
    return tmp_path


def test_claims_by_hand(folder):
    found = {claim.text: claim for claim in claims.collect_claims(folder, "demo")}
    lowest = found["the lowest cell with all labels (s1, from scratch) - the best constant prediction"]
    assert lowest.ours == pytest.approx({"0": 48 - CONSTANT, "1": 49 - CONSTANT}) and lowest.least == 10
    fusion = found["all sensors - the best single one (s2), from scratch, all labels"]    # 55 in the mean; vhr has 54
    assert fusion.ours == {"0": 8,
                           "1": 6} and fusion.paper == pytest.approx(73.3
                                                                     - 71.0) and fusion.error() == pytest.approx(
                                                                         1) and fusion.shows()
    few, many = (found[f"pretrained - from scratch, s2, {share}"] for share in ("10 % of the labels", "all labels"))
    assert few.ours == {"0": 11, "1": 9} and few.paper == pytest.approx(51.4 - 33.9) and few.shows()
    assert many.ours == {"0": -2, "1": 4} and many.error() == pytest.approx(3) and not many.shows()     # +1 ±3
    frozen = found["logistic regression on f*, pretrained - random weights, s2, 10 % of the labels"]
    assert frozen.ours == {"0": 20, "1": 16} and frozen.paper is None and frozen.shows()    # 18 - 2 is over 15
    # no pretrained s1 and vhr, no 10 % of all: no claim
    assert len(found) == 5


def test_a_claim_shows_by_more_than_its_standard_error():
    def claim(*ours):
        return claims.Claim("", "", dict(enumerate(map(float, ours))), 15)
    assert claim(15.1).shows() and not claim(15).shows()
    assert claim(16, 18, 20).error() == pytest.approx(2 / 3 ** 0.5) and claim(16, 18, 20).shows()
    assert not claim(10, 16, 22).shows()                                      # 16 - 3.46


def test_claims_are_printed_last_a_line_each(folder, capsys):
    compare.main(["table2", "claims", "--demo", "--results", str(folder)])
    lines = capsys.readouterr().out.rstrip().splitlines()
    assert "claims: what the demo shows on treesatai-ts. DEMO: simulated tiles" in "\n".join(lines)
    told = [line for line in lines if line.endswith(("  yes", "  NO"))]
    assert len(told) == 5 and lines[-1] == told[-1] and sum(line.endswith("NO") for line in told) == 1
    assert any("+11.0" in line and "+9.0" in line and "+10.0 ±1.0" in line and "+17.5" in line for line in told)
    assert "| pretraining | pretrained - from scratch, s2, all labels |" in (folder / "compare.md").read_text()


def test_without_rows_claims_are_an_error(tmp_path):
    with pytest.raises(UserError, match="no rows yet"):
        compare.main(["claims", "--demo", "--results", str(tmp_path)])
