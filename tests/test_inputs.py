"""What compared methods do to a batch before their network: cases by hand, torch's median, the sizes they ask for."""
import pytest
import torch

from models.compared.inputs import fit_side, median, resize, season_medians, select, single_date


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def flat(values):
    """A series of one pixel and one band: (B, T) -> (B, T, 1, 1, 1)."""
    return torch.tensor(values, dtype=torch.float32)[:, :, None, None, None]


def test_single_date_by_hand():
    x, padded = torch.randn(2, 1, 3, 2, 2), torch.tensor([[False], [True]])
    out = single_date(x, padded)
    assert torch.equal(out[0], x[0, 0]) and out.shape == (2, 3, 2, 2) and (out[1] == 0).all()
    with pytest.raises(ValueError, match="a series of 2 dates"):
        single_date(torch.zeros(1, 2, 3, 2, 2), torch.zeros(1, 2, dtype=torch.bool))


def test_median_by_hand():
    """Odd: the middle one. Even: the lower of the middle two. Padding, small or large, takes no part. None: 0."""
    x = flat([[5, 1, 9, -70, 70], [5, 1, 9, 2, 70], [5, 1, 9, 2, 4], [5, 1, 9, 2, 4], [5, 1, 9, 2, 4]])
    padded = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0], [1, 1, 0, 1, 1], [1, 1, 1, 1, 1]]).bool()
    assert median(x, padded).flatten().tolist() == [5, 2, 4, 9, 0]


@pytest.mark.parametrize("dates", [1, 2, 7, 8])
def test_median_is_torchs(dates):
    """Each pixel and band by itself; the same standardised before or after."""
    x, padded = torch.randn(6, dates, 3, 4, 5), torch.rand(6, dates) < 0.4
    padded[0], padded[1] = True, False
    out = median(x, padded)
    for tile, missing, value in zip(x, padded, out):
        assert torch.equal(value, tile[~missing].median(0).values if not missing.all() else torch.zeros(3, 4, 5))
    mean, std = torch.randn(3, 1, 1), torch.rand(3, 1, 1) + 0.1
    some = ~padded.all(1)
    torch.testing.assert_close(median((x - mean) / std, padded)[some], ((out - mean) / std)[some])


def test_season_medians_by_hand():
    """Seasons of 92 days from day 0: 0..91, 92..183, 184..275, 276..367; day 368 is in none, and neither is padding."""
    x = flat([[1, 3, 10, 20, 60, 100, 5000, 7000]])
    dates, padded = torch.tensor([[0, 91, 92, 183, 184, 367, 368, 5]]), torch.tensor([[False] * 7 + [True]])
    assert season_medians(x, dates, padded).flatten().tolist() == [1, 10, 60, 100]
    assert season_medians(x, dates + 50, padded, year_start=50).flatten().tolist() == [1, 10, 60, 100]
    assert season_medians(x, dates, padded, year_start=92).flatten().tolist() == [10, 60, 100, 5000]
    assert season_medians(x, dates, ~padded).flatten().tolist() == [7000, 0, 0, 0]


def test_season_medians_are_stacked_season_by_season():
    x, dates, padded = torch.randn(2, 6, 3, 2,
                                   2), torch.tensor([[10, 20, 100, 200, 300, 310]] * 2), torch.zeros(2, 6).bool()
    out = season_medians(x, dates, padded)
    assert out.shape == (2, 12, 2, 2)
    torch.testing.assert_close(out, torch.cat([x[:, :2].amin(1), x[:, 2], x[:, 3], x[:, 4:].amin(1)], 1))


def test_select_by_name():
    """Images and series, in the order wanted; the error names what is missing."""
    bands, x = ("B02", "B03", "B04", "B08"), torch.randn(2, 5, 4, 3, 3)
    assert torch.equal(select(x, bands, ("B08", "B02")), x[:, :, [3, 0]])
    assert torch.equal(select(x[:, 0], bands, ("B03",)), x[:, 0, 1:2])
    with pytest.raises(ValueError, match="no band B01, B09: there are B02, B03, B04, B08"):
        select(x, bands, ("B02", "B01", "B09"))


def test_resize_by_hand():
    """Bilinear between pixel centres; a smaller image averages all of its pixels; in float32 also from bfloat16."""
    row = torch.tensor([0., 4.]).expand(1, 1, 2, 2)
    torch.testing.assert_close(resize(row, 4), torch.tensor([0., 1, 3, 4]).expand(1, 1, 4, 4))
    peaks = torch.zeros(1, 1, 64, 64, dtype=torch.bfloat16)
    # one pixel in 64: without averaging seen or not by luck
    peaks[..., ::8, ::8] = 64
    small = resize(peaks, 8)
    assert small.dtype == torch.float32 and small.mean() == pytest.approx(1, rel=0.1) and small.min() > 0.3
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(resize(x, 6), x)


@pytest.mark.parametrize("side, expected",
                         [(300, 288), (500, 512), (1280, 1280), (304, 320), (10, 32), (1, 32), (33, 32)])
def test_fit_side_is_the_nearest_multiple(side, expected):
    """The official sizes of UT&T for 300, 500, 1280; the smallest is one multiple."""
    out, ratio = fit_side(torch.randn(1, 2, side, side))
    assert out.shape == (1, 2, expected, expected) and ratio == expected / side


def test_fit_side_crops_and_reflects_evenly():
    """A crop of the centre; a border as torch pads it, and to and fro where it is wider than the image."""
    x = torch.randn(2, 3, 2, 40, 40)                                # images of a series as well
    torch.testing.assert_close(fit_side(x)[0], x[..., 4:36, 4:36])
    x = torch.randn(2, 3, 28, 28)
    torch.testing.assert_close(fit_side(x)[0], torch.nn.functional.pad(x, (2, 2, 2, 2), mode="reflect"))
    row = torch.tensor([1., 2, 3]).expand(1, 1, 3, 3)               # 5 more: 3 before, 2 behind
    assert fit_side(row, 8)[0][0, 0, 0].tolist() == [2, 3, 2, 1, 2, 3, 2, 1]
    assert torch.equal(fit_side(row.mT, 8)[0], fit_side(row, 8)[0].mT)
    with pytest.raises(ValueError, match="4 x 5 pixels is not square"):
        fit_side(torch.zeros(1, 1, 4, 5))
