"""An adapter that a model is loaded with is part of it: in both runtimes, its files, and what tells models apart."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.adapters import ALL, DECODER, write_random_adapter
from helpers.command import run
from helpers.invariants import assert_close
from helpers.pictures import encoded
from PIL import Image

import pocketvlm
from pocketvlm.bundle import PRESETS
from pocketvlm.errors import CheckpointError, PocketVLMError
from pocketvlm.export.bundle_cache import cached_bundle
from pocketvlm.export.huggingface import write_huggingface
from pocketvlm.export.onnx.bundle import write_bundle
from pocketvlm.model.adapters.lora import HEAD
from pocketvlm.model.adapters.merge import merge
from pocketvlm.model.adapters.peft_folder import read_adapter
from pocketvlm.model.checkpoint import load_model
from pocketvlm.model.directory import ModelDirectory
from pocketvlm.model.hub import resolve
from pocketvlm.model.packing import PackedBatch
from pocketvlm.model.segments import Segment

PICTURE = encoded(Image.linear_gradient("L").resize((120, 80)).convert("RGB"))
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def base(seeded_checkpoint: Callable[[int], Path]) -> ModelDirectory:
    return resolve(seeded_checkpoint(0))


@pytest.fixture(scope="module")
def adapter(base: ModelDirectory, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_adapter(tmp_path_factory.mktemp("adapter"), base.config, 1, ALL)


@pytest.fixture(scope="module")
def head_adapter(base: ModelDirectory, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_adapter(tmp_path_factory.mktemp("head"), base.config, 2, f"{DECODER}|{HEAD}")


def answer(model: Any, **options: Any) -> list[int]:
    with pocketvlm.load(model, **options) as vlm:
        return vlm.ask(PICTURE, "What?", **GREEDY).token_ids


@pytest.mark.parametrize("which", ["adapter", "head_adapter"])
def test_both_runtimes_and_the_exported_checkpoint_answer_alike(
    base: ModelDirectory, which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(which)
    plain, adapted = answer(base, runtime="torch"), answer(base, runtime="torch", adapter=folder)
    assert plain != adapted
    assert answer(base, runtime="onnx", quantization="none", adapter=folder) == adapted
    write_huggingface(base.with_adapter(folder), tmp_path / "merged")
    assert answer(tmp_path / "merged", runtime="torch") == adapted
    write_bundle(base.with_adapter(folder), tmp_path / "bundle", PRESETS["none"])
    assert answer(tmp_path / "bundle") == adapted


def test_an_exported_checkpoint_has_all_files_of_its_base_and_the_merged_weights(
    base: ModelDirectory, head_adapter: Path, tmp_path: Path
) -> None:
    write_huggingface(base.with_adapter(head_adapter), tmp_path / "merged")
    assert {file.name for file in (tmp_path / "merged").iterdir()} >= {file.name for file in base.path.iterdir()}
    expected = merge(copy.deepcopy(load_model(base)), read_adapter(head_adapter, base.config))
    found = load_model(tmp_path / "merged")
    assert found.get_parameter(HEAD).shape == found.language_model.embed_tokens.weight.shape
    for name, parameter in expected.named_parameters():
        assert_close(found.get_parameter(name), parameter)


def test_a_bundle_in_the_cache_is_of_one_adapter_with_one_content(
    base: ModelDirectory, adapter: Path, tmp_path: Path
) -> None:
    other = write_random_adapter(tmp_path / "other", base.config, 3)
    made = [cached_bundle(model, PRESETS["none"]) for model in (base, *map(base.with_adapter, (adapter, other)))]
    assert len({*made}) == 3
    assert cached_bundle(base.with_adapter(adapter), PRESETS["none"]) == made[1]
    write_random_adapter(other, base.config, 4)
    assert cached_bundle(base.with_adapter(other), PRESETS["none"]) not in made


def test_updates_are_rounded_once_where_weights_are_bfloat16(base: ModelDirectory, tmp_path: Path) -> None:
    write_huggingface(base, tmp_path / "half", "bf16")
    small = write_random_adapter(tmp_path / "adapter", base.config, 5, size=1e-3)
    write_huggingface(resolve(tmp_path / "half").with_adapter(small), tmp_path / "merged", "f32")
    name = "language_model.layers.0.mlp.up_proj.weight"
    plain = load_model(tmp_path / "half").get_parameter(name)
    update = read_adapter(small, base.config).updates[name]
    assert_close(load_model(tmp_path / "merged").get_parameter(name), update.merged(plain))
    assert load_model(resolve(tmp_path / "half").with_adapter(small), dtype=torch.bfloat16).dtype == torch.bfloat16


def test_a_merged_decoder_takes_no_more_memory_on_a_cpu_than_its_base(tmp_path: Path) -> None:
    """Its layers are of the kinds of the base's, and its numbers those of fp32 but for one rounding to 11 bits."""
    folder = write_random_adapter(tmp_path, resolve("nano").config, 6, f"{DECODER}|{HEAD}")
    base, adapted = resolve("nano"), resolve("nano").with_adapter(folder)
    plain, merged = (load_model(one, cpu_kernels=True).language_model for one in (base, adapted))
    kinds = {name: type(module) for name, module in plain.named_modules()}
    assert {name: type(module) for name, module in merged.named_modules()} == kinds
    stored = {name: parameter.dtype for name, parameter in plain.named_parameters()}
    assert {name: parameter.dtype for name, parameter in merged.named_parameters()} == stored
    exact = load_model(adapted)
    ids = torch.arange(40)
    batch = PackedBatch.of([Segment(len(ids))])
    found, expected = (model.logits(model(ids, batch)) for model in (load_model(adapted, cpu_kernels=True), exact))
    assert_close(found, expected, 5e-3)


def test_a_bundle_takes_no_adapter_and_a_model_no_second_one(
    base: ModelDirectory, adapter: Path, tmp_path: Path
) -> None:
    write_bundle(base, tmp_path / "bundle", PRESETS["none"])
    with pytest.raises(CheckpointError, match="bundle, which takes no adapter"):
        pocketvlm.load(tmp_path / "bundle", adapter=adapter)
    with pytest.raises(CheckpointError, match="already"):
        base.with_adapter(adapter).with_adapter(adapter)


def test_an_adapter_for_a_model_of_another_size_is_one_line(adapter: Path) -> None:
    with pytest.raises(PocketVLMError, match=r"of this model|of another size") as caught:
        pocketvlm.load("nano", adapter=adapter)
    assert "\n" not in str(caught.value)


def test_commands_take_an_adapter(
    base: ModelDirectory, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(PICTURE)
    ask = ("ask", str(picture), "What?", "--json", "--model", str(base.path), "--temperature", "0", "--max-tokens", "8")
    texts = []
    for more in ((), ("--adapter", str(adapter))):
        status, out, err = run(capsys, *ask, *more)
        assert status == 0, err
        texts.append(json.loads(out)["text"])
    assert texts[0] != texts[1]
    export = ("export", "huggingface", str(tmp_path / "out"), "--model", str(base.path), "--adapter", str(adapter))
    status, out, err = run(capsys, *export, "--json")
    assert status == 0, err
    assert json.loads(out)["files"]["model.safetensors"] > 0
    status, out, err = run(capsys, *ask, "--model", str(tmp_path / "out"))
    assert json.loads(out)["text"] == texts[1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("ask", "What?", "--adapter", "missing"), "does not exist"),
        (("export", "huggingface", "out", "--type", "q8_0"), "q8_0 is for gguf"),
        (("export", "huggingface", "out", "--quantization", "int8"), "means nothing for huggingface"),
        (("chat", "--url", "http://127.0.0.1:9", "--adapter", "x"), "a model of this machine"),
        (("eval", "--endpoint", "http://127.0.0.1:9", "--adapter", "x"), "means nothing with --endpoint"),
    ],
)
def test_what_cannot_be_honoured_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], says: str
) -> None:
    status, out, err = run(capsys, *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert says in err
