"""Each way in which data is broken: the error names the line and the reason, and nothing else is raised."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.clips import clip, without_packet, without_pictures
from helpers.pictures import png_bomb
from helpers.training import learn
from helpers.training_data import chat, picture, plain, write_lines, write_pictures
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pocketvlm.errors import ConfigError
from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.training.data import reading
from pocketvlm.training.data.dataset import open_datasets
from pocketvlm.training.data.json_records import JsonArray
from pocketvlm.training.data.sample import Sample, SampleError

GOOD = chat("q", "a")


def turns(*roles: str) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": "text"} for role in roles]}


# (what the second of three lines is, what is said about it)
LINES: dict[str, tuple[Any, str]] = {
    "missing picture": (chat("<image>q", images=["gone.png"]), r"gone.png does not exist"),
    "folder as picture": (chat("<image>q", images=["."]), r"is a directory, expected a file"),
    "empty picture": (chat("<image>q", images=["empty.png"]), r"empty.png is empty"),
    "picture without a name": (chat("<image>q", images=[""]), r"has an empty name"),
    "zero byte in a name": (chat("<image>q", images=["a\0.png"]), r"holds the control character U\+0000"),
    "picture as base64": (chat("<image>q", images=["iVBORw0KGgo" * 9]), r"is bare base64. Put data:image/png;base64,"),
    "picture as file: URL": (chat("<image>q", images=["file:///a.png"]), r"is a file: URL. Give the path alone"),
    "picture as number": (chat("<image>q", images=[3]), r"content\[0\] is 3, expected a path, a URL or bytes"),
    "frames as video": (chat("<video>q", videos=[["a.png"]]), r"Give the file of the video, not its frames"),
    "more marks": (chat("<image><image>q", images=["a.png"]), r"it has 2 marks <image> and 1 picture. Write one mark"),
    "fewer marks": (chat("<image>q", images=["a.png", "a.png"]), r"it has 1 mark <image> and 2 pictures"),
    "marks and no media": (chat("<video>q"), r"it has 1 mark <video> and 0 videos"),
    "picture and no question": (
        {"messages": [{"role": "assistant", "content": "a"}], "images": ["a.png"]},
        r"has a picture and no question|comes first",
    ),
    "picture of the system": (
        {
            "messages": [{"role": "system", "content": "<image>s"}, *GOOD["messages"]],
            "images": ["a.png"],
        },
        r"a system message must be text only",
    ),
    "wrong role": (turns("user", "robot"), r"messages\[1\]: role is 'robot', expected one of system, developer, user"),
    "no role": ({"messages": [{"content": "q"}]}, r"messages\[0\]: role is missing"),
    "misspelt content": (
        {"messages": [{"role": "user", "contnet": "q"}, {"role": "assistant", "content": "a"}]},
        r"messages\[0\] has no content. It has 'role', 'contnet'",
    ),
    "no answer": (turns("user", "assistant", "user"), r"it has no answer: its last message is not the assistant's"),
    "question alone": ({"query": "q"}, r"it has no answer"),
    "empty answer": (chat("q", ""), r"messages\[1\] is an empty answer"),
    "blank answer": (chat("q", " \n"), r"messages\[1\] is an empty answer"),
    "answer of null": (chat("q", None), r"messages\[1\] has no content"),
    "empty question": (chat("", "a"), r"messages\[0\] asks nothing"),
    "answer is a number": (chat("q", 42), r"messages\[1\].content is 42, expected a string"),
    "answer is a list": ({"question": "q", "answer": ["a", "b"]}, r"the answer is of type list, expected text. Keep"),
    "question is a number": ({"question": 4, "answer": "a"}, r"the question is 4, expected text. Put it in quotation"),
    "two questions": (turns("user", "user", "assistant"), r"messages\[1\] is of role 'user', as that before it"),
    "two answers": (turns("user", "assistant", "assistant"), r"messages\[2\] is of role 'assistant', as that before"),
    "answer first": (turns("assistant", "user", "assistant"), r"messages\[0\] is of role 'assistant' and comes first"),
    "system in the middle": (turns("user", "system", "assistant"), r"messages\[1\] is a system message, expected it"),
    "tool without a call": (turns("user", "tool", "assistant"), r"messages\[1\] is a tool's, and none was called"),
    "no messages": ({"messages": []}, r"it has no conversation"),
    "messages is text": ({"messages": "hello"}, r"messages is 'hello', expected a list"),
    "message is text": ({"messages": ["hello"]}, r"messages\[0\] is 'hello', expected an object"),
    "misspelt column": ({"mesages": GOOD["messages"]}, r"the column 'mesages' is unknown. Did you mean 'messages'\?"),
    "misspelt media": (chat("q", "a", imgaes=["a.png"]), r"the column 'imgaes' is unknown. Did you mean 'images'\?"),
    "misspelt option": (chat("q", "a", downsample_mod="4x"), r"Did you mean 'downsample_mode'\?"),
    "no known column": ({"a": 1, "b": 2}, r"it has no conversation. Name a column messages"),
    "two columns of one meaning": ({"question": "q", "prompt": "p", "answer": "a"}, r"'question' and 'prompt' say the"),
    "messages and a question": ({**GOOD, "query": "q"}, r"it has messages and a question or an answer beside them"),
    "sound": (chat("<audio>q", audios=["a.wav"]), r"it has audios, which cannot be honoured: the model hears nothing"),
    "boxes": (chat("q", "<bbox>", objects={"bbox": [[1, 2]]}), r"it has objects, which cannot be honoured"),
    "KTO": (chat("q", "a", label=False), r"it has a label that is true or false, of KTO"),
    "answer not to be learnt": (
        {"messages": [GOOD["messages"][0], {"role": "assistant", "content": "a", "loss": False}]},
        r"messages\[1\] is not to be learnt \(loss\)",
    ),
    "answer with a picture": (
        chat("<image>q", [{"type": "image", "image": "a.png"}, {"type": "text", "text": "a"}], images=["a.png"]),
        r"messages\[1\] is an answer with a picture. Put it into a question",
    ),
    "call not to be learnt": (
        {"messages": [GOOD["messages"][0], {"role": "tool_call", "content": '{"name": "f"}', "weight": 0}]},
        r"messages\[1\] is not to be learnt \(weight\)",
    ),
    "rejected is empty": (chat("q", "a", rejected_response=" "), r"the rejected answer is empty"),
    "rejected is the answer": (chat("q", "a", rejected_response="a"), r"the rejected answer is the better one"),
    "rejected is a number": (chat("q", "a", rejected_response=1), r"rejected is 1, expected text. Put it in"),
    "chosen alone": ({"prompt": "q", "chosen": "a"}, r"it has a chosen answer and no rejected one"),
    "two conversations": (
        {"chosen": chat("q", "a")["messages"], "rejected": chat("other", "b")["messages"]},
        r"rejected differs from the better answer already before its last message",
    ),
    "history of no pairs": ({"query": "q", "response": "a", "history": [["q"]]}, r"history\[0\] is of type list"),
    "option as text": (chat("q", "a", max_slice_nums="4"), r"max_slice_nums='4' is not an integer"),
    "option out of range": (chat("q", "a", max_num_frames=0), r"max_num_frames=0 is not"),
    "unknown rate": (chat("q", "a", downsample_mode="8x"), r"downsample_mode='8x' is unknown"),
    "tools of no kind": (chat("q", "a", tools="[1]"), r"tools\[0\]: expected"),
    "tools that are no JSON": (chat("q", "a", tools="[{"), r"it is not JSON"),
    "call that is no JSON": (
        {"messages": [GOOD["messages"][0], {"role": "tool_call", "content": "look()"}]},
        r"messages\[1\] is no JSON of a call",
    ),
    "control character": (chat("q", "a\x07"), r"messages\[1\] holds the control character U\+0007"),
    "half of a character": ('{"query": "q", "response": "\\ud800"}', r"half of a surrogate pair"),
    "truncated": ('{"messages": [{"role": "user", "content": "q', r"it is not JSON at character \d+ .*cut off"),
    "no JSON": ("What is it?\tA word.", r"it is not JSON at character 1"),
    "two objects in a line": ('{"a": 1} {"b": 2}', r"it is not JSON at character 10 \(Extra data\)"),
    "a list": ('["q", "a"]', r"it is of type list, expected an object"),
    "a number": ("17", r"it is 17, expected an object"),
    "NaN": ('{"query": "q", "response": "a", "score": NaN}', r"it holds NaN, which is not JSON"),
    "name twice": ('{"query": "q", "response": "a", "query": "p"}', r"it has the name 'query' twice"),
    "huge integer": ('{"query": "q", "response": "a", "n": ' + "1" * 5000 + "}", r"an integer of thousands of digits"),
    "nested too deeply": ("[" * 100_000, r"nested too deeply"),
    "raw control character": ('{"query": "q\x01", "response": "a"}', r"it is not JSON .*Invalid control character"),
    "not UTF-8": ('{"query": "für", "response": "a"}'.encode("latin-1"), r"it is not UTF-8 at byte 13. Save the file"),
}  # fmt: skip


@pytest.mark.parametrize("kind", LINES)
def test_a_broken_line_is_named_with_its_reason_and_others_are_read(tmp_path: Path, kind: str) -> None:
    write_pictures(tmp_path, "a.png")
    (tmp_path / "empty.png").touch()
    line, reason = LINES[kind]
    dataset = open_datasets([write_lines(tmp_path / "train.jsonl", GOOD, line, GOOD)])
    with pytest.raises(SampleError, match=reason) as caught:
        dataset[1]
    assert str(caught.value).startswith("train.jsonl:2: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert plain(dataset[0]) == plain(dataset[2]) == [("user", "q"), ("assistant", "a")]
    assert [error.source for error in dataset.errors()] == ["train.jsonl:2"]


def test_blank_lines_are_passed_over_and_counted(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "train.jsonl", GOOD, "", "  \t", GOOD, "", "{")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().rstrip(b"\n").replace(b"\n", b"\r\n"))
    dataset = open_datasets([path])
    assert len(dataset) == 3
    assert [dataset[i].source for i in (0, 1)] == ["train.jsonl:1", "train.jsonl:4"]
    with pytest.raises(SampleError, match=r"^train.jsonl:6: it is not JSON"):
        dataset[2]


def test_a_line_that_is_too_long_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_RECORD", 1000)
    dataset = open_datasets([write_lines(tmp_path / "train.jsonl", GOOD, chat("q" * 1000), GOOD)])
    with pytest.raises(SampleError, match=r"^train.jsonl:2: it is \d+ bytes long, at most 1000 are read"):
        dataset[1]
    assert dataset[2].source == "train.jsonl:3"


def test_a_file_that_shrinks_during_a_run_is_named(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "train.jsonl", GOOD, GOOD)
    dataset = open_datasets([path])
    path.write_bytes(path.read_bytes()[:-20])
    assert dataset[0]
    with pytest.raises(SampleError, match=r"^train.jsonl:2: the file is shorter than when it was opened"):
        dataset[1]
    path.unlink()
    with pytest.raises(SampleError, match=r"^train.jsonl:1: the file cannot be read any more"):
        dataset[0]


def a_pipe(path: Path) -> None:
    import os

    os.mkfifo(path)


def parquet(*rows: dict[str, Any]) -> Callable[[Path], object]:
    return lambda path: pq.write_table(pa.Table.from_pylist(list(rows)), path)


def content(body: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(body)


# (name of the file, how it is made, what is said): files of which nothing can be read.
FILES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing": ("train.jsonl", lambda _: None, "does not exist"),
    "folder without data": ("folder", Path.mkdir, "holds no file of samples"),
    "empty": ("train.jsonl", content(b""), "is empty. Write one sample a line"),
    "blank": ("train.jsonl", content(b"\n \n"), "is empty. Write one sample a line"),
    "UTF-16": ("train.jsonl", lambda path: path.write_text("{}", encoding="utf-16"), "is UTF-16, UTF-32 or no text"),
    "LFS": ("train.jsonl", content(b"version https://git-lfs.github.com/spec/v1\n"), "is a Git LFS pointer"),
    "other kind": ("train.txt", content(b"hello"), "is no file of samples. Give one of .jsonl"),
    "pipe": ("train.jsonl", a_pipe, "is a pipe, expected a file"),
    "one object": ("train.json", content(b'{\n  "messages": []\n}\n'), "is one JSON object, expected a list of them"),
    "empty list": ("train.json", content(b" [ ]"), "is an empty list"),
    "list cut off": ("train.json", content(b'[{"query": "q"}, {"query": "'), "is cut off: its list does not end"),
    "string cut off": ("train.json", content(b'[{"": "' + b'\\",' * 99_999 + b"\\"), "is cut off: its list does not"),
    "list that goes on": ("train.json", content(b'[{"query": "q"}] {}'), "goes on behind the end of its list"),
    "table without header": ("t.csv", content(b"a.png,What?,It.\n"), r"t.csv:1 is no header: .* 'a.png,What"),
    "table without rows": ("t.csv", content(b"image,question,answer\n\n"), "has a header and no rows"),
    "column twice": ("t.csv", content(b"image,answer,image\na,b,c\n"), "t.csv:1 names 'image' twice"),
    "line ends of old Macs": ("t.csv", content(b"image,answer\ra,b\r"), "t.csv:1 is no row of a table"),
    "header that is not UTF-8": ("t.csv", content(b"image,\xfc\n"), "t.csv:1 is not UTF-8"),
    "no Parquet": ("t.parquet", content(b"PAR1 or not"), "is not a readable Parquet file"),
    "Parquet without rows": ("t.parquet", lambda path: pq.write_table(pa.table({"query": []}), path), "holds no rows"),
    "Parquet of other columns": ("t.parquet", parquet({"x": 1, "y": 2}), "has no known column, but x, y"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_a_file_of_which_nothing_can_be_read_is_refused_when_it_is_opened(tmp_path: Path, kind: str) -> None:
    name, make, message = FILES[kind]
    make(tmp_path / name)
    with pytest.raises(ConfigError, match=message) as caught:
        open_datasets([tmp_path / name])
    assert name in str(caught.value)


def test_items_of_a_list_are_named_by_their_line(tmp_path: Path) -> None:
    items = [GOOD, {"query": '[}\\",\n', "response": "]"}, 5, {"query": "q"}, GOOD]
    (tmp_path / "train.json").write_text(json.dumps(items, indent=1), encoding="utf-8")
    dataset = open_datasets([tmp_path / "train.json"])
    assert len(dataset) == 5
    assert plain(dataset[1]) == [("user", '[}\\",\n'), ("assistant", "]")]
    assert dataset[0].source == "train.json:2 (item 0)"
    assert [str(error).partition(". ")[0] for error in dataset.errors()] == [
        "train.json:18 (item 2): it is 5, expected an object",
        "train.json:19 (item 3): it has no answer: its last message is not the assistant's",
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"a.png,q", "it has 2 cells, expected 3: image, question, answer"),
        (b"a.png,q,a,b", "it has 4 cells, expected 3"),
        (b'a.png,"q" x,a', "it is no row of a table"),
        (b"a.png,q\xff,a", "it is not UTF-8 at byte 8"),
        (b"a.png,q,", "it has no answer"),
        (b"gone.png,q,a", "gone.png does not exist"),
    ],
)
def test_a_broken_row_of_a_table_is_named(tmp_path: Path, row: bytes, reason: str) -> None:
    write_pictures(tmp_path, "a.png")
    (tmp_path / "t.csv").write_bytes(b'image,question,answer\na.png,"q\nq",a\n' + row + b"\na.png,q,a\n")
    dataset = open_datasets([tmp_path / "t.csv"])
    assert [error.source for error in dataset.errors()] == ["t.csv:4"]
    with pytest.raises(SampleError, match=rf"^t.csv:4: .*{reason}"):
        dataset[1]


def test_a_quotation_mark_that_is_not_closed_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b'question,answer\nq,a\nq,"a\nq,a\nq,a\n')
    with pytest.raises(SampleError, match=r"^t.csv:3: it is no row of a table \(unexpected end of data\)"):
        open_datasets([tmp_path / "t.csv"])[1]


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ({"bytes": None, "path": None}, "has neither bytes nor a path"),
        ({"bytes": b"", "path": "a.png"}, "holds no bytes"),
        ({"bytes": None, "path": "gone.png"}, "gone.png does not exist"),
        (None, "it has 1 mark <image> and 0 pictures"),
    ],
)
def test_a_row_without_its_picture_is_named(tmp_path: Path, cell: Any, reason: str) -> None:
    rows = [
        {"image": {"bytes": picture(), "path": "a.png"}, "question": "<image>q", "answer": "a"},
        {"image": cell, "question": "<image>q", "answer": "a"},
    ]
    parquet(*rows)(tmp_path / "t.parquet")
    dataset = open_datasets([tmp_path / "t.parquet"])
    assert dataset[0]
    with pytest.raises(SampleError, match=rf"^t.parquet row 1: .*{reason}"):
        dataset[1]


def test_a_row_of_another_type_is_named(tmp_path: Path) -> None:
    parquet({"question": "q", "answer": float("nan")})(tmp_path / "t.parquet")
    with pytest.raises(SampleError, match=r"^t.parquet row 0: messages\[1\].content is nan, expected a string"):
        open_datasets([tmp_path / "t.parquet"])[0]


def test_metadata_names_files_in_its_folder_only(tmp_path: Path) -> None:
    write_pictures(tmp_path, "outside.png", "in/a.png")
    rows = [{"file_name": name, "text": "t"} for name in ("a.png", "../outside.png", str(tmp_path / "outside.png"))]
    write_lines(tmp_path / "in/metadata.jsonl", *rows)
    dataset = open_datasets([tmp_path / "in"])
    assert [error.source for error in dataset.errors()] == ["metadata.jsonl:2", "metadata.jsonl:3"]
    with pytest.raises(SampleError, match="lies outside of the folder"):
        dataset[1]


def one(folder: Path, kind: str, body: bytes) -> Sample:
    (folder / "m.bin").write_bytes(body)
    return open_datasets([write_lines(folder / "train.jsonl", chat(f"<{kind}>q", **{f"{kind}s": ["m.bin"]}))])[0]


@pytest.mark.parametrize(
    ("kind", "body", "reason"),
    [
        ("image", png_bomb(10_000, 9_000), "is 9000 x 10000 pixels .* Scale it down first"),
        ("image", b"no picture at all", "train.jsonl:1: messages"),
        ("image", picture(size=(900, 900))[:-200], "train.jsonl:1: messages"),
        ("video", b"no video at all", "train.jsonl:1: messages"),
        ("video", picture(), "is a picture, expected a video"),
        ("video", clip(20, noise=True)[:3000], "train.jsonl:1: messages"),
    ],
)
def test_media_that_cannot_be_read_are_bad_samples(tmp_path: Path, kind: str, body: bytes, reason: str) -> None:
    with pytest.raises(SampleError, match=reason) as caught:
        learn(one(tmp_path, kind, body))
    assert str(caught.value).startswith("train.jsonl:1: messages[0].content[0]: ")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (without_packet(clip(50, 10, format="mpegts", g="12", noise=True), 30), "is damaged or cut off"),
        (
            without_pictures(clip(30, 10, codec="mjpeg", format="avi", strict="unofficial"), range(9, 12)),
            "1 of 3 frames",
        ),
    ],
    ids=["lost packet", "frames that cannot be decoded"],
)
def test_a_clip_that_can_only_be_answered_about_is_not_learnt(tmp_path: Path, body: bytes, reason: str) -> None:
    """What stands in for what is lost is not what the answer is about."""
    sample = one(tmp_path, "video", body)
    assert learn(sample, MediaLimits()).views
    with pytest.raises(SampleError, match=rf"^train\.jsonl:1: messages\[0\].content\[0\]: .*{reason}"):
        learn(sample)


def test_good_media_pass(tmp_path: Path) -> None:
    for kind, body in (("image", picture()), ("video", clip(20))):
        assert learn(one(tmp_path, kind, body)).views


MARKS = st.text(st.sampled_from('[]{},:"\\ \nü'), max_size=6)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.dictionaries(MARKS, st.lists(MARKS, max_size=2) | MARKS | st.none(), max_size=2), min_size=1, max_size=4
    ),
    st.sampled_from([None, 0, 3]),
    st.booleans(),
)
def test_items_of_a_list_are_what_the_json_library_finds(
    tmp_path: Path, items: list[Any], indent: int | None, is_ascii: bool
) -> None:
    text = json.dumps(items, indent=indent, ensure_ascii=is_ascii)
    (tmp_path / "train.json").write_bytes(text.encode(errors="replace"))
    found = JsonArray(tmp_path / "train.json")
    assert [found.read(i) for i in range(len(found))] == json.loads(text.encode(errors="replace"))


KEYS = ("role", "content", "type", "text", "image", "url", "from", "value", "bytes", "x")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("<image>"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=12,
)
COLUMNS = (
    "messages", "conversations", "query", "response", "history", "images", "videos", "chosen", "rejected", "system",
    "tools", "file_name", "text", "max_slice_nums", "downsample_mode", "label", "other",
)  # fmt: skip


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(COLUMNS), JSON | st.lists(JSON, max_size=3), min_size=1, max_size=5))
def test_whatever_a_line_says_it_is_a_sample_or_a_sample_error(tmp_path: Path, row: dict[str, Any]) -> None:
    dataset = open_datasets([write_lines(tmp_path / "train.jsonl", row)])
    errors = list(dataset.errors())  # reads it, and nothing else may be raised
    if errors:
        assert str(errors[0]).startswith("train.jsonl:1: ")
    else:
        assert dataset[0].messages[-1]["role"] == "assistant"


def test_what_pyarrow_has_not_implemented_is_the_error_of_a_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise pa.ArrowNotImplementedError("Nested data conversions not implemented for chunked array outputs")

    pq.write_table(pa.Table.from_pylist([GOOD]), tmp_path / "t.parquet")
    dataset = open_datasets([tmp_path / "t.parquet"])
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", fails)
    with pytest.raises(SampleError, match=r"^t.parquet row 0: row group 0 cannot be read \(Nested.*Write smaller row"):
        dataset[0]
