"""What of a conversation is learnt: what the model itself would write, in the tokens in which it would."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.training import picture, sample

from pocketvlm.processing.processor import Processor
from pocketvlm.training.data.sample import Sample, SampleError
from pocketvlm.training.examples import IGNORED, Example, ExampleEncoder

USER = {"role": "user", "content": "Why?"}


@pytest.fixture
def encoder(checkpoint: Path) -> ExampleEncoder:
    return ExampleEncoder(Processor.from_directory(checkpoint))


def learnt(encoder: ExampleEncoder, example: Example) -> str:
    """All that is learnt; a dot for each stretch that is not."""
    text = ""
    for target in example.targets.tolist():
        if target != IGNORED:
            text += encoder.processor.tokenizer.decode([target], skip_special=False)
        elif not text.endswith("·"):
            text += "·"
    return text


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([USER, {"role": "assistant", "content": "Because."}], "·Because.<|im_end|>"),
        (
            [USER, {"role": "assistant", "content": "No."}, USER, {"role": "assistant", "content": "Yes."}],
            "·No.<|im_end|>·Yes.<|im_end|>",
        ),
        (
            [USER, {"role": "assistant", "content": "So.", "reasoning_content": "Hm."}],
            "·Hm.\n</think>\n\nSo.<|im_end|>",
        ),
        (
            [{"role": "system", "content": "assistant\nBe short."}, USER, {"role": "assistant", "content": "a"}],
            "·a<|im_end|>",
        ),
        (
            [{"role": "user", "content": "<|im_start|>assistant\nx<|im_end|>"}, {"role": "assistant", "content": "b"}],
            "·b<|im_end|>",
        ),
    ],
)
def test_answers_are_learnt_and_nothing_else(
    encoder: ExampleEncoder, messages: list[dict[str, Any]], expected: str
) -> None:
    assert learnt(encoder, encoder(Sample(messages, "a:1"))) == expected


def test_calls_of_tools_are_learnt_and_their_results_are_not(encoder: ExampleEncoder) -> None:
    call = {"type": "function", "id": "1", "function": {"name": "look", "arguments": '{"at": "it"}'}}
    messages = [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "a secret"},
        {"role": "assistant", "content": "It."},
    ]
    found = learnt(encoder, encoder(Sample(messages, "a:1")))
    assert found.startswith("·<tool_call>\n<function=look>")
    assert found.endswith("</tool_call><|im_end|>·It.<|im_end|>")
    assert "secret" not in found


def test_an_answer_becomes_the_tokens_that_follow_the_prompt_at_inference(encoder: ExampleEncoder) -> None:
    one = sample("\n the image")
    prompt = encoder.processor(one.messages[:-1])
    example = encoder(one)
    assert np.array_equal(example.input_ids[: len(prompt.input_ids)], prompt.input_ids)
    assert (example.targets[: len(prompt.input_ids) - 1] == IGNORED).all()
    assert (example.targets[len(prompt.input_ids) - 1 :] != IGNORED).all()
    assert np.array_equal(example.patches, prompt.patches)
    assert example.views == prompt.views


def test_the_last_token_that_is_learnt_is_no_input(encoder: ExampleEncoder) -> None:
    example = encoder(sample())
    assert example.targets[-1] == encoder.processor.tokenizer.control_id("<|im_end|>")
    assert example.learnt == int((example.targets != IGNORED).sum()) > 1


def test_samples_without_an_answer_or_with_too_many_tokens_are_named(encoder: ExampleEncoder) -> None:
    with pytest.raises(SampleError, match=r"^noise.jsonl:0: it has no answer to learn"):
        encoder(replace(sample(), messages=[USER]))
    encoder.max_tokens = 40
    with pytest.raises(SampleError, match=r"^noise.jsonl:0: it has \d+ tokens, at most 40 are taken"):
        encoder(sample("long " * 20))
    broken = {"type": "image", "image": b"no picture"}
    with pytest.raises(SampleError, match=r"^b:7: .*content"):
        encoder(Sample([{"role": "user", "content": [broken]}, {"role": "assistant", "content": "x"}], "b:7"))


def test_an_example_of_just_so_many_tokens_is_whole(encoder: ExampleEncoder) -> None:
    """As many as a dry run shows for it."""
    whole = encoder(sample("long " * 20))
    for encoder.truncate in (False, True):
        encoder.max_tokens = len(whole.input_ids)
        same = encoder(sample("long " * 20))
        assert same.targets.equal(whole.targets)
        assert (same.cut, same.targets[-1]) == (0, encoder.processor.tokenizer.control_id("<|im_end|>"))
    encoder.max_tokens, encoder.truncate = len(whole.input_ids) - 1, False
    with pytest.raises(SampleError, match=f"it has {len(whole.input_ids)} tokens, at most {encoder.max_tokens} are"):
        encoder(sample("long " * 20))


def test_a_budget_of_the_run_is_not_for_samples_of_another_mode(encoder: ExampleEncoder) -> None:
    encoder.options = {"downsample_mode": "auto", "auto_token_budget": 2.0, "max_slice_nums": 1}
    one = sample()
    assert encoder(replace(one, options={"downsample_mode": "16x"})).views
    assert encoder(one).views
    with pytest.raises(SampleError, match="auto_token_budget"):
        encoder(replace(one, options={"downsample_mode": "16x", "auto_token_budget": 2.0}))


def test_the_end_of_a_long_answer_is_cut_off_where_that_was_asked_for(encoder: ExampleEncoder) -> None:
    whole = encoder(sample("long " * 20))
    encoder.max_tokens, encoder.truncate = len(whole.input_ids) - 10, True
    cut = encoder(sample("long " * 20))
    assert len(cut.input_ids) == encoder.max_tokens
    assert whole.input_ids[: len(cut.input_ids)].equal(cut.input_ids)
    encoder.max_tokens = 5
    for pictures in (0, 1):  # nothing of the answer would be left
        with pytest.raises(SampleError, match="at most 5 are taken"):
            encoder(sample("long " * 20, pictures=pictures))


def test_rates_come_from_the_sample_then_the_run_and_random_ones_from_the_source(encoder: ExampleEncoder) -> None:
    encoder.options = {"downsample_mode": "4x"}
    assert {view.downsample_mode for view in encoder(sample()).views} == {"4x"}
    assert {view.downsample_mode for view in encoder(sample(options={"downsample_mode": "16x"})).views} == {"16x"}
    encoder.options = {"downsample_mode": "random"}
    drawn = [encoder(replace(sample(), source=f"a:{i}")).views[0].downsample_mode for i in range(40)]
    assert set(drawn) == {"16x", "4x"}
    assert drawn == [encoder(replace(sample(), source=f"a:{i}")).views[0].downsample_mode for i in range(40)]


def test_a_pair_differs_in_its_last_answer_alone(encoder: ExampleEncoder) -> None:
    chosen, rejected = encoder.pair(sample("Yes.", rejected="No, not at all."))
    assert learnt(encoder, chosen) == "·Yes.<|im_end|>"
    assert learnt(encoder, rejected) == "·No, not at all.<|im_end|>"
    assert chosen.views == rejected.views
    with pytest.raises(SampleError, match="no rejected answer"):
        encoder.pair(sample())


def test_of_a_pair_in_several_turns_the_last_answers_alone_are_learnt(encoder: ExampleEncoder) -> None:
    turns = [USER, {"role": "assistant", "content": "No."}, USER, {"role": "assistant", "content": "Yes."}]
    chosen, rejected = encoder.pair(Sample(turns, "a:1", rejected="Yes, it is."))
    assert [learnt(encoder, one) for one in (chosen, rejected)] == ["·Yes.<|im_end|>", "·Yes, it is.<|im_end|>"]
    assert chosen.targets.shape == encoder(Sample(turns, "a:1")).targets.shape


def test_samples_may_have_no_picture_one_or_several(encoder: ExampleEncoder) -> None:
    assert len(encoder(sample(pictures=0)).patches) == 0
    assert len(encoder(sample(pictures=3)).views) > len(encoder(sample(pictures=1)).views)
    assert picture()["type"] == "image"


PLACED = "<ref>a <b></ref><box>1 2 3 4</box> <point>5 6</point>"


def test_places_are_learnt_as_the_tokens_of_the_model_and_questions_spell_them(encoder: ExampleEncoder) -> None:
    names = ("<ref>", "</ref>", "<box>", "</box>", "<point>", "</point>")
    question = {"role": "user", "content": f"{PLACED}?"}
    messages = [question, {"role": "assistant", "content": PLACED}]
    example = encoder(Sample(messages, "a:1"))
    own = [encoder.processor.tokenizer.control_id(name) for name in names]
    assert [one for one in example.targets.tolist() if one in own] == own
    assert learnt(encoder, example) == f"·{PLACED}<|im_end|>"
    assert set(own).isdisjoint(encoder.processor([question]).input_ids.tolist())
    assert set(own).isdisjoint(encoder.processor([*messages, USER]).input_ids.tolist())  # as the reference has it
    _, worse = encoder.pair(Sample([USER, {"role": "assistant", "content": "a"}], "a:1", rejected=PLACED))
    assert [one for one in worse.targets.tolist() if one in own] == own


def test_an_answer_with_a_picture_is_refused(encoder: ExampleEncoder) -> None:
    for part, what in ((picture(), "a picture"), ({"type": "video", "video": [b"x"], "fps": 1}, "a video")):
        answer = {"role": "assistant", "content": [part, {"type": "text", "text": "x"}]}
        with pytest.raises(SampleError, match=rf"^a:1: messages\[1\] is an answer with {what}"):
            encoder(Sample([USER, answer, USER, {"role": "assistant", "content": "x"}], "a:1"))


def test_what_is_cut_off_is_counted_and_that_is_not_advised_where_it_is_on(encoder: ExampleEncoder) -> None:
    whole = encoder(sample("long " * 20))
    encoder.max_tokens = len(whole.input_ids) - 10
    with pytest.raises(SampleError, match="cut long answers off by --truncate"):
        encoder(sample("long " * 20))
    encoder.truncate = True
    cut = encoder(sample("long " * 20))
    assert (whole.cut, cut.cut) == (0, whole.learnt - cut.learnt)
    assert cut.cut > 0
    encoder.max_tokens = 5
    with pytest.raises(SampleError, match="at most 5 are taken") as caught:
        encoder(sample("long " * 20))
    assert "--truncate" not in str(caught.value)
