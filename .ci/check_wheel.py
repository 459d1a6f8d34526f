#!/usr/bin/env python3
"""Build the package, install its wheel into an empty environment and run its commands there on the embedded model.

    python .ci/check_wheel.py                     # `make check-wheel`: base install first, then with the extras
    python .ci/check_wheel.py --wheel FILE        # of a wheel that is built already
    python .ci/check_wheel.py --environment DIR   # only the commands, where wheel and extras are installed
    python .ci/check_wheel.py --base              # the base install only; with --environment: extras are not installed

Builds with hatchling from the environment that runs it. The sdist must build the very same wheel. The commands run in a
folder of their own, so that nothing of the repository can be imported. At the first one that does not do what it should
the exit status is 1, and what it printed is shown.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = "documents,eval,gguf,mcp,otel,plots,serve,structured,torch"
MAX_BYTES = 20_000_000
# What nano, which answers greedily and the same everywhere, reads in the example.
QUESTION, ANSWER = "What is the total?", "11.60"


def hatchling(root: Path, target: str, out: Path) -> Path:
    """The one file that hatchling makes of `root` as `target`, in the empty folder `out`."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(out)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"hatchling builds no {target} of {root}:\n{done.stdout}{done.stderr}")
    (built,) = out.iterdir()
    return built


def build(folder: Path) -> Path:
    """The wheel of this tree, after the sdist was seen to build the same."""
    wheel = hatchling(ROOT, "wheel", folder / "wheel")
    sdist = hatchling(ROOT, "sdist", folder / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    again = hatchling(unpacked, "wheel", folder / "again")
    if wheel.name != again.name or wheel.read_bytes() != again.read_bytes():
        raise SystemExit(f"{sdist.name} builds another wheel than the tree it was made of")
    for file in (wheel, sdist):
        print(f"{file.stat().st_size / 1e6:6.2f} MB  {file.name}")
    return wheel


class Environment:
    """A virtual environment, and the folder in which its commands run."""

    def __init__(self, directory: Path, work: Path) -> None:
        self.scripts = directory / ("Scripts" if os.name == "nt" else "bin")
        self.work = work
        hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
        self.variables = {name: value for name, value in os.environ.items() if name not in hidden}
        self.variables |= {"POCKETVLM_CACHE": str(work / "cache"), "HF_HUB_OFFLINE": "1"}

    def run(self, *command: str, status: int = 0, says: str = "", given: str = "") -> None:
        """Runs a command of the environment, which must end with `status` and print `says` somewhere."""
        start = time.perf_counter()
        done = subprocess.run(
            [str(self.scripts / command[0]), *command[1:]],
            cwd=self.work,
            env=self.variables,
            input=given,
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
        )
        shown = " ".join(command)
        if done.returncode != status or says not in done.stdout + done.stderr or "Traceback" in done.stderr:
            expected = f"status {status}" + (f" and {says!r}" if says else "")
            raise SystemExit(f"{shown}\nended with {done.returncode}, not {expected}:\n{done.stdout}{done.stderr}")
        print(f"{time.perf_counter() - start:6.1f} s   {shown}")

    def install(self, what: str) -> None:
        """Installs into it, with the versions that the checks run with."""
        pip = ("python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        self.run(*pip, "--constraint", str(ROOT / "constraints.txt"), what)


def fill(work: Path) -> None:
    """Pictures and requests for the commands."""
    work.mkdir(parents=True, exist_ok=True)
    for name in ("receipt.png", "clip.mp4"):
        (work / name).write_bytes((ROOT / "examples" / name).read_bytes())
    content = [{"type": "image_url", "image_url": {"url": "receipt.png"}}, {"type": "text", "text": QUESTION}]
    body = {"model": "nano", "messages": [{"role": "user", "content": content}]}
    line = {"custom_id": "one", "method": "POST", "url": "/v1/chat/completions", "body": body}
    (work / "in.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")


def check_base(env: Environment) -> None:
    """Every command that needs no extra."""
    env.run("python", "-c", "import pocketvlm, sys; assert pocketvlm.__file__.startswith(sys.prefix)")
    env.run("pocketvlm", "--version", says="pocketvlm ")
    env.run("python", "-m", "pocketvlm", "--help", says="ask")
    env.run("pocketvlm", "info", says="parameters")
    env.run("pocketvlm", "plan", "receipt.png", says="view")
    env.run("pocketvlm", "ask", "receipt.png", QUESTION, says=ANSWER)
    env.run("python", "-m", "pocketvlm", "ask", "clip.mp4", "What moves?", "--json", says="finish_reason")
    env.run("pocketvlm", "chat", "receipt.png", given=f"{QUESTION}\n", says=ANSWER)
    env.run("pocketvlm", "batch", "in.jsonl", "out.jsonl")
    if ANSWER not in (env.work / "out.jsonl").read_text(encoding="utf-8"):
        raise SystemExit("out.jsonl holds no answer")
    env.run("python", "-c", "from PIL import Image; Image.open('receipt.png').convert('RGB').save('receipt.pdf')")
    env.run("pocketvlm", "read", "receipt.png", "--out", "texts")
    if not (env.work / "texts" / "receipt.md").read_text(encoding="utf-8").strip():
        raise SystemExit("texts/receipt.md is empty")
    env.run("pocketvlm", "eval", "shapes", "--count", "2", says="shapes")
    env.run("pocketvlm", "export", "onnx", "bundle", "--quantization", "none")
    env.run("pocketvlm", "ask", "receipt.png", QUESTION, "--model", "bundle", says=ANSWER)
    env.run("pocketvlm", "bench", "offline", "--lines", "view", "--rounds", "1", says="views/s")


def check_missing(env: Environment) -> None:
    """What an extra brings is asked for by its name, in one line."""
    env.run("python", "-c", "from importlib.util import find_spec; assert find_spec('torch') is None")
    env.run("pocketvlm", "trace", "receipt.png", "--prompt", QUESTION, status=2, says="pocketvlm[torch]")
    env.run("pocketvlm", "export", "huggingface", "copy", status=2, says="pocketvlm[torch]")
    env.run("pocketvlm", "tune", "train.csv", status=2, says="pocketvlm[tune]")
    env.run("pocketvlm", "export", "gguf", "gguf", status=2, says="pocketvlm[gguf]")
    env.run("pocketvlm", "ask", "receipt.png", QUESTION, "--runtime", "torch", status=2, says="pocketvlm[torch]")
    env.run("pocketvlm", "ask", "receipt.png", QUESTION, "--device", "cuda", status=2, says="pocketvlm[torch]")
    env.run("pocketvlm", "ask", "receipt.png", QUESTION, "--choice", "a", status=2, says="pocketvlm[structured]")
    env.run("pocketvlm", "ask", "receipt.pdf", QUESTION, status=2, says="pocketvlm[documents]")
    env.run("pocketvlm", "serve", status=2, says="pocketvlm[serve]")
    env.run("pocketvlm", "bench", "serving", status=2, says="pocketvlm[serve]")
    env.run("pocketvlm", "mcp", "--root", ".", status=2, says="pocketvlm[mcp]")


def check_extras(env: Environment) -> None:
    """The commands that need an extra."""
    env.run("pocketvlm", "trace", "receipt.png", "--prompt", QUESTION, "--save", "trace.npz")
    env.run("pocketvlm", "export", "huggingface", "copy")
    env.run("pocketvlm", "export", "gguf", "gguf")
    env.run("pocketvlm", "ask", "receipt.png", QUESTION, "--choice", ANSWER, "--choice", "99.99", says=ANSWER)
    env.run("pocketvlm", "ask", "receipt.pdf#1", QUESTION, says=ANSWER)
    env.run("pocketvlm", "extract", "receipt.pdf", "--schema", "total: string", "--out", "rows.csv")
    if ANSWER not in (env.work / "rows.csv").read_text(encoding="utf-8"):
        raise SystemExit("rows.csv holds no answer")
    # A server of its own, which is asked by HTTP and ended.
    env.run("pocketvlm", "bench", "serving", "--requests", "2", "--max-tokens", "2", says="2 completed")
    page = (
        "from importlib.resources import files; assert files('pocketvlm.server').joinpath('page/index.html').is_file()"
    )
    env.run("python", "-c", page)
    env.run("pocketvlm", "mcp", "--root", ".")  # whose input has ended
    env.run("pocketvlm", "bench", "offline", "--runs", "onnx:int8", "--lines", "view", "--rounds", "1", says="views/s")


def main(arguments: Sequence[str] | None = None) -> int:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--wheel", type=Path, help="check this wheel instead of building one")
    cli.add_argument("--environment", type=Path, help="run the commands in this environment, and install nothing")
    cli.add_argument("--base", action="store_true", help="without the extras, and that errors name them")
    args = cli.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        work = folder / "work"
        fill(work)
        if args.environment is not None:
            env = Environment(args.environment.absolute(), work)
        else:
            wheel = args.wheel.absolute() if args.wheel is not None else build(folder)
            if wheel.stat().st_size > MAX_BYTES:
                raise SystemExit(f"{wheel.name} is over {MAX_BYTES / 1e6:.0f} MB")
            venv.create(folder / "venv", with_pip=True)
            env = Environment(folder / "venv", work)
            env.install(str(wheel))
        check_base(env)
        if args.environment is None or args.base:
            check_missing(env)
        if args.environment is None and not args.base:
            env.install(f"pocketvlm[{EXTRAS}] @ {wheel.as_uri()}")
        if not args.base:
            check_extras(env)
    return 0


if __name__ == "__main__":
    sys.exit(main())
