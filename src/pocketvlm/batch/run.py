"""A file of requests → the file of their results, whatever stopped the run in between.

While it runs, results are appended to OUT.partial, whose first line says what they are results of; when all are there,
OUT is written in the order of the requests and the partial file goes.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketvlm.batch.requests import MAX_LINE, Lines, Progress, open_lines, parse_line, read_lines
from pocketvlm.batch.results import Results, open_partial
from pocketvlm.errors import ConfigError, PocketVLMError
from pocketvlm.files import check_output
from pocketvlm.processing.media.sources import is_path
from pocketvlm.protocol.chat_request import parse_chat_completion
from pocketvlm.protocol.chat_response import chat_completion, error_response

if TYPE_CHECKING:
    from pocketvlm.api.answers import Answer
    from pocketvlm.api.vlm import VLM


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What came of a file of requests.

    Attributes:
        requests, succeeded, failed: counts; refusals are failures too.
        resumed: how many results an earlier run left.
        seconds: of this run, loading included.
        output_tokens: of all answers.
    """

    requests: int
    succeeded: int
    failed: int
    resumed: int
    seconds: float
    output_tokens: int


def check_paths(requests: Path, out: Path, *, overwrite: bool) -> None:
    """Raise `ConfigError` where results must not be written to `out`; it may be there only with `overwrite`."""
    if check_output(out, inputs=[requests]) and not overwrite:
        raise ConfigError(f"{out} is already there", hint="Pass --overwrite, or give another name.")


def run_batch(
    requests: Path,
    out: Path,
    load: Callable[[], AbstractContextManager[VLM]],
    *,
    model: str,
    options: Mapping[str, Any],
    identity: Mapping[str, Any],
    concurrency: int,
    overwrite: bool,
    bars: Callable[[], AbstractContextManager[Progress | None]],
) -> Summary:
    """Answer every request once, and write the results in the order of the requests.

    Args:
        load: opens the model; called only where an answer is missing.
        model: the name that lines may give, and results state.
        options: of requests that do not say otherwise.
        identity: what else decides the answers, as JSON values; a partial file of another one is refused.
        concurrency: requests under way at a time.
        overwrite: whether an ordinary file named `out` is replaced.
        bars: opens what shows progress: called with (what, done, in all), or None.

    Raises:
        ConfigError: a line is no request, or a file cannot be what it is to be; nothing is lost.
        OutputError: results could not be written; those so far are kept.
        KeyboardInterrupt: with how many results are kept.
    """
    check_paths(requests, out, overwrite=overwrite)
    with bars() as report:
        lines = read_lines(requests, model, report)
    settings = {"input": lines.digest, "model": model, "options": dict(options), **identity}
    began = time.perf_counter()
    with open_partial(out.with_name(out.name + ".partial"), lines, settings) as results:
        resumed = results.done
        try:
            if resumed < len(lines):
                with load() as vlm, bars() as report:
                    vlm.progress = None  # one bar is enough
                    answer_all(vlm, requests, lines, results, options, model, concurrency, report)
            check_paths(requests, out, overwrite=overwrite)  # others may have written there since
            results.write(out)
        except KeyboardInterrupt:
            kept = f"{results.done} of {len(lines)} results are kept; the same command goes on from there"
            raise KeyboardInterrupt(kept) from None
    return Summary(
        requests=len(lines),
        succeeded=len(lines) - results.failed,
        failed=results.failed,
        resumed=resumed,
        seconds=round(time.perf_counter() - began, 3),
        output_tokens=results.output_tokens,
    )


def answer_all(
    vlm: VLM,
    path: Path,
    lines: Lines,
    results: Results,
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
        ConfigError: the file is no longer what it was.
        OutputError: a result could not be written.
    """
    under_way: dict[int, str] = {}  # their custom_ids

    def finish(index: int, outcome: list[Answer] | Exception) -> None:
        results.add(index, result_line(under_way.pop(index), outcome, model))
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
            if lines.index_of(custom_id) != index:
                raise ConfigError(f"{where} has changed since the run began", hint="Leave it alone while it runs.")
            try:
                request = parse_chat_completion(line["body"])
                if request.stream:
                    raise ConfigError("stream is true, but a batch has no streams", hint="Leave it out.")
            except PocketVLMError as error:
                under_way[index] = custom_id
                finish(index, error)
                continue
            under_way[index] = custom_id
            yield index, beside(request.messages, path.parent), {**defaults, **request.options}

    with open_lines(path) as file:
        for index, outcome in vlm.as_completed(requests(), ahead=concurrency):
            finish(index, outcome)


def result_line(custom_id: str, outcome: list[Answer] | Exception, model: str) -> dict[str, Any]:
    """Make one line of the output: the answers of a request, or what was wrong with it."""
    unique = uuid.uuid4().hex
    if isinstance(outcome, Exception):
        status, body = error_response(outcome)
    else:
        created = int(time.time())
        status, body = 200, chat_completion(outcome, id=f"chatcmpl-{unique}", created=created, model=model)
    return {
        "id": f"batch_req_{unique}",
        "custom_id": custom_id,
        "response": {"status_code": status, "request_id": f"req_{unique}", "body": body},
        "error": None,
    }


def beside(messages: list[Any], folder: Path) -> list[Any]:
    """Return the messages with the paths of their pictures and videos placed in `folder`."""

    def place(value: Any) -> Any:
        return str(folder / value) if isinstance(value, str) and value and is_path(value) else value

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
