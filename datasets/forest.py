"""The forest behind the demo data: what is on the ground, and what each sensor makes of it. Simulated, not measured.

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
`weather`, `s1_series`, `spoil_s1`, and `write_h5` of datasets/demo.py.

Dimension letters: T dates, B bands, K stands of a tile, H = W = 6 Sentinel pixels of 10 m (20 in the 200 m files). Smaller tiles,
which demo.py writes for the demo, have fewer; they are no crops of the larger ones, but tiles of their own.
"""
from datetime import datetime, timedelta
from typing import NamedTuple

import numpy as np

PIXEL, BORDER, PER_PIXEL = 0.2, 2, 50  # aerial pixel in m; px around the Sentinel pixels; px in one of these, along a side
UNLABELLED = 255                       # ground map value of ground that no label covers (a track, bare ground)
FIRST_20M = np.array([0, 0, 2, 3, 3, 5])   # replication of 20 m pixels in the real file: columns 0-1 and 3-4 are equal
BANDS_20M = [3, 4, 5, 7, 8, 9]             # in the order of the series: B02 B03 B04 B05 B06 B07 B08 B8A B11 B12


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
    'Abies': Genus(.08, ('Abies_alba',), (3.6, 4.2), (130, 290), NEEDLE, (-9.4, -15.2, .2), (7.4, 7, 1.1, .08), (196, 107, 94, 94)),
    'Betula': Genus(.10, ('Betula_spec.',), (.2, 3.6), (120, 293), (245, 530, 255, 1010, 2800, 3500, 3700, 3850, 1800, 830),
                    (-10.4, -16.8, .9), (4.2, 3, 2.4, .12), (236, 128, 103, 114)),
    'Cleared': Genus(.10, ('Cleared',), (.4, 1.5), (110, 300), (290, 600, 340, 1050, 2600, 3200, 3350, 3500, 2000, 1000),
                     (-11.8, -18.2, .2), (1.2, .6, 2., .80), (190, 122, 106, 116)),
    'Fagus': Genus(.17, ('Fagus_sylvatica',), (.2, 4.6), (110, 280), BROAD, (-9.9, -15.3, 1.0), (8.2, 5, 2.4, .03), (236, 126, 102, 110)),
    'Larix': Genus(.11, ('Larix_decidua', 'Larix_kaempferi'), (.4, 3.9), (114, 305), NEEDLE, (-9.7, -15.3, .8), (4.0, 6, 1.1, .10),
                   (202, 113, 97, 100)),
    'Picea': Genus(.15, ('Picea_abies',), (3.6, 4.2), (130, 290), NEEDLE, (-9.7, -15.8, .1), (3.5, 6, 1.1, .08), (196, 107, 94, 94)),
    'Pinus': Genus(.16, ('Pinus_sylvestris', 'Pinus_nigra', 'Pinus_strobus'), (2.7, 3.4), (130, 290),
                   (195, 345, 210, 630, 1780, 2150, 2300, 2430, 1050, 490), (-8.7, -13.2, .1), (4.1, 5, 1.3, .12), (198, 110, 96, 99)),
    'Quercus': Genus(.17, ('Quercus_robur', 'Quercus_petraea', 'Quercus_rubra'), (.2, 4.4), (133, 307), BROAD, (-9.9, -15.4, 1.0),
                     (7.8, 5, 2.4, .05), (234, 126, 102, 110)),
}
SOIL = np.array([300, 410, 470, 690, 1000, 1180, 1330, 1420, 1650, 1050.])  # bark, litter, soil


class Tile(NamedTuple):
    """What is decided about tile i before any pixel: drawn from stream (i, 0), so it is the same in every process."""
    name: str            # of the aerial file, '.tif' included
    year: int            # of both Sentinel series
    species: list        # one per stand, the main stand first
    fields_seed: int     # of the ground map
    overlap: float       # > 0: polygons overlap, the first label is too large by this share (a defect of the real labels)
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
                int(rng.integers(2 ** 31)), float(rng.uniform(.05, .9)) if rng.random() < .02 else 0., bool(rng.random() < .15))


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
    """Stand index at positions `at` (N, in m from the centre, along y and along x): (N, N) uint8, 255 where unlabelled."""
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
    """The truth of tile i: (species of each stand, (304, 304) uint8 stand index at 0.2 m, 255 where no label covers). side: of H, W."""
    tile, pixels = plan(seed, i), side * PER_PIXEL + 2 * BORDER
    return tile.species, stand_map(tile, (np.arange(pixels) - pixels / 2 + .5) * PIXEL)


def labels(tile, stands):
    """[[genus, area fraction], ...] of the centre 60 m, by falling area; two species of one genus are two entries.

    As in the real file: small areas stay in the list, areas need not sum to 1 (unlabelled ground, overlapping polygons).
    """
    centre = stands[BORDER:-BORDER, BORDER:-BORDER]
    entries = [[s.split('_')[0], float(np.mean(centre == k))] for k, s in enumerate(tile.species)]
    entries = sorted((e for e in entries if e[1] > 0), key=lambda e: -e[1])
    if entries:
        entries[0][1] *= 1 + tile.overlap
    return [[genus, round(area, 5)] for genus, area in entries]


def draw_crowns(rng, species, stands):
    """Plant trees stand by stand; the highest crown wins. stands (H, H): height (H, H, m), color (H, H, 4: NIR, G, B, R)."""
    side = len(stands)
    at = (np.arange(side) + .5) / side
    axis = np.arange(side, dtype=np.float32)
    ragged = .16 * smooth_noise(rng, 62, at) + .12 * smooth_noise(rng, 150, at)          # crown outlines are not circles
    height = .3 * smooth_noise(rng, 100, at)
    color = np.float32([122, 84, 78, 84]) * (1 + .10 * smooth_noise(rng, 60, at))[..., None]   # ground between the crowns
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
        radii, lights = diameter / 2 * np.exp(.16 * rng.standard_normal(n * n)), np.exp(.09 * rng.standard_normal(n * n))
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
    """Lit by the sun, shadows cast, blurred, noise. height (H, H, m), color (H, H, B with blue third): (H, H, B) uint8."""
    side = len(height)
    azimuth, elevation = rng.uniform(0, 2 * np.pi), np.deg2rad(rng.uniform(38, 58))
    to_sun = np.array([np.cos(azimuth), np.sin(azimuth)])
    slope_y, slope_x = (np.clip(s, -2.5, 2.5) for s in np.gradient(height, 2 * PIXEL))   # half slopes: leaves scatter light
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
    for along in (0, 1):                                                                # the lens: [1 2 1] / 4 along y and x
        image = (np.roll(image, 1, along) + 2 * image + np.roll(image, -1, along)) / 4
    image += 1.5 * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(image, 1, 254).astype(np.uint8)


def leaf_on(day, days, width=(7., 9.)):
    """Double logistic of the year: 0 leafless, 1 in full leaf."""
    return 1 / (1 + np.exp((days[0] - day) / width[0])) - 1 / (1 + np.exp((days[1] - day) / width[1]))


def reflectance(stands, shares, day):
    """Clear-sky Sentinel-2 without noise. stands: `stand_traits`; shares (K, H, W); day (T): (T, 10, H, W) x 10000."""
    pixels = 0.
    for trait, share in zip(stands, shares):
        genus = trait['genus']
        winter, summer = genus.lai
        lai = (winter + (summer - winter) * leaf_on(day, genus.days + trait['shift'])) * trait['vigour']
        cover = 1 - np.exp(-.75 * lai)                                                   # (T): ground hidden by leaves
        spectrum = cover[:, None] * np.array(genus.leaf) * trait['color'] + (1 - cover[:, None]) * SOIL * trait['soil']
        pixels = pixels + spectrum[:, :, None, None] * share
    return pixels


def stand_traits(rng, species):
    """Per stand, with the tile's own shift of the season and brightness; one more for the unlabelled ground."""
    tile_shift, tile_light = 3. * rng.standard_normal(), np.exp(.08 * rng.standard_normal())
    traits = []
    for name in species + ['Cleared']:
        tilt = np.exp(.06 * rng.standard_normal() * np.linspace(-1, 1, 10) + .04 * rng.standard_normal(10))
        traits.append(dict(genus=GENERA[name.split('_')[0]], shift=tile_shift + 2. * rng.standard_normal(2),
                           vigour=np.exp(.2 * rng.standard_normal()), color=tile_light * tilt,
                           soil=tile_light * np.exp(.15 * rng.standard_normal()), radar=.35 * rng.standard_normal(2)))
    return traits


def observe_s2(rng, clear, texture):
    """Sensor: pixel texture, light and aerosol of the date, noise. clear (T, 10, H, W) -> same, not rounded, all at 10 m."""
    light = np.exp(.07 * rng.standard_normal((len(clear), 1, 1, 1)))
    aerosol = rng.exponential(35, (len(clear), 1, 1, 1)) * np.linspace(1.4, 0, 10)[:, None, None]
    return aerosol + clear * texture * light * (1 + .03 * rng.standard_normal(clear.shape)) + 15 * rng.standard_normal(clear.shape)


def digital_numbers(seen):
    """Repeat the first 10 m pixel of each 20 m pixel in the 20 m bands, round. seen (T, 10, H, W)."""
    start = 7 % 6 if seen.shape[-1] == 20 else 0                                         # the centre tile begins at pixel 7
    j = np.arange(seen.shape[-1]) - start
    first = j // 6 * 6 + FIRST_20M[j % 6] + start
    seen[:, BANDS_20M] = seen[:, BANDS_20M][..., first, :][..., first]
    return np.clip(np.rint(seen), 1, 16000)


def weather(rng, data, winter):
    """What hides the ground on one date: data (10, H, W) -> (data, snow, cloud), masks 0..100. winter: 1 in January, -1 in July.

    About half of the dates are useless. The masks agree mostly: some clouds are missed or called snow, some clear flagged.
    """
    odds = np.array([.42, .09, .11, .34, .03, .01]) + max(winter, 0) * np.array([-.20, 0, 0, .14, 0, .06])
    kind = rng.choice(['clear', 'haze', 'partial', 'cloud', 'shadow', 'snow'], p=odds)
    (H, W), side = data.shape[1:], max(data.shape[1:])
    field = smooth_noise(rng, 4, (np.arange(side) + .5) / side)[:H, :W]
    snow, cloud = np.zeros((H, W)), np.zeros((H, W))
    if kind == 'haze':
        data = data + rng.uniform(100, 900) * np.linspace(1, .3, 10)[:, None, None] * (1 + .1 * field)
        cloud[:] = rng.choice([0, 0, 9, 15, 30])
    elif kind == 'shadow':                                                              # of a cloud elsewhere; no mask tells
        data = data * rng.uniform(.15, .4)
    elif kind == 'snow':
        data = .2 * data + rng.uniform(3600, 7200) * np.array([1] * 8 + [.25, .26])[:, None, None] * (1 + .05 * field)
        snow[:] = rng.choice([20, 48, 100])
    elif kind in ('cloud', 'partial'):
        thick = 1 / (1 + np.exp(-6 * (field + rng.uniform(-.3, .3)))) if kind == 'partial' else np.full((H, W), rng.uniform(.85, 1))
        deck = rng.uniform(3200, 10000) * np.array([1, .96, .95, .98, .99, .99, 1.02, .99, .66, .52])
        deck = (deck * np.exp(.04 * rng.standard_normal(10)))[:, None, None] * (1 + .04 * field)
        data = data * (1 - thick) + deck * thick
        cloud = np.where(thick > .35, rng.choice([100, 100, 100, 85, 62]), rng.choice([0, 12]))
        if rng.random() < .06:
            cloud, snow = snow, np.full((H, W), rng.choice([0, 100]))
    elif rng.random() < .04:
        cloud[:] = rng.integers(1, 80)
    return data, snow, cloud


def s2_series(rng, traits, shares, texture, year):
    """A year of Sentinel-2: data (T, 10, H, W) digital numbers, masks (T, 2, H, W) snow and cloud, product names (T)."""
    dates = []
    for first, orbit, hour in [(2, 65, 10.4), (5, 108, 10.57)][:rng.integers(1, 3)]:     # one or two relative orbits, every 5 days
        dates += [(day, orbit, hour, 'AB'[n % 2]) for n, day in enumerate(range(first, 366, 5))]
    kept = rng.permutation(len(dates))[:max(60, round(len(dates) * rng.uniform(.82, 1)))]
    dates = sorted(dates[k] for k in kept)
    day = np.array([d[0] for d in dates], float)
    winter = np.cos((day - 15) / 365 * 2 * np.pi)
    clear = reflectance(traits, shares, day) * (.9 - .15 * winter)[:, None, None, None]  # low sun, long shadows
    seen = [weather(rng, data, w) for data, w in zip(observe_s2(rng, clear, texture), winter)]
    data, snow, cloud = (np.array(part) for part in zip(*seen))
    names = []
    for d, orbit, hour, satellite in dates:
        when = datetime(year, 1, 1) + timedelta(days=d - 1, hours=hour, seconds=int(rng.integers(60)))
        made = when + timedelta(minutes=int(rng.integers(80, 300)))
        names.append(f'S2{satellite}_MSIL2A_{when:%Y%m%dT%H%M%S}_N02{year - 2006:02d}_R{orbit:03d}_T32UNC_{made:%Y%m%dT%H%M%S}')
    return digital_numbers(data).astype(np.float32), np.stack([snow, cloud], 1), names


def backscatter(traits, shares, day, offset):
    """Radar without speckle on one day: (2, H, W) linear power of VV and VH. shares (K, H, W); offset (2): dB on VV, VH."""
    power = 0.
    for trait, share in zip(traits, shares):
        vv, vh, rise = trait['genus'].radar
        bare = 1 - leaf_on(day, trait['genus'].days + trait['shift'])
        level = np.array([vv + .3 * rise * bare, vh + rise * bare]) + trait['radar'] + offset
        power = power + 10 ** (level / 10)[:, None, None] * share
    return power


def speckle(rng, side):
    """Multiplicative speckle (2, side, side) of mean 1: gamma, neighbours share looks, about 5 looks in all."""
    s = rng.gamma(1.3, 1 / 1.3, (2, side + 1, side + 1))
    return (s[:, 1:, 1:] + s[:, :-1, 1:] + s[:, 1:, :-1] + s[:, :-1, :-1]) / 4


def s1_series(rng, traits, shares, year, orbits, rain, doubled):
    """A year of one orbit direction. Returns data (T, 2, H, W) VV and VH in LINEAR power, products (T) names.

    orbits: relative orbit numbers. rain (366) dB by day of year, shared by all pixels. doubled: share of dates that occur
    twice, as two consecutive slices with identical pixels.
    """
    rows, names, side = [], [], shares.shape[-1]
    reference, lap = datetime(2020, 1, 3, 17, 8, 41), timedelta(days=12) / 175           # S1A flew relative orbit 117 then
    for orbit in orbits:
        offset, twin = rng.normal(0, .5, 2), rng.integers(0, side - 1)                         # each orbit looks at its own angle
        first = reference + (orbit - 117) * lap + timedelta(minutes=21 if orbit in (66, 139) else 0)
        pass_0 = (datetime(year, 1, 1) - first) // timedelta(days=6) + 1                # A and B take turns, every 6 days
        for k in (pass_0 + rng.permutation(60)[:rng.integers(41, 58)]).tolist():
            when = first + k * timedelta(days=6) + timedelta(seconds=int(rng.integers(3)))
            number = (30639, 19743)[k % 2] + orbit - 117 + k // 2 * 175                  # absolute orbit
            rows.append((when, number, 'AB'[k % 2], offset, twin))
    data = []
    for when, number, satellite, offset, twin in sorted(rows, key=lambda row: row[0]):
        day = when.timetuple().tm_yday
        power = backscatter(traits, shares, day, offset + rain[day - 1] * np.array([1, .7])) * speckle(rng, side)
        power[:, :, twin + 1] = power[:, :, twin]                                       # nearest-neighbour resampling
        for slice_ in range(1 + (rng.random() < doubled)):
            when = when + slice_ * timedelta(seconds=int(rng.integers(1, 20)))
            names.append(f'S1{satellite}_IW_GRDH_1SDV_{when:%Y%m%dT%H%M%S}_{when + timedelta(seconds=25):%Y%m%dT%H%M%S}'
                         f'_{number:06d}_{(number * 1234567) % 0xFFFFFF:06X}_{rng.integers(0x10000):04X}')
            data.append(power)
    return np.array(data, np.float32).reshape(-1, 2, side, side), names


def spoil_s1(rng, data, names):
    """Defects of single values, in place: NaN pixels, an all-NaN date, exact zeros and dust in VH. Twin slices stay equal."""
    days = np.array([n[17:25] for n in names])
    for chance, channels, value in [(.20, [0, 1], np.nan), (.25, [1], 0.), (.15, [1], 1.6e-12)]:
        if len(days) and rng.random() < chance:
            for day in rng.choice(days, rng.integers(1, 3)):
                y, x = rng.integers(0, data.shape[-1], 2)
                data[np.ix_(days == day, channels, [y], [x])] = value
    if len(days) and rng.random() < .08:
        data[days == rng.choice(days)] = np.nan
