"""A whole run: model and data in, an adapter or a checkpoint out, with its log, its curve and its model card."""

from __future__ import annotations

import itertools
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pocketvlm.api.loading import choose_device
from pocketvlm.api.vlm import VLM
from pocketvlm.errors import ConfigError
from pocketvlm.model.checkpoint import load_model, save_model, stored_dtype
from pocketvlm.model.directory import ModelDirectory
from pocketvlm.model.vision.warm_start import warm_start_compression
from pocketvlm.model.vlm import MiniCPMV
from pocketvlm.processing.processor import Processor
from pocketvlm.training import lora
from pocketvlm.training.checkpoints import Progress
from pocketvlm.training.data.sample import Sample, SampleError
from pocketvlm.training.evaluate import exact_answers, measure_model
from pocketvlm.training.examples import ExampleEncoder
from pocketvlm.training.feed import Feed
from pocketvlm.training.memory import peak_memory, quantize_base, recompute_layers
from pocketvlm.training.objectives import Answers, Objective, Preferences
from pocketvlm.training.parts import count, freeze_all_but, linear_layers
from pocketvlm.training.processes import Processes
from pocketvlm.training.report import CURVE, Log, Result, draw_losses, write_card
from pocketvlm.training.settings import LOG, TuneSettings
from pocketvlm.training.trackers import check_trackers
from pocketvlm.training.trainer import Report, Trainer

logger = logging.getLogger(__name__)


def tune(
    directory: ModelDirectory,
    samples: Sequence[Sample],
    out: Path,
    settings: TuneSettings,
    *,
    validation: Sequence[Sample] | None = None,
    options: Mapping[str, Any] | None = None,
    base: str = "nano",
    device: str = "auto",
    workers: int = 0,
    identity: Mapping[str, Any] | None = None,
    measure: Callable[[VLM], Mapping[str, float]] | None = None,
    on_step: Callable[[Report], None] = lambda _report: None,
    data: Sequence[str] = (),
) -> Result:
    """Train; the same call goes on with a run that was stopped.

    Args:
        directory: of the base model.
        samples, validation: of data to learn from, and to measure with.
        out: folder of the run, made here.
        options: of pictures, see `ExampleEncoder`.
        base: what the base model is called, in the adapter.
        workers: processes that encode samples ahead.
        identity: of the data, beside their number, for a run that goes on.
        measure: asked for the scores of the model at each evaluation and at the end, by the names of tasks.
        on_step: called after every step, in one process.
        data: names of the data, for the card.

    Raises:
        ConfigError: the folder holds another run; an option cannot be honoured.
        TrainingError: the run cannot go on.
        SampleError: a bad sample that stops the run.
    """
    if settings.eval_every and validation is None and measure is None:
        raise ConfigError("eval_every has nothing to measure with", hint="Give validation samples, or tasks.")
    if settings.result == "best" and validation is None:
        raise ConfigError("result=best has no validation samples to choose by", hint="Give some.")
    check_trackers(settings.report_to)
    processor = Processor.from_directory(directory.path, configs=directory.configs)
    encoder = ExampleEncoder(processor, max_tokens=settings.max_tokens, truncate=settings.truncate, options=options)
    pairs = settings.objective == "dpo"
    feed = Feed(samples, encoder, pairs=pairs, seed=settings.seed, workers=workers)
    check_first(feed)
    target = choose_device(device)
    processes = Processes.join(target)
    torch.manual_seed(settings.seed)
    model = load_base(directory, settings, target)
    layers = prepare(model, settings)
    measured = None if validation is None else Feed(validation, encoder, pairs=pairs, seed=0)
    if processes.rank == 0:
        for left in out.glob("*.partial"):  # by a process that was killed while it wrote
            left.unlink(missing_ok=True)
    trainer = Trainer(
        model,
        feed,
        _objective(settings, model),
        settings,
        out,
        identity={"model": directory.fingerprint, **(identity or {})},
        validation=measured,
        processes=processes,
    )
    done = trainer.progress
    if done.step and processes.rank == 0:
        logger.warning("going on after step %d of the run in %s", done.step, out)
    writes = processes.rank == 0
    with (
        _folder(out, done, writes=writes),
        Log(out / LOG, asdict(settings), done.step, settings.report_to, writes=writes) as log,
    ):
        log.write({"learn": count(model)[0], "parameters": count(model)[1]})

        def after_step(report: Report) -> None:
            log.step(report)
            if writes:  # one of several processes is enough to tell it
                on_step(report)

        def evaluate() -> None:
            loss = trainer.evaluate()
            with trainer.average.applied():
                log.evaluation(done.step, loss, None if measure is None else measure_model(model, processor, measure))

        trainer.run(after_step, evaluate)
        trainer.save()
        last = trainer.evaluate()
        trainer.take_result()
        figures: dict[str, float | None] | None = None
        if validation is not None:
            figures = {"loss": done.best_loss if settings.result == "best" else last, "exact": None}
            if not pairs:
                figures["exact"] = exact_answers(model, processor, validation, options or {}, settings.eval_count)
        scores = None if measure is None else measure_model(model, processor, measure)
        log.end(done.step, figures, scores)
    result = Result(
        out=str(out),
        steps=done.step,
        seconds=round(done.seconds, 3),
        loss=done.loss,
        validation=figures,
        peak_memory_bytes=peak_memory(target),
        bad=done.bad,
        tasks=None if scores is None else dict(scores),
    )
    if processes.rank == 0:
        write_result(model, layers, directory, out, base)
        learn, total = count(model)
        facts = {"data": ", ".join(data), "samples": len(samples), "weights that learn": f"{learn:,} of {total:,}"}
        write_card(out, result, settings, base, facts, settings.rate(directory.config.text))
        draw_losses(out / LOG, out / CURVE)
    return result


def load_base(directory: ModelDirectory, settings: TuneSettings, device: torch.device) -> MiniCPMV:
    """The model that the run begins with."""
    if settings.from_scratch_compression is None:
        return load_model(directory, device=device)
    model = load_model(directory, device=device, without="vision_tower.vit_merger.")
    warm_start_compression(model.vision_tower)
    return model


@contextmanager
def _folder(out: Path, progress: Progress, *, writes: bool) -> Iterator[None]:
    """Make the folder of a run, which is removed again where it is new and the run fails before its first step.

    Args:
        writes: whether this process does.
    """
    is_new = writes and not out.exists()
    if writes:
        out.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except Exception:  # an interrupt leaves a checkpoint to continue from
        if is_new and not progress.step:
            shutil.rmtree(out, ignore_errors=True)
        raise


def check_first(feed: Feed, most: int = 100) -> None:
    """Refuse data of which the first samples are all bad, their pictures included, before the model is loaded.

    Raises:
        SampleError: what is wrong with the first one.
        ConfigError: there are none.
    """
    first: SampleError | None = None
    for found in itertools.islice(feed.all(), most):
        if not isinstance(found, SampleError):
            return
        first = first or found
    raise first or ConfigError("there are no samples to learn from", hint="Check the files.")


def prepare(model: MiniCPMV, settings: TuneSettings) -> list[str]:
    """Mark what learns, in place; returns the layers with adapters, none with full fine-tuning."""
    if settings.gradient_checkpointing:
        recompute_layers(model)
    if settings.method == "full":
        freeze_all_but(model, settings.tune)
        return []
    if settings.method == "qlora":
        quantize_base(model, list(linear_layers(model, {"decoder", *settings.tune})))
    return lora.add_lora(model, settings)


def _objective(settings: TuneSettings, model: MiniCPMV) -> Objective:
    if settings.objective == "sft":
        return Answers()
    from pocketvlm.training.reference_policy import reference_policy

    return Preferences(settings.beta, reference_policy(model, settings))


def write_result(model: MiniCPMV, layers: Sequence[str], directory: ModelDirectory, out: Path, base: str) -> None:
    """The adapter, or the whole checkpoint in the published layout."""
    if layers:
        lora.save_adapter(model, layers, out, base)
        return
    save_model(model, out, dtype=stored_dtype(directory.path))
    for file in directory.path.iterdir():  # tokenizer, template and settings of pictures
        if file.suffix in (".json", ".jinja", ".txt") and not (out / file.name).exists() and "index" not in file.name:
            shutil.copy(file, out / file.name)
