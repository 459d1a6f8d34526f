#!/usr/bin/env python3
"""How often fields of `extract` are right, by their confidence: a reliability diagram, and a calibration if it helps.

    python benchmarks/confidence.py [--model DIR] [--count 200] [--plot diagram.png] [--save confidence.json]

Asks the JSON tasks of the suite (held-out pictures) as `pocketvlm extract` asks: by a JSON schema, that of the question
or one of the expected answer, to which a grammar keeps the answer. A field is right when its value is the expected one
at the same place; what is missing has no confidence, and is counted apart.

A second seed judges a monotone calibration (isotonic regression) that is fitted on the first. It counts as clearly
better when it lowers the expected calibration error there by a third, and lowers it in 95 of 100 samples of the
documents with replacement. Only then `--save` writes its points.

Tables for people, then one line of JSON. Wants `pip install 'pocketvlm[structured]'`, for `--plot` the extra `plots`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import pocketvlm
from pocketvlm.documents.extracting import extraction
from pocketvlm.documents.fields import join
from pocketvlm.evaluation.suite import SyntheticSuite, rows
from pocketvlm.evaluation.tasks import Example
from pocketvlm.prompts import packaged

BINS, RESAMPLES, CLEARLY = 10, 200, 2 / 3
SURE = 0.8  # as `--review 0.8`
Floats = NDArray[np.float64]


class Answered(NamedTuple):
    """What became of the fields of one document: confidence and whether it is right of each; how many are missing."""

    fields: list[tuple[float, bool]]
    missing: int


def schema_of(example: Example) -> dict[str, Any]:
    """The one that the question shows, or one of the expected answer."""
    _, newline, shown = example.question.partition("\n")
    return json.loads(shown) if newline else made_for(json.loads(example.answers[0]))


def made_for(value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        properties = {name: made_for(part) for name, part in value.items()}
        return {"type": "object", "properties": properties, "required": list(properties)}
    if isinstance(value, list):
        return {"type": "array", "items": made_for(value[0]) if value else {}}
    if isinstance(value, bool):
        return {"type": "boolean"}
    return {"type": "number"} if isinstance(value, int | float) else {"type": ["string", "null"]}


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(field, value) of all that is no object and no array."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if pairs is None:
        yield name, value
    for key, part in pairs or ():
        yield from leaves(part, join(name, key))


def is_same(value: Any, expected: Any) -> bool:
    return isinstance(value, bool) == isinstance(expected, bool) and value == expected


def answered(vlm: pocketvlm.VLM, tasks: Sequence[str], count: int, seed: int, max_tokens: int) -> list[Answered]:
    """Of every document of every task."""
    suite, asked = SyntheticSuite(), []
    for name in tasks:
        for number in range(count):
            example = suite.task(name).example(number, seed)
            task = extraction(schema_of(example), packaged()["extract"], {"max_tokens": max_tokens})
            content = [
                *({"type": "image", "image": one} for one in example.media),
                {"type": "text", "text": task.question},
            ]
            asked.append((example, task, [{"role": "user", "content": content}]))
    found = []
    requests = ((number, messages, task.options) for number, (_, task, messages) in enumerate(asked))
    for number, outcome in vlm.as_completed(requests):
        if isinstance(outcome, Exception):
            raise outcome
        example, task, _ = asked[number]
        value = task.value_of(outcome[0])
        expected = dict(leaves(json.loads(example.answers[0])))
        given = dict(leaves(value["data"])) if value["data"] is not None else {}
        right = [
            (sure, name in expected and is_same(given[name], expected[name]))
            for name, sure in value["confidence"].items()
        ]
        found.append(Answered(right, len(expected.keys() - given.keys())))
    return found


def arrays(documents: Sequence[Answered]) -> tuple[Floats, Floats]:
    """Confidence, and 1 where it is right, of all fields."""
    pairs = [field for document in documents for field in document.fields]
    return np.array([sure for sure, _ in pairs], float), np.array([right for _, right in pairs], float)


def table(sure: Floats, right: Floats) -> list[tuple[float, float, int, float, float]]:
    """(from, to, fields, mean confidence, accuracy) of each tenth that holds any."""
    place = np.minimum((sure * BINS).astype(int), BINS - 1)
    held = ((number, place == number) for number in range(BINS))
    return [
        (number / BINS, (number + 1) / BINS, int(here.sum()), float(sure[here].mean()), float(right[here].mean()))
        for number, here in held
        if here.any()
    ]


def calibration_error(sure: Floats, right: Floats) -> float:
    """The expected one, of tenths (Naeini et al., 2015)."""
    return sum(count * abs(mean - share) for _, _, count, mean, share in table(sure, right)) / max(len(sure), 1)


def isotonic(sure: Floats, right: Floats) -> tuple[Floats, Floats]:
    """Points of the monotone function with the least squared error, by pooling neighbours that are out of order."""
    order = np.argsort(sure, kind="stable")
    blocks: list[list[float]] = []  # sum, weight, least and greatest confidence
    for x, y in zip(sure[order], right[order], strict=True):
        blocks.append([y, 1.0, x, x])
        while len(blocks) > 1 and blocks[-2][0] * blocks[-1][1] >= blocks[-1][0] * blocks[-2][1]:
            last = blocks.pop()
            blocks[-1] = [blocks[-1][0] + last[0], blocks[-1][1] + last[1], blocks[-1][2], last[3]]
    xs = [x for _, _, low, high in blocks for x in (low, high)]
    ys = [total / weight for total, weight, _, _ in blocks for _ in (0, 1)]
    return np.array(xs), np.array(ys)


def improvement(points: tuple[Floats, Floats], documents: Sequence[Answered], seed: int) -> float:
    """The share of samples of whole documents, with replacement, in which the calibrated error is the smaller one."""
    rng, better = np.random.default_rng(seed), 0
    for _ in range(RESAMPLES):
        sure, right = arrays([documents[i] for i in rng.integers(len(documents), size=len(documents))])
        better += calibration_error(np.interp(sure, *points), right) < calibration_error(sure, right)
    return better / RESAMPLES


def share(right: Floats) -> float | None:
    return round(float(right.mean()), 4) if len(right) else None


def split_at(documents: Sequence[Answered], points: tuple[Floats, Floats] | None = None) -> dict[str, Any]:
    """Accuracy of fields, and of documents of which all fields are right, above `SURE` against the rest; of calibrated
    numbers where there are `points`."""
    sure, right = arrays(documents)
    if points is not None:
        sure = np.interp(sure, *points)
    ends = np.cumsum([len(one.fields) for one in documents])
    rows_sure = np.array([bool((part >= SURE).all() and len(part)) for part in np.split(sure, ends[:-1])])
    rows_right = np.array(
        [all(r for _, r in one.fields) and bool(one.fields) and not one.missing for one in documents], float
    )
    return {
        "fields_sure": int((sure >= SURE).sum()),
        "fields_rest": int((sure < SURE).sum()),
        "right_of_fields_sure": share(right[sure >= SURE]),
        "right_of_fields_rest": share(right[sure < SURE]),
        "rows_sure": int(rows_sure.sum()),
        "right_of_rows_sure": share(rows_right[rows_sure]),
        "right_of_rows_rest": share(rows_right[~rows_sure]),
        "missing_fields": sum(one.missing for one in documents),
    }


def plot(out: Path, before: Sequence[Any], after: Sequence[Any]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for rows_, label, mark in ((before, "as it is", "o"), (after, "calibrated", "s")):
        sizes = [20 + 3 * count**0.5 for _, _, count, _, _ in rows_]
        axes.plot([mean for *_, mean, _ in rows_], [right for *_, right in rows_], linewidth=1)
        axes.scatter([mean for *_, mean, _ in rows_], [right for *_, right in rows_], sizes, label=label, marker=mark)
    axes.set(xlabel="confidence", ylabel="share of fields that are right", xlim=(0, 1), ylim=(0, 1))
    axes.legend()
    figure.savefig(out, dpi=150)


def main() -> int:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [name for name in rows() if name.endswith("-json")]
    cli.add_argument("--model", default="nano", help="a name or a directory (default nano)")
    cli.add_argument("--count", type=int, default=200, help="documents a task and seed (default 200)")
    cli.add_argument("--tasks", nargs="+", choices=known, default=known, help="default: all of them")
    cli.add_argument(
        "--seeds", type=int, nargs=2, default=(2026, 2027), help="to fit, and to judge (default 2026 2027)"
    )
    cli.add_argument("--max-tokens", type=int, default=256)
    cli.add_argument("--plot", type=Path, help="a PNG of the diagram of the second seed")
    cli.add_argument("--save", type=Path, help="a JSON file of the calibration, where it is clearly better")
    args = cli.parse_args()
    with pocketvlm.load(args.model) as vlm:
        vlm.progress = None
        fitted, judged = (answered(vlm, args.tasks, args.count, seed, args.max_tokens) for seed in args.seeds)
    (first, first_right), (sure, right) = arrays(fitted), arrays(judged)
    if not len(first) or not len(sure):
        print("no answer has a field: the model's JSON is never whole", file=sys.stderr)
        return 1
    points = isotonic(first, first_right)
    calibrated = np.interp(sure, *points)
    before, after = table(sure, right), table(calibrated, right)
    print("| confidence | fields | mean | right |\n| --- | --- | --- | --- |")
    for low, high, count, mean, accuracy in before:
        print(f"| {low:.1f} to {high:.1f} | {count} | {mean:.3f} | {accuracy:.3f} |")
    errors = calibration_error(sure, right), calibration_error(calibrated, right)
    in_samples = improvement(points, judged, args.seeds[1])
    is_better = bool(errors[1] < CLEARLY * errors[0] and in_samples >= 0.95)
    figures = {
        "documents": len(judged),
        "fields": len(sure),
        "right": share(right),
        "calibration_error": round(errors[0], 4),
        **split_at(judged),
        "calibrated_error": round(errors[1], 4),
        "calibrated": split_at(judged, points),
        "better_in_samples": in_samples,
        "clearly_better": is_better,
    }
    print(f"\nexpected calibration error {errors[0]:.3f}; calibrated on another seed {errors[1]:.3f}")
    print(json.dumps(figures))
    if args.plot:
        plot(args.plot, before, after)
    if args.save and is_better:
        made = {"confidence": points[0].round(4).tolist(), "right": points[1].round(4).tolist(), "figures": figures}
        args.save.write_text(json.dumps(made) + "\n", encoding="utf-8")
    elif args.save:
        print(f"{args.save} is not written: the calibration is not clearly better", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
