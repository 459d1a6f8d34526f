"""Every number of a configuration is checked: the tests are made of the tables, so a new field is tested at once."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest

from pocketvlm import config_ranges
from pocketvlm.config import ImageConfig, ModelConfig, TextConfig, VisionConfig
from pocketvlm.errors import ConfigError
from pocketvlm.processing.patches.slicing import plan_views
from pocketvlm.ranges import Range
from pocketvlm.text_files import read_json
from pocketvlm.views import Size

TABLES: list[tuple[Any, Mapping[str, Range]]] = [
    (VisionConfig(), config_ranges.VISION),
    (TextConfig(), config_ranges.TEXT),
    (ModelConfig(), config_ranges.MODEL),
    (ImageConfig(), config_ranges.IMAGE),
]
ABSURD = [None, True, "1", [], math.nan, math.inf, -math.inf, 10**30, 10**5000, -(10**30)]


def outside(allowed: Range) -> Iterator[Any]:
    step = 1 if allowed.kind is int else abs(allowed.min) * 1e-3 + 1e-15
    yield allowed.min - step
    yield allowed.max + (1 if allowed.kind is int else allowed.max * 1e-3)
    if allowed.is_open:
        yield allowed.min
    if allowed.kind is int:
        yield allowed.min + 0.5


CASES = [
    pytest.param(config, name, allowed, id=f"{type(config).__name__}.{name}")
    for config, table in TABLES
    for name, allowed in table.items()
]


@pytest.mark.parametrize(("config", "name", "allowed"), CASES)
def test_a_number_outside_of_its_range_is_one_line(config: Any, name: str, allowed: Range) -> None:
    for value in (*outside(allowed), *ABSURD):
        with pytest.raises(ConfigError, match=name) as error:
            replace(config, **{name: value})
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 300


@pytest.mark.parametrize(("config", "name", "allowed"), CASES)
def test_the_published_value_and_the_bounds_are_inside(config: Any, name: str, allowed: Range) -> None:
    assert allowed.check(name, getattr(config, name)) == getattr(config, name)
    for bound in (allowed.min, allowed.max):
        if not (allowed.is_open and bound == allowed.min):
            assert allowed.check(name, allowed.kind(bound)) == bound


@pytest.mark.parametrize(("config", "name", "allowed"), CASES)
def test_a_number_of_a_file_is_read_as_what_it_means(config: Any, name: str, allowed: Range) -> None:
    """24.0 where a count is meant, 1 where a fraction is: programs of other languages write numbers so."""
    value = getattr(config, name)
    if allowed.kind is float:
        value = next((whole for whole in (1, 2) if allowed.min <= whole <= allowed.max), value)
    written = float(value) if allowed.kind is int else value
    data = ModelConfig().to_dict()
    places = {VisionConfig: data["vision_config"], TextConfig: data["text_config"], ModelConfig: data}
    if name in data["text_config"]["rope_parameters"]:
        data["text_config"]["rope_parameters"][name] = written
    else:
        places.get(type(config), {})[name] = written
    if isinstance(config, ImageConfig):
        read = getattr(ImageConfig.from_dict({name: written}), name)
    else:
        model = ModelConfig.from_dict(data)
        read = getattr({VisionConfig: model.vision, TextConfig: model.text}.get(type(config), model), name)
    assert read == value
    assert type(read) is allowed.kind


def test_layers_and_their_interval_may_be_written_with_a_point() -> None:
    data = ModelConfig().to_dict()
    del data["text_config"]["layer_types"]
    data["text_config"] |= {"num_hidden_layers": 24.0, "full_attention_interval": 4.0}
    assert ModelConfig.from_dict(data) == ModelConfig()


def test_colours_may_be_whole_numbers() -> None:
    for config in (ImageConfig(image_std=(1, 0.5, 1)), ImageConfig.from_dict({"image_std": [1, 0.5, 1]})):
        assert [type(value) for value in config.image_std] == [float] * 3
        assert config.image_std == (1.0, 0.5, 1.0)


@pytest.mark.parametrize(("config", "table"), TABLES)
def test_every_number_of_a_configuration_is_in_its_table(config: Any, table: Mapping[str, Range]) -> None:
    numbers = {f.name for f in fields(config) if type(getattr(config, f.name)) in (int, float)}
    assert numbers == set(table)


@pytest.mark.parametrize("name", list(config_ranges.COLOURS))
def test_colours_are_three_numbers_in_range(name: str) -> None:
    low, high = config_ranges.COLOURS[name].min, config_ranges.COLOURS[name].max
    for values in (
        (0.5, 0.5),
        (0.5,) * 4,
        "abc",
        None,
        (0.5, 0.5, low - 1),
        (high + 1, 0.5, 0.5),
        (math.nan, 0.5, 0.5),
    ):
        with pytest.raises(ConfigError, match=name):
            replace(ImageConfig(), **{name: values})
    if name == "image_std":
        with pytest.raises(ConfigError, match=name):
            replace(ImageConfig(), image_std=(0.0, 0.5, 0.5))


def test_layers_without_number_end_in_one_line() -> None:
    text = {key: value for key, value in asdict(TextConfig()).items() if key != "layer_types"}
    data = {"model_type": "minicpmv4_6", "vision_config": asdict(VisionConfig()), "text_config": text}
    for layers in (10**7, 10**30, -1, 0, True, "24", math.nan):
        with pytest.raises(ConfigError, match="num_hidden_layers"):
            ModelConfig.from_dict({**data, "text_config": {**text, "num_hidden_layers": layers}})


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "1" * 5000, "{"])
def test_json_that_cannot_be_read_is_one_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json is not readable JSON") as error:
        read_json(file)
    assert "\n" not in str(error.value)
    file.write_bytes(b"\xff\xfe{}")
    with pytest.raises(ConfigError, match="not readable JSON"):
        read_json(file)
    file.write_text(json.dumps({"a": 1}))
    assert read_json(file) == {"a": 1}


@pytest.mark.parametrize("factor", [1e-9, 1 / 256, 3 / 256, 0.3])
def test_a_part_of_a_head_that_cannot_turn_in_pairs_is_refused(factor: float) -> None:
    with pytest.raises(ConfigError, match="partial_rotary_factor"):
        TextConfig(head_dim=64 if factor == 0.3 else 256, partial_rotary_factor=factor)
    assert TextConfig(partial_rotary_factor=2 / 256).rotary_dim == 2


@pytest.mark.parametrize("patch", [1, 14, 256])
def test_a_view_that_no_picture_could_have_is_refused_at_load(patch: int) -> None:
    """A scale that is too large for one view would fail every request with a picture."""
    largest = min(2**14, 108 * patch)
    config = ImageConfig(scale_resolution=largest, patch_size=patch)
    assert plan_views(Size(height=500, width=500), config, "16x").views
    assert plan_views(Size(height=500, width=500), config, "4x").views
    if largest < 2**14:
        with pytest.raises(ConfigError, match=f"scale_resolution={2**14} is not an integer of 1 to {108 * patch}"):
            ImageConfig(scale_resolution=2**14, patch_size=patch)


def test_a_context_that_no_prompt_fits_is_refused_at_load() -> None:
    data = ModelConfig().to_dict()
    data["text_config"]["max_position_embeddings"] = 1
    with pytest.raises(ConfigError, match="max_position_embeddings=1 is not an integer of 16 to"):
        ModelConfig.from_dict(data)
