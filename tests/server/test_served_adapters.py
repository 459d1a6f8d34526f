"""`pocketvlm serve --adapter NAME=DIR`: an adapter is a model of its own name in every API, and may come and go."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from helpers.adapters import ALL, DECODER, write_random_adapter
from helpers.command import run
from helpers.serving import EXAMPLES, NO_DECODERS, Serving, serving

import pocketvlm
from pocketvlm.errors import ConfigError
from pocketvlm.model.hub import resolve
from pocketvlm.server.settings import ServerSettings

PICTURE, QUESTION = EXAMPLES / "word.png", "What does it say?"
DATA = base64.b64encode(PICTURE.read_bytes()).decode()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root, config = tmp_path_factory.mktemp("roots"), resolve("nano").config
    return {
        "decoder": write_random_adapter(root / "one" / "decoder", config, 1, DECODER, size=1.5),
        "team/all": write_random_adapter(root / "one" / "everything", config, 2, ALL, size=0.8),
        "late": write_random_adapter(root / "two" / "late", config, 3, DECODER, size=1.5),
        "outside": write_random_adapter(tmp_path_factory.mktemp("outside"), config, 4, DECODER, size=1.5),
    }


@pytest.fixture(scope="module")
def expected(folders: dict[str, Path]) -> dict[str, str]:
    answers = {}
    for name, folder in {"nano": None, **folders}.items():
        with pocketvlm.load("nano", runtime="torch", adapter=folder) as vlm:
            answers[name] = vlm.ask(PICTURE, QUESTION, temperature=0, max_tokens=8).text
    assert len({*answers.values()}) == len(answers), "adapters that change nothing"
    return answers


@pytest.fixture(scope="module")
def server(folders: dict[str, Path]) -> Iterator[Serving]:
    given = [f"--adapter={name}={folders[name]}" for name in ("decoder", "team/all")]
    with serving(*given, "--adapter-root", str(folders["late"].parent), "--docs", *NO_DECODERS) as started:
        yield started


def chat(model: str | None) -> dict[str, Any]:
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{DATA}"}}
    content = [image, {"type": "text", "text": QUESTION}]
    body = {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 8}
    return body if model is None else {**body, "model": model}


def said(server: Serving, path: str, body: Any) -> Any:
    status, text, _ = server.ask(path, body)
    assert status == 200, text
    return json.loads(text)


@pytest.mark.parametrize("name", ["nano", "decoder", "team/all"])
def test_the_model_that_a_request_names_answers_in_every_api(
    server: Serving, expected: dict[str, str], name: str
) -> None:
    found = said(server, "/v1/chat/completions", chat(name))
    assert (found["choices"][0]["message"]["content"], found["model"]) == (expected[name], name)
    parts = [
        {"type": "input_image", "image_url": f"data:image/png;base64,{DATA}"},
        {"type": "input_text", "text": QUESTION},
    ]
    body = {"model": name, "input": [{"role": "user", "content": parts}], "temperature": 0, "max_output_tokens": 8}
    found = said(server, "/v1/responses", body)
    assert (found["output"][0]["content"][0]["text"], found["model"]) == (expected[name], name)
    for tag in ("", ":latest"):
        body = {"model": f"{name}{tag}", "prompt": QUESTION, "images": [DATA], "stream": False}
        body["options"] = {"temperature": 0, "num_predict": 8}
        assert said(server, "/api/generate", body)["response"] == expected[name]


def test_a_request_that_names_no_model_is_answered_by_the_model_itself(
    server: Serving, expected: dict[str, str]
) -> None:
    found = said(server, "/v1/chat/completions", chat(None))
    assert (found["choices"][0]["message"]["content"], found["model"]) == (expected["nano"], "nano")


def test_requests_of_all_models_at_once_are_answered_as_alone(server: Serving, expected: dict[str, str]) -> None:
    names = ["nano", "decoder", "team/all"] * 6
    with ThreadPoolExecutor(len(names)) as threads:
        found = list(threads.map(lambda name: said(server, "/v1/chat/completions", chat(name)), names))
    assert [one["choices"][0]["message"]["content"] for one in found] == [expected[name] for name in names]


def test_adapters_are_listed_as_models_with_their_parent(server: Serving) -> None:
    cards = {card["id"]: card for card in said(server, "/v1/models", None)["data"]}
    assert list(cards) == ["nano", "decoder", "team/all"]
    assert "parent" not in cards["nano"]
    assert (cards["team/all"]["parent"], cards["team/all"]["root"]) == ("nano", "everything")
    assert said(server, "/v1/models/team/all", None) == cards["team/all"]
    tags = said(server, "/api/tags", None)["models"]
    assert [tag["name"] for tag in tags] == ["nano:latest", "decoder:latest", "team/all:latest"]
    assert len({tag["digest"] for tag in tags}) == 3
    assert said(server, "/openapi.json", None)["paths"]["/v1/models/{model}"]["get"]["parameters"][0]["schema"] == {
        "enum": [*cards]
    }


@pytest.mark.parametrize("name", ["late", "Decoder", "team", "all", "decoder=x", "", "latest"])
def test_other_names_are_404_in_every_api(server: Serving, name: str) -> None:
    for path, body in (
        ("/v1/chat/completions", chat(name)),
        ("/v1/responses", {"model": name, "input": "x"}),
        ("/tokenize", {"model": name, "prompt": "x"}),
        ("/api/show", {"model": name or "x"}),
    ):
        status, text, _ = server.ask(path, body)
        assert status == 404, (path, text)


def test_adapters_of_named_folders_come_and_go(
    server: Serving, folders: dict[str, Path], expected: dict[str, str]
) -> None:
    body = {"lora_name": "late", "lora_path": str(folders["late"])}
    for _ in range(2):
        status, text, _ = server.ask("/v1/load_lora_adapter", body)
        assert (status, text) == (200, "Success: LoRA adapter 'late' added successfully.")
        found = said(server, "/v1/chat/completions", chat("late"))
        assert found["choices"][0]["message"]["content"] == expected["late"]
        assert server.ask("/v1/load_lora_adapter", body)[0] == 400
        status, text, _ = server.ask("/v1/unload_lora_adapter", {"lora_name": "late"})
        assert (status, text) == (200, "Success: LoRA adapter 'late' removed successfully.")
        assert server.ask("/v1/chat/completions", chat("late"))[0] == 404
        assert server.ask("/v1/unload_lora_adapter", {"lora_name": "late"})[0] == 404


def test_nothing_outside_the_named_folders_is_opened_and_one_answer_says_so(
    server: Serving, folders: dict[str, Path]
) -> None:
    link = folders["late"].parent / "link"
    link.symlink_to(folders["outside"])
    outside = [
        *(folders["outside"], link, "/", "/etc", "/no/such/folder", "relative", "a\0b"),
        f"{folders['late']}/../../one/decoder",
        os.devnull,
    ]
    try:
        answers = {
            server.ask("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": str(path)})[:2] for path in outside
        }
    finally:
        link.unlink()
    ((status, text),) = answers
    assert status == 400
    assert "no folder that adapters are loaded from" in text


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"lora_name": "x"},
        {"lora_name": 3, "lora_path": "x"},
        {"lora_name": "nano", "lora_path": "x"},
        {"lora_name": "x", "lora_path": "x", "more": 1},
        [],
    ],
)
def test_a_body_that_is_wrong_is_400(server: Serving, body: Any) -> None:
    assert server.ask("/v1/load_lora_adapter", body)[0] == 400


def test_loading_is_off_where_no_folder_is_named(folders: dict[str, Path], request: pytest.FixtureRequest) -> None:
    shared = request.getfixturevalue("_shared")
    status, text, _ = shared.ask("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": str(folders["late"])})
    assert status == 404
    assert "--adapter-root" in text


@pytest.fixture(scope="module")
def _shared() -> Iterator[Serving]:
    with serving(*NO_DECODERS) as started:
        yield started


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--adapter", "x"), "expected NAME=DIR"),
        (("--adapter", "=x"), "expected NAME=DIR"),
        (("--adapter", "a=x"), "does not exist"),
        (("--adapter", "a=x", "--adapter", "a=y"), "taken"),
        (("--adapter", "nano=x"), "name of the model itself"),
        (("--adapter", "a=x", "--served-model-name", "a"), "taken"),
        (("--adapter-root", "missing"), "no folder"),
        (("--adapter-root", ".", "--runtime", "onnx"), "takes no adapters"),
    ],
)
def test_what_cannot_be_served_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], says: str
) -> None:
    status, out, err = run(capsys, "serve", *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert says in err


def test_adapters_come_of_a_variable_and_of_a_file_as_well(tmp_path: Path) -> None:
    settings = ServerSettings.read({}, {"POCKETVLM_ADAPTERS": "a=x, b=y=z"})
    assert settings.adapter_folders == {"a": Path("x"), "b": Path("y=z")}
    file = tmp_path / "server.toml"
    file.write_text('adapters = ["a=x"]\n', encoding="utf-8")
    assert ServerSettings.read({}, {}, file).adapter_folders == {"a": Path("x")}
    with pytest.raises(ConfigError):
        ServerSettings(adapters=("a",))
