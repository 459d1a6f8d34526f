"""Media decoded in other processes: the same views, and what becomes of requests whose decoder is ended."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from helpers.app import data_url, png

from pocketvlm.config import ImageConfig
from pocketvlm.errors import ConfigError, EngineError, MediaError, PromptError, QueueFullError
from pocketvlm.model.directory import ModelDirectory
from pocketvlm.model.hub import resolve
from pocketvlm.processing import media_workers
from pocketvlm.processing.abandonment import abandoned_by
from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.processing.media_budget import held_by, within_context
from pocketvlm.processing.media_encoding import MediaTask, encode_media
from pocketvlm.processing.media_forkserver import has_forkserver, start_early
from pocketvlm.processing.media_worker import MEMORY, LostError, Worker
from pocketvlm.processing.media_workers import MediaWorkers, decoding_apart, fetched, taking_turns
from pocketvlm.processing.picture_options import PictureOptions
from pocketvlm.processing.processor import Processor
from pocketvlm.processing.prompt.messages import MediaPart
from pocketvlm.remote_files import RemoteFile, forget_contents

CLIP = Path(__file__).parents[2] / "examples" / "clip.mp4"


@pytest.fixture(scope="module")
def directory() -> ModelDirectory:
    return resolve("nano")


@pytest.fixture(scope="module")
def workers() -> Iterator[MediaWorkers]:
    with closing(MediaWorkers(1, 60)) as workers:
        yield workers


def task_of(directory: ModelDirectory, *sources: Any, kind: Any = "image", mode: Any = "16x") -> MediaTask:
    parts = tuple(MediaPart(kind, source, f"place {i}") for i, source in enumerate(sources))
    config = directory.image_config
    return MediaTask(parts, (mode,) * len(parts), 1.5, PictureOptions(), config, config, MediaLimits(), False)


@pytest.mark.parametrize("mode", ["16x", "4x", "auto"])
def test_views_are_those_of_this_process(workers: MediaWorkers, directory: ModelDirectory, mode: str) -> None:
    tasks = [
        task_of(directory, data_url(png(500, 700, 1)), png(30, 40, 2), png(1, 1), mode=mode),
        task_of(directory, CLIP.read_bytes(), kind="video", mode=mode),
        task_of(directory),
    ]
    for task in tasks:
        for found, expected in zip(workers.encode(task), encode_media(task), strict=True):
            for unit, other in zip(found, expected, strict=True):
                assert (unit.views, unit.grid, unit.image) == (other.views, other.grid, other.image)
                np.testing.assert_array_equal(unit.patches, other.patches)


WITHOUT_TORCH = """
import sys
from contextlib import closing
from pathlib import Path
from pocketvlm.config import ImageConfig
from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.processing.media_encoding import MediaTask
from pocketvlm.processing.media_workers import MediaWorkers
from pocketvlm.processing.picture_options import PictureOptions
from pocketvlm.processing.prompt.messages import MediaPart

parts, config = (MediaPart("image", sys.stdin.buffer.read(), "place"),), ImageConfig()
with closing(MediaWorkers(1, 60)) as workers:
    task = MediaTask(parts, ("16x",), 1.5, PictureOptions(), config, config, MediaLimits(), False)
    ((unit,),) = workers.encode(task)
assert "torch" not in sys.modules
Path(sys.argv[1]).write_bytes(unit.patches.tobytes())
"""


def test_workers_decode_where_there_is_no_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('there is none')")
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    picture = png(500, 700, 1)
    command = [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path / "patches")]
    run = subprocess.run(
        command, input=picture, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr.decode()
    config = ImageConfig()
    parts = (MediaPart("image", picture, "place"),)
    task = MediaTask(parts, ("16x",), 1.5, PictureOptions(), config, config, MediaLimits(), False)
    ((expected,),) = encode_media(task)
    assert (tmp_path / "patches").read_bytes() == expected.patches.tobytes()


def test_what_nobody_waits_for_takes_no_worker(workers: MediaWorkers, directory: ModelDirectory) -> None:
    task, left = task_of(directory, png()), threading.Event()
    with abandoned_by(left):
        workers.encode(task)
        left.set()
        with pytest.raises(EngineError, match="nobody waits"):
            workers.encode(task)
    workers.encode(task)


def test_patches_may_be_left_out(workers: MediaWorkers, directory: ModelDirectory) -> None:
    task = task_of(directory, png(500, 700, 1), mode="auto")
    ((whole,),), ((bare,),) = workers.encode(task), workers.encode(replace(task, patches=False))
    assert (whole.views, whole.grid, whole.image) == (bare.views, bare.grid, bare.image)
    assert whole.patches.size > 0 == bare.patches.size


def test_faults_are_those_of_this_process(workers: MediaWorkers, directory: ModelDirectory) -> None:
    for source in (b"nothing", png()[:100], "/etc/hostname", 5, [png()]):
        with pytest.raises(MediaError) as here:
            encode_media(task_of(directory, png(), source))
        with pytest.raises(MediaError) as there:
            workers.encode(task_of(directory, png(), source))
        assert str(there.value) == str(here.value)


def test_a_worker_that_was_killed_is_replaced(workers: MediaWorkers, directory: ModelDirectory) -> None:
    task = task_of(directory, png(64, 64))
    expected = workers.encode(task)
    (pid,) = workers.pids
    os.kill(pid, signal.SIGKILL)
    found = workers.encode(task)
    assert found[0][0].views == expected[0][0].views
    assert pid not in workers.pids


def test_workers_have_answered_once_they_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    answered: list[int] = []
    ping = media_workers.Worker.ping

    def counted(worker: Any, seconds: float) -> None:
        ping(worker, seconds)
        answered.append(worker.process.pid)

    monkeypatch.setattr(media_workers.Worker, "ping", counted)
    with closing(MediaWorkers(2, 60)) as workers:
        workers.start()
        workers.wait()
        assert sorted(answered) == sorted(workers.pids)
        assert len(answered) == 2


def test_workers_that_cannot_start_are_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    with closing(MediaWorkers(2, 60)) as workers:
        monkeypatch.setattr(media_workers, "Worker", none)
        workers.start()
        with pytest.raises(EngineError, match=r"no process can be started .*\(Resource temporarily unavailable\)"):
            workers.wait()


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP") or sys.platform != "linux", reason="of the start method of Linux")
@pytest.mark.parametrize("sign", ["SIGKILL", "SIGSTOP"])
@pytest.mark.parametrize("is_worker_ended", [False, True])
def test_the_process_that_forks_workers_may_end_or_hang(
    directory: ModelDirectory, monkeypatch: pytest.MonkeyPatch, sign: str, is_worker_ended: bool
) -> None:
    task = task_of(directory, png(64, 64))
    with closing(MediaWorkers(1, 60)) as workers:
        expected = workers.encode(task)
        pids = workers.pids
        forks: Any = forkserver._forkserver
        os.kill(forks._forkserver_pid, getattr(signal, sign))
        if is_worker_ended:
            os.kill(pids[0], signal.SIGKILL)
        if sign == "SIGSTOP":  # a new one imports torch, and so needs the whole time
            starts = iter((1.0,))
            started = Future.result
            monkeypatch.setattr(Future, "result", lambda self, seconds=None: started(self, next(starts, seconds)))
        assert workers.encode(task)[0][0].views == expected[0][0].views
        assert (workers.pids == pids) is not is_worker_ended  # one that lives goes on


def test_the_resource_tracker_may_end(directory: ModelDirectory) -> None:
    with closing(MediaWorkers(1, 60)) as workers:
        workers.encode(task_of(directory, png()))
        tracker: Any = resource_tracker._resource_tracker
        os.kill(tracker._pid, signal.SIGKILL)
        os.kill(workers.pids[0], signal.SIGKILL)
        with suppress(UserWarning):
            assert workers.encode(task_of(directory, png()))


def test_a_worker_that_is_stopped_is_replaced(directory: ModelDirectory) -> None:
    with closing(MediaWorkers(1, 0.5)) as workers:
        workers.start()
        workers.wait()
        (pid,) = workers.pids
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(MediaError, match=r"took more than 0.5 seconds"):
            workers.encode(task_of(directory, png()))
        workers._seconds = 60
        assert workers.encode(task_of(directory, png()))
        assert pid not in workers.pids


def test_a_picture_that_kills_its_decoder_is_refused_and_others_are_not(
    workers: MediaWorkers, directory: ModelDirectory
) -> None:
    workers.encode(task_of(directory, png()))
    task = task_of(directory, *[png(3000, 3000, i) for i in range(2)])
    ended = threading.Event()

    def kill() -> None:
        while not ended.wait(0.05):
            for pid in workers.pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    with ThreadPoolExecutor(1) as pool:
        killing = pool.submit(kill)
        with pytest.raises(MediaError, match="crashed"):
            workers.encode(task)
        ended.set()
        killing.result()
    assert workers.encode(task_of(directory, png(64, 64)))


@pytest.mark.skipif(not has_forkserver(), reason="of systems that fork")
def test_a_fork_server_that_cannot_be_started_early_is_left_to_the_first_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none() -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(forkserver, "ensure_running", none)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    start_early()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


HEAD = {"count": 1, "patch": 1, "views": [[14, 14, "16x"]], "grid": None, "image": [14, 14]}


@pytest.mark.parametrize(
    "said",
    [
        [b"no JSON"],
        [b"[" * 10**5],
        [b"5"],
        [b'{"fault": "MediaError"}'],
        [json.dumps({"units": [[HEAD | {"count": "many"}]]}).encode()],
        [json.dumps({"units": [[HEAD | {"count": -1}]]}).encode()],
        [json.dumps({"units": [[HEAD | {"count": 2**50}]]}).encode()],
        [json.dumps({"units": [[HEAD]]}).encode(), b"x" * 100],
        [json.dumps({"units": [[HEAD]]}).encode(), b"x"],
    ],
)
def test_whatever_a_decoder_says_that_is_no_answer_it_is_lost(said: list[bytes]) -> None:
    worker: Any = Worker.__new__(Worker)
    worker._line, theirs = multiprocessing.Pipe()
    with worker._line, theirs:
        for piece in said:
            theirs.send_bytes(piece)
        with pytest.raises(LostError):
            worker.ask(None, 60)


def test_decoding_has_a_time(directory: ModelDirectory) -> None:
    with closing(MediaWorkers(1, 60)) as workers:
        workers.encode(task_of(directory, png()))
        workers._seconds = 0.01
        with pytest.raises(MediaError, match=r"took more than 0.01 seconds"):
            workers.encode(task_of(directory, png(3000, 3000)))
        workers._seconds = 60
        assert workers.encode(task_of(directory, png()))


def test_no_process_is_left(directory: ModelDirectory) -> None:
    workers = MediaWorkers(2, 60)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(workers.encode, [task_of(directory, png(900, 900))] * 4))
    pids = workers.pids
    assert pids
    workers.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_files_are_read_here_and_only_where_they_may_be(directory: ModelDirectory, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    url = f"file://{tmp_path}/a.png"
    with pytest.raises(MediaError, match="place 0"):
        fetched(task_of(directory, url))
    task = replace(task_of(directory, url), limits=MediaLimits(file_roots=(str(tmp_path),)))
    assert fetched(task).parts[0].source == png()


@pytest.mark.skipif(not has_forkserver(), reason="only the fork server begins in the current directory; run on Linux")
def test_a_current_directory_that_is_gone_is_told_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(ConfigError, match="the current directory does not exist any more"):
        start_early()


def test_a_processor_decodes_apart_within_a_block(tmp_path: Path) -> None:
    """What its own user names is read here, from storages too, and may be larger than a request's body."""
    processor = Processor.from_directory(resolve("nano").path)
    own, store = processor.encode, fsspec.filesystem("memory")
    large = png(30, 40, 2) + bytes(21 * 2**20)
    (tmp_path / "a.png").write_bytes(large)
    try:
        store.pipe_file("/apart/a b#2.png", large)
        with decoding_apart(processor, 1):
            assert processor.encode is not own
            sources = [
                RemoteFile("memory://apart/a b#2.png"),
                RemoteFile("memory://apart/a b#2.png", "1"),
                png(30, 40, 2),
            ]
            made = [processor([content(source)]).patches for source in (str(tmp_path / "a.png"), *sources)]
            with pytest.raises(MediaError, match="there is no file"):
                processor([content("memory://apart/missing.png")])
            with pytest.raises(MediaError, match="there is no page 2"):
                processor([content(RemoteFile("memory://apart/a b#2.png", "2"))])
        assert processor.encode is own
    finally:
        store.store.clear()
        forget_contents()
    for patches in made[1:]:
        np.testing.assert_array_equal(patches, made[0])


def content(source: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "image", "image": source}, {"type": "text", "text": "What?"}]}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of systems that limit the memory of a process")
def test_a_worker_may_not_take_all_memory(workers: MediaWorkers, directory: ModelDirectory) -> None:
    workers.encode(task_of(directory, png()))
    (pid,) = workers.pids
    (line,) = [line for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if "address space" in line]
    used = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
    assert int(line.split()[3]) < used + 2 * MEMORY


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
