"""Bundles that were made of checkpoints, kept in the user's cache."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from pocketvlm.bundle import FORMAT, Manifest, Operators, PartOperators, Quantization
from pocketvlm.errors import BundleCacheError, CheckpointError, ConfigError
from pocketvlm.export.new_directory import PARTIAL
from pocketvlm.machine import CACHE_VARIABLE, cache_directory
from pocketvlm.model.directory import ModelDirectory
from pocketvlm.model.hub import resolve

Progress = Callable[[int, int], None]
UNUSED = 90 * 24 * 3600  # seconds


def cached_bundle(
    checkpoint: Path | ModelDirectory,
    quantization: Quantization,
    progress: Progress | None = None,
    operators: Operators | PartOperators = "standard",
) -> Path:
    """The bundle of this checkpoint in the cache, made now if it is not there, or is damaged or old.

    Processes that want the same one wait for the first.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        BundleCacheError: no bundle can be kept.
        OutputError: there is no room for the bundle.
    """
    directory = resolve(checkpoint)
    source = directory.fingerprint
    made_of = PartOperators.of(operators)
    parts = (quantization.vision, quantization.decoder, quantization.head, made_of.vision, made_of.decoder)
    try:
        root = cache_directory() / "onnx"
    except OSError as error:
        hint = f"Name a folder in {CACHE_VARIABLE}."
        raise BundleCacheError(f"no bundle can be kept ({error.strerror})", hint=hint) from None
    place = root / f"{source}-{'-'.join(parts)}-f{FORMAT}"
    with suppress(OSError):  # a cache may be read-only; bundles get their names when they are whole
        with suppress(OSError):
            os.utime(place)  # it is in use
        if _is_whole(place, source):
            return place
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{place.name}.lock"):
            if _is_whole(place, source):
                return place
            for left in root.glob(f"{place.name}{PARTIAL}*"):  # of a process that was killed: the lock is ours
                shutil.rmtree(left, ignore_errors=True)
            shutil.rmtree(place, ignore_errors=True)
            from pocketvlm.export.onnx.bundle import write_bundle  # brings onnx_ir, which reading does without

            write_bundle(directory, place, quantization, progress, made_of)
        _remove_older(root, source)
        _remove_unused(root)
    except OSError as error:
        raise BundleCacheError(
            f"no bundle can be kept in {root} ({error.strerror or error})",
            hint=f"Make room there, or name another folder in {CACHE_VARIABLE}.",
        ) from None
    return place


def _remove_older(root: Path, source: str) -> None:
    """Remove the bundles of a checkpoint in formats of before, each the size of a model, which nothing reads now."""
    for old in root.glob(f"{source}-*"):
        named = re.fullmatch(r".*-f(\d+)(\.lock)?", old.name)
        if named is None or int(named[1]) >= FORMAT:
            continue
        if named[2]:
            with suppress(OSError):  # another user's, in a folder that all share
                old.unlink()
        else:
            shutil.rmtree(old, ignore_errors=True)


def _remove_unused(root: Path) -> None:
    """Remove bundles, of any format, that no process has loaded for so long, such as those of a training's checkpoints,
    and what processes left that were killed while they made or removed one. Locks stay: somebody may wait for one.
    """
    for place in root.glob("*-f*"):
        name, partial, _ = place.name.partition(PARTIAL)
        if re.fullmatch(r".*-f\d+", name) is None:
            continue
        with suppress(OSError):  # another user's, or it is being made (`Timeout` is an OSError)
            if partial or _is_unused(place):
                with FileLock(root / f"{name}.lock", timeout=0):
                    if not partial and _is_unused(place):
                        place = place.rename(place.with_name(f"{name}{PARTIAL}{os.getpid()}-unused"))
                        partial = PARTIAL
                    if partial:
                        shutil.rmtree(place)


def _is_unused(place: Path) -> bool:
    return time.time() - place.stat().st_mtime > UNUSED


def _is_whole(place: Path, source: str) -> bool:
    try:
        return Manifest.read(place).source == source
    except (CheckpointError, ConfigError):
        return False
