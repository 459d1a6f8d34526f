"""The options of `batch`, `read` and `extract` that let many engines work on Ray."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING

from pocketvlm.cli.common import PLACES, directory_of
from pocketvlm.errors import ConfigError
from pocketvlm.ranges import Range

if TYPE_CHECKING:
    from pocketvlm.distributed.fleet import Fleet

RANGES = {"engines": Range(int, 1, nullable=True), "engine_cores": Range(int, 1, nullable=True)}
# What may follow --ray: anything else is the next argument of the command.
_ADDRESS = re.compile(r"auto|ray://\S+|[^\s/]+:\d+")


def add_ray(parser: argparse.ArgumentParser) -> None:
    """Add --ray and what goes with it."""
    where = "host:port of a cluster, auto for this machine's, or nothing: $RAY_ADDRESS, else a new one of this machine"
    parser.add_argument("--ray", nargs="?", const="", metavar="ADDRESS", help=f"answer on Ray. {where}")
    many = "with --ray: how many engines (default: one a GPU where PyTorch is installed, else one a machine)"
    parser.add_argument("--engines", type=int, metavar="N", help=many)
    parser.add_argument("--engine-cores", type=int, metavar="N", help="with --ray: cores of each engine")


def join_address(arguments: Sequence[str]) -> list[str]:
    """The arguments with an address behind --ray joined to it, so that nothing else is taken for one."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] == "--ray" and _ADDRESS.fullmatch(argument):
            joined[-1] = f"--ray={argument}"
        else:
            joined.append(argument)
    return [f"{argument}=" if argument == "--ray" else argument for argument in joined]


def check_ray(args: argparse.Namespace) -> None:
    """Refuse options that nothing would come of."""
    for name in RANGES:
        if args.ray is None and (value := getattr(args, name)) is not None:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{option} {value} is for runs on Ray", hint="Pass --ray as well.")


@contextmanager
def fleet_of(args: argparse.Namespace) -> Iterator[Fleet]:
    """The engines that a command asks for."""
    from pocketvlm.distributed.fleet import open_fleet
    from pocketvlm.distributed.stages import ModelSpec

    spec = ModelSpec.of(directory_of(args), {name: getattr(args, name) for name in PLACES})
    options = {"engines": args.engines, "cores": args.engine_cores, "ahead": args.concurrency}
    # Ray tells of processes that have ended on stdout, which is for what the command was asked for.
    with redirect_stdout(sys.stderr), open_fleet(args.ray, spec, **options) as fleet:
        yield fleet
