"""OpenAI's bodies: every field is translated or refused by its name, and answers become what clients read."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketvlm.api.answers import Answer, EngineError, TokenLogprob, Usage
from pocketvlm.api.vlm import PROMPT_OPTIONS
from pocketvlm.engine.sampling.params import SamplingParams
from pocketvlm.errors import ConfigError, MediaError, PocketVLMError, QueueFullError
from pocketvlm.grammar.structured_outputs import StructuredOutputs
from pocketvlm.processing.prompt.messages import check_messages
from pocketvlm.protocol.chat_request import FIELDS, MM_PROCESSOR_KWARGS, parse_chat_completion
from pocketvlm.protocol.chat_response import chat_completion, error_response

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
        ({"tools": [LENIENT]}, {"tools": [LENIENT]}),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "weather"}}},
            {"tools": [TOOL], "structured_outputs": StructuredOutputs(tools=[TOOL], tool_choice="weather")},
        ),
        ({"user": "me", "store": False, "service_tier": "auto"}, {}),
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
        ({"prediction": {}}, "prediction"),
        ({"best_of": 2}, "Use n"),
        ({"downsample_mode": "4x"}, "Use mm_processor_kwargs"),
        ({"temperature": "hot"}, "temperature"),
        ({"n": True}, "n is True"),
        ({"store": True}, "store"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "differ"),
        ({"top_logprobs": 3}, "means nothing without logprobs"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"stream_options": {"include_usage": True}}, "stream"),
        ({"response_format": {"type": "xml"}}, "xml"),
        ({"tool_choice": "required"}, "means nothing without tools"),
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


def test_a_developer_is_the_system_and_a_stream_may_tell_its_usage() -> None:
    said = [{"role": "developer", "content": "Be brief."}, *HELLO]
    request = parse_chat_completion({"messages": said, "stream": True, "stream_options": {"include_usage": True}})
    assert request.messages == [{"role": "system", "content": "Be brief."}, *HELLO]
    assert (request.stream, request.include_usage, request.options) == (True, True, {})
    assert said[0]["role"] == "developer"


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


def test_answers_become_choices_with_tool_calls_logprobs_and_usage() -> None:
    call = "<tool_call>\n<function=weather>\n<parameter=city>\nBonn\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
    call += "</function>\n</tool_call>"
    logprobs = (TokenLogprob(5, "Hi", -0.5, ((5, "Hi", -0.5), (6, "\ufffd", -1.5))),)
    answers = [
        Answer("Hi", Usage(10, 4, 1, 8), {}, "stop", "because", (5,), logprobs),
        Answer(f"Let me see.\n\n{call}", Usage(10, 4, 20, 8), {}, "stop"),
    ]
    body = chat_completion(answers, id="chatcmpl-1", created=7, model="m", tools=[TOOL])
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
    answer = Answer(call, Usage(1, 0, 1), {}, "length", None, (5,), logprobs)
    body = chat_completion([answer], id="chatcmpl-1", created=7, model="m", tools=[TOOL])
    assert json.loads(json.dumps(body, ensure_ascii=False, allow_nan=False).encode()) == body
    (choice,) = body["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (None, "length")
    (one,) = choice["message"]["tool_calls"]
    assert json.loads(one["function"]["arguments"]) == {"days": '["\\ud800", 1e999]'}
    without = chat_completion([answer], id="chatcmpl-1", created=7, model="m")["choices"][0]["message"]
    assert without == {"role": "assistant", "content": call, "refusal": None}


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
    for text in (call, "Hi", f"Well. {call}"):
        answer = Answer(text, Usage(1, 0, 1), {}, "stop", "because")
        message = chat_completion([answer], id="chatcmpl-1", created=7, model="m", tools=[TOOL])["choices"][0][
            "message"
        ]
        replies = [{"role": "tool", "tool_call_id": c["id"], "content": "x"} for c in message.get("tool_calls", [])]
        (_, checked, *_) = check_messages([*HELLO, message, *replies]).messages
        assert [c["function"]["arguments"] for c in checked.get("tool_calls", [])] == [{"days": 3} for _ in replies]
