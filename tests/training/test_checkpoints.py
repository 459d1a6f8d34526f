"""Checkpoints: whole or not at all, whatever stops the writing; one that cannot be read is one line."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pocketvlm.errors import CheckpointError, OutputError
from pocketvlm.training.averaging import MovingAverage
from pocketvlm.training.checkpoints import Checkpoints, Progress

resource = pytest.importorskip("resource")  # Windows has none


class Run:
    """What a run has that checkpoints keep."""

    def __init__(self, out: Path, value: float = 0.0) -> None:
        self.model = nn.Linear(64, 64)
        nn.init.constant_(self.model.weight, value)
        self.learns = dict(self.model.named_parameters())
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=0.0)
        self.model(torch.ones(64)).sum().backward()
        self.optimiser.step()  # it has moments now
        self.average = MovingAverage(self.model, 0.9)
        self.checkpoints = Checkpoints(out, {"seed": 0})

    def save(self, step: int) -> None:
        self.checkpoints.save(self.learns, self.optimiser, Progress(step=step), self.average)

    def restore(self) -> Progress:
        self.checkpoints.tidy()
        return self.checkpoints.restore(self.learns, self.optimiser, self.average)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process may be larger, as on a disk that is full."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("size", [100, 20_000])  # within the weights, within the optimiser
def test_a_full_disk_is_one_line_and_leaves_the_checkpoint_before(tmp_path: Path, size: int) -> None:
    one = Run(tmp_path)
    one.save(1)
    with largest_file(size), pytest.raises(OutputError, match=r"step-00000002 could not be written \(.*Make room"):
        one.save(2)
    with largest_file(100), pytest.raises(OutputError, match="best could not be written"):
        one.checkpoints.save_best(one.learns)
    assert [path.name for path in one.checkpoints.folder.iterdir()] == ["step-00000001"]
    assert one.restore().step == 1


@pytest.mark.parametrize("name", ["step-00000003", "best"])
def test_a_folder_that_had_only_been_moved_aside_comes_back(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Run(tmp_path, 7.0)
    one.save(3)
    one.checkpoints.save_best(one.learns)
    replace, moved = Path.replace, []

    def killed(self: Path, target: Any) -> Any:
        if moved:
            raise KeyboardInterrupt
        moved.append(target)
        return replace(self, target)

    nn.init.constant_(one.model.weight, 8.0)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            one.save(3) if name != "best" else one.checkpoints.save_best(one.learns)
    assert not (one.checkpoints.folder / name).exists()
    again = Run(tmp_path)
    assert again.restore().step == 3
    again.checkpoints.restore_best(again.learns)
    assert float(again.model.weight.detach().min()) == 7.0
    assert sorted(path.name for path in again.checkpoints.folder.iterdir()) == ["best", "step-00000003"]


@pytest.mark.parametrize("name", ["trainable.safetensors", "optimiser.pt", "average.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "other"])
def test_a_checkpoint_that_cannot_be_read_is_one_line(tmp_path: Path, name: str, damage: str) -> None:
    one = Run(tmp_path)
    one.save(1)
    file = one.checkpoints.folder / "step-00000001" / name
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "other": b'{"a": [1]}'}[damage])
    with pytest.raises(CheckpointError, match=r"step-00000001 cannot be read .*Remove it, and the same command goes"):
        Run(tmp_path).restore()


def test_a_best_checkpoint_that_is_missing_is_one_line(tmp_path: Path) -> None:
    one = Run(tmp_path)
    with pytest.raises(CheckpointError, match="best cannot be read"):
        one.checkpoints.restore_best(one.learns)
