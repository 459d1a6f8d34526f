"""The line of a request: what it was and what came of it; whatever users write is no other line, nor there unasked."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from helpers.app import CHAT, App, new_vlm, run

from pocketvlm.server.exchange import Exchange, Load
from pocketvlm.server.keys import Key
from pocketvlm.server.request_log import MAX_CONTENT, log_exchange, start_logging
from pocketvlm.server.settings import ServerSettings

Lines = Callable[[], list[str]]
SECRET = "zeppelin\n2026-01-01 INFO GET /admin 200"


@pytest.fixture
def written(capsys: pytest.CaptureFixture[str]) -> Iterator[Lines]:
    """Lines that are logged; the loggers are as before afterwards."""
    root, requests = logging.getLogger(), logging.getLogger("pocketvlm.requests")
    handlers, levels = root.handlers[:], (root.level, requests.level)

    def lines() -> list[str]:
        for handler in root.handlers:
            handler.flush()
        return capsys.readouterr().err.splitlines()

    yield lines
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    requests.setLevel(levels[1])


def exchange(settings: ServerSettings, **fields: Any) -> Exchange:
    """A request with an answer of three tokens, and one that was given up."""
    choices = [
        SimpleNamespace(token_ids=[1, 2, 3], finish_reason="stop", text=SECRET),
        SimpleNamespace(token_ids=[], finish_reason=None, text=""),
    ]
    job: Any = SimpleNamespace(request=SimpleNamespace(prompt_tokens=7), choices=choices)
    given = {"request_id": "a-1", "images": 2, "question": SECRET * MAX_CONTENT, "status": 200, "jobs": [job], **fields}
    return Exchange(Load(settings), "POST", "/v1/chat/completions", **given)


def facts_of(written: Lines, settings: ServerSettings, one: Exchange) -> dict[str, Any]:
    start_logging(settings)
    log_exchange(one)
    found: dict[str, Any] = json.loads(written()[-1])
    return found


def test_a_line_has_the_facts_of_a_request_and_none_of_its_content(written: Lines) -> None:
    settings = ServerSettings(log_format="json")
    facts = facts_of(written, settings, exchange(settings, key=Key("ann", b"")))
    assert facts["seconds"] >= 0
    assert {name: facts[name] for name in facts if name not in ("time", "seconds")} == {
        "level": "INFO",
        "logger": "pocketvlm.requests",
        "method": "POST",
        "path": "/v1/chat/completions",
        "status": 200,
        "request_id": "a-1",
        "key": "ann",
        "images": 2,
        "prompt_tokens": 7,
        "answer_tokens": 3,
        "finish_reason": "stop,abort",
    }


def test_a_request_that_is_refused_has_the_code_of_its_error(caplog: pytest.LogCaptureFixture) -> None:
    async def ask() -> list[httpx.Response]:
        async with await new_vlm() as vlm:
            app = App(vlm)
            bodies: list[Any] = [{"messages": []}, {"messages": [], "model": "other"}]
            return [await app.client.post(CHAT, json=body) for body in bodies]

    with caplog.at_level(logging.INFO, "pocketvlm.requests"):
        told = [response.json()["error"]["code"] for response in run(ask())]
    lines: list[Any] = [record for record in caplog.records if record.name == "pocketvlm.requests"]
    assert [line.facts["error"] for line in lines] == told
    assert len(set(told)) == 2


def test_a_request_that_nobody_waited_for_is_499_and_one_without_a_job_has_no_tokens(written: Lines) -> None:
    settings = ServerSettings(log_format="json")
    facts = facts_of(written, settings, exchange(settings, status=0, jobs=[]))
    assert facts["status"] == 499
    assert not {"key", "images", "prompt_tokens", "finish_reason", "question"} & facts.keys()


def test_content_is_logged_only_where_that_was_asked_for_and_says_so(written: Lines) -> None:
    settings = ServerSettings(log_format="json", log_content=True)
    start_logging(settings)
    log_exchange(exchange(settings))
    warning, facts = map(json.loads, written())
    assert "--log-content" in warning["message"]
    assert (len(facts["question"]), facts["answers"]) == (MAX_CONTENT, [SECRET, ""])


def test_no_text_of_a_user_looks_like_another_line_or_another_fact(written: Lines) -> None:
    settings = ServerSettings(log_content=True)
    start_logging(settings)
    log_exchange(exchange(settings, request_id="a 1 status=500"))
    _, line = written()
    assert "INFO POST /v1/chat/completions 200 " in line
    assert 'request_id="a 1 status=500"' in line
    assert "images=2 prompt_tokens=7 answer_tokens=3 finish_reason=stop,abort" in line


def test_a_fault_is_one_object_with_its_traceback_and_other_libraries_say_only_warnings(written: Lines) -> None:
    start_logging(ServerSettings(log_format="json"))
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("pocketvlm.server.errors").exception("a request failed")
    logging.getLogger("other").info("chatter")
    (line,) = written()
    assert json.loads(line)["message"] == "a request failed"
    assert "ValueError: two\nlines" in json.loads(line)["exception"]
