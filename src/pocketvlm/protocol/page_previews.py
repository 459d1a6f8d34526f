"""The pages of a document to choose from: the body of POST /v1/pages → what is asked, and previews → its response.

An addition of ours: OpenAI has no such request. What was chosen goes into a chat as `…#2-5` behind the same URL.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pocketvlm.errors import ConfigError
from pocketvlm.protocol.fields import check, given_fields
from pocketvlm.ranges import Range

PAGES_FIELDS = ("model", "document", "preview_side")
PREVIEW_SIDE = Range(int, 56, 1120)
DEFAULT_SIDE = 224


@dataclass(frozen=True, slots=True)
class PagesRequest:
    """What a body asks for.

    Attributes:
        model: the name it gives, or None.
        document: a data: or http(s) URL, which may end in a choice of pages.
        side: of a square with as many pixels as a preview has.
    """

    model: str | None
    document: str
    side: int


class Preview(NamedTuple):
    """A page, counted from 1, and its size and JPEG file; None where it cannot be read."""

    page: int
    size: tuple[int, int] | None
    jpeg: bytes | None


def parse_pages(body: Mapping[str, Any]) -> PagesRequest:
    """Check a body and translate it.

    Raises:
        ConfigError: a field that is missing, unknown, of another type, or out of its range; the message names it.
    """
    given = given_fields(body, PAGES_FIELDS)
    document = check("document", given.get("document", ""), "string")
    if not document:
        raise ConfigError("document is missing or empty", hint="Give a data: or http(s) URL of a PDF or a picture.")
    side = check("preview_side", given.get("preview_side", DEFAULT_SIDE), "integer")
    return PagesRequest(
        model=check("model", given["model"], "string") if "model" in given else None,
        document=document,
        side=PREVIEW_SIDE.check("preview_side", int(side)),
    )


def pages_response(total: int, previews: Sequence[Preview], *, model: str) -> dict[str, Any]:
    """Return the body of a response.

    Args:
        total: pages of the whole document.
        model: the name to state.
    """
    return {"object": "pages", "model": model, "pages": total, "previews": [_entry(one) for one in previews]}


def _entry(preview: Preview) -> dict[str, Any]:
    if preview.size is None or preview.jpeg is None:
        return {"page": preview.page, "height": None, "width": None, "image": None}
    height, width = preview.size
    image = f"data:image/jpeg;base64,{base64.b64encode(preview.jpeg).decode()}"
    return {"page": preview.page, "height": height, "width": width, "image": image}
