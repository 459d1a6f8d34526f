"""Downloads and pixels of media: within a time, and only where there is room for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.app import png
from helpers.media_tasks import content, task_of

from pocketvlm.errors import EngineError, MediaError, PromptError, QueueFullError
from pocketvlm.model.directory import ModelDirectory
from pocketvlm.model.hub import resolve
from pocketvlm.processing import media_workers
from pocketvlm.processing.abandonment import abandoned_by
from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.processing.media_budget import held_by, within_context
from pocketvlm.processing.media_encoding import encode_media
from pocketvlm.processing.media_workers import MediaWorkers, fetched, taking_turns
from pocketvlm.processing.processor import Processor


@pytest.fixture(scope="module")
def directory() -> ModelDirectory:
    return resolve("nano")


@pytest.fixture(scope="module")
def workers() -> Iterator[MediaWorkers]:
    with closing(MediaWorkers(1, 60)) as workers:
        yield workers


class Fetching:
    """In place of what fetches: it notes what it is asked for, and waits where it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, body: bytes = b"0" * 10) -> None:
        self.urls, self.body, self.go_on = list[str](), body, threading.Event()
        self.go_on.set()
        monkeypatch.setattr(media_workers, "fetch", self)

    def __call__(self, url: str, _limits: MediaLimits, hold: Callable[[int], None]) -> bytes:
        self.urls.append(url)
        assert self.go_on.wait(60)
        hold(len(self.body))
        return self.body


class Held:
    """Counts bytes that are held, as a server does, with room for `most`."""

    def __init__(self, most: int = 2**40) -> None:
        self.most, self.bytes, self.asked, self.lock = most, 0, list[int](), threading.Lock()

    def __call__(self, count: int) -> Any:
        with self.lock:
            self.asked.append(count)
            if self.bytes + count > self.most:
                raise QueueFullError("there is no room")
            self.bytes += count
        return lambda: setattr(self, "bytes", self.bytes - count)


def test_frames_are_fetched_only_if_so_many_could_be_taken(
    directory: ModelDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetching, most = Fetching(monkeypatch), MediaLimits().max_frames
    frames = [f"http://example.org/{i}" for i in range(most)]
    assert fetched(task_of(directory, frames, kind="video")).parts[0].source == [fetching.body] * most
    assert sorted(fetching.urls) == sorted(frames)
    with pytest.raises(MediaError, match=f"place 0: the video has {most + 1} frames to fetch, at most {most}"):
        fetched(task_of(directory, [*frames, frames[0]], kind="video"))
    assert len(fetching.urls) == most


def test_all_downloads_of_a_request_have_a_time_together(
    directory: ModelDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them may be as slow as one may be; a hundred after each other would hold a thread for minutes."""
    given = list[float]()

    def slow(_url: str, limits: MediaLimits, _hold: Callable[[int], None]) -> bytes:
        given.append(limits.total_seconds)
        time.sleep(min(0.1, limits.total_seconds))
        return b"0"

    monkeypatch.setattr(media_workers, "fetch", slow)
    monkeypatch.setattr(media_workers, "FETCHING", 1)
    task = task_of(directory, [f"http://example.org/{i}" for i in range(100)], kind="video")
    with pytest.raises(MediaError, match=r"place 0: the downloads of the request took more than 0\.3 seconds together"):
        fetched(replace(task, limits=replace(task.limits, total_seconds=0.1)))
    assert 1 < len(given) < 20
    assert max(given) <= 0.1


def test_no_list_of_pictures_is_fetched(directory: ModelDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    fetching = Fetching(monkeypatch)
    task = fetched(task_of(directory, ["http://example.org/a"]))
    assert fetching.urls == []
    with pytest.raises(MediaError, match="Expected a picture, got list"):
        encode_media(task)


def test_no_download_is_begun_for_nobody(directory: ModelDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    fetching, left = Fetching(monkeypatch), threading.Event()
    fetching.go_on.clear()
    monkeypatch.setattr(media_workers, "LOOK_SECONDS", 0.01)
    task = task_of(directory, [f"http://example.org/{i}" for i in range(100)], kind="video")

    def prepare() -> None:
        with abandoned_by(left):
            fetched(task)

    with ThreadPoolExecutor(1) as pool:
        preparing = pool.submit(prepare)
        while len(fetching.urls) < media_workers.FETCHING:
            assert not preparing.done()
        left.set()
        time.sleep(0.1)  # many looks; only what is under way goes on
        fetching.go_on.set()
        with pytest.raises(EngineError, match="nobody waits"):
            preparing.result(60)
    assert len(fetching.urls) == media_workers.FETCHING
    with abandoned_by(left), pytest.raises(EngineError, match="nobody waits"):
        fetched(task_of(directory, "http://example.org/a"))
    assert len(fetching.urls) == media_workers.FETCHING


def test_the_first_picture_that_cannot_be_fetched_is_named(
    directory: ModelDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(url: str, _limits: MediaLimits, _hold: Callable[[int], None]) -> bytes:
        if url.endswith(("2", "5")):
            raise MediaError(f"{url} is gone")
        return b"0"

    monkeypatch.setattr(media_workers, "fetch", fail)
    with pytest.raises(MediaError, match=r"place [25]: http://example.org/[25] is gone"):
        fetched(task_of(directory, *(f"http://example.org/{i}" for i in range(7))))


def test_downloads_are_held_until_the_work_is_done(directory: ModelDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    fetching, held = Fetching(monkeypatch, b"0" * 1000), Held(most=2500)
    two, three = (task_of(directory, *(f"http://example.org/{i}" for i in range(count))) for count in (2, 3))
    with held_by(held):
        fetched(two)
        assert held.bytes == 2000
    assert held.bytes == 0
    with held_by(held), pytest.raises(QueueFullError, match="no room"):
        fetched(three)
    assert held.bytes == 0
    assert len(fetching.urls) == 5


def test_pixels_come_from_a_worker_only_where_there_is_room_for_them(
    workers: MediaWorkers, directory: ModelDirectory
) -> None:
    task, held = task_of(directory, png(500, 700, 1), png(30, 40, 2)), Held()
    with held_by(held):
        encoded = workers.encode(task)
        size = sum(unit.patches.nbytes for units in encoded for unit in units)
        assert held.asked == [held.bytes] == [size]
    tokens, pids = sum(unit.visual_tokens for units in encoded for unit in units), workers.pids
    with held_by(Held(most=size - 1)), pytest.raises(QueueFullError, match="no room"):
        workers.encode(task)
    with within_context(tokens), pytest.raises(PromptError, match=f"have {tokens} tokens, the model's context is"):
        workers.encode(task)
    with within_context(tokens + 1), held_by(Held(most=size)):
        assert [[unit.views for unit in units] for units in workers.encode(task)] == [
            [unit.views for unit in units] for units in encoded
        ]
    assert workers.pids == pids, "what is refused costs no worker"


def test_what_is_made_in_threads_is_counted_too(directory: ModelDirectory) -> None:
    task, encode, held = task_of(directory, png(500, 700, 1)), taking_turns(encode_media, 1), Held()
    with held_by(held):
        ((unit,),) = encode(task)
        assert held.bytes == unit.patches.nbytes > 0
    with within_context(unit.visual_tokens), pytest.raises(PromptError, match="the model's context is"):
        encode(task)


def test_a_prompt_that_no_context_holds_is_refused_before_its_pixels_are_here(workers: MediaWorkers) -> None:
    processor, held = Processor.from_directory(resolve("nano").path), Held()
    processor.encode = workers.encode
    with held_by(held), pytest.raises(PromptError, match="the pictures and videos have"):
        processor([content(np.full((3700, 3700, 3), 200, np.uint8))], max_slice_nums=10_000)
    assert held.asked == []
