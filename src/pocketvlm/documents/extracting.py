"""Documents and a schema → rows."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pocketvlm.documents.calibration import Calibration
from pocketvlm.documents.confidence import confidences, leaves
from pocketvlm.documents.inputs import Document
from pocketvlm.documents.journal import Done, Value
from pocketvlm.documents.merging import merge_pages
from pocketvlm.documents.pages import PageTask, keys_of
from pocketvlm.documents.schema import local_reference, meanings, members
from pocketvlm.errors import ConfigError
from pocketvlm.grammar.json_schema import subschemas
from pocketvlm.grammar.structured_outputs import StructuredOutputs
from pocketvlm.ranges import show

if TYPE_CHECKING:
    from pocketvlm.api.answers import Answer

EXACT = 2**53 - 1  # the largest whole number that a double and all below it hold
_DIGITS = 19  # of a whole number that tables hold, with its sign
_BOUNDS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "enum", "const"}
_WHOLE = re.compile(r"0|-?[1-9]\d{0,15}")
_OPEN = {"additionalProperties", "patternProperties", "unevaluatedProperties", "allOf", "anyOf", "oneOf", "$ref"}
MAX_TOKENS = 1024  # of an answer, where nothing else is said
_LOST: dict[str, Any] = {"data": None, "confidence": {}}


def extraction(
    schema: Mapping[str, Any], prompt: str, options: Mapping[str, Any], calibration: Calibration | None = None
) -> PageTask:
    """The task of filling in `schema`, which stands behind the prompt and which the grammar keeps answers to.

    Args:
        options: of pictures and sampling.
        calibration: what the confidence of fields goes through.

    Raises:
        ConfigError: it is no schema, or one that answers could not be kept to.
    """
    structure = StructuredOutputs(json=bounded(schema), disable_any_whitespace=True)
    question = f"{prompt}\n{json.dumps(schema, ensure_ascii=False)}"
    fixed = {"logprobs": 0, "structured_outputs": structure}
    value_of = partial(_value_of, calibration)
    return PageTask(question, value_of, _LOST, {"temperature": 0, "max_tokens": MAX_TOKENS, **options, **fixed})


def bounded(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema that answers are kept to: objects have nothing beside their properties, where they do not say
    otherwise, and whole numbers have bounds: a small model may not find the end of a long one, and what reads JSON as
    doubles would change it."""
    try:
        made: dict[str, Any] = json.loads(json.dumps(schema))
    except (TypeError, ValueError, RecursionError) as error:  # of Python: a Decimal, a set, one that holds itself
        raise ConfigError(f"the schema is no JSON: {error}", hint="Give objects, arrays, text and numbers.") from None
    open_ids = _left_open(made)
    for part in subschemas(made):
        kind = part.get("type", [])
        kinds = [kind] if isinstance(kind, str) else kind
        if not isinstance(kinds, list):
            raise ConfigError(f"the schema has the type {show(kind)}", hint='Expected a name such as "number".')
        if "integer" in kinds and not _BOUNDS & part.keys():
            part |= {"minimum": -EXACT, "maximum": EXACT}
        if part.get("properties") and not _OPEN & part.keys() and id(part) not in open_ids:
            part["additionalProperties"] = False
    return made


def _left_open(schema: dict[str, Any]) -> set[int]:
    """The parts that hold for an object together with others that name properties as well (`allOf`, or choices beside
    properties): closed, each would forbid the properties of the others."""
    found = set[int]()

    def names_properties(part: Any) -> bool:
        return any(one.get("properties") for one in meanings(part, schema, set()))

    for part in subschemas(schema):
        demands = [any(map(names_properties, members(part, way))) for way in ("anyOf", "oneOf")]
        demands += map(names_properties, [*members(part, "allOf"), local_reference(part.get("$ref"), schema)])
        if sum(demands) + bool(part.get("properties")) > 1:
            found.update(id(one) for one in meanings(part, schema, set()))
    return found


def row_of(document: Document, values: Sequence[Value]) -> dict[str, Any]:
    """One row of all pages: `file`, `pages` (from 1), `data`, `confidence` of each field, and `error`, None where all
    is well."""
    if document.error:
        return {"file": document.name, "pages": [], **_LOST, "error": document.error}
    return {"file": document.name, "pages": list(document.pages), **merge_pages(document.pages, values)}


def page_rows_of(document: Document, values: Sequence[Value]) -> Iterator[dict[str, Any]]:
    """A row of each page: as `row_of`, with `page` in the place of `pages`."""
    if document.error:
        yield {"file": document.name, "page": None, **_LOST, "error": document.error}
    for page, value in zip(document.pages, values, strict=True):
        yield {"file": document.name, "page": page, **{name: value[name] for name in (*_LOST, "error")}}


def rows_of(document: Document, values: Sequence[Value], *, per_page: bool) -> Iterator[dict[str, Any]]:
    """`page_rows_of`, or `row_of` alone."""
    return page_rows_of(document, values) if per_page else iter([row_of(document, values)])


def rows_done(documents: Sequence[Document], done: Done, *, per_page: bool) -> Iterator[dict[str, Any]]:
    """The rows of all documents, in their order, when all pages are done."""
    for document in documents:
        yield from rows_of(document, [done.get(key) or {} for key in keys_of(document)], per_page=per_page)


def _value_of(calibration: Calibration | None, answer: Answer) -> Value:
    try:
        data = json.loads(answer.text, parse_int=_whole, parse_float=_finite)
    except _NumberError as error:
        return {**_LOST, "error": str(error)}
    except (ValueError, RecursionError):
        spent = answer.usage.completion_tokens
        reason = f"the answer was cut off after {spent} tokens, before its JSON was whole; raise max_tokens"
        return {**_LOST, "error": reason}
    sure = confidences(answer)
    if calibration is not None:
        sure = {name: calibration(value) for name, value in sure.items()}
    made = {"data": data, "confidence": sure, "error": None}
    return {**made, "digits": digits} if (digits := _digits(answer.text)) else made


def _digits(text: str) -> dict[str, str]:
    """Field → number as it was written, where that says more than the number: 11.60 is what the page shows."""
    numbers = ((name, text[first:last]) for name, first, last in leaves(text) if text[first] in "-0123456789")
    return {name: number for name, number in numbers if not _is_plain(number)}


def _is_plain(number: str) -> bool:
    """Whether every reader of JSON writes it as it was: it is whole, and no double rounds it."""
    return bool(_WHOLE.fullmatch(number)) and abs(int(number)) <= EXACT


class _NumberError(ValueError):
    """A number that no table would hold."""


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise _NumberError(f"the answer holds the number {text:.20}, which is beyond all that a table holds")
    return number


def _whole(text: str) -> int:
    if len(text) > _DIGITS:
        raise _NumberError(f"the answer holds a number of {len(text)} digits")
    return int(text)
