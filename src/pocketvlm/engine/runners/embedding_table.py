"""Token embeddings that stay in their file: of half a gigabyte, a step needs some rows.

Rows are read, not mapped: a map brings sixteen neighbours of every page with it, and after some hundred steps the table
would be in the process's memory as a whole.

Shapes:  V vocabulary · D hidden
"""

from __future__ import annotations

import os
import threading
import weakref
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketvlm.errors import CheckpointError


class EmbeddingTable:
    """The rows of `file`, fp16 or fp32 [V, D] without any header; safe to use from several threads."""

    def __init__(self, file: Path, dtype: type[np.float16 | np.float32], vocabulary: int, hidden: int) -> None:
        self.file, self.dtype, self.shape = file, np.dtype(dtype), (vocabulary, hidden)
        self.row_bytes = hidden * self.dtype.itemsize
        self.handle = os.open(file, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._lock = threading.Lock()
        weakref.finalize(self, os.close, self.handle)

    def __call__(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Embeddings of token ids of any shape, fp32, with a last dimension D.

        Raises:
            CheckpointError: the file has become shorter.
        """
        vocabulary, hidden = self.shape
        wanted = ids.flatten().tolist()
        if not all(0 <= i < vocabulary for i in wanted):
            raise IndexError(f"token ids must be 0 to {vocabulary - 1}")
        rows = np.empty((len(wanted), hidden), self.dtype)
        buffer = memoryview(rows.view(np.uint8).data).cast("B") if rows.size else memoryview(b"")
        size = self.row_bytes
        for row, i in enumerate(wanted):
            if self._read(buffer[row * size : (row + 1) * size], i * size) != size:
                raise CheckpointError(f"{self.file} ends before row {i}", hint="Export the bundle again.")
        return rows.astype(np.float32).reshape(*ids.shape, hidden)

    def _read(self, buffer: memoryview, offset: int) -> int:
        """Fill `buffer` from that byte of the file on; returns how many bytes there were."""
        if hasattr(os, "preadv"):
            return os.preadv(self.handle, [buffer], offset)
        with self._lock:  # Windows reads only where the file stands, which all threads share
            os.lseek(self.handle, offset, os.SEEK_SET)
            found = os.read(self.handle, len(buffer))
        buffer[: len(found)] = found
        return len(found)
