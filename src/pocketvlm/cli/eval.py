"""pocketvlm eval [TASK…]"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketvlm.cli.common import (
    PICTURES,
    PLACES,
    SAMPLING,
    VIDEO,
    add_adapter,
    add_json,
    add_model,
    add_options,
    check_ranges,
    directory_of,
    loaded,
    options_of,
    read_media,
)
from pocketvlm.cli.console import ReaderLeftError, put, put_json, put_rich, say
from pocketvlm.cli.own_data import METRICS, DataTask, data_tasks, tell_unused
from pocketvlm.config import check_auto_token_budget, check_downsample_mode
from pocketvlm.engine.sampling.params import SamplingParams
from pocketvlm.errors import ConfigError
from pocketvlm.evaluation import ranges
from pocketvlm.evaluation.results import open_results
from pocketvlm.evaluation.tasks import Task

if TYPE_CHECKING:
    from pocketvlm.evaluation.answerers import Answerer
    from pocketvlm.evaluation.harness import Progress
    from pocketvlm.evaluation.results import Record

# --seed is that of the examples; answers drawn at random use it too. Prompt lookup is for single answers.
_SAMPLING = {name: option for name, option in SAMPLING.items() if name not in ("seed", "prompt_lookup_num_tokens")}
# Options that only one of the two can honour, with what they are when not given.
_OF_MODELS = {"model": "nano", "adapter": None, **dict.fromkeys(PLACES, "auto"), "batch_size": 16}
_OF_ENDPOINTS = {"endpoint_model": "", "api_key_env": "", "concurrency": 8, "timeout": 120.0, "retries": 5}
_OF_BOTH = (ranges.RUN, ranges.LOCAL, ranges.ENDPOINT, ranges.REPORT)
RANGES = {name: allowed for table in _OF_BOTH for name, allowed in table.items() if name != "backoff"}
# Other servers would ignore them without a word.
_BEAMS = ("num_beams", "length_penalty")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "pocketvlm eval [options] [TASK ...]"
    parser.add_argument("tasks", nargs="*", metavar="TASK", help="tasks of the synthetic suite (default: all)")
    parser.add_argument("--list", action="store_true", help="print the names of the tasks and of the public sets")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="a local copy of a public set; may be given several times",
    )
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="FILE",
        help="samples of your own, in any format that `tune` reads, whose last answers are what is expected; may be "
        "given several times",
    )
    parser.add_argument(
        "--metric",
        choices=METRICS,
        help="how answers to --data are judged (default strict: to the letter, but for spaces around)",
    )
    parser.add_argument("--count", type=int, default=500, help="examples a task (default 500)")
    parser.add_argument("--seed", type=int, default=2026, help="draws the examples (default 2026)")
    add_model(parser)
    add_adapter(parser)
    parser.set_defaults(model=None, **dict.fromkeys(PLACES))
    add_options(parser, PICTURES, VIDEO, _SAMPLING)
    parser.add_argument(
        "--published",
        action="store_true",
        help="the settings of the published scores: 4x, 9 slices, small pictures of the public sets enlarged, 3 beams, "
        "repetition penalty 1.2",
    )
    parser.add_argument("--batch-size", type=int, help="examples answered together (default 16)")
    parser.add_argument("--endpoint", metavar="URL", help="ask an OpenAI-compatible endpoint, such as http://host/v1")
    parser.add_argument("--endpoint-model", metavar="NAME", help="the name that it serves the model under")
    parser.add_argument("--api-key-env", metavar="VAR", help="the environment variable that holds its API key")
    parser.add_argument("--concurrency", type=int, help="requests at a time (default 8)")
    parser.add_argument("--timeout", type=float, help="seconds for a request (default 120)")
    parser.add_argument("--retries", type=int, help="further attempts where it is busy (default 5)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="append every answer; a run that was stopped goes on")
    parser.add_argument("--show-errors", type=int, default=0, metavar="N", help="print N wrong answers of each task")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    if args.list:
        return _list_tasks(args.json)
    _fill_in(args)
    tasks = _tasks(args)
    options = _options(args)
    if options["temperature"] > 0:
        options["seed"] = args.seed
    settings = {"seed": args.seed, "options": options, **_who(args, options)}
    if args.published:
        settings["published"] = True
    if args.data:
        settings["metric"] = args.metric or "strict"
        own = [task for task in tasks if isinstance(task, DataTask)]
        settings["data"] = {task.name: task.samples.fingerprint() for task in own}  # the file may be edited
        tell_unused(*(task.samples for task in own))
    from pocketvlm.evaluation.harness import EvaluationError
    from pocketvlm.evaluation.report import as_json

    began = time.perf_counter()
    try:
        scored = _evaluate(args, tasks, options, settings)
    except KeyboardInterrupt:
        if args.out is None:
            raise
        raise KeyboardInterrupt(f"{args.out} keeps the answers so far; the same command goes on from there") from None
    except EvaluationError as error:
        say(f"pocketvlm eval: {error}")
        return 1
    failed = [name for name, records in scored.items() if all(record.error for record in records)]
    for name in failed:
        say(f"pocketvlm eval: every example of {name} failed, the last one because: {scored[name][-1].error}")
    with suppress(ReaderLeftError):  # whose leaving says nothing about the examples
        if args.json:
            seconds = round(time.perf_counter() - began, 3)
            put_json(as_json(scored, {**settings, "seconds": seconds}, args.show_errors))
        else:
            _print_table(scored, args.show_errors)
    return int(bool(failed))


def _fill_in(args: argparse.Namespace) -> None:
    """Set defaults where nothing was given; refuse what would not be honoured, and numbers out of range."""
    refused, by = (_OF_ENDPOINTS, "without --endpoint") if args.endpoint is None else (_OF_MODELS, "with --endpoint")
    for name in refused:
        if getattr(args, name) is not None:
            raise ConfigError(f"--{name.replace('_', '-')} means nothing {by}", hint="Leave it out.")
    for name in _BEAMS if args.endpoint is not None else ():
        if getattr(args, name) is not None:
            raise ConfigError(f"--{name.replace('_', '-')} is no option that endpoints share", hint="Leave it out.")
    for name, value in {**_OF_MODELS, **_OF_ENDPOINTS}.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.metric is not None and not args.data:
        raise ConfigError("--metric means nothing without --data", hint="Leave it out.")
    if args.published and args.data:
        raise ConfigError("--published is for the public sets, not for --data", hint="Give only one of them.")
    check_ranges(args, RANGES)


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of every request."""
    given = options_of(args, PICTURES, VIDEO, _SAMPLING)
    if not args.published:
        return {"temperature": 0.0, **given}
    from pocketvlm.evaluation.settings import PublishedSettings

    if args.endpoint is not None:
        raise ConfigError("--published means nothing with --endpoint", hint="Endpoints share no way to ask for it.")
    options = PublishedSettings().options()
    for name in given:
        if name in options:
            raise ConfigError(f"--published decides --{name.replace('_', '-')} as well", hint="Give only one of them.")
    return {**options, **given}


def _list_tasks(as_json: bool) -> int:
    from pocketvlm.evaluation.public_sets import PUBLIC_SETS
    from pocketvlm.evaluation.suite import SyntheticSuite

    names = list(SyntheticSuite().names())
    if as_json:
        put_json({"tasks": names, "sets": list(PUBLIC_SETS)})
    else:
        put("\n".join([*names, *(f"--set {name}=FOLDER" for name in PUBLIC_SETS)]))
    return 0


def _tasks(args: argparse.Namespace) -> list[Task]:
    """Return the tasks that were asked for: of the suite, then public sets, then samples of one's own; the whole suite
    where none was named."""
    from pocketvlm.evaluation.suite import SyntheticSuite

    suite, tasks = SyntheticSuite(), list[Task]()
    names: Sequence[str] = args.tasks if args.tasks or args.set or args.data else suite.names()
    for name in dict.fromkeys(names):
        tasks.append(suite.task(name))
    for text in args.set:
        from pocketvlm.evaluation.public_sets import public_set

        name, given, folder = text.partition("=")
        if not given or not folder:
            raise ConfigError(f"--set {text!r:.80} is not NAME=FOLDER", hint="Example: --set docvqa=data/docvqa")
        if name in (task.name for task in tasks):  # whose answers would take the place of the first one's
            raise ConfigError(f"--set {name} is given twice", hint="Give it once, or ask in two runs.")
        tasks.append(public_set(name).task(folder))
    return [*tasks, *data_tasks(args.data, args.metric or "strict", [task.name for task in tasks])]


def _who(args: argparse.Namespace, options: Mapping[str, Any]) -> dict[str, Any]:
    """Tell whom the answers are from, as results state it; what is wrong is found before torch is loaded."""
    if args.endpoint is not None:
        SamplingParams.from_options({name: options[name] for name in options if name in SAMPLING}, {})
        mode = check_downsample_mode(options.get("downsample_mode", "16x"))
        check_auto_token_budget(options.get("auto_token_budget"), mode == "auto")
        return {"endpoint": args.endpoint, "model": args.endpoint_model}
    read_media(args, [], options)
    where = {name: getattr(args, name) for name in PLACES}
    adapter = {} if args.adapter is None else {"adapter": str(args.adapter)}
    return {"model": args.model, **adapter, "weights": directory_of(args).fingerprint, **where}


def _evaluate(
    args: argparse.Namespace, tasks: Sequence[Task], options: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, list[Record]]:
    from pocketvlm.evaluation.harness import evaluate

    with (
        nullcontext() if args.out is None else open_results(args.out, settings) as results,
        _answerer(args, options) as answerer,
        _bars() as progress,
    ):
        return evaluate(tasks, answerer, count=args.count, seed=args.seed, results=results, progress=progress)


@contextmanager
def _answerer(args: argparse.Namespace, options: Mapping[str, Any]) -> Iterator[Answerer]:
    if args.endpoint is None:
        from pocketvlm.evaluation.answerers import LocalModel
        from pocketvlm.evaluation.settings import PublishedSettings

        with loaded(args) as vlm:
            vlm.progress = None  # one bar is enough
            shown = None
            if args.published:
                published = PublishedSettings()
                vlm.processor.image_config = published.image_config(vlm.processor.image_config)
                vlm.processor.video_config = published.image_config(vlm.processor.video_config)
                shown = published.media
            yield LocalModel(vlm, options, args.batch_size, shown)
        return
    from pocketvlm.evaluation.endpoint import Endpoint

    yield Endpoint(
        url=args.endpoint,
        model=args.endpoint_model,
        sampling={name: value for name, value in options.items() if name in SAMPLING},
        media={name: value for name, value in options.items() if name not in SAMPLING},
        api_key=_api_key(args.api_key_env),
        concurrency=args.concurrency,
        timeout=args.timeout,
        retries=args.retries,
    )


def _api_key(variable: str) -> str:
    if not variable:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(f"the environment variable {variable!r:.40} of --api-key-env is not set")
    return key


@contextmanager
def _bars() -> Iterator[Progress | None]:
    """Show one bar for each task, on a terminal only."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bars = Bars(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=False)
    rows: dict[str, Any] = {}

    def report(task: str, done: int, total: int) -> None:
        if task not in rows:
            rows[task] = bars.add_task(task, total=total)
        bars.update(rows[task], completed=done)

    with bars:
        yield report


def _print_table(scored: Mapping[str, Sequence[Record]], errors: int) -> None:
    from rich.table import Table

    from pocketvlm.evaluation.report import HEADINGS, table_rows, wrong

    table = Table(*HEADINGS)
    for row in table_rows(scored):
        table.add_row(*row)
    # A file or a pipe has no width that the table would have to fit; names may hold brackets, which are not markup.
    put_rich(table, width=None if sys.stdout.isatty() else 200)
    for record in (record for records in scored.values() for record in wrong(records, errors)):
        put(f"\n{record.id}: {record.question}")
        put(f"  expected {' or '.join(map(repr, dict.fromkeys(record.expected)))}")
        put(f"  failed: {record.error}" if record.error else f"  answered {record.answer!r}")
