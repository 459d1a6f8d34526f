"""Who may ask, and how much: API keys, compared in constant time, each with limits of its own.

A file of keys has one a line: the key, or `sha256:` and its hash in hexadecimal, then what it may: `name=NAME`,
`requests=N` in flight, `tokens_per_minute=N`. What follows a `#` at the beginning of a word is a remark.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from starlette.requests import Request

from pocketvlm.errors import ConfigError
from pocketvlm.server.errors import HTTPError
from pocketvlm.server.settings import ServerSettings

MAX_HEADER = 4096
WINDOW = 60.0  # seconds over which tokens are counted
_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")


@dataclass(eq=False)
class Key:
    """A key and what it has used.

    Attributes:
        name: for the log; never the key itself.
        digest: SHA-256 of it.
        requests: that it may have in flight; None is as many as anybody.
        tokens_per_minute: of prompts and answers together, counted when a request ends; None is any number.
    """

    name: str
    digest: bytes
    requests: int | None = None
    tokens_per_minute: int | None = None
    in_flight: int = 0
    _spent: deque[tuple[float, int]] = field(default_factory=deque)

    def begin(self) -> None:
        """Count a request; `HTTPError` 429 where it is one too many."""
        if self.requests is not None and self.in_flight >= self.requests:
            raise _too_many(f"this key may have {self.requests} requests in flight", 1)
        if self.tokens_per_minute is not None:
            now = time.monotonic()
            while self._spent and self._spent[0][0] <= now - WINDOW:
                self._spent.popleft()
            left = sum(tokens for _, tokens in self._spent) - self.tokens_per_minute
            for when, tokens in self._spent:
                if left < 0:
                    break
                left -= tokens
                if left < 0:
                    wait = math.ceil(when + WINDOW - now)
                    raise _too_many(f"this key may use {self.tokens_per_minute} tokens a minute", max(wait, 1))
        self.in_flight += 1

    def end(self, tokens: int) -> None:
        """Count the end of a request that used so many tokens."""
        self.in_flight -= 1
        if self.tokens_per_minute is not None and tokens:
            self._spent.append((time.monotonic(), tokens))


def _too_many(message: str, wait: int) -> HTTPError:
    return HTTPError(429, message, "rate_limit_error", "rate_limit_exceeded", retry_after=wait)


class KeyCheck:
    """Refuses requests without one of the keys; without keys, nobody."""

    def __init__(self, keys: Sequence[Key]) -> None:
        self._keys = tuple(keys)

    @classmethod
    def of(cls, settings: ServerSettings) -> KeyCheck:
        """Those of the settings and of their file.

        Raises:
            ConfigError: the file cannot be read, or a line of it is not a key.
        """
        keys = [_named(hashlib.sha256(key.encode()).digest()) for key in settings.api_keys]
        if settings.api_key_file:
            keys += read_keys(Path(settings.api_key_file))
        return cls(keys)

    def __call__(self, request: Request) -> Key | None:
        """Whose request it is; `HTTPError` 401."""
        if not self._keys:
            return None
        header = request.headers.get("authorization", "")
        scheme, _, text = header[:MAX_HEADER].partition(" ")
        # Starlette reads headers as Latin-1, so that this is what was sent, byte for byte.
        given = hashlib.sha256(text.strip().encode("latin-1")).digest()
        # All are compared, so that the time says nothing about which one is near.
        known = [key for key in self._keys if hmac.compare_digest(given, key.digest)]
        if scheme.lower() != "bearer" or not known or len(header) > MAX_HEADER:
            said = "this server does not know the key that was given" if text else "this server wants a key"
            raise HTTPError(401, f"{said}: Authorization: Bearer KEY", "authentication_error", "invalid_api_key")
        return known[0]


def read_keys(file: Path) -> Iterator[Key]:
    """The keys of a file; `ConfigError` names the line at fault, and nothing of what stands there."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise ConfigError(f"api_key_file={file} cannot be read: {reason}") from None
    found = 0
    for number, line in enumerate(lines, 1):
        words = line.split()
        remark = next((at for at, word in enumerate(words) if word.startswith("#")), len(words))
        if words := words[:remark]:
            found += 1
            yield _key(words, f"{file}, line {number}")
    if not found:  # a server that its owner takes for closed must not be open
        raise ConfigError(f"api_key_file={file} has no keys", hint="Give one a line.")


def _key(words: Sequence[str], where: str) -> Key:
    text, *limits = words
    if text.startswith("sha256:"):
        if not re.fullmatch(r"[0-9a-fA-F]{64}", text[7:]):
            raise ConfigError(f"{where}: sha256: is not followed by the 64 digits of a hash")
        key = _named(bytes.fromhex(text[7:]))
    elif not text.isascii():
        raise ConfigError(f"{where}: the key has letters that no client can send", hint="Keys are of ASCII.")
    else:
        key = _named(hashlib.sha256(text.encode()).digest())
    for limit in limits:
        name, sign, value = limit.partition("=")
        if name == "name" and _NAME.fullmatch(value):
            key.name = value
        elif name in ("requests", "tokens_per_minute") and re.fullmatch(r"[1-9][0-9]{0,14}", value):
            setattr(key, name, int(value))
        else:
            shown = name if sign and name in ("name", "requests", "tokens_per_minute") else "a word"
            raise ConfigError(
                f"{where}: {shown} is not possible there", hint="Expected name=NAME requests=N tokens_per_minute=N."
            )
    return key


def _named(digest: bytes) -> Key:
    return Key(f"key-{digest.hex()[:8]}", digest)
