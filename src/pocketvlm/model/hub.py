"""From the name of a model to its directory on this disk: the embedded model, a directory, or a hub id."""

from __future__ import annotations

import errno
import re
from importlib.resources import files
from pathlib import Path

from pocketvlm.errors import CheckpointError
from pocketvlm.model import diagnosis
from pocketvlm.model.directory import ModelDirectory
from pocketvlm.ranges import show

EMBEDDED = ("nano",)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILES = ("*.json", "*.jinja", "*.safetensors")


def resolve(model: str | Path | ModelDirectory) -> ModelDirectory:
    """The directory of `model`, its configurations read; one that was read before is returned as it is.

    A directory that exists wins over a hub id of the same spelling. Hub models are downloaded once into the cache of
    huggingface_hub and found there without a connection afterwards; HF_HUB_OFFLINE=1 never connects.

    Raises:
        CheckpointError: no such directory, or the hub has no such model or cannot be reached.
        ConfigError: a configuration file is missing or does not fit.
    """
    return model if isinstance(model, ModelDirectory) else ModelDirectory.read(_find(model), str(model))


def _find(model: str | Path) -> Path:
    if not isinstance(model, str | Path):
        raise CheckpointError(f"model={show(model)} is neither a name nor a path", hint="Use 'nano', for instance.")
    if model == "":
        raise CheckpointError("the name of the model is empty", hint="Use 'nano', for instance.")
    try:
        path = Path(model).expanduser()
        is_directory, exists = path.is_dir(), path.exists()
    except (OSError, RuntimeError, ValueError):  # too long a name, no such user, a zero byte
        path, is_directory, exists = Path(), False, False
    if str(model) in EMBEDDED and not is_directory:
        return Path(str(files("pocketvlm") / "assets" / str(model)))
    if is_directory:
        return path
    if exists:
        raise diagnosis.of_file(path)
    if not _HUB_ID.fullmatch(str(model)):
        raise CheckpointError(
            f"there is no model {str(model)!r:.80}",
            hint=f"Use {', '.join(EMBEDDED)}, a checkpoint directory, or a hub id such as openbmb/MiniCPM-V-4.6.",
        )
    return _download(str(model))


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(_FILES)))
    except Exception as error:  # its own, and those of whatever it fetches with, which share no base
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CheckpointError(f"{hub_id} could not be fetched: {error.strerror}", hint="Make room.") from None
        raise CheckpointError(
            f"{hub_id} is not in the local cache and could not be fetched ({type(error).__name__})",
            hint="Check the name and the connection, or point at a directory.",
        ) from None
