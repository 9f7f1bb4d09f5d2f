"""Demo data in the raw formats of the real data sets: simulated ground with the real layouts, types, names and defects.

    python -m datasets.simulated.demo --root DIR                       # TreeSatAI: 320 + 160 tiles, 330 MB
    python -m datasets.simulated.demo --root DIR --train 30 --test 10  # a handful
    python -m datasets.simulated.demo --root DIR --dataset pastis-hd   # 100 + 40 patches, 280 MB
    python -m datasets.simulated.demo --root DIR --dataset flair       # 100 + 40 patches, 120 MB

Each takes half a minute on 2 cores.

Nothing here is measured: numbers obtained on demo data say that the code works, not how good the method is.

This file has the command line and what the data sets share; formats are in treesatai.py, pastis.py and flair.py, what
is on the ground in forest.py and landscape.py.
"""
import argparse
import json
import multiprocessing
import os
from pathlib import Path

from tqdm import tqdm

from datasets.simulated import flair, pastis, treesatai
from utils.errors import UserError, run
from utils.files import lock
from utils.numbers import whole


def generate(root, wanted, counts, write, jobs, finish, workers=None, unit='tile'):
    """Write a demo data set once, on several processes, with a bar; returns `root` as a Path.

    wanted: what DEMO.json will hold. counts: {glob pattern below root: files it matches when complete}. write: does
    one of `jobs`, in any process. finish: called with the list of what write returned, in the order of jobs. unit:
    what a job is. The arguments are all that the releases differ in. Does nothing when the same data is there already.
    UserError: `root` holds other files, or data of other arguments.
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
                raise UserError(f'{marker} says complete, but files are missing in {lost}: delete the folder {root} '
                                'and run again')
            print(f'{root}: already there, complete; nothing to do')
            return root
        if root.exists() and any(root.iterdir()) and not unfinished.exists():
            raise UserError(f'{root} holds files but no DEMO.json, so it is not demo data: give an empty or new folder')
        for folder in {os.path.dirname(pattern) for pattern in counts} | {''}:
            if '**' not in folder:
                (root / folder).mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps(wanted))    # an interrupted run is redone

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


def write_treesatai(root, train=320, test=160, seed=0, workers=None, as_2017=False, side=treesatai.SIDE):
    """Write demo TreeSatAI-TS and TreeSatAI under `root`, laid out like the unpacked release; returns `root` as a
    Path.

    train, test: tiles in split/{train,test}_filenames.lst. seed: decides every byte. workers: processes (default: all
    cores). as_2017: Sentinel-1 of the 2017 files scrambled, as in the release (docs/sentinel1-2017.md); by default all
    are in order. side: Sentinel pixels a side (real: 6); tiles of another one are quicker to learn from, and have no
    single dates. These are the options of the command, one each.
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
    wanted = dict(demo=True, dataset='treesatai', train=train, test=test, seed=seed, version=treesatai.VERSION)
    wanted |= (dict(as_2017=True) if as_2017 else {}) | (dict(side=side) if side != treesatai.SIDE else {})
    folders = treesatai.FOLDERS if side == treesatai.SIDE else treesatai.FOLDERS[:2]
    counts = {f'{folder}/*': train + test for folder in folders}
    jobs = [(root, seed, i, side, as_2017) for i in range(train + test)]
    return generate(root, wanted, counts, treesatai.write_tile, jobs, finish, workers)


def write_pastis(root, train=100, test=40, seed=0, workers=None, side=32):
    """Write demo PASTIS-HD under `root`, laid out like the unpacked release; returns `root` as a Path.

    train: patches in folds 1 to 4, about one in five of them in fold 4, the validation; test: in fold 5. side: Sentinel
    pixels a side (real: 128). seed, workers and errors: as write_treesatai; an odd seed writes the dates as text.
    """
    root, count = Path(root), train + test
    if count > pastis.MOST:
        raise UserError(f'{count} patches: there are ids for {pastis.MOST}')

    def finish(parcels):
        (root / 'metadata.geojson').write_text(pastis.metadata(seed, train, side, parcels))
    wanted = dict(demo=True, dataset='pastis-hd', train=train, test=test, seed=seed, version=pastis.VERSION, side=side)
    counts = {f'{folder}/*': count for folder in pastis.FOLDERS}
    jobs = [(root, seed, i, train, side) for i in range(count)]
    return generate(root, wanted, counts, pastis.write_patch, jobs, finish, workers)


def write_flair(root, train=100, test=40, seed=0, workers=None, layout='original'):
    """Write demo FLAIR #2 under `root`; returns `root` as a Path.

    train: patches in training and validation domains, about one in five in the latter; test: in test domains. layout:
    'original', folders as in the first release, or 'domains', as repackaged. seed, workers and errors: as
    write_treesatai.
    """
    if layout not in flair.VERSIONS:
        raise UserError(f'layout {layout!r}: it is original or domains')
    root, plan = Path(root), flair.areas(train, test)
    about = root / 'aux-data' if layout == 'domains' else root

    def finish(entries):
        about.mkdir(exist_ok=True)
        for n, name in enumerate(('flair-2_centroids_sp_to_patch.json', 'flair_aerial_metadata.json')):
            (about / name).write_text(json.dumps({key: value for entry in entries for key, value in entry[n].items()}))
    wanted = dict(demo=True, dataset='flair', train=train, test=test, seed=seed, version=flair.VERSIONS[layout],
                  side=flair.SIDE, layout=layout)
    counts = {'**/IMG_*.tif': train + test, '**/MSK_*.tif': train + test, '**/SEN2_*': 3 * len(plan)}
    jobs = [(root, seed, z, area, layout) for z, area in enumerate(plan)]
    return generate(root, wanted, counts, flair.write_area, jobs, finish, workers, unit='area')


def main(argv=None):
    writers = {'treesatai': write_treesatai, 'pastis-hd': write_pastis, 'flair': write_flair}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--root', required=True, help='folder to write to: new, empty, or an earlier run of this '
                                                      'command')
    parser.add_argument('--dataset', default='treesatai', choices=list(writers), help='which data set to imitate')
    parser.add_argument('--train', type=whole(1), help='treesatai: tiles in the train list (default 320; 30 are meant '
                                                       'to be hard, 300 learnable); pastis-hd: patches in folds 1 to '
                                                       '4; flair: patches in training and validation domains (default '
                                                       '100; one in five is for validation)')
    parser.add_argument('--test', type=whole(1), help='treesatai: tiles in the test list (default 160); pastis-hd: '
                                                      'patches in fold 5; flair: patches in test domains (default 40); '
                                                      'few tiles make noisy scores')
    parser.add_argument('--seed', type=whole(0), default=0, help='decides every byte; the number of processes does not')
    parser.add_argument('--as-2017', action='store_true', help='of treesatai: Sentinel-1 of the 2017 files scrambled, '
                                                               'as in the release')
    parser.add_argument('--side', type=whole(2), help='of treesatai: Sentinel pixels a side (default 6, as in the '
                                                      'release); tiles of another side are quicker to learn from, and '
                                                      'have no single dates')
    args = parser.parse_args(argv)
    if args.side is not None and args.dataset != 'treesatai':
        raise UserError(f'--side: it is about tiles of treesatai, not of {args.dataset}; leave it out')
    if args.as_2017 and args.side not in (None, treesatai.SIDE):
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
