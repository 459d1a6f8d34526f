"""Which pages of a document are wanted: what stands behind the # of its name, `file.pdf#2-5` → numbers of pages.

Pages count from 1. `#3`, `#2-5`, `#1,4-6` and `#3-` (to the last one) choose pages, in the order given; so does
`#page=3`, as browsers write it. Documents are PDF and TIFF; any other picture has one page.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pocketvlm.errors import MediaError
from pocketvlm.processing.media.fetch import is_data_url, is_url
from pocketvlm.processing.media.file_roots import is_file_url
from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.processing.media.sources import NamedBytes
from pocketvlm.ranges import show
from pocketvlm.remote_files import RemoteFile, is_remote

MAX_CHOICE = 200  # characters behind the #
_RANGE = re.compile(r"([0-9]{1,9})(?:(-)([0-9]{1,9})?)?")
# What browsers take beside the page, of which no pixel depends (RFC 8118).
_OF_VIEWERS = frozenset(("zoom", "view", "viewrect", "pagemode", "toolbar", "navpanes", "scrollbar", "statusbar"))
_HINT = "Write them as in #2-5, #3 or #1,4-6; they count from 1."


@dataclass(frozen=True, slots=True)
class PageChoice:
    """Ranges of pages in the order they were asked for: (first, last), both included; None is the last page there is.

    Attributes:
        ranges: at least one.
    """

    ranges: tuple[tuple[int, int | None], ...]

    @classmethod
    def parse(cls, text: str) -> PageChoice:
        """Read what stands behind the #.

        Raises:
            MediaError: it names no pages.
        """
        wanted = _page_parameter(text) if "=" in text else text
        ranges = []
        for piece in wanted.split(","):
            match = _RANGE.fullmatch(piece.strip())
            if match is None:
                raise MediaError(f"{show(text, 40)} behind the # names no pages", hint=_HINT)
            first = int(match[1])
            last = first if match[2] is None else None if match[3] is None else int(match[3])
            if first < 1:
                raise MediaError(f"{show(text, 40)} asks for page {first}", hint="Pages count from 1.")
            if last is not None and last < first:
                raise MediaError(f"{show(text, 40)} runs backwards", hint=f"Write {last}-{first}.")
            ranges.append((first, last))
        return cls(tuple(ranges))

    def count(self, total: int, name: str) -> int:
        """How many pages are chosen of a document that has `total`.

        Raises:
            MediaError: the document, which errors call `name`, has no such page.
        """
        for first, last in self.ranges:
            if (last or first) > total:
                there = "one page" if total == 1 else f"{total} pages"
                raise MediaError(f"{name} has {there}, there is no page {last or first}", hint="Pages count from 1.")
        return sum((total if last is None else last) - first + 1 for first, last in self.ranges)

    def indices(self, total: int, name: str) -> list[int]:
        """The chosen pages, counted from 0; errors as `count`, which is to be asked first: a range may be long."""
        self.count(total, name)
        return [index for first, last in self.ranges for index in range(first - 1, total if last is None else last)]


def _page_parameter(text: str) -> str:
    """The value of `page=` among the parameters that a browser understands."""
    values = []
    for parameter in text.split("&"):
        key, _, value = parameter.partition("=")
        if key.lower() == "page" and "," not in value:
            values.append(value)
        elif key.lower() not in _OF_VIEWERS:
            raise MediaError(f"{show(text, 40)} behind the # names no pages", hint=_HINT)
    if len(values) != 1:
        raise MediaError(f"{show(text, 40)} behind the # names no one page", hint=_HINT)
    return values[0]


def split_pages(source: object, *, files: bool = True) -> tuple[object, str | None]:
    """A source without the # it ends in, and what stands behind it; None where there is none.

    A file whose own name holds a # is that file. What is no path may be anything: nothing is looked for where paths are
    not accepted.

    Args:
        files: False looks for no paths.
    """
    if isinstance(source, (NamedBytes, RemoteFile)):
        return source, source.pages
    if not isinstance(source, (str, Path)):
        return source, None
    text = str(source)
    place = text.rfind("#", max(0, len(text) - MAX_CHOICE - 1))
    if place < 0:
        return source, None
    bare, choice = text[:place], text[place + 1 :]
    if is_data_url(text):
        # Base64 has no #; in the other form it may be a byte of the picture.
        is_base64 = text[: text.find(",")].lower().endswith(";base64")
        return (bare, choice) if is_base64 else (source, None)
    if is_url(text) or is_file_url(text) or (files and is_remote(text)):
        return bare, choice
    if not files or _is_there(text) or not _is_there(bare):
        return source, None
    return type(source)(bare), choice


def file_named(text: str) -> str:
    """The path in what names a file or some of its pages."""
    bare, _ = split_pages(text)
    return str(bare)


def _is_there(text: str) -> bool:
    try:
        return os.path.lexists(text)
    except ValueError:  # a zero byte
        return False


class PageBudget:
    """How many pages all documents of a request may have together; safe from several threads.

    Args:
        limits: whose pictures of one request pages are.
        pictures: of the request, where each document counts as one.
    """

    def __init__(self, limits: MediaLimits, pictures: int = 1) -> None:
        self._most, self._left = limits.max_images, limits.max_images - pictures
        self._lock = threading.Lock()

    def take(self, pages: int, name: str) -> None:
        """Count in a document of so many pages.

        Raises:
            MediaError: they are too many; the message does not depend on which document came first.
        """
        hint = f"Choose some with #1-{self._most} behind its name."
        if pages > self._most:
            raise MediaError(
                f"{name} has {pages} pages, at most {self._most} pictures and pages are accepted in a request",
                hint=hint,
            )
        with self._lock:
            self._left -= pages - 1
            is_over = self._left < 0
        if is_over:
            raise TooManyPagesError(
                f"The request has more than {self._most} pictures and pages", hint="Choose pages with #1-3 or the like."
            )


class TooManyPagesError(MediaError):
    """All documents of a request have too many pages together, and none of them alone."""


def single(pages: Sequence[int], name: str) -> int:
    """The one page of several; `MediaError` where there is more than one to choose from."""
    if len(pages) != 1:
        raise MediaError(f"{name} has {len(pages)} pages, one is expected here", hint="Choose it with #1 behind it.")
    return pages[0]
