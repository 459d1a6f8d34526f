"""`pocketvlm tune --config FILE` and `--emit PROGRAM`: runs of ms-swift and LLaMA-Factory, both ways."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketvlm.cli.common import directory_of
from pocketvlm.cli.console import put, put_json, say
from pocketvlm.errors import ConfigError
from pocketvlm.training.interchange.programs import PROGRAMS
from pocketvlm.training.settings import TuneSettings

if TYPE_CHECKING:
    from pocketvlm.training.data.dataset import Dataset
    from pocketvlm.training.interchange.job import Job

_NANO = "nano"


def add_job(parser: argparse.ArgumentParser) -> None:
    """Add --config and --emit."""
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="settings and data of ms-swift or LLaMA-Factory (YAML, or args.json); options given here win",
    )
    parser.add_argument(
        "--emit", choices=PROGRAMS, help="write data and settings for that program into --out; train nothing"
    )


def job_of(args: argparse.Namespace) -> Job:
    """What --config says, an empty job without it. Fills in `args.model`, and `args.workers` where it is the default.

    Raises:
        ConfigError: neither data nor a file is given; or the file cannot be honoured.
    """
    from pocketvlm.training.interchange.job import Job

    if args.config is None:
        args.model = args.model or _NANO
        if not args.data:
            raise ConfigError("no DATA is given", hint="Name files or folders of conversations, or give --config.")
        if len(args.data) == 1 and args.data[0].endswith((".yaml", ".yml")):
            raise ConfigError(f"{args.data[0]} is no data", hint=f"For settings: --config {args.data[0]}")
        return Job()
    from pocketvlm.training.interchange.read import model_of, read_job, read_settings

    if not args.data and (args.sets or args.weights or args.media_dir):
        hint = "The file says these for its own."
        raise ConfigError("--sets, --weights and --media-dir are for DATA, and none is given", hint=hint)
    values, name = read_settings(args.config), str(args.config)
    args.model = args.model or model_of(values, name) or _NANO
    job = read_job(values, name, directory_of(args).config)
    args.workers = args.workers or min(job.workers, os.cpu_count() or 1)
    for note in job.notes:
        say(note)
    return job


def emit_job(
    args: argparse.Namespace,
    samples: Dataset,
    validation: Dataset | None,
    settings: TuneSettings,
    options: dict[str, Any],
) -> int:
    """Write the files, and say what runs them."""
    from pocketvlm.api.torch_devices import choose_device
    from pocketvlm.training.interchange.write import emit_job as emit

    model = None if args.model == _NANO or Path(args.model).exists() else args.model
    found = emit(
        args.emit,
        args.out,
        samples,
        settings,
        directory_of(args),
        validation=validation,
        options=options,
        model=model,
        on_cpu=args.device == "cpu",
    )
    for note in found.notes:
        say(f"different there: {note}")
    if args.device == "auto" and choose_device("auto").type == "cpu":
        say("it is for a graphics card; --device cpu writes it for this machine")
    if args.json:
        put_json({"out": str(args.out), **asdict(found)})
    else:
        put(f"{found.samples} samples to learn from, {found.validation} to measure with. Run: {found.command}")
    if found.bad:
        say(f"{len(found.bad)} samples were left out, such as {next(iter(found.bad.values()))}")
    return int(bool(found.bad))
