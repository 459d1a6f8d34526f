#!/usr/bin/env python3
"""Train the embedded model.

    python -m recipes.nano.train --out runs/nano                                  # a CPU: one process a core
    python -m recipes.nano.train --out runs/nano --preset h200 --minutes 25       # a large GPU, many cores drawing
    python -m recipes.nano.train --out runs/nano --cooldown 2000                  # the last 2,000 steps

Interrupt at will: the same command continues with the very next step of the last checkpoint. `log.jsonl` beside it
records every report; `python -m recipes.nano.curves runs/nano` draws it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from recipes.nano import curriculum
from recipes.nano.initialise import start_from
from recipes.nano.settings import PRESETS
from recipes.nano.trainer import Trainer

REPORT_EVERY = 25  # steps


def run(rank: int, args: argparse.Namespace) -> None:
    preset = PRESETS[args.preset]
    on_cpu = preset.device == "cpu"
    if on_cpu:
        torch.set_num_threads(1)
    if args.processes > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{args.out.resolve()}/rendezvous", rank=rank, world_size=args.processes
        )
    trainer = Trainer(
        args.out,
        args.seed,
        rank,
        args.processes,
        dataclasses.replace(preset.optimiser, learning_rate=args.learning_rate or preset.optimiser.learning_rate),
        stages=curriculum.scaled(curriculum.CURRICULUM, preset.patches),
        device=preset.device,
        workers=args.workers,
    )
    if args.init is not None and not (args.out / "training.pt").is_file():
        refuse_samples_again(args.init, args.seed)
        start_from(trainer.model, trainer.reader, args.init, trainer.tokenizer, add_positions=args.add_positions)
        trainer.schedule.next = (0, curriculum.stage_number(args.stage))  # arrives with step 0, insertion and all
    trainer.resume()
    if trainer.step == 0 and rank == 0:
        (args.out / "log.jsonl").unlink(missing_ok=True)  # of a run that ended before its first checkpoint
    if args.minutes:
        trainer.deadline, trainer.cooldown = 60 * args.minutes, None
    elif args.cooldown and trainer.cooldown is None:
        trainer.cooldown, trainer.deadline = (trainer.step, trainer.step + args.cooldown), None
    if args.until:
        if trainer.cooldown is None:
            raise SystemExit("--until ends a cool-down that is under way, and none is")
        trainer.cooldown = (trainer.cooldown[0], args.until)
    train(trainer, args.steps, args.save_every, args.until_stage)


def refuse_samples_again(before: Path, seed: int) -> None:
    """A run that begins where `before` ended counts its steps from 0 again: with its seed it would see its samples."""
    saved = before / "training.pt"
    if saved.is_file() and torch.load(saved, weights_only=True, map_location="cpu", mmap=True)["run"][0] == seed:
        raise SystemExit(f"{before} was trained with --seed {seed}: give another one, or the same samples come again")


def train(trainer: Trainer, steps: int = 10**9, save_every: float = 120, until_stage: str | None = None) -> None:
    """Steps until cool-down or minutes end, `steps` are done or `until_stage` begins; rank 0 reports and saves."""
    last = trainer.cooldown[1] if trainer.cooldown else trainer.step + steps
    began = saved = time.perf_counter()
    means: dict[str, Any] = {}
    samples = 0
    while trainer.step < last and trainer.stage.name != until_stage:
        if trainer.deadline and trainer.seconds >= trainer.deadline:
            break
        report = trainer.train_step()
        samples += report.pop("samples")
        blend(means, report)
        if trainer.rank == 0 and trainer.step % REPORT_EVERY == 0:
            now = time.perf_counter()
            write_report(trainer, means, samples / (now - began))
            began, samples = now, 0
            if now - saved > save_every:
                trainer.save()
                saved = now
    if trainer.rank == 0:
        trainer.save()


def blend(means: dict[str, Any], report: dict[str, Any], share: float = 0.05) -> None:
    """Moving averages of everything in a report."""
    for name, value in report.items():
        if isinstance(value, dict):
            blend(means.setdefault(name, {}), value, share)
        else:
            means[name] = value if name not in means else (1 - share) * means[name] + share * value


def write_report(trainer: Trainer, means: dict[str, Any], samples_s: float) -> None:
    line: dict[str, Any] = {
        "step": trainer.step,
        "stage": trainer.stage.name,
        "seconds": round(trainer.seconds),
        "rate": round(trainer.rate(), 4),
        **{name: round(means[name], 4) for name in ("answers", "characters", "objects", "right") if name in means},
        "samples_s": round(samples_s, 1),
        "tasks": {name: round(value, 3) for name, value in sorted(means.get("tasks", {}).items())},
    }
    with (trainer.out / "log.jsonl").open("a") as log:
        log.write(json.dumps(line) + "\n")
    print(line, flush=True)


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--out", type=Path, required=True, help="folder of the checkpoint and the log")
    cli.add_argument("--seed", type=int, default=0)
    cli.add_argument("--preset", choices=sorted(PRESETS), default="cpu")
    cli.add_argument("--init", type=Path, help="begin with the weights of this model, or of this run")
    cli.add_argument("--add-positions", action="store_true", help="with --init, for a model from before position waves")
    names = [stage.name for stage in curriculum.CURRICULUM]
    cli.add_argument("--stage", choices=names, help=f"with --init: where in the curriculum to begin ({names[-1]})")
    cli.add_argument("--until-stage", choices=names, help="stop where this stage would begin")
    length = cli.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, default=10**9, help="steps of this run (default: until interrupted)")
    length.add_argument(
        "--minutes", type=float, help="train this long in all, the learning rate falling to zero all the while"
    )
    length.add_argument(
        "--cooldown", type=int, default=0, help="steps over which the learning rate falls to zero; then stop"
    )
    cli.add_argument("--until", type=int, default=0, help="end a cool-down that is under way at this step instead")
    cli.add_argument("--learning-rate", type=float, help="the highest (default: the preset's)")
    cli.add_argument("--processes", type=int, help="processes that train (default: one a core; one on a GPU)")
    cli.add_argument("--workers", type=int, help="processes that draw samples ahead (default: the preset's)")
    cli.add_argument("--save-every", type=float, default=120, help="seconds between checkpoints")
    args = cli.parse_args()
    if args.stage and args.init is None:
        cli.error("--stage is where a run with --init begins: give --init as well")
    if args.add_positions and args.init is None:
        cli.error("--add-positions is for a run with --init; others have them from the start")
    args.stage = args.stage or names[-1]
    if args.learning_rate is not None and not 0 < args.learning_rate < 1:
        cli.error(f"--learning-rate {args.learning_rate:g} is not between 0 and 1 (the CPU preset has 0.002)")
    preset = PRESETS[args.preset]
    args.processes = args.processes or (os.cpu_count() or 1 if preset.device == "cpu" else 1)
    args.workers = preset.workers if args.workers is None else args.workers
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "rendezvous").unlink(missing_ok=True)
    if args.processes == 1:
        run(0, args)
    else:
        torch.multiprocessing.spawn(run, (args,), nprocs=args.processes)


if __name__ == "__main__":
    main()
