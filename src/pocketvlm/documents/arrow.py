"""Rows → Parquet: objects and arrays as they are, with the types of their JSON schema."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import IO, Any

from pocketvlm.errors import MissingExtraError

try:
    import pyarrow  # type: ignore[import-untyped]
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
_PLACES = pyarrow.list_(pyarrow.int64())


def write_parquet(file: IO[bytes], rows: Iterable[dict[str, Any]], schema: Mapping[str, Any]) -> None:
    """Write rows of `documents.extracting`, whose `data` has the JSON schema `schema`.

    What the types of Parquet cannot say (a choice of types, objects with any fields) is its JSON as text.
    """
    data = arrow_type(schema)
    waiting = iter(rows)
    writer = None
    while batch := list(islice(waiting, BATCH)) or not writer:
        some = batch if isinstance(batch, list) else []
        per_page = bool(some) and "page" in some[0]
        if writer is None:
            place = ("page", pyarrow.int64()) if per_page else ("pages", _PLACES)
            confidence = pyarrow.map_(pyarrow.string(), pyarrow.float64())
            fields = [("file", pyarrow.string()), place, ("data", data), ("confidence", confidence)]
            writer = parquet.ParquetWriter(file, pyarrow.schema([*fields, ("error", pyarrow.string())]))
        made = [{**row, "data": fitted(row["data"], data), "confidence": [*row["confidence"].items()]} for row in some]
        writer.write_table(pyarrow.Table.from_pylist(made, schema=writer.schema))
    writer.close()


def arrow_type(schema: Any) -> pyarrow.DataType:
    """The type of values of a JSON schema."""
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    if isinstance(kind, list) and len(kind) == 2 and "null" in kind:  # every column may be null
        kind = next(one for one in kind if one != "null")
    if kind == "object" and schema.get("properties") and not schema.get("additionalProperties", True):
        return pyarrow.struct([(name, arrow_type(part)) for name, part in schema["properties"].items()])
    if kind == "array" and "items" in schema and "prefixItems" not in schema:
        return pyarrow.list_(arrow_type(schema["items"]))
    return _PLAIN.get(kind, pyarrow.string()) if isinstance(kind, str) else pyarrow.string()


def fitted(value: Any, wanted: pyarrow.DataType) -> Any:
    """`value` as one of the type `wanted`."""
    if value is None:
        return None
    if pyarrow.types.is_struct(wanted):
        return {field.name: fitted(value.get(field.name), field.type) for field in wanted}
    if pyarrow.types.is_list(wanted):
        return [fitted(part, wanted.value_type) for part in value]
    if pyarrow.types.is_string(wanted) and not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if pyarrow.types.is_floating(wanted):
        return float(value)
    if pyarrow.types.is_integer(wanted) and not -(2**63) <= value < 2**63:
        return None  # `extraction` lets a model write such a number only where the schema's own bounds do
    return value
