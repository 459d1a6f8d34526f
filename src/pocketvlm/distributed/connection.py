"""A cluster of Ray: one that is there, or one of this machine alone that ends with this process."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from pocketvlm.errors import ConfigError, EngineError, need
from pocketvlm.machine import usable_processors

need("ray", "ray", "ray")
import ray  # noqa: E402

CONNECT_SECONDS = 5.0
STARTS = 2  # Ray gives its own processes half a minute, which a machine that is busy may not keep


@dataclass(frozen=True)
class Cluster:
    """Attributes:
    address: for `--ray` of other commands.
    is_own: whether it was started here.
    """

    address: str
    is_own: bool

    def total(self, resource: str) -> float:
        """CPU or GPU of all machines together."""
        return float(ray.cluster_resources().get(resource, 0.0))

    def free(self, resource: str) -> float:
        """What of it nobody has taken."""
        return float(ray.available_resources().get(resource, 0.0))


@contextmanager
def cluster(
    address: str, *, processors: int | None = None, object_store: int | None = None, logs: bool = True
) -> Iterator[Cluster]:
    """Connect to a cluster within the block, or start one where `address` is empty.

    Args:
        address: HOST:PORT of its head, or auto, which is the one that runs on this machine.
        processors: that one of our own shares out; all of this machine by default.
        object_store: bytes for what is on its way in one of our own; more goes to the disk. None leaves it to Ray.
        logs: whether what processes of the cluster write is shown here.

    Raises:
        ConfigError: there is none at the address, or it is of another version.
        EngineError: none could be started.
    """
    where = _reached(address) if address else ""
    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        found = _joined(where, address == "auto", logs) if where else _started(processors, object_store, logs)
        yield found
    finally:
        with suppress(Exception):  # whatever is wrong with it, this process is through with it
            ray.shutdown()


def _joined(address: str, is_here: bool, logs: bool) -> Cluster:
    try:
        # Its reports of each attempt would bury the one line below. Ray finds the token of a cluster by "auto" only.
        with _nothing_said():
            ray.init("auto" if is_here else address, logging_level=logging.ERROR, log_to_driver=logs)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, ray.exceptions.RayError) as error:
        reason = " ".join(str(error).split())[:200]
        hint = "Give the address of a head; where it wants a token, set RAY_AUTH_MODE=token."
        raise ConfigError(f"--ray {address} cannot be joined ({reason})", hint=hint) from None
    return Cluster(address, is_own=False)


def _started(processors: int | None, object_store: int | None, logs: bool) -> Cluster:
    count = processors if processors is not None else usable_processors()
    for attempt in range(STARTS):
        try:
            ray.init(
                "local",
                num_cpus=count,
                include_dashboard=False,
                object_store_memory=object_store,
                logging_level=logging.ERROR,
                log_to_driver=logs,
            )
            break
        except Exception as error:  # it has no class of its own
            ray.shutdown()
            if attempt + 1 == STARTS:
                reason = " ".join(str(error).split())[:200]
                raise EngineError(f"Ray could not be started: {reason}") from None
    return Cluster(str(ray.get_runtime_context().gcs_address), is_own=True)


def _reached(address: str) -> str:
    """The address of a head that listens; Ray itself would wait for it for minutes."""
    said = address
    if address == "auto":
        named = os.environ.get("RAY_ADDRESS", "")
        address = named if named not in ("", "auto") else _running_here()
        if not address:
            raise ConfigError("--ray auto: no Ray runs on this machine", hint="Start it with: ray start --head")
    if address.startswith("ray://"):
        hint = "Run the command on a machine of the cluster, with --ray auto, or by `ray job submit`."
        raise ConfigError(f"--ray {said!r:.80} is an address for Ray's client, which runs too little", hint=hint)
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"--ray {said!r:.80} is no address", hint="Give HOST:PORT of Ray's head, or auto.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "no answer"
        raise ConfigError(
            f"--ray {address}: nothing listens there ({reason})", hint="Start Ray with: ray start --head --port 6379"
        ) from None
    return address


@contextmanager
def _nothing_said() -> Iterator[None]:
    """Leave stderr of native code to nobody within the block."""
    try:
        before = os.dup(2)
    except OSError:  # there is none
        yield
        return
    nobody = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nobody, 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nobody)


def _running_here() -> str:
    """The address that `ray start` has left on this machine; empty where there is none."""
    from ray._private.utils import read_ray_address  # what `ray.init("auto")` reads

    with suppress(OSError, ValueError):
        return str(read_ray_address() or "")
    return ""
