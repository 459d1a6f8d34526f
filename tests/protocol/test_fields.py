"""A whole float is the integer that it is equal to, in every field of every body that takes an integer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketvlm.errors import ConfigError
from pocketvlm.processing.picture_options import PICTURE_OPTIONS
from pocketvlm.processing.prompt.messages import check_messages
from pocketvlm.protocol.chat_request import OPTIONS, parse_chat_completion
from pocketvlm.protocol.fields import MAX_INTEGER, MIN_INTEGER, check
from pocketvlm.protocol.ollama_request import parse_ollama
from pocketvlm.protocol.responses_request import LOGPROBS, RESPONSE_OPTIONS, WITHOUT_EFFECT_HERE, parse_response_request
from pocketvlm.protocol.tokenize_request import parse_detokenize
from pocketvlm.protocol.view_plan import parse_view_plan

HELLO = {"role": "user", "content": "Hello"}
INTEGERS = st.integers(MIN_INTEGER, MAX_INTEGER)


def integers(table: dict[str, Any], value: int) -> dict[str, Any]:
    """Fields of a table that take integers, with one."""
    kinds = {name: kind if isinstance(kind, str) else kind[0] for name, kind in table.items()}
    return {
        name: [value] if kind == "list of integers" else value
        for name, kind in kinds.items()
        if kind in ("integer", "list of integers")
    }


def bodies(value: int) -> dict[str, tuple[Callable[[Any], Any], dict[str, Any]]]:
    """What reads each body, and one with an integer wherever it may have one."""
    seen = {"mm_processor_kwargs": integers(dict(PICTURE_OPTIONS), value)}
    ollama = dict.fromkeys(("top_k", "seed", "num_predict", "num_ctx", "num_gpu", "num_thread", "repeat_last_n"), value)
    return {
        "chat": (
            parse_chat_completion,
            {
                "messages": [HELLO],
                "logprobs": True,
                "top_logprobs": value,
                "max_tokens": value,
                "max_completion_tokens": value,
                **integers(OPTIONS, value),
                **seen,
            },
        ),
        "responses": (
            parse_response_request,
            {
                "input": "Hello",
                "include": [LOGPROBS],
                "top_logprobs": value,
                "max_output_tokens": value,
                **integers(RESPONSE_OPTIONS, value),
                **integers(WITHOUT_EFFECT_HERE, value),
                **seen,
            },
        ),
        "ollama": (
            lambda body: parse_ollama("chat", body),
            {
                "model": "nano",
                "messages": [HELLO],
                "logprobs": True,
                "top_logprobs": value,
                "keep_alive": value,
                "options": {**ollama, **integers(dict(PICTURE_OPTIONS), value)},
            },
        ),
        "detokenize": (lambda body: parse_detokenize(body, 100), {"tokens": [value, 0]}),
        "view plan": (parse_view_plan, {"images": ["data:a"], "mm_processor_kwargs": {"max_slice_nums": value}}),
        "messages": (
            check_messages,
            [{"role": "user", "content": [{"type": "image", "image": "a", "max_slice_nums": value}]}],
        ),
    }


def with_floats(body: Any) -> Any:
    """The same body, its integers written as floats."""
    if isinstance(body, dict):
        return {name: with_floats(value) for name, value in body.items()}
    if isinstance(body, list):
        return [with_floats(value) for value in body]
    return float(body) if isinstance(body, int) and not isinstance(body, bool) else body


@pytest.mark.parametrize("name", bodies(1))
@given(value=st.integers(1, 8))
def test_a_body_with_whole_floats_is_the_body_with_integers(name: str, value: int) -> None:
    parse, body = bodies(value)[name]
    floats = with_floats(body)
    assert repr(floats) != repr(body)
    assert repr(parse(floats)) == repr(parse(body))  # in which 3 and 3.0 differ


@given(INTEGERS)
def test_integers_are_themselves(value: int) -> None:
    assert check("a", value, "integer") == value
    assert check("a", [value, value], "list of integers") == [value, value]


@given(st.floats() | INTEGERS.map(float) | st.sampled_from((1e400, -1e400, 2.0**63, -(2.0**63), -0.0, 1.5)))
def test_floats_are_integers_where_they_are_whole_and_of_64_bits(value: float) -> None:
    is_whole = math.isfinite(value) and value.is_integer() and MIN_INTEGER <= value <= MAX_INTEGER
    for given_, kind in ((value, "integer"), ([1, value], "list of integers")):
        if is_whole:
            found = check("a", given_, kind)
            assert repr(found) == repr([1, int(value)] if isinstance(given_, list) else int(value))
        else:
            with pytest.raises(ConfigError, match="a is "):
                check("a", given_, kind)


@pytest.mark.parametrize("value", [True, False, "3", "3.0", None, [3], 2**63, -(2**63) - 1, 10**400])
def test_what_is_no_integer_stays_refused(value: Any) -> None:
    for given_, kind in ((value, "integer"), ([value], "list of integers")):
        with pytest.raises(ConfigError, match="a is "):
            check("a", given_, kind)
