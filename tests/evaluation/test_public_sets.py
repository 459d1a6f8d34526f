"""Local copies of public sets, in every layout, valid and broken."""

from __future__ import annotations

import csv
import json
import os
import pickle
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.public_layouts import (
    IDS,
    LAYOUTS,
    OCR_TYPES,
    PICTURE_SHADES,
    SHADES,
    chartqa_published,
    docvqa_hub,
    docvqa_published,
    mmbench_plain,
    mmbench_row,
    ocrbench_published,
    png,
    put,
    put_parquet,
    put_tsv,
    refcoco_hub,
    refcoco_lines,
    refcoco_published,
    textvqa_published,
    video_mme_json,
    video_row,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketvlm.errors import ConfigError, MediaError, MissingExtraError
from pocketvlm.evaluation.public_sets import PUBLIC_SETS, circular_accuracy, load, public_set
from pocketvlm.evaluation.public_sets.files import read_json_lines, read_json_object, read_json_rows
from pocketvlm.evaluation.public_sets.mmbench import examples as mmbench
from pocketvlm.evaluation.public_sets.refcoco import read_plain_pickle
from pocketvlm.evaluation.scoring import parse_box, score
from pocketvlm.evaluation.tasks import Example, chosen_indices
from pocketvlm.processing.media.load_image import load_image


def shade(example: Example) -> int:
    (picture,) = example.media
    assert isinstance(picture, Path | bytes)
    return int(load_image(picture)[0, 0, 0])


# --- what holds for every layout -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "build"), LAYOUTS, ids=IDS)
def test_every_layout_gives_its_questions_in_order_each_with_its_own_picture(
    name: str, build: Callable[[Path], None], tmp_path: Path
) -> None:
    build(tmp_path)
    found = list(load(name, tmp_path))
    assert [f"Q{n}?" in example.question for n, example in enumerate(found)] == [True] * 3
    assert len({example.id for example in found}) == 3
    assert {example.task for example in found} == {name}
    if name == "video-mme":
        assert [Path(str(e.media[0])).stem for e in found] == ["fF-j0", "fF-j1", "fF-j2"]
    else:
        assert tuple(map(shade, found)) == PICTURE_SHADES.get(build.__name__, SHADES)


@pytest.mark.parametrize(("name", "build"), LAYOUTS, ids=IDS)
def test_the_expected_answer_gets_the_full_score_and_the_prompt_is_the_registered_one(
    name: str, build: Callable[[Path], None], tmp_path: Path
) -> None:
    build(tmp_path)
    prompt = PUBLIC_SETS[name].prompt
    for example in load(name, tmp_path):
        assert score(example.answers[-1], example) == 1
        assert example.question.startswith(prompt.prefix)
        assert example.question.endswith(prompt.suffix)
        assert example.metric.startswith(PUBLIC_SETS[name].metric)


@pytest.mark.parametrize(("name", "build"), LAYOUTS, ids=IDS)
def test_loading_is_lazy_and_limited_and_a_task_reads_any_example_alone(
    name: str, build: Callable[[Path], None], tmp_path: Path
) -> None:
    build(tmp_path)
    whole = list(load(name, tmp_path))
    assert [e.id for e in load(name, tmp_path, limit=2)] == [e.id for e in whole[:2]]
    assert list(load(name, tmp_path, limit=0)) == []
    task = public_set(name).task(tmp_path)
    assert task.size == 3
    assert [task.example(n).id for n in (2, 0, 1)] == [whole[n].id for n in (2, 0, 1)]
    for path in tmp_path.rglob("*.png"):
        path.unlink()
    for path in [*tmp_path.rglob("*.jpg"), *tmp_path.rglob("*.mp4")]:
        path.unlink()
    held = load(name, tmp_path)  # pictures are missed when an example needs them, not before
    if (list(tmp_path.rglob("*.parquet")) and name != "video-mme") or name == "mmbench":
        assert next(held).id == whole[0].id
    else:
        with pytest.raises(MediaError, match="is missing"):
            next(held)


@pytest.mark.parametrize("name", PUBLIC_SETS)
def test_a_set_that_is_not_there_is_refused_with_what_was_looked_for_and_where(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none of .* exists") as caught:
        load(name, tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="is not a directory"):
        load(name, tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"no split 'exam'.*Use one of"):
        load(name, tmp_path, "exam")


def test_unknown_sets_and_limits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Use one of docvqa, chartqa"):
        load("docvqb", tmp_path)
    docvqa_published(tmp_path)
    for limit in (-1, 1.5, True):
        with pytest.raises(ConfigError, match="not a number of examples"):
            load("docvqa", tmp_path, limit=limit)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "build", "file"),
    [
        ("docvqa", docvqa_published, "val_v1.0_withQT.json"),
        ("chartqa", chartqa_published, "test/test_augmented.json"),
        ("ocrbench", ocrbench_published, "OCRBench.json"),
        ("textvqa", textvqa_published, "TextVQA_0.5.1_val.json"),
        ("mmbench", mmbench_plain, "MMBench_DEV_EN.tsv"),
        ("refcoco", refcoco_published, "refcoco/refs(unc).p"),
        ("refcoco", refcoco_published, "refcoco/instances.json"),
        ("refcoco", refcoco_lines, "refcoco_val.jsonl"),
        ("refcoco", refcoco_hub, "data/val-00000-of-00001.parquet"),
        ("video-mme", video_mme_json, "videomme.json"),
    ],
)
@pytest.mark.parametrize("damage", ["cut", "empty", "binary", "other JSON"])
def test_a_damaged_file_is_named_in_one_line(
    name: str, build: Callable[[Path], None], file: str, damage: str, tmp_path: Path
) -> None:
    build(tmp_path)
    path = tmp_path / file
    body = path.read_bytes()
    damaged = {"cut": body[: len(body) // 2], "empty": b"", "binary": bytes(range(256)), "other JSON": b"[1]"}
    path.write_bytes(damaged[damage])
    with pytest.raises((ConfigError, MediaError)) as caught:
        list(load(name, tmp_path))
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "", "a/../../b.png", "..\\secret.png", "a\0b"])
def test_file_names_that_lead_out_of_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    put(tmp_path / "secret.png", png(1))
    rows = [{"dataset_name": "d", "image_path": name, "question": "?", "answers": "a", "type": "t"}]
    put(tmp_path / "set" / "OCRBench.json", rows)
    with pytest.raises(MediaError, match="no file name inside the set"):
        list(load("ocrbench", tmp_path / "set"))


@pytest.mark.parametrize("field", ["questionId", "question", "image", "answers"])
def test_a_record_without_a_field_is_refused_by_name(field: str, tmp_path: Path) -> None:
    docvqa_published(tmp_path)
    path = tmp_path / "val_v1.0_withQT.json"
    content = json.loads(path.read_bytes())
    del content["data"][1][field]
    put(path, content)
    found = load("docvqa", tmp_path)
    assert next(found).id == "100"
    with pytest.raises(ConfigError, match=f"without '{field}'"):
        next(found)


# --- what is particular to a set -------------------------------------------------------------------------------------


def test_halves_types_and_durations_are_subsets(tmp_path: Path) -> None:
    for number, (build, name, subsets) in enumerate(
        [
            (chartqa_published, "chartqa", ("human", "human", "augmented")),
            (ocrbench_published, "ocrbench", OCR_TYPES),
            (video_mme_json, "video-mme", ("short", "medium", "long")),
        ]
    ):
        build(tmp_path / str(number))
        assert tuple(example.subset for example in load(name, tmp_path / str(number))) == subsets


def test_one_half_of_chartqa_is_not_enough(tmp_path: Path) -> None:
    chartqa_published(tmp_path)
    (tmp_path / "test" / "test_human.json").unlink()
    with pytest.raises(ConfigError, match=r"test_human\.json"):
        load("chartqa", tmp_path)


def test_handwritten_formulas_are_judged_without_spaces_and_other_text_with_them(tmp_path: Path) -> None:
    ocrbench_published(tmp_path)
    found = list(load("ocrbench", tmp_path))
    assert [example.metric for example in found] == ["contains", "contains", "contains_formula"]
    assert score("It is x^2.", found[2]) == 1
    assert score("It is X^2.", found[2]) == 0
    assert score("word", found[0]) == 1


def test_all_ten_answers_of_textvqa_count(tmp_path: Path) -> None:
    textvqa_published(tmp_path)
    example = next(load("textvqa", tmp_path))
    assert len(example.answers) == 10


@pytest.mark.parametrize("build", [refcoco_published, refcoco_lines, refcoco_hub])
def test_boxes_of_refcoco_are_corners_in_thousandths_in_every_layout(
    build: Callable[[Path], None], tmp_path: Path
) -> None:
    build(tmp_path)
    for example in load("refcoco", tmp_path):
        assert parse_box(example.answers[0]) == (250, 250, 750, 750)


def test_a_split_without_references_says_which_ones_there_are(tmp_path: Path) -> None:
    refcoco_published(tmp_path)
    with pytest.raises(ConfigError, match=r"split 'testA'. It has train, val"):
        load("refcoco", tmp_path, "testA")


def test_instances_that_lack_an_annotation_are_refused(tmp_path: Path) -> None:
    refcoco_published(tmp_path)
    put(tmp_path / "refcoco" / "instances.json", {"annotations": [], "images": []})
    with pytest.raises(ConfigError, match="lacks annotation 50"):
        load("refcoco", tmp_path)


class Trap:
    """Pickles as a call that leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = str(trace)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (self.trace,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_would_call_something_is_refused_and_calls_nothing(protocol: int, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    path = put(tmp_path / "refs(unc).p", pickle.dumps([{"ref_id": Trap(trace)}], protocol=protocol))
    with pytest.raises(ConfigError, match="not a pickle of plain values: it asks for"):
        read_plain_pickle(path)
    assert not trace.exists()
    pickle.loads(path.read_bytes())  # the trap does work
    assert trace.is_dir()


@pytest.mark.parametrize("value", [{1, 2}, Path("a"), len, complex(1, 2)])
def test_objects_of_classes_are_refused(value: object, tmp_path: Path) -> None:
    path = put(tmp_path / "refs(unc).p", pickle.dumps([{"a": value}], protocol=2))
    with pytest.raises(ConfigError, match="it asks for"):
        read_plain_pickle(path)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=4,
)


@settings(max_examples=50)
@given(
    rows=st.lists(st.dictionaries(st.text(), plain, max_size=3), max_size=3),
    protocol=st.integers(0, pickle.HIGHEST_PROTOCOL),
)
def test_plain_pickles_come_back_as_they_were(
    rows: list[dict[str, Any]], protocol: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = put(tmp_path_factory.getbasetemp() / "plain.p", pickle.dumps(rows, protocol=protocol))
    assert read_plain_pickle(path) == rows


def test_strings_of_python_2_are_text(tmp_path: Path) -> None:
    # Protocol 0 as Python 2 wrote it: the keys and one value are byte strings, the other value is unicode.
    body = b"(lp0\n(dp1\nS'sent'\np2\nS'the caf\\xc3\\xa9'\np3\nsS'raw'\np4\nVleft \\u00e9\np5\nsa."
    assert read_plain_pickle(put(tmp_path / "refs(unc).p", body)) == [{"sent": "the café", "raw": "left é"}]


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_options_hints_and_quoted_cells_of_mmbench(quoting: int, tmp_path: Path) -> None:
    rows = [mmbench_row(0, 10, hint="nan"), mmbench_row(1, 20, hint='One,\ntwo\tand "three"', C="None")]
    put_tsv(tmp_path / "MMBench_DEV_EN.tsv", rows, quoting)
    first, second = load("mmbench", tmp_path)
    assert first.choices == ("cat", "dog")
    assert first.question.endswith("\n\nQ0?\nA. cat\nB. dog\n")
    assert second.choices == ("cat", "dog", "None")
    assert 'Hint: One,\ntwo\tand "three"\nQ1?\n' in second.question
    assert (shade(first), shade(second)) == (10, 20)


def test_an_mmbench_table_with_a_byte_order_mark_and_windows_line_ends_is_read(tmp_path: Path) -> None:
    mmbench_plain(tmp_path)
    path = tmp_path / "MMBench_DEV_EN.tsv"
    table = path.read_bytes()
    lines = table.split(b"\n")
    path.write_bytes(b"\xef\xbb\xbf" + lines[0] + b"\r\n" + b"\n".join(lines[1:]))
    assert tuple(map(shade, load("mmbench", tmp_path))) == SHADES


def circular_table(folder: Path) -> None:
    """Two questions and their rotations, which take the picture of the first row by its index."""
    rows = [
        mmbench_row(3, 10),
        mmbench_row(4, 20, A="one", B="two"),
        mmbench_row(1_000_003, 0, A="dog", B="cat", answer="A", image="3"),
        mmbench_row(1_000_004, 0, A="two", B="one", answer="A", image="4"),
    ]
    put_tsv(folder / "MMBench_DEV_EN.tsv", rows)


def test_rotations_of_the_file_are_asked_only_in_circular_evaluation(tmp_path: Path) -> None:
    circular_table(tmp_path)
    assert [e.id for e in load("mmbench", tmp_path)] == ["3", "4"]
    found = list(load("mmbench-circular", tmp_path))
    assert [(e.id, e.answers, shade(e)) for e in found] == [
        ("3/0", ("B",), 10),
        ("4/0", ("B",), 20),
        ("3/1", ("A",), 10),
        ("4/1", ("A",), 20),
    ]
    assert {e.task for e in found} == {"mmbench-circular"}


def test_rotations_are_made_where_the_file_has_none(tmp_path: Path) -> None:
    mmbench_plain(tmp_path)
    found = list(mmbench(tmp_path, "dev_en", circular=True))
    assert [e.id for e in found] == ["0/0", "0/1", "1/0", "1/1", "1/2", "1/3", "2/0", "2/1"]
    for example in found:
        assert example.choices["ABCD".index(example.answers[0])] == "dog"
    assert len({example.choices for example in found if example.id.startswith("1/")}) == 4


@pytest.mark.parametrize(("count", "groups"), [(1, 1), (4, 2), (5, 2), (7, 2), (8, 3), (100, 3)])
def test_rotations_are_drawn_together(tmp_path: Path, count: int, groups: int) -> None:
    """Of a question some of whose rotations were not asked nobody knows whether all are right."""
    mmbench_plain(tmp_path)
    task = public_set("mmbench-circular").task(tmp_path, "dev_en")
    whole = Counter(example.id.partition("/")[0] for example in task.examples)
    for seed in range(5):
        indices = chosen_indices(task, count, seed)
        assert indices == sorted(set(indices))
        drawn = Counter(task.example(index).id.partition("/")[0] for index in indices)
        assert all(whole[question] == number for question, number in drawn.items())
        assert len(drawn) <= groups
        assert len(indices) <= max(count, 4)
    assert len(chosen_indices(task, 8, 0)) == 8


def test_a_question_counts_in_circular_evaluation_only_if_all_its_rotations_are_right() -> None:
    assert circular_accuracy({"1/0": 1, "1/1": 1, "2/0": 1, "2/1": 0}) == 0.5
    assert circular_accuracy({"1/0": 0, "1/1": 1}) == 0
    assert circular_accuracy({}) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": ""}, "answer"),
        ({"answer": "D"}, "'D' of question 0 is not the letter of an option"),
        ({"B": ""}, "not the letter"),
        ({"A": ""}, "expected A, B and so on"),
        ({"index": "first"}, "not a number"),
        ({"image": "77"}, "takes the picture of row '77', which has none"),
        ({"image": "!" * 100}, "not valid base64"),
    ],
)
def test_a_broken_row_of_mmbench_is_refused(change: dict[str, str], message: str, tmp_path: Path) -> None:
    put_tsv(tmp_path / "MMBench_DEV_EN.tsv", [mmbench_row(0, 10) | change])
    with pytest.raises((ConfigError, MediaError), match=message):
        list(load("mmbench", tmp_path))


def test_a_table_without_pictures_is_refused(tmp_path: Path) -> None:
    put_tsv(tmp_path / "MMBench_DEV_EN.tsv", [{"index": "1", "question": "?"}])
    with pytest.raises(ConfigError, match="no column 'image'"):
        load("mmbench", tmp_path)


def test_packed_videos_are_pointed_out(tmp_path: Path) -> None:
    put(tmp_path / "videomme.json", [video_row(0)])
    put(tmp_path / "videos_chunked_01.zip", b"PK")
    with pytest.raises(MediaError, match=r"fF-j0 is missing.*Unpack videos_chunked"):
        next(load("video-mme", tmp_path))


# --- Parquet ---------------------------------------------------------------------------------------------------------


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "DocVQA" / "validation-00000-of-00001.parquet", b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtraError, match=r"pocketvlm\[eval\]"):
        load("docvqa", tmp_path)


def test_reading_in_order_reads_each_row_group_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    docvqa_hub(tmp_path)
    read: list[int] = []
    original = parquet.ParquetFile.read_row_group

    def counted(self: Any, group: int, **options: Any) -> Any:
        read.append(group)
        return original(self, group, **options)

    monkeypatch.setattr(parquet.ParquetFile, "read_row_group", counted)
    assert tuple(map(shade, load("docvqa", tmp_path))) == SHADES
    assert read == [0, 0]  # the only group of each of two shards


def test_what_pyarrow_has_not_implemented_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    error = pytest.importorskip("pyarrow").ArrowNotImplementedError

    def fails(*_: Any, **__: Any) -> Any:
        raise error("Nested data conversions not implemented for chunked array outputs")

    docvqa_hub(tmp_path)
    monkeypatch.setattr(parquet.ParquetFile, "read_row_group", fails)
    with pytest.raises(MediaError, match=r"row group 0 cannot be read .*Write smaller row groups"):
        list(load("docvqa", tmp_path))
    monkeypatch.setattr(parquet.ParquetFile, "read", fails)
    with pytest.raises(ConfigError, match=r"is not a readable Parquet file: Nested .*Write smaller row groups"):
        load("docvqa", tmp_path)


@pytest.mark.parametrize("cell", [None, {"bytes": None, "path": "a.png"}])
def test_a_cell_without_a_picture_is_refused(cell: object, tmp_path: Path) -> None:
    columns: dict[str, list[Any]] = {"questionId": ["1"], "question": ["?"], "answers": [["a"]]}
    put_parquet(tmp_path / "DocVQA" / "val-00000-of-00001.parquet", {**columns, "image": [cell]})
    with pytest.raises(MediaError, match="holds no picture in row 0"):
        list(load("docvqa", tmp_path))


def test_a_parquet_file_of_other_columns_is_refused(tmp_path: Path) -> None:
    put_parquet(tmp_path / "data" / "val-00000-of-00001.parquet", {"words": ["a"]})
    with pytest.raises(ConfigError, match=r"no column 'image'\. It has words"):
        load("docvqa", tmp_path)


@pytest.mark.parametrize("name", [name for name in PUBLIC_SETS if name != "ocrbench"])  # which has but one file
def test_every_listed_split_is_looked_for_under_its_own_name(name: str, tmp_path: Path) -> None:
    for split in PUBLIC_SETS[name].splits:
        with pytest.raises(ConfigError) as caught:
            load(name, tmp_path, split)
        assert split.casefold() in str(caught.value).casefold()


@pytest.mark.parametrize("read", [read_json_rows, read_json_object, read_json_lines])
def test_annotations_that_are_nested_too_deeply_are_one_line(tmp_path: Path, read: Callable[[Path], object]) -> None:
    (tmp_path / "annotations.json").write_text('{"a":' * 100_000)
    with pytest.raises(ConfigError, match="is not readable"):
        read(tmp_path / "annotations.json")
