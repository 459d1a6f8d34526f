"""Operators of our own for ONNX Runtime, compiled once for this processor where a C++ compiler is there.

The sources are in `onnx_ops`. Where they cannot be compiled (another processor, no compiler), bundles are made of
standard operators, which compute the same in more nodes.

They are written for several kinds of processors (`KINDS`), and give the same on all of them. `POCKETVLM_INSTRUCTIONS`
names the one to use, or "standard" for none. On Intel's newer servers products of many rows and attention can run on
tile registers (AMX): they do where a trial on the machine itself gave the same bits in less time (`api.tile_trial`), or
where `POCKETVLM_TILES=amx` asks for it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pocketvlm.errors import ConfigError
from pocketvlm.machine import cache_directory, processor_flags

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).parent
COMPILERS = ("c++", "g++", "clang++")  # after $CXX
# A product and a sum become one operation only where the sources say so: otherwise a compiler decides it anew for each
# place that computes a number, and two that should be equal are not.
COMPUTING = ("-std=c++17", "-O3", "-ffp-contract=off")
FLAGS = (*COMPUTING, "-fPIC", "-shared", "-fvisibility=hidden")


@dataclass(frozen=True)
class Kind:
    """A kind of processor.

    Attributes:
        needs: instruction sets, as Linux names them.
        flags: of the compiler.
    """

    needs: frozenset[str]
    flags: tuple[str, ...]


# The best first; the macros that these flags set choose the headers in vectors.h and products.h.
_AVX2 = frozenset({"avx2", "fma"})
KINDS: Mapping[str, Kind] = {
    "avx512": Kind(frozenset({"avx512_vnni", "avx512bw", "avx512dq"}), ("-march=native", "-DPOCKETVLM_AVX512")),
    "avx_vnni": Kind(_AVX2 | {"avx_vnni"}, ("-mavx2", "-mfma", "-mavxvnni")),
    "avx2": Kind(_AVX2, ("-mavx2", "-mfma")),
    "neon": Kind(frozenset({"asimddp"}), ("-march=armv8.2-a+dotprod",)),
}
INSTRUCTIONS_VARIABLE = "POCKETVLM_INSTRUCTIONS"
STANDARD = "standard"
TIMEOUT = 120
TILES_VARIABLE = "POCKETVLM_TILES"
AUTO = "auto"
TILES = {"off": 0, "amx": 1, "plain": 2}  # as in tiles.h; "plain" computes the same without the instructions, slowly
TILE_FLAGS = {"amx_tile", "amx_int8"}


def compiler() -> str | None:
    """$CXX, else the first C++ compiler on the path."""
    names = (os.environ.get("CXX"), *COMPILERS)
    return next((found for name in names if name and (found := shutil.which(name))), None)


def wanted_kinds() -> tuple[str, ...]:
    """The kinds of processor that operators may be compiled for, the best first; none where standard ones are used.

    Raises:
        ConfigError: `INSTRUCTIONS_VARIABLE` names none, or one that this processor is not of.
    """
    wanted, flags = os.environ.get(INSTRUCTIONS_VARIABLE) or "auto", processor_flags()
    if wanted not in ("auto", STANDARD, *KINDS):
        known = ", ".join(("auto", STANDARD, *KINDS))
        raise ConfigError(f"{INSTRUCTIONS_VARIABLE}={wanted} is unknown", hint=f"Use one of {known}.")
    if wanted in KINDS and not flags >= KINDS[wanted].needs:
        lacks = ", ".join(sorted(KINDS[wanted].needs - flags))
        raise ConfigError(f"{INSTRUCTIONS_VARIABLE}={wanted}: this processor has no {lacks}", hint="Unset it.")
    if wanted != "auto":
        return () if wanted == STANDARD else (wanted,)
    return tuple(name for name, kind in KINDS.items() if flags >= kind.needs)


def kind_of(library: Path) -> str:
    """What a compiled library is made for, of `KINDS`; with "+amx" or "+plain" where products run on tiles."""
    return library.stem.partition("-")[0]


def is_named() -> bool:
    """Whether the environment says what is used; otherwise the faster operators are, see `api.operators`."""
    return (os.environ.get(INSTRUCTIONS_VARIABLE) or "auto") != "auto"


def wanted_tiles() -> str:
    """What `TILES_VARIABLE` asks for, of `TILES`, or "auto".

    Raises:
        ConfigError: it is none of them, or what this processor has not.
    """
    wanted = os.environ.get(TILES_VARIABLE) or AUTO
    if wanted not in (AUTO, *TILES):
        raise ConfigError(f"{TILES_VARIABLE}={wanted} is unknown", hint=f"Use one of {', '.join((AUTO, *TILES))}.")
    if wanted == "amx" and not processor_flags() >= TILE_FLAGS:
        raise ConfigError(f"{TILES_VARIABLE}=amx: this processor has no AMX", hint="Unset it.")
    return wanted


def has_tiles_to_try() -> bool:
    """Whether the processor has tiles, and nobody says whether to use them."""
    return wanted_tiles() == AUTO and processor_flags() >= TILE_FLAGS and wanted_kinds()[:1] == ("avx512",)


def compiled(tiles: str | None = None) -> Path | None:
    """The library to register with a session, compiled now (in seconds) if this was not done before; None where it
    cannot be.

    Args:
        tiles: of `TILES`; as `wanted_tiles` says when None, and where that leaves it open as the trial found.

    Raises:
        ConfigError: what the environment asks for cannot be had.
    """
    tiles = tiles or wanted_tiles()
    if tiles != AUTO:
        return compiled_with(tiles)
    tiled = library_with_tiles() if has_tiles_to_try() else None
    # `Path.is_file` raises where a folder above may not be entered.
    is_there = tiled is not None and os.path.isfile(tiled)  # noqa: PTH113
    return tiled if tiled is not None and is_there and verdict_of(tiled) else compiled_with("off")


def library_with_tiles() -> Path | None:
    """Where the library with the tiles of this processor is, or would be; None where it cannot be compiled or kept."""
    program = compiler()
    try:
        return _place("avx512", program, "amx") if program else None
    except OSError:
        return None


_verdicts: dict[Path, bool] = {}  # of this process, where none could be noted


def trial_notes(tiled: Path) -> Path:
    """Where it is noted how the trial of a library with tiles went."""
    return tiled.with_suffix(".trial.json")


def note_verdict(tiled: Path, found: Mapping[str, Any]) -> None:
    """Keep what a trial found: `is_better`, and `until`, in seconds since 1970, where it should be had again."""
    _verdicts[tiled] = bool(found["is_better"])
    notes = trial_notes(tiled)
    partial = notes.with_name(f"{notes.name}.{os.getpid()}.partial")
    with suppress(OSError):  # the next process tries again
        notes.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        partial.replace(notes)


def verdict_of(tiled: Path) -> bool | None:
    """What the trial found of a library with tiles; None where there was none yet, or it should be had again."""
    try:
        noted = json.loads(trial_notes(tiled).read_text(encoding="utf-8"))
        return bool(noted["is_better"]) if time.time() < noted.get("until", float("inf")) else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return _verdicts.get(tiled)


@cache
def compiled_with(tiles: str) -> Path | None:
    """As `compiled`, for one of `TILES`.

    Raises:
        ConfigError: as there.
    """
    kinds, program = wanted_kinds(), compiler()
    if tiles != "off" and kinds[:1] != ("avx512",):
        raise ConfigError(f"{TILES_VARIABLE}={tiles} goes with the operators of avx512 only", hint="Unset it.")
    # Of the other kinds none has tiles.
    for kind in (kinds if tiles == "off" else kinds[:1]) if program else ():
        assert program is not None
        if (file := _made(kind, program, tiles)) is not None:
            return file
    asked = f"{INSTRUCTIONS_VARIABLE}={kinds[0]}" if kinds and is_named() else None
    if tiles != "off":
        asked = f"{TILES_VARIABLE}={tiles}" if wanted_tiles() == tiles else None
    if asked:
        raise ConfigError(f"{asked}: these operators cannot be compiled here", hint="Unset it.")
    return None


def _place(kind: str, program: str, tiles: str) -> Path:
    """Where the library of a kind is kept; `OSError` where nothing can be."""
    name = kind if tiles == "off" else f"{kind}+{tiles}"
    key = hashlib.sha256(repr((program, _options(kind, tiles), sorted(processor_flags()))).encode())
    for source in sorted(SOURCES.glob("*.[hc]*")):
        key.update(source.read_bytes())
    return cache_directory() / "operators" / f"{name}-{key.hexdigest()[:24]}.so"


def _options(kind: str, tiles: str) -> tuple[str, ...]:
    return (*FLAGS, *KINDS[kind].flags, f"-DPOCKETVLM_TILES={TILES[tiles]}")


def _made(kind: str, program: str, tiles: str) -> Path | None:
    """The library of a kind, or None where it cannot be compiled."""
    try:
        file = _place(kind, program, tiles)
        if not file.is_file():
            _compile([program, *_options(kind, tiles)], file)
    except (OSError, subprocess.SubprocessError) as error:
        with_tiles = "" if tiles == "off" else f" with tiles ({tiles})"
        logger.warning("operators of %s%s were not compiled: %s", kind, with_tiles, _reason(error))
        return None
    return file


def _reason(error: OSError | subprocess.SubprocessError) -> str:
    """What a compiler says is wrong, in a line: it begins with where it was included from."""
    lines = [line.strip() for line in str(getattr(error, "stderr", None) or "").splitlines() if line.strip()]
    named = (line for line in lines if "error" in line.lower())
    return next(named, lines[-1] if lines else str(error))[:200]


def _compile(command: Sequence[str], file: Path) -> None:
    """Compile beside the file first: processes that compile at once do not see each other's halves."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{file.stem}.partial-", dir=file.parent) as folder:
        out = Path(folder) / file.name
        whole = [*command, str(SOURCES / "operators.cpp"), "-o", str(out)]
        subprocess.run(whole, check=True, capture_output=True, text=True, timeout=TIMEOUT)
        with out.open("rb") as made:  # a power cut must not leave a name without what it names
            os.fsync(made.fileno())
        out.replace(file)
