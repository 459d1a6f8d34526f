"""Many conversations on one engine: prepared in threads ahead of it, answered in the order in which they complete."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from pocketvlm.api.answers import Answer
from pocketvlm.api.job import Job
from pocketvlm.api.processed import Conversation
from pocketvlm.api.shared_engine import SharedEngine
from pocketvlm.errors import PocketVLMError, PromptError
from pocketvlm.machine import usable_cores

logger = logging.getLogger(__name__)
Key = TypeVar("Key", bound=Hashable)
Asked = tuple[Key, Conversation, Mapping[str, Any]]


def answer_many(
    engine: SharedEngine,
    prepare: Callable[[Conversation, Mapping[str, Any]], Job],
    requests: Iterable[Asked[Key]],
    ahead: int,
) -> Generator[tuple[Key, list[Answer] | Exception], None, None]:
    """See `VLM.as_completed`. `prepare` is called in threads."""
    source, read = iter(requests), 0
    preparing: dict[Future[Job], Key] = {}
    ready: deque[tuple[Key, Job]] = deque()  # prepared, and waiting for room in the engine's queue
    running: dict[Job, Key] = {}
    exhausted, fault = False, None
    workers = preparing_threads()
    try:
        while True:
            while not exhausted and len(preparing) + len(ready) + len(running) < ahead:
                try:
                    item = next(source)
                except StopIteration:
                    exhausted = True
                    break
                read += 1
                if not isinstance(item, list | tuple) or len(item) != 3:
                    # It names no key to answer under. What was asked before is answered first.
                    exhausted, fault = True, _not_a_request(read, item)
                    break
                key, messages, options = item
                preparing[workers.submit(prepare, messages, options)] = key
            for future in [future for future in preparing if future.done()]:
                key = preparing.pop(future)
                try:
                    job = future.result()
                    job.deltas = deque(maxlen=0)  # nobody reads them
                    ready.append((key, job))
                except Exception as error:  # of this request alone, whatever it is
                    yield key, _logged(error)
            while ready:
                key, job = ready[0]
                try:
                    if not engine.try_submit(job):
                        break
                except Exception as error:
                    yield key, _logged(error)
                else:
                    running[job] = key
                ready.popleft()
            if running:
                engine.advance(next(iter(running)))
                for job in [job for job in running if job.is_done]:
                    yield running.pop(job), job.error or job.answers()
            elif ready:  # others fill the queue, and may not be reading
                engine.step()
            elif preparing:
                wait(preparing, return_when=FIRST_COMPLETED)
            elif exhausted:
                if fault is not None:
                    raise fault
                return
    finally:
        workers.shutdown(wait=False, cancel_futures=True)
        for job in running:
            engine.give_up(job)


def preparing_threads(count: int | None = None, *, start: bool = False) -> ThreadPoolExecutor:
    """Threads that read pictures and make prompts ahead of the engine; without a count up to four, for the cores.

    A pool starts a thread when none is idle, and each thread brings memory of its own. With `start` all of them are
    there at once, so that the memory of a process that runs for long does not grow with its busiest minute.
    """
    count = count or max(1, min(4, usable_cores()))
    pool = ThreadPoolExecutor(count, "pocketvlm-prepare")
    if start:
        all_here = threading.Barrier(count)
        try:
            for _ in range(count):
                pool.submit(all_here.wait)  # busy until the last one is there, so each submission starts a thread
        except BaseException:  # the system allows no more threads: those that wait must not wait for ever
            all_here.abort()
            pool.shutdown(wait=False)
            raise
    return pool


def _logged(error: Exception) -> Exception:
    """The error that a request ends with; a fault of ours is logged as well."""
    if not isinstance(error, PocketVLMError):
        logger.error("a request could not be prepared", exc_info=error)
    return error


def _not_a_request(number: int, item: object) -> PromptError:
    what = f"{len(item)} things" if isinstance(item, list | tuple) else f"of type {type(item).__name__}"
    return PromptError(
        f"request {number} of those to answer is {what}, expected (key, messages, options)",
        hint="Those before it were answered; nothing after it was read.",
    )
