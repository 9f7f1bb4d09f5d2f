"""One demo tile of TreeSatAI-TS and TreeSatAI: the forest of forest.py in the raw formats, with their traps (demo.py
calls this).

Dimension letters: T dates, B bands, K stands of a tile.
"""
import h5py
import numpy as np
import tifffile

from datasets.sentinel1 import scrambled
from datasets.simulated.forest import (BORDER, PER_PIXEL, PIXEL, UNLABELLED, aerial, ground_map, labels, plan,
                                       stand_map,
                                       stream)
from datasets.simulated.sentinel import (backscatter, digital_numbers, observe_s2, reflectance, s1_series, s2_series,
                                         speckle, spoil_s1, stand_traits)

VERSION = 2
SIDE = 6    # of a tile, in Sentinel pixels
FOLDERS = ('aerial', 'sentinel-ts', 'sentinel/s1/60m', 'sentinel/s1/200m', 'sentinel/s2/60m', 'sentinel/s2/200m')
V1_ORDER = [0, 1, 2, 6, 3, 4, 5, 7, 8, 9]  # of the single-date files: B02 B03 B04 B08 B05 ... B12 (B01 B09)


def write_h5(path, s1, s2, rng):
    """The series of one tile: flat, contiguous, no attributes. s1: {'asc' / 'des': (data, names)}; s2: (data, masks,
    names).

    sen-2-masks is T x 2 in some tiles and T x 10 (channels 2..9 zero) in others; dust of 1e-10 lies on some zeros.
    """
    data, masks, names = s2
    dust = rng.random(masks.shape) < .001
    masks = np.where(dust & (masks == 0), 4e-9 * rng.random(masks.shape) + 1e-10, masks).astype(np.float32)
    if rng.random() < .5:
        masks = np.concatenate([masks, np.zeros((len(masks), 8, *masks.shape[2:]), np.float32)], 1)
    text = h5py.string_dtype()
    with h5py.File(path, 'w') as f:
        for direction in ('asc', 'des'):
            f.create_dataset(f'sen-1-{direction}-data', data=s1[direction][0])
            f.create_dataset(f'sen-1-{direction}-products', data=np.array(s1[direction][1], dtype=object), dtype=text)
        f.create_dataset('sen-2-data', data=data)
        f.create_dataset('sen-2-masks', data=masks)
        f.create_dataset('sen-2-products', data=np.array(names, dtype=object), dtype=text)


def write_tif(path, image, pixel, rows_per_strip=None, rgb=False):
    """GeoTIFF laid out like the real one; every tile has the same position. image (H, W, B); pixel in m; nodata
    '-9999', even on uint8.
    """
    keys = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 25832)
    tags = [(33550, 12, 3, (pixel, pixel, 0.), True), (33922, 12, 6, (0., 0., 0., 565642.6, 5770980.4, 0.), True),
            (34735, 3, len(keys), keys, True), (42113, 2, 6, '-9999', True)]
    tifffile.imwrite(path, image, photometric='rgb' if rgb else 'minisblack', planarconfig='contig', metadata=None,
                     software=False, rowsperstrip=rows_per_strip, extratags=tags, byteorder='<',
                     extrasamples=['unassalpha'] if rgb else None)


def write_tile(job):
    """Write every file of tile i. job: (root, seed, i, side, as_2017); returns (tif name, label entries)."""
    root, seed, i, side, as_2017 = job
    tile = plan(seed, i)
    stem = tile.name[:-len('.tif')]
    species, stands = ground_map(seed, i, side)
    values = list(range(len(species))) + [UNLABELLED]

    def per_pixel(fine, block):    # share of each stand in each pixel
        side = len(fine) // block
        return np.stack([(fine == v).reshape(side, block, side, block).mean((1, 3)) for v in values])
    shares = per_pixel(stands[BORDER:-BORDER, BORDER:-BORDER], PER_PIXEL)                # (K, H, W)

    write_tif(root / 'aerial' / tile.name, aerial(stream(seed, i, 1), species, stands), PIXEL, 6, rgb=True)

    rng = stream(seed, i, 2)
    traits = stand_traits(rng, species)
    texture = np.exp(.08 * rng.standard_normal((20, 20)))
    s2 = s2_series(rng, traits, shares, texture[7:7 + side, 7:7 + side], tile.year)

    rng = stream(seed, i, 3)
    rain = np.convolve(rng.exponential(1.5, 366) * (rng.random(366) < .15), .6 ** np.arange(8))[:366].clip(max=3) - .5
    s1 = {}
    for direction, orbits in (('asc', [117, 15]), ('des', [66, 139])):
        share = rng.choice([0, .3, 1], p=[.4, .35, .25]) if direction == 'des' else rng.choice([0, .1], p=[.9, .1])
        orbits = [] if direction == 'asc' and rng.random() < .02 else orbits[:rng.integers(1, 3)]
        s1[direction] = s1_series(rng, traits, shares, tile.year, orbits, rain, share)
        spoil_s1(rng, *s1[direction])
        if as_2017 and tile.year == 2017:
            data, names = s1[direction]
            s1[direction] = scrambled(data, 's1' if direction == 'asc' else 's1-des'), names
    write_h5(root / 'sentinel-ts' / f'{stem}_{tile.year}.h5', s1, s2, rng)
    if side == SIDE:
        around = per_pixel(stand_map(tile, np.arange(-99.5, 100)), 10)                   # (K, 20, 20), the 200 m files
        around[:, 7:13, 7:13] = shares
        write_single_dates(root, tile.name, stream(seed, i, 4), traits, around, texture)
    return tile.name, labels(tile, stands)


def write_single_dates(root, name, rng, traits, shares, texture):
    """TreeSatAI v1: one cloud-free summer date at 60 m (6 x 6) and 200 m (20 x 20). shares (K, 20, 20), texture (20,
    20).

    S1: VV dB, VH dB and the quotient of the two (which is what the published mean of band 3, 0.47, says), float32.
    S2: 12 bands uint16. A few S1 pixels carry the nodata value -9999.
    """
    day = np.array([float(rng.integers(175, 245))])
    seen = digital_numbers(observe_s2(rng, reflectance(traits, shares, day), texture))[0]   # (10, 20, 20)
    s2 = np.concatenate([seen[V1_ORDER], 1.03 * seen[:1] + 15, .99 * seen[7:8]])         # + B01, B09
    s2 = np.clip(np.rint(s2), 1, 16000).astype(np.uint16).transpose(1, 2, 0)
    power = backscatter(traits, shares, day[0], rng.normal(0, .7, 2)) * speckle(rng, 20)
    vv, vh = 10 * np.log10(power)
    s1 = np.stack([vv, vh, vv / vh], -1).astype(np.float32)
    if rng.random() < .02:
        s1[rng.integers(20), rng.integers(20)] = -9999
    for sensor, image in (('s1', s1), ('s2', s2)):
        write_tif(root / 'sentinel' / sensor / '200m' / name, image, 10.)
        write_tif(root / 'sentinel' / sensor / '60m' / name, np.ascontiguousarray(image[7:13, 7:13]), 10.)
