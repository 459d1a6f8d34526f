"""The name of a value in a JSON document: the keys and indices that lead to it, `items.0.price`.

A dot in a key is written `\\.`, so that no two values have one name.
"""

from __future__ import annotations


def join(name: str, key: str | int) -> str:
    """The name of what stands under `key` in the value called `name`, which is "" for the whole."""
    piece = str(key).replace("\\", "\\\\").replace(".", "\\.")
    return f"{name}.{piece}" if name else piece
