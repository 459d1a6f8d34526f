"""View packing: one permutation at the door, and nearest-bucket positions as the reference counts them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from helpers.tiny_models import MODES, view, view_lists
from hypothesis import given
from hypothesis import strategies as st
from parity import reference  # noqa: F401  (makes transformers importable)
from transformers.vision_utils import get_vision_nearest_position_ids

from pocketvlm.config import DownsampleMode
from pocketvlm.errors import ConfigError
from pocketvlm.model.packing import PackedBatch
from pocketvlm.model.segments import Segment
from pocketvlm.model.vision.view_order import nearest_positions, window_order
from pocketvlm.model.vision.view_packing import pack_views
from pocketvlm.views import View

BUCKETS = 70


def grid_numbers(height: int, width: int, mode: DownsampleMode) -> torch.Tensor:
    """Patch numbers [visual tokens, patches of one], each token's in window order, by plain loops."""
    side = 4 if mode == "16x" else 2
    inner = [(r, c) for r in range(0, side, 2) for c in range(0, side, 2)]
    window = [(r + i, c + j) for r, c in inner for i in range(2) for j in range(2)]
    return torch.tensor(
        [
            [(top + r) * width + left + c for r, c in window]
            for top in range(0, height, side)
            for left in range(0, width, side)
        ]
    )


@given(st.integers(1, 6), st.integers(1, 6), MODES)
def test_window_order_is_tokens_then_windows_then_rows(rows: int, columns: int, mode: DownsampleMode) -> None:
    height, width = 4 * rows, 4 * columns
    order = window_order(height, width, mode)
    assert sorted(order.tolist()) == list(range(height * width))
    assert order.tolist() == grid_numbers(height, width, mode).flatten().tolist()


@pytest.mark.parametrize(
    ("height", "width", "mode"), [(6, 4, "16x"), (4, 2, "16x"), (5, 8, "16x"), (3, 2, "4x"), (2, 5, "4x")]
)
def test_view_off_the_grid_is_refused_in_one_line(height: int, width: int, mode: DownsampleMode) -> None:
    with pytest.raises(ConfigError, match=f"{height} x {width} patches") as caught:
        pack_views([view(8, 8), view(height, width, mode)], BUCKETS)
    assert "\n" not in str(caught.value)


@given(view_lists(max_size=6))
def test_every_patch_is_packed_once_with_its_own_position(views: list[View]) -> None:
    packing = pack_views(views, BUCKETS)
    assert torch.equal(packing.patch_index.sort().values, torch.arange(sum(v.patches for v in views)))
    row_major = np.concatenate([nearest_positions(v.size.height, v.size.width, BUCKETS) for v in views])
    assert packing.position_ids.tolist() == row_major[packing.patch_index.numpy()].tolist()


@given(view_lists(max_size=6))
def test_groups_hold_equal_shapes_and_16x_views_come_first(views: list[View]) -> None:
    packing = pack_views(views, BUCKETS)
    owner = torch.cat([torch.full((v.patches,), i) for i, v in enumerate(views)])[packing.patch_index]
    groups = (*packing.groups_16x, *packing.groups_4x)
    shapes = Counter((v.size, v.downsample_mode) for v in views)
    assert sorted(g.count for g in groups) == sorted(shapes.values())
    first = 0
    for group in groups:
        members = owner[first : first + group.count * group.tokens].view(group.count, group.tokens)
        assert (members == members[:, :1]).all(), "a view is torn apart"
        assert len({(views[i].size, views[i].downsample_mode) for i in members[:, 0].tolist()}) == 1
        first += group.count * group.tokens
    modes = [views[i].downsample_mode for i in owner.tolist()]
    assert modes == ["16x"] * packing.patches_16x + ["4x"] * (len(modes) - packing.patches_16x)


@given(view_lists(max_size=6))
def test_output_index_restores_the_order_the_views_came_in(views: list[View]) -> None:
    packing = pack_views(views, BUCKETS)
    per_token = [16 if v.downsample_mode == "16x" else 4 for v in views]
    # First patch of every packed token, found by walking the groups; the output must list them view by view.
    tokens = []
    for count, step in ((packing.patches_16x, 16), (len(packing.patch_index), 4)):
        first = 0 if step == 16 else packing.patches_16x
        tokens += packing.patch_index[first:count:step].tolist()
    expected, start = [], 0
    for v, size in zip(views, per_token, strict=True):
        order = window_order(v.size.height, v.size.width, v.downsample_mode)
        expected += (order[::size] + start).tolist()
        start += v.patches
    assert [tokens[row] for row in packing.output_index.tolist()] == expected


def reference_positions(height: int, width: int, buckets: int) -> list[int]:
    return get_vision_nearest_position_ids(torch.tensor([[height, width]]), buckets).tolist()


def test_nearest_positions_equal_the_reference_for_every_size_up_to_the_table() -> None:
    # Rows and columns are counted apart, so all pairs agree if all rows do (one column) and all columns do (one row).
    for n in range(1, BUCKETS + 1):
        assert nearest_positions(n, 1, BUCKETS).tolist() == reference_positions(n, 1, BUCKETS), n
        assert nearest_positions(1, n, BUCKETS).tolist() == reference_positions(1, n, BUCKETS), n
    for height in range(1, BUCKETS + 1):
        for width in (height, BUCKETS + 1 - height, 4, 32, BUCKETS):
            expected = reference_positions(height, width, BUCKETS)
            assert nearest_positions(height, width, BUCKETS).tolist() == expected, (height, width)


@pytest.mark.parametrize("buckets", [8, 16, 19, 54, 70])
def test_nearest_positions_equal_the_reference_beyond_the_table_and_for_other_tables(buckets: int) -> None:
    for height, width in [(71, 69), (97, 140), (140, 97), (128, 3), (4, 281), (400, 12), (12, 400), (210, 210)]:
        expected = reference_positions(height, width, buckets)
        assert nearest_positions(height, width, buckets).tolist() == expected, (height, width)


@given(st.lists(st.integers(1, 400), min_size=1, max_size=12))
def test_padded_groups_hold_every_token_once_and_little_padding(lengths: list[int]) -> None:
    batch = PackedBatch.of([Segment(length, slot=i) for i, length in enumerate(lengths)])
    groups, back = batch.padded_groups
    rows = torch.cat([index for _, index in groups])
    assert torch.equal(rows[back], torch.arange(batch.tokens))
    assert sum(count for count, _ in groups) == len(lengths)
    assert len(rows) * 4 <= batch.tokens * 5
    # A sequence's tokens are in order and side by side, or causal attention over its row would be wrong.
    for first, length in zip(batch.firsts, lengths, strict=True):
        assert torch.equal(back[first : first + length], torch.arange(length) + back[first])


def test_positions_count_from_each_segments_own_start() -> None:
    batch = PackedBatch.of([Segment(3), Segment(2, 7, 1), Segment(1, 4, 2)])
    assert batch.positions.tolist() == [0, 1, 2, 7, 8, 4]
    assert batch.lasts == [2, 4, 5]


def test_slots_are_a_view_only_when_they_are_consecutive() -> None:
    assert PackedBatch.of([Segment(1, slot=2), Segment(1, slot=3)]).slots == slice(2, 4)
    assert PackedBatch.of([Segment(1, slot=3), Segment(1, slot=2)]).slots.tolist() == [3, 2]
