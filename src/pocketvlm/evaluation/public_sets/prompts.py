"""What the published evaluation of MiniCPM-V 4.6 puts around a question; to reproduce its scores, to the letter.

Source: VLMEvalKit, `vlmeval/vlm/minicpm_v.py`: `MiniCPM_V_4_6.__init__` (texts), `use_cot` (which set gets which) and
`MiniCPM_V_4.build_prompt` (order). One difference: there, `SHORT_ANSWER` stands before the picture; an `Example` shows
its pictures first, so it is the first line of the question.
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


SHORT_ANSWER = Prompt(prefix="Answer the question using a single word or phrase.\n")
OCR = Prompt(prefix="Carefully observe the image and answer the OCR-related questions below. \n\n")
STEPS_THEN_LETTER = Prompt(
    prefix="Carefully read the following multichoice question, solve it step by step and finally pick the option "
    'associated with the correct answer in the format of "Answer: selected option\n\n'
)
#: Of VLMEvalKit's `videomme.py`: its MiniCPM-V 4.6 class has no prompt of its own that takes a video.
VIDEO_LETTER = Prompt(
    prefix="\nThese are the frames of a video. Select the best answer to the following multiple-choice question based "
    "on the video. Respond with only the letter (A, B, C, or D) of the correct option.\nQuestion: ",
    suffix="\nAnswer: ",
)
#: The usual question of RefCOCO (as for Qwen-VL and InternVL), with the model's marks around the expression. The
#: published prompt is part of a table that was not at hand.
BOX = Prompt(
    prefix="Please provide the bounding box coordinate of the region this sentence describes: <ref>", suffix="</ref>"
)


def with_letters(options: Sequence[str]) -> list[str]:
    """Options as lines of a question: "A. first", "B. second", …"""
    return [f"{letter}. {option}" for letter, option in zip(string.ascii_uppercase, options, strict=False)]
