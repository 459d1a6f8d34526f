"""What the description of the API says: schemathesis makes requests of it, and none of them is an error of ours."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from helpers.adapters import write_random_adapter
from helpers.app import data_url, png
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import sampled_from
from schemathesis.checks import not_a_server_error
from schemathesis.generation.modes import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.testclient import TestClient

import pocketvlm
from pocketvlm.api.async_vlm import AsyncVLM
from pocketvlm.server.app import ADAPTER_ROUTES, ROUTES, create_app
from pocketvlm.server.openapi import openapi
from pocketvlm.server.settings import ServerSettings

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
OPERATIONS = [(method, path) for path, methods in openapi(["nano"])["paths"].items() for method in methods]
REQUIRED = ("messages", "input", "prompt", "tokens", "images", "document")
HELLO = {"role": "user", "content": "Hello"}
MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)


@pytest.fixture(scope="module")
def vlm() -> Iterator[AsyncVLM]:
    vlm = AsyncVLM(pocketvlm.load("nano", runtime="torch"))
    vlm.vlm.processor.files = False
    yield vlm
    asyncio.run(vlm.close())


@pytest.fixture(scope="module")
def app(vlm: AsyncVLM) -> Any:
    """The application in this process, with short answers."""
    return create_app(vlm, ServerSettings(docs=True, allowed_hosts=("testserver",), max_answer_tokens=3, max_n=2))


def ask(app: Any, method: str, path: str, mode: GenerationMode, cases: int, **instead: Callable[[], Any]) -> int:
    """Make so many requests of one operation and check each response; returns how many were answered with 200.

    Args:
        instead: of fields of good bodies that name something outside of them: what makes their values.
    """
    operation = schemathesis.openapi.from_asgi("/openapi.json", app)[path][method]
    if mode is GenerationMode.NEGATIVE and operation.definition.raw.get("requestBody") is None:
        return 0  # nothing of it could be wrong
    statuses = list[int]()
    is_good = mode is GenerationMode.POSITIVE

    @settings(max_examples=cases, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode), most=sampled_from((0, 1, 3, 100)))
    def one(case: Any, most: int) -> None:
        if is_good and isinstance(case.body, dict):
            # Each field is good by itself, but where all are given some contradict each other.
            for name in [name for name in case.body if name not in REQUIRED][most:]:
                del case.body[name]
            for name, value in instead.items():
                if name in case.body:
                    case.body[name] = value()
            if "images" in case.body:
                case.body["images"] = [data_url(png())]
            if "document" in case.body:
                case.body["document"] = data_url(png())
            if "messages" in case.body and most < 2:  # neither is each message good in each place, nor any URL
                plain = [one for one in case.body["messages"] if isinstance(one.get("content"), str)]
                case.body["messages"] = [one for one in plain if one["role"] == "user"] or [HELLO]
        response = case.call()
        statuses.append(response.status_code)
        case.validate_response(response, checks=CHECKS)

    one()
    print(f"{method} {path} {mode.value}: {len(statuses)} requests, {statuses.count(200)} with 200")
    return statuses.count(200)


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_no_request_of_the_description_is_an_error_of_ours(app: Any, method: str, path: str) -> None:
    assert sum(ask(app, method, path, mode, 12) for mode in MODES), "none of them was answered"


def test_no_request_about_adapters_is_an_error_of_ours(vlm: AsyncVLM, tmp_path: Path) -> None:
    """Adapters are loaded and unloaded under names that schemathesis makes up."""
    folder = write_random_adapter(tmp_path / "adapter", vlm.vlm.config, 1)
    app = create_app(vlm, ServerSettings(docs=True, allowed_hosts=("testserver",), adapter_roots=(str(tmp_path),)))
    load, unload = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
    for mode in MODES:
        loaded = ask(app, "post", load, mode, 12, lora_path=lambda: str(folder))
        assert len(vlm.vlm.adapters) == loaded
        assert bool(loaded) == (mode is GenerationMode.POSITIVE)
        described = TestClient(app).get("/openapi.json").json()
        assert described == openapi(["nano", *vlm.vlm.adapters], adapters=True)
        ask(app, "get", "/v1/models", mode, 1)
        gone = ask(app, "post", unload, mode, 24, lora_name=lambda: next(iter(vlm.vlm.adapters), "none"))
        assert gone == loaded
        assert not vlm.vlm.adapters
    assert {load, unload} == {path for _, path, _ in ADAPTER_ROUTES}


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for method, path in OPERATIONS if method == "post"])
def test_twenty_thousand_requests_are_no_error_of_ours(app: Any, path: str) -> None:
    """5,000 of each operation with a body; about a quarter of an hour each."""
    assert sum(ask(app, "post", path, mode, 2500) for mode in MODES)


def test_what_is_described_is_there_and_every_route_of_openai_is_described() -> None:
    found = {(method, path) for method, path in OPERATIONS if path not in ("/health", "/ready")}
    routes = {(method.lower(), path.replace(":path", "")) for method, path, _ in ROUTES}
    assert found <= routes
    assert {(method, path) for method, path in routes if path.startswith("/v1/")} <= found


def test_the_description_is_served_only_where_the_settings_say_so(vlm: AsyncVLM, app: Any) -> None:
    assert TestClient(app).get("/openapi.json").json() == openapi(["nano"])
    assert (
        TestClient(create_app(vlm, ServerSettings(allowed_hosts=("testserver",)))).get("/openapi.json").status_code
        == 404
    )
    assert TestClient(app).get("/docs").status_code == 404  # FastAPI's own page would load scripts of others
