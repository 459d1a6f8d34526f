"""Small files of training data, in the shapes that other programs publish."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from helpers.pictures import encoded
from pocketvlm.training.data.sample import Sample


def picture(seed: int = 0, size: tuple[int, int] = (24, 16)) -> bytes:
    return encoded(Image.new("RGB", size, (seed * 40 % 256, 90, 200)))


def write_pictures(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(number))


def write_lines(path: Path, *rows: Any) -> Path:
    """A JSONL file; a row that is text or bytes stands there as it is."""
    lines = [
        row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode() for row in rows
    ]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def chat(question: Any = "What is it?", answer: Any = "A word.", **columns: Any) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
        **columns,
    }


def plain(sample: Sample) -> list[tuple[str, Any]]:
    """(role, content) of each message; a medium as the name of its file, or its bytes."""
    return [(message["role"], _plain(message["content"])) for message in sample.messages]


def _plain(content: Any) -> Any:
    if isinstance(content, str):
        return content
    return [part["text"] if part["type"] == "text" else _medium(part) for part in content]


def _medium(part: dict[str, Any]) -> Any:
    source = part[part["type"]]
    if isinstance(source, bytes):
        return bytes(source)
    url: str = source["url"]
    return (part["type"].removesuffix("_url"), Path(url).name if url.startswith("/") or url[1:2] == ":" else url)
