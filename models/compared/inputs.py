"""What compared methods do to a batch before their network: fewer dates, fewer bands, other sizes.

Dimensions: B tiles, T dates, C bands, H x W pixels. Values are standardised, so that 0, the mean, stands for what is
missing. padded (B, T) bool: True where there is no date; values there are finite, arbitrary, and take no part.
"""
import torch
import torch.nn.functional as F

SEASON, SEASONS = 92, 4         # days in a season, seasons in a year


def single_date(x, padded):
    """The only date of a series: x (B, 1, C, H, W) -> (B, C, H, W), zeros for a tile without it.

    Errors: ValueError for more dates.
    """
    if x.shape[1] != 1:
        raise ValueError(f"a network of single dates was given a series of {x.shape[1]} dates")
    return x[:, 0].masked_fill(padded[:, :, None, None], 0)


def median(x, padded):
    """The median of each pixel and band over the dates there are; of an even number the lower of the middle two.

    x (B, T, C, H, W) -> (B, C, H, W), zeros for a tile without any date. Whether values are standardised before or
    after makes no difference: per band that is one increasing straight line, which keeps the order.
    """
    middle = ((~padded).sum(dim=1) - 1).clamp(min=0) // 2                     # B
    padded = padded[:, :, None, None, None]
    x = x.masked_fill(padded, torch.inf).sort(dim=1).values                   # padding last
    x = x.gather(1, middle[:, None, None, None, None].expand_as(x[:, :1]))
    return x.masked_fill(padded.all(dim=1, keepdim=True), 0).squeeze(1)


def season_medians(x, dates, padded, year_start=0):
    """The medians of four seasons of 92 days, one after the other: x (B, T, C, H, W) -> (B, 4 C, H, W), zeros for an
    empty one.

    dates (B, T): day numbers. year_start: the day number the first season begins with. Dates before it, or 368 days
    after it and later, are in no season.
    """
    season = (dates - year_start).div(SEASON, rounding_mode="floor")
    return torch.cat([median(x, padded | (season != number)) for number in range(SEASONS)], dim=1)


def select(x, bands, wanted):
    """Bands by name, in the order wanted: x (..., C, H, W) of the bands named -> (..., len(wanted), H, W).

    Errors: ValueError naming the bands that are missing.
    """
    missing = [band for band in wanted if band not in bands]
    if missing:
        raise ValueError(f"no band {', '.join(missing)}: there are {', '.join(bands)}")
    # an index would wait for the GPU
    return torch.stack([x.select(-3, bands.index(band)) for band in wanted], dim=-3)


def resize(x, size):
    """Images to size x size pixels, in float32: x (B, C, H, W) -> (B, C, size, size). Bilinear; a smaller image is
    averaged.
    """
    return F.interpolate(x.float(), size=(size, size), mode="bilinear", antialias=True)


def fit_side(x, multiple=32):
    """Square images to the multiple of pixels nearest to their side, by cropping or by reflecting at the border,
    evenly around.

    x (..., H, H) -> (..., S, S) and S / H, the ground it covers now by the ground it did. Errors: ValueError if not
    square.
    """
    side = x.shape[-1]
    if x.shape[-2] != side:
        raise ValueError(f"an image of {x.shape[-2]} x {side} pixels is not square")
    size = multiple * max(1, round(side / multiple))
    at = torch.arange(size, device=x.device) + (side - size) // 2
    at = side - 1 - (side - 1 - at % max(1, 2 * (side - 1))).abs()    # to and fro between the first pixel and the last
    return x.index_select(-2, at).index_select(-1, at), size / side
