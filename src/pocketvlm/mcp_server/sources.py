"""What an agent calls a picture or a video → its content, or one line why not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO

from pocketvlm.errors import ConfigError, MediaError
from pocketvlm.processing.media.fetch import is_data_url, is_url
from pocketvlm.processing.media.file_roots import is_file_url, open_file_url, open_inside
from pocketvlm.processing.media.kinds import is_base64
from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.processing.media.pages import PageChoice, split_pages
from pocketvlm.processing.media.sources import NamedBytes, describe
from pocketvlm.ranges import show


class Sources:
    """Args:
        roots: folders whose files may be named; paths that are not absolute are looked for in each of them.
        limits: what is refused beside; whether URLs are fetched.
        most_bytes: of the files of one call together.

    Raises:
        ConfigError: a root is no folder.
    """

    def __init__(self, roots: tuple[str, ...], limits: MediaLimits, most_bytes: int = 64 * 2**20) -> None:
        for root in roots:
            if not root or not Path(root).is_dir():  # "" would be the working directory
                raise ConfigError(f"{show(root, 80)} is no folder", hint="Name folders that are there.")
        self._roots = tuple(str(Path(root).resolve()) for root in roots)
        self._limits = replace(limits, file_roots=self._roots)
        self._most_bytes = most_bytes

    def open_all(self, sources: Sequence[str]) -> list[str | bytes]:
        """`open` for the media of one call.

        Raises:
            MediaError: they are more than any request may have, in number or in bytes; or as `open`.
        """
        most = self._limits.max_images + self._limits.max_videos
        if len(sources) > most:  # a file named a thousand times would be in memory a thousand times
            raise MediaError(f"The call has {len(sources)} pictures and videos, at most {most} are accepted")
        opened, left = list[str | bytes](), self._most_bytes
        for source in sources:
            opened.append(self.open(source, left))
            left -= len(opened[-1]) if isinstance(opened[-1], bytes) else 0
        return opened

    def open(self, source: str, most: int) -> str | bytes:
        """The bytes of a file, at most `most`; a URL is left to the one function that fetches.

        Raises:
            MediaError: a path outside the roots, also through links and `..`; a file that is missing or too large.
        """
        if is_url(source) or is_data_url(source):
            return source
        if is_base64(source[:64]):
            raise MediaError("Expected a path or URL, got bare base64", hint="Put data:image/png;base64, in front.")
        if not self._roots:
            raise MediaError("No folder was named to read files from", hint="Give a data: URL.")
        if is_file_url(source):
            bare, pages = split_pages(source, files=False)
            with open_file_url(str(bare), self._limits) as file:
                return NamedBytes(self._content(file, most), describe(source), pages)
        try:
            return NamedBytes(self._read(source, most), describe(source))
        except MediaError as error:
            # The name of a file may hold a # itself; only without such a file it chooses pages.
            bare, _, choice = source.rpartition("#")
            try:
                PageChoice.parse(choice)
            except MediaError:
                raise error from None
            return NamedBytes(self._read(bare, most), describe(bare), choice)

    def _content(self, file: IO[bytes], most: int) -> bytes:
        content = file.read(most + 1)
        if len(content) > most:
            raise MediaError(f"The files of the call have more than {self._most_bytes} bytes in all", hint="Name less.")
        return content

    def _read(self, source: str, most: int) -> bytes:
        name, path = f"The path {describe(source)!r}", Path(source)
        hint = f"They are {', '.join(self._roots)}."
        # An agent thinks of its own folder, which is not ours.
        missing = "Check it." if path.is_absolute() else f"Paths begin in {' or '.join(self._roots)}."
        failure = MediaError(f"{name} is no path to a file", hint="Check it.")
        for number, root in enumerate(("",) if path.is_absolute() else self._roots):
            try:
                with open_inside(Path(root) / path, self._limits, name, hint=hint, if_missing=missing) as file:
                    return self._content(file, most)
            except MediaError as error:
                failure = failure if number else error
        raise failure
