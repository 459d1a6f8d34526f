"""Batches of the recipe: the prompts of inference, every character once, and nothing passing between samples."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketvlm.processing.processor import Processor
from pocketvlm.processing.prompt.template import ChatTemplate
from pocketvlm.processing.prompt.tokenizer import Tokenizer
from pocketvlm.synthetic import Question, Sample, make_sample
from pocketvlm.synthetic.sample import CharacterBox
from recipes.nano.cells import (
    COLOUR_NAMES,
    KINDS,
    LONGEST,
    PARTS,
    SLOTS,
    UNKNOWN,
    CellReader,
    CellTargets,
    cell_targets,
    missed,
)
from recipes.nano.curriculum import CURRICULUM, Share, Stage
from recipes.nano.data import Collator, TrainingBatch
from recipes.nano.objective import CellsAndAnswers
from recipes.nano.run import new_learner
from recipes.nano.settings import ASSETS, IMAGE
from recipes.nano.views import EncodedPicture, Rates, encode_picture

TOKENIZER = Tokenizer.from_directory(ASSETS)
COLLATE = Collator(TOKENIZER, IMAGE)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def encoded(sample: Sample, mode: str | None) -> list[EncodedPicture]:
    slices = None if sample.fps is None else 1
    return [encode_picture(p, IMAGE, mode, rng(), 0.0, slices) for p in sample.images]  # type: ignore[arg-type]


def packed(sample: Sample, mode: str, questions: Sequence[Question]) -> TrainingBatch:
    return COLLATE.pack([(sample, encoded(sample, mode), questions)])


def of(*samples: Sample, fps: float | None = None) -> Sample:
    """Several pictures, or frames, in one sample."""
    pictures = tuple(s.image for s in samples)
    return Sample(pictures, samples[0].questions, "several", tuple(s.characters[0] for s in samples), fps)


def test_targets_hold_every_character_of_a_picture_once_and_its_neighbours_may() -> None:
    for mode in ("16x", "4x"):
        sample = make_sample("words", (1, 2), "train", 3)
        (picture,) = encoded(sample, mode)
        assert picture.plan.grid is None
        targets = cell_targets(sample.characters[0], (), picture.plan, 14)
        kept = sorted(targets.characters[(targets.characters > 0) & ~targets.optional].tolist())
        printed = sorted(ord(box.character) - 31 for box in sample.characters[0])
        assert kept == printed


def row_of(count: int, first: float = 0.0) -> list[CharacterBox]:
    """Characters from the left of a cell at 4x to its right."""
    places = np.linspace(first, 26, count).tolist()
    return [CharacterBox("a", x, 12.0, x + 1.0, 16.0) for x in places]


def test_a_cell_with_more_characters_than_are_asked_for_is_not_asked() -> None:
    picture = encode_picture(np.zeros((112, 112, 3), np.uint8), IMAGE, "4x", rng(), 1.0)
    crowded, full = (cell_targets(row_of(n), (), picture.plan, 14) for n in (SLOTS + 1, SLOTS))
    assert (crowded.characters[0] == UNKNOWN).all()
    assert full.characters[0, 0, :SLOTS].tolist() == [ord("a") - 31] * SLOTS
    reader, features = CellReader(8), torch.randn(len(full.characters), 8)
    first, others = (CellTargets(*(part[some] for part in crowded)) for some in (slice(1), slice(1, None)))
    expected = reader(features[1:], others)["characters"]
    torch.testing.assert_close(reader(features, crowded)["characters"], expected)
    assert reader(features[:1], first)["characters"] == 0


def test_a_cell_at_16x_is_asked_what_its_four_cells_at_4x_are() -> None:
    sample = make_sample("words", (1, 2), "train", 3)
    (picture,), (finer,) = encoded(sample, "16x"), encoded(sample, "4x")
    (view,) = picture.views
    rows, columns = view.size.height // 4, view.size.width // 4
    parts = cell_targets(sample.characters[0], (), picture.plan, 14).characters.view(rows, columns, 2, 2, LONGEST)
    cells = cell_targets(sample.characters[0], (), finer.plan, 14).characters[:, 0]
    assert parts.transpose(1, 2).reshape(cells.shape).equal(cells)


def test_what_stands_on_a_border_must_be_said_on_one_side_and_may_be_on_the_other() -> None:
    picture = encode_picture(np.zeros((112, 112, 3), np.uint8), IMAGE, "4x", rng(), 1.0)
    border = [CharacterBox("a", 26.0, 12.0, 29.0, 16.0), CharacterBox("b", 41.0, 12.0, 43.0, 16.0)]
    targets = cell_targets(border, (), picture.plan, 14)
    a, b = (ord(c) - 31 for c in "ab")
    assert targets.characters[0, 0, :2].tolist() == [a, 0]
    assert targets.characters[1, 0, :3].tolist() == [a, b, 0]
    assert targets.optional[:2, 0, :2].tolist() == [[False, False], [True, False]]


@settings(max_examples=30)
@given(data=st.data())
def test_the_loss_of_a_cell_adds_up_all_ways_to_leave_out_what_may_be(data: st.DataObject) -> None:
    count = data.draw(st.integers(0, 5))
    characters = data.draw(st.lists(st.integers(1, 3), min_size=count, max_size=count))
    optional = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
    said = torch.randn(SLOTS, 4, dtype=torch.double, generator=torch.Generator().manual_seed(count)).log_softmax(-1)
    expected = 0.0
    for kept in itertools.product(*((True, False) if may_lack else (True,) for may_lack in optional)):
        text = [one for one, is_kept in zip(characters, kept, strict=True) if is_kept]
        expected += float(sum(said[i, one] for i, one in enumerate([*text, 0])).exp())  # type: ignore[union-attr]
    filled = torch.tensor([[*characters, *[0] * (6 - count)]])
    left_out = torch.tensor([[*optional, *[False] * (6 - count)]])
    found = missed(said[None].requires_grad_(), filled, left_out)
    assert float(found.detach().exp().reciprocal()) == pytest.approx(expected)
    found.sum().backward()


@pytest.mark.parametrize("mode", ["4x", "16x", None])
def test_slices_of_a_picture_see_its_characters_too(mode: str | None) -> None:
    sample = make_sample("receipt", (3, 1), "train", 1)
    (picture,) = encoded(sample, mode)
    assert picture.plan.grid is not None
    targets = cell_targets(sample.characters[0], (), picture.plan, 14)
    assert len(targets.characters) == sum(view.visual_tokens for view in picture.views)
    slices = ((targets.characters > 0) & ~targets.optional)[picture.views[0].visual_tokens :]
    assert slices.sum() >= 0.75 * len(sample.characters[0])


@pytest.mark.parametrize("mode", ["4x", "16x"])
@pytest.mark.parametrize("task", ["shapes", "screen", "chart", "pair", "clip"])
def test_the_overview_tells_every_object_and_where_it_ends(task: str, mode: str) -> None:
    for seed in range(8):
        sample = make_sample(task, (4, seed), "train", 0)
        for picture, boxes in zip(encoded(sample, mode), sample.objects, strict=True):
            targets = cell_targets((), boxes, picture.plan, 14).objects
            height, width = picture.plan.image.height, picture.plan.image.width
            said = {tuple(row) for row in targets.tolist() if row[0] > 0}
            for box in boxes if mode == "4x" else ():  # at 16x a small one may share its only cell with another
                edges = (box.left / width, box.top / height, box.right / width, box.bottom / height)
                row = (KINDS.index(box.kind), COLOUR_NAMES.index(box.colour), *(round(100 * e) for e in edges))
                assert row in said or min(box.right - box.left, box.bottom - box.top) < 14, box
            assert len(said) <= len(boxes)
            assert (targets[:, 0] == UNKNOWN).all() == (not boxes)


def test_the_towers_tokens_are_asked_in_the_order_of_the_views_whatever_their_rates() -> None:
    learner = new_learner(0)
    drawn = [(make_sample("receipt", (3, i), "train", 0), mode) for i, mode in enumerate(("4x", "16x", "4x"))]

    def loss(*some: tuple[Sample, str]) -> tuple[float, int]:
        batch = COLLATE.pack(
            [(sample, encoded(sample, mode), sample.questions[:1]) for sample, mode in some], (), False
        )
        with torch.no_grad():
            parts, _, _ = CellsAndAnswers.parts(learner, batch)
        return float(parts["parts"]), len(batch.parts.compressed)

    together, _ = loss(*drawn)
    fine, coarse = loss(drawn[0], drawn[2]), loss(drawn[1])
    expected = (fine[0] * fine[1] + coarse[0] * coarse[1]) / (fine[1] + coarse[1])
    assert together == pytest.approx(expected, rel=1e-4)


def test_slices_tell_objects_but_not_where_they_end() -> None:
    sample = make_sample("shapes", (1, 1), "train", 2)
    (picture,) = encoded(sample, "4x")
    assert picture.plan.grid is not None
    targets = cell_targets((), sample.objects[0], picture.plan, 14).objects
    slices = targets[picture.views[0].visual_tokens :]
    assert (slices[:, 0] > 0).any()
    assert (slices[:, 2:] == UNKNOWN).all()


def test_cells_of_pictures_without_objects_do_not_count() -> None:
    reader, features = CellReader(8), torch.randn(6, 8)
    nothing, fine = torch.zeros(6, PARTS, LONGEST, dtype=torch.long), torch.zeros(6, dtype=torch.bool)
    never = nothing > 0
    unknown = torch.full((6, 6), UNKNOWN)
    assert reader(features, CellTargets(nothing, never, fine, unknown))["objects"] == 0
    some = unknown.clone()
    some[0] = torch.tensor([1, 2, 10, 20, 30, 40])
    some[1] = torch.tensor([0, 0, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN])
    alone = reader(features[:2], CellTargets(nothing[:2], never[:2], fine[:2], some[:2]))["objects"]
    torch.testing.assert_close(reader(features, CellTargets(nothing, never, fine, some))["objects"], alone)


@pytest.mark.parametrize("mode", ["4x", "16x"])
@pytest.mark.parametrize("form", ["one view", "slices", "two pictures", "clip"])
def test_the_recipe_writes_the_prompt_that_inference_writes(mode: str, form: str) -> None:
    template = ChatTemplate.from_directory(ASSETS, TOKENIZER.control_tokens)
    config = new_learner(0).config
    processor = Processor(TOKENIZER, template, IMAGE, config)
    drawn = [make_sample("receipt", (5, i), "train", int(form == "slices")) for i in range(2)]
    sample = {"two pictures": of(*drawn), "clip": of(drawn[0], drawn[0], fps=1.0)}.get(form, drawn[0])
    question = sample.questions[0]
    content = [{"type": "image", "image": np.array(p)} for p in sample.images]
    if form == "clip":
        content = [{"type": "video", "video": [np.array(p) for p in sample.images], "fps": 1.0}]
    text = {"type": "text", "text": question.text}
    inputs = processor([{"role": "user", "content": [*content, text]}], downsample_mode=mode)  # type: ignore[arg-type]
    batch = packed(sample, mode, [question])
    assert np.array_equal(batch.input_ids[: len(inputs.input_ids)], inputs.input_ids)
    assert np.array_equal(batch.patches, inputs.patches)
    assert tuple(batch.views) == inputs.views
    expected = [*TOKENIZER.encode_plain(question.answer), TOKENIZER.control_id("<|im_end|>")]
    assert batch.targets.tolist() == expected


def test_several_questions_are_turns_of_one_conversation() -> None:
    sample = make_sample("receipt", (6, 0), "train", 0)
    questions = sample.questions[:3]
    batch = packed(sample, "4x", questions)
    end = TOKENIZER.control_id("<|im_end|>")
    asked = [token for q in questions for token in (*TOKENIZER.encode_plain(q.answer), end)]
    assert batch.targets.tolist() == asked
    # Every target is the token that follows.
    is_followed = batch.rows + 1 < len(batch.input_ids)
    assert torch.equal(batch.input_ids[batch.rows[is_followed] + 1], batch.targets[is_followed])
    text = TOKENIZER.decode(batch.input_ids.tolist(), skip_special=False)
    assert text.count("<|im_start|>user") == 3
    assert text.count("<image>") == 1


def test_boxes_are_written_with_their_control_tokens() -> None:
    sample = make_sample("words", (1, 1), "train", 3)
    batch = packed(sample, "4x", [Question("Where?", "<box>1 20 300 1000</box>", "box")])
    answer = batch.targets.tolist()
    assert answer[0] == TOKENIZER.control_id("<box>")
    assert answer[-2] == TOKENIZER.control_id("</box>")


def test_rates_are_drawn_as_the_stage_says() -> None:
    sample = make_sample("receipt", (3, 1), "train", 1)

    def modes(rates: Rates, count: int = 40) -> list[set[str]]:
        draws, stage = np.random.default_rng(1), Stage("", (), 0, rates=rates)
        return [
            {v.downsample_mode for p in COLLATE.encode(sample, stage, draws) for v in p.views} for _ in range(count)
        ]

    assert modes(Rates()) == [{"4x"}] * 40
    assert modes(Rates(0.0, 1.0)) == [{"16x"}] * 40
    mixed = modes(Rates(0.3, 0.3))
    assert {frozenset(m) for m in mixed} == {frozenset(("4x",)), frozenset(("16x",)), frozenset(("4x", "16x"))}


def test_steps_without_the_decoder_draw_what_is_between() -> None:
    stage = Stage("", (Share("words", 0, 1.0),), 60, alone=2, between=(Share("shapes", 0, 1.0),))
    tasks = [set(COLLATE(stage, (0, step), step=step).tasks) for step in range(4)]
    assert tasks == [{"words"}, {"shapes"}] * 2
    assert set(COLLATE(dataclasses.replace(stage, between=()), (0, 1), step=1).tasks) == {"words"}


def test_small_pictures_are_enlarged_as_often_as_the_stage_says() -> None:
    sample = make_sample("words", (3, 1), "train", 0)  # 56 x 112 pixels: 32 patches

    def patches(as_is: float) -> set[int]:
        draws, stage = np.random.default_rng(1), Stage("", (), 0, as_is=as_is)
        return {len(COLLATE.encode(sample, stage, draws)[0].patches) for _ in range(20)}

    assert patches(1.0) == {32}
    assert min(patches(0.0)) > 200
    assert patches(0.5) == patches(0.0) | patches(1.0)


def test_rare_kinds_of_questions_are_always_asked_and_anywhere() -> None:
    questions = (
        *(Question(f"{i}?", str(i)) for i in range(7)),
        Question("No?", "No.", "absent"),
        Question("B?", "b", "box"),
    )
    sample = dataclasses.replace(make_sample("words", (3, 1), "train", 0), questions=questions)
    draws = np.random.default_rng(2)
    chosen = [[q.kind for q in COLLATE.choose(sample, draws, 4)] for _ in range(60)]
    assert all(sorted(kinds) == ["absent", "box", "text", "text"] for kinds in chosen)
    assert {kinds.index("absent") for kinds in chosen} == {0, 1, 2, 3}


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), patches=st.integers(1, 1500))
def test_a_step_has_the_patches_it_wants_and_no_sample_more(seed: int, patches: int) -> None:
    data = COLLATE(CURRICULUM[-1], (0, seed), patches)
    assert len(data.patches) == sum(v.patches for v in data.views) >= patches
    assert len(data.input_ids) == sum(data.lengths)
    assert len(data.rows) == len(data.targets)
    assert len(data.cells.characters) == sum(v.visual_tokens for v in data.views)
    assert len(data.lengths) == len(data.tasks)
    assert set(data.samples.tolist()) == set(range(len(data.tasks)))


def test_samples_of_a_batch_do_not_see_each_other() -> None:
    learner, drawn = new_learner(0), []
    for i in range(3):
        sample = make_sample("receipt", (7, i), "train", 0)
        drawn.append((sample, encoded(sample, ("4x", "16x", "4x")[i]), sample.questions[:2]))

    def losses(some: Sequence[Any]) -> torch.Tensor:
        _, answers, _ = CellsAndAnswers.parts(learner, COLLATE.pack(some))
        assert answers is not None
        return answers

    with torch.no_grad():
        torch.testing.assert_close(losses(drawn), torch.cat([losses([d]) for d in drawn]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stage", CURRICULUM, ids=lambda stage: stage.name)
def test_every_share_of_every_stage_draws_and_packs(stage: Stage) -> None:
    for share in stage.tasks:
        data = COLLATE(Stage("one", (Share(*share),), 1, rates=stage.rates), (0, 1))
        assert len(data.targets), share


def test_the_collator_draws_the_same_step_again() -> None:
    first, second = (Collator(TOKENIZER, IMAGE)(CURRICULUM[3], (1, 2, 3), 300) for _ in range(2))
    assert torch.equal(first.patches, second.patches)
    assert torch.equal(first.input_ids, second.input_ids)
    other = COLLATE(CURRICULUM[3], (1, 2, 4), 300)
    assert not torch.equal(other.input_ids, first.input_ids)


def test_brief_turns_have_the_same_answers_without_the_template_between_them() -> None:
    sample = make_sample("form", 3, "train", 0)
    questions = list(sample.questions[:3])
    drawn = [(sample, encoded(sample, "4x"), questions)]
    whole, brief = COLLATE.pack(drawn), COLLATE.pack(drawn, brief=[True])
    assert brief.targets.equal(whole.targets)
    texts = [TOKENIZER.decode(batch.input_ids.tolist(), skip_special=False) for batch in (whole, brief)]
    assert [text.count("<|im_start|>") for text in texts] == [6, 2]
    assert texts[1].startswith(texts[0][: texts[0].index(questions[0].answer)])  # the first turn is that of inference
    for question in questions[1:]:
        assert f"<|im_end|>\n{question.text}</think>\n\n{question.answer}" in texts[1]
    for batch in (whole, brief):  # what the first answer is read from
        assert batch.input_ids[batch.rows[0]] == whole.input_ids[whole.rows[0]]
