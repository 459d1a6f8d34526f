"""One process that decodes media, and our end of the line to it.

It gets a pickled task from us; what it answers is JSON and raw pixels, as a decoder that was taken over could be
speaking. The pixels it sends once we say that there is room for as many as it has announced. Its end is seen at its
line, since the process that forked it, which would report it, may end or hang too.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from pocketvlm.errors import ConfigError, EngineError, MediaError
from pocketvlm.processing.confinement import confine
from pocketvlm.processing.media_budget import check_context, holder
from pocketvlm.processing.media_encoding import MediaTask, encode_media
from pocketvlm.processing.media_forkserver import end_forkserver
from pocketvlm.processing.patches.image import ImageViews
from pocketvlm.processing.prompt.expansion import Units
from pocketvlm.views import Size, View

logger = logging.getLogger(__name__)
MAX_HEAD = 2**24  # bytes of what a worker says of its patches
GO_ON = b"pixels"  # the word for them
MEMORY = 8 * 2**30  # bytes that decoding may take: frames of a long 4K video are 3
END_SECONDS = 2.0  # until the process that forks workers has reported the end of one
_FAULTS: dict[str, type[Exception]] = {"MediaError": MediaError, "ConfigError": ConfigError}


class LostError(Exception):
    """No answer came; `took_too_long` where the worker was killed for it."""

    took_too_long = False


class Worker:
    """One process and our end of the line to it; one thread asks it at a time."""

    def __init__(self, context: Any) -> None:
        self._line, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), name="pocketvlm-media", daemon=True)
        try:
            self.process.start()
        except BaseException:
            self._line.close()
            raise
        finally:
            theirs.close()

    def is_there(self) -> bool:
        """By its line: the end of the process that forked it makes `Process.is_alive` untrue of a worker that lives."""
        try:
            return not self._line.poll()  # it says nothing unasked, so this could only be the end
        except OSError:
            return False

    def ping(self, seconds: float) -> None:
        self.ask(None, seconds)

    def ask(self, task: MediaTask | None, seconds: float) -> list[Units]:
        """What the worker makes of a task; None asks only whether it is there.

        Raises:
            LostError: nothing that can be read came in time. The worker is of no more use.
            MediaError, ConfigError, EngineError: what the worker says of the task.
            PromptError, and what whoever counts bytes raises: what was made is too much, and was not received.
        """
        is_late = threading.Event()

        def kill() -> None:
            is_late.set()
            self._kill()

        timer = threading.Timer(seconds, kill)
        timer.daemon = True
        body = pickle.dumps(task, pickle.HIGHEST_PROTOCOL)
        timer.start()
        try:
            self._line.send_bytes(body)
            head = json.loads(self._line.recv_bytes(MAX_HEAD))
            if "fault" not in head:
                refusal = None
                if task is not None:
                    refusal = _refusal(*_measured(head["units"]))
                    self._line.send_bytes(b"" if refusal else GO_ON)
                if refusal is None:
                    return [tuple(self._unit(unit) for unit in units) for units in head["units"]]
                fault = refusal
            else:
                fault = _FAULTS.get(str(head["fault"]), EngineError)(str(head["message"])[:1000])
        except Exception as error:  # a decoder that was taken over may say anything, and what follows would be as wrong
            lost = LostError(type(error).__name__)
            lost.took_too_long = is_late.is_set()
            raise lost from None
        finally:
            timer.cancel()
        raise fault

    def _unit(self, unit: dict[str, Any]) -> ImageViews:
        count, patch = int(unit["count"]), int(unit["patch"])
        patches = np.empty((count, patch, patch, 3), np.uint8)
        if patches.nbytes:
            received = self._line.recv_bytes_into(patches.data.cast("B"))
            if received != patches.nbytes:
                raise OSError("a piece is missing")
        views = _views(unit)
        grid, image = unit["grid"], Size(height=int(unit["image"][0]), width=int(unit["image"][1]))
        places = grid and (int(grid[0]), int(grid[1]))
        return ImageViews(patches, views, places, image, int(unit["pages"]))

    def _kill(self) -> None:
        with suppress(OSError, ValueError, AttributeError):
            if self.process.exitcode is None:
                self.process.kill()
            elif self.is_there():  # its exit is that of the process that forked it
                os.kill(self.process.pid, signal.SIGKILL)

    def end(self) -> None:
        self._kill()
        self._line.close()
        with suppress(OSError, ValueError, AttributeError):
            self.process.join(END_SECONDS)
            if self.process.is_alive():  # killed, and nobody reports it: whoever should hangs
                end_forkserver()
                self.process.join(END_SECONDS)
            self.process.close()


def _views(unit: dict[str, Any]) -> tuple[View, ...]:
    views = tuple(View(Size(height=int(h), width=int(w)), mode) for h, w, mode in unit["views"])
    if any(view.downsample_mode not in ("16x", "4x") for view in views):
        raise KeyError
    return views


def _measured(encoded: list[list[dict[str, Any]]]) -> tuple[int, int]:
    """Visual tokens of what a worker has made, and bytes of its patches."""
    units = [unit for units in encoded for unit in units]
    sizes = [(int(unit["count"]), int(unit["patch"])) for unit in units]
    if any(count < 0 or patch < 0 for count, patch in sizes):
        raise ValueError
    tokens = sum(view.visual_tokens for unit in units for view in _views(unit))
    return tokens, sum(count * patch * patch * 3 for count, patch in sizes)


def _refusal(tokens: int, size: int) -> Exception | None:
    """Why so much is not taken: it is the fault of the request, or of its time, and none of the worker."""
    try:
        check_context(tokens)
        holder()(size)
    except Exception as error:
        return error
    return None


def _serve(line: Connection) -> None:
    """What a worker does until its line ends."""
    with suppress(ImportError):  # its kernel resizes fastest; whoever forks workers has imported it for all of them
        import torch

        torch.set_num_threads(1)
    confine(MEMORY)  # Ctrl-C is the server's to answer
    with suppress(EOFError, OSError):
        while True:
            task = pickle.loads(line.recv_bytes())
            if task is None:  # are you there?
                line.send_bytes(b'{"units": []}')
            else:
                _answer(line, task)
    os._exit(0)


def _answer(line: Connection, task: MediaTask, encode: Callable[[MediaTask], list[Units]] = encode_media) -> None:
    try:
        encoded = encode(task)
    except Exception as error:
        name = next((name for name, kind in _FAULTS.items() if isinstance(error, kind)), "EngineError")
        # Words of other libraries stay here.
        message = str(error) if name in _FAULTS else f"decoding failed ({type(error).__name__})"
        line.send_bytes(json.dumps({"fault": name, "message": message}).encode())
        return
    head = [[_described(unit) for unit in units] for units in encoded]
    line.send_bytes(json.dumps({"units": head}).encode())
    if line.recv_bytes() != GO_ON:
        return
    for units in encoded:
        for unit in units:
            if unit.patches.size:
                line.send_bytes(np.ascontiguousarray(unit.patches).data.cast("B"))


def _described(unit: ImageViews) -> dict[str, Any]:
    views = [[view.size.height, view.size.width, view.downsample_mode] for view in unit.views]
    count, patch = unit.patches.shape[:2]
    image = [unit.image.height, unit.image.width]
    return {"count": count, "patch": patch, "views": views, "grid": unit.grid, "image": image, "pages": unit.pages}
