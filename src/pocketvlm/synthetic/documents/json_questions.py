"""Questions whose answer is JSON: some fields of a document, or the rows of a table, in words or by a JSON schema."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from pocketvlm.synthetic.sample import Question, Split
from pocketvlm.synthetic.words.values import Wordings, integer_in
from pocketvlm.synthetic.words.vocabulary import in_split

#: What is printed, as a string; whether a box is ticked; None for what is not printed.
Value: TypeAlias = "str | bool | list[dict[str, str]] | None"

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

#: Share of the samples that are asked for JSON, and share of these questions that show a schema.
JSON_SHARE = 0.4
SCHEMA_SHARE = 0.25


def ask_fields(rng: np.random.Generator, split: Split, fields: Mapping[str, Value]) -> tuple[Question, ...]:
    """A question for some of `fields` in any order, or none; those whose values `belongs` refuses are not asked for."""
    names = [name for name, value in fields.items() if all(belongs(text, split) for text in _texts(value))]
    if not names or rng.random() >= JSON_SHARE:
        return ()
    asked = [names[i] for i in rng.permutation(len(names))[: integer_in(rng, (1, len(names)))]]
    answer = {name: fields[name] for name in asked}
    # One rule for all fields: what may be null must not tell what is.
    nullable = None in answer.values() or bool(rng.random() < 0.5)
    schema = _object({name: _schema(value, nullable) for name, value in answer.items()})
    return (_ask(rng, split, FIELD_QUESTIONS, answer, schema, fields=", ".join(asked), all_fields=_listed(asked)),)


def ask_rows(rng: np.random.Generator, split: Split, rows: list[dict[str, str]]) -> tuple[Question, ...]:
    """A question for all of `rows`, or none; none where `belongs` refuses a heading or a cell."""
    if not all(belongs(text, split) for text in (*rows[0], *_texts(rows))) or rng.random() >= JSON_SHARE:
        return ()
    return (_ask(rng, split, ROW_QUESTIONS, rows, _schema(rows)),)


def belongs(text: str, split: Split) -> bool:
    """Whether `text` may stand in an answer of `split`. Words that are printed there but are not of the held-out split
    come from closed lists, such as those of items, and may be asked for as in other questions; numbers may not.
    """
    return in_split(text, split) or (split == "heldout" and not any(map(str.isdigit, text)))


def _ask(
    rng: np.random.Generator, split: Split, wordings: Wordings, answer: object, schema: object, **words: str
) -> Question:
    if rng.random() < SCHEMA_SHARE:
        # As the MCP server's tool "extract" asks.
        text = f"{SCHEMA_QUESTIONS.draw(rng, split)}\n{_dumps(schema)}"
    else:
        text = wordings.draw(rng, split).format(**words)
    return Question(text, _dumps(answer), "json")


def _dumps(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


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


def _schema(value: Value, nullable: bool = False) -> dict[str, object]:
    if isinstance(value, bool):
        return {"type": "boolean"}
    if value is None or isinstance(value, str):
        return {"type": ["string", "null"] if nullable else "string"}
    return {"type": "array", "items": _object({name: _schema(text) for name, text in value[0].items()})}


def _object(properties: Mapping[str, object]) -> dict[str, object]:
    return {"type": "object", "properties": properties, "required": list(properties)}
