#!/usr/bin/env python3
"""Exact match on held-out pictures: words, numbers and a font family never trained on.

    python -m recipes.nano.evaluate [--model nano] [--count 500] [--modes 4x 16x]

Pictures are one view of about 224 x 224 with one printed word or number in any place, size, colour and held-out font,
some noise and a slight turn; and large-print receipts, asked for the total. Each goes through the whole product: file
bytes, processor, greedy decoding. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import time

from PIL import Image

import pocketvlm
from pocketvlm.synthetic import LEVELS, Sample, make_sample
from pocketvlm.synthetic.fonts import families

TASKS = ("words", "numbers", "receipts")
SEED = 2026


def draw(task: str, index: int) -> tuple[Sample, str, str]:
    """A held-out picture, its question and the answer."""
    if task == "receipts":
        sample = make_sample("receipt", (SEED, index), "heldout", 0)
    else:
        kind = "word" if task == "words" else "number"
        level = dataclasses.replace(LEVELS[3], kinds=(kind,), lines=(1, 1))
        sample = make_sample("words", (SEED, index), "heldout", level)
    question, answer, _ = sample.questions[0]
    return sample, question, answer


def png(sample: Sample) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(sample.image).save(buffer, "PNG")
    return buffer.getvalue()


def character_errors(a: str, b: str) -> int:
    """Edit distance (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


def evaluate(vlm: pocketvlm.VLM, task: str, mode: str, count: int, batch: int = 25) -> dict[str, float]:
    """Share of answers that are exactly right, share of characters, and seconds a picture."""
    right = wrong_characters = characters = 0
    began = time.perf_counter()
    for first in range(0, count, batch):
        drawn = [draw(task, i) for i in range(first, min(first + batch, count))]
        conversations = [
            [{"role": "user", "content": [{"type": "image", "image": png(s)}, {"type": "text", "text": q}]}]
            for s, q, _ in drawn
        ]
        answers = vlm.batch(conversations, downsample_mode=mode, temperature=0, max_tokens=64)
        for (_, _, expected), answer in zip(drawn, answers, strict=True):
            right += answer.text == expected
            wrong_characters += character_errors(answer.text, expected)
            characters += len(expected)
    return {
        "exact": round(100 * right / count, 1),
        "characters": round(100 * max(0.0, 1 - wrong_characters / characters), 1),
        "seconds": round((time.perf_counter() - began) / count, 4),
    }


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--model", default="nano")
    cli.add_argument("--count", type=int, default=500, help="pictures a task")
    cli.add_argument("--modes", nargs="+", default=["4x", "16x"], choices=("4x", "16x"))
    cli.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS)
    args = cli.parse_args()
    vlm = pocketvlm.load(args.model)
    print("held-out fonts:", ", ".join(family.name for family in families("heldout")))
    print(f"\n| task ({args.count} pictures) | mode | exact % | characters % | s a picture |\n|---|---|---|---|---|")
    results = {}
    for task in args.tasks:
        for mode in args.modes:
            r = results[f"{task} {mode}"] = evaluate(vlm, task, mode, args.count)
            print(f"| {task} | {mode} | {r['exact']} | {r['characters']} | {r['seconds']} |", flush=True)
    print("\n" + json.dumps({"model": args.model, "count": args.count, "results": results}))


if __name__ == "__main__":
    main()
