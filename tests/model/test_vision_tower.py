"""The tower and the merger: every view alone, each at its own rate, in the order it came."""

from __future__ import annotations

import pytest
import torch
from helpers.invariants import assert_close, order_of_views_is_irrelevant, relative_error, views_together_equal_separate
from helpers.tiny_models import CONFIG, random_patches, tiny_model, view, view_lists
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from pocketvlm.config import ImageConfig
from pocketvlm.errors import PromptError
from pocketvlm.model.vision.pixels import normalise
from pocketvlm.model.vision.view_order import nearest_positions
from pocketvlm.model.vision.view_packing import ViewGroup, pack_views
from pocketvlm.views import View


@settings(max_examples=20)
@given(view_lists(), st.integers(0, 3))
def test_views_of_any_shapes_and_rates_together_equal_separate(views: list[View], seed: int) -> None:
    views_together_equal_separate(tiny_model(), random_patches(views, seed), views)


@settings(max_examples=20)
@given(view_lists().flatmap(lambda views: st.tuples(st.just(views), st.permutations(range(len(views))))))
def test_order_of_views_is_irrelevant(case: tuple[list[View], list[int]]) -> None:
    order_of_views_is_irrelevant(tiny_model(), random_patches(case[0]), *case)


def test_trap_one_rate_for_a_whole_batch_a_mixed_batch_encodes_each_view_at_its_own_rate() -> None:
    views = [view(8, 8, "4x"), view(8, 8, "16x"), view(4, 8, "4x"), view(8, 8, "16x")]
    features = tiny_model().encode_views(random_patches(views), views)
    assert len(features) == 16 + 4 + 8 + 4
    views_together_equal_separate(tiny_model(), random_patches(views), views)


def test_trap_4x_left_at_16x_every_rate_has_its_own_tokens_and_path() -> None:
    patches = random_patches([view(8, 8)])
    fine, coarse = (tiny_model().encode_views(patches, [view(8, 8, mode)]) for mode in ("4x", "16x"))
    assert (len(fine), len(coarse)) == (16, 4)
    # Each coarse token covers four fine ones, but is no mean of them: early compression ran in the one only.
    grouped = fine.view(2, 2, 2, 2, -1).permute(0, 2, 1, 3, 4).reshape(4, 4, -1).mean(1)
    assert relative_error(grouped, coarse) > 0.1


@pytest.mark.parametrize(("mode", "calls"), [("16x", 1), ("4x", 0)])
def test_early_compression_runs_in_16x_only(mode: str, calls: int) -> None:
    seen = []
    model = tiny_model()
    hook = model.vision_tower.vit_merger.register_forward_hook(lambda *args: seen.append(len(args[2])))
    try:
        model.encode_views(random_patches([view(8, 4, mode)]), [view(8, 4, mode)])
    finally:
        hook.remove()
    assert len(seen) == calls


@pytest.mark.parametrize(("height", "width"), [(8, 4), (4, 12)])
def test_trap_height_and_width_a_view_is_not_its_transpose(height: int, width: int) -> None:
    patches, model = random_patches([view(height, width)]), tiny_model()
    right, swapped = (
        model.encode_views(patches, [view(height, width)]),
        model.encode_views(patches, [view(width, height)]),
    )
    assert relative_error(swapped, right) > 0.01


def test_changing_one_view_leaves_the_others_alone() -> None:
    views = [view(8, 8), view(8, 8), view(4, 4, "4x")]
    patches = random_patches(views)
    changed = patches.clone()
    changed[64:128] = 255 - changed[64:128]
    before, after = (tiny_model().encode_views(p, views).split([4, 4, 4]) for p in (patches, changed))
    assert_close(after[0], before[0], 1e-6)
    assert_close(after[2], before[2], 1e-6)
    assert relative_error(after[1], before[1]) > 0.01


def test_uint8_patches_equal_normalised_floats() -> None:
    views = [view(8, 8), view(4, 4, "4x")]
    patches, model = random_patches(views), tiny_model()
    expected = normalise(patches, ImageConfig())
    assert_close(model.normalise(patches), expected, 1e-6)
    assert_close(model.encode_views(patches, views), model.encode_views(expected, views))


def test_wrong_number_of_patches_is_one_clear_error() -> None:
    with pytest.raises(PromptError, match="15 patches were given for views of 16"):
        tiny_model().encode_views(random_patches([view(4, 4)])[:15], [view(4, 4)])


def test_position_table_is_looked_up_and_never_interpolated() -> None:
    tower = tiny_model().vision_tower
    one = view(8, 12)
    seen = []
    hook = tower.layers[0].register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    try:
        packing = pack_views([one], CONFIG.vision.positions_per_side)
        tower(torch.zeros(one.patches, CONFIG.vision.patch_dim), packing)
    finally:
        hook.remove()
    positions = torch.tensor(nearest_positions(8, 12, CONFIG.vision.positions_per_side))
    rows = tower.position_embedding.weight[positions]
    assert_close(seen[0], rows[packing.patch_index] + tower.patch_embedding.bias, 1e-6)


def test_attention_stays_inside_a_view() -> None:
    attention = tiny_model().vision_tower.layers[0].self_attn
    x = torch.randn(20, CONFIG.vision.hidden_size, generator=torch.Generator().manual_seed(1))
    got = attention(x, [ViewGroup(2, 4), ViewGroup(1, 12)], torch.zeros_like(x))
    for rows in (slice(0, 4), slice(4, 8), slice(8, 20)):
        assert_close(got[rows], attention(x[rows], [ViewGroup(1, len(x[rows]))], torch.zeros_like(x[rows])))


def test_early_compression_equals_its_definition_window_by_window() -> None:
    merger = tiny_model().vision_tower.vit_merger
    x = torch.randn(12, CONFIG.vision.hidden_size, generator=torch.Generator().manual_seed(2))
    expected = []
    for window in x.split(4):
        attended = merger.self_attn(merger.layer_norm1(window), [ViewGroup(1, 4)], window)
        wide = F.gelu(merger.linear_1(merger.pre_norm(attended.flatten())), approximate="tanh")
        expected.append(merger.linear_2(wide) + attended.mean(0))
    assert_close(merger(x), torch.stack(expected))


def test_trap_two_gelus_the_projector_has_the_exact_one() -> None:
    merger = tiny_model().merger
    x = torch.randn(8, CONFIG.vision.hidden_size, generator=torch.Generator().manual_seed(3)) * 3
    inner = merger.linear_1(merger.pre_norm(x.view(2, -1)))
    assert_close(merger(x), merger.linear_2(F.gelu(inner, approximate="none")), 1e-6)
    assert relative_error(merger(x), merger.linear_2(F.gelu(inner, approximate="tanh"))) > 1e-5
