"""Every setting of the server: of an option, a `POCKETVLM_…` variable or a TOML file, in this order, or its default."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from pocketvlm.errors import ConfigError
from pocketvlm.ranges import Range, show

PREFIX = "POCKETVLM_"
SECONDS = Range(float, 0.1, 86400.0)


def _setting(default: Any, text: str, allowed: Range | None = None) -> Any:
    return field(default=default, metadata={"help": text, "range": allowed})


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """What a server allows. The defaults suit one machine whose users do not know each other."""

    host: str = _setting("127.0.0.1", "address to listen on; 0.0.0.0 is every one")
    port: int = _setting(8000, "port to listen on; 0 takes a free one", Range(int, 0, 65535))
    api_keys: tuple[str, ...] = _setting(
        (), "keys of clients, `Authorization: Bearer KEY`; without any, none is asked for"
    )
    served_model_names: tuple[str, ...] = _setting((), "names that requests may give for the model")
    max_in_flight: int = _setting(256, "requests running and waiting; one more gets 429", Range(int, 1, 100_000))
    max_body_bytes: int = _setting(64 * 2**20, "largest body of a request", Range(int, 1024, 2**31))
    max_json_depth: int = _setting(64, "most brackets in brackets of a body", Range(int, 8, 500))
    max_answer_tokens: int = _setting(32768, "most tokens of an answer", Range(int, 1, 10**6))
    max_n: int = _setting(8, "most answers to one request", Range(int, 1, 128))
    upload_seconds: float = _setting(60.0, "for the whole body of a request to arrive", SECONDS)
    send_seconds: float = _setting(30.0, "that a client may take to read a piece of a stream", SECONDS)
    request_seconds: float = _setting(600.0, "from arrival to the end of an answer", SECONDS)
    drain_seconds: float = _setting(30.0, "for running answers to end, once asked to stop", SECONDS)
    cors_origins: tuple[str, ...] = _setting((), "origins whose pages may call the API; none by default")
    page: bool = _setting(True, "serve the page at /, where pictures are asked about in a browser")
    docs: bool = _setting(False, "serve the description of the API at /docs and /openapi.json")

    def __post_init__(self) -> None:
        for one in fields(self):
            allowed, value = one.metadata["range"], getattr(self, one.name)
            if allowed is not None:
                object.__setattr__(self, one.name, allowed.check(one.name, value))
            elif isinstance(one.default, tuple):
                if isinstance(value, str) or not all(isinstance(item, str) and item for item in value):
                    raise ConfigError(f"{one.name} is {show(value)}, expected a list of texts")
                object.__setattr__(self, one.name, tuple(value))
            elif not isinstance(value, type(one.default)):
                raise ConfigError(f"{one.name} is {show(value)}, expected {type(one.default).__name__}")

    @classmethod
    def read(
        cls, options: Mapping[str, Any], environment: Mapping[str, str] = os.environ, file: Path | None = None
    ) -> ServerSettings:
        """Settings of all three sources; what none of them gives is the default.

        Raises:
            ConfigError: a setting that does not exist, or a value outside its range; the message names its source.
        """
        known = {one.name: one for one in fields(cls)}
        values: dict[str, Any] = {}
        if file is not None:
            values |= _of_file(file, known.keys())
        for name, one in known.items():
            text = environment.get(f"{PREFIX}{name.upper()}")
            if text is not None:
                values[name] = _of_text(f"{PREFIX}{name.upper()}", text, one.default)
        values |= {name: value for name, value in options.items() if value is not None}
        return cls(**values)


def _of_file(file: Path, known: Any) -> dict[str, Any]:
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read as TOML: {error}") from None
    for name in values:
        if name not in known:
            raise ConfigError(
                f"{file} has the setting {show(name)}, which does not exist", hint=f"Known: {', '.join(known)}."
            )
    return values


def _of_text(name: str, text: str, default: Any) -> Any:
    """The value that a variable stands for, by the kind of its default."""
    if isinstance(default, tuple):
        return tuple(part for part in (piece.strip() for piece in text.split(",")) if part)
    if isinstance(default, bool):
        if text.lower() not in ("0", "1", "true", "false"):
            raise ConfigError(f"{name} is {show(text)}, expected 0 or 1")
        return text.lower() in ("1", "true")
    if isinstance(default, (int, float)):
        try:
            return type(default)(text)
        except ValueError:
            raise ConfigError(f"{name} is {show(text)}, expected a number") from None
    return text
