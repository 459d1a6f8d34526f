"""Pages by index, from whatever a user calls a picture or a document: PDF, TIFF, or a picture, which is one page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import IO, Protocol

import numpy as np
from numpy.typing import NDArray

from pocketvlm.errors import MediaError
from pocketvlm.processing.media.fetch import is_url
from pocketvlm.processing.media.heif import HeifReader
from pocketvlm.processing.media.kinds import HEAD_BYTES, is_heic, is_pdf, is_tiff
from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.processing.media.pages import PageBudget, PageChoice, single, split_pages
from pocketvlm.processing.media.pdf import PdfReader, Resolution
from pocketvlm.processing.media.picture_file import PictureReader
from pocketvlm.processing.media.sources import NamedBytes, describe, open_source
from pocketvlm.processing.media.tiff import TiffReader
from pocketvlm.views import Size


class PageReader(Protocol):
    """Pages by index, 0 <= index < count."""

    count: int
    is_document: bool

    def size(self, index: int, /) -> Size:
        """Height and width in pixels, as `read` gives them."""

    def read(self, index: int, /) -> NDArray[np.uint8]:
        """uint8 RGB [H, W, 3]; may be read-only."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Pages:
    """The pages that are wanted of an open source.

    Attributes:
        indices: of these, in the order wanted, counted from 0.
        name: what errors call the source.
    """

    reader: PageReader
    indices: Sequence[int]
    name: str

    @property
    def only(self) -> int:
        """The index of the page where one is expected."""
        return single(self.indices, self.name)


@contextmanager
def open_pages(
    source: object,
    limits: MediaLimits,
    files: bool,
    resolution: Resolution,
    budget: PageBudget | None = None,
    *,
    most: int | None = None,
) -> Iterator[Pages]:
    """The pages of a path, bytes, a data: or http(s) URL, each of which may end in a choice of pages.

    Args:
        limits: what is refused.
        files: False refuses paths, for callers whose sources come from strangers.
        resolution: of pages that have no pixels of their own.
        budget: of the whole request; without it this is the only source.
        most: pages that are taken from the beginning of a document of which none were chosen; None takes all.

    Raises:
        MediaError: the source is missing, neither picture nor document, damaged or protected; it has no such page, or
            too many.
    """
    bare, choice = split_pages(source, files=files)
    name = describe(bare)
    with (
        open_source(bare, name, limits, files, "a picture", "a PIL image, an array or a tensor") as stream,
        closing(_open_stream(stream, name, limits, resolution)) as reader,
    ):
        chosen = None if choice is None else _chosen(choice, reader, bare)
        first = reader.count if most is None else min(most, reader.count)
        count = first if chosen is None else chosen.count(reader.count, name)
        (budget or PageBudget(limits)).take(count, name)
        yield Pages(reader, range(count) if chosen is None else chosen.indices(reader.count, name), name)


def _open_stream(stream: IO[bytes], name: str, limits: MediaLimits, resolution: Resolution) -> PageReader:
    head = stream.read(HEAD_BYTES)
    stream.seek(0)
    if is_pdf(head):
        return PdfReader(stream, name, limits, resolution)
    if is_tiff(head):
        return TiffReader(stream, name, limits)
    if is_heic(head):
        return HeifReader(stream, name, limits)
    return PictureReader(stream, name, limits)


def _chosen(choice: str, reader: PageReader, source: object) -> PageChoice | None:
    try:
        return PageChoice.parse(choice)
    except MediaError:
        # What stands behind the # of an address may have nothing to do with pages. What came from one has its name.
        address = source.name if isinstance(source, NamedBytes) else source
        if not reader.is_document and isinstance(address, str) and is_url(address):
            return None
        raise
