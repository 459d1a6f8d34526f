"""Model, optimisers and the place in the curriculum: one step, and everything that a checkpoint must hold."""

from __future__ import annotations

import shutil
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from pocketvlm.model.checkpoint import save_model
from pocketvlm.model.vision.warm_start import warm_start_compression
from pocketvlm.model.vlm import MiniCPMV
from pocketvlm.processing.prompt.tokenizer import Tokenizer
from recipes.nano import loader
from recipes.nano.cells import CellReader
from recipes.nano.curriculum import CURRICULUM, Stage
from recipes.nano.data import Collator, TrainingBatch
from recipes.nano.initialise import initialise
from recipes.nano.loader import Schedule, Steps, batches
from recipes.nano.muon import Muon
from recipes.nano.settings import ASSETS, IMAGE, TEXT_FILES, Optimiser, model_config

SHORTEST_STAGE = 60  # steps before the moving average says anything


class Trainer:
    """One process of a training run.

    Args:
        out: folder of checkpoint and log.
        seed, rank, world: decide the samples of each step; a run resumes with the same ones.
        settings: of the optimisers.
        stages: the curriculum.
        workers: processes that draw samples ahead; 0 draws them here.
    """

    def __init__(
        self,
        out: Path,
        seed: int,
        rank: int,
        world: int,
        settings: Optimiser,
        *,
        stages: tuple[Stage, ...] = CURRICULUM,
        device: torch.device | str = "cpu",
        workers: int = 0,
    ) -> None:
        self.out, self.seed, self.rank, self.world, self.settings = out, seed, rank, world, settings
        self.stages, self.device, self.workers = stages, torch.device(device), workers
        self.tokenizer = Tokenizer.from_directory(ASSETS)
        self.collate = Collator(self.tokenizer, IMAGE)
        ids = [self.tokenizer.control_id(t) for t in ("<|image_pad|>", "<|video_pad|>", "<|endoftext|>")]
        torch.manual_seed(seed)
        config = model_config(self.tokenizer.vocab_size, *ids)
        self.model = MiniCPMV(config, IMAGE.image_mean, IMAGE.image_std)
        initialise(self.model)
        self.reader = CellReader(config.text.hidden_size)  # training only
        self.model.to(self.device)
        self.reader.to(self.device)
        self.make_optimisers()
        self.step, self.average, self.seconds = 0, 0.0, 0.0
        self.schedule = Schedule(len(stages))
        self.cooldown: tuple[int, int] | None = None  # first and last step of a falling learning rate
        self.deadline: float | None = None  # seconds of training at which the rate, falling all the time, is zero
        self._batches: Iterator[TrainingBatch] | None = None
        # Products in bfloat16 where the machine has units for it (on a CPU a step then takes three quarters of the
        # time); elsewhere they would be several times slower than fp32.
        self.bf16 = self.device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()

    def make_optimisers(self) -> None:
        named = list(self.model.named_parameters())
        # The wide linear_1 of the compression would cost Muon as much as all other matrices together.
        matrices = [p for n, p in named if p.dim() == 2 and ".layers." in n]
        chosen = {id(p) for p in matrices}
        rest = [p for _, p in named if id(p) not in chosen] + list(self.reader.parameters())
        self.parameters: list[Tensor] = matrices + rest
        vision = (self.model.vision_tower, self.model.merger, self.reader)
        self.tower_parameters: list[Tensor] = [p for module in vision for p in module.parameters()]
        compression = (self.model.vision_tower.vit_merger, self.model.merger)
        self.compression_parameters: list[Tensor] = [p for module in compression for p in module.parameters()]
        s = self.settings
        self.optimisers: list[torch.optim.Optimizer] = [
            Muon(matrices, s.learning_rate, s.momentum, s.weight_decay),
            torch.optim.AdamW(rest, s.learning_rate, betas=(0.9, 0.98), weight_decay=s.weight_decay),
        ]

    @property
    def stage(self) -> Stage:
        return self.stages[self.schedule.stage_at(self.step)]

    def rate(self) -> float:
        """Factor on the learning rate."""
        if self.deadline is not None:
            return max(0.0, min((self.step + 1) / self.settings.warmup, 1 - self.seconds / self.deadline))
        if self.cooldown and self.step >= self.cooldown[0]:
            first, last = self.cooldown
            warm = (self.step - first + 1) / self.settings.warmup
            return max(0.0, min(warm, (last - self.step) / (last - first)))
        return min(1.0, (self.step + 1) / self.settings.warmup)

    def next_batch(self) -> TrainingBatch:
        if self._batches is None:
            self.schedule.step = self.step
            self._batches = batches(Steps(self.collate, self.stages, self.seed, self.rank), self.schedule, self.workers)
        return next(self._batches)

    def losses(self, data: TrainingBatch, language: bool) -> dict[str, Tensor]:
        """Cross-entropy of the answers and of what stands in each visual token's cell; "rows" is [answer tokens]
        losses and "right" whether each was the most likely one."""
        features = self.model.encode_views(data.patches.to(self.device), data.views)
        losses: dict[str, Tensor] = self.reader(features, data.cells.to(self.device))
        if language:
            hidden = self.model(data.input_ids.to(self.device), data.packed(self.device), features)
            rows = (data.targets >= 0).nonzero().squeeze(1)
            targets = data.targets[rows].to(self.device)
            logits = self.model.logits(hidden.index_select(0, rows.to(self.device))).float()
            losses["rows"] = F.cross_entropy(logits, targets, reduction="none")
            losses["right"] = logits.detach().argmax(-1) == targets
        return losses

    def train_step(self) -> dict[str, Any]:
        """One step; returns its losses. "answers" is missing where the decoder took no part."""
        began = time.perf_counter()
        if self.schedule.arrive(self.step):
            self.average = 0.0
            if self.stage.inserts:
                self.insert_compression()
        stage = self.stage
        language = stage.has_language(self.step)
        data = self.next_batch()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            losses = self.losses(data, language)
        loss = stage.cells * (losses["characters"] + losses["objects"])
        if language:
            # The processes' shares have different lengths: every answer token of the step weighs the same.
            tokens = torch.tensor(float(len(losses["rows"])), device=self.device)
            if self.world > 1:
                dist.all_reduce(tokens)
            loss = loss + losses["rows"].sum() * self.world / tokens
        loss.backward()
        whole = self.parameters if language else self.tower_parameters
        self.update(self.compression_parameters if stage.learns == "compression" else whole)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # or the clock, and with it the deadline, would miss queued work
        self.step += 1
        report = self.report(data, losses, time.perf_counter() - began)
        self.seconds += report.pop("seconds")
        if language or not stage.language:
            watched = report["answers" if language else "characters"]
            self.average = 0.97 * self.average + 0.03 * watched if self.average else watched
            age = self.step - self.schedule.began
            if (self.average < stage.mark and age > SHORTEST_STAGE) or 0 < stage.steps <= age + loader.LAG:
                self.schedule.ask(self.step)
        return report

    def insert_compression(self) -> None:
        """Start the compression warm, with fresh moments: those of a part that took no part have aged at zero."""
        warm_start_compression(self.model.vision_tower)
        for optimiser in self.optimisers:
            for p in self.model.vision_tower.vit_merger.parameters():
                optimiser.state.pop(p, None)

    def update(self, learning: list[Tensor]) -> None:
        """Average the gradients over the processes and take a step with `learning`."""
        kept = {id(p) for p in learning}
        for p in self.parameters:
            if id(p) not in kept:
                p.grad = None
        if self.world > 1:
            grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in learning]
            flat = torch.cat([g.flatten() for g in grads])
            dist.all_reduce(flat)
            flat /= self.world
            for p, g in zip(learning, flat.split([p.numel() for p in learning]), strict=True):
                p.grad = g.view_as(p)
        nn.utils.clip_grad_norm_(learning, self.settings.clip)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self.settings.learning_rate * self.rate()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    def report(self, data: TrainingBatch, losses: dict[str, Tensor], seconds: float) -> dict[str, Any]:
        """Means over the processes; and of this process alone the loss of each task."""
        named = {name: losses[name].detach() for name in ("characters", "objects")}
        if "rows" in losses:
            named |= {"answers": losses["rows"].detach().mean(), "right": losses["right"].float().mean()}
        means = torch.stack([*named.values(), torch.tensor(seconds, device=self.device)])
        if self.world > 1:
            dist.all_reduce(means)
        report: dict[str, Any] = dict(zip((*named, "seconds"), (means / self.world).tolist(), strict=True))
        if "rows" in losses:
            samples = data.sample_of_rows()[data.targets >= 0].tolist()
            of_task = defaultdict(list)
            for sample, loss in zip(samples, losses["rows"].tolist(), strict=True):
                of_task[data.tasks[sample]].append(loss)
            report["tasks"] = {task: sum(values) / len(values) for task, values in of_task.items()}
        return report | {"samples": len(data.tasks) * self.world}

    def save(self) -> None:
        """Everything needed to continue, complete or not at all; and the model itself in the published layout."""
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "reader": self.reader.state_dict(),
            "optimisers": [o.state_dict() for o in self.optimisers],
            "place": (self.step, self.average, self.seconds, self.cooldown, self.deadline, self.schedule.state()),
            "run": self.identity(),
        }
        partial = self.out / "training.pt.partial"
        torch.save(state, partial)
        partial.replace(self.out / "training.pt")
        save_model(self.model, self.out / "model")
        for name in TEXT_FILES:  # so that the folder is a whole checkpoint, as any other
            shutil.copy(ASSETS / name, self.out / "model")

    def identity(self) -> tuple[int, int, list[int]]:
        """What decides the samples of a step, beside the code: seed, processes, patches of each stage."""
        return self.seed, self.world, [stage.patches for stage in self.stages]

    def resume(self) -> None:
        """Continue with the very next step of an interrupted run, if there is one."""
        path = self.out / "training.pt"
        if not path.is_file():
            return
        # On the CPU first: optimisers bring their moments to the device, and leave step counts where they are.
        state = torch.load(path, weights_only=True, map_location="cpu")
        if tuple(state["run"]) != self.identity():
            seed, world = state["run"][:2]
            raise SystemExit(
                f"{self.out} was begun with --seed {seed}, {world} processes and maybe another --preset: "
                "continue with the same"
            )
        self.model.load_state_dict(state["model"])
        self.reader.load_state_dict(state["reader"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.step, self.average, self.seconds, self.cooldown, self.deadline, schedule = state["place"]
        self.schedule.restore(self.step, schedule)
