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
from collections.abc import Iterator
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
from helpers.media_tasks import content, task_of

from pocketvlm.config import ImageConfig
from pocketvlm.errors import ConfigError, EngineError, MediaError
from pocketvlm.model.directory import ModelDirectory
from pocketvlm.model.hub import resolve
from pocketvlm.processing import media_workers
from pocketvlm.processing.abandonment import abandoned_by
from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.processing.media_encoding import MediaTask, encode_media
from pocketvlm.processing.media_forkserver import has_forkserver, start_early
from pocketvlm.processing.media_worker import MEMORY, LostError, Worker
from pocketvlm.processing.media_workers import MediaWorkers, decoding_apart, fetched
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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of systems that limit the memory of a process")
def test_a_worker_may_not_take_all_memory(workers: MediaWorkers, directory: ModelDirectory) -> None:
    workers.encode(task_of(directory, png()))
    (pid,) = workers.pids
    (line,) = [line for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if "address space" in line]
    used = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
    assert int(line.split()[3]) < used + 2 * MEMORY
