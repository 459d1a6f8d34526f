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

from pocketvlm.api.retry import answer_each
from pocketvlm.batch.requests import MAX_LINE, Lines, Progress, open_lines, parse_line, read_lines
from pocketvlm.batch.results import Results, open_partial
from pocketvlm.errors import ConfigError, PocketVLMError
from pocketvlm.files import check_output
from pocketvlm.processing.media.sources import is_path
from pocketvlm.protocol.chat_request import parse_chat_completion
from pocketvlm.protocol.chat_response import chat_completion, error_response
from pocketvlm.remote_files import is_remote

if TYPE_CHECKING:
    from pocketvlm.api.answers import Answer
    from pocketvlm.api.vlm import VLM


@dataclass(frozen=True)
class BatchJob:
    """A file of requests.

    Attributes:
        path: of the file, `lines` of it.
        folder: where pictures are looked for that are named by relative paths; an address, or a path.
        model: the name that lines may give, and results state.
        defaults: options of requests that do not say otherwise.
    """

    path: Path
    folder: str
    lines: Lines
    model: str
    defaults: Mapping[str, Any]

    def request(self, index: int, line: bytes) -> dict[str, Any]:
        """That of a line, which is as it was when the run began; else `ConfigError`."""
        where = f"{self.path}, line {self.lines.numbers[index]}"
        request = parse_line(line, where, self.model)
        if self.lines.index_of(request["custom_id"]) != index:
            raise ConfigError(f"{where} has changed since the run began", hint="Leave it alone while it runs.")
        return request


# Answers what has no result yet: (index, result) of each as it is complete.
Answering = Callable[[BatchJob, Results], Iterator[tuple[int, dict[str, Any]]]]


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
    answering: Callable[[], AbstractContextManager[Answering]],
    *,
    model: str,
    options: Mapping[str, Any],
    identity: Mapping[str, Any],
    overwrite: bool,
    folder: str | None = None,
    place: str | None = None,
    bars: Callable[[], AbstractContextManager[Progress | None]],
) -> Summary:
    """Answer every request once, and write the results in the order of the requests.

    Args:
        answering: opens what answers; called only where an answer is missing.
        model: the name that lines may give, and results state.
        options: of requests that do not say otherwise.
        identity: what else decides the answers, as JSON values; a partial file of another one is refused.
        overwrite: whether an ordinary file named `out` is replaced.
        folder: where relative paths of pictures begin; None is that of `requests`.
        place: as of `read_lines`.
        bars: opens what shows progress: called with (what, done, in all), or None.

    Raises:
        ConfigError: a line is no request, or a file cannot be what it is to be; nothing is lost.
        OutputError: results could not be written; those so far are kept.
        KeyboardInterrupt: with how many results are kept.
    """
    check_paths(requests, out, overwrite=overwrite)
    with bars() as report:
        lines = read_lines(requests, model, report, place)
    settings = {"input": lines.digest, "model": model, "options": dict(options), **identity}
    began = time.perf_counter()
    with open_partial(out.with_name(out.name + ".partial"), lines, settings) as results:
        resumed = results.done
        try:
            if resumed < len(lines):
                job = BatchJob(requests, folder or str(requests.parent), lines, model, options)
                with answering() as answer, bars() as report:
                    for index, result in answer(job, results):
                        results.add(index, result)
                        if report:
                            report("Answering", results.done, len(lines))
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


def answer_here(vlm: VLM, concurrency: int, job: BatchJob, results: Results) -> Iterator[tuple[int, dict[str, Any]]]:
    """`Answering` by one model in this process, of which `concurrency` requests are under way at a time."""
    custom_ids: dict[int, str] = {}  # of those under way
    vlm.progress = None  # one bar is enough
    with open_lines(job.path) as file:

        def request(index: int) -> tuple[list[Any], dict[str, Any]] | PocketVLMError:
            file.seek(job.lines.offsets[index])
            found = job.request(index, file.readline(MAX_LINE))
            custom_ids[index] = found["custom_id"]
            try:
                return conversation_of(found, job.folder, job.defaults)
            except PocketVLMError as error:
                return error

        for index, outcome in answer_each(vlm, missing(job.lines, results), request, concurrency):
            yield index, result_line(custom_ids.pop(index), outcome, job.model)


def missing(lines: Lines, results: Results) -> Iterator[int]:
    """The requests that have no result yet."""
    return (index for index in range(len(lines)) if not results.has(index))


def conversation_of(
    request: Mapping[str, Any], folder: str, defaults: Mapping[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """The messages and options of a request, whose pictures are looked for in `folder`.

    Raises:
        PocketVLMError: it cannot be honoured.
    """
    asked = parse_chat_completion(request["body"])
    if asked.stream:
        raise ConfigError("stream is true, but a batch has no streams", hint="Leave it out.")
    return beside(asked.messages, folder), {**defaults, **asked.options}


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


def beside(messages: list[Any], folder: str | Path) -> list[Any]:
    """Return the messages with the paths of their pictures and videos placed in `folder`, an address or a path."""
    where = str(folder)

    def place(value: Any) -> Any:
        if not (isinstance(value, str) and value and is_path(value)):
            return value
        return f"{where.rstrip('/')}/{value}" if is_remote(where) else str(Path(where) / value)

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
