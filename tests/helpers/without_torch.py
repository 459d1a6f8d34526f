"""What a bundle answers, printed as JSON: run by itself with PyTorch out of reach, or called beside it.

python -m helpers.without_torch BUNDLE
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pocketvlm

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RECEIPT, WORD = str(EXAMPLES / "receipt.png"), str(EXAMPLES / "word.png")
SCHEMA = {"type": "object", "properties": {"total": {"type": "string"}}, "required": ["total"]}


class OutOfReach:
    """Makes every import of PyTorch fail, as where it is not installed."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        del path, target
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


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
    sys.meta_path.insert(0, OutOfReach())
    print(json.dumps(answers(sys.argv[1])))
