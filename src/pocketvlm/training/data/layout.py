"""How the records of one set say a conversation → the sample of each of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketvlm.config import check_downsample_mode
from pocketvlm.errors import PocketVLMError, PromptError
from pocketvlm.processing.picture_options import PictureOptions
from pocketvlm.processing.prompt.messages import Conversation, check_messages
from pocketvlm.ranges import show_json
from pocketvlm.tools.definitions import check_tools
from pocketvlm.training.data.columns import by_named_columns, by_our_names, options_of, unused_columns
from pocketvlm.training.data.conversations import Tags, Turn, turns_of
from pocketvlm.training.data.json_records import parse
from pocketvlm.training.data.media import KINDS, locate, media_of, place_media
from pocketvlm.training.data.reading import check_text
from pocketvlm.training.data.sample import RANDOM, Sample, SampleError, check_answers


@dataclass(frozen=True, slots=True)
class Layout:
    """Attributes:
    folder: what paths of media are relative to.
    columns: our name → the column of a LLaMA-Factory description; told by their own names when None.
    tags: how its messages are named; by their own keys when None.
    ranking: whether it must be preference data, or must not; as each record is when None.
    inside: refuse media outside of the folder: names in `metadata.jsonl` are of the files beside it.
    """

    folder: Path
    columns: Mapping[str, str] | None = None
    tags: Tags | None = None
    ranking: bool | None = None
    inside: bool = False

    def sample(self, record: Mapping[str, Any], where: str) -> Sample:
        """The sample that a record says; `SampleError`, with `where` in front, for one that says none."""
        try:
            return self._sample(record, where)
        except PocketVLMError as error:
            raise SampleError(where, str(error)) from None
        except RecursionError:
            raise SampleError(where, "it is nested too deeply") from None

    def unused(self, names: Iterable[str]) -> list[str]:
        """Those of the columns that nothing is read from."""
        return unused_columns(names, None if self.columns is None else self.columns.values())

    def _sample(self, record: Mapping[str, Any], where: str) -> Sample:
        found = by_our_names(record) if self.columns is None else by_named_columns(record, self.columns)
        turns, rejected = turns_of(found, self.tags, ranking=self.ranking)
        place_media(turns, media_of(found), need_marks=self.columns is not None)
        for number, turn in enumerate(turns):
            if isinstance(turn.get("content"), list):
                place = f"{where}, messages[{number}]"
                turn["content"] = [self._part(part, f"{place}.content[{i}]") for i, part in enumerate(turn["content"])]
        messages = _with_media(check_messages(turns))
        if rejected is not None:
            check_text(rejected, "the rejected answer")
        return Sample(messages, where, rejected, _tools(found.get("tools")), _options(options_of(record)))

    def _part(self, part: Any, place: str) -> Any:
        """A part as `check_messages` takes it, its medium found."""
        if not isinstance(part, Mapping):
            return part
        given = {name: value for name, value in part.items() if value is not None}
        for kind in KINDS:
            if given.get("type") not in (kind, f"{kind}_url"):
                continue
            names = [name for name in (kind, f"{kind}_url", "url", "path") if name in given]
            source = given.pop(names[0]) if len(names) == 1 else None
            if names == [f"{kind}_url"] and isinstance(source, Mapping):
                given |= {name: value for name, value in source.items() if name != "url" and value is not None}
                source = source.get("url")
            what = f"the {'picture' if kind == 'image' else kind} of {place.rpartition(', ')[2]}"
            found = locate(source, kind, self.folder, what, inside=self.inside)
            return {**given, "type": kind, kind: found}
        return given


def _with_media(conversation: Conversation) -> list[Turn]:
    """Checked messages with their media in them again, in one form: text alone is a string, texts are joined, media in
    files are `image_url` and `video_url`, and bytes `image`."""
    media = iter(conversation.media)
    for number, message in enumerate(conversation.messages):
        content = message["content"]
        parts: list[dict[str, Any]] = []
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part["type"] != "text":
                medium = next(media)
                if medium.fps is not None:
                    raise PromptError(f"{medium.where} has fps", hint="Give the file of the video, not its frames.")
                given = {"max_slice_nums": medium.max_slice_nums} if medium.max_slice_nums is not None else {}
                name = medium.kind if isinstance(medium.source, bytes) else f"{medium.kind}_url"
                source = medium.source if isinstance(medium.source, bytes) else {"url": medium.source}
                parts.append({"type": name, name: source, **given})
                continue
            text = check_text(part["text"], f"messages[{number}]")
            if parts and parts[-1]["type"] == "text":
                parts[-1] = {"type": "text", "text": f"{parts[-1]['text']}\n{text}"}  # as the template joins them
            else:
                parts.append({"type": "text", "text": text})
        parts = [part for part in parts if part["type"] != "text" or part["text"]]
        is_text = all(part["type"] == "text" for part in parts)
        message["content"] = (parts[0]["text"] if parts else "") if is_text else parts
        if message["role"] == "user" and is_text and not message["content"].strip():
            raise PromptError(f"messages[{number}] asks nothing: it has no text, picture or video")
    if not any(message["role"] == "user" for message in conversation.messages):
        raise PromptError("it has no question: no message is of role 'user'", hint="Text alone is not learnt here.")
    check_answers(conversation.messages)
    return conversation.messages


def _tools(given: Any) -> list[dict[str, Any]] | None:
    """OpenAI's tool definitions; as JSON in a string, and without their wrapping, as other programs have them."""
    if isinstance(given, str):
        given = parse(b'{"tools": ' + given.encode(errors="replace") + b"}")["tools"]
    if given is None:
        return None
    if not isinstance(given, list | tuple):
        raise PromptError(f"tools is {show_json(given)}, expected a list of definitions")
    return check_tools(
        [
            {"type": "function", "function": tool} if isinstance(tool, Mapping) and "function" not in tool else tool
            for tool in given
        ]
    )


def _options(given: dict[str, Any]) -> dict[str, Any]:
    PictureOptions(**given)
    modes = given.get("downsample_mode", [])
    for mode in [modes] if isinstance(modes, str) else modes:
        if modes != RANDOM:  # of the whole sample: 16x or 4x for each view
            check_downsample_mode(mode)
    return given
