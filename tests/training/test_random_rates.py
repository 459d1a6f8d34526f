"""16x or 4x at random for each view of what is learnt."""

from __future__ import annotations

import json
from pathlib import Path

from helpers.app import png
from helpers.training import picture

from pocketvlm.model.hub import resolve
from pocketvlm.processing.processor import Processor
from pocketvlm.training.data.dataset import open_datasets
from pocketvlm.training.data.sample import Sample
from pocketvlm.training.examples import Example, ExampleEncoder
from pocketvlm.training.feed import Feed

SAMPLE = Sample(
    [
        {"role": "user", "content": [picture(900, 1300), picture(448, 448), {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "Noise."},
    ],
    "noise.jsonl:1",
)


def encoder(mode: str) -> ExampleEncoder:
    return ExampleEncoder(Processor.from_directory(resolve("nano").path), options={"downsample_mode": mode})


def rates(example: Example) -> list[str]:
    return [view.downsample_mode for view in example.views]


def test_each_view_has_a_rate_of_its_own_which_changes_from_time_to_time() -> None:
    one, plain = encoder("random"), encoder("16x")(SAMPLE)
    draws = [one(SAMPLE, draw) for draw in range(12)]
    assert all(len(example.views) == len(plain.views) for example in draws)
    assert rates(draws[3]) == rates(one(SAMPLE, 3))
    assert len({tuple(rates(example)) for example in draws}) > 8
    for place in range(len(plain.views)):
        assert {rates(example)[place] for example in draws} == {"16x", "4x"}
    pads = encoder("16x").processor.model_config.image_token_id
    for example in draws:
        visual = sum(view.visual_tokens for view in example.views)
        assert int((example.input_ids == pads).sum()) == visual
        assert len(example.patches) == sum(view.patches for view in example.views)
        assert example.learnt == plain.learnt


def test_a_feed_draws_anew_every_time_that_it_shows_a_sample() -> None:
    feed = Feed([SAMPLE], encoder("random"), pairs=False, seed=0)
    first = [found for step in feed.steps(0, 6, 1, 0, 1) for found in step]
    again = [found for step in feed.steps(2, 4, 1, 0, 1) for found in step]
    shown = [rates(found[0]) for found in first if isinstance(found, tuple)]
    assert len(shown) == 6
    assert len({tuple(one) for one in shown}) > 3
    assert [rates(found[0]) for found in again if isinstance(found, tuple)] == shown[2:]  # as the run that was stopped


def test_both_answers_of_a_preference_see_the_same() -> None:
    pair = Sample(SAMPLE.messages, SAMPLE.source, rejected="A cat.")
    for draw in range(4):
        better, worse = encoder("random").pair(pair, draw)
        assert rates(better) == rates(worse)


def test_a_sample_may_ask_for_rates_at_random_by_itself(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(900, 1300, 0))
    row = {"query": "What?", "response": "Noise.", "image": "a.png", "downsample_mode": "random"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row), encoding="utf-8")
    one, sample = encoder("16x"), open_datasets([tmp_path / "a.jsonl"])[0]
    assert {rate for draw in range(8) for rate in rates(one(sample, draw))} == {"16x", "4x"}
