"""Write the samples of a recipe: python -m cookbook.data KIND FOLDER [--train N] [--held-out N] [--seed S]

FOLDER then holds `train.jsonl` and `held_out.jsonl` in ms-swift's format and the pictures and clips they name. Kinds:
those of `draw.DRAWS`; "own", tasks that nano knows already, mixed in so that it does not forget them; "absent", pairs
of answers for DPO about entries of receipts, tables and forms that are or are not there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cookbook.draw import DRAWS, Drawn, write_media
from pocketvlm.synthetic import NOT_THERE, REGISTRY, Sample, make_sample

# Of one small picture each; words, which everybody asks for, and shapes, which counting disturbs most, come twice.
OWN = ("words", "words", "receipt", "invoice", "table", "form", "chart", "shapes", "shapes", "screen")
WITH_ABSENT = ("receipt", "table", "form")
KINDS = (*DRAWS, "own", "absent")
_ATTEMPTS = 100  # samples drawn for one question; about a quarter of them ask for what is not there


def draw(kind: str, seed: Sequence[int]) -> Drawn:
    """The sample of a kind and a seed, always the same."""
    rng = np.random.default_rng(seed)
    if kind in DRAWS:
        return DRAWS[kind](rng)
    return _own(rng, seed) if kind == "own" else _absent(rng, seed)


def _own(rng: np.random.Generator, seed: Sequence[int]) -> Drawn:
    task = OWN[int(rng.integers(len(OWN)))]
    level = int(rng.integers(len(REGISTRY[task].levels)))
    sample = make_sample(task, tuple(seed), "train", level)
    questions = [one for one in sample.questions if one.kind != "box"]  # the figures were measured without
    question = questions[int(rng.integers(len(questions)))]
    return Drawn((_picture(sample),), question.text, question.answer)


def _absent(rng: np.random.Generator, seed: Sequence[int]) -> Drawn:
    """Half ask for what is not there, and a value that is there is rejected; half the other way round."""
    wanted = bool(rng.random() < 0.5)
    task = WITH_ABSENT[int(rng.integers(len(WITH_ABSENT)))]
    for attempt in range(_ATTEMPTS):
        sample = make_sample(task, (*seed, attempt), "train", 0)
        absent = [one for one in sample.questions if one.kind == "absent"]
        there = [one for one in sample.questions if one.kind in ("text", "number")]
        if there and not wanted:
            one = there[int(rng.integers(len(there)))]
            return Drawn((_picture(sample),), one.text, one.answer, NOT_THERE)
        if there and absent:
            value = there[int(rng.integers(len(there)))].answer
            return Drawn((_picture(sample),), absent[0].text, NOT_THERE, value)
    raise RuntimeError(f"no sample of {task} asks for what is not there")


def _picture(sample: Sample) -> Image.Image:
    return Image.fromarray(sample.image)


def write(kind: str, folder: Path, counts: dict[str, int], seed: int = 0) -> None:
    """Write `counts[split]` samples of each split; no seed is used in two of them."""
    media = folder / "media"
    media.mkdir(parents=True, exist_ok=True)
    for number, (split, count) in enumerate(counts.items()):
        lines = []
        for index in range(count):
            sample = draw(kind, (seed, number, index))
            path = write_media(sample, media / f"{split}{index}")
            mark, column = ("<image>", "images") if len(sample.frames) == 1 else ("<video>", "videos")
            line: dict[str, object] = {
                "messages": [
                    {"role": "user", "content": f"{mark}{sample.question}"},
                    {"role": "assistant", "content": sample.answer},
                ],
                column: [path.relative_to(folder).as_posix()],
            }
            if sample.rejected:
                line["rejected_response"] = sample.rejected
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cookbook.data", description="Write the samples of a recipe.")
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=4000, help="samples to learn from (default 4000)")
    parser.add_argument("--held-out", type=int, default=300, help="samples to measure with (default 300)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    write(args.kind, args.folder, {"train": args.train, "held_out": args.held_out}, args.seed)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
