"""What a thread may make of the media of its request: bytes that somebody counts, and visual tokens of its context.

A small body can name gigabytes: files to download, and pictures of one colour that are cut into thousands of slices.
What takes memory for them asks here first. A thread of which nobody said anything may take what it likes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pocketvlm.errors import PromptError

# Takes a number of bytes, or raises; its result gives them back. Both are called from any thread.
Hold = Callable[[int], Callable[[], None]]
_thread = threading.local()


@contextmanager
def held_by(hold: Hold | None) -> Iterator[None]:
    """Within the block, `hold` is asked for what this thread takes; at its end all is given back."""
    before, taken = getattr(_thread, "take", None), list[Callable[[], None]]()
    _thread.take = None if hold is None else lambda count: taken.append(hold(count))
    try:
        yield
    finally:
        _thread.take = before
        for give_back in taken:
            give_back()


def holder() -> Callable[[int], None]:
    """What asks for bytes on behalf of this thread, from any other as well; it raises what `hold` raises."""
    take: Callable[[int], None] | None = getattr(_thread, "take", None)
    return take if take is not None else lambda _count: None


@contextmanager
def within_context(tokens: int) -> Iterator[None]:
    """Within the block, the media of this thread are for a prompt that has fewer tokens than these."""
    before = getattr(_thread, "context", None)
    _thread.context = tokens
    try:
        yield
    finally:
        _thread.context = before


def check_context(tokens: int) -> None:
    """`PromptError` for media of so many visual tokens, where no prompt could hold them."""
    context: int | None = getattr(_thread, "context", None)
    if context is not None and tokens >= context:
        raise PromptError(
            f"the pictures and videos have {tokens} tokens, the model's context is {context}",
            hint="Use smaller or fewer pictures, a lower max_slice_nums or downsample_mode='16x'.",
        )
