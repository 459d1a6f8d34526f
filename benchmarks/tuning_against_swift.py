#!/usr/bin/env python3
"""Steps of LoRA on a CPU by `pocketvlm tune` and by ms-swift: the same samples, layers, rank and numbers.

    make peers-env
    python benchmarks/tuning_against_swift.py --model DIR --steps 2 --batch-size 2 --words 60

ms-swift runs what `pocketvlm tune --emit swift` writes, in an environment of its own (`--swift`). Each side is one
process, from the command line; the first step is not counted, and memory is the process's resident peak. The losses of
the first step agree but for the end of the line behind an answer, which ms-swift learns as well. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from pocketvlm.benchmark.tuning.documents import documents
from pocketvlm.machine import processor_name, usable_cores
from pocketvlm.training.data.emit import emit

ROOT = Path(__file__).resolve().parents[1]
POLL = 0.02  # seconds


def timed(command: list[str], log: Path, environment: dict[str, str], folder: Path) -> dict[str, Any]:
    """Run a command that writes a line with a loss into `log` behind each step: seconds a step, and memory."""
    seen: list[float] = []
    is_done = threading.Event()

    def watch() -> None:
        while not is_done.wait(POLL):
            if log.exists():
                lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines(True) if "\n" in line]
                steps = sum("loss" in line for line in lines)
                seen.extend([time.monotonic()] * (steps - len(seen)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        is_done.set()
        watcher.join()
        if process.returncode or len(seen) < 2:
            output.seek(0)
            raise SystemExit(f"{shlex.join(command)} ended with {process.returncode}: {output.read()[-2000:]!r}")
    first = next(one for one in map(json.loads, log.read_text(encoding="utf-8").splitlines()) if "loss" in one)
    seconds = [later - sooner for sooner, later in itertools.pairwise(seen)]
    return {"seconds_a_step": seconds, "first_loss": first["loss"], "peak_memory_bytes": usage.ru_maxrss * 1024}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a checkpoint directory in the published layout")
    parser.add_argument("--swift", type=Path, default=ROOT / ".peers/swift/bin/swift", help="ms-swift's command")
    parser.add_argument("--steps", type=int, default=2, help="that count, behind one that does not (default 2)")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--image-size", type=int, default=448)
    parser.add_argument("--words", type=int, default=60, help="of the longest answers; most are short")
    args = parser.parse_args()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": str(usable_cores()), "HF_HUB_OFFLINE": "1"}
    environment["PATH"] = f"{args.swift.parent}{os.pathsep}{os.environ['PATH']}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment["HF_DATASETS_CACHE"] = str(folder / "cache")
        count = (args.steps + 1) * args.batch_size
        data = emit(documents(count, args.image_size, args.words, 0), folder / "data", "swift")
        ours = [sys.executable, "-m", "pocketvlm", "tune", str(data), "--model", args.model, "--device", "cpu"]
        ours += ["--steps", str(args.steps + 1), "--batch-size", str(args.batch_size), "--rank", str(args.rank)]
        ours += ["--dropout", "0", "--downsample-mode", "16x"]
        emitted = subprocess.run(
            [*ours, "--emit", "swift", "--out", str(folder / "there"), "--json"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        theirs = [*shlex.split(json.loads(emitted.stdout)["command"]), "--logging_steps", "1", "--save_strategy", "no"]
        log = folder / "there" / "output" / "logging.jsonl"
        results = {"ms-swift": timed(theirs, log, environment, folder)}
        mine = folder / "here"
        results["pocketvlm"] = timed([*ours, "--out", str(mine)], mine / "training.jsonl", environment, folder)
    for one in results.values():
        one["samples_s"] = args.batch_size * len(one["seconds_a_step"]) / sum(one["seconds_a_step"])
    ratios = {key: results["pocketvlm"][key] / results["ms-swift"][key] for key in ("samples_s", "peak_memory_bytes")}
    facts = {"machine": processor_name(), "threads": usable_cores(), "rank": args.rank, "batch_size": args.batch_size}
    print(json.dumps({**facts, "results": results, "ratios": ratios}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
