"""pocketvlm serve --ray: replicas of the server on a cluster of Ray."""

from __future__ import annotations

import argparse
import os
from contextlib import suppress
from dataclasses import fields
from typing import Any

from pocketvlm.cli.console import ReaderLeftError, interrupts_count, put_json, say
from pocketvlm.distributed.serving_options import RANGES, Shape, check_settings
from pocketvlm.errors import ConfigError, need
from pocketvlm.server.settings import ServerSettings

OPTIONS: dict[str, tuple[type, str, str]] = {
    "replicas": (int, "N", "replicas of the model (default 2)"),
    "min_replicas": (int, "N", "fewest replicas where their number follows the requests (default 1)"),
    "max_replicas": (int, "N", "most replicas where their number follows the requests"),
    "target_requests": (int, "N", "requests for each replica, by which their number is chosen (default 8)"),
    "upscale_seconds": (
        float,
        "SECONDS",
        "how long more replicas must be wanted before one starts (with --min-replicas or --max-replicas; default 10)",
    ),
    "downscale_seconds": (
        float,
        "SECONDS",
        "how long fewer must be wanted before one ends (with --min-replicas or --max-replicas; default 300)",
    ),
    "replica_cpus": (
        float,
        "CPUS",
        "processors of each replica (default: an equal share where Ray is started here, else 1)",
    ),
    "replica_gpus": (
        float,
        "GPUS",
        "GPU of each replica, or a share of one (default 1 where there are GPUs and PyTorch is installed, else 0)",
    ),
    "ingresses": (int, "N", "processes that read requests and choose replicas (default 1)"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("many replicas, on Ray (extra ray)")
    group.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="serve replicas on the cluster of Ray at HOST:PORT (auto: of this machine), else at $RAY_ADDRESS, "
        "else on one started here",
    )
    for name, (kind, metavar, text) in OPTIONS.items():
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=metavar, help=text)


def shape_of(args: argparse.Namespace) -> Shape | None:
    """What the options ask for; None without --ray."""
    given = {name: getattr(args, name) for name in OPTIONS if getattr(args, name) is not None}
    for name, value in given.items():
        if args.ray is None:
            raise ConfigError(f"--{name.replace('_', '-')} is for --ray", hint="Give --ray as well.")
        RANGES[name].check(f"--{name.replace('_', '-')}", value)
    if args.ray is None:
        return None
    need("ray", "ray", "ray")
    return Shape(**given)


def run(args: argparse.Namespace, settings: ServerSettings, shape: Shape) -> int:
    """Serve; the options have been checked by `pocketvlm.cli.serve`."""
    check_settings(settings, {one.name: getattr(args, one.name) for one in fields(ServerSettings)})
    with interrupts_count():
        from pocketvlm.distributed.serving.run import serve_on_ray

    def on_ready(url: str, address: str, is_ours: bool) -> None:
        line: dict[str, Any] = {"url": url, "pid": os.getpid(), "ray": address}
        if args.json:
            with suppress(ReaderLeftError):
                put_json(line)
        elif is_ours:
            say(f"Serving at {url}/v1 on Ray at {address}; Ctrl-C ends it.")
        else:
            say(f"The replicas at {url}/v1 have been replaced; whoever started them ends them.")

    serve_on_ray(settings, shape, args.ray or os.environ.get("RAY_ADDRESS", ""), on_ready, say)
    return 0
