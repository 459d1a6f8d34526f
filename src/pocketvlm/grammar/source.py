"""Structured outputs as one grammar: `StructuredOutputs` → text in llguidance's variant of Lark's notation."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from pocketvlm.errors import ConfigError
from pocketvlm.grammar.lark import ONE_LINE, any_of, inline_json, literal, regex
from pocketvlm.grammar.structured_outputs import StructuredOutputs
from pocketvlm.grammar.tool_grammar import tool_grammar

MAX_GRAMMAR = 2 * 1024 * 1024  # characters of what is compiled

# Nothing is forced: a mask then holds every token that may follow, and a long constant is not walked for each token.
_OPTIONS = '\n%llguidance {"no_forcing": true}\n'
# One space, or one line's end and its indentation, as in printed JSON: small models fall into repeating white space.
_SPACE = {"whitespace_pattern": r"(?: |\r?\n[ \t]{0,32})"}
# What a user's grammar may not do, looked for outside its strings, regular expressions and comments.
_LARK_PIECES = re.compile(
    r"""(?://|\#).*|"(?:\\.|[^"\\\n])*"|/(?![*/])(?:\\.|[^/\\\n])+/|(?P<token><)|(?P<option>%llguidance)"""
    r"""|(?P<attribute>\b(?:temperature|stop)\s*=)"""
)


def grammar_text(spec: StructuredOutputs, control_tokens: Mapping[str, int]) -> str:
    """Return the grammar of `spec`.

    Args:
        control_tokens: ids of `<tool_call>` and `</tool_call>`, for tools.

    Raises:
        ConfigError: the grammar or a tool asks for what cannot be honoured, or there are no tokens for tool calls.
    """
    if spec.json is not None or spec.json_object:
        schema = {"type": "object"} if spec.json is None else json.loads(spec.json)
        text = f"start: {inline_json(schema, ONE_LINE if spec.disable_any_whitespace else _SPACE)}"
    elif spec.regex is not None:
        text = f"start: ANSWER\nANSWER: {regex(spec.regex)}"
    elif spec.choice is not None:
        text = f"start: ANSWER\nANSWER: {any_of(map(literal, spec.choice or ()))}"
    elif spec.grammar is not None:
        text = _checked(spec.grammar)
    else:
        text = tool_grammar(json.loads(spec.tools), spec.tool_choice, control_tokens, parallel=spec.parallel_tool_calls)
    if len(text) > MAX_GRAMMAR:
        raise ConfigError(f"the grammar takes {len(text)} characters written out, at most {MAX_GRAMMAR} are allowed")
    return text + _OPTIONS


def _checked(grammar: str) -> str:
    for piece in _LARK_PIECES.finditer(grammar):
        if piece.lastgroup is not None:
            reasons = {
                "token": "names a control token, which answers may not hold",
                "option": "sets options of the compiler",
                "attribute": "sets temperature or stop, which belong to the request",
            }
            line = grammar.count("\n", 0, piece.start()) + 1
            raise ConfigError(f"line {line} of the grammar {reasons[piece.lastgroup]}", hint="Leave it out.")
    return grammar
