"""Products on tile registers are those of vectors, to the bit; the plain twin of the instructions runs everywhere."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketvlm.engine.runners.onnx_runner import product_session
from pocketvlm.export.onnx.graph import GraphBuilder
from pocketvlm.export.onnx.linear import compiled_linear
from pocketvlm.export.onnx.pieces import Given
from pocketvlm.kernels.onnx_ops import library
from pocketvlm.machine import processor_flags

FLOAT = ir.DataType.FLOAT
pytestmark = pytest.mark.usefixtures("compiled_library")
KINDS = ["plain", *(["amx"] if processor_flags() >= library.TILE_FLAGS else [])]
# Rows that fill tiles of 16 and groups of 32, and that do not, and so many that tasks have some of them; inputs that
# fill tiles of 64, and that do not, and more than are multiplied at once (1,152).
ROWS = st.integers(10, 75) | st.sampled_from([257, 290])
INPUTS = st.sampled_from([48, 64, 96, 112, 192, 1072, 1168, 2352, 4304])
OUTPUTS = st.sampled_from([1, 31, 32, 33, 64, 65, 130])


@cache
def made(kind: str, inputs: int, outputs: int, has_gelu: bool) -> Any:
    found: Path | None = library.compiled(kind)
    assert found is not None
    generator = torch.Generator().manual_seed(inputs + outputs)
    g = GraphBuilder("product", compiled=True)
    x = g.input("x", FLOAT, ("batch", "new", inputs))
    weight, bias = torch.randn(outputs, inputs, generator=generator), torch.randn(outputs, generator=generator)
    out = compiled_linear(g, "product", x, [Given(weight.numpy())], "int8", biases=[Given(bias.numpy())], gelu=has_gelu)
    g.output("y", out, FLOAT, ("batch", "new", outputs))
    return product_session(ir.to_proto(g.model()).SerializeToString(), found)


@pytest.fixture(scope="module")
def _avx512(compiled_library: Path) -> None:
    if library.kind_of(compiled_library) != "avx512":
        pytest.skip("tiles go with the operators of AVX-512, which this processor has not")


@pytest.mark.usefixtures("_avx512")
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(rows=ROWS, inputs=INPUTS, outputs=OUTPUTS, has_gelu=st.booleans(), seed=st.integers(0, 99))
def test_tiles_change_no_bit(kind: str, rows: int, inputs: int, outputs: int, has_gelu: bool, seed: int) -> None:
    x = torch.randn(1, rows, inputs, generator=torch.Generator().manual_seed(seed)).numpy() * 3
    (expected,) = made("off", inputs, outputs, has_gelu).run(None, {"x": x})
    (got,) = made(kind, inputs, outputs, has_gelu).run(None, {"x": x})
    assert got.tobytes() == expected.tobytes()
