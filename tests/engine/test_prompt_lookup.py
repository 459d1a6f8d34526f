"""Drafts change how many steps an answer takes, never the answer; whatever was drafted, the states are right after."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.engine_runs import drive, make_request
from helpers.tiny_models import prompt_with_views, random_patches, view
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketvlm.bundle import PRESETS
from pocketvlm.engine.engine import Engine
from pocketvlm.engine.request import Output, Request
from pocketvlm.engine.runners.base import Runner
from pocketvlm.engine.runners.onnx_runner import ONNXRunner
from pocketvlm.engine.runners.torch_runner import TorchRunner
from pocketvlm.engine.sampling.params import SamplingParams
from pocketvlm.engine.sampling.prompt_lookup import PromptLookup
from pocketvlm.errors import ConfigError
from pocketvlm.export.onnx.bundle import write_bundle
from pocketvlm.model.checkpoint import load_model

TOKENS = 20


@pytest.fixture(scope="module", params=["torch", "onnx"])
def runner(
    request: pytest.FixtureRequest, seeded_checkpoint: Callable[[int], Path], tmp_path_factory: pytest.TempPathFactory
) -> Runner:
    checkpoint = seeded_checkpoint(0)
    if request.param == "torch":
        return TorchRunner(load_model(checkpoint))
    out = tmp_path_factory.mktemp("bundles") / "none"
    write_bundle(checkpoint, out, PRESETS["none"])
    return ONNXRunner(out, threads=1)


def ask(runner: Runner, prompt: int, lookup: int, **options: Any) -> Request:
    views = [view(8, 8)]
    ids = prompt_with_views(views, before=4, after=20, seed=prompt, pad=runner.config.image_token_id)
    params = SamplingParams(**{"temperature": 0, "max_tokens": TOKENS, "prompt_lookup_num_tokens": lookup, **options})
    return make_request(runner, ids, params, frozenset(), random_patches(views, prompt), views)


def run(runner: Runner, request: Request, stop_at: int = 10**6) -> list[int]:
    """Its tokens; its reader ends it at the first `stop_at`."""
    engine = Engine(runner)
    engine.add(request)
    read = list[int]()

    def reader(output: Output) -> None:
        if stop_at not in read:
            read.extend(output.tokens)
        if stop_at in output.tokens:
            engine.finish(request, 0)

    drive(engine, reader)
    return read


class Counted:
    """How many forwards the decoder ran."""

    def __init__(self, runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
        self.forwards, real = 0, type(runner).forward

        def forward(*args: Any) -> Any:
            self.forwards += 1
            return real(*args)

        monkeypatch.setattr(type(runner), "forward", forward)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 9),
    most=st.integers(1, 8),
    wrong=st.lists(st.booleans(), min_size=TOKENS, max_size=TOKENS),
    options=st.sampled_from([{}, {"repetition_penalty": 1.3}, {"temperature": 1.0, "seed": 5}]),
)
def test_drafts_right_and_wrong_in_any_places(
    runner: Runner, seed: int, most: int, wrong: list[bool], options: dict[str, Any]
) -> None:
    expected = run(runner, ask(runner, seed, 0, **options))
    prompt = len(ask(runner, seed, 0).input_ids)

    def draft(lookup: PromptLookup, room: int) -> list[int]:
        done = len(lookup.ids) - prompt
        coming = [(token + bad) % 250 for token, bad in zip(expected, wrong, strict=True)]
        return [] if len(lookup.pending) > 1 else coming[done : done + min(room, most)]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(PromptLookup, "draft", draft)
        assert run(runner, ask(runner, seed, most, **options)) == expected


def test_right_drafts_save_forwards(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, prompt = run(runner, ask(runner, 3, 0)), len(ask(runner, 3, 0).input_ids)
    counted = Counted(runner, monkeypatch)
    monkeypatch.setattr(
        PromptLookup, "draft", lambda self, room: expected[len(self.ids) - prompt :][: min(room, self.max_tokens)]
    )
    assert run(runner, ask(runner, 3, 4)) == expected
    assert counted.forwards == 1 + -(-(TOKENS - 1) // 5)  # the prompt, and five tokens a step


def test_true_look_ups_leave_answers_as_they_are(runner: Runner) -> None:
    for seed in range(5):
        assert run(runner, ask(runner, seed, 6)) == run(runner, ask(runner, seed, 0))


def test_a_reader_may_end_it_in_the_middle_of_a_draft(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, prompt = run(runner, ask(runner, 1, 0)), len(ask(runner, 1, 0).input_ids)
    end = next(i for i in range(6, TOKENS) if expected[i] not in expected[:i])
    monkeypatch.setattr(PromptLookup, "draft", lambda self, room: expected[len(self.ids) - prompt :][: min(room, 8)])
    assert run(runner, ask(runner, 1, 8), stop_at=expected[end]) == expected[: end + 1]


@pytest.mark.parametrize(
    ("history", "most", "found"),
    [
        ([1, 2, 3, 4, 5, 1, 2, 3], 2, [4, 5]),
        ([1, 2, 3, 4, 9, 2, 3, 7, 8, 1, 2, 3], 9, [4, 9, 2, 3, 7, 8, 1, 2, 3]),  # three before two, however far back
        ([5, 6, 7, 0, 6, 7], 3, [0, 6, 7]),
        ([6, 7, 1, 6, 7, 2, 6, 7], 1, [2]),  # the last time, not the first
        ([4, 4, 4], 2, [4]),
        ([1, 2, 3], 4, []),
        ([1], 4, []),
        ([1, 2, 1, 2], 0, []),
    ],
)
def test_what_followed_the_same_tokens(history: list[int], most: int, found: list[int]) -> None:
    lookup = PromptLookup(history[:-1], 9)
    lookup.add(history[-1])
    assert lookup.draft(most) == found
    lookup.pending.insert(0, 1)  # a draft failed before
    assert lookup.draft(most) == []


def test_company_ends_looking_ahead_and_changes_nothing(runner: Runner) -> None:
    expected = [run(runner, ask(runner, seed, 0)) for seed in range(3)]
    for arrives in range(0, TOKENS, 3):
        engine, first, others = Engine(runner), ask(runner, 0, 6), [ask(runner, 1, 6), ask(runner, 2, 0)]
        engine.add(first)
        seen = list[Output]()

        def company(output: Output) -> None:
            seen.append(output)  # noqa: B023
            if len(seen) == arrives + 1:  # noqa: B023  # called within this round only
                for other in others:  # noqa: B023
                    engine.add(other)  # noqa: B023

        told = drive(engine, company)
        assert [told[one][0] for one in (first, *others)] == expected


def test_for_answers_without_beams() -> None:
    for options in ({"num_beams": 2, "temperature": 0}, {}):
        with pytest.raises(ConfigError, match="prompt_lookup_num_tokens"):
            SamplingParams(prompt_lookup_num_tokens=5 if options else -1, **options)
