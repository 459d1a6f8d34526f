#!/usr/bin/env python3
"""The claims of early compression, measured: four ways to 16x from one uncompressed base, at equal data and steps.

    python -m recipes.nano.train --out runs/base --until-stage alignment        # an uncompressed tower with its decoder
    python -m recipes.nano.ablation --base runs/base --out runs/ablation --align 150 --joint 700
    python -m recipes.nano.ablation --base runs/base --out runs/ablation --report

| variant | where four tokens become one |
|---|---|
| none | behind the tower: all its layers see all patches |
| warm | inside the tower, started from the layer in front of it (what MiniCPM-V 4.6 does) |
| random | the same place, started at random |
| pool | the same place, the mean of the four, nothing to learn |

Each variant is a run that resumes; the report answers the same held-out questions with all of them, and prints FLOPs
and measured seconds of the vision side.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pocketvlm.api import VLM
from pocketvlm.config import ModelConfig
from pocketvlm.evaluation.answerers import LocalModel
from pocketvlm.evaluation.harness import evaluate
from pocketvlm.evaluation.report import summarise
from pocketvlm.evaluation.suite import SyntheticSuite
from pocketvlm.model.early_compression import WINDOW
from pocketvlm.model.flops import vision_flops
from pocketvlm.model.vlm import MiniCPMV
from pocketvlm.model.warm_start import warm_start_compression
from pocketvlm.processing.processor import Processor
from pocketvlm.views import Size, View
from recipes.nano.curriculum import CURRICULUM, Stage, stage_number
from recipes.nano.initialise import initialise, start_from
from recipes.nano.settings import ASSETS, IMAGE, PRESETS
from recipes.nano.train import train
from recipes.nano.trainer import Trainer

VARIANTS = ("none", "warm", "random", "pool")


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


def stages(align: int, joint: int) -> tuple[Stage, ...]:
    first, second = CURRICULUM[stage_number("alignment")], CURRICULUM[stage_number("joint")]
    return (
        dataclasses.replace(first, steps=align, inserts=False),
        dataclasses.replace(second, steps=joint, mark=0.0),
    )


def make(base: Path, out: Path, variant: str, rank: int, world: int, align: int, joint: int) -> Trainer:
    """The trainer of a variant, resumed or at its beginning."""
    out.mkdir(parents=True, exist_ok=True)
    t = Trainer(out, 0, rank, world, PRESETS["cpu"].optimiser, stages=stages(align, joint))
    t.model = MiniCPMV(variant_config(t.model.config, variant), IMAGE.image_mean, IMAGE.image_std)
    start_from(t.model, t.reader, base, t.tokenizer)
    torch.manual_seed(1)
    insert(t.model, variant)
    t.make_optimisers()
    t.resume()
    t.cooldown = (0, align + joint)
    return t


def run(rank: int, args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    if args.processes > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{args.out.resolve()}/rendezvous", rank=rank, world_size=args.processes
        )
    for variant in args.variants:
        t = make(args.base, args.out / variant, variant, rank, args.processes, args.align, args.joint)
        train(t)


def vision_cost(model: MiniCPMV, variant: str, rounds: int = 15) -> tuple[int, float]:
    """FLOPs and median seconds of one full 16x view, on this machine's threads."""
    side = IMAGE.scale_resolution // IMAGE.patch_size
    views = [View(Size(height=side, width=side), "16x")]
    flops = vision_flops(model.config, views)
    if variant == "pool":
        vision, patches = model.config.vision, side * side
        attention = patches * (4 * vision.hidden_size**2 + 2 * WINDOW * vision.hidden_size)
        flops -= 2 * (attention + patches * vision.intermediate_size * (WINDOW + 1) * vision.hidden_size)
    patches_uint8 = torch.randint(0, 256, (side * side * 8, 14, 14, 3), dtype=torch.uint8)
    times = []
    with torch.inference_mode():
        for _ in range(rounds):
            began = time.perf_counter()
            model.encode_views(patches_uint8, views * 8)
            times.append((time.perf_counter() - began) / 8)
    return flops, statistics.median(times)


def report(args: argparse.Namespace) -> None:
    """Answer the suite with every variant; prints a table and one JSON line."""
    suite, rows = SyntheticSuite(), list[dict[str, Any]]()
    for variant in args.variants:
        t = make(args.base, args.out / variant, variant, 0, args.processes, args.align, args.joint)
        assert t.step == args.align + args.joint, f"{variant} stands at step {t.step}: train it first"
        model = t.model.eval().requires_grad_(False)
        flops, seconds = vision_cost(model, variant)
        processor = Processor.from_directory(ASSETS)
        vlm = VLM(model, processor, {}, name=variant)
        scored = evaluate(
            [suite.task(name) for name in args.tasks],
            LocalModel(vlm, {"downsample_mode": "16x", "temperature": 0.0}),
            count=args.count,
            seed=args.seed,
        )
        scores = {name: round(summarise(records).score, 4) for name, records in scored.items()}
        rows.append({"variant": variant, "flops": flops, "seconds": seconds, "scores": scores})
        print(rows[-1], flush=True)
    print(json.dumps({"align": args.align, "joint": args.joint, "count": args.count, "rows": rows}))


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--base", type=Path, required=True, help="run of an uncompressed tower with its decoder")
    cli.add_argument("--out", type=Path, required=True)
    cli.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    cli.add_argument("--align", type=int, default=150, help="steps in which only the compression learns")
    cli.add_argument("--joint", type=int, default=700, help="steps in which everything learns")
    cli.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    cli.add_argument("--report", action="store_true", help="measure instead of training")
    cli.add_argument("--tasks", nargs="+", default=["one-word", "one-number", "receipt"])
    cli.add_argument("--count", type=int, default=500)
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
