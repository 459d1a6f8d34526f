"""OpenAI's bodies: every field is translated or refused by its name, and answers become what clients read."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketvlm.api.answers import Answer, TokenLogprob, Usage
from pocketvlm.api.vlm import PROMPT_OPTIONS
from pocketvlm.engine.sampling.params import SamplingParams
from pocketvlm.errors import ConfigError, EngineError, MediaError, PocketVLMError, QueueFullError
from pocketvlm.grammar.structured_outputs import StructuredOutputs
from pocketvlm.processing.prompt.messages import check_messages
from pocketvlm.protocol.chat_request import FIELDS, MM_PROCESSOR_KWARGS, parse_chat_completion
from pocketvlm.protocol.chat_response import chat_completion, error_response, to_json
from pocketvlm.tools.calls import ToolCall, parse_tool_calls

HELLO = [{"role": "user", "content": "Hello"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    },
}

FUNCTION: dict[str, Any] = TOOL["function"]  # type: ignore[assignment]
STRICT = {"type": "function", "function": {**FUNCTION, "name": "strict", "strict": True}}
LENIENT = {"type": "function", "function": {**FUNCTION, "strict": False}}


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"max_tokens": 5}, {"max_tokens": 5}),
        ({"max_completion_tokens": 5, "max_tokens": 5}, {"max_tokens": 5}),
        ({"temperature": 0, "top_p": 0.5, "seed": 3, "n": 2}, {"temperature": 0, "top_p": 0.5, "seed": 3, "n": 2}),
        ({"stop": "x", "presence_penalty": None}, {"stop": "x"}),
        ({"logprobs": True}, {"logprobs": 0}),
        ({"logprobs": True, "top_logprobs": 4}, {"logprobs": 4}),
        ({"logit_bias": {"17": -100}}, {"logit_bias": {17: -100}}),
        ({"mm_processor_kwargs": {"downsample_mode": "4x"}}, {"downsample_mode": "4x"}),
        ({"chat_template_kwargs": {"enable_thinking": True}}, {"enable_thinking": True}),
        ({"mm_processor_kwargs": {"max_slice_nums": 4, "stack_frames": None}}, {"max_slice_nums": 4}),
        ({"response_format": {"type": "text", "json_schema": None}}, {}),
        ({"response_format": {"type": "json_object"}}, {"structured_outputs": StructuredOutputs(json_object=True)}),
        ({"structured_outputs": {"regex": "a+"}}, {"structured_outputs": StructuredOutputs(regex="a+")}),
        (
            {"structured_outputs": {"json": {}, "disable_any_whitespace": True}},
            {"structured_outputs": StructuredOutputs(json={}, disable_any_whitespace=True)},
        ),
        ({"tools": [TOOL]}, {"tools": [TOOL]}),
        ({"tools": [TOOL], "tool_choice": "none"}, {}),
        ({"tools": [TOOL], "response_format": {"type": "text", "json_schema": None}}, {"tools": [TOOL]}),
        (
            {"tools": [TOOL], "tool_choice": "none", "response_format": {"type": "json_object"}},
            {"structured_outputs": StructuredOutputs(json_object=True)},
        ),
        (
            {"tools": [TOOL, STRICT]},
            {"tools": [TOOL, STRICT], "structured_outputs": StructuredOutputs(tools=[TOOL, STRICT])},
        ),
        ({"tools": [LENIENT], "parallel_tool_calls": True}, {"tools": [LENIENT]}),
        (
            {"tools": [TOOL], "parallel_tool_calls": False},
            {"tools": [TOOL], "structured_outputs": StructuredOutputs(tools=[TOOL], parallel_tool_calls=False)},
        ),
        ({"parallel_tool_calls": False}, {}),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "weather"}}},
            {"tools": [TOOL], "structured_outputs": StructuredOutputs(tools=[TOOL], tool_choice="weather")},
        ),
        ({"user": "me", "store": True, "service_tier": "flex", "metadata": {"a": "b"}, "safety_identifier": "x"}, {}),
        ({"prompt_cache_key": "k", "prediction": {"type": "content", "content": "x"}, "modalities": ["text"]}, {}),
        ({"tool_choice": "auto"}, {}),
        ({"tool_choice": "none", "tools": []}, {}),
        ({"tool_choice": "auto", "tools": [], "response_format": {"type": "text"}}, {}),
        ({"logprobs": False, "top_logprobs": 0}, {}),
        ({"reasoning_effort": "none"}, {"enable_thinking": False}),
        ({"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": False}}, {"enable_thinking": False}),
        ({"seed": -(2**63), "stop_token_ids": [3]}, {"seed": -(2**63), "stop_token_ids": [3]}),
        ({"seed": 2**63 - 1}, {"seed": 2**63 - 1}),
    ],
)
def test_fields_become_options(fields: dict[str, Any], options: dict[str, Any]) -> None:
    request = parse_chat_completion({"messages": HELLO, "model": "m", **fields})
    assert request.options == options
    assert (request.model, request.messages, request.stream) == ("m", HELLO, False)
    SamplingParams.from_options(
        {k: v for k, v in options.items() if k in SamplingParams.__dataclass_fields__}, {"temperature": 0.0}
    )


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"audio": {}}, "audio"),
        ({"prediction": "x"}, "prediction is 'x'"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"verbosity": "low"}, "verbosity='low' is not supported"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls is 'no'"),
        ({"reasoning_effort": "high"}, "reasoning_effort='high' is not supported.*enable_thinking"),
        ({"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}}, "contradict each other"),
        ({"best_of": 2}, "Use n"),
        ({"downsample_mode": "4x"}, "Use mm_processor_kwargs"),
        ({"temperature": "hot"}, "temperature"),
        ({"n": True}, "n is True"),
        ({"store": "yes"}, "store"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "differ"),
        ({"top_logprobs": 3}, "means nothing without logprobs"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"stream_options": {"include_usage": True}}, "stream"),
        ({"response_format": {"type": "xml"}}, "xml"),
        ({"structured_outputs": {"disable_any_whitespace": True}}, "has 0 kinds"),
        ({"structured_outputs": {"regex": "a", "disable_any_whitespace": True}}, "means nothing for regex"),
        ({"structured_outputs": {"json": {}, "disable_any_whitespace": 1}}, "expected true or false"),
        ({"tool_choice": "required"}, "means nothing without tools"),
        ({"tool_choice": "required", "tools": []}, "means nothing without tools"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "means nothing without tools"),
        ({"tools": [TOOL], "tool_choice": "maybe"}, "maybe"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": "weather"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "auto"}}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "time"}}}, "'time' is no tool"),
        ({"temperature": float("nan")}, "temperature"),
        ({"tools": [TOOL], "tool_choice": "required", "response_format": {"type": "json_object"}}, "both given"),
        ({"tools": [TOOL], "response_format": {"type": "json_object"}}, "tools and response_format were both given"),
        ({"tools": [TOOL], "structured_outputs": {"regex": "a"}}, "tools and structured_outputs were both given"),
        ({"tools": [{"type": "function", "function": {"name": "f", "strict": "yes"}}]}, "strict is 'yes'"),
        ({"mm_processor_kwargs": {"fps": 1}}, "fps"),
        ({"chat_template_kwargs": {"template": "x"}}, "template"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_its_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(PocketVLMError, match=named):
        parse_chat_completion({"messages": HELLO, **fields})


def test_every_option_of_the_processor_has_its_place_in_a_body() -> None:
    assert {*MM_PROCESSOR_KWARGS, "enable_thinking", "tools"} == set(PROMPT_OPTIONS)


def test_a_stream_may_tell_its_usage() -> None:
    options = {"include_usage": True, "include_obfuscation": False}
    request = parse_chat_completion({"messages": HELLO, "stream": True, "stream_options": options})
    assert (request.stream, request.include_usage, request.options) == (True, True, {})


INTEGERS = ("max_tokens", "max_completion_tokens", "min_tokens", "top_k", "n", "seed", "top_logprobs")


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 2**64, 10**100, -(10**5000)], ids=lambda v: v.bit_length())
def test_integers_beyond_64_bits_are_refused_wherever_one_stands(value: int) -> None:
    bodies: list[tuple[str, Any]] = [(name, value) for name in INTEGERS]
    bodies += [("stop_token_ids", [1, value]), ("mm_processor_kwargs", {"max_slice_nums": value})]
    for name, given_value in bodies:
        with pytest.raises(ConfigError, match=r"(expected|beyond) an? (list of )?integer") as caught:
            parse_chat_completion({"messages": HELLO, "logprobs": True, name: given_value})
        assert len(str(caught.value)) < 200
    with pytest.raises(ConfigError, match="expected a token id"):
        parse_chat_completion({"messages": HELLO, "logit_bias": {"9" * 4000: 1}})


def nested(levels: int) -> Any:
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


DEEP = nested(100_000)
ODD = [
    float("inf"),
    float("nan"),
    DEEP,
    {"json": DEEP},
    {"type": "json_schema", "json_schema": {"schema": {"x": DEEP}}},
]
ODD += ["\ud800", ["\ud800"], {"a": "\ud800"}, {"\ud800": "a"}, {"type": "function", "function": DEEP}]


@pytest.mark.parametrize("name", sorted(FIELDS - {"messages"}))
def test_what_is_no_number_deep_nests_and_half_characters_are_one_line_in_any_field(name: str) -> None:
    for value in ODD:
        fault = ""
        try:
            options = parse_chat_completion({"messages": HELLO, name: value}).options
        except PocketVLMError as error:
            fault, options = str(error), {}
        assert options == {}
        assert "\n" not in fault
        assert len(fault.encode()) < 300
        assert fault or name == "prediction"  # whose inside has no effect


def test_a_negative_zero_is_zero() -> None:
    options = parse_chat_completion({"messages": HELLO, "temperature": -0.0, "max_tokens": 5, "seed": -0}).options
    assert SamplingParams.from_options(options, {}).temperature == 0


# Whatever a stranger may write under a field.
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "function", "name", "json", "regex", "7", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(sorted(FIELDS)), json_values, max_size=4), st.booleans())
def test_any_value_of_any_field_is_taken_or_refused_in_one_line(fields: dict[str, Any], tools: bool) -> None:
    refusal = ""
    try:
        options = parse_chat_completion({"messages": HELLO, **({"tools": [TOOL]} if tools else {}), **fields}).options
    except PocketVLMError as error:
        options, refusal = {}, str(error)
    assert "\n" not in refusal
    assert options.keys() <= {*PROMPT_OPTIONS, *SamplingParams.__dataclass_fields__}


def test_a_body_without_messages_or_no_object_is_refused() -> None:
    for body in ({}, {"messages": "Hello"}, [], "x"):
        with pytest.raises(ConfigError):
            parse_chat_completion(body)  # type: ignore[arg-type]


def calls_of(text: str) -> tuple[ToolCall, ...]:
    return parse_tool_calls(text, [TOOL])[1]


def test_answers_become_choices_with_tool_calls_logprobs_and_usage() -> None:
    call = "<tool_call>\n<function=weather>\n<parameter=city>\nBonn\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
    call += "</function>\n</tool_call>"
    logprobs = (TokenLogprob(5, "Hi", -0.5, ((5, "Hi", -0.5), (6, "\ufffd", -1.5))),)
    answers = [
        Answer("Hi", Usage(10, 4, 1, 8), {}, "stop", "because", (5,), logprobs),
        Answer("Let me see.", Usage(10, 4, 20, 8), {}, "stop", tool_calls=calls_of(call)),
    ]
    body = chat_completion(answers, id="chatcmpl-1", created=7, model="m")
    one, two = body["choices"]
    assert one["message"] == {"role": "assistant", "content": "Hi", "refusal": None, "reasoning_content": "because"}
    assert one["logprobs"].keys() == {"content", "refusal"}
    assert one["logprobs"]["content"][0]["top_logprobs"][0] == {"token": "Hi", "logprob": -0.5, "bytes": [72, 105]}
    assert one["logprobs"]["content"][0]["top_logprobs"][1]["bytes"] is None
    assert two["message"]["content"] == "Let me see."
    assert two["message"]["tool_calls"][0]["function"] == {
        "name": "weather",
        "arguments": '{"city": "Bonn", "days": 3}',
    }
    assert (one["finish_reason"], two["finish_reason"]) == ("stop", "tool_calls")
    assert body["usage"]["completion_tokens"] == 21
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 8}


def test_a_body_is_json_whatever_the_model_said() -> None:
    logprobs = (TokenLogprob(5, "x", -math.inf, ((5, "x", -math.inf),)),)
    call = (
        '<tool_call>\n<function=weather>\n<parameter=days>\n["\\ud800", 1e999]\n</parameter>\n</function>\n</tool_call>'
    )
    answer = Answer("", Usage(1, 0, 1), {}, "length", None, (5,), logprobs, calls_of(call))
    body = chat_completion([answer], id="chatcmpl-1", created=7, model="m")
    assert json.loads(json.dumps(body, ensure_ascii=False, allow_nan=False).encode()) == body
    (choice,) = body["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (None, "length")
    (one,) = choice["message"]["tool_calls"]
    assert json.loads(one["function"]["arguments"]) == {"days": '["\\ud800", 1e999]'}


@pytest.mark.parametrize("logprob", [-math.inf, math.nan, -1e5, 1e-7, 0.0, -0.5])
def test_every_logprob_is_a_number_that_json_has(logprob: float) -> None:
    answer = Answer("x", Usage(1, 0, 1), {}, "stop", None, (5,), (TokenLogprob(5, "x", logprob, ((5, "x", logprob),)),))
    body = json.loads(to_json(chat_completion([answer], id="chatcmpl-1", created=7, model="m")))
    token = body["choices"][0]["logprobs"]["content"][0]
    expected = logprob if -9999 <= logprob <= 0 else 0.0 if logprob > 0 else -9999.0
    assert token["logprob"] == token["top_logprobs"][0]["logprob"] == expected


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_json_has_no_word_for_is_not_written(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        to_json({"a": [value]})


texts = st.lists(
    st.sampled_from(
        [
            "<tool_call>",
            "</tool_call>",
            "<function=weather>",
            "</function>",
            "<parameter=city>",
            "</parameter>",
            "\n",
            "x",
        ]
    )
)


@given(texts.map("".join), st.sampled_from(["stop", "length"]), st.booleans())
def test_the_reason_tells_of_calls_exactly_where_there_are_some(text: str, reason: str, has_tools: bool) -> None:
    whole = "<tool_call>\n<function=weather>\n</function>\n</tool_call>"
    for said in (text, text + whole):
        beside, found = parse_tool_calls(said, [TOOL]) if has_tools else (said, ())
        answer = Answer(beside, Usage(1, 0, 1), {}, reason, tool_calls=found)
        body = chat_completion([answer], id="c", created=7, model="m")
        (choice,) = body["choices"]
        calls = choice["message"].get("tool_calls")
        assert calls is None or (has_tools and len(calls) > 0)
        assert choice["finish_reason"] == ("tool_calls" if calls and reason == "stop" else reason)
        assert calls or choice["message"]["content"] == said


def test_faults_of_users_are_400_and_ours_are_500_without_details() -> None:
    status, body = error_response(MediaError("no picture"))
    assert status == 400
    assert body["error"] == {
        "message": "no picture", "type": "invalid_request_error", "param": None, "code": "invalid_media"
    }  # fmt: skip
    status, body = error_response(EngineError("secret insides"))
    assert status == 500
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert "secret" not in body["error"]["message"]


def test_a_full_queue_is_no_fault_of_the_request() -> None:
    status, body = error_response(QueueFullError("2 requests are waiting", hint="Try again later."))
    assert (status, body["error"]["type"]) == (429, "rate_limit_error")
    assert "Try again later" in body["error"]["message"]


def test_an_answer_can_be_sent_back_as_it_came() -> None:
    """What clients do: they append the message of a choice to the conversation."""
    call = "<tool_call>\n<function=weather>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>"
    for said in (call, "Hi", f"Well. {call}"):
        text, calls = parse_tool_calls(said, [TOOL])
        answer = Answer(text, Usage(1, 0, 1), {}, "stop", "because", tool_calls=calls)
        message = chat_completion([answer], id="chatcmpl-1", created=7, model="m")["choices"][0]["message"]
        replies = [{"role": "tool", "tool_call_id": c["id"], "content": "x"} for c in message.get("tool_calls", [])]
        (_, checked, *_) = check_messages([*HELLO, message, *replies]).messages
        assert [c["function"]["arguments"] for c in checked.get("tool_calls", [])] == [{"days": 3} for _ in replies]
