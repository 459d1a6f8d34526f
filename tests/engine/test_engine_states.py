"""Any order of arrivals, steps, aborts and pre-emptions, any cache: each answer is the one its request gets alone, and
in the end nothing is held.

`POCKETVLM_RUNS=2000 pytest tests/engine/test_engine_states.py -s` runs it for longer and counts the ties.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from helpers.engine_runs import LAYOUTS, drive, limit_cache, make_request, run, torch_runner
from helpers.invariants import prefill
from helpers.tiny_models import random_patches, random_text, tiny_model, view
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pocketvlm.engine.config import EngineConfig
from pocketvlm.engine.engine import Engine
from pocketvlm.engine.request import Request
from pocketvlm.engine.runners.torch_runner import TorchRunner
from pocketvlm.engine.sampling.params import SamplingParams
from pocketvlm.views import View

RUNS = int(os.environ.get("POCKETVLM_RUNS", "40"))
TIE = 1e-4  # of the largest score: two orders of the same fp32 sums
PICTURES = (view(8, 8), view(8, 12, "4x"), view(4, 8))
counted = {"answers": 0, "ties": 0, "preemptions": 0, "prefix hits": 0, "aborted": 0}


@cache
def runner(layout: str = "contiguous") -> TorchRunner:
    return torch_runner(tiny_model(0), layout)


@dataclass(frozen=True)
class Asked:
    """A request in words that can be repeated: few prefixes and pictures, so that caches have something to find."""

    system: int
    pictures: tuple[int, ...]
    question: int
    length: int
    tokens: int
    beams: int
    n: int
    penalty: float
    priority: int = 0

    def make(self) -> Request:
        ids, points, views = random_text(12 + 20 * (self.system % 2), self.system), list[int](), list[View]()
        points.append(len(ids))
        for picture in self.pictures:
            ids += [runner().config.image_token_id] * PICTURES[picture].visual_tokens + [7]
            views.append(PICTURES[picture])
            points.append(len(ids))
        ids += random_text(self.length, self.question)
        patches = [random_patches([PICTURES[p]], p) for p in self.pictures]
        params = SamplingParams(
            temperature=0, max_tokens=self.tokens, num_beams=self.beams, n=self.n, repetition_penalty=self.penalty
        )
        return make_request(
            runner(),
            ids,
            params,
            frozenset(range(0, 250, 50)),
            torch.cat(patches) if patches else None,
            views,
            branch_points=tuple(points),
            priority=self.priority,
        )


ASKED = st.builds(
    Asked,
    system=st.integers(0, 2),
    pictures=st.lists(st.integers(0, 2), max_size=2).map(tuple),
    question=st.integers(0, 5),
    length=st.integers(1, 60),
    tokens=st.integers(1, 24),
    beams=st.just(1),
    n=st.sampled_from([1, 1, 1, 2]),
    penalty=st.sampled_from([1.0, 1.0, 1.2]),
    priority=st.integers(-1, 1),
) | st.builds(
    Asked,
    system=st.integers(0, 2),
    pictures=st.just(()),
    question=st.integers(0, 5),
    length=st.integers(1, 20),
    tokens=st.integers(1, 6),
    beams=st.just(2),
    n=st.just(1),
    penalty=st.just(1.0),
)


@cache
def alone(asked: Asked) -> tuple[int, ...]:
    (answer,) = run(runner(), [asked.make()], prefix_cache_memory=0)
    return tuple(answer)


def is_tie(asked: Asked, told: list[int], expected: tuple[int, ...]) -> bool:
    """Whether the first difference is between two scores that lie within rounding of each other."""
    at = next(
        (i for i, (a, b) in enumerate(zip(told, expected, strict=False)) if a != b), min(len(told), len(expected))
    )
    request, model = asked.make(), runner().model
    features = model.encode_views(request.patches, request.views) if request.patches is not None else None
    scores = prefill(model, [*request.input_ids.tolist(), *expected[:at]], features)[-1]
    best = scores.topk(2).values
    return bool(best[0] - best[1] <= TIE * scores.abs().max())


class AnyOrder(RuleBasedStateMachine):
    @initialize(
        slots=st.integers(2, 4),
        tokens=st.sampled_from([260, 400, 4000]),
        chunk=st.sampled_from([7, 40, 256]),
        prefixes=st.sampled_from([0, 300_000, 10**8]),
        features=st.sampled_from([0, 10_000, 10**7]),
        layout=st.sampled_from(LAYOUTS),
    )
    def begin(self, slots: int, tokens: int, chunk: int, prefixes: int, features: int, layout: str) -> None:
        config = EngineConfig(
            max_num_seqs=slots,
            max_num_batched_tokens=chunk,
            prefix_cache_memory=prefixes,
            encoder_cache_memory=features,
        )
        self.engine = Engine(runner(layout), config)
        limit_cache(self.engine, tokens)
        self.asked: dict[Request, Asked] = {}
        self.told: dict[Request, list[list[int]]] = {}
        self.aborted: set[Request] = set()

    @rule(asked=ASKED)
    def arrive(self, asked: Asked) -> None:
        request = asked.make()
        self.engine.add(request)
        self.asked[request] = asked
        self.told[request] = [[] for _ in range(asked.n)]

    @rule(steps=st.integers(1, 6))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            for output in self.engine.step():
                assert output.error is None, output.error
                self.told[output.request][output.index] += output.tokens
            self.engine.check_integrity()

    @rule(which=st.integers(0, 99))
    def abort(self, which: int) -> None:
        running = [request for request in self.asked if not request.is_finished]
        if running:
            self.aborted.add(running[which % len(running)])
            self.engine.abort(running[which % len(running)])

    @invariant()
    def counts_agree(self) -> None:
        if hasattr(self, "engine"):
            self.engine.check_integrity()

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        for request, choices in drive(self.engine).items():
            for index, tokens in enumerate(choices):
                self.told[request][index] += tokens
        for request, asked in self.asked.items():
            if request in self.aborted:
                counted["aborted"] += 1
                continue
            assert request.is_finished
            for told in self.told[request]:
                counted["answers"] += 1
                if tuple(told) != alone(asked):
                    assert asked.beams == 1, (told, alone(asked))
                    assert is_tie(asked, told, alone(asked)), (asked, told, alone(asked))
                    counted["ties"] += 1
        assert not self.engine.pool.sequences
        assert not self.engine.features.pins
        counted["preemptions"] += int(self.engine.metrics.value("num_preemptions_total"))
        counted["prefix hits"] += int(self.engine.metrics.value("prefix_cache_hits_total"))
        self.engine.prefixes.clear()
        self.engine.check_integrity()
        assert self.engine.pool.cache.blocks.used == 0


AnyOrder.TestCase.settings = settings(max_examples=RUNS, stateful_step_count=12, deadline=None)
TestAnyOrder = AnyOrder.TestCase


@pytest.fixture(scope="module", autouse=True)
def summary() -> Iterator[None]:
    yield
    print(f"\n{RUNS} runs: " + ", ".join(f"{count} {what}" for what, count in counted.items()))
    assert counted["answers"] > RUNS / 4
    assert counted["ties"] <= counted["answers"] / 100
