"""The samples of each step, encoded, in an order that is a function of the seed alone: a run that goes on sees the
ones that it would have seen."""

from __future__ import annotations

import itertools
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol
from weakref import WeakSet

import torch
from torch.utils.data import DataLoader, Dataset

from pocketvlm.errors import EngineError
from pocketvlm.training.data.order import endless_order
from pocketvlm.training.data.sample import Sample, SampleError
from pocketvlm.training.examples import Example, ExampleEncoder

Found = tuple[Example, ...] | SampleError  # an example, a pair of them (preferences), or what is wrong
_ENDED = "a process that reads samples ahead ended by itself: was there enough memory? The same command goes on."
_running = WeakSet[Any]()  # iterators whose workers read ahead


class Steps(Protocol):
    """What the trainer asks of a feed."""

    @property
    def samples(self) -> Sequence[Sample]:
        """Those of one pass; none where samples are made for each step."""

    def steps(self, first: int, count: int, batch_size: int, rank: int, world: int) -> Iterator[Sequence[Found]]:
        """What this process works on in each step from `first` on, without end where `count` is 0."""

    def all(self) -> Iterator[Found]:
        """Every sample once."""


class Feed:
    """Args:
    samples: `samples[i]` is a `Sample`, or raises `SampleError`.
    pairs: encode preferences.
    seed: of the order.
    workers: processes that encode ahead; 0 encodes here.
    """

    def __init__(
        self, samples: Sequence[Sample], encoder: ExampleEncoder, *, pairs: bool, seed: int, workers: int = 0
    ) -> None:
        self.samples, self.seed, self.workers = samples, seed, workers
        self._encoded = _Encoded(samples, encoder, pairs)

    def steps(self, first: int, count: int, batch_size: int, rank: int, world: int) -> Iterator[list[Found]]:
        """What this process works on in each step from `first` on, without end where `count` is 0."""
        begin = first * batch_size
        order = enumerate(endless_order(self.samples, self.seed, begin), begin)
        numbers = range(count) if count else itertools.count()
        places = (list(itertools.islice(order, batch_size))[rank::world] for _ in numbers)
        loader: DataLoader[Any] = DataLoader(
            self._encoded,
            batch_sampler=places,
            num_workers=self.workers,
            collate_fn=list,
            worker_init_fn=prepare_worker if self.workers else None,
            prefetch_factor=2 if self.workers else None,
        )
        samples = iter(loader)
        _running.add(samples)
        try:
            yield from samples
        except (EOFError, ConnectionError):  # what a worker had ready cannot be taken over any more
            _stop_watching()
            raise EngineError(_ENDED) from None

    def all(self) -> Iterator[Found]:
        """Every sample once, in the order of its file."""
        for i in range(len(self.samples)):
            yield self._encoded[0, i]


class _Encoded(Dataset[Found]):
    def __init__(self, samples: Sequence[Sample], encoder: ExampleEncoder, pairs: bool) -> None:
        self.samples, self.encoder, self.pairs = samples, encoder, pairs

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, place: tuple[int, int]) -> Found:
        position, index = place  # in the order of the whole run, and in the data
        try:
            sample = self.samples[index]
            return self.encoder.pair(sample, position) if self.pairs else (self.encoder(sample, position),)
        except SampleError as error:
            return error


def prepare_worker(_worker: int) -> None:
    """One thread, as there are several workers; and no end by a signal that is for the main process."""
    torch.set_num_threads(1)
    # Ctrl-C reaches the whole group, and so does the SIGTERM of `timeout`, torchrun and systemd: the main process ends
    # the run behind its step, and its workers by their queue.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def watched_workers() -> Iterator[None]:
    """Say in one line that a worker was killed: PyTorch raises it in the middle of whatever is done here. Where that is
    the end of an object, nothing can be raised; the next sample that is waited for says it then.

    Raises:
        EngineError: one was.
    """
    hook = sys.unraisablehook

    def quiet(what: Any) -> None:
        if not _is_of_worker(what.exc_value):
            hook(what)

    sys.unraisablehook = quiet
    try:
        yield
    except RuntimeError as error:
        if not _is_of_worker(error):
            raise
        _stop_watching()
        raise EngineError(_ENDED) from None
    finally:
        sys.unraisablehook = hook


def _stop_watching() -> None:
    """The end of one worker is known and will be said: that of the others, which follow it, must not be raised in the
    middle of saying it. A later run in this process sees a worker's end when it waits for a sample.

    The others are killed, since the end of this process would wait for them, who ignore its SIGTERM."""
    if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for samples in [*_running]:
        for worker in getattr(samples, "_workers", ()):  # PyTorch's name; it has no other way to them
            worker.kill()


def _is_of_worker(error: BaseException | None) -> bool:
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker")
