"""The reference implementation as a contender."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pocketvlm.benchmark.lines import STEPS, Timed, Work, line_of, timed
from pocketvlm.benchmark.reference import import_transformers
from pocketvlm.benchmark.runners import BEFORE, SIDES, noise, random_ids
from pocketvlm.config import ImageConfig
from pocketvlm.model.hub import resolve
from pocketvlm.model.vision.pixels import to_reference_layout
from pocketvlm.processing.patches.image import ImageViews, encode_image


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
