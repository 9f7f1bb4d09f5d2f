"""The forest behind the demo data: what is on the ground, and the aerial photo of it. Simulated, not measured.

The story. A tile is 60.8 m wide; a ground map of 1 to 3 stands decides what every sensor sees. Sentinel-2 sees leaves
over bark and soil (a double logistic of leaf area per genus), Sentinel-1 sees branches (VV, VH) through speckle, the
aerial photo sees crowns (size, cone or dome, gaps, shadows). No sensor tells all genera apart; together they nearly do:

    pair                 aerial photo          S2 series                 one summer S2 date   S1 series
    Abies / Picea        crown size            -                         -                    faint
    Pinus / Picea        -                     faint (red, winter)       faint                VH level
    Larix / Picea        -                     winter leaf loss          -                    faint (season of VH)
    Fagus / Quercus      -                     leaf-out and leaf-fall    -                    -
    Betula / Quercus     crown size            faint (leaf area)         faint                faint (VH level)
    Cleared / any        no crowns             low leaf area             low                  low VV and VH

Nuisance hides the signal: illumination and colour per tile, phenology shifted by days per tile and per stand, clouds on
half of the dates, speckle, rain, orbit offsets. Real defects are planted on purpose; see `labels`,
`weather`, `s1_series` and `spoil_s1` of sentinel.py, and `write_h5` of treesatai.py.

Dimension letters: T dates, B bands, K stands of a tile, H = W = 6 Sentinel pixels of 10 m (20 in the 200 m files).
Smaller tiles, which demo.py writes for the demo, have fewer; they are no crops of the larger ones, but tiles of their
own.
"""
from typing import NamedTuple

import numpy as np

# aerial pixel in m; px around the Sentinel pixels; px in one of these, along a side
PIXEL, BORDER, PER_PIXEL = 0.2, 2, 50
UNLABELLED = 255                       # ground map value of ground that no label covers (a track, bare ground)


class Genus(NamedTuple):
    share: float         # how often it is the main stand
    species: tuple       # as written in file names
    lai: tuple           # leaf area in winter, in summer
    days: tuple          # day of year of half leaf-out, of half leaf-fall
    leaf: tuple          # reflectance x 10000 of a closed canopy, ten bands
    radar: tuple         # VV and VH in dB in leaf; how much VH rises (dB) when leaves are off
    crown: tuple         # diameter (m), depth (m), shape exponent (1 cone, 2 and more dome), share of ground left open
    color: tuple         # aerial NIR, G, B, R of a sunlit crown


BROAD = (235, 500, 240, 970, 2900, 3700, 3900, 4050, 1750, 790)
NEEDLE = (190, 330, 190, 610, 1800, 2200, 2350, 2480, 1000, 440)
GENERA = {
    'Abies': Genus(.08, ('Abies_alba',), (3.6, 4.2), (130, 290), NEEDLE, (-9.4, -15.2, .2), (7.4, 7, 1.1, .08),
                   (196, 107, 94, 94)),
    'Betula': Genus(.10, ('Betula_spec.',), (.2, 3.6), (120, 293),
                    (245, 530, 255, 1010, 2800, 3500, 3700, 3850, 1800, 830),
                    (-10.4, -16.8, .9), (4.2, 3, 2.4, .12), (236, 128, 103, 114)),
    'Cleared': Genus(.10, ('Cleared',), (.4, 1.5), (110, 300),
                     (290, 600, 340, 1050, 2600, 3200, 3350, 3500, 2000, 1000),
                     (-11.8, -18.2, .2), (1.2, .6, 2., .80), (190, 122, 106, 116)),
    'Fagus': Genus(.17, ('Fagus_sylvatica',), (.2, 4.6), (110, 280), BROAD, (-9.9, -15.3, 1.0), (8.2, 5, 2.4, .03),
                   (236, 126, 102, 110)),
    'Larix': Genus(.11, ('Larix_decidua', 'Larix_kaempferi'), (.4, 3.9), (114, 305), NEEDLE, (-9.7, -15.3, .8),
                   (4.0, 6, 1.1, .10), (202, 113, 97, 100)),
    'Picea': Genus(.15, ('Picea_abies',), (3.6, 4.2), (130, 290), NEEDLE, (-9.7, -15.8, .1), (3.5, 6, 1.1, .08),
                   (196, 107, 94, 94)),
    'Pinus': Genus(.16, ('Pinus_sylvestris', 'Pinus_nigra', 'Pinus_strobus'), (2.7, 3.4), (130, 290),
                   (195, 345, 210, 630, 1780, 2150, 2300, 2430, 1050, 490), (-8.7, -13.2, .1), (4.1, 5, 1.3, .12),
                   (198, 110, 96, 99)),
    'Quercus': Genus(.17, ('Quercus_robur', 'Quercus_petraea', 'Quercus_rubra'), (.2, 4.4), (133, 307), BROAD,
                     (-9.9, -15.4, 1.0), (7.8, 5, 2.4, .05), (234, 126, 102, 110)),
}
SOIL = np.array([300, 410, 470, 690, 1000, 1180, 1330, 1420, 1650, 1050.])  # bark, litter, soil


class Tile(NamedTuple):
    """What is decided about tile i before any pixel: drawn from stream (i, 0), so it is the same in every process."""
    name: str            # of the aerial file, '.tif' included
    year: int            # of both Sentinel series
    species: list        # one per stand, the main stand first
    fields_seed: int     # of the ground map
    overlap: float    # > 0: polygons overlap, the first label is too large by this share (a defect of the real labels)
    bare: bool           # a strip without a label runs through the tile


def stream(seed, i, part):
    """Random stream of tile i: part 0 plan, 1 aerial, 2 S2, 3 S1, 4 single dates."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(i, part)))


def plan(seed, i):
    rng = stream(seed, i, 0)
    shares = np.array([g.share for g in GENERA.values()])
    count = rng.choice([1, 2, 3], p=[.54, .36, .10])
    genera = list(rng.choice(list(GENERA), size=count, replace=False, p=shares / shares.sum()))
    if count > 1 and rng.random() < .15:
        genera[1] = genera[0]                                                  # may become one genus with two species
    species = list(dict.fromkeys(str(rng.choice(GENERA[g].species)) for g in genera))
    shown = str(rng.choice(GENERA[str(rng.choice(list(GENERA)))].species)) if rng.random() < .03 else species[0]
    number, source = 1000 + 7 * i, 'WEFL' if i % 6 else 'BI'
    if i % 40 == 39:                                                           # an id may occur twice
        number, source = number - 7, 'BI' if (i - 1) % 6 else 'WEFL'
    return Tile(f'{shown}_{rng.integers(12)}_{number}_{source}_NLF.tif', int(rng.integers(2017, 2021)), species,
                int(rng.integers(2 ** 31)), float(rng.uniform(.05, .9)) if rng.random() < .02 else 0.,
                bool(rng.random() < .15))


def smooth_noise(rng, cells, at):
    """Smooth random field of unit variance or so: normal values on cells x cells nodes, smoothly interpolated.

    at (N, in [0, 1)): where to evaluate, along y and along x; returns (N, N) float32.
    """
    def stretch(nodes, at):                                          # interpolate along the first axis
        lower = (at * (cells - 1)).astype(int)
        step = (at * (cells - 1) - lower).astype(np.float32)
        step = (step * step * (3 - 2 * step))[:, None]
        return nodes[lower] * (1 - step) + nodes[lower + 1] * step
    nodes = rng.standard_normal((cells, cells), dtype=np.float32)
    return stretch(stretch(nodes, at).T, at).T


def stand_map(tile, at):
    """Stand index at positions `at` (N, in m from the centre, along y and along x): (N, N) uint8, 255 where unlabelled.
    """
    rng = np.random.default_rng(tile.fields_seed)
    height = []
    for k in range(len(tile.species)):
        bonus = rng.uniform(.2, .8) if k == 0 else 0.
        height.append(smooth_noise(rng, 9, at / 210 + .5) + .25 * smooth_noise(rng, 40, at / 210 + .5) + bonus)
    stands = np.argmax(height, axis=0).astype(np.uint8)
    if tile.bare:
        angle, offset, width = rng.uniform(0, np.pi), rng.uniform(-20, 20), rng.uniform(1, 6)
        across = at[:, None] * np.sin(angle) + at[None] * np.cos(angle) + 1.5 * smooth_noise(rng, 12, at / 210 + .5)
        stands[np.abs(across - offset) < width] = UNLABELLED
    return stands


def ground_map(seed, i, side=6):
    """The truth of tile i: (species of each stand, (304, 304) uint8 stand index at 0.2 m, 255 where no label covers).
    side: of H, W.
    """
    tile, pixels = plan(seed, i), side * PER_PIXEL + 2 * BORDER
    return tile.species, stand_map(tile, (np.arange(pixels) - pixels / 2 + .5) * PIXEL)


def labels(tile, stands):
    """[[genus, area fraction], ...] of the centre 60 m, by falling area; two species of one genus are two entries.

    As in the real file: small areas stay in the list, areas need not sum to 1 (unlabelled ground, overlapping
    polygons).
    """
    centre = stands[BORDER:-BORDER, BORDER:-BORDER]
    entries = [[s.split('_')[0], float(np.mean(centre == k))] for k, s in enumerate(tile.species)]
    entries = sorted((e for e in entries if e[1] > 0), key=lambda e: -e[1])
    if entries:
        entries[0][1] *= 1 + tile.overlap
    return [[genus, round(area, 5)] for genus, area in entries]


def draw_crowns(rng, species, stands):
    """Plant trees stand by stand; the highest crown wins. stands (H, H): height (H, H, m), color (H, H, 4: NIR, G, B,
    R).
    """
    side = len(stands)
    at = (np.arange(side) + .5) / side
    axis = np.arange(side, dtype=np.float32)
    ragged = .16 * smooth_noise(rng, 62, at) + .12 * smooth_noise(rng, 150, at)    # crown outlines are not circles
    height = .3 * smooth_noise(rng, 100, at)
    # ground between the crowns
    color = np.float32([122, 84, 78, 84]) * (1 + .10 * smooth_noise(rng, 60, at))[..., None]
    color[stands == UNLABELLED] *= np.float32([1.25, 1.3, 1.3, 1.45])
    age = np.exp(.11 * rng.standard_normal())                                           # old trees have wide crowns
    for k, name in enumerate(species):
        genus = GENERA[name.split('_')[0]]
        diameter, depth, shape, gaps = genus.crown
        diameter, spacing = diameter * age / PIXEL, .80 * diameter * age / PIXEL        # px from here on
        tint = np.array(genus.color) * np.exp(.03 * rng.standard_normal(4))
        top = rng.uniform(14, 24)
        if genus is GENERA['Cleared']:                                                  # grass with herbs, no trees
            top, meadow = 0., 1 + .12 * smooth_noise(rng, 45, at) + .1 * smooth_noise(rng, 12, at)
            color[stands == k] = (tint * meadow[..., None])[stands == k]
        n = int(side / spacing) + 2
        grid = np.stack(np.meshgrid(np.arange(n), np.arange(n)), -1).reshape(-1, 2)
        centres = (grid + rng.uniform(-.42, .42, (n * n, 2))) * spacing
        radii = diameter / 2 * np.exp(.16 * rng.standard_normal(n * n))
        lights = np.exp(.09 * rng.standard_normal(n * n))
        peaks, open_ = top + 2 * rng.standard_normal(n * n), rng.random(n * n) < gaps
        for (cy, cx), radius, light, peak, skip in zip(centres, radii, lights, peaks, open_):
            if skip or not (0 <= cy < side and 0 <= cx < side) or stands[int(cy), int(cx)] != k:
                continue
            y, x = (slice(max(0, int(c - 1.4 * radius)), int(c + 1.4 * radius) + 2) for c in (cy, cx))
            r = np.sqrt((axis[y, None] - cy) ** 2 + (axis[None, x] - cx) ** 2) / radius + ragged[y, x]
            crown = peak - depth * np.maximum(r, 0) ** shape
            wins = (r < 1) & (crown > height[y, x])
            height[y, x][wins] = crown[wins]
            color[y, x][wins] = tint * light
    return height + .22 * smooth_noise(rng, 150, at) + .12 * rng.standard_normal(height.shape, dtype=np.float32), color


def aerial(rng, species, stands):
    """The photo, NIR G B R, of crowns. stands (304, 304): (304, 304, 4) uint8."""
    return photo(rng, *draw_crowns(rng, species, stands))


def photo(rng, height, color):
    """Lit by the sun, shadows cast, blurred, noise. height (H, H, m), color (H, H, B with blue third): (H, H, B) uint8.
    """
    side = len(height)
    azimuth, elevation = rng.uniform(0, 2 * np.pi), np.deg2rad(rng.uniform(38, 58))
    to_sun = np.array([np.cos(azimuth), np.sin(azimuth)])
    # half slopes: leaves scatter light
    slope_y, slope_x = (np.clip(s, -2.5, 2.5) for s in np.gradient(height, 2 * PIXEL))
    lit = np.sin(elevation) - (slope_y * to_sun[0] + slope_x * to_sun[1]) * np.cos(elevation)
    lit = np.clip(lit / np.sqrt(1 + slope_y ** 2 + slope_x ** 2), 0, 1)
    shadow, around = np.zeros((side, side), bool), np.pad(height, 80)
    for step in np.arange(.6, 15, .6):                                                  # walk towards the sun, in m
        dy, dx = np.rint(to_sun * step / PIXEL).astype(int)
        towards = around[80 + dy:80 + dy + side, 80 + dx:80 + dx + side]
        shadow |= towards - step * np.tan(elevation) > height + .3
    lit = np.where(shadow, .12 * lit, lit).astype(np.float32)
    sky = np.float32([.52, .55, .68, .55])                                              # shadows are blue
    image = color * (sky + (1.25 - sky) * lit[..., None])
    image *= np.exp(.10 * rng.standard_normal() + .03 * rng.standard_normal(4)).astype(np.float32)
    for along in (0, 1):    # the lens: [1 2 1] / 4 along y and x
        image = (np.roll(image, 1, along) + 2 * image + np.roll(image, -1, along)) / 4
    image += 1.5 * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(image, 1, 254).astype(np.uint8)
