"""What strangers put below `--adapter-root`, and names that would mean something else: 400 in one line, and no more."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from helpers.adapters import DECODER, write_random_adapter
from helpers.command import run
from safetensors.torch import load_file, save_file

import pocketvlm
from pocketvlm.api.async_vlm import AsyncVLM
from pocketvlm.errors import ConfigError
from pocketvlm.model.adapters import peft_folder
from pocketvlm.server.app import create_app
from pocketvlm.server.settings import ServerSettings

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
OUTSIDE = "no folder that adapters are loaded from"
Ask = Callable[[str, Any], httpx.Response]


@pytest.fixture(scope="module")
def vlm() -> Iterator[AsyncVLM]:
    vlm = AsyncVLM(pocketvlm.load("nano", runtime="torch"))
    yield vlm
    asyncio.run(vlm.close())


@pytest.fixture
def root(tmp_path: Path, vlm: AsyncVLM) -> Path:
    write_random_adapter(tmp_path / "root" / "good", vlm.vlm.config, 1, DECODER)
    return tmp_path / "root"


def client(vlm: AsyncVLM, root: Path, **settings: Any) -> httpx.AsyncClient:
    given = ServerSettings(adapter_roots=(str(root),), allowed_hosts=("testserver",), **settings)
    return httpx.AsyncClient(transport=httpx.ASGITransport(create_app(vlm, given)), base_url="http://testserver")


@pytest.fixture
def ask(vlm: AsyncVLM, root: Path) -> Iterator[Ask]:
    """Sends a body to the server."""

    def post(path: str, body: Any, **settings: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            async with client(vlm, root, **settings) as server:
                content = json.dumps(body)  # in ASCII, so that half a character can be written
                return await server.post(path, content=content, headers={"content-type": "application/json"})

        return asyncio.run(send())

    yield post
    for name in list(vlm.vlm.adapters):
        vlm.vlm.unload_adapter(name)


def rewrite(folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tensors = {name: change(tensor.clone()) for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS)


def grow(file: Path, size: int = 2**40) -> None:
    """To a terabyte that is nowhere."""
    with file.open("r+b") as opened:
        opened.truncate(size)


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def link(file: Path) -> None:
    """To the same file, outside of the root."""
    elsewhere = file.parents[2] / f"elsewhere-{file.name}"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)


def nested(file: Path) -> None:
    file.write_text('{"a":' * 100_000, encoding="utf-8")


HARM: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no configuration": (lambda f: (f / CONFIG).unlink(), CONFIG),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), WEIGHTS),
    "a pipe for weights": (lambda f: pipe(f / WEIGHTS), "a pipe"),
    "a pipe for its configuration": (lambda f: pipe(f / CONFIG), "a pipe"),
    "weights that are elsewhere": (lambda f: link(f / WEIGHTS), OUTSIDE),
    "a configuration that is elsewhere": (lambda f: link(f / CONFIG), OUTSIDE),
    "a huge configuration": (lambda f: grow(f / CONFIG), "expected at most"),
    "huge weights": (lambda f: grow(f / WEIGHTS), "are the limit"),
    "weights with more behind them": (lambda f: grow(f / WEIGHTS, 2**29), WEIGHTS),
    "nested JSON": (lambda f: nested(f / CONFIG), "nested too deeply"),
    "no numbers": (lambda f: rewrite(f, lambda x: x * float("nan")), "no numbers"),
    "numbers without an end": (lambda f: rewrite(f, lambda x: x * 1e30), "no numbers"),
    "another shape": (lambda f: rewrite(f, lambda x: x[..., :-1].contiguous()), "expected ["),
    "integers": (lambda f: rewrite(f, lambda x: x.int()), "expected floats"),
}


@pytest.mark.parametrize("what", HARM)
def test_a_folder_that_is_wrong_is_400_in_one_line(ask: Ask, root: Path, vlm: AsyncVLM, what: str) -> None:
    harm, says = HARM[what]
    bad = write_random_adapter(root / "bad", vlm.vlm.config, 2, DECODER)
    harm(bad)
    found = ask(LOAD, {"lora_name": "bad", "lora_path": str(bad)})
    message = found.json()["error"]["message"]
    assert found.status_code == 400, message
    assert says in message
    assert "\n" not in message
    assert not vlm.vlm.adapters
    assert ask(LOAD, {"lora_name": "good", "lora_path": str(root / "good")}).status_code == 200


def test_what_else_lies_in_the_folder_is_not_read(ask: Ask, root: Path) -> None:
    for name in ("more.safetensors", "more.json"):
        (root / "good" / name).touch()
        grow(root / "good" / name)
    os.mkfifo(root / "good" / "pipe.json")
    assert ask(LOAD, {"lora_name": "good", "lora_path": str(root / "good")}).status_code == 200


@pytest.mark.parametrize("name", ["nano", "nano:latest", "good:latest", "good", " ", "a\nb", "x" * 257, "\ud800"])
def test_a_name_that_is_none_or_means_another_model_is_400(ask: Ask, root: Path, name: str) -> None:
    assert ask(LOAD, {"lora_name": "good", "lora_path": str(root / "good")}).status_code == 200
    found = ask(LOAD, {"lora_name": name, "lora_path": str(root / "good")})
    assert found.status_code == 400
    assert "\n" not in found.json()["error"]["message"]


def test_names_of_the_command_line_are_told_apart_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    for given in (("nano:latest=x",), ("a=x", "--adapter", "a:latest=x")):
        status, _, err = run(capsys, "serve", "--adapter", *given)
        assert (status, err.count("\n")) == (2, 1)
        assert "taken" in err or "name of the model itself" in err


def test_no_more_are_loaded_than_the_settings_say(ask: Any, root: Path) -> None:
    body = {"lora_path": str(root / "good")}
    for name, status in (("1", 200), ("2", 200), ("3", 400)):
        assert ask(LOAD, {**body, "lora_name": name}, max_adapters=2).status_code == status
    assert ask(UNLOAD, {"lora_name": "2"}).status_code == 200
    assert ask(LOAD, {**body, "lora_name": "3"}, adapter_memory=1000).status_code == 400
    assert ask(LOAD, {**body, "lora_name": "3"}, max_adapters=2).status_code == 200
    with pytest.raises(ConfigError, match="max_adapters=1"):
        ServerSettings(adapters=("a=x", "b=y"), max_adapters=1)


def test_a_server_that_loads_an_adapter_answers_meanwhile(
    vlm: AsyncVLM, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when another one is to be unloaded, which has to wait."""
    began, may_go_on, read = threading.Event(), threading.Event(), peft_folder.read_adapter

    def slow(*arguments: Any) -> Any:
        began.set()
        assert may_go_on.wait(60)
        return read(*arguments)

    async def all_at_once() -> list[int]:
        async with client(vlm, root) as server:
            first = {"lora_name": "first", "lora_path": str(root / "good")}
            assert (await server.post(LOAD, json=first)).status_code == 200
            monkeypatch.setattr(peft_folder, "read_adapter", slow)
            loads = [asyncio.create_task(server.post(LOAD, json={**first, "lora_name": f"{i}"})) for i in range(4)]
            while not began.is_set():
                await asyncio.sleep(0.01)
            unload = asyncio.create_task(server.post(UNLOAD, json={"lora_name": "first"}))
            body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
            for _ in range(3):
                answer = await asyncio.wait_for(server.post("/v1/chat/completions", json=body), 60)
                assert answer.status_code == 200
            assert not any(task.done() for task in (*loads, unload))
            may_go_on.set()
            return [found.status_code for found in await asyncio.gather(*loads, unload)]

    assert asyncio.run(all_at_once()) == [200] * 5
    assert sorted(vlm.vlm.adapters) == ["0", "1", "2", "3"]
    for name in list(vlm.vlm.adapters):
        vlm.vlm.unload_adapter(name)


def test_loads_whose_clients_have_left_take_one_thread(
    vlm: AsyncVLM, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go_on, begun = threading.Event(), list[str]()

    def slow(name: str, _folder: Path) -> None:
        begun.append(name)
        assert may_go_on.wait(60)

    monkeypatch.setattr(vlm.vlm, "load_adapter", slow)

    async def leave() -> None:
        async with client(vlm, root) as server:
            body = {"lora_path": str(root / "good")}
            for name in map(str, range(5)):
                load = asyncio.create_task(server.post(LOAD, json={**body, "lora_name": name}))
                await asyncio.sleep(0.1)
                load.cancel()
                await asyncio.gather(load, return_exceptions=True)
            assert begun == ["0"], "each of them would take a thread"
            may_go_on.set()
            assert (await server.post(LOAD, json={**body, "lora_name": "last"})).status_code == 200

    asyncio.run(leave())
    assert begun == ["0", "last"]


def test_requests_for_an_adapter_that_comes_and_goes_are_answered_or_404_or_400(vlm: AsyncVLM, root: Path) -> None:
    async def all_at_once() -> set[int]:
        async with client(vlm, root) as server:
            load = {"lora_name": "good", "lora_path": str(root / "good")}
            body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "temperature": 0}
            statuses: set[int] = set()

            async def asks() -> None:
                for _ in range(8):
                    found = await server.post("/v1/chat/completions", json={**body, "model": "good"})
                    statuses.add(found.status_code)
                    json.loads(found.text)

            async def changes() -> None:
                for _ in range(6):
                    assert (await server.post(LOAD, json=load)).status_code == 200
                    await asyncio.sleep(0.02)
                    assert (await server.post(UNLOAD, json={"lora_name": "good"})).status_code == 200

            await asyncio.gather(changes(), *(asks() for _ in range(4)))
            return statuses

    assert asyncio.run(all_at_once()) <= {200, 400, 404}
    assert not vlm.vlm.adapters
