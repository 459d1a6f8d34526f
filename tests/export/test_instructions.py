"""Operators of our own give the same on every kind of processor: those that this one has not, under an emulator.

apt-get install g++-aarch64-linux-gnu qemu-user      # for NEON
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pocketvlm.export.onnx import panels
from pocketvlm.kernels.onnx_ops import library
from pocketvlm.machine import processor_flags

HOST = Path(__file__).parent / "host/run_operator.cpp"
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Kind:
    """How a kind of processor is compiled for, and run here."""

    flags: tuple[str, ...]
    needs: frozenset[str] = frozenset()
    compiler: str | None = None
    emulator: str | None = None

    @property
    def is_here(self) -> bool:
        tools = (self.compiler or library.compiler() or "c++", *([self.emulator] if self.emulator else []))
        return processor_flags() >= self.needs and all(shutil.which(tool) for tool in tools)


KINDS = {
    **{name: Kind(kind.flags, kind.needs) for name, kind in library.KINDS.items()},
    # The same products as those of AVX-VNNI, which newer processors of desks have, in another encoding.
    "bytes": Kind(
        (*library.KINDS["avx2"].flags, "-mavx512f", "-mavx512vl", "-mavx512vnni"),
        library.KINDS["avx2"].needs | {"avx512vl", "avx512_vnni"},
    ),
    "neon": Kind((*library.KINDS["neon"].flags, "-static"), compiler="aarch64-linux-gnu-g++", emulator="qemu-aarch64"),
}


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """By kind, the command that runs an operator."""
    folder, made = tmp_path_factory.mktemp("hosts"), {}
    for name, kind in KINDS.items():
        if kind.is_here:
            compiler = kind.compiler or library.compiler() or "c++"
            command = [compiler, *library.COMPUTING, *kind.flags, "-DPOCKETVLM_TILES=0"]
            subprocess.run(
                [*command, f"-I{library.SOURCES}", str(HOST), "-o", str(folder / name)], check=True, capture_output=True
            )
            made[name] = [*([kind.emulator] if kind.emulator else []), str(folder / name)]
    return made


def kinds() -> list[object]:
    """Those that this processor has, and what an emulator has."""
    wanted = pytest.mark.skipif(
        not KINDS["neon"].is_here, reason="NEON is wanted: apt-get install g++-aarch64-linux-gnu qemu-user"
    )
    found: list[object] = [name for name, kind in KINDS.items() if name != "neon" and kind.is_here]
    return [*found, pytest.param("neon", marks=wanted)]


def run(
    command: list[str], name: str, attributes: Mapping[str, float], inputs: list[NDArray[np.generic] | None]
) -> list[Array]:
    """The outputs of an operator."""
    text = [f"name {name}\n".encode()]
    for key, value in attributes.items():
        text.append(f"{'float' if isinstance(value, float) else 'int'} {key} {value}\n".encode())
    for x in inputs:
        if x is None:
            text.append(b"input 0 1 0\n")
        else:
            kind = {np.dtype(np.uint8): 2, np.dtype(np.int32): 6}.get(x.dtype, 1)
            text += [f"input {kind} {x.ndim} {' '.join(map(str, x.shape))}\n".encode(), x.tobytes()]
    out = subprocess.run(command, input=b"".join(text), capture_output=True, check=True).stdout
    found = []
    while out:
        head, _, out = out.partition(b"\n")
        shape = [int(size) for size in head.split()[2:]]
        size = 4 * int(np.prod(shape))
        found.append(np.frombuffer(out[:size], np.float32).reshape(shape))
        out = out[size:]
    return found


def linear(
    command: list[str], x: Array, values: NDArray[np.int8], bits: int, block: int, *, gelu: bool, rotate: bool
) -> Array:
    """`QuantizedLinear` of weights [K, N] in `bits` bits, whose scales are the numbers of their outputs."""
    inputs, outputs = values.shape
    blocks = inputs // block
    scales = np.broadcast_to(np.arange(1, outputs + 1, dtype=np.float32)[:, None] / outputs, (outputs, blocks)).copy()
    if bits == 8:
        packed, factors = panels.from_int8(values, scales[:, 0])
    else:
        nibbles = (values + 8).astype(np.uint8).T.reshape(outputs, blocks, block)
        packed, factors = panels.from_int4(nibbles[..., ::2] | nibbles[..., 1::2] << 4, scales)
    bias = np.linspace(-1, 1, outputs, dtype=np.float32)
    attributes = {
        "bits": bits, "K": inputs, "N": outputs, "block": block, "rotate": int(rotate), "head": 0, "activation": 0,
        "x_offset": 0, "gate_offset": 0, "gelu": int(gelu), "epsilon": 1e-6,
    }  # fmt: skip
    flat = [packed.reshape(len(packed), -1), factors.reshape(len(factors), -1)]
    (out,) = run(command, "QuantizedLinear", attributes, [x, *flat, None, None, bias])
    return out


def plain_linear(x: Array, values: NDArray[np.int8], block: int, *, gelu: bool) -> Array:
    """The same in whole numbers and float64."""
    inputs, outputs = values.shape
    out = np.zeros((len(x), outputs))
    for first in range(0, inputs, block):
        part = x[:, first : first + block]
        largest = np.maximum(np.abs(part).max(1, keepdims=True), np.float32(1e-30))
        steps = np.rint(part * (np.float32(127) / largest)).astype(np.int64)
        out += steps @ values[first : first + block].astype(np.int64) * (largest / 127)
    out = out * np.arange(1, outputs + 1) / outputs + np.linspace(-1, 1, outputs)
    return out * (0.5 + 0.5 * np.tanh(0.7978845608 * (out + 0.044715 * out**3))) if gelu else out


@cache
def weights(inputs: int, outputs: int, bits: int) -> NDArray[np.int8]:
    least, most = (-128, 128) if bits == 8 else (-8, 8)
    return np.random.default_rng(inputs + outputs).integers(least, most, (inputs, outputs)).astype(np.int8)


@pytest.mark.parametrize("kind", kinds())
@settings(max_examples=25)
@given(
    rows=st.one_of(st.integers(1, 15), st.sampled_from([24, 25, 49, 75])),  # up to a group of 24, and beyond
    inputs=st.sampled_from([32, 96, 160, 192, 1056]),
    outputs=st.sampled_from([1, 15, 33, 64, 130]),
    bits=st.sampled_from([8, 4]),
    gelu=st.booleans(),
)
def test_products_are_exact_on_every_kind(
    hosts: dict[str, list[str]], kind: str, rows: int, inputs: int, outputs: int, bits: int, gelu: bool
) -> None:
    """Of the largest weights and inputs too: nothing saturates."""
    x = np.random.default_rng(rows).standard_normal((rows, inputs), np.float32)
    x[0] = np.where(np.arange(inputs) % 7, 1, -1)
    values, block = weights(inputs, outputs, bits), 32 if bits == 4 else inputs
    values = values.copy()
    values[:, 0] = values.min()
    got = linear(hosts[kind], x, values, bits, block, gelu=gelu, rotate=False)
    expected = plain_linear(x, values, block, gelu=gelu)
    assert np.abs(got - expected).max() <= 2e-6 * np.abs(plain_linear(x, values, block, gelu=False)).max()
    other = linear(next(iter(hosts.values())), x, values, bits, block, gelu=False, rotate=False)
    assert gelu or got.tobytes() == other.tobytes()
    alone = [linear(hosts[kind], row[None], values, bits, block, gelu=gelu, rotate=False) for row in x[:2]]
    assert got[: len(alone)].tobytes() == np.concatenate(alone).tobytes()


@pytest.mark.skipif(not processor_flags() >= library.KINDS["avx2"].needs, reason="needs an x86 processor with AVX2")
def test_the_encoding_of_avx_vnni_compiles(tmp_path: Path) -> None:
    """It runs on processors that have it only; `bytes` above has the same instructions in another encoding."""
    program = library.compiler()
    if program is None:
        pytest.skip("needs a C++ compiler")
    out = tmp_path / "library.so"
    command = [program, *library.FLAGS, *library.KINDS["avx_vnni"].flags, "-DPOCKETVLM_TILES=0"]
    subprocess.run([*command, str(library.SOURCES / "operators.cpp"), "-o", str(out)], check=True, capture_output=True)
    assert out.stat().st_size > 0


@pytest.mark.parametrize("kind", kinds())
def test_rotations_are_those_of_hadamard(hosts: dict[str, list[str]], kind: str) -> None:
    """Inputs that the rotation makes whole steps of: nothing is rounded, and the identity as weights shows them."""
    signs = np.array([[(-1) ** (i & j).bit_count() for j in range(32)] for i in range(32)], np.float32)
    wanted = np.random.default_rng(0).integers(-127, 128, (9, 32)).astype(np.float32)
    wanted[:, 0] = 127
    x = (wanted @ signs / 32 * 32**0.5).astype(np.float32)
    got = linear(hosts[kind], x, np.eye(32, dtype=np.int8), 8, 32, gelu=False, rotate=True)
    scales, bias = np.arange(1, 33) / 32, np.linspace(-1, 1, 32)
    assert np.abs((got - bias) / scales - wanted).max() <= 1e-4


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize(("tokens", "heads", "dim"), [(1, 1, 2), (5, 2, 18), (70, 2, 64), (130, 1, 72), (64, 1, 80)])
def test_attention_is_that_of_every_kind(
    hosts: dict[str, list[str]], kind: str, tokens: int, heads: int, dim: int
) -> None:
    joined = np.random.default_rng(dim).standard_normal((2, tokens, 3 * heads * dim), np.float32)
    (got,) = run(hosts[kind], "ViewAttention", {"heads": heads}, [joined])
    q, k, v = (part.reshape(2, tokens, heads, dim).swapaxes(1, 2) for part in np.split(joined.astype(float), 3, -1))
    scores = q @ k.swapaxes(-1, -2) / dim**0.5
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    expected = (shares / shares.sum(-1, keepdims=True) @ v).swapaxes(1, 2).reshape(got.shape)
    assert np.linalg.norm(got - expected) <= 2e-3 * np.linalg.norm(expected)
    (other,) = run(next(iter(hosts.values())), "ViewAttention", {"heads": heads}, [joined])
    assert np.abs(got - other).max() <= 1e-6 * np.abs(other).max()


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize(
    ("new", "before", "heads", "dim"),
    [(1, 700, 4, 64), (7, 0, 1, 128), (70, 150, 3, 64), (33, 3, 1, 256), (70, 8300, 1, 64)],
)
def test_causal_attention_is_that_of_every_kind(
    hosts: dict[str, list[str]], kind: str, new: int, before: int, heads: int, dim: int
) -> None:
    generator, total = np.random.default_rng(dim), before + new
    q, k, v = (generator.standard_normal((1, new, n * dim), np.float32) for n in (heads, 1, 1))
    past = [generator.standard_normal((1, 1, total, dim), np.float32) for _ in range(2)]
    inputs = [q, k, v, *past, np.array([total - 1], np.int32)]
    attributes = {"num_heads": heads, "kv_num_heads": 1}
    got, keys, values = run(hosts[kind], "CausalAttention", attributes, inputs)
    for written, old, one in ((keys, past[0], k), (values, past[1], v)):
        assert np.array_equal(written, np.concatenate([old[:, :, :before], one[:, None]], 2))
    scores = q.reshape(new, heads, dim).astype(float).swapaxes(0, 1) @ keys[0, 0].T / dim**0.5
    scores += np.triu(np.full((new, total), -np.inf), before + 1)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    expected = (shares / shares.sum(-1, keepdims=True) @ values[0, 0]).swapaxes(0, 1).reshape(got.shape)
    is_far = before > 8192  # then scores are in 8 bits, or in 16 where bytes are multiplied no faster
    assert np.linalg.norm(got - expected) <= (1e-2 if is_far else 2e-3) * np.linalg.norm(expected)
    other, *_ = run(next(iter(hosts.values())), "CausalAttention", attributes, inputs)
    # A score between two steps may fall to either.
    assert np.linalg.norm(got - other) <= (1e-2 if is_far else 1e-4) * np.linalg.norm(other)


@pytest.mark.parametrize("kind", kinds())
def test_gates_norms_and_convolutions_are_those_of_every_kind(hosts: dict[str, list[str]], kind: str) -> None:
    generator, first = np.random.default_rng(1), next(iter(hosts.values()))
    x, past, taps = (generator.standard_normal(shape, np.float32) for shape in ((2, 7, 64), (2, 3, 64), (4, 64)))
    attributes = {"key_width": 16, "head": 16, "epsilon": 1e-6}
    for got, other in zip(
        run(hosts[kind], "CausalConv", attributes, [x, past, taps]),
        run(first, "CausalConv", attributes, [x, past, taps]),
        strict=True,
    ):
        assert np.abs(got - other).max() <= 1e-6 * np.abs(other).max()
    packed, scales = panels.from_int8(weights(64, 40, 8), np.ones(40, np.float32))
    for activation in (1, 2):
        attributes = {
            "bits": 8, "K": 64, "N": 40, "block": 64, "rotate": 0, "head": 32, "activation": activation,
            "x_offset": 0, "gate_offset": 0, "gelu": 0, "epsilon": 1e-6,
        }  # fmt: skip
        gate, norm = generator.standard_normal((2, 7, 64), np.float32), generator.random(32, np.float32) + 0.5
        inputs = [x, packed.reshape(1, -1), scales.reshape(1, -1), gate, norm, None]
        (got,), (other,) = (run(command, "QuantizedLinear", attributes, inputs) for command in (hosts[kind], first))
        assert np.linalg.norm(got - other) <= 2e-3 * np.linalg.norm(
            other
        )  # an input between two steps may fall to either


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize(("new", "keys", "values"), [(1, 32, 144), (7, 64, 48), (70, 128, 128)])
def test_the_delta_rule_is_that_of_every_kind(
    hosts: dict[str, list[str]], kind: str, new: int, keys: int, values: int
) -> None:
    generator = np.random.default_rng(new)
    q, k = (generator.standard_normal((2, new, keys), np.float32) / keys**0.5 for _ in range(2))
    v, gates = (generator.standard_normal((2, new, size), np.float32) for size in (2 * values, 4))
    past = generator.standard_normal((2, 2, keys, values), np.float32)
    inputs: list[NDArray[np.generic] | None] = [q, k, v, past, gates, np.ones(2, np.float32), -np.ones(2, np.float32)]
    attributes = {"heads": 2, "key_heads": 1}
    for got, other in zip(
        run(hosts[kind], "DeltaRule", attributes, inputs),
        run(next(iter(hosts.values())), "DeltaRule", attributes, inputs),
        strict=True,
    ):
        assert np.abs(got - other).max() <= 2e-6 * np.abs(other).max()


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("place", [0, 20, 50, 95])
@pytest.mark.parametrize("bits", [8, 4])
def test_what_is_no_number_stays_in_its_row_and_is_not_forgotten(
    hosts: dict[str, list[str]], kind: str, place: int, bits: int
) -> None:
    """Also where a value follows it in the same lane."""
    x = np.random.default_rng(0).standard_normal((3, 96), np.float32)
    values, block = weights(96, 33, bits), 32 if bits == 4 else 96
    before = linear(hosts[kind], x, values, bits, block, gelu=False, rotate=False)
    x[1, place] = np.nan
    got = linear(hosts[kind], x, values, bits, block, gelu=False, rotate=False)
    assert np.isnan(got[1]).all()
    assert got[[0, 2]].tobytes() == before[[0, 2]].tobytes()


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("part", [0, 1, 2])
def test_attention_over_what_is_no_number_gives_none(hosts: dict[str, list[str]], kind: str, part: int) -> None:
    """A query's is its own; a key's, and a channel of a value, is everybody's. Other heads know nothing of it."""
    joined = np.random.default_rng(0).standard_normal((1, 40, 3 * 2 * 64), np.float32)
    joined[0, 7, part * 128 + 3] = np.nan
    (got,) = run(hosts[kind], "ViewAttention", {"heads": 2}, [joined])
    is_nan = np.isnan(got[0].reshape(40, 2, 64))
    wanted = np.zeros((40, 2, 64), bool)
    wanted[(7, 0) if part == 0 else (slice(None), 0) if part == 1 else (slice(None), 0, 3)] = True
    assert np.array_equal(is_nan, wanted)
