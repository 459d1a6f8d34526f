"""Figures of the engine on this machine, each one command: python benchmarks/engine_figures.py CASE [--model DIR].

conversation  ten turns about one 1344² picture: tokens that prefill computes against tokens that are new
throughput    16 requests with a 448² picture each, together against one after another
rate          requests a second that are sustained, short answers about small pictures
stall         gaps between tokens of a running answer while 3136² JPEGs arrive, against the same work prepared before
soak          memory, threads and open files over many requests
structured    a token of a JSON answer against a token of a free one

Every case prints one JSON line; times are of the wall, the model is warm.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import resource
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import pocketvlm
from pocketvlm.machine import processor_name, usable_cores

GREEDY = {"temperature": 0.0}


def noise(side: int, seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def about(picture: Any, question: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": question}]}]


def value(vlm: pocketvlm.VLM, name: str, **labels: str) -> float:
    return vlm.engine.metrics.value(name, **labels)


def conversation(vlm: pocketvlm.VLM, args: argparse.Namespace) -> dict[str, Any]:
    """Tokens that are new in a turn: those behind what its prompt shares with the prompt before."""
    messages: list[dict[str, Any]] = about(noise(1344, 0), "What is in the picture?")
    new, before, first_tokens = 0, [], []
    for turn in range(10):
        ids = vlm.processor(messages).input_ids.tolist()
        shared = next((i for i, (a, b) in enumerate(zip(before, ids, strict=False)) if a != b), len(before))
        new += len(ids) - shared
        before = ids
        answer = vlm.chat(messages, max_tokens=args.tokens, ignore_eos=True, **GREEDY)
        first_tokens.append(round(answer.timing["preprocess"] + answer.timing["encode"] + answer.timing["prefill"], 4))
        messages = [
            *messages,
            {"role": "assistant", "content": f"It shows the thing with the number {turn}, as far as I can tell."},
            {"role": "user", "content": f"And what is written to the left of it, in line {turn}?"},
        ]
    computed = value(vlm, "prompt_tokens_computed_total")
    return {
        "new_tokens": new,
        "computed_tokens": int(computed),
        "ratio": round(computed / new, 4),
        "prompt_tokens": int(value(vlm, "prompt_tokens_total")),
        "hit_rate": round(value(vlm, "prefix_cache_hits_total") / value(vlm, "prefix_cache_queries_total"), 4),
        "prefix_cache_mib": round(value(vlm, "prefix_cache_bytes") / 2**20, 1),
        "encoded_views": int(value(vlm, "encoded_views_total")),
        "seconds_to_first_token": first_tokens,
    }


def throughput(vlm: pocketvlm.VLM, args: argparse.Namespace) -> dict[str, Any]:
    """Pictures of their own for each request, and in a second round one picture for all; every round is cold."""
    options = {**GREEDY, "max_tokens": args.tokens, "ignore_eos": True}
    seeds = itertools.count(1000)

    def asked(kind: str) -> list[list[dict[str, Any]]]:
        shared = noise(448, next(seeds))
        return [
            about(shared if kind == "one picture" else noise(448, next(seeds)), f"What is at place {i}?")
            for i in range(args.requests)
        ]

    found: dict[str, Any] = {}
    vlm.batch(asked("own")[:2], **options)  # warm
    for kind in ("own pictures", "one picture"):
        alone, together = list[float](), list[float]()
        for _ in range(args.rounds):
            conversations = asked(kind)
            began = time.perf_counter()
            for messages in conversations:
                vlm.chat(messages, **options)
            alone.append(time.perf_counter() - began)
            conversations = asked(kind)
            began = time.perf_counter()
            vlm.batch(conversations, **options)
            together.append(time.perf_counter() - began)
        ratio = statistics.median(a / b for a, b in zip(alone, together, strict=True))
        found[kind] = {
            "one_after_another": round(statistics.median(alone), 3),
            "together": round(statistics.median(together), 3),
            "ratio": round(ratio, 3),
            "output_tokens_per_second": round(args.requests * args.tokens / statistics.median(together), 1),
        }
    return found


def rate(vlm: pocketvlm.VLM, args: argparse.Namespace) -> dict[str, Any]:
    """Sustained for `seconds`, with enough requests in flight; pictures come as PNG files, each its own."""
    files = []
    for i in range(256):
        buffer = io.BytesIO()
        Image.fromarray(noise(args.side, i)).save(buffer, "PNG")
        files.append(buffer.getvalue())
    options = {**GREEDY, "max_tokens": args.tokens, "ignore_eos": True}
    until = time.perf_counter() + args.seconds

    def source() -> Iterator[tuple[int, list[dict[str, Any]], dict[str, Any]]]:
        for i in itertools.count():
            if time.perf_counter() > until:
                return
            yield i, about(files[i % len(files)], f"What does it say, {i}?"), options

    began, done, times = time.perf_counter(), 0, dict.fromkeys(("preprocess", "encode", "prefill", "decode"), 0.0)
    for _, answers in vlm.as_completed(source(), ahead=64):
        assert isinstance(answers, list), answers
        done += 1
        times["preprocess"] += answers[0].timing["preprocess"]
    spent = time.perf_counter() - began
    return {
        "requests_per_second": round(done / spent, 1),
        "output_tokens_per_second": round(done * args.tokens / spent, 1),
        "preprocess_ms_a_request": round(1000 * times["preprocess"] / done, 2),
        "requests": done,
    }


def stall(vlm: pocketvlm.VLM, args: argparse.Namespace) -> dict[str, Any]:
    """A long answer is streamed; its gaps are taken in turns without and with JPEGs being read and cut at `--rate` a
    second in threads of their own. They are not answered: encoding is the engine's own work, preprocessing is not."""
    buffer = io.BytesIO()
    smooth = Image.fromarray(noise(196, 0)).resize((3136, 3136), Image.Resampling.BICUBIC)
    smooth.save(buffer, "JPEG", quality=90)
    jpeg, stop, busy = buffer.getvalue(), threading.Event(), threading.Event()
    prepared = itertools.count()

    def arrivals() -> None:
        while not stop.is_set():
            if busy.wait(0.05):
                began = time.perf_counter()
                vlm.prepare(about(jpeg, "What is it?"), dict(GREEDY))
                next(prepared)
                stop.wait(max(0.0, 1 / args.rate - (time.perf_counter() - began)))

    thread = threading.Thread(target=arrivals)
    thread.start()
    gaps: dict[bool, list[float]] = {False: [], True: []}
    try:
        stream = vlm.stream(
            [{"role": "user", "content": "Tell me a story."}], max_tokens=args.tokens * 40, ignore_eos=True, **GREEDY
        )
        before, with_jpegs, counted = time.perf_counter(), False, 0
        tokens = value(vlm, "generation_tokens_total")
        while counted < args.tokens * 40 - 2:
            vlm.shared.advance(stream._job)
            stream._job.deltas.clear()
            now, count = time.perf_counter(), value(vlm, "generation_tokens_total")
            if count > tokens:
                gaps[with_jpegs].append(now - before)
                before, tokens, counted = now, count, counted + 1
                if counted % 64 == 0:  # in turns: the machine's own speed changes
                    with_jpegs = not with_jpegs
                    (busy.set if with_jpegs else busy.clear)()
                    time.sleep(0.3)
                    before = time.perf_counter()
        stream.close()
    finally:
        stop.set()
        thread.join()
    p99 = {key: float(np.percentile(found, 99)) for key, found in gaps.items()}
    return {
        "p99_ms_without": round(1000 * p99[False], 2),
        "p99_ms_with": round(1000 * p99[True], 2),
        "ratio": round(p99[True] / p99[False], 3),
        "median_ms": {str(k).lower(): round(1000 * statistics.median(v), 2) for k, v in gaps.items()},
        "pictures_prepared": next(prepared),
        "gaps": len(gaps[True]),
    }


def soak(vlm: pocketvlm.VLM, args: argparse.Namespace) -> dict[str, Any]:
    """Resident memory, threads and files after a twentieth of the requests (500 at least) and after all of them. Caches
    are small here, so that they are full by then: what grows afterwards is lost."""
    options = {**GREEDY, "max_tokens": 4, "ignore_eos": True}

    def source() -> Iterator[tuple[int, list[dict[str, Any]], dict[str, Any]]]:
        for i in range(args.requests):
            yield i, about(noise(56, i), f"Question {i}"), options

    def now() -> dict[str, int]:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        files = len(list(Path("/proc/self/fd").iterdir()))
        return {"rss": pages * os.sysconf("SC_PAGE_SIZE"), "threads": threading.active_count(), "files": files}

    began, first = time.perf_counter(), dict[str, int]()
    for done, (_, answers) in enumerate(vlm.as_completed(source()), 1):
        assert isinstance(answers, list), answers
        if done == max(args.requests // 20, 500):
            first = now()
    last = now()
    vlm.engine.check_integrity()
    return {
        "requests": args.requests,
        "seconds": round(time.perf_counter() - began, 1),
        "early": first,
        "late": last,
        "growth": round(last["rss"] / first["rss"] - 1, 5),
    }


def structured(vlm: pocketvlm.VLM, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds a token at batch 1, in turns: free text, and text within a schema that has no end."""
    from pocketvlm.grammar.structured_outputs import StructuredOutputs

    schema = {
        "type": "array",
        "items": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "n": {"type": "integer"}},
            "required": ["name", "n"],
        },
        "minItems": 500,
    }
    messages = [{"role": "user", "content": "List them all."}]
    found: dict[str, list[float]] = {"free": [], "structured": []}
    for _ in range(args.rounds + 1):
        for kind, seconds in found.items():
            extra = {"structured_outputs": StructuredOutputs(json=schema)} if kind == "structured" else {}
            answer = vlm.chat(messages, max_tokens=args.tokens, ignore_eos=True, **GREEDY, **extra)
            began = answer.timing["total"] - answer.timing["preprocess"] - answer.timing["prefill"]
            seconds.append(began / max(1, answer.usage.completion_tokens))
    medians = {kind: statistics.median(seconds[1:]) for kind, seconds in found.items()}
    return {
        "ms_a_token": {kind: round(1000 * seconds, 3) for kind, seconds in medians.items()},
        "ratio": round(
            statistics.median(b / a for a, b in zip(found["free"][1:], found["structured"][1:], strict=True)), 4
        ),
    }


CASES: dict[str, Callable[[pocketvlm.VLM, argparse.Namespace], dict[str, Any]]] = {
    "conversation": conversation,
    "throughput": throughput,
    "rate": rate,
    "stall": stall,
    "soak": soak,
    "structured": structured,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--model", default="nano", help="as `pocketvlm.load` takes it (default nano)")
    parser.add_argument("--quantization", default="auto")
    parser.add_argument("--runtime", default="auto")
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20, help="of `rate`")
    parser.add_argument("--side", type=int, default=112, help="pixels of a picture's side in `rate`")
    parser.add_argument("--rate", type=float, default=4, help="JPEGs a second in `stall`")
    args = parser.parse_args()
    small = pocketvlm.EngineConfig(prefix_cache_memory=2**25, encoder_cache_memory=2**22)
    config = small if args.case == "soak" else None
    vlm = pocketvlm.load(args.model, runtime=args.runtime, quantization=args.quantization, engine_config=config)
    found = CASES[args.case](vlm, args)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    facts = {"case": args.case, "engine": vlm.engine.describe(), "machine": processor_name(), "threads": usable_cores()}
    print(json.dumps(facts | {"peak_gib": round(peak, 2)} | found))


if __name__ == "__main__":
    main()
