"""Where answers stand: every token of a printed answer points to cells that show its character; the loss of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pocketvlm.processing.prompt.tokenizer import Tokenizer
from pocketvlm.synthetic import make_sample
from pocketvlm.synthetic.sample import CharacterBox
from recipes.nano.cells import UNKNOWN
from recipes.nano.curriculum import Share, Stage
from recipes.nano.data import Collator
from recipes.nano.places import Pointer, places
from recipes.nano.settings import ASSETS, IMAGE
from recipes.nano.views import Rates, encode_picture

TOKENIZER = Tokenizer.from_directory(ASSETS)
COLLATE = Collator(TOKENIZER, IMAGE)


@pytest.mark.parametrize("rates", [Rates(1.0, 0.0), Rates(0.0, 1.0), Rates(0.0, 0.0)])
@pytest.mark.parametrize("task", ["words", "receipt", "form"])
def test_an_answer_token_points_to_cells_that_show_its_character(task: str, rates: Rates) -> None:
    pairs = 0
    for seed in range(4):
        batch = COLLATE(Stage("a", (Share(task, 0, 1.0),), 400, rates=rates), (5, seed))
        for row, cell in batch.places.T.tolist():
            character = TOKENIZER.decode([int(batch.targets[row])]).strip()[0]
            seen = batch.cells.characters[cell]
            crowded = (seen[:, 0] == UNKNOWN).all() or (batch.cells.compressed[cell] and UNKNOWN in seen)
            assert crowded or character in [chr(31 + one) for one in seen.flatten().tolist() if one > 0]
            pairs += 1
    assert pairs > 20


def test_an_answer_in_several_places_or_in_none_has_no_place() -> None:
    sample = make_sample("words", 1, "train", 0)
    picture = encode_picture(sample.image, IMAGE, "4x", np.random.default_rng(0), 1.0)
    printed = [CharacterBox(c, 10.0 * i, 10, 10.0 * i + 8, 20) for i, c in enumerate("abcabd")]
    assert places(["a", "b"], printed, (), picture.plan, 14) is None
    assert places(["x"], printed, (), picture.plan, 14) is None
    found = places(["b", "d"], printed, (), picture.plan, 14)
    assert found is not None
    assert [len(cells) for cells in found] == [1, 2]  # the last stands near the border of two


def test_the_pointer_asks_only_tokens_of_its_own_sample_and_falls_when_it_is_right() -> None:
    torch.manual_seed(0)
    pointer, states = Pointer(8), torch.randn(6, 8)
    rows, visual = torch.tensor([2, 5]), torch.tensor([0, 1, 3, 4])
    mine, theirs = torch.tensor([0, 1]), torch.tensor([0, 0, 1, 1])
    pairs = torch.tensor([[0, 1], [1, 2]])
    loss = pointer(states, rows, visual, mine, theirs, pairs)
    changed = states.clone()
    changed[3:5] = torch.randn(2, 8)  # visual tokens of the other sample
    first = pointer(states, rows, visual, mine, theirs, pairs[:, :1])
    assert pointer(changed, rows, visual, mine, theirs, pairs[:, :1]).equal(first)
    both = torch.tensor([[0, 0, 1, 1], [0, 1, 2, 3]])
    torch.testing.assert_close(pointer(states, rows, visual, mine, theirs, both), torch.tensor(0.0))
    assert loss > 0
    assert pointer(states, rows, visual, mine, theirs, pairs[:, :0]) == 0


def test_the_strings_of_json_point_to_where_they_are_printed() -> None:
    """Each by itself: a name that stands twice has no place, and what is not printed has none."""
    boxes = [CharacterBox(c, 14.0 * i, 3.0, 14.0 * i + 8, 11.0) for i, c in enumerate("ab12ab9")]
    picture = np.zeros((112, 112, 3), np.uint8)
    plan = encode_picture(picture, IMAGE, "4x", np.random.default_rng(0), 1.0).plan
    answer = '{"ab": "12", "zz": "9"}'
    found = places(list(answer), boxes, (), plan, 14)
    assert found is not None
    assert {i: cells for i, cells in enumerate(found) if cells} == {8: [0, 1], 9: [1], 20: [2, 3]}
