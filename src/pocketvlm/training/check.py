"""A dry run: every sample is encoded as it would be learnt, and nothing is trained."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from pocketvlm.processing.prompt.tokenizer import Tokenizer
from pocketvlm.training.data.sample import SampleError
from pocketvlm.training.examples import IGNORED, Example
from pocketvlm.training.feed import Found

SHOWN = 3  # samples whose tokens are shown


@dataclass
class Check:
    """What a dry run found.

    Attributes:
        tokens, visual, learnt: of each good sample: all tokens, those of pictures, those that are learnt.
        views: of each good sample.
        bad: source → what is wrong.
        cut: good samples of which some is left out, since they are too long.
        shown: the examples of the first samples, for people to look at; of a pair the chosen answer, then the rejected.
    """

    tokens: list[int] = field(default_factory=list)
    visual: list[int] = field(default_factory=list)
    learnt: list[int] = field(default_factory=list)
    views: list[int] = field(default_factory=list)
    bad: dict[str, str] = field(default_factory=dict)
    cut: int = 0
    shown: list[Example] = field(default_factory=list)

    @property
    def good(self) -> int:
        return len(self.tokens)

    @property
    def counts(self) -> str:
        """How many there are of each kind, for people."""
        cut = f"; {self.cut} are cut off at their end" if self.cut else ""
        return f"{self.good} samples can be learnt from, {len(self.bad)} cannot{cut}."

    def statistics(self) -> dict[str, dict[str, float]]:
        """Least, median, mean, 95th percentile and most of each number."""
        rows = {"tokens": self.tokens, "visual tokens": self.visual, "learnt tokens": self.learnt, "views": self.views}
        return {name: _summary(values) for name, values in rows.items()} if self.tokens else {}


def check(found: Iterable[Found], on_sample: Callable[[int], None] = lambda _done: None) -> Check:
    """Go through all samples; `on_sample` hears how many are done."""
    result, number_shown = Check(), 0
    for number, one in enumerate(found, 1):
        if isinstance(one, SampleError):
            result.bad[one.source] = str(one)
        else:
            example = max(one, key=lambda part: len(part.input_ids))
            result.tokens.append(len(example.input_ids))
            result.visual.append(sum(view.visual_tokens for view in example.views))
            result.learnt.append(sum(part.learnt for part in one))
            result.views.append(len(example.views))
            result.cut += any(part.cut for part in one)
            if number_shown < SHOWN:
                number_shown += 1
                result.shown += one
        on_sample(number)
    return result


def stretches(example: Example, tokenizer: Tokenizer) -> list[tuple[str, bool, int]]:
    """The tokens of an example as (text, learnt, number of tokens); runs of a picture's tokens become one word."""
    ids, targets = example.input_ids.tolist(), example.targets.tolist()
    # What follows an input is its target: the mask of the inputs themselves is that of the targets before them.
    marked = list(zip(ids, [False, *(target != IGNORED for target in targets[:-1])], strict=True))
    if targets[-1] != IGNORED:
        marked.append((targets[-1], True))
    found: list[tuple[list[int], bool]] = []
    for token, learnt in marked:
        if found and found[-1][1] == learnt:
            found[-1][0].append(token)
        else:
            found.append(([token], learnt))
    return [(_shown(tokens, tokenizer), learnt, len(tokens)) for tokens, learnt in found]


def _shown(tokens: Sequence[int], tokenizer: Tokenizer) -> str:
    pads = {tokenizer.control_id(name): name for name in ("<|image_pad|>", "<|video_pad|>")}
    text, place = "", 0
    while place < len(tokens):
        end = place + 1
        if tokens[place] in pads:
            while end < len(tokens) and tokens[end] == tokens[place]:
                end += 1
            text += f"[{end - place} visual tokens]"
        else:
            while end < len(tokens) and tokens[end] not in pads:
                end += 1
            text += tokenizer.decode(list(tokens[place:end]), skip_special=False)
        place = end
    return text


def _summary(values: list[int]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "least": ordered[0],
        "median": statistics.median(ordered),
        "mean": round(statistics.fmean(ordered), 1),
        "p95": ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))],
        "most": ordered[-1],
    }
