"""Replicas of `pocketvlm serve --ray` come with the requests and go with them, and no request is lost by that."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("ray.serve", reason="needs the extra ray")
pytest.importorskip("openai")
if not sys.platform.startswith("linux"):
    pytest.skip("reads the processes of Linux", allow_module_level=True)

from helpers.replicas import RUNNING, eventually, load, own_ray, replicas_of

# Serve averages what the replicas report over half a minute: so long each change takes.
QUICK = ("--min-replicas", "1", "--max-replicas", "2", "--target-requests", "2")
QUICK += ("--upscale-seconds", "0", "--downscale-seconds", "1")


def test_the_number_of_replicas_follows_the_requests() -> None:
    with own_ray() as environment, replicas_of(environment, *QUICK) as fleet:
        assert len(fleet.replicas()) == 1
        with load(fleet.serving.url, 1, 30) as few:
            with load(fleet.serving.url, 6, 30) as many:
                assert eventually(lambda: len(fleet.metric(RUNNING)) == 2, 300)
                before = sum(many.seen.values())
                assert eventually(lambda: sum(many.seen.values()) >= before + 12)
            assert eventually(lambda: len(fleet.metric(RUNNING)) == 1, 300)
        assert eventually(lambda: len(fleet.replicas()) == 1)
        assert fleet.chat("Is one still there?")[0] == 200
    for found in (few, many):
        assert set(found.seen) == {"whole", "stream"}, (found.seen, found.faults)
