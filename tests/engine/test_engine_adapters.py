"""Base and adapters in one batch: each answers as if it were alone, and as the model that it would be merged into."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from helpers.adapters import ALL, DECODER, VISION, random_adapter
from helpers.engine_runs import LAYOUTS, assert_same_answers, drive, make_request, run, torch_runner
from helpers.invariants import assert_close
from helpers.tiny_models import CONFIG, prompt_with_views, random_patches, random_text, tiny_model, view

from pocketvlm.engine.config import EngineConfig
from pocketvlm.engine.engine import Engine
from pocketvlm.engine.request import Request
from pocketvlm.engine.runners.torch_runner import TorchRunner
from pocketvlm.engine.sampling.params import SamplingParams
from pocketvlm.model.adapters.lora import HEAD, Adapter
from pocketvlm.model.adapters.merge import merge
from pocketvlm.model.adapters.placed import PlacedAdapter
from pocketvlm.model.packing import PackedBatch
from pocketvlm.model.segments import Segment
from pocketvlm.model.vlm import MiniCPMV

ADAPTERS: dict[str, Adapter] = {
    "decoder": random_adapter(CONFIG, 1, DECODER),
    "tower": random_adapter(CONFIG, 2, ALL, size=0.3),
    "pictures": random_adapter(CONFIG, 3, VISION),
    "dora": random_adapter(CONFIG, 4, ALL, dora=True),
    "head": random_adapter(CONFIG, 5, rf"{HEAD}|language_model\.layers\.1\."),
}


def kernels() -> MiniCPMV:
    return copy.deepcopy(tiny_model()).use_cpu_kernels()


def batched() -> MiniCPMV:
    """With weights laid out for batches, in which the plain ones are gone."""
    model = kernels()
    model.prepare_batches()
    return model


def rounded() -> MiniCPMV:
    """With weights that are bfloat16 values, which the CPU keeps in fp16."""
    return copy.deepcopy(tiny_model()).bfloat16().float().use_cpu_kernels()


MODELS: dict[str, Callable[[], MiniCPMV]] = {
    "plain": lambda: copy.deepcopy(tiny_model()),
    "kernels": kernels,
    "batched": batched,
}


def request(runner: TorchRunner, seed: int, adapter: PlacedAdapter | None, length: int = 10, **more: Any) -> Request:
    views = [view(8, 8), view(4, 8, "4x")] if seed % 2 else []
    ids = prompt_with_views(views, seed=seed) if views else random_text(length, seed)
    params = SamplingParams(temperature=0, max_tokens=8)
    patches = random_patches(views, 7) if views else None
    return make_request(runner, ids, params, patches=patches, views=views, adapter=adapter, **more)


@torch.inference_mode()
def features_and_logits(
    model: MiniCPMV, runner: TorchRunner | None = None, adapter: PlacedAdapter | None = None
) -> Any:
    views = [view(8, 8), view(4, 8, "4x")]
    ids = torch.tensor(prompt_with_views(views))
    if runner is None:
        features = model.encode_views(random_patches(views), views)
        return features, model.logits(model(ids, PackedBatch.of([Segment(len(ids))]), features))
    features = runner.encode_views(random_patches(views).numpy(), views, adapter)
    cache = runner.make_cache(1, len(ids))
    batch = PackedBatch.of([Segment(len(ids), adapter=adapter)])
    scores = runner.forward(runner.embed(ids.numpy(), features), batch, cache, range(len(ids)))
    return features, torch.as_tensor(scores)


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("how", MODELS)
def test_an_adapter_beside_the_weights_has_the_numbers_of_the_merged_model(how: str, kind: str) -> None:
    runner = TorchRunner(MODELS[how]())
    placed = runner.place_adapter(ADAPTERS[kind])
    plain = features_and_logits(copy.deepcopy(tiny_model()))
    merged = features_and_logits(merge(copy.deepcopy(tiny_model()), ADAPTERS[kind]))
    for got, expected in zip(features_and_logits(runner.model, runner, placed), merged, strict=True):
        assert_close(got, expected, 1e-4)
    for got, expected in zip(features_and_logits(runner.model, runner), plain, strict=True):
        assert_close(got, expected, 1e-4)
    assert (merged[1] - plain[1]).abs().max() > 0.05 * plain[1].abs().max(), "the adapter changes nothing"


@pytest.mark.parametrize("dora", [False, True])
def test_weights_that_the_cpu_keeps_in_fp16_take_adapters(dora: bool) -> None:
    adapter = random_adapter(CONFIG, 6, ALL, dora=dora)
    runner = TorchRunner(rounded())
    placed = runner.place_adapter(adapter)
    merged = features_and_logits(merge(copy.deepcopy(tiny_model()).bfloat16().float(), adapter))
    for got, expected in zip(features_and_logits(runner.model, runner, placed), merged, strict=True):
        assert_close(got, expected, 1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("how", ["plain", "kernels"])
def test_base_and_adapters_in_one_batch_answer_as_alone_and_as_merged(layout: str, how: str) -> None:
    runner = torch_runner(MODELS[how](), layout)
    placed: list[PlacedAdapter | None] = [None, *map(runner.place_adapter, ADAPTERS.values())]
    merged = [copy.deepcopy(tiny_model()), *(merge(copy.deepcopy(tiny_model()), one) for one in ADAPTERS.values())]
    which = [(i, seed) for seed in (0, 1) for i in range(len(placed))]
    together = run(runner, [request(runner, seed, placed[i]) for i, seed in which], max_num_seqs=32)
    for i, model in enumerate(merged):
        own = [place for place, (adapter, _) in enumerate(which) if adapter == i]
        alone = [run(runner, [request(runner, which[place][1], placed[i])])[0] for place in own]
        whole = TorchRunner(model)
        requests = [request(whole, which[place][1], None) for place in own]
        expected = [run(whole, [one])[0] for one in requests]
        assert_same_answers(model, requests, [together[place] for place in own], expected)
        assert_same_answers(model, requests, alone, expected)
    assert len({tuple(answer) for answer in together}) > len(placed)


def test_what_was_computed_under_an_adapter_is_not_used_under_another() -> None:
    """Prefixes of prompts, and features of pictures where the tower changes; equal content shares both."""
    runner = TorchRunner(copy.deepcopy(tiny_model()))
    engine = Engine(runner, EngineConfig(prefix_cache_memory=2**24))
    placed = {name: runner.place_adapter(one) for name, one in ADAPTERS.items()}
    again = runner.place_adapter(ADAPTERS["tower"])  # such as one that was unloaded and has come back
    seen: list[tuple[int, float]] = []
    for adapter in (None, placed["decoder"], placed["tower"], placed["head"], again, None):
        asked = request(runner, 1, adapter, branch_points=(4, 12))
        engine.add(asked)
        drive(engine)
        seen.append((asked.cached_tokens, engine.metrics.encoded_views._value.get()))
    cached, encoded = zip(*seen, strict=True)
    assert cached == (0, 0, 0, 0, 12, 12)
    assert encoded == (2, 2, 4, 4, 4, 4)


def test_views_of_different_towers_are_not_encoded_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = TorchRunner(copy.deepcopy(tiny_model()))
    placed = {name: runner.place_adapter(one) for name, one in ADAPTERS.items()}
    calls: list[tuple[int, PlacedAdapter | None]] = []
    encode = runner.encode_views

    def counted(patches: torch.Tensor, views: Sequence[Any], adapter: PlacedAdapter | None = None) -> torch.Tensor:
        calls.append((len(views), adapter))
        return encode(patches, views, adapter)

    monkeypatch.setattr(runner, "encode_views", counted)
    which = (None, placed["decoder"], placed["tower"], placed["pictures"])
    run(runner, [request(runner, 1, adapter) for adapter in which], max_num_batched_tokens=10**6)
    assert sorted(count for count, _ in calls) == [2, 2, 2]
    assert {adapter for _, adapter in calls} == {None, placed["tower"], placed["pictures"]}


def test_a_draft_follows_the_adapter_of_its_sequence() -> None:
    runner = TorchRunner(copy.deepcopy(tiny_model()))
    placed = runner.place_adapter(ADAPTERS["decoder"])
    ids = random_text(6, 3) * 4
    answers = []
    for tokens in (0, 4):
        params = SamplingParams(temperature=0, max_tokens=24, prompt_lookup_num_tokens=tokens)
        answers += run(runner, [make_request(runner, ids, params, adapter=placed)])
    assert answers[0] == answers[1]


def test_an_adapter_that_comes_while_others_run_changes_nothing_of_them() -> None:
    runner = TorchRunner(kernels())
    expected = run(runner, [request(runner, seed, None) for seed in range(4)])
    engine = Engine(runner)
    requests = [request(runner, seed, None) for seed in range(4)]
    for one in requests:
        engine.add(one)
    outputs = [engine.step() for _ in range(3)]
    placed = runner.place_adapter(ADAPTERS["dora"])
    late = request(runner, 1, placed)
    engine.add(late)
    found = drive(engine)
    for one, whole in zip(requests, expected, strict=True):
        early = [token for step in outputs for output in step if output.request is one for token in output.tokens]
        assert early + found.get(one, [[]])[0] == whole
    assert found[late][0] == run(runner, [request(runner, 1, placed)])[0]


def test_no_adapter_is_active_after_a_forward_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = TorchRunner(copy.deepcopy(tiny_model()))
    placed = runner.place_adapter(ADAPTERS["decoder"])
    expected = run(runner, [request(runner, 0, None)])

    def fails(*_: Any) -> None:
        raise RuntimeError("out of order")

    with monkeypatch.context() as patch:
        patch.setattr(runner.model.language_model, "run_layers", fails)
        engine = Engine(runner)
        engine.add(request(runner, 0, placed))
        drive(engine, may_fail=True)
    assert not runner.active.groups
    assert run(runner, [request(runner, 0, None)]) == expected
