"""The model equals the reference part by part, on tiny random checkpoints.

Tower, merger, decoder, greedy tokens, beams.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
from helpers.engine_runs import make_request, run
from helpers.invariants import TIE, assert_close, assert_same_decoding, is_tie
from helpers.tiny_models import random_patches, random_text, view
from torch import Tensor, nn

from pocketvlm.config import DownsampleMode, ImageConfig
from pocketvlm.engine.request import Request
from pocketvlm.engine.runners.torch_runner import TorchRunner
from pocketvlm.engine.sampling.params import SamplingParams
from pocketvlm.model.cache.base import Cache
from pocketvlm.model.cache.contiguous import ContiguousCache
from pocketvlm.model.checkpoint import load_model
from pocketvlm.model.packing import PackedBatch
from pocketvlm.model.segments import Segment
from pocketvlm.model.vision.pixels import to_reference_layout
from pocketvlm.model.vision.view_packing import pack_views
from pocketvlm.model.vlm import MiniCPMV
from pocketvlm.views import View

SEEDS = range(5)


@dataclass(frozen=True)
class Prompt:
    """What is asked: `I` an image, `S` a sliced one, `V` a frame of a video, `.` some text."""

    layout: str

    def views(self, mode: DownsampleMode) -> list[tuple[str, View]]:
        """Views with the kind of medium they belong to; shapes differ, in 4x mode not all are multiples of four."""
        off = 0 if mode == "16x" else 2
        plain, overview, slice_, frame = (8, 8 + off), (8, 12), (12 + off, 8), (4, 8 + off)
        shapes = {"I": [plain], "S": [overview, slice_, slice_], "V": [frame]}
        turn = {"I": 0, "S": 0, "V": 0}
        views = []
        for letter in self.layout.replace(".", ""):
            for height, width in shapes[letter]:
                views.append((letter, view(height + 4 * (turn[letter] % 2), width, mode)))
            turn[letter] += 1
        return views

    def ids(self, mode: DownsampleMode, image_id: int, video_id: int, seed: int) -> list[int]:
        """Random text with the places held for each view."""
        remaining, ids = self.views(mode), random_text(3, seed)
        for i, letter in enumerate(self.layout):
            if letter == ".":
                ids += random_text(9 + 20 * (i % 3), seed + i)
            else:
                for _ in range(3 if letter == "S" else 1):
                    _, one = remaining.pop(0)
                    ids += [video_id if letter == "V" else image_id] * one.visual_tokens + random_text(1, i)
        return ids


PROMPTS = {
    "no image": Prompt(".."),
    "one image": Prompt(".I."),
    "three images": Prompt("II.I."),
    "sliced": Prompt("S."),
    "sliced and unsliced": Prompt(".SIS."),
    "several turns": Prompt(".I.....I..S....."),
    "video": Prompt("VVVV."),
    "image and video": Prompt("V.IV."),
}
every_mode = pytest.mark.parametrize("mode", ["16x", "4x"])
every_seed = pytest.mark.parametrize("seed", SEEDS)


@dataclass(frozen=True)
class Pair:
    """The same weights in both implementations."""

    ours: MiniCPMV
    theirs: nn.Module
    seed: int

    def ids(self, prompt: Prompt, mode: DownsampleMode) -> list[int]:
        config = self.ours.config
        return prompt.ids(mode, config.image_token_id, config.video_token_id, self.seed)

    def media(self, prompt: Prompt, mode: DownsampleMode) -> dict[str, object]:
        """Arguments of the reference's forward: images and videos apart."""
        views = prompt.views(mode)
        parts = random_patches([v for _, v in views], self.seed).split([v.patches for _, v in views])
        arguments: dict[str, object] = {"downsample_mode": mode}
        for letters, suffix in (("IS", ""), ("V", "_videos")):
            own = [(part, v) for part, (letter, v) in zip(parts, views, strict=True) if letter in letters]
            if own:
                patches = torch.cat([part for part, _ in own])
                arguments[f"pixel_values{suffix}"] = to_reference_layout(patches, ImageConfig())
                arguments[f"target_sizes{suffix}"] = torch.tensor([[v.size.height, v.size.width] for _, v in own])
        return arguments

    def features(self, prompt: Prompt, mode: DownsampleMode) -> Tensor | None:
        """Our features of all views, in the order of the prompt."""
        views = [v for _, v in prompt.views(mode)]
        return self.ours.encode_views(random_patches(views, self.seed), views) if views else None

    def our_forward(self, prompt: Prompt, mode: DownsampleMode, store: Cache | None = None) -> Tensor:
        """Logits [T, V]."""
        ids = self.ids(prompt, mode)
        hidden = self.ours(torch.tensor(ids), PackedBatch.of([Segment(len(ids))]), self.features(prompt, mode), store)
        return self.ours.logits(hidden)

    def our_beams(self, prompt: Prompt, mode: DownsampleMode, stop_ids: list[int], **options: Any) -> Request:
        """The request, answered."""
        views = [v for _, v in prompt.views(mode)]
        params = SamplingParams(temperature=0, **options)
        ids = torch.tensor(self.ids(prompt, mode))
        runner = TorchRunner(self.ours)
        patches = random_patches(views, self.seed) if views else None
        request = make_request(runner, ids, params, frozenset(stop_ids), patches, views)
        run(runner, [request])
        return request

    def their_beams(
        self, prompt: Prompt, mode: DownsampleMode, stop_ids: list[int], max_tokens: int, **options: Any
    ) -> tuple[list[int], float]:
        """Tokens before the stop id, and the score of the sequence."""
        ids = torch.tensor([self.ids(prompt, mode)])
        answer = self.theirs.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **self.media(prompt, mode),
            do_sample=False,
            max_new_tokens=max_tokens,
            eos_token_id=stop_ids,
            pad_token_id=stop_ids[0],
            return_dict_in_generate=True,
            output_scores=True,
            **options,
        )
        tokens = answer.sequences[0, ids.shape[1] :].tolist()
        return list(takewhile(lambda token: token not in stop_ids, tokens)), float(answer.sequences_scores[0])

    def their_forward(self, prompt: Prompt, mode: DownsampleMode, **options: object) -> object:
        ids = torch.tensor([self.ids(prompt, mode)])
        return self.theirs(input_ids=ids, **self.media(prompt, mode), **options)


@pytest.fixture(scope="session")
def pair_of(seeded_checkpoint: Callable[[int], Path]) -> Callable[[int], Pair]:
    @cache
    def load(seed: int) -> Pair:
        directory = seeded_checkpoint(seed)
        theirs = reference.transformers.MiniCPMV4_6ForConditionalGeneration.from_pretrained(
            directory, dtype=torch.float32
        )
        return Pair(load_model(directory).requires_grad_(False), theirs.eval().requires_grad_(False), seed)

    return load


@contextmanager
def captured(modules: dict[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Outputs of these modules during the block, without the batch dimension."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(_module: nn.Module, _args: object, output: object) -> None:
            tensor = torch.cat(output) if isinstance(output, list) else output
            seen[name] = tensor[0] if tensor.dim() == 3 else tensor

        return hook

    hooks = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@every_mode
@every_seed
def test_tower_equals_the_reference_part_by_part(
    pair_of: Callable[[int], Pair], seed: int, mode: DownsampleMode
) -> None:
    pair, prompt = pair_of(seed), PROMPTS["sliced and unsliced"]
    ours, theirs = pair.ours.vision_tower, pair.theirs.model.vision_tower
    last = len(ours.layers) - 1
    with captured({"position": ours.position_embedding, "merger": pair.ours.merger} | _tower_parts(ours)) as got:
        features = pair.features(prompt, mode)
    with captured(
        {"embeddings": theirs.embeddings, "merger": pair.theirs.model.merger} | _tower_parts(theirs)
    ) as expected:
        pair.their_forward(prompt, mode)

    views = [v for _, v in prompt.views(mode)]
    fine = pack_views(views, ours.config.positions_per_side).patch_index
    late = fine
    if mode == "16x":  # the reference keeps compressed views row-major, ours stand in the order of the next merge
        halves = [view(v.size.height // 2, v.size.width // 2, "4x") for v in views]
        late = pack_views(halves, ours.config.positions_per_side).patch_index
    assert_close(got["patch"] + got["position"], expected["embeddings"][fine])
    for i in range(last + 1):
        rows = fine if i <= ours.insert_layer_id else late
        assert_close(got[f"layer {i}"], expected[f"layer {i}"][rows])
    assert ("compression" in got) == ("compression" in expected) == (mode == "16x")
    if mode == "16x":
        assert_close(got["compression"], expected["compression"][late])
    assert_close(got["norm"], expected["norm"][late])
    assert_close(features, expected["merger"])


def _tower_parts(tower: nn.Module) -> dict[str, nn.Module]:
    """Modules that both towers have."""
    parts = {"compression": tower.vit_merger, "norm": tower.post_layernorm}
    if isinstance(getattr(tower, "patch_embedding", None), nn.Module):
        parts["patch"] = tower.patch_embedding
    layers = tower.layers if hasattr(tower, "layers") else tower.encoder.layers
    return parts | {f"layer {i}": layer for i, layer in enumerate(layers)}


@every_mode
@every_seed
def test_decoder_equals_the_reference_layer_by_layer(
    pair_of: Callable[[int], Pair], seed: int, mode: DownsampleMode
) -> None:
    pair, prompt = pair_of(seed), PROMPTS["one image"]
    ours, theirs = pair.ours.language_model, pair.theirs.model.language_model
    kinds = ours.config.layer_types
    assert set(kinds) == {"linear_attention", "full_attention"}
    parts = [{f"{kind} {i}": model.layers[i] for i, kind in enumerate(kinds)} for model in (ours, theirs)]
    with captured(parts[0] | {"norm": ours.norm}) as got:
        pair.our_forward(prompt, mode)
    with captured(parts[1] | {"norm": theirs.norm}) as expected:
        pair.their_forward(prompt, mode)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert_same_decoding(got[name], value)


# Each prompt and rate with two of the five seeds; all five take each way through the layers above.
@every_mode
@pytest.mark.parametrize(
    ("seed", "prompt"),
    [
        pytest.param((2 * i + turn) % len(SEEDS), prompt, id=f"{name} {turn}")
        for i, (name, prompt) in enumerate(PROMPTS.items())
        for turn in range(2)
    ],
)
def test_logits_and_thirty_two_greedy_tokens_equal_the_reference(
    pair_of: Callable[[int], Pair], seed: int, mode: DownsampleMode, prompt: Prompt
) -> None:
    pair = pair_of(seed)
    length = len(pair.ids(prompt, mode))
    store = ContiguousCache(pair.ours.config.text, 1, length + 32)
    got = pair.our_forward(prompt, mode, store)
    answer = pair.their_forward(prompt, mode, use_cache=True)
    assert_same_decoding(got, answer.logits[0])
    got, expected = got[-1], answer.logits[0, -1]
    for step in range(32):
        assert_same_decoding(got, expected)
        token = int(expected.argmax())
        if int(got.argmax()) != token:
            assert is_tie(expected), f"token {step} differs and is no tie"
        got = pair.ours.logits(
            pair.ours(torch.tensor([token]), PackedBatch.of([Segment(1, length + step)]), None, store)
        )[0]
        answer = pair.theirs(input_ids=torch.tensor([[token]]), past_key_values=answer.past_key_values, use_cache=True)
        expected = answer.logits[0, -1]


def assert_same_beams(pair: Pair, prompt: Prompt, mode: DownsampleMode, stop_ids: list[int], **options: Any) -> Request:
    """The same best answer with the same score; or, where the reference's is a tie with it, one as good."""
    options |= {"num_beams": 3, "repetition_penalty": 1.2}
    got = pair.our_beams(prompt, mode, stop_ids, **options)
    tokens, score = pair.their_beams(prompt, mode, stop_ids, **options)
    assert got.score == pytest.approx(score, rel=TIE), (got.sequences[0].output_ids, tokens)
    return got


@pytest.mark.parametrize(
    ("length_penalty", "early_stopping"), [(1.0, False), (1.0, True), (0.0, False), (2.0, False), (-1.0, True)]
)
@every_mode
@pytest.mark.parametrize("seed", range(4))
def test_the_best_of_three_beams_equals_the_reference(
    pair_of: Callable[[int], Pair], seed: int, mode: DownsampleMode, length_penalty: float, early_stopping: bool
) -> None:
    prompt = PROMPTS[("one image", "three images", "sliced and unsliced", "image and video")[seed]]
    often = list(range(seed, 300, 9))  # so that answers of all lengths end, early and late
    options = {"max_tokens": 8, "length_penalty": length_penalty, "early_stopping": early_stopping}
    assert_same_beams(pair_of(seed), prompt, mode, often, **options)


@every_mode
@pytest.mark.parametrize("seed", range(2))
def test_beams_stop_on_either_of_two_ids_as_the_reference_does(
    pair_of: Callable[[int], Pair], seed: int, mode: DownsampleMode
) -> None:
    pair, prompt = pair_of(seed), PROMPTS["several turns"]
    published = [pair.ours.config.eos_token_id, pair.ours.config.eos_token_id + 2]
    free = assert_same_beams(pair, prompt, mode, published, max_tokens=8)
    for place in (2, 4):
        stops = sorted({free.sequences[0].output_ids[place], free.sequences[0].output_ids[-1]})
        assert_same_beams(pair, prompt, mode, stops, max_tokens=8, length_penalty=-1.0)


@every_seed
def test_linear_attention_alone_equals_the_reference_beyond_one_chunk(
    pair_of: Callable[[int], Pair], seed: int
) -> None:
    pair = pair_of(seed)
    x = torch.randn(150, pair.ours.config.text.hidden_size, generator=torch.Generator().manual_seed(seed))
    got = pair.ours.language_model.layers[0].linear_attn(x, PackedBatch.of([Segment(150)]), None, torch.zeros_like(x))
    assert_same_decoding(got, pair.theirs.model.language_model.layers[0].linear_attn(x.unsqueeze(0))[0])


def test_trap_grid_rope_positions_of_the_reference_are_plain_counts_too(pair_of: Callable[[int], Pair]) -> None:
    pair, prompt = pair_of(0), PROMPTS["three images"]
    count = torch.arange(len(pair.ids(prompt, "16x"))).unsqueeze(0)
    explicit = pair.their_forward(prompt, "16x", position_ids=count).logits[0]
    assert_same_decoding(pair.our_forward(prompt, "16x"), explicit)


def test_trap_4x_video_left_at_16x_frames_are_encoded_at_the_rate_asked_for(pair_of: Callable[[int], Pair]) -> None:
    pair, prompt = pair_of(0), PROMPTS["video"]
    for mode in ("16x", "4x"):
        media = pair.media(prompt, mode)
        expected = pair.theirs.get_video_features(**media).pooler_output
        assert_close(pair.features(prompt, mode), torch.cat(list(expected)))


def test_trap_batching_skipped_by_the_reference_packed_prompts_equal_its_answers_one_by_one(
    pair_of: Callable[[int], Pair],
) -> None:
    pair = pair_of(1)
    chosen = [
        (PROMPTS["one image"], "16x"),
        (PROMPTS["video"], "4x"),
        (PROMPTS["no image"], "16x"),
        (PROMPTS["sliced"], "4x"),
    ]
    ids = [pair.ids(prompt, mode) for prompt, mode in chosen]
    views = [v for prompt, mode in chosen for _, v in prompt.views(mode)]
    patches = [
        random_patches(own, pair.seed) for own in ([v for _, v in prompt.views(mode)] for prompt, mode in chosen)
    ]
    features = pair.ours.encode_views(torch.cat(patches), views)
    batch = PackedBatch.of([Segment(len(own), slot=slot) for slot, own in enumerate(ids)])
    logits = pair.ours.logits(pair.ours(torch.tensor([i for own in ids for i in own]), batch, features))
    for got, (prompt, mode) in zip(logits.split(batch.lengths), chosen, strict=True):
        assert_same_decoding(got, pair.their_forward(prompt, mode).logits[0])
