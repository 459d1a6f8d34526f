#!/usr/bin/env python3
"""Samples a second of CPU time that each task draws, on one core.

    python benchmarks/synthetic_speed.py [--level 2] [--count 60]

Processor time, so that other work on the machine counts little; caches of glyphs are warm.
"""

from __future__ import annotations

import argparse
import statistics
import time

from pocketvlm.synthetic import REGISTRY, make_sample

BATCHES = 5


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--level", type=int, default=2, help="the last one where a task has fewer (default 2: 448 x 448)")
    cli.add_argument("--count", type=int, default=60, help=f"samples a batch; the median of {BATCHES} batches counts")
    args = cli.parse_args()
    print("| task | level | picture | samples a second |\n| --- | --- | --- | --- |")
    for name, task in REGISTRY.items():
        level = min(args.level, len(task.levels) - 1)
        for i in range(10 * args.count):  # every font has its glyphs at hand then
            sample = make_sample(name, (1, i), "train", level)
        taken = []
        for batch in range(BATCHES):
            began = time.process_time()
            for i in range(args.count):
                sample = make_sample(name, (2, batch, i), "train", level)
            taken.append((time.process_time() - began) / args.count)
        height, width, _ = sample.image.shape
        print(f"| {name} | {level} | {height} x {width} | {1 / statistics.median(taken):.0f} |", flush=True)


if __name__ == "__main__":
    main()
