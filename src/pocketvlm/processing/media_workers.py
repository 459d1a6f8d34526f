"""Media decoded in processes of their own: a decoder that crashes or hangs takes one request with it, not the server.

URLs are fetched before, in the calling thread, so that a slow host holds up nobody's decoding. A worker gets a pickled
task from us; what it answers is JSON and raw pixels, as a decoder that was taken over could be speaking.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import pickle
import queue
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from pocketvlm.errors import ConfigError, EngineError, MediaError
from pocketvlm.processing.media.fetch import fetch, is_url
from pocketvlm.processing.media.file_roots import is_file_url, open_file_url
from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.processing.media.sources import NamedBytes, describe
from pocketvlm.processing.media_encoding import MediaEncoder, MediaTask, encode_media
from pocketvlm.processing.patches.image import ImageViews
from pocketvlm.processing.prompt.expansion import Units
from pocketvlm.processing.prompt.messages import MediaPart
from pocketvlm.views import Size, View

logger = logging.getLogger(__name__)
_T = TypeVar("_T")
FETCHING = 8  # downloads of one request at a time
MAX_HEAD = 2**24  # bytes of what a worker says of its patches
START_SECONDS = 60.0  # until a new worker has answered
STARTS = 3  # tries
END_SECONDS = 2.0  # until the process that forks workers has reported the end of one
_FAULTS: dict[str, type[Exception]] = {"MediaError": MediaError, "ConfigError": ConfigError}


def fetching_first(encode: MediaEncoder) -> MediaEncoder:
    """An encoder that has all URLs fetched, several at a time, before `encode` sees the task."""

    def encoder(task: MediaTask) -> list[Units]:
        return encode(fetched(task))

    return encoder


def fetched(task: MediaTask) -> MediaTask:
    """The task with bytes in place of http(s) and file: URLs; `MediaError` names the place of one that fails."""
    wanted = [url for part in task.parts for url in _urls(part)]
    if not wanted:
        return task
    places = {url: part.where for part in reversed(task.parts) for url in _urls(part)}

    def read(url: str) -> bytes:
        try:
            return _read(url, task.limits)
        except MediaError as error:
            raise MediaError(f"{places[url]}: {error}") from None

    distinct = list(dict.fromkeys(wanted))
    if len(distinct) == 1:
        found = {distinct[0]: read(distinct[0])}
    else:
        with ThreadPoolExecutor(min(FETCHING, len(distinct)), "pocketvlm-fetch") as pool:
            found = dict(zip(distinct, pool.map(read, distinct), strict=True))
    parts = (replace(part, source=_replaced(part.source, found)) if _urls(part) else part for part in task.parts)
    return replace(task, parts=tuple(parts))


def _urls(part: MediaPart) -> list[str]:
    """Those of a source, or of a list of frames."""
    sources = part.source if isinstance(part.source, list | tuple) else [part.source]
    return [one for one in sources if isinstance(one, str) and (is_url(one) or is_file_url(one))]


def _replaced(source: Any, found: dict[str, bytes]) -> Any:
    if isinstance(source, list | tuple):
        return [_replaced(one, found) for one in source]
    return found.get(source, source) if isinstance(source, str) else source


def _read(url: str, limits: MediaLimits) -> bytes:
    if is_url(url):
        return NamedBytes(fetch(url, limits), describe(url))
    if not limits.file_roots:
        raise MediaError("Expected a data: or http(s) URL, got something else", hint="Paths are not accepted here.")
    with open_file_url(url, limits) as file:
        return NamedBytes(file.read(limits.max_bytes + 1), "The file of the file: URL")


def taking_turns(encode: MediaEncoder, count: int) -> MediaEncoder:
    """An encoder that runs `count` times at once at most: decoding takes memory, preparing the rest does not."""
    turns = threading.Semaphore(count)

    def encoder(task: MediaTask) -> list[Units]:
        with turns:
            return encode(task)

    return encoder


class MediaWorkers:
    """Processes that encode media; safe from any thread.

    Args:
        count: how many.
        seconds: that the media of one request may take; a worker that takes longer is ended.
    """

    def __init__(self, count: int, seconds: float) -> None:
        methods = multiprocessing.get_all_start_methods()
        self._context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if "forkserver" in methods:  # a new worker is a fork of a process that has imported everything
            self._context.set_forkserver_preload([__name__])
        self._seconds, self._closed = seconds, threading.Event()
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        self._lock = threading.Lock()
        self._all: set[_Worker] = set()
        self._starting: list[Future[None]] = []
        for _ in range(count):
            self._idle.put(None)  # started when it is wanted, or by `start`

    def start(self) -> None:
        """Have all workers started, in the background."""
        for _ in range(self._idle.qsize()):
            self._starting.append(_in_background(self._start_one))

    def wait(self) -> None:
        """Return once all that `start` began have answered.

        Raises:
            EngineError: one of them cannot be started.
        """
        for one in self._starting:
            one.result()

    def _start_one(self) -> None:
        worker = self._idle.get()
        try:
            worker = worker or self._new()
        finally:
            self._idle.put(worker)

    @property
    def pids(self) -> list[int]:
        with self._lock:
            return [worker.process.pid for worker in self._all]

    def encode(self, task: MediaTask) -> list[Units]:
        """As `encode_media`. A worker that is gone, by whatever hand, is replaced and asked again, once.

        Raises:
            MediaError: as `encode_media`; or the decoder crashed twice, or took too long.
            EngineError: no worker can be had.
        """
        if not task.parts:
            return []
        where = task.parts[0].where if len(task.parts) == 1 else "The pictures and videos of this request"
        worker = self._idle.get()
        try:
            for _ in range(2):
                if worker is not None and not worker.is_there():
                    self._end(worker)
                    worker = None
                worker = worker or self._new()
                try:
                    return worker.ask(task, self._seconds)
                except _LostError as lost:
                    logger.error("a process that decodes media has ended: %s", lost)
                    self._end(worker)
                    worker = None
                    if lost.took_too_long:
                        raise MediaError(f"{where}: decoding took more than {self._seconds:g} seconds") from None
            raise MediaError(f"{where}: the decoder crashed", hint="Save the file anew.")
        finally:
            self._idle.put(worker)
            if worker is None and not self._closed.is_set():
                _in_background(self._start_one)  # the next need not wait for it

    def close(self) -> None:
        """End all of them, whatever they do."""
        self._closed.set()
        with self._lock:
            workers = list(self._all)
        for worker in workers:
            self._end(worker)

    def _new(self) -> _Worker:
        if self._closed.is_set():
            raise EngineError("the processes that decode media have been ended")
        for _ in range(STARTS):
            worker, reason = self._started()
            if worker is not None:
                return worker
            if self._closed.wait(0.1):  # a process that was killed a moment ago still counts as alive
                break
        raise EngineError(f"no process can be started that decodes media ({reason})")

    def _started(self) -> tuple[_Worker | None, str]:
        """A worker that has answered, or why there is none."""
        starting = _in_background(lambda: _Worker(self._context))
        try:
            worker = starting.result(START_SECONDS)
            worker.ping(START_SECONDS)
        except TimeoutError:
            # What forks workers hangs. Without it the thread that waits for it ends too, and the next one is new.
            _end_forkserver()
            return None, f"none within {START_SECONDS:g} seconds"
        except (OSError, EOFError) as error:
            return None, getattr(error, "strerror", None) or "what starts them has ended"
        except _LostError:
            worker.end()
            return None, "it ended before it answered"
        with self._lock:
            self._all.add(worker)
        if self._closed.is_set():
            self._end(worker)
            return None, "the server ends"
        return worker, ""

    def _end(self, worker: _Worker) -> None:
        with self._lock:
            self._all.discard(worker)
        worker.end()


class _LostError(Exception):
    took_too_long = False


class _Worker:
    """One process and our end of the line to it."""

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
        is_late = threading.Event()

        def kill() -> None:
            is_late.set()
            self._kill()

        timer = threading.Timer(seconds, kill)
        timer.daemon = True
        timer.start()
        try:
            self._line.send_bytes(pickle.dumps(task, pickle.HIGHEST_PROTOCOL))
            head = _read_head(self._line.recv_bytes(MAX_HEAD))
            if "fault" in head:
                raise _FAULTS.get(str(head["fault"]), EngineError)(str(head["message"])[:1000])
            return [tuple(self._unit(unit) for unit in units) for units in head["units"]]
        except (OSError, EOFError, KeyError, TypeError, AttributeError, OverflowError) as error:
            lost = _LostError(type(error).__name__)
            lost.took_too_long = is_late.is_set()
            raise lost from None
        finally:
            timer.cancel()

    def _unit(self, unit: dict[str, Any]) -> ImageViews:
        count, patch = int(unit["count"]), int(unit["patch"])
        patches = np.empty((count, patch, patch, 3), np.uint8)
        if patches.nbytes:
            received = self._line.recv_bytes_into(patches.data.cast("B"))
            if received != patches.nbytes:
                raise OSError("a piece is missing")
        views = tuple(View(Size(height=int(h), width=int(w)), mode) for h, w, mode in unit["views"])
        grid, image = unit["grid"], Size(height=int(unit["image"][0]), width=int(unit["image"][1]))
        if any(view.downsample_mode not in ("16x", "4x") for view in views):
            raise KeyError
        return ImageViews(torch.from_numpy(patches), views, grid and (int(grid[0]), int(grid[1])), image)

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
                _end_forkserver()
                self.process.join(END_SECONDS)
            self.process.close()


def _in_background(call: Callable[[], _T]) -> Future[_T]:
    """As an executor does it, in a thread that does not hold up the end of the process."""
    future: Future[_T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _end_forkserver() -> None:
    """Kill the process that forks workers; the next worker starts another one. Workers that live go on."""
    if sys.platform == "win32":
        return
    from multiprocessing import forkserver

    pid = getattr(getattr(forkserver, "_forkserver", None), "_forkserver_pid", None)
    if pid is not None:
        logger.error("the process that starts those that decode media hangs, and is replaced")
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _read_head(body: bytes) -> dict[str, Any]:
    try:
        head: dict[str, Any] = json.loads(body)
    except ValueError:
        raise OSError("no JSON") from None
    return head


def _serve(line: Connection) -> None:
    """What a worker does until its line ends."""
    with suppress(ValueError, OSError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's to answer
    if sys.platform.startswith("linux"):
        with suppress(OSError):  # where memory runs out, a picture goes and not the server
            Path("/proc/self/oom_score_adj").write_text("500")
    torch.set_num_threads(1)
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
    for units in encoded:
        for unit in units:
            if unit.patches.numel():
                line.send_bytes(unit.patches.contiguous().numpy().data.cast("B"))


def _described(unit: ImageViews) -> dict[str, Any]:
    views = [[view.size.height, view.size.width, view.downsample_mode] for view in unit.views]
    count, patch = unit.patches.shape[:2]
    image = [unit.image.height, unit.image.width]
    return {"count": count, "patch": patch, "views": views, "grid": unit.grid, "image": image}
