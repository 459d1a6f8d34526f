"""Whether products and attention of views on the tile registers of this processor (AMX) give the same bits as those on
vectors, in less time. Attention of prompts, which rounds otherwise on tiles, goes with them.

Found out once for a machine and noted beside the library, in a process of its own: nothing else of this program runs
before on tiles, and if the instructions end the process, tiles are not used.

    python -m pocketvlm.api.tile_trial PLAIN TILED      # prints {"is_equal": …, "seconds": {…}}

Shapes:  T rows · K inputs · N outputs · E head dim
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pocketvlm.engine.runners.onnx_runner import product_session
from pocketvlm.kernels.onnx_ops import library

logger = logging.getLogger(__name__)
ADVANTAGE = 1.05  # in time, that is noise below it
SECONDS = 120  # of the whole trial
EACH = 0.1  # seconds of a product: in a few rounds of less than a millisecond a neighbour decides
DAY = 86_400
SLOWER = 1.15  # and none of them takes more than this share of its time on vectors
# T, K, N of a view's and of a prompt's products at the published size; of one that fills neither tiles nor panels; and
# of one whose inputs are not all multiplied at once, with GELU.
PRODUCTS = {
    "views": (64, 1152, 1152),
    "prompts": (64, 1024, 896),
    "odd": (45, 1072, 97),
    "long": (45, 2352, 97),
}
ATTENTIONS = {"attention": (250, 72)}  # T, E; the last tiles are not full


def try_tiles() -> None:
    """Have the trial, unless it was had before or there is nothing to try."""
    if not library.has_tiles_to_try():
        return
    place = library.library_with_tiles()
    if place is None or library.verdict_of(place) is not None:
        return
    plain, tiled = library.compiled_with("off"), library.compiled_with("amx")
    if plain is None:
        return
    found = _refused("they cannot be compiled", again=True) if tiled is None else _trial_of(plain, tiled)
    if not found["is_better"]:
        logger.warning("products stay on vectors: tiles: %s", found["why"])
    library.note_verdict(place, found)


def _refused(why: str, said: Mapping[str, Any] | None = None, *, again: bool = False) -> dict[str, Any]:
    """Tiles are not used; `again`: it may have been by chance, so that the trial is had again on another day."""
    return {"is_better": False, "why": why, **({"until": time.time() + DAY} if again else {}), **(said or {})}


def _trial_of(plain: Path, tiled: Path) -> dict[str, Any]:
    """`is_better`, `why` it is not, and what the trial said."""
    command = [sys.executable, "-P", "-m", __name__, str(plain), str(tiled)]
    # This process found the package somewhere; a folder that happens to be the working directory is no such place.
    path = os.pathsep.join(place or str(Path.cwd()) for place in sys.path)
    try:
        run = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
            env={**os.environ, "PYTHONPATH": path},
        )
        said = json.loads(run.stdout) if run.returncode == 0 else None
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return _refused(f"the trial failed: {type(error).__name__}", again=True)
    if said is None:
        last = (run.stderr.strip().splitlines() or [""])[-1][:200]
        by_instruction = run.returncode in (-signal.SIGILL, -signal.SIGSEGV, -signal.SIGBUS)
        return _refused(f"the trial ended with status {run.returncode} {last}".rstrip(), again=not by_instruction)
    if not said["is_equal"]:
        return _refused("products give something else", said)
    took = [sum(of[kind] for of in said["seconds"].values()) for kind in ("plain", "tiled")]
    if took[0] < took[1] * ADVANTAGE:
        return _refused(f"products take {took[1] / took[0]:.2f} of the time", said, again=True)
    for name, of in said["seconds"].items():
        if of["tiled"] > of["plain"] * SLOWER:
            return _refused(f"{name} take {of['tiled'] / of['plain']:.2f} of the time", said, again=True)
    return {"is_better": True, **said}


def compare(plain: Path, tiled: Path) -> dict[str, Any]:
    """Whether all outputs are equal, and the seconds of the processor of each, the best of some in turns."""
    from pocketvlm.export.onnx.product import attention_of_tower, product_of_tower

    is_equal, seconds = True, dict[str, dict[str, float]]()
    graphs = {
        name: (rows, inputs, product_of_tower(inputs, outputs, "int8", compiled=True, gelu=name == "long"))
        for name, (rows, inputs, outputs) in PRODUCTS.items()
    }
    graphs |= {name: (rows, 3 * dim, attention_of_tower(dim, 1)) for name, (rows, dim) in ATTENTIONS.items()}
    for name, (rows, inputs, graph) in graphs.items():
        sessions = {
            "plain": product_session(graph, plain, threads=1),
            "tiled": product_session(graph, tiled, threads=1),
        }
        x = np.random.default_rng(0).standard_normal((1, rows, inputs), np.float32)
        best = dict.fromkeys(sessions, float("inf"))
        total, number = 0.0, 0
        while total < EACH or number < 3:  # the first is cold
            made = {}
            for kind, session in sessions.items():
                began = time.thread_time()  # sessions run on this thread alone
                (made[kind],) = session.run(None, {"x": x})
                spent = time.thread_time() - began
                best[kind] = min(best[kind], spent) if number else best[kind]
                total += spent
            number += 1
            is_equal &= made["plain"].tobytes() == made["tiled"].tobytes()
        seconds[name] = best
    return {"is_equal": is_equal, "seconds": seconds}


if __name__ == "__main__":
    print(json.dumps(compare(Path(sys.argv[1]), Path(sys.argv[2]))))
