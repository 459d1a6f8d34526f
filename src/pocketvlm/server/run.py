"""Run a server from start to end: its socket, signals, readiness, and the drain of running answers."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from types import FrameType

import uvicorn

from pocketvlm.api.async_vlm import AsyncVLM
from pocketvlm.api.vlm import VLM
from pocketvlm.errors import EngineError
from pocketvlm.machine import usable_cores
from pocketvlm.processing.media_encoding import MediaEncoder, encode_media
from pocketvlm.processing.media_workers import MediaWorkers, fetching_first, taking_turns
from pocketvlm.server.app import create_app
from pocketvlm.server.connection import connections
from pocketvlm.server.heads import MAX_HEADERS
from pocketvlm.server.listening import Seldom, listen
from pocketvlm.server.log_writer import end_log
from pocketvlm.server.request_log import start_logging
from pocketvlm.server.settings import ServerSettings
from pocketvlm.server.tracing import Tracing, start_tracing
from pocketvlm.server.watchdog import Watchdog

logger = logging.getLogger(__name__)
KEEP_ALIVE_SECONDS = 15
MAX_FILES = 65536
OWN_FILES, FILES_OF_A_PROCESS = 48, 4  # open beside connections
SWITCH_SECONDS = 0.001  # a thread holds the GIL this long while the event loop waits; Python's default is 0.005


class Server(uvicorn.Server):
    """The first signal lets running answers finish, the second ends the process at once."""

    is_draining = False
    drain_seconds, drained_by = 0.0, math.inf  # `drained_by` by `time.monotonic()`

    def handle_exit(self, sig: int, _frame: FrameType | None) -> None:
        if self.is_draining:
            logger.warning("ended at once by a second signal")
            end_log()
            os._exit(128 + sig)
        self.is_draining = self.should_exit = True
        self.drained_by = time.monotonic() + self.drain_seconds


def serve(vlm: VLM, settings: ServerSettings, on_ready: Callable[[str], None], decoding: Decoding) -> None:
    """Serve a model until a signal ends it; closes the model.

    Args:
        on_ready: called with the URL once all requests can be answered, including those with pictures.
        decoding: of `decoding_of`, begun before so that its processes start while the model is loaded.

    Raises:
        ConfigError: the address cannot be listened on.
        EngineError: the engine has failed, or a process that decodes media cannot be started.
    """
    tracing = start_tracing(settings.otlp_endpoint)
    start_logging(settings)
    sys.setswitchinterval(SWITCH_SECONDS)
    settings = replace(settings, max_connections=_allow_files(settings))
    # No request opens a file of this machine, except in the folders of `media_roots`.
    vlm.processor.restrict(settings.media_limits)
    with listen(settings) as sock:
        try:
            vlm.processor.encode = decoding.encode
            decoding.wait()
            fault = asyncio.run(_serve(vlm, settings, sock, on_ready, tracing))
        finally:
            if tracing is not None:
                tracing.close()
            end_log()
    if fault:
        raise EngineError(fault)


async def _serve(
    vlm: VLM,
    settings: ServerSettings,
    sock: socket.socket,
    on_ready: Callable[[str], None],
    tracing: Tracing | None,
) -> str:
    """Returns why the engine failed; empty after a signal."""
    asyncio.get_running_loop().set_exception_handler(Seldom())
    model = AsyncVLM(vlm, max_in_flight=settings.max_in_flight, workers=settings.preprocess_threads)
    # The watchdog ends after the model is closed: an engine that hangs must not hold up the shutdown either.
    async with Watchdog(model.engine, settings.watchdog_seconds), model:
        app = create_app(model, settings, is_draining=lambda: server.is_draining, tracing=tracing)
        config = uvicorn.Config(
            app,
            http=connections(settings),
            ws="none",
            access_log=False,
            log_config=None,
            server_header=False,
            h11_max_incomplete_event_size=MAX_HEADERS,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            # What the model has is given up first, in words. This is for uploads, and for those who read nothing.
            timeout_graceful_shutdown=math.ceil(settings.drain_seconds) + 1,
        )
        server = Server(config)
        server.drain_seconds = settings.drain_seconds
        running = asyncio.create_task(server.serve(sockets=[sock]))
        while not (server.started or running.done()):
            await asyncio.sleep(0.01)
        try:
            if server.started:
                on_ready(url_of(*sock.getsockname()[:2]))
        except BaseException:  # nobody would know of the server: it ends as by a signal
            server.should_exit = True
            await running
            raise
        while not running.done():
            if not model.engine.is_alive:  # all that waited have been told
                server.should_exit = True
            if time.monotonic() >= server.drained_by:
                model.engine.abort_all()
            await asyncio.wait((running,), timeout=0.2)
        await running
        return model.engine.fault


@dataclass(frozen=True)
class Decoding:
    """What decodes media.

    Attributes:
        encode: may be called at once; it waits for a process that is still starting.
        wait: returns when all processes have answered; raises `EngineError` where one cannot be started.
    """

    encode: MediaEncoder
    wait: Callable[[], None] = lambda: None


@contextmanager
def decoding_of(settings: ServerSettings) -> Iterator[Decoding]:
    """Decode media within the block: in processes that start in the background, or in threads of this one."""
    if settings.preprocess_processes == 0:
        yield Decoding(fetching_first(taking_turns(encode_media, max(1, min(4, usable_cores())))))
        return
    with closing(MediaWorkers(settings.preprocess_processes, settings.decode_seconds)) as workers:
        workers.start()
        yield Decoding(fetching_first(workers.encode), workers.wait)


def url_of(host: str, port: int) -> str:
    """The URL for a browser on this machine. A wildcard such as 0.0.0.0 becomes loopback: not all can open it."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _allow_files(settings: ServerSettings) -> int:
    """Raise the limit of open files as far as the system allows; returns how many connections it has room for, at most
    as many as the settings allow."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return settings.max_connections
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft == resource.RLIM_INFINITY:
        return settings.max_connections
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    files = max(soft, wanted)
    room = max(1, files - OWN_FILES - FILES_OF_A_PROCESS * settings.preprocess_processes)
    if room < settings.max_connections:
        logger.warning("the limit of open files is %d (ulimit -n): at most %d connections are taken", files, room)
    return min(room, settings.max_connections)
