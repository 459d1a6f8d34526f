"""Tool definitions: one check, whichever way they come in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pocketvlm.errors import PromptError
from pocketvlm.grammar.structured_outputs import StructuredOutputs
from pocketvlm.processing.prompt.template import ChatTemplate
from pocketvlm.processing.prompt.tokenizer import Tokenizer
from pocketvlm.protocol.chat_request import parse_chat_completion
from pocketvlm.tools.definitions import MAX_DEPTH, MAX_TOOLS, MAX_TOOLS_TEXT, check_tools

NANO = Path(__file__).resolve().parents[2] / "src" / "pocketvlm" / "assets" / "nano"
Q = {"role": "user", "content": "q"}


def tool(name: Any = "look", **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object"}, **function}}


def nested(levels: int) -> Any:
    value: Any = "x"
    for _ in range(levels):
        value = [value]
    return value


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    return ChatTemplate.from_directory(NANO, Tokenizer.from_directory(NANO).control_tokens)


@pytest.mark.parametrize(
    ("tools", "fault"),
    [
        (["look"], r"tools\[0\]: expected"),
        ([{"name": "look"}], r"tools\[0\]: expected"),
        ([{"type": "function", "function": []}], r"tools\[0\]: expected"),
        ([tool(), tool("")], r"tools\[1\]\.function\.name is ''"),
        ([tool(None)], r"function\.name is missing"),
        ([tool("a<b")], r"name is 'a<b'.*without < and >"),
        ([tool(" a")], "name is ' a'"),
        ([tool("a" * 257)], "up to 256 printable characters"),
        ([tool("a"), tool("b"), tool("a")], r"tools\[2\]\.function\.name is 'a', as that of another"),
        ([tool(parameters="x")], r"tools\[0\]\.function\.parameters is 'x'"),
        ([tool(strict="yes")], r"tools\[0\]\.function\.strict is 'yes'"),
        ([tool(x={1, 2})], r"tools\[0\] holds a set"),
        ([tool(x=float("inf"))], r"tools\[0\] holds inf"),
        ([tool(description="\ud800")], "half of a surrogate pair"),
        ([tool(x=nested(MAX_DEPTH))], r"tools\[0\] is nested"),
        ([tool(x=nested(100_000))], r"tools\[0\] is nested"),
        ([tool(str(i)) for i in range(MAX_TOOLS + 1)], "at most 128"),
        ([tool(description="é" * (MAX_TOOLS_TEXT // 2))], "bytes as JSON, at most"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else "",
)
def test_every_way_in_refuses_the_same_in_the_same_line(template: ChatTemplate, tools: Any, fault: str) -> None:
    lines = set()
    for ask in (
        lambda: template.render([Q], tools=tools),
        lambda: StructuredOutputs(tools=tools),
        lambda: parse_chat_completion({"messages": [Q], "tools": tools}),
        lambda: parse_chat_completion({"messages": [Q], "tools": tools, "tool_choice": "none"}),
    ):
        with pytest.raises(PromptError, match=fault) as caught:
            ask()
        lines.add(str(caught.value))
    assert len(lines) == 1
    assert len(min(lines)) < 200


def test_what_is_at_a_limit_is_taken_everywhere(template: ChatTemplate) -> None:
    tools = [tool(f"t{i}", parameters=None, strict=None) for i in range(MAX_TOOLS - 1)]
    tools.append(tool("a" * 256, x=nested(MAX_DEPTH - 3)))
    free = MAX_TOOLS_TEXT - len(json.dumps(check_tools([*tools[:-1], tool("a" * 256, x=nested(MAX_DEPTH - 3), d="")])))
    tools[-1]["function"]["d"] = "x" * free
    assert check_tools(tools) == tools
    assert template.render([Q], tools=tools).text.count('"parameters": null') == MAX_TOOLS - 1
    assert json.loads(StructuredOutputs(tools=tools).tools) == tools
    assert parse_chat_completion({"messages": [Q], "tools": tools}).options == {"tools": tools}


def test_no_list_is_refused_and_an_empty_one_means_none() -> None:
    assert check_tools(None) is check_tools([]) is None
    for wrong in ("look", {"a": 1}, 3):
        with pytest.raises(PromptError, match="expected a list of tool definitions"):
            check_tools(wrong)
