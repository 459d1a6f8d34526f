"""Rows → Parquet: objects and arrays as they are, with the types of their JSON schema."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import IO, Any

from pocketvlm.documents.extracting import bounded
from pocketvlm.documents.schema import local_reference
from pocketvlm.errors import MissingExtraError

try:
    import pyarrow
    from pyarrow import parquet
except ImportError:
    raise MissingExtraError("pyarrow", "tables") from None

BATCH = 1000  # rows of a group: what is in memory at a time
_PLAIN = {
    "string": pyarrow.string(),
    "number": pyarrow.float64(),
    "integer": pyarrow.int64(),
    "boolean": pyarrow.bool_(),
}
_DEEPEST = 16
_PLACES = pyarrow.list_(pyarrow.int64())


def write_parquet(file: IO[bytes], rows: Iterable[dict[str, Any]], schema: Mapping[str, Any]) -> None:
    """Write rows of `documents.extracting`, whose `data` has the JSON schema `schema`.

    What the types of Parquet cannot say (a choice of types, objects with any fields) is its JSON as text.
    """
    schema = bounded(schema)
    data = arrow_type(schema, schema)
    waiting = iter(rows)
    batch = list(islice(waiting, BATCH))
    place = ("page", pyarrow.int64()) if batch and "page" in batch[0] else ("pages", _PLACES)
    confidence = pyarrow.map_(pyarrow.string(), pyarrow.float64())
    columns = [("file", pyarrow.string()), place, ("data", data), ("confidence", confidence)]
    with parquet.ParquetWriter(file, pyarrow.schema([*columns, ("error", pyarrow.string())])) as writer:
        while True:
            writer.write_table(pyarrow.Table.from_pylist([_made(row, data) for row in batch], schema=writer.schema))
            if not (batch := list(islice(waiting, BATCH))):
                return


def _made(row: Mapping[str, Any], data: pyarrow.DataType) -> dict[str, Any]:
    return {
        **row,
        "file": _clean(row["file"]),
        "data": fitted(row["data"], data),
        "confidence": [(_clean(name), sure) for name, sure in row["confidence"].items()],
        "error": None if row["error"] is None else _clean(row["error"]),
    }


def _clean(text: str) -> str:
    """Text in UTF-8, which the name of a file need not be."""
    return text.encode(errors="replace").decode()


# Where these stand, an object may have more than its properties: it stays JSON text.
_MORE = {"patternProperties", "allOf", "anyOf", "oneOf", "$ref"}


def arrow_type(schema: Any, whole: Mapping[str, Any], within: tuple[int, ...] = ()) -> pyarrow.DataType:
    """The type of values of a JSON schema.

    Args:
        whole: where its references lead.
        within: the parts that this one stands in, by their ids.
    """
    schema = _plain_form(schema, whole)
    if len(within) > _DEEPEST or id(schema) in within:  # one that refers to itself has no type of its own
        return pyarrow.string()
    within = (*within, id(schema))
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    if isinstance(kind, list) and len(kind) == 2 and "null" in kind:  # every column may be null
        kind = next(one for one in kind if one != "null")
    is_closed = not schema.get("additionalProperties", True) if isinstance(schema, Mapping) else False
    if kind == "object" and schema.get("properties") and is_closed and not _MORE & schema.keys():
        parts = schema["properties"].items()
        return pyarrow.struct([(name, arrow_type(part, whole, within)) for name, part in parts])
    if kind == "array" and "items" in schema and "prefixItems" not in schema:
        return pyarrow.list_(arrow_type(schema["items"], whole, within))
    return _PLAIN.get(kind, pyarrow.string()) if isinstance(kind, str) else pyarrow.string()


def _plain_form(schema: Any, whole: Mapping[str, Any]) -> Any:
    """Where a reference within the schema leads, and the other choice beside null, as Pydantic writes them."""
    for _ in range(_DEEPEST):
        if not isinstance(schema, Mapping):
            return schema
        choices = [part for part in schema.get("anyOf", ()) if part != {"type": "null"}]
        if isinstance(reference := schema.get("$ref"), str) and reference.startswith("#/"):
            schema = local_reference(reference, whole)
        elif len(choices) == 1 and "type" not in schema:
            schema = choices[0]
        else:
            return schema
    return schema


def fitted(value: Any, wanted: pyarrow.DataType) -> Any:
    """`value` as one of the type `wanted`."""
    if value is None:
        return None
    if pyarrow.types.is_struct(wanted):
        return {field.name: fitted(value.get(field.name), field.type) for field in wanted}
    if pyarrow.types.is_list(wanted):
        return [fitted(part, wanted.value_type) for part in value]
    if pyarrow.types.is_string(wanted):
        return _clean(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    if pyarrow.types.is_floating(wanted):
        return float(value)
    if pyarrow.types.is_integer(wanted) and not -(2**63) <= value < 2**63:
        return None  # `extraction` lets a model write such a number only where the schema's own bounds do
    return value
