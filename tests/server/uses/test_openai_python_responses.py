"""What people do with the Responses of the `openai` package for Python, against `pocketvlm serve`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

import openai
import pytest
from helpers.serving import Serving
from helpers.uses import data_url, document, wait_for
from openai.types.responses import ResponseFunctionToolCall
from pydantic import BaseModel, Field

TOTAL: Any = [
    {
        "role": "user",
        "content": [
            {"type": "input_image", "image_url": data_url("receipt.png"), "detail": "auto"},
            {"type": "input_text", "text": "What is the total?"},
        ],
    }
]
TOOL: Any = {
    "type": "function",
    "name": "book",
    "parameters": {
        "type": "object",
        "properties": {"total": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["total"],
        "additionalProperties": False,
    },
    "strict": True,
}
THINKING = {"chat_template_kwargs": {"enable_thinking": True}}


class Receipt(BaseModel):
    total: Annotated[int, Field(ge=0, le=99)]  # nano would write digits without end


@pytest.fixture(scope="module")
def client(server: Serving) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="secret", max_retries=0) as client:
        yield client


def test_ask_about_a_picture(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="reader", input=TOTAL, instructions="Answer shortly.", store=True)
    assert (answer.output_text, answer.status, answer.instructions) == ("11.60", "completed", "Answer shortly.")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert answer.to_dict()["store"] is False


def test_ask_about_a_file(client: openai.OpenAI) -> None:
    data = document("receipt.png")
    for part in ({"file_data": data, "filename": "a.tif"}, {"file_url": f"data:image/tiff;base64,{data}"}):
        content: list[Any] = [{"type": "input_file", **part}, {"type": "input_text", "text": "What is the total?"}]
        answer = client.responses.create(model="reader", input=[{"role": "user", "content": content}])
        assert answer.output_text == "11.60"


def test_ask_in_a_line(client: openai.OpenAI) -> None:
    assert client.responses.create(model="reader", input="Hello").output[0].type == "message"


def test_follow_a_response_by_its_events(client: openai.OpenAI) -> None:
    with client.responses.stream(
        model="reader", input=TOTAL, include=["message.output_text.logprobs"], top_logprobs=1
    ) as stream:
        events = list(stream)
        whole = stream.get_final_response()
    kinds = [event.type for event in events]
    assert (kinds[:2], kinds[-1]) == (["response.created", "response.in_progress"], "response.completed")
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text == "11.60"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    part: Any = whole.output[0].content[0]  # type: ignore[union-attr,index]
    assert "".join(token.token for token in part.logprobs).startswith("11.60")


def test_a_response_and_its_stream_say_the_same(client: openai.OpenAI) -> None:
    whole = client.responses.create(model="reader", input=TOTAL).to_dict()
    *_, last = client.responses.create(model="reader", input=TOTAL, stream=True)
    streamed: dict[str, Any] = last.response.to_dict()  # type: ignore[union-attr]

    def plain(response: dict[str, Any]) -> dict[str, Any]:
        output = [{k: v for k, v in item.items() if k != "id"} for item in response["output"]]
        usage = {k: v for k, v in response["usage"].items() if k != "input_tokens_details"}
        left_out = ("id", "created_at", "completed_at")
        return {**{k: v for k, v in response.items() if k not in left_out}, "output": output, "usage": usage}

    assert plain(streamed) == plain(whole)


def test_get_an_object_of_a_class(client: openai.OpenAI) -> None:
    answer = client.responses.parse(model="reader", input=TOTAL, text_format=Receipt)
    assert isinstance(answer.output_parsed, Receipt)


def test_carry_on_with_the_output_as_it_came(client: openai.OpenAI) -> None:
    first = client.responses.create(model="reader", input=TOTAL)
    again = client.responses.create(
        model="reader", input=[*TOTAL, *first.output, {"role": "user", "content": "What is the date?"}]
    )
    assert again.output_text == "2026-03-14"


def test_let_the_model_call_a_tool_and_tell_it_what_came_out(client: openai.OpenAI) -> None:
    called = client.responses.create(model="reader", input=TOTAL, tools=[TOOL], tool_choice="required")
    (call,) = called.output
    assert isinstance(call, ResponseFunctionToolCall)
    assert isinstance(json.loads(call.arguments)["total"], int)
    done: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "booked"}
    answer = client.responses.create(model="reader", input=[*TOTAL, *called.output, done], tools=[TOOL])
    assert answer.status == "completed"


def test_follow_the_calls_of_tools(client: openai.OpenAI) -> None:
    with client.responses.stream(model="reader", input=TOTAL, tools=[TOOL], tool_choice="required") as stream:
        pieces = [event.delta for event in stream if event.type == "response.function_call_arguments.delta"]
        (call,) = stream.get_final_response().output
    assert isinstance(call, ResponseFunctionToolCall)
    assert "".join(pieces) == call.arguments


def test_see_what_the_model_thinks(client: openai.OpenAI) -> None:
    with client.responses.stream(model="reader", input=TOTAL, max_output_tokens=30, extra_body=THINKING) as stream:
        pieces = [event.delta for event in stream if event.type == "response.reasoning_text.delta"]
        thought = stream.get_final_response().output[0]
    assert thought.type == "reasoning"
    assert "".join(pieces) == "".join(part.text for part in thought.content or ()) != ""
    again = client.responses.create(model="reader", input=[*TOTAL, thought, *TOTAL])  # type: ignore[list-item]
    assert again.status == "completed"


def test_an_answer_that_is_cut_off_says_so(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="reader", input=TOTAL, max_output_tokens=1)
    assert (answer.status, answer.output_text) == ("incomplete", "1")
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"previous_response_id": "resp_1"}, "Nothing is stored here"),
        ({"background": True}, "background=True"),
        ({"max_output_tokens": 10**7}, "max_output_tokens=10000000, this server gives at most"),
        ({"max_output_tokens": 0}, "max_output_tokens=0"),
        (
            {
                "instructions": "Look.",
                "input": [
                    {"role": "assistant", "content": "Hm."},
                    {"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,AAAA"}]},
                ],
            },
            r"input\[1\].content\[0\].*is not a JPEG",
        ),
    ],
)
def test_learn_what_was_wrong(client: openai.OpenAI, options: dict[str, Any], named: str) -> None:
    with pytest.raises(openai.BadRequestError, match=named):
        client.responses.create(**{"model": "reader", "input": TOTAL, **options})


def test_leave_a_stream_before_its_end(server: Serving, client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"max_output_tokens": 20_000, "extra_body": {"ignore_eos": True}}
    with client.responses.create(model="reader", input="Hello", stream=True, **options) as stream:
        next(iter(stream))
        wait_for(server, 1)
    wait_for(server, 0)
