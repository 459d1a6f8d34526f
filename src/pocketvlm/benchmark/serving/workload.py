"""What is asked: bodies of OpenAI's chat completions, about pictures that are new or that were asked about before."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

Body = dict[str, Any]
Images = Literal["natural", "noise", "none"]
IMAGES: tuple[Images, ...] = ("natural", "noise", "none")
CACHES = ("cold", "warm")
DISTINCT = 8  # pictures of a warm load


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A number of requests, the same for the same numbers.

    Attributes:
        images: "natural": smooth, as photographs are; "noise": random pixels, whose JPEG files are three to four times
            as large and slower to decode; "none": text alone.
        side: pixels of a side of each picture.
        cache: "cold": each request has a picture of its own; "warm": a few pictures, each of which was asked about
            before.
        max_tokens: length of each answer exactly: no answer ends by itself.
        seed: of pictures and of questions.
    """

    requests: int
    images: Images = "natural"
    side: int = 448
    cache: str = "cold"
    max_tokens: int = 32
    seed: int = 0
    model: str = "nano"

    def bodies(self) -> list[Body]:
        """The requests that are measured."""
        if self.cache == "warm":
            return [self._body(self.seed + number % DISTINCT, number) for number in range(self.requests)]
        return [self._body(self.seed + number, number) for number in range(self.requests)]

    def before(self, count: int) -> list[Body]:
        """Requests that warm the server up, about other pictures; with a warm cache, about the very pictures too."""
        others = [self._body(self.seed + self.requests + number, -1 - number) for number in range(count)]
        same = [self._body(self.seed + number, -1) for number in range(DISTINCT if self.cache == "warm" else 0)]
        return [*others, *same]

    def _body(self, picture: int, number: int) -> Body:
        content: list[Any] = [{"type": "text", "text": f"What is in this picture? It is the one with number {number}."}]
        if self.images != "none":
            data = base64.b64encode(jpeg(self.images, self.side, picture)).decode()
            content.insert(0, {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}})
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.max_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


def jpeg(kind: str, side: int, seed: int) -> bytes:
    """A picture of side × side pixels as a JPEG file."""
    draw = np.random.default_rng(seed)
    if kind == "noise":
        picture = Image.fromarray(draw.integers(0, 256, (side, side, 3), np.uint8))
    else:
        rough = draw.integers(0, 256, (max(side // 16, 2), max(side // 16, 2), 3), np.uint8)
        picture = Image.fromarray(rough).resize((side, side), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
