"""One replica: our application in a process of Ray, asked by messages of ASGI in place of a socket."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, suppress
from typing import Any

from ray import serve

from pocketvlm import __version__
from pocketvlm.distributed.serving.autoscaling import REQUESTS
from pocketvlm.errors import ConfigError
from pocketvlm.server.settings import ServerSettings

TOKENS = "pocketvlm.tokens"  # a message behind those of ASGI: what the request counts for its key
REPLICA_HEADER = b"x-pocketvlm-replica"
LEAVING_SECONDS = 5.0  # for a request whose client has left to end by itself
_GAUGES = ("pocketvlm:num_requests_running", "pocketvlm:num_requests_waiting")


class Replica:
    """Loads the model, and answers requests that the process in front has read.

    Args:
        values: of `ServerSettings`.
        cores: threads of one computation.
        version: of the package that asks for it; another than the one that is installed here is refused.
    """

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, values: Mapping[str, Any], cores: int, version: str
    ) -> None:
        if version != __version__:
            raise ConfigError(
                f"this machine has pocketvlm {__version__}, and the command is of {version}",
                hint="Install the same version on all machines of the cluster.",
            )
        limit_threads(cores)
        self._stack = AsyncExitStack()
        try:
            await self._start(ServerSettings(**values))
        except BaseException:
            await self._stack.aclose()
            raise

    async def _start(self, settings: ServerSettings) -> None:
        # PyTorch may come with these: not before the threads are counted.
        from pocketvlm.api.async_vlm import AsyncVLM
        from pocketvlm.api.vlm import load
        from pocketvlm.machine import use_one_heap
        from pocketvlm.processing.media_forkserver import start_early
        from pocketvlm.server.app import create_app
        from pocketvlm.server.log_writer import end_log
        from pocketvlm.server.request_log import start_logging
        from pocketvlm.server.run import SWITCH_SECONDS, decoding_of
        from pocketvlm.server.tracing import start_tracing
        from pocketvlm.server.watchdog import Watchdog

        use_one_heap()
        if settings.preprocess_processes:
            start_early()
        sys.setswitchinterval(SWITCH_SECONDS)
        tracing = start_tracing(settings.otlp_endpoint)
        if tracing is not None:
            self._stack.callback(tracing.close)
        start_logging(settings)
        self._stack.callback(end_log)
        decoding = self._stack.enter_context(decoding_of(settings))
        vlm = load(
            settings.model,
            device=settings.device,
            runtime=settings.runtime,
            quantization=settings.quantization,
            dtype=settings.dtype,
            adapters=settings.adapter_folders if settings.adapters else None,
            engine_config=settings.engine_config,
        )
        self._stack.enter_context(vlm)
        vlm.processor.restrict(settings.media_limits)
        vlm.processor.encode = decoding.encode
        decoding.wait()
        model = AsyncVLM(vlm, max_in_flight=settings.max_in_flight, workers=settings.preprocess_threads)
        self._engine = model.engine
        # The watchdog ends after the model is closed, as in `pocketvlm.server.run`.
        await self._stack.enter_async_context(Watchdog(model.engine, settings.watchdog_seconds))
        await self._stack.enter_async_context(model)
        self.app = create_app(model, settings, tracing=tracing)
        self._name = serve.get_replica_context().replica_id.unique_id

    async def answer(
        self,
        scope: dict[str, Any],
        body: bytes,
        attempt: int = 0,  # noqa: ARG002  (of the router, which sees it on its way)
    ) -> AsyncGenerator[list[dict[str, Any]], None]:
        """Messages of the response to one request, several at once where several are there.

        Closed or cancelled, the request is given up as if its client had left.
        """
        messages: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        left = asyncio.Event()
        waiting = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if waiting:
                return waiting.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (REPLICA_HEADER, self._name.encode())]}
            messages.put_nowait(dict(message))

        task = asyncio.create_task(self.app(scope, receive, send))
        task.add_done_callback(lambda _: messages.put_nowait(None))
        try:
            is_over = False
            while not is_over:
                found = [await messages.get()]
                while not messages.empty():
                    found.append(messages.get_nowait())
                is_over = found[-1] is None
                if said := [message for message in found if message is not None]:
                    yield said
            task.result()
            yield [{"type": TOKENS, "tokens": _tokens_of(scope)}]
        finally:
            left.set()
            if not task.done():
                await asyncio.wait((task,), timeout=LEAVING_SECONDS)
                task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task

    async def whole(self, scope: dict[str, Any]) -> tuple[str, int, bytes]:
        """The response to a request without a body: this replica's name, the status, and the body."""
        status, parts = 500, list[bytes]()
        async for messages in self.answer(scope, b""):
            for message in messages:
                status = message.get("status", status)
                parts.append(message.get("body", b""))
        return self._name, status, b"".join(parts)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Serve's hook: requests here, in preparation, waiting or running; several answers to one count as several."""
        gauges = self._engine.engine.metrics.registry
        in_engine = sum(gauges.get_sample_value(name) or 0.0 for name in _GAUGES)
        return {REQUESTS: max(in_engine, float(self.app.state.guard.load.in_flight))}

    def check_health(self) -> None:
        """Serve's hook: a replica whose engine has ended is replaced."""
        if not self._engine.is_alive:
            raise RuntimeError(self._engine.fault or "the engine has ended")

    async def __del__(self) -> None:
        """Serve calls it once no request is left."""
        if "_stack" in vars(self):
            await self._stack.aclose()


def limit_threads(cores: int) -> None:
    """Have each product take so many threads: replicas share a machine. Before PyTorch is imported."""
    for variable in ("OMP_NUM_THREADS", "LOKY_MAX_CPU_COUNT"):  # of PyTorch; of `usable_cores`
        os.environ[variable] = str(cores)


def _tokens_of(scope: Mapping[str, Any]) -> int:
    exchange = scope.get("pocketvlm.exchange")
    return exchange.prompt_tokens + exchange.answer_tokens if exchange is not None else 0
