"""A rendered conversation and its views → token ids, each placeholder grown to the exact tokens of its views.

One picture: `<image_id>k</image_id><image>` pads `</image>`, then its slices row by row, each `<slice>` pads
`</slice>`, with a line break between rows. One video: the `<image>` block of each of its units. `k` counts from 0 in
every prompt, pictures and videos apart. The layout is that of `MiniCPMV4_6Processor` in transformers 5.23. The pages of
a document stand there as pictures that were given one by one: numbered on, and a line apart, where the published
template sets them.

Works on pieces and ids. Cutting the finished string instead would be wrong twice over: slices contain line breaks, and
users can type everything that a placeholder is made of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

from pocketvlm.errors import PromptError
from pocketvlm.processing.patches.image import ImageViews
from pocketvlm.processing.prompt.template import RenderedPrompt
from pocketvlm.processing.prompt.tokenizer import IMAGE_PAD, VIDEO_PAD, Tokenizer

# Of one picture (a single unit), one document (a unit a page) or one video (a unit a frame), encoded.
Units: TypeAlias = tuple[ImageViews, ...]


def expand_pieces(
    tokenizer: Tokenizer,
    prompt: RenderedPrompt,
    media: Sequence[Units],
    *,
    use_image_id: bool = True,
    use_video_id: bool = True,
) -> list[list[int]]:
    """Return token ids of a prompt with media, those of each of its pieces apart.

    Args:
        tokenizer: whose ids to use.
        prompt: the rendered conversation.
        media: what `prompt.media` became, in the same order.
        use_image_id: number the pictures with `<image_id>`.
        use_video_id: number the videos with it.

    Raises:
        PromptError: `media` are not as many as the prompt has, or views do not fit their grid.
    """
    if len(media) != len(prompt.media):
        raise PromptError(f"{len(media)} encoded media for a prompt with {len(prompt.media)}")
    blocks = {
        name: iter([medium for part, medium in zip(prompt.media, media, strict=True) if part.kind == kind])
        for kind, name in (("image", IMAGE_PAD), ("video", VIDEO_PAD))
    }
    numbered = {IMAGE_PAD: use_image_id, VIDEO_PAD: use_video_id}
    counts = {IMAGE_PAD: 0, VIDEO_PAD: 0}
    found: list[list[int]] = []
    for piece in prompt.pieces:
        found.append(ids := [])
        if not piece.is_control:
            ids += tokenizer.encode_plain(piece.text)
            continue
        pad = tokenizer.control_id(piece.text)
        if piece.text not in blocks:
            ids.append(pad)
            continue
        for place, unit in enumerate(units := next(blocks[piece.text])):
            if place and piece.text == IMAGE_PAD:
                ids += tokenizer.encode_plain("\n")
            # A video has one number for all of its frames.
            if numbered[piece.text] and (not place or piece.text == IMAGE_PAD):
                number = tokenizer.encode_plain(str(counts[piece.text] + place))
                ids += [tokenizer.control_id("<image_id>"), *number, tokenizer.control_id("</image_id>")]
            ids += _unit_ids(tokenizer, unit, pad)
        counts[piece.text] += len(units) if piece.text == IMAGE_PAD else 1
    return found


def _unit_ids(tokenizer: Tokenizer, unit: ImageViews, pad: int) -> Iterator[int]:
    """Yield the ids of overview and slices of one picture or frame.

    Every view's own tokens are counted: slices need not be equal.
    """
    rows, columns = unit.grid or (0, 0)
    if len(unit.views) != 1 + rows * columns:
        raise PromptError(f"{len(unit.views)} views for an overview and a grid of {rows} x {columns} slices")
    image_start, image_end = tokenizer.control_id("<image>"), tokenizer.control_id("</image>")
    slice_start, slice_end = tokenizer.control_id("<slice>"), tokenizer.control_id("</slice>")
    line_break = tokenizer.encode_plain("\n")
    overview, *slices = unit.views
    yield image_start
    yield from [pad] * overview.visual_tokens
    yield image_end
    for index, view in enumerate(slices):
        if index and index % columns == 0:
            yield from line_break
        yield slice_start
        yield from [pad] * view.visual_tokens
        yield slice_end
