"""One demo area of FLAIR #2: simulated land cover in the raw formats with their traps (demo.py calls this).

An area (zone) holds up to four aerial patches of 312 x 312 px (real: 512) and one Sentinel-2 array that covers all of
them and a margin. Planted on purpose: arrays with H != W, of int16 or uint16; clouds; dates of zeros; two products of
one day; a 29 February in areas of 2020; classes above 12; TIFF with and without compression.

Dimension letters: T dates, B bands, K parcels and objects, H x W Sentinel pixels.
"""
from datetime import date, datetime, timedelta
from typing import NamedTuple

import numpy as np
import tifffile

from datasets.simulated.forest import UNLABELLED, draw_crowns, photo, smooth_noise, stream
from datasets.simulated.landscape import (Ground, Shape, draw_traits, ground_map, local, paint, parcels, s2_series,
                                          shares)

VERSIONS = {"original": 1, "domains": 2}               # of what is generated, by layout
SIDE, PIXEL = 312, .2                                  # aerial pixels a side, m
STEP = SIDE * PIXEL                                    # m from patch to patch
MOST = 4                                               # patches of an area
CLASSES = {"building": 1, "impervious surface": 3, "water": 5, "coniferous": 6, "deciduous": 7, "vineyard": 9,
           "herbaceous vegetation": 10, "agricultural land": 11, "plowed land": 12, "swimming pool": 13, "mixed": 16,
           "greenhouse": 18}
LAND = {                                               # zone letter: covers of its parcels and how often
    "U": {"herbaceous vegetation": .55, "impervious surface": .2, "deciduous": .15, "coniferous": .1},
    "A": {"agricultural land": .42, "plowed land": .28, "vineyard": .3},
    "N": {"herbaceous vegetation": .45, "water": .3, "vineyard": .25},
    "F": {"deciduous": .45, "coniferous": .4, "mixed": .15},
}
ZONES = ("UA", "NF", "AU", "FN", "UN", "AN", "FA", "UF", "NU", "AF")    # the first letter covers more
TREES = {"deciduous": "Quercus_robur", "coniferous": "Picea_abies"}
DOMAINS = {
    "train": ("D006_2020 D007_2020 D008_2019 D009_2019 D013_2020 D016_2020 D017_2018 D021_2020 D023_2020 D030_2021 "
              "D032_2019 D033_2021 D034_2021 D035_2020 D038_2021 D041_2021 D044_2020 D046_2019 D049_2020 D051_2019 "
              "D052_2019 D055_2018 D060_2021 D063_2019 D070_2020 D072_2019 D074_2020 D078_2021 D080_2021 D081_2020 "
              "D086_2020 D091_2021").split(),
    "val": "D004_2021 D014_2020 D029_2021 D031_2019 D058_2020 D066_2021 D067_2021 D077_2021".split(),
    "test": ("D015_2020 D022_2021 D026_2020 D036_2020 D061_2020 D064_2021 D068_2021 D069_2020 D071_2020 "
             "D084_2021").split(),
}


class Area(NamedTuple):
    """What is decided about area z before any pixel."""
    split: str               # train, val or test
    domain: str              # such as D006_2020
    zone: str                # such as Z1_UA
    tiles: list              # numbers of its patches, as in IMG_000001
    grid: tuple              # rows and columns of patches
    margin: tuple            # Sentinel pixels above and below, left and right of the patches


def areas(train, test):
    """All areas: train tiles in training and validation domains (about one in five), test tiles in test domains."""
    val = max(1, round(train / 5)) if train > 1 else 0
    plan = []
    for split, first, count in (("train", 1, train - val), ("val", 1 + train - val, val), ("test", 77413, test)):
        for k in range(0, count, MOST):
            domains = DOMAINS[split]
            domain, number = domains[k // MOST % len(domains)], 1 + k // MOST // len(domains)
            grid, margin = (((2, 2), (12, 15)), ((1, 4), (12, 13)), ((4, 1), (13, 12)))[len(plan) % 3]
            tiles = list(range(first + k, first + min(k + MOST, count)))
            plan.append(Area(split, domain, f"Z{number}_{ZONES[len(plan) % len(ZONES)]}", tiles, grid, margin))
    return plan


def corners(area):
    """Upper left corner of each patch in m from that of the Sentinel array: [(y, x)]."""
    return [tuple(10. * area.margin[j] + STEP * divmod(k, area.grid[1])[j] for j in (0, 1))
            for k in range(len(area.tiles))]


def sentinel_size(area):
    """(H, W) of the area's Sentinel array."""
    return tuple(int(np.ceil(area.grid[j] * STEP / 10)) + 2 * area.margin[j] for j in (0, 1))


def centroids(area):
    """[row, col] of each patch's centre in the Sentinel array, whole pixels as in the real file."""
    return [[round((c + STEP / 2) / 10) for c in corner] for corner in corners(area)]


def land(seed, z, area):
    """The ground of an area."""
    rng = stream(seed, z, 0)
    extent = 10 * np.array(sentinel_size(area))
    letters = area.zone[-2:]
    spacing = {"U": 36., "A": 54., "N": 50., "F": 50.}[letters[0]]
    centres, metric = parcels(rng, (0, 0), extent, spacing, rng.uniform(1., 1.6))
    angle = np.arctan2(metric[1, 1], metric[1, 0]) * (rng.random() < .7)     # houses and roads along the parcels
    covers, shapes, objects = [], [], []
    for cy, cx in centres:
        letter = letters[int(rng.random() < .22)]
        cover = str(rng.choice(list(LAND[letter]), p=list(LAND[letter].values())))
        covers.append(cover)
        y, x = np.array([cy, cx]) + rng.uniform(-4, 4, 2)
        if letter == "U" and cover in ("herbaceous vegetation", "impervious surface") and rng.random() < .75:
            if cover == "herbaceous vegetation" and rng.random() < .35:
                shapes.append(Shape(y + 11 * np.cos(angle), x + 11 * np.sin(angle), 4.5, 2.4, angle))
                objects.append("swimming pool")
            shapes.append(Shape(y, x, rng.uniform(5, 10), rng.uniform(4, 6.5), angle + (rng.random() < .5) * np.pi / 2))
            objects.append("building")
        elif letter == "A" and rng.random() < .06:
            shapes.append(Shape(y, x, rng.uniform(10, 18), rng.uniform(4, 6), angle))
            objects.append("greenhouse")
    if "U" in letters or rng.random() < .4:                                  # roads lie below houses
        for across in rng.uniform(.3, .7, 1 + (letters[0] == "U")):
            shapes.insert(0, Shape(*across * extent, 1000., rng.uniform(2., 3.5), angle + len(shapes) % 2 * np.pi / 2))
            objects.insert(0, "impervious surface")
    return Ground(centres, metric, 0., shapes, covers + objects)


def patch_map(ground, corner):
    """Ground map (312, 312) int16 of the patch with its upper left corner (y, x) there, and its positions y, x in m."""
    y, x = (c + PIXEL * (np.arange(SIDE) + .5) for c in corner)
    return ground_map(ground, y, x), y, x


def label(ground, index):
    """Class of each pixel of a ground map."""
    return np.array([CLASSES[name] for name in ground.covers], np.uint8)[index]


def aerial(rng, ground, traits, index, y, x):
    """The photo of a patch: (312, 312, 5) uint8, R, G, B, NIR, height above ground in steps of 0.2 m."""
    covers = np.array(ground.covers)[index]
    at = np.arange(SIDE) / SIDE
    stands = np.full(index.shape, UNLABELLED, np.uint8)
    for k, name in enumerate(TREES):
        stands[covers == name] = k
    mixed = covers == "mixed"
    stands[mixed] = (smooth_noise(rng, 14, at) > 0)[mixed]
    height, color = draw_crowns(rng, list(TREES.values()), stands)
    ground_color = paint(index, ground.covers, traits, y, x)
    ground_color *= (1 + .04 * smooth_noise(rng, 40, at) + .03 * smooth_noise(rng, 100, at))[..., None]
    low = (stands == UNLABELLED) & (height < 2)                              # crowns may hang over
    color[low] = ground_color[low]
    height[low] = .05 * smooth_noise(rng, 100, at)[low]
    for k in np.unique(index):
        here, trait = index == k, traits[k]
        name = ground.covers[k]
        if name in ("building", "greenhouse"):
            shape = ground.shapes[k - len(ground.centres)]
            gable = 1 - np.abs(local(shape, y, x)[1]) / shape.half_width     # 1 on the ridge
            eaves = 2.4 if name == "greenhouse" else 3.5 + 6 * trait["kind"]
            height[here] = (eaves + .45 * shape.half_width * gable)[here]
            slate = np.float32([.9, 1.06, 1.18, .78]) if name == "building" and trait["angle"] < 1.2 else 1.
            color[here] = ground_color[here] * slate
    elevation = np.clip(5 * height, 0, 255)
    image = photo(rng, np.maximum(height, 0), color)                         # NIR, G, B, R
    return np.concatenate([image[..., [3, 1, 2, 0]], elevation[..., None].astype(np.uint8)], -1)


def s2_dates(rng, year):
    """Days of a year (T) as datetime.date, 20 to 60, a few of them twice; 29 February is among those of 2020."""
    first = 5 if year == 2020 else int(rng.integers(1, 6))                   # day 60 of 2020 is 29 February
    passes = np.arange(first, 366, 5)
    kept = set(rng.choice(passes, rng.integers(20, 58), replace=False).tolist()) | ({60} if year == 2020 else set())
    twice = rng.choice(sorted(kept), 2, replace=False).tolist() if rng.random() < .4 else []
    return [date(year, 1, 1) + timedelta(day - 1) for day in sorted([*kept, *twice])]


def sentinel(seed, z, area, ground, traits):
    """The area's series: data (T, 10, H, W) int16 or uint16, masks (T, 2, H, W) uint8 of snow and cloud, products (T).
    """
    rng = stream(seed, z, 2)
    H, W = sentinel_size(area)
    y, x = (2. * np.arange(5 * n) + 1 for n in (H, W))
    share = shares(ground_map(ground, y, x), 5, len(ground.covers))
    days = s2_dates(rng, int(area.domain[-4:]))
    numbers = np.array([day.timetuple().tm_yday for day in days], float)
    data, masks = s2_series(rng, ground.covers, traits, share, numbers)
    for t in np.flatnonzero(np.diff(numbers) == 0):                          # two granules of one pass
        data[t + 1], masks[t + 1] = data[t] + rng.integers(-3, 4, data[t].shape), masks[t]
    data = np.clip(data, 1, None)
    for t in np.flatnonzero(rng.random(len(days)) < .03):                    # outside the swath
        data[t], masks[t] = 0, 0
    names = []
    for t, day in enumerate(days):
        when = datetime(day.year, day.month, day.day, 10, 40, 31)
        granule = "T31TFM" if t == 0 or days[t - 1] != day else "T31TGM"
        made = when + timedelta(minutes=int(rng.integers(80, 300)))
        satellite = "AB"[day.timetuple().tm_yday // 5 % 2]
        names.append(f"S2{satellite}_MSIL2A_{when:%Y%m%dT%H%M%S}_N0{day.year - 1806}_R008_{granule}_"
                     f"{made:%Y%m%dT%H%M%S}")
    return data.astype((np.uint16, np.int16)[z % 2]), np.rint(masks).astype(np.uint8), names


def folders(root, layout, area):
    """Folders of an area's img, msk and sen files. In layout "domains" they are those of a zip a domain, unpacked."""
    if layout == "domains":
        top = root / "data" / ("flair#2-test" if area.split == "test" else "train-val") / area.domain
        return tuple(top / kind / area.zone for kind in ("aerial", "labels", "sentinel"))
    tops = (("flair_2_aerial_test", "flair_2_labels_test", "flair_2_sen_test") if area.split == "test" else
            ("flair_aerial_train", "flair_labels_train", "flair_sen_train"))
    return tuple(root / top / area.domain / area.zone / kind for top, kind in zip(tops, ("img", "msk", "sen")))


def write_area(job):
    """Write every file of area z. job: (root, seed, z, area, layout); returns its entries of the two json files."""
    root, seed, z, area, layout = job
    images, masks, series = folders(root, layout, area)
    for folder in (images, masks, series):
        folder.mkdir(parents=True, exist_ok=True)
    ground = land(seed, z, area)
    traits = draw_traits(stream(seed, z, 1), ground.covers)
    data, probabilities, names = sentinel(seed, z, area, ground, traits)
    stem = f"SEN2_sp_{area.domain}-{area.zone}"
    np.save(series / f"{stem}_data.npy", data)
    np.save(series / f"{stem}_masks.npy", probabilities)
    (series / f"{stem}_products.txt").write_text("\n".join(names) + "\n")

    centres, about = {}, {}
    for n, (tile, corner, centre) in enumerate(zip(area.tiles, corners(area), centroids(area))):
        rng = stream(seed, z, 10 + n)
        index, y, x = patch_map(ground, corner)
        tif = dict(photometric="minisblack", compression="lzw" if tile % 2 else None, metadata=None, software=False)
        image = aerial(rng, ground, traits, index, y, x)
        tifffile.imwrite(images / f"IMG_{tile:06d}.tif", image, planarconfig="contig", **tif)
        tifffile.imwrite(masks / f"MSK_{tile:06d}.tif", label(ground, index), **tif)
        centres[f"IMG_{tile:06d}.tif"] = centre
        day = date(int(area.domain[-4:]), 5, 15) + timedelta(int(rng.integers(30)))
        about[f"IMG_{tile:06d}"] = {
            "domain": area.domain, "zone": area.zone,
            "patch_centroid_x": round(9e5 + 1000 * z + corner[1] + STEP / 2, 1),
            "patch_centroid_y": round(6.4e6 - corner[0] - STEP / 2, 1),
            "patch_centroid_z": round(float(rng.uniform(-1, 900)), 2),
            "date": f"{day}", "time": "09h30", "camera": "UCE-M3-f120-s07"}
    return centres, about
