"""Files as programs and spreadsheets write them are read, with columns that say nothing here beside those that do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.training_data import chat, picture, plain, write_lines, write_pictures

from pocketvlm.errors import ConfigError
from pocketvlm.training.data.dataset import open_datasets
from pocketvlm.training.data.sample import Sample, SampleError

TABLE = {"question": "q", "answer": "a"}
A = ("image", "a.png")


def read(folder: Path, row: dict[str, Any]) -> Sample:
    write_pictures(folder, "a.png", "b.png")
    return open_datasets([write_lines(folder / "train.jsonl", row)])[0]


@pytest.mark.parametrize(
    "columns",
    [
        {"image_id": 5},
        {"question_id": "7"},
        {"image_name": "a"},
        {"video_id": 2},
        {"idx": 1, "source": "x", "split": "t"},
    ],
)
def test_usual_columns_beside_a_table_are_no_slips(tmp_path: Path, columns: dict[str, Any]) -> None:
    assert plain(read(tmp_path, {**TABLE, "image": "a.png", **columns})) == [("user", [A, "q"]), ("assistant", "a")]


@pytest.mark.parametrize("name", ["question_id", "prompt_id", "conversation_id", "image_id", "id"])
def test_usual_columns_beside_a_conversation_are_no_slips(tmp_path: Path, name: str) -> None:
    assert plain(read(tmp_path, chat("q", "a", **{name: "1"})))[-1] == ("assistant", "a")
    rows = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], name: "1"}
    assert plain(read(tmp_path, rows))[-1] == ("assistant", "a")


@pytest.mark.parametrize("name", ["imagefilename", "maxslicenums", "resposne", "reject_response"])
def test_slips_are_still_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SampleError, match="Did you mean"):
        read(tmp_path, {"question": "q", "answer": "a", name: "x"})


@pytest.mark.parametrize("name", ["image_path", "image_paths", "img"])
def test_places_of_pictures_are_pictures(tmp_path: Path, name: str) -> None:
    assert plain(read(tmp_path, {**TABLE, name: "a.png"})) == [("user", [A, "q"]), ("assistant", "a")]
    marked = chat("<image>q", "a", **{name: "a.png"})
    assert plain(read(tmp_path, marked)) == [("user", [A, "q"]), ("assistant", "a")]


def test_places_beside_what_holds_the_media_are_left_out(tmp_path: Path) -> None:
    both = {**TABLE, "image": "a.png", "image_path": "b.png", "image_url": "https://example.org/c.png"}
    assert plain(read(tmp_path, {**both, "image_url": None})) == [("user", [A, "q"]), ("assistant", "a")]
    parts = [{"type": "image", "image": "a.png"}, {"type": "text", "text": "q"}]
    assert plain(read(tmp_path, chat(parts, "a", image_path="b.png")))[0] == ("user", [A, "q"])


def test_pictures_that_are_links_into_a_cache_lie_in_their_folder(tmp_path: Path) -> None:
    """As in the cache of a hub, whose folders hold links to where contents lie."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs/0a1b").write_bytes(picture())
    folder = tmp_path / "snapshots/main"
    folder.mkdir(parents=True)
    (folder / "a.png").symlink_to("../../blobs/0a1b")
    write_lines(folder / "metadata.jsonl", {"file_name": "a.png", "text": "t"})
    assert open_datasets([folder])[0].messages[0]["content"][0]["type"] == "image_url"


def test_tables_of_spreadsheets_may_end_in_cells_without_a_name(tmp_path: Path) -> None:
    write_pictures(tmp_path, "a.png", "b.png")
    (tmp_path / "t.csv").write_text('image,question,answer,,\n"[""a.png"",""b.png""]",q,a,,\na.png,q,a,,\n')
    first, second = open_datasets([tmp_path / "t.csv"])
    assert plain(first)[0] == ("user", [A, ("image", "b.png"), "q"])
    assert plain(second)[0] == ("user", [A, "q"])
    (tmp_path / "t.csv").write_text("question,answer,answer\nq,a,b\n")
    with pytest.raises(ConfigError, match="names 'answer' twice"):
        open_datasets([tmp_path / "t.csv"])


@pytest.mark.parametrize("better", ["no ", [{"type": "text", "text": "no"}]])
def test_pairs_of_which_nothing_is_learnt_are_noticed(tmp_path: Path, better: Any) -> None:
    with pytest.raises(SampleError, match="the rejected answer is the better one"):
        read(tmp_path, chat("q", better, rejected=" no"))
    assert read(tmp_path, chat("q", better, rejected="yes")).rejected == "yes"


def test_names_of_sets_are_those_of_the_folders_that_have_some(tmp_path: Path) -> None:
    (tmp_path / "lf").mkdir()
    for name in "ab":
        write_lines(tmp_path / "lf" / f"{name}.jsonl", {"instruction": name, "output": name})
    write_lines(tmp_path / "lf/dataset_info.json", {name: {"file_name": f"{name}.jsonl"} for name in "ab"})
    extra = write_lines(tmp_path / "extra.jsonl", TABLE)
    dataset = open_datasets([tmp_path / "lf", extra], names=["b"])
    assert [plain(sample)[0][1] for sample in dataset] == ["b", "q"]
    with pytest.raises(ConfigError, match="is no folder of sets"):
        open_datasets([extra], names=["b"])
