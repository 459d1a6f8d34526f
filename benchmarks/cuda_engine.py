#!/usr/bin/env python3
"""The engine on a GPU, in one command: is it right, how fast is it, what does it hold.

    python benchmarks/cuda_engine.py [--model DIR] [--cases equal ttft decode throughput] [--memory-gib 24]

Without --model a checkpoint of the published size with random weights (2.6 GB) is written to a temporary folder first.

equal       greedy tokens of the same requests alone and together, launched one by one and recorded in CUDA graphs
ttft        first token of one picture of each of --sides, cold (a picture that was never seen) and warm (seen before),
            by stages
decode      seconds a step at each of --batches, launched one by one and recorded
throughput  --requests pictures of 1344² at a time, answers of --tokens each: tokens and pictures a second

Prints one JSON line a case. Times are of the wall, after one round to warm up; medians of --rounds. The memory is the
largest that PyTorch's allocator held. `--device cpu` rehearses all of it, on a small model and with small numbers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pocketvlm
from pocketvlm.engine.engine import Engine
from pocketvlm.engine.request import Request
from pocketvlm.engine.runners.torch_runner import TorchRunner

GREEDY = {"temperature": 0.0, "ignore_eos": True}
PROMPT = 300  # tokens of a prompt of text


def picture(side: int, seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """uint8 [side, side, 3]: what is in a picture does not change how long it takes."""
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def about(side: int, seed: int) -> list[dict[str, Any]]:
    image = {"type": "image", "image": picture(side, seed)}
    return [{"role": "user", "content": [image, {"type": "text", "text": "What is in the picture?"}]}]


class Bench:
    """A model with two runners over the same weights, one of which records its steps."""

    def __init__(self, args: argparse.Namespace, model: str) -> None:
        self.args = args
        loaded = pocketvlm.load(model, device=args.device, dtype=args.dtype, runtime="torch")
        assert isinstance(loaded.runner, TorchRunner)
        weights = loaded.runner.model
        self.device = weights.device
        self.processor, self.defaults = loaded.processor, loaded.defaults
        del loaded  # and its caches
        self.recorded, self.eager = TorchRunner(weights, graphs=True), TorchRunner(weights, graphs=False)

    @contextlib.contextmanager
    def vlm(self, runner: TorchRunner, **config: Any) -> Iterator[pocketvlm.VLM]:
        """A fresh engine; its caches are gone afterwards."""
        config = {"cache_layout": "paged", **config}
        vlm = pocketvlm.VLM(runner, self.processor, self.defaults, engine_config=pocketvlm.EngineConfig(**config))
        try:
            yield vlm
        finally:
            del vlm
            if runner.decode_graphs is not None:
                runner.decode_graphs.steps.clear()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def seconds(self, work: Callable[[], Any]) -> float:
        """Of one run, with all that the device still does."""
        self.wait()
        began = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - began

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def text(self, vlm: pocketvlm.VLM, seed: int, tokens: int) -> Request:
        """A prompt of random bytes, and so many tokens to come."""
        letters = np.random.default_rng(seed).integers(97, 123, PROMPT, np.uint8).tobytes().decode()
        messages = [{"role": "user", "content": letters}]
        return vlm.prepare(messages, {**GREEDY, "max_tokens": tokens, "seed": seed}).request


def equal(bench: Bench) -> dict[str, Any]:
    """Tokens of each request alone, and together; where two differ, how close the two best scores were."""
    count, tokens = max(1, bench.args.requests // 16), max(bench.args.tokens)
    found: dict[str, list[list[int]]] = {}
    for name, runner, alone in (
        ("eager, alone", bench.eager, True),
        ("eager, together", bench.eager, False),
        ("recorded, alone", bench.recorded, True),
        ("recorded, together", bench.recorded, False),
    ):
        with bench.vlm(runner) as vlm:
            options = {**GREEDY, "max_tokens": tokens, "logprobs": 2}
            asked = [about(224 + 112 * (i % 4), i) for i in range(count)]
            answers = [vlm.chat(one, **options) for one in asked] if alone else vlm.batch(asked, **options)
            found[name] = [list(answer.token_ids) for answer in answers]
        if name == "eager, alone":
            margins = [[entry.top[0][2] - entry.top[1][2] for entry in answer.logprobs or ()] for answer in answers]
    base = found["eager, alone"]
    report: dict[str, Any] = {"requests": count, "tokens": tokens}
    for name, answers_ids in found.items():
        at = [_first_difference(a, b) for a, b in zip(base, answers_ids, strict=True)]
        differ = [margins[i][place] for i, place in enumerate(at) if place is not None]
        report[name] = {"equal": at.count(None), "margin_at_difference": max(differ, default=None)}
    return report


def _first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
    return next((i for i, (one, other) in enumerate(zip(a, b, strict=False)) if one != other), None)


def ttft(bench: Bench) -> dict[str, Any]:
    """Cold: caches have not seen the picture, though kernels and graphs are warm. Warm: they have."""
    with bench.vlm(bench.recorded) as vlm:
        return {
            f"{side}², {slices} slices": _first_tokens(bench, vlm, side, slices)
            for slices in (9, 36)
            for side in bench.args.sides
        }


def _first_tokens(bench: Bench, vlm: pocketvlm.VLM, side: int, slices: int) -> dict[str, Any]:
    options = {**GREEDY, "max_tokens": 1, "max_slice_nums": slices}
    for seed in range(3):  # graphs are recorded at the second sighting
        vlm.chat(about(side, seed), **options)
    cold, warm, answers = list[float](), list[float](), list[pocketvlm.Answer]()
    for turn in range(bench.args.rounds):
        asked = about(side, 100 * slices + turn)  # for the caches, a picture of its own
        cold.append(bench.seconds(lambda asked=asked: answers.append(vlm.chat(asked, **options))))
        warm.append(bench.seconds(lambda asked=asked: vlm.chat(asked, **options)))
    stages = ("preprocess", "encode", "prefill")
    return {
        "cold_ms": _ms(cold),
        "warm_ms": _ms(warm),
        "prompt_tokens": answers[-1].usage.prompt_tokens,
        "stages_ms": {stage: _ms([answer.timing[stage] for answer in answers]) for stage in stages},
    }


def decode(bench: Bench) -> dict[str, Any]:
    """Seconds a step when so many sequences decode, behind prompts of a few hundred tokens."""
    report: dict[str, Any] = {"prompt": PROMPT}
    for name, runner in (("eager", bench.eager), ("recorded", bench.recorded)):
        for batch in bench.args.batches:
            with bench.vlm(runner, max_num_seqs=batch, prefix_cache_memory=0) as vlm:
                engine, steps = vlm.engine, bench.args.steps
                for seed in range(batch):
                    engine.add(bench.text(vlm, seed, 8 + steps * bench.args.rounds))
                while engine.pool.decoding < batch:
                    engine.step()
                _step(engine, 3)
                times = [
                    bench.seconds(partial(_step, engine, steps)) / steps for _ in range(max(1, bench.args.rounds - 1))
                ]
                report[f"{name}, batch {batch}"] = {
                    "ms_a_step": _ms(times),
                    "tokens_s": batch / statistics.median(times),
                }
                for request in list(engine.requests.values()):
                    engine.abort(request)
    return report


def _step(engine: Engine, times: int) -> None:
    for _ in range(times):
        engine.step()


def throughput(bench: Bench) -> dict[str, Any]:
    """All requests at once, each with a picture of its own."""
    report: dict[str, Any] = {"requests": bench.args.requests, "side": bench.args.side}
    with bench.vlm(bench.recorded) as vlm:
        for mode in ("16x", "4x"):
            for tokens in bench.args.tokens:
                options = {**GREEDY, "max_tokens": tokens, "downsample_mode": mode}
                vlm.batch([about(bench.args.side, i) for i in range(2)], **options)
                seeds = range(1000 * tokens, 1000 * tokens + bench.args.requests)
                asked = ((seed, about(bench.args.side, seed), options) for seed in seeds)
                spent = bench.seconds(lambda asked=asked: list(vlm.as_completed(asked, ahead=bench.args.requests)))
                report[f"{mode}, {tokens} tokens"] = {
                    "seconds": round(spent, 2),
                    "tokens_s": round(bench.args.requests * tokens / spent),
                    "pictures_s": round(bench.args.requests / spent, 2),
                }
    return report


def _ms(seconds: Sequence[float]) -> float:
    return round(1000 * statistics.median(seconds), 3)


CASES: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "equal": equal,
    "ttft": ttft,
    "decode": decode,
    "throughput": throughput,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="as `pocketvlm.load` takes it")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=256, help="of `throughput`, and a sixteenth of it of `equal`")
    parser.add_argument("--tokens", type=int, nargs="+", default=[50, 100, 200])
    parser.add_argument("--side", type=int, default=1344, help="pixels of a picture's side in `throughput`")
    parser.add_argument("--sides", type=int, nargs="+", default=[448, 1344, 3136])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--memory-gib", type=float, help="most memory of the GPU that this process may take")
    args = parser.parse_args()
    if args.memory_gib and args.device != "cpu":
        total = torch.cuda.get_device_properties(args.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, args.memory_gib * 2**30 / total))
    with tempfile.TemporaryDirectory() as folder:
        model = args.model
        if model is None:
            sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
            from helpers.checkpoints import write_true_size_checkpoint

            model = str(write_true_size_checkpoint(Path(folder) / "random"))
        bench = Bench(args, model)
        name = torch.cuda.get_device_name(bench.device) if bench.device.type == "cuda" else "CPU"
        for case in args.cases:
            found = CASES[case](bench)
            facts = {"case": case, "device": name, "dtype": str(bench.recorded.model.dtype), "torch": torch.__version__}
            if bench.device.type == "cuda":
                facts["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
            print(json.dumps(facts | found), flush=True)


if __name__ == "__main__":
    main()
