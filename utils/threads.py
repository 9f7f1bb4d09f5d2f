"""How threads of the CPU wait for each other: asleep. To be imported before torch, which reads it once.

By default they spin, and beside another busy process a loss then takes three times as long; asleep twice, and on a
quiet machine next to nothing more (benchmarks/README.md). Results are the same.
"""
import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
