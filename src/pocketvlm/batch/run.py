"""Requests of a file → results, as they complete."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketvlm.batch.files import MAX_LINE, Lines, Partial, Progress, open_lines, parse_line
from pocketvlm.errors import ConfigError, PocketVLMError
from pocketvlm.processing.media.fetch import is_url
from pocketvlm.protocol.chat_request import parse_chat_completion
from pocketvlm.protocol.chat_response import chat_completion, error_response

if TYPE_CHECKING:
    from pocketvlm.api.answers import Answer
    from pocketvlm.api.vlm import VLM


def answer_all(
    vlm: VLM,
    path: Path,
    lines: Lines,
    results: Partial,
    defaults: Mapping[str, Any],
    model: str,
    concurrency: int,
    report: Progress | None = None,
) -> None:
    """Run every request that has no result yet.

    Args:
        path: the file of the requests, `lines` of it.
        defaults: options of requests that do not say otherwise.
        model: the name that lines may give, and results state.
        concurrency: requests under way at a time.
        report: called with (what, done, in all).

    Raises:
        ConfigError: the file is no longer what it was, or results cannot be written.
    """
    under_way: dict[int, tuple[str, Any]] = {}  # custom_id and tools

    def finish(index: int, outcome: list[Answer] | Exception) -> None:
        custom_id, tools = under_way.pop(index)
        results.add(index, result_line(custom_id, outcome, model, tools))
        if report:
            report("Answering", results.done, len(lines))

    def requests() -> Iterator[tuple[int, list[Any], dict[str, Any]]]:
        for index in range(len(lines)):
            if results.has(index):
                continue
            where = f"{path}, line {lines.numbers[index]}"
            file.seek(lines.offsets[index])
            line = parse_line(file.readline(MAX_LINE), where, model)
            custom_id = line["custom_id"]
            if lines.place(custom_id) != index:
                raise ConfigError(f"{where} has changed since the run began", hint="Leave it alone while it runs.")
            try:
                request = parse_chat_completion(line["body"])
                if request.stream:
                    raise ConfigError("stream is true, but a batch has no streams", hint="Leave it out.")
            except PocketVLMError as error:
                under_way[index] = custom_id, None
                finish(index, error)
                continue
            under_way[index] = custom_id, request.options.get("tools")
            yield index, beside(request.messages, path.parent), {**defaults, **request.options}

    with open_lines(path) as file:
        for index, outcome in vlm.as_completed(requests(), ahead=concurrency):
            finish(index, outcome)


def result_line(custom_id: str, outcome: list[Answer] | Exception, model: str, tools: Any = None) -> dict[str, Any]:
    """One line of the output: the answers of a request, or what was wrong with it."""
    unique = uuid.uuid4().hex
    if isinstance(outcome, Exception):
        status, body = error_response(outcome)
    else:
        created = int(time.time())
        status, body = 200, chat_completion(outcome, id=f"chatcmpl-{unique}", created=created, model=model, tools=tools)
    return {
        "id": f"batch_req_{unique}",
        "custom_id": custom_id,
        "response": {"status_code": status, "request_id": f"req_{unique}", "body": body},
        "error": None,
    }


def beside(messages: list[Any], folder: Path) -> list[Any]:
    """Messages whose pictures and videos, where they are paths, are looked for in `folder`."""

    def place(value: Any) -> Any:
        inside = isinstance(value, str) and value and not is_url(value) and value[:5].lower() != "data:"
        return str(folder / value) if inside else value

    def placed(part: Any) -> Any:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("image", "image_url", "video", "video_url"):
            return part
        value = part.get(kind)
        if isinstance(value, dict):
            return {**part, kind: {**value, "url": place(value.get("url"))}}
        return {**part, kind: [place(frame) for frame in value] if isinstance(value, list) else place(value)}

    return [
        {**message, "content": [placed(part) for part in message["content"]]}
        if isinstance(message, dict) and isinstance(message.get("content"), list)
        else message
        for message in messages
    ]
