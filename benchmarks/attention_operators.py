#!/usr/bin/env python3
"""Causal attention of the published size by ONNX Runtime's `GroupQueryAttention` and by ours, on
vectors and on tile registers: time of one core.

    python benchmarks/attention_operators.py

Measured is the CPU time, the best of some in turns, so that what else the machine does changes little.

Shapes:  B sequences · S new tokens of each · H heads · G heads of keys and values · E head dim · L capacity
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir

from pocketvlm.engine.runners.onnx_runner import product_session
from pocketvlm.export.onnx.graph import GraphBuilder
from pocketvlm.kernels.onnx_ops import library
from pocketvlm.machine import processor_flags, processor_name

FLOAT, INT32 = ir.DataType.FLOAT, ir.DataType.INT32
HEADS, GROUPS, DIM, LAYERS = 8, 2, 256, 6
CASES = [
    (1, 700, 0),
    (1, 256, 0),
    (1, 256, 1000),
    (1, 256, 8000),
    (1, 256, 31744),
    (1, 1, 1000),
    (1, 1, 31744),
    (8, 1, 1000),
]


def graph(operators: Path | None) -> bytes:
    g = GraphBuilder("attention", compiled=operators is not None)
    q, k, v = (
        g.input(name, FLOAT, ("batch", "new", heads * DIM))
        for name, heads in (("q", HEADS), ("k", GROUPS), ("v", GROUPS))
    )
    shape = ("batch", GROUPS, "capacity", DIM)
    past = [g.input(f"past_{name}", FLOAT, shape) for name in ("key", "value")]
    lengths, total = g.input("seqlens_k", INT32, ("batch",)), g.input("total", INT32, ())
    heads = {"num_heads": HEADS, "kv_num_heads": GROUPS}
    if operators:
        out, *present = g.own("CausalAttention", q, k, v, *past, lengths, outputs=3, **heads)
    else:
        out, *present = g.contrib("GroupQueryAttention", q, k, v, *past, lengths, total, outputs=3, **heads)
    g.output("out", out, FLOAT, ("batch", "new", HEADS * DIM))
    for name, value in zip(("key", "value"), present, strict=True):
        g.output(f"present_{name}", value, FLOAT, shape)
    return ir.to_proto(g.model()).SerializeToString()


def bound(operators: Path | None, batch: int, new: int, before: int, threads: int) -> Callable[[], float]:
    """Runs the operator once, its caches written where they are; returns the seconds of the processor."""
    session = product_session(graph(operators), operators, threads=threads)
    generator = np.random.default_rng(0)
    arrays = {
        "q": generator.standard_normal((batch, new, HEADS * DIM), np.float32),
        "k": generator.standard_normal((batch, new, GROUPS * DIM), np.float32),
        "v": generator.standard_normal((batch, new, GROUPS * DIM), np.float32),
        "past_key": generator.standard_normal((batch, GROUPS, before + new, DIM), np.float32),
        "past_value": generator.standard_normal((batch, GROUPS, before + new, DIM), np.float32),
        "seqlens_k": np.full(batch, before + new - 1, np.int32),
        "total": np.array(before + new, np.int32),
    }
    binding = session.io_binding()
    for name, array in arrays.items():
        binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    binding.bind_output("out", "cpu")
    for name in ("key", "value"):
        array = arrays[f"past_{name}"]
        binding.bind_output(f"present_{name}", "cpu", 0, np.float32, array.shape, array.ctypes.data)

    def run() -> float:
        assert arrays  # what is bound stays alive
        began = time.thread_time() if threads == 1 else time.perf_counter()
        session.run_with_iobinding(binding)
        return (time.thread_time() if threads == 1 else time.perf_counter()) - began

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of more than one the time of the clock is measured")
    args = parser.parse_args()
    vectors = library.compiled("off")
    if vectors is None:
        raise SystemExit("operators cannot be compiled here")
    contenders = {"GroupQueryAttention": None, f"CausalAttention, {library.kind_of(vectors)}": vectors}
    if processor_flags() >= library.TILE_FLAGS and library.kind_of(vectors) == "avx512":
        contenders["on tiles"] = library.compiled("amx")
    print(f"{processor_name()}, {args.threads} threads, milliseconds of one layer (ns a pair of tokens in {LAYERS})")
    print(f"| sequences, new tokens, tokens before | {' | '.join(contenders)} |")
    for batch, new, before in CASES:
        runs = [bound(which, batch, new, before, args.threads) for which in contenders.values()]
        best = [float("inf")] * len(runs)
        for number in range(args.rounds + 1):  # in turns; the first is cold
            for i, run in enumerate(runs):
                spent = run()
                best[i] = min(best[i], spent) if number else best[i]
        pairs = batch * new * (before + (new + 1) / 2)
        cells = [f"{one * 1e3:.2f} ({one * LAYERS / pairs * 1e9:.0f}; {best[0] / one:.2f} x)" for one in best]
        print(f"| {batch}, {new}, {before} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
