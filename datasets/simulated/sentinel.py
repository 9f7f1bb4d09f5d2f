"""What the Sentinels make of the forest: reflectance through leaves and clouds, backscatter through speckle.
Simulated, not measured.

Dimension letters: T dates, B bands, K stands of a tile, H x W Sentinel pixels.
"""
from datetime import datetime, timedelta

import numpy as np

from datasets.simulated.forest import GENERA, SOIL, smooth_noise

FIRST_20M = np.array([0, 0, 2, 3, 3, 5])   # replication of 20 m pixels in the real file: columns 0-1 and 3-4 are equal
BANDS_20M = [3, 4, 5, 7, 8, 9]             # in the order of the series: B02 B03 B04 B05 B06 B07 B08 B8A B11 B12


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
    """Sensor: pixel texture, light and aerosol of the date, noise. clear (T, 10, H, W) -> same, not rounded, all at 10
    m.
    """
    light = np.exp(.07 * rng.standard_normal((len(clear), 1, 1, 1)))
    aerosol = rng.exponential(35, (len(clear), 1, 1, 1)) * np.linspace(1.4, 0, 10)[:, None, None]
    noise = 1 + .03 * rng.standard_normal(clear.shape)
    return aerosol + clear * texture * light * noise + 15 * rng.standard_normal(clear.shape)


def digital_numbers(seen):
    """Repeat the first 10 m pixel of each 20 m pixel in the 20 m bands, round. seen (T, 10, H, W)."""
    start = 7 % 6 if seen.shape[-1] == 20 else 0    # the centre tile begins at pixel 7
    j = np.arange(seen.shape[-1]) - start
    first = j // 6 * 6 + FIRST_20M[j % 6] + start
    seen[:, BANDS_20M] = seen[:, BANDS_20M][..., first, :][..., first]
    return np.clip(np.rint(seen), 1, 16000)


def weather(rng, data, winter):
    """What hides the ground on one date: data (10, H, W) -> (data, snow, cloud), masks 0..100. winter: 1 in January,
    -1 in July.

    About half of the dates are useless. The masks agree mostly: some clouds are missed or called snow, some clear
    flagged.
    """
    odds = np.array([.42, .09, .11, .34, .03, .01]) + max(winter, 0) * np.array([-.20, 0, 0, .14, 0, .06])
    kind = rng.choice(['clear', 'haze', 'partial', 'cloud', 'shadow', 'snow'], p=odds)
    (H, W), side = data.shape[1:], max(data.shape[1:])
    field = smooth_noise(rng, 4, (np.arange(side) + .5) / side)[:H, :W]
    snow, cloud = np.zeros((H, W)), np.zeros((H, W))
    if kind == 'haze':
        data = data + rng.uniform(100, 900) * np.linspace(1, .3, 10)[:, None, None] * (1 + .1 * field)
        cloud[:] = rng.choice([0, 0, 9, 15, 30])
    elif kind == 'shadow':    # of a cloud elsewhere; no mask tells
        data = data * rng.uniform(.15, .4)
    elif kind == 'snow':
        data = .2 * data + rng.uniform(3600, 7200) * np.array([1] * 8 + [.25, .26])[:, None, None] * (1 + .05 * field)
        snow[:] = rng.choice([20, 48, 100])
    elif kind in ('cloud', 'partial'):
        thick = (1 / (1 + np.exp(-6 * (field + rng.uniform(-.3, .3)))) if kind == 'partial' else
                 np.full((H, W), rng.uniform(.85, 1)))
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
    """A year of Sentinel-2: data (T, 10, H, W) digital numbers, masks (T, 2, H, W) snow and cloud, product names (T).
    """
    dates = []
    # one or two relative orbits, every 5 days
    for first, orbit, hour in [(2, 65, 10.4), (5, 108, 10.57)][:rng.integers(1, 3)]:
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
        names.append(f'S2{satellite}_MSIL2A_{when:%Y%m%dT%H%M%S}_N02{year - 2006:02d}_R{orbit:03d}_T32UNC_'
                     f'{made:%Y%m%dT%H%M%S}')
    return digital_numbers(data).astype(np.float32), np.stack([snow, cloud], 1), names


def backscatter(traits, shares, day, offset):
    """Radar without speckle on one day: (2, H, W) linear power of VV and VH. shares (K, H, W); offset (2): dB on VV,
    VH.
    """
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

    orbits: relative orbit numbers. rain (366) dB by day of year, shared by all pixels. doubled: share of dates that
    occur twice, as two consecutive slices with identical pixels. Ground, weather and orbits are drawn by the caller, as
    others share them.
    """
    rows, names, side = [], [], shares.shape[-1]
    reference, lap = datetime(2020, 1, 3, 17, 8, 41), timedelta(days=12) / 175    # S1A flew relative orbit 117 then
    for orbit in orbits:
        offset, twin = rng.normal(0, .5, 2), rng.integers(0, side - 1)    # each orbit looks at its own angle
        first = reference + (orbit - 117) * lap + timedelta(minutes=21 if orbit in (66, 139) else 0)
        pass_0 = (datetime(year, 1, 1) - first) // timedelta(days=6) + 1    # A and B take turns, every 6 days
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
    """Defects of single values, in place: NaN pixels, an all-NaN date, exact zeros and dust in VH. Twin slices stay
    equal.
    """
    days = np.array([n[17:25] for n in names])
    for chance, channels, value in [(.20, [0, 1], np.nan), (.25, [1], 0.), (.15, [1], 1.6e-12)]:
        if len(days) and rng.random() < chance:
            for day in rng.choice(days, rng.integers(1, 3)):
                y, x = rng.integers(0, data.shape[-1], 2)
                data[np.ix_(days == day, channels, [y], [x])] = value
    if len(days) and rng.random() < .08:
        data[days == rng.choice(days)] = np.nan
