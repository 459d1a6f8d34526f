"""A model's directory, read once: what it is, what its configurations say, and what tells it from others.

`hub.resolve` makes it of whatever names a model; everything that loads, exports or describes the model takes it from
there. Weights stay on the disk.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from pocketvlm.bundle import is_bundle
from pocketvlm.config import ImageConfig, ModelConfig
from pocketvlm.config_files import ConfigFiles
from pocketvlm.errors import CheckpointError
from pocketvlm.model import diagnosis
from pocketvlm.model.adapters.settings import ADAPTER_FILES, AdapterSettings, adapter_folder
from pocketvlm.model.fingerprint import fingerprint

Kind = Literal["checkpoint", "bundle"]


@dataclass(frozen=True)
class ModelDirectory:
    """A directory that says that it is a model.

    Attributes:
        name: what the user called it.
        path: where it is.
        kind: "checkpoint", or "bundle": graphs of ONNX, which may be damaged.
        configs: what its configuration files say.
        adapter: a folder of PEFT that becomes part of the weights wherever they are loaded; None for the plain model.
    """

    name: str
    path: Path
    kind: Kind
    configs: ConfigFiles
    adapter: Path | None = None

    @classmethod
    def read(cls, path: Path, name: str = "") -> ModelDirectory:
        """Read the configurations of the directory `path`.

        Raises:
            CheckpointError: it is no model's directory.
            ConfigError: a configuration file is missing or does not fit.
        """
        if not path.is_dir():
            raise CheckpointError(f"{path} is not a directory", hint="Point at a MiniCPM-V 4.6 checkpoint.")
        if (error := diagnosis.without_config(path)) is not None:
            raise error
        kind: Kind = "bundle" if is_bundle(path) else "checkpoint"
        return cls(name or str(path), path, kind, ConfigFiles.read(path))

    @property
    def config(self) -> ModelConfig:
        """The model's shapes."""
        return self.configs.model

    @property
    def image_config(self) -> ImageConfig:
        """How pictures are cut."""
        return self.configs.image

    def with_adapter(self, folder: str | Path) -> ModelDirectory:
        """The same model with an adapter in it; the adapter's settings are checked now, its weights when they load.

        Raises:
            CheckpointError: the folder is no adapter, or this is a bundle, whose weights stand in graphs.
            ConfigError: the adapter's settings cannot be read.
        """
        if self.kind == "bundle":
            hint = "Give the checkpoint that the bundle was made from; a bundle with the adapter is made of it."
            raise CheckpointError(f"{self.path} is a bundle, which takes no adapter", hint=hint)
        if self.adapter is not None:
            raise CheckpointError(f"{self} has the adapter {self.adapter} already", hint="Merge one into a checkpoint.")
        path = adapter_folder(folder)
        AdapterSettings.read(path)
        return replace(self, adapter=path)

    @cached_property
    def fingerprint(self) -> str:
        """What tells this model from another of the same name; computed when it is first asked for."""
        return self.current_fingerprint()

    def current_fingerprint(self) -> str:
        """The fingerprint of what is on the disk now."""
        own = fingerprint(self.path)
        if self.adapter is None:
            return own
        return hashlib.sha256(f"{own} {fingerprint(self.adapter, ADAPTER_FILES)}".encode()).hexdigest()[: len(own)]

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return self.name
