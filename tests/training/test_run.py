"""A whole run in Python: what is in its folder, what it says, and that it goes on where it was stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training import sample
from safetensors.torch import load_file, save_file

import pocketvlm
from pocketvlm.errors import CheckpointError, ConfigError
from pocketvlm.model.checkpoint import load_model
from pocketvlm.model.hub import resolve
from pocketvlm.model.vision.warm_start import warm_start_compression
from pocketvlm.training.data.sample import Sample
from pocketvlm.training.memory import quantize_base
from pocketvlm.training.parts import linear_layers
from pocketvlm.training.run import tune
from pocketvlm.training.settings import PRESETS, TuneSettings

ANSWERS = ("alpha", "beta 2")


def noise(count: int, first: int = 0) -> list[Sample]:
    return [sample(ANSWERS[i % 2], seed=i % 2) for i in range(first, first + count)]


def run(out: Path, *, directory: Any = None, measure: Any = None, **changes: Any) -> Any:
    given: dict[str, Any] = {"steps": 12, "batch_size": 4, "learning_rate": 3e-3, "warmup": 0.0, **changes}
    options = {"max_slice_nums": 1, "downsample_mode": "16x"}
    return tune(
        directory or resolve("nano"),
        noise(8),
        out,
        TuneSettings(**given),
        validation=noise(2),
        options=options,
        measure=measure,
    )


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_a_run_learns_and_leaves_what_others_load(tmp_path: Path, method: str) -> None:
    steps, rate = (12, 3e-3) if method == "full" else (30, 1e-2)
    result = run(tmp_path / "out", method=method, steps=steps, learning_rate=rate)
    out = Path(result.out)
    assert result.steps == steps
    assert result.validation["exact"] == 1.0
    assert result.validation["loss"] < 0.5
    assert result.peak_memory_bytes > 2**20
    lines = [json.loads(line) for line in (out / "training.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, steps + 1))
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    card = (out / "README.md").read_text()
    assert f"- `method`: {method}\n" in card
    assert "- `tune`: decoder\n" in card
    assert f"- `learning_rate`: {rate}\n" in card
    assert ("- `rank`: 16\n" in card) == (method != "full")
    assert "| samples | 8 |" in card
    assert "validation: exact | 1.0000" in card
    assert not (out / "confidence.json").exists()  # what was measured of the weights before says nothing of these
    if method == "full":
        with pocketvlm.load(str(out)) as vlm:
            for one, answer in zip(noise(2), ANSWERS, strict=True):
                found = vlm.chat(one.messages[:-1], max_slice_nums=1, downsample_mode="16x")
                assert found.text == answer
    else:
        tensors = load_file(out / "adapter_model.safetensors")
        assert all(name.startswith("base_model.model.model.language_model.layers.") for name in tensors)
        assert json.loads((out / "adapter_config.json").read_text())["peft_type"] == "LORA"


def test_a_run_that_is_done_is_not_begun_again(tmp_path: Path) -> None:
    first = run(tmp_path, steps=2)
    before = (tmp_path / "adapter_model.safetensors").read_bytes()
    again = run(tmp_path, steps=2)
    assert (again.steps, again.loss) == (first.steps, first.loss)
    assert (tmp_path / "adapter_model.safetensors").read_bytes() == before
    with pytest.raises(ConfigError, match="holds a run with steps=2, not 3"):
        run(tmp_path, steps=3)


def test_layers_that_are_computed_twice_come_to_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    once, twice = run(tmp_path / "1", steps=3), run(tmp_path / "2", steps=3, gradient_checkpointing=True)
    assert once.loss == pytest.approx(twice.loss, rel=1e-6)
    tensors = [load_file(tmp_path / name / "adapter_model.safetensors") for name in "12"]
    for name, tensor in tensors[0].items():
        assert tensor.allclose(tensors[1][name], atol=1e-6), name


def test_tasks_are_asked_at_each_evaluation_and_at_the_end(tmp_path: Path) -> None:
    asked = []

    def measure(vlm: Any) -> dict[str, float]:
        (message,) = noise(1)[0].messages[:1]
        asked.append(vlm.chat([message], max_slice_nums=1, downsample_mode="16x", max_tokens=4).text)
        return {"noise": float(asked[-1] == ANSWERS[0])}

    result = run(tmp_path, steps=4, eval_every=2, measure=measure, report_to=("tensorboard",), ema=0.1)
    assert len(asked) == 2  # the last step is not asked twice
    lines = [json.loads(line) for line in (tmp_path / "training.jsonl").read_text().splitlines()]
    found = [(line["step"], line["tasks"]) for line in lines if "tasks" in line]
    assert [step for step, _ in found] == [2, 4, 4]
    assert result.tasks == found[-1][1] == found[-2][1]
    assert "task: noise" in (tmp_path / "README.md").read_text()
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_tower_without_compression_gets_one_of_its_own_layers(tmp_path: Path) -> None:
    nano = resolve("nano")
    before = tmp_path / "before"
    before.mkdir()
    for file in nano.path.iterdir():
        if file.suffix != ".safetensors":
            (before / file.name).write_bytes(file.read_bytes())
    tensors = {name: t for name, t in load_file(nano.path / "model.safetensors").items() if "vit_merger" not in name}
    save_file(tensors, before / "model.safetensors")
    learns: dict[str, Any] = {"method": "full", "tune": ("compression", "merger"), "steps": 1, "learning_rate": 1e-9}
    with pytest.raises(CheckpointError, match="vit_merger"):
        run(tmp_path / "1", directory=resolve(str(before)), **learns)
    run(tmp_path / "2", directory=resolve(str(before)), from_scratch_compression="warm", **learns)
    expected, found = load_model(nano), load_model(tmp_path / "2")
    warm_start_compression(expected.vision_tower)
    for name, parameter in expected.named_parameters():
        assert torch.allclose(parameter, found.get_parameter(name), rtol=1e-2, atol=1e-6), name
    for wrong in ({"method": "lora"}, {"tune": ("decoder",)}):
        with pytest.raises(ConfigError, match="needs method full and compression"):
            TuneSettings(**{**learns, **wrong, "from_scratch_compression": "warm"})


def test_what_there_is_nothing_to_measure_with_is_refused(tmp_path: Path) -> None:
    for changes in ({"eval_every": 2}, {"eval_every": 2, "result": "best"}):
        with pytest.raises(ConfigError, match=r"nothing to measure with|no validation samples"):
            tune(resolve("nano"), noise(2), tmp_path / "out", TuneSettings(**changes))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_settings(name: str) -> None:
    assert TuneSettings(**PRESETS[name]).method == "full"


def test_no_kernels_are_asked_of_a_hub(tmp_path: Path) -> None:
    (tmp_path / "kernels.py").write_text("raise SystemExit('kernels was imported')", encoding="utf-8")
    code = (
        "from pocketvlm.training.lora import import_peft; import_peft()\n"
        "from pocketvlm.training.memory import import_bitsandbytes; import_bitsandbytes()"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    found = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True)
    assert (found.returncode, found.stderr) == (0, b"")


def test_a_base_in_4_bits_is_packed_for_no_processor() -> None:
    model = load_model(resolve("nano"))
    name = next(iter(linear_layers(model, {"decoder"})))
    quantize_base(model, [name])
    layer = model.get_submodule(name)
    assert not layer.support_avx512bf16_for_cpu
