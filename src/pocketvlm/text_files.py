"""Files of a model's directory that are text, read only where they are ordinary files; what else they are is said.

A file that is there but cannot be used is never taken for one that is missing: another, older file would hold in its
place and nobody would notice. Links are followed, to an ordinary file only: a pipe would be waited for without end.
"""

from __future__ import annotations

import codecs
import json
import stat
from pathlib import Path
from typing import Any

from pocketvlm.errors import ConfigError
from pocketvlm.files import KINDS

LFS_POINTER = b"version https://git-lfs"  # how the small file begins that Git has in the place of a large one
BYTE_ORDER_MARK = "\ufeff"
_AGAIN = "Download or copy it again."
_SAVE = "Save it as UTF-8 without a byte order mark."


def is_there(path: Path) -> bool:
    """Whether there is an ordinary file, or a link to one; False where nothing has that name.

    Raises:
        ConfigError: the name stands for something else, such as a directory, a pipe, or a link that leads nowhere.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:  # ValueError: a zero byte
        raise ConfigError(f"{path} cannot be read ({_reason(error)})", hint="Check its directory.") from None
    hint = f"Put the file itself there, or remove {path.name} if the model has none."
    try:
        mode = path.stat().st_mode
    except OSError as error:
        kind = "a link that leads nowhere" if isinstance(error, FileNotFoundError) else f"a link ({_reason(error)})"
        raise ConfigError(f"{path} is {kind}, expected a file", hint=hint) from None
    if not stat.S_ISREG(mode):
        raise ConfigError(f"{path} is {KINDS.get(stat.S_IFMT(mode), 'no file')}, expected a file", hint=hint)
    return True


def read_text(path: Path, kind: str = "text") -> str:
    """The content of a file in UTF-8, as it stands there.

    Args:
        path: the file.
        kind: what the message says that it is not.

    Raises:
        ConfigError: it is missing, no ordinary file, not readable, empty, in another encoding, or a Git LFS pointer.
    """
    if not is_there(path):
        raise ConfigError(f"{path} does not exist", hint="A checkpoint directory needs this file.")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} is not readable {kind} ({_reason(error)})", hint="Check its permissions.") from None
    if fault := fault_of(data):
        raise ConfigError(f"{path} is not readable {kind}: it {fault[0]}", hint=fault[1])
    return data.decode()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a configuration file; `ConfigError` names the file and the fault."""
    text = read_text(path, "JSON")
    if text.startswith(BYTE_ORDER_MARK):
        raise ConfigError(f"{path} is not readable JSON: it begins with a byte order mark", hint=_SAVE)
    try:
        value = json.loads(text)
    except RecursionError:
        raise ConfigError(f"{path} is not readable JSON: it is nested too deeply") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise ConfigError(f"{path} is not readable JSON ({where})", hint=_AGAIN) from None
    except ValueError:
        raise ConfigError(f"{path} is not readable JSON: it holds an integer of thousands of digits") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds a JSON {type(value).__name__}, expected an object")
    return value


def fault_of(data: bytes) -> tuple[str, str] | None:
    """(what is wrong with the content of a text file, what to do about it); None for text in UTF-8."""
    if data.startswith(LFS_POINTER):
        return "is a Git LFS pointer, not the file itself", "Run `git lfs pull` there."
    if not data.strip():
        return "is empty", _AGAIN
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in data[:4]:
        return "is UTF-16 or UTF-32, expected UTF-8", _SAVE
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return f"is not UTF-8 from byte {error.start} on", _AGAIN
    return None


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
