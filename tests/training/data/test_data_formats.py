"""The published shapes of other programs' data say the same here as there."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.training_data import chat, picture, plain, write_lines, write_pictures

from pocketvlm.errors import ConfigError
from pocketvlm.processing.processor import Processor
from pocketvlm.training.data.dataset import open_datasets
from pocketvlm.training.data.sample import Sample, SampleError

NANO = Path(__file__).parents[3] / "src" / "pocketvlm" / "assets" / "nano"
A, B = ("image", "a.png"), ("image", "b.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_pictures(tmp_path, "a.png", "b.png")
    (tmp_path / "v.mp4").write_bytes(b"only its name counts here")
    return tmp_path


# ms-swift's documentation, "Custom dataset": one row of each kind, and what it says.
SWIFT: list[tuple[dict[str, Any], list[tuple[str, Any]]]] = [
    (
        {"system": "s", "conversation": [{"human": "q1", "assistant": "a1"}, {"human": "q2", "assistant": "a2"}]},
        [("system", "s"), ("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2")],
    ),
    (
        {"system": "s", "instruction": "do", "input": "this", "output": "done"},
        [("system", "s"), ("user", "do\nthis"), ("assistant", "done")],
    ),
    (
        {"query": "q2", "response": "a2", "history": [["q1", "a1"]]},
        [("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2")],
    ),
    (chat("Where is it?", "There."), [("user", "Where is it?"), ("assistant", "There.")]),
    (
        chat("<image><image>What differs?", "All.", images=["a.png", "b.png"]),
        [("user", [A, B, "What differs?"]), ("assistant", "All.")],
    ),
    (
        chat("<image>What is this, <video>and that?", "Two.", images=["a.png"], videos=["v.mp4"]),
        [("user", [A, "What is this, ", ("video", "v.mp4"), "and that?"]), ("assistant", "Two.")],
    ),
    # Media without marks come in front of the first question, videos first.
    (
        chat("What?", "It.", images=["a.png", "b.png"], videos=["v.mp4"]),
        [("user", [("video", "v.mp4"), A, B, "What?"]), ("assistant", "It.")],
    ),
    (chat("What?", "It.", image="a.png"), [("user", [A, "What?"]), ("assistant", "It.")]),
    (
        {
            "messages": [
                {"role": "user", "content": "q"},
                {"role": "tool_call", "content": '{"name": "look", "arguments": {"at": "x"}}'},
                {"role": "tool_response", "content": "seen"},
                {"role": "assistant", "content": "a"},
            ],
            "tools": '[{"name": "look", "parameters": {"type": "object"}}]',
        },
        [("user", "q"), ("assistant", ""), ("tool", "seen"), ("assistant", "a")],
    ),
]


@pytest.mark.parametrize(("row", "said"), SWIFT, ids=str)
def test_rows_of_ms_swift(folder: Path, row: dict[str, Any], said: list[tuple[str, Any]]) -> None:
    (sample,) = open_datasets([write_lines(folder / "train.jsonl", row)])
    assert plain(sample) == said
    assert sample.source == "train.jsonl:1"
    assert sample.rejected is None


def test_calls_of_tools_become_those_of_openai(folder: Path) -> None:
    (sample,) = open_datasets([write_lines(folder / "train.jsonl", SWIFT[-1][0])])
    assert sample.messages[1]["tool_calls"] == [{"function": {"name": "look", "arguments": {"at": "x"}}}]
    assert sample.tools[0]["function"]["name"] == "look"


def test_preferences_of_ms_swift_llama_factory_and_trl(folder: Path) -> None:
    asked, better, worse = chat("q")["messages"][:1], chat("q", "good")["messages"], chat("q", "bad")["messages"]
    gpt = {name: {"from": "gpt", "value": text} for name, text in (("chosen", "good"), ("rejected", "bad"))}
    rows: list[dict[str, Any]] = [
        chat("q", "good", rejected_response="bad"),
        {"conversations": [{"from": "human", "value": "q"}], **gpt},
        {"instruction": "q", "chosen": "good", "rejected": "bad"},
        {"prompt": asked, "chosen": better[1:], "rejected": worse[1:]},
        {"chosen": better, "rejected": worse},
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
    ]
    for sample in open_datasets([write_lines(folder / "train.jsonl", *rows)]):
        assert plain(sample) == [("user", "q"), ("assistant", "good")]
        assert sample.rejected == "bad"


def test_chat_of_openai_with_parts_and_options_of_pictures(folder: Path) -> None:
    url = "data:image/png;base64,iVBORw0KGgo="
    parts = [
        {"type": "text", "text": "First"},
        {"type": "text", "text": "<image> is a tag of HTML"},
        {"type": "image_url", "image_url": {"url": "a.png", "detail": "low"}},
        {"type": "image_url", "image_url": {"url": url, "detail": "auto"}},
        {"type": "image_url", "image_url": "https://example.com/x.png"},
    ]
    row = chat(parts, [{"type": "text", "text": "Yes."}], downsample_mode="4x", max_slice_nums=4)
    (sample,) = open_datasets([write_lines(folder / "chat.jsonl", row)])
    web = ("image", "https://example.com/x.png")
    assert plain(sample)[0][1] == ["First\n<image> is a tag of HTML", A, ("image", url), web]
    assert sample.messages[0]["content"][1]["max_slice_nums"] == 1
    assert sample.messages[1]["content"] == "Yes."
    assert sample.options == {"downsample_mode": "4x", "max_slice_nums": 4}


def test_a_line_break_beside_a_mark_is_the_one_of_the_template(folder: Path) -> None:
    """So the prompt is the one that inference makes of picture and question."""
    rows = [
        chat("<image>\nWhat?", images=["a.png"]),
        chat("<image>What?", images=["a.png"]),
        chat([{"type": "image_url", "image_url": {"url": "a.png"}}, {"type": "text", "text": "What?"}]),
        chat([{"type": "image", "text": None}, {"type": "text", "text": "What?"}], images=["a.png"]),
    ]
    processor = Processor.from_directory(NANO)
    ids = [
        processor(sample.messages, add_generation_prompt=False).input_ids.tolist()
        for sample in open_datasets([write_lines(folder / "train.jsonl", *rows)])
    ]
    assert ids[0] == ids[1] == ids[2] == ids[3]


def write_info(folder: Path, info: dict[str, Any], **files: list[dict[str, Any]]) -> Path:
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    for name, rows in files.items():
        (folder / f"{name}.json").write_text(json.dumps(rows, indent=2), encoding="utf-8")
    return folder


# As LLaMA-Factory's data/dataset_info.json has them.
ROLE_TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
INFO: dict[str, Any] = {
    "identity": {
        "file_name": "identity.json",
        "columns": {"prompt": "instruction", "query": "input", "response": "output", "history": "history"},
    },
    "mllm_demo": {
        "file_name": "mllm_demo.json",
        "formatting": "sharegpt",
        "columns": {"messages": "messages", "images": "images", "videos": "videos"},
        "tags": ROLE_TAGS,
    },
    "dpo_en_demo": {
        "file_name": "dpo_en_demo.json",
        "ranking": True,
        "formatting": "sharegpt",
        "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
    },
    "renamed": {
        "file_name": "renamed.json",
        "columns": {"prompt": "question", "response": "reply", "system": "who", "images": "image"},
    },
    "alpaca_en": {"hf_hub_url": "llamafactory/alpaca_en"},
}


@pytest.fixture
def described(folder: Path) -> Path:
    return write_info(
        folder,
        INFO,
        identity=[
            {"instruction": "hi", "input": "", "output": "Hello."},
            {"instruction": "and", "input": "more", "output": "Yes.", "history": [["q", "a"]]},
        ],
        mllm_demo=[
            {
                "messages": [
                    {"content": "<image>Who are they?", "role": "user"},
                    {"content": "Kane and Gretzka.", "role": "assistant"},
                ],
                "images": ["a.png"],
            },
            {
                "messages": [
                    {"content": "<video>Why is this video funny?", "role": "user"},
                    {"content": "A baby reads.", "role": "assistant"},
                ],
                "videos": ["v.mp4"],
            },
        ],
        dpo_en_demo=[
            {
                "conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}],
                "chosen": {"from": "gpt", "value": "good"},
                "rejected": {"from": "gpt", "value": "bad"},
            }
        ],
        renamed=[{"question": "<image>q", "reply": "a", "who": "s", "image": "b.png", "other": 1}],
    )


def test_sets_of_llama_factory_are_chosen_by_name(described: Path) -> None:
    dataset = open_datasets([described], names=["identity", "mllm_demo", "dpo_en_demo", "renamed"])
    assert [source.name for source in dataset.sources] == ["identity", "mllm_demo", "dpo_en_demo", "renamed"]
    assert [plain(sample) for sample in dataset] == [
        [("user", "hi"), ("assistant", "Hello.")],
        [("user", "q"), ("assistant", "a"), ("user", "and\nmore"), ("assistant", "Yes.")],
        [("user", [A, "Who are they?"]), ("assistant", "Kane and Gretzka.")],
        [("user", [("video", "v.mp4"), "Why is this video funny?"]), ("assistant", "A baby reads.")],
        [("system", "s"), ("user", "q"), ("assistant", "good")],
        [("system", "s"), ("user", [B, "q"]), ("assistant", "a")],
    ]
    assert dataset[4].rejected == "bad"
    assert dataset.unused_columns() == {str(described / "renamed.json"): ["other"]}


def test_a_description_with_columns_has_no_others(described: Path) -> None:
    """As in LLaMA-Factory: its names of columns go for a description that says nothing of columns, and for no other."""
    rows = [{"instruction": "hi", "input": "left out", "output": "Hello."}]
    named = {"file_name": "plain.json", "columns": {"prompt": "instruction", "response": "output"}}
    write_info(described, {"named": named, "silent": {"file_name": "plain.json"}}, plain=rows)
    dataset = open_datasets([described], names=["named"])
    assert plain(dataset[0]) == [("user", "hi"), ("assistant", "Hello.")]
    assert dataset.unused_columns() == {str(described / "plain.json"): ["input"]}
    dataset = open_datasets([described], names=["silent"])
    assert plain(dataset[0])[0] == ("user", "hi\nleft out")
    assert dataset.unused_columns() == {}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"describes 5 sets. Choose by name among identity, mllm_demo"),
        (["identiti"], "describes no set 'identiti'. It has identity"),
        (["alpaca_en"], "has no file_name, and nothing is downloaded here. Download it"),
    ],
)
def test_a_set_that_cannot_be_chosen_is_named(described: Path, names: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_datasets([described], names=names)


def test_names_are_of_folders_that_have_sets(described: Path, tmp_path: Path) -> None:
    """What has none is meant as it is, and is named where nothing has any."""
    plain_folder = tmp_path / "plain"
    plain_folder.mkdir()
    (plain_folder / "a.jsonl").write_text('{"query": "Say.", "response": "So."}\n', encoding="utf-8")
    both = open_datasets([described, plain_folder], names=["identity"])
    assert [source.name for source in both.sources] == ["identity", "plain"]
    with pytest.raises(ConfigError, match=r"has no split 'identity'. No file in it is named after one; leave"):
        open_datasets([plain_folder], names=["identity"])


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"file_name": "gone.json"}, "file_name is 'gone.json', which does not exist"),
        ({"file_name": "identity.json", "formatting": "chatml"}, "expected alpaca, sharegpt or openai"),
        ({"file_name": "identity.json", "columns": {"anwser": "output"}}, "columns has 'anwser'"),
        ({"file_name": "identity.json", "columns": {"kto_tag": "label"}}, "columns has 'kto_tag'"),
        ({"file_name": "identity.json", "tags": {"role": "role"}}, "tags has 'role', which is unknown"),
        ({"file_name": "identity.json", "num_samples": 5}, "num_samples cannot be honoured"),
        ({"file_name": "identity.json", "ranking": "yes"}, "ranking is 'yes', expected true or false"),
        ({"file_name": "identity.json", "split": "test"}, "split is 'test', and a file has none"),
    ],
)
def test_a_description_that_cannot_be_honoured_is_refused(described: Path, about: Any, message: str) -> None:
    write_info(described, {"one": about})
    with pytest.raises(ConfigError, match=message):
        open_datasets([described])


def test_llama_factory_wants_a_mark_for_each_medium_and_what_it_calls_preferences(described: Path) -> None:
    info = {"renamed": INFO["renamed"], "identity": {**INFO["identity"], "ranking": True}}
    write_info(described, info, renamed=[{"question": "q", "reply": "a", "image": "b.png"}])
    dataset = open_datasets([described], names=["renamed", "identity"])
    with pytest.raises(SampleError, match=r"^renamed.json:2 \(item 0\): it has 0 marks <image> and 1 picture"):
        dataset[0]
    with pytest.raises(SampleError, match="has no rejected answer, and its set is of preferences"):
        dataset[1]
    write_info(described, {"identity": {"file_name": "identity.json"}})
    with pytest.raises(SampleError, match="it has history, which its description does not name"):
        open_datasets([described])[1]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_metadata_beside_pictures_as_datasets_has_it(tmp_path: Path, kind: str) -> None:
    write_pictures(tmp_path, "train/1.png", "train/deep/2.png", "test/3.png")
    rows = [{"file_name": "1.png", "text": "A cat."}, {"file_name": "deep/2.png", "text": "A dog, or two."}]
    if kind == "jsonl":
        write_lines(tmp_path / "train/metadata.jsonl", *rows)
        write_lines(tmp_path / "test/metadata.jsonl", {"file_name": "3.png", "text": "Not for training."})
    elif kind == "csv":
        with (tmp_path / "train/metadata.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["file_name", "text"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train/metadata.parquet")
    assert [plain(sample) for sample in open_datasets([tmp_path])] == [
        [("user", [("image", "1.png")]), ("assistant", "A cat.")],
        [("user", [("image", "2.png")]), ("assistant", "A dog, or two.")],
    ]
    if kind == "jsonl":
        (sample,) = open_datasets([tmp_path], names=["test"])
        assert plain(sample)[1] == ("assistant", "Not for training.")


def test_parquet_with_pictures_in_it_is_read_by_row_groups(tmp_path: Path) -> None:
    rows = [
        {"image": {"bytes": picture(i), "path": f"{i}.png"}, "question": f"q{i}", "answer": f"a{i}"} for i in range(7)
    ]
    (tmp_path / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(rows[:4]), tmp_path / "data/train-00000-of-00002.parquet", row_group_size=3)
    pq.write_table(pa.Table.from_pylist(rows[4:]), tmp_path / "data/train-00001-of-00002.parquet", row_group_size=3)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data/test-00000-of-00001.parquet")
    dataset = open_datasets([tmp_path])
    assert len(dataset) == 7
    for i in (6, 0, 3, 5, 2, 1, 4):
        assert plain(dataset[i]) == [("user", [picture(i), f"q{i}"]), ("assistant", f"a{i}")]
    assert dataset[3].source == "train-00000-of-00002.parquet row 3"
    inputs = Processor.from_directory(NANO)(dataset[0].messages, add_generation_prompt=False)
    assert inputs.views


def test_parquet_of_chats_with_lists_of_pictures(tmp_path: Path) -> None:
    """As `datasets` writes messages of the Hub: lists of structs, in which absent fields are null."""
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]
    row = chat(parts, [{"type": "text", "text": "It."}], images=[{"bytes": picture(), "path": None}])
    pq.write_table(pa.Table.from_pylist([row, row]), tmp_path / "train.parquet")
    for sample in open_datasets([tmp_path / "train.parquet"]):
        assert plain(sample) == [("user", [picture(), "What?"]), ("assistant", "It.")]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_a_folder_of_pictures_with_a_table(tmp_path: Path, delimiter: str, start: str) -> None:
    write_pictures(tmp_path, "one, 1.png", "b.png")
    rows = [
        ["image", "question", "answer", "max_slice_nums"],
        ["one, 1.png", 'Says "hi";\nwhat?\tÜber', "12", "4"],
        [],
        ["b.png", "q", "a", ""],
    ]
    with (tmp_path / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        file.write(start)
        csv.writer(file, delimiter=delimiter).writerows(rows)
    first, second = open_datasets([tmp_path])
    assert plain(first) == [("user", [("image", "one, 1.png"), 'Says "hi";\nwhat?\tÜber']), ("assistant", "12")]
    assert (first.source, dict(first.options)) == ("labels.csv:2", {"max_slice_nums": 4})
    assert (second.source, dict(second.options)) == ("labels.csv:5", {})


def test_media_may_lie_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_pictures(tmp_path / "pictures", "a.png")
    path = write_lines(tmp_path / "data/train.jsonl", chat(images=["a.png"]), chat(images=["../pictures/a.png"]))
    (first, _) = open_datasets([path], media_dir=tmp_path / "pictures")
    assert first.messages[0]["content"][0]["image_url"]["url"] == str(tmp_path / "pictures/a.png")
    with pytest.raises(SampleError, match=r"train.jsonl:1: .*data/a.png does not exist"):
        open_datasets([path])[0]
    assert plain(open_datasets([path])[1])[0][1][0] == A


def test_opening_reads_nothing_of_the_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    path = write_lines(folder / "train.jsonl", chat("<image>q", images=["http://example.com/x.png"]))
    (sample,) = open_datasets([path])
    assert plain(sample)[0][1][0] == ("image", "http://example.com/x.png")


@pytest.mark.parametrize("key", [{"weight": 0}, {"loss": False}])
def test_what_is_not_learnt_anyway_may_say_so(tmp_path: Path, key: dict[str, Any]) -> None:
    row = chat("q", "a")
    row["messages"] = [{"role": "system", "content": "s", **key}, {**row["messages"][0], **key}, row["messages"][1]]
    (sample,) = open_datasets([write_lines(tmp_path / "train.jsonl", row)])
    assert plain(sample) == [("system", "s"), ("user", "q"), ("assistant", "a")]


def write_files(folder: Path, *names: str) -> Path:
    """Files of one sample each, whose answer is their name."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        row = {"question": "q", "answer": name}
        if name.endswith(".parquet"):
            pq.write_table(pa.Table.from_pylist([row]), folder / name)
        elif name.endswith(".csv"):
            (folder / name).write_text(f"question,answer\nq,{name}\n", encoding="utf-8")
        else:
            write_lines(folder / name, row)
    return folder


def answers(dataset: Iterable[Sample]) -> list[str]:
    return [sample.messages[-1]["content"] for sample in dataset]


@pytest.mark.parametrize(
    ("names", "read", "left"),
    [
        (("train.jsonl", "more.jsonl", "old.csv"), ["train.jsonl"], "more.jsonl, old.csv"),
        (("a.jsonl", "b.jsonl"), ["a.jsonl", "b.jsonl"], ""),
        (("a.csv", "sub/b.csv"), ["a.csv"], "sub/b.csv"),
        (("data/train-0.parquet", "dataset_infos.json"), ["data/train-0.parquet"], ""),
        (("data/train-0.parquet", "scores.json"), ["data/train-0.parquet"], "scores.json"),
        (("train.jsonl", "eval/validation.parquet"), ["train.jsonl"], "eval/validation.parquet"),
        (("train.csv", "cache/x.parquet"), ["train.csv"], "cache/x.parquet"),
        (("metadata.csv", "labels.jsonl"), ["metadata.csv"], "labels.jsonl"),
        (
            ("train.jsonl", *(f"{i}.csv" for i in range(7))),
            ["train.jsonl"],
            "0.csv, 1.csv, 2.csv, 3.csv, 4.csv and 2 more",
        ),
    ],
)
def test_files_of_a_folder_that_are_not_read_are_named(
    tmp_path: Path, names: tuple[str, ...], read: list[str], left: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert answers(open_datasets([write_files(tmp_path, *names)])) == read
    assert caplog.messages == ([f"{tmp_path}: not read are {left}"] if left else [])


@pytest.mark.parametrize(
    ("names", "read"),
    [
        (("train.jsonl", "test.jsonl", "validation.jsonl"), "test.jsonl"),
        (("train.jsonl", "valid.jsonl"), "valid.jsonl"),
        (("train.jsonl",), "train.jsonl"),
        (("mine.jsonl",), "mine.jsonl"),
        (("train.jsonl", "mine.jsonl"), ""),
    ],
)
def test_what_is_measured_with_is_not_the_training_split(tmp_path: Path, names: tuple[str, ...], read: str) -> None:
    write_files(tmp_path, *names)
    if not read:
        with pytest.raises(ConfigError, match=r"and no test or validation to measure with\. Name a file."):
            open_datasets([tmp_path], splits=("test", "validation"))
        return
    assert answers(open_datasets([tmp_path], splits=("test", "validation"))) == [read]
