"""What people do with LangChain's ChatOpenAI, against `pocketvlm serve`."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import pytest
from helpers.serving import Serving
from helpers.uses import data_url
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

PARTS: list[Any] = [
    {"type": "image_url", "image_url": {"url": data_url("receipt.png")}},
    {"type": "text", "text": "What is the total?"},
]
TOTAL = HumanMessage(content=PARTS)


class Receipt(BaseModel):
    """A receipt."""

    total: Annotated[int, Field(ge=0, le=99)]


@tool
def book(total: Annotated[int, Field(ge=0, le=99)]) -> str:
    """Book an expense."""
    return f"booked {total}"


def model_of(server: Serving, **options: Any) -> ChatOpenAI:
    options = {"model": "reader", "api_key": "secret", "max_retries": 0, "max_tokens": 300, **options}
    return ChatOpenAI(base_url=f"{server.url}/v1", **options)


@pytest.fixture
def model(server: Serving) -> ChatOpenAI:
    return model_of(server)


def test_ask_about_a_picture(model: ChatOpenAI) -> None:
    answer = model.invoke([TOTAL])
    assert answer.content == "11.60"
    assert answer.usage_metadata is not None
    assert answer.response_metadata["finish_reason"] == "stop"


def test_ask_about_a_picture_in_langchains_own_form(model: ChatOpenAI) -> None:
    picture = {"type": "image", "base64": data_url("receipt.png").partition(",")[2], "mime_type": "image/png"}
    assert model.invoke([HumanMessage(content=[picture, PARTS[1]])]).content == "11.60"


def test_follow_an_answer_as_it_is_written(server: Serving) -> None:
    whole = None
    for chunk in model_of(server, stream_usage=True).stream([TOTAL]):
        whole = chunk if whole is None else whole + chunk
    assert whole is not None
    assert whole.content == "11.60"
    assert whole.usage_metadata is not None


def test_ask_many_questions_at_once(model: ChatOpenAI) -> None:
    answers = asyncio.run(model.abatch([[TOTAL]] * 4))
    assert [answer.content for answer in answers] == ["11.60"] * 4


def test_carry_on_a_conversation(model: ChatOpenAI) -> None:
    answer = model.invoke([TOTAL])
    assert model.invoke([TOTAL, answer, HumanMessage(content="What is the date?")]).content == "2026-03-14"


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_get_an_object_of_a_class(model: ChatOpenAI, method: Any) -> None:
    assert isinstance(model.with_structured_output(Receipt, method=method).invoke([TOTAL]), Receipt)


def test_let_the_model_call_a_tool_and_tell_it_what_came_out(model: ChatOpenAI) -> None:
    called = model.bind_tools([book], tool_choice="any").invoke([TOTAL])
    (call,) = called.tool_calls
    done = book.invoke(call)
    assert isinstance(done, ToolMessage)
    answer = model.bind_tools([book]).invoke([TOTAL, called, done])
    assert answer.content or answer.tool_calls


def test_use_responses_and_carry_on(server: Serving) -> None:
    model = model_of(server, use_responses_api=True)
    answer = model.invoke([TOTAL])
    assert answer.text == "11.60"
    again = model.invoke([TOTAL, answer, HumanMessage(content="What is the date?")])
    assert again.text == "2026-03-14"
    assert "".join(chunk.text for chunk in model.stream([TOTAL])) == "11.60"
