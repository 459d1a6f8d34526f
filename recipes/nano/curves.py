#!/usr/bin/env python3
"""Draw the curves of a run: losses, share of right tokens, learning rate, and the loss of each task.

    python -m recipes.nano.curves runs/nano [--out docs/images/nano-training.png]

Needs matplotlib (extra `plots`).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from recipes.nano.logs import read_run


def draw(lines: list[dict[str, Any]], out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (above, below) = plt.subplots(2, 1, figsize=(9, 8), sharex=True, layout="constrained")
    minutes = [line["seconds"] / 60 for line in lines]
    for name, label in (
        ("answers", "answers"),
        ("characters", "characters of the tokens' cells"),
        ("parts", "characters under the tower's tokens"),
        ("objects", "objects in the tokens' cells"),
    ):
        points = [(m, line[name]) for m, line in zip(minutes, lines, strict=True) if name in line]
        if points:
            above.plot(*zip(*points, strict=True), label=label)
    above.set(ylabel="loss (nats a token)", ylim=(0, None), title="Losses; grey: learning rate (share of the highest)")
    rate = above.twinx()
    rate.plot(minutes, [line.get("rate", float("nan")) for line in lines], color="0.7", lw=1)
    rate.set_ylim(0, 1.05)
    above.legend(loc="upper right")
    tasks = sorted({task for line in lines for task in line.get("tasks", {})})
    for task in tasks:
        points = [
            (m, line["tasks"][task]) for m, line in zip(minutes, lines, strict=True) if task in line.get("tasks", {})
        ]
        below.plot(*zip(*points, strict=True), label=task, lw=1)
    below.set(xlabel="minutes", ylabel="loss of the answers", ylim=(0, None), title="Tasks")
    if tasks:
        below.legend(ncols=3, fontsize="small")
    stage = ""
    for m, line in zip(minutes, lines, strict=True):
        if line["stage"] != stage:
            stage = line["stage"]
            above.axvline(m, color="0.85", lw=1, zorder=0)
            above.annotate(stage, (m, 0), rotation=90, fontsize=7, color="0.4", va="bottom")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("run", type=Path, help="folder of the run, or one with a log.jsonl of reports")
    cli.add_argument("--out", type=Path, help="PNG (default: curves.png in that folder)")
    args = cli.parse_args()
    out = args.out or args.run / "curves.png"
    draw(read_run(args.run), out)
    print(out)


if __name__ == "__main__":
    main()
