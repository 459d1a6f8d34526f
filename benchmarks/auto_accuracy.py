#!/usr/bin/env python3
"""Accuracy against visual tokens: 16x, `downsample_mode="auto"` at several budgets, 4x, and the overview alone.

    python benchmarks/auto_accuracy.py [--tasks small-print receipt-details] [--count 500] [--plot docs/images/auto.png]

Asks the same held-out questions in every setting. Prints a table for each task, with the share of the gap between 16x
and 4x that each budget recovers, and one JSON line. `--plot` needs the extra `plots`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import pocketvlm
from pocketvlm.evaluation.answerers import LocalModel
from pocketvlm.evaluation.harness import evaluate
from pocketvlm.evaluation.report import summarise
from pocketvlm.evaluation.suite import SyntheticSuite
from pocketvlm.evaluation.tasks import ListTask, examples_of


@dataclass
class Point:
    """One setting on one task; `low` and `high` are the 95 % interval of the score."""

    task: str
    setting: str
    tokens: float
    score: float
    low: float
    high: float
    recovered: float | None = None
    relative_tokens: float = 1.0


def settings_of(budgets: list[float]) -> dict[str, dict[str, Any]]:
    """Options by name, from the fewest tokens to the most."""
    auto = {f"auto {budget:g}": {"downsample_mode": "auto", "auto_token_budget": budget} for budget in budgets}
    return {
        "overview, 16x": {"downsample_mode": "16x", "max_slice_nums": 1},
        "overview, 4x": {"downsample_mode": "4x", "max_slice_nums": 1},
        "16x": {"downsample_mode": "16x"},
        **auto,
        "4x": {"downsample_mode": "4x"},
    }


def measure(model: pocketvlm.VLM, task: str, budgets: list[float], count: int, seed: int) -> list[Point]:
    points = []
    drawn = ListTask(task, list(examples_of(SyntheticSuite().task(task), count, seed)))  # once: large pages take long
    for name, options in settings_of(budgets).items():
        answerer = LocalModel(model, {"temperature": 0.0, **options})
        (records,) = evaluate([drawn], answerer, count=count, seed=seed).values()
        found = summarise(records)
        assert found.visual_tokens is not None  # our own model counts them
        points.append(Point(task, name, found.visual_tokens, found.score, *found.interval))
    of = {point.setting: point for point in points}
    gap = of["4x"].score - of["16x"].score
    for point in points:
        point.recovered = (point.score - of["16x"].score) / gap if gap > 0 else None
        point.relative_tokens = point.tokens / of["16x"].tokens
    return points


def show(task: str, points: list[Point]) -> None:
    table = Table("setting", "score", "95 % interval", "visual tokens", "16x = 1", "of the gap", title=task)
    for p in points:
        recovered = "" if p.recovered is None else f"{100 * p.recovered:.0f} %"
        interval = f"{100 * p.low:.1f} to {100 * p.high:.1f}"
        row = (p.setting, f"{100 * p.score:.1f}", interval, f"{p.tokens:.0f}", f"{p.relative_tokens:.2f}")
        table.add_row(*row, recovered)
    Console(width=100).print(table)


def plot(measured: dict[str, list[Point]], out: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(measured), 3.6), dpi=110, layout="constrained")
    for number, (task, points) in enumerate(measured.items()):
        axes = figure.add_subplot(1, len(measured), number + 1)
        for i, point in enumerate(points):
            x, y = point.tokens, 100 * point.score
            errors = [[y - 100 * point.low], [100 * point.high - y]]
            colour = "tab:orange" if point.setting.startswith("auto") else "tab:blue"
            axes.errorbar(x, y, errors, fmt="o", color=colour, capsize=2)
            beside = (5, 12 if i % 2 else 2)  # neighbours may lie close together
            axes.annotate(point.setting, (x, y), xytext=beside, textcoords="offset points", fontsize=8)
        axes.set(title=task, xlabel="visual tokens of a request", ylabel="right answers, %")
        axes.set_ylim(bottom=0)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--model", default="nano")
    cli.add_argument("--runtime", default="auto", help="auto, torch or onnx (unquantised)")
    cli.add_argument("--tasks", nargs="+", default=["small-print", "receipt-details"])
    cli.add_argument("--budgets", nargs="+", type=float, default=[1.5, 2.0, 3.0])
    cli.add_argument("--count", type=int, default=500)
    cli.add_argument("--seed", type=int, default=2026)
    cli.add_argument("--plot", type=Path)
    args = cli.parse_args()
    model = pocketvlm.load(args.model, runtime=args.runtime, quantization="none" if args.runtime == "onnx" else "auto")
    measured = {}
    for task in args.tasks:
        measured[task] = measure(model, task, args.budgets, args.count, args.seed)
        show(task, measured[task])
    if args.plot:
        plot(measured, args.plot)
    print(json.dumps([asdict(point) for points in measured.values() for point in points]))


if __name__ == "__main__":
    main()
