"""Two processes do what one does with twice the batches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.training_data import chat, write_lines

from pocketvlm.model.checkpoint import load_model
from pocketvlm.model.hub import resolve

pytestmark = pytest.mark.skipif(os.name == "nt", reason="gloo between processes; run on Linux or macOS")
PROGRAM = """
import sys, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
from training.test_trainer import trainer, weights, run
from pocketvlm.model.hub import resolve
from pocketvlm.training.processes import Processes
one = trainer(resolve("nano"), Path(sys.argv[1]), steps=3, clip=1e6)
one.processes = Processes.join(torch.device("cpu"))
losses = run(one)
one.progress.bad = {{f"a:{{one.processes.rank}}": "why"}}
one.save()  # with what any of them has met
bad = sorted(one.progress.bad)
torch.save((one.processes.world, losses, weights(one), bad), f"{{sys.argv[1]}}/{{one.processes.rank}}.pt")
"""


def test_the_command_is_the_same_on_several_processes(tmp_path: Path) -> None:
    data = write_lines(tmp_path / "data.jsonl", *(chat(f"What is {i}?", f"It is {i}.") for i in range(9)))
    line = ["-m", "pocketvlm.cli", "tune", str(data), "--steps", "2", "--batch-size", "4", "--json", "--out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    found = []
    for torchrun in ([], ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]):
        out = tmp_path / f"with {len(torchrun)}"
        done = subprocess.run(
            [sys.executable, *torchrun, *line, str(out)], env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-2000:]
        (said,) = done.stdout.splitlines()  # of one process alone
        found.append(json.loads(said))
        assert json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))["r"] == 16
        assert done.stderr.count("step 1 of 2") == 1
    assert found[1]["loss"] == pytest.approx(found[0]["loss"], rel=1e-4)


def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(tests=str(Path(__file__).parents[1])), encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    found = {}
    for world in (1, 2):
        out = tmp_path / str(world)
        out.mkdir()
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
        command = [sys.executable, *torchrun, str(program), str(out)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        found[world] = [torch.load(out / f"{rank}.pt") for rank in range(world)]
    ((_, losses, alone, _),) = found[1]
    before = torch.cat([p.flatten() for p in load_model(resolve("nano")).parameters()]).detach()
    for processes, shared_losses, shared, bad in found[2]:
        assert (processes, bad) == (2, ["a:0", "a:1"])
        assert shared_losses == pytest.approx(losses, rel=1e-4)
        # Adam makes whole steps of gradients that are rounding errors, so a few entries may differ by as much.
        assert (shared - alone).norm() < 0.01 * (alone - before).norm()
    assert found[2][0][2].equal(found[2][1][2])
