#!/usr/bin/env python3
"""`pocketvlm batch --ray` with one engine and with several: pictures a second, and what is lost when engines end.

    python benchmarks/ray_runs.py --pictures 20000 --engines 2 --kills 2
    python benchmarks/ray_runs.py --pictures 2000 --engines 8 --kills 0 --address auto    # on a cluster that is there

Every hundredth request names a picture that does not exist. Each engine has one core. Ends with status 1 where a row is
missing, comes twice, or has another answer than with one engine.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from PIL import Image

from pocketvlm.machine import processor_name, usable_processors
from pocketvlm.synthetic import make_sample

DRAWN = 200  # pictures; requests about the same one differ in their words


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--pictures", type=int, default=2000, help="requests, each with a picture")
    cli.add_argument("--engines", type=int, default=2)
    cli.add_argument("--kills", type=int, default=2, help="engines that are killed in the run with several")
    cli.add_argument("--address", default="", help="of a cluster; otherwise one of this machine is started")
    args = cli.parse_args()
    if args.address and args.kills:
        cli.error("--kills ends processes of a cluster that was started for the run: give --kills 0 with --address")
    with tempfile.TemporaryDirectory() as folder:
        requests = write_requests(Path(folder), args.pictures)
        one, alone = run(requests, 1, args.address, kills=0)
        several, together = run(requests, args.engines, args.address, kills=args.kills)
        ids = [json.loads(line)["custom_id"] for line in requests.read_text().splitlines()]
    print(f"{processor_name()}, {usable_processors()} processors, nano, {args.pictures} pictures, one core an engine")
    print(f"1 engine: {alone:.1f} s, {args.pictures / alone:.1f} pictures a second")
    print(f"{args.engines} engines, {args.kills} killed: {together:.1f} s, {args.pictures / together:.1f} a second")
    print(f"ratio {alone / together:.2f}")
    same = [answer_of(a) == answer_of(b) for a, b in zip(one, several, strict=True)]
    failed = sum(row["response"]["status_code"] != 200 for row in several)
    print(f"{len(several)} rows, {failed} of them failures, {same.count(False)} unlike those of one engine")
    if [row["custom_id"] for row in several] != ids or failed != -(-args.pictures // 100) or not all(same):
        sys.exit("rows are missing, come twice or differ")


def write_requests(folder: Path, count: int) -> Path:
    """A file of requests about pictures in `folder`."""
    for number in range(min(DRAWN, count)):
        Image.fromarray(make_sample("receipt", (7, number), "heldout", 0).images[0]).save(folder / f"{number}.png")
    path = folder / "in.jsonl"
    with path.open("w") as file:
        for number in range(count):
            name = "absent.png" if number % 100 == 0 else f"{number % DRAWN}.png"
            question = {"type": "text", "text": f"What is the total?{' ' * (number // DRAWN)}"}
            content = [{"type": "image", "image": name}, question]
            body = {"messages": [{"role": "user", "content": content}], "max_tokens": 12, "temperature": 0}
            line = {"custom_id": f"n{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")
    return path


def run(requests: Path, engines: int, address: str, *, kills: int) -> tuple[list[dict[str, Any]], float]:
    """The rows that come of a run, and its seconds as the command counts them (the start of Ray and loading too)."""
    out = requests.with_name(f"out-{engines}.jsonl")
    ray = ["--ray" if not address else f"--ray={address}", "--engines", str(engines), "--engine-cores", "1"]
    command = [sys.executable, "-m", "pocketvlm", "batch", str(requests), str(out), "--json", *ray]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    done = threading.Event()
    killer = threading.Thread(
        target=kill_engines, args=(process.pid, out, kills, len(requests.read_text().splitlines()), done)
    )
    killer.start()
    text, _ = process.communicate()
    done.set()
    killer.join()
    if process.returncode not in (0, 1):
        sys.exit(f"the run ended with {process.returncode}")
    return [json.loads(line) for line in out.read_text().splitlines()], json.loads(text)["seconds"]


def kill_engines(command: int, out: Path, kills: int, total: int, done: threading.Event) -> None:
    """End `kills` engines that the process `command` has started, by SIGKILL, spread over the run."""
    partial = out.with_name(f"{out.name}.partial")
    for number in range(kills):
        wanted = total * (number + 1) // (kills + 1)
        while not done.is_set() and lines_in(partial) < wanted:
            time.sleep(0.5)
        below = [] if done.is_set() else psutil.Process(command).children(recursive=True)
        engines = [one for one in below if "MapBatches(Answerer)" in " ".join(one.cmdline())]
        if engines and not done.is_set():
            random.choice(engines).kill()
            print(f"an engine was killed after {lines_in(partial)} rows", file=sys.stderr)


def lines_in(path: Path) -> int:
    try:
        with path.open("rb") as file:
            return sum(1 for _ in file)
    except FileNotFoundError:
        return 0


def answer_of(row: dict[str, Any]) -> object:
    body = row["response"]["body"]
    return body["choices"][0]["message"]["content"] if "choices" in body else body["error"]["message"]


if __name__ == "__main__":
    main()
