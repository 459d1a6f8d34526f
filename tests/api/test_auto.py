"""`downsample_mode="auto"` from one end to the other: plan, answers, features, command line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.checkpoints import write_checkpoint
from helpers.command import run
from helpers.printed import printed_page
from helpers.tiny_models import tiny_model
from PIL import Image

import pocketvlm
from pocketvlm.api.trace import trace
from pocketvlm.api.view_plan import plan_image
from pocketvlm.config import ImageConfig
from pocketvlm.errors import ConfigError
from pocketvlm.processing.patches.image import encode_image

# 3 x 3 slices of 448 x 448 pixels, small print in the last of the second row.
PAGE = printed_page(1344, 1344, (1, 2), side=448)
RATES = ["16x", *["16x"] * 3, *["16x", "16x", "4x"], *["16x"] * 3]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("pictures") / "page.png"
    Image.fromarray(PAGE).save(path)
    return str(path)


def test_features_of_each_view_are_those_of_the_view_alone() -> None:
    """Through the model a picture with rates from auto is its views, one by one, each at its own rate."""
    model = tiny_model()
    picture = printed_page(336, 336, (0, 1), (2, 2))
    encoded = encode_image(picture, ImageConfig(scale_resolution=112), "auto", auto_token_budget=1.6)
    assert sorted({view.downsample_mode for view in encoded.views}) == ["16x", "4x"]
    together = model.encode_views(encoded.patches, encoded.views)
    parts = np.split(encoded.patches, np.cumsum([view.patches for view in encoded.views])[:-1])
    alone = [model.encode_views(part, [view]) for part, view in zip(parts, encoded.views, strict=True)]
    assert [len(one) for one in alone] == [view.visual_tokens for view in encoded.views]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_plan_of_a_size_gives_bounds_and_plan_of_pixels_lies_within() -> None:
    bounds = pocketvlm.plan(1344, 1344, "auto")
    assert (bounds.visual_tokens_min, bounds.visual_tokens, bounds.rates) == (640, 832, None)
    assert bounds.visual_tokens <= 1.5 * bounds.visual_tokens_min
    seen = plan_image(PAGE, "auto")
    assert (seen.visual_tokens_min, seen.visual_tokens) == (832, 832)
    assert list(seen.rates or ()) == RATES
    assert (seen.grid, seen.views, seen.patches) == (bounds.grid, bounds.views, bounds.patches)
    assert seen.vision_flops == bounds.vision_flops
    blank = plan_image(np.full((1344, 1344, 3), 255, np.uint8), "auto", auto_token_budget=4.0)
    assert blank == pocketvlm.plan(1344, 1344, "16x")
    assert pocketvlm.plan(1344, 1344, "auto", auto_token_budget=4.0).visual_tokens == 2560
    assert plan_image(PAGE, "4x") == pocketvlm.plan(1344, 1344, "4x")


@pytest.mark.parametrize(("height", "width"), [(448, 448), (60, 90), (640, 640)])
def test_plan_says_so_when_the_budget_is_too_small_for_any_view(height: int, width: int) -> None:
    assert pocketvlm.plan(height, width, "auto") == pocketvlm.plan(height, width, "16x")


def test_plan_refuses_a_budget_that_nothing_would_use() -> None:
    with pytest.raises(ConfigError, match="needs downsample_mode='auto'"):
        pocketvlm.plan(448, 448, "4x", auto_token_budget=2.0)
    with pytest.raises(ConfigError, match=r"1\.0 to 4\.0"):
        plan_image(PAGE, "auto", auto_token_budget=5.0)


def test_every_way_to_ask_takes_auto(seeded_checkpoint: Callable[[int], Path]) -> None:
    vlm = pocketvlm.load(seeded_checkpoint(1), device="cpu")
    picture = printed_page(448, 896, (0, 1), side=448)  # an overview and two slices of about 64 tokens
    plain = pocketvlm.plan(448, 896).visual_tokens
    question = [{"type": "image", "image": picture}, {"type": "text", "text": "What is it?"}]
    messages = [{"role": "user", "content": question}]
    options = {"temperature": 0, "max_tokens": 2}
    auto = {"downsample_mode": "auto", "auto_token_budget": 2.0, **options}
    answer = vlm.ask(picture, "What is it?", **auto)
    assert plain < answer.usage.visual_tokens == plan_image(picture, "auto", auto_token_budget=2.0).visual_tokens
    assert [one.token_ids for one in vlm.batch([messages], **auto)] == [answer.token_ids]
    with pocketvlm.load(seeded_checkpoint(1), runtime="torch") as other:
        traced = trace(other, messages, max_tokens=1, downsample_mode="auto", auto_token_budget=2.0)
    assert traced.summary["visual_tokens"] == answer.usage.visual_tokens
    least, at_16x = (
        vlm.ask(picture, "What is it?", **{**options, **rate})
        for rate in ({"downsample_mode": "auto", "auto_token_budget": 1.0}, {"downsample_mode": "16x"})
    )
    assert (least.token_ids, least.usage) == (at_16x.token_ids, at_16x.usage)
    with pytest.raises(ConfigError, match="needs downsample_mode='auto'"):
        vlm.ask(picture, "What is it?", auto_token_budget=2.0)


def test_a_checkpoint_may_ask_for_auto(capsys: pytest.CaptureFixture[str], tmp_path: Path, page: str) -> None:
    write_checkpoint(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"downsample_mode": "auto"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    status, out, _ = run(capsys, "plan", page, "--model", str(tmp_path), "--auto-token-budget", "2", "--json")
    assert status == 0
    assert json.loads(out)["plans"][0]["rates"] == ["4x", *RATES[1:]]


def test_the_command_line_plans_by_pixels_where_it_has_them(capsys: pytest.CaptureFixture[str], page: str) -> None:
    command = ("plan", "--image", page, "1344x1344", "448x448", "--downsample-mode", "auto")
    status, out, _ = run(capsys, *command, "--json")
    plans = json.loads(out)["plans"]
    assert status == 0
    assert [p["rates"] for p in plans] == [RATES, None, ["16x"]]
    assert [(p["visual_tokens_min"], p["visual_tokens"]) for p in plans] == [(832, 832), (640, 832), (64, 64)]
    fixed = json.loads(run(capsys, "plan", page, "--json")[1])["plans"][0]
    assert set(fixed) == set(plans[0])
    assert fixed["rates"] == ["16x"] * 10
    table = run(capsys, *command)[1]
    assert "16x 16x  4x" in table
    assert "640 to" in table


def test_a_drawn_plan_marks_the_slices_at_4x(capsys: pytest.CaptureFixture[str], page: str, tmp_path: Path) -> None:
    out = tmp_path / "drawn.png"
    arguments = ("plan", page, "--downsample-mode", "auto", "--draw", str(out))
    assert run(capsys, *arguments)[0] == 0
    drawn = np.asarray(Image.open(out))
    assert (drawn[448 + 2, 2 * 448 + 224] == (0, 150, 60)).all()
    assert (drawn[2, 224] == (230, 0, 90)).all()


@pytest.mark.parametrize(
    "options",
    [
        ("--auto-token-budget", "2"),
        ("--downsample-mode", "4x", "--auto-token-budget", "2"),
        ("--downsample-mode", "auto", "--auto-token-budget", "0.5"),
        ("--downsample-mode", "auto", "--auto-token-budget", "nan"),
        ("--downsample-mode", "auto", "--auto-token-budget", "much"),
        ("--downsample-mode", "automatic"),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], seeded_checkpoint: Callable[[int], Path], page: str, options: tuple[str, ...]
) -> None:
    for command in (("plan", page), ("ask", page, "What?", "--model", str(seeded_checkpoint(1)))):
        status, out, err = run(capsys, *command, *options)
        assert (status, out, err.count("\n")) == (2, "", 1), (command, err)


def test_mistakes_are_found_before_torch_is_imported(tmp_path: Path, page: str) -> None:
    (tmp_path / "cut.png").write_bytes(Path(page).read_bytes()[:500])
    script = "import sys; from pocketvlm.cli import main; s = main(sys.argv[1:]); print(s, 'torch' in sys.modules)"
    for arguments in (["plan", str(tmp_path / "cut.png")], ["plan", page, "--auto-token-budget", "9"]):
        command = [sys.executable, "-c", script, *arguments, "--downsample-mode", "auto"]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == ["2", "False"]
