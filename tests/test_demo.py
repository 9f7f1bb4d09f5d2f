"""The demo generator against the facts of the real files: formats, planted defects, physics, reproducibility."""
import hashlib
import json
import logging
from datetime import datetime

import h5py
import numpy as np
import pytest
import tifffile

from datasets import open_dataset
from datasets.simulated import demo, forest, treesatai
from utils.errors import UserError

# '-9999' on uint8 makes it complain, as on the real files
logging.getLogger('tifffile').setLevel(logging.CRITICAL)
TRAIN, TEST, SEED = 44, 16, 10
KEYS = {f'sen-1-{d}-{x}' for d in ('asc', 'des') for x in ('data', 'products')} | {'sen-2-data', 'sen-2-masks',
                                                                                   'sen-2-products'}


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return demo.write_treesatai(tmp_path_factory.mktemp('demo') / 'tsai', TRAIN, TEST, SEED)


@pytest.fixture(scope='module')
def series(root):
    """{stem: {key: array}} of all tiles."""
    out = {}
    for path in sorted((root / 'sentinel-ts').iterdir()):
        with h5py.File(path) as f:
            out[path.stem] = {k: f[k][()] for k in f}
    return out


def digests(root):
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(root.rglob('*'))
            if p.is_file()}


def test_same_bytes_for_any_number_of_workers(root, tmp_path):
    one = digests(demo.write_treesatai(tmp_path / '1', 5, 2, seed=3, workers=1))
    assert one == digests(demo.write_treesatai(tmp_path / '2', 5, 2, seed=3, workers=2))
    assert one != digests(demo.write_treesatai(tmp_path / '3', 5, 2, seed=4, workers=1))


def test_marker(tmp_path, capsys):
    with pytest.raises(UserError, match='no DEMO.json'):
        (tmp_path / 'mine').mkdir()
        (tmp_path / 'mine' / 'thesis.tex').write_text('')
        demo.write_treesatai(tmp_path / 'mine', 1, 1)
    root = tmp_path / 'demo'
    demo.main(['--root', str(root), '--train', '2', '--test', '1'])
    assert json.loads((root / 'DEMO.json').read_text()) == dict(demo=True, dataset='treesatai', train=2, test=1, seed=0,
                                                                version=treesatai.VERSION)
    before = {p: p.stat().st_mtime_ns for p in root.rglob('*')}
    demo.main(['--root', str(root), '--train', '2', '--test', '1'])
    assert 'nothing to do' in capsys.readouterr().out and before == {p: p.stat().st_mtime_ns for p in root.rglob('*')}
    with pytest.raises(UserError, match='delete the folder'):
        demo.write_treesatai(root, 3, 1)
    want = digests(root)                                        # interrupted: the marker is not there yet
    (root / 'DEMO.json').rename(root / 'DEMO.json.unfinished')
    next((root / 'aerial').iterdir()).unlink()
    assert digests(demo.write_treesatai(root, 2, 1)) == want
    next((root / 'aerial').iterdir()).unlink()
    with pytest.raises(UserError, match='missing'):
        demo.write_treesatai(root, 2, 1)


def test_lists_and_names(root):
    names = {}
    for split, count in (('train', TRAIN), ('test', TEST)):
        raw = (root / 'split' / f'{split}_filenames.lst').read_bytes()
        assert raw.count(b'\r\n') == raw.count(b'\n') == count and raw.endswith(b'\r\n')
        names[split] = raw.decode().split()
        assert names[split] == sorted(names[split])
    everything = set(names['train'] + names['test'])
    assert len(everything) == TRAIN + TEST and len(list((root / 'split').iterdir())) == 2
    labels = json.loads((root / 'labels' / 'TreeSatBA_v9_60m_multi_labels.json').read_text())
    assert set(labels) == everything
    for folder in treesatai.FOLDERS:
        found = {p.name for p in (root / folder).iterdir()}
        assert len(found) == len(everything)
        if folder != 'sentinel-ts':
            assert found == everything
    for path in (root / 'sentinel-ts').iterdir():
        stem, year = path.stem.rsplit('_', 1)
        assert stem + '.tif' in everything and 2017 <= int(year) <= 2020
    assert any('.' in n[:-4] for n in everything)                          # Betula_spec.
    ids = [n.split('_')[-3] for n in everything]
    assert len(set(ids)) < len(ids)                                        # an id occurs twice
    assert {n.split('_')[-2] for n in everything} == {'WEFL', 'BI'}


def test_aerial(root):
    means = []
    for path in (root / 'aerial').iterdir():
        with tifffile.TiffFile(path) as tif:
            page, image = tif.pages[0], tif.pages[0].asarray()
            assert image.shape == (304, 304, 4) and image.dtype == np.uint8 and len(tif.pages) == 1
            assert (page.planarconfig, page.rowsperstrip, page.compression, page.photometric) == (1, 6, 1, 2)
            assert page.extrasamples == (2,) and page.tags[42113].value == '-9999' and page.tags[33550].value[:2] == (
                .2, .2)
        means.append(image.mean((0, 1)))
    assert np.allclose(np.mean(means, 0), [150, 90, 85, 80], atol=12)


def test_single_date(root):
    for path in sorted((root / 'aerial').iterdir())[:12]:
        for size, side in (('60m', 6), ('200m', 20)):
            s1 = tifffile.imread(root / 'sentinel' / 's1' / size / path.name)
            s2 = tifffile.imread(root / 'sentinel' / 's2' / size / path.name)
            assert s1.shape == (side, side, 3) and s1.dtype == np.float32
            assert s2.shape == (side, side, 12) and s2.dtype == np.uint16
            ok = s1[..., 0] != -9999
            assert np.allclose(s1[ok][:, 2], s1[ok][:, 0] / s1[ok][:, 1], rtol=1e-5) and -30 < s1[ok][:, :2].mean() < -5
            assert np.median(s2[..., 3]) > 1.5 * np.median(s2[..., 2])                  # B08 is fourth: a summer date
        centre = tifffile.imread(root / 'sentinel' / 's2' / '200m' / path.name)[7:13, 7:13]
        small = tifffile.imread(root / 'sentinel' / 's2' / '60m' / path.name)
        assert (small == centre).all() and (small[:, 0, 4] == small[:, 1, 4]).all()     # B05 is a 20 m band


def test_series_format(root, series):
    path = next((root / 'sentinel-ts').iterdir())
    with h5py.File(path) as f:
        assert not f.attrs
        for key in f:
            assert f[key].chunks is None and f[key].compression is None and not f[key].attrs
        assert h5py.check_string_dtype(f['sen-2-products'].dtype) == ('utf-8', None)
    for tile in series.values():
        assert set(tile) == KEYS
        T = len(tile['sen-2-data'])
        assert 60 <= T <= 146 and tile['sen-2-data'].shape == (T, 10, 6, 6) and tile['sen-2-masks'].shape[::2] == (T, 6)
        assert tile['sen-2-masks'].shape[1] in (2, 10) and not tile['sen-2-masks'][:, 2:].any()
        assert 0 <= tile['sen-2-masks'].min() and tile['sen-2-masks'].max() <= 100
        data = tile['sen-2-data']
        assert (data == np.rint(data)).all() and data.min() >= 1
        for band in range(10):                                             # 20 m bands: columns 0-1 and 3-4, rows too
            same = (data[:, band, :, [0, 3]] == data[:, band, :,
                                                     [1, 4]]).all() and (data[:, band, [0, 3]] == data[:, band,
                                                                                                       [1, 4]]).all()
            assert same == (band in (3, 4, 5, 7, 8, 9))
        for key, date in (('sen-1-asc', 4), ('sen-1-des', 4), ('sen-2', 2)):
            names = [n.decode() for n in tile[f'{key}-products']]
            days = [n.split('_')[date][:8] for n in names]
            assert len(names) == len(tile[f'{key}-data']) and days == sorted(days) and len(set(d[:4]
                                                                                               for d in days)) <= 1
            assert all(n.split('_')[date] == n.split('_')[-5] for n in names)
        assert all(tile[k].dtype == np.float32 for k in KEYS if 'products' not in k)
        if len(tile['sen-1-asc-data']):
            assert 40 <= len({n[17:25] for n in tile['sen-1-asc-products']}) <= 115
        assert tile['sen-1-asc-data'].shape[1:] == tile['sen-1-des-data'].shape[1:] == (2, 6, 6)


def twins(tile, direction):
    """Indices t whose date equals that of t - 1."""
    days = [n[17:25] for n in tile[f'sen-1-{direction}-products']]
    return [t for t in range(1, len(days)) if days[t] == days[t - 1]]


def test_planted_defects(series, root):
    tiles = list(series.values())
    s1 = [t[f'sen-1-{d}-data'] for t in tiles for d in ('asc', 'des')]
    nan = [np.isnan(x) for x in s1]
    assert any(len(t['sen-1-asc-data']) == 0 and t['sen-1-asc-products'].shape == (0,
               ) for t in tiles), 'empty ascending'
    assert any(n.all((1, 2, 3)).any() for n in nan), 'all-NaN date'
    assert any((n.any((1, 2, 3)) & ~n.all((1, 2, 3))).any() for n in nan), 'NaN pixel'
    assert all((n[:, 0] == n[:, 1]).all() for n in nan)
    assert any((x[:, 1] == 0).any() for x in s1) and not any((x[:, 0] == 0).any() for x in s1), 'zeros in VH only'
    assert any(((x > 0) & (x < 1e-10)).any() for x in s1), 'dust'
    assert {t['sen-2-masks'].shape[1] for t in tiles} == {2, 10}
    assert any(((t['sen-2-masks'] > 0) & (t['sen-2-masks'] < 1e-6)).any() for t in tiles), 'dust in the masks'
    assert any((t['sen-2-masks'][:, 0] > 50).any() for t in tiles), 'snow'
    assert {len({n.split(b'_')[4] for n in t['sen-2-products']}) for t in tiles} == {1, 2}, 'relative orbits'
    for direction in ('asc', 'des'):
        doubled = [(t, k) for t in tiles for k in twins(t, direction)]
        assert doubled, direction
        for t, k in doubled:
            data, names = t[f'sen-1-{direction}-data'], t[f'sen-1-{direction}-products']
            assert np.array_equal(data[k], data[k - 1], equal_nan=True)
            start = [datetime.strptime(n[17:32].decode(), '%Y%m%dT%H%M%S') for n in (names[k - 1], names[k])]
            assert 1 <= (start[1] - start[0]).total_seconds() <= 19
    lists = json.loads((root / 'labels' / 'TreeSatBA_v9_60m_multi_labels.json').read_text())
    assert any(len({g for g, _ in e}) < len(e) for e in lists.values()), 'a genus listed twice'
    assert any(a < .07 for e in lists.values() for _, a in e), 'small areas'
    sums = [sum(a for _, a in e) for e in lists.values()]
    assert min(sums) < .99 and max(sums) > 1.001, 'sums'
    assert any(n.split('_')[0] not in [g for g, _ in e] for n, e in lists.items()), 'name without its label'


def test_labels_are_the_ground_map(root):
    lists = json.loads((root / 'labels' / 'TreeSatBA_v9_60m_multi_labels.json').read_text())
    checked = 0
    for i in range(TRAIN + TEST):
        tile = forest.plan(SEED, i)
        species, stands = forest.ground_map(SEED, i)
        assert stands.shape == (304, 304) and set(np.unique(stands)) <= {*range(len(species)), forest.UNLABELLED}
        centre = stands[2:302, 2:302]
        want = sorted(((s.split('_')[0], (centre == k).mean()) for k, s in enumerate(species) if (centre == k).any()),
                      key=lambda e: -e[1])
        if tile.overlap == 0:
            got = lists[tile.name]
            assert [g for g, _ in got] == [g for g, _ in want]
            assert np.allclose([a for _, a in got], [a for _, a in want], atol=6e-6)
            checked += 1
    assert checked > 50


def test_physics(root, series):
    lists = json.loads((root / 'labels' / 'TreeSatBA_v9_60m_multi_labels.json').read_text())
    pure = {n[:-4]: e[0][0] for n, e in lists.items() if len(e) == 1 and .95 < e[0][1] <= 1}
    amplitude, vh = {}, {}
    bright_agrees, dates = 0, 0
    for name, tile in series.items():
        data, masks = tile['sen-2-data'], tile['sen-2-masks'][:, :2]
        month = np.array([int(n[15:17]) for n in tile['sen-2-products']])
        blue, cloud = data[:, 0].mean((1, 2)), masks.max((1, 2, 3)) > 50
        bright_agrees += ((blue > 1500) == cloud).sum()
        dates += len(blue)
        assert .25 < (blue < 1000).mean() < .75                            # about half of the dates can be used
        clear = (blue < 600) & ~cloud
        ndvi = ((data[:, 6] - data[:, 2]) / (data[:, 6] + data[:, 2])).mean((1, 2))
        summer, winter = clear & (month >= 6) & (month <= 8), clear & ((month <= 2) | (month == 12))
        genus = pure.get(name[:-5])
        if genus and summer.any() and winter.any():
            amplitude.setdefault(genus, []).append(np.median(ndvi[summer]) - np.median(ndvi[winter]))
        if genus:
            vh.setdefault(genus, []).append(10 * np.log10(np.nanmean(tile['sen-1-des-data'][:, 1])))
        for direction in ('asc', 'des'):
            x = tile[f'sen-1-{direction}-data']
            assert np.nanmin(x, initial=0) >= 0 and np.nanmax(x,
                                                              initial=0) < 10 and (x.size == 0
                                                                                   or .02 < np.nanmean(x[:, 0]) < .5)
    assert bright_agrees / dates > .85
    leafless = [a for g in ('Fagus', 'Quercus', 'Betula', 'Larix') for a in amplitude.get(g, [])]
    evergreen = [a for g in ('Picea', 'Abies', 'Pinus') for a in amplitude.get(g, [])]
    assert len(leafless) > 3 and len(evergreen) > 3
    assert min(leafless) > .1 and np.median(leafless) > np.median(evergreen) + .1
    assert np.mean(vh['Cleared']) < np.mean(vh['Picea']) < np.mean(vh['Pinus'])


def test_smaller_tiles(tmp_path):
    """Of 3 x 3 pixels: the same files but for the single dates, read like the others; a tile is not the middle of a
    larger one.
    """
    root = demo.write_treesatai(tmp_path / 'small', 9, 3, SEED, side=3)
    assert json.loads((root / 'DEMO.json').read_text())['side'] == 3 and not (root / 'sentinel').exists()
    lists = json.loads((root / 'labels' / 'TreeSatBA_v9_60m_multi_labels.json').read_text())
    for i in range(12):
        species, stands = forest.ground_map(SEED, i, 3)
        assert stands.shape == (154, 154)
        if forest.plan(SEED, i).overlap == 0:
            want = sorted(((s.split('_')[0], (stands[2:-2, 2:-2] == k).mean()) for k, s in enumerate(species)),
                          key=lambda e: -e[1])
            assert [area for _,
                    area in lists[forest.plan(SEED, i).name]] == pytest.approx([area for _, area in want if area > 0],
                                                                               abs=6e-6)
    tiles = open_dataset('treesatai-ts', root, 'test', ['vhr', 's2', 's1', 's1-des'])
    item = tiles[0]
    assert item['vhr'].shape == (4, 150, 150) and item['s2'].shape[1:] == (10, 3,
                                                                           3) and item['s1-des'].shape[1:] == (2, 3, 3)
    with h5py.File(next((root / 'sentinel-ts').glob(f'{tiles.names[0][:-4]}_*.h5'))) as f:
        assert f['sen-1-asc-data'].shape[1:] == (2, 3, 3) and f['sen-2-masks'].shape[2:] == (3, 3)
    assert tiles.orders(0) == {}                                # the scrambled files have 6 x 6 pixels
    with pytest.raises(UserError, match='scrambled files have 6 x 6; leave the option out'):
        open_dataset('treesatai-ts', root, 'test', ['s1'], s1='repaired')
    (root / 'DEMO.json').unlink()                               # now it says that it is a release
    with pytest.raises(UserError, match='expected at least 300 x 300 pixels'):
        open_dataset('treesatai-ts', root, 'test', ['vhr'])[0]
    with pytest.raises(UserError, match='x 2 x 6 x 6'):
        open_dataset('treesatai-ts', root, 'test', ['s1'])[0]


@pytest.mark.parametrize('options, error',
                         [(['--dataset', 'flair', '--side', '3'], '--side: it is about tiles of treesatai'),
                                            (['--as-2017', '--side', '3'], 'the scrambled files have 6 x 6 pixels')])
def test_a_side_that_does_nothing_is_refused(options, error, tmp_path):
    with pytest.raises(UserError, match=error):
        demo.main(['--root', str(tmp_path / 'x'), *options])
