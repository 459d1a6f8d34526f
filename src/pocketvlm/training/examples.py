"""A sample → token ids, which of them are learnt, and its pictures' views.

The conversation is rendered by the checkpoint's own template, as at inference. Learnt is what the model itself would
write: from behind the opening of an assistant's message to the control token that ends it. An empty block of reasoning
is part of that opening, and so is the line break after `<think>` where there is reasoning.

Shapes: S tokens of one sample · P patches of all its views, p patch_size
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pocketvlm.errors import PocketVLMError
from pocketvlm.model.directory import ModelDirectory
from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.processing.processor import Processor
from pocketvlm.processing.prompt.template import Piece, RenderedPrompt
from pocketvlm.training.data.sample import RANDOM, Sample, SampleError, check_answers
from pocketvlm.training.random_rates import with_random_rates
from pocketvlm.views import View

START, END, OPENING = "<|im_start|>", "<|im_end|>", "assistant\n"
THINK, THOUGHT = "<think>", "</think>"
IGNORED = -100  # target of a token that is not learnt


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """Attributes:
    input_ids: int64 [S].
    targets: int64 [S], the id of the next token where that is learnt, else `IGNORED`.
    patches: uint8 [P, p, p, 3].
    views: those of the patches, in order.
    source: of the sample.
    cut: tokens of its answers that were left out, since it would be too long.
    """

    input_ids: Tensor
    targets: Tensor
    patches: Tensor
    views: tuple[View, ...]
    source: str
    cut: int = 0

    @property
    def learnt(self) -> int:
        """Tokens that are learnt."""
        return int((self.targets != IGNORED).sum())


def training_processor(directory: ModelDirectory) -> Processor:
    """As at inference, but that a clip with frames that cannot be decoded is refused: its answer is of other frames."""
    return Processor.from_directory(directory.path, configs=directory.configs, limits=MediaLimits(damaged_clips=False))


class ExampleEncoder:
    """Makes examples of samples; what is wrong with one is a `SampleError`. Can be sent to other processes.

    Args:
        max_tokens: longest example, as the model reads it (the last token that is learnt is a target only); the model's
            context when None.
        truncate: cut the end of a longer answer off, instead of refusing it.
        options: of pictures, where the sample does not say otherwise; `downsample_mode` may be "random", 16x or 4x for
            each view.
    """

    def __init__(
        self,
        processor: Processor,
        *,
        max_tokens: int | None = None,
        truncate: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        context = processor.model_config.text.max_position_embeddings
        self.processor, self.max_tokens, self.truncate = processor, min(max_tokens or context, context), truncate
        self.options = dict(options or {})

    def __call__(self, sample: Sample, draw: int = 0) -> Example:
        """The example of a sample's own answers.

        Args:
            draw: decides random rates, with the source of the sample; another one each time that it is learnt.
        """
        return self._example(sample, draw)

    def _example(self, sample: Sample, draw: int, *, last_only: bool = False) -> Example:
        try:
            return self._encode(sample, draw, last_only)
        except SampleError:
            raise
        except PocketVLMError as error:
            raise SampleError(sample.source, str(error)) from None

    def pair(self, sample: Sample, draw: int = 0) -> tuple[Example, Example]:
        """The example with the answer that is better, and that with the one that was rejected. Of their targets only
        these answers are left: earlier ones are the same in both, and neither better nor worse."""
        if sample.rejected is None:
            raise SampleError(sample.source, "it has no rejected answer", hint="Preference data has one in every line.")
        *before, _ = sample.messages
        worse = replace(sample, messages=[*before, {"role": "assistant", "content": sample.rejected}])
        return self._example(sample, draw, last_only=True), self._example(worse, draw, last_only=True)

    def _encode(self, sample: Sample, draw: int, last_only: bool) -> Example:
        rendered = self.processor.chat_template.render(
            sample.messages, tools=sample.tools, add_generation_prompt=False, learnt=True
        )
        check_answers(sample.messages)
        prompt, learnt = mark_answers(rendered)
        options, processor = sample.with_options(self.options), self.processor
        if options.get("downsample_mode") == RANDOM:
            options |= {"downsample_mode": "auto", "auto_token_budget": 1.0}
            processor = with_random_rates(processor, (zlib.crc32(sample.source.encode()), draw % 2**32))
        inputs, lengths = processor.encode_prompt(prompt, **options)
        ids = torch.from_numpy(inputs.input_ids)
        is_learnt = torch.repeat_interleave(torch.tensor(learnt), torch.tensor(lengths))
        if not is_learnt.any():
            raise SampleError(sample.source, "it has no answer to learn", hint="Its last message is the assistant's.")
        if last_only:  # answers are never side by side, so this is where the last one begins
            end = int(is_learnt.nonzero()[-1])
            is_learnt[: int((~is_learnt[:end]).nonzero()[-1])] = False
        end = int(is_learnt.nonzero()[-1]) + 1  # what follows is neither input nor target
        ids, is_learnt = ids[:end], is_learnt[:end]
        most = self.max_tokens + 1  # the last one is a target only
        cut = int(is_learnt[most:].sum())
        if len(ids) > most:
            self._check_cut(ids, is_learnt, sample, most)
            ids, is_learnt = ids[:most], is_learnt[:most]
        last = int(is_learnt.nonzero()[-1])
        targets = torch.where(is_learnt[1 : last + 1], ids[1 : last + 1], IGNORED)
        return Example(ids[:last], targets, torch.from_numpy(inputs.patches), inputs.views, sample.source, cut)

    def _check_cut(self, ids: Tensor, is_learnt: Tensor, sample: Sample, most: int) -> None:
        """Raise for an example that may not be cut, or of which too little would be left."""
        config = self.processor.model_config
        cut = ids[most:]
        has_pictures = torch.isin(cut, torch.tensor((config.image_token_id, config.video_token_id))).any()
        if not self.truncate or has_pictures or not is_learnt[:most].any():
            hint = "Shorten it, lower max_slice_nums or max_num_frames, or cut long answers off by --truncate."
            if self.truncate:  # which is on already, and may cut neither pictures nor all of the answers
                hint = "Shorten it, or lower max_slice_nums or max_num_frames."
            text = f"it has {len(ids) - 1} tokens, at most {self.max_tokens} are taken"
            raise SampleError(sample.source, text, hint=hint)


def mark_answers(prompt: RenderedPrompt) -> tuple[RenderedPrompt, list[bool]]:
    """The prompt, cut where answers begin, so that they become the same tokens as at inference; and which of its
    pieces are learnt."""
    marked = list(_marked(list(prompt.pieces)))
    return RenderedPrompt(tuple(piece for piece, _ in marked), prompt.media), [learnt for _, learnt in marked]


def _marked(pieces: list[Piece]) -> Iterator[tuple[Piece, bool]]:
    place, inside = 0, False
    while place < len(pieces):
        piece = pieces[place]
        place += 1
        if inside:
            yield piece, True
            inside = not (piece.is_control and piece.text == END)
            continue
        yield piece, False
        if not (piece.is_control and piece.text == START and place < len(pieces)):
            continue
        following = pieces[place]
        if following.is_control or not following.text.startswith(OPENING):
            continue
        yield Piece(OPENING, False), False
        place += 1
        inside = True
        if rest := following.text.removeprefix(OPENING):
            yield Piece(rest, False), True
            continue
        names = [one.text for one in pieces[place : place + 4]]
        if names[:1] != [THINK] or not pieces[place].is_control or len(names) < 4:
            continue
        yield pieces[place], False
        is_empty = names[2] == THOUGHT and not names[1].strip()
        yield from _from(pieces[place + 1], "\n" if not is_empty else names[1])
        place += 2
        if is_empty:  # what follows begins as the prompt of an answer without reasoning ends
            yield pieces[place], False
            yield from _from(pieces[place + 1], "\n\n")
            place += 2


def _from(piece: Piece, opening: str) -> Iterator[tuple[Piece, bool]]:
    """A piece whose beginning is not learnt."""
    rest = piece.text.removeprefix(opening)
    if rest != piece.text:
        yield Piece(opening, False), False
    if rest:
        yield Piece(rest, piece.is_control), True
