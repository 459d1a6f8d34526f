"""One base error for everything a user can get wrong.

Each error says, in one line, what was given, what was expected and what to do about it. The command line prints that
line and exits with 2 (1 where the input was right); the server answers it with a 4xx. A traceback is for our own
mistakes only.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Self


class PocketVLMError(ValueError):
    """Base of every error that bad input can cause.

    Args:
        message: what was given and what was expected.
        hint: what to do about it; appended after the message.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        text = f"{message.rstrip('.')}. {hint}" if hint else message
        super().__init__(" ".join(text.split()))


class ConfigError(PocketVLMError):
    """A configuration or an option with a value that cannot be honoured."""


class CheckpointError(PocketVLMError):
    """A checkpoint that is missing, truncated, or of other names and shapes than its configuration says."""


class BundleCacheError(CheckpointError):
    """The cache takes no bundle: it cannot be written to, or is full."""


class MediaError(PocketVLMError):
    """A picture or a video that cannot be read, or is over a limit."""


class PromptError(PocketVLMError):
    """Messages, template arguments or token ids that do not form a prompt."""


class QueueFullError(PocketVLMError):
    """As many requests are waiting as may; nothing is wrong with this one, which may be tried again later."""


class EngineError(RuntimeError):
    """An answer was lost to a fault that is not its user's."""


class DeadlineError(EngineError):
    """The time of a request is over."""


class UnavailableError(EngineError):
    """The engine takes no requests: it was closed, or has failed."""


class OutputError(PocketVLMError):
    """What was asked for was done, but could not be written: the disk is full, or the file has gone."""


class MissingExtraError(PocketVLMError):
    """An optional dependency is not installed; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed", hint=f"Install it with: pip install 'pocketvlm[{extra}]'")
        self.package, self.extra = package, extra

    def __reduce__(self) -> tuple[type[Self], tuple[str, str]]:
        """To be raised again in another process, it is made again."""
        return type(self), (self.package, self.extra)


def need(module: str, package: str, extra: str) -> None:
    """`MissingExtraError` where a module cannot be found; nothing is imported but the packages that it is in."""
    try:
        found = find_spec(module) is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        raise MissingExtraError(package, extra)
