"""Whatever a user calls a picture → uint8 RGB pixels [H, W, 3], or one clear `MediaError`.

Files, bytes, data: and http(s) URLs are decoded by Pillow, which is shown JPEG, PNG, WebP, GIF and AVIF only.
Orientation from EXIF is applied; of an animation the first frame counts.

Two stated differences from the reference:
- Transparency is laid over white, always. The reference does so for PIL images but drops it for paths and URLs, which
  uncovers whatever colour lies under it.
- 16-bit grey keeps its high byte, as it does for 16-bit colour; the reference clips it to white at 256.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias, TypeGuard
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, features

from pocketvlm.errors import MediaError
from pocketvlm.files import whole_file
from pocketvlm.processing.media.fetch import is_data_url, is_url
from pocketvlm.processing.media.kinds import HEAD_BYTES, is_avif, is_picture, is_video_content, kind_of
from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.processing.media.repair import PNG_MAGIC, with_last_marker, without_metadata
from pocketvlm.processing.media.rgb import rgb_from_array, rgb_from_pil
from pocketvlm.processing.media.sources import describe, open_source
from pocketvlm.views import Size

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ImageSource", "MediaLimits", "draw_grid", "is_video", "load_image", "probe_size"]

ImageSource: TypeAlias = "str | Path | bytes | Image.Image | NDArray[np.generic] | Tensor"

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
_DEFAULT = MediaLimits()
_ORIENTATION = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_VIDEO_SUFFIXES = frozenset(
    ".mp4 .m4v .mov .mkv .webm .avi .mpg .mpeg .vob .ts .mts .m2ts .flv .ogv .3gp .wmv".split()  # noqa: SIM905
)
# `warnings.catch_warnings` changes global state, so only one thread at a time may be inside. Only headers are read
# there: decoding, which takes the time, stays parallel.
_quiet_lock = threading.Lock()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Pillow's warnings (bombs, odd metadata): a picture is either refused by our limits or read."""
    with _quiet_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def load_image(source: ImageSource, limits: MediaLimits = _DEFAULT, *, files: bool = True) -> NDArray[np.uint8]:
    """Read one picture.

    Args:
        source: a path; the bytes of a file; a data: or http(s) URL; a PIL image of any mode; or pixels as array or
            tensor: [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] (RGBA), also channels first where only that is possible,
            of uint8, bool, uint16 (its high byte is kept) or floats from 0 to 1.
        limits: what is refused.
        files: False refuses paths, for callers whose sources come from strangers.

    Returns:
        uint8 RGB [H, W, 3]; may be read-only.

    Raises:
        MediaError: the source is missing, no picture, damaged, of another layout, or over a limit.
    """
    if _is_pixels(source):
        return rgb_from_array(_as_array(source), limits)
    if isinstance(source, Image.Image):
        return _decode(source, limits, "The PIL image")
    name = describe(source)
    with _open_source(source, name, limits, files) as stream:
        try:
            with _open(stream, name, limits) as image:
                return _decode(image, limits, name)
        except _DamagedError:
            with _open(_repaired(stream, name, limits), name, limits) as image:
                return _decode(image, limits, name)


def probe_size(source: ImageSource, limits: MediaLimits = _DEFAULT, *, files: bool = True) -> Size:
    """Height and width in pixels, as `load_image` would return them, from the header alone.

    Raises:
        MediaError: as `load_image`, except for damage behind the header.
    """
    if _is_pixels(source):
        height, width, _ = load_image(source, limits).shape
        return Size(height=height, width=width)
    if isinstance(source, Image.Image):
        return _upright_size(source, _orientation(source))
    name = describe(source)
    with _open_source(source, name, limits, files) as stream:
        try:
            with _open(stream, name, limits) as image:
                return _upright_size(image, _orientation(image))
        except _DamagedError:
            with _open(_repaired(stream, name, limits), name, limits) as image:
                return _upright_size(image, _orientation(image))


def draw_grid(
    source: ImageSource,
    grid: tuple[int, int] | None,
    out: str | Path,
    limits: MediaLimits = _DEFAULT,
    *,
    fine: Sequence[bool] = (),
) -> None:
    """Write the picture to a PNG with the borders of its slices drawn over it.

    Args:
        source: as for `load_image`.
        grid: (rows, columns); None draws nothing but the frame.
        out: the file to write; an ordinary file of that name is replaced.
        fine: which slices, row by row, are at 4x while others are not: their borders are green and wider.

    Raises:
        MediaError: as `load_image`.
        ConfigError, OutputError: `out` cannot be written.
    """
    image = Image.fromarray(load_image(source, limits))
    rows, columns = grid or (1, 1)
    thickness = max(1, min(image.size) // 200)
    draw = ImageDraw.Draw(image)
    # Those at 4x last, so that no neighbour draws over their borders.
    for number in sorted(range(rows * columns), key=lambda n: n < len(fine) and fine[n]):
        row, column = divmod(number, columns)
        left, top = column * image.width // columns, row * image.height // rows
        right, bottom = (column + 1) * image.width // columns - 1, (row + 1) * image.height // rows - 1
        is_fine = number < len(fine) and fine[number]
        # A slice narrower than one pixel has no border to draw.
        draw.rectangle(
            (left, top, max(left, right), max(top, bottom)),
            outline=(0, 150, 60) if is_fine else (230, 0, 90),
            width=2 * thickness if is_fine else thickness,
        )
    with whole_file(Path(out)) as file:
        image.save(file, "PNG")


def is_video(source: object) -> bool:
    """True if the source is a video by its content or, where that is not at hand or says nothing, by its extension.

    Fetches nothing: of a URL only the path is looked at. Never raises: what cannot be read is left to the reader.
    """
    if isinstance(source, bytes):
        return is_video_content(source[:HEAD_BYTES])
    if not isinstance(source, (str, Path)):
        return False
    text = str(source)
    if is_data_url(text):
        return text[:11].lower() == "data:video/"
    if is_url(text):
        try:
            return Path(urlsplit(text).path).suffix.lower() in _VIDEO_SUFFIXES
        except ValueError:
            return False
    try:
        path = Path(text)
        if path.is_file():
            with path.open("rb") as file:
                head = file.read(HEAD_BYTES)
            if is_picture(head) or is_video_content(head):
                return is_video_content(head)
    except (OSError, ValueError):
        pass
    return Path(text).suffix.lower() in _VIDEO_SUFFIXES


def _is_pixels(source: object) -> TypeGuard[NDArray[np.generic] | Tensor]:
    return isinstance(source, np.ndarray) or _is_tensor(source)


def _is_tensor(source: object) -> TypeGuard[Tensor]:
    """A tensor is only there if torch is: it is not imported for this question, which would take seconds."""
    torch: Any = sys.modules.get("torch")
    return torch is not None and isinstance(source, torch.Tensor)


def _as_array(source: NDArray[np.generic] | Tensor) -> NDArray[np.generic]:
    if isinstance(source, np.ndarray):
        return source
    if source.is_complex() or str(source.layout) != "torch.strided":
        raise MediaError("Expected a dense real tensor of pixels", hint="Convert to uint8.")
    # numpy has no bfloat16.
    return (source.float() if source.is_floating_point() else source).detach().cpu().numpy()


def _open_source(source: object, name: str, limits: MediaLimits, files: bool) -> IO[bytes]:
    return open_source(source, name, limits, files, "a picture", "a PIL image, an array or a tensor")


def _open(stream: IO[bytes], name: str, limits: MediaLimits) -> Image.Image:
    """Open a picture with its header read and its size checked; nothing is decoded yet."""
    head = stream.read(HEAD_BYTES)
    stream.seek(0)
    formats: tuple[str, ...] = FORMATS
    if is_avif(head):
        if not features.check("avif"):
            raise MediaError(f"{name} is an AVIF picture", hint="Install pillow>=11.3 to read it, or convert it.")
        formats = ("AVIF",)
    try:
        with _quiet():
            image = Image.open(stream, formats=formats)
    except Image.DecompressionBombError:
        raise _too_large(name, limits) from None
    except Exception:
        # Pillow's plugins raise nearly every kind of exception on hostile headers.
        if is_video_content(head):
            raise MediaError(f"{name} is a video, expected a picture", hint="Pass it as a video.") from None
        if is_picture(head):
            raise _damaged(name) from None
        kind = kind_of(head)
        if kind is not None:
            raise kind.refused(name) from None
        raise MediaError(f"{name} is not a JPEG, PNG, WebP, GIF or AVIF picture", hint="Convert it to one.") from None
    limits.check_pixels(image.height, image.width, name)
    return image


class _DamagedError(MediaError):
    """A file that looks like a picture and that Pillow refuses; it may be possible to repair."""


def _too_large(name: str, limits: MediaLimits) -> MediaError:
    return MediaError(f"{name} has more than {limits.max_pixels} pixels", hint="Scale it down first.")


def _damaged(name: str) -> _DamagedError:
    return _DamagedError(f"{name} is damaged or cut off", hint="Check that it opens elsewhere, or save it anew.")


def _repaired(stream: IO[bytes], name: str, limits: MediaLimits) -> IO[bytes]:
    """The same picture as far as its pixels are whole; `MediaError` if they are not, or if there are too many."""
    stream.seek(0)
    head = stream.read(HEAD_BYTES)
    repaired = None
    if head.startswith(PNG_MAGIC):
        repaired = without_metadata(stream)
    elif head.startswith(b"\xff\xd8"):
        try:
            with _quiet():
                repaired = with_last_marker(stream, name, limits)
        except Image.DecompressionBombError:
            raise _too_large(name, limits) from None
        except MediaError:
            raise
        except Exception:  # as above
            repaired = None
    if repaired is None:
        raise _damaged(name)
    return BytesIO(repaired)


def _decode(image: Image.Image, limits: MediaLimits, name: str) -> NDArray[np.uint8]:
    limits.check_pixels(image.height, image.width, name)
    try:
        image.load()
        orientation = _orientation(image)
        rgb = rgb_from_pil(image)
        if orientation in _TRANSPOSE:
            rgb = rgb.transpose(_TRANSPOSE[orientation])
        # A view of Pillow's export: a writeable copy would take as long as decoding.
        return np.asarray(rgb)
    except MediaError:
        raise
    except Exception:
        # Decoders raise nearly every kind of exception on damaged files, and their texts are not for users.
        raise _damaged(name) from None


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1 to 8; 1 where there is none or it cannot be read."""
    try:
        with _quiet():
            value = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        # Broken metadata makes no picture unreadable.
        return 1
    return value if isinstance(value, int) and value in _TRANSPOSE else 1


def _upright_size(image: Image.Image, orientation: int) -> Size:
    if orientation >= 5:
        return Size(height=image.width, width=image.height)
    return Size(height=image.height, width=image.width)
