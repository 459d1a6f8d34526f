"""Records → figures: score with a 95 % confidence interval, tokens and seconds a request, and a table of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pocketvlm.evaluation.results import Record
from pocketvlm.evaluation.scoring import METRICS

Interval = tuple[float, float]

#: A question counts as right only when it is under every rotation of its options.
CIRCULAR_TASKS = ("mmbench-circular",)

_Z = 1.959963984540054  # of the normal distribution, two-sided 95 %
_PARTS, _PART = 20, 100  # 2,000 resamples


@dataclass(frozen=True)
class Summary:
    """The figures of a task, or of a subset of it.

    Attributes:
        count: examples, failures included.
        score: mean, from 0 to 1; a failure counts as 0.
        interval: 95 % confidence interval of the score.
        interval_method: "wilson" where all scores are 0 or 1 by definition, else "bootstrap".
        metrics: how the answers were judged.
        failed: examples without an answer.
        prompt_tokens, visual_tokens, completion_tokens, seconds: mean a request that was answered; None where unknown.
    """

    count: int
    score: float
    interval: Interval
    interval_method: str
    metrics: tuple[str, ...]
    failed: int
    prompt_tokens: float | None
    visual_tokens: float | None
    completion_tokens: float | None
    seconds: float | None


def wilson(successes: float, count: int) -> Interval:
    """95 % confidence interval of a proportion (Wilson, 1927, "Probable Inference, the Law of Succession, and
    Statistical Inference").
    """
    if not count:
        return 0.0, 1.0
    p, z2 = successes / count, _Z * _Z
    centre = (p + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z / (1 + z2 / count) * math.sqrt(p * (1 - p) / count + z2 / (4 * count * count))
    # At 0 and 1 the bound is the proportion itself, and rounding must not leave it outside.
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))


def bootstrap(scores: Sequence[float]) -> Interval:
    """95 % percentile interval of the mean under resampling, the same at every call (Efron, 1979, "Bootstrap Methods:
    Another Look at the Jackknife").
    """
    if not scores:
        return 0.0, 1.0
    values, rng = np.asarray(scores, float), np.random.default_rng(0)
    # In parts: all resamples of a large set at once would take a gigabyte.
    means = [values[rng.integers(len(values), size=(_PART, len(values)))].mean(1) for _ in range(_PARTS)]
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return float(low), float(high)


def summarise(records: Sequence[Record]) -> Summary:
    """The figures of some records."""
    scores = [record.score for record in records]
    metrics = tuple(dict.fromkeys(record.metric for record in records))
    fractional = any(METRICS[metric].fractional for metric in metrics)
    answered = [record for record in records if not record.error]
    return Summary(
        count=len(records),
        score=sum(scores) / max(len(scores), 1),
        interval=bootstrap(scores) if fractional else wilson(sum(scores), len(scores)),
        interval_method="bootstrap" if fractional else "wilson",
        metrics=metrics,
        failed=len(records) - len(answered),
        prompt_tokens=_mean(record.prompt_tokens for record in answered),
        visual_tokens=_mean(record.visual_tokens for record in answered),
        completion_tokens=_mean(record.completion_tokens for record in answered),
        seconds=_mean(record.seconds for record in answered),
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def subsets(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records by subset, in order of appearance; empty where there are none."""
    parts: dict[str, list[Record]] = {}
    for record in records:
        if record.subset:
            parts.setdefault(record.subset, []).append(record)
    return parts


def macro_average(summaries: Iterable[Summary]) -> float:
    """The mean of the tasks' scores, each task counting once."""
    return _mean(summary.score for summary in summaries) or 0.0


def wrong(records: Sequence[Record], count: int) -> list[Record]:
    """Return the first `count` records that are not fully right."""
    return [record for record in records if record.score < 1][:count]


def as_json(scored: Mapping[str, Sequence[Record]], settings: Mapping[str, Any], errors: int = 0) -> dict[str, Any]:
    """All figures as JSON values.

    Args:
        settings: what was asked, and how.
        errors: so many wrong answers of each task are listed.
    """
    summaries = {name: summarise(records) for name, records in scored.items()}
    line: dict[str, Any] = {
        **settings,
        "tasks": {name: _entry(summary) for name, summary in summaries.items()},
        "macro_average": round(macro_average(summaries.values()), 4),
    }
    for name, records in scored.items():
        if name in CIRCULAR_TASKS:
            line["tasks"][name]["circular_accuracy"] = round(_circular(records), 4)
        if parts := subsets(records):
            line["tasks"][name]["subsets"] = {part: _entry(summarise(some)) for part, some in parts.items()}
        if errors:
            line["tasks"][name]["wrong"] = [asdict(record) for record in wrong(records, errors)]
    return line


def _circular(records: Sequence[Record]) -> float:
    from pocketvlm.evaluation.public_sets import circular_accuracy  # imports the readers of all sets

    return circular_accuracy({record.id: record.score for record in records})


def _entry(summary: Summary) -> dict[str, Any]:
    values = asdict(summary)
    for name in ("score", "prompt_tokens", "visual_tokens", "completion_tokens", "seconds"):
        values[name] = None if values[name] is None else round(values[name], 4)
    return values | {"interval": [round(bound, 4) for bound in summary.interval]}


HEADINGS = ("task", "metric", "n", "score %", "95 % interval", "failed", "prompt tokens", "visual tokens", "s/request")


def table_rows(scored: Mapping[str, Sequence[Record]]) -> list[tuple[str, ...]]:
    """A row a task under `HEADINGS`, its subsets below it, and the macro average of the tasks last."""
    rows, summaries = [], []
    for name, records in scored.items():
        summary = summarise(records)
        summaries.append(summary)
        rows.append(_row(name, summary))
        if name in CIRCULAR_TASKS:
            rows.append(("  all rotations", "", "", f"{100 * _circular(records):.1f}", *[""] * (len(HEADINGS) - 4)))
        rows += [_row(f"  {part}", summarise(some)) for part, some in subsets(records).items()]
    if len(summaries) > 1:
        average = f"{100 * macro_average(summaries):.1f}"
        rows.append(("macro average", "", "", average, *[""] * (len(HEADINGS) - 4)))
    return rows


def _row(name: str, summary: Summary) -> tuple[str, ...]:
    low, high = summary.interval
    return (
        name,
        ", ".join(summary.metrics),
        str(summary.count),
        f"{100 * summary.score:.1f}",
        f"{100 * low:.1f} – {100 * high:.1f}",
        str(summary.failed),
        _show(summary.prompt_tokens, 1),
        _show(summary.visual_tokens, 1),
        _show(summary.seconds, 3),
    )


def _show(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
