#!/usr/bin/env python3
"""The words that questions are made of: what make_tokenizer.py gives a token of their own.

    python -m recipes.nano.question_words [--samples 400]

Draws samples of every task and level and prints the words that occur in questions of many of them, sorted. Free words
(names, labels) occur in few and stay spelt letter by letter, as they are in answers.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter

from pocketvlm.synthetic import NOT_THERE, REGISTRY, make_sample

WORD = re.compile(r"(?<= )[A-Za-z]+")  # behind a space: the first word of a question keeps its letters


def question_words(samples: int, share: float) -> list[str]:
    """Words that stand in the questions of at least `share` of the samples of some task."""
    kept: set[str] = set(WORD.findall(NOT_THERE))
    for task, entry in REGISTRY.items():
        counts: Counter[str] = Counter()
        for i in range(samples):
            sample = make_sample(task, (404, i), "train", i % len(entry.levels))
            counts.update({word for q in sample.questions for word in WORD.findall(q.text)})
        kept |= {word for word, count in counts.items() if count >= share * samples}
    return sorted(kept)


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--samples", type=int, default=400, help="of each task")
    cli.add_argument("--share", type=float, default=0.02, help="of the samples of a task that a word must occur in")
    args = cli.parse_args()
    print(" ".join(question_words(args.samples, args.share)))


if __name__ == "__main__":
    main()
