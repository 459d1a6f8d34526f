"""Runs go on where they were stopped, failures are counted and asked again, and figures are those of the records."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pocketvlm
from pocketvlm.errors import ConfigError, EngineError, MediaError
from pocketvlm.evaluation.answerers import LocalModel, Numbered, Reply, messages_of
from pocketvlm.evaluation.harness import MAX_FAILURES_IN_A_ROW, EvaluationError, evaluate
from pocketvlm.evaluation.report import HEADINGS, as_json, bootstrap, summarise, table_rows, wilson, wrong
from pocketvlm.evaluation.results import Record, open_results
from pocketvlm.evaluation.tasks import Clip, Example, ListTask
from pocketvlm.model.fingerprint import fingerprint

SETTINGS = {"seed": 0, "model": "m"}


def listed(count: int = 6, name: str = "sums") -> ListTask:
    return ListTask(name, [Example(f"{name}-{i}", name, (), f"{i} + 1?", (str(i + 1),), "exact") for i in range(count)])


class Pupil:
    """Answers right but for some questions; may fall asleep after so many."""

    def __init__(self, wrong: Iterable[int] = (), fails: Iterable[int] = (), sleeps_after: int = 10**9) -> None:
        self.wrong, self.fails, self.sleeps_after = set(wrong), set(fails), sleeps_after
        self.asked: list[int] = []

    def answer(self, examples: Iterable[Numbered]) -> Iterator[tuple[int, Example, Reply]]:
        for index, example in examples:
            if len(self.asked) == self.sleeps_after:
                raise KeyboardInterrupt
            self.asked.append(index)
            text = "?" if index in self.wrong else example.answers[0]
            yield index, example, Reply(error="broken") if index in self.fails else Reply(text, 10, 4, 2, 0.5)


def run(pupil: Pupil, out: Path | None = None, count: int = 6, task: ListTask | None = None) -> dict[str, list[Record]]:
    tasks = [task or listed()]
    if out is None:
        return evaluate(tasks, pupil, count=count, seed=0)
    with open_results(out, SETTINGS) as results:
        return evaluate(tasks, pupil, count=count, seed=0, results=results)


def test_records_are_in_order_and_scored() -> None:
    records = run(Pupil(wrong=(2,)))["sums"]
    assert [r.index for r in records] == list(range(6))
    assert [r.score for r in records] == [1, 1, 0, 1, 1, 1]
    assert [r.id for r in wrong(records, 9)] == ["sums-2"]


def test_a_run_that_was_stopped_goes_on_and_ends_with_the_same_figures(tmp_path: Path) -> None:
    out, whole = tmp_path / "out.jsonl", run(Pupil(wrong=(1,)))
    first, second, third = Pupil(wrong=(1,), sleeps_after=4), Pupil(wrong=(1,)), Pupil()
    with pytest.raises(KeyboardInterrupt):
        run(first, out)
    assert run(second, out) == whole
    assert (first.asked, second.asked) == ([0, 1, 2, 3], [4, 5])
    before = out.read_bytes()
    assert run(third, out) == whole
    assert third.asked == []
    assert out.read_bytes() == before


@pytest.mark.parametrize("cut", range(1, 400, 7))
def test_a_file_cut_off_anywhere_is_continued(tmp_path: Path, cut: int) -> None:
    out = tmp_path / "out.jsonl"
    whole = run(Pupil(), out)
    complete = out.read_bytes()
    out.write_bytes(complete[: max(0, len(complete) - cut * 5)])
    assert run(Pupil(), out) == whole
    assert sorted(out.read_bytes().splitlines()) == sorted(complete.splitlines())


def test_a_character_cut_in_two_is_continued(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    task = ListTask("sums", [Example("é", "sums", (), "é?", ("é",), "exact")])
    run(Pupil(), out, task=task)
    complete = out.read_bytes()
    out.write_bytes(complete[: complete.rindex("é".encode()) + 1])
    run(Pupil(), out, task=task)
    assert out.read_bytes() == complete


def test_more_examples_and_tasks_may_be_added_to_a_file(tmp_path: Path) -> None:
    out, pupil = tmp_path / "out.jsonl", Pupil()
    run(Pupil(), out, task=listed(3))
    run(pupil, out, task=listed(6))
    assert pupil.asked == [3, 4, 5]
    run(pupil, out, task=listed(2, "more"))
    assert pupil.asked == [3, 4, 5, 0, 1]


def test_failures_count_as_wrong_and_are_asked_again(tmp_path: Path) -> None:
    out, again = tmp_path / "out.jsonl", Pupil()
    summary = summarise(run(Pupil(fails=(1, 2)), out)["sums"])
    assert (summary.failed, summary.count) == (2, 6)
    assert summary.score == pytest.approx(4 / 6)
    assert summarise(run(again, out)["sums"]).failed == 0
    assert again.asked == [1, 2]


def test_many_failures_in_a_row_end_the_run_and_keep_what_was_answered(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with pytest.raises(EvaluationError, match="broken"):
        run(Pupil(fails=range(1, 99)), out, count=99, task=listed(99))
    assert len(out.read_text().splitlines()) == 1 + 1 + MAX_FAILURES_IN_A_ROW


def test_pictures_that_cannot_be_read_are_failures_of_their_own() -> None:
    class Torn(ListTask):
        def example(self, index: int, seed: int = 0) -> Example:
            if index in (0, 4):
                raise MediaError("no such picture")
            return super().example(index, seed)

    records = run(Pupil(), task=Torn("sums", listed().examples))["sums"]
    assert [r.index for r in records if r.error] == [0, 4]
    assert all("no such picture" in r.error for r in records if r.error)


class Slow(Pupil):
    """Answers when it has been asked everything."""

    def answer(self, examples: Iterable[Numbered]) -> Iterator[tuple[int, Example, Reply]]:
        return super().answer(list(examples))


@pytest.mark.parametrize("good", [3, 99])
def test_examples_that_cannot_be_read_count_in_a_row_only_where_they_are(good: int) -> None:
    """Two of three are torn; or all, of which eight are enough."""

    class Torn(ListTask):
        def example(self, index: int, seed: int = 0) -> Example:
            if index % good:
                raise MediaError("no such picture")
            return super().example(index, seed)

    task = Torn("sums", listed(30).examples)
    if good == 3:
        records = run(Slow(), task=task, count=30)["sums"]
        assert [r.index for r in records if not r.error] == list(range(0, 30, 3))
    else:
        with pytest.raises(EvaluationError, match=r"8 examples in a row failed, .* no such picture"):
            run(Slow(), task=task, count=30)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"my notes", "not a file of results"),
        (b"my notes\nmore\n", "not a file of results"),
        (b'{"a": 1}\n', "not a file of results"),
        (b"\xff\xfe\x00\n", "not a file of results"),
        (b"[]\n", "not a file of results"),
    ],
)
def test_files_of_others_are_refused_and_left_alone(tmp_path: Path, content: bytes, message: str) -> None:
    out = tmp_path / "notes.txt"
    out.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        run(Pupil(), out)
    assert out.read_bytes() == content


def test_other_settings_and_other_lists_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run(Pupil(), out)
    with pytest.raises(ConfigError, match="model='m', this run has 'n'"), open_results(out, {"seed": 0, "model": "n"}):
        pass
    changed = ListTask("sums", list(reversed(listed().examples)))
    with pytest.raises(ConfigError, match="is not the one"):
        run(Pupil(), out, task=changed)


def test_a_damaged_line_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run(Pupil(), out)
    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join([*lines[:2], '{"task": "sums"}\n', *lines[2:]]))
    with pytest.raises(ConfigError, match="line 3"):
        run(Pupil(), out)


def test_two_runs_do_not_write_the_same_file(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with (
        open_results(out, SETTINGS),
        pytest.raises(ConfigError, match="another run"),
        open_results(out, SETTINGS),
    ):
        pass


def test_no_file_is_left_when_nothing_came_of_it(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), open_results(tmp_path / "out.jsonl", SETTINGS):
        raise RuntimeError
    with pytest.raises(ConfigError, match="cannot be written"), open_results(tmp_path, SETTINGS):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_fingerprint_tells_weights_apart(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).bytes(300_000)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(weights)
    before = fingerprint(tmp_path)
    assert before == fingerprint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(bytes(255 - b for b in weights))
    assert fingerprint(tmp_path) != before


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_contains_the_proportion_and_mirrors(counts: tuple[int, int]) -> None:
    right, count = counts
    low, high = wilson(right, count)
    assert 0 <= low <= right / count <= high <= 1
    mirrored = wilson(count - right, count)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high))


def test_wilson_of_known_counts() -> None:
    # Published examples: Newcombe (1998), Statistics in Medicine 17, table I, method 3.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)


@settings(max_examples=25)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_the_bootstrap_stays_within_the_scores_and_is_the_same_again(scores: list[float]) -> None:
    low, high = bootstrap(scores)
    assert min(scores) - 1e-9 <= low <= high <= max(scores) + 1e-9
    assert (low, high) == bootstrap(scores)


def test_the_report_has_every_figure_and_says_which_interval_it_is() -> None:
    scored = run(Pupil(wrong=(0, 1, 2)))
    fractional = ListTask("text", [Example("1", "text", (), "?", ("abcd",), "cer", subset="a [b]")])
    scored |= run(Pupil(wrong=(0,)), task=fractional)
    line = json.loads(json.dumps(as_json(scored, SETTINGS, errors=1)))
    sums, text = line["tasks"]["sums"], line["tasks"]["text"]
    assert (sums["count"], sums["score"], sums["failed"], sums["interval_method"]) == (6, 0.5, 0, "wilson")
    assert (sums["prompt_tokens"], sums["visual_tokens"], sums["seconds"]) == (10, 4, 0.5)
    assert len(sums["wrong"]) == 1
    assert text["interval_method"] == "bootstrap"
    assert list(text["subsets"]) == ["a [b]"]
    assert line["macro_average"] == pytest.approx((0.5 + text["score"]) / 2)
    assert line["model"] == "m"
    rows = table_rows(scored)
    assert [row[0] for row in rows] == ["sums", "text", "  a [b]", "macro average"]
    assert {len(row) for row in rows} == {len(HEADINGS)}


def test_rotated_questions_count_once() -> None:
    examples = [Example(f"{i // 2}/{i % 2}", "mmbench", (), "?", ("A",), "choice") for i in range(4)]
    scored = run(Pupil(wrong=(1,)), task=ListTask("mmbench-circular", examples))
    assert as_json(scored, {})["tasks"]["mmbench-circular"]["circular_accuracy"] == 0.5


class Batches:
    """A model that notes how it is asked, and cannot read some questions."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def batch(self, conversations: list[list[dict]], **options: int) -> list[object]:
        from pocketvlm.api.answers import Answer, Usage

        self.calls.append((len(conversations), options["max_tokens"]))
        texts = [messages[0]["content"][-1]["text"] for messages in conversations]
        if any("unreadable" in text for text in texts):
            raise MediaError("damaged")
        if any("lost" in text for text in texts):
            raise EngineError("inside")
        return [Answer(text, Usage(5, 3, 1), {}, "stop") for text in texts]


def test_a_model_is_asked_in_batches_and_one_bad_example_spoils_no_other() -> None:
    questions = ["a", "unreadable", "c", "d"]
    examples = [Example(q, "t", (), q, (q,), "exact") for q in questions]
    examples.append(Example("e", "t", (), "e", ("e",), "cer"))
    model = Batches()
    replies = {i: r for i, _, r in LocalModel(model, {}, 3).answer(enumerate(examples))}  # type: ignore[arg-type]
    assert [replies[i].answer for i in range(5)] == ["a", "", "c", "d", "e"]
    assert [bool(replies[i].error) for i in range(5)] == [False, True, False, False, False]
    sizes = [size for size, _ in model.calls]
    assert sizes == [3, 1, 1, 1, 1, 1]
    assert model.calls[-1][1] > model.calls[0][1]
    list(LocalModel(model, {"max_tokens": 7}, 3).answer(enumerate(examples[2:])))  # type: ignore[arg-type]
    assert model.calls[-1] == (1, 7)


@pytest.mark.parametrize("options", [{"downsample_mode": ["4x", "16x"]}, {"auto_token_budget": 2.0}])
def test_options_of_one_example_that_cannot_be_honoured_are_its_own_failure(options: dict[str, Any]) -> None:
    good = Example("a", "t", (), "a", ("a",), "exact")
    bad = replace(good, options=options)
    with pocketvlm.load() as vlm:
        model = LocalModel(vlm, {"temperature": 0.0, "max_tokens": 1})
        errors = [bool(reply.error) for _, _, reply in model.answer(enumerate([good, bad, good]))]
        assert errors == [False, True, False]
        with pytest.raises(ConfigError):  # what is asked of all is nobody's own
            list(LocalModel(vlm, {"auto_token_budget": 2.0}).answer(enumerate([good])))


def test_an_answer_that_was_lost_is_the_error_of_its_example() -> None:
    examples = [Example(q, "t", (), q, (q,), "exact") for q in ("a", "lost", "c")]
    replies = {i: r for i, _, r in LocalModel(Batches(), {}, 3).answer(enumerate(examples))}  # type: ignore[arg-type]
    assert [(replies[i].answer, replies[i].error) for i in range(3)] == [("a", ""), ("", "inside"), ("c", "")]


def test_clips_are_videos_and_pictures_are_images() -> None:
    frame = np.zeros((8, 8, 3), np.uint8)
    asked = Example("1", "t", (frame, Clip((frame, frame), 2.0)), "What?", ("a",), "exact")
    (message,) = messages_of(asked, asked.media)
    image, video, text = message["content"]
    assert (image["type"], video["type"], video["fps"], text["text"]) == ("image", "video", 2.0, "What?")
