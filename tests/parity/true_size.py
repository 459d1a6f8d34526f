"""One side of the true-size comparison, run as a process of its own so that its memory is its own.

python true_size.py write CHECKPOINT
python true_size.py {reference,pocketvlm} CHECKPOINT RESULT
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pocketvlm.config import ImageConfig, ModelConfig
from pocketvlm.model.vision.pixels import to_reference_layout
from pocketvlm.processing.patches.image import encode_image
from pocketvlm.views import View

SIDES = (448, 1344)
TOKENS = 8
Answer = dict[str, Tensor]
Answerer = Callable[[Tensor, tuple[View, ...], Tensor], Answer]


def question(side: int) -> tuple[Tensor, tuple[View, ...], Tensor]:
    """Patches and views of a square picture, and ids with the places held for it between random text."""
    generator = torch.Generator().manual_seed(side)
    coarse = torch.rand(1, 3, side // 28, side // 28, generator=generator)
    pixels = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")[0].permute(1, 2, 0)
    encoded = encode_image((pixels * 255).to(torch.uint8).numpy(), ImageConfig(), "16x")
    before, after = torch.randint(0, 248000, (2, 20), generator=generator)
    tokens = sum(v.visual_tokens for v in encoded.views)
    places = torch.full((tokens,), ModelConfig().image_token_id)
    return torch.from_numpy(encoded.patches), tuple(encoded.views), torch.cat([before, places, after])


def load_reference(checkpoint: Path) -> Answerer:
    """Features, hidden states, greedy ids and the logits they were picked from."""
    import reference

    model = reference.transformers.MiniCPMV4_6ForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)

    def answer(patches: Tensor, views: tuple[View, ...], ids: Tensor) -> Answer:
        sizes = torch.tensor([[v.size.height, v.size.width] for v in views])
        pixels = to_reference_layout(patches, ImageConfig())
        encoded = model.get_image_features(pixels, sizes, downsample_mode="16x")
        output = model.model(input_ids=ids[None], mm_encoder_outputs={"image": encoded}, use_cache=True)
        hidden, history = output.last_hidden_state[0], []
        for step in range(TOKENS):
            history.append(model.lm_head(output.last_hidden_state[0, -1:]))
            if step < TOKENS - 1:
                output = model.model(
                    input_ids=history[-1].argmax(-1)[None], past_key_values=output.past_key_values, use_cache=True
                )
        return _answer(torch.cat(list(encoded.pooler_output)), hidden, history)

    return answer


def load_pocketvlm(checkpoint: Path) -> Answerer:
    """The same from our model, loaded as `pocketvlm.load` does."""
    from pocketvlm.model.cache.contiguous import ContiguousCache
    from pocketvlm.model.checkpoint import load_model
    from pocketvlm.model.packing import PackedBatch
    from pocketvlm.model.segments import Segment

    model = load_model(checkpoint, cpu_kernels=True)

    def answer(patches: Tensor, views: tuple[View, ...], ids: Tensor) -> Answer:
        features = model.encode_views(patches, views)
        cache = ContiguousCache(model.config.text, 1, len(ids) + TOKENS)
        last = hidden = model(ids, PackedBatch.of([Segment(len(ids))]), features, cache)
        history = []
        for step in range(TOKENS):
            history.append(model.logits(last[-1:]))
            if step < TOKENS - 1:
                last = model(history[-1].argmax(-1), PackedBatch.of([Segment(1, len(ids) + step)]), None, cache)
        return _answer(features, hidden, history)

    return answer


def _answer(features: Tensor, hidden: Tensor, history: list[Tensor]) -> Answer:
    logits = torch.cat(history)
    return {"features": features, "hidden": hidden, "logits": logits, "ids": logits.argmax(-1)}


@torch.inference_mode()
def main(side: str, checkpoint: Path, result: Path | None = None) -> None:
    if result is None:
        from helpers.checkpoints import write_true_size_checkpoint

        write_true_size_checkpoint(checkpoint)
        return
    start = time.perf_counter()
    answer = {"reference": load_reference, "pocketvlm": load_pocketvlm}[side](checkpoint)
    figures = {"load_seconds": time.perf_counter() - start, "load_peak_gib": _peak_gib()}
    answers = {}
    for size in SIDES:
        start = time.perf_counter()
        answers[size] = answer(*question(size))
        figures[f"seconds_{size}"] = time.perf_counter() - start
    figures["peak_gib"] = _peak_gib()
    torch.save({"figures": figures, "answers": answers}, result)


def _peak_gib() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:]))
