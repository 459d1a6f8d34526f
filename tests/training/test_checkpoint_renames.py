"""Checkpoints at the worst moments, and which device a process of several has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn, optim

from pocketvlm.errors import ConfigError
from pocketvlm.training.checkpoints import Checkpoints, Progress
from pocketvlm.training.processes import device_of_process


class KilledError(BaseException):
    """The end of the process."""


@pytest.mark.parametrize("renames", [0, 1])
def test_a_checkpoint_that_is_written_again_is_not_lost_between_two_renames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    weight = nn.Parameter(torch.ones(3))
    optimiser = optim.AdamW([weight])
    one = Checkpoints(tmp_path, {})
    one.save({"weight": weight}, optimiser, Progress(step=5))
    one.save_best({"weight": weight})
    replace, left = Path.replace, renames

    def killed(path: Path, target: Path) -> Path:
        nonlocal left
        if not left:
            raise KilledError
        left -= 1
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        for save in (
            lambda: one.save({"weight": weight}, optimiser, Progress(step=5)),
            lambda: one.save_best({"weight": weight}),
        ):
            left = renames
            with pytest.raises(KilledError):
                save()
    with torch.no_grad():
        weight.zero_()
    again = Checkpoints(tmp_path, {})
    again.tidy()
    assert again.restore({"weight": weight}, optimiser).step == 5
    assert weight.tolist() == [1, 1, 1]
    with torch.no_grad():
        weight.zero_()
    one.restore_best({"weight": weight})
    assert weight.tolist() == [1, 1, 1]
    assert not list(tmp_path.glob("**/*.partial"))


def test_each_process_of_torchrun_has_a_cuda_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert device_of_process(cuda) == cuda
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert device_of_process(cpu) == cpu
    assert device_of_process(torch.device("cuda:0")) == torch.device("cuda:0")
    assert chosen == []
    assert device_of_process(cuda) == torch.device("cuda:1")
    assert chosen == [torch.device("cuda:1")]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match="process 2 has no CUDA device: there are 2"):
        device_of_process(cuda)
