"""What is left of a run beside its weights: a log, a curve, and a card that says what it is."""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pocketvlm
from pocketvlm.errors import ConfigError
from pocketvlm.files import cannot_write, check_output, whole_file
from pocketvlm.training.settings import LOG_BEGINS, TuneSettings
from pocketvlm.training.trackers import open_trackers

if TYPE_CHECKING:
    from pocketvlm.training.trainer import Report

CURVE, CARD = "loss.png", "README.md"


@dataclass
class Result:
    """What a run came to.

    Attributes:
        out: the folder.
        steps, seconds: of training.
        loss: mean of the last steps.
        validation: loss and share of exact answers; None without validation samples.
        peak_memory_bytes: of the device, or of the process on a CPU.
        bad: samples that nothing was learnt from.
        cut: number of samples of which the end was cut off.
        tasks: scores of the tasks that were asked for, from 0 to 1; None where none were.
    """

    out: str
    steps: int
    seconds: float
    loss: float | None
    validation: dict[str, float | None] | None
    peak_memory_bytes: int
    bad: dict[str, str] = field(default_factory=dict)
    cut: int = 0
    tasks: dict[str, float] | None = None


class Log:
    """A JSON line for everything that is to be known of a run, and the same figures to its trackers. What a run that
    goes on does again is cut off.

    Args:
        settings: of the run.
        step: that it goes on from.
        report_to: names of trackers.
        writes: whether this process does.

    Raises:
        ConfigError: the file is no log of a run.
        OutputError: it cannot be written.
    """

    def __init__(
        self, path: Path, settings: Mapping[str, Any], step: int, report_to: Sequence[str] = (), *, writes: bool = True
    ) -> None:
        self._path, self._writes = path, writes
        if writes and (found := read_log(path)):
            lines = [line for line in found if _step_of(line) <= step]
            if lines != found:
                with whole_file(path) as file:
                    file.write("".join(f"{line}\n" for line in lines).encode())
        self._trackers = open_trackers(report_to, path.parent, settings, step) if writes else []
        self.write({"settings": settings})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        for tracker in self._trackers:
            tracker.close()

    def write(self, facts: Mapping[str, Any]) -> None:
        """A line of the log alone."""
        if not self._writes:
            return
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"time": round(time.time(), 1), **facts}) + "\n")
        except OSError as error:
            raise cannot_write(self._path, error) from None

    def step(self, report: Report) -> None:
        """A step of training."""
        facts = asdict(report)
        more = facts.pop("figures")
        if math.isinf(report.left):  # which JSON has not
            facts["left"] = None
        self.write({**facts, **({"figures": more} if more else {})})
        named = {name: facts[name] for name in ("loss", "rate", "norm", "tokens_s", "memory")}
        self._track(report.step, {f"training/{name}": value for name, value in {**named, **more}.items()})

    def evaluation(self, step: int, loss: float | None, scores: Mapping[str, float] | None) -> None:
        """An evaluation after a step."""
        found: dict[str, Any] = {} if loss is None else {"validation_loss": loss}
        self.write({"step": step, **found, **({} if scores is None else {"tasks": dict(scores)})})
        self._track(step, {f"validation/{name}": value for name, value in (("loss", loss),) if value is not None})
        self._track(step, {f"tasks/{name}": value for name, value in (scores or {}).items()})

    def end(
        self,
        step: int,
        validation: Mapping[str, float | None] | None,
        scores: Mapping[str, float] | None,
        bad: Mapping[str, str] | None = None,
        cut: int = 0,
    ) -> None:
        """The figures of what the run came to, what is wrong with each sample that was skipped, and how many were cut
        off at their end."""
        tasks = {} if scores is None else {"tasks": dict(scores)}
        samples = {"bad": dict(bad or {}), "cut": cut}
        said = {name: value for name, value in samples.items() if value}
        self.write({"step": step, "validation": validation, **tasks, **said})
        named = {f"result/{name}": value for name, value in {**(validation or {}), **(scores or {})}.items()}
        self._track(step, {name: value for name, value in named.items() if value is not None})

    def _track(self, step: int, figures: Mapping[str, float]) -> None:
        for tracker in self._trackers:
            tracker.log(step, figures)


def read_log(path: Path) -> list[str]:
    """The lines of a log; none where there is none.

    Raises:
        ConfigError: the file is none of a run, and is left as it is.
    """
    if not check_output(path):
        return []
    try:
        lines = path.read_bytes().decode(errors="replace").splitlines()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror})", hint="Check its permissions.") from None
    if lines and not lines[0].startswith(LOG_BEGINS[: len(lines[0])]):  # which may have been cut off
        raise ConfigError(f"{path} is no log of a run", hint="Move it away, or name another folder.")
    return lines


def steps_in(log: Path) -> int:
    """The last step that a log tells of; 0 where it tells of none."""
    return max((step for line in read_log(log) if (step := _step_of(line)) < sys.maxsize), default=0)


def _step_of(line: str) -> int:
    try:
        facts = json.loads(line)
    except ValueError:  # the last line of a process that was killed
        return sys.maxsize
    step = facts.get("step", 0) if isinstance(facts, dict) else None
    return step if isinstance(step, int) else sys.maxsize


def draw_losses(log: Path, picture: Path) -> None:
    """The curve of the losses, and of those on validation samples; nothing without matplotlib."""
    if find_spec("matplotlib") is None:
        return
    with tempfile.TemporaryDirectory() as folder, _environment(MPLCONFIGDIR=folder):  # it keeps a list of all fonts
        from matplotlib.figure import Figure

    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    steps = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    measured = [(line["step"], line["validation_loss"]) for line in lines if "validation_loss" in line]
    measured += [(line["step"], line["validation"]["loss"]) for line in lines if line.get("validation")]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss")
    if steps:
        axes.plot(*zip(*steps, strict=True), color="tab:blue", alpha=0.3, linewidth=0.8)
        axes.plot([step for step, _ in steps], _smooth([loss for _, loss in steps]), color="tab:blue", label="training")
    if measured:
        axes.plot(*zip(*measured, strict=True), "o-", color="tab:orange", label="validation")
    if steps or measured:
        axes.legend()
    with whole_file(picture) as file:
        figure.savefig(file, format="png", dpi=120)


@contextmanager
def _environment(**defaults: str) -> Iterator[None]:
    """Variables that are not set, for the time of the block."""
    added = {name: value for name, value in defaults.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _smooth(values: list[float]) -> list[float]:
    found: list[float] = []
    for number, value in enumerate(values, 1):
        new = max(0.1, 1 / number)  # at first the mean of all
        found.append((1 - new) * found[-1] + new * value if found else value)
    return found


def asking(
    place: str | Path, settings: TuneSettings, base: str, options: Mapping[str, Any], file: str, question: str
) -> str:
    """The command that asks what a run made, with the run's own options of pictures; "random" is for learning alone."""
    words = ["--model" if settings.method == "full" else "--adapter", shlex.quote(str(place))]
    if settings.method != "full" and base != "nano":
        words += ["--model", shlex.quote(base)]
    for name, value in options.items():
        if value != "random":
            words += [f"--{name.replace('_', '-')}", f"{value}"]
    return " ".join(("pocketvlm ask", *words, file, question))


def write_card(
    out: Path,
    result: Result,
    settings: TuneSettings,
    base: str,
    facts: Mapping[str, Any],
    rate: float,
    options: Mapping[str, Any],
) -> None:
    """README.md with what was trained, on what and how well, in the form that model hubs read.

    Args:
        facts: of the data and the model, by name.
        rate: the highest learning rate, of which the settings may say nothing.
        options: of pictures.
    """
    is_adapter = settings.method != "full"
    figures = [(name, f"{value}") for name, value in facts.items() if value != ""]
    figures += [("steps", f"{result.steps}"), ("seconds", f"{result.seconds:.0f}")]
    figures += [("samples skipped", f"{len(result.bad)}")] if result.bad else []
    figures += [("samples cut off at their end", f"{result.cut}")] if result.cut else []
    figures += [("loss of the last steps", f"{result.loss:.4f}")] if result.loss is not None else []
    for name, value in (result.validation or {}).items():
        if value is not None:
            figures.append((f"validation: {name}", f"{value:.4f}"))
    figures += [(f"task: {name}", f"{value:.4f}") for name, value in (result.tasks or {}).items()]
    front = ["---", f"base_model: {json.dumps(base)}", f"library_name: {'peft' if is_adapter else 'transformers'}"]
    front += ["pipeline_tag: image-text-to-text", "tags: [pocketvlm, minicpm-v]", "---", ""]
    what = f"An adapter for {base}" if is_adapter else f"{base}, fine-tuned"
    load = asking("DIR", settings, base, options, "picture.png", '"What is it?"')
    text = [f"# {out.resolve().name}", "", f"{what}, made by pocketvlm {pocketvlm.__version__}.", "", f"    {load}", ""]
    table = ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in figures), ""]
    always = ("method", "objective", "tune", "batch_size", *(("rank", "alpha") if is_adapter else ()))
    used = {**asdict(settings), "learning_rate": float(f"{rate:.4g}"), **options}
    defaults = asdict(TuneSettings())
    given = {name: value for name, value in used.items() if name in always or value != defaults.get(name)}
    listed = [f"- `{name}`: {', '.join(value) if isinstance(value, tuple) else value}" for name, value in given.items()]
    changed = ["Settings; the others are the defaults:", "", *listed, ""]
    with whole_file(out / CARD) as file:
        file.write("\n".join([*front, *text, *table, *changed]).encode())
