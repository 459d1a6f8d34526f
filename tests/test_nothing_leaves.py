"""Nothing leaves the machine: no command opens a socket unless the user named a URL or a hub id."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from helpers import without_network
from helpers.serving import Serving

from pocketvlm.cli import COMMANDS
from pocketvlm.telemetry import SWITCHES

ROOT = Path(__file__).resolve().parents[1]
PICTURE = str(ROOT / "examples" / "word.png")


def environment(home: Path, **more: str) -> dict[str, str]:
    """That of a user whose home is empty and who has decided nothing about usage reports."""
    decided = (*SWITCHES, "DO_NOT_TRACK", "DISABLE_TELEMETRY", "HF_HUB_OFFLINE")
    kept = {name: value for name, value in os.environ.items() if name not in decided}
    homes = {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "XDG_DATA_HOME": str(home / "data")}
    return {**kept, **homes, "HF_HOME": str(home / "hub"), **more}


def python(code: str, env: dict[str, str]) -> str:
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout


def commands(model: str, folder: Path) -> list[dict[str, Any]]:
    """One of each command, on each runtime where it has several."""
    question = (PICTURE, "What?", "--model", model, "--max-tokens", "2", "--max-slice-nums", "1")
    onnx = ("--runtime", "onnx", "--quantization", "none")
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
    request = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    (folder / "in.jsonl").write_text(json.dumps(request) + "\n")
    files = (str(folder / "in.jsonl"), str(folder / "out.jsonl"))
    learnt = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "It."}]
    sample = {"messages": learnt, "images": [PICTURE], "max_slice_nums": 1}
    (folder / "data.jsonl").write_text(json.dumps(sample) + "\n")
    short = ("--count", "1", "--max-tokens", "2", "--max-slice-nums", "1", "--downsample-mode", "16x", "--model", model)
    seen = (PICTURE, "--model", model, "--max-slice-nums", "1", "--max-tokens", "40")
    one = str(folder / "schema.json")
    words = {"a": {"enum": ["yes"]}}
    (folder / "schema.json").write_text(json.dumps({"type": "object", "properties": words, "required": ["a"]}))
    lines = [
        ("info", "--model", model),
        ("plan", PICTURE, "--draw", str(folder / "drawn.png")),
        ("trace", "--prompt", "What?", "--model", model, "--max-tokens", "1", "--save", str(folder / "trace.npz")),
        *(("ask", *question, *where) for where in ((), onnx)),
        ("ask", *question, "--choice", "yes", "--choice", "no"),
        *(("eval", "one-word", *short, *where) for where in ((), onnx)),
        *(("batch", *files, "--overwrite", "--model", model, *where) for where in ((), onnx)),
        ("read", *seen, "--out", str(folder / "text")),
        ("extract", *seen, "--schema", one, "--out", str(folder / "rows.csv")),
        ("export", "onnx", str(folder / "bundle"), "--model", model),
        ("export", "gguf", str(folder / "gguf"), "--model", model),
        ("tune", str(folder / "data.jsonl"), "--out", str(folder / "tuned"), "--steps", "1", "--model", model),
        ("bench", "offline", "--model", model, "--runs", "onnx:none", "--lines", "decode1", "--rounds", "1"),
    ]
    made: list[dict[str, Any]] = [{"arguments": line} for line in lines]
    hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    call = {"name": "look", "arguments": {"media": ["word.png"], "question": "What?", "max_tokens": 2}}
    said = [
        {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello},
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": call},
    ]
    spoken = "".join(json.dumps(message) + "\n" for message in said)
    made.append({"arguments": ("mcp", "--model", model, "--root", str(ROOT / "examples")), "stdin": spoken})
    for where in ((), onnx):
        options = ("--model", model, "--max-tokens", "2", *where)
        made.append({"arguments": ("chat", *options), "stdin": "Hello\n"})
    return made


def test_no_command_opens_a_socket_or_leaves_a_trace_in_the_users_home(
    tmp_path: Path, seeded_checkpoint: Callable[[int], Path]
) -> None:
    home, folder = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    folder.mkdir()
    asked = commands(str(seeded_checkpoint(0)), folder)
    assert {line["arguments"][0] for line in asked} == set(COMMANDS) - {"serve"}  # which has a test of its own
    program = [sys.executable, without_network.__file__, json.dumps(asked)]
    done = subprocess.run(program, env=environment(home), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"native code asked for a socket, if this is -31; the last of: {done.stderr}"
    found = json.loads(done.stdout)
    assert found["asked"] == []
    assert found["statuses"] == [0] * len(asked), done.stderr
    # An identifier of this device would be the first step of a report that is sent later.
    assert [path for path in home.rglob("*") if path.is_file()] == []


def test_a_server_opens_its_own_address_and_no_other(tmp_path: Path) -> None:
    code = (
        f"import json, sys; sys.path.insert(0, {str(Path(without_network.__file__).parent)!r})\n"
        "import without_network\n"
        "seen = without_network.watch_python_code()\n"
        "from pocketvlm.cli import main\n"
        "status = main(['serve', '--port', '0', '--json'])\n"
        "print(json.dumps([status, seen]))"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], env=environment(tmp_path), stdout=pipe, text=True) as process:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        body = {"model": "nano", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
        assert Serving(process, url, Path(os.devnull)).ask("/v1/chat/completions", body)[0] == 200
        process.terminate()
        status, seen = json.loads(process.communicate(timeout=60)[0])
    assert status == 0
    assert seen != []
    assert all(event == "socket.bind(('127.0.0.1', 0),)" for event in seen), seen
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("family", ["AF_INET", "AF_INET6"])
def test_a_socket_would_be_found_out(family: str, tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(without_network.__file__).parent)!r})\n"
        "import without_network, socket, ctypes\n"
        "seen, native = without_network.watch_python_code(), without_network.watch_native_code()\n"
        "try: socket.getaddrinfo('127.0.0.1', 80)\n"
        "except OSError: pass\n"
        "assert len(seen) == 1, seen\n"
        "a, b = socket.socketpair()\n"
        "print(native, flush=True)\n"
        f"ctypes.CDLL(None).socket(int(socket.{family}), int(socket.SOCK_DGRAM), 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(tmp_path), capture_output=True, check=False)
    assert (done.stdout, done.returncode) in ((b"True\n", -31), (b"False\n", 0)), done.stderr


def test_reports_are_off_before_the_libraries_are_imported_unless_the_user_said_otherwise(tmp_path: Path) -> None:
    show = "import os, pocketvlm.errors; print(*(os.environ.get(name) for name in {names!r}))"
    code = show.format(names=list(SWITCHES))
    assert python(code, environment(tmp_path)).split() == list(SWITCHES.values())
    for name in SWITCHES:
        assert python(show.format(names=[name]), environment(tmp_path, **{name: "0"})).split() == ["0"]


@contextmanager
def hub() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """A hub without models: its address, and (path, user agent) of all that it was asked."""
    requests: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append((self.path, self.headers.get("user-agent", "")))
            self.send_error(404)

        do_HEAD = do_POST = do_GET

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", requests
        finally:
            server.shutdown()
            thread.join()


def test_a_hub_id_asks_the_hub_for_that_model_and_tells_it_nothing(tmp_path: Path) -> None:
    with hub() as (url, requests):
        command = [sys.executable, "-m", "pocketvlm.cli", "plan", "448x448", "--model", "someone/some-model"]
        env = environment(tmp_path, HF_ENDPOINT=url, NO_PROXY="127.0.0.1")
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert requests, done.stderr
    for path, agent in requests:
        assert "someone/some-model" in path
        assert "torch" not in agent
        assert "agent/" not in agent
