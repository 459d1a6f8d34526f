"""Samples → files of ms-swift or of LLaMA-Factory, which say the same: what reads them here gives equal samples.

Media in files are named by absolute paths, since ms-swift looks for others where it is started; those that are bytes
are written into a folder `media`, named by their content. What a format has no place for is refused, never left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any, Literal

from pocketvlm.errors import ConfigError
from pocketvlm.files import whole_file
from pocketvlm.processing.media.fetch import is_data_url, is_url
from pocketvlm.processing.media.kinds import HEAD_BYTES, is_pdf
from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.processing.media.pages import split_pages
from pocketvlm.processing.media.sources import read_bytes
from pocketvlm.remote_files import is_remote
from pocketvlm.text_files import read_json
from pocketvlm.training.data.dataset_info import FILE
from pocketvlm.training.data.reading import MAX_RECORD
from pocketvlm.training.data.sample import Sample, SampleError

Format = Literal["swift", "llamafactory"]
FORMATS: tuple[Format, ...] = ("swift", "llamafactory")
_MARKS = ("<image>", "<video>", "<audio>")
_ROLES: dict[Format, dict[str, str]] = {
    "swift": {"tool": "tool_response", "call": "tool_call"},
    "llamafactory": {"tool": "observation", "call": "function_call"},
}
_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
# What a file of a kind has, and where: AVI and WebP both begin with RIFF.
_SUFFIXES = (
    (0, b"\xff\xd8\xff", ".jpg"),
    (0, b"\x89PNG", ".png"),
    (0, b"GIF8", ".gif"),
    (8, b"WEBP", ".webp"),
    (8, b"AVI ", ".avi"),
    (0, b"\x1aE", ".webm"),
)


def emit(samples: Iterable[Sample], out: str | Path, format: Format, *, name: str = "train") -> Path:
    """Write samples as `OUT/NAME.jsonl`; for LLaMA-Factory with a description in `OUT/dataset_info.json`.

    Args:
        samples: such as a `Dataset`.
        out: a folder, which is made where there is none. A description that is there keeps its other sets.
        format: one of `FORMATS`.
        name: of the set.

    Returns:
        what is to be given to the other program, or to `open_datasets`: the file, or the folder.

    Raises:
        SampleError: a sample is bad, or says something that the format has no place for.
        ConfigError: there are no samples, or some are preferences and others are not.
        OutputError: the files cannot be written.
    """
    if format not in FORMATS:
        raise ConfigError(f"format={format!r:.40} is unknown", hint=f"Use one of {', '.join(FORMATS)}.")
    if not name or not name.replace("-", "").replace("_", "").isalnum():
        raise ConfigError(f"name={name!r:.80} is no name of a set", hint="Use letters, digits, - and _.")
    folder = Path(out).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made ({error.strerror})", hint="Give another folder.") from None
    path = folder / f"{name}.jsonl"
    with whole_file(path) as file:
        columns, ranking = _write(samples, file, folder / "media", format)
    if format == "swift":
        return path
    info = folder / FILE
    known = read_json(info) if info.exists() else {}
    about: dict[str, Any] = {"file_name": path.name, "formatting": "sharegpt"}
    if ranking:
        about["ranking"] = True
    known[name] = {**about, "columns": {column: column for column in columns}, "tags": _TAGS}
    with whole_file(info) as file:
        file.write(json.dumps(known, ensure_ascii=False, indent=2).encode() + b"\n")
    return folder


def _write(samples: Iterable[Sample], file: IO[bytes], media: Path, format: Format) -> tuple[list[str], bool]:
    """The columns of a description that are there, and whether all samples are preferences."""
    columns: dict[str, None] = {"messages": None}
    ranking: bool | None = None
    for sample in samples:
        if ranking is not None and ranking != (sample.rejected is not None):
            raise ConfigError("Some samples have a rejected answer and others have none", hint="Emit them apart.")
        ranking = sample.rejected is not None
        row = _Row(sample, media, format).row()
        names = ("images", "videos", "tools", "chosen", "rejected")
        columns.update(dict.fromkeys(one for one in names if one in row))
        file.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")
    if ranking is None:
        raise ConfigError("There are no samples to write", hint="Give a file or a folder that holds some.")
    return list(columns), ranking


class _Row:
    """What one sample is in a format."""

    def __init__(self, sample: Sample, media: Path, format: Format) -> None:
        self.sample, self.folder, self.format = sample, media, format
        self.media: dict[str, list[str]] = {"image": [], "video": []}

    def row(self) -> dict[str, Any]:
        sample = self.sample
        messages = [one for message in sample.messages for one in self._messages(message)]
        row: dict[str, Any] = {"messages": messages}
        if sample.rejected is not None:
            self._check(sample.rejected)
            if sample.messages[-1].get("tool_calls"):
                self._refuse("a call of a tool as the better of two answers")
            if self.format == "swift":
                row["rejected_response"] = sample.rejected
            else:
                row["chosen"] = messages.pop()
                row["rejected"] = {"role": "assistant", "content": sample.rejected}
        row |= {f"{kind}s": sources for kind, sources in self.media.items() if sources}
        if sample.tools:
            bare = [tool["function"] for tool in sample.tools]
            tools = sample.tools if self.format == "swift" else bare
            row["tools"] = json.dumps(tools, ensure_ascii=False)
        return row | dict(sample.options)

    def _messages(self, message: Mapping[str, Any]) -> list[dict[str, str]]:
        if message.get("reasoning_content"):
            self._refuse("reasoning apart from its answer")
        role, content = message["role"], self._text(message["content"])
        calls = [call["function"] for call in message.get("tool_calls", ())]
        if not calls:
            return [{"role": _ROLES[self.format].get(role, role), "content": content}]
        written = [{"name": call["name"], "arguments": call["arguments"]} for call in calls]
        name = _ROLES[self.format]["call"]
        if self.format == "swift":
            said = [{"role": role, "content": content}] if content else []
            return [*said, *({"role": name, "content": json.dumps(one, ensure_ascii=False)} for one in written)]
        if content:
            self._refuse("text in front of a call of a tool")
        return [{"role": name, "content": json.dumps(written if len(written) > 1 else written[0], ensure_ascii=False)}]

    def _text(self, content: str | list[dict[str, Any]]) -> str:
        """Content with marks in the place of media; a line apart, as the chat template sets them. ms-swift puts the end
        of the line behind a medium itself."""
        if isinstance(content, str):
            return self._check(content)
        pieces = [(self._check(p["text"]) if p["type"] == "text" else self._mark(p), p["type"]) for p in content]
        text = ""
        for (piece, kind), (following, _) in zip(pieces, [*pieces[1:], ("", "")], strict=True):
            ends_itself = self.format == "swift" and kind != "text" and not following.startswith("\n")
            text += piece if ends_itself else f"{piece}\n"
        return text if ends_itself else text.removesuffix("\n")

    def _mark(self, part: Mapping[str, Any]) -> str:
        kind = part["type"].removesuffix("_url")
        if part.get("max_slice_nums") is not None:
            self._refuse("a limit of slices for one picture (max_slice_nums, or detail)")
        source = part[part["type"]]
        source = source["url"] if isinstance(source, Mapping) else source
        if isinstance(source, str) and is_url(source) and self.format == "llamafactory":
            self._refuse("media on the network")
        if isinstance(source, str) and is_remote(source):
            self._refuse("media on a storage")
        bare, pages = split_pages(source)
        if pages is not None or str(bare)[-4:].lower() == ".pdf":
            self._refuse("pages of a document")
        if isinstance(source, bytes) or is_data_url(source):
            source = str(self._saved(read_bytes(source, MediaLimits(max_bytes=MAX_RECORD)), kind))
        self.media[kind].append(source)
        return f"<{kind}>"

    def _saved(self, body: bytes, kind: str) -> Path:
        if is_pdf(body[:HEAD_BYTES]):
            self._refuse("pages of a document")
        suffix = next((suffix for place, magic, suffix in _SUFFIXES if body.startswith(magic, place)), "")
        suffix = suffix or (".mp4" if kind == "video" else ".png")
        path = self.folder / f"{hashlib.sha256(body).hexdigest()[:32]}{suffix}"
        if not path.exists():
            self.folder.mkdir(exist_ok=True)
            with whole_file(path) as file:
                file.write(body)
        return path

    def _check(self, text: str) -> str:
        if mark := next((mark for mark in _MARKS if mark in text), ""):
            self._refuse(f"the text {mark}, which it takes for a mark")
        return text

    def _refuse(self, what: str) -> None:
        hint = "Take the sample out, or write it in another way."
        raise SampleError(self.sample.source, f"the format {self.format} has no place for {what}", hint=hint)
