"""Strings to token ids and back: byte-level BPE over the checkpoint's `tokenizer.json`.

Takes text, gives `list[int]`; takes ids, gives text or, while streaming, the part of it that is certain. There are two
ways in. `encode_trusted` reads control tokens (`<|im_end|>`, `<image>`, `<think>`, ...) as their ids and is for text
this project wrote itself. `encode_plain` never gives a control id, whatever the text says, and is for what users wrote.

Every token listed under `added_tokens` in the file is a control token here. Those marked `special` are left out of
decoded text by default; the others (`<think>`, `<tool_call>`, ...) stay visible.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import tokenizers

from pocketvlm.errors import CheckpointError, PromptError
from pocketvlm.json_text import HALF_A_CHARACTER, is_text
from pocketvlm.ranges import as_integer, show
from pocketvlm.text_files import fault_of, is_there, read_json

# A turn ends at <|im_end|>, a document at <|endoftext|>. Checkpoints name one or the other as "the" end; generation
# that watches for only one of them runs on past the answer.
END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
IMAGE_PAD = "<|image_pad|>"
VIDEO_PAD = "<|video_pad|>"

# Every vocabulary must hold these: without them there is no conversation and no picture.
REQUIRED_TOKENS = (
    *(END_OF_TEXT, TURN_START, TURN_END, IMAGE_PAD, VIDEO_PAD),
    *("<image>", "</image>", "<slice>", "</slice>", "<image_id>", "</image_id>"),
)


_LONG = 2**15  # characters


def _byte_of_character() -> dict[str, int]:
    """Return the bytes by the visible characters that byte-level BPE writes them as.

    Printable Latin-1 bytes stand for themselves, the 68 others are numbered from U+0100 in byte order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + rank): byte for rank, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_of_character()


class Tokenizer:
    """A byte-level BPE tokenizer that keeps control tokens and ordinary text apart.

    Args:
        backend: a tokenizer of the `tokenizers` library with a byte-level decoder.
        stop_ids: ids that end a generation, beside `<|endoftext|>` and `<|im_end|>`, which always do.

    Raises:
        CheckpointError: a required control token is missing, or the vocabulary is not byte-level.
    """

    def __init__(self, backend: tokenizers.Tokenizer, *, stop_ids: Iterable[int] = ()) -> None:
        if type(backend.decoder).__name__ != "ByteLevel":
            raise CheckpointError(f"the tokenizer's decoder is {backend.decoder}, expected a byte-level one")
        self._backend = backend
        self._backend.no_truncation()
        self._backend.no_padding()
        # The same BPE model, normaliser and splitter (shared, not copied), with no added tokens to recognise.
        self._plain = tokenizers.Tokenizer(backend.model)
        if backend.normalizer is not None:
            self._plain.normalizer = backend.normalizer
        if backend.pre_tokenizer is not None:
            self._plain.pre_tokenizer = backend.pre_tokenizer

        added = backend.get_added_tokens_decoder()
        for token in added.values():
            # Text is split at control tokens before BPE; these options would make the split eat neighbouring text.
            if token.lstrip or token.rstrip or token.single_word:
                raise CheckpointError(
                    f"control token {token.content!r} uses lstrip, rstrip or single_word: unsupported"
                )
        self._control = {token.content: token_id for token_id, token in sorted(added.items())}
        self._control_ids = frozenset(added)
        self._special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        missing = [name for name in REQUIRED_TOKENS if name not in self._control]
        if missing:
            raise CheckpointError(
                f"the tokenizer lacks the control tokens {' '.join(missing)}",
                hint="Use the tokenizer.json of a MiniCPM-V 4.6 checkpoint.",
            )
        self._stop_ids = frozenset(stop_ids) | {self._control[END_OF_TEXT], self._control[TURN_END]}
        self._bytes: dict[int, bytes] = {}

    @classmethod
    def from_directory(
        cls,
        path: str | Path,
        *,
        config: Mapping[str, Any] | None = None,
        generation: Mapping[str, Any] | None = None,
    ) -> Self:
        """Read `tokenizer.json`, `tokenizer_config.json` and, where it exists, `generation_config.json`.

        Args:
            path: the directory.
            config, generation: the content of the latter two, where they have been read already.

        Raises:
            CheckpointError: `tokenizer.json` is missing or not a tokenizer this class can use.
            ConfigError: one of the configuration files is missing or not JSON.
        """
        directory = Path(path)
        file = directory / "tokenizer.json"
        if not is_there(file):
            raise CheckpointError(f"{file} does not exist", hint="A checkpoint directory needs this file.")
        if config is None:
            config = read_json(directory / "tokenizer_config.json")
        if generation is None:
            file_of_defaults = directory / "generation_config.json"
            generation = read_json(file_of_defaults) if is_there(file_of_defaults) else {}
        try:
            backend = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception for every fault in the file
            if fault := _fault(file):
                raise CheckpointError(f"{file} is not a tokenizer: it {fault[0]}", hint=fault[1]) from None
            raise CheckpointError(f"{file} is not a tokenizer ({str(error)[:120]})", hint="Copy it again.") from None
        stop_ids = set(_eos_ids(directory / "generation_config.json", generation.get("eos_token_id")))
        eos = token_content(config.get("eos_token"))
        if eos is not None:
            eos_id = backend.token_to_id(eos)
            if eos_id is None:
                raise CheckpointError(f"{directory}: eos_token {eos!r} is not in tokenizer.json")
            stop_ids.add(eos_id)
        tokenizer = cls(backend, stop_ids=stop_ids)
        outside = sorted(token for token in stop_ids if not 0 <= token < tokenizer.vocab_size)
        if outside:
            raise CheckpointError(
                f"{directory / 'generation_config.json'}: eos_token_id {show(outside[0])} is no token of the "
                f"{tokenizer.vocab_size} in tokenizer.json",
                hint="Use the files that came with the weights.",
            )
        return tokenizer

    @property
    def control_tokens(self) -> Mapping[str, int]:
        """Name to id of every control token, special or merely added, in id order."""
        return MappingProxyType(self._control)

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that `decode` leaves out by default."""
        return self._special_ids

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end a generation: `<|endoftext|>`, `<|im_end|>` and whatever else the checkpoint lists."""
        return self._stop_ids

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, control tokens included."""
        return max(self._backend.get_vocab_size(with_added_tokens=True), max(self._control_ids) + 1)

    def vocabulary(self) -> dict[str, int]:
        """Return every token, control tokens included, as the vocabulary spells it, with its id."""
        return self._backend.get_vocab(with_added_tokens=True)

    def control_id(self, name: str) -> int:
        """Return the id of the control token `name`; raise `CheckpointError` when there is none of that name."""
        try:
            return self._control[name]
        except KeyError:
            raise CheckpointError(f"the tokenizer has no control token {name!r}") from None

    def encode_trusted(self, text: str) -> list[int]:
        """Return ids of text this project wrote: control tokens in it become their ids, and nothing is added."""
        return self._encode(self._backend, text)

    def encode_plain(self, text: str) -> list[int]:
        """Return ids of text a user wrote: control tokens in it are characters like any other."""
        ids = self._encode(self._plain, text)
        # A vocabulary can also list a control token among its ordinary words. Merges that lead there would undo the
        # promise above, so it is checked rather than assumed.
        if not self._control_ids.isdisjoint(ids):
            raise PromptError("the text spells a control token that this vocabulary holds as an ordinary word")
        return ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Return the text of `ids`. Ids outside the vocabulary give nothing; invalid UTF-8 becomes U+FFFD.

        Args:
            ids: token ids, each 0 or more.
            skip_special: leave out tokens marked special (`<|im_end|>`, `<image>`, ...), not merely added ones.
        """
        stream = IncrementalDetokenizer(self, skip_special=skip_special)
        return "".join(map(stream.add, ids)) + stream.flush()

    def token_bytes(self, token_id: int) -> bytes:
        """Return the UTF-8 bytes one token stands for; empty when the id is outside the vocabulary."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._look_up_bytes(token_id)
        return known

    def _look_up_bytes(self, token_id: int) -> bytes:
        if not 0 <= token_id < 2**32:
            raise PromptError(f"token id {token_id} is outside 0 to 2^32 - 1")
        token = self._backend.id_to_token(token_id)
        if token is None:
            return b""
        try:
            return bytes(_BYTE_OF_CHARACTER[character] for character in token)
        except KeyError:  # not spelt in the byte alphabet: an added token with a space, for instance
            return token.encode()

    @staticmethod
    def _encode(backend: tokenizers.Tokenizer, text: str) -> list[int]:
        if not is_text(text):
            raise PromptError(f"the text holds {HALF_A_CHARACTER}")
        if len(text) > _LONG:  # as a batch: encoding a single text has been seen to stop all other threads for seconds
            ids: list[int] = backend.encode_batch([text], add_special_tokens=False)[0].ids
        else:
            ids = backend.encode(text, add_special_tokens=False).ids
        return ids


class IncrementalDetokenizer:
    """Text of a growing sequence of ids, a token at a time, without ever showing a broken character.

    A character may be split over several tokens: `add` holds its bytes back until it is complete. What `add` and the
    final `flush` return, joined, equals `Tokenizer.decode` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._hidden = tokenizer.special_ids if skip_special else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token_id: int) -> str:
        """Take the next id; return the text that has become certain, possibly none."""
        if token_id in self._hidden:
            return ""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        """End the sequence: bytes still held back are no character and become U+FFFD. Then start afresh."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


def token_content(entry: Any) -> str | None:
    """Return the text of a token in `tokenizer_config.json`: a plain string there, or an object with `content`."""
    if isinstance(entry, Mapping):
        entry = entry.get("content")
    return entry if isinstance(entry, str) else None


def _eos_ids(file: Path, value: Any) -> list[int]:
    """The `eos_token_id` of a generation_config.json: one id, a list, or nothing."""
    ids = [] if value is None else [as_integer(i) for i in (value if isinstance(value, list) else [value])]
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise CheckpointError(f"{file}: eos_token_id is {value!r}, expected an integer or a list of integers")
    return ids


def _fault(file: Path) -> tuple[str, str] | None:
    """What a file is that the library could not read, and what to do about it, where more is known than that."""
    try:
        data = file.read_bytes()
    except OSError as error:
        return f"cannot be read ({error.strerror})", "Check its permissions."
    if data.startswith(codecs.BOM_UTF8):
        return "begins with a byte order mark", "Save it as UTF-8 without one."
    return fault_of(data)
