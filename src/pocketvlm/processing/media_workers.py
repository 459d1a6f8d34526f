"""Media decoded in processes of their own: a decoder that crashes or hangs takes one request with it, not the server.

URLs are fetched before, in the calling thread, so that a slow host holds up nobody's decoding; what they bring, and the
patches that come back, are counted by `media_budget`.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from pocketvlm.errors import ConfigError, EngineError, MediaError
from pocketvlm.processing.abandonment import check_wanted
from pocketvlm.processing.media.fetch import fetch, is_url
from pocketvlm.processing.media.file_roots import is_file_url, open_file_url
from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.processing.media.pages import split_pages
from pocketvlm.processing.media.sources import FileBytes, NamedBytes, describe
from pocketvlm.processing.media_budget import check_context, holder
from pocketvlm.processing.media_encoding import MediaEncoder, MediaTask
from pocketvlm.processing.media_forkserver import context, end_forkserver
from pocketvlm.processing.media_worker import LostError, Worker
from pocketvlm.processing.prompt.expansion import Units
from pocketvlm.processing.prompt.messages import MediaPart
from pocketvlm.remote_files import is_remote, read_remote

if TYPE_CHECKING:
    from pocketvlm.processing.processor import Processor

logger = logging.getLogger(__name__)
_T = TypeVar("_T")
DECODE_SECONDS = 120.0  # that the media of a request may take, where nobody says
FETCHING = 8  # downloads of one request at a time
ROUNDS = 3  # times as long as one of them all may take
LOOK_SECONDS = 0.25  # between two looks at whether anybody waits for downloads
START_SECONDS = 60.0  # until a new worker has answered
STARTS = 3  # tries


def fetching_first(encode: MediaEncoder) -> MediaEncoder:
    """An encoder that has all URLs fetched, several at a time, before `encode` sees the task."""

    def encoder(task: MediaTask) -> list[Units]:
        return encode(fetched(task))

    return encoder


def fetched(task: MediaTask) -> MediaTask:
    """The task with bytes in place of http(s) and file: URLs, and of addresses of a storage where paths are accepted.

    Raises:
        MediaError: one fails, they take too long together, or a video has more than frames that could be taken; it
            names the place.
        EngineError: nobody waits for them any more.
    """
    files, most = task.files, task.limits.max_frames * max(task.how.stack_frames or 1, 1)
    places: dict[str, str] = {}
    for part in task.parts:
        urls = _urls(part, files)
        if len(urls) > most:
            raise MediaError(
                f"{part.where}: the video has {len(urls)} frames to fetch, at most {most} are fetched",
                hint="Give fewer, or the video as a file.",
            )
        for url in urls:
            places.setdefault(_bare(url, files), part.where)
    if not places:
        return task
    hold, until = holder(), time.monotonic() + ROUNDS * task.limits.total_seconds

    def read(url: str) -> NamedBytes:
        try:
            return _read(url, task.limits, hold, until)
        except MediaError as error:
            raise MediaError(f"{places[url]}: {error}") from None

    found = _read_all(read, list(places))
    parts = (
        replace(part, source=_replaced(part.source, found, files)) if _urls(part, files) else part
        for part in task.parts
    )
    return replace(task, parts=tuple(parts))


def _read_all(read: Callable[[str], NamedBytes], urls: list[str]) -> dict[str, NamedBytes]:
    """What each of them brings, several at a time. None is begun any more once one has failed or nobody waits."""
    check_wanted()
    if len(urls) == 1:
        return {urls[0]: read(urls[0])}
    with ThreadPoolExecutor(min(FETCHING, len(urls)), "pocketvlm-fetch") as pool:
        reading = [pool.submit(read, url) for url in urls]
        try:
            while not any(one.done() and one.exception() for one in reading):
                if not wait(reading, LOOK_SECONDS, FIRST_EXCEPTION).not_done:
                    break
                check_wanted()
        finally:
            for one in reading:
                one.cancel()
    for one in reading:
        if not one.cancelled():
            one.result()
    return {url: one.result() for url, one in zip(urls, reading, strict=True)}


def _urls(part: MediaPart, files: bool) -> list[str]:
    """Those of a source, or of the frames of a video. A list is no picture, and refused where pictures are read."""
    is_frames = part.kind == "video" and isinstance(part.source, list | tuple)
    sources = part.source if is_frames else [part.source]
    return [one for one in sources if isinstance(one, str) and _is_fetched(one, files)]


def _is_fetched(text: str, files: bool) -> bool:
    return is_url(text) or (is_remote(text) if files else is_file_url(text))


def _replaced(source: Any, found: dict[str, NamedBytes], files: bool) -> Any:
    if isinstance(source, list | tuple):
        return [_replaced(one, found, files) for one in source]
    if not isinstance(source, str):
        return source
    _, pages = split_pages(source, files=files and is_remote(source))
    body = found.get(_bare(source, files), source)
    return type(body)(body, body.name, pages) if pages is not None and isinstance(body, NamedBytes) else body


def _bare(url: str, files: bool) -> str:
    """The URL without the pages that are wanted: what several of them name is fetched once."""
    return str(split_pages(url, files=files and is_remote(url))[0])


def _read(url: str, limits: MediaLimits, hold: Callable[[int], None], until: float) -> NamedBytes:
    """The content of a place; `until` is when hosts have had their time."""
    if is_url(url):
        left = until - time.monotonic()
        if left <= 0:
            raise MediaError(
                f"the downloads of the request took more than {ROUNDS * limits.total_seconds:g} seconds together",
                hint="Give fewer, or the files themselves.",
            )
        body = fetch(url, replace(limits, total_seconds=min(limits.total_seconds, left)), hold)
        return NamedBytes(body, describe(url))
    if is_remote(url):
        try:
            content: NamedBytes = FileBytes(read_remote(url), describe(url))
        except ConfigError as error:
            raise MediaError(str(error)) from None
    elif not limits.file_roots:
        raise MediaError("Expected a data: or http(s) URL, got a file: URL", hint="No folder is open to requests here.")
    else:
        with open_file_url(url, limits) as file:
            content = NamedBytes(file.read(limits.max_bytes + 1), "The file of the file: URL")
    hold(len(content))
    return content


@contextmanager
def decoding_apart(processor: Processor, count: int, seconds: float = DECODE_SECONDS) -> Iterator[None]:
    """Within the block the media of a processor are decoded in `count` processes: a decoder that crashes, hangs or
    takes all memory takes one request with it, and the others go on."""
    with closing(MediaWorkers(count, seconds)) as workers:
        workers.start()
        before, processor.encode = processor.encode, fetching_first(workers.encode)
        try:
            yield
        finally:
            processor.encode = before


def taking_turns(encode: MediaEncoder, count: int) -> MediaEncoder:
    """An encoder that runs `count` times at once at most: decoding takes memory, preparing the rest does not.

    It is for clients that are trusted: what it has made is counted, and refused, afterwards.
    """
    turns = threading.Semaphore(count)

    def encoder(task: MediaTask) -> list[Units]:
        with turns:
            check_wanted()
            encoded = encode(task)
            units = [unit for medium in encoded for unit in medium]
            check_context(sum(unit.visual_tokens for unit in units))
            holder()(sum(unit.patches.nbytes for unit in units))
            return encoded

    return encoder


class MediaWorkers:
    """Processes that encode media; safe from any thread.

    Args:
        count: how many.
        seconds: that the media of one request may take; a worker that takes longer is ended.
    """

    def __init__(self, count: int, seconds: float) -> None:
        self._context = context()
        self._seconds, self._closed = seconds, threading.Event()
        self._idle: queue.LifoQueue[Worker | None] = queue.LifoQueue()
        self._lock = threading.Lock()
        self._all: set[Worker] = set()
        self._starting: list[Future[None]] = []
        for _ in range(count):
            self._idle.put(None)  # started when it is wanted, or by `start`

    def start(self) -> None:
        """Have all workers started, in the background."""
        # All are taken before the first of them can come back.
        for worker in [self._idle.get() for _ in range(self._idle.qsize())]:
            self._starting.append(_in_background(partial(self._start, worker)))

    def wait(self) -> None:
        """Return once all that `start` began have answered.

        Raises:
            EngineError: one of them cannot be started.
        """
        for one in self._starting:
            one.result()

    def _start_one(self) -> None:
        self._start(self._idle.get())

    def _start(self, worker: Worker | None) -> None:
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
            PromptError: no prompt could hold what was made. Whoever counts bytes raises what he likes.
            EngineError: no worker can be had; or nobody waits for the result any more.
        """
        if not task.parts:
            return []
        where = task.parts[0].where if len(task.parts) == 1 else "The pictures and videos of this request"
        worker = self._idle.get()
        try:
            check_wanted()
            for _ in range(2):
                if worker is not None and not worker.is_there():
                    self._end(worker)
                    worker = None
                worker = worker or self._new()
                try:
                    return worker.ask(task, self._seconds)
                except LostError as lost:
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

    def _new(self) -> Worker:
        if self._closed.is_set():
            raise EngineError("the processes that decode media have been ended")
        for _ in range(STARTS):
            worker, reason = self._started()
            if worker is not None:
                return worker
            if self._closed.wait(0.1):  # a process that was killed a moment ago still counts as alive
                break
        raise EngineError(f"no process can be started that decodes media ({reason})")

    def _started(self) -> tuple[Worker | None, str]:
        """A worker that has answered, or why there is none."""
        starting = _in_background(lambda: Worker(self._context))
        try:
            worker = starting.result(START_SECONDS)
            worker.ping(START_SECONDS)
        except TimeoutError:
            # What forks workers hangs. Without it the thread that waits for it ends too, and the next one is new.
            end_forkserver()
            return None, f"none within {START_SECONDS:g} seconds"
        except (OSError, EOFError) as error:
            return None, getattr(error, "strerror", None) or "what starts them has ended"
        except LostError:
            worker.end()
            return None, "it ended before it answered"
        with self._lock:
            self._all.add(worker)
        if self._closed.is_set():
            self._end(worker)
            return None, "the server ends"
        return worker, ""

    def _end(self, worker: Worker) -> None:
        with self._lock:
            self._all.discard(worker)
        worker.end()


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
