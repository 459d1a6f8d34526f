"""pocketvlm batch IN.jsonl OUT.jsonl

Lines are those of OpenAI's batch files. While it runs, results are appended to OUT.jsonl.partial, whose first line says
what they are results of; when all are there, OUT.jsonl is written in the order of IN.jsonl and the partial file goes.
Of each line only its place is kept in memory.
"""

from __future__ import annotations

import argparse
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketvlm.cli.batch_files import MAX_LINE, Lines, Partial, open_lines, open_partial, parse_line, read_lines
from pocketvlm.cli.common import (
    PICTURES,
    PLACES,
    SAMPLING,
    VIDEO,
    add_json,
    add_model,
    add_options,
    loaded,
    options_of,
    print_json,
    progress_bars,
    read_media,
)
from pocketvlm.completions import chat_completion, error_response, parse_chat_completion
from pocketvlm.errors import ConfigError, PocketVLMError
from pocketvlm.model.fingerprint import fingerprint
from pocketvlm.model.hub import resolve
from pocketvlm.processing.fetch import is_url

if TYPE_CHECKING:
    from pocketvlm.answers import Answer
    from pocketvlm.api import VLM

# Prompt lookup is for single answers.
_SAMPLING = {name: option for name, option in SAMPLING.items() if name != "prompt_lookup_num_tokens"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "pocketvlm batch [options] IN.jsonl OUT.jsonl"
    parser.epilog = (
        "Options of pictures and sampling hold where a line does not say otherwise. A run that was stopped goes on "
        "when the same command is given again. Exit status: 0 every line was answered, 1 OUT.jsonl is written and "
        "holds failed lines, 2 wrong usage or input, 130 stopped."
    )
    parser.add_argument("input", type=Path, metavar="IN.jsonl", help="requests in the format of OpenAI's batch files")
    parser.add_argument("output", type=Path, metavar="OUT.jsonl", help="is written in the order of IN.jsonl")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT.jsonl if it is there")
    parser.add_argument("--concurrency", type=int, default=32, help="requests under way at a time (default 32)")
    parser.add_argument("--served-model-name", metavar="NAME", help="what lines call the model (default: as --model)")
    add_model(parser)
    add_options(parser, PICTURES, VIDEO, _SAMPLING)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    if args.concurrency < 1:
        raise ConfigError(f"--concurrency {args.concurrency} is below 1")
    _check_output(args.input, args.output, args.overwrite)
    options = options_of(args, PICTURES, VIDEO, _SAMPLING)
    read_media(args, [], options)  # what is wrong with them is found before torch and weights are loaded
    model = args.served_model_name or args.model
    lines = read_lines(args.input, model)
    settings = {
        "input": lines.digest,
        "model": model,
        "weights": fingerprint(resolve(args.model)),
        "options": options,
        **{name: getattr(args, name) for name in PLACES},
    }
    partial = args.output.with_name(args.output.name + ".partial")
    began = time.perf_counter()
    with open_partial(partial, lines, settings) as results:
        resumed = results.done
        try:
            if resumed < len(lines):
                with loaded(args) as vlm:
                    vlm.progress = None  # one bar is enough
                    answer_all(vlm, args.input, lines, results, options, model, args.concurrency)
            results.write(args.output)
        except KeyboardInterrupt:
            kept = f"{results.done} of {len(lines)} results are kept; the same command goes on from there"
            print(f"pocketvlm batch: stopped; {kept}", file=sys.stderr)
            return 130
    summary = {
        "requests": len(lines),
        "succeeded": len(lines) - results.failed,
        "failed": results.failed,
        "resumed": resumed,
        "seconds": round(time.perf_counter() - began, 3),
        "output_tokens": results.output_tokens,
    }
    if args.json:
        print_json(summary)
    else:
        earlier = f" ({resumed} by an earlier run)" if resumed else ""
        print(
            f"{summary['requests']} requests{earlier}: {summary['succeeded']} succeeded, {summary['failed']} failed, "
            f"{summary['output_tokens']} output tokens, {summary['seconds']:.1f} s"
        )
    return int(results.failed > 0)


def _check_output(requests: Path, out: Path, overwrite: bool) -> None:
    try:
        is_directory, exists = out.is_dir(), out.exists()
        is_input = exists and requests.exists() and out.samefile(requests)
    except OSError as error:
        raise ConfigError(f"{str(out)!r:.80} is no path to a file: {error.strerror}") from None
    if is_directory:
        raise ConfigError(f"{out} is a directory, expected a file to write", hint="Give it a name.")
    if is_input:
        raise ConfigError(f"{out} is both input and output", hint="Give OUT.jsonl another name.")
    if exists and not overwrite:
        raise ConfigError(f"{out} is already there", hint="Pass --overwrite, or give another name.")


def answer_all(
    vlm: VLM, path: Path, lines: Lines, results: Partial, defaults: Mapping[str, Any], model: str, concurrency: int
) -> None:
    """Run every request that has no result yet.

    Args:
        path: the file of the requests, `lines` of it.
        defaults: options of requests that do not say otherwise.
        model: the name that lines may give, and results state.
        concurrency: requests under way at a time.

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

    with open_lines(path) as file, progress_bars() as report:
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
