"""Adapters by name: requests choose, batches mix, and they come and go while the model answers. On nano."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.adapters import ALL, DECODER, write_random_adapter

import pocketvlm
from pocketvlm.api.async_vlm import AsyncVLM
from pocketvlm.errors import CheckpointError, ConfigError, PocketVLMError
from pocketvlm.model.hub import resolve

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 8}  # longer ones of a random adapter come to a tie
PICTURE = str(Path(__file__).parents[2] / "examples" / "word.png")
QUESTION = "What does it say?"
MESSAGES = [
    {"role": "user", "content": [{"type": "image", "image": PICTURE}, {"type": "text", "text": QUESTION}]},
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root, config = tmp_path_factory.mktemp("adapters"), resolve("nano").config
    return {
        "decoder": write_random_adapter(root / "decoder", config, 1, DECODER, size=1.5),
        "all": write_random_adapter(root / "all", config, 2, ALL, size=0.8),
        "dora": write_random_adapter(root / "dora", config, 3, DECODER, size=0.05, dora=True),
    }


@pytest.fixture(scope="module")
def merged(folders: dict[str, Path]) -> dict[str, str]:
    """The answer of the model that each was merged into."""
    answers = {}
    for name, options in {"": {}, **{name: {"adapter": folder} for name, folder in folders.items()}}.items():
        with pocketvlm.load("nano", runtime="torch", **options) as vlm:
            answers[name] = vlm.ask(PICTURE, QUESTION, **GREEDY).text
    assert len({*answers.values()}) == len(answers), "adapters that change nothing"
    return answers


@pytest.fixture(scope="module")
def vlm(folders: dict[str, Path]) -> Iterator[pocketvlm.VLM]:
    with pocketvlm.load("nano", adapters=folders) as vlm:
        yield vlm


def test_each_request_is_answered_by_the_adapter_that_it_names(vlm: pocketvlm.VLM, merged: dict[str, str]) -> None:
    for name, text in merged.items():
        assert vlm.ask(PICTURE, QUESTION, adapter=name, **GREEDY).text == text
        assert vlm.chat(MESSAGES, adapter=name, **GREEDY).text == text
    assert vlm.ask(PICTURE, QUESTION, **GREEDY).text == merged[""]
    assert vlm.ask(PICTURE, QUESTION, adapter=None, **GREEDY).text == merged[""]


def test_one_batch_mixes_them_and_the_base(vlm: pocketvlm.VLM, merged: dict[str, str]) -> None:
    names = [*merged] * 3
    requests = ((i, MESSAGES, {"adapter": name, **GREEDY}) for i, name in enumerate(names))
    found = dict(vlm.as_completed(requests))
    assert [found[i][0].text for i in range(len(names))] == [merged[name] for name in names]  # type: ignore[index]


def test_requests_that_name_none_follow_the_default(folders: dict[str, Path], merged: dict[str, str]) -> None:
    with pocketvlm.load("nano", adapters=folders, adapter="all") as vlm:
        assert vlm.ask(PICTURE, QUESTION, **GREEDY).text == merged["all"]
        assert vlm.ask(PICTURE, QUESTION, adapter="", **GREEDY).text == merged[""]
        vlm.unload_adapter("all")
        assert vlm.ask(PICTURE, QUESTION, **GREEDY).text == merged[""]


def test_adapters_come_and_go_while_others_are_answered(folders: dict[str, Path], merged: dict[str, str]) -> None:
    async def all_at_once() -> list[str]:
        async with AsyncVLM(pocketvlm.load("nano", runtime="torch")) as model:
            running = [asyncio.create_task(model.chat(MESSAGES, **GREEDY)) for _ in range(6)]
            await asyncio.to_thread(model.vlm.load_adapter, "late", folders["all"])
            late = [asyncio.create_task(model.chat(MESSAGES, adapter="late", **GREEDY)) for _ in range(3)]
            job = await model.prepare(MESSAGES, adapter="late", **GREEDY)
            model.vlm.unload_adapter("late")  # of which some may not even be prepared
            async for _ in model.run(job):
                pass
            assert job.answer().text == merged["all"]
            for one in await asyncio.gather(*late, return_exceptions=True):
                assert isinstance(one, ConfigError) or one.text == merged["all"]  # type: ignore[union-attr]
            model.vlm.load_adapter("late", folders["decoder"])  # other content under the same name
            assert (await model.chat(MESSAGES, adapter="late", **GREEDY)).text == merged["decoder"]
            return [one.text for one in await asyncio.gather(*running)]

    assert asyncio.run(all_at_once()) == [merged[""]] * 6


def test_a_name_that_is_loaded_twice_at_once_is_loaded_once(folders: dict[str, Path]) -> None:
    with pocketvlm.load("nano", runtime="torch") as vlm:
        errors: list[Exception] = []

        def load() -> None:
            try:
                vlm.load_adapter("same", folders["all"])
            except ConfigError as error:
                errors.append(error)

        threads = [threading.Thread(target=load) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(errors) == 3
        assert list(vlm.adapters) == ["same"]
        assert vlm.adapters["same"].rank == 4


@pytest.mark.parametrize("name", ["al", "decoder ", 3, ["all"]])
def test_a_name_that_is_none_is_one_line_that_lists_them(vlm: pocketvlm.VLM, name: Any) -> None:
    with pytest.raises(ConfigError, match="there is no adapter") as caught:
        vlm.ask(PICTURE, QUESTION, adapter=name, **GREEDY)
    assert "'decoder'" in str(caught.value)
    with pytest.raises(ConfigError, match="there is no adapter"):
        vlm.unload_adapter(name)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"adapters": 3}, "no mapping"),
        ({"adapters": {"": "x"}}, "name"),
        ({"adapters": {"a\nb": "x"}}, "name"),
        ({"adapters": {"a": "missing"}}, "does not exist"),
        ({"adapters": {}, "adapter": "a"}, "none of adapters"),
        ({"adapters": {"a": "x"}, "runtime": "onnx"}, "takes no adapters"),
        ({"adapters": {"a": "x"}, "quantization": "int8"}, "runtime='onnx'"),
        ({"adapter": "missing"}, "does not exist"),
        ({"adapter": 3}, "is no path"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(options: dict[str, Any], says: str) -> None:
    with pytest.raises(PocketVLMError, match=says) as caught:
        pocketvlm.load("nano", **options)
    assert "\n" not in str(caught.value)


def test_a_model_that_was_loaded_loses_nothing_by_an_adapter_that_does_not_fit(
    vlm: pocketvlm.VLM, merged: dict[str, str], tmp_path: Path
) -> None:
    folder = write_random_adapter(tmp_path, vlm.config, 9, DECODER)
    (folder / "adapter_model.safetensors").write_bytes(b"\0" * 40)
    with pytest.raises(CheckpointError):
        vlm.load_adapter("broken", folder)
    assert "broken" not in vlm.adapters
    assert vlm.ask(PICTURE, QUESTION, **GREEDY).text == merged[""]
