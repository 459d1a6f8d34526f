#!/usr/bin/env python3
"""Preparing a JPEG for the model: this checkout, an older one and transformers' processor, taking turns.

    python benchmarks/preprocessing.py [--before DIR] [--rounds 9] [--sides 448 1344 3136]

Ours is everything up to a request that the engine takes: decoding, cutting, and the keys of the views. The reference's
is decoding and its image processor. One thread each, in a process each; milliseconds of CPU time, which a shared
machine changes less than the clock's, medians. Needs the dev extra.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def jpeg(side: int) -> bytes:
    """A smooth picture with some grain, about as compressible as a photograph."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (side // 32, side // 32, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)).astype(np.int16)
    buffer = io.BytesIO()
    noisy = (pixels + rng.integers(-6, 7, pixels.shape)).clip(0, 255).astype(np.uint8)
    Image.fromarray(noisy).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def ours() -> Callable[[bytes], object]:
    from pocketvlm.config import ImageConfig
    from pocketvlm.engine.request import view_key

    try:
        from pocketvlm.processing.media.load_image import load_image
        from pocketvlm.processing.patches.image import encode_image
    except ModuleNotFoundError:  # a checkout from before the rooms were moved
        from pocketvlm.processing.image import encode_image  # type: ignore[import-not-found, no-redef]

        from pocketvlm.processing.media import load_image  # type: ignore[attr-defined, no-redef]

    config = ImageConfig()

    def prepare(data: bytes) -> object:
        picture = encode_image(load_image(data), config)
        keys, start = [], 0
        for view in picture.views:  # sliced, as arrays and the tensors of older checkouts both can be
            keys.append(view_key(picture.patches[start : start + view.patches], view))
            start += view.patches
        return keys

    return prepare


def reference() -> Callable[[bytes], object]:
    from PIL import Image

    sys.path.insert(0, str(ROOT / "tests"))
    from parity.reference import transformers

    processor = transformers.MiniCPMV4_6ImageProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return lambda data: processor(Image.open(io.BytesIO(data)).convert("RGB"), return_tensors="pt")


def work(prepare: Callable[[bytes], object]) -> None:
    """For each side on a line of stdin, the CPU time of one preparation on a line of stdout."""
    pictures: dict[int, bytes] = {}
    for line in sys.stdin:
        side = int(line)
        if side not in pictures:
            pictures[side] = jpeg(side)
            prepare(pictures[side])
        began = time.process_time()
        prepare(pictures[side])
        print(1000 * (time.process_time() - began), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="another checkout of this repository")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--sides", type=int, nargs="+", default=[448, 1344, 3136])
    parser.add_argument("--worker", choices=("ours", "reference"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work({"ours": ours, "reference": reference}[args.worker]())
        return
    kinds = {"ours": ("ours", ROOT), "reference": ("reference", ROOT)}
    if args.before:
        kinds = {"before": ("ours", args.before)} | kinds
    workers = {}
    for name, (kind, root) in kinds.items():
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root / "src")}
        command = [sys.executable, __file__, "--worker", kind]
        workers[name] = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    print(f"{'side':>6}", *(f"{name:>10}" for name in workers))
    for side in args.sides:
        times: dict[str, list[float]] = {name: [] for name in workers}
        for _ in range(args.rounds):
            for name, worker in workers.items():
                assert worker.stdin is not None
                assert worker.stdout is not None
                print(side, file=worker.stdin, flush=True)
                times[name].append(float(worker.stdout.readline()))
        print(f"{side:>6}", *(f"{statistics.median(values):>7.1f} ms" for values in times.values()))
    for worker in workers.values():
        worker.communicate()


if __name__ == "__main__":
    main()
