"""What people do with the `openai` package for Python, against `pocketvlm serve`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import openai
import pytest
from helpers.serving import NAMES, Serving
from helpers.uses import data_url, document, wait_for
from pydantic import BaseModel, Field

LONG: dict[str, Any] = {"max_tokens": 20_000, "extra_body": {"ignore_eos": True}}
SUM = {"type": "integer", "minimum": 0, "maximum": 99}  # of numbers without a bound nano would write digits for long
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "book",
        "description": "Book an expense.",
        "parameters": {
            "type": "object",
            "properties": {
                "total": {"type": "integer", "minimum": 0, "maximum": 99},
                "currency": {"enum": ["EUR", "USD"]},
            },
            "required": ["total", "currency"],
        },
    },
}


class Receipt(BaseModel):
    total: Annotated[int, Field(ge=0, le=99)]
    kind: Literal["food", "travel"]


def question(text: str, *names: str) -> list[Any]:
    """One message with examples in front of a question."""
    media: list[Any] = [
        {"type": kind, kind: {"url": data_url(name)}}
        for name in names
        for kind in ["video_url" if name.endswith("mp4") else "image_url"]
    ]
    return [{"role": "user", "content": [*media, {"type": "text", "text": text}]}]


TOTAL = question("What is the total?", "receipt.png")


@pytest.fixture(scope="module")
def client(server: Serving) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="secret", max_retries=0) as client:
        yield client


def chat(client: openai.OpenAI, messages: list[Any], **options: Any) -> Any:
    return client.chat.completions.create(**{"model": "reader", "messages": messages, "max_tokens": 300, **options})


def text_of(client: openai.OpenAI, messages: list[Any], **options: Any) -> str:
    return chat(client, messages, **options).choices[0].message.content


def test_ask_about_a_picture_in_base64(client: openai.OpenAI) -> None:
    answer = chat(client, TOTAL)
    assert answer.choices[0].message.content == "11.60"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@pytest.mark.parametrize("head", ["", "data:image/tiff;base64,"])
def test_ask_about_the_pages_of_a_file(client: openai.OpenAI, head: str) -> None:
    """Pages are pictures in their order, whether or not a client says what the file is."""
    file = {"file_data": head + document("receipt.png", "word.png"), "filename": "scan.tif"}
    content = [{"type": "file", "file": file}, {"type": "text", "text": "What is the total?"}]
    pages = chat(client, [{"role": "user", "content": content}])
    pictures = chat(client, question("What is the total?", "receipt.png", "word.png"))
    assert pages.choices[0].message.content == pictures.choices[0].message.content
    assert pages.usage.prompt_tokens == pictures.usage.prompt_tokens
    with pytest.raises(openai.BadRequestError, match="Nothing is stored here"):
        chat(client, [{"role": "user", "content": [{"type": "file", "file": {"file_id": "file-1"}}]}])


def test_ask_under_the_name_of_another_model(client: openai.OpenAI) -> None:
    assert text_of(client, TOTAL, model="gpt-4o") == "11.60"


def test_compare_two_pictures(client: openai.OpenAI) -> None:
    alone, both = (
        chat(client, question("Which picture shows a yellow star?", *names))
        for names in (["first.png"], ["first.png", "second.png"])
    )
    assert both.choices[0].message.content == "second"
    assert both.usage.prompt_tokens > alone.usage.prompt_tokens


def test_ask_about_a_video(client: openai.OpenAI) -> None:
    messages = question("Which way does the circle move?", "clip.mp4")
    assert text_of(client, messages) == "right"


def test_see_more_of_a_picture(client: openai.OpenAI) -> None:
    def prompt(mode: str) -> int:
        options = {"extra_body": {"mm_processor_kwargs": {"downsample_mode": mode}}}
        return chat(client, TOTAL, max_tokens=1, **options).usage.prompt_tokens

    assert prompt("4x") > 2 * prompt("16x")


def test_follow_an_answer_as_it_is_written(client: openai.OpenAI) -> None:
    chunks = list(chat(client, TOTAL, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "11.60"
    assert (chunks[-1].choices, chunks[-2].choices[0].finish_reason) == ([], "stop")
    assert chunks[-1].usage.completion_tokens > 1


def test_follow_an_answer_by_events(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="reader", messages=TOTAL) as stream:
        kinds = {event.type for event in stream}
        whole = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert whole.choices[0].message.content == "11.60"


def test_carry_on_a_conversation_with_answers_as_they_came(client: openai.OpenAI) -> None:
    answer = chat(client, TOTAL).choices[0].message
    for sent in (answer, answer.model_dump(), {**answer.model_dump(exclude_none=True), "annotations": [], "name": "a"}):
        messages = [*TOTAL, sent, {"role": "user", "content": "What is the date?", "name": "me"}]
        assert text_of(client, messages) == "2026-03-14"


def test_instruct_the_model_wherever_the_instruction_stands(client: openai.OpenAI) -> None:
    for role in ("system", "developer"):
        assert text_of(client, [*TOTAL, {"role": role, "content": "Answer in one word."}])


def test_draw_several_answers_again_by_their_seed(client: openai.OpenAI) -> None:
    def drawn(seed: int) -> list[str]:
        answer = chat(client, TOTAL, n=3, seed=seed, temperature=1.5)
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        return [choice.message.content for choice in answer.choices]

    assert drawn(7) == drawn(7)
    assert len({tuple(drawn(seed)) for seed in range(4)}) > 1


def test_see_how_sure_the_model_was(client: openai.OpenAI) -> None:
    answer = chat(client, TOTAL, logprobs=True, top_logprobs=2)
    tokens = answer.choices[0].logprobs.content
    assert "".join(token.token for token in tokens).startswith("11.60")
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in tokens)
    chunks = chat(client, TOTAL, logprobs=True, top_logprobs=2, stream=True)
    pieces = [piece.choices[0].logprobs for piece in chunks]
    assert [token for piece in pieces if piece for token in piece.content] == tokens


def test_end_an_answer_at_a_word_and_after_so_many_tokens(client: openai.OpenAI) -> None:
    assert text_of(client, TOTAL, stop=["."]) == "11"
    cut = chat(client, TOTAL, max_tokens=None, max_completion_tokens=1).choices[0]
    assert (cut.finish_reason, cut.message.content) == ("length", "1")


@pytest.mark.parametrize(
    ("structure", "allowed"),
    [
        ({"regex": "(EUR|USD) [0-9]{2}"}, lambda text: text[:4] in ("EUR ", "USD ") and text[4:].isdecimal()),
        ({"choice": ["food", "travel"]}, lambda text: text in ("food", "travel")),
        ({"grammar": 'start: "total " /[0-9]+/ "!"'}, lambda text: text.startswith("total ") and text[-1] == "!"),
    ],
    ids=["regex", "choice", "grammar"],
)
def test_hold_an_answer_to_a_form(client: openai.OpenAI, structure: Any, allowed: Any) -> None:
    options = {"max_tokens": 60, "extra_body": {"structured_outputs": structure}}
    answer = chat(client, TOTAL, **options).choices[0]
    assert allowed(answer.message.content) or answer.finish_reason == "length"


def test_get_json_by_a_schema(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"total": SUM},
        "required": ["total"],
        "additionalProperties": False,
    }
    kind = {"type": "json_schema", "json_schema": {"name": "receipt", "schema": schema, "strict": True}}
    assert isinstance(json.loads(text_of(client, TOTAL, response_format=kind))["total"], int)


def test_get_an_object_of_a_class(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(model="reader", messages=TOTAL, response_format=Receipt)
    assert isinstance(answer.choices[0].message.parsed, Receipt)


def test_let_the_model_call_a_tool_and_tell_it_what_came_out(client: openai.OpenAI) -> None:
    called = chat(client, TOTAL, tools=[TOOL], tool_choice="required").choices[0]
    (call,) = called.message.tool_calls
    assert (called.finish_reason, call.function.name) == ("tool_calls", "book")
    assert json.loads(call.function.arguments)["currency"] in ("EUR", "USD")
    done = {"role": "tool", "tool_call_id": call.id, "content": '{"booked": true}'}
    answer = chat(client, [*TOTAL, called.message, done], tools=[TOOL]).choices[0]
    assert answer.message.content or answer.message.tool_calls


def test_follow_the_calls_of_tools(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "book"}}}
    (whole,) = chat(client, TOTAL, **options).choices[0].message.tool_calls
    with client.chat.completions.stream(model="reader", messages=TOTAL, **options) as stream:
        for _ in stream:
            pass
        (call,) = stream.get_final_completion().choices[0].message.tool_calls or ()
    assert call.function.arguments == whole.function.arguments


def test_see_what_the_model_thinks(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"extra_body": {"chat_template_kwargs": {"enable_thinking": True}}, "max_tokens": 30}
    whole = chat(client, TOTAL, **options).choices[0].message
    chunks = list(chat(client, TOTAL, stream=True, **options))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    thought = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
    assert thought == whole.reasoning_content != ""
    assert "".join(delta.content or "" for delta in deltas) == whole.content


def test_list_the_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == list(NAMES)
    assert client.models.retrieve("gpt-4o").owned_by == "pocketvlm"


def test_learn_what_was_wrong(server: Serving, client: openai.OpenAI) -> None:
    broken = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}]
    with pytest.raises(openai.BadRequestError, match=r"messages\[0\].content\[0\].*is not a JPEG") as caught:
        chat(client, broken)
    assert (caught.value.code, caught.value.type) == ("invalid_media", "invalid_request_error")
    assert caught.value.request_id
    with pytest.raises(openai.NotFoundError):
        chat(client, TOTAL, model="gpt-5")
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        chat(stranger, TOTAL)


def test_find_a_request_again_by_its_id(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="reader", messages=TOTAL, extra_headers={"X-Request-Id": "mine-1"}
    )
    assert raw.headers["x-request-id"] == "mine-1"
    assert raw.parse().choices[0].message.content == "11.60"


def test_leave_a_stream_before_its_end(server: Serving, client: openai.OpenAI) -> None:
    with chat(client, TOTAL, stream=True, **LONG) as stream:
        next(iter(stream))
        wait_for(server, 1)
    wait_for(server, 0)


def async_client(server: Serving) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="secret", max_retries=0)


def test_ask_many_questions_at_once(server: Serving) -> None:
    async def ask() -> list[str | None]:
        async with async_client(server) as client:
            answers = await asyncio.gather(
                *(client.chat.completions.create(model="reader", messages=TOTAL) for _ in range(12))
            )
        return [answer.choices[0].message.content for answer in answers]

    assert asyncio.run(ask()) == ["11.60"] * 12


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_cancel_a_request_that_is_waited_for(server: Serving, api: str) -> None:
    async def cancel() -> None:
        async with async_client(server) as client:
            work: Any = (
                client.chat.completions.create(model="reader", messages=TOTAL, **LONG)
                if api == "chat"
                else client.responses.create(
                    model="reader", input="Hello", max_output_tokens=20_000, extra_body=LONG["extra_body"]
                )
            )
            task = asyncio.ensure_future(work)
            await asyncio.to_thread(wait_for, server, 1)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert task.cancelled()
            await asyncio.to_thread(wait_for, server, 0)

    asyncio.run(cancel())
