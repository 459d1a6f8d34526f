"""Bring the application onto a cluster, wait until it answers, and take away at the end what was started here."""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import FrameType
from typing import Any

from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException
from ray.serve.schema import LoggingConfig

from pocketvlm.distributed.cluster import GPUS_WITHOUT_TORCH, leaves_gpus, may_use_gpus
from pocketvlm.distributed.connection import Cluster, cluster
from pocketvlm.distributed.serving.application import NAME, application
from pocketvlm.distributed.serving_options import Shape
from pocketvlm.errors import ConfigError, EngineError, need
from pocketvlm.machine import usable_processors
from pocketvlm.server.listening import listen
from pocketvlm.server.settings import ServerSettings

OBJECT_STORE_BYTES = 2**29  # for bodies on their way
LOOK_SECONDS = 5.0  # between two looks at whether the cluster is still there
MISSES = 3  # such looks in a row without an answer
_ENDED = re.compile(r"(?:pocketvlm\.)?(?:\w+\.)*(\w*(?:Error|Exception|Exit)): (.+)")


class Stop:
    """The first signal ends the wait (or the start), the second the process."""

    def __init__(self) -> None:
        self._came = threading.Event()
        self.is_starting = True

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if self._came.is_set():
            os._exit(128 + number)
        self._came.set()
        if self.is_starting:
            raise KeyboardInterrupt

    def wait(self, seconds: float) -> bool:
        """Whether a signal has come within this time."""
        return self._came.wait(seconds)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM within the block; Ray sets handlers of its own as it starts."""
        before = {number: signal.signal(number, self) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def serve_on_ray(
    settings: ServerSettings,
    shape: Shape,
    address: str,
    on_ready: Callable[[str, str, bool], None],
    say: Callable[[str], None],
) -> None:
    """Serve until a signal ends it; where the application runs already, replace its replicas and return.

    Args:
        address: of a cluster; empty starts one here.
        on_ready: called with the URL, the address of the cluster, and whether the application is ours to end.
        say: shows one line to people.

    Raises:
        ConfigError: the cluster cannot be joined, is too small, or serves elsewhere; the port is taken.
        EngineError: replicas cannot be started, or the cluster has gone.
    """
    shape = _with_cores(shape) if not address else shape
    if not address:
        with listen(settings) as sock:  # before Ray takes its time to start
            settings = replace(settings, port=sock.getsockname()[1])
    stop = Stop()
    # Twice: Ray sets handlers of its own once it has started.
    with stop.listening(), cluster(address, object_store=OBJECT_STORE_BYTES) as found, stop.listening():
        is_open = shape.replica_gpus is None and not settings.device.startswith("cuda")
        if is_open and found.total("GPU") and leaves_gpus(settings.device, settings.runtime):
            say(GPUS_WITHOUT_TORCH)
        shape = _with_gpus(settings, shape, found)
        if lacking := _lacking(shape, found):
            if found.is_own:
                raise ConfigError(lacking, hint="Give fewer --replicas, or a smaller --replica-cpus or --replica-gpus.")
            say(f"{lacking}; the rest starts when machines join.")
        is_ours, is_own_serve = False, _running() is None
        try:
            settings = _start(settings, found)
            is_ours = NAME not in serve.status().applications
            _deploy(settings, shape, has_room=_has_room(shape, found, is_new=is_ours))
            stop.is_starting = False
            on_ready(_url(settings), found.address, is_ours)
            if is_ours:
                _wait(stop)
        finally:
            stop.is_starting = False
            _end(is_ours, is_own_serve)


def _with_cores(shape: Shape) -> Shape:
    """With an equal share of this machine for each replica, where nothing was given; seconds before Ray has started,
    `ConfigError` where the machine is too small."""
    processors = usable_processors()
    if shape.replica_cpus is None:
        share = processors / shape.most
        shape = replace(shape, replica_cpus=float(int(share)) if share >= 1 else share)
    if (needed := (shape.replica_cpus or 0.0) * shape.least) > processors:
        each = f"{shape.least} replicas of {shape.replica_cpus:g} processors"
        hint = "Give fewer --replicas or a smaller --replica-cpus."
        raise ConfigError(f"{each} need {needed:g}, this machine has {processors}", hint=hint)
    return shape


def _with_gpus(settings: ServerSettings, shape: Shape, found: Cluster) -> Shape:
    """With a GPU for each replica, where the cluster has some and nothing was given."""
    if settings.device == "cpu" or settings.runtime == "onnx":
        return shape
    if shape.replica_gpus:
        need("torch", "torch", "torch")
    if shape.replica_gpus is not None:
        return shape
    is_there = found.total("GPU") and may_use_gpus(settings.device, settings.runtime)
    return replace(shape, replica_gpus=1.0 if is_there else 0.0)


def _needs(shape: Shape) -> dict[str, float]:
    """What a replica takes, by the names of Ray's resources."""
    return {"CPU": 1.0 if shape.replica_cpus is None else shape.replica_cpus, "GPU": shape.replica_gpus or 0.0}


def _lacking(shape: Shape, found: Cluster) -> str:
    """What the cluster has too little of for the replicas that there must be; empty where it has enough."""
    for resource, each in _needs(shape).items():
        if each * shape.least > found.total(resource):
            has = f"the cluster has {found.total(resource):g} {resource}"
            return f"{shape.least} replicas of {each:g} {resource} each need {each * shape.least:g}, {has}"
    return ""


def _has_room(shape: Shape, found: Cluster, *, is_new: bool) -> bool:
    """Whether one replica more than there are, or may be, would find a place."""
    count = shape.most + 1 if is_new else 1
    return all(each * count <= found.free(resource) for resource, each in _needs(shape).items())


def _start(settings: ServerSettings, found: Cluster) -> ServerSettings:
    """Start Serve with its proxies, or find it; returns where it listens."""
    running = _running()
    if running is None and not settings.port:
        hint = "Give a --port that is free on all of them."
        raise ConfigError("port 0 is another one on each machine of a cluster", hint=hint)
    if running is None:
        serve.start(
            proxy_location=ProxyLocation.HeadOnly if found.is_own else ProxyLocation.EveryNode,
            http_options=HTTPOptions(host=settings.host, port=settings.port),
            logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
        )
        return settings
    host, port = running
    if (host, port) != (settings.host, settings.port) and settings.port:
        raise ConfigError(
            f"the cluster serves on {host} port {port}, not on {settings.host} port {settings.port}",
            hint=f"Give --host {host} --port {port}, or end what it serves with: serve shutdown",
        )
    return replace(settings, host=host, port=port)


def _running() -> tuple[str, int] | None:
    """Host and port of Serve on the cluster; None where it does not run."""
    client: Any = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return None
    return str(client.http_config.host), int(client.http_config.port)


def _deploy(settings: ServerSettings, shape: Shape, *, has_room: bool) -> None:
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        serve.run(application(settings, shape, has_room=has_room), name=NAME, route_prefix="/")
    except (RuntimeError, RayServeException) as error:
        raise EngineError(f"the replicas could not be started: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """What went wrong in a replica, of the text in which Serve tells of it: the last error that a line names."""
    texts = [str(error)]
    with suppress(Exception):
        app = serve.status().applications[NAME]
        texts += [one.message for one in app.deployments.values()]
    found = [match for text in texts for match in _ENDED.findall(text)]
    if found:
        return f"{found[-1][1]} ({found[-1][0]})"[:300]
    return " ".join(texts[0].split())[-300:]


def _url(settings: ServerSettings) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"


def _wait(stop: Stop) -> None:
    """Return at a signal; `EngineError` where the cluster has gone."""
    missed = 0
    while not stop.wait(LOOK_SECONDS):
        try:
            missed = 0 if NAME in serve.status().applications else MISSES
        except Exception:  # it may be busy
            missed += 1
        if missed >= MISSES:
            raise EngineError("the application has gone from the cluster")


def _end(is_ours: bool, is_own_serve: bool) -> None:
    """Let the replicas finish what they have, and take away what was started here."""
    with suppress(Exception):  # the cluster may have gone
        if is_ours:
            serve.delete(NAME)
    with suppress(Exception):
        if is_own_serve and not serve.status().applications:  # others may have put theirs there since
            serve.shutdown()
