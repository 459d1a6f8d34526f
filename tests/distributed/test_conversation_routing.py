"""Where a request goes, and how many replicas there are: decided without a cluster."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray.serve", reason="needs the extra ray")

from pocketvlm.distributed.serving.autoscaling import REQUESTS, replicas_for_requests
from pocketvlm.distributed.serving.conversation import conversation_key
from pocketvlm.distributed.serving.metrics import merged
from pocketvlm.distributed.serving.router import SLACK, ConversationRouter, ranked

PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8="}}


def key(**body: Any) -> str:
    return conversation_key(json.dumps(body).encode())


def asked(content: Any, *later: Any, **more: Any) -> str:
    return key(model="m", messages=[{"role": "user", "content": content}, *later], **more)


def test_all_turns_of_a_conversation_have_one_key_whatever_follows_its_beginning() -> None:
    later = ({"role": "assistant", "content": "It."}, {"role": "user", "content": "And?"})
    first = asked([PICTURE, {"type": "text", "text": "What?"}], stream=True)
    assert first
    assert asked([PICTURE, {"type": "text", "text": "What?"}], *later, max_tokens=3) == first
    system = {"role": "system", "content": "Be brief."}
    before = [key(messages=[system, {"role": "user", "content": text}]) for text in ("a", "b")]
    assert before[0] != before[1], "all that share an instruction would go to one replica"
    assert key(messages=[system, {"role": "user", "content": "a"}, *later]) == before[0]


@pytest.mark.parametrize(
    "other",
    [
        {"model": "other", "messages": [{"role": "user", "content": "a"}]},
        {"model": "m", "messages": [{"role": "user", "content": "b"}]},
        {"model": "m", "messages": [{"role": "user", "content": "a"}], "user": "somebody"},
        {"model": "m", "messages": [{"role": "user", "content": ["a"]}]},
        {"model": "m", "prompt": "a"},
    ],
)
def test_what_begins_otherwise_has_another_key(other: dict[str, Any]) -> None:
    assert key(**other) not in ("", asked("a"))


def test_a_picture_is_its_content_and_a_text_is_the_same_in_either_form() -> None:
    as_jpeg = {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,aGVsbG8="}}
    changed = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG9v"}}
    assert asked([PICTURE]) == asked([as_jpeg]) != asked([changed])
    assert asked("a") == asked([{"type": "text", "text": "a"}])
    assert key(model="m", input="a") == key(model="m", input=[{"role": "user", "content": "a"}])
    assert key(model="m", input="a", instructions="b") != key(model="m", input="a")


def test_a_key_of_the_client_stands_for_the_messages() -> None:
    assert asked("a", prompt_cache_key="k") == asked("b", prompt_cache_key="k") != asked("a")


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"model": "m"}', b"\xff", b'{"messages": []}', b"[" * 100_000])
def test_what_says_nothing_of_a_conversation_has_no_key_and_does_no_harm(body: bytes) -> None:
    assert conversation_key(body) == ""


def test_where_a_name_goes_only_its_own_keys_move() -> None:
    names, keys = [f"replica{i}" for i in range(5)], [f"key{i}" for i in range(400)]
    favourites = {one: ranked(one, names)[0] for one in keys}
    counts = [list(favourites.values()).count(name) for name in names]
    assert min(counts) > 400 / 5 / 2, counts
    for one, favourite in favourites.items():
        left = ranked(one, names[1:])[0]
        assert left == favourite or favourite == names[0]


def choose(lengths: dict[str, int | None], key: str, attempt: int = 0) -> list[list[str]]:
    router = object.__new__(ConversationRouter)
    router._replica_queue_len_cache = lengths  # type: ignore[assignment]
    replicas: Any = [SimpleNamespace(replica_id=Name(name)) for name in lengths]
    context = SimpleNamespace(should_backoff=False)
    pending: Any = SimpleNamespace(
        metadata=SimpleNamespace(session_id=key), kwargs={"attempt": attempt}, routing_context=context
    )
    ranks = asyncio.run(router.choose_replicas(replicas, pending))
    assert context.should_backoff, "the router would try again without a pause"
    return [[one.replica_id.unique_id for one in rank] for rank in ranks]


class Name(str):
    @property
    def unique_id(self) -> str:
        return str(self)


def test_a_conversation_goes_to_its_replica_unless_that_has_much_more_than_another() -> None:
    favourite, other = ranked("k", ["a", "b"])
    assert choose({"a": 0, "b": None}, "k") == [[favourite], [other]]
    assert choose({favourite: SLACK, other: 0}, "k") == [[favourite], [other]]
    assert choose({favourite: SLACK + 1, other: 0}, "k") == [[other], [favourite]]
    assert choose({favourite: SLACK + 1, other: 1}, "k") == [[favourite], [other]]


def test_a_second_attempt_goes_elsewhere_and_a_request_without_a_key_to_the_least_loaded() -> None:
    order = ranked("k", ["a", "b", "c"])
    for attempt in range(4):
        assert choose({"a": 0, "b": 0, "c": 0}, "k", attempt)[0] == [order[attempt % 3]]
    assert choose({"a": 0, "b": 0}, "") == [["a", "b"]]
    assert choose({"a": 0}, "k") == [["a"]]


def context(counted: dict[str, float], queued: float = 0.0, *, now: int = 2) -> Any:
    return SimpleNamespace(
        aggregated_metrics={REQUESTS: counted} if counted else {},
        total_queued_requests=queued,
        current_num_replicas=now,
        target_num_replicas=now,
        config=SimpleNamespace(target_ongoing_requests=4),
    )


def test_there_are_as_many_replicas_as_bring_the_requests_of_each_to_the_target() -> None:
    assert replicas_for_requests(context({"a": 9.0, "b": 7.0}))[0] == 4
    assert replicas_for_requests(context({"a": 2.0, "b": 2.0}, queued=8.0))[0] == 3
    assert replicas_for_requests(context({"a": 0.0, "b": 0.0}))[0] == 0, "Serve holds it to the least"
    assert replicas_for_requests(context({}))[0] == 2, "replicas that have not reported yet are not idle"
    assert replicas_for_requests(context({}, queued=4.0, now=0))[0] == 1


def test_metrics_of_replicas_become_one_text_with_a_label() -> None:
    text = '# HELP pocketvlm:x_total X.\n# TYPE pocketvlm:x_total counter\npocketvlm:x_total{a="1"} %d\n'
    found = merged([("one", text % 1), ("two", text % 2)]).decode()
    assert found.count("# TYPE pocketvlm:x_total counter") == 1
    assert 'pocketvlm:x_total{a="1",replica="one"} 1.0' in found
    assert 'pocketvlm:x_total{a="1",replica="two"} 2.0' in found
