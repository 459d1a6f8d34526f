"""Several sets as one: numbers, weights, splits, worker processes, memory."""

from __future__ import annotations

import pickle
import tracemalloc
from collections import Counter
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.training_data import chat, picture, write_lines
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from pocketvlm.errors import ConfigError
from pocketvlm.training.data.dataset import Dataset, Source, open_datasets
from pocketvlm.training.data.order import endless_order, epoch_length, order
from pocketvlm.training.data.sample import Sample, SampleError


def write_set(path: Path, count: int) -> Path:
    return write_lines(path, *(chat(f"{path.stem} {i}") for i in range(count)))


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    paths = [write_set(tmp_path / "one.jsonl", 10), write_set(tmp_path / "two.jsonl", 5)]
    return open_datasets(paths, weights=[1, 0.5])


def questions(samples: Dataset) -> list[str]:
    return [sample.messages[0]["content"] for sample in samples]


def test_sets_follow_one_another_and_numbers_end(dataset: Dataset) -> None:
    assert len(dataset) == 15
    assert questions(dataset) == [f"one {i}" for i in range(10)] + [f"two {i}" for i in range(5)]
    assert dataset[-1] == dataset[14]
    assert dataset[9:11] == [dataset[9], dataset[10]]
    assert [source.name for source in dataset.sources] == ["one.jsonl", "two.jsonl"]
    for index in (15, -16):
        with pytest.raises(IndexError):
            dataset[index]


@pytest.mark.parametrize(("validation", "count"), [(0.2, 3), (4, 4), (0.0001, 1), (14, 14)])
def test_a_split_parts_all_samples_and_the_seed_says_how(dataset: Dataset, validation: float, count: int) -> None:
    training, held_out = dataset.split(validation, seed=3)
    assert len(held_out) == count
    assert sorted(questions(training) + questions(held_out)) == sorted(questions(dataset))
    assert [questions(half) for half in dataset.split(validation, seed=3)] == [questions(training), questions(held_out)]
    if validation == 0.2:
        assert questions(dataset.split(validation, seed=4)[1]) != questions(held_out)
        again, rest = training.split(2, seed=0)
        assert sorted(questions(again) + questions(rest)) == sorted(questions(training))


@pytest.mark.parametrize("validation", [0, 0.0, 1.0, 15, -1, True, "5", float("nan")])
def test_a_split_that_leaves_nothing_is_refused(dataset: Dataset, validation: float) -> None:
    with pytest.raises(ConfigError, match="validation"):
        dataset.split(validation, seed=0)


@pytest.mark.parametrize("weight", [0, -1, float("inf"), float("nan"), True, 1e-7, 1e300, None])
def test_weights_that_are_none_are_refused(tmp_path: Path, weight: float | None) -> None:
    paths = [write_set(tmp_path / "one.jsonl", 1), write_set(tmp_path / "two.jsonl", 1)]
    with pytest.raises(ConfigError, match="weights"):
        open_datasets(paths, weights=[1] if weight is None else [1, weight])


def test_weights_that_leave_no_sample_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="less than one sample"):
        open_datasets([write_set(tmp_path / "one.jsonl", 3)], weights=[0.1])


class Counted:
    """Records that nobody reads."""

    def __init__(self, count: int) -> None:
        self.count, self.path = count, Path("counted")

    def __len__(self) -> int:
        return self.count


def counted(*sets: tuple[int, float]) -> Dataset:
    return Dataset(Source(str(i), weight, ((Counted(size), None),)) for i, (size, weight) in enumerate(sets))  # type: ignore[arg-type]


def test_an_epoch_goes_through_each_set_as_often_as_its_weight_says() -> None:
    dataset = counted((10, 1.0), (5, 2.0), (8, 0.5))
    for epoch in range(4):
        found = Counter(order(dataset, 7, epoch).tolist())
        assert epoch_length(dataset, epoch) == sum(found.values()) == 24
        assert all(found[i] == 1 for i in range(10))
        assert all(found[i] == 2 for i in range(10, 15))
    two = Counter([*order(dataset, 7, 0).tolist(), *order(dataset, 7, 1).tolist()])
    assert all(two[i] == 1 for i in range(15, 23))
    assert order(dataset, 7, 0).tolist() != order(dataset, 7, 1).tolist()
    assert order(dataset, 7, 0).tolist() != order(dataset, 8, 0).tolist()
    part = counted((5, 0.3))  # one or two in each epoch
    ten = Counter(i for epoch in range(10) for i in order(part, 7, epoch).tolist())
    assert ten == dict.fromkeys(range(5), 3)
    single = counted(*[(1, 1.0)] * 6)
    assert order(single, 7, 0).tolist() != order(single, 7, 1).tolist()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.sampled_from([0.25, 0.3, 1.0, 1.7, 3.0])), min_size=1, max_size=3),
    st.integers(0, 2**63 - 1),
    st.integers(0, 60),
)
def test_an_order_goes_on_at_any_position(sets: list[tuple[int, float]], seed: int, start: int) -> None:
    whole = list(islice(endless_order(counted(*sets), seed), start + 30))
    assert list(islice(endless_order(counted(*sets), seed, start), 30)) == whole[start:]


def test_the_order_is_the_same_for_ever() -> None:
    """A run that is resumed after an update of this package or of numpy must not see other samples."""
    assert order(counted((6, 1.0), (3, 1.0)), 1, 0).tolist() == ORDER


ORDER = [1, 8, 2, 3, 7, 0, 4, 6, 5]


def test_nothing_to_order_and_no_seed_are_refused() -> None:
    with pytest.raises(ConfigError, match="no samples"):
        next(endless_order(Dataset([]), 0))
    for seed in (-1, 2**63, 1.5, True):
        with pytest.raises(ConfigError, match="seed"):
            order(counted((2, 1.0)), seed, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_samples_are_the_same_in_other_processes(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"train.{kind}"
    rows = [{"question": f"q{i}", "answer": f"a{i}"} for i in range(9)]
    if kind == "parquet":
        images = [{**row, "image": {"bytes": picture(i) + bytes(9000), "path": None}} for i, row in enumerate(rows)]
        pq.write_table(pa.Table.from_pylist(images), path, row_group_size=2)
    elif kind == "csv":
        path.write_text("question,answer\n" + "".join(f"q{i},a{i}\n" for i in range(9)), encoding="utf-8")
    else:
        write_lines(path, *(rows if kind == "jsonl" else [rows]))
    dataset = open_datasets([path])
    read = [dataset[i] for i in range(9)]
    copy = pickle.loads(pickle.dumps(dataset))
    assert [copy[i] for i in range(9)] == read
    if kind == "parquet":
        assert len(pickle.dumps(dataset)) < 5000  # row groups that were kept stay here
    for method in ("fork", "spawn") if kind == "jsonl" else ("fork",):
        loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context=method)
        assert list(loader) == read


def test_an_error_is_the_same_in_other_processes() -> None:
    error = SampleError("train.jsonl:3", "it has no answer", hint="Write one.")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.source) == (str(error), "train.jsonl:3")
    assert isinstance(copy, SampleError)


def test_opening_holds_places_in_memory_and_not_what_stands_there(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "train.jsonl", *(chat("q" * 100_000) for _ in range(300)))
    open_datasets([path])  # what is imported on the way counts no more
    tracemalloc.start()
    try:
        dataset = open_datasets([path])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 30_000_000
    assert peak < 2_000_000
    assert isinstance(dataset[299], Sample)


def test_columns_that_nothing_is_read_from_are_told(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "train.jsonl", chat(difficulty=3, id="x"))
    assert open_datasets([path]).unused_columns() == {str(path): ["difficulty", "id"]}


@pytest.mark.parametrize("sources", [[], "train.jsonl", Path("train.jsonl")])
def test_sources_are_a_list(sources: list[str]) -> None:
    with pytest.raises(ConfigError, match="is no list of files and folders"):
        open_datasets(sources)


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    paths = []
    for folder in ("a/cats", "b/cats", "b/dogs"):
        (tmp_path / folder).mkdir(parents=True)
        paths.append(tmp_path / folder / "metadata.jsonl")
        paths[-1].write_text('{"messages": []}\n', encoding="utf-8")
    (tmp_path / "other.jsonl").write_text('{"messages": []}\n', encoding="utf-8")
    found = [error.source for error in open_datasets([*paths, tmp_path / "other.jsonl", paths[0]]).errors()]
    names = ["a/cats/metadata.jsonl:1", "b/cats/metadata.jsonl:1", "b/dogs/metadata.jsonl:1"]
    assert found == [*names, "other.jsonl:1", names[0]]


def test_samples_that_two_have_in_common_are_counted_by_file(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    again = open_datasets([tmp_path / "sub" / ".." / "one.jsonl"])
    assert dataset.shared_with(again) == {str((tmp_path / "one.jsonl").resolve()): 10}
    training, held_out = dataset.split(4, seed=0)
    assert training.shared_with(held_out) == {}
    assert sum(held_out.shared_with(dataset).values()) == 4
    assert dataset.shared_with(open_datasets([write_set(tmp_path / "three.jsonl", 2)])) == {}
