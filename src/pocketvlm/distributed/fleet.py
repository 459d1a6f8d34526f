"""Many engines, which share the rows of a run: a pipeline of Ray Data whose results come in the order of completion."""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

from pocketvlm.distributed.cluster import Shares, connected, machines_of_cluster, share
from pocketvlm.distributed.stages import Answerer, ModelSpec, Row, Work, prepare
from pocketvlm.errors import EngineError, need

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

_MOST_BLOCKS = 20_000  # of a pipeline: each costs its driver a millisecond or two
_MOST_BYTES = 2**29  # of requests that are sent to machines at a time
_CALLS = 2  # that an engine works on at a time, so that its batch is full when one of them ends
_RETRIES = 3  # of a call whose engine was lost


class Fleet:
    """Engines on a cluster. See `open_fleet`.

    Attributes:
        shares: how many, and what each of them has.
        machines: of the cluster.
    """

    def __init__(self, spec: ModelSpec, shares: Shares, ahead: int, machines: int = 1) -> None:
        self.spec, self.shares, self.machines = spec, shares, machines
        self._calls = min(_CALLS, max(1, ahead))
        self._rows = max(1, ahead // self._calls)  # of a call

    def answer(self, rows: Iterable[tuple[int, Row]], work: Work) -> Iterator[tuple[int, Any]]:
        """Answer rows, by their numbers: each number comes out once, whatever was lost on the way.

        A call whose engine was lost is done again by another. Rows that came to nothing all the same are asked again
        one by one, and what is lost then too has an `EngineError` as its outcome.

        Args:
            rows: (number, what `work` needs to know).

        Raises:
            EngineError: the engines could not be started, or something is wrong with a machine.
        """
        for waiting in _windows(rows, _MOST_BLOCKS * self._rows):
            for size, calls in ((self._rows, self._calls), (1, 1)):
                if not waiting:
                    break
                for number, value in self._answer(list(waiting.items()), work, size, calls):
                    if waiting.pop(number, None) is not None:
                        yield number, value
            for number, row in waiting.items():
                yield number, work.value(row, EngineError("the process that worked on it ended, time and again"))

    def _answer(self, rows: list[tuple[int, Row]], work: Work, size: int, calls: int) -> Iterator[tuple[int, Any]]:
        """What comes of one walk through the rows, `size` of them a call, and so many calls at a time for an engine:
        what shares its engine with a row that ends it is lost as well."""
        import ray

        _be_quiet()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `max_task_retries` has no other place yet; the extra has Ray's bound
            answered = self._pipeline(rows, work, size, calls)
        try:
            batches: Iterable[Any] = answered.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
            for batch in batches:
                columns = (batch[name].to_pylist() for name in ("number", "value", "fault"))
                for number, value, fault in zip(*columns, strict=True):
                    if fault is not None:
                        raise EngineError(f"{fault}; the same command goes on from there")
                    yield number, json.loads(value)
        except ray.exceptions.RayError as error:
            raise EngineError(f"the run on Ray failed: {_reason(error)}") from None

    def _pipeline(self, rows: list[tuple[int, Row]], work: Work, size: int, calls: int) -> Dataset:
        """Tables of rows → tables of what became of them."""
        from ray.data import ActorPoolStrategy, from_arrow

        shares = self.shares
        size = max(size, math.ceil(len(rows) / _MOST_BLOCKS))
        prepared = from_arrow(list(_tables(rows, size))).map_batches(
            prepare,  # type: ignore[arg-type]  # what it takes beside a table is in fn_args
            fn_args=(self.spec, work),
            batch_size=size,
            batch_format="pyarrow",
            num_cpus=shares.preparing_cpus,
            concurrency=None if shares.gpus else 2 * shares.engines,
        )
        return prepared.map_batches(
            Answerer,
            fn_constructor_args=(self.spec, work, shares.cores),
            batch_size=size,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(
                size=shares.engines,
                max_tasks_in_flight_per_actor=2 * calls if calls > 1 else 1,
                max_concurrent_calls_per_actor=calls,
                enable_true_multi_threading=True,
            ),
            num_cpus=shares.engine_cpus,
            num_gpus=shares.gpus or None,
            # An engine whose process ends is started again, but no row may end one engine after the other for ever.
            max_restarts=-1,
            max_task_retries=_RETRIES,
            runtime_env={"env_vars": {"LOKY_MAX_CPU_COUNT": str(shares.cores), "OMP_NUM_THREADS": str(shares.cores)}},
        )


@contextmanager
def open_fleet(address: str, spec: ModelSpec, *, engines: int | None, cores: int | None, ahead: int) -> Iterator[Fleet]:
    """Engines on the cluster at `address`, see `connected` and `share`.

    Args:
        ahead: rows that an engine has at a time.
    """
    need("pyarrow", "pyarrow", "ray")
    with connected(address):
        machines, places = machines_of_cluster(), dict(spec.places)
        shares = share(
            machines, engines, cores, device=places.get("device", "auto"), runtime=places.get("runtime", "auto")
        )
        yield Fleet(spec, shares, ahead, len(machines))


def _windows(rows: Iterable[tuple[int, Row]], most: int) -> Iterator[dict[int, Row]]:
    """So many rows at a time, or as many as hold `_MOST_BYTES` of text: each window is a pipeline of its own, and all
    of its rows are in memory."""
    window: dict[int, Row] = {}
    held = 0
    for number, row in rows:
        window[number] = row
        held += sum(len(value) for value in row.values() if isinstance(value, str))
        if len(window) >= most or held >= _MOST_BYTES:
            yield window
            window, held = {}, 0
    if window:
        yield window


def _tables(rows: list[tuple[int, Row]], size: int) -> Iterator[pa.Table]:
    import pyarrow as pa

    source = iter(rows)
    while some := list(islice(source, size)):
        numbers, values = zip(*some, strict=True)
        packed = [json.dumps(value).encode() for value in values]
        yield pa.table({"number": pa.array(numbers, pa.int64()), "row": pa.array(packed, pa.binary())})


def _be_quiet() -> None:
    """No bars, log or warnings of Ray Data; blocks that were lost are noticed by what is missing."""
    warnings.filterwarnings("ignore", module="ray")  # of its own settings, which it has deprecated
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = -1
    context.execution_no_progress_timeout_s = -1  # long answers on slow machines are no fault
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


def _reason(error: Exception) -> str:
    """The last line of what went wrong on another machine, which is the error itself."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:400] if lines else type(error).__name__
