#!/usr/bin/env python3
"""pocketvlm against transformers on this machine: same weights, same dtype, same run, taking turns.

    python benchmarks/against_transformers.py [--checkpoint DIR] [--rounds 3] [--cases view prefill …]
    python benchmarks/against_transformers.py --device cuda --dtype bfloat16

Without --checkpoint a true-size checkpoint with random weights (2.6 GB) is written to a temporary folder first. Prints
a table and one JSON line. Needs the dev extra, and about 12 GB of memory (both models at once). On a CPU transformers
has its plain PyTorch kernels only; on CUDA it uses those of flash-linear-attention where they are installed. The aims
are those of the CPU.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from parity.reference import transformers

from pocketvlm.config import ImageConfig
from pocketvlm.model.cache.base import Cache
from pocketvlm.model.cache.contiguous import ContiguousCache
from pocketvlm.model.cache.torch_memory import TorchMemory
from pocketvlm.model.checkpoint import load_model
from pocketvlm.model.packing import PackedBatch
from pocketvlm.model.segments import Segment
from pocketvlm.model.vision.pixels import to_reference_layout
from pocketvlm.processing.media.load_image import load_image
from pocketvlm.processing.patches.image import encode_image

CASES = ("preprocess", "view", "image", "prefill", "decode1", "decode8")
LABELS = {
    "preprocess": "preprocess a 3136² JPEG",
    "view": "encode one 448² view (16x)",
    "image": "encode a 1344² image (16x, 10 views)",
    "prefill": "prefill 700 tokens",
    "decode1": "decode, batch 1",
    "decode8": "decode, batch 8",
}
AIMS = {"preprocess": 2.0, "view": 1.15, "image": 1.15, "prefill": 1.3, "decode1": 1.7, "decode8": 3.0}
STEPS = 8  # decode steps of one round


def picture(side: int) -> Image.Image:
    """A smooth picture with some grain, about as compressible as a photograph."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (side // 32, side // 32, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)).astype(np.int16)
    return Image.fromarray((pixels + rng.integers(-6, 7, pixels.shape)).clip(0, 255).astype(np.uint8))


class Pair:
    """Both implementations over one checkpoint; each method returns (ours, theirs) as functions to time."""

    def __init__(self, checkpoint: Path, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.ours = load_model(checkpoint, device=device, dtype=dtype, cpu_kernels=True)
        self.theirs = (
            transformers.MiniCPMV4_6ForConditionalGeneration.from_pretrained(checkpoint, dtype=dtype).to(device).eval()
        )
        self.config = ImageConfig()
        self.ids = torch.randint(0, 248000, (8, 700), generator=torch.Generator().manual_seed(0)).to(device)

    def cache(self, slots: int, capacity: int) -> Cache:
        return ContiguousCache(self.ours.config.text, slots, capacity, memory=TorchMemory(self.dtype, self.device))

    def packed(self, segments: list[Segment]) -> PackedBatch:
        return PackedBatch.of(segments, self.device)

    def preprocess(self) -> tuple[Callable[[], object], Callable[[], object]]:
        buffer = io.BytesIO()
        picture(3136).save(buffer, "JPEG", quality=90)
        data = buffer.getvalue()
        processor = transformers.MiniCPMV4_6ImageProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3)
        return (
            lambda: encode_image(load_image(data), self.config),
            lambda: processor(Image.open(io.BytesIO(data)).convert("RGB"), return_tensors="pt"),
        )

    def encode(self, side: int) -> tuple[Callable[[], object], Callable[[], object]]:
        encoded = encode_image(np.asarray(picture(side)), self.config)
        pixels = to_reference_layout(encoded.patches, self.config).to(self.device, self.dtype)
        sizes = torch.tensor([[v.size.height, v.size.width] for v in encoded.views], dtype=torch.int32)
        return (
            lambda: self.ours.encode_views(encoded.patches, encoded.views),
            lambda: self.theirs.get_image_features(pixels, sizes),
        )

    def prefill(self) -> tuple[Callable[[], object], Callable[[], object]]:
        ids = self.ids[0]

        def ours() -> object:
            batch, cache = self.packed([Segment(len(ids))]), self.cache(1, len(ids))
            return self.ours.logits(self.ours(ids, batch, None, cache)[-1:])

        return ours, lambda: self.theirs(input_ids=ids[None], use_cache=True, logits_to_keep=1)

    def decode(self, size: int) -> tuple[Callable[[], object], Callable[[], object]]:
        prompt = self.ids[:size, :64]

        def start() -> tuple[Cache, object]:
            cache = self.cache(size, 64 + 4096)
            self.ours(prompt.flatten(), self.packed([Segment(64, 0, b) for b in range(size)]), None, cache)
            return cache, self.theirs(input_ids=prompt, use_cache=True).past_key_values

        cache, past = start()
        if size > 1:
            self.ours.prepare_batches()  # as the generator does

        def ours() -> None:
            tokens = prompt[:, 0]
            for _ in range(STEPS):
                batch = self.packed([Segment(1, cache.lengths[b], b) for b in range(size)])
                tokens = self.ours.logits(self.ours(tokens, batch, None, cache)).argmax(-1)

        def theirs() -> None:
            tokens = prompt[:, :1]
            for _ in range(STEPS):
                tokens = self.theirs(input_ids=tokens, past_key_values=past, use_cache=True).logits.argmax(-1)

        return ours, theirs

    def case(self, name: str) -> tuple[Callable[[], object], Callable[[], object]]:
        if name in ("view", "image"):
            return self.encode(448 if name == "view" else 1344)
        return self.decode(int(name[-1])) if name.startswith("decode") else getattr(self, name)()


def measure(functions: tuple[Callable[[], object], ...], rounds: int) -> list[list[float]]:
    """Seconds of each function, taking turns, after one warm-up each."""
    seconds: list[list[float]] = [[] for _ in functions]
    for turn in range(rounds + 1):
        for function, times in zip(functions, seconds, strict=True):
            began = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                times.append(time.perf_counter() - began)
    return seconds


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--checkpoint", type=Path)
    cli.add_argument("--rounds", type=int, default=5)
    cli.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    cli.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    cli.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    args = cli.parse_args()
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        checkpoint = args.checkpoint
        if checkpoint is None:
            from helpers.checkpoints import write_true_size_checkpoint

            checkpoint = Path(folder)
            write_true_size_checkpoint(checkpoint)
        device = torch.device(args.device)
        pair = Pair(checkpoint, device, getattr(torch, args.dtype))
        result = {}
        machine = platform.processor() or platform.machine()
        if device.type == "cuda":
            machine += f", {torch.cuda.get_device_name(device)}"
        print(f"{machine}, {os.cpu_count()} processors, {torch.get_num_threads()} threads,")
        versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
        print(f"{versions}, {args.dtype}, warm, medians of {args.rounds}\n")
        print(f"| {'':38} | pocketvlm | transformers | ratio | aim |\n|---|---|---|---|---|")
        for name in args.cases:
            rounds = min(args.rounds, 3) if name == "image" else args.rounds
            ours, theirs = measure(pair.case(name), rounds)
            unit = STEPS if name.startswith("decode") else 1
            a, b = statistics.median(ours) / unit, statistics.median(theirs) / unit
            ratio = statistics.median(t / o for o, t in zip(ours, theirs, strict=True))
            print(f"| {LABELS[name]:38} | {a:7.3f} s | {b:10.3f} s | {ratio:5.2f} | {AIMS[name]} |", flush=True)
            result[name] = {"pocketvlm_s": round(a, 4), "transformers_s": round(b, 4), "ratio": round(ratio, 3)}
        print("\n" + json.dumps({"rounds": args.rounds, "cases": result}))


if __name__ == "__main__":
    main()
