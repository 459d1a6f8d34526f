"""How the cores and GPUs of a cluster are shared among engines, and joining one for a run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pocketvlm.errors import ConfigError, need

_PREPARING = 0.25  # of a core that a task which decodes pictures is counted as, where engines take the cores


@contextmanager
def connected(address: str = "") -> Iterator[None]:
    """Within this block Ray is there, with no word of it on the terminal. What is started for it ends with the block.

    Args:
        address: as of `connection.cluster`; "" is that of $RAY_ADDRESS, or without one a cluster of this machine alone.

    Raises:
        MissingExtraError: Ray is not installed.
        ConfigError: there is no cluster at the address.
        EngineError: none could be started.
    """
    need("ray", "ray", "ray")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # of its processes, which write to the terminal otherwise
    import ray

    from pocketvlm.distributed.connection import cluster

    if ray.is_initialized():
        yield
        return
    with cluster(address or os.environ.get("RAY_ADDRESS", ""), logs=False):
        yield


def resources_of_cluster() -> tuple[dict[str, float], int]:
    """What a cluster has in all, as Ray counts it, and how many machines that are alive."""
    import ray

    ray_: Any = ray  # parts of it have no types
    return ray_.cluster_resources(), len([node for node in ray_.nodes() if node["Alive"]])


@dataclass(frozen=True, kw_only=True)
class Shares:
    """What of a cluster the parts of a run get.

    Attributes:
        engines: how many run.
        cores: that each of them computes with.
        gpus: of each: 1 or 0.
        engine_cpus, preparing_cpus: what Ray counts for an engine, and for a task that decodes pictures.
    """

    engines: int
    cores: int
    gpus: int
    engine_cpus: float
    preparing_cpus: float


def share(resources: dict[str, float], nodes: int, engines: int | None, cores: int | None, device: str) -> Shares:
    """Decide how many engines run, and with what.

    With GPUs there is an engine for each. Else there is one a machine with all its cores, or as many as asked for,
    which share the cores.

    Args:
        resources: of the whole cluster, as Ray counts them.
        nodes: machines.
        engines, cores: as asked for; None decides.
        device: of the engines, as `load` takes it.

    Raises:
        ConfigError: so much is not there.
    """
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
    if device.startswith("cuda") and not gpus:
        raise ConfigError(f"--device {device}: the cluster has no GPU", hint="Leave --device out, or give cpu.")
    if gpus and device != "cpu":
        engines = engines or gpus
        if engines > gpus:
            raise ConfigError(f"--engines {engines}: the cluster has {gpus} GPUs", hint="Give fewer, or --device cpu.")
        return Shares(engines=engines, cores=cores or 1, gpus=1, engine_cpus=cores or 1, preparing_cpus=1)
    engines = engines or (cpus // cores if cores else nodes)
    cores = cores or cpus // max(engines, 1)
    if engines < 1 or cores < 1 or engines * cores > cpus:
        wanted = f"{engines} engines of {max(cores, 1)} cores"
        raise ConfigError(f"{wanted} do not fit: the cluster has {cpus} cores", hint="Give smaller --engines.")
    # Decoding pictures is a hundredth of the work there; two tasks of it find room beside each engine.
    return Shares(engines=engines, cores=cores, gpus=0, engine_cpus=cores - 2 * _PREPARING, preparing_cpus=_PREPARING)
