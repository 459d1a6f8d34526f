"""A conversation in the terminal: its turns, what is added to the next one, and the lines that are commands."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pocketvlm.cli.common import is_file, source
from pocketvlm.cli.console import harmless, say
from pocketvlm.errors import ConfigError, MediaError
from pocketvlm.files import check_output, whole_file
from pocketvlm.processing.media.load_image import is_video
from pocketvlm.processing.media.pages import file_named

COMMANDS = {
    "/image PATH": "add a picture, a PDF (a.pdf#2-5: these pages) or a video to the next question; or drop the file",
    "/video PATH": "add a video, or an animation (GIF, WebP, PNG) that is to be seen as one",
    "/rate RATE": "tokens of pictures from now on: 16x (few), 4x (many) or auto",
    "/system TEXT": "an instruction for the whole conversation; without a text there is none",
    "/retry": "ask the last question again",
    "/history": "show the conversation so far",
    "/save FILE": "write it to a new file, as Markdown",
    "/reset": "start anew",
    "/help": "show this",
    "/quit": "end; so does Ctrl-D",
}
RATES = ("16x", "4x", "auto")
_TOKEN = re.compile(r"""\s*(?:'([^']*)'|"([^"]*)"|((?:\\.|[^\s\\'"])+))""")


@dataclass(frozen=True)
class AsVideo:
    """A file or URL that is to be seen as a video; an animation is otherwise the picture that it begins with."""

    source: Any

    def __str__(self) -> str:
        return str(self.source)


@dataclass(eq=False)
class Turn:
    """A question with its pictures, and its answer.

    Attributes:
        sources: paths, URLs, or pixels, for people to read.
        parts: of the message, in the form that whoever answers takes.
    """

    sources: list[Any]
    parts: list[dict[str, Any]]
    question: str
    answer: str = ""


@dataclass
class Conversation:
    """Turns so far, and what the next one will have.

    Attributes:
        parts: a source of a picture, a document or a video → the parts of a message that show it.
        options: of every answer; `/rate` changes them.
    """

    parts: Callable[[Any], list[dict[str, Any]]]
    options: dict[str, Any]
    pending: list[Any] = field(default_factory=list)
    system: str = ""
    turns: list[Turn] = field(default_factory=list)
    last: Turn | None = None  # what was asked last, whatever came of it

    def ask(self, question: str) -> Turn:
        """The next turn, which `done` makes part of the conversation. What was pending is used up in any case."""
        sources, self.pending = self.pending, []
        self.last = Turn(sources, [], question)
        return self._read(self.last)

    def _read(self, turn: Turn) -> Turn:
        """The turn with its pictures; one that cannot be read now may be later, by `/retry`."""
        turn.parts = [part for one in turn.sources for part in self.parts(one)]
        return turn

    def messages(self, last: Turn) -> list[dict[str, Any]]:
        """Everything in OpenAI's format, up to a question."""
        found: list[dict[str, Any]] = [{"role": "system", "content": self.system}] if self.system else []
        for turn in (*(turn for turn in self.turns if turn is not last), last):
            content = [*turn.parts, {"type": "text", "text": turn.question}]
            found.append({"role": "user", "content": content})
            if turn is not last:
                found.append({"role": "assistant", "content": turn.answer})
        return found

    def done(self, turn: Turn, answer: str) -> None:
        turn.answer = answer
        if turn not in self.turns:  # as one that is asked again is
            self.turns.append(turn)

    def add(self, text: str, *, as_video: bool = False) -> None:
        """Add a picture, a document (or some of its pages) or a video to the next question.

        Raises:
            MediaError: there is no such file.
        """
        named = source(text)
        if isinstance(named, Path) and not is_file(Path(file_named(text))):
            raise MediaError(f"{str(named)!r:.80} does not exist", hint="Check the path.")
        self.pending.append(AsVideo(named) if as_video else named)

    def command(self, line: str) -> Turn | None:
        """Carry out a line that begins with a slash; returns the turn that is to be asked again, if any.

        Raises:
            ConfigError, MediaError: it cannot be; nothing has changed.
        """
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        if name in ("/image", "/video") and rest:
            self.add(unquoted(rest), as_video=name == "/video")
        elif name == "/rate" and rest:
            if rest not in RATES:
                raise ConfigError(f"/rate {rest!r:.40} is unknown", hint=f"Use {', '.join(RATES)}.")
            self.options["downsample_mode"] = rest
        elif name == "/system":
            self.system = rest
        elif name == "/reset" and not rest:
            self.turns, self.pending, self.last = [], [], None
        elif name == "/history" and not rest:
            say(harmless("\n".join(self.transcript())) or "Nothing was said yet.")
        elif name == "/save" and rest:
            self._save(Path(unquoted(rest)))
        elif name == "/retry" and not rest:
            if self.last is None:
                raise ConfigError("there is no question to ask again")
            return self.last if self.last.parts else self._read(self.last)
        else:
            if line != "/help":
                say(f"{line[:40]!r} is no command, or lacks something. There are:")
            say(help_text())
        return None

    def _save(self, path: Path) -> None:
        if check_output(path):
            raise ConfigError(f"{path} exists already", hint="Name a new file.")
        with whole_file(path) as file:
            # Names of files need not be text.
            file.write(("\n".join(self.transcript()) + "\n").encode(errors="backslashreplace"))
        say(f"Written to {path}.")

    def transcript(self) -> Iterator[str]:
        """The conversation as lines of Markdown."""
        if self.system:
            yield from (f"*System:* {self.system}", "")
        for turn in self.turns:
            yield from (f"> {line}" for line in turn.question.splitlines())
            for one in turn.sources:
                yield f"> [{name_of(one)}]"
            yield from ("", turn.answer, "")


def help_text() -> str:
    """The commands, a line each."""
    width = max(map(len, COMMANDS))
    return "\n".join(f"{name:<{width}}  {text}" for name, text in COMMANDS.items())


def name_of(named: Any) -> str:
    """What a person calls a picture."""
    return str(named)[:200] if isinstance(named, str | Path | AsVideo) else "a picture"


def dropped(line: str) -> tuple[list[str], str]:
    """The files that a line begins with, as a terminal writes what is dropped on it, and the text behind them.

    A name counts as a file where it is absolute or a file: URL, and there is a picture or a video under it.
    """
    found = list[str]()
    while (match := _TOKEN.match(line)) is not None:
        quoted = match[1] if match[1] is not None else match[2]
        text = unquoted(match[0].strip()) if quoted is None else quoted
        if text.startswith("file://"):
            try:
                parts = urlsplit(text)
            except ValueError:  # "file://[a].png" looks like an address of IPv6
                break
            text = unquote(parts.path) + (f"#{parts.fragment}" if parts.fragment else "")
        path = Path(text)
        if not (path.is_absolute() and is_file(Path(file_named(text)))):
            break
        found.append(text)
        line = line[match.end() :]
    return found, line.strip()


def unquoted(text: str) -> str:
    """A path without the quotes or backslashes that a terminal or a shell puts into it."""
    if is_file(Path(file_named(text))):
        return text
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    return re.sub(r"\\(.)", r"\1", text)


def local_parts(named: Any) -> list[dict[str, Any]]:
    """The part of a message for a model of this process, which reads the file itself."""
    if isinstance(named, AsVideo):
        return [{"type": "video", "video": named.source}]
    kind = "video" if is_video(named) else "image"
    return [{"type": kind, kind: named}]
