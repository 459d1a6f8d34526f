"""What the tower's own tokens are asked for: the print under each of the four that become a visual token."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pocketvlm.model.vision.view_packing import pack_views
from pocketvlm.synthetic import make_sample
from recipes.nano.cells import PARTS, SLOTS, UNKNOWN, cell_targets
from recipes.nano.parts import PATCH_SLOTS, PartReader, PartTargets, part_targets
from recipes.nano.settings import IMAGE
from recipes.nano.views import EncodedPicture, encode_picture

PATCH = IMAGE.patch_size


def printed(mode: str) -> tuple[EncodedPicture, PartTargets]:
    sample = make_sample("words", (1, 2), "train", 3)
    picture = encode_picture(sample.image, IMAGE, mode, np.random.default_rng(0))  # type: ignore[arg-type]
    return picture, part_targets(sample.characters[0], picture.plan, PATCH)


def test_each_patch_must_say_the_characters_whose_middle_it_holds_in_the_order_of_the_tower() -> None:
    picture, targets = printed("4x")
    (view,) = picture.views
    packing = pack_views(picture.views, 70)
    patches = packing.patch_index.view(-1, PARTS).index_select(0, packing.output_index).flatten().tolist()
    expected = dict.fromkeys(range(view.patches), "")
    plan = picture.plan
    down, across = (
        side / whole
        for side, whole in ((plan.overview.height, plan.image.height), (plan.overview.width, plan.image.width))
    )
    for box in make_sample("words", (1, 2), "train", 3).characters[0]:
        row = int((box.top + box.bottom) / 2 * down // PATCH)
        column = int((box.left + box.right) / 2 * across // PATCH)
        expected[row * view.size.width + column] += box.character
    must = (targets.characters > 0) & ~targets.optional
    for token, (codes, mine) in enumerate(zip(targets.characters.flatten(0, 1), must.flatten(0, 1), strict=True)):
        if codes[0] != UNKNOWN:
            assert "".join(chr(code + 31) for code in codes[mine].tolist()) == expected[patches[token]]


def test_the_tokens_at_16x_are_asked_what_the_quarters_of_their_cell_are() -> None:
    picture, targets = printed("16x")
    cells = cell_targets(make_sample("words", (1, 2), "train", 3).characters[0], (), picture.plan, PATCH)
    assert targets.characters.equal(cells.characters)
    assert targets.optional.equal(cells.optional)
    assert targets.compressed.all()


@pytest.mark.parametrize("mode", ["4x", "16x"])
def test_the_loss_is_that_of_the_right_head_and_teaches_only_it(mode: str) -> None:
    _, targets = printed(mode)
    reader, tokens = PartReader(8), torch.randn(len(targets.compressed), PARTS, 8, requires_grad=True)
    loss = reader(tokens, targets)
    loss.backward()
    assert loss > 0
    right, other = (reader.patches, reader.windows) if mode == "4x" else (reader.windows, reader.patches)
    assert right.weight.grad is not None
    assert right.weight.grad.any()
    assert other.weight.grad is None
    assert tokens.grad is not None
    assert tokens.grad.any()


def test_views_at_both_rates_weigh_by_their_tokens() -> None:
    (_, fine), (_, coarse) = printed("4x"), printed("16x")
    reader = PartReader(8)
    parts = [torch.randn(len(targets.compressed), PARTS, 8) for targets in (fine, coarse)]
    both = PartTargets(*(torch.cat(pair) for pair in zip(fine, coarse, strict=True)))
    apart = [reader(tokens, targets) for tokens, targets in zip(parts, (fine, coarse), strict=True)]
    share = len(fine.compressed) / len(both.compressed)
    torch.testing.assert_close(reader(torch.cat(parts), both), share * apart[0] + (1 - share) * apart[1])


def test_nothing_is_asked_where_print_is_too_small() -> None:
    from pocketvlm.synthetic.sample import CharacterBox

    picture = encode_picture(np.zeros((112, 112, 3), np.uint8), IMAGE, "4x", np.random.default_rng(0), 1.0)
    row = [CharacterBox("a", x, 4.0, x + 1.0, 8.0) for x in np.linspace(1, 11, PATCH_SLOTS + 1).tolist()]
    targets = part_targets(row, picture.plan, PATCH)
    assert PATCH_SLOTS < SLOTS
    assert (targets.characters[0, 0] == UNKNOWN).all()
    assert (targets.characters[0, 1:] != UNKNOWN).all()
    empty = PartTargets(*(part[:0] for part in targets))
    assert PartReader(8)(torch.zeros(0, PARTS, 8), empty) == 0
