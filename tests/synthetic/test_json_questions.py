"""Questions for JSON: answers that parse, are printed, keep to the fields that are asked for, and to their split."""

from __future__ import annotations

import json
import re

import jsonschema
import numpy as np
import pytest
from helpers.wordings import read

from pocketvlm.synthetic import REGISTRY, make_sample
from pocketvlm.synthetic.documents import json_questions
from pocketvlm.synthetic.documents.json_questions import JSON_SHARE, SCHEMA_SHARE, ask_fields, ask_rows, belongs
from pocketvlm.synthetic.words.vocabulary import in_split

CASES = [
    ("receipt", 0),
    ("receipt", 1),
    ("invoice", 0),
    ("invoice", 1),
    ("form", 0),
    ("form", 2),
    ("table", 0),
    ("table", 1),
]
SPLITS = ("train", "heldout")


def strings(value):
    """Every string in `value` that is no key."""
    if isinstance(value, (list, dict)):
        return [text for part in (value.values() if isinstance(value, dict) else value) for text in strings(part)]
    return [value] if isinstance(value, str) else []


class Digits(str):
    """A JSON number as it is written."""


def parsed(answer):
    """The answer, and the same with numbers as their digits."""
    return json.loads(answer), json.loads(answer, parse_int=Digits, parse_float=Digits)


def belongs_all(value):
    return all(belongs(leaf, "train") for leaf in strings(value))


def asked_for(text):
    """The fields that a question names, in its order; None where it asks for the rows of a table."""
    if "\n" in text:
        schema = json.loads(text.split("\n", 1)[1])
        if schema["type"] == "array":
            return None
        assert schema["required"] == list(schema["properties"])
        return schema["required"]
    words = read(json_questions, text).words
    return re.split(", | and ", words["fields"] if "fields" in words else words["all_fields"]) if words else None


@pytest.mark.parametrize(("task", "level"), CASES)
@pytest.mark.parametrize("split", SPLITS)
def test_answers_parse_and_are_what_is_printed_and_asked_for(task, level, split):
    found, has_numbers = 0, False
    for i in range(60):
        sample = make_sample(task, (31, i), split, level)
        printed = "".join(box.character for box in sample.characters[0])
        assert all(question.kind != "json" for question in sample.questions[:-1])
        text, answer, kind = sample.questions[-1]
        if kind != "json":
            continue
        found += 1
        value, written = parsed(answer)
        numbers = [leaf for leaf in strings(written) if isinstance(leaf, Digits)]
        has_numbers |= bool(numbers)
        bare = json.dumps(written, ensure_ascii=False)
        assert re.sub(r'"', "", answer) == re.sub(r'"', "", bare)  # as Python writes it, numbers aside
        assert all(re.sub(r"\s", "", leaf) in printed for leaf in strings(value)), answer
        assert all(digits in printed.replace(",", "") for digits in numbers), answer
        assert all(belongs(leaf, split) for leaf in strings(value))
        if split == "train":
            assert all(in_split(leaf, split) for leaf in strings(value))
        if "\n" in text:
            jsonschema.validate(value, json.loads(text.split("\n", 1)[1]))
        else:
            assert not numbers  # nobody said that they should be
        if task == "table":
            assert asked_for(text) is None
            assert all(list(row) == list(value[0]) for row in value)
            assert all(key in printed for key in value[0])
        else:
            assert list(value) == asked_for(text)
    assert found >= 4
    if split == "train" and task in ("receipt", "invoice"):
        assert has_numbers


@pytest.mark.parametrize("task", ["receipt", "invoice", "form", "table"])
def test_all_else_of_a_sample_is_drawn_before(task, monkeypatch):
    before = [make_sample(task, (32, i), "train", 0) for i in range(12)]
    monkeypatch.setattr(json_questions, "JSON_SHARE", 0.0)
    for sample, other in zip(before, [make_sample(task, (32, i), "train", 0) for i in range(12)], strict=True):
        assert np.array_equal(sample.image, other.image)
        assert other.questions == tuple(q for q in sample.questions if q.kind != "json")
    assert any(q.kind == "json" for sample in before for q in sample.questions)


def test_what_is_not_printed_is_null_and_capitals_are_those_of_the_print():
    dates, items = set(), 0
    for i in range(150):
        sample = make_sample("receipt", (33, i), "train", 0)
        printed = "".join(box.character for box in sample.characters[0])
        if sample.layout == "dotted":
            continue
        if sample.questions[-1].kind == "json":
            _, value = parsed(sample.questions[-1].answer)
            if "date" in value:
                dates.add(value["date"] is None)
            for item in value.get("items", ()):
                items += 1
                assert f"{item['name']}".replace(" ", "") in printed
                assert item["price"].replace(" ", "") in printed
    assert dates == {True, False}
    assert items > 10


@pytest.mark.parametrize("split", SPLITS)
def test_the_shares_are_those_that_are_stated(split):
    rng = np.random.default_rng(1)
    asked = [ask_fields(rng, split, {"a": None, "b": True, "c": None}) for _ in range(2000)]
    questions = [question for one in asked for question in one]
    assert len(questions) / 2000 == pytest.approx(JSON_SHARE, abs=0.04)
    assert np.mean(["\n" in question.text for question in questions]) == pytest.approx(SCHEMA_SHARE, abs=0.05)
    assert {len(json.loads(question.answer)) for question in questions} == {1, 2, 3}


def test_a_schema_says_the_types_and_allows_null_where_there_is_one():
    rng, kinds = np.random.default_rng(2), set()
    for _ in range(400):
        for text, answer, _ in ask_fields(rng, "train", {"a": None, "b": True, "c": "tea", "d": [{"e": "tea"}]}):
            if "\n" not in text:
                continue
            properties, value = json.loads(text.split("\n")[1])["properties"], json.loads(answer)
            assert properties.get("b", {"type": "boolean"}) == {"type": "boolean"}
            row = {"type": "object", "properties": {"e": {"type": "string"}}, "required": ["e"]}
            rows = properties.get("d", {"items": row})["items"]
            assert rows in (row, {**row, "additionalProperties": False})
            kinds |= {(None in value.values(), str(properties[name]["type"])) for name in {"a", "c"} & set(value)}
    assert kinds == {(True, "['string', 'null']"), (False, "['string', 'null']"), (False, "string")}


def test_amounts_are_numbers_where_the_schema_says_so():
    rng, kinds = np.random.default_rng(5), {name: set() for name in "abcd"}
    fields = {"a": "$1,204.50", "b": "0042", "c": "3.10", "d": [{"e": "2.00", "f": "7"}, {"e": "12", "f": "x"}]}
    written = {"a": "1204.50", "c": "3.10"}
    for _ in range(400):
        for text, answer, _ in ask_fields(rng, "train", {k: v for k, v in fields.items() if belongs_all(v)}):
            if "\n" not in text:
                continue
            schema, (value, digits) = json.loads(text.split("\n")[1]), parsed(answer)
            jsonschema.validate(value, schema)
            for name in value:
                is_number = "number" in str(schema["properties"][name]["type"])
                kinds[name].add(is_number)
                if name in written and is_number:
                    assert digits[name] == written[name]
            for row in value.get("d", ()):
                assert isinstance(row["f"], str)  # a column is one of numbers where all of it are
    assert kinds["b"] <= {False}
    assert {True, False} in (kinds["a"], kinds["c"])


def test_what_belongs_to_the_other_split_is_not_asked_for():
    number = next(str(n) for n in range(99) if in_split(str(n), "heldout"))
    other = next(str(n) for n in range(99) if in_split(str(n), "train"))
    rng = np.random.default_rng(3)
    for split, own, foreign in (("train", other, number), ("heldout", number, other)):
        for _ in range(60):
            fields = {"own": own, "foreign": foreign, "rows": [{"name": "Oak", "price": foreign}]}
            assert all(list(json.loads(q.answer)) == ["own"] for q in ask_fields(rng, split, fields))
            assert not ask_rows(rng, split, [{"n": foreign}])


def test_only_documents_are_asked_for_as_json():
    asking = {
        task
        for task in REGISTRY
        for i in range(12)
        if make_sample(task, (34, i), "train", 0).questions[-1].kind == "json"
    }
    assert asking == {"receipt", "invoice", "form", "table"}
    assert all(q.kind != "json" for i in range(20) for q in make_sample("table", (34, i), "train", 2).questions)
