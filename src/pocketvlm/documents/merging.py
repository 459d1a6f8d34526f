"""Rows of the pages of a document → one row, by rules that a user can foresee."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pocketvlm.documents.fields import join


def merge_pages(numbers: Sequence[int], pages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One row of several pages.

    A single value is that of the first page that has one; null, "" and the number 0 are none. Arrays are joined in the
    order of the pages; objects are merged field by field. A confidence goes with its value. A page that failed gives
    nothing, and its reason stands in `error`.

    Args:
        numbers: of the pages, from 1.
        pages: "data", "confidence" and "error" of each.
    """
    data: Any = None
    confidence: dict[str, float] = {}
    for page in pages:
        if page["data"] is not None:
            data = _merged(data, page["data"], "", "", page["confidence"], confidence)
    errors = [(number, page["error"]) for number, page in zip(numbers, pages, strict=True) if page["error"]]
    reasons = [f"page {number}: {error}" if len(pages) > 1 else error for number, error in errors]
    return {"data": data, "confidence": confidence, "error": "; ".join(reasons) or None}


def is_value(value: Any) -> bool:
    """Whether it says something: `false` does."""
    return isinstance(value, bool) or value not in (None, "", 0)


def _merged(old: Any, new: Any, name: str, was: str, known: Mapping[str, float], out: dict[str, float]) -> Any:
    """`new`, called `was` on its page, put behind `old`, called `name` in the row."""
    if isinstance(new, dict | list) and not isinstance(old, dict | list) and not is_value(old):
        out.pop(name, None)  # of what was no value
        old = None
    if isinstance(new, dict) and isinstance(old, dict | None):
        row = dict(old or {})
        for key, value in new.items():
            row[key] = _merged(row.get(key), value, join(name, key), join(was, key), known, out)
        return row
    if isinstance(new, list) and isinstance(old, list | None):
        items = list(old or [])
        for index, value in enumerate(new):
            items.append(_merged(None, value, join(name, len(items)), join(was, index), known, out))
        return items
    if is_value(old) or (old is not None and not is_value(new)):
        return old
    out.pop(name, None)
    if was in known:
        out[name] = known[was]
    return new
