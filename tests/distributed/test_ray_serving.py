"""`pocketvlm serve --ray` as its users have it: a cluster of one machine, two replicas of nano, and their clients."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("ray.serve", reason="needs the extra ray")
openai = pytest.importorskip("openai")
if not sys.platform.startswith("linux"):
    pytest.skip("reads the processes of Linux", allow_module_level=True)

from helpers.app import CHAT  # noqa: E402
from helpers.replicas import OPTIONS, REPLICA, RUNNING, Fleet, eventually, load, own_ray, replicas_of  # noqa: E402
from helpers.serving import Serving  # noqa: E402

TWO = ("--replicas", "2")


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with own_ray() as environment, replicas_of(environment, *TWO) as found:
        yield found


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
    assert {fleet.chat(f"conversation {i}")[2][REPLICA] for i in range(12)} == set(fleet.metric(RUNNING))


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
    names = fleet.metric(RUNNING)
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
    assert eventually(lambda: not any(fleet.metric(RUNNING).values()))


def test_a_replica_that_is_killed_loses_what_it_had_begun_to_answer_and_nothing_else(fleet: Fleet) -> None:
    clients = 6
    with load(fleet.serving.url, clients, 100) as found:
        assert eventually(lambda: sum(found.seen.values()) >= 2 * clients)
        before = fleet.replicas()
        assert len(before) == 2
        os.kill(before[0], signal.SIGKILL)
        assert eventually(lambda: len(now := fleet.replicas()) == 2 and before[0] not in now)
        assert eventually(lambda: len(fleet.metric(RUNNING)) == 2)
    assert set(found.seen) <= {"whole", "stream", "lost"}, (found.seen, found.faults)
    assert found.seen["lost"] <= clients, "more than there were at a time"
    assert fleet.serving.ask("/health")[0] == 200


def test_other_settings_replace_the_replicas_without_a_failure(fleet: Fleet) -> None:
    port = fleet.serving.url.rpartition(":")[2]
    command = [sys.executable, "-m", "pocketvlm.cli", "serve", "--ray", fleet.address, "--port", port, "--json"]
    before = set(fleet.metric(RUNNING))
    with load(fleet.serving.url, 4, 30) as found:
        assert eventually(lambda: sum(found.seen.values()) >= 4)
        done = subprocess.run(
            [*command, *OPTIONS, *TWO, "--served-model-name", "reader"],
            env=fleet.environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["url"] == fleet.serving.url
        after = set(fleet.metric(RUNNING))
    assert set(found.seen) == {"whole", "stream"}, (found.seen, found.faults)
    assert len(after) == 2
    assert not after & before
    assert json.loads(fleet.serving.ask("/v1/models")[1])["data"][0]["id"] == "reader"
    elsewhere = subprocess.run(
        [*command[:-3], "--port", "1", *OPTIONS, *TWO],
        env=fleet.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert elsewhere.returncode == 2, elsewhere.stderr
    assert f"serves on 127.0.0.1 port {port}" in elsewhere.stderr
