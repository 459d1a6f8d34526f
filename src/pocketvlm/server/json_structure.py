"""How much JSON text holds and how deep it goes, counted while it arrives and before anything of it is read."""

from __future__ import annotations

import numpy as np

_DROPPED = bytes(set(range(256)) - set(b'[]{},"'))
_QUOTE, _COMMA = ord('"'), ord(",")


class JSONStructure:
    """Counts what stands outside of strings.

    Attributes:
        values: commas and brackets.
        depth: most brackets in brackets.
    """

    def __init__(self) -> None:
        self.values = self.depth = 0
        self._open = 0  # brackets now
        self._in_string = False
        self._rest = b""  # a backslash whose other half comes with the next piece

    def add(self, piece: bytes) -> None:
        """Count the next piece of the text."""
        if self._rest or piece.endswith(b"\\"):
            piece = self._rest + piece
            behind = len(piece) - len(piece.rstrip(b"\\"))
            self._rest = b"\\" * (behind % 2)
            piece = piece[: len(piece) - behind]
        if b"\\" in piece:  # backslashes in pairs first: what is left of them before a quote makes it part of a string
            piece = piece.replace(b"\\\\", b"").replace(b'\\"', b"")
        kept = piece.translate(None, _DROPPED)
        if not kept:  # as most pieces of those who send byte by byte
            return
        codes = np.frombuffer(kept, np.uint8)
        is_quote = codes == _QUOTE
        inside = np.logical_xor.accumulate(is_quote) ^ self._in_string
        self._in_string = bool(inside[-1])
        outside = codes[~(inside | is_quote)]
        self.values += outside.size
        brackets = outside[outside != _COMMA]
        if brackets.size:
            depths = np.cumsum(np.where((brackets == ord("[")) | (brackets == ord("{")), 1, -1)) + self._open
            self.depth, self._open = max(self.depth, int(depths.max())), int(depths[-1])
