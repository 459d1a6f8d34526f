#!/usr/bin/env python3
"""nano's suite by each way to compute here: PyTorch, ONNX Runtime in fp32, and 8 bits by each kind of operators.

    python benchmarks/suite_by_choice.py --count 50

Each has a process of its own and answers the same examples, from the lowest instructions to the highest, so that the
first are what a processor without the others would answer (they are chosen by `POCKETVLM_INSTRUCTIONS`). Prints what
each computed with, the mean score over the tasks, how many answers differ from those of the first, and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

import pocketvlm
from pocketvlm.evaluation.answerers import LocalModel
from pocketvlm.evaluation.harness import evaluate
from pocketvlm.evaluation.report import summarise
from pocketvlm.evaluation.suite import SyntheticSuite
from pocketvlm.kernels.onnx_ops.library import INSTRUCTIONS_VARIABLE, KINDS
from pocketvlm.machine import processor_flags, processor_name


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--model", default="nano")
    cli.add_argument("--count", type=int, default=50, help="examples a task")
    cli.add_argument("--seed", type=int, default=2026)
    cli.add_argument("--choice", nargs=2, metavar=("RUNTIME", "QUANTIZATION"), help=argparse.SUPPRESS)
    args = cli.parse_args()
    if args.choice:
        print(json.dumps(answers_of(args)))
        return
    kinds = [name for name, kind in reversed(KINDS.items()) if processor_flags() >= kind.needs]
    choices = [("torch", "none", ""), ("onnx", "none", "")]
    choices += [("onnx", "int8", kind) for kind in ("standard", *kinds)]
    found = {choice: ask(choice, args) for choice in choices}
    show(found)
    line = {" ".join(choice).strip(): round(mean(one["scores"]), 4) for choice, one in found.items()}
    print(json.dumps({"machine": processor_name(), "count": args.count, "means": line}))


def ask(choice: tuple[str, str, str], args: argparse.Namespace) -> dict[str, Any]:
    """What a process of its own answers."""
    runtime, quantization, instructions = choice
    own = {INSTRUCTIONS_VARIABLE: instructions} if instructions else {}
    command = [sys.executable, __file__, "--model", args.model, "--count", str(args.count), "--seed", str(args.seed)]
    done = subprocess.run(
        [*command, "--choice", runtime, quantization], env={**os.environ, **own}, stdout=subprocess.PIPE, check=True
    )
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def answers_of(args: argparse.Namespace) -> dict[str, Any]:
    """What the model computes with, its scores by tasks, and its answers."""
    runtime, quantization = args.choice
    options = {"quantization": quantization} if runtime == "onnx" else {}
    suite = SyntheticSuite()
    with pocketvlm.load(args.model, device="cpu", runtime=runtime, **options) as vlm:
        tasks = [suite.task(name) for name in suite.names()]
        scored = evaluate(tasks, LocalModel(vlm, {"temperature": 0.0}), count=args.count, seed=args.seed)
        described = vlm.engine.runner.describe()
    return {
        "with": described,
        "scores": {name: summarise(records).score for name, records in scored.items()},
        "answers": [record.answer for records in scored.values() for record in records],
    }


def mean(scores: dict[str, float]) -> float:
    return sum(scores.values()) / len(scores)


def show(found: dict[tuple[str, str, str], dict[str, Any]]) -> None:
    first = next(iter(found.values()))
    table = Table("choice", "computes with", "mean", "worst task against the first", "answers unlike the first's")
    for choice, one in found.items():
        differences = {name: 100 * (one["scores"][name] - score) for name, score in first["scores"].items()}
        worst = min(differences, key=lambda name: differences[name])
        others = sum(a != b for a, b in zip(one["answers"], first["answers"], strict=True))
        row = (
            f"{100 * mean(one['scores']):.2f}",
            f"{worst} {differences[worst]:+.1f}",
            f"{others} of {len(one['answers'])}",
        )
        table.add_row(" ".join(choice).strip(), one["with"], *row)
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
