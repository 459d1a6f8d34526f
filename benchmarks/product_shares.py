#!/usr/bin/env python3
"""How much of what the processor's registers can multiply each product of the published model reaches, on one core.

    python benchmarks/product_shares.py               # 8 bits
    python benchmarks/product_shares.py --bits 4

Measured is the CPU time, the best of fifteen, so that what else the machine does changes little. The rows
are those of a view of 448 x 448 (patches before and behind the compression, tokens of the merger), of a prompt, and of
steps.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketvlm.api.tile_trial import try_tiles
from pocketvlm.bundle import Scheme
from pocketvlm.config import ModelConfig
from pocketvlm.engine.runners.onnx_runner import product_session
from pocketvlm.export.onnx.product import product_of_decoder, product_of_tower
from pocketvlm.kernels.onnx_ops import library
from pocketvlm.kernels.onnx_ops.ceiling import operations_per_second
from pocketvlm.machine import processor_name
from pocketvlm.model.vision.view_order import WINDOW

ROUNDS = 15
PATCHES = 1024  # of a view
PROMPT, STEPS = 700, (16, 8, 1)
Product = tuple[str, int, int, bool]  # name, inputs, outputs, of the tower


def products(config: ModelConfig) -> Iterator[tuple[Product, tuple[int, ...]]]:
    """Each product, and the rows that it has."""
    vision, text = config.vision, config.text
    width, folded, wide = vision.hidden_size, WINDOW * vision.hidden_size, vision.intermediate_size
    rows = (PATCHES, PATCHES // WINDOW)
    yield ("tower: queries, keys, values", width, 3 * width, True), rows
    yield ("tower: behind attention", width, width, True), rows
    yield ("tower: MLP, up", width, wide, True), rows
    yield ("tower: MLP, down", wide, width, True), rows
    yield ("compression: up", folded, WINDOW * wide, True), (PATCHES // WINDOW,)
    yield ("compression: down", WINDOW * wide, width, True), (PATCHES // WINDOW,)
    yield ("merger", folded, folded, True), (PATCHES // WINDOW**2,)
    rows = (PROMPT, *STEPS)
    yield ("decoder: into linear attention", text.hidden_size, text.linear_conv_dim, False), rows
    yield ("decoder: out of linear attention", text.linear_value_dim, text.hidden_size, False), rows
    yield ("decoder: MLP, up", text.hidden_size, text.intermediate_size, False), rows
    yield ("decoder: MLP, down", text.intermediate_size, text.hidden_size, False), rows


def seconds(product: Product, rows: int, scheme: Scheme, compiled: Path) -> float:
    """Of one run on one core."""
    _, inputs, outputs, is_of_tower = product
    make = product_of_tower if is_of_tower else product_of_decoder
    session = product_session(make(inputs, outputs, scheme, compiled=True), compiled, threads=1)
    x, y = (
        aligned(rows, columns) for columns in (inputs, outputs)
    )  # memory that was there before, as a session has it
    x[:] = np.random.default_rng(0).standard_normal(x.shape, np.float32)
    binding = session.io_binding()
    binding.bind_cpu_input("x", x)
    binding.bind_output("y", "cpu", 0, np.float32, y.shape, y.ctypes.data)
    taken = []
    for _ in range(ROUNDS + 1):  # the first is cold
        began = time.thread_time()
        session.run_with_iobinding(binding)
        taken.append(time.thread_time() - began)
    return min(taken[1:])


def aligned(rows: int, columns: int) -> NDArray[np.float32]:
    """[1, rows, columns] at a multiple of 64 bytes."""
    room = np.zeros(rows * columns + 16, np.float32)
    first = -room.ctypes.data % 64 // 4
    return room[first : first + rows * columns].reshape(1, rows, columns)


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--bits", type=int, choices=(8, 4), default=8, help="of the decoder's weights; the tower has 8")
    args = cli.parse_args()
    try_tiles()
    compiled = library.compiled()
    if compiled is None:
        raise SystemExit("operators cannot be compiled here")
    ceiling = operations_per_second(compiled)
    print(f"{processor_name()}, one core, {library.kind_of(compiled)}: {ceiling / 1e9:.0f} x 10^9 operations a second")
    print("\n| product | inputs x outputs | rows | ms | 10^9 a second | of the ceiling |\n|" + " --- |" * 6)
    for product, all_rows in products(ModelConfig()):
        name, inputs, outputs, is_of_tower = product
        scheme: Scheme = "int8" if is_of_tower or args.bits == 8 else "int4"
        for rows in all_rows:
            took = seconds(product, rows, scheme, compiled)
            rate = 2.0 * rows * inputs * outputs / took
            cells = (
                name,
                f"{inputs} x {outputs}",
                rows,
                f"{took * 1e3:.3g}",
                f"{rate / 1e9:.0f}",
                f"{rate / ceiling:.0%}",
            )
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
