"""One demo patch of PASTIS-HD: simulated fields, written in the raw formats with their traps (demo.py calls this).

Formats: PASTIS-HD as unpacked from its release; arrays of side x side Sentinel pixels (real: 128). Planted on purpose:
-10000 where Sentinel-2 has no data (pixels, a corner, a whole date), negative reflectance, clouds without a mask, NaN
and -inf in Sentinel-1, targets of two bytes, void parcels, patches without crops, dates as dict or as text, out of
order.

Dimension letters: T dates, B bands, K parcels, S = side of the patch in Sentinel pixels.
"""
import json
from datetime import date, timedelta
from typing import NamedTuple

import numpy as np
import tifffile

from datasets.simulated.forest import smooth_noise, stream
from datasets.simulated.landscape import (Ground, Shape, draw_traits, ground_map, paint, parcels, s1_series, s2_series,
                                          shares)

VERSION = 1
FOLDERS = ("DATA_S2", "DATA_S1A", "DATA_S1D", "DATA_SPOT/PASTIS_SPOT6_RVB_1M00_2019", "ANNOTATIONS")
BLOCK = 10                                             # ground map values of 1 m along a Sentinel pixel, as SPOT's
NODATA, VOID = -10000, 19
CROPS = {"meadow": (1, .22), "wheat": (2, .16), "corn": (3, .15), "rapeseed": (5, .11), "sunflower": (7, .09),
         "grapevine": (8, .10), "beet": (9, .09), "orchard": (16, .08)}    # class, how often it is drawn
REGIONS = (("t30uxv", "2018-09-24", "2019-10-19", 43), ("t31tfj", "2018-09-17", "2019-10-27", 61),
           ("t31tfm", "2018-09-20", "2019-10-25", 46), ("t32ulu", "2018-09-17", "2019-10-12", 38))    # first, last, T
MOST = 4 * 541                                         # patches: ids of a region lie in a range of 541


class Patch(NamedTuple):
    """What is decided about patch i before any pixel."""
    id: int
    fold: int                # 1..3 train, 4 validation, 5 test
    region: int              # index into REGIONS
    crops: list              # names of CROPS that grow here, 2 to 5; none in a few patches
    wide: bool               # TARGET has two bytes a value


def plan(seed, i, train):
    """Patch i. train: patches 0..train-1 are in folds 1 to 4, about one in five of them in fold 4; later ones in fold
    5.
    """
    rng = stream(seed, i, 0)
    names, odds = list(CROPS), [share for _, share in CROPS.values()]
    crops = [str(name) for name in rng.choice(names, rng.integers(2, 6), replace=False, p=odds)]
    fold = (1, 4, 2, 3, 1 + i // 5 % 3)[i % 5] if i < train else 5
    number = i // 4 * 173 % 541                                          # 541 is prime: every number once, with gaps
    return Patch(10000 * (i % 4 + 1) + number, fold, i % 4, [] if rng.random() < .04 else crops,
                 bool(rng.random() < .06))


def dates(region):
    """Dates (T) as datetime.date of S2, S1A and S1D, the same for all patches of a region."""
    rng = np.random.default_rng(region)
    _, first, last, T = REGIONS[region]
    first, last = date.fromisoformat(first), date.fromisoformat(last)
    passes = [first + timedelta(days) for days in range(0, (last - first).days, 5)]
    series = {"S2": [passes[k] for k in sorted(rng.choice(len(passes), T - 1, replace=False))] + [last]}
    series["S2"][0] = first
    for orbit, start in (("S1A", 2), ("S1D", 4)):                        # every six days, a few are missing
        kept = sorted(rng.choice(71, rng.integers(65, 71), replace=False))
        series[orbit] = [date(2018, 9, 1) + timedelta(start + int(6 * k)) for k in kept]
    return series


def fields(seed, i, train, side):
    """The ground of patch i: (Ground, map (10 S, 10 S) int16 at 1 m, void (K) bool: parcels that lie mostly outside).
    """
    patch, rng = plan(seed, i, train), stream(seed, i, 1)
    extent = side * 10.
    centres, metric = parcels(rng, (-100, -100), (extent + 100, extent + 100), rng.uniform(75, 105),
                              rng.uniform(1.2, 2.4))
    shapes = []
    if rng.random() < .4:                                                # a road
        shapes.append(Shape(*rng.uniform(.2, .8, 2) * extent, 9 * extent, 5., rng.uniform(0, np.pi)))
    K = len(centres) + 1 + len(shapes)
    ground = Ground(centres, metric, 2., shapes, K * ["track"])
    y = np.arange(0, extent) + .5
    index = ground_map(ground, y, y)
    around = np.arange(-200, extent + 200, 5.)
    total = np.bincount(ground_map(ground, around, around).ravel(), minlength=K) * 25.
    area = np.bincount(index.ravel(), minlength=K)
    void = (area < .35 * total) & (np.arange(K) < len(centres))
    order = np.argsort(-np.where(void, 0, area)[:len(centres)], kind="stable")
    for n, k in enumerate(order):                                        # the largest parcels: one of each crop
        others = patch.crops if patch.crops and rng.random() < .88 else ["wood"]
        ground.covers[k] = patch.crops[n] if n < len(patch.crops) else str(rng.choice(others))
    return ground, index, void


def target(ground, index, void):
    """TARGET (3, S, S) uint8: the class of most of each Sentinel pixel, the parcel, whether it is void."""
    classes = np.array([CROPS.get(name, (0,))[0] for name in ground.covers])
    classes[void & (classes > 0)] = VOID
    share = shares(index, BLOCK, len(classes))
    per_class = np.stack([share[classes == c].sum(0) for c in range(VOID + 1)])
    label = per_class.argmax(0)
    return np.stack([label, share.argmax(0), label == VOID]).astype(np.uint8)


def spot(rng, ground, traits, index):
    """The SPOT image of summer 2019: (10 S, 10 S, 3) uint8 R, G, B."""
    side = len(index)
    at = np.arange(side) + .5
    color = paint(index, ground.covers, traits, at, at)[..., [3, 1, 2]]
    blotches = smooth_noise(rng, side // 6, at / side)                   # crowns of woods, grass
    woods = np.isin(index, [k for k, name in enumerate(ground.covers) if name == "wood"])
    color *= (1 + np.where(woods, .16, .035) * blotches + .03 * smooth_noise(rng, 9, at / side))[..., None]
    color *= np.exp(.07 * rng.standard_normal() + .03 * rng.standard_normal(3)).astype(np.float32)    # haze, processing
    for along in (0, 1):                                                 # resampled from 1.5 m: [1 4 1] / 6
        color = (np.roll(color, 1, along) + 4 * color + np.roll(color, -1, along)) / 6
    return np.clip(color + 1.5 * rng.standard_normal(color.shape, dtype=np.float32), 1, 255).astype(np.uint8)


def spoil_s2(rng, data):
    """No data, in place: single pixels, a corner of a date, a whole date. data (T, 10, S, S) int16."""
    T, _, S, _ = data.shape
    if rng.random() < .3:
        for _ in range(rng.integers(1, 5)):
            data[rng.integers(T), :, rng.integers(S), rng.integers(S)] = NODATA
    if rng.random() < .25:                                               # the edge of a swath
        depth = np.arange(S)[:, None] + np.arange(S)[None, :: rng.choice([-1, 1])]
        data[rng.integers(T), :, depth < rng.integers(S // 4, S)] = NODATA
    if rng.random() < .15:
        data[rng.integers(T)] = NODATA


def spoil_s1(rng, data):
    """A few values without a logarithm, in place: NaN or -inf. data (T, 3, S, S) float16 dB."""
    T, _, S, _ = data.shape
    if rng.random() < .15:
        for _ in range(rng.integers(1, 4)):
            t, y, x = rng.integers(T), rng.integers(S), rng.integers(S)
            data[t, :, y, x] = (np.nan, np.nan, np.nan) if rng.random() < .5 else (data[t, 0, y, x], -np.inf, np.inf)


def write_patch(job):
    """Write every file of patch i. job: (root, seed, i, train, side); returns its number of parcels and their share."""
    root, seed, i, train, side = job
    patch = plan(seed, i, train)
    ground, index, void = fields(seed, i, train, side)
    label = target(ground, index, void)
    np.save(root / "ANNOTATIONS" / f"TARGET_{patch.id}.npy", label.astype(np.int16) if patch.wide else label)
    rng = stream(seed, i, 2)
    traits = draw_traits(rng, ground.covers)
    tifffile.imwrite(root / FOLDERS[3] / f"SPOT6_RVB_1M00_2019_{patch.id}.tif", spot(rng, ground, traits, index),
                     photometric="rgb", planarconfig="contig", compression="lzw", metadata=None, software=False)
    share = shares(index, BLOCK, len(ground.covers))
    series = {key: np.array([(d - date(2019, 1, 1)).days + 1. for d in days])
              for key, days in dates(patch.region).items()}
    rng = stream(seed, i, 3)
    s2 = s2_series(rng, ground.covers, traits, share, series["S2"])[0].astype(np.int16)
    spoil_s2(rng, s2)
    np.save(root / "DATA_S2" / f"S2_{patch.id}.npy", s2)
    for part, orbit in enumerate(("S1A", "S1D"), 4):
        rng = stream(seed, i, part)
        vv, vh = 10 * np.log10(s1_series(rng, ground.covers, traits, share, series[orbit])).transpose(1, 0, 2, 3)
        s1 = np.stack([vv, vh, vv - vh], 1).astype(np.float16)
        spoil_s1(rng, s1)
        np.save(root / f"DATA_{orbit}" / f"{orbit}_{patch.id}.npy", s1)
    crops = label[0][(label[0] > 0) & (label[0] < VOID)]
    return len(np.unique(label[1][(label[0] > 0) & (label[0] < VOID)])), round(crops.size / side ** 2, 6)


def metadata(seed, train, side, parcels_of):
    """metadata.geojson as text. parcels_of: what write_patch returned for each patch."""
    patches = sorted((plan(seed, i, train), i) for i in range(len(parcels_of)))
    features = []
    for n, (patch, i) in enumerate(patches):
        properties = {"Fold": patch.fold, "ID_PATCH": patch.id, "N_Parcel": parcels_of[i][0],
                      "Parcel_Cover": parcels_of[i][1],
                      "TILE": REGIONS[patch.region][0], "id": str(patch.id)}
        for key, days in dates(patch.region).items():
            numbers = {str(t): int(f"{day:%Y%m%d}") for t, day in enumerate(days)}
            numbers = {t: numbers[t] for t in sorted(numbers)}           # "10" before "2": a reader has to sort
            properties[f"dates-{key}"] = json.dumps(numbers) if seed % 2 else numbers    # new geopandas writes text
        x, y = 4e5 + 1e5 * patch.region + 400 * (patch.id % 100), 6.6e6 + 400 * (patch.id // 100 % 100)
        extent = side * 10
        ring = [[x + (a - .02 * b) * extent, y + (b + .02 * a) * extent]  # UTM squares are turned in Lambert-93
                for a, b in ((0, 0), (1, 0), (1, 1), (0, 1), (0, 0))]
        is_multi = n % 3 == 1
        geometry = {"type": "MultiPolygon" if is_multi else "Polygon", "coordinates": [[ring]] if is_multi else [ring]}
        features.append({"id": str(n), "type": "Feature", "properties": properties, "geometry": geometry})
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::2154"}}
    return json.dumps({"type": "FeatureCollection", "crs": crs, "features": features})
