"""A whole run: model and data in, an adapter or a checkpoint out, with its log, its curve and its model card."""

from __future__ import annotations

import itertools
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import torch

from pocketvlm.api.torch_devices import choose_device
from pocketvlm.api.vlm import VLM
from pocketvlm.errors import ConfigError
from pocketvlm.export.model_files import NOT_COPIED
from pocketvlm.files import lock, whole_file
from pocketvlm.model.checkpoint import load_model, save_model, stored_dtype
from pocketvlm.model.directory import ModelDirectory
from pocketvlm.model.vision.warm_start import warm_start_compression
from pocketvlm.model.vlm import MiniCPMV
from pocketvlm.training import lora
from pocketvlm.training.data.sample import Sample, SampleError
from pocketvlm.training.evaluate import exact_answers, measure_model
from pocketvlm.training.examples import ExampleEncoder, training_processor
from pocketvlm.training.feed import Feed
from pocketvlm.training.memory import peak_memory, quantize_base, recompute_layers
from pocketvlm.training.objectives import Answers, Objective, Preferences
from pocketvlm.training.parts import count, freeze_all_but, linear_layers
from pocketvlm.training.precision import autocast_dtype, halve_base, keeps_half
from pocketvlm.training.processes import Processes, device_of_process
from pocketvlm.training.report import CURVE, Log, Result, draw_losses, read_log, steps_in, write_card
from pocketvlm.training.settings import LOG, PARTS, TuneSettings
from pocketvlm.training.trackers import check_trackers
from pocketvlm.training.trainer import Report, Trainer

PATIENCE = 8.0  # seconds; workers look every five whether their main process is still there
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
    facts: Mapping[str, str] | None = None,
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
        facts: of the data, by name, for the card.

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
    processor = training_processor(directory)
    encoder = ExampleEncoder(processor, max_tokens=settings.max_tokens, truncate=settings.truncate, options=options)
    pairs = settings.objective == "dpo"
    feed = Feed(samples, encoder, pairs=pairs, seed=settings.seed, workers=workers)
    check_first(feed)
    measured = None if validation is None else Feed(validation, encoder, pairs=pairs, seed=0)
    if measured is not None:
        check_first(measured)
    target = device_of_process(choose_device(device))
    processes = Processes.join(target)
    torch.manual_seed(settings.seed)
    model = load_base(directory, settings, target)
    layers = prepare(model, settings)
    writes = processes.rank == 0
    with ExitStack() as folder:
        folder.enter_context(_folder(out, writes=writes))
        trainer = Trainer(
            model,
            feed,
            objective_of(settings, model),
            settings,
            out,
            identity={"model": directory.fingerprint, **(identity or {})},
            validation=measured,
            processes=processes,
        )
        done = trainer.progress
        if done.step and writes:
            logger.warning("going on after step %d of the run in %s", done.step, out)
        log = folder.enter_context(Log(out / LOG, asdict(settings), done.step, settings.report_to, writes=writes))
        log.write({"learn": count(model)[0], "parameters": count(model)[1]})

        def after_step(report: Report) -> None:
            log.step(report)
            if writes:  # one of several processes is enough to tell it
                on_step(report)

        known: tuple[int, float | None, Mapping[str, float] | None] = (0, None, None)

        def evaluate() -> None:
            nonlocal known
            loss = trainer.evaluate()
            with trainer.average.applied():
                known = (done.step, loss, None if measure is None else measure_model(model, processor, measure))
            log.evaluation(*known)

        trainer.run(after_step, evaluate)
        trainer.save()
        step, last, scores = known
        if step != done.step:
            last, scores = trainer.evaluate(), None
        trainer.take_result()
        if settings.result == "best" and done.best_step != done.step:
            scores = None  # of other weights
        figures: dict[str, float | None] | None = None
        if validation is not None:
            figures = {"loss": done.best_loss if settings.result == "best" else last, "exact": None}
            if not pairs:
                figures["exact"] = exact_answers(model, processor, validation, options or {}, settings.eval_count)
        if measure is not None and scores is None:
            scores = measure_model(model, processor, measure)
        done.bad, done.cut = processes.united(done.bad), processes.united(done.cut)
        log.end(done.step, figures, scores, done.bad, len(done.cut))
        result = Result(
            out=str(out),
            steps=done.step,
            seconds=round(done.seconds, 3),
            loss=done.loss,
            validation=figures,
            peak_memory_bytes=peak_memory(target),
            bad=done.bad,
            cut=len(done.cut),
            tasks=None if scores is None else dict(scores),
        )
        if writes:
            write_result(model, layers, directory, out, base)
            learn, total = count(model)
            more = {
                "samples": len(samples),
                "weights that learn": f"{learn:,} of {total:,}",
                "products in": f"{autocast_dtype(target, directory.config.text.hidden_size)}".split(".")[1],
            }
            rate = settings.rate(directory.config.text)
            write_card(out, result, settings, base, {**(facts or {}), **more}, rate, options or {})
            draw_losses(out / LOG, out / CURVE)
    processes.wait()  # torchrun ends the others where one has ended with a status that is not 0
    return result


def load_base(directory: ModelDirectory, settings: TuneSettings, device: torch.device) -> MiniCPMV:
    """The model that the run begins with. What is kept in fewer bits is so layer by layer, or the whole base in fp32
    would be the most that the run ever needs."""
    is_half = keeps_half(settings.method, device, directory.config.text.hidden_size)
    if (settings.method == "qlora" or is_half) and directory.adapter is None:
        in_4bit, in_half = set[str](), set[str]()

        def keep(model: MiniCPMV, name: str) -> None:
            if not in_4bit and not in_half:
                in_4bit.update(layers_in_4bit(model, settings) if settings.method == "qlora" else ())
                in_half.update(linear_layers(model, PARTS) if is_half else ())
            if name in in_4bit:
                quantize_base(model, [name])
            elif name in in_half:
                halve_base(model, [name])

        return load_model(directory, device=device, on_linear=keep)
    if settings.from_scratch_compression is None:
        return load_model(directory, device=device)
    model = load_model(directory, device=device, without="vision_tower.vit_merger.")
    warm_start_compression(model.vision_tower)
    return model


@contextmanager
def _folder(out: Path, *, writes: bool) -> Iterator[None]:
    """Make the folder of a run, for this run alone. It is removed again where it is new and the run fails before its
    first step.

    Args:
        writes: whether this process does.

    Raises:
        ConfigError: it cannot be made, another run writes into it, or its log is none.
    """
    if not writes:
        yield
        return
    is_new = not out.exists()
    try:
        (out / "checkpoints").mkdir(parents=True, exist_ok=True)
        file = (out / "checkpoints" / "lock").open("ab")
    except OSError as error:
        raise ConfigError(f"{out} cannot be written ({error.strerror})", hint="Name another folder.") from None
    try:
        with file:
            _wait_for(file, out)
            read_log(out / LOG)
            for left in out.glob("*.partial"):  # by a process that was killed while it wrote
                left.unlink(missing_ok=True)
            yield
    except Exception:  # an interrupt leaves a checkpoint to continue from
        if is_new and not steps_in(out / LOG):
            shutil.rmtree(out, ignore_errors=True)
        raise


def _wait_for(file: IO[bytes], out: Path) -> None:
    """Until no other run has the lock; not for longer than the workers of one that was killed live on."""
    end = time.monotonic() + PATIENCE
    while not lock(file):
        if time.monotonic() > end:
            raise ConfigError(f"{out} is being written by another run", hint="Wait for it, or name another folder.")
        time.sleep(0.1)


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


def prepare(
    model: MiniCPMV,
    settings: TuneSettings,
    quantize: Callable[[MiniCPMV, Sequence[str]], None] = quantize_base,
    device: torch.device | None = None,
) -> list[str]:
    """Mark what learns, in place; returns the layers with adapters, none with full fine-tuning.

    Args:
        quantize: brings the layers that it is given into 4 bits.
        device: that the run is for; the model's when None.
    """
    if settings.gradient_checkpointing:
        recompute_layers(model)
    if settings.method == "full":
        freeze_all_but(model, settings.tune)
        return []
    if settings.method == "qlora":
        quantize(model, list(layers_in_4bit(model, settings)))
    if keeps_half(settings.method, device or model.device, model.config.text.hidden_size):
        halve_base(model, list(linear_layers(model, PARTS)))
    return lora.add_lora(model, settings)


def layers_in_4bit(model: MiniCPMV, settings: TuneSettings) -> Iterator[str]:
    """Names of the layers whose weights qlora keeps in 4 bits."""
    return linear_layers(model, {"decoder", *settings.tune})


def objective_of(settings: TuneSettings, model: MiniCPMV) -> Objective:
    """What a run minimises."""
    if settings.objective == "sft":
        return Answers()
    from pocketvlm.training.reference_policy import reference_policy

    return Preferences(settings.beta, reference_policy(model, settings), settings.rpo_alpha)


def write_result(model: MiniCPMV, layers: Sequence[str], directory: ModelDirectory, out: Path, base: str) -> None:
    """The adapter, or the whole checkpoint in the published layout."""
    if layers:
        lora.save_adapter(model, layers, out, base)
        return
    save_model(model, out, dtype=stored_dtype(directory.path))
    for file in directory.path.iterdir():  # tokenizer, template and settings of pictures
        is_text = file.suffix in (".json", ".jinja", ".txt") and file.name not in NOT_COPIED
        if is_text and not (out / file.name).exists() and "index" not in file.name:
            with whole_file(out / file.name) as copied:  # or a later run would take a part of it for the whole
                copied.write(file.read_bytes())
