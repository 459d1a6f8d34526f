"""The Python interface: `load` a model, then `ask`, `chat`, `stream` or `batch`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pocketvlm.api.vlm import VLM, load

__all__ = ["VLM", "load"]


def __getattr__(name: str) -> Any:
    """`VLM` and `load`, imported on first use: plans of pictures and types of answers need no engine."""
    if name in __all__:
        from pocketvlm.api import vlm

        return getattr(vlm, name)
    raise AttributeError(f"module 'pocketvlm.api' has no attribute {name!r}")
