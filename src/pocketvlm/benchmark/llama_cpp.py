"""llama.cpp as a contender: its own tools run, and the times that they print are taken.

Needs the tools on the PATH and the model as GGUF files; `llama-bench` for prompts and steps, `llama-batched-bench` for
batches, `llama-mtmd-cli` for pictures.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

from pocketvlm.benchmark.lines import STEPS, Timed, Work, ended, line_of
from pocketvlm.benchmark.runners import BEFORE, SIDES, noise
from pocketvlm.errors import ConfigError

TIMEOUT = 900
_ENCODED = re.compile(r"(?:image|slice|chunk|batch)[^\n]*?(?:encoded|processed|encoding done) in (\d+(?:\.\d+)?) ?ms")


class LlamaCppContender:
    """Args:
    model, projector: GGUF files of the decoder and of the tower (None: no pictures).
    threads: as many as pocketvlm uses.
    """

    def __init__(self, model: Path, projector: Path | None, threads: int) -> None:
        self.model, self.projector, self.threads = model, projector, threads
        self.name = f"llama.cpp {model.stem}"

    def work(self, line: str) -> Work | None:
        del line
        return None

    def prepare(self, line: str) -> Timed | None:
        if line in SIDES:
            return self._pictures(line) if self.projector and shutil.which("llama-mtmd-cli") else None
        count = line_of(line).amount
        batch = count // STEPS
        is_batch = line.startswith("decode") and batch > 1
        tool = "llama-batched-bench" if is_batch else "llama-bench"
        if line.startswith("views") or not shutil.which(tool):
            return None
        common = [tool, "-m", str(self.model), "-t", str(self.threads)]
        if is_batch:
            context = str(2 * batch * (BEFORE + STEPS))
            sizes = ["-npp", str(BEFORE), "-ntg", str(STEPS), "-npl", str(batch), "-c", context]
            return lambda: self._batched([*common, *sizes])
        sizes = ["-p", str(count), "-n", "0"] if line.startswith("prompt") else ["-p", "0", "-n", str(STEPS)]
        return lambda: self._bench([*common, *sizes, "-r", "1", "-o", "json"])

    def _run(self, command: list[str]) -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip() or "no reason").splitlines()[-1][:200]
            reason = said if done.returncode > 0 else f"it ended {ended(done.returncode)}"
            raise ConfigError(f"{command[0]} failed: {reason}")
        return done.stdout + done.stderr

    def _bench(self, command: list[str]) -> float:
        out = self._run(command)
        results = json.loads(out[out.index("[") : out.rindex("]") + 1])
        return float(results[0]["avg_ns"]) / 1e9

    def _batched(self, command: list[str]) -> float:
        """The column T_TG of the line with eight sequences: seconds of all steps."""
        rows = [row.split("|") for row in self._run(command).splitlines() if row.count("|") >= 8]
        header = next([cell.strip() for cell in row] for row in rows if any("T_TG" in cell for cell in row))
        place = next(i for i, name in enumerate(header) if name.startswith("T_TG"))
        values = [row[place].strip() for row in rows if re.fullmatch(r"\d+(\.\d+)?", row[place].strip())]
        if not values:
            raise ConfigError("llama-batched-bench printed no time")
        return float(values[-1])

    def _pictures(self, line: str) -> Timed:
        def run() -> float:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "noise.png"
                Image.fromarray(noise(SIDES[line])).save(path)
                command = ["llama-mtmd-cli", "-m", str(self.model), "--mmproj", str(self.projector)]
                command += [
                    "--image",
                    str(path),
                    "-p",
                    "?",
                    "-n",
                    "1",
                    "-t",
                    str(self.threads),
                    "--temp",
                    "0",
                    "-c",
                    "4096",
                ]
                times = [float(ms) for ms in _ENCODED.findall(self._run(command))]
            if not times:
                raise ConfigError("llama-mtmd-cli printed no time of a picture")
            return sum(times) / 1000

        return run
