"""What is new in an answer, joined, is the answer: over all splits into tokens, stop strings, and with reasoning."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pocketvlm
from pocketvlm.api.answers import Delta, TokenLogprob
from pocketvlm.api.async_vlm import AsyncVLM
from pocketvlm.api.job import Job
from pocketvlm.api.vlm import question_messages
from pocketvlm.engine.request import Output, Request
from pocketvlm.engine.sampling.params import SamplingParams
from pocketvlm.processing.prompt.tokenizer import Tokenizer
from pocketvlm.tools.calls import ToolCall, parse_tool_calls

# Control tokens are one token where they are written so, and several where their parts are.
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"count": {"type": "integer"}}}}}]
CALL = "<tool_call>\n<function=f>\n<parameter=count>\n3\n</parameter>\n</function>\n</tool_call>"
CALLS = [CALL, CALL[:40], "<tool_call>", "</tool_call>", "<tool", "_call>"]
PARTS = ["<think>", "</think>", "</", "th", "ink>", "<", "/think>", "\n", " ", "\n\n", "a", "é", "🙂", "END", "EN", "D"]
STOPS = ["END", "ND", "EN", "D\n", "</think>", "think", ">", "a", "🙂", "\n\n", "NDa"]


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> Tokenizer:
    return Tokenizer.from_directory(checkpoint)


def job_of(tokenizer: Tokenizer, *, thinking: bool, tools: Any = None, **options: Any) -> Job:
    params = SamplingParams(temperature=0, **options)
    request = Request("0", torch.tensor([1]), params, tokenizer.stop_ids)
    return Job(request, tokenizer, visual_tokens=0, thinking=thinking, preprocess=0.0, tools=tools)


def run(job: Job, tokens: list[list[int]]) -> list[Delta]:
    """The deltas of one answer whose tokens come in these portions; one that ends early takes no more."""
    deltas = []
    for number, own in enumerate(tokens):
        reason = "length" if number == len(tokens) - 1 else None
        found = tuple((-1.0, ((token, -1.0),)) for token in own) if job.request.params.logprobs is not None else ()
        delta = job.take(Output(job.request, 0, tuple(own), found, reason))  # type: ignore[arg-type]
        if delta is not None:
            deltas.append(delta)
    return deltas


def joined(deltas: list[Delta]) -> tuple[str, str, tuple[ToolCall, ...], tuple[TokenLogprob, ...]]:
    """Text, reasoning, calls and log probabilities of one answer."""
    return (
        "".join(delta.text for delta in deltas),
        "".join(delta.reasoning for delta in deltas),
        tuple(one for delta in deltas for one in delta.tool_calls),
        tuple(one for delta in deltas for one in delta.logprobs),
    )


def as_read_by_characters(text: str, stops: tuple[str, ...], thinking: bool) -> tuple[str, str | None]:
    """The plain definition: cut where a reader of single characters finds a stop string, then at the tag."""
    for end in range(1, len(text) + 1):
        if found := [stop for stop in stops if text[:end].endswith(stop)]:
            text = text[: end - max(map(len, found))]
            break
    if not thinking:
        return text, None
    thought, tag, rest = text.partition("</think>")
    return rest.lstrip("\n") if tag else "", thought.strip()


@given(
    parts=st.lists(st.sampled_from(PARTS + CALLS), max_size=12),
    with_tools=st.booleans(),
    spelt=st.booleans(),
    cuts=st.lists(st.integers(0, 40), max_size=12),
    stops=st.lists(st.sampled_from(STOPS), max_size=3),
    thinking=st.booleans(),
    logprobs=st.sampled_from([None, 1]),
)
def test_deltas_joined_are_the_answer_whatever_the_tokens(
    tokenizer: Tokenizer,
    parts: list[str],
    with_tools: bool,
    spelt: bool,
    cuts: list[int],
    stops: list[str],
    thinking: bool,
    logprobs: int | None,
) -> None:
    encode = tokenizer.encode_plain if spelt else tokenizer.encode_trusted
    ids = [token for part in parts for token in encode(part)]
    edges = [0, *sorted(min(cut, len(ids)) for cut in cuts), len(ids)]
    portions = [ids[a:b] for a, b in pairwise(edges)]
    tools = TOOLS if with_tools else None
    job = job_of(tokenizer, thinking=thinking, tools=tools, stop=tuple(stops), logprobs=logprobs)
    deltas = run(job, portions)
    answer = job.answer()
    whole, thought = as_read_by_characters("".join(parts), tuple(stops), thinking)
    expected = parse_tool_calls(whole, tools) if tools else (whole, ())
    assert (answer.text, answer.tool_calls, answer.reasoning) == (*expected, thought)
    text, reasoning, calls, found = joined(deltas)
    assert text == answer.text
    assert reasoning == (answer.reasoning or "")
    assert calls == answer.tool_calls
    assert found == (answer.logprobs or ())
    assert [delta.finish_reason for delta in deltas if delta.finish_reason] == [answer.finish_reason]
    assert deltas[-1].finish_reason is not None
    assert all(d.text or d.reasoning or d.tool_calls or d.logprobs or d.finish_reason for d in deltas)


def test_text_comes_as_soon_as_it_is_certain(tokenizer: Tokenizer) -> None:
    job = job_of(tokenizer, thinking=True, stop=("END",))
    portions = [[byte] for part in "so \n</think>\n\nyes ENd" for byte in tokenizer.encode_plain(part)]
    deltas = run(job, portions)
    assert "".join(delta.reasoning for delta in deltas) == "so"
    assert [delta.text for delta in deltas if delta.text] == ["y", "e", "s", " ", "ENd"]


def test_an_answer_that_never_stops_thinking_has_no_text(tokenizer: Tokenizer) -> None:
    job = job_of(tokenizer, thinking=True)
    deltas = run(job, [[token] for token in tokenizer.encode_plain(" on and on </thi")])
    assert all(not delta.text for delta in deltas)
    assert job.answer().reasoning == "on and on </thi"


def test_of_two_stop_strings_the_one_that_is_complete_first_wins(tokenizer: Tokenizer) -> None:
    for portions in ([tokenizer.encode_plain("xabcd")], [[token] for token in tokenizer.encode_plain("xabcd")]):
        for stops, text in ((("abcd", "b"), "xa"), (("c", "bc", "abcd"), "xa"), (("d", "x"), "")):
            job = job_of(tokenizer, thinking=False, stop=stops)
            assert joined(run(job, portions))[0] == job.answer().text == text


MESSAGES = [{"role": "user", "content": "Think."}]
OPTIONS: dict[str, Any] = {
    "enable_thinking": True,
    "temperature": 1.0,
    "seed": 0,
    "max_tokens": 60,
    "n": 2,
    "logprobs": 2,
}


@pytest.fixture(scope="module")
def vlm(seeded_checkpoint: Callable[[int], Path]) -> pocketvlm.VLM:
    """A model that soon likes to end its reasoning."""
    vlm = pocketvlm.load(seeded_checkpoint(0))
    vlm.defaults["logit_bias"] = {vlm.processor.tokenizer.control_id("</think>"): 3.0}
    return vlm


def test_streams_of_both_interfaces_are_the_answers_and_reasoning_is_no_text(vlm: pocketvlm.VLM) -> None:
    answer = vlm.chat(MESSAGES, **OPTIONS)
    answers = [answer, *answer.alternatives]
    assert all(one.reasoning and one.text and "</think>" not in one.reasoning for one in answers)
    stream = vlm.stream(MESSAGES, **OPTIONS)
    assert "".join(stream) == answer.text
    assert stream.answer.text == answer.text

    async def ask() -> tuple[str, list[Delta]]:
        async with AsyncVLM(pocketvlm.VLM(vlm.runner, vlm.processor, vlm.defaults)) as other:
            pieces = [piece async for piece in other.stream(MESSAGES, **OPTIONS)]
            return "".join(pieces), [delta async for delta in other.run(await other.prepare(MESSAGES, **OPTIONS))]

    text, deltas = asyncio.run(ask())
    assert text == answer.text
    for found in (list(vlm.stream(MESSAGES, **OPTIONS).deltas()), deltas):
        for index, one in enumerate(answers):
            own = [delta for delta in found if delta.index == index]
            assert joined(own) == (one.text, one.reasoning, one.tool_calls, one.logprobs)
            assert own[-1].finish_reason == one.finish_reason


def test_tags_of_boxes_are_part_of_the_text_where_they_are_asked_for() -> None:
    picture = Path(__file__).parents[2] / "examples" / "second.png"
    with pocketvlm.load() as vlm:
        question = "Where is the yellow star? Answer with a box."
        bare, tagged = (vlm.ask(picture, question, skip_special_tokens=skip) for skip in (True, False))
        assert tagged.token_ids == bare.token_ids
        assert tagged.text == f"<box>{bare.text}</box>"
        stream = vlm.stream(question_messages(picture, question), skip_special_tokens=False)
        assert "".join(stream) == tagged.text
