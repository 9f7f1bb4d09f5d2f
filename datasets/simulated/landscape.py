"""The landscape behind the demo data of PASTIS-HD and FLAIR #2: fields, trees, houses, and what satellites make of
them.

Simulated, not measured. The story. A ground map of straight-edged parcels decides what every sensor sees. Each parcel
has one cover with a yearly course of leaf area over soil or straw (Sentinel-2), a backscatter that changes with the
leaves (Sentinel-1), and colour and rows from the air. No sensor tells all crops apart; together they nearly do:

    pair                    Sentinel-2 series              Sentinel-1 series        from the air, in summer
    wheat / rapeseed        rapeseed earlier, in bloom     VH: stems or pods        - (both straw)
    corn / sunflower        -                              VV and VH                sunflowers are yellow
    corn / beet             beet stays green in autumn     faint                    - (both green)
    meadow / corn           meadow is always green         VH in summer             faint
    grapevine / orchard     -                              -                        rows or dots
    building / road         -                              (FLAIR has none)         height, colour
    coniferous / deciduous  winter                         (FLAIR has none)         crowns, near infrared

Nuisance: the season shifts by days per tile and per parcel, vigour, soil and colour vary, half of the dates have
weather. Clouds, aerosol, speckle and tree crowns come from forest.py and sentinel.py.

Dimension letters: T dates, B = 10 bands, K parcels and objects, H x W pixels.
"""
from typing import NamedTuple

import numpy as np

from datasets.simulated.forest import BROAD, NEEDLE, SOIL
from datasets.simulated.sentinel import BANDS_20M, leaf_on, observe_s2, speckle, weather

CROP = (330, 640, 380, 1050, 3100, 3900, 4100, 4300, 1900, 950)
GRASS = (350, 640, 440, 1050, 2700, 3300, 3500, 3650, 2050, 1100)
EARTH = (800, 1050, 1300, 1550, 1750, 1900, 2050, 2200, 2700, 2200)
STRAW = (850, 1200, 1650, 2000, 2300, 2500, 2650, 2800, 3500, 2600)
STONE = (1150, 1300, 1450, 1550, 1650, 1700, 1800, 1850, 2100, 1900)
WATER = (300, 280, 170, 120, 90, 80, 70, 60, 30, 20)
BLOOM = np.array([60, 700, 900, 700, 500, 400, 400, 300, 100, 50.])    # what yellow flowers add


class Cover(NamedTuple):
    """What grows or stands on a parcel, the same every year."""
    leaf_area: tuple          # all year, and on top of it in season
    season: tuple             # day of the year of half rise and of half fall; negative: the autumn before
    leaf: tuple               # reflectance x 10000 of a closed canopy, ten bands
    ground: tuple             # and of what lies below it
    radar: tuple              # VV and VH in dB without leaves, and by how much each changes in full leaf
    color: tuple              # NIR, G, B, R from the air in summer, 0..255
    pattern: tuple = ("", 0., 0.)    # rows or dots, their distance (m), how much darker the gaps are
    bloom: float = 0.         # day of the year of yellow flowers


FIELD = (-10.5, -17.5)        # radar of bare soil
COVERS = {
    # PASTIS-HD, and what its background is made of
    "meadow": Cover((1.2, 1.8), (85, 310), GRASS, EARTH, (-11.6, -18.4, 0, .6), (158, 126, 80, 104)),
    "wheat": Cover((0, 4.), (-40, 186), CROP, STRAW, (*FIELD, -4., -1.5), (150, 168, 118, 190)),
    "rapeseed": Cover((0, 4.), (-85, 176), CROP, STRAW, (*FIELD, 1., 4.2), (148, 163, 114, 184), bloom=116),
    "corn": Cover((0, 4.), (165, 275), CROP, EARTH, (*FIELD, 1.2, 4.), (165, 116, 74, 88)),
    "sunflower": Cover((0, 3.6), (162, 270), CROP, EARTH, (*FIELD, 3.4, .8), (165, 142, 66, 140)),
    "beet": Cover((0, 4.), (150, 318), CROP, EARTH, (*FIELD, 1.6, 3.4), (166, 119, 75, 87)),
    "grapevine": Cover((.2, 1.5), (120, 296), CROP, EARTH, (-9.8, -16.4, .4, .9), (140, 126, 92, 122),
                       ("rows", 4.5, .55)),
    "orchard": Cover((.2, 1.6), (117, 298), CROP, EARTH, (-9.7, -16.2, .4, .9), (140, 121, 88, 112), ("dots", 8., .45)),
    "wood": Cover((.3, 4.2), (112, 296), BROAD, tuple(SOIL), (-9.4, -15.6, .2, .6), (150, 84, 58, 60)),
    "track": Cover((.5, .3), (100, 290), GRASS, STONE, (-11.5, -19., 0, 0), (140, 150, 128, 158)),
    # FLAIR #2: photos are from early summer, when cereals are green and fields of summer crops still bare
    "building": Cover((0, 0), (100, 290), GRASS, STONE, (0, 0, 0, 0), (128, 112, 104, 150)),
    "impervious surface": Cover((0, 0), (100, 290), GRASS, STONE, (0, 0, 0, 0), (118, 126, 128, 128)),
    "water": Cover((0, 0), (100, 290), GRASS, WATER, (0, 0, 0, 0), (22, 70, 66, 48)),
    "coniferous": Cover((3.6, .6), (130, 290), NEEDLE, tuple(SOIL), (0, 0, 0, 0), (190, 105, 92, 92)),
    "deciduous": Cover((.2, 4.2), (112, 296), BROAD, tuple(SOIL), (0, 0, 0, 0), (230, 126, 102, 112)),
    "mixed": Cover((1.8, 2.4), (120, 293), BROAD, tuple(SOIL), (0, 0, 0, 0), (210, 116, 98, 102)),
    "vineyard": Cover((.2, 1.5), (122, 296), CROP, EARTH, (0, 0, 0, 0), (160, 128, 98, 124), ("rows", 3., .6)),
    "herbaceous vegetation": Cover((1.2, 1.8), (85, 310), GRASS, EARTH, (0, 0, 0, 0), (188, 132, 92, 112)),
    "agricultural land": Cover((0, 4.), (-40, 190), CROP, STRAW, (0, 0, 0, 0), (190, 136, 92, 114)),
    "plowed land": Cover((0, 3.8), (168, 278), CROP, EARTH, (0, 0, 0, 0), (135, 124, 106, 148)),
    "swimming pool": Cover((0, 0), (100, 290), GRASS, WATER, (0, 0, 0, 0), (60, 200, 216, 96)),
    "greenhouse": Cover((0, 0), (100, 290), GRASS, tuple(1.6 * np.array(STONE)), (0, 0, 0, 0), (200, 214, 216, 208)),
}


class Shape(NamedTuple):
    """A rectangle on the ground; all in m, but angle, that of its long side to the y axis."""
    y: float
    x: float
    half_length: float
    half_width: float
    angle: float


class Ground(NamedTuple):
    """What lies where. Index k of the ground map: parcels, then the strips between them (if any), then shapes."""
    centres: np.ndarray       # (parcels, 2) m: a parcel is what is closest to its centre
    metric: np.ndarray        # (2, 2): turns and stretches, since fields are longer than wide
    strip: float              # half width in m of the strips between parcels; 0: none
    shapes: list              # of Shape: roads, houses; later ones lie on top
    covers: list              # (K) names of COVERS


def parcels(rng, low, high, spacing, stretch):
    """Centres (parcels, 2) of parcels about `spacing` m wide that fill the rectangle low..high (2, m), and the metric.
    """
    angle = rng.uniform(0, np.pi)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    metric = np.diag([stretch ** .5, stretch ** -.5]) @ turn
    middle, reach = (np.add(low, high)) / 2, np.hypot(*np.subtract(high, low)) * stretch ** .5 / 2 + spacing
    n = int(2 * reach / spacing) + 1
    grid = np.stack(np.meshgrid(np.arange(n), np.arange(n)), -1).reshape(-1, 2) - (n - 1) / 2
    grid = grid + rng.uniform(-.3, .3, (n * n, 2))
    centres = middle + grid * spacing @ np.linalg.inv(metric).T
    near = ((centres > np.subtract(low, spacing)) & (centres < np.add(high, spacing))).all(1)
    return centres[near], metric


def local(shape, y, x):
    """Coordinates of positions y (H), x (W) in m along and across a shape: two (H, W)."""
    dy, dx = y[:, None] - shape.y, x[None] - shape.x
    return dy * np.cos(shape.angle) + dx * np.sin(shape.angle), dx * np.cos(shape.angle) - dy * np.sin(shape.angle)


def inside(shape, y, x):
    """(H, W) bool: which positions a shape covers."""
    along, across = local(shape, y, x)
    return (np.abs(along) < shape.half_length) & (np.abs(across) < shape.half_width)


def ground_map(ground, y, x):
    """The truth: index into ground.covers at positions y (H), x (W) in m: (H, W) int16."""
    u, v = (ground.metric[j, 0] * y[:, None] + ground.metric[j, 1] * x[None] for j in (0, 1))
    first = second = np.full(u.shape, np.inf)
    index, other = np.zeros(u.shape, np.int16), np.zeros(u.shape, np.int16)
    seeds = ground.centres @ ground.metric.T
    for k, (su, sv) in enumerate(seeds):
        d = (u - su) ** 2 + (v - sv) ** 2
        closer, between = d < first, (d >= first) & (d < second)
        other = np.where(closer, index, np.where(between, k, other))
        second = np.where(closer, first, np.where(between, d, second))
        index, first = np.where(closer, k, index), np.where(closer, d, first)
    parcels_ = len(seeds)
    if ground.strip:
        edge = (second - first) / 2 / np.hypot(*(seeds[index] - seeds[other]).transpose(2, 0, 1))
        index = np.where(edge < ground.strip, parcels_, index)
    for k, shape in enumerate(ground.shapes, parcels_ + (ground.strip > 0)):
        index = np.where(inside(shape, y, x), k, index)
    return index.astype(np.int16)


def shares(index, block, count):
    """Share of each of `count` parcels in each pixel of block x block ground map values: (K, H, W) float32."""
    H, W = (n // block for n in index.shape)
    blocks = index.reshape(H, block, W, block)
    return np.stack([(blocks == k).mean((1, 3), dtype=np.float32) for k in range(count)])


def draw_traits(rng, covers):
    """How each parcel differs from the next of its kind; season and brightness also differ from tile to tile."""
    tile_shift, tile_light = 4. * rng.standard_normal(), np.exp(.07 * rng.standard_normal())
    traits = []
    for _ in covers:
        tilt = np.exp(.06 * rng.standard_normal() * np.linspace(-1, 1, 10) + .04 * rng.standard_normal(10))
        traits.append(dict(shift=tile_shift + 3. * rng.standard_normal(2), vigour=np.exp(.2 * rng.standard_normal()),
                           leaf=tile_light * tilt, ground=tile_light * np.exp(.12 * rng.standard_normal()),
                           radar=.7 * rng.standard_normal(2), angle=rng.uniform(0, np.pi), kind=rng.random(),
                           color=np.exp(.06 * rng.standard_normal() + .025 * rng.standard_normal(4))))
    return traits


def in_season(cover, trait, day):
    """0 out of season, 1 in full leaf. day (T): days of the year, also before or after it."""
    days = np.array(cover.season) + trait["shift"]
    return sum(leaf_on(day, days + 365 * year) for year in (-1, 0, 1))


def clear_s2(covers, traits, share, day):
    """Sentinel-2 without weather and noise. share (K, H, W); day (T) of the year: (T, 10, H, W) x 10000."""
    spectra = []
    for name, trait in zip(covers, traits):
        cover = COVERS[name]
        leaf_area = (cover.leaf_area[0] + cover.leaf_area[1] * in_season(cover, trait, day)) * trait["vigour"]
        hidden = (1 - np.exp(-.75 * leaf_area))[:, None]                                 # (T, 1): ground below leaves
        leaf = hidden * np.array(cover.leaf) * trait["leaf"]
        spectrum = leaf + (1 - hidden) * np.array(cover.ground) * trait["ground"]
        if cover.bloom:
            since = (day % 365 - cover.bloom - trait["shift"][0]) / 9
            spectrum = spectrum + np.exp(-since ** 2)[:, None] * BLOOM
        spectra.append(spectrum)
    light = .9 - .15 * np.cos((day - 15) / 365 * 2 * np.pi)                              # low winter sun
    return np.tensordot(np.array(spectra) * light[:, None], share, (0, 0))


def s2_series(rng, covers, traits, share, day):
    """What Sentinel-2 delivers, weather on half of the dates. Returns data (T, 10, H, W) whole numbers, masks (T, 2,
    H, W).

    Masks 0..100: probability of snow, of cloud. Dark pixels may be slightly negative: the aerosol was overestimated.
    """
    texture = np.exp(.05 * rng.standard_normal(share.shape[1:]))
    data, masks = observe_s2(rng, clear_s2(covers, traits, share, day), texture), []
    data -= rng.exponential(70, (len(day), 1, 1, 1)) * np.linspace(1.5, .3, 10)[:, None, None]
    for t, winter in enumerate(np.cos((day - 15) / 365 * 2 * np.pi)):
        snow = cloud = np.zeros(share.shape[1:])
        if rng.random() < .75:
            data[t], snow, cloud = weather(rng, data[t], winter)
        masks.append([snow, cloud])
    H, W = share.shape[1:]
    coarse = data[:, BANDS_20M, ::2, ::2].repeat(2, 2).repeat(2, 3)[..., :H, :W]         # 20 m bands on the 10 m grid
    data[:, BANDS_20M] = coarse
    return np.clip(np.rint(data), -500, 16000), np.array(masks)


def s1_series(rng, covers, traits, share, day):
    """Sentinel-1 of one orbit: (T, 2, H, W) linear power of VV and VH, with speckle and rain. H = W."""
    rain = rng.exponential(.8, len(day)) * (rng.random(len(day)) < .25) + rng.normal(0, .25)
    levels = []
    for name, trait in zip(covers, traits):
        *bare, vv, vh = COVERS[name].radar
        growth = in_season(COVERS[name], trait, day)[:, None] * [vv, vh]
        levels.append(np.array(bare) + growth + trait["radar"] + rain[:, None] * [1, .7])
    power = np.tensordot(10 ** (np.array(levels) / 10), share, (0, 0))
    return power * np.stack([speckle(rng, share.shape[-1]) for _ in day])


def pattern(cover, angle, y, x):
    """Rows or dots of a cover at positions y (H), x (W) in m: (H, W), 0 in the gaps, 1 on the plants; None: no pattern.
    """
    kind, distance, _ = cover.pattern
    if not kind:
        return None
    along, across = local(Shape(0, 0, 0, 0, angle), y, x)
    rows = .5 + .5 * np.cos(2 * np.pi * across / distance)
    return rows if kind == "rows" else rows * (.5 + .5 * np.cos(2 * np.pi * along / distance)) * 1.6


def paint(index, covers, traits, y, x):
    """Colour without light and noise of a ground map seen from the air: (H, W, 4) float32, NIR, G, B, R."""
    palette = np.array([np.array(COVERS[name].color) * trait["color"] for name, trait in zip(covers, traits)],
                       np.float32)
    color = palette[index]
    for k in np.unique(index):
        plants = pattern(COVERS[covers[k]], traits[k]["angle"], y, x)
        if plants is not None:
            depth = COVERS[covers[k]].pattern[2]
            here = index == k
            gaps = np.float32([.75, 1.2, 1.25, 1.5]) * color[here]                       # earth between the plants
            seen = plants[here][:, None].astype(np.float32)
            color[here] = (gaps * (1 - seen) + color[here] * (1 - depth) * seen)
    return color
