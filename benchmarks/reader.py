"""Time to read one TreeSatAI-TS tile (image, S2, ascending S1) from the page cache, against the plain calls.

    python -m benchmarks.reader --root DIR [--tile NAME]

The plain form opens the files with h5py and tifffile, reads the same datasets and converts each date with datetime;
it does not clean anything. Both run on one core in the same process, taking turns. Prints the median of 300 readings.
"""
import argparse
import time
from datetime import datetime
from pathlib import Path
from statistics import median

import h5py
import tifffile

from datasets.tiles import clean
from datasets.treesatai import decibel, find_files, read_h5, read_vhr


def plain(tif, h5):
    """What one writes first."""
    tifffile.imread(tif)
    with h5py.File(h5) as file:
        for sensor, start in (("sen-2", 11), ("sen-1-asc", 17)):
            file[f"{sensor}-data"][()]
            for name in file[f"{sensor}-products"][()]:
                datetime.strptime(name.decode()[start:start + 8], "%Y%m%d").timetuple().tm_yday


def ours(tif, h5):
    """Cropped, cleaned, in dB, with days of the year."""
    read_vhr(tif)
    series = {key: clean(*value)[0] for key, value in read_h5(h5, ("s2", "s1")).items()}
    decibel(series["s1"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder of TreeSatAI-TS, real or demo")
    parser.add_argument("--tile", help="name without .tif (default: the first that has both files)")
    args = parser.parse_args()
    tiles, _ = find_files(args.root)
    stem = args.tile or min(set(tiles["vhr"]) & set(tiles["ts"]))
    tif, h5 = tiles["vhr"][stem][0], tiles["ts"][stem][0]
    times = {plain: [], ours: []}
    for _ in range(300):
        for function, taken in times.items():
            start = time.perf_counter()
            function(tif, h5)
            taken.append(time.perf_counter() - start)
    first, second = (1000 * median(taken) for taken in times.values())
    size = sum(Path(path).stat().st_size for path in (tif, h5)) / 1e6
    print(f"{stem} ({size:.2f} MB): plain {first:.2f} ms, ours {second:.2f} ms, {first / second:.1f} times faster")


if __name__ == "__main__":
    main()
