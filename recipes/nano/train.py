#!/usr/bin/env python3
"""Train the embedded model.

    python -m recipes.nano.train --out runs/nano                                  # a CPU: one process a core
    python -m recipes.nano.train --out runs/nano --preset h200 --minutes 25       # a large GPU, many cores drawing
    python -m recipes.nano.train --out runs/nano --cooldown 2000                  # the last 2,000 steps

Interrupt at will: the same command continues with the very next step of the last checkpoint. `training.jsonl` beside it
records every step; `python -m recipes.nano.curves runs/nano` draws it.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
from pathlib import Path

import torch
import torch.distributed as dist

from pocketvlm.errors import PocketVLMError
from pocketvlm.files import lock
from pocketvlm.kernels.fastest_dtype import fastest_dtype
from pocketvlm.processing.prompt.tokenizer import Tokenizer
from pocketvlm.training.checkpoints import Checkpoints
from pocketvlm.training.processes import Processes
from pocketvlm.training.trainer import Report
from recipes.nano import curriculum
from recipes.nano.initialise import start_from
from recipes.nano.logs import Reports
from recipes.nano.run import SAVE_EVERY, Run, new_learner
from recipes.nano.settings import ASSETS, PRESETS


def join(rank: int, world: int, out: Path) -> Processes:
    """The processes of this machine that train together; they find each other by a file in `out`."""
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{out.resolve()}/rendezvous", rank=rank, world_size=world)
    return Processes.join(torch.device("cpu"))


def run(rank: int, args: argparse.Namespace) -> None:
    """One process of a run; what cannot be done is said in one line."""
    try:
        _run(rank, args)
    except PocketVLMError as error:
        raise SystemExit(str(error)) from None


def _run(rank: int, args: argparse.Namespace) -> None:
    preset = PRESETS[args.preset]
    if preset.device == "cpu":
        torch.set_num_threads(1)
    processes = join(rank, args.processes, args.out)
    learner = new_learner(args.seed)
    if args.init is not None:
        tokenizer = Tokenizer.from_directory(ASSETS)
        start_from(learner.model, learner.reader, args.init, tokenizer, add_positions=args.add_positions)
    made = Run(
        args.out,
        learner,
        args.seed,
        dataclasses.replace(preset.optimiser, learning_rate=args.learning_rate or preset.optimiser.learning_rate),
        stages=curriculum.scaled(curriculum.CURRICULUM, preset.patches),
        processes=processes,
        device=preset.device,
        workers=args.workers,
        save_every=args.save_every,
        dtype=getattr(torch, args.dtype),
    )
    if args.init is not None and made.step == 0:
        refuse_samples_again(args.init, args.seed)
        made.course.next = (0, curriculum.stage_number(args.stage))  # arrives with step 0
    choose_length(made, args)
    reports = Reports()
    reports.stage, reports.highest_rate = made.stage.name, made.trainer.highest_rate
    reports.since = made.trainer.progress.seconds

    def show(report: Report) -> None:
        line = reports.add({**dataclasses.asdict(report), "stage": made.stage.name})
        if line and rank == 0:
            print(line, flush=True)

    made.train(show)


def choose_length(made: Run, args: argparse.Namespace) -> None:
    """When the run ends, by the options, and by those that it was begun with."""
    length = made.length
    length.until_stage = args.until_stage
    if args.steps:
        length.last = made.step + args.steps
    if args.minutes:
        length.deadline, length.cooldown = 60 * args.minutes, None
    elif args.cooldown and length.cooldown is None:
        length.cooldown, length.deadline = (made.step, made.step + args.cooldown), None
    if args.until:
        if length.cooldown is None:
            raise SystemExit("--until ends a cool-down that is under way, and none is")
        length.cooldown = (length.cooldown[0], args.until)


def refuse_samples_again(before: Path, seed: int) -> None:
    """A run that begins where `before` ended counts its steps from 0 again: with its seed it would see its samples."""
    state = Checkpoints(before, {}).last_state()
    if state is not None and state["identity"]["seed"] == seed:
        raise SystemExit(f"{before} was trained with --seed {seed}: give another one, or the same samples come again")


def _spawn(args: argparse.Namespace) -> None:
    """One process a core. Ctrl-C reaches all of them; SIGTERM, which `kill` sends to this one, is passed on.

    Raises:
        KeyboardInterrupt: SIGTERM came, and they have ended after a step and a checkpoint.
    """
    started = torch.multiprocessing.spawn(run, (args,), nprocs=args.processes, join=False)
    stopped = []

    def pass_on(number: int, _frame: object) -> None:
        stopped.append(number)
        for process in started.processes:
            process.terminate()

    signal.signal(signal.SIGTERM, pass_on)
    while not started.join():
        pass
    if stopped:
        raise KeyboardInterrupt


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
    length.add_argument("--steps", type=int, default=0, help="steps of this run (default: until interrupted)")
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
    cli.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of products (default: what this machine multiplies fastest)"
    )
    cli.add_argument("--save-every", type=int, default=SAVE_EVERY, help="steps from one checkpoint to the next")
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
    args.dtype = args.dtype or str(fastest_dtype(preset.device)).removeprefix("torch.")  # once, for all processes
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        with (args.out / "lock").open("ab") as file:
            if not lock(file):  # it may be stopping after its step
                raise SystemExit(f"another process trains in {args.out}: wait for it, or give another --out")
            (args.out / "rendezvous").unlink(missing_ok=True)
            if args.processes == 1:
                run(0, args)
            else:
                _spawn(args)
    except torch.multiprocessing.ProcessExitedException as ended:  # which has said why
        raise SystemExit(ended.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit("stopped after a step; the same command goes on") from None


if __name__ == "__main__":
    main()
