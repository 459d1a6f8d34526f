"""What a bundle answers, printed as JSON: run by itself with PyTorch out of reach, or called beside it.

python -m helpers.without_torch BUNDLE
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

import pocketvlm

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RECEIPT, WORD = str(EXAMPLES / "receipt.png"), str(EXAMPLES / "word.png")
SCHEMA = {"type": "object", "properties": {"total": {"type": "string"}}, "required": ["total"]}


class OutOfReach:
    """Stands in the place of the finder of installed packages, and finds no PyTorch."""

    find_distributions = staticmethod(PathFinder.find_distributions)

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        return None if name.partition(".")[0] == "torch" else PathFinder.find_spec(name, path, target)


def take_pytorch_away() -> None:
    """From now on it is not installed, for this process."""
    assert "torch" not in sys.modules
    sys.meta_path[:] = [OutOfReach() if finder is PathFinder else finder for finder in sys.meta_path]


def answers(bundle: str) -> list[Any]:
    """Of one, two and many pictures, cut and whole, drawn, with beams, masks and penalties, and of text alone."""
    with pocketvlm.load(bundle) as vlm:
        asked = [
            vlm.ask(RECEIPT, "What is the total?", temperature=0),
            vlm.ask(RECEIPT, "What is the total?", temperature=0, downsample_mode="4x"),
            vlm.ask(RECEIPT, "Which shop is it?", temperature=0, downsample_mode="auto", logprobs=2),
            vlm.ask([WORD, RECEIPT], "Which picture shows a word?", temperature=0, repetition_penalty=1.1),
            vlm.ask(WORD, "What does it say?", temperature=1.0, top_p=0.9, seed=7, max_tokens=8, n=2),
            vlm.ask(WORD, "What does it say?", temperature=0, num_beams=3, max_tokens=6),
            vlm.ask(WORD, "What does it say?", temperature=0, prompt_lookup_num_tokens=4, max_tokens=8),
            vlm.ask(
                RECEIPT,
                "Read it as JSON.",
                temperature=0,
                max_tokens=40,
                structured_outputs=pocketvlm.StructuredOutputs(json=SCHEMA),
            ),
            *vlm.batch(
                [[{"role": "user", "content": text}] for text in ("Hello", "Good morning")], max_tokens=4, seed=1
            ),
        ]
        return [
            [one.text, *one.token_ids, one.usage.visual_tokens, *(a.text for a in one.alternatives)] for one in asked
        ]


if __name__ == "__main__":
    take_pytorch_away()
    print(json.dumps(answers(sys.argv[1])))
