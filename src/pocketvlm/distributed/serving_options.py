"""How many replicas there are and what each takes, and which settings of a server hold among many. No Ray is needed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pocketvlm.errors import ConfigError
from pocketvlm.ranges import Range
from pocketvlm.server.settings import PREFIX, ServerSettings, option_of

REPLICAS = 2  # so that one may end, or be replaced, while another answers
TARGET_REQUESTS = 8
UPSCALE_SECONDS, DOWNSCALE_SECONDS = 10.0, 300.0
DAY = 86_400.0
COUNT, SHARE = Range(int, 1, 1000), Range(float, 0.0, 1024.0)
RANGES = {
    "replicas": COUNT,
    "min_replicas": COUNT,
    "max_replicas": COUNT,
    "target_requests": Range(int, 1, 100_000),
    "upscale_seconds": Range(float, 0.0, DAY),
    "downscale_seconds": Range(float, 0.0, DAY),
    "replica_cpus": SHARE,
    "replica_gpus": SHARE,
    "ingresses": Range(int, 1, 100),
}
# Setting → why it cannot be honoured by many replicas behind Ray's proxies.
_PROXIES = "Ray's proxies hold the connections"
REFUSED = {
    "header_seconds": _PROXIES,
    "send_seconds": _PROXIES,
    "max_connections": _PROXIES,
    "adapter_roots": "an adapter that one replica has loaded, others and later ones have not; name it with --adapter",
    "mcp": "its sessions live in one process; use `pocketvlm mcp`",
    "mcp_roots": "its sessions live in one process; use `pocketvlm mcp`",
}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How many, and what each takes.

    Attributes:
        replicas: a fixed number; None where `min_replicas` and `max_replicas` bound it.
        target_requests: that each should have, for the number that is chosen between the bounds; also by how many a
            replica may have more than another before its conversations go elsewhere.
        upscale_seconds, downscale_seconds: for which more, or fewer, have to be wanted; None is `UPSCALE_SECONDS` and
            `DOWNSCALE_SECONDS`.
        replica_cpus, replica_gpus: of each replica; None is chosen by the cluster. The GPU may be a share of one.
        ingresses: processes in front that read requests.
    """

    replicas: int | None = None
    min_replicas: int | None = None
    max_replicas: int | None = None
    target_requests: int = TARGET_REQUESTS
    upscale_seconds: float | None = None
    downscale_seconds: float | None = None
    replica_cpus: float | None = None
    replica_gpus: float | None = None
    ingresses: int = 1

    def __post_init__(self) -> None:
        for name, allowed in RANGES.items():
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, allowed.check(name, value))
        if self.replicas is not None and self.scales:
            raise ConfigError("replicas is a fixed number", hint="Give it, or min_replicas and max_replicas.")
        for name in ("upscale_seconds", "downscale_seconds"):
            if getattr(self, name) is not None and not self.scales:
                raise ConfigError(
                    f"{name} is for a number that changes", hint="Give min_replicas or max_replicas as well."
                )
        if self.scales and self.least > self.most:
            raise ConfigError(f"min_replicas={self.least} is more than max_replicas={self.most}")
        if self.replica_gpus is not None and self.replica_gpus > 1:
            raise ConfigError(f"replica_gpus={self.replica_gpus:g}, a replica runs on one GPU at most")

    @property
    def scales(self) -> bool:
        """Whether the number follows the requests."""
        return self.min_replicas is not None or self.max_replicas is not None

    @property
    def least(self) -> int:
        """Replicas that there are at any time."""
        return (self.min_replicas or 1) if self.scales else (self.replicas or REPLICAS)

    @property
    def most(self) -> int:
        """Replicas that there may be."""
        return (self.max_replicas or max(self.least, REPLICAS)) if self.scales else self.least


def check_settings(
    settings: ServerSettings, options: Mapping[str, Any], environment: Mapping[str, str] = os.environ
) -> None:
    """`ConfigError` for a setting that was given and would not be honoured.

    Args:
        options: of the command line; None where not given.
    """
    for one in fields(settings):
        reason = REFUSED.get(one.name)
        is_given = options.get(one.name) is not None or f"{PREFIX}{one.name.upper()}" in environment
        if reason and (is_given or getattr(settings, one.name) != one.default):
            raise ConfigError(f"{option_of(one.name)} is not possible with --ray: {reason}")
    if settings.device.startswith("cuda:"):
        raise ConfigError(f"--device {settings.device} is not possible with --ray", hint="Ray chooses GPUs: use cuda.")


def travelling(settings: ServerSettings) -> dict[str, Any]:
    """Values of settings for other processes: files and folders by their whole paths, as these start elsewhere."""
    values = asdict(settings)
    values["adapters"] = tuple(f"{name}={folder.absolute()}" for name, folder in settings.adapter_folders.items())
    values["media_roots"] = tuple(str(Path(root).absolute()) for root in settings.media_roots)
    if settings.api_key_file:
        values["api_key_file"] = str(Path(settings.api_key_file).absolute())
    if Path(settings.model).expanduser().is_dir():
        values["model"] = str(Path(settings.model).expanduser().absolute())
    return values
