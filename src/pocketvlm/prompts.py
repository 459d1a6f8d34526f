"""What the model is asked to read and to extract: words as data, with a version, which users may replace."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from pocketvlm.errors import ConfigError
from pocketvlm.json_text import is_text

NAMES = ("extract", "markdown", "text", "html")
MAX_BYTES = 64 * 1024
_FILE = resources.files("pocketvlm") / "assets" / "prompts.toml"


@dataclass(frozen=True)
class Prompts:
    """Attributes:
    version: counts up whenever one of ours changes: pages that were answered under another one are answered again.
    texts: each of `NAMES` → what is asked.
    """

    version: int
    texts: dict[str, str]

    def __getitem__(self, name: str) -> str:
        return self.texts[name]


@cache
def packaged() -> Prompts:
    """Those that come with the package."""
    return _parsed(_FILE.read_text(encoding="utf-8"), "prompts.toml")


def read_prompts(path: Path | None) -> Prompts:
    """Those of a TOML file of the same form, which may lack some: ours stand in for them. Without a file, ours.

    Raises:
        ConfigError: the file cannot be read, or holds something else.
    """
    if path is None:
        return packaged()
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ConfigError(f"the prompts {path} are over {MAX_BYTES} bytes")
        text = data.decode()
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        is_no_text = isinstance(error, UnicodeDecodeError)
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8" if is_no_text else "it is no path"
        raise ConfigError(f"the prompts {path} cannot be read: {reason}", hint="Check the path.") from None
    own = _parsed(text, str(path))
    return Prompts(own.version, {**packaged().texts, **own.texts})


def _parsed(text: str, name: str) -> Prompts:
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name} is no TOML: {error}", hint="See assets/prompts.toml of the package.") from None
    version = found.pop("version", 1)
    if not isinstance(version, int) or isinstance(version, bool):
        raise ConfigError(f"the version in {name} is {version!r:.40}, expected a whole number")
    for key, value in found.items():
        if key not in NAMES or not isinstance(value, str) or not value.strip() or not is_text(value):
            raise ConfigError(f"{name} holds {key!r:.40}, expected texts named {', '.join(NAMES)} and a version")
    return Prompts(version, {key: value.strip() for key, value in found.items()})
