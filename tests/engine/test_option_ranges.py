"""Tables of options, walked: whatever is given is honoured by a model, or refused in one line that names the option."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import fields
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from helpers.checkpoints import write_checkpoint
from helpers.engine_runs import torch_runner
from helpers.tiny_models import tiny_model, with_text

import pocketvlm
from pocketvlm.api.async_vlm import AsyncVLM
from pocketvlm.api.vlm import PROMPT_OPTIONS
from pocketvlm.config_ranges import ENGINE
from pocketvlm.engine.sampling import params as sampling_params
from pocketvlm.engine.sampling.params import SamplingParams
from pocketvlm.errors import ConfigError, PocketVLMError
from pocketvlm.processing.processor import Processor
from pocketvlm.ranges import Range

MESSAGES = [{"role": "user", "content": "Hello"}]
# Options that are neither numbers nor flags have checks of their own.
SAMPLING_BESIDE = {"logit_bias", "stop", "stop_token_ids", "structured_outputs"}
ENGINE_BESIDE = {"cache_layout"}
# What some options need beside them to mean anything.
COMPANIONS: dict[str, dict[str, Any]] = {
    "num_beams": {"temperature": 0},
    "length_penalty": {"num_beams": 2, "temperature": 0},
    "early_stopping": {"num_beams": 2, "temperature": 0},
    "min_tokens": {"max_tokens": 2**63 - 1},
}


class Unshowable:
    def __repr__(self) -> str:
        raise ZeroDivisionError


MATRIX = np.array([[1, 2], [3, 4]]).view(np.matrix)
ABSURD: list[Any] = [
    None,
    "",
    "1",
    b"1",
    [],
    [1],
    {},
    (),
    {1: 2},
    1j,
    math.nan,
    math.inf,
    -math.inf,
    1e-300,
    1e300,
    -1,
    0,
    1.5,
    True,
    2**63,
    -(2**63) - 1,
    2**64,
    10**400,
    10**5000,
    Fraction(10**400),
    MATRIX,
    np.array(1),
    np.array([], np.int64),
    np.datetime64("2020-01-01"),
    np.float64("nan"),
    np.bool_(True),
    torch.tensor(1),
    object(),
    Unshowable(),
    int,
    lambda: 1,
]


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Processor:
    return Processor.from_directory(write_checkpoint(tmp_path_factory.mktemp("processor"), merges=False))


def load(processor: Processor, config: pocketvlm.EngineConfig | None = None) -> pocketvlm.VLM:
    """A model whose longest answer ends soon."""
    runner = torch_runner(tiny_model(0, with_text(max_position_embeddings=64)), "contiguous")
    return pocketvlm.VLM(runner, processor, {"temperature": 0.7, "max_tokens": 2}, engine_config=config)


def ask(processor: Processor, config: pocketvlm.EngineConfig) -> pocketvlm.Answer:
    return load(processor, config).chat(MESSAGES)


@pytest.fixture(scope="module")
def vlm(processor: Processor) -> pocketvlm.VLM:
    return load(processor)


def values(allowed: Range) -> Iterator[tuple[Any, bool]]:
    """Values around the bounds of a range and of all wrong kinds, with whether they are in it: the plain definition."""
    for value in ABSURD:
        yield value, is_in(allowed, value)
    if allowed.kind is bool:
        yield from ((True, True), (False, True))
        return
    low, high = allowed.min, allowed.max
    if allowed.kind is int:
        yield from ((low - 1, False), (low, True), (low + 1, True), (high - 1, True), (high, True), (high + 1, False))
        yield from ((np.int64(max(low, 1)), True), (np.uint8(max(low, 1)), True), (float(max(low, 1)), False))
        return
    yield from ((math.nextafter(low, -math.inf), False), (low, not allowed.is_open), (high, True))
    yield from ((math.nextafter(low, math.inf), True), (math.nextafter(high, -math.inf), True))
    yield from ((math.nextafter(high, math.inf), False), (np.float32(1), True), (np.float64(1), True))
    yield from ((np.int64(1), True), (Fraction(1, 1), True), (1, True))


def is_in(allowed: Range, value: Any) -> bool:
    if value is None:
        return allowed.nullable
    if allowed.kind is bool:
        return value is True or value is False
    kinds: tuple[type, ...] = (int, np.integer) if allowed.kind is int else (int, float, np.integer, np.floating)
    if not isinstance(value, kinds) or isinstance(value, bool) or value != value:
        return False
    return allowed.min < value <= allowed.max or (value == allowed.min and not allowed.is_open)


def outcome(function: Callable[[], Any], name: str) -> tuple[Any, str]:
    """What `function` returns, or the line that it refuses with, which names the option. Other errors are faults."""
    try:
        return function(), ""
    except PocketVLMError as error:
        line = str(error)
    assert "\n" not in line
    assert name in line
    assert len(line) < 400
    return None, line


def is_answer(answer: Any) -> bool:
    return isinstance(answer, pocketvlm.Answer) and answer.finish_reason in ("stop", "length")


def test_the_tables_hold_every_option_that_is_a_number_or_a_flag() -> None:
    for options, table, beside in (
        (SamplingParams, sampling_params.RANGES, SAMPLING_BESIDE),
        (pocketvlm.EngineConfig, ENGINE, ENGINE_BESIDE),
    ):
        assert set(table) | beside == {field.name for field in fields(options)}
        assert not set(table) & beside
        for name, allowed in table.items():
            default = getattr(options(), name)
            assert allowed.check(name, default) == default
            assert default is None or type(default) is allowed.kind


@pytest.mark.parametrize("name", sampling_params.RANGES)
def test_an_option_of_sampling_is_honoured_within_its_range_and_refused_outside(vlm: pocketvlm.VLM, name: str) -> None:
    allowed = sampling_params.RANGES[name]
    for value, fits in values(allowed):
        options = {**COMPANIONS.get(name, {}), name: value}
        params, line = outcome(partial(SamplingParams, **options), name)
        assert (params is not None) == fits, (value, line)
        if params is None:
            continue
        kept = getattr(params, name)
        assert kept is None or type(kept) is allowed.kind
        answer, line = outcome(partial(vlm.chat, MESSAGES, **options), name)
        assert is_answer(answer) or "the engine runs 16 sequences" in line, (value, line)
    assert not vlm.engine.has_work


@pytest.mark.parametrize("name", ENGINE)
def test_a_budget_is_honoured_within_its_range_and_refused_outside(processor: Processor, name: str) -> None:
    for value, fits in values(ENGINE[name]):
        config, line = outcome(partial(pocketvlm.EngineConfig, **{name: value}), name)
        assert (config is not None) == fits, (value, line)
        if config is not None:
            answer, line = outcome(partial(ask, processor, config), name)
            assert is_answer(answer) or "holds no sequence" in line, (value, line)


@pytest.mark.parametrize("name", sorted(SAMPLING_BESIDE))
def test_other_options_of_sampling_are_honoured_or_refused(vlm: pocketvlm.VLM, name: str) -> None:
    tokens: list[Any] = [{2**63: 1.0}, {2**70: 1.0}, {-1: 1.0}, {True: 1.0}, {1.0: 1.0}, {1: 10**5000}, {10**5000: 1}]
    pairs: list[Any] = [((1, 1.0), (1, 2.0)), ["ab"], [(1, 2, 3)], [[2**64, 1]], MATRIX]
    ids: list[Any] = [[2**31], [2**63], [2**70], [10**5000], [True], [1.0], ["1"], (np.int64(1),), np.arange(3), [305]]
    for value in [*ABSURD, *tokens, *pairs, *ids]:
        answer, line = outcome(partial(vlm.chat, MESSAGES, **{name: value}), name)
        assert is_answer(answer) or line
    assert SamplingParams(stop_token_ids=(np.int64(1),)).stop_token_ids == (1,)  # type: ignore[arg-type]
    assert SamplingParams(logit_bias={np.int64(1): np.float32(2)}).logit_bias == ((1, 2.0),)  # type: ignore[dict-item]
    for options in ({"logit_bias": ((1, 1.0), (1, 2.0))}, {"logit_bias": {2**63: 1.0}}, {"stop_token_ids": [2**63]}):
        with pytest.raises(ConfigError):
            SamplingParams(**options)  # type: ignore[arg-type]


def test_integers_beyond_64_bits_are_refused_not_wrapped_around() -> None:
    for name, allowed in sampling_params.RANGES.items():
        for value in (2**64, 2**64 + 1, -(2**64)):
            with pytest.raises(ConfigError, match=name):
                allowed.check(name, value)
    assert SamplingParams(seed=-(2**63)) != SamplingParams(seed=2**63 - 1)


@pytest.mark.parametrize("name", PROMPT_OPTIONS)
def test_options_of_pictures_are_honoured_or_refused(vlm: pocketvlm.VLM, name: str) -> None:
    picture = {"type": "image", "image": np.zeros((20, 20, 3), np.uint8)}
    video = {"type": "video", "video": np.zeros((2, 20, 20, 3), np.uint8), "fps": 1}
    for content in ("Hello", [picture], [video]):
        for value in [*ABSURD, np.int64(1), np.float32(1.5), "16X", ["16x"], ["16x", "16x"], [None]]:
            job, _ = outcome(partial(vlm.prepare, [{"role": "user", "content": content}], {name: value}), "")
            assert job is None or not isinstance(value, str), value
    for value in (2**63, 2**70, -(2**64)):
        with pytest.raises(PocketVLMError):
            vlm.prepare(MESSAGES, {name: value})


def test_numbers_of_numpy_are_numbers_for_pictures_too(processor: Processor) -> None:
    vlm = pocketvlm.VLM(torch_runner(tiny_model(), "contiguous"), processor, {})
    picture = [{"role": "user", "content": [{"type": "image", "image": np.zeros((20, 20, 3), np.uint8)}]}]
    for name in ("max_slice_nums", "max_num_frames", "stack_frames", "video_max_slice_nums"):
        vlm.prepare(picture, {name: np.int64(1)})
    vlm.prepare(picture, {"downsample_mode": "auto", "auto_token_budget": np.float32(1.5)})


def test_a_rate_of_frames_is_honoured_or_refused(processor: Processor) -> None:
    vlm = pocketvlm.VLM(torch_runner(tiny_model(), "contiguous"), processor, {})
    for fps in [*ABSURD, 1e-18, 1e-6, np.float32(2), np.int64(2), 30, 1e4, 1e5]:
        video = {"type": "video", "video": np.zeros((3, 20, 20, 3), np.uint8), "fps": fps}
        job, line = outcome(partial(vlm.prepare, [{"role": "user", "content": [video]}], {}), "")
        if isinstance(fps, np.number) and fps == 2:
            assert job is not None, line
    with pytest.raises(PocketVLMError, match="fps"):
        vlm.prepare([{"role": "user", "content": [{**video, "fps": 1e-18}]}], {})


@pytest.mark.parametrize("name", ["model", "device", "runtime", "quantization", "dtype", "engine_config"])
def test_options_of_load_are_refused_in_one_line(name: str) -> None:
    nonsense = [value for value in ABSURD if value is not None or name != "engine_config"]
    for value in nonsense:
        with pytest.raises(PocketVLMError) as error:
            pocketvlm.load(**{"model": "nano", name: value})
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    "text", ["vision=int8,vision=int4", "vision=int8,vision=int8", "decoder=int4,head=int8,decoder=int8", "int8,int4"]
)
def test_a_quantization_gives_each_part_once(text: str) -> None:
    with pytest.raises(ConfigError, match="quantization=") as error:
        pocketvlm.load("nano", quantization=text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["max_in_flight", "workers"])
def test_options_of_an_event_loop_are_refused_in_one_line(vlm: pocketvlm.VLM, name: str) -> None:
    for value in ABSURD:
        if value is None and name == "workers":
            continue
        with pytest.raises(ConfigError, match=name):
            AsyncVLM(vlm, **{name: value})


@pytest.mark.parametrize("change", [{"temperature": "hot"}, {"top_p": 0}, {"repetition_penalty": 1e-300}])
def test_defaults_that_no_request_could_be_answered_with_are_refused_at_load(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"generation_config.json: {next(iter(change))}="):
        SamplingParams.defaults_of({"do_sample": True, **change})
