#!/usr/bin/env python3
"""The gated delta rule of the published size by ONNX Runtime's `LinearAttention` and by ours: time of one core.

    python benchmarks/delta_rule_operators.py

Measured is the CPU time of all layers' calls, each with a state of its own, so that a state is as far away as in a
forward; the best of some in turns. ONNX Runtime's operator gets its gates ready; ours makes them.

Shapes:  B sequences · S new tokens of each · H heads · K key width · V value width
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
from pocketvlm.machine import processor_name

FLOAT = ir.DataType.FLOAT
HEADS, DIM, LAYERS = 16, 128, 18
CASES = [(1, 700), (1, 64), (1, 1), (8, 1), (16, 1)]


def graph(operators: Path | None) -> bytes:
    g = GraphBuilder("rule", compiled=operators is not None)
    q, k, v = (g.input(name, FLOAT, ("batch", "new", HEADS * DIM)) for name in "qkv")
    shape = ("batch", HEADS, DIM, DIM)
    past = g.input("past", FLOAT, shape)
    if operators:
        gates = [g.input("gates", FLOAT, ("batch", "new", 2 * HEADS))]
        gates += [g.input(name, FLOAT, (HEADS,)) for name in ("bias", "rate")]
        out, present = g.own("DeltaRule", q, k, v, past, *gates, outputs=2, heads=HEADS, key_heads=HEADS)
    else:
        gates = [g.input(name, FLOAT, ("batch", "new", HEADS)) for name in ("decay", "beta")]
        attributes = {"q_num_heads": HEADS, "kv_num_heads": HEADS, "scale": DIM**-0.5, "update_rule": "gated_delta"}
        out, present = g.contrib("LinearAttention", q, k, v, past, *gates, outputs=2, **attributes)
    g.output("out", out, FLOAT, ("batch", "new", HEADS * DIM))
    g.output("present", present, FLOAT, shape)
    return ir.to_proto(g.model()).SerializeToString()


def bound(operators: Path | None, batch: int, new: int, threads: int) -> Callable[[], float]:
    """Runs all layers once, their states written where they are; returns the seconds of the processor."""
    session = product_session(graph(operators), operators, threads=threads)
    generator = np.random.default_rng(0)
    arrays = {name: generator.standard_normal((batch, new, HEADS * DIM), np.float32) / DIM**0.5 for name in "qkv"}
    if operators:
        arrays["gates"] = generator.standard_normal((batch, new, 2 * HEADS), np.float32)
        arrays |= {"bias": np.zeros(HEADS, np.float32), "rate": np.full(HEADS, -0.1, np.float32)}
    else:
        arrays["decay"] = -generator.random((batch, new, HEADS), np.float32) / 10
        arrays["beta"] = generator.random((batch, new, HEADS), np.float32)
    states = [np.zeros((batch, HEADS, DIM, DIM), np.float32) for _ in range(LAYERS)]
    bindings = []
    for state in states:
        binding = session.io_binding()
        for name, array in arrays.items():
            binding.bind_cpu_input(name, array)
        place = ("cpu", 0, np.float32, state.shape, state.ctypes.data)
        binding.bind_input("past", *place)
        binding.bind_output("out")
        binding.bind_output("present", *place)
        bindings.append((binding, state))

    def run() -> float:
        begun = time.process_time()
        for binding, _ in bindings:
            session.run_with_iobinding(binding)
        return time.process_time() - begun

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    operators = library.compiled()
    if operators is None:
        raise SystemExit("operators cannot be compiled here")
    print(f"{processor_name()}, {arguments.threads} threads, {LAYERS} layers, {library.kind_of(operators)}")
    print("| sequences | new tokens | ONNX Runtime's, ms | ours, ms | ratio |\n| --- | --- | --- | --- | --- |")
    for batch, new in CASES:
        both = [bound(which, batch, new, arguments.threads) for which in (None, operators)]
        times = [[run() for run in both] for _ in range(arguments.rounds + 1)][1:]
        theirs, ours = (min(column) * 1e3 for column in zip(*times, strict=True))
        print(f"| {batch} | {new} | {theirs:.2f} | {ours:.2f} | {theirs / ours:.2f} x |", flush=True)


if __name__ == "__main__":
    main()
