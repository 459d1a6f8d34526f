"""Options of sampling: what can be honoured is taken, everything else refused in one line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import pocketvlm
from pocketvlm.engine.sampling.params import NOT_HONOURED, SamplingParams
from pocketvlm.errors import ConfigError

BEAMS = {"num_beams": 2, "temperature": 0}


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"temperature": "hot"},
        {"temperature": 10**400},
        {"stop": 5},
        {"top_p": 0},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"top_k": -2},
        {"top_k": 1.5},
        {"max_tokens": 0},
        {"max_tokens": True},
        {"repetition_penalty": 0},
        {"frequency_penalty": 2.1},
        {"frequency_penalty": float("nan")},
        {"presence_penalty": -3},
        {"presence_penalty": "1"},
        {"seed": "x"},
        {"stop": ("",)},
        {"stop": tuple("abcdefghijklmnopqrstuvwxyz")},
        {"stop_token_ids": 5},
        {"stop_token_ids": (1, -1)},
        {"stop_token_ids": ("a",)},
        {"stop_token_ids": (True,)},
        {"stop_token_ids": list(range(1025))},
        {"ignore_eos": 1},
        {"min_tokens": -1},
        {"min_tokens": 11, "max_tokens": 10},
        {"logprobs": 21},
        {"logprobs": True},
        {"logprobs": -1},
        {"logit_bias": 5},
        {"logit_bias": [1, 2]},
        {"logit_bias": {"5": 1.0}},
        {"logit_bias": {-5: 1.0}},
        {"logit_bias": {5: 101}},
        {"logit_bias": {5: float("nan")}},
        {"logit_bias": {5: None}},
        {"logit_bias": dict.fromkeys(range(1025), 1.0)},
        {"n": 0},
        {"n": 65},
        {"n": 2, "prompt_lookup_num_tokens": 3},
        {"no_repeat_ngram_size": 3},
        {"num_beams": 0},
        {"num_beams": 65, "temperature": 0},
        {"num_beams": 2.0, "temperature": 0},
        {"num_beams": True},
        {"num_beams": 2},  # at the default temperature of 1
        {"num_beams": 2, "temperature": 0.5},
        {"stop": ("x",), **BEAMS},
        {"n": 2, **BEAMS},
        {"logprobs": 0, **BEAMS},
        {"frequency_penalty": 1.0, **BEAMS},
        {"presence_penalty": 1.0, **BEAMS},
        {"logit_bias": {3: 1.0}, **BEAMS},
        {"min_tokens": 1, **BEAMS},
        {"prompt_lookup_num_tokens": 1, **BEAMS},
        {"length_penalty": float("nan"), **BEAMS},
        {"length_penalty": 11, **BEAMS},
        {"length_penalty": "long", **BEAMS},
        {"length_penalty": 2.0},  # without beams
        {"early_stopping": True},
        {"early_stopping": "never", **BEAMS},
        {"early_stopping": 1, **BEAMS},
    ],
)
def test_an_option_that_cannot_be_honoured_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as error:
        SamplingParams.from_options(options, {})
    assert "\n" not in str(error.value)
    assert next(iter(options)) in str(error.value)
    assert len(str(error.value)) < 1000


def test_beams_take_what_asks_for_nothing() -> None:
    asked = SamplingParams(
        **BEAMS, logit_bias={}, min_tokens=0, presence_penalty=0, stop_token_ids=(7,), ignore_eos=True
    )
    assert asked == SamplingParams(**BEAMS, stop_token_ids=(7,), ignore_eos=True)


def test_parameters_are_hashable_and_can_be_made_again() -> None:
    params = SamplingParams(logit_bias={9: -1, 3: 2.5}, stop_token_ids=[4, 2], stop="x")  # type: ignore[arg-type]
    assert params.logit_bias == ((3, 2.5), (9, -1))
    assert params.stop_token_ids == (4, 2)
    assert {params: 1}[replace(params)] == 1


def test_structured_outputs_are_of_their_own_type_and_without_beams(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class StructuredOutputs:
        regex: str

    module = ModuleType("structured_outputs")
    module.StructuredOutputs = StructuredOutputs  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pocketvlm.grammar.structured_outputs", module)
    asked = StructuredOutputs("a+")
    assert SamplingParams(structured_outputs=asked).structured_outputs is asked  # type: ignore[arg-type]
    for options in ({"structured_outputs": {"regex": "a+"}}, {"structured_outputs": asked, **BEAMS}):
        with pytest.raises(ConfigError, match="structured_outputs"):
            SamplingParams.from_options(options, {})


def test_tokens_outside_the_vocabulary_are_refused() -> None:
    for params in (SamplingParams(logit_bias={9: 1.0}), SamplingParams(stop_token_ids=(9,))):
        params.check_vocabulary(10)
        with pytest.raises(ConfigError, match="9"):
            params.check_vocabulary(9)


def test_defaults_of_a_checkpoint_are_greedy_unless_it_samples() -> None:
    assert SamplingParams.defaults_of({"temperature": 0.7}) == {"temperature": 0.0}
    assert SamplingParams.defaults_of({"do_sample": True, "temperature": 1, "top_k": 50.0})["top_k"] == 50
    assert SamplingParams.defaults_of({"do_sample": True, "temperature": 0.7, "top_k": 0}) == {
        "temperature": 0.7,
        "top_k": 0,
    }


@pytest.mark.parametrize("value", ["x", "", [], {}, 0, 1, 1.0], ids=repr)
def test_do_sample_is_a_boolean_or_nothing(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^generation_config\.json: do_sample is .*, expected true, false or null"):
        SamplingParams.defaults_of({"do_sample": value})
    assert SamplingParams.defaults_of({"do_sample": None}) == {"temperature": 0.0}


@pytest.mark.parametrize("sampling", [{}, {"do_sample": False}, {"do_sample": None}, {"do_sample": True}], ids=repr)
@pytest.mark.parametrize("value", ["x", -1, True, []], ids=repr)
def test_a_temperature_is_checked_also_where_nothing_is_drawn(sampling: dict[str, Any], value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^generation_config\.json: temperature="):
        SamplingParams.defaults_of({"temperature": value, **sampling})


def test_what_a_checkpoint_asks_for_and_does_not_get_is_named_once_at_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("pocketvlm.api.vlm.logger.warning", lambda line, *values: said.append(line % values))
    with resources.as_file(resources.files("pocketvlm").joinpath("assets/nano")) as nano:
        model = Path(shutil.copytree(nano, tmp_path / "model"))
    neutral = {name: (*values, None)[0] for name, values in NOT_HONOURED.items()}
    asked = {"num_beams": 4, "max_new_tokens": 64, "suppress_tokens": [3], "typical_p": 0.9, "stop_strings": "x"}
    for extra, expected in ((neutral, []), (neutral | asked, [", ".join(sorted(asked))])):
        content = {"temperature": 1.0, "eos_token_id": 721, "use_cache": True} | extra
        (model / "generation_config.json").write_text(json.dumps(content))
        said.clear()
        pocketvlm.load(model, runtime="torch").close()
        assert [line.partition("is not done: ")[2] for line in said] == expected


def test_the_defaults_of_the_reference_ask_for_nothing() -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra reference")
    assert SamplingParams.not_honoured(transformers.GenerationConfig().to_dict()) == []


def test_options_are_checked_without_torch() -> None:
    code = (
        "import sys; from pocketvlm.engine.sampling.params import SamplingParams as P;"
        "P(logit_bias={1: 2.0}, logprobs=3); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
