"""What several commands share: options of the model, of pictures and of sampling, progress bars, an answer as JSON."""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketvlm.config import (
    check_auto_token_budget,
    check_device_name,
    check_downsample_mode,
    check_dtype_name,
)
from pocketvlm.engine.sampling.params import SamplingParams
from pocketvlm.errors import CheckpointError, PromptError
from pocketvlm.json_text import is_text
from pocketvlm.machine import usable_cores
from pocketvlm.model.directory import ModelDirectory
from pocketvlm.model.hub import resolve
from pocketvlm.processing.media.pages import file_named
from pocketvlm.processing.media_forkserver import start_early
from pocketvlm.processing.picture_options import RANGES, option_help
from pocketvlm.protocol.chat_response import logprobs_of
from pocketvlm.ranges import Range
from pocketvlm.remote_files import is_remote
from pocketvlm.views import Size

if TYPE_CHECKING:
    from pocketvlm.api.answers import Answer
    from pocketvlm.api.vlm import VLM
    from pocketvlm.engine.config import EngineConfig

# Option → (type, help). Types are checked here, values where they are used.
SAMPLING: dict[str, tuple[type, str]] = {
    "max_tokens": (int, "longest answer, in tokens (default 1024; of `read` 4096, of `eval` by the task)"),
    "temperature": (float, "0 is greedy"),
    "top_k": (int, "keep the k best tokens"),
    "top_p": (float, "keep the best tokens up to this probability"),
    "min_p": (float, "keep tokens at least this fraction as likely as the best"),
    "repetition_penalty": (float, "above 1 repeats less"),
    "seed": (int, "the same seed gives the same answer"),
    "num_beams": (int, "above 1: beam search with this many beams, at temperature 0 (default 1: none)"),
    "length_penalty": (float, "of beam search: above 0 favours long answers, below 0 short ones (default 1)"),
    "prompt_lookup_num_tokens": (
        int,
        "try this many tokens at once that followed the newest ones before; the answer stays the same (default 0)",
    ),
}
_TYPES: dict[str, type] = {"integer": int, "number": float, "string or list of strings": str}
PICTURES = {name: (_TYPES[kind], text) for name, (kind, text) in option_help("pictures").items()}
VIDEO = {name: (_TYPES[kind], text) for name, (kind, text) in option_help("videos").items()}
# Further options of sampling, which commands have in forms of their own.
ANSWERS = ("stop", "n", "logprobs", "structured_outputs")
# Where and with which numbers a model runs: options of `load`.
PATIENCE = 0.5  # seconds that something is under way before a bar shows it
PLACES = ("device", "dtype", "runtime", "quantization")


def add_model(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add --model and where it runs."""
    parser.add_argument("--model", default="nano", help="nano (embedded, default), a checkpoint directory or a hub id")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    parser.add_argument("--runtime", default="auto", help="auto, torch, or onnx (ONNX Runtime, on a CPU)")
    parser.add_argument(
        "--quantization", default="auto", help="of the onnx runtime: auto, none, int8, int4, or parts: decoder=int4,…"
    )


def add_adapter(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add --adapter."""
    parser.add_argument(
        "--adapter",
        type=Path,
        metavar="DIR",
        help="a folder that PEFT or `pocketvlm tune` wrote for this model (extra torch)",
    )


def directory_of(args: argparse.Namespace) -> ModelDirectory:
    """The directory of --model with its --adapter, looked up and read once for a command."""
    if "directory" not in args:
        found, adapter = resolve(args.model), getattr(args, "adapter", None)
        args.directory = found if adapter is None else found.with_adapter(adapter)
    directory: ModelDirectory = args.directory
    return directory


def add_options(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup, *groups: Mapping[str, tuple[type, str]]
) -> None:
    """Add --some-name for each option some_name of the groups; None when not given."""
    for group in groups:
        for name, (kind, text) in group.items():
            parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=None, help=text)


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON line")


def options_of(args: argparse.Namespace, *groups: Mapping[str, tuple[type, str]]) -> dict[str, Any]:
    """Return the options that were given; `ConfigError` for a number of pictures or videos that is out of its range."""
    values = {name: getattr(args, name) for group in groups for name in group}
    given = {name: value for name, value in values.items() if value is not None}
    for name in given.keys() & RANGES.keys():
        RANGES[name].check(name, given[name])
    return given


def check_ranges(args: argparse.Namespace, ranges: Mapping[str, Range]) -> None:
    """Refuse numbers out of range, by the table of a command: `RANGES` in its module."""
    for name, allowed in ranges.items():
        allowed.check(f"--{name.replace('_', '-')}", getattr(args, name))


def read_media(args: argparse.Namespace, texts: Sequence[str], options: Mapping[str, Any]) -> tuple[list[Any], float]:
    """Find all that can be wrong with options, model and pictures before torch and weights are loaded.

    Args:
        texts: what the user named: paths or URLs.
        options: of pictures and sampling.

    Returns:
        decoded pictures, those of the pages of documents among them (videos stay what they were), and the seconds that
        took.
    """
    from pocketvlm.processing.media.load_image import MediaLimits, is_video, load_pages
    from pocketvlm.processing.media.pages import PageBudget
    from pocketvlm.processing.media.pdf import Resolution
    from pocketvlm.processing.patches.slicing import plan_views

    began = time.perf_counter()
    check_device_name(getattr(args, "device", "auto"))
    check_dtype_name(getattr(args, "dtype", "auto"))
    sampling = {k: v for k, v in options.items() if k in SAMPLING or k in ANSWERS}
    SamplingParams.from_options(sampling, {"temperature": 0.0})  # before a model is looked up, maybe downloaded
    directory = directory_of(args)
    SamplingParams.from_options(sampling, SamplingParams.defaults_of(directory.configs.generation))
    config = directory.image_config
    mode = check_downsample_mode(options.get("downsample_mode", directory.config.downsample_mode))
    check_auto_token_budget(options.get("auto_token_budget"), mode == "auto")
    slices = options.get("max_slice_nums")
    resolution = Resolution.of(config, slices, options.get("page_dpi"))
    named = [source(text) for text in texts]
    pictures = [not is_video(one) for one in named]
    budget = PageBudget(MediaLimits(), sum(pictures))
    media: list[Any] = []
    for one, is_picture in zip(named, pictures, strict=True):
        if not is_picture:
            media.append(one)
            continue
        for page in load_pages(one, resolution=resolution, budget=budget):
            plan_views(Size(height=page.shape[0], width=page.shape[1]), config, mode, slices)
            media.append(page)
    return media, time.perf_counter() - began


def check_text(what: str, text: str) -> None:
    """Refuse text that was bytes of no UTF-8: Python keeps such bytes of arguments, and of the input in the C locale,
    as halves of surrogate pairs.
    """
    if not is_text(text):
        raise PromptError(f"{what} is not text in UTF-8", hint="Write it in UTF-8.")


def source(text: str) -> Any:
    """Return what a media argument names: an address stays text, everything else is a path."""
    from pocketvlm.processing.media.fetch import is_data_url, is_url

    # Path("") would be the working directory.
    return text if not text or is_url(text) or is_data_url(text) or is_remote(text) else Path(text)


def files_read(directory: ModelDirectory | None, texts: Sequence[str] = ()) -> list[Path]:
    """List the files that a command reads and must not write over: media, and those of a model's directory.

    Args:
        directory: as it was looked up: the name of a model need not be a path, and a path need not be a possible one.
        texts: what the user named: paths or URLs.

    Raises:
        CheckpointError: the directory cannot be listed.
    """
    media = [Path(file_named(text)) for text in texts if isinstance(source(text), Path)]
    try:
        return [*media, *(directory.path.iterdir() if directory is not None else ())]
    except OSError as error:
        raise CheckpointError(
            f"{directory} cannot be listed ({error.strerror})", hint="Check its permissions."
        ) from None


def is_file(path: Path) -> bool:
    """Whether there is a file of this name; of a name that no file can have, there is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, in a directory that is closed to us, a zero byte
        return False


@contextmanager
def progress_bars(unit: str | None = None) -> Iterator[Callable[[str, int, int], None] | None]:
    """Give a function that shows (what, done, in all) on a terminal; None where there is no terminal.

    Args:
        unit: of what is counted: its number a second is shown as well.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn, Task
    from rich.text import Text

    class Speed(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text("" if task.speed is None else f"{task.speed:.3g} {unit}/s")

    columns = (*Progress.get_default_columns(), *([Speed()] if unit else ()))
    # Bars are on the screen only while something is under way, and never touch what is printed: a live display that
    # stays would take over stdout, and read an answer as markup.
    console = Console(stderr=True)
    bars = Progress(
        *columns,
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        speed_estimate_period=30 if unit is None else 300,  # a page may take seconds
    )
    tasks: dict[str, Any] = {}
    began: dict[str, float] = {}  # what is under way

    def report(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=total)
        bars.update(tasks[what], completed=done, total=total, visible=done < total)
        if done >= total:
            began.pop(what, None)
            bars.stop()
        else:
            since = began.setdefault(what, time.monotonic())
            if time.monotonic() - since >= PATIENCE:
                bars.start()

    try:
        yield report
    finally:
        bars.stop()


@contextmanager
def loaded(
    args: argparse.Namespace,
    engine_config: EngineConfig | None = None,
    adapters: Mapping[str, Path] | None = None,
    *,
    apart: bool = False,
) -> Iterator[VLM]:
    """Load the model, with progress bars on a terminal meanwhile and while it reads long prompts.

    Args:
        adapters: as of `load`; that of --adapter is part of the model.
        apart: decode media in processes of their own: for commands that read many files, of which one may crash or
            hold up a decoder.
    """
    if apart:
        start_early()  # it imports while this process does
    # Imports and loading make objects that stay: looking through all of them for garbage, time and again, takes a
    # tenth of a first answer.
    gc.disable()
    try:
        from pocketvlm.api.vlm import load

        with progress_bars() as report:
            places = {name: getattr(args, name) for name in PLACES}
            vlm = load(directory_of(args), **places, adapters=adapters, engine_config=engine_config, progress=report)
    finally:
        gc.freeze()
        gc.enable()
    with progress_bars() as report:
        vlm.progress = report
        with vlm, _decoding(vlm, apart=apart):
            yield vlm


def _decoding(vlm: VLM, *, apart: bool) -> AbstractContextManager[None]:
    if not apart:
        return nullcontext()
    from pocketvlm.processing.media_workers import decoding_apart

    return decoding_apart(vlm.processor, max(1, min(4, usable_cores())))


def answer_json(answer: Answer, **stages: float) -> dict[str, Any]:
    """Make the JSON line of an answer, its alternatives in the same form.

    Args:
        stages: seconds spent before it was asked for.
    """
    usage = answer.usage
    timing = {**stages, **answer.timing, "total": answer.timing["total"] + sum(stages.values())}
    line: dict[str, Any] = {
        "text": answer.text,
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "visual_tokens": usage.visual_tokens,
            "completion_tokens": usage.completion_tokens,
        },
        "timing": {stage: round(seconds, 6) for stage, seconds in timing.items()},
        "finish_reason": answer.finish_reason,
    }
    if answer.reasoning is not None:
        line["reasoning_content"] = answer.reasoning
    if answer.logprobs is not None:
        line["logprobs"] = logprobs_of(answer)
    if answer.alternatives:
        line["alternatives"] = [answer_json(other, **stages) for other in answer.alternatives]
    return line
