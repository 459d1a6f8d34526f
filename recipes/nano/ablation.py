#!/usr/bin/env python3
"""The claims of early compression, measured: four ways to 16x from one uncompressed base, at equal data and steps.

    python -m recipes.nano.train --out runs/base --until-stage "reading aloud"     # a tower that reads, and its decoder
    python -m recipes.nano.ablation --base runs/base --out runs/ablation
    python -m recipes.nano.ablation --base runs/base --out runs/ablation --report

| variant | where four tokens become one |
|---|---|
| none | behind the tower: all its layers see all patches |
| warm | inside the tower, started from the layer in front of it (what MiniCPM-V 4.6 does) |
| random | the same place, started at random |
| pool | the same place, the mean of the four, nothing to learn |

Each variant is a run that resumes and sees the same samples, in two stages,
here on strips of 56 x 112 pixels with one word or number: two tokens of 16x each, which a tower learns to read within
minutes. The report asks all of them the same held-out questions about strips, and prints FLOPs and measured seconds of
the vision side for a view of 224 x 224, taken in turns.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pocketvlm.api.vlm import VLM
from pocketvlm.config import ModelConfig
from pocketvlm.engine.runners.torch_runner import TorchRunner
from pocketvlm.evaluation.answerers import LocalModel
from pocketvlm.evaluation.harness import evaluate
from pocketvlm.evaluation.report import summarise
from pocketvlm.evaluation.results import Record
from pocketvlm.evaluation.scoring import character_error_rate
from pocketvlm.evaluation.suite import Row, SyntheticTask
from pocketvlm.model.flops import vision_flops
from pocketvlm.model.vision.early_compression import WINDOW
from pocketvlm.model.vision.warm_start import warm_start_compression
from pocketvlm.model.vlm import MiniCPMV
from pocketvlm.processing.processor import Processor
from pocketvlm.processing.prompt.tokenizer import Tokenizer
from pocketvlm.training.processes import Processes
from pocketvlm.views import Size, View
from recipes.nano.curriculum import COMPRESSED, COMPRESSION, Share, Stage
from recipes.nano.initialise import initialise, start_from
from recipes.nano.objective import Learner
from recipes.nano.run import Run, new_learner
from recipes.nano.settings import ASSETS, IMAGE, PRESETS
from recipes.nano.train import join

VARIANTS = ("none", "warm", "random", "pool")
TASKS = (Share("words", 1, 1.0),)
# Whole views of 224 x 224 take many times as long to learn. With this setting a strip is one view, and not enlarged.
STRIPS = dataclasses.replace(IMAGE, scale_resolution=80)
EXAM = SyntheticTask("strips", Row("words", 1))


class MeanPool(nn.Module):
    """Four neighbouring tokens become their mean: [T, D] to [T / 4, D]."""

    def forward(self, x_TD: Tensor) -> Tensor:
        return x_TD.view(-1, WINDOW, x_TD.shape[-1]).mean(1)


def variant_config(config: ModelConfig, variant: str) -> ModelConfig:
    last = config.vision.num_hidden_layers - 1
    return dataclasses.replace(config, insert_layer_id=last if variant == "none" else config.insert_layer_id)


def insert(model: MiniCPMV, variant: str) -> None:
    """Put the variant's compression into a tower that was trained without."""
    tower = model.vision_tower
    if variant == "pool":
        tower.vit_merger = MeanPool()
    elif variant == "random":
        fresh = MiniCPMV(model.config)
        initialise(fresh)
        state = fresh.vision_tower.vit_merger.state_dict()
        for name, p in state.items():  # the initialisation ends with a warm start: draw again
            if p.dim() == 2:
                nn.init.normal_(p, std=p.shape[1] ** -0.5)
            elif name.endswith("bias"):
                p.zero_()
            else:
                p.fill_(1.0)
        tower.vit_merger.load_state_dict(state)
    else:
        warm_start_compression(tower)


def stages(align: int, joint: int, patches: int) -> tuple[Stage, ...]:
    """As LLaVA-UHD v4 inserts its compression: first that and the merger learn, then everything."""
    return (
        Stage("alignment", TASKS, patches, rates=COMPRESSED, learns=COMPRESSION, steps=align, as_is=1.0),
        Stage("joint", TASKS, patches, rates=COMPRESSED, steps=joint, as_is=1.0),
    )


def make(args: argparse.Namespace, variant: str, processes: Processes | None = None) -> Run:
    """The run of a variant, resumed or at its beginning."""
    out = args.out / variant
    out.mkdir(parents=True, exist_ok=True)
    config = variant_config(new_learner(0).config, variant)
    learner = Learner(MiniCPMV(config, IMAGE.image_mean, IMAGE.image_std))
    tokenizer = Tokenizer.from_directory(ASSETS)
    start_from(learner.model, learner.reader, args.base, tokenizer, compressed_elsewhere=variant == "none")
    torch.manual_seed(1)
    insert(learner.model, variant)
    planned = stages(args.align, args.joint, args.patches)
    optimiser, dtype = PRESETS["cpu"].optimiser, getattr(torch, args.dtype)
    made = Run(out, learner, 0, optimiser, stages=planned, processes=processes, dtype=dtype)
    made.length.cooldown = (0, args.align + args.joint)
    return made


def run(rank: int, args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    processes = join(rank, args.processes, args.out)
    for variant in args.variants:
        make(args, variant, processes).train()


SIDE = IMAGE.scale_resolution // IMAGE.patch_size
VIEW = View(Size(height=SIDE, width=SIDE), "16x")
VIEWS_AT_ONCE, ROUNDS = 8, 25


def flops_of(config: ModelConfig, variant: str) -> int:
    """FLOPs of one full 16x view."""
    flops = vision_flops(config, [VIEW])
    if variant != "pool":
        return flops
    vision, patches = config.vision, SIDE * SIDE
    attention = patches * (4 * vision.hidden_size**2 + 2 * WINDOW * vision.hidden_size)
    return flops - 2 * (attention + patches * vision.intermediate_size * (WINDOW + 1) * vision.hidden_size)


def seconds_of(models: dict[str, MiniCPMV]) -> dict[str, float]:
    """Median seconds of one full 16x view, on this machine's threads; the models take turns."""
    patches = torch.randint(0, 256, (SIDE * SIDE * VIEWS_AT_ONCE, 14, 14, 3), dtype=torch.uint8)
    times: dict[str, list[float]] = {variant: [] for variant in models}
    with torch.inference_mode():
        for turn in range(1 + ROUNDS):
            for variant, model in models.items():
                began = time.perf_counter()
                model.encode_views(patches, [VIEW] * VIEWS_AT_ONCE)
                if turn:  # the first one warms up
                    times[variant].append((time.perf_counter() - began) / VIEWS_AT_ONCE)
    return {variant: statistics.median(taken) for variant, taken in times.items()}


def report(args: argparse.Namespace) -> None:
    """Answer the same questions with every variant; prints a line for each, and all as one JSON line."""
    models, rows = dict[str, MiniCPMV](), list[dict[str, Any]]()
    processor = Processor.from_directory(ASSETS)
    processor.image_config = STRIPS
    for variant in args.variants:
        made = make(args, variant, Processes(0, args.processes))
        assert made.step == args.align + args.joint, f"{variant} stands at step {made.step}: train it first"
        models[variant] = made.learner.model.eval().requires_grad_(False)
    seconds = seconds_of(models)
    for variant, model in models.items():
        vlm = VLM(TorchRunner(model), processor, {}, name=variant)
        answerer = LocalModel(vlm, {"downsample_mode": "16x", "temperature": 0.0}, batch_size=64)
        (records,) = evaluate([EXAM], answerer, count=args.count, seed=args.seed).values()
        row = {"variant": variant, "flops": flops_of(model.config, variant), "seconds": round(seconds[variant], 6)}
        rows.append({**row, **score_of(records)})
        print(rows[-1], flush=True)
    print(json.dumps({**{name: getattr(args, name) for name in ("align", "joint", "patches", "count")}, "rows": rows}))


def score_of(records: Sequence[Record]) -> dict[str, float]:
    """Share of exact answers, and the character error rate, which tells variants apart when few answers are exact."""
    errors = [min(1.0, character_error_rate(record.answer, record.expected[0])) for record in records]
    return {"exact": round(summarise(records).score, 4), "cer": round(statistics.mean(errors), 4)}


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--base", type=Path, required=True, help="run of a tower that reads, with its decoder")
    cli.add_argument("--out", type=Path, required=True)
    cli.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    cli.add_argument("--align", type=int, default=100, help="steps in which only the compression learns (49 at least)")
    cli.add_argument("--joint", type=int, default=600, help="steps in which everything learns")
    cli.add_argument("--patches", type=int, default=1024, help="patches of a step, in each process")
    cli.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    cli.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of products in training")
    cli.add_argument("--report", action="store_true", help="measure instead of training")
    cli.add_argument("--count", type=int, default=1000)
    cli.add_argument("--seed", type=int, default=2026)
    args = cli.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.report:
        report(args)
        return
    (args.out / "rendezvous").unlink(missing_ok=True)
    torch.multiprocessing.spawn(run, (args,), nprocs=args.processes)


if __name__ == "__main__":
    main()
