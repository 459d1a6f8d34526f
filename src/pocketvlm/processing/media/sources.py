"""Where bytes come from: a file, bytes at hand, a data: or http(s) URL; and what to call each in a message."""

from __future__ import annotations

import base64
import binascii
import io
import stat
from pathlib import Path
from typing import IO, Self

import numpy as np

from pocketvlm.errors import ConfigError, MediaError
from pocketvlm.processing.media.fetch import fetch, is_data_url, is_url
from pocketvlm.processing.media.file_roots import is_file_url, open_file_url
from pocketvlm.processing.media.kinds import is_base64
from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.remote_files import is_remote, read_remote

_PIECE = 2**18  # bytes that are decoded at a time: more would leave the caches and take memory
# Byte → its value as a hexadecimal digit; 255 where it is none.
_DIGITS = b"0123456789abcdefABCDEF"
_HEX = bytes(int(chr(byte), 16) if byte in _DIGITS else 255 for byte in range(256))


class NamedBytes(bytes):
    """Bytes that errors call by a name: where they came from.

    Attributes:
        name: for people.
        pages: what stood behind the # of that place, see `processing.media.pages`.
    """

    name: str
    pages: str | None

    def __new__(cls, body: bytes, name: str = "The given data", pages: str | None = None) -> Self:
        self = super().__new__(cls, body)
        self.name, self.pages = name, pages
        return self

    def __reduce__(self) -> tuple[type[Self], tuple[bytes, str, str | None]]:
        return type(self), (bytes(self), self.name, self.pages)


class FileBytes(NamedBytes):
    """The content of a file that the user himself named, which may be larger than the body of a request."""


def open_source(source: object, name: str, limits: MediaLimits, files: bool, what: str, others: str) -> IO[bytes]:
    """A stream of a path, bytes, a data: or http(s) URL.

    Args:
        files: False refuses paths, for callers whose sources come from strangers.
        what, others: for messages: what is expected in it, and what else the caller takes.

    Raises:
        MediaError: it is none of these, is missing, may not be read, or is over a limit.
    """
    if isinstance(source, bytes) or (isinstance(source, str) and (is_url(source) or is_data_url(source))):
        return io.BytesIO(read_bytes(source, limits))
    if not isinstance(source, (str, Path)):
        raise MediaError(
            f"Expected {what}, got {type(source).__name__}",
            hint=f"Give a path, bytes, a data: or http(s) URL, {others}.",
        )
    text = str(source)  # the command line makes a path of everything that is no URL
    if is_data_url(text[:64].lstrip()):
        raise MediaError("The data: URL has white space in front", hint="Take it away.")
    if is_base64(text[:64]):
        raise MediaError(f"Expected {what}, got bare base64", hint="Put data:image/png;base64, in front of it.")
    if limits.file_roots and is_file_url(text):
        return open_file_url(text, limits)
    if not files:
        raise MediaError("Expected a data: or http(s) URL, got something else", hint="Paths are not accepted here.")
    if not text:
        raise MediaError("The path is empty", hint=f"Give the path of {what}.")
    if is_file_url(text):
        raise MediaError(f"{name} is a file: URL", hint="Give the path alone, without file:// in front.")
    if is_remote(text):
        return io.BytesIO(_read_remote(text, name))
    try:
        return existing_file(source, name).open("rb")
    except OSError:
        raise MediaError(f"{name} may not be read", hint="Check its permissions.") from None


def is_path(text: str) -> bool:
    """Whether a source is looked for in a folder: neither a URL of any kind nor base64, which is named as such."""
    return not (is_url(text) or is_data_url(text) or is_file_url(text) or is_remote(text) or is_base64(text[:64]))


def read_bytes(source: str | bytes, limits: MediaLimits) -> bytes:
    """The body of bytes, a data: URL or an http(s) URL, within `limits.max_bytes`.

    Raises:
        MediaError: as `fetch`; or a data: URL that is malformed.
    """
    name = describe(source)
    if isinstance(source, bytes):
        body = source
    elif is_url(source):
        return fetch(source, limits)
    else:
        body = _read_data_url(source, name, limits)
    if not isinstance(source, FileBytes):
        limits.check_bytes(len(body), name)
    if not body:
        raise MediaError(f"{name} is empty", hint="Check what it was made from.")
    return body


def describe(source: object) -> str:
    """A short name of a source for messages; never its content."""
    if isinstance(source, NamedBytes):
        return source.name
    if isinstance(source, bytes):
        return "The given data"
    text = str(source)
    if is_data_url(text):
        return "The data: URL"
    if is_url(text):
        text = text.partition("?")[0]
    text = "".join(map(_shown, text))
    return text if len(text) <= 120 else text[:117] + "..."


def _shown(character: str) -> str:
    """A character of a name: bytes that are no UTF-8, which Python keeps as halves of surrogate pairs, are escaped."""
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character if character.isprintable() else "?"


def existing_file(source: str | Path, name: str) -> Path:
    """The path of a regular, non-empty file; `MediaError` says what it is instead."""
    try:
        path = Path(source)
        status = path.stat()
    except FileNotFoundError:
        raise MediaError(f"{name} does not exist", hint="Check the path.") from None
    except PermissionError:
        raise MediaError(f"{name} may not be read", hint="Check its permissions.") from None
    except (OSError, ValueError):
        raise MediaError(f"{name} is no path to a file", hint="Check the path.") from None
    if stat.S_ISDIR(status.st_mode):
        raise MediaError(f"{name} is a directory, expected a file", hint="Give the path of one file.")
    if not stat.S_ISREG(status.st_mode):
        raise MediaError(f"{name} is a device or a pipe, expected a file", hint="Give the path of one file.")
    if status.st_size == 0:
        raise MediaError(f"{name} is empty", hint="Check how it was written.")
    return path


def _read_remote(url: str, name: str) -> bytes:
    """As large as `remote_files.MAX_BYTES`: like files here, these are named by the user himself."""
    try:
        body = read_remote(url)
    except ConfigError as error:
        raise MediaError(str(error)) from None
    if not body:
        raise MediaError(f"{name} is empty", hint="Check how it was written.")
    return body


def _read_data_url(url: str, name: str, limits: MediaLimits) -> bytes:
    header, comma, payload = url.partition(",")
    if not is_data_url(header) or not comma:
        raise MediaError(f"{name} is malformed", hint="Expected data:image/png;base64,... ")
    # Three characters a byte is the longest honest encoding (percent), with room for line ends in base64.
    limits.check_bytes(len(payload) // 3, name)
    try:
        encoded = payload.encode()
    except UnicodeEncodeError:
        raise MediaError(f"{name} is malformed", hint="Expected data:image/png;base64,... ") from None
    if not header.lower().endswith(";base64"):
        limits.check_bytes(len(encoded) - 2 * encoded.count(b"%"), name)
        return percent_decoded(encoded)
    compact = percent_decoded(encoded).translate(None, b" \t\n\r\v\f")
    limits.check_bytes(len(compact) * 3 // 4 - compact[-2:].count(b"="), name)
    try:
        return base64.b64decode(compact, validate=True)
    except (binascii.Error, ValueError):
        raise MediaError(f"{name} is not valid base64", hint="Expected data:image/png;base64,...") from None


def percent_decoded(encoded: bytes) -> bytes:
    """`urllib.parse.unquote_to_bytes`, many times as fast where much is escaped; what is malformed stays as it is."""
    if b"%" not in encoded:
        return encoded
    pieces, start = [], 0
    while start < len(encoded):
        end = min(start + _PIECE, len(encoded))
        if end < len(encoded) and (sign := encoded.rfind(b"%", end - 2, end)) >= 0:
            end = sign  # an escape stays in one piece
        pieces.append(_piece_decoded(encoded[start:end]))
        start = end
    return b"".join(pieces)


def _piece_decoded(encoded: bytes) -> bytes:
    codes = np.frombuffer(encoded, np.uint8)
    values = np.frombuffer((encoded + b"  ").translate(_HEX), np.uint8)
    high, low = values[1:-1], values[2:]
    escaped = (codes == ord("%")) & (high < 16) & (low < 16)
    decoded = np.where(escaped, high << 4 | low, codes)
    # No escape begins within another: a sign of percent is no digit.
    is_kept = np.ones(len(encoded), np.bool_)
    is_kept[1:] &= ~escaped[:-1]
    is_kept[2:] &= ~escaped[:-2]
    return decoded[is_kept].tobytes()
