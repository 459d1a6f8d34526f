"""What runs on the machines of a cluster: tasks that fetch, decode and cut pictures, and engines that answer.

A row is a dict of JSON values and has a number. Between the stages it travels in Arrow tables:

    number int64 · row binary (JSON)
    → with prepared binary (pickle; null where it failed), value binary (JSON; null where it did not) and fault string
    → number int64 · value binary · fault string

What is wrong with a row is its value. What is wrong with a machine (a model or a package that it has not, a fault in
the program) is a fault, null elsewhere: it ends the run, which would go on to fail row after row.
"""

from __future__ import annotations

import json
import os
import pickle
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pocketvlm.api.processed import Processed, process
from pocketvlm.errors import EngineError, MissingExtraError, PocketVLMError, UnavailableError
from pocketvlm.model.directory import ModelDirectory
from pocketvlm.model.hub import resolve
from pocketvlm.processing.processor import Processor

if TYPE_CHECKING:
    import pyarrow as pa

    from pocketvlm.api.answers import Answer

Row = Mapping[str, Any]
Outcome = list["Answer"] | Exception


class Work(Protocol):
    """What is asked about a row, and what becomes of the answer. Sent to the machines by pickle."""

    def request(self, row: Row) -> tuple[Sequence[Mapping[str, Any]], Mapping[str, Any]]:
        """Messages and options; `PocketVLMError` where there can be none."""

    def value(self, row: Row, outcome: Outcome) -> Any:
        """JSON values."""


@dataclass(frozen=True)
class ModelSpec:
    """A model that every machine loads for itself.

    Attributes:
        name: as `load` takes it: a directory or a hub id that every machine knows, or "nano".
        adapter: a folder that becomes part of the weights, or None.
        places: device, dtype, runtime and quantization.
        fingerprint: of the weights; machines that have others refuse.
    """

    name: str
    adapter: str | None
    places: tuple[tuple[str, str], ...]
    fingerprint: str

    @classmethod
    def of(cls, directory: ModelDirectory, places: Mapping[str, str]) -> ModelSpec:
        """The spec of a directory of this machine."""
        name = directory.name
        if Path(name).expanduser().is_dir():
            name = str(Path(name).expanduser().absolute())
        adapter = None if directory.adapter is None else str(directory.adapter.absolute())
        return cls(name, adapter, tuple(places.items()), directory.fingerprint)

    def directory(self) -> ModelDirectory:
        """Where the model is on this machine.

        Raises:
            CheckpointError: it is not there.
            EngineError: it has other weights than where the run was begun.
        """
        found = resolve(self.name)
        found = found if self.adapter is None else found.with_adapter(self.adapter)
        if found.fingerprint != self.fingerprint:
            raise EngineError(f"{self.name} has other weights on this machine than where the run was begun")
        return found


@cache
def _processor(spec: ModelSpec) -> Processor:
    """Of this process, whose tasks follow each other."""
    directory = spec.directory()
    return Processor.from_directory(directory.path, configs=directory.configs)


def prepare(table: pa.Table, spec: ModelSpec, work: Work) -> pa.Table:
    """Rows → their pictures fetched, decoded and cut, and their prompts; what is wrong with one is its value."""
    import pyarrow as pa

    made = [_prepared(row, spec, work) for row in map(json.loads, table["row"].to_pylist())]
    kinds = (("prepared", pa.large_binary()), ("value", pa.binary()), ("fault", pa.string()))
    for place, (name, kind) in enumerate(kinds):
        table = table.append_column(name, pa.array([row[place] for row in made], kind))
    return table


def _prepared(row: Row, spec: ModelSpec, work: Work) -> tuple[bytes | None, bytes | None, str | None]:
    """What is prepared, the value, and the fault of a row: one of them."""
    try:
        processor = _processor(spec)
        try:
            messages, options = work.request(row)
            return pickle.dumps((process(processor, messages, options), dict(options)), protocol=5), None, None
        except MissingExtraError:
            raise
        except PocketVLMError as error:
            return None, _json(work.value(row, error)), None
    except Exception as error:  # whatever it is, Ray would drop it
        return None, None, _fault(error)


def _fault(error: Exception) -> str:
    """One line of what is wrong with this machine."""
    reason = str(error) if isinstance(error, PocketVLMError | EngineError) else f"{type(error).__name__}: {error}"
    return f"{' '.join(reason.split())[:300]} (on {socket.gethostname()})"


class Answerer:
    """An engine, which answers tables of prepared rows; several calls at a time fill its batch."""

    def __init__(self, spec: ModelSpec, work: Work, cores: int) -> None:
        from pocketvlm.api.vlm import load

        directory, options = spec.directory(), dict[str, Any](spec.places)
        self._vlm, self._work = load(directory, **options), work
        if (torch := sys.modules.get("torch")) is not None:  # ONNX Runtime does without
            torch.set_num_threads(cores)

    def __call__(self, table: pa.Table) -> pa.Table:
        import pyarrow as pa

        rows = [json.loads(row) for row in table["row"].to_pylist()]
        values, faults = table["value"].to_pylist(), table["fault"].to_pylist()
        try:
            for index, outcome in self._vlm.as_completed(_requests(table["prepared"]), ahead=max(1, len(rows))):
                if isinstance(outcome, UnavailableError):
                    os._exit(70)  # the engine is broken for good: Ray starts another, and gives it these rows
                if isinstance(outcome, Exception) and not isinstance(outcome, PocketVLMError | EngineError):
                    raise outcome
                values[index] = _json(self._work.value(rows[index], outcome))
        except Exception as error:  # whatever it is, Ray would drop it
            fault = _fault(error)
            faults = [fault if value is None else None for value in values]
        columns = {"value": pa.array(values, pa.binary()), "fault": pa.array(faults, pa.string())}
        return pa.table({"number": table["number"], **columns})


def _requests(prepared: pa.ChunkedArray) -> Iterator[tuple[int, Processed, dict[str, Any]]]:
    """What is to be answered, each unpacked when there is room for it."""
    for index, packed in enumerate(prepared):
        if packed.is_valid:
            yield index, *pickle.loads(packed.as_buffer())


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode(errors="replace")
