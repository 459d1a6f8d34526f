"""A run of the recipe: what `pocketvlm.training` is given to train nano, and what is left in the folder of the run."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from pocketvlm.model.checkpoint import save_model
from pocketvlm.model.vlm import MiniCPMV
from pocketvlm.processing.processor import Processor
from pocketvlm.processing.prompt.tokenizer import Tokenizer
from pocketvlm.training.parts import freeze_all_but
from pocketvlm.training.processes import Processes
from pocketvlm.training.report import Log
from pocketvlm.training.settings import LOG, PARTS, TuneSettings
from pocketvlm.training.trainer import Report, Trainer
from recipes.nano import mix
from recipes.nano.course import Course, Length
from recipes.nano.curriculum import CURRICULUM, Stage
from recipes.nano.data import Collator
from recipes.nano.feed import GeneratedFeed
from recipes.nano.initialise import READER, initialise
from recipes.nano.objective import CellsAndAnswers, Learner
from recipes.nano.optimiser import make_optimiser
from recipes.nano.settings import ASSETS, IMAGE, TEXT_FILES, Optimiser, model_config

SAVE_EVERY = 100  # steps


def new_learner(seed: int) -> Learner:
    """Nano before its first step."""
    tokenizer = Tokenizer.from_directory(ASSETS)
    ids = [tokenizer.control_id(t) for t in ("<|image_pad|>", "<|video_pad|>", "<|endoftext|>")]
    torch.manual_seed(seed)
    model = MiniCPMV(model_config(tokenizer.vocab_size, *ids), IMAGE.image_mean, IMAGE.image_std)
    initialise(model)
    return Learner(model)


def write_run(learner: Learner, out: Path) -> None:
    """The model in the published layout, a whole checkpoint as any other, and its heads, in the folder of a run."""
    save_model(learner.model, out / "model")
    for name in TEXT_FILES:
        shutil.copy(ASSETS / name, out / "model")
    save_file(learner.reader.state_dict(), out / READER)


class Run:
    """One process of a run, where its last checkpoint left it.

    Args:
        out: folder of the run.
        learner: with its first weights, which a checkpoint replaces.
        seed: decides the samples of each step, with the number of the process.
        optimiser: its settings.
        stages: the curriculum.
        device: where it learns.
        workers: processes that draw samples ahead; 0 draws them here.
        save_every: steps from one checkpoint to the next.
        dtype: of the products, see `machine.fastest_dtype`; the weights are fp32.
        mix_every: steps from one measurement to the next in stages that have them, see `mix.py`.

    Raises:
        ConfigError: the folder holds a run that was begun otherwise.
    """

    def __init__(
        self,
        out: Path,
        learner: Learner,
        seed: int,
        optimiser: Optimiser,
        *,
        stages: tuple[Stage, ...] = CURRICULUM,
        processes: Processes | None = None,
        device: torch.device | str = "cpu",
        workers: int = 0,
        save_every: int = SAVE_EVERY,
        dtype: torch.dtype = torch.float32,
        mix_every: int = mix.EVERY,
    ) -> None:
        self.mix_every = mix_every
        self.out, self.processes = out, processes or Processes()
        self.learner = learner.to(device)
        self.optimiser = make_optimiser(learner, optimiser, dtype)
        self.course = Course(stages)
        self.length = Length(self.course, optimiser.warmup)
        collate = Collator(Tokenizer.from_directory(ASSETS), IMAGE)
        self.feed = GeneratedFeed(collate, self.course, seed, workers, self.begin)
        self.trainer = Trainer(
            learner,  # type: ignore[arg-type]  # as its documentation says
            self.feed,  # type: ignore[arg-type]
            CellsAndAnswers(self.processes),
            TuneSettings(
                method="full",
                tune=PARTS,
                batch_size=1,
                learning_rate=optimiser.learning_rate,
                weight_decay=optimiser.weight_decay,
                clip=optimiser.clip,
                seed=seed,
                save_every=save_every,
            ),
            out,
            identity={
                "processes": self.processes.world,
                "patches": [[stage.patches, stage.between_patches] for stage in stages],
            },
            processes=self.processes,
            optimiser=self.optimiser,
            schedule=self.length,
        )
        self.trainer.dtype = dtype
        if place := self.trainer.progress.place:
            self.course.restore(place["course"])
            self.length.restore(place["length"])
            self._choose_parts(stages[self.course.stage])
        self._log: Log | None = None

    @property
    def step(self) -> int:
        """Steps that are done."""
        return self.trainer.progress.step

    @property
    def stage(self) -> Stage:
        """That of the next step."""
        return self.course.stages[self.course.stage_at(self.step)]

    def train(self, on_step: Callable[[Report], None] = lambda _report: None) -> None:
        """Train until the run is at its end (see `Length`), and leave a checkpoint and the model.

        Raises:
            KeyboardInterrupt: by Ctrl-C or SIGTERM, after a step and a checkpoint.
        """
        settings, writes = dataclasses.asdict(self.trainer.settings), self.processes.rank == 0
        with Log(self.out / LOG, settings, self.step, writes=writes) as self._log:
            try:
                self.trainer.run(lambda report: self._after_step(report, on_step), lambda: None)
            except KeyboardInterrupt:
                self.write_model()
                raise
        self.save()

    def save(self) -> None:
        """Write a checkpoint, and the model."""
        self._keep_place()
        self.trainer.save()
        self.write_model()

    def begin(self, stage: Stage, step: int) -> None:
        """What changes with the first step of a stage."""
        self._choose_parts(stage)
        if self._log is not None:
            self._log.write({"step": step + 1, "stage": stage.name})

    def _choose_parts(self, stage: Stage) -> None:
        freeze_all_but(self.learner.model, stage.learns)
        self.learner.reader.requires_grad_("tower" in stage.learns)

    def _after_step(self, report: Report, on_step: Callable[[Report], None]) -> None:
        assert self._log is not None
        self.course.watch(report.step, report.figures)
        if self.stage.measured and report.step % self.mix_every == 0:
            self._measure(report.step)
        self._keep_place()
        self._log.step(report)
        on_step(report)
        if report.step % self.trainer.settings.save_every == 0:
            self.write_model()

    def _measure(self, step: int) -> None:
        """Let the shares follow what is weakest."""
        assert self._log is not None
        self.write_model()
        self.processes.wait()
        scores = mix.measure(self.learner.model, Processor.from_directory(self.out / "model"), self.processes)
        self.course.change_mix(step, mix.factors(scores))
        self._log.write({"step": step, "suite": {kind: round(value, 4) for kind, value in scores.items()}})

    def _keep_place(self) -> None:
        self.trainer.progress.place = {"course": self.course.state(), "length": self.length.state()}

    def write_model(self) -> None:
        """What a run that begins with this one needs."""
        if not self.processes.rank:
            write_run(self.learner, self.out)
