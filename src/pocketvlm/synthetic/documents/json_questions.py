"""Questions whose answer is JSON: some fields of a document, or the rows of a table, in words or by a JSON schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from pocketvlm.synthetic.sample import Question, Split
from pocketvlm.synthetic.words.values import Wordings, integer_in
from pocketvlm.synthetic.words.vocabulary import in_split

#: What is printed, as a string; whether a box is ticked; None for what is not printed.
Value: TypeAlias = "str | bool | list[dict[str, str]] | None"
Answer: TypeAlias = "Mapping[str, Value] | list[dict[str, str]]"

FIELD_QUESTIONS = Wordings(
    ("Extract {fields} as JSON.", "Give {all_fields} as JSON.", "JSON with the fields {fields}", "{fields} as JSON?"),
    heldout=("Read {fields} into a JSON object.", "I need {all_fields} in JSON.", "json: {fields}"),
)
ROW_QUESTIONS = Wordings(
    ("Extract the table as JSON.", "Give the rows of the table as JSON.", "JSON list of the rows", "table as JSON?"),
    heldout=("Turn the table into JSON.", "the rows, as a list of JSON objects"),
)
SCHEMA_QUESTIONS = Wordings(
    ("Extract the data as JSON.", "Fill in this schema.", "Answer with JSON by this schema:"),
    heldout=("Return JSON that fits the schema.", "json by schema"),
)

#: Share of the samples that are asked for JSON, share of these questions that show a schema, and share of those in
#: which amounts are numbers, written with the digits that are printed.
JSON_SHARE = 0.4
SCHEMA_SHARE = 0.5
NUMBER_SHARE = 0.5
# A printed amount whose digits are a JSON number, once a sign of money and commas are left out.
_AMOUNT = re.compile(r"[$€£]? ?((?:0|[1-9][0-9]{0,2}(?:,[0-9]{3})+|[1-9][0-9]*)(?:\.[0-9]+)?)(?: ?[€£])?")


def ask_fields(rng: np.random.Generator, split: Split, fields: Mapping[str, Value]) -> tuple[Question, ...]:
    """A question for some of `fields` in any order, or none; those whose values `belongs` refuses are not asked for."""
    names = [name for name, value in fields.items() if all(belongs(text, split) for text in _texts(value))]
    if not names or rng.random() >= JSON_SHARE:
        return ()
    asked = [names[i] for i in rng.permutation(len(names))[: integer_in(rng, (1, len(names)))]]
    answer = {name: fields[name] for name in asked}
    # One rule for all fields: what may be null must not tell what is.
    nullable = None in answer.values() or bool(rng.random() < 0.5)
    return (_ask(rng, split, FIELD_QUESTIONS, answer, nullable, fields=", ".join(asked), all_fields=_listed(asked)),)


def ask_rows(rng: np.random.Generator, split: Split, rows: list[dict[str, str]]) -> tuple[Question, ...]:
    """A question for all of `rows`, or none; none where `belongs` refuses a heading or a cell."""
    if not all(belongs(text, split) for text in (*rows[0], *_texts(rows))) or rng.random() >= JSON_SHARE:
        return ()
    return (_ask(rng, split, ROW_QUESTIONS, rows, False),)


def belongs(text: str, split: Split) -> bool:
    """Whether `text` may stand in an answer of `split`. Words that are printed there but are not of the held-out split
    come from closed lists, such as those of items, and may be asked for as in other questions; numbers may not.
    """
    return in_split(text, split) or (split == "heldout" and not any(map(str.isdigit, text)))


def _ask(
    rng: np.random.Generator, split: Split, wordings: Wordings, answer: Answer, nullable: bool, **words: str
) -> Question:
    if rng.random() < SCHEMA_SHARE:
        numbers, closed = bool(rng.random() < NUMBER_SHARE), bool(rng.random() < 0.5)
        schema = _schema_of(answer, nullable, numbers)
        # As the MCP server's tool "extract" and `pocketvlm extract` ask.
        text = f"{SCHEMA_QUESTIONS.draw(rng, split)}\n{_dumps(_closed(schema) if closed else schema)}"
        return Question(text, _dumps_by(schema, answer), "json")
    return Question(wordings.draw(rng, split).format(**words), _dumps(answer), "json")


def _dumps(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _dumps_by(schema: Mapping[str, Any], value: Any) -> str:
    """JSON in which the amounts that `schema` calls numbers are numbers, to the digits that are printed."""
    if isinstance(value, Mapping):
        parts = (f"{_dumps(name)}: {_dumps_by(schema['properties'][name], part)}" for name, part in value.items())
        return "{" + ", ".join(parts) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_dumps_by(schema["items"], part) for part in value) + "]"
    kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    number = _number(value) if isinstance(value, str) and "number" in kinds else None
    return number or _dumps(value)


def _number(text: str) -> str | None:
    """The amount that is printed, as a JSON number."""
    found = _AMOUNT.fullmatch(text)
    return found[1].replace(",", "") if found else None


def _listed(names: Sequence[str]) -> str:
    """The names as in a sentence: a, b and c."""
    return " and ".join((*filter(None, [", ".join(names[:-1])]), names[-1]))


def _texts(value: Value) -> Iterator[str]:
    """Every string of `value`."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for row in value:
            yield from row.values()


def _schema_of(answer: Answer, nullable: bool, numbers: bool) -> dict[str, object]:
    if isinstance(answer, list):
        return _schema(answer, numbers=numbers)
    return _object({name: _schema(value, nullable, numbers) for name, value in answer.items()})


def _schema(value: Value, nullable: bool = False, numbers: bool = False) -> dict[str, object]:
    if isinstance(value, bool):
        return {"type": "boolean"}
    if value is None or isinstance(value, str):
        kind = "number" if numbers and value is not None and _number(value) else "string"
        return {"type": [kind, "null"] if nullable else kind}
    # A column is one of numbers where all of it are.
    columns = {name: [row[name] for row in value] for name in value[0]}
    first = {name: next((text for text in texts if not _number(text)), texts[0]) for name, texts in columns.items()}
    return {"type": "array", "items": _object({name: _schema(text, numbers=numbers) for name, text in first.items()})}


def _object(properties: Mapping[str, object]) -> dict[str, object]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema with nothing allowed beside its properties, as people write who know what they want."""
    inner = {
        name: {key: _closed(part) for key, part in value.items()} if name == "properties" else value
        for name, value in schema.items()
    }
    if "items" in inner:
        inner["items"] = _closed(inner["items"])
    return {**inner, "additionalProperties": False} if schema.get("type") == "object" else inner
