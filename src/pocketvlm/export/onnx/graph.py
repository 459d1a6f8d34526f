"""A graph under construction: operators by name, weights that are made only while they are written.

A thin interface to `onnx_ir`. Graphs use the standard operators of `OPSET` and ONNX Runtime's own (`contrib`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.tape import Tape

OPSET = 21
CONTRIB = "com.microsoft"
COMPILED = "pocketvlm"  # `kernels.onnx_ops`
IR_VERSION = 10

Array = NDArray[Any]


class GraphBuilder:
    """Operators in the order of their execution; `model` is the result.

    Args:
        compiled: whether there may be operators of our own.
    """

    def __init__(self, name: str, root: GraphBuilder | None = None, *, compiled: bool = False) -> None:
        self.name = name
        self.compiled = compiled
        self.root = root or self
        self._values = 0
        self.tape = Tape()
        self.inputs: list[ir.Value] = []
        self.outputs: list[ir.Value] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}

    def branch(self, name: str) -> GraphBuilder:
        """A graph inside this one, for `If` or `Loop`; it sees all values of this one, and shares its weights."""
        return GraphBuilder(name, self.root, compiled=self.compiled)

    def subgraph(self, *outputs: ir.Value) -> ir.Graph:
        """What was built on a `branch`."""
        return ir.Graph(self.inputs, outputs, nodes=self.tape.nodes, name=self.name)

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
        self.inputs.append(value)
        return value

    def output(self, name: str, value: ir.Value, dtype: ir.DataType, shape: Sequence[int | str]) -> None:
        value.name, value.shape, value.type = name, ir.Shape(shape), ir.TensorType(dtype)
        self.outputs.append(value)

    def op(self, kind: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """A standard operator with one output."""
        return self._named(self.tape.op(kind, inputs, attributes))

    def ops(self, kind: str, count: int, *inputs: ir.Value | None, **attributes: Any) -> Sequence[ir.Value]:
        """A standard operator with `count` outputs."""
        return [self._named(v) for v in self.tape.op_multi_out(kind, inputs, attributes, num_outputs=count)]

    def contrib(self, kind: str, *inputs: ir.Value | None, outputs: int = 1, **attributes: Any) -> Any:
        """An operator of ONNX Runtime; a value, or as many as `outputs` says."""
        return self._of(CONTRIB, kind, inputs, outputs, attributes)

    def _of(
        self, domain: str, kind: str, inputs: Sequence[ir.Value | None], outputs: int, attributes: dict[str, Any]
    ) -> Any:
        if outputs == 1:
            return self._named(self.tape.op(kind, inputs, attributes, domain=domain))
        made = self.tape.op_multi_out(kind, inputs, attributes, num_outputs=outputs, domain=domain)
        return [self._named(value) for value in made]

    def own(self, kind: str, *inputs: ir.Value | None, outputs: int = 1, **attributes: Any) -> Any:
        """A compiled operator of ours; a value, or as many as `outputs` says."""
        return self._of(COMPILED, kind, inputs, outputs, attributes)

    def _named(self, value: ir.Value) -> ir.Value:
        """A name of its own also beside those of branches."""
        value.name = f"value_{self.root._values}"
        self.root._values += 1
        return value

    def constant(self, value: Any, dtype: Any = np.int64) -> ir.Value:
        """A small constant; equal ones are one."""
        if self.root is not self:
            return self.root.constant(value, dtype)
        array = np.asarray(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"constant_{len(self._constants)}"
            self._constants[key] = self.tape.initializer(ir.tensor(array, name=name))
        return self._constants[key]

    def weight(self, name: str, dtype: ir.DataType, shape: Sequence[int], make: Callable[[], Array]) -> ir.Value:
        """A weight whose values `make` gives when they are written, and never holds."""
        if self.root is not self:
            return self.root.weight(name, dtype, shape, make)
        lazy = ir.LazyTensor(
            lambda: ir.Tensor(_contiguous(make()), dtype=dtype), dtype=dtype, shape=ir.Shape(shape), name=name
        )
        return self.tape.initializer(lazy)

    def model(self, metadata: dict[str, str] | None = None) -> ir.Model:
        graph = ir.Graph(
            self.inputs,
            self.outputs,
            nodes=self.tape.nodes,
            initializers=self.tape.initializers,
            opset_imports={"": OPSET, CONTRIB: 1} | ({COMPILED: 1} if self.compiled else {}),
            name=self.name,
        )
        return ir.Model(graph, ir_version=IR_VERSION, producer_name="pocketvlm", metadata_props=metadata or {})


def _contiguous(array: Array) -> Array:
    return np.ascontiguousarray(array)
