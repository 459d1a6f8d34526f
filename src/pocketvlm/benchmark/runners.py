"""pocketvlm's own runtimes, and transformers, as contenders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pocketvlm.api.loading import load_runner
from pocketvlm.benchmark.lines import STEPS, Timed, Work, line_of, timed
from pocketvlm.benchmark.reference import import_transformers
from pocketvlm.bundle import Quantization, Scheme
from pocketvlm.config import ImageConfig, ModelConfig
from pocketvlm.engine.runners.base import Runner
from pocketvlm.engine.runners.onnx_runner import ONNXRunner
from pocketvlm.engine.sampling.sampler import best_tokens
from pocketvlm.kernels.linear import fp16_linear
from pocketvlm.model.cache.base import Cache
from pocketvlm.model.flops import vision_flops
from pocketvlm.model.hub import resolve
from pocketvlm.model.segments import Segment
from pocketvlm.model.vision.pixels import to_reference_layout
from pocketvlm.model.vlm import MiniCPMV
from pocketvlm.processing.patches.image import ImageViews, encode_image
from pocketvlm.processing.patches.slicing import plan_views
from pocketvlm.views import Size

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
        decoder = _meta(config).language_model
        table = decoder.embed_tokens.weight.numel()
        layers = sum(p.numel() for p in decoder.parameters()) - table
        if line.startswith("prompt"):
            return Work(_units(schemes.decoder), 2.0 * layers * amount)
        if bundle:
            return Work("read", float(bundle.files["decoder.data"]) * STEPS)
        size = 2 if self.runner.device_type == "cpu" and fp16_linear.is_available() else 4
        return Work("read", float(size) * (layers + table) * STEPS)

    def _timed(self, function: Callable[[], object]) -> Timed:
        @torch.inference_mode()
        def run() -> object:
            with self.runner.working():
                out = function()
            if self.runner.device_type == "cuda":
                torch.cuda.synchronize()
            return out

        return timed(run)

    @torch.inference_mode()
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


def _meta(config: ModelConfig) -> MiniCPMV:
    """The model's shapes, without weights."""
    with torch.device("meta"):
        return MiniCPMV(config)


class TransformersContender:
    """The reference implementation on the CPU.

    Args:
        dtype: "float32", or "bfloat16", which is the faster one on some processors.
    """

    def __init__(self, model: str, dtype: str = "float32") -> None:
        self.name, self.dtype = f"transformers {dtype}", getattr(torch, dtype)
        directory = resolve(model)
        self.image_config: ImageConfig = directory.image_config
        # Its classes for this model are newer than its stubs.
        kind: Any = import_transformers().MiniCPMV4_6ForConditionalGeneration
        self.model = kind.from_pretrained(directory.path, dtype=self.dtype).eval()

    def work(self, line: str) -> Work | None:
        del line
        return None  # the same as ours in fp32; what it reads beside is its own affair

    def prepare(self, line: str) -> Timed | None:
        run = self._function(line)

        @torch.inference_mode()
        def in_inference() -> object:
            return run()

        return timed(in_inference)

    def _function(self, line: str) -> Callable[[], object]:
        vocabulary = self.model.get_input_embeddings().num_embeddings
        if line in SIDES:
            encoded: ImageViews = encode_image(noise(SIDES[line]), self.image_config, downsample_mode="16x")
            pixels = to_reference_layout(encoded.patches, self.image_config).to(self.dtype)
            sizes = torch.tensor([[v.size.height, v.size.width] for v in encoded.views], dtype=torch.int32)
            return lambda: self.model.get_image_features(pixels, sizes)
        count = line_of(line).amount
        if line.startswith("views"):
            some = encode_image(noise(SIDES["view"]), self.image_config, downsample_mode="16x", max_slice_nums=1)
            pixels = torch.cat([to_reference_layout(some.patches, self.image_config).to(self.dtype)] * count, dim=-1)
            sizes = torch.tensor([[some.views[0].size.height, some.views[0].size.width]] * count, dtype=torch.int32)
            return lambda: self.model.get_image_features(pixels, sizes)
        if line.startswith("prompt"):
            ids = torch.from_numpy(random_ids(count, vocabulary))[None]
            return lambda: self.model(input_ids=ids, use_cache=True, logits_to_keep=1)
        batch = count // STEPS
        prompt = torch.from_numpy(random_ids(BEFORE, vocabulary)).expand(batch, -1).contiguous()
        with torch.inference_mode():
            past = self.model(input_ids=prompt, use_cache=True, logits_to_keep=1).past_key_values

        def steps() -> None:
            tokens = prompt[:, :1]
            for _ in range(STEPS):
                tokens = self.model(input_ids=tokens, past_key_values=past, use_cache=True).logits.argmax(-1)

        return steps
