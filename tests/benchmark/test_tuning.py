"""`pocketvlm bench tuning`: both learn the same, take turns, and what is not the same work is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pocketvlm.benchmark.tuning import run
from pocketvlm.benchmark.tuning.contenders import Job, OurTrainer, PeftLoop
from pocketvlm.benchmark.tuning.documents import documents
from pocketvlm.benchmark.tuning.run import Found, ratios
from pocketvlm.cli import main
from pocketvlm.errors import EngineError
from pocketvlm.training.settings import TuneSettings

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # of peft


def test_documents_are_the_same_for_a_seed_and_of_uneven_length() -> None:
    one, same, other = documents(8, 112, 50, 0), documents(8, 112, 50, 0), documents(8, 112, 50, 1)
    assert one == same
    assert one != other
    lengths = [len(sample.messages[-1]["content"].split()) for sample in one]
    assert min(lengths) >= 1
    assert max(lengths) <= 50
    assert len(set(lengths)) > 4


@pytest.mark.parametrize(
    "settings",
    [
        TuneSettings(steps=1, batch_size=3, rank=2, tune=("decoder", "merger")),
        TuneSettings(steps=1, batch_size=3, method="full", tune=("decoder", "tower")),
        TuneSettings(steps=1, batch_size=3, method="qlora", rank=2),
    ],
    ids=["lora", "full", "qlora"],
)
def test_both_have_the_same_loss_and_learn_as_many_numbers(
    seeded_checkpoint: Callable[[int], Path], settings: TuneSettings
) -> None:
    job = Job(model=str(seeded_checkpoint(0)), settings=settings, device="cpu", side=112, words=12)
    ours, theirs = OurTrainer(job), PeftLoop(job)
    learnt = [sum(p.numel() for p in one) for one in (ours.trainer.parameters, theirs.parameters)]
    assert learnt[0] == learnt[1]
    assert len({len(example.input_ids) for example in theirs.examples[0]}) > 1  # so that there is padding
    before = [p.detach().clone() for p in theirs.parameters]
    assert ours.step(0) == pytest.approx(theirs.step(0), rel=1e-5)
    assert any(not torch.equal(p, old) for p, old in zip(theirs.parameters, before, strict=True))


def test_ratios_compare_steps_of_the_same_moment() -> None:
    ours = Found("ours", 8, 100, [1.0, 10.0, 2.0], [3.0], 60)
    theirs = Found("theirs", 8, 100, [2.0, 20.0, 6.0], [3.0], 120)
    assert ratios(ours, theirs) == {"speed": 2.0, "memory": 0.5}
    assert ours.figures()["tokens_s"] == pytest.approx(100 / 6, abs=0.01)


def test_other_losses_are_other_work(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pool:
        made = 0

        def __init__(self, *_arguments: object) -> None:
            Pool.made += 1
            self.loss = float(Pool.made)

        def __enter__(self) -> Pool:
            return self

        def __exit__(self, *_error: object) -> None: ...

        def submit(self, function: Callable[..., object], *_arguments: object) -> Pool:
            self.function = function
            return self

        def result(self) -> tuple[object, ...]:
            return ("name", 1, 1) if self.function is run._make else (0.1, self.loss, 1)

    monkeypatch.setattr(run, "ProcessPoolExecutor", Pool)
    with pytest.raises(EngineError, match=r"first losses differ: 1\.000000, 2\.000000"):
        run.compete(Job(model="nano", settings=TuneSettings(steps=2)), ["pocketvlm", "peft"])


def test_the_command_prints_one_line_of_json(
    seeded_checkpoint: Callable[[int], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(seeded_checkpoint(0))
    options = ("--steps", "2", "--batch-size", "2", "--image-size", "112", "--words", "8", "--rank", "2")
    assert main(["bench", "tuning", "--model", model, "--device", "cpu", *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    ours, theirs = found["results"]
    assert (ours["name"], theirs["name"]) == ("pocketvlm", "transformers + peft")
    assert np.allclose(ours["losses"][0], theirs["losses"][0], rtol=1e-4)
    assert [len(one["seconds"]) for one in (ours, theirs)] == [2, 2]
    assert min(one["peak_bytes"] for one in (ours, theirs)) > 50e6
    assert set(found["ratios"]) == {"speed", "memory"}


@pytest.mark.parametrize("options", [("--steps", "0"), ("--tune", "head"), ("--rank", "9999")])
def test_what_cannot_be_is_one_line(capsys: pytest.CaptureFixture[str], options: tuple[str, str]) -> None:
    assert main(["bench", "tuning", *options]) == 2
    assert capsys.readouterr().err.count("\n") == 1
