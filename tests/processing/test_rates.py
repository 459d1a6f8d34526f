"""Rates of "auto": what counts as fine print, that the budget holds, and that only a picture's own pixels decide."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from helpers.pictures import content_of
from helpers.printed import printed_page
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pocketvlm.config import ImageConfig
from pocketvlm.errors import ConfigError
from pocketvlm.processing.patches.image import encode_image, encode_images
from pocketvlm.processing.patches.rates import choose_rates, count_fine_patches, max_token_views
from pocketvlm.processing.patches.slicing import plan_views
from pocketvlm.processing.patches.video import encode_video
from pocketvlm.processing.processor import Processor
from pocketvlm.views import Size, View

CONFIG = ImageConfig(scale_resolution=112)
PAGE = printed_page(336, 336, (1, 2))  # 3 x 3 slices of 112 x 112, cut as they are; print in slice 5 of 0 to 8
budgets = st.one_of(st.sampled_from([1.0, 1.1, 1.5, 4.0]), st.floats(1, 4))
sizes = st.builds(lambda height, width: Size(height=height, width=width), st.integers(20, 4000), st.integers(20, 4000))


def to_patches(view: NDArray[np.uint8], side: int = 14) -> NDArray[np.uint8]:
    rows, columns = view.shape[0] // side, view.shape[1] // side
    return view.reshape(rows, side, columns, side, 3).transpose(0, 2, 1, 3, 4).reshape(-1, side, side, 3).copy()


def grey(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    return np.repeat(values.astype(np.uint8)[..., None], 3, axis=2)


def printed_patches(em: int) -> NDArray[np.uint8]:
    return to_patches(printed_page(224, 224, (0, 0), em=em, side=224))


def modes(views: tuple[View, ...]) -> list[str]:
    return [view.downsample_mode for view in views]


def plain_count(patches: NDArray[np.uint8]) -> int:
    """`count_fine_patches` as its description says it, pixel by pixel."""

    def strokes(square: NDArray[np.int64]) -> int:
        rows, columns, found = len(square) - 2, len(square), 0
        for row in range(rows):
            mean = square[row : row + 3].sum(0)

            def kind(i: int, mean: NDArray[np.int64] = mean) -> int:
                sides = (mean[i - 2] - mean[i], mean[i + 2] - mean[i])
                return int(all(s > 144 for s in sides)) - int(all(s < -144 for s in sides))

            found += sum(kind(i) != 0 and kind(i) != kind(i - 1) for i in range(3, columns - 2))
        return found

    brightness = patches.astype(np.int64) @ np.array([1, 2, 1])
    looked_at = (patches.shape[1] - 2) * (patches.shape[1] - 5)
    return sum(strokes(square) * strokes(square.T) * 120 >= looked_at**2 for square in brightness)


@pytest.mark.parametrize("side", [6, 7, 14, 16])
def test_the_count_is_that_of_the_plain_twin(side: int) -> None:
    rng = np.random.default_rng(side)
    # From calm to wild patches, so that some are on either side of the mark.
    spread = np.linspace(0, 127, 40)[:, None, None, None]
    patches = (128 + spread * rng.uniform(-1, 1, (40, side, side, 3))).astype(np.uint8)
    print_ = printed_page(side * 8, side * 8, (0, 0), em=9, side=side * 8)
    for given_patches in (patches, to_patches(print_, side)):
        assert 0 < plain_count(given_patches) < len(given_patches)
        assert count_fine_patches(given_patches) == plain_count(given_patches)


def test_views_without_print_score_nothing() -> None:
    y, x = np.mgrid[:224, :224]
    rng = np.random.default_rng(0)
    views = {
        "blank": grey(np.full((224, 224), 200)),
        "gradient": grey((x + y) // 2),
        "edges": grey((x // 16 + y // 16) % 2 * 255),
        "stripes": grey(x // 2 % 2 * 255),
        "rules": grey(255 * ((x % 56 > 0) & (y % 56 > 0))),
        "grain": grey(np.clip(128 + rng.normal(0, 6, (224, 224)), 0, 255)),
    }
    assert {name: count_fine_patches(to_patches(view)) for name, view in views.items()} == dict.fromkeys(views, 0)


def test_the_smaller_the_print_the_higher_the_score() -> None:
    counts = [count_fine_patches(printed_patches(em)) for em in (8, 12, 18, 28, 56)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 2 * counts[2] > 0
    assert counts[-1] < 2


def test_score_does_not_depend_on_order_orientation_or_polarity() -> None:
    patches = printed_patches(11)
    expected = count_fine_patches(patches)
    assert expected > 0
    shuffled = patches[np.random.default_rng(0).permutation(len(patches))]
    assert count_fine_patches(shuffled) == expected
    assert count_fine_patches(np.ascontiguousarray(patches.transpose(0, 2, 1, 3))) == expected
    assert count_fine_patches(255 - patches) == expected


def test_no_patches_and_tiny_patches_hold_no_print() -> None:
    assert count_fine_patches(np.zeros((0, 14, 14, 3), np.uint8)) == 0
    assert count_fine_patches(np.random.default_rng(0).integers(0, 256, (50, 5, 5, 3), dtype=np.uint8)) == 0


@given(size=sizes, limit=st.integers(1, 40), budget=budgets, larger=budgets, data=st.data())
def test_the_budget_holds_and_a_larger_one_only_adds(
    size: Size, limit: int, budget: float, larger: float, data: st.DataObject
) -> None:
    budget, larger = sorted((budget, larger))
    plans = [plan_views(size, CONFIG, "auto", limit).views] * data.draw(st.integers(1, 3))
    scores = [[data.draw(st.integers(0, view.patches)) for view in views] for views in plans]
    tokens = sum(view.visual_tokens for views in plans for view in views)
    chosen, more = choose_rates(plans, scores, budget), choose_rates(plans, scores, larger)
    assert sum(view.visual_tokens for views in chosen for view in views) <= Decimal(repr(budget)) * tokens
    for views, before, after, points in zip(plans, chosen, more, scores, strict=True):
        assert [view.size for view in before] == [view.size for view in views]
        for small, large, score in zip(before, after, points, strict=True):
            assert small.downsample_mode == "16x" or large.downsample_mode == "4x"
            assert score > 0 or large.downsample_mode == "16x"
    if len(plans) == 1:
        most = max_token_views(plans[0], budget)
        assert sum(v.visual_tokens for v in chosen[0]) <= sum(v.visual_tokens for v in most)


@given(size=sizes, limit=st.integers(1, 40), budget=budgets)
def test_the_most_tokens_are_reached_by_some_picture(size: Size, limit: int, budget: float) -> None:
    views = plan_views(size, CONFIG, "auto", limit).views
    most = max_token_views(views, budget)
    scores = [view.patches if up.downsample_mode == "4x" else 0 for view, up in zip(views, most, strict=True)]
    assert choose_rates([views], [scores], budget) == [most]


def test_most_fine_print_first_then_in_order_and_the_overview_last() -> None:
    views = plan_views(Size(height=336, width=336), CONFIG, "auto").views
    scores = [64, 0, 20, 5, 20, 64, 0, 0, 1, 0]

    def raised(budget: float) -> list[int]:
        (chosen,) = choose_rates([views], [scores], budget)
        return [i for i, view in enumerate(chosen) if view.downsample_mode == "4x"]

    # Ten views of four tokens; raising one adds twelve, three tenths of the whole.
    assert [raised(b) for b in (1.0, 1.29, 1.3, 1.6, 1.9, 2.2, 2.5, 2.8, 4.0)] == [
        [],
        [],
        [5],
        [2, 5],
        [2, 4, 5],
        [2, 3, 4, 5],
        [2, 3, 4, 5, 8],
        [0, 2, 3, 4, 5, 8],
        [0, 2, 3, 4, 5, 8],
    ]


def test_a_budget_pays_to_the_last_token_what_it_is_written_as() -> None:
    """2.32 times 100 tokens are 232, though the product of the floats is less: eleven views at twelve tokens each."""
    views = [View(Size(height=8, width=8), "16x")] * 25
    assert [view.visual_tokens for view in views] == [4] * 25
    assert int(2.32 * 100) == 231
    (chosen,) = choose_rates([views], [[64] * 25], 2.32)
    assert modes(chosen).count("4x") == 11


def test_the_only_view_of_a_frame_does_not_come_last_as_an_overview_does() -> None:
    """A frame that is not sliced is shown nowhere else."""
    sliced, whole = (plan_views(Size(height=side, width=side), CONFIG, "auto").views for side in (336, 112))
    assert len(whole) == 1 < len(sliced)
    scores = [[64] + [1] * (len(sliced) - 1), [64]]
    tokens = sum(view.visual_tokens for view in (*sliced, *whole))
    budget = 1 + 3 * whole[0].visual_tokens / tokens  # for one of them
    first, second = choose_rates([sliced, whole], scores, budget + 1e-6)
    assert modes(first) == ["16x"] * len(sliced)
    assert modes(second) == ["4x"]


def test_the_slice_with_the_small_print_is_raised() -> None:
    encoded = encode_image(PAGE, CONFIG, "auto")
    assert modes(encoded.views) == ["16x"] * 6 + ["4x"] + ["16x"] * 3
    assert encoded.visual_tokens == 40 + 12


def test_a_blank_page_stays_at_16x_whatever_the_budget() -> None:
    blank = np.full((336, 336, 3), 250, np.uint8)
    assert set(modes(encode_image(blank, CONFIG, "auto", auto_token_budget=4.0).views)) == {"16x"}


def test_full_budget_raises_every_view_with_print_and_no_other() -> None:
    page = printed_page(336, 336, (0, 0), (2, 1))
    assert modes(encode_image(page, CONFIG, "auto", auto_token_budget=4).views[1:]) == [
        *["4x", "16x", "16x"],
        *["16x"] * 3,
        *["16x", "4x", "16x"],
    ]


@pytest.mark.parametrize("budget", [1.0, 1.5, 4.0])
@pytest.mark.parametrize(("height", "width"), [(336, 336), (90, 130), (300, 500)])
def test_auto_has_the_pixels_of_16x_and_without_budget_is_16x(height: int, width: int, budget: float) -> None:
    picture = printed_page(height, width, (0, 0))
    plain, auto = encode_image(picture, CONFIG), encode_image(picture, CONFIG, "auto", auto_token_budget=budget)
    assert np.array_equal(plain.patches, auto.patches)
    assert plain.grid == auto.grid
    if budget == 1:
        assert plain.views == auto.views


def test_each_picture_of_a_request_is_decided_by_itself(checkpoint: Path) -> None:
    processor = Processor.from_directory(checkpoint)
    processor.image_config = CONFIG
    pictures = [PAGE, printed_page(336, 336, (0, 1)), np.full((336, 336, 3), 255, np.uint8)]

    def prompt(*images: NDArray[np.uint8], words: str) -> list[dict[str, object]]:
        parts = [{"type": "image", "image": image} for image in images]
        return [{"role": "user", "content": [*parts, {"type": "text", "text": words}]}]

    alone = [processor(prompt(p, words="What is it?"), downsample_mode="auto") for p in pictures]
    together = processor(prompt(*reversed(pictures), words="Is there small print?"), downsample_mode="auto")
    assert np.array_equal(together.patches, np.concatenate([one.patches for one in reversed(alone)]))
    assert together.views == tuple(view for one in reversed(alone) for view in one.views)
    mixed = processor(prompt(PAGE, PAGE, words="?"), downsample_mode=["auto", "16x"], auto_token_budget=1.3)
    assert mixed.visual_tokens == 52 + 40
    assert processor(prompt(PAGE, words="?"), downsample_mode="auto", auto_token_budget=1).input_ids.tolist() == (
        processor(prompt(PAGE, words="?"), downsample_mode="16x").input_ids.tolist()
    )


def test_pictures_in_parallel_are_decided_as_one_by_one() -> None:
    pictures = [PAGE, printed_page(336, 336, (2, 2)), printed_page(224, 448, (1, 3), (0, 0))]
    together = encode_images(pictures, CONFIG, "auto", auto_token_budget=2.0, workers=3)
    alone = [encode_image(picture, CONFIG, "auto", auto_token_budget=2.0) for picture in pictures]
    assert [content_of(one) for one in together] == [content_of(one) for one in alone]


def test_the_frames_of_a_video_share_one_budget() -> None:
    frames = np.stack([printed_page(112, 112, *(((0, 0),) if i in (3, 7, 8) else ())) for i in range(10)])

    def raised(budget: float) -> list[int]:
        video = encode_video(frames, CONFIG, "auto", auto_token_budget=budget, fps=1.0)
        assert video.visual_tokens <= budget * 40
        return [i for i, unit in enumerate(video.units) if unit.views[0].downsample_mode == "4x"]

    assert [raised(budget) for budget in (1.0, 1.5, 1.6, 4.0)] == [[], [3], [3, 7], [3, 7, 8]]
    plain = [content_of(unit) for unit in encode_video(frames, CONFIG, "16x", fps=1.0).units]
    frugal = encode_video(frames, CONFIG, "auto", auto_token_budget=1.0, fps=1.0)
    assert [content_of(unit) for unit in frugal.units] == plain


@pytest.mark.parametrize("budget", [0.99, 4.01, 0, -1, float("nan"), float("inf"), True, "2", [1.5]])
def test_a_budget_out_of_range_is_refused(budget: object) -> None:
    with pytest.raises(ConfigError, match=r"auto_token_budget=.* from 1.0 to 4.0"):
        encode_image(PAGE, CONFIG, "auto", auto_token_budget=budget)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{}, {"downsample_mode": "16x"}, {"downsample_mode": "4x"}])
def test_a_budget_without_auto_is_refused_not_overlooked(checkpoint: Path, options: dict[str, str]) -> None:
    processor = Processor.from_directory(checkpoint)
    for messages in (
        [{"role": "user", "content": "hi"}],
        [{"role": "user", "content": [{"type": "image", "image": PAGE}]}],
    ):
        with pytest.raises(ConfigError, match="needs downsample_mode='auto'"):
            processor(messages, auto_token_budget=2.0, **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="needs downsample_mode='auto'"):
        encode_video(PAGE[None], CONFIG, fps=1.0, auto_token_budget=2.0)
