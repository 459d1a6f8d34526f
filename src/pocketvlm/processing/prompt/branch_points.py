"""Where prompts part: lengths of the prefixes that another prompt is likely to share.

After the system prompt, after each picture or video, and where each answer begins: the next turn of a conversation has
everything before the answer in common with this one, but not what the template puts in front of a new answer.

Shapes: S tokens of a prompt
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pocketvlm.processing.prompt.tokenizer import TURN_END, TURN_START, Tokenizer

_MEDIA_ENDS = ("</image>", "</slice>")


def branch_points(input_ids: NDArray[np.int64], tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return rising numbers of tokens, from int64 ids [S]; the whole prompt is never one of them.

    A picture's tokens end with its last `</image>` or `</slice>`: the row breaks between slices are part of it.
    """
    ids = input_ids.tolist()
    start, end = tokenizer.control_id(TURN_START), tokenizer.control_id(TURN_END)
    line_break = tokenizer.encode_plain("\n")
    header = [start, *tokenizer.encode_plain("assistant\n")]
    system = [start, *tokenizer.encode_plain("system\n")]
    media_ends = {tokenizer.control_id(name) for name in _MEDIA_ENDS}
    pictures = {tokenizer.control_id(name) for name in ("<slice>", "<image>")}
    points = set()
    for i, token in enumerate(ids):
        if token == start and ids[i : i + len(header)] == header:
            points.add(i + len(header))
        elif token == end and ids[: len(system)] == system and end not in ids[:i]:
            points.add(i + 1 + len(line_break))
        elif token in media_ends:
            behind = i + 1
            while ids[behind : behind + len(line_break)] == line_break:
                behind += len(line_break)
            if behind >= len(ids) or ids[behind] not in pictures:
                points.add(i + 1)
    return tuple(sorted(point for point in points if 0 < point < len(ids)))
