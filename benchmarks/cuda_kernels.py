#!/usr/bin/env python3
"""Each CUDA kernel of the decoder against its plain twin, at the sizes of MiniCPM-V 4.6 in bfloat16.

    python benchmarks/cuda_kernels.py [--batches 1 8 64 256] [--contexts 256 2048 16384] [--repeats 20]

Prints a table and one JSON line: microseconds a call by events, called from Python and, for the kernel, replayed in a
CUDA graph; medians. Each call works on other memory than the one before, more in all than a GPU's L2 cache holds. The
largest difference between kernel and twin, in units of the largest value, is checked on the way.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pocketvlm.kernels import linear_attention_step as step
from pocketvlm.kernels import paged_attention as paged
from pocketvlm.kernels.gated_delta_rule import chunk_gated_delta_rule, normalise_query_key, plan_chunks
from pocketvlm.kernels.prompt_delta_rule import plan_prompts, prompt_gated_delta_rule, runs_fla

HEADS, KV_HEADS, HEAD_DIM, BLOCK = 8, 2, 256, 32
DELTA_HEADS, DELTA_DIM, TAPS = 16, 128, 4
CHANNELS = 3 * DELTA_HEADS * DELTA_DIM
COLD_BYTES = 256 * 2**20  # more than any L2 cache
TOLERANCE = 0.05  # of bfloat16 inputs, and of products in bfloat16 through whole prompts
DTYPE = torch.bfloat16

Call = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One kernel at one size: calls that do the same on different memory, by the twin and by the kernel."""

    name: str
    batch: int
    context: int | None
    twins: list[Call]
    kernels: list[Call]
    results: Callable[[], list[tuple[Tensor, Tensor]]]  # (twin's, kernel's), computed from equal states
    graph: bool = True


@dataclass(frozen=True)
class Row:
    name: str
    batch: int
    context: int | None
    twin_us: float
    kernel_us: float
    graph_us: float | None
    difference: float


def copies(size: int) -> int:
    """Sets of memory of this many bytes that leave nothing of the first in a cache when it is its turn again."""
    return min(max(COLD_BYTES // size, 1), 32)


def random(*shape: int, dtype: torch.dtype = DTYPE) -> Tensor:
    return torch.randn(shape, dtype=dtype, device="cuda")


def attention_case(batch: int, context: int) -> Case:
    blocks = -(-context // BLOCK)
    tables = torch.randperm(batch * blocks, device="cuda").int().view(batch, blocks)
    lengths = torch.full((batch,), context, dtype=torch.int32, device="cuda")
    size = 2 * batch * blocks * BLOCK * KV_HEADS * HEAD_DIM * DTYPE.itemsize
    stores = [random(2, batch * blocks, KV_HEADS, BLOCK, HEAD_DIM) for _ in range(copies(size))]
    q = random(batch, HEADS, HEAD_DIM)

    def calls(routine: Callable[..., Tensor]) -> list[Call]:
        return [lambda s=s: routine(q, s[0], s[1], tables, lengths) for s in stores]

    twins, kernels = calls(paged.naive_paged_attention), calls(paged.paged_attention)
    return Case("paged attention", batch, context, twins, kernels, lambda: [(twins[0](), kernels[0]())])


def write_case(batch: int) -> Case:
    stores = [random(2, 1024, KV_HEADS, BLOCK, HEAD_DIM) for _ in range(8)]
    k, v = random(2, batch, KV_HEADS, HEAD_DIM)
    slots = torch.randperm(1024 * BLOCK, device="cuda")[:batch]

    def calls(routine: Callable[..., None]) -> list[Call]:
        return [lambda s=s: routine(s[0], s[1], k, v, slots) for s in stores]

    def results() -> list[tuple[Tensor, Tensor]]:
        one, other = stores[0].clone(), stores[0].clone()
        paged.naive_write_kv(one[0], one[1], k, v, slots)
        paged.write_kv(other[0], other[1], k, v, slots)
        return [(one, other)]

    return Case("write keys", batch, None, calls(paged.naive_write_kv), calls(paged.write_kv), results)


def delta_case(batch: int) -> Case:
    width = DELTA_HEADS * DELTA_DIM
    q, k, v = (x.unflatten(1, (DELTA_HEADS, DELTA_DIM)) for x in random(batch, CHANNELS).split(width, 1))
    g, beta = -random(batch, DELTA_HEADS, dtype=torch.float32).abs(), random(batch, DELTA_HEADS).float().sigmoid()
    slots = torch.randperm(batch, device="cuda").int()
    size = batch * DELTA_HEADS * DELTA_DIM * DELTA_DIM * 4
    states = [random(batch, DELTA_HEADS, DELTA_DIM, DELTA_DIM, dtype=torch.float32) for _ in range(copies(size))]

    def calls(routine: Callable[..., Tensor]) -> list[Call]:
        return [lambda s=s: routine(q, k, v, g, beta, slots, s) for s in states]

    def results() -> list[tuple[Tensor, Tensor]]:
        one, other = states[0].clone(), states[0].clone()
        outs = (
            step.naive_slot_delta_rule(q, k, v, g, beta, slots, one),
            step.slot_gated_delta_rule(q, k, v, g, beta, slots, other),
        )
        return [outs, (one, other)]

    twins, kernels = calls(step.naive_slot_delta_rule), calls(step.slot_gated_delta_rule)
    return Case("delta rule step", batch, None, twins, kernels, results)


def conv_case(batch: int) -> Case:
    x, weight = random(batch, CHANNELS), random(CHANNELS, TAPS)
    slots = torch.randperm(batch, device="cuda").int()
    states = [random(batch, TAPS - 1, CHANNELS) for _ in range(32)]

    def calls(routine: Callable[..., Tensor]) -> list[Call]:
        return [lambda s=s: routine(x, weight, slots, s) for s in states]

    def results() -> list[tuple[Tensor, Tensor]]:
        one, other = states[0].clone(), states[0].clone()
        outs = (
            step.naive_slot_causal_conv1d(x, weight, slots, one),
            step.slot_causal_conv1d(x, weight, slots, other),
        )
        return [outs, (one, other)]

    twins, kernels = calls(step.naive_slot_causal_conv1d), calls(step.slot_causal_conv1d)
    return Case("convolution step", batch, None, twins, kernels, results)


def prompt_case(batch: int, context: int) -> Case:
    """fla against our own chunked routine in fp32, both from queries and keys as the convolution leaves them."""
    tokens, lengths = batch * context, [context] * batch
    q, k, v = random(3, tokens, DELTA_HEADS, DELTA_DIM)
    g = -random(tokens, DELTA_HEADS, dtype=torch.float32).abs() * 0.1
    beta = random(tokens, DELTA_HEADS).float().sigmoid()
    state = random(batch, DELTA_HEADS, DELTA_DIM, DELTA_DIM, dtype=torch.float32)
    chunks, plan = plan_chunks(lengths, "cuda"), plan_prompts(lengths, "cuda", DTYPE)

    def twin() -> tuple[Tensor, Tensor]:
        return chunk_gated_delta_rule(*normalise_query_key(q, k), v.float(), g, beta, chunks, state)

    def kernel() -> tuple[Tensor, Tensor]:
        return prompt_gated_delta_rule(q, k, v, g, beta, plan, state)

    def results() -> list[tuple[Tensor, Tensor]]:
        return list(zip(twin(), kernel(), strict=True))

    return Case("delta rule prompt", batch, context, [twin], [kernel], results, graph=False)


def cases(batches: list[int], contexts: list[int]) -> Iterator[tuple[str, Callable[[], Case]]]:
    """What each case is, and what makes it: memory is taken one case at a time."""
    for batch in batches:
        for context in contexts:
            yield f"paged attention {batch} x {context}", lambda b=batch, c=context: attention_case(b, c)
        for make in (write_case, delta_case, conv_case):
            yield f"{make.__name__} {batch}", lambda b=batch, make=make: make(b)
        for context in contexts if batch <= 8 and runs_fla(torch.device("cuda"), DTYPE) else []:
            yield f"delta rule prompt {batch} x {context}", lambda b=batch, c=context: prompt_case(b, c)


def time_calls(calls: list[Call], repeats: int) -> float:
    """Median microseconds a call, of `repeats` runs of at least eight calls."""
    calls = calls * -(-8 // len(calls))
    times = []
    for _ in range(repeats + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for call in calls:
            call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / len(calls))
    return statistics.median(times[3:])


def time_graph(calls: list[Call], repeats: int) -> float:
    """The same calls captured in one CUDA graph and replayed."""
    calls = calls * -(-8 // len(calls))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return time_calls([graph.replay], repeats) / len(calls)


def measure(case: Case, repeats: int) -> Row:
    differences = [float((a.float() - b.float()).abs().max() / a.float().abs().max()) for a, b in case.results()]
    twin, kernel = time_calls(case.twins, repeats), time_calls(case.kernels, repeats)
    graph = time_graph(case.kernels, repeats) if case.graph else None
    return Row(case.name, case.batch, case.context, twin, kernel, graph, max(differences))


def print_rows(rows: list[Row]) -> None:
    table = Table("kernel", "batch", "context", "twin, us", "kernel, us", "in a graph, us", "times", "difference")
    for row in rows:
        best = row.graph_us or row.kernel_us
        table.add_row(
            row.name,
            str(row.batch),
            "–" if row.context is None else str(row.context),
            f"{row.twin_us:.1f}",
            f"{row.kernel_us:.1f}",
            "–" if row.graph_us is None else f"{row.graph_us:.1f}",
            f"{row.twin_us / best:.1f}",
            f"{row.difference:.1e}",
        )
    Console(width=110).print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--contexts", type=int, nargs="+", default=[256, 2048, 16384])
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            "no CUDA device was found, and these kernels have no other: run this on a machine with one", file=sys.stderr
        )
        return 2
    torch.manual_seed(0)
    rows, left_out = [], []
    with torch.inference_mode():
        for name, make in cases(args.batches, args.contexts):
            try:
                rows.append(measure(make(), args.repeats))
                print(".", end="", file=sys.stderr, flush=True)
            except torch.cuda.OutOfMemoryError:
                left_out.append(name)
            torch.cuda.empty_cache()
    print(file=sys.stderr)
    print_rows(rows)
    if left_out:
        print(f"left out for want of memory: {', '.join(left_out)}")
    if not runs_fla(torch.device("cuda"), DTYPE):
        print("prompts were left out: fla is not installed")
    device = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    print(json.dumps(device | {"rows": [asdict(row) for row in rows]}))
    wrong = [row for row in rows if not row.difference <= TOLERANCE]
    for row in wrong:
        print(f"{row.name} at batch {row.batch} is {row.difference:.1e} off its twin", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
