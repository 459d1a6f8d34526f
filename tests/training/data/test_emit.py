"""What is emitted for another program says the same: read again, it gives equal samples."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from helpers.training_data import chat, picture, write_lines, write_pictures
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketvlm.errors import ConfigError
from pocketvlm.processing.media.sources import NamedBytes
from pocketvlm.training.data.dataset import open_datasets
from pocketvlm.training.data.emit import FORMATS, Format, emit
from pocketvlm.training.data.sample import Sample, SampleError


def facts(sample: Sample) -> Any:
    """All that a sample says; a medium as its content, wherever it lies."""

    def read(part: dict[str, Any]) -> Any:
        if part["type"] == "text":
            return part
        source = part[part["type"]]
        return bytes(source) if isinstance(source, bytes) else Path(source["url"]).read_bytes()

    messages = [
        {**message, "content": [read(part) for part in message["content"]]}
        if isinstance(message["content"], list)
        else message
        for message in sample.messages
    ]
    return messages, sample.rejected, sample.tools, dict(sample.options)


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]) | st.just("\n"), min_size=1, max_size=12)
WORDS = TEXT.filter(str.strip)
PICTURES = tuple(picture(i) for i in range(3))
MEDIA = st.sampled_from(PICTURES).map(lambda body: {"type": "image", "image": NamedBytes(body, "x")})
VIDEOS = st.just({"type": "video", "video": NamedBytes(b"\x00\x00\x00\x18ftypisom", "x")})


@st.composite
def contents(draw: st.DrawFn) -> Any:
    if draw(st.booleans()):
        return draw(WORDS)
    parts: list[dict[str, Any]] = []
    for part in draw(st.lists(MEDIA | VIDEOS | TEXT, min_size=1, max_size=5)):
        if not isinstance(part, str):
            parts.append(part)
        elif not parts or parts[-1]["type"] != "text":
            parts.append({"type": "text", "text": part})
    return parts if any(part["type"] != "text" for part in parts) else draw(WORDS)


TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
OPTIONS = st.fixed_dictionaries(
    {}, optional={"downsample_mode": st.sampled_from(["16x", "4x", "auto"]), "max_slice_nums": st.integers(1, 9)}
)


@st.composite
def samples(draw: st.DrawFn, *, rejected: bool) -> Sample:
    messages: list[dict[str, Any]] = []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": draw(WORDS)})
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(contents())})
        if draw(st.booleans()):
            call = {"function": {"name": "look", "arguments": {"at": draw(TEXT)}}}
            messages.append({"role": "assistant", "tool_calls": [call], "content": ""})
            messages.append({"role": "tool", "content": draw(WORDS)})
        messages.append({"role": "assistant", "content": draw(WORDS)})
    worse = draw(WORDS.filter(lambda text: text != messages[-1]["content"])) if rejected else None
    return Sample(messages, "drawn", worse, draw(st.sampled_from([None, [TOOL]])), draw(OPTIONS))


SETS = st.booleans().flatmap(lambda rejected: st.lists(samples(rejected=rejected), min_size=1, max_size=3))


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=120, deadline=None)
@given(drawn=SETS)
def test_what_is_emitted_gives_equal_samples(format: Format, drawn: list[Sample]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        again = open_datasets([emit(drawn, folder, format)])
        assert [facts(sample) for sample in again] == [facts(sample) for sample in drawn]


@pytest.mark.parametrize("format", FORMATS)
def test_a_data_set_with_pictures_in_files_is_emitted_without_copies(tmp_path: Path, format: Format) -> None:
    write_pictures(tmp_path, "a.png")
    read = open_datasets([write_lines(tmp_path / "in.jsonl", chat("<image>\nq", images=["a.png"]), chat("q"))])
    written = emit(read, tmp_path / "out" / "deep", format, name="one")
    row = json.loads((tmp_path / "out/deep/one.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert row["images"] == [str(tmp_path / "a.png")]
    # ms-swift's template ends the line behind a picture itself.
    assert row["messages"][0] == {"role": "user", "content": "<image>q" if format == "swift" else "<image>\nq"}
    assert not (tmp_path / "out/deep/media").exists()
    assert [facts(sample) for sample in open_datasets([written])] == [facts(sample) for sample in read]


def test_the_description_names_the_columns_that_are_there_and_keeps_other_sets(tmp_path: Path) -> None:
    emit([Sample(chat()["messages"], "x", "worse")], tmp_path, "llamafactory", name="dpo")
    emit([Sample(chat()["messages"], "x")], tmp_path, "llamafactory", name="sft")
    info = json.loads((tmp_path / "dataset_info.json").read_text(encoding="utf-8"))
    assert list(info) == ["dpo", "sft"]
    assert info["dpo"]["ranking"] is True
    assert list(info["dpo"]["columns"]) == ["messages", "chosen", "rejected"]
    assert "ranking" not in info["sft"]
    assert list(info["sft"]["columns"]) == ["messages"]
    assert [len(open_datasets([tmp_path], names=[name])) for name in ("dpo", "sft")] == [1, 1]


def one(content: Any = "q", **more: Any) -> Sample:
    return Sample([{"role": "user", "content": content}, {"role": "assistant", "content": "a", **more}], "in.jsonl:4")


PDF = {"type": "image", "image": NamedBytes(b"%PDF-1.7 and so on", "x")}
WEB = {"type": "image_url", "image_url": {"url": "https://example.com/x.png"}}
CALL = [{"function": {"name": "look", "arguments": {}}}]


@pytest.mark.parametrize(
    ("sample", "format", "what"),
    [
        (one("the tag <image>"), "swift", "the text <image>"),
        (one([{**WEB, "max_slice_nums": 1}]), "swift", "a limit of slices for one picture"),
        (one([WEB]), "llamafactory", "media on the network"),
        (one([PDF]), "swift", "pages of a document"),
        (one(reasoning_content="hm"), "swift", "reasoning apart from its answer"),
        (one(tool_calls=CALL), "llamafactory", "text in front of a call of a tool"),
    ],
)
def test_what_a_format_has_no_place_for_is_refused(tmp_path: Path, sample: Sample, format: Format, what: str) -> None:
    with pytest.raises(SampleError, match=f"^in.jsonl:4: the format {format} has no place for {what}"):
        emit([sample], tmp_path, format)
    assert not list(tmp_path.iterdir())  # nothing that is half of a set


def test_a_bad_sample_stops_it_and_nothing_is_left(tmp_path: Path) -> None:
    read = open_datasets([write_lines(tmp_path / "in.jsonl", chat(), chat("q", ""))])
    with pytest.raises(SampleError, match=r"^in.jsonl:2: "):
        emit(read, tmp_path / "out", "swift")
    assert not list((tmp_path / "out").iterdir())


def test_no_samples_mixed_samples_and_wrong_names_are_refused(tmp_path: Path) -> None:
    mixed = [one(), Sample(chat()["messages"], "x", "worse")]
    for given_samples, format, name, message in (
        ([], "swift", "train", "no samples to write"),
        (mixed, "swift", "train", "Some samples have a rejected answer"),
        ([one()], "trl", "train", "format='trl' is unknown"),
        ([one()], "swift", "../x", "is no name of a set"),
    ):
        with pytest.raises(ConfigError, match=message):
            emit(given_samples, tmp_path, format, name=name)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "body", "suffix"),
    [
        ("video", b"RIFF\x10\0\0\0AVI LIST", ".avi"),
        ("image", b"RIFF\x10\0\0\0WEBPVP8 ", ".webp"),
        ("video", b"\x1a\x45\xdf\xa3", ".webm"),
        ("video", b"\0\0\0\x18ftypisom", ".mp4"),
        ("image", PICTURES[0], ".png"),
    ],
)
def test_bytes_are_saved_under_the_name_of_what_they_are(tmp_path: Path, kind: str, body: bytes, suffix: str) -> None:
    emit([one([{"type": kind, kind: NamedBytes(body, "x")}])], tmp_path, "swift")
    (saved,) = (tmp_path / "media").iterdir()
    assert (saved.suffix, saved.read_bytes()) == (suffix, body)
