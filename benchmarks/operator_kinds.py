#!/usr/bin/env python3
"""Products by the compiled operators of each kind that this processor can run, and by standard ones: time of one core.

    python benchmarks/operator_kinds.py

Measured is the CPU time, the best of five in turns, so that what else the machine does changes little.
"""

from __future__ import annotations

import argparse
import os
import tempfile

from pocketvlm.api.operators import WORK, measured
from pocketvlm.bundle import PRESETS
from pocketvlm.kernels.onnx_ops import library
from pocketvlm.machine import CACHE_VARIABLE, processor_flags, processor_name


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    columns: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ[CACHE_VARIABLE] = folder  # nothing that was noted before
        for kind in [name for name, one in library.KINDS.items() if processor_flags() >= one.needs]:
            os.environ[library.INSTRUCTIONS_VARIABLE] = kind
            library.compiled_with.cache_clear()
            compiled = library.compiled()
            if compiled is None:
                raise SystemExit(f"the operators of {kind} cannot be compiled here")
            columns[kind], standard = {}, columns.setdefault("standard", {})
            for preset, bits in (("int8", 8), ("int4", 4)):
                for name, seconds in measured(PRESETS[preset], compiled).items():
                    if name == "views" and bits == 4:  # which have 8 in all presets
                        continue
                    row = f"{name}, {bits} bits"
                    columns[kind][row] = seconds["compiled"]
                    standard[row] = min(seconds["standard"], standard.get(row, seconds["standard"]))
    print(f"{processor_name()}, one core")
    print("| product | " + " | ".join(columns) + " |")
    for row in columns["standard"]:
        work = WORK[row.partition(",")[0]]
        operations = 2e-9 * work.rows * work.inputs * work.outputs
        cells = (f"{of[row] * 1e3:.3f} ms, {operations / of[row]:.0f}" for of in columns.values())
        print(f"| {row}: {work.rows} x {work.inputs} x {work.outputs} | " + " | ".join(cells) + " |")
    print("(milliseconds, 10^9 operations a second)")


if __name__ == "__main__":
    main()
