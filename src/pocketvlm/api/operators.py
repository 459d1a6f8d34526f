"""Which operators a bundle is made of here: those that are compiled for this processor, or standard ones.

Whichever multiplies faster is measured once for a machine, in about a second, and noted beside the compiled library:
for the tower by its product, for the decoder by those of a prompt and of an answer. Measured is the time of the
processor on one core, so that a busy machine chooses as a quiet one does.

Shapes:  T rows · K inputs · N outputs
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pocketvlm.api.tile_trial import try_tiles
from pocketvlm.bundle import OPERATORS, Operators, PartOperators, Quantization, Scheme
from pocketvlm.engine.runners.onnx_runner import import_onnxruntime, product_session
from pocketvlm.errors import PocketVLMError
from pocketvlm.kernels.onnx_ops import library

logger = logging.getLogger(__name__)
ROUNDS = 5
ADVANTAGE = 1.1  # of standard ones: compiled ones spare what stands around a product as well


@dataclass(frozen=True)
class Work:
    """A product [T, K] x [K, N], and how many of them a page of ten views with an answer of a hundred tokens is worth,
    of the published sizes."""

    rows: int
    inputs: int
    outputs: int
    times: int
    is_of_tower: bool = False


WORK: Mapping[str, Work] = {
    "views": Work(64, 1152, 1152, 28000, is_of_tower=True),
    "prompts": Work(64, 1024, 896, 9000),
    "steps": Work(1, 1024, 896, 60000),
}
Seconds = Mapping[Operators, float]  # of one product on one core


def choose_operators(quantization: Quantization) -> PartOperators:
    """What a bundle of this quantization is made of on this machine.

    Raises:
        ConfigError: what the environment asks for cannot be had.
    """
    if not quantization.suits_compiled or library.compiled() is None:
        return PartOperators()
    try_tiles()
    compiled = library.compiled()
    assert compiled is not None
    if library.is_named():
        return PartOperators.of("compiled")
    try:
        return faster(measured(quantization, compiled))
    except PocketVLMError:  # a package is missing, which is said
        raise
    except Exception as error:  # of ONNX Runtime: the library cannot be loaded from where it lies, or does not run
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        logger.warning("compiled operators cannot be used, standard ones are: %s", reason)
        return PartOperators()


def faster(seconds: Mapping[str, Seconds]) -> PartOperators:
    """What that page takes less time with, for tower and decoder apart; compiled where nothing was measured.

    Args:
        seconds: by the names of `WORK`, of one product each.
    """

    def chosen(*, of_tower: bool) -> Operators:
        mine = {name: of for name, of in seconds.items() if WORK[name].is_of_tower == of_tower}
        total = {kind: sum(WORK[name].times * of[kind] for name, of in mine.items()) for kind in OPERATORS}
        return "standard" if total["standard"] * ADVANTAGE < total["compiled"] else "compiled"

    return PartOperators(chosen(of_tower=True), chosen(of_tower=False))


def measured(quantization: Quantization, compiled: Path) -> dict[str, Seconds]:
    """Of each of `WORK` that is quantised, the seconds of one product, as noted before or measured now.

    Args:
        compiled: the library of operators.
    """
    schemes = {"views": quantization.vision, "prompts": quantization.decoder, "steps": quantization.decoder}
    if quantization.decoder == "fp32":
        schemes |= {"steps": quantization.head}
    wanted = {name: scheme for name, scheme in schemes.items() if scheme != "fp32"}
    version = import_onnxruntime().__version__
    notes = compiled.with_name(f"{compiled.stem}-{version}.json")
    known = _read(notes)
    missing = {name: scheme for name, scheme in wanted.items() if f"{name} {scheme}" not in known}
    sessions: dict[tuple[int, int, Scheme], Mapping[Operators, Any]] = {}
    for name, scheme in missing.items():
        work = WORK[name]
        key = (work.inputs, work.outputs, scheme)
        if key not in sessions:
            sessions[key] = _sessions(work, scheme, compiled)
        known[f"{name} {scheme}"] = _measure(work, sessions[key])
    if missing:
        _write(notes, known)
    return {name: known[f"{name} {scheme}"] for name, scheme in wanted.items()}


def describe(seconds: Mapping[str, Seconds]) -> str:
    """The figures, for people."""
    parts = (f"{name} {of['compiled'] * 1e3:.2f} / {of['standard'] * 1e3:.2f} ms" for name, of in seconds.items())
    return f"a product on one core, compiled / standard: {', '.join(parts)}"


def _measure(work: Work, sessions: Mapping[Operators, Any]) -> Seconds:
    x = np.random.default_rng(0).standard_normal((1, work.rows, work.inputs), np.float32)
    best = dict.fromkeys(OPERATORS, float("inf"))
    for number in range(ROUNDS + 1):  # in turns; the first is cold
        for kind, session in sessions.items():
            began = time.thread_time()  # sessions run on this thread alone
            session.run(None, {"x": x})
            spent = time.thread_time() - began
            best[kind] = min(best[kind], spent) if number else best[kind]
    return best


def _sessions(work: Work, scheme: Scheme, compiled: Path) -> Mapping[Operators, Any]:
    from pocketvlm.export.onnx.product import product_of_decoder, product_of_tower

    product = product_of_tower if work.is_of_tower else product_of_decoder
    bodies = {kind: product(work.inputs, work.outputs, scheme, compiled=kind == "compiled") for kind in OPERATORS}
    return {
        kind: product_session(body, compiled if kind == "compiled" else None, threads=1)
        for kind, body in bodies.items()
    }


def _read(notes: Path) -> dict[str, Seconds]:
    """What was noted; nothing of a file that is damaged."""
    try:
        found = json.loads(notes.read_text(encoding="utf-8"))
        return {name: {kind: float(of[kind]) for kind in OPERATORS} for name, of in found.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _write(notes: Path, known: Mapping[str, Seconds]) -> None:
    """Whole or not at all; where nothing can be kept the next process measures again."""
    partial = notes.with_name(f"{notes.name}.{os.getpid()}.partial")
    with suppress(OSError):
        partial.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
        partial.replace(notes)
