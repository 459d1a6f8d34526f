"""The Triton kernels equal their plain twins, and all of them compile for GPUs.

They run on the GPU where there is one, elsewhere by Triton's interpreter on the CPU. Triton chooses between interpreter
and compiler when a kernel is defined, so both run in processes of their own.
"""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.invariants import assert_as_exact, relative_error
from torch import Tensor

from pocketvlm.kernels.gated_delta_rule import naive_gated_delta_rule
from pocketvlm.kernels.linear_attention_step import naive_slot_causal_conv1d, naive_slot_delta_rule
from pocketvlm.kernels.paged_attention import naive_paged_attention, naive_write_kv

BLOCK = 8
Run = Callable[..., Any]


def call_here(payload: bytes) -> bytes:
    """In the other process: (module, function, arguments) to (result, arguments as they are now)."""
    warnings.simplefilter("error")
    device = "cpu" if os.environ.get("TRITON_INTERPRET") else "cuda"
    module, function, args = torch.load(io.BytesIO(payload), map_location=device)  # keeps strides
    result = getattr(import_module(f"pocketvlm.kernels.{module}"), function)(*args)
    answer = io.BytesIO()
    torch.save((result, args), answer)
    return answer.getvalue()


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Calls a function of a kernel module in another process; what it changes in place is changed here."""
    with pytest.MonkeyPatch.context() as patch, ProcessPoolExecutor(1, get_context("spawn")) as pool:
        patch.setenv("TRITON_INTERPRET", "" if torch.cuda.is_available() else "1")

        def call(module: str, function: str, *args: Any) -> Any:
            payload = io.BytesIO()
            torch.save((module, function, args), payload)
            result, after = torch.load(
                io.BytesIO(pool.submit(call_here, payload.getvalue()).result()), map_location="cpu"
            )
            for mine, theirs in zip(args, after, strict=True):
                if isinstance(mine, Tensor):
                    mine.copy_(theirs)
            return result

        pool.submit(os.getpid).result()  # the process starts at the first call, and takes the environment of then
        yield call


def paged(lengths: list[int], dtype: torch.dtype, dim: int, heads: int = 4, kv_heads: int = 2) -> tuple[Tensor, ...]:
    """Queries that are part of longer rows, blocks in any order with NaN where nothing is, tables that lie behind."""
    generator = torch.Generator().manual_seed(dim)
    q = torch.randn(len(lengths), heads, 2 * dim, generator=generator).to(dtype)[..., :dim]
    counts = [-(-length // BLOCK) for length in lengths]
    order = torch.randperm(sum(counts) + 1, generator=generator).tolist()
    tables = torch.full((len(lengths), max(counts) + 1), 2**30, dtype=torch.int32)
    stores = torch.full((2, sum(counts) + 1, kv_heads, BLOCK, dim), float("nan"), dtype=dtype)
    for b, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        for i in range(count):
            tables[b, i] = block = order.pop()
            filled = min(BLOCK, length - i * BLOCK)
            stores[:, block, :, :filled] = torch.randn(2, kv_heads, filled, dim, generator=generator).to(dtype)
    return q, stores[0], stores[1], tables, torch.tensor(lengths, dtype=torch.int32)


@pytest.mark.parametrize(
    ("lengths", "dim", "splits", "dtype"),
    [
        ([1, BLOCK - 1, BLOCK, BLOCK + 1, 0, 150], 32, 1, torch.float32),
        ([0, 300, 1, 129, 128], 32, 2, torch.bfloat16),
        ([300, 17], 32, 32, torch.float32),  # more runs than tiles
        ([33, 7], 24, 4, torch.float32),  # a head that is no power of two
        ([33, 7], 24, 4, torch.bfloat16),
        ([70, 16], 256, 2, torch.float32),  # several tiles a run
    ],
    ids=str,
)
def test_paged_attention_is_as_exact_as_its_twin(
    run: Run, lengths: list[int], dim: int, splits: int, dtype: torch.dtype
) -> None:
    inputs = paged(lengths, dtype, dim)
    got = run("paged_attention_triton", "triton_paged_attention", *inputs, splits)
    exact = naive_paged_attention(*(x.double() for x in inputs[:3]), *inputs[3:])
    plain = naive_paged_attention(*inputs)
    for row, twin, truth, length in zip(got, plain, exact, lengths, strict=True):
        if length:
            assert_as_exact(row, twin, truth, additions=length)
        else:
            assert torch.equal(row, torch.zeros_like(row))


def test_one_query_head_a_key_head_and_many_are_both_right(run: Run) -> None:
    for heads, kv_heads in ((2, 2), (20, 1)):
        inputs = paged([20, 3], torch.float32, 32, heads, kv_heads)
        got = run("paged_attention_triton", "triton_paged_attention", *inputs)
        exact = naive_paged_attention(*(x.double() for x in inputs[:3]), *inputs[3:])
        assert_as_exact(got, naive_paged_attention(*inputs), exact, additions=32)


def test_large_scores_do_not_overflow(run: Run) -> None:
    q, *rest = paged([40, 9], torch.float32, 32)
    q.mul_(300)
    got = run("paged_attention_triton", "triton_paged_attention", q, *rest, 4)
    exact = naive_paged_attention(q.double(), *(x.double() for x in rest[:2]), *rest[2:])
    # Scores near 1000 have rounding errors of 1e-4, which the exponential hands on.
    assert relative_error(got.double(), exact) < 1e-3


def test_splits_fill_a_gpu_and_no_more(run: Run) -> None:
    choices = {(2, 512): 64, (16, 512): 16, (128, 512): 2, (512, 512): 1, (2, 7): 4, (2, 1): 1}
    for (programs, tiles), expected in choices.items():
        assert run("paged_attention_triton", "choose_splits", programs, tiles, 132) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_writes_equal_the_twin_bit_for_bit(run: Run, dtype: torch.dtype) -> None:
    keys, values = torch.randn(2, 3, 2, BLOCK, 24).to(dtype)
    rows = torch.randn(4, 2, 2, 24).to(dtype)
    slots = torch.tensor([2 * BLOCK + 3, -1, 0, BLOCK - 1])
    expected = keys.clone(), values.clone()
    naive_write_kv(*expected, rows[:, 0], rows[:, 1], slots)
    run("paged_attention_triton", "triton_write_kv", keys, values, rows[:, 0], rows[:, 1], slots)
    assert torch.equal(keys, expected[0])
    assert torch.equal(values, expected[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("key_heads", "key", "value"), [(4, 32, 32), (2, 24, 40)])
def test_delta_rule_steps_are_as_exact_as_their_twin(
    run: Run, key_heads: int, key: int, value: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(key)
    heads, batch, width = 4, 3, key_heads * key
    slots = torch.tensor([4, -1, 0], dtype=torch.int32)
    plain = torch.randn(5, heads, key, value, generator=generator)
    state, exact, before = plain.clone(), plain.double(), plain.clone()
    for _ in range(3):
        # As the convolution leaves them: parts of one row.
        mixed = torch.randn(batch, 2 * width + heads * value, generator=generator).to(dtype)
        q, k, v = (
            x.unflatten(1, (-1, size))
            for x, size in zip(mixed.split([width, width, heads * value], 1), (key, key, value), strict=True)
        )
        g, beta = -torch.rand(batch, heads, generator=generator), torch.rand(batch, heads, generator=generator)
        got = run("gated_delta_rule_triton", "triton_slot_delta_rule", q, k, v, g, beta, slots, state)
        twin = naive_slot_delta_rule(q, k, v, g, beta, slots, plain)
        q64, k64 = (x.double() * (x.double().square().sum(-1, keepdim=True) + 1e-6).rsqrt() for x in (q, k))
        q64, k64 = (x.repeat_interleave(heads // key_heads, dim=1) for x in (q64 * key**-0.5, k64))
        rows = torch.tensor([0, 2])
        inputs = [x[rows] for x in (q64, k64, v.double(), g.double(), beta.double())]
        truth, exact[[4, 0]] = naive_gated_delta_rule(*inputs, [1, 1], exact[[4, 0]])
        assert_as_exact(got[rows], twin[rows], truth, additions=key)
        assert_as_exact(state, plain, exact, additions=key)
        assert torch.equal(got[1], torch.zeros_like(got[1]))
    assert torch.equal(state[1:4], before[1:4])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("taps", [2, 4])
def test_convolution_steps_are_as_exact_as_their_twin(run: Run, taps: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(taps)
    channels, slots = 300, torch.tensor([3, 1, -1, 0], dtype=torch.int32)
    weight = torch.randn(channels, taps, generator=generator).to(dtype)
    plain = torch.randn(5, taps - 1, channels, generator=generator).to(dtype)
    state, rows = plain.clone(), torch.tensor([0, 1, 3])
    for _ in range(3):
        x = torch.randn(4, channels + 20, generator=generator).to(dtype)[:, :channels]
        truth = naive_slot_causal_conv1d(x.double(), weight.double(), slots, plain.double())
        got = run("causal_conv1d_triton", "triton_slot_causal_conv1d", x, weight, slots, state)
        twin = naive_slot_causal_conv1d(x, weight, slots, plain)
        assert_as_exact(got[rows], twin[rows], truth[rows], additions=taps)
        assert torch.equal(got[2], torch.zeros_like(got[2]))
        assert torch.equal(state, plain)


# Arguments of each kernel at the sizes of the published model; strides and addresses are multiples of 16 there.
HALF, FLOAT, INDEX = "*bf16", "*fp32", "*i32"
ATTENTION = {"q": HALF, "keys": HALF, "values": HALF, "tables": INDEX, "lengths": INDEX, "lse": FLOAT, "scale": "fp32"}
SIZES = {"GROUP": 4, "ROWS": 16, "DIM": 256, "DIM_PAD": 256, "BLOCK": 32, "TILE": 32}
DELTA = {"q": HALF, "k": HALF, "v": HALF, "slots": INDEX} | dict.fromkeys(("g", "beta", "state", "out"), FLOAT)
KERNELS: dict[str, tuple[str, dict[str, str], dict[str, Any]]] = {
    "decode": ("paged_attention_triton.decode_kernel", ATTENTION | {"out": HALF}, SIZES | {"SPLITS": 1}),
    "split": ("paged_attention_triton.decode_kernel", ATTENTION | {"out": FLOAT}, SIZES | {"SPLITS": 16}),
    "join": (
        "paged_attention_triton.join_kernel",
        {"partial": FLOAT, "lse": FLOAT, "out": HALF},
        {"DIM": 256, "DIM_PAD": 256, "SPLITS": 64, "TILE": 16},
    ),
    "write": (
        "paged_attention_triton.write_kernel",
        dict.fromkeys(("keys", "values", "k", "v"), HALF) | {"slots": INDEX},
        {"DIM": 256, "DIM_PAD": 256, "BLOCK": 32},
    ),
    "delta": (
        "gated_delta_rule_triton.step_kernel",
        DELTA | {"scale": "fp32", "eps": "fp32"},
        {"GROUP": 1, "KEY": 128, "KEY_PAD": 128, "VALUE": 128, "COLUMNS": 32},
    ),
    "conv": (
        "causal_conv1d_triton.conv_kernel",
        dict.fromkeys(("x", "weight", "state", "out"), HALF) | {"slots": INDEX},
        {"KEPT": 3, "TAPS": 4, "WIDTH": 256},
    ),
}


def compile_here(name: str, capability: int) -> tuple[int, str]:
    """In a process with Triton's compiler: bytes of shared memory, and the program."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    place, types, sizes = KERNELS[name]
    module, function = place.split(".")
    kernel = getattr(import_module(f"pocketvlm.kernels.{module}"), function)
    signature, constants, aligned = {}, {}, {}
    for i, argument in enumerate(kernel.arg_names):
        if argument == "DOT":
            constants[i,] = triton.language.bfloat16
        elif argument in sizes:
            constants[i,] = sizes[argument]
        signature[argument] = "constexpr" if (i,) in constants else types.get(argument, "i32")
        if signature[argument] == "i32" or signature[argument].startswith("*"):
            aligned[i,] = [["tt.divisibility", 16]]
    compiled = triton.compile(
        ASTSource(kernel, signature, constants, aligned),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": 1 if name == "write" else 4, "num_stages": 2, "enable_fp_fusion": True},
    )
    return compiled.metadata.shared, compiled.asm["ptx"]


def test_every_kernel_compiles_for_gpus_at_true_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        for capability in (80, 90):
            for name in KERNELS:
                shared, ptx = pool.submit(compile_here, name, capability).result()
                assert shared <= 65536, name  # what the smallest GPUs have
                if name in ("decode", "split"):
                    assert re.search(r"mma\.sync.*bf16", ptx), "products of scores are not on tensor cores"
