"""How the cores and GPUs of a cluster are shared among engines, and joining one for a run."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple

from pocketvlm.errors import ConfigError, need

GPUS_WITHOUT_TORCH = (
    "the cluster has GPUs, but PyTorch is not installed here: everything runs on CPUs. "
    "Install it on all machines with: pip install 'pocketvlm[torch]'"
)
_GPU_ENGINE = 0.5  # of a core that an engine on a GPU is counted as, where nobody says more
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


class Machine(NamedTuple):
    """What of a machine Ray gives away."""

    cpus: int
    gpus: int = 0


def machines_of_cluster() -> list[Machine]:
    """Those that are alive and have something to give away: the head of a large cluster keeps its own cores."""
    import ray

    ray_: Any = ray  # parts of it have no types
    alive = [node["Resources"] for node in ray_.nodes() if node["Alive"]]
    machines = [Machine(int(has.get("CPU", 0)), int(has.get("GPU", 0))) for has in alive]
    return [machine for machine in machines if any(machine)]


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


def share(
    machines: Sequence[Machine], engines: int | None, cores: int | None, *, device: str = "auto", runtime: str = "auto"
) -> Shares:
    """Decide how many engines run, and with what.

    With GPUs there is an engine for each. Else there is one a machine, or as many as asked for, which share the cores:
    an engine has its cores on one machine.

    Args:
        engines, cores: as asked for; None decides.
        device, runtime: of the engines, as `load` takes them.

    Raises:
        ConfigError: so much is not there.
    """
    gpus, cpus = sum(machine.gpus for machine in machines), sum(machine.cpus for machine in machines)
    if gpus and not device.startswith("cuda") and leaves_gpus(device, runtime):
        logging.getLogger(__name__).warning(GPUS_WITHOUT_TORCH)
    if device.startswith("cuda"):
        if not gpus:
            raise ConfigError(f"--device {device}: the cluster has no GPU", hint="Leave --device out, or give cpu.")
        if device != "cuda":
            raise ConfigError(f"--device {device}: an engine on Ray sees one GPU", hint="Give --device cuda.")
        need("torch", "torch", "torch")
    if gpus and may_use_gpus(device, runtime):
        return _share_of_gpus(machines, engines, cores)
    if cores is None:
        wanted = engines or len(machines)
        cores = next((many for many in range(cpus, 0, -1) if _fitting(machines, many) >= wanted), 0)
    engines = engines or (_fitting(machines, cores) if cores else 0)
    if not cores or engines < 1 or engines > _fitting(machines, cores):
        wanted_cores, largest = max(cores, 1), max((machine.cpus for machine in machines), default=0)
        there = f"{len(machines)} machines with {cpus} cores in all, {largest} at most on one"
        raise ConfigError(
            f"{max(engines, 1)} engines of {wanted_cores} cores do not fit: the cluster has {there}",
            hint="Give smaller --engines or --engine-cores.",
        )
    # Decoding pictures is a hundredth of the work there; two tasks of it find room beside each engine.
    return Shares(engines=engines, cores=cores, gpus=0, engine_cpus=cores - 2 * _PREPARING, preparing_cpus=_PREPARING)


def may_use_gpus(device: str, runtime: str) -> bool:
    """Whether an engine with these options runs on a GPU that it is given: on PyTorch, if that is installed."""
    return device != "cpu" and runtime != "onnx" and find_spec("torch") is not None


def leaves_gpus(device: str, runtime: str) -> bool:
    """Whether engines with these options would run on GPUs if PyTorch were installed."""
    return device != "cpu" and runtime != "onnx" and find_spec("torch") is None


def _fitting(machines: Sequence[Machine], cores: int) -> int:
    """How many engines of so many cores the machines have room for."""
    return sum(machine.cpus // cores for machine in machines)


def _share_of_gpus(machines: Sequence[Machine], engines: int | None, cores: int | None) -> Shares:
    """An engine for each GPU, or fewer; a core at least is left for preparing pictures."""
    gpus = sum(machine.gpus for machine in machines)
    engines = engines or gpus
    if engines > gpus:
        raise ConfigError(f"--engines {engines}: the cluster has {gpus} GPUs", hint="Give fewer, or --device cpu.")
    each: float = cores or _GPU_ENGINE
    room = sum(min(machine.gpus, int(machine.cpus / each)) for machine in machines)
    left = sum(machine.cpus for machine in machines) - engines * each
    if engines > room or left < _GPU_ENGINE:
        raise ConfigError(
            f"{engines} engines of {each:g} cores and a GPU leave no core that prepares pictures",
            hint="Give smaller --engines or --engine-cores.",
        )
    return Shares(engines=engines, cores=cores or 1, gpus=1, engine_cpus=each, preparing_cpus=min(1.0, left))
