"""Recorded steps and towers give what plain ones give: padding touches nothing, a new cache is never mistaken.

Their Triton kernels run here too, in the interpreter; on a GPU, as kernels and in real graphs.
"""

from __future__ import annotations

import copy
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch
from helpers.engine_runs import assert_same_answers, make_request, run, torch_runner
from helpers.invariants import assert_close, assert_same_decoding, packed_logits, prefill, relative_error
from helpers.tiny_models import CONFIG, random_patches, random_text, tiny_model, view, with_text
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketvlm.engine.config import EngineConfig
from pocketvlm.engine.engine import Engine
from pocketvlm.engine.runners.cuda_graphs import DecodeGraphs, Recorder, TowerGraphs
from pocketvlm.engine.runners.torch_runner import TorchRunner
from pocketvlm.engine.sampling.params import SamplingParams
from pocketvlm.kernels import linear_attention_step, paged_attention
from pocketvlm.model.cache.contiguous import ContiguousCache
from pocketvlm.model.cache.paged import PagedCache
from pocketvlm.model.cache.torch_memory import TorchMemory
from pocketvlm.model.packing import PackedBatch
from pocketvlm.model.segments import Segment
from pocketvlm.model.text.decoder import fp32_parameters
from pocketvlm.model.vlm import MiniCPMV

CPU = torch.device("cpu")
SIZES = (1, 2, 4)
ROUGH = 0.05  # of bfloat16 through four layers


def step(graphs: DecodeGraphs, cache: PagedCache, tokens: list[int], slots: list[int]) -> torch.Tensor | None:
    batch = PackedBatch.of([Segment(1, cache.lengths[slot], slot) for slot in slots])
    return graphs.forward(graphs.model.embed(torch.tensor(tokens)), batch, cache)


def check_decoding(model: MiniCPMV, lengths: list[int], steps: int, preallocate: bool) -> None:
    """Prompts of these lengths, then some steps of all of them and of all but the first, against plain forwards."""
    cache = PagedCache(model.config.text, len(lengths), 40, preallocate=preallocate)
    graphs = DecodeGraphs(model, Recorder(CPU), SIZES)
    ids = [random_text(length, seed) for seed, length in enumerate(lengths)]
    packed_logits(model, ids, cache)
    for i in range(steps):
        slots = list(range(i % 2 if len(ids) > 1 else 0, len(ids)))
        tokens = [(7 * i + slot) % 250 for slot in slots]
        scores = step(graphs, cache, tokens, slots)
        cache.check_integrity()
        assert scores is not None
        for slot, token, row in zip(slots, tokens, scores, strict=True):
            ids[slot] = [*ids[slot], token]
            assert_same_decoding(row, prefill(model, ids[slot])[-1])


@settings(max_examples=15)
@given(st.lists(st.integers(1, 70), min_size=1, max_size=4), st.integers(1, 5), st.booleans())
def test_recorded_steps_equal_plain_forwards(lengths: list[int], steps: int, preallocate: bool) -> None:
    check_decoding(tiny_model(), lengths, steps, preallocate)


def test_half_precision_goes_through_blocks_and_recordings_too() -> None:
    model = copy.deepcopy(tiny_model())
    for name, parameter in model.named_parameters():
        if name not in fp32_parameters(model):
            parameter.data = parameter.data.bfloat16()
    paged = PagedCache(CONFIG.text, 2, 8, memory=TorchMemory(torch.bfloat16))
    plain = ContiguousCache(CONFIG.text, 2, 64, memory=TorchMemory(torch.bfloat16))
    graphs, prompts = DecodeGraphs(model, Recorder(CPU), SIZES), [random_text(40), random_text(7, 1)]
    for got, expected in zip(packed_logits(model, prompts, paged), packed_logits(model, prompts, plain), strict=True):
        assert relative_error(got, expected) < ROUGH
    for token in range(3):
        batch = PackedBatch.of([Segment(1, plain.lengths[slot], slot) for slot in range(2)])
        scores = step(graphs, paged, [token, token], [0, 1])
        assert scores is not None
        assert scores.dtype == torch.bfloat16
        expected = model.logits(model(torch.tensor([token, token]), batch, None, plain))
        assert relative_error(scores, expected) < ROUGH


def test_a_batch_larger_than_any_recording_is_left_to_others() -> None:
    cache, graphs = PagedCache(CONFIG.text, 5, 20), DecodeGraphs(tiny_model(), Recorder(CPU), SIZES)
    packed_logits(tiny_model(), [[1]] * 5, cache)
    assert step(graphs, cache, [1] * 5, list(range(5))) is None
    assert cache.lengths == [1] * 5
    # An engine takes such a step all the same.
    runner = torch_runner(tiny_model(), "recorded")
    assert runner.decode_graphs is not None
    runner.decode_graphs.sizes = (1, 2)
    params = SamplingParams(temperature=0, max_tokens=5)
    requests = [[make_request(runner, random_text(9, seed), params) for seed in range(5)] for _ in range(3)]
    alone = [run(runner, [one])[0] for one in requests[0]]
    assert_same_answers(runner.model, requests[2], run(runner, requests[1]), alone)


def test_trap_one_recording_of_many_sizes_serves_the_wrong_cache() -> None:
    """A recording knows addresses of a cache: with another cache, or one that has moved, it is made again."""
    model = tiny_model()
    graphs = DecodeGraphs(model, Recorder(CPU), SIZES)
    for _ in range(2):
        cache = PagedCache(CONFIG.text, 1, 40)
        packed_logits(model, [ids := random_text(5)], cache)
        for token in range(3):
            scores = step(graphs, cache, [token], [0])
            assert scores is not None
            ids = [*ids, token]
            assert_same_decoding(scores[0], prefill(model, ids)[-1])
        made = graphs.steps[1]
        cache.resize(4, 0, 1)
        step(graphs, cache, [3], [0])
        assert graphs.steps[1] is not made


def test_scores_are_kept_while_the_next_step_is_replayed() -> None:
    """A step of sequences and a last token of a prompt may be two replays of one recording within one engine step."""
    cache, graphs = PagedCache(CONFIG.text, 2, 20), DecodeGraphs(tiny_model(), Recorder(CPU), SIZES)
    packed_logits(tiny_model(), [[1], [2]], cache)
    first = step(graphs, cache, [3], [0])
    assert first is not None
    before = first.clone()
    step(graphs, cache, [4], [1])
    assert torch.equal(first, before)


@pytest.mark.parametrize("modes", [("16x",), ("4x",), ("16x", "4x", "16x")])
def test_towers_are_recorded_when_they_come_again(modes: tuple[str, ...]) -> None:
    views = [view(8, 8, mode) for mode in modes]  # type: ignore[arg-type]
    graphs = TowerGraphs(tiny_model(), Recorder(CPU), max_towers=2)
    assert graphs.encode_views(random_patches(views, 0), views) is None
    kept = []
    for seed in (1, 2):
        patches = random_patches(views, seed)
        got = graphs.encode_views(patches, views)
        assert got is not None
        kept.append((got, tiny_model().encode_views(patches, views)))
    for got, expected in kept:  # the first is not what the second left
        assert_close(got, expected)
    for height in (8, 12, 16):
        other = [view(height, 4)]
        for _ in range(2):
            graphs.encode_views(random_patches(other), other)
    assert len(graphs.towers) == 2


def test_large_calls_and_pixels_that_are_no_bytes_are_not_recorded() -> None:
    graphs, large, small = TowerGraphs(tiny_model(), Recorder(CPU)), [view(128, 132)], [view(8, 8)]
    for _ in range(3):
        assert graphs.encode_views(random_patches(large), large) is None
        assert graphs.encode_views(random_patches(small).float().flatten(1), small) is None
    assert not graphs.towers


def test_an_engine_that_is_eager_records_nothing() -> None:
    runner = torch_runner(tiny_model(), "recorded")
    engine = Engine(runner, EngineConfig(enforce_eager=True))
    assert runner.decode_graphs is None
    assert runner.tower_graphs is None
    assert engine.sizes.layout == "paged"
    assert TorchRunner(tiny_model()).decode_graphs is None  # on a CPU


def with_triton() -> None:
    """In a process of its own: the whole step on Triton's kernels. Grouped heads of both kinds."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    for module in (paged_attention, linear_attention_step):
        module.runs_triton = lambda _: True  # type: ignore[assignment]
    model = tiny_model(0, with_text(linear_num_value_heads=4, linear_num_key_heads=2))
    with torch.inference_mode():
        check_decoding(model, [3, 40, 33], 4, preallocate=True)


def test_a_step_on_triton_kernels_equals_plain_forwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        pool.submit(with_triton).result()
