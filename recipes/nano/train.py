#!/usr/bin/env python3
"""Train the embedded model from nothing.

    python -m recipes.nano.train --out runs/nano                     # until interrupted; resumes where it stopped
    python -m recipes.nano.train --out runs/nano --cooldown 2000     # the last 2,000 steps, learning rate to zero

Each process runs on one thread (two one-thread processes are faster than one of two threads on small models) and draws
its own pictures; gradients are averaged after every step. A checkpoint holds everything, so that a run that is
interrupted continues with the very next step. `log.jsonl` beside it records every report.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from pocketvlm.model.checkpoint import load_model, save_model
from pocketvlm.model.vlm import MiniCPMV
from pocketvlm.model.warm_start import warm_start_compression
from pocketvlm.processing.tokenizer import Tokenizer
from recipes.nano.data import CLASSES, SLOTS, Collator, TrainingBatch
from recipes.nano.muon import Muon
from recipes.nano.settings import CURRICULUM, IMAGE, Optimiser, model_config

ASSETS = Path(__file__).resolve().parents[2] / "src/pocketvlm/assets/nano"


def initialise(model: MiniCPMV) -> None:
    """Fan-in scaled normal weights, zero-mean patch filters at double size, then the warm start of the compression."""
    for name, p in model.named_parameters():
        if name.endswith(".bias"):
            nn.init.zeros_(p)
        elif p.dim() >= 2:
            nn.init.normal_(p, std=0.02 if "embed" in name else p[0].numel() ** -0.5)
    filters = model.vision_tower.patch_embedding.weight
    with torch.no_grad():
        filters.normal_(std=2 * filters.shape[1] ** -0.5)
        filters -= filters.mean(1, keepdim=True)
        for module in model.modules():  # residual branches start small
            for leaf in ("o_proj", "out_proj", "down_proj", "fc2"):
                if isinstance(linear := getattr(module, leaf, None), nn.Linear):
                    linear.weight *= 0.3
    warm_start_compression(model.vision_tower)


class Trainer:
    """Model, optimisers and the place in the curriculum."""

    def __init__(self, out: Path, seed: int, rank: int, world: int, settings: Optimiser) -> None:
        self.out, self.seed, self.rank, self.world, self.settings = out, seed, rank, world, settings
        self.tokenizer = Tokenizer.from_directory(ASSETS)
        self.collate = Collator(self.tokenizer, IMAGE)
        ids = [self.tokenizer.control_id(t) for t in ("<|image_pad|>", "<|video_pad|>", "<|endoftext|>")]
        torch.manual_seed(seed)
        self.model = MiniCPMV(model_config(self.tokenizer.vocab_size, *ids), IMAGE.image_mean, IMAGE.image_std)
        initialise(self.model)
        self.reader = nn.Linear(self.model.config.text.hidden_size, SLOTS * CLASSES)  # training only
        named = list(self.model.named_parameters())
        # The wide linear_1 of the compression would cost Muon as much as all other matrices together.
        matrices = [p for n, p in named if p.dim() == 2 and ".layers." in n]
        chosen = {id(p) for p in matrices}
        rest = [p for _, p in named if id(p) not in chosen] + list(self.reader.parameters())
        self.parameters: list[Tensor] = matrices + rest
        eyes = (self.model.vision_tower, self.model.merger, self.reader)
        self.tower_parameters: list[Tensor] = [p for module in eyes for p in module.parameters()]
        self.optimisers: list[torch.optim.Optimizer] = [
            Muon(matrices, settings.learning_rate, settings.momentum, settings.weight_decay),
            torch.optim.AdamW(rest, settings.learning_rate, betas=(0.9, 0.98), weight_decay=settings.weight_decay),
        ]
        self.step, self.stage, self.stage_step, self.average, self.seconds = 0, 0, 0, 0.0, 0.0
        self.cooldown: tuple[int, int] | None = None
        self.pictures = 0  # drawn since the last report
        # Products in bfloat16 where the CPU has units for it (a step takes three quarters of the time); elsewhere they
        # would be several times slower than fp32.
        self.bf16 = torch.cpu._is_avx512_bf16_supported()

    def rate(self) -> float:
        """Factor on the learning rate."""
        if self.cooldown and self.step >= self.cooldown[0]:
            first, last = self.cooldown
            return max(0.0, (last - self.step) / (last - first))
        return min(1.0, (self.step + 1) / self.settings.warmup)

    def losses(self, data: TrainingBatch, language: bool) -> dict[str, Tensor]:
        """Cross-entropy of the answers and of the characters in each visual token's cell."""
        features = self.model.encode_views(data.patches, data.views)
        scores = self.reader(features).view(-1, SLOTS, CLASSES)
        # Most cells are empty: they count a tenth, or the tower would learn emptiness first.
        weight = (data.characters[:, :1] > 0).float() * 0.9 + 0.1
        each = F.cross_entropy(scores.flatten(0, 1), data.characters.flatten(), reduction="none").view(-1, SLOTS)
        # The first empty slot matters ("no more"), those behind it do not.
        asked = torch.ones_like(each)
        asked[:, 1:] = (data.characters[:, :-1] > 0).float()
        losses = {"characters": (each * asked * weight).sum() / (asked * weight).sum()}
        if language:
            hidden = self.model(data.input_ids, data.batch, features.index_select(0, data.feature_index))
            rows = (data.targets >= 0).nonzero().squeeze(1)
            logits = self.model.logits(hidden.index_select(0, rows))
            losses["answers"] = F.cross_entropy(logits, data.targets[rows])
            losses["right"] = (logits.detach().argmax(-1) == data.targets[rows]).float().mean()
        return losses

    def train_step(self) -> dict[str, float] | None:
        """One step; returns the losses when the decoder took part (or never does in this stage)."""
        stage = CURRICULUM[self.stage]
        language = stage.language > 0 and self.step % stage.language == 0
        pictures = stage.batch if language or not stage.language else 2 * stage.batch
        self.pictures += pictures * self.world
        batch = self.collate(stage, (self.seed, self.step, self.rank), pictures)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            losses = self.losses(batch, language)
        loss = stage.characters * losses["characters"] + losses.get("answers", torch.zeros(()))
        loss.backward()
        learning = self.parameters if language else self.tower_parameters
        self.share_gradients(learning)
        nn.utils.clip_grad_norm_(learning, self.settings.clip)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self.settings.learning_rate * self.rate()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.step, self.stage_step = self.step + 1, self.stage_step + 1
        if stage.language and not language:
            return None
        report = torch.stack([losses.get(k, torch.zeros(())).detach() for k in ("answers", "characters", "right")])
        if self.world > 1:
            dist.all_reduce(report)
        answers, characters, right = (report / self.world).tolist()
        watched = answers if language else characters
        self.average = 0.97 * self.average + 0.03 * watched if self.average else watched
        if self.average < stage.mark and self.stage_step > 60 and self.stage + 1 < len(CURRICULUM):
            self.stage, self.stage_step, self.average = self.stage + 1, 0, 0.0
        return {"answers": answers, "characters": characters, "right": right}

    def share_gradients(self, parameters: list[Tensor]) -> None:
        """Average over the processes, in one message."""
        if self.world == 1:
            return
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        flat = torch.cat([g.flatten() for g in grads])
        dist.all_reduce(flat)
        flat /= self.world
        for p, g in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.grad = g.view_as(p)

    def save(self) -> None:
        """Everything needed to continue, complete or not at all; and the model itself in the published layout."""
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "reader": self.reader.state_dict(),
            "optimisers": [o.state_dict() for o in self.optimisers],
            "place": (self.step, self.stage, self.stage_step, self.average, self.seconds, self.cooldown),
        }
        partial = self.out / "training.pt.partial"
        torch.save(state, partial)
        partial.replace(self.out / "training.pt")
        save_model(self.model, self.out / "model")

    def start_from(self, checkpoint: Path, stage: int) -> None:
        """Begin at a stage of the curriculum with the weights of a published model; the optimisers start afresh."""
        self.model.load_state_dict(load_model(checkpoint).state_dict())
        self.stage = stage

    def resume(self) -> None:
        path = self.out / "training.pt"
        if path.is_file():
            state = torch.load(path, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.reader.load_state_dict(state["reader"])
            for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
                optimiser.load_state_dict(saved)
            self.step, self.stage, self.stage_step, self.average, self.seconds, self.cooldown = state["place"]


def run(rank: int, args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    if args.processes > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{args.out.resolve()}/rendezvous", rank=rank, world_size=args.processes
        )
    trainer = Trainer(args.out, args.seed, rank, args.processes, Optimiser())
    if args.init is not None and not (args.out / "training.pt").is_file():
        trainer.start_from(args.init, args.stage)
    trainer.resume()
    if args.cooldown and trainer.cooldown is None:
        trainer.cooldown = (trainer.step, trainer.step + args.cooldown)
    if args.until and trainer.cooldown:
        trainer.cooldown = (trainer.cooldown[0], args.until)
    last = trainer.cooldown[1] if trainer.cooldown else trainer.step + args.steps
    began, saved = time.perf_counter(), time.perf_counter()
    report: dict[str, float] | None = None
    while trainer.step < last:
        losses = trainer.train_step()
        if losses is not None:
            report = losses if report is None else {k: 0.95 * report[k] + 0.05 * losses[k] for k in losses}
        if rank == 0 and report is not None and trainer.step % 25 == 0:
            now = time.perf_counter()
            trainer.seconds += now - began
            line = {"step": trainer.step, "stage": CURRICULUM[trainer.stage].name, "seconds": round(trainer.seconds)}
            line |= {k: round(v, 4) for k, v in report.items()} | {
                "pictures_s": round(trainer.pictures / (now - began), 1)
            }
            began, trainer.pictures = now, 0
            with (args.out / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            print(line, flush=True)
            if now - saved > args.save_every:
                trainer.save()
                saved = now
    if rank == 0:
        trainer.save()


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--out", type=Path, required=True, help="folder of the checkpoint and the log")
    cli.add_argument("--seed", type=int, default=0)
    cli.add_argument("--init", type=Path, help="begin with the weights of this checkpoint instead of from nothing")
    cli.add_argument("--stage", type=int, default=4, help="with --init: stage of the curriculum to begin at")
    cli.add_argument("--steps", type=int, default=10**9, help="steps of this run (default: until interrupted)")
    cli.add_argument(
        "--cooldown", type=int, default=0, help="steps over which the learning rate falls to zero; then stop"
    )
    cli.add_argument("--until", type=int, default=0, help="end a cool-down that is under way at this step instead")
    cli.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    cli.add_argument("--save-every", type=float, default=120, help="seconds between checkpoints")
    args = cli.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "rendezvous").unlink(missing_ok=True)
    if args.processes == 1:
        run(0, args)
    else:
        torch.multiprocessing.spawn(run, (args,), nprocs=args.processes)


if __name__ == "__main__":
    main()
