"""An answer as it streams, on stdout: as it is where that is a file or a pipe, as formatted Markdown on a terminal."""

from __future__ import annotations

import os
import re
import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self

from pocketvlm.cli.console import harmless, put

if TYPE_CHECKING:
    from rich.live import Live

_FENCE = re.compile(r"^ {0,3}(```|~~~)", re.MULTILINE)


class AnswerPrinter:
    """Text in pieces → stdout.

    On a terminal, a block of Markdown (a paragraph, a list, a table, code) is formatted while it grows, and stays when
    the next one begins: nothing that stands is drawn over.

    Args:
        formatted: None for what the terminal can do: no formatting in dumb ones, and none in pipes.
    """

    def __init__(self, *, formatted: bool | None = None) -> None:
        self._is_terminal = sys.stdout.isatty()
        can = self._is_terminal and os.environ.get("TERM") != "dumb"
        self._formatted = can if formatted is None else formatted and can
        self._block = ""
        self._live: Live | None = None

    def add(self, text: str) -> None:
        """Show more text."""
        text = harmless(text) if self._is_terminal else text
        if not self._formatted:
            put(text, end="")
            return
        self._block += text
        while (end := end_of_block(self._block)) is not None:
            block, self._block = self._block[:end], self._block[end:].lstrip("\n")
            self._keep(block)
        if self._block.strip():
            self._grow()

    def end(self) -> None:
        """The answer is complete."""
        if not self._formatted:
            put()
        elif self._block.strip():
            self._keep(self._block)
            self._block = ""

    def _grow(self) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.markdown import Markdown

        if self._live is None:
            self._live = Live(console=Console(), transient=True, auto_refresh=False, vertical_overflow="ellipsis")
            self._live.start()
        self._live.update(Markdown(self._block), refresh=True)

    def _keep(self, block: str) -> None:
        from rich.console import Console
        from rich.markdown import Markdown

        self._stop()
        console = Console()
        with console.capture() as captured:
            console.print(Markdown(block))
        put(captured.get(), end="")

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and self._block.strip() and self._formatted:
            self._keep(self._block)  # what was shown before an interrupt stays
        self._stop()


def end_of_block(text: str) -> int | None:
    """Where the first block of Markdown ends: at an empty line that does not stand within fenced code."""
    at = 0
    while (at := text.find("\n\n", at)) >= 0:
        if len(_FENCE.findall(text, 0, at)) % 2 == 0 and text[:at].strip():
            return at + 1
        at += 1
    return None
