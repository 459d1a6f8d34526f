"""A model's directory, read once: what it is, what its configurations say, and what tells it from others.

`hub.resolve` makes it of whatever names a model; everything that loads, exports or describes the model takes it from
there. Weights stay on the disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from pocketvlm.bundle import is_bundle
from pocketvlm.config import ImageConfig, ModelConfig
from pocketvlm.config_files import ConfigFiles
from pocketvlm.errors import CheckpointError
from pocketvlm.model import diagnosis
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
    """

    name: str
    path: Path
    kind: Kind
    configs: ConfigFiles

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

    @cached_property
    def fingerprint(self) -> str:
        """What tells this model from another of the same name; computed when it is first asked for."""
        return fingerprint(self.path)

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return self.name
