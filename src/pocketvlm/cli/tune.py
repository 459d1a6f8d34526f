"""pocketvlm tune DATA: fine-tune a model on a file or folder of conversations."""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path
from typing import Any

from pocketvlm.cli.common import (
    PICTURES,
    VIDEO,
    add_json,
    add_options,
    check_ranges,
    directory_of,
    options_of,
    progress_bars,
)
from pocketvlm.cli.console import put, put_json, say
from pocketvlm.config import check_auto_token_budget, check_downsample_mode
from pocketvlm.errors import ConfigError
from pocketvlm.files import whole_file
from pocketvlm.ranges import Range
from pocketvlm.training.settings import LOG, TuneSettings

# In the order and the groups of the help; every other setting follows under "more".
_FIRST = ("method", "steps", "epochs", "minutes", "batch_size", "learning_rate", "seed", "objective", "tune")

_NUMBERS = {one.name: one.metadata["allowed"] for one in fields(TuneSettings)}
RANGES = {"workers": Range(int, 0, 256), "split": Range(float, 0.0, 0.9, nullable=True, is_open=True)} | {
    name: replace(allowed, nullable=True) for name, allowed in _NUMBERS.items() if isinstance(allowed, Range)
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "pocketvlm tune [options] DATA…"
    parser.epilog = (
        "DATA: JSONL of ms-swift, OpenAI or LLaMA-Factory (a folder with dataset_info.json), a Hugging Face folder, "
        "Parquet, or a folder of pictures with a CSV. A run that was stopped goes on when the same command is given "
        "again. Exit status: 0 done, 1 the run failed or samples were skipped, 2 wrong usage or input, 130 stopped."
    )
    parser.add_argument("data", nargs="+", metavar="DATA", help="files or folders of conversations")
    parser.add_argument(
        "--out", type=Path, default=Path("tuned"), metavar="DIR", help="folder of the run (default tuned)"
    )
    parser.add_argument("--model", default="nano", help="nano (embedded, default), a checkpoint directory or a hub id")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--validation", metavar="FILE", help="samples to measure with, which nothing is learnt from")
    parser.add_argument("--split", type=float, metavar="SHARE", help="of DATA, to measure with instead of learning it")
    parser.add_argument("--check", action="store_true", help="read every sample and show some; train nothing")
    parser.add_argument(
        "--plan", action="store_true", help="print the memory that a step needs, by part; train nothing"
    )
    parser.add_argument("--workers", type=int, default=0, help="processes that read pictures ahead (default 0)")
    for name in _FIRST:
        _add(parser, name)
    more = parser.add_argument_group("more")
    for one in fields(TuneSettings):
        if one.name not in _FIRST:
            _add(more, one.name)
    add_options(parser.add_argument_group("pictures and videos"), PICTURES, VIDEO)
    add_json(parser)


def _add(parser: Any, name: str) -> None:
    """An option of the name of a setting; None when it is not given."""
    one = next(one for one in fields(TuneSettings) if one.name == name)
    text, flag = one.metadata["help"], f"--{name.replace('_', '-')}"
    if one.default is False:
        parser.add_argument(flag, action="store_true", default=None, help=text)
        return
    kind: Any = {"int": int, "float": float}.get(str(one.type).partition(" ")[0], str)
    if isinstance(one.default, tuple):
        parser.add_argument(flag, type=lambda value: tuple(value.split(",")), default=None, metavar="PART,…", help=text)
        return
    default = "" if one.default in (None, MISSING) else f" (default {one.default})"
    choices = one.metadata["allowed"] if isinstance(one.metadata["allowed"], tuple) else None
    parser.add_argument(flag, type=kind, default=None, choices=choices, help=f"{text}{default}")


def run(args: argparse.Namespace) -> int:
    given = {one.name: getattr(args, one.name) for one in fields(TuneSettings)}
    check_ranges(args, RANGES)
    settings = TuneSettings(**{name: value for name, value in given.items() if value is not None})
    options = options_of(args, PICTURES, VIDEO)
    directory = directory_of(args)
    mode = options.get("downsample_mode", directory.config.downsample_mode)
    if mode != "random":  # 16x or 4x for each sample
        check_downsample_mode(mode)
    check_auto_token_budget(options.get("auto_token_budget"), mode == "auto")
    _check_out(args.out)
    if directory.kind == "bundle":
        raise ConfigError(f"{directory.path} is a bundle of ONNX Runtime", hint="Tune the checkpoint it was made of.")
    from pocketvlm.training.data.dataset import open_datasets

    if "" in (*args.data, args.validation):
        raise ConfigError("the name of a file of samples is empty", hint="Name a file or a folder.")
    samples = open_datasets(args.data)
    if args.split and args.validation:
        raise ConfigError("--split and --validation both choose what to measure with", hint="Give one of them.")
    validation = open_datasets([args.validation]) if args.validation else None
    if args.split:
        samples, validation = samples.split(args.split, settings.seed)
    if args.check and args.plan:
        raise ConfigError("--check and --plan are two things", hint="Give one of them.")
    if args.check:
        return _check(args, samples, settings, options)
    if args.plan:
        return _plan(args, samples, settings, options)
    from pocketvlm.training.run import tune  # brings torch

    def shown(report: Any) -> None:
        if report.step == 1 or report.step % 10 == 0 or report.step == report.steps:
            of = f" of {report.steps}" if report.steps else ""
            say(
                f"step {report.step}{of}: loss {report.loss:.4f}, rate {report.rate:.2e}, {report.tokens_s:.0f} "
                f"tokens/s, {report.seconds:.0f} s, {report.left:.0f} s left"
            )

    with _stopped_by_sigterm():
        result = tune(
            directory,
            samples,
            args.out,
            settings,
            validation=validation,
            options=options,
            base=args.model,
            device=args.device,
            workers=args.workers,
            identity={"data": [str(source) for source in args.data], "options": options, "split": args.split},
            on_step=shown,
        )
    found = asdict(result)
    bad = found.pop("bad")
    if args.json:
        put_json(found)
    else:
        put(f"{result.out}: {result.steps} steps in {result.seconds:.0f} s, loss {result.loss:.4f}")
        if result.validation:
            exact = result.validation["exact"]
            share = "" if exact is None else f", {exact:.1%} of the answers exact"
            put(f"validation: loss {result.validation['loss']:.4f}{share}")
        if settings.method != "full":
            put(f"Try it: pocketvlm ask --adapter {result.out} IMAGE QUESTION")
    if bad:
        say(f"{len(bad)} samples were skipped; the log names them: {result.out}/training.jsonl")
    return int(bool(bad))


def _check_out(out: Path) -> None:
    """Refuse a folder that cannot be made, or that holds something else than a run."""
    try:
        if out.is_dir():
            if any(out.iterdir()) and not any((out / name).exists() for name in ("checkpoints", LOG, "check.html")):
                raise ConfigError(f"{out} holds something else than a run", hint="Name a new folder by --out.")
            return
        os.lstat(out)
    except FileNotFoundError:
        if out.parent.is_dir():
            return
        raise ConfigError(f"{out} cannot be made: {out.parent} is no directory", hint="Check the path.") from None
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{str(out)!r:.80} is no path to a folder", hint="Check it.") from None
    raise ConfigError(f"{out} is no folder", hint="Name a new one by --out.")


def _check(args: argparse.Namespace, samples: Any, settings: TuneSettings, options: dict[str, Any]) -> int:
    """The dry run: prints what was found, and writes a page to look at."""
    from pocketvlm.training.check import check, stretches
    from pocketvlm.training.check_page import check_page

    feed, processor = _feed(args, samples, settings, options)
    with progress_bars() as bars:
        total = len(samples)
        found = check(feed.all(), lambda done: bars("Reading samples", done, total) if bars else None)
    args.out.mkdir(parents=True, exist_ok=True)
    page = args.out / "check.html"
    with whole_file(page) as file:
        file.write(check_page(found, processor.tokenizer, " ".join(args.data)).encode())
    for text in found.bad.values():
        say(text)
    if args.json:
        rows = found.statistics()
        put_json({"samples": found.good, "bad": found.bad, "statistics": rows, "page": str(page)})
        return int(bool(found.bad))
    for example in found.shown:
        put(f"{example.source}: what is learnt of it stands in [[ ]]")
        texts = stretches(example, processor.tokenizer)
        put("    " + "".join(f"[[{text}]]" if learnt else text for text, learnt, _ in texts).replace("\n", "\n    "))
    for name, row in found.statistics().items():
        put(f"{name}: " + ", ".join(f"{what} {value:g}" for what, value in row.items()))
    put(f"{found.good} samples can be learnt from, {len(found.bad)} cannot. To look at: {page}")
    return int(bool(found.bad))


def _plan(args: argparse.Namespace, samples: Any, settings: TuneSettings, options: dict[str, Any]) -> int:
    """Prints the memory of a step."""
    from pocketvlm.api.loading import choose_device
    from pocketvlm.machine import memory_bytes
    from pocketvlm.training.plan import largest_batch, plan_memory, process_bytes

    directory, device = directory_of(args), choose_device(args.device)
    feed, _ = _feed(args, samples, settings, options)
    batch = largest_batch(feed.all(), settings)
    plan = plan_memory(directory.config, directory.image_config, settings, batch, device, process_bytes(device))
    memory, count = memory_bytes(device), len(batch.lengths)
    fits = plan.samples_in(memory, count)
    if args.json:
        sizes = {"samples": count, "tokens": len(batch.input_ids), "patches": len(batch.patches)}
        put_json({"bytes": {**vars(plan), "total": plan.total}, **sizes, "memory": memory, "samples_that_fit": fits})
        return 0
    for name, size in {**vars(plan), "total": plan.total}.items():
        put(f"{name:12} {size / 2**20:10,.0f} MiB")
    put(f"with {count} samples in a forward: {len(batch.input_ids)} tokens, {len(batch.patches)} patches")
    put(f"{memory / 2**30:.1f} GiB are there: up to {fits} such samples in a forward")
    return 0


def _feed(args: argparse.Namespace, samples: Any, settings: TuneSettings, options: dict[str, Any]) -> tuple[Any, Any]:
    """The samples as they would be learnt, and the processor."""
    from pocketvlm.processing.processor import Processor
    from pocketvlm.training.examples import ExampleEncoder
    from pocketvlm.training.feed import Feed

    directory = directory_of(args)
    processor = Processor.from_directory(directory.path, configs=directory.configs)
    encoder = ExampleEncoder(processor, max_tokens=settings.max_tokens, truncate=settings.truncate, options=options)
    return Feed(samples, encoder, pairs=settings.objective == "dpo", seed=settings.seed), processor


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM is as Ctrl-C: the run writes a checkpoint and ends."""

    def stop(_number: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
