"""Operators of our own for ONNX Runtime, compiled once for this processor where a C++ compiler is there.

The sources are in `onnx_ops`. Where they cannot be compiled (another processor, no compiler), bundles are made of
standard operators, which compute the same in more nodes.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from pocketvlm.machine import cache_directory, processor_flags

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).parent
COMPILERS = ("c++", "g++", "clang++")  # after $CXX
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-fvisibility=hidden")
# What the kernels are written for; as in quantized_product.h.
NEEDED = {"avx512_vnni", "avx512bw", "avx512dq"}
TIMEOUT = 120


def compiler() -> str | None:
    """$CXX, else the first C++ compiler on the path."""
    names = (os.environ.get("CXX"), *COMPILERS)
    return next((found for name in names if name and (found := shutil.which(name))), None)


def is_possible() -> bool:
    """Whether this machine has what it takes; compiling may still fail."""
    return processor_flags() >= NEEDED and compiler() is not None


@cache
def compiled() -> Path | None:
    """The library to register with a session, compiled now (in seconds) if this was not done before; None where it
    cannot be."""
    flags, program = processor_flags(), compiler()
    if not program or not is_possible():
        return None
    key = hashlib.sha256(repr((program, FLAGS, sorted(flags))).encode())
    for source in sorted(SOURCES.glob("*.[hc]*")):
        key.update(source.read_bytes())
    try:
        file = cache_directory() / "operators" / f"{key.hexdigest()[:24]}.so"
        if not file.is_file():
            _compile(program, file)
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        logger.warning("operators were not compiled, standard ones are used: %s", reason.strip().splitlines()[0][:200])
        return None
    return file


def _compile(program: str, file: Path) -> None:
    """Compile beside the file first: processes that compile at once do not see each other's halves."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{file.stem}.partial-", dir=file.parent) as folder:
        out = Path(folder) / file.name
        command = [program, *FLAGS, str(SOURCES / "operators.cpp"), "-o", str(out)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT)
        out.replace(file)
