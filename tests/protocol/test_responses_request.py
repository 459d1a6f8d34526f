"""OpenAI's Responses: every field is translated or refused by its name, and items become messages."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketvlm.api.vlm import PROMPT_OPTIONS
from pocketvlm.engine.sampling.params import SamplingParams
from pocketvlm.errors import PocketVLMError
from pocketvlm.grammar.structured_outputs import StructuredOutputs
from pocketvlm.processing.prompt.messages import check_messages
from pocketvlm.protocol.responses_input import read_input
from pocketvlm.protocol.responses_request import RESPONSE_FIELDS, parse_response_request

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "name": "weather", "parameters": PARAMETERS}
NESTED = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
SCHEMA = {"type": "object", "properties": {"total": {"type": "number"}}}
PICTURE = {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "auto"}


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"max_output_tokens": 5}, {"max_tokens": 5}),
        ({"temperature": 0, "top_p": 0.5, "seed": 3}, {"temperature": 0, "top_p": 0.5, "seed": 3}),
        ({"include": ["message.output_text.logprobs"], "top_logprobs": 2}, {"logprobs": 2}),
        ({"include": ["message.output_text.logprobs"]}, {"logprobs": 0}),
        ({"include": ["reasoning.encrypted_content"], "top_logprobs": 0}, {}),
        ({"text": {"format": {"type": "text"}, "verbosity": "medium"}}, {}),
        ({"text": {"format": {"type": "json_object"}}}, {"structured_outputs": StructuredOutputs(json_object=True)}),
        (
            {"text": {"format": {"type": "json_schema", "name": "bill", "schema": SCHEMA, "strict": True}}},
            {"structured_outputs": StructuredOutputs(json=SCHEMA)},
        ),
        ({"tools": [TOOL]}, {"tools": [NESTED]}),
        ({"tools": [{**TOOL, "strict": None, "description": None, "defer_loading": False}]}, {"tools": [NESTED]}),
        ({"tools": [TOOL], "tool_choice": "none"}, {}),
        (
            {"tools": [TOOL], "parallel_tool_calls": False},
            {"tools": [NESTED], "structured_outputs": StructuredOutputs(tools=[NESTED], parallel_tool_calls=False)},
        ),
        ({"tools": [], "tool_choice": "auto"}, {}),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "name": "weather"}},
            {"tools": [NESTED], "structured_outputs": StructuredOutputs(tools=[NESTED], tool_choice="weather")},
        ),
        ({"reasoning": {"effort": "none", "summary": "auto"}}, {"enable_thinking": False}),
        ({"reasoning": {"effort": None}, "chat_template_kwargs": {"enable_thinking": True}}, {"enable_thinking": True}),
        ({"mm_processor_kwargs": {"downsample_mode": "4x"}}, {"downsample_mode": "4x"}),
        ({"store": True, "background": False, "truncation": "disabled", "metadata": {"a": "b"}, "user": "me"}, {}),
        ({"previous_response_id": None, "conversation": None, "max_tool_calls": 3, "parallel_tool_calls": True}, {}),
    ],
)
def test_fields_become_options(fields: dict[str, Any], options: dict[str, Any]) -> None:
    request = parse_response_request({"input": "Hello", "model": "m", **fields})
    assert request.options == options
    assert (request.model, request.messages) == ("m", [{"role": "user", "content": "Hello"}])


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"previous_response_id": "resp_1"}, "'previous_response_id' is not supported. Nothing is stored"),
        ({"conversation": {"id": "c"}}, "'conversation' is not supported. Nothing is stored"),
        ({"background": True}, "background=True is not supported"),
        ({"prompt": {"id": "p"}}, "'prompt' is not supported"),
        ({"truncation": "auto"}, "truncation='auto'"),
        ({"max_tokens": 5}, "Use max_output_tokens"),
        ({"n": 2}, "'n' is not supported"),
        ({"colour": "red"}, "'colour' is not supported"),
        ({"top_logprobs": 3}, "means nothing without logprobs"),
        ({"include": ["everything"]}, "include has 'everything'"),
        ({"reasoning": {"effort": "high"}}, r"reasoning.effort='high' is not supported.*enable_thinking"),
        ({"reasoning": {"summary": "detailed"}}, r"reasoning.summary='detailed'"),
        ({"reasoning": {"effort": "none"}, "chat_template_kwargs": {"enable_thinking": True}}, "contradict"),
        (
            {"include": ["message.output_text.logprobs"], "chat_template_kwargs": {"enable_thinking": True}},
            "include message.output_text.logprobs and enable_thinking",
        ),
        ({"text": {"format": {"type": "xml"}}}, "the type of text.format is 'xml'"),
        ({"text": {"format": {"type": "text", "name": "x"}}}, "text.format of type text has no field 'name'"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema is missing"),
        ({"text": {"format": {"type": "json_schema", "schema": {}, "colour": 1}}}, "no field 'colour'"),
        ({"text": {"verbosity": "low"}}, r"text.verbosity='low'"),
        ({"tools": [TOOL], "text": {"format": {"type": "json_object"}}}, "tools and text.format were both given"),
        ({"tools": [{"type": "web_search"}]}, r"tools\[0\]: the type is 'web_search'"),
        ({"tools": [NESTED]}, r"tools\[0\].name is missing"),
        ({"tools": [{**TOOL, "colour": 1}]}, "has no field 'colour'"),
        ({"tools": [TOOL], "tool_choice": {"type": "file_search"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "weather", "colour": 1}}, "tool_choice"),
        ({"tool_choice": "required"}, "means nothing without tools"),
        ({"stream_options": {"include_usage": True}}, "include_usage"),
        ({"input": []}, "input is empty"),
        ({"input": None}, "'input' is missing"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, r"input\[0\]: the type is 'item_reference'.*stored"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]}, "Nothing is stored"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "needs file_data or file_url"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "x"}]}]}, "give image_url"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "image_url is missing"),
        ({"input": [{"role": "tool", "content": "x"}]}, r"input\[0\].role is 'tool'"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, r"input\[0\].call_id is missing"),
        ({"input": [{"role": "assistant", "content": [PICTURE]}]}, r"input\[0\].content\[0\].*text only"),
        ({"input": [{"role": "user", "content": "a", "colour": 1}]}, "no field 'colour'"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_its_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(PocketVLMError, match=named):
        parse_response_request({"input": "Hello", **fields})


def test_items_become_messages_and_those_of_the_assistant_one_turn() -> None:
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "Which city?"}, PICTURE]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "Let me see.", "annotations": [], "logprobs": []}],
        },
        {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "weather", "arguments": "{}"},
        {"type": "function_call", "id": None, "call_id": "call_2", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": "rain"},
        {"type": "function_call_output", "call_id": "call_2", "output": [PICTURE]},
        {"role": "assistant", "content": "Rain."},
        {"role": "user", "content": "Thanks."},
    ]
    messages, places = read_input(items, "Be short.")
    assert [message["role"] for message in messages] == [
        "system",
        "user",
        "assistant",
        "tool",
        "tool",
        "assistant",
        "user",
    ]
    assert places == ["instructions", *(f"input[{i}]" for i in (0, 1, 5, 6, 7, 8))]
    turn = messages[2]
    assert (turn["reasoning_content"], turn["content"]) == ("Hm.", "Let me see.")
    assert [call["id"] for call in turn["tool_calls"]] == ["call_1", "call_2"]
    assert len(check_messages(messages).media) == 2


def test_two_texts_of_the_assistant_stay_two_messages_and_thoughts_alone_are_one() -> None:
    texts = [{"role": "assistant", "content": text} for text in "ab"]
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]}
    messages, _ = read_input([{"role": "user", "content": "x"}, *texts, thought], None)
    assert [message.get("content") for message in messages] == ["x", "a", "b", ""]
    assert messages[-1]["reasoning_content"] == "Hm."
    check_messages(messages)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "role", "content", "name", "call_id", "arguments", "output", "format", "text"]),
            inner | st.sampled_from(["message", "function_call", "reasoning", "input_text", "user", "function"]),
            max_size=4,
        )
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(sorted(RESPONSE_FIELDS)), json_values, max_size=4), st.booleans())
def test_any_value_of_any_field_is_taken_or_refused_in_one_line(fields: dict[str, Any], tools: bool) -> None:
    refusal = ""
    try:
        body = {"input": "Hello", **({"tools": [TOOL]} if tools else {}), **fields}
        options = parse_response_request(body).options
    except PocketVLMError as error:
        options, refusal = {}, str(error)
    assert "\n" not in refusal
    assert options.keys() <= {*PROMPT_OPTIONS, *SamplingParams.__dataclass_fields__}


@given(st.lists(json_values, min_size=1, max_size=4))
def test_any_items_are_messages_or_refused(items: list[Any]) -> None:
    try:
        messages, places = read_input(items, None)
    except PocketVLMError:
        return
    assert len(messages) == len(places)


def test_a_response_says_back_what_was_asked_and_what_holds_where_nothing_was() -> None:
    assert parse_response_request({"input": "Hello", "text": {"format": None}}).echo == {
        "metadata": {},
        "tools": [],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "top_logprobs": 0,
        "text": {"format": {"type": "text"}},
        "reasoning": {"effort": None, "summary": None},
    }
    asked = {"metadata": {"a": "b"}, "instructions": "Look.", "max_output_tokens": 5, "tool_choice": "none"}
    asked |= {"text": {"format": {"type": "json_object"}}, "parallel_tool_calls": False}
    found = parse_response_request({"input": "Hello", "tools": [TOOL], **asked}).echo
    assert {name: found[name] for name in asked} == asked
    assert found["tools"] == [{"strict": None, **TOOL}]
