"""What files of records have in common: bytes and text out of them, within limits, in one line where that fails."""

from __future__ import annotations

import stat
from pathlib import Path

from pocketvlm.errors import ConfigError, PromptError
from pocketvlm.files import KINDS
from pocketvlm.json_text import is_text

MAX_RECORD = 512 * 2**20  # bytes: sixteen pictures of the largest size in base64 are less


def read_head(path: Path) -> bytes:
    """The first 4 KiB of an ordinary file that is not empty; `ConfigError` says what it is instead."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            kind = KINDS.get(stat.S_IFMT(mode), "no file")
            raise ConfigError(f"{path} is {kind}, expected a file", hint="Save the samples to a file first.")
        with path.open("rb") as file:
            head = file.read(4096)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist", hint="Check the path.") from None
    except (OSError, ValueError) as error:  # a path with a zero byte is a ValueError, and so is a `ConfigError`
        if isinstance(error, ConfigError):
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{str(path)!r:.200} cannot be read: {reason}", hint="Check its permissions.") from None
    if not head.strip():
        raise ConfigError(f"{path} is empty", hint="Write one sample a line.")
    return head


def read_span(path: Path, begin: int, end: int) -> bytes:
    """Bytes `begin` to `end` of a file."""
    if end - begin > MAX_RECORD:
        raise PromptError(f"it is {end - begin} bytes long, at most {MAX_RECORD} are read", hint="Give paths of media.")
    try:
        with path.open("rb") as file:
            file.seek(begin)
            data = file.read(end - begin)
    except OSError as error:
        raise PromptError(f"the file cannot be read any more ({error.strerror})") from None
    if len(data) != end - begin:
        raise PromptError("the file is shorter than when it was opened", hint="Leave it as it is during a run.")
    return data


def decode(data: bytes) -> str:
    """UTF-8 → text; `PromptError` where it is none."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise PromptError(f"it is not UTF-8 at byte {error.start + 1}", hint="Save the file as UTF-8.") from None


def check_text(value: str, what: str) -> str:
    """`value`, which may hold no control character but those of plain text, and no half of a character."""
    if not is_text(value):
        raise PromptError(f"{what} holds half of a surrogate pair, which is no character")
    if not value.isprintable():
        for character in value:
            if character < " " and character not in "\t\n\r\f":
                raise PromptError(f"{what} holds the control character U+{ord(character):04X}", hint="Take it away.")
    return value
