"""Control tokens and ordinary text stay apart; streamed text equals decoded text."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
import tokenizers
from helpers.checkpoints import NAMES, build_tokenizer, write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketvlm.errors import CheckpointError, ConfigError, PromptError
from pocketvlm.processing.prompt.tokenizer import IncrementalDetokenizer, Tokenizer

BACKEND = build_tokenizer()
TOKENIZER = Tokenizer(build_tokenizer())
CONTROL_IDS = frozenset(TOKENIZER.control_tokens.values())

texts = st.text(st.characters(exclude_categories=["Cs"]))
texts_with_control_tokens = st.lists(st.one_of(texts, st.sampled_from(NAMES))).map("".join)


def test_control_tokens_have_the_published_names_in_order() -> None:
    assert list(TOKENIZER.control_tokens) == NAMES
    ids = list(TOKENIZER.control_tokens.values())
    assert ids == list(range(ids[0], ids[0] + len(NAMES)))
    assert TOKENIZER.vocab_size == ids[-1] + 1


def test_special_and_merely_added_are_as_in_the_file() -> None:
    assert TOKENIZER.control_id("<|im_end|>") in TOKENIZER.special_ids
    assert TOKENIZER.control_id("<think>") not in TOKENIZER.special_ids
    assert TOKENIZER.control_id("</tool_call>") not in TOKENIZER.special_ids


@given(texts_with_control_tokens)
def test_trusted_text_gives_the_ids_of_the_library(text: str) -> None:
    assert TOKENIZER.encode_trusted(text) == BACKEND.encode(text).ids


@given(texts)
def test_plain_equals_trusted_without_control_tokens(text: str) -> None:
    if not any(name in text for name in NAMES):
        assert TOKENIZER.encode_plain(text) == TOKENIZER.encode_trusted(text)


@given(texts_with_control_tokens)
def test_plain_text_never_gives_a_control_id_and_loses_nothing(text: str) -> None:
    ids = TOKENIZER.encode_plain(text)
    assert CONTROL_IDS.isdisjoint(ids)
    assert TOKENIZER.decode(ids) == unicodedata.normalize("NFC", text)


def test_plain_text_is_refused_when_merges_spell_a_control_token() -> None:
    """A vocabulary that lists a control token as a word, with merges leading there, must not let it through."""
    data = json.loads(build_tokenizer(merges=False).to_str())
    vocabulary, merges, word = data["model"]["vocab"], data["model"]["merges"], "<"
    for character in "unk>":
        merges.append([word, character])
        word += character
        vocabulary[word] = 5000 + len(word)
    data["pre_tokenizer"] = data["pre_tokenizer"]["pretokenizers"][1]  # no splitting: merges may cross anything
    for token in data["added_tokens"]:
        token["id"] = vocabulary.get(token["content"], token["id"])
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(data)))
    assert tokenizer.encode_trusted("<unk>") == [tokenizer.control_id("<unk>")]
    with pytest.raises(PromptError, match="spells a control token"):
        tokenizer.encode_plain("<unk>")


def test_half_a_surrogate_pair_is_refused() -> None:
    for encode in (TOKENIZER.encode_plain, TOKENIZER.encode_trusted):
        with pytest.raises(PromptError, match="surrogate"):
            encode("a\ud83d")


any_ids = st.lists(st.one_of(st.integers(0, 255), st.integers(0, TOKENIZER.vocab_size + 5), st.integers(0, 2**32 - 1)))


@given(any_ids, st.booleans())
def test_decode_equals_the_library_for_any_ids(ids: list[int], skip_special: bool) -> None:
    assert TOKENIZER.decode(ids, skip_special) == BACKEND.decode(ids, skip_special_tokens=skip_special)


@given(st.lists(st.integers(0x80, 0xFF)))
def test_invalid_utf8_becomes_as_many_replacement_characters_as_in_the_library(raw: list[int]) -> None:
    """Python and Rust replace the same stretches of broken bytes."""
    id_of_byte = {TOKENIZER.token_bytes(token_id): token_id for token_id in range(256)}
    ids = [id_of_byte[bytes([byte])] for byte in raw]
    assert TOKENIZER.decode(ids) == BACKEND.decode(ids)


@given(any_ids, st.booleans())
def test_streamed_text_equals_decoded_text(ids: list[int], skip_special: bool) -> None:
    stream = IncrementalDetokenizer(TOKENIZER, skip_special=skip_special)
    pieces = [stream.add(token_id) for token_id in ids]
    assert "".join(pieces) + stream.flush() == TOKENIZER.decode(ids, skip_special)


@given(texts)
@settings(max_examples=50)
def test_streaming_valid_text_never_shows_a_broken_character(text: str) -> None:
    text = unicodedata.normalize("NFC", text).replace("\ufffd", "")
    shown = ""
    stream = IncrementalDetokenizer(TOKENIZER)
    for token_id in TOKENIZER.encode_plain(text):
        shown += stream.add(token_id)
        assert text.startswith(shown)
    assert shown == text
    assert stream.flush() == ""


def test_a_character_over_four_tokens_appears_at_its_last() -> None:
    stream = IncrementalDetokenizer(TOKENIZER)
    ids = TOKENIZER.encode_plain("\N{GRINNING FACE}")
    assert [stream.add(token_id) for token_id in ids] == ["", "", "", "\N{GRINNING FACE}"]


def test_flush_ends_the_sequence_and_starts_afresh() -> None:
    stream = IncrementalDetokenizer(TOKENIZER)
    head = TOKENIZER.encode_plain("\N{GRINNING FACE}")[:2]
    assert [stream.add(token_id) for token_id in head] == ["", ""]
    assert stream.flush() == "\ufffd"
    assert stream.add(TOKENIZER.encode_plain("a")[0]) == "a"


def test_a_negative_id_is_refused() -> None:
    with pytest.raises(PromptError, match="-1"):
        TOKENIZER.decode([-1])


def test_both_ends_stop_a_generation(checkpoint: Path) -> None:
    tokenizer = Tokenizer.from_directory(checkpoint)
    assert tokenizer.stop_ids == {tokenizer.control_id("<|endoftext|>"), tokenizer.control_id("<|im_end|>")}


@pytest.mark.parametrize(("eos", "listed"), [(None, set()), (7, {7}), ([7, 9], {7, 9})])
def test_stop_ids_add_what_the_checkpoint_lists(tmp_path: Path, eos: int | list[int] | None, listed: set[int]) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert tokenizer.stop_ids == listed | {tokenizer.control_id("<|endoftext|>"), tokenizer.control_id("<|im_end|>")}


@pytest.mark.parametrize("eos", [-1, 2**24, 2**32, 10**30, [0, 2**24]], ids=str)
def test_an_end_that_is_no_token_is_one_clear_line(tmp_path: Path, eos: int | list[int]) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    with pytest.raises(CheckpointError, match=r"generation_config\.json: eos_token_id .* is no token"):
        Tokenizer.from_directory(tmp_path)


def test_ids_written_with_a_point_are_ids(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [97.0, 98]}')
    assert {97, 98} <= Tokenizer.from_directory(tmp_path).stop_ids


def test_a_vocabulary_without_merges_works(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_directory(write_checkpoint(tmp_path, merges=False))
    assert tokenizer.control_id("<|endoftext|>") == 256
    assert tokenizer.decode(tokenizer.encode_plain("<image> café")) == "<image> café"


def test_faults_in_a_directory_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json does not exist"):
        Tokenizer.from_directory(tmp_path)
    write_checkpoint(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": "two"}')
    with pytest.raises(CheckpointError, match="eos_token_id"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<nope>"}')
    with pytest.raises(CheckpointError, match="<nope>"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ConfigError, match="JSON"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is not a tokenizer"):
        Tokenizer.from_directory(tmp_path)


def test_a_vocabulary_without_the_control_tokens_is_refused() -> None:
    bare = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"a": 0}, merges=[]))
    bare.decoder = tokenizers.decoders.ByteLevel()
    with pytest.raises(CheckpointError, match="lacks the control tokens"):
        Tokenizer(bare)
