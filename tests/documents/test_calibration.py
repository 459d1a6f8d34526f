"""A model's folder may say how often fields of a confidence were right: `extract` then says that."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.command import run
from PIL import Image, ImageDraw

import pocketvlm
from pocketvlm import documents
from pocketvlm.documents.calibration import Calibration
from pocketvlm.errors import CheckpointError
from pocketvlm.export.model_files import copy_text_files
from pocketvlm.model.fingerprint import CONFIDENCE
from pocketvlm.model.hub import resolve

CURVE = {"confidence": [0.0, 0.5, 0.5, 1.0], "right": [0.0, 0.2, 0.4, 0.9]}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Nano in a folder of its own."""
    folder = tmp_path / "model"
    shutil.copytree(resolve("nano").path, folder)
    (folder / CONFIDENCE).unlink(missing_ok=True)
    return folder


@pytest.fixture
def page(tmp_path: Path) -> Path:
    image = Image.new("RGB", (224, 112), "white")
    ImageDraw.Draw(image).text((10, 30), "Total 11.60", "black", font_size=30)
    image.save(tmp_path / "page.png")
    return tmp_path / "page.png"


def test_between_its_points_the_curve_is_straight(model: Path) -> None:
    (model / CONFIDENCE).write_text(json.dumps(CURVE))
    made = Calibration.of(resolve(str(model)))
    assert made is not None
    assert [made(sure) for sure in (0.0, 0.25, 0.75, 1.0)] == [0.0, 0.1, 0.65, 0.9]


def test_other_weights_and_options_are_not_what_was_measured(model: Path) -> None:
    (model / CONFIDENCE).write_text(json.dumps(CURVE))
    found = resolve(str(model))
    assert Calibration.of(found) is not None
    assert Calibration.of(found, {"adapter": "mine"}) is None
    assert Calibration.of(found, {"temperature": 0.7}) is None
    assert Calibration.of(found, {"downsample_mode": "16x"}) is None
    assert Calibration.of(found, {"downsample_mode": "4x", "temperature": 0}) is not None
    assert Calibration.of(dataclasses.replace(found, adapter=model)) is None
    assert Calibration.of(None) is None


def test_it_is_no_part_of_the_model_nor_of_what_is_made_of_it(model: Path, tmp_path: Path) -> None:
    before = resolve(str(model))
    digest = before.fingerprint
    (model / CONFIDENCE).write_text(json.dumps(CURVE))
    assert resolve(str(model)).fingerprint == digest
    (tmp_path / "copy").mkdir()
    copy_text_files(before, tmp_path / "copy", before.config)
    assert (tmp_path / "copy/config.json").is_file()
    assert not (tmp_path / "copy" / CONFIDENCE).exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"confidence": [], "right": []}',
        '{"confidence": [0, 1], "right": [0]}',
        '{"confidence": [0, 1], "right": [0.5, 0.2]}',
        '{"confidence": [0, 1], "right": [0, 2]}',
        '{"confidence": [0, 1], "right": [0, NaN]}',
        '{"confidence": "ab", "right": "ab"}',
        '{"confidence": 3, "right": 3}',
        '{"confidence": "01", "right": "01"}',
        '{"confidence": [0, 1' + 400 * "0" + '], "right": [0, 1]}',
        100_000 * "[",
    ],
)
def test_what_is_no_curve_is_refused_in_a_line(model: Path, text: str) -> None:
    (model / CONFIDENCE).write_text(text)
    with pytest.raises(CheckpointError, match="no calibration of confidence") as caught:
        Calibration.of(resolve(str(model)))
    assert "\n" not in str(caught.value)


def test_rows_say_what_was_measured(model: Path, page: Path) -> None:
    def row() -> dict[str, Any]:
        with pocketvlm.load(str(model)) as vlm:
            return next(documents.extract(vlm, str(page), "total: string", max_tokens=48))

    plain = row()
    (model / CONFIDENCE).write_text(json.dumps({"confidence": [0.0, 1.0], "right": [0.25, 0.25]}))
    measured = row()
    assert measured["data"] == plain["data"]
    assert plain["confidence"]["total"] != 0.25
    assert measured["confidence"] == {"total": 0.25}


def test_the_command_says_it_too_and_asks_again_when_it_changes(
    model: Path, page: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.jsonl"
    command = ("extract", str(page), "--schema", "total: string", "--max-tokens", "48", "--model", str(model))
    for share in (0.25, 0.5):
        (model / CONFIDENCE).write_text(json.dumps({"confidence": [0.0, 1.0], "right": [share, share]}))
        assert run(capsys, *command, "--out", str(out), "--overwrite")[0] == 0
        assert json.loads(out.read_text())["confidence"] == {"total": share}
