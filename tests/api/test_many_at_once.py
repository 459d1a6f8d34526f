"""Many conversations on one `VLM`: in turns, in threads, as they complete; several answers to one; turns that go on."""

from __future__ import annotations

import gc
import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import pocketvlm
from pocketvlm.errors import ConfigError, MediaError, PocketVLMError


@pytest.fixture
def vlm(seeded_checkpoint: Callable[[int], Path]) -> pocketvlm.VLM:
    return pocketvlm.load(seeded_checkpoint(0))


def about(i: int, question: str = "What is it?") -> list[dict[str, Any]]:
    pixels = np.random.default_rng(i).integers(0, 256, (40 + 8 * (i % 3), 60, 3), np.uint8)
    return [{"role": "user", "content": [{"type": "image", "image": pixels}, {"type": "text", "text": question}]}]


GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 8}


def is_idle(vlm: pocketvlm.VLM) -> bool:
    vlm.engine.check_integrity()
    return not vlm.engine.has_work and not vlm.engine.pool.sequences and not vlm.engine.features.pins


def test_streams_read_in_turns_and_in_threads_get_what_each_gets_alone(vlm: pocketvlm.VLM) -> None:
    expected = [vlm.chat(about(i), **GREEDY).text for i in range(6)]
    streams = [vlm.stream(about(i), **GREEDY) for i in range(6)]
    pieces: list[list[str]] = [[] for _ in streams]
    for row in zip_longest(*streams, fillvalue=""):
        for text, own in zip(row, pieces, strict=True):
            own.append(text)
    assert ["".join(own) for own in pieces] == expected
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda i: vlm.chat(about(i), **GREEDY).text, range(6))) == expected
    assert is_idle(vlm)


def test_each_is_yielded_with_its_key_as_soon_as_it_is_complete_and_errors_are_its_own(vlm: pocketvlm.VLM) -> None:
    drawn: list[int] = []

    def requests() -> Iterator[tuple[str, Any, dict[str, Any]]]:
        for i in range(20):
            drawn.append(i)
            if i % 5 == 3:
                content = [{"type": "image", "image": b"no picture"}]
                yield f"r{i}", [{"role": "user", "content": content}], GREEDY
            elif i % 5 == 4:
                yield f"r{i}", about(i), {"temprature": 1}
            else:
                yield f"r{i}", about(i), {**GREEDY, "max_tokens": 40 if i == 0 else 3}

    found: dict[str, Any] = {}
    for key, result in vlm.as_completed(requests(), ahead=4):
        found[key] = result
        assert len(drawn) <= len(found) + 4
    assert list(found) != [f"r{i}" for i in range(20)]  # the long one came later
    assert set(found) == {f"r{i}" for i in range(20)}
    for i in range(20):
        if i % 5 == 3:
            assert isinstance(found[f"r{i}"], MediaError)
        elif i % 5 == 4:
            assert isinstance(found[f"r{i}"], ConfigError)
        else:
            assert found[f"r{i}"][0].text == vlm.chat(about(i), **{**GREEDY, "max_tokens": 40 if i == 0 else 3}).text
    assert is_idle(vlm)


def malformed(i: int) -> list[dict[str, Any]]:
    """A conversation that cannot be honoured, of one of many kinds."""
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((30, 30, 3), np.uint8)).save(buffer, "PNG")
    png = buffer.getvalue()
    huge = png[:16] + (50_000).to_bytes(4, "big") * 2 + png[24:]
    pictures: list[Any] = [
        b"",
        b"text",
        png[: 20 + i % 30],
        huge,
        "no/such/file.png",
        "data:image/png;base64,%%%",
        3,
        None,
    ]
    kinds: list[Any] = [
        *([{"role": "user", "content": [{"type": "image", "image": one}]}] for one in pictures),
        [],
        [{"role": "nobody", "content": "Hello"}],
        [{"role": "user", "content": [{"type": "sound"}]}],
        [{"role": "assistant", "content": "Hello"}],
    ]
    return kinds[i % len(kinds)]


def test_100_malformed_requests_among_100_good_ones_are_refused_and_the_good_are_as_ever(vlm: pocketvlm.VLM) -> None:
    quiet = [vlm.chat(about(i % 10, f"Question {i}"), **GREEDY).text for i in range(20)]
    fresh = pocketvlm.VLM(vlm.runner, vlm.processor, vlm.defaults)
    both = (
        (i, about(i // 2 % 10, f"Question {i // 2 % 20}") if i % 2 == 0 else malformed(i // 2), GREEDY)
        for i in range(200)
    )
    found = dict(fresh.as_completed(both))
    assert all(isinstance(found[i], PocketVLMError) for i in range(1, 200, 2))
    assert [found[i][0].text for i in range(0, 200, 2)] == 5 * quiet
    assert is_idle(fresh)


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("mode", ["16x", "4x"])
def test_every_size_has_as_many_placeholders_as_features(vlm: pocketvlm.VLM, kind: str, mode: str) -> None:
    """`POCKETVLM_SIZES=2000` for the whole round."""
    rng = np.random.default_rng(0)
    for _ in range(int(os.environ.get("POCKETVLM_SIZES", "12"))):
        height, width = (int(2 ** rng.uniform(0, 9.5)) for _ in range(2))
        pixels = np.zeros((height, width, 3), np.uint8)
        if max(height, width) / min(height, width) > 100:
            continue
        medium = {"type": kind, kind: [pixels] * 2, "fps": 1} if kind == "video" else {"type": kind, kind: pixels}
        inputs = vlm.processor([{"role": "user", "content": [medium]}], downsample_mode=mode, max_slice_nums=4)
        features = vlm.runner.encode_views(inputs.patches, inputs.views)
        pads = np.isin(inputs.input_ids, inputs.placeholder_ids).sum()
        assert len(features) == pads == inputs.visual_tokens, (height, width)


def test_a_reader_that_stops_early_gives_the_rest_up(vlm: pocketvlm.VLM) -> None:
    endless = {"temperature": 0, "max_tokens": 100_000, "ignore_eos": True}
    stream = vlm.stream(about(0), **endless)
    next(stream)
    del stream
    gc.collect()
    completed = vlm.as_completed([(0, about(1), GREEDY), (1, about(2), endless)])
    assert next(completed)[0] == 0
    completed.close()
    vlm.chat(about(3), **GREEDY)  # the next step takes them up
    assert is_idle(vlm)


def test_a_fault_of_ours_while_preparing_is_that_requests_own(
    vlm: pocketvlm.VLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = vlm.prepare

    def prepare(messages: Any, options: Any) -> Any:
        if options["max_tokens"] == 3:
            raise RuntimeError("a fault of ours")
        return real(messages, options)

    monkeypatch.setattr(vlm, "prepare", prepare)
    asked = [(i, about(i), {**GREEDY, "max_tokens": 3 + i % 2}) for i in range(4)]
    found = dict(vlm.as_completed(asked))
    assert [isinstance(found[i], RuntimeError) for i in range(4)] == [True, False, True, False]


def test_several_answers_share_the_prompt_and_seeds_reproduce_them(vlm: pocketvlm.VLM) -> None:
    options = {"temperature": 1.0, "max_tokens": 8, "n": 3, "seed": 7}
    answer = vlm.chat(about(0), **options)
    texts = [answer.text, *(other.text for other in answer.alternatives)]
    assert len(set(texts)) == 3
    again = vlm.batch([about(1), about(0), about(2)], **options)[1]
    assert [again.text, *(other.text for other in again.alternatives)] == texts
    assert vlm.chat(about(0), **{**options, "n": 1}).text == texts[0]
    assert is_idle(vlm)


def test_logprobs_are_of_the_answer_and_the_best_is_the_greedy_choice(vlm: pocketvlm.VLM) -> None:
    answer = vlm.chat(about(0), logprobs=3, **GREEDY)
    assert answer.logprobs is not None
    assert [one.token_id for one in answer.logprobs] == list(answer.token_ids)
    for one in answer.logprobs:
        assert one.top[0][0] == one.token_id
        assert one.top[0][2] == one.logprob <= 0
        assert len(one.top) == 3
    assert vlm.chat(about(0), **GREEDY).logprobs is None


@pytest.mark.parametrize(
    "more", [{}, {"min_tokens": 30}, {"ignore_eos": True}, {"n": 2, "temperature": 1.0, "seed": 3}]
)
def test_structured_answers_match_and_end_whatever_else_is_asked(vlm: pocketvlm.VLM, more: dict[str, Any]) -> None:
    options = {**GREEDY, "max_tokens": 40, **more}
    conversations = [about(i) for i in range(3)]
    picked = vlm.batch(conversations, **options, structured_outputs=pocketvlm.StructuredOutputs(choice=("yes", "no")))
    numbers = vlm.batch(conversations, **options, structured_outputs=pocketvlm.StructuredOutputs(regex="[0-9]{2,5}"))
    for answer in picked:
        assert answer.text in ("yes", "no")
        assert answer.finish_reason == "stop"
    for answer in numbers:
        assert answer.text.isdecimal()
        assert 2 <= len(answer.text) <= 5
    with pytest.raises(ConfigError):
        vlm.chat(about(0), structured_outputs=pocketvlm.StructuredOutputs(regex="a{1000000000}(b"))
    assert is_idle(vlm)


def test_a_prompt_that_does_not_fit_is_refused_before_its_grammar_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    with pocketvlm.load() as vlm:
        monkeypatch.setattr(vlm, "_grammar", lambda *_: pytest.fail("a grammar was compiled for nothing"))
        messages = [{"role": "user", "content": "a b c d " * 20_000}]
        with pytest.raises(pocketvlm.PromptError, match="the model's context is"):
            vlm.chat(messages, structured_outputs=pocketvlm.StructuredOutputs(choice=["yes", "no"]))


def test_a_second_turn_reads_only_what_is_new_and_encodes_nothing(vlm: pocketvlm.VLM) -> None:
    messages = about(0)
    first = vlm.chat(messages, **GREEDY)
    encoded = vlm.engine.metrics.value("encoded_views_total")
    computed = vlm.engine.metrics.value("prompt_tokens_computed_total")
    follow = [*messages, {"role": "assistant", "content": "A thing."}, {"role": "user", "content": "And now?"}]
    second = vlm.chat(follow, **GREEDY)
    assert second.usage.cached_tokens >= first.usage.visual_tokens
    assert vlm.engine.metrics.value("encoded_views_total") == encoded
    new = vlm.engine.metrics.value("prompt_tokens_computed_total") - computed
    assert new == second.usage.prompt_tokens - second.usage.cached_tokens
    fresh = pocketvlm.VLM(vlm.runner, vlm.processor, vlm.defaults)
    assert second.text == fresh.chat(follow, **GREEDY).text


def test_a_chat_that_is_interrupted_leaves_nothing_behind_while_its_traceback_is_kept(vlm: pocketvlm.VLM) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    config = pocketvlm.EngineConfig(max_num_batched_tokens=64)
    slow = pocketvlm.VLM(vlm.runner, vlm.processor, vlm.defaults, engine_config=config)
    slow.progress = interrupt
    with pytest.raises(KeyboardInterrupt) as kept:  # as an interpreter keeps the last one
        slow.chat(about(0, "word " * 200), **GREEDY)
    slow.shared.step()
    assert is_idle(slow)
    assert kept.traceback


def test_progress_tells_how_much_of_a_long_prompt_is_read(vlm: pocketvlm.VLM) -> None:
    seen: list[tuple[str, int, int]] = []
    vlm.progress = lambda *report: seen.append(report)
    config = pocketvlm.EngineConfig(max_num_batched_tokens=64)
    slow = pocketvlm.VLM(vlm.runner, vlm.processor, vlm.defaults, engine_config=config)
    slow.progress = vlm.progress
    slow.chat(about(0, "word " * 200), **GREEDY)
    assert len(seen) > 3
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert all(done <= total for _, done, total in seen)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"max_num_seqs": 0}, "max_num_seqs=0 is not an integer of at least 1"),
        ({"cache_memory": 1.5}, "cache_memory=1.5 is not an integer"),
        ({"cache_memory": 1000}, "cache_memory=1000 holds no sequence"),
    ],
)
def test_budgets_that_cannot_be_are_refused(vlm: pocketvlm.VLM, config: dict[str, Any], message: str) -> None:
    with pytest.raises(PocketVLMError, match=message):
        pocketvlm.VLM(vlm.runner, vlm.processor, vlm.defaults, engine_config=pocketvlm.EngineConfig(**config))


def test_sizes_are_told(vlm: pocketvlm.VLM) -> None:
    assert "16 sequences" in vlm.engine.describe()
