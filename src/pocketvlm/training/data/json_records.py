"""Files of JSON → records: one object a line (JSONL), or a list of objects, as LLaMA-Factory has them."""

from __future__ import annotations

import codecs
import json
import mmap
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

from pocketvlm.errors import ConfigError, PromptError
from pocketvlm.ranges import show_json
from pocketvlm.training.data.reading import decode, read_head, read_span

_PIECE = 2**20  # bytes that are held at a time while lines are looked for
# What decides where an item of a list ends: the next bracket or comma that is in no string. It matches at every place,
# also where the file is cut off: a search that failed would begin again at each byte.
_STRING = rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)'
_MARK = re.compile(rb'(?:[^"\[\]{},]+|' + _STRING + rb")*+(?:([\[{])|([\]}])|(,)|\Z)", re.DOTALL)
_OPENS, _CLOSES = 1, 2  # groups of it


class JsonLines:
    """One object a line; blank lines are passed over. See `Records`.

    Raises:
        ConfigError: it holds no line but blank ones, or is one object over several lines.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name
        self._begins, self._ends, self._numbers = array("q"), array("q"), array("q")
        with path.open("rb") as file:
            for number, begin, end in _lines(file):
                self._begins.append(begin)
                self._ends.append(end)
                self._numbers.append(number)
        if not self._begins:
            raise ConfigError(f"{path} is empty", hint="Write one sample a line.")
        if path.suffix.lower() == ".json" and read_head(path).removeprefix(codecs.BOM_UTF8).split(None, 1)[0] == b"{":
            raise ConfigError(f"{path} is one JSON object, expected a list of them", hint="Or write one a line.")

    def __len__(self) -> int:
        return len(self._begins)

    def where(self, index: int) -> str:
        return f"{self.name}:{self._numbers[index]}"

    def read(self, index: int) -> dict[str, Any]:
        return parse(read_span(self.path, self._begins[index], self._ends[index]))


class JsonArray:
    """A list of objects; only where each of them stands is kept. See `Records`.

    Raises:
        ConfigError: the list is empty, or does not end.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name
        self._begins, self._ends, self._numbers = array("q"), array("q"), array("q")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            line = at = 0
            for begin, end in self._items(data):
                line, at = line + data[at:begin].count(b"\n"), begin
                self._begins.append(begin)
                self._ends.append(end)
                self._numbers.append(line + 1)
        if not self._begins:
            raise ConfigError(f"{path} is an empty list", hint="Write one object for each sample.")

    def _items(self, data: mmap.mmap) -> Iterator[tuple[int, int]]:
        depth, begin = 0, 0
        for found in _MARK.finditer(data):
            kind = found.lastindex
            if kind == _OPENS:
                depth += 1
                if depth == 1:
                    begin = found.end()
            elif depth == 1:
                end = found.end() - 1
                item = data[begin:end]
                if item.strip() or kind != _CLOSES:
                    yield begin + len(item) - len(item.lstrip()), end
                begin = found.end()
                if kind == _CLOSES:
                    if data[begin : begin + 64].strip():
                        raise ConfigError(f"{self.path} goes on behind the end of its list", hint="Write one list.")
                    return
            elif kind == _CLOSES:
                depth -= 1
        raise ConfigError(f"{self.path} is cut off: its list does not end", hint="Download or write it again.")

    def __len__(self) -> int:
        return len(self._begins)

    def where(self, index: int) -> str:
        return f"{self.name}:{self._numbers[index]} (item {index})"

    def read(self, index: int) -> dict[str, Any]:
        return parse(read_span(self.path, self._begins[index], self._ends[index]))


def parse(data: bytes) -> dict[str, Any]:
    """The object that JSON text says; `PromptError` where it is none, or says a name twice, or NaN."""
    text = decode(data.removeprefix(codecs.BOM_UTF8)).strip()
    try:
        value = json.loads(text, parse_constant=_refuse, object_pairs_hook=_without_twins)
    except json.JSONDecodeError as error:
        hint = "It seems to be cut off." if error.pos >= len(text) - 1 or "Unterminated" in error.msg else ""
        raise PromptError(f"it is not JSON at character {error.pos + 1} ({error.msg})", hint=hint) from None
    except RecursionError:
        raise PromptError("it is not JSON that can be read: it is nested too deeply") from None
    except ValueError as error:
        if isinstance(error, PromptError):
            raise
        raise PromptError("it is not JSON that can be read: it holds an integer of thousands of digits") from None
    if not isinstance(value, dict):
        raise PromptError(f"it is {show_json(value)}, expected an object", hint='Such as {"messages": [...]}.')
    return value


def _lines(file: IO[bytes]) -> Iterator[tuple[int, int, int]]:
    """(number from 1, begin, end) of every line that is not blank."""
    number = begin = end = 0
    blank = True
    while piece := file.readline(_PIECE):
        blank = blank and not piece.removeprefix(codecs.BOM_UTF8).strip()
        end += len(piece)
        if piece.endswith(b"\n"):
            number += 1
            if not blank:
                yield number, begin, end
            begin, blank = end, True
    if not blank:
        yield number + 1, begin, end


def _refuse(constant: str) -> NoReturn:
    raise PromptError(f"it holds {constant}, which is not JSON", hint="Write a number, or null.")


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twin = next(name for name in names if names.count(name) > 1)
        raise PromptError(f"it has the name {show_json(twin)} twice in one object", hint="Keep one of them.")
    return value
