"""pocketvlm's own runtimes as contenders."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pocketvlm.api.loading import load_runner
from pocketvlm.benchmark.lines import STEPS, Timed, Work, line_of, timed
from pocketvlm.bundle import Quantization, Scheme
from pocketvlm.config import ImageConfig
from pocketvlm.engine.runners.base import Runner
from pocketvlm.engine.runners.onnx_runner import ONNXRunner
from pocketvlm.engine.sampling.sampler import best_tokens
from pocketvlm.model.cache.base import Cache
from pocketvlm.model.flops import vision_flops
from pocketvlm.model.hub import resolve
from pocketvlm.model.parameter_shapes import parameter_shapes
from pocketvlm.model.segments import Segment
from pocketvlm.processing.patches.image import encode_image
from pocketvlm.processing.patches.slicing import plan_views
from pocketvlm.views import Size

EMBEDDING = "language_model.embed_tokens.weight"
BEFORE = 64  # tokens of each sequence before a decode line begins
SIDES = {"view": 448, "image": 1344}


def noise(side: int) -> NDArray[np.uint8]:
    """uint8 [side, side, 3]: what is in a picture does not change how long it takes."""
    return np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)


def random_ids(count: int, vocabulary: int) -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(0, min(vocabulary, 256), count)


class RunnerContender:
    """A runtime of pocketvlm.

    Args:
        model: as `load` takes it; `runtime` and `quantization` likewise.
    """

    def __init__(self, model: str, runtime: str, quantization: str) -> None:
        self.name = f"pocketvlm {runtime}" + (f" {quantization}" if runtime == "onnx" else "")
        directory = resolve(model)
        self.image_config: ImageConfig = directory.image_config
        chosen = "auto" if runtime == "torch" else quantization
        self.runner: Runner = load_runner(directory, runtime=runtime, quantization=chosen)

    def prepare(self, line: str) -> Timed | None:
        if line in SIDES:
            encoded = encode_image(noise(SIDES[line]), self.image_config, downsample_mode="16x")
            return self._timed(lambda: self.runner.encode_views(encoded.patches, encoded.views))
        count = line_of(line).amount
        if line.startswith("views"):
            some = encode_image(noise(SIDES["view"]), self.image_config, downsample_mode="16x", max_slice_nums=1)
            patches = np.tile(some.patches, (count, 1, 1, 1))
            return self._timed(lambda: self.runner.encode_views(patches, some.views * count))
        if line.startswith("prompt"):
            return self._timed(lambda: self._prompt(count, self.runner.make_cache(1, count), 0))
        batch = count // STEPS
        cache = self.runner.make_cache(batch, BEFORE + STEPS)
        with self.runner.working():
            for slot in range(batch):
                self._prompt(BEFORE, cache, slot)
        if batch > 1:
            self.runner.prepare_batches()
        ids = random_ids(batch, self.runner.config.text.vocab_size)

        def steps() -> None:
            tokens, cache.lengths = ids, [BEFORE] * batch  # every run steps over the same places
            for _ in range(STEPS):
                packed = self.runner.batch([Segment(1, cache.lengths[b], b) for b in range(batch)])
                scores = self.runner.forward(self.runner.embed(tokens, None), packed, cache, packed.lasts)
                tokens = np.array(best_tokens(scores), np.int64)

        return self._timed(steps)

    def work(self, line: str) -> Work | None:
        config, amount = self.runner.config, line_of(line).amount
        bundle = self.runner.manifest if isinstance(self.runner, ONNXRunner) else None
        schemes = bundle.quantization if bundle else Quantization()
        if line in SIDES or line.startswith("views"):
            side = SIDES.get(line, SIDES["view"])
            max_slices = None if line in SIDES else 1
            views = plan_views(Size(height=side, width=side), self.image_config, "16x", max_slices).views
            flops = vision_flops(config, views) * (1 if line in SIDES else amount)
            return Work(_units(schemes.vision), flops)
        counts = {name: math.prod(shape) for name, shape in parameter_shapes(config).items()}
        table = counts[EMBEDDING]
        layers = sum(n for name, n in counts.items() if name.startswith("language_model.")) - table
        if line.startswith("prompt"):
            return Work(_units(schemes.decoder), 2.0 * layers * amount)
        if bundle:
            return Work("read", float(bundle.files["decoder.data"]) * STEPS)
        return Work("read", float(_weight_bytes(self.runner)) * (layers + table) * STEPS)

    def _timed(self, function: Callable[[], object]) -> Timed:
        def run() -> object:
            with self.runner.working():
                out = function()
                if self.runner.device_type == "cuda":
                    _synchronize()
                return out

        return timed(run)

    def _prompt(self, length: int, cache: Cache, slot: int) -> object:
        x = self.runner.embed(random_ids(length, self.runner.config.text.vocab_size), None)
        chunk, scores = self.runner.prefill_chunk, None
        for start in range(0, length, chunk):
            end = min(start + chunk, length)
            packed = self.runner.batch([Segment(end - start, start, slot)])
            scores = self.runner.forward(x[start:end], packed, cache, packed.lasts if end == length else [])
        return scores


def _units(scheme: Scheme) -> str:
    """The arithmetic of a scheme: 4-bit weights are multiplied in int8."""
    return "fp32" if scheme == "fp32" else "int8"


def _weight_bytes(runner: Runner) -> int:
    """Of one weight as PyTorch's runner reads it in a step."""
    from pocketvlm.engine.runners.torch_runner import TorchRunner
    from pocketvlm.kernels.linear import fp16_linear

    if runner.device_type != "cpu" and isinstance(runner, TorchRunner):
        return runner.model.dtype.itemsize
    return 2 if fp16_linear.is_available() else 4


def _synchronize() -> None:
    import torch

    torch.cuda.synchronize()
