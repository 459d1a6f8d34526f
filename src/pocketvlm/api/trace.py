"""One prompt through the model with every intermediate kept, under the names that ports are compared by.

Shapes:  S prompt tokens · P patches · N visual tokens · V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pocketvlm.api.vlm import VLM
from pocketvlm.engine.runners.torch_runner import TorchRunner
from pocketvlm.engine.sampling.params import SamplingParams
from pocketvlm.errors import ConfigError, PromptError
from pocketvlm.files import whole_file
from pocketvlm.model.cache.contiguous import ContiguousCache
from pocketvlm.model.cache.torch_memory import TorchMemory
from pocketvlm.model.packing import PackedBatch
from pocketvlm.model.segments import Segment
from pocketvlm.model.vision.pixels import to_reference_layout
from pocketvlm.model.vlm import MiniCPMV
from pocketvlm.views import View


@dataclass(frozen=True)
class Trace:
    """Intermediates of one forward.

    Attributes:
        arrays: input_ids int64 [1, S], features fp32 [N, D], logits fp32 [V] of the last prompt position, greedy
            int64; with pictures also pixel_values fp32 [1, 3, patch, P * patch] and target_sizes int32 [views, 2]
            (height, width in patches).
        summary: what the command prints.
    """

    arrays: dict[str, NDArray[Any]]
    summary: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write the arrays as an .npz file, complete or not at all.

        Raises:
            ConfigError: no file can be made there, or `path` is something else than an ordinary file.
            OutputError: it could not be written to its end.
        """
        with whole_file(path) as file:
            np.savez(file, **self.arrays)  # type: ignore[arg-type]  # the names are ours, none is an option


@torch.inference_mode()
def trace_forward(
    model: MiniCPMV,
    input_ids: NDArray[np.int64],
    patches: NDArray[np.uint8],
    views: Sequence[View],
    stop_ids: frozenset[int],
    max_tokens: int,
    pixel_values: Tensor | None,
    decode: Callable[[list[int]], str],
) -> Trace:
    """Run the prompt, keep the intermediates, then continue greedily (a stop id is kept and ends it)."""
    features = model.encode_views(patches, views) if views else torch.zeros(0)
    tokens = len(input_ids) + max_tokens
    cache = ContiguousCache(model.config.text, 1, tokens, memory=TorchMemory(model.dtype, model.device))
    batch = PackedBatch.of([Segment(len(input_ids))], model.device)
    hidden = model(input_ids, batch, features, cache)
    logits = model.logits(hidden[-1:])[0]
    greedy = [int(logits.argmax())]
    while len(greedy) < max_tokens and greedy[-1] not in stop_ids:
        step = PackedBatch.of([Segment(1, cache.lengths[0])], model.device)
        hidden = model(torch.tensor(greedy[-1:], device=model.device), step, None, cache)
        greedy.append(int(model.logits(hidden)[0].argmax()))
    sizes = [[v.size.height, v.size.width] for v in views]
    arrays: dict[str, NDArray[Any]] = {
        "input_ids": input_ids[None],
        "greedy": np.array(greedy),
        "logits": logits.float().cpu().numpy(),
        "features": features.float().cpu().numpy(),
    }
    if pixel_values is not None:
        arrays |= {"pixel_values": pixel_values.numpy(), "target_sizes": np.array(sizes, dtype=np.int32)}
    summary = {
        "prompt_tokens": len(input_ids),
        "visual_tokens": sum(v.visual_tokens for v in views),
        "target_sizes": sizes,
        "top5": logits.topk(5).indices.tolist(),
        "greedy": greedy,
        "text": decode(greedy),
    }
    return Trace(arrays, summary)


def trace(vlm: VLM, messages: Sequence[Mapping[str, Any]], *, max_tokens: int = 16, **options: Any) -> Trace:
    """One prompt through the model, intermediates kept, then `max_tokens` greedy tokens (a stop id ends them).

    Args:
        options: those of pictures (`downsample_mode`, `max_slice_nums`, …).
    """
    vlm.shared.process.check()
    SamplingParams(max_tokens=max_tokens)
    inputs = vlm.processor(messages, **options)
    if not isinstance(vlm.runner, TorchRunner):
        raise ConfigError("a trace goes through the PyTorch model", hint="Load it with runtime='torch'.")
    context = vlm.config.text.max_position_embeddings
    if len(inputs.input_ids) + max_tokens > context:
        raise PromptError(
            f"{len(inputs.input_ids)} tokens and {max_tokens} more are over the model's context of {context}",
            hint="Use fewer or smaller pictures, a shorter text or a lower max_tokens.",
        )
    layout = to_reference_layout(inputs.patches, vlm.processor.image_config) if inputs.views else None
    tokenizer = vlm.processor.tokenizer
    decode = partial(tokenizer.decode, skip_special=False)
    return trace_forward(
        vlm.runner.model, inputs.input_ids, inputs.patches, inputs.views, tokenizer.stop_ids, max_tokens, layout, decode
    )
