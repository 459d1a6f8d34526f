"""The log of a run, a line a step, as reports: a line every some steps, with moving averages."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pocketvlm.training.settings import LOG

REPORT_EVERY = 25  # steps
FIGURES = ("answers", "characters", "objects", "parts", "right")


class Reports:
    """Lines of a log → a report for every `REPORT_EVERY` steps."""

    def __init__(self) -> None:
        self.means: dict[str, float] = {}
        self.stage, self.highest_rate = "", 1.0
        self.samples, self.since = 0.0, 0.0

    def add(self, line: Mapping[str, Any]) -> dict[str, Any] | None:
        """Take a line of the log; a report where one is due after it."""
        self.highest_rate = line.get("settings", {}).get("learning_rate") or self.highest_rate
        self.stage = line.get("stage", self.stage)
        if "loss" not in line:
            return None
        figures = dict(line.get("figures", {}))
        self.samples += figures.pop("samples", 0)
        blend(self.means, figures)
        if line["step"] % REPORT_EVERY:
            return None
        samples, seconds = self.samples, line["seconds"] - self.since
        self.samples, self.since = 0.0, line["seconds"]
        tasks = {name.removeprefix("tasks/"): value for name, value in self.means.items() if name.startswith("tasks/")}
        return {
            "step": line["step"],
            "stage": self.stage,
            "seconds": round(line["seconds"]),
            "rate": round(line["rate"] / self.highest_rate, 4),
            **{name: round(self.means[name], 4) for name in FIGURES if name in self.means},
            "samples_s": round(samples / seconds, 1),
            "tasks": {name: round(value, 3) for name, value in sorted(tasks.items())},
        }


def blend(means: dict[str, float], values: Mapping[str, float], share: float = 0.05) -> None:
    """Moving averages of some values, in place."""
    for name, value in values.items():
        means[name] = value if name not in means else (1 - share) * means[name] + share * value


def reports_of(lines: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The reports of the lines of a run's log."""
    reports = Reports()
    for line in lines:
        if report := reports.add(line):
            yield report


def read_run(run: Path) -> list[dict[str, Any]]:
    """The reports of a run, by its folder; or those that are kept in `log.jsonl` of a folder without a run."""
    if not (run / LOG).is_file():
        return read_reports(run / "log.jsonl")
    return list(reports_of(map(json.loads, (run / LOG).read_text(encoding="utf-8").splitlines())))


def read_reports(path: Path) -> list[dict[str, Any]]:
    """Reports of runs that follow each other: their seconds are counted on.

    Reports of steps that were taken again, after a run went back to its checkpoint, count once, the last time.
    """
    runs: list[list[dict[str, Any]]] = [[]]
    for line in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        if runs[-1] and line["step"] <= REPORT_EVERY:
            runs.append([])
        while runs[-1] and runs[-1][-1]["step"] >= line["step"]:
            runs[-1].pop()
        runs[-1].append(line)
    reports, before = list[dict[str, Any]](), 0
    for run in runs:
        reports += [{**line, "seconds": before + line["seconds"]} for line in run]
        before = reports[-1]["seconds"] if reports else 0
    return reports
