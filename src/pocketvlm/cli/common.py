"""What several commands share: options of the model, of pictures and of sampling, progress bars, JSON lines."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pocketvlm.api import VLM, Answer

# Option → (type, help). Types are checked here, values where they are used.
SAMPLING: dict[str, tuple[type, str]] = {
    "max_tokens": (int, "longest answer, in tokens"),
    "temperature": (float, "0 is greedy"),
    "top_k": (int, "keep the k best tokens"),
    "top_p": (float, "keep the best tokens up to this probability"),
    "min_p": (float, "keep tokens at least this fraction as likely as the best"),
    "repetition_penalty": (float, "above 1 repeats less"),
    "seed": (int, "the same seed gives the same answer"),
}
PICTURES: dict[str, tuple[type, str]] = {
    "downsample_mode": (str, "16x (default) or 4x: four times the visual tokens, finer detail"),
    "max_slice_nums": (int, "most slices of a picture (default 9; 36 for fine print, 1 for none)"),
}
VIDEO: dict[str, tuple[type, str]] = {
    "max_num_frames": (int, "most frames of a video (default 128)"),
    "stack_frames": (int, "frames shown for each second of a video (default 1)"),
}


def add_model(parser: argparse.ArgumentParser) -> None:
    """--model and where it runs."""
    parser.add_argument("--model", default="nano", help="nano (embedded, default), a checkpoint directory or a hub id")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")


def add_options(parser: argparse.ArgumentParser, *groups: Mapping[str, tuple[type, str]]) -> None:
    """--some-name for each option some_name of the groups; None when not given."""
    for group in groups:
        for name, (kind, text) in group.items():
            parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=None, help=text)


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON line")


def options_of(args: argparse.Namespace, *groups: Mapping[str, tuple[type, str]]) -> dict[str, Any]:
    """The options that were given."""
    values = {name: getattr(args, name) for group in groups for name in group}
    return {name: value for name, value in values.items() if value is not None}


def print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False))


def source(text: str) -> Any:
    """What a media argument names: a URL stays text, everything else is a path."""
    return text if text.startswith(("http://", "https://", "data:")) else Path(text)


@contextmanager
def loaded(args: argparse.Namespace) -> Iterator[VLM]:
    """The model, with progress bars on a terminal while it loads and while it reads long prompts."""
    from pocketvlm.api import load

    options: dict[str, Any] = {"device": args.device, "dtype": args.dtype}
    if not sys.stderr.isatty():
        yield load(args.model, **options)
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total, visible=done < total)

        vlm = load(args.model, **options, progress=report)
        vlm.progress = report
        yield vlm


def answer_json(answer: Answer) -> dict[str, Any]:
    """The JSON line of an answer."""
    usage = answer.usage
    line: dict[str, Any] = {
        "text": answer.text,
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "visual_tokens": usage.visual_tokens,
            "completion_tokens": usage.completion_tokens,
        },
        "timing": {stage: round(seconds, 6) for stage, seconds in answer.timing.items()},
        "finish_reason": answer.finish_reason,
    }
    if answer.reasoning is not None:
        line["reasoning_content"] = answer.reasoning
    return line
