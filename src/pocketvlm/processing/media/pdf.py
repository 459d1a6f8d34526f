"""Pages of a PDF → uint8 RGB pixels, or their text, through PDFium (package pypdfium2).

A page is drawn as a printer would: turned as it says, with annotations and the fields of forms. Scripts in it are not
run, and nothing that it refers to is fetched.

PDFium is no safe program: the server, `batch`, `read` and `extract` draw pages in processes of their own
(`processing.media_workers`), unless the server was told to decode in threads, and look into documents in another one
(`document_opener`). `ask`, `chat` and the Python API draw the files of their own user in their process, as they do with
pictures and videos. PDFium has no threads either, so one lock holds all calls.
"""

from __future__ import annotations

import ctypes
import logging
import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pocketvlm.config import ImageConfig
from pocketvlm.errors import MediaError, MissingExtraError
from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.views import Size

POINTS = 72  # an inch
DEFAULT_DPI = 200
_FINE_DPI = 150  # of a scan: a coarser one is looked at for a mask
_MOST_LOOKED_AT, _LARGEST_LOOKED_AT = 16, 10_000_000  # such pictures of a page; pixels, one a point, as PDFium draws it
_MOST_OBJECTS = 10_000  # of a page, looked at to find out whether it is a scan
_PASSWORD, _SECURITY = 4, 5  # FPDF_ERR_…
_lock = threading.RLock()


@dataclass(frozen=True, slots=True)
class Resolution:
    """How many pixels a page gets.

    Attributes:
        dpi: dots per inch; None chooses: `DEFAULT_DPI`, or the pixels of the scan where a page is nothing else, and
            within the bounds below.
        least: pixels of a page that is small; fewer would not fill one view.
        most: pixels of a page; more than all slices hold are only thrown away.
    """

    dpi: int | None = None
    least: int = 448 * 448
    most: int = 9 * 448 * 448

    @classmethod
    def of(cls, config: ImageConfig, max_slice_nums: int | None = None, dpi: int | None = None) -> Resolution:
        """For pictures that are cut like this; `max_slice_nums` is `config`'s when None."""
        slices = (max_slice_nums or config.max_slice_nums) if config.slice_mode else 1
        view = config.scale_resolution**2
        return cls(dpi, view, slices * view)

    def size(self, height: float, width: float, scan: tuple[float, float] | None = None) -> Size:
        """Pixels of a page whose sides are given in points.

        Args:
            scan: pixels a point, down and across, of the scan that is all there is on the page.
        """
        if self.dpi is not None:
            scale = self.dpi / POINTS
            return Size(height=max(1, round(height * scale)), width=max(1, round(width * scale)))
        if scan is not None:
            height, width = height * scan[0], width * scan[1]
            scale = min(1.0, math.sqrt(self.most / (height * width)))
            return Size(height=max(1, round(height * scale)), width=max(1, round(width * scale)))
        scale = max(DEFAULT_DPI / POINTS, math.sqrt(self.least / (height * width)))
        scale = min(scale, math.sqrt(self.most / (height * width)))
        # Rounded down: one pixel too many and a page that fits one view would be cut into slices.
        return Size(height=max(1, int(height * scale)), width=max(1, int(width * scale)))


class PdfReader:
    """Pages of an open PDF, counted from 0.

    Args:
        file: seekable; stays open, and is the caller's to close.
        name: what errors call it.
        limits: what is refused.
        resolution: of the pages.

    Attributes:
        count: how many there are.

    Raises:
        MediaError: damaged, protected by a password, or without pages; or PDFium is not installed.
    """

    is_document = True

    def __init__(self, file: IO[bytes], name: str, limits: MediaLimits, resolution: Resolution) -> None:
        self._name, self._limits, self._resolution = name, limits, resolution
        try:
            self._pdfium = _load_pdfium()
        except MissingExtraError as error:
            raise MediaError(f"{name} is a PDF document, and {error}") from None
        with _lock:
            self._document = self._opened(file)
            try:
                with _silent():
                    self._document.init_forms()  # before the first page is loaded, or its fields are not drawn
                self.count = len(self._document)
            except Exception:
                self._document.close()
                raise self._damaged() from None
            if self.count < 1:
                self._document.close()
                raise MediaError(f"{name} has no pages", hint="Check that it opens elsewhere.")

    def close(self) -> None:
        with _lock:
            self._document.close()

    def size(self, index: int) -> Size:
        """Pixels of a page, as `read` draws it."""
        with _lock, self._page(index) as page:
            return self._size(page, index)

    def read(self, index: int) -> NDArray[np.uint8]:
        """uint8 RGB [H, W, 3] of a page.

        Raises:
            MediaError: the page is damaged, or over a limit.
        """
        with _lock, self._page(index) as page:
            size = self._size(page, index)
            try:
                return self._drawn(page, size)
            except Exception:
                raise self._damaged(index) from None

    def text(self, index: int) -> str:
        """The text layer of a page, in the order of the file; "" of a page that is a picture only."""
        with _lock, self._page(index) as page:
            try:
                with closing(page.get_textpage()) as text:
                    found: str = text.get_text_range()
            except Exception:
                raise self._damaged(index) from None
        return found.replace("\r\n", "\n").replace("\r", "\n").replace("\x00", "")

    @contextmanager
    def _page(self, index: int) -> Iterator[Any]:
        try:
            page = self._document.get_page(index)
        except Exception:
            raise self._damaged(index) from None
        try:
            yield page
        finally:
            page.close()

    def _size(self, page: Any, index: int) -> Size:
        width, height = page.get_size()
        where = f"page {index + 1} of {self._name}"
        if not (0 < width < math.inf and 0 < height < math.inf):
            raise MediaError(f"{where} is {width:g} x {height:g} points, which is no size", hint="Save the file anew.")
        try:
            scan = self._scan_of(page) if self._resolution.dpi is None else None
        except Exception:  # of what the page holds: drawing it comes to its own end
            scan = None
        size = self._resolution.size(height, width, scan)
        if size.area > self._limits.max_pixels:
            raise MediaError(
                f"{where} is {width:g} x {height:g} points, more than {self._limits.max_pixels} pixels",
                hint="Lower page_dpi." if self._resolution.dpi is not None else "Save it in another size.",
            )
        return size

    def _scan_of(self, page: Any) -> tuple[float, float] | None:
        """Pixels a point, down and across, of the picture on a page that holds nothing else one could see.

        A scan may have its text with it, which nobody sees, or lie there in strips.
        """
        raw = self._pdfium.raw
        count = raw.FPDFPage_CountObjects(page)
        if not 0 < count <= _MOST_OBJECTS or raw.FPDFPage_GetAnnotCount(page) > 0:
            return None
        found: list[tuple[float, float]] = []
        coarse = 0
        for number in range(count):
            thing = raw.FPDFPage_GetObject(page, number)
            kind = raw.FPDFPageObj_GetType(thing)
            if kind == raw.FPDF_PAGEOBJ_IMAGE:
                image = self._pdfium.PdfObject(thing, page=page, pdf=self._document)
                a, b, c, d, _, _ = image.get_matrix().get()
                width, height = image.get_px_size()
                across, down = width / math.hypot(a, b), height / math.hypot(c, d)
                if min(across, down) * POINTS < _FINE_DPI:
                    coarse += 1
                    is_large = math.hypot(a, b) * math.hypot(c, d) > _LARGEST_LOOKED_AT
                    if coarse > _MOST_LOOKED_AT or is_large or self._is_masked(page, thing):
                        return None
                is_turned = (abs(b) > abs(a)) != (page.get_rotation() % 180 == 90)
                found.append((across, down) if is_turned else (down, across))
            elif kind != raw.FPDF_PAGEOBJ_TEXT or (
                raw.FPDFTextObj_GetTextRenderMode(thing) != raw.FPDF_TEXTRENDERMODE_INVISIBLE
            ):
                return None
        if not found:
            return None
        # Sides that differ by the rounding of points: each picture keeps its own pixels. Else the page keeps its shape.
        if len(set(found)) == 1 and 0.98 < found[0][0] / found[0][1] < 1.02:
            return found[0]
        finest = max(map(max, found))
        return finest, finest

    def _is_masked(self, page: Any, thing: Any) -> bool:
        """Whether a picture has a mask, which may have the fine print where the picture itself has only colours: PDFium
        tells of it by what it draws."""
        bitmap = self._pdfium.raw.FPDFImageObj_GetRenderedBitmap(self._document, page, thing)
        if not bitmap:
            return False
        with closing(self._pdfium.PdfBitmap.from_raw(bitmap)) as drawn:
            drawn.warn_on_close = False  # nothing is kept of its pixels
            pixels = drawn.to_numpy()
            return pixels.ndim == 3 and pixels.shape[2] == 4 and bool((pixels[..., 3] < 255).any())

    def _drawn(self, page: Any, size: Size) -> NDArray[np.uint8]:
        raw = self._pdfium.raw
        bitmap = self._pdfium.PdfBitmap.new_native(size.width, size.height, raw.FPDFBitmap_BGR, rev_byteorder=True)
        with closing(bitmap):
            bitmap.fill_rect((255, 255, 255, 255), 0, 0, size.width, size.height)
            # Not by `PdfPage.render`, which rounds sides up: a scan in its own pixels would be scaled by a thousandth.
            whole = (bitmap, page, 0, 0, size.width, size.height, 0, raw.FPDF_ANNOT | raw.FPDF_REVERSE_BYTE_ORDER)
            raw.FPDF_RenderPageBitmap(*whole)
            if self._document.formenv is not None:
                raw.FPDF_FFLDraw(self._document.formenv, *whole)
            return np.array(bitmap.to_numpy(), np.uint8)

    def _opened(self, file: IO[bytes]) -> Any:
        """The document, of which PDFium reads what it needs."""
        raw = self._pdfium.raw

        def read(_: object, place: int, buffer: Any, size: int) -> int:
            try:
                file.seek(place)
                block = file.read(size)
            except (OSError, ValueError):
                return 0
            ctypes.memmove(buffer, block, len(block))
            return int(len(block) == size)

        access = raw.FPDF_FILEACCESS()
        access.m_FileLen = file.seek(0, 2)
        access.m_GetBlock = self._block = type(access.m_GetBlock)(read)  # kept, as PDFium calls it later
        self._access = access
        handle = raw.FPDF_LoadCustomDocument(access, None)
        if not handle:
            raise self._unreadable(raw.FPDF_GetLastError())
        return self._pdfium.PdfDocument(handle)

    def _unreadable(self, code: int) -> MediaError:
        if code == _PASSWORD:
            hint = "Save it without, for example with `qpdf --decrypt --password=… a.pdf b.pdf`."
            return MediaError(f"{self._name} is protected by a password", hint=hint)
        if code == _SECURITY:
            hint = "Save it without, in the program that made it."
            return MediaError(f"{self._name} is protected in a way that is not known here", hint=hint)
        return self._damaged()

    def _damaged(self, index: int | None = None) -> MediaError:
        what = self._name if index is None else f"page {index + 1} of {self._name}"
        return MediaError(f"{what} is damaged or cut off", hint="Check that it opens elsewhere, or save it anew.")


def page_text(data: bytes, page: int, limits: MediaLimits | None = None) -> str:
    """The text layer of a page of a PDF, "" where it has none: a scan.

    It is in the order of the file, which need not be that of reading, and holds what nobody may see. The text of
    annotations and fields is not in it.

    Args:
        data: the bytes of the file, of any length.
        page: counted from 1.

    Raises:
        MediaError: as `PdfReader`; there is no such page.
    """
    return page_texts(data, (page,), limits)[0]


def page_texts(data: bytes, pages: Sequence[int], limits: MediaLimits | None = None) -> list[str]:
    """`page_text` of several pages."""
    name = getattr(data, "name", "The given data")
    with closing(PdfReader(BytesIO(data), name, limits or MediaLimits(), Resolution())) as reader:
        for page in pages:
            if not 1 <= page <= reader.count:
                message = f"{name} has {reader.count} pages, there is no page {page}"
                raise MediaError(message, hint="Pages count from 1.")
        return [reader.text(page - 1) for page in pages]


def _load_pdfium() -> Any:
    """The package with its raw calls, loaded when the first PDF comes."""
    try:
        with _lock:
            import pypdfium2
            import pypdfium2.raw
    except ImportError:
        raise MissingExtraError("pypdfium2", "documents") from None
    return pypdfium2


@contextmanager
def _silent() -> Iterator[None]:
    """Without what the package logs about forms that it does not know (XFA): their plain twin is drawn, or a notice."""
    logger = logging.getLogger("pypdfium2._helpers.document")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
