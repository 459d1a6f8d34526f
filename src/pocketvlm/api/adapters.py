"""Adapters beside a model's weights, by name: they come and go while the model answers; a request follows one."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from pocketvlm.engine.runners.base import Runner
from pocketvlm.errors import ConfigError
from pocketvlm.model.adapters.placed import PlacedAdapter
from pocketvlm.model.adapters.settings import WEIGHTS, adapter_folder
from pocketvlm.ranges import show

MAX_NAME = 256


@dataclass(frozen=True)
class AdapterLimits:
    """What may be loaded at the same time.

    Attributes:
        count: adapters.
        memory: bytes of all of them.
    """

    count: float = math.inf
    memory: float = math.inf


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter that requests can name.

    Attributes:
        path: the folder that it came from.
        rank: the largest of its layers.
        base: what its folder says it was made for.
    """

    name: str
    path: Path
    rank: int
    base: str
    placed: PlacedAdapter


class Adapters(Mapping[str, LoadedAdapter]):
    """Names of adapters → what was loaded. Safe from any thread.

    Args:
        runner: of the model.

    Attributes:
        default: name of the one that requests follow which name none; None is the model as it is.
        limits: of `load`; none by default. What is loaded already stays.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._loaded: dict[str, LoadedAdapter] = {}
        self._one_at_a_time = threading.Lock()
        self.default: str | None = None
        self.limits = AdapterLimits()

    def load(self, name: str, folder: str | Path) -> LoadedAdapter:
        """Read an adapter and let requests name it; requests that run are not disturbed.

        Raises:
            ConfigError: the name is none or taken, there is no room within the limits, or this runtime takes no
                adapters beside its weights.
            CheckpointError: the folder is no adapter for this model.
        """
        check_name(name)
        with self._one_at_a_time:
            if name in self._loaded:
                raise ConfigError(f"an adapter {show(name)} is loaded already", hint="Unload it first.")
            if len(self._loaded) >= self.limits.count:
                message = f"{len(self._loaded)} adapters are loaded, which is as many as may be"
                raise ConfigError(message, hint="Unload one first.")
            path = adapter_folder(folder)
            self._runner.check_adapter(path)
            self._check_room(path, (path / WEIGHTS).stat().st_size)  # before any of it is in memory
            from pocketvlm.model.adapters.peft_folder import (
                read_adapter,  # brings PyTorch, whose runner alone takes any
            )

            adapter = read_adapter(path, self._runner.config)
            placed = self._runner.place_adapter(adapter)
            self._check_room(path, placed.bytes)  # which may be a wider type
            loaded = LoadedAdapter(name, adapter.path, adapter.rank, adapter.base, placed)
            self._loaded = {**self._loaded, name: loaded}
        return loaded

    def unload(self, name: str) -> None:
        """Take no more requests for an adapter; those that run end as they began, and then its memory is free.

        Raises:
            ConfigError: there is none of this name.
        """
        with self._one_at_a_time:
            if not isinstance(name, str) or name not in self._loaded:
                raise self._unknown(name)
            self._loaded = {key: value for key, value in self._loaded.items() if key != name}
            if self.default == name:
                self.default = None

    def chosen(self, name: object) -> PlacedAdapter | None:
        """The adapter of a request that says `adapter=name`: None says nothing, "" asks for the model as it is."""
        if name is None:
            name = self.default
        if name is None or name == "":
            return None
        loaded = self._loaded.get(name) if isinstance(name, str) else None
        if loaded is None:
            raise self._unknown(name)
        return loaded.placed

    def _check_room(self, folder: Path, more: int) -> None:
        used, most = sum(loaded.placed.bytes for loaded in self._loaded.values()), self.limits.memory
        if used + more > most:
            message = f"{folder} takes {more} bytes beside the {used} of other adapters, and {most} are the limit"
            raise ConfigError(message, hint="Unload others first, or use an adapter of a lower rank.")

    def _unknown(self, name: object) -> ConfigError:
        if not self._loaded:
            hint = "Give it to load: adapters={'name': 'folder'}."
            return ConfigError(f"there is no adapter {show(name)}: none is loaded", hint=hint)
        near = get_close_matches(str(name), self._loaded, 1)
        hint = f"Did you mean {near[0]!r}?" if near else ""
        return ConfigError(f"there is no adapter {show(name)}, only {', '.join(map(repr, self._loaded))}", hint=hint)

    def __getitem__(self, name: str) -> LoadedAdapter:
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._loaded)

    def __len__(self) -> int:
        return len(self._loaded)


def check_name(name: object) -> None:
    """`ConfigError` for what can be no adapter's name."""
    if not isinstance(name, str) or not name.strip() or len(name) > MAX_NAME or not name.isprintable():
        raise ConfigError(f"the adapter's name {show(name)} is none", hint=f"Use a text of 1 to {MAX_NAME} characters.")
