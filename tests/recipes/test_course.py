"""The curriculum: its stages follow each other, whoever draws ahead; and the rate until the end of a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pocketvlm.processing.prompt.tokenizer import Tokenizer
from pocketvlm.training.checkpoints import Progress
from recipes.nano.course import LAG, Course, Length
from recipes.nano.curriculum import CURRICULUM, SEES, Share, Stage, scaled, stage_number
from recipes.nano.data import Collator
from recipes.nano.feed import GeneratedFeed
from recipes.nano.mix import factors
from recipes.nano.muon import orthogonalise
from recipes.nano.settings import ASSETS, IMAGE

TOKENIZER = Tokenizer.from_directory(ASSETS)
COLLATE = Collator(TOKENIZER, IMAGE)
WORDS = (Share("words", 0, 1.0),)
SHORT = (Stage("first", WORDS, 100, alone=2),)


def test_the_rate_falls_to_zero_and_the_run_ends_there() -> None:
    length = Length(Course(SHORT), 100)
    assert length.share(Progress(step=10**6, seconds=1e6)) == 0.0
    length.cooldown = (200, 500)
    assert length.factor(Progress(step=300)) == pytest.approx(2 / 3)
    assert length.factor(Progress(step=200)) < 0.05  # a cool-down may begin at once: then it warms up first
    assert length.factor(Progress(step=500)) == 0.0
    assert length.share(Progress(step=499)) < 1.0 == length.share(Progress(step=500))
    again = Length(Course(SHORT), 100)
    again.restore(json.loads(json.dumps(length.state())))
    assert again.cooldown == length.cooldown
    length.cooldown, length.deadline = None, 100.0
    assert length.factor(Progress(step=300, seconds=75.0)) == pytest.approx(0.25)
    assert length.share(Progress(step=300, seconds=75.0)) == 0.75
    assert length.share(Progress(step=300, seconds=101.0)) == 1.0


def test_each_stage_has_its_share_of_the_rate() -> None:
    course = Course((Stage("first", WORDS, 100), Stage("second", WORDS, 100, rate=0.25)))
    length = Length(course, 10)
    course.next = (50, 1)
    assert length.factor(Progress(step=4)) == pytest.approx(0.5)
    assert [length.factor(Progress(step=step)) for step in (49, 50)] == [1.0, 0.25]
    length.cooldown = (60, 100)
    assert length.factor(Progress(step=80)) == pytest.approx(0.125)


@given(asked=st.lists(st.integers(0, 400), max_size=6).map(sorted))
def test_stages_follow_each_other_in_order_and_late_enough(asked: list[int]) -> None:
    schedule = Course(SHORT * 3)
    drawn = schedule.numbers(0)
    ahead: list[tuple[int, int, Any]] = []
    seen = []
    for step in range(500):
        while len(ahead) < LAG:  # workers have drawn everything that they may
            ahead.append(next(drawn))
        schedule.arrive(step)
        number, stage, _ = ahead.pop(0)
        assert (number, stage) == (step, schedule.stage_at(step))
        seen.append(stage)
        if step in asked:
            schedule.ask(step)
    assert seen == sorted(seen)
    assert max(seen) <= min(2, len(asked))


def test_a_mix_begins_late_enough_and_survives_an_interruption() -> None:
    course = Course(SHORT)
    course.change_mix(10, {"words": 0.5})
    course.change_mix(100, {"words": 1.5})
    again = Course(SHORT)
    again.restore(json.loads(json.dumps(course.state())))
    for one in (course, again):
        mixes = [next(one.numbers(step))[2] for step in (9 + LAG, 10 + LAG, 99 + LAG, 100 + LAG)]
        assert mixes == [{}, {"words": 0.5}, {"words": 0.5}, {"words": 1.5}]


def test_a_mix_changes_what_the_decoder_sees_and_nothing_else() -> None:
    both = (Share("words", 0, 0.5), Share("shapes", 0, 0.5))
    stage = Stage("both", both, 4000, alone=2)
    drawn = [COLLATE(stage, (1,), step=step, mix={"words": 0.0}).tasks for step in (0, 1)]
    assert set(drawn[0]) == {"shapes"}
    assert set(drawn[1]) == {"shapes", "words"}


def test_what_is_weakest_has_the_largest_share() -> None:
    assert factors({"words": 1.0, "form": 0.0, "chart": 0.25}) == {"chart": 1.25, "form": 1.5, "words": 0.5}


def test_workers_draw_what_the_trainer_would() -> None:
    begun: list[int] = []

    def feed(workers: int) -> Iterator[Any]:
        course = Course((Stage("words", WORDS, 60),))
        return GeneratedFeed(COLLATE, course, 3, workers, lambda _stage, step: begun.append(step)).steps(0, 5, 1, 0, 1)

    for [(a,)], [(b,)] in zip(feed(0), feed(2), strict=True):
        assert torch.equal(a.patches, b.patches)
        assert torch.equal(a.input_ids, b.input_ids)
    assert begun == [0, 0]
    with pytest.raises(ValueError, match="steps ahead"):
        next(feed(24))


def test_muon_makes_singular_values_nearly_equal() -> None:
    for shape in ((8, 30), (30, 8), (16, 16)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape, generator=torch.Generator().manual_seed(0))))
        assert 0.3 < values.min() <= values.max() < 1.3


def test_the_tower_learns_first_and_at_both_rates() -> None:
    assert all(0 < s.rates.all_4x < s.rates.all_4x + s.rates.all_16x < 1 for s in CURRICULUM)
    alone = [s.alone == 1 for s in CURRICULUM]
    assert alone == sorted(alone, reverse=True)
    assert all(("decoder" in s.learns) is (s.alone != 1) for s in CURRICULUM)
    assert CURRICULUM[stage_number("print")].learns == SEES
    for stage, twice in zip(CURRICULUM, scaled(CURRICULUM, 2), strict=True):
        assert [stage.patches_at(step) * 2 for step in range(6)] == [twice.patches_at(step) for step in range(6)]
    reading = CURRICULUM[stage_number("reading aloud")]
    assert [reading.has_language(step) for step in range(8)] == [*[True] * 3, False] * 2
    assert [reading.patches_at(step) for step in range(4)] == [reading.patches] * 3 + [reading.between_patches]
    assert [reading.rate_at(step) for step in range(4)] == [reading.rate] * 3 + [reading.alone_rate]
    assert [CURRICULUM[0].rate_at(step) for step in range(5)] == [CURRICULUM[0].rate] * 5
    assert not CURRICULUM[-1].mark
