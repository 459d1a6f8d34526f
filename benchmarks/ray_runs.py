#!/usr/bin/env python3
"""`pocketvlm batch --ray` with one engine and with several: pictures a second, and what is lost when engines end.

    python benchmarks/ray_runs.py --pictures 20000 --alone 4000 --engines 2 --kills 2
    python benchmarks/ray_runs.py --pictures 2000 --engines 8 --kills 0 --address auto    # on a cluster that is there

Every hundredth request names a picture that does not exist; all others name one of their own. Each engine has one core.
Pictures a second are counted from the first twentieth of the rows on to the end of the command: without the start of
Ray and of the engines, with the end of both.
Ends with status 1 where a row is missing, comes twice, or has another answer than with one engine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from PIL import Image

from pocketvlm.machine import processor_name, usable_processors
from pocketvlm.synthetic import make_sample

DRAWN = 200  # pictures; each is written as many times as is needed, every time with a pixel of its own
STARTED = 0.05  # of the rows, before which time is not counted


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--pictures", type=int, default=2000, help="requests, each with a picture")
    cli.add_argument("--draw", default="receipt", help="what the pictures show: receipt (default), words, form, …")
    cli.add_argument("--alone", type=int, help="how many of them one engine answers (default: all)")
    cli.add_argument("--pin", action="store_true", help="one engine has one core for its pictures and for Ray, too")
    cli.add_argument("--engines", type=int, default=2)
    cli.add_argument("--kills", type=int, default=2, help="engines that are killed in the run with several")
    cli.add_argument("--address", default="", help="of a cluster; otherwise one of this machine is started")
    args = cli.parse_args()
    if args.address and args.pin:
        cli.error("--pin is for a cluster that is started for the run")
    if args.address and args.kills:
        cli.error("--kills ends processes of a cluster that was started for the run: give --kills 0 with --address")
    few = args.pictures if args.alone is None else args.alone
    if not 1 <= few <= args.pictures:
        cli.error(f"--alone {few} is not from 1 to {args.pictures}")
    with tempfile.TemporaryDirectory() as folder:
        requests = write_requests(Path(folder), args.pictures, args.draw)
        first = Path(folder) / "first.jsonl"
        first.write_text("".join(requests.read_text().splitlines(keepends=True)[:few]))
        one, alone = run(first, 1, args.address, kills=0, pin=args.pin)
        several, together = run(requests, args.engines, args.address, kills=args.kills)
        ids = [json.loads(line)["custom_id"] for line in requests.read_text().splitlines()]
    print(f"{processor_name()}, {usable_processors()} processors, nano, {args.pictures} pictures ({args.draw})")
    beside = "all of it on that core" if args.pin else "the rest of the run on the others"
    print(f"1 engine of one core, {beside}, {few} pictures: {alone:.2f} a second")
    print(f"{args.engines} engines of one core, {args.kills} kills: {together:.2f} a second")
    print(f"ratio {together / alone:.2f}")
    same = [answer_of(a) == answer_of(b) for a, b in zip(one, several, strict=False)]
    failed = sum(row["response"]["status_code"] != 200 for row in several)
    print(
        f"{len(several)} rows, {failed} of them failures; of {len(same)} {same.count(False)} unlike those of one engine"
    )
    found = [[row["custom_id"] for row in rows] for rows in (one, several)]
    if found != [ids[:few], ids] or failed != -(-args.pictures // 100) or not all(same):
        sys.exit("rows are missing, come twice or differ")


def write_requests(folder: Path, count: int, draw: str) -> Path:
    """A file of requests about pictures in `folder`."""
    samples = [make_sample(draw, (7, number), "heldout", 0) for number in range(min(DRAWN, count))]
    path = folder / "in.jsonl"
    with path.open("w") as file:
        for number in range(count):
            name = "absent.png" if number % 100 == 0 else f"{number}.png"
            if number % 100:
                picture = samples[number % DRAWN].images[0].copy()
                picture[0, 0] = [number % 256, number // 256 % 256, 0]
                Image.fromarray(picture).save(folder / name, compress_level=1)
            question = {"type": "text", "text": samples[number % DRAWN].questions[0].text}
            content = [{"type": "image", "image": name}, question]
            body = {"messages": [{"role": "user", "content": content}], "max_tokens": 12, "temperature": 0}
            line = {"custom_id": f"n{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")
    return path


def run(
    requests: Path, engines: int, address: str, *, kills: int, pin: bool = False
) -> tuple[list[dict[str, Any]], float]:
    """The rows that come of a run, and how many came a second; pinned, it has one core of those that this has."""
    out = requests.with_name(f"{requests.stem}-out-{engines}.jsonl")
    ray = ["--ray" if not address else f"--ray={address}", "--engines", str(engines), "--engine-cores", "1"]
    command = [sys.executable, "-m", "pocketvlm", "batch", str(requests), str(out), "--json", *ray]
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)} if pin else before)  # which processes inherit
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    os.sched_setaffinity(0, before)
    watch = Watch(process.pid, out.with_name(f"{out.name}.partial"), len(requests.read_text().splitlines()), kills)
    watch.start()
    process.communicate()
    ended = time.monotonic()
    watch.done.set()
    watch.join()
    if process.returncode not in (0, 1):
        sys.exit(f"the run ended with {process.returncode}")
    if watch.limits or not watch.rows:
        sys.exit(f"the run was over before {len(watch.limits)} engines were killed, or before time was counted")
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    return rows, (len(rows) - watch.rows) / (ended - watch.since)


class Watch(threading.Thread):
    """Counts the rows that are there, and ends engines by SIGKILL, spread over the run.

    Attributes:
        rows, since: how many there were when counting began, and when that was.
    """

    def __init__(self, command: int, partial: Path, total: int, kills: int) -> None:
        super().__init__(daemon=True)
        self.command, self.partial, self.total = command, partial, total
        self.limits = [total * (number + 1) // (kills + 1) for number in range(kills)]
        self.rows, self.since = 0, time.monotonic()
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.5):
            rows = lines_in(self.partial)
            if not self.rows and rows >= STARTED * self.total:
                self.rows, self.since = rows, time.monotonic()
            if self.limits and rows >= self.limits[0] and (engines := self.engines()):
                with suppress(psutil.Error):
                    random.choice(engines).kill()
                    print(f"an engine was killed after {rows} rows", file=sys.stderr)
                    del self.limits[0]

    def engines(self) -> list[psutil.Process]:
        found = []
        with suppress(psutil.Error):
            for one in psutil.Process(self.command).children(recursive=True):
                with suppress(psutil.Error):  # it has just ended
                    if "MapBatches(Answerer)" in " ".join(one.cmdline()):
                        found.append(one)
        return found


def lines_in(path: Path) -> int:
    """Rows of a journal, which begins with a line about itself."""
    try:
        with path.open("rb") as file:
            return max(0, sum(1 for _ in file) - 1)
    except FileNotFoundError:
        return 0


def answer_of(row: dict[str, Any]) -> object:
    body = row["response"]["body"]
    return body["choices"][0]["message"]["content"] if "choices" in body else body["error"]["message"]


if __name__ == "__main__":
    main()
