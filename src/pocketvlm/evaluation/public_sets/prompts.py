"""What is said around the questions of the public sets: how long an answer should be, and in which form.

Which set gets which follows the published evaluation of MiniCPM-V 4.6 (VLMEvalKit, `vlmeval/vlm/minicpm_v.py`:
`use_cot` and `build_prompt`); the wording is ours, so scores can differ from the published ones by what a wording is
worth. There, the short-answer line stands before the picture; an `Example` shows its pictures first.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Prompt:
    """Text around a question."""

    prefix: str = ""
    suffix: str = ""

    def __call__(self, question: str) -> str:
        return f"{self.prefix}{question}{self.suffix}"


SHORT_ANSWER = Prompt(prefix="Reply with one word or a short phrase.\n")
OCR = Prompt(prefix="Look closely at the picture and answer about the text in it.\n\n")
STEPS_THEN_LETTER = Prompt(
    prefix="Think this multiple-choice question through step by step. "
    'End with "Answer: " and the letter of your choice.\n\n'
)
VIDEO_LETTER = Prompt(
    prefix="\nThe pictures are frames of a video. Choose the option that answers the question about it, "
    "and reply with its letter only.\nQuestion: ",
    suffix="\nAnswer: ",
)
#: The model's marks around the expression.
BOX = Prompt(prefix="Give the box of what this describes: <ref>", suffix="</ref>")


def with_letters(options: Sequence[str]) -> list[str]:
    """Options as lines of a question: "A. first", "B. second", …"""
    return [f"{letter}. {option}" for letter, option in zip(string.ascii_uppercase, options, strict=False)]
