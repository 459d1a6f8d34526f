"""`pocketvlm serve --ray` as its users have it: a cluster of one machine, two replicas of nano, and their clients."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from helpers.app import CHAT
from helpers.serving import NO_DECODERS, Serving, start

pytest.importorskip("ray.serve", reason="needs the extra ray")
openai = pytest.importorskip("openai")
if not sys.platform.startswith("linux"):
    pytest.skip("reads the processes of Linux", allow_module_level=True)

KEY = "secret"
# Three replicas find room on one processor: a new one starts before an old one ends.
OPTIONS = ("--replicas", "2", "--replica-cpus", "0.25", "--api-key", KEY, "--drain-seconds", "60", *NO_DECODERS)
REPLICA = "x-pocketvlm-replica"


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """Ray's token and files in a folder of their own, whose name is short: sockets lie in it."""
    folder = tempfile.mkdtemp(prefix="pv-", dir="/tmp")
    patience = dict.fromkeys(
        ("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S"), "60"
    )  # of a machine that is busy
    own = {"HOME": folder, "RAY_TMPDIR": folder, "RAY_AUTH_MODE": "token", "RAY_worker_niceness": "0"}
    yield {**os.environ, **patience, **own}
    shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Fleet:
    """A server with replicas.

    Attributes:
        address: of its cluster.
    """

    serving: Serving
    address: str
    environment: dict[str, str]

    def chat(self, text: str, **more: Any) -> tuple[int, str, Any]:
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": 4, **more}
        return self.serving.ask(CHAT, body)

    def client(self) -> Any:
        return openai.OpenAI(base_url=f"{self.serving.url}/v1", api_key=KEY, max_retries=0, timeout=300)

    def metric(self, name: str) -> dict[str, float]:
        """Values by replicas."""
        status, text, _ = self.serving.ask("/metrics")
        assert status == 200, text
        lines = [line for line in text.splitlines() if line.startswith(f"{name}{{")]
        return {line.split('replica="')[1].split('"')[0]: float(line.split()[-1]) for line in lines}

    def replicas(self) -> list[int]:
        """Their processes."""
        replica = "ray::ServeReplica:pocketvlm:Replica"  # and what it is at, behind that
        return [pid for pid, name in descendants(self.serving.process.pid) if name.startswith(replica)]


def descendants(root: int) -> list[tuple[int, str]]:
    """Processes that a process has started, and theirs, with what they call themselves."""
    parents = dict[int, int]()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(") ")[2].split()[1])
            except OSError:  # it has ended
                continue
    found, waiting = [], [root]
    while waiting:
        parent = waiting.pop()
        waiting += (children := [pid for pid, above in parents.items() if above == parent])
        for pid in children:
            try:
                found.append((pid, Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()))
            except OSError:
                continue
    return found


@pytest.fixture(scope="module")
def fleet(environment: dict[str, str]) -> Iterator[Fleet]:
    started = start("--ray", *OPTIONS, environment=environment)
    started.key = KEY
    try:
        address = started.said["ray"]
        yield Fleet(started, address, environment)
        begun = descendants(started.process.pid)
        assert any(name.startswith("ray::") for _, name in begun)
    finally:
        started.process.send_signal(signal.SIGTERM)
        status = started.end()
    assert status == 0
    assert eventually(lambda: [one for one in begun if Path(f"/proc/{one[0]}").exists()] == []), "processes are left"


def eventually(holds: Callable[[], bool], seconds: float = 120.0) -> bool:
    """Whether something comes true; the limit is there to end, not to measure."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


@dataclass
class Load:
    """Clients that each ask about their own conversation, in turns whole and streamed.

    Attributes:
        seen: how requests ended.
        faults: what was wrong with those that ended badly.
    """

    seen: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def ask(self, url: str, number: int, turn: int, tokens: int) -> None:
        stream = (number + turn) % 2 == 0
        messages = [{"role": "user", "content": f"conversation {number}"}]
        body = {"messages": messages, "max_tokens": tokens, "ignore_eos": True, "stream": stream}
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{url}{CHAT}", json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=300) as response:
                text = response.read().decode()
            if not stream:
                how = "whole" if json.loads(text)["choices"][0]["finish_reason"] == "length" else "half"
            elif '"code": "unavailable"' in text and text.endswith("data: [DONE]\n\n"):
                how = "lost"
            else:
                how = "stream" if '"length"' in text and text.endswith("data: [DONE]\n\n") else "cut"
        except urllib.error.HTTPError as error:
            with error:
                how, text = f"status {error.code}", error.read().decode()
        except OSError as error:
            how, text = "broken", str(error)
        self.seen[how] += 1
        if how not in ("whole", "stream"):
            self.faults.append(f"{how}: {text[-300:]}")


@contextmanager
def load(url: str, clients: int, tokens: int) -> Iterator[Load]:
    """Clients that ask within the block, and end with the request that they have then."""
    found, is_over = Load(), threading.Event()

    def ask(number: int) -> None:
        turn = 0
        while not is_over.is_set():
            found.ask(url, number, turn, tokens)
            turn += 1

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield found
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def test_a_stream_is_what_a_plain_server_answers(fleet: Fleet, server: Serving) -> None:
    question: list[Any] = [{"role": "user", "content": "Hello, what is this?"}]
    texts = []
    for client in (fleet.client(), openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key)):
        stream = client.chat.completions.create(
            model=client.models.list().data[0].id,
            messages=question,
            max_tokens=16,
            temperature=0,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
        assert len([piece for piece in pieces if piece]) > 1, "it came in one piece"
        texts.append("".join(pieces))
    assert texts[0] == texts[1] != ""


def test_a_conversation_stays_with_one_replica_and_conversations_spread(fleet: Fleet) -> None:
    first = fleet.chat("Which one?")
    name = first[2][REPLICA]
    answer = json.loads(first[1])["choices"][0]["message"]["content"]
    later = [{"role": "assistant", "content": answer}, {"role": "user", "content": "And now?"}]
    again = fleet.serving.ask(CHAT, {"messages": [{"role": "user", "content": "Which one?"}, *later], "max_tokens": 4})
    assert (again[0], again[2][REPLICA]) == (200, name)
    assert json.loads(again[1])["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert {fleet.chat(f"conversation {i}")[2][REPLICA] for i in range(12)} == set(
        fleet.metric("pocketvlm:num_requests_running")
    )


def test_refusals_are_our_own(fleet: Fleet) -> None:
    ask = fleet.serving.ask
    for status, code, found in (
        (400, "invalid_request", ask(CHAT, b"{")),
        (400, "invalid_value", ask(CHAT, {"messages": [], "no_such_field": 1})),
        (401, "invalid_api_key", ask(CHAT, {}, key="wrong")),
        (404, "model_not_found", fleet.chat("a", model="other")),
        (404, "unknown_url", ask("/nothing")),
        (400, "invalid_request", ask(CHAT, b"[" * 300)),
    ):
        assert found[0] == status, found
        assert json.loads(found[1])["error"]["code"] == code, found
    assert ask("/metrics", key="wrong")[0] == 401
    assert json.loads(ask("/api/chat", {"model": "other", "messages": []})[1])["error"]
    _, _, headers = ask(CHAT, b"{", headers={"x-request-id": "mine"})
    assert headers["x-request-id"] == "mine"


def test_health_and_metrics_are_those_of_all_replicas(fleet: Fleet) -> None:
    assert fleet.serving.ask("/health", key="")[0] == 200
    assert fleet.serving.ask("/ready", key="")[0] == 200
    names = fleet.metric("pocketvlm:num_requests_running")
    assert len(names) == 2
    assert fleet.serving.ask(CHAT, {}, key="wrong")[0] == 401
    lines = fleet.serving.ask("/metrics")[1].splitlines()
    refused = [line for line in lines if line.startswith("pocketvlm:http_requests_total{") and 'status="401"' in line]
    assert refused, "what is refused in front of the replicas is not counted"
    assert not any(name in line for name in names for line in refused)


def test_a_client_that_leaves_ends_its_request(fleet: Fleet) -> None:
    stream = fleet.client().chat.completions.create(
        model="nano", messages=[{"role": "user", "content": "a"}], max_tokens=16_000, stream=True,
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    next(iter(stream))
    stream.close()
    assert eventually(lambda: not any(fleet.metric("pocketvlm:num_requests_running").values()))


def test_a_replica_that_is_killed_loses_what_it_had_begun_to_answer_and_nothing_else(fleet: Fleet) -> None:
    clients = 6
    with load(fleet.serving.url, clients, 100) as found:
        assert eventually(lambda: sum(found.seen.values()) >= 2 * clients)
        before = fleet.replicas()
        assert len(before) == 2
        os.kill(before[0], signal.SIGKILL)
        assert eventually(lambda: len(now := fleet.replicas()) == 2 and before[0] not in now)
        assert eventually(lambda: len(fleet.metric("pocketvlm:num_requests_running")) == 2)
    assert set(found.seen) <= {"whole", "stream", "lost"}, (found.seen, found.faults)
    assert found.seen["lost"] <= clients, "more than there were at a time"
    assert fleet.serving.ask("/health")[0] == 200


def test_other_settings_replace_the_replicas_without_a_failure(fleet: Fleet) -> None:
    port = fleet.serving.url.rpartition(":")[2]
    command = [sys.executable, "-m", "pocketvlm.cli", "serve", "--ray", fleet.address, "--port", port, "--json"]
    before = set(fleet.metric("pocketvlm:num_requests_running"))
    with load(fleet.serving.url, 4, 30) as found:
        assert eventually(lambda: sum(found.seen.values()) >= 4)
        done = subprocess.run(
            [*command, *OPTIONS, "--served-model-name", "reader"],
            env=fleet.environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["url"] == fleet.serving.url
        after = set(fleet.metric("pocketvlm:num_requests_running"))
    assert set(found.seen) == {"whole", "stream"}, (found.seen, found.faults)
    assert len(after) == 2
    assert not after & before
    assert json.loads(fleet.serving.ask("/v1/models")[1])["data"][0]["id"] == "reader"
    elsewhere = subprocess.run(
        [*command[:-3], "--port", "1", *OPTIONS], env=fleet.environment, capture_output=True, text=True, check=False
    )
    assert elsewhere.returncode == 2, elsewhere.stderr
    assert f"serves on 127.0.0.1 port {port}" in elsewhere.stderr
