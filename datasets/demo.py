"""Demo data in the raw formats of the real data sets: simulated ground with the real layouts, types, names and defects.

    python -m datasets.demo --root DIR                       # TreeSatAI: 320 + 160 tiles, 330 MB, half a minute on 2 cores
    python -m datasets.demo --root DIR --train 30 --test 10  # a handful
    python -m datasets.demo --root DIR --dataset pastis-hd   # 100 + 40 patches, 280 MB, half a minute
    python -m datasets.demo --root DIR --dataset flair       # 100 + 40 patches, 120 MB, half a minute

Nothing here is measured: numbers obtained on demo data say that the code works, not how good the method is.

This file has the command line, what the data sets share, and TreeSatAI: it writes the forest of datasets/forest.py down as
TreeSatAI-TS and TreeSatAI are distributed. PASTIS-HD is in datasets/demo_pastis.py, FLAIR #2 in datasets/demo_flair.py; both
show the landscape of datasets/landscape.py.

Dimension letters: T dates, B bands, K stands of a tile.
"""
import argparse
import json
import multiprocessing
import os
from pathlib import Path

import h5py
import numpy as np
import tifffile
from tqdm import tqdm

from datasets import demo_flair, demo_pastis
from datasets.forest import (BORDER, PER_PIXEL, PIXEL, UNLABELLED, aerial, backscatter, digital_numbers, ground_map, labels, observe_s2, plan,
                             reflectance, s1_series, s2_series, speckle, spoil_s1, stand_map, stand_traits, stream)
from datasets.sentinel1 import scrambled
from utils.errors import UserError, run
from utils.files import lock
from utils.numbers import whole

VERSION = 2
SIDE = 6    # of a tile of TreeSatAI, in Sentinel pixels
FOLDERS = ('aerial', 'sentinel-ts', 'sentinel/s1/60m', 'sentinel/s1/200m', 'sentinel/s2/60m', 'sentinel/s2/200m')
V1_ORDER = [0, 1, 2, 6, 3, 4, 5, 7, 8, 9]  # of the single-date files: B02 B03 B04 B08 B05 ... B12 (B01 B09)


def write_h5(path, s1, s2, rng):
    """The series of one tile: flat, contiguous, no attributes. s1: {'asc' / 'des': (data, names)}; s2: (data, masks, names).

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
    """GeoTIFF laid out like the real one; every tile has the same position. image (H, W, B); pixel in m; nodata '-9999', even on uint8."""
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

    def per_pixel(fine, block):                                                          # share of each stand in each pixel
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
    """TreeSatAI v1: one cloud-free summer date at 60 m (6 x 6) and 200 m (20 x 20). shares (K, 20, 20), texture (20, 20).

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


def generate(root, wanted, counts, write, jobs, finish, workers=None, unit='tile'):
    """Write a demo data set once, on several processes, with a bar; returns `root` as a Path.

    wanted: what DEMO.json will hold. counts: {glob pattern below root: files it matches when complete}. write: does one of
    `jobs`, in any process. finish: called with the list of what write returned, in the order of jobs. unit: what a job is.
    Does nothing when the same data is there already. UserError: `root` holds other files, or data of other arguments.
    """
    root = Path(root)
    marker, unfinished = root / 'DEMO.json', root / 'DEMO.json.unfinished'
    with lock(root.resolve().with_name(f'.{root.name}.lock'), f'writes {root}'):
        for path in (marker, unfinished):
            if path.exists() and json.loads(path.read_text()) != wanted:
                raise UserError(f'{path} says {path.read_text()}, asked for is {json.dumps(wanted)}: '
                                f'delete the folder {root}, or give another --root')
        if marker.exists():
            lost = [pattern for pattern, count in counts.items() if len(list(root.glob(pattern))) != count]
            if lost:
                raise UserError(f'{marker} says complete, but files are missing in {lost}: delete the folder {root} and run again')
            print(f'{root}: already there, complete; nothing to do')
            return root
        if root.exists() and any(root.iterdir()) and not unfinished.exists():
            raise UserError(f'{root} holds files but no DEMO.json, so it is not demo data: give an empty or new folder')
        for folder in {os.path.dirname(pattern) for pattern in counts} | {''}:
            if '**' not in folder:
                (root / folder).mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps(wanted))                                            # an interrupted run is redone

        workers = max(1, min(workers or os.cpu_count() or 1, len(jobs)))
        bar = dict(total=len(jobs), desc=f'demo {wanted["dataset"]}', unit=unit)
        if workers == 1:
            results = list(tqdm(map(write, jobs), **bar))
        else:
            with multiprocessing.Pool(workers) as pool:
                results = list(tqdm(pool.imap(write, jobs, chunksize=4 if unit == 'tile' else 1), **bar))
        finish(results)
        unfinished.replace(marker)                                                           # last: now it is complete
        return root


def write_treesatai(root, train=320, test=160, seed=0, workers=None, as_2017=False, side=SIDE):
    """Write demo TreeSatAI-TS and TreeSatAI under `root`, laid out like the unpacked release; returns `root` as a Path.

    train, test: tiles in split/{train,test}_filenames.lst. seed: decides every byte. workers: processes (default: all cores).
    as_2017: Sentinel-1 of the 2017 files scrambled, as in the release (docs/sentinel1-2017.md); by default all are in order.
    side: Sentinel pixels a side (real: 6); tiles of another one are quicker to learn from, and have no single dates.
    Does nothing when the same data is there already. UserError: `root` holds other files, or data of other arguments.
    """
    root = Path(root)

    def finish(entries):
        for folder in ('labels', 'split'):
            (root / folder).mkdir(exist_ok=True)
        (root / 'labels' / 'TreeSatBA_v9_60m_multi_labels.json').write_text(json.dumps(dict(entries)))
        for split, part in (('train', entries[:train]), ('test', entries[train:])):
            lines = ''.join(f'{name}\r\n' for name in sorted(name for name, _ in part))
            (root / 'split' / f'{split}_filenames.lst').write_bytes(lines.encode())
    wanted = dict(demo=True, dataset='treesatai', train=train, test=test, seed=seed, version=VERSION)
    wanted |= (dict(as_2017=True) if as_2017 else {}) | (dict(side=side) if side != SIDE else {})
    counts = {f'{folder}/*': train + test for folder in (FOLDERS if side == SIDE else FOLDERS[:2])}
    return generate(root, wanted, counts, write_tile, [(root, seed, i, side, as_2017) for i in range(train + test)], finish, workers)


def write_pastis(root, train=100, test=40, seed=0, workers=None, side=32):
    """Write demo PASTIS-HD under `root`, laid out like the unpacked release; returns `root` as a Path.

    train: patches in folds 1 to 4, about one in five of them in fold 4, the validation; test: in fold 5. side: Sentinel
    pixels a side (real: 128). seed, workers and errors: as write_treesatai; an odd seed writes the dates as text.
    """
    root, count = Path(root), train + test
    if count > demo_pastis.MOST:
        raise UserError(f'{count} patches: there are ids for {demo_pastis.MOST}')

    def finish(parcels):
        (root / 'metadata.geojson').write_text(demo_pastis.metadata(seed, train, side, parcels))
    wanted = dict(demo=True, dataset='pastis-hd', train=train, test=test, seed=seed, version=demo_pastis.VERSION, side=side)
    counts = {f'{folder}/*': count for folder in demo_pastis.FOLDERS}
    jobs = [(root, seed, i, train, side) for i in range(count)]
    return generate(root, wanted, counts, demo_pastis.write_patch, jobs, finish, workers)


def write_flair(root, train=100, test=40, seed=0, workers=None, layout='original'):
    """Write demo FLAIR #2 under `root`; returns `root` as a Path.

    train: patches in training and validation domains, about one in five in the latter; test: in test domains. layout:
    'original', folders as in the first release, or 'domains', as repackaged. seed, workers and errors: as write_treesatai.
    """
    if layout not in demo_flair.VERSIONS:
        raise UserError(f'layout {layout!r}: it is original or domains')
    root, plan = Path(root), demo_flair.areas(train, test)
    about = root / 'aux-data' if layout == 'domains' else root

    def finish(entries):
        about.mkdir(exist_ok=True)
        for n, name in enumerate(('flair-2_centroids_sp_to_patch.json', 'flair_aerial_metadata.json')):
            (about / name).write_text(json.dumps({key: value for entry in entries for key, value in entry[n].items()}))
    wanted = dict(demo=True, dataset='flair', train=train, test=test, seed=seed, version=demo_flair.VERSIONS[layout],
                  side=demo_flair.SIDE, layout=layout)
    counts = {'**/IMG_*.tif': train + test, '**/MSK_*.tif': train + test, '**/SEN2_*': 3 * len(plan)}
    jobs = [(root, seed, z, area, layout) for z, area in enumerate(plan)]
    return generate(root, wanted, counts, demo_flair.write_area, jobs, finish, workers, unit='area')


def main(argv=None):
    writers = {'treesatai': write_treesatai, 'pastis-hd': write_pastis, 'flair': write_flair}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--root', required=True, help='folder to write to: new, empty, or an earlier run of this command')
    parser.add_argument('--dataset', default='treesatai', choices=list(writers), help='which data set to imitate')
    parser.add_argument('--train', type=whole(1), help='treesatai: tiles in the train list (default 320; 30 are meant to be hard, '
                        '300 learnable); pastis-hd: patches in folds 1 to 4; flair: patches in training and validation domains '
                        '(default 100; one in five is for validation)')
    parser.add_argument('--test', type=whole(1), help='treesatai: tiles in the test list (default 160); pastis-hd: patches in fold 5; '
                        'flair: patches in test domains (default 40); few tiles make noisy scores')
    parser.add_argument('--seed', type=whole(0), default=0, help='decides every byte; the number of processes does not')
    parser.add_argument('--as-2017', action='store_true', help='of treesatai: Sentinel-1 of the 2017 files scrambled, as in the release')
    parser.add_argument('--side', type=whole(2), help='of treesatai: Sentinel pixels a side (default 6, as in the release); tiles of another '
                        'side are quicker to learn from, and have no single dates')
    args = parser.parse_args(argv)
    if args.side is not None and args.dataset != 'treesatai':
        raise UserError(f'--side: it is about tiles of treesatai, not of {args.dataset}; leave it out')
    if args.as_2017 and args.side not in (None, SIDE):
        raise UserError('--as-2017: the scrambled files have 6 x 6 pixels; leave --side out')
    if args.as_2017 and args.dataset != 'treesatai':
        raise UserError(f'--as-2017: it is about files of treesatai, not of {args.dataset}; leave it out')
    counts = {name: getattr(args, name) for name in ('train', 'test') if getattr(args, name) is not None}
    counts |= ({'as_2017': True} if args.as_2017 else {}) | ({'side': args.side} if args.side is not None else {})
    root = writers[args.dataset](args.root, seed=args.seed, **counts)
    made = json.loads((root / 'DEMO.json').read_text())
    print(f'{root}: {made["train"]} train and {made["test"]} test tiles of SIMULATED '
          f'{"forest" if args.dataset == "treesatai" else "landscape"}')


if __name__ == '__main__':
    run(main)
