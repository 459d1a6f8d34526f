"""How time and memory grow with the work: more views, longer prompts, larger batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pocketvlm.benchmark.lines import line_of
from pocketvlm.benchmark.offline import Progress, Spec, Worker
from pocketvlm.files import whole_file

VIEWS = (1, 2, 5, 10, 19, 37)
PROMPTS = (100, 320, 1000, 3200, 10000, 32000)
BATCHES = (1, 2, 4, 8, 16)
SERIES = {
    "views": tuple(f"views-{n}" for n in VIEWS),
    "prompt": tuple(f"prompt-{n}" for n in PROMPTS),
    "batch": tuple(f"decode{n}" for n in BATCHES),
}


@dataclass(frozen=True)
class Point:
    """Work of one size: `amount` in the line's unit, the median of its seconds, and the largest memory ever had by a
    process that did this and nothing larger."""

    series: str
    line: str
    amount: int
    seconds: float
    peak_bytes: int

    @property
    def rate(self) -> float:
        return self.amount / self.seconds


def measure(spec: Spec, series: Sequence[str], rounds: int, progress: Progress | None = None) -> list[Point]:
    """Measure each series from the smallest point to the largest, in a fresh process."""
    points = []
    for name in series:
        worker = Worker(spec)
        try:
            for step, line in enumerate(SERIES[name]):
                times = [worker.run(line) or 0.0 for _ in range(1 + min(rounds, line_of(line).rounds))][1:]
                seconds = sorted(times)[len(times) // 2]
                points.append(Point(name, line, line_of(line).amount, seconds, worker.result.peak_bytes))
                if progress:
                    progress(f"{name}: {line_of(line).label}", step + 1, len(SERIES[name]))
        finally:
            worker.close()
    return points


def plot(points: Sequence[Point], out: Path) -> None:
    """Draw seconds and memory of each series, both axes in powers of ten, to a .png, .pdf or .svg file."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(point.series for point in points))
    figure, axes = plt.subplots(2, len(names), figsize=(4 * len(names), 6), layout="constrained", squeeze=False)
    for column, name in enumerate(names):
        own = [point for point in points if point.series == name]
        sizes = [int(point.line.rpartition("-")[2].removeprefix("decode")) for point in own]
        above, below = axes[:, column]
        above.loglog(sizes, [point.seconds for point in own], marker="o", label="measured")
        above.loglog(sizes, [own[0].seconds * size / sizes[0] for size in sizes], ls=":", c="0.6", label="proportional")
        above.set(title=name, ylabel="seconds")
        above.legend()
        below.semilogx(sizes, [point.peak_bytes / 2**30 for point in own], marker="o")
        below.set(xlabel=name, ylabel="peak memory, GiB", ylim=(0, None))
    try:
        with whole_file(out) as file:
            figure.savefig(file, dpi=110, format=out.suffix[1:].lower())
    finally:
        plt.close(figure)
