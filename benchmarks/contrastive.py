"""Time and memory of the contrastive loss, forward and backward, against its dense form in the same run.

    python -m benchmarks.contrastive                       # 128 tiles of TreeSatAI-TS: 13,824 tokens, then 24,576 to 98,304
    python -m benchmarks.contrastive --tiles 32 --sizes    # fewer tiles; no larger sizes

Each form runs in a process of its own, so that its peak memory above the inputs can be told. Operations: 4 N^2 D, that is one
product of all pairs in forward and three in backward, each of half the pairs twice as deep; the share is that of the rate
of a matrix product of 4096 x 256 x 4096 in float32, measured between the runs.
"""
import argparse
import json
import multiprocessing
import resource
import time

import torch

from losses.contrastive import contrastive_loss

PATCHES, MODALITIES, DIM = 36, 3, 256


def peak():
    """Largest memory of this process so far, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def run(tiles, dense, threads, results):
    """One loss, forward and backward; puts (seconds, GB above the inputs, loss)."""
    torch.set_num_threads(threads)
    tokens = torch.randn(tiles, MODALITIES, PATCHES, DIM, generator=torch.Generator().manual_seed(0)).requires_grad_()
    present = torch.ones(tiles, MODALITIES, dtype=torch.bool)
    contrastive_loss(tokens[:2], present[:2], dense=dense).backward()             # threads and kernels are ready
    before, start = peak(), time.perf_counter()
    loss = contrastive_loss(tokens, present, dense=dense)
    loss.backward()
    results.put((time.perf_counter() - start, peak() - before, loss.item()))


def measure(*arguments):
    results = multiprocessing.get_context("spawn").SimpleQueue()
    process = multiprocessing.get_context("spawn").Process(target=run, args=(*arguments, results))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"the run of {arguments[0]} tiles ended with code {process.exitcode}: out of memory?")
    return results.get()


def ceiling(threads):
    """Operations a second of a plain matrix product, the best of 20."""
    torch.set_num_threads(threads)
    a, b = torch.randn(4096, DIM), torch.randn(DIM, 4096)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return 2 * 4096 * 4096 * DIM / min(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=128, help="of 3 x 36 tokens, for the comparison (default: 128)")
    parser.add_argument("--sizes", type=int, nargs="*", default=[228, 455, 910], metavar="TILES",
                        help="further sizes, without the dense form (default: 228 455 910, that is up to 98,280 tokens)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", metavar="FILE", help="also write the figures there")
    args = parser.parse_args()
    rate, rows = ceiling(args.threads), []
    print(f"{args.threads} threads; matrix product {rate / 1e9:.0f} GFLOP/s\n\n{'tokens':>8}  {'form':8}{'seconds':>9}{'GB':>8}{'share':>7}")
    for tiles, dense in [(args.tiles, True), (args.tiles, False), *((tiles, False) for tiles in args.sizes)]:
        seconds, memory, loss = measure(tiles, dense, args.threads)
        tokens, rate = tiles * MODALITIES * PATCHES, max(rate, ceiling(args.threads))
        rows.append({"tokens": tokens, "form": "dense" if dense else "blocks", "seconds": seconds, "gb": memory, "loss": loss,
                     "share": 4 * tokens ** 2 * DIM / seconds / rate})
        print(f"{tokens:8,}  {rows[-1]['form']:8}{seconds:9.2f}{memory:8.3f}{rows[-1]['share']:7.0%}", flush=True)
    dense, blocks = rows[:2]
    print(f"\nat {blocks['tokens']:,} tokens: {dense['seconds'] / blocks['seconds']:.1f} times faster, 1/{dense['gb'] / blocks['gb']:.0f} of the "
          f"memory, losses {dense['loss']:.6f} and {blocks['loss']:.6f}")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"threads": args.threads, "flops": rate, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
