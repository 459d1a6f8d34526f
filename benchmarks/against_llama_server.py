#!/usr/bin/env python3
"""Many requests at once in pocketvlm and in llama.cpp's server: own pictures of 448², in turns, in one run.

    python benchmarks/against_llama_server.py --model DIR --server llama-server --gguf Q4_K_M.gguf --mmproj q8_0.gguf

Files for llama.cpp come from `pocketvlm export gguf` and llama-quantize. Its server listens on loopback, gets a slot
for each request and as many threads as pocketvlm, keeps no prompts, and is ended here. Both draw greedily and go on
behind stop tokens. Prints one JSON line: seconds of each round, all pictures new, after one request to warm up.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from operator import truediv
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import pocketvlm
from pocketvlm.machine import usable_cores

SIDE = 448
PATIENCE = 600  # seconds for a server to start, and for an answer
Messages = list[dict[str, Any]]


def messages(seed: int) -> Messages:
    """A picture of noise in PNG, and a question."""
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    Image.fromarray(pixels).save(buffer := io.BytesIO(), "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    image = {"type": "image_url", "image_url": {"url": url}}
    return [{"role": "user", "content": [image, {"type": "text", "text": f"What is at place {seed}?"}]}]


@contextmanager
def served(command: list[str]) -> Iterator[str]:
    """The address of a server that `command` starts, once it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = ["--host", "127.0.0.1", "--port", port]
    process = subprocess.Popen([*command, *place], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            if process.poll() is not None:
                sys.exit(f"{command[0]} ended by itself with status {process.returncode}")
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except (urllib.error.URLError, TimeoutError):
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def ask(address: str, asked: Messages, tokens: int) -> int:
    """Tokens of one answer of llama.cpp's server."""
    body = {"messages": asked, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=PATIENCE) as response:
        return int(json.load(response)["usage"]["completion_tokens"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="as `pocketvlm.load` takes it")
    parser.add_argument("--quantization", default="auto")
    parser.add_argument("--server", type=Path, required=True, help="llama-server")
    parser.add_argument("--gguf", type=Path, nargs="+", required=True, help="decoders, a server for each")
    parser.add_argument("--mmproj", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    vlm = pocketvlm.load(args.model, quantization=args.quantization)

    def ours(asked: list[Messages]) -> list[int]:
        answers = vlm.batch(asked, max_tokens=args.tokens, temperature=0.0, ignore_eos=True)
        return [answer.usage.completion_tokens for answer in answers]

    def theirs(address: str) -> Callable[[list[Messages]], list[int]]:
        def run(asked: list[Messages]) -> list[int]:
            with ThreadPoolExecutor(len(asked)) as readers:
                return list(readers.map(lambda one: ask(address, one, args.tokens), asked))

        return run

    seconds: dict[str, list[float]] = {}
    with ExitStack() as stack:
        contenders = {"pocketvlm": ours}
        for gguf in args.gguf:
            sizes = ["-t", str(usable_cores()), "-np", str(args.requests), "-c", str(512 * args.requests)]
            command = [str(args.server), "-m", str(gguf), "--mmproj", str(args.mmproj), *sizes]
            address = stack.enter_context(served([*command, "--jinja", "--no-webui", "--cache-ram", "0"]))
            contenders[gguf.stem] = theirs(address)
        for run in contenders.values():
            run([messages(0)])
        for turn in range(args.rounds):
            for name, run in contenders.items():
                asked = [messages(1000 * (turn + 1) + i) for i in range(args.requests)]
                began = time.perf_counter()
                counts = run(asked)
                seconds.setdefault(name, []).append(round(time.perf_counter() - began, 2))
                assert counts == [args.tokens] * args.requests, (name, counts)
    found = {
        name: {"seconds": times, "ratio": round(statistics.median(map(truediv, times, seconds["pocketvlm"])), 2)}
        for name, times in seconds.items()
    }
    facts = {"engine": vlm.engine.describe(), "requests": args.requests, "tokens": args.tokens}
    print(json.dumps(facts | {"threads": usable_cores()} | found))


if __name__ == "__main__":
    main()
