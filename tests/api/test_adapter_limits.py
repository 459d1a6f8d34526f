"""Adapters of strangers: how many and how large they may be, what they leave behind, and whom they disturb."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.adapters import ALL, DECODER, write_random_adapter
from safetensors.torch import load_file, save_file

import pocketvlm
from pocketvlm.api.adapters import AdapterLimits
from pocketvlm.errors import CheckpointError, ConfigError
from pocketvlm.model.adapters.lora import Adapter, LowRankUpdate
from pocketvlm.model.adapters.names import linear_shapes
from pocketvlm.model.adapters.write import write_adapter
from pocketvlm.model.hub import resolve

PICTURE = str(Path(__file__).parents[2] / "examples" / "word.png")
QUESTION = "What does it say?"
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 8}
MESSAGES = [{"role": "user", "content": [{"type": "image", "image": PICTURE}, {"type": "text", "text": QUESTION}]}]
LAYER = "language_model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_adapter(tmp_path_factory.mktemp("adapter"), resolve("nano").config, 1, ALL, size=0.8)


@pytest.fixture
def vlm() -> Iterator[pocketvlm.VLM]:
    with pocketvlm.load("nano", runtime="torch") as vlm:
        yield vlm


def one_layer(folder: Path, a: float, b: float, scale: float, magnitude: float | None = None) -> Path:
    """An adapter of one layer with the same number everywhere."""
    outputs, inputs = linear_shapes(resolve("nano").config)[LAYER]
    norms = None if magnitude is None else torch.full((outputs,), magnitude)
    update = LowRankUpdate(torch.full((1, inputs), a), torch.full((outputs, 1), b), scale, norms)
    write_adapter(Adapter(Path(), "", {LAYER: update}), folder, resolve("nano").config)
    return folder


def test_two_names_of_one_folder_answer_alike_and_one_outlives_the_other(vlm: pocketvlm.VLM, folder: Path) -> None:
    vlm.load_adapter("a", folder)
    vlm.load_adapter("b", folder)
    first = vlm.ask(PICTURE, QUESTION, adapter="a", **GREEDY)
    encoded = vlm.engine.metrics.encoded_views._value.get()
    again = vlm.ask(PICTURE, QUESTION, adapter="b", **GREEDY)
    assert again.text == first.text
    assert vlm.engine.metrics.encoded_views._value.get() == encoded  # their content is the same
    requests = [(name, MESSAGES, {"adapter": name, **GREEDY}) for name in ("a", "b", "a", "b")]
    assert {found[0].text for _, found in vlm.as_completed(requests) if isinstance(found, list)} == {first.text}
    vlm.unload_adapter("a")
    assert vlm.ask(PICTURE, QUESTION, adapter="b", **GREEDY).text == first.text
    with pytest.raises(ConfigError, match="there is no adapter 'a'"):
        vlm.ask(PICTURE, QUESTION, adapter="a", **GREEDY)


def test_nothing_of_an_adapter_is_kept_once_it_is_unloaded_and_its_requests_have_ended(
    vlm: pocketvlm.VLM, folder: Path
) -> None:
    vlm.load_adapter("a", folder)
    placed = weakref.ref(vlm.adapters["a"].placed)
    tensor = weakref.ref(next(iter(vlm.adapters["a"].placed.parts.values()))[0].b_nR)
    stream = vlm.stream(MESSAGES, adapter="a", **GREEDY)
    next(iter(stream))
    vlm.unload_adapter("a")
    gc.collect()
    assert placed() is not None  # of the request that runs
    for _ in stream:
        pass
    del stream
    gc.collect()
    assert placed() is None
    assert tensor() is None


def test_no_more_are_loaded_at_once_than_the_limit_says(vlm: pocketvlm.VLM, folder: Path) -> None:
    vlm.adapters.limits = AdapterLimits(count=2)
    refused: list[ConfigError] = []

    def load(name: str) -> None:
        try:
            vlm.load_adapter(name, folder)
        except ConfigError as error:
            refused.append(error)

    threads = [threading.Thread(target=load, args=(f"{i}",)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(vlm.adapters), len(refused)) == (2, 4)
    assert "2 adapters are loaded" in str(refused[0])
    vlm.unload_adapter(next(iter(vlm.adapters)))
    vlm.load_adapter("again", folder)


def test_what_takes_more_memory_than_the_limit_is_not_even_read(
    vlm: pocketvlm.VLM, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm.load_adapter("a", folder)
    size = vlm.adapters["a"].placed.bytes
    tensors = [x for parts in vlm.adapters["a"].placed.parts.values() for p in parts for x in (p.a_RK, p.b_nR)]
    assert size == sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    vlm.adapters.limits = AdapterLimits(memory=2 * size - 1)
    with monkeypatch.context() as patch:
        patch.setattr("pocketvlm.model.adapters.peft_folder.read_adapter", None)
        with pytest.raises(ConfigError, match="are the limit"):
            vlm.load_adapter("b", folder)
    assert list(vlm.adapters) == ["a"]
    vlm.adapters.limits = AdapterLimits(memory=2.1 * size)
    vlm.load_adapter("b", folder)


def test_what_grows_in_memory_is_measured_there(vlm: pocketvlm.VLM, folder: Path, tmp_path: Path) -> None:
    """A file in half precision is half of what the CPU needs."""
    file, half = "adapter_model.safetensors", tmp_path / "half"
    half.mkdir()
    save_file({name: tensor.half() for name, tensor in load_file(folder / file).items()}, half / file)
    (half / "adapter_config.json").write_bytes((folder / "adapter_config.json").read_bytes())
    vlm.adapters.limits = AdapterLimits(memory=1.5 * (half / file).stat().st_size)
    with pytest.raises(ConfigError, match="are the limit"):
        vlm.load_adapter("half", half)
    assert not vlm.adapters


@pytest.mark.parametrize(
    "numbers",
    [
        {"a": 1.0, "b": 1e38, "scale": 1e3},
        {"a": 1e30, "b": 1e30, "scale": 1.0},
        {"a": 1e30, "b": 1e30, "scale": 1.0, "magnitude": 1.0},
    ],
    ids=["a large scale", "a large product", "a large norm"],
)
def test_numbers_that_leave_the_range_are_refused_beside_the_weights_as_in_them(
    vlm: pocketvlm.VLM, tmp_path: Path, numbers: dict[str, float]
) -> None:
    bad = one_layer(tmp_path / "bad", **numbers)
    expected = vlm.ask(PICTURE, QUESTION, **GREEDY).text
    with pytest.raises(CheckpointError, match="no numbers"):
        pocketvlm.load("nano", runtime="torch", adapter=bad)
    with pytest.raises(CheckpointError, match="no numbers"):
        vlm.load_adapter("bad", bad)
    assert not vlm.adapters
    assert vlm.ask(PICTURE, QUESTION, **GREEDY).text == expected


def test_an_adapter_that_answers_nonsense_disturbs_nobody_in_its_batch(
    vlm: pocketvlm.VLM, tmp_path: Path, folder: Path
) -> None:
    """Its numbers are finite, and what comes of them is not."""
    vlm.load_adapter("good", folder)
    vlm.load_adapter("huge", one_layer(tmp_path / "huge", 1e15, 1e15, 1.0))
    expected = {name: vlm.ask(PICTURE, QUESTION, adapter=name, **GREEDY).text for name in ("", "good")}
    requests = [(i, MESSAGES, {"adapter": name, **GREEDY}) for i, name in enumerate(("", "huge", "good", "huge", ""))]
    found = dict(vlm.as_completed(requests))
    for i, name in ((0, ""), (2, "good"), (4, "")):
        answers = found[i]
        assert isinstance(answers, list)
        assert answers[0].text == expected[name]
    assert vlm.ask(PICTURE, QUESTION, **GREEDY).text == expected[""]


def test_adapters_of_the_decoder_share_what_the_tower_made(vlm: pocketvlm.VLM, tmp_path: Path) -> None:
    for seed in (1, 2):
        vlm.load_adapter(f"{seed}", write_random_adapter(tmp_path / f"{seed}", vlm.config, seed, DECODER))
    counts = []
    for name in ("1", "2", ""):
        vlm.ask(PICTURE, QUESTION, adapter=name, **GREEDY)
        counts.append(vlm.engine.metrics.encoded_views._value.get())
    assert len({*counts}) == 1
