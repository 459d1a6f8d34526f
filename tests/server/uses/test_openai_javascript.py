"""What people do with the `openai` package for JavaScript, against `pocketvlm serve`."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from helpers.serving import NAMES, Serving
from helpers.uses import EXAMPLES, wait_for

HERE = Path(__file__).parent / "javascript"
NODE = shutil.which("node")
pytestmark = [
    pytest.mark.skipif(NODE is None, reason="node is missing: apt-get install nodejs npm, then make javascript-client"),
    pytest.mark.skipif(
        not (HERE / "node_modules" / "openai").is_dir(),
        reason="its openai is missing: make javascript-client",
    ),
]


def use(server: Serving, name: str) -> Any:
    command = [str(NODE), "uses.mjs", name, server.url, str(EXAMPLES / "receipt.png")]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_ask_about_a_picture(server: Serving) -> None:
    assert use(server, "ask") == "11.60"


def test_follow_an_answer_as_it_is_written(server: Serving) -> None:
    assert use(server, "stream") == "11.60"
    assert use(server, "events") == ["11.60", "11.60"]


def test_get_json_by_a_schema(server: Serving) -> None:
    assert isinstance(use(server, "schema")["total"], int)


def test_let_the_package_run_the_tools_that_the_model_calls(server: Serving) -> None:
    booked, roles = use(server, "tools")
    assert all(isinstance(total, int) for total in booked)
    assert booked
    assert roles[:3] == ["user", "assistant", "tool"]


def test_carry_on_a_response_with_its_output_as_it_came(server: Serving) -> None:
    assert use(server, "responses") == ["11.60", "2026-03-14"]


def test_follow_a_response_by_its_events(server: Serving) -> None:
    assert use(server, "responses_events") == ["11.60", "11.60"]
    thought, pieces = use(server, "responses_thinking")
    assert thought == pieces != ""


def test_leave_a_stream_before_its_end(server: Serving) -> None:
    assert use(server, "abort") is True
    wait_for(server, 0)


def test_learn_what_was_wrong(server: Serving) -> None:
    is_bad_request, message = use(server, "errors")
    assert is_bad_request is True
    assert "'colour' is not supported" in message


def test_list_the_models(server: Serving) -> None:
    assert use(server, "models") == list(NAMES)
