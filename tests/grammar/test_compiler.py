"""Answers drawn at random from the masks are what was asked for; masks hold what may come next, and nothing else."""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.random_structures import Walker, allowed_ids, random_schema, random_tool, read_json
from jsonschema import Draft202012Validator

from pocketvlm.errors import CheckpointError, ConfigError, MissingExtraError, QueueFullError
from pocketvlm.grammar import compiler as grammar_module
from pocketvlm.grammar import trial_worker
from pocketvlm.grammar.compiler import KEPT, Grammar, GrammarCompiler
from pocketvlm.grammar.structured_outputs import StructuredOutputs
from pocketvlm.processing.prompt.tokenizer import Tokenizer
from pocketvlm.tools.calls import parse_tool_calls

NANO = Path(__file__).resolve().parents[2] / "src" / "pocketvlm" / "assets" / "nano"
BEYOND = 41  # ids that only the model has
TOOLS = [random_tool(random.Random(seed), name) for seed, name in ((3, "get_x"), (5, "get_xy"), (8, "send"))]
NOT_A_FLOAT = re.compile(r"\d[eE]\+?\d{3}")  # which a tool's arguments cannot carry


class Setting:
    """A tokenizer, its compiler, and a walker."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.vocab_size = tokenizer, tokenizer.vocab_size + BEYOND
        self.compiler = GrammarCompiler(tokenizer, self.vocab_size, tokenizer.stop_ids)
        self.walker = Walker(tokenizer, self.vocab_size)

    def compile(self, **kind: Any) -> Grammar:
        return self.compiler.compile(StructuredOutputs(**kind))

    def answers(self, grammar: Grammar, count: int) -> Iterator[str]:
        for seed in range(count):
            yield self.tokenizer.decode(self.walker.answer(grammar, random.Random(seed)), skip_special=False)


@pytest.fixture(scope="module")
def tiny(checkpoint: Path) -> Iterator[Setting]:
    setting = Setting(Tokenizer.from_directory(checkpoint))
    yield setting
    setting.compiler.close()


@pytest.fixture(scope="module")
def nano() -> Iterator[Setting]:
    setting = Setting(Tokenizer.from_directory(NANO))
    yield setting
    setting.compiler.close()


@pytest.fixture(scope="module", params=["tiny", "nano"])
def setting(request: pytest.FixtureRequest) -> Setting:
    return request.getfixturevalue(request.param)


class _Held:
    """A lock that somebody else has; it notes how long one would wait."""

    seconds = 0.0

    def acquire(self, timeout: float) -> bool:
        self.seconds += timeout
        return False


def test_a_grammar_waits_as_long_as_that_of_another_may_take(tiny: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    held = _Held()
    monkeypatch.setattr(tiny.compiler, "_compiling", held)
    with pytest.raises(QueueFullError, match="other grammars are being compiled"):
        tiny.compile(choice=("never", "compiled"))
    assert held.seconds >= trial_worker.TO_START + trial_worker.TO_TRY


def test_every_answer_is_valid_by_its_schema(setting: Setting) -> None:
    for seed in range(60):
        schema = random_schema(random.Random(seed))
        for answer in setting.answers(setting.compile(json=schema), 2):
            Draft202012Validator(schema).validate(read_json(answer))


def test_a_json_object_is_one(setting: Setting) -> None:
    for answer in setting.answers(setting.compile(json_object=True), 20):
        assert isinstance(read_json(answer), dict)


@pytest.mark.parametrize("regex", ["(ab)+", r"[0-9]{2,4}/(x|\.y?)", "", "a/b\nc|[/\\]]", "^née{3}$", "[^a]{2}"])
def test_answers_match_the_whole_regular_expression_and_end_only_there(setting: Setting, regex: str) -> None:
    grammar = setting.compile(regex=regex)
    for seed in range(10):
        text = b""
        for _, allowed, token in setting.walker.steps(grammar, random.Random(seed)):
            # Half a character is no match.
            whole = text.decode(errors="ignore")
            may_end = whole.encode() == text and re.fullmatch(regex, whole) is not None
            assert setting.tokenizer.stop_ids.isdisjoint(allowed) != may_end, text
            text += b"" if token in setting.tokenizer.stop_ids else setting.tokenizer.token_bytes(token)
        assert re.fullmatch(regex, text.decode())


def test_masks_of_choices_are_the_tokens_that_lead_to_one(setting: Setting) -> None:
    choices = ("", "yes", "yes and no", "image", "imagé\n", 'a "quoted\\ word"', "<|im_end|>", "日本 🙂", "e\u0301")
    grammar, control = setting.compile(choice=choices), frozenset(setting.tokenizer.control_tokens.values())
    words = {t: setting.tokenizer.token_bytes(t) for t in range(setting.tokenizer.vocab_size) if t not in control}
    found = set()
    for seed in range(60):
        text = b""
        for _, allowed, token in setting.walker.steps(grammar, random.Random(seed)):
            ways = [choice.encode()[len(text) :] for choice in choices if choice.encode().startswith(text)]
            expected = {t for t, word in words.items() if word and any(way.startswith(word) for way in ways)}
            assert set(allowed) == expected | (setting.tokenizer.stop_ids if b"" in ways else set())
            text += words.get(token, b"")
        found.add(text.decode())
    assert found <= set(choices)
    assert len(found) > 4


def test_answers_follow_a_grammar(setting: Setting) -> None:
    text = """
start: sum // no "<" here
sum: product ("+" product)*
product: NUMBER | "(" sum ")" # <
NUMBER: /[1-9][0-9]?/
"""
    for answer in setting.answers(setting.compile(grammar=text), 10):
        assert re.fullmatch(r"[0-9+()]+", answer)
        assert eval(answer) > 0


@pytest.mark.parametrize("choice", ["auto", "required", "get_xy"])
def test_tool_calls_are_read_back_as_valid_arguments(setting: Setting, choice: str) -> None:
    opening, seen = setting.tokenizer.control_id("<tool_call>"), set()
    for seed in range(40):
        rng = random.Random(seed)
        tools = [random_tool(rng, name) for name in ("get_x", "get_xy", "send")]
        ids = setting.walker.answer(setting.compile(tools=tools, tool_choice=choice), rng)
        text = setting.tokenizer.decode(ids, skip_special=False)
        beside, calls = parse_tool_calls(text, tools)
        assert len(calls) == ids.count(opening)
        if choice != "auto":
            assert calls
            assert not beside
        assert not text.partition("<tool_call>")[2] or text.endswith("\n</function>\n</tool_call>")
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
        for call in calls:
            assert choice in ("auto", "required", call.name)
            if not NOT_A_FLOAT.search(str(call.arguments)):
                Draft202012Validator(schemas[call.name]).validate(call.arguments)
        seen |= {call.name for call in calls}
    assert seen == ({"get_xy"} if choice == "get_xy" else {"get_x", "get_xy", "send"})


def accepts(setting: Setting, grammar: Grammar, ids: list[int]) -> bool:
    """Whether these ids are a whole answer."""
    return all(map(grammar.start().accept, [*ids, min(setting.tokenizer.stop_ids)]))


def test_text_before_tool_calls_cannot_spell_one(tiny: Setting) -> None:
    grammar, encode = tiny.compile(tools=TOOLS), tiny.tokenizer.encode_plain
    assert accepts(tiny, grammar, encode("Not <tool_call or </tool_call>."))
    assert not accepts(tiny, grammar, encode("Not <tool_call>."))


def test_json_is_compact_or_printed_and_white_space_ends(tiny: Setting) -> None:
    """Trap: small models fall into repeating white space, and never come to the next key."""
    value, encode = {"a": [1, {"b": "c  d"}], "e": {}}, tiny.tokenizer.encode_plain
    grammar = tiny.compile(json={"type": "object"})
    for text in (
        json.dumps(value),
        json.dumps(value, separators=(",", ":")),
        *(json.dumps(value, indent=n) for n in (2, 4)),
    ):
        assert accepts(tiny, grammar, encode(text))
        assert accepts(tiny, grammar, encode(text.replace("\n", "\r\n")))
    for text in ('{ \n "a": 1}', '{"a":  1}', '{"a":\n\n1}', '{"a":\t1}', '{"a":\n' + 33 * " " + "1}"):
        assert json.loads(text) == {"a": 1}
        assert not accepts(tiny, grammar, encode(text))
    one_line = tiny.compile(json={"type": "object"}, disable_any_whitespace=True)
    assert accepts(tiny, one_line, encode(json.dumps(value)))
    assert accepts(tiny, one_line, encode(json.dumps(value, separators=(",", ":"))))
    for text in ('{"a":\n1}', '{ "a": 1}', '{"a": 1 }', '{"a":  1}', json.dumps(value, indent=2)):
        assert not accepts(tiny, one_line, encode(text))


@pytest.mark.parametrize(
    ("schema", "fitting", "others"),
    [
        ({"type": ["string", "integer"]}, ["3", "-20", "2 x", "null", "[1]", "", "true", "03"], [" 3", "3.0"]),
        ({"type": ["string", "integer"], "minimum": 3}, ["3", "77", "x 2", "true"], ["2", " 2 ", "2 x"]),
        ({"type": ["string", "number", "null"]}, ["1e5", "-0.5", "null", "nullable", "3,5", "1."], ["None", " null"]),
        ({"type": ["string", "boolean"], "maxLength": 5}, ["true", "truly", "12345"], ["True", "123456", " false"]),
        ({"anyOf": [{"type": "string"}, {"type": "array", "maxItems": 1}]}, ["[]", "[2]", "2]"], ["[1, 2]", "[x"]),
        ({"oneOf": [{"enum": ["a", "3"]}, {"type": "object"}, {"type": "null"}]}, ["a", "3", '{"a": 1}'], ["b"]),
        ({"enum": ["auto", "7", 7, None, [1]]}, ["auto", "7", "null", "[1]"], ["[2]", "8", "None", '"auto"']),
        ({"$ref": "#/$defs/d"}, ["2"], ["1", "x", '"2"']),
        ({"type": "array", "items": {"$ref": "#/$defs/d"}}, ["[2, 3]", "[]"], ["[1]", "2"]),
        ({}, ["", "2", "{", "a\nb"], ["</parameter>", "a<tool_call>"]),
    ],
    ids=str,
)  # fmt: skip
def test_values_of_several_types_are_told_apart(
    tiny: Setting, schema: dict[str, Any], fitting: list[str], others: list[str]
) -> None:
    parameters = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    tools = [
        {"type": "function", "function": {"name": "f", "parameters": {**parameters, "$defs": {"d": {"enum": [2, 3]}}}}}
    ]
    grammar = tiny.compile(tools=tools, tool_choice="f")
    for text in (*fitting, *others):
        ids = tiny.tokenizer.encode_trusted("<tool_call>") + tiny.tokenizer.encode_plain(
            f"\n<function=f>\n<parameter=a>\n{text}\n</parameter>\n</function>\n"
        )
        ids.append(tiny.tokenizer.control_id("</tool_call>"))
        assert accepts(tiny, grammar, ids) == (text in fitting), text
        if text in fitting and "$defs" not in str(schema):
            (call,) = parse_tool_calls(tiny.tokenizer.decode(ids), tools)[1]
            Draft202012Validator(parameters).validate(call.arguments)


def test_a_tool_call_is_written_to_the_letter(tiny: Setting) -> None:
    properties = {"text": {"type": "string"}, "n": {"type": "integer"}, "unit": {"enum": ["c", "f"]}}
    parameters = {"type": "object", "properties": properties, "required": ["text", "unit"]}
    tools = [{"type": "function", "function": {"name": "do", "parameters": parameters}}, *TOOLS]
    call = (
        "<tool_call>\n<function=do>\n"
        "<parameter=text>\n two\nlines <b>\n\n</parameter>\n<parameter=n>\n-3\n</parameter>\n"
        "<parameter=unit>\nf\n</parameter>\n</function>\n</tool_call>"
    )
    grammar = tiny.compile(tools=tools, tool_choice="required")

    def fits(text: str) -> bool:
        return accepts(tiny, grammar, tiny.tokenizer.encode_trusted(text))

    assert fits(call)
    assert fits(f"{call}\n{call}")
    alone = tiny.compile(tools=tools, tool_choice="required", parallel_tool_calls=False)
    assert accepts(tiny, alone, tiny.tokenizer.encode_trusted(call))
    assert not accepts(tiny, alone, tiny.tokenizer.encode_trusted(f"{call}\n{call}"))
    for wrong in (
        call.replace("-3", "3.5"),
        call.replace("\nf\n", "\ng\n"),
        call.replace("<parameter=unit>\nf\n</parameter>\n", ""),
        call.replace("lines", "</parameter>"),
        call.replace("lines", "<tool_response>"),
        call.replace("do", "don"),
        f"Sure. {call}",
        f"{call}{call}",
        f"{call}\n",
    ):
        assert not fits(wrong), wrong


def chain(count: int, link: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """A schema of `count` definitions, each made of a reference to the next one."""
    defined = {f"a{i}": link({"$ref": f"#/$defs/a{i + 1}"}) for i in range(count)}
    return {"$ref": "#/$defs/a0", "$defs": {**defined, f"a{count}": {"type": "object"}}}


def doubling(name: str, count: int, suffix: str) -> str:
    """A grammar of `count` symbols, each of which is twice the next one."""
    symbols = [f"{name}{i}: {name}{i + 1} {name}{i + 1} {suffix}" for i in range(count)]
    return "\n".join([f"start: {name}0", *symbols, f'{name}{count}: "x" {suffix}'])


PATTERNS = [{"pattern": f"(a|b)*a(a|b){{{20 + i}}}"} for i in range(50)]
UNIONS = [{"anyOf": [{"minLength": 9 * i + j} for j in range(9)]} for i in range(40)]
# What is asked for, and whether that is given up for its time, memory or stack on any machine.
HOSTILE: dict[str, tuple[dict[str, Any], bool]] = {
    "nested quantifiers": ({"regex": "(((((a{1,100}){1,100}){1,100})+)+)+b"}, False),
    "huge count": ({"regex": "a{1000000000}"}, False),
    "counts of letters": ({"regex": r"\w{1,1000}" * 200}, False),
    "many options": ({"regex": "a?" * 1000 + "a" * 1000}, False),
    "optional symbols": ({"grammar": "start: " + '"a"? ' * 9000}, True),
    "doubling terminals": ({"grammar": doubling("A", 2000, "")}, True),
    "doubling rules": ({"grammar": doubling("a", 60, "|")}, False),
    "ambiguity": ({"grammar": 'start: start start | start start start | "a" |'}, False),
    "parentheses": ({"grammar": "start: " + "(" * 20000 + '"a"' + ")" * 20000}, False),
    "lists": ({"json": {"type": "array", "minItems": 10**9, "items": {"type": "array", "minItems": 10**9}}}, False),
    "lengths": ({"json": {"type": "string", "minLength": 10**8, "maxLength": 10**9}}, False),
    "large divisor": ({"json": {"type": "integer", "multipleOf": 999999937}}, False),
    "long product": ({"json": {"allOf": UNIONS}}, False),
    "patterns together": ({"json": {"allOf": PATTERNS}}, True),
    "overflow of the stack": ({"json": chain(1000, lambda inner: {"type": "array", "items": inner})}, True),
    "doubling references": (
        {"json": chain(40, lambda r: {"type": "object", "properties": {k: {"type": "object", **r} for k in "lr"}})},
        True,
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_input_is_refused_or_its_answers_go_on(nano: Setting, name: str) -> None:
    kind, is_given_up = HOSTILE[name]
    message, rng = "", random.Random(0)
    try:
        state = nano.compile(**kind).start()
    except ConfigError as error:
        message = str(error)
    else:
        for _ in range(50):
            if not state.accept(rng.choice(allowed_ids(state, nano.vocab_size))):
                break
    assert "too much time" in message or not is_given_up, message
    assert "\n" not in message
    assert next(nano.answers(nano.compile(choice=[name]), 1)) == name  # those who ask next are served


@pytest.mark.parametrize(
    "kind",
    [
        {"json": False},
        {"json": {"type": "integer", "minimum": 5, "maximum": 4}},
        {"json": {"type": "object", "properties": {"a": False}, "required": ["a"]}},
        {"json": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}},
        {"json": {"type": "array", "uniqueItems": True}},
        {"json": {"$ref": "https://example.org/schema"}},
        {"json": {"type": "text"}},
        {"regex": "(?=a)b"},
        {"regex": "(a"},
        {"regex": r"[^\s\S]"},
        {"grammar": "start: start"},
        {"grammar": "begin: /a/"},
        {"grammar": "start: <think> /a/"},
        {"grammar": "start: <[3]>"},
        {"grammar": '%llguidance {"allow_invalid_utf8": true}\nstart: /a/'},
        {"grammar": "start: x\nx[temperature=0.5]: /a/"},
        {"grammar": 'start: x "b"\nx[stop="q"]: /.*/'},
    ],
    ids=str,
)
def test_what_cannot_be_satisfied_or_honoured_is_refused(tiny: Setting, kind: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        tiny.compile(**kind)


@pytest.mark.parametrize(
    "kind",
    [
        {"json": random_schema(random.Random(4))},
        {"json_object": True},
        {"regex": "(?s:.){3,5}"},
        {"grammar": 'start: "a" X\nX: ~/a+/'},
        {"tools": TOOLS},
        {"tools": TOOLS, "tool_choice": "required"},
    ],
    ids=["json", "json_object", "regex", "grammar", "tools", "required"],
)
def test_masks_are_what_is_accepted(tiny: Setting, kind: dict[str, Any]) -> None:
    grammar, control = tiny.compile(**kind), frozenset(tiny.tokenizer.control_tokens.values())
    tags = {tiny.tokenizer.control_id(name) for name in ("<tool_call>", "</tool_call>")} if "tools" in kind else set()
    for seed in range(4):
        for step, (state, allowed, _) in enumerate(tiny.walker.steps(grammar, random.Random(seed))):
            assert control.intersection(allowed) <= tiny.tokenizer.stop_ids | tags
            if step % 5 == 0:
                assert allowed == [t for t in range(-1, tiny.vocab_size + 1) if state.copy().accept(t)]
                assert state.is_finished == tiny.tokenizer.stop_ids.issuperset(allowed)


def test_only_stop_ids_follow_the_end(tiny: Setting) -> None:
    state, stops = tiny.compile(choice=["user"]).start(), tiny.tokenizer.stop_ids
    assert not any(map(state.copy().accept, stops))
    (user,) = tiny.tokenizer.encode_plain("user")
    assert not state.is_finished
    assert state.accept(user)
    for _ in range(3):
        assert state.is_finished
        assert allowed_ids(state, tiny.vocab_size) == sorted(stops)
        assert not state.accept(user)
        assert state.accept(max(stops))


def test_an_answer_begins_after_thinking(setting: Setting) -> None:
    tokenizer, ends = setting.tokenizer, setting.tokenizer.control_id("</think>")
    spec = StructuredOutputs(json={"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]})
    state = setting.compiler.compile(spec, after_thinking=True).start()
    anything = set(range(tokenizer.vocab_size)) - tokenizer.stop_ids
    for token in [*tokenizer.encode_plain('Hm, {"a'), tokenizer.control_id("<image>")]:
        assert set(allowed_ids(state, setting.vocab_size)) == anything
        assert not state.copy().accept(min(tokenizer.stop_ids))
        assert state.accept(token)
    assert state.accept(ends)
    answer = setting.compiler.compile(spec).start()
    begins, white = allowed_ids(answer, setting.vocab_size), set(" \t\r\n")
    for _ in range(4):
        allowed = allowed_ids(state, setting.vocab_size)
        assert allowed == [t for t in range(setting.vocab_size) if state.copy().accept(t)]
        assert set(begins) < set(allowed)
        assert all(set(tokenizer.decode([t])) <= white for t in set(allowed).difference(begins))
        assert state.accept(tokenizer.encode_plain("\n")[0])
    assert allowed_ids(state, setting.vocab_size) == begins
    for token in tokenizer.encode_plain('{"a":1}'):
        assert state.accept(token)
    assert not state.accept(ends)
    assert state.is_finished
    state.rollback(len(tokenizer.encode_plain('{"a":1}')) + 5)
    assert set(allowed_ids(state, setting.vocab_size)) == anything


def test_copies_are_apart_and_tokens_can_be_taken_back(setting: Setting) -> None:
    grammar = setting.compile(json=random_schema(random.Random(7)))
    states, masks = [], []
    for state, allowed, token in setting.walker.steps(grammar, random.Random(1)):
        states.append(state.copy())
        masks.append(allowed)
        last = (state, token)
    assert [allowed_ids(state, setting.vocab_size) for state in states] == masks
    state = last[0]
    for n, mask in enumerate(reversed(masks)):
        if n % 3 == 0:
            again = state.copy()
            again.rollback(n + 1)
            assert allowed_ids(again, setting.vocab_size) == mask
    with pytest.raises(ValueError, match="cannot be taken back"):
        state.rollback(len(masks) + 1)


def test_an_answer_that_grows_too_complex_is_not_accepted(tiny: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_module, "LIMITS", {**grammar_module.LIMITS, "step_lexer_fuel": 50})
    state = tiny.compile(regex=r"(\w|[a-d]{3,90}x){4,70}[^q]{1,99}").start()
    for _ in range(100):
        if not state.accept(allowed_ids(state, tiny.vocab_size)[0]):
            break
    assert allowed_ids(state, tiny.vocab_size) == sorted(tiny.tokenizer.stop_ids)
    assert not any(map(state.accept, range(tiny.vocab_size)))
    assert not state.is_finished


def test_a_grammar_whose_masks_take_long_is_refused(tiny: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = list(range(tiny.tokenizer.vocab_size))
    assert trial_worker._try_out(tiny.compiler.tokenizer, tokens, "start: /a+/") == ""
    monkeypatch.setattr(trial_worker, "STEP_SECONDS", -1.0)
    assert "too much time" in trial_worker._try_out(tiny.compiler.tokenizer, tokens, "start: /a+/")


def test_masks_of_tensors_and_arrays_are_the_same_and_others_refused(tiny: Setting) -> None:
    state, words = tiny.compile(json_object=True).start(), -(-tiny.vocab_size // 32)
    masks_BW, mask_W = torch.full((3, words), -1, dtype=torch.int32), np.zeros(words, np.int32)
    state.fill_mask(masks_BW[1])
    state.fill_mask(mask_W)
    assert torch.equal(masks_BW[1], torch.from_numpy(mask_W))
    assert masks_BW[0].eq(-1).all()
    assert masks_BW[2].eq(-1).all()
    for wrong in (np.zeros(words + 1, np.int32), np.zeros(words, np.int64), np.zeros(2 * words, np.int32)[::2]):
        with pytest.raises(ValueError, match="mask_W"):
            state.fill_mask(wrong)


def test_the_last_grammars_are_kept(tiny: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = list[str]()
    compile_text = tiny.compiler._compile
    monkeypatch.setattr(tiny.compiler, "_compile", lambda text: texts.append(text) or compile_text(text))
    for i in (*range(KEPT), 0, KEPT, 0, 1):  # 0 was used of late, 1 was not
        tiny.compile(choice=[f"kept {i}"])
    assert len(texts) == KEPT + 2
    assert tiny.compiler.compile(StructuredOutputs(choice=["kept 0"]), after_thinking=True).start()
    assert len(texts) == KEPT + 2


def test_threads_may_compile_and_walk_at_once(tiny: Setting) -> None:
    def answer(i: int) -> str:
        return next(tiny.answers(tiny.compile(choice=[f"thread {i % 3}"]), 1))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(answer, range(48))) == [f"thread {i % 3}" for i in range(48)]


def test_a_vocabulary_that_does_not_fit_is_refused(tiny: Setting) -> None:
    with pytest.raises(CheckpointError, match="the model scores 100"):
        GrammarCompiler(tiny.tokenizer, 100, [0])


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    monkeypatch.delitem(sys.modules, "pocketvlm.grammar.compiler")
    with pytest.raises(MissingExtraError, match=r"pocketvlm\[structured\]"):
        __import__("pocketvlm.grammar.compiler")
