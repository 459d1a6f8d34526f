"""What people take for a checkpoint and is none: what it is, and what to do.

Only looked at where a file that a checkpoint needs is not there, so that nothing which loads is refused by a guess.
"""

from __future__ import annotations

import json
from pathlib import Path

from pocketvlm.bundle import is_bundle
from pocketvlm.errors import CheckpointError
from pocketvlm.text_files import LFS_POINTER, is_there

ADAPTER = "adapter_config.json"
_SAFETENSORS = "Convert them with transformers: load the model, then save_pretrained, which writes safetensors."
_GGUF = "GGUF is for llama.cpp: use the checkpoint that it was made from (config.json, *.safetensors)."
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")


def of_file(path: Path) -> CheckpointError:
    """The error of a file that was given as a model."""
    head = _head(path)
    if head.startswith(LFS_POINTER):
        return CheckpointError(f"{path} is a Git LFS pointer, not the file itself", hint="Run `git lfs pull` there.")
    if head.startswith(b"GGUF") or path.suffix == ".gguf":
        return CheckpointError(f"{path} is a GGUF file, expected a checkpoint directory", hint=_GGUF)
    if path.suffix in _PICKLED:
        return CheckpointError(f"{path} holds pickled weights, expected a checkpoint directory", hint=_SAFETENSORS)
    if path.suffix == ".onnx":
        hint = f"A bundle is the whole directory that `pocketvlm export onnx` writes; is it {path.parent}?"
        return CheckpointError(f"{path} is an ONNX graph, expected a model directory", hint=hint)
    if path.suffix == ".safetensors" or path.name.endswith(".json"):
        hint = f"Give the directory: {path.parent}"
        return CheckpointError(f"{path} is one file of a checkpoint, expected its directory", hint=hint)
    return CheckpointError(f"{path} is a file, expected a checkpoint directory")


def without_config(directory: Path) -> CheckpointError | None:
    """The error of a directory without `config.json`; None where nothing better can be said than that."""
    if is_there(directory / "config.json"):
        return None
    if (directory / ADAPTER).is_file():
        return _adapter(directory)
    if found := _first(directory, "*.gguf"):
        return CheckpointError(f"{directory} holds GGUF files ({found}), not a checkpoint", hint=_GGUF)
    inside = sorted(file.parent for file in directory.glob("*/config.json"))
    if inside:
        names = ", ".join(path.name for path in inside[:4])
        return CheckpointError(f"{directory} has no config.json, but {names} in it has", hint="Give that directory.")
    return None


def without_weights(directory: Path) -> CheckpointError:
    """The error of a directory that has neither `model.safetensors` nor an index of its shards."""
    if is_bundle(directory):
        hint = "Use the checkpoint that it was made from."
        return CheckpointError(f"{directory} is an ONNX bundle, which holds no weights of a checkpoint", hint=hint)
    if (directory / ADAPTER).is_file():
        return _adapter(directory)
    for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt"):
        if found := _first(directory, pattern):
            return CheckpointError(f"{directory} has pickled weights only ({found})", hint=_SAFETENSORS)
    if found := _first(directory, "*.gguf"):
        return CheckpointError(f"{directory} holds GGUF files ({found}), not a checkpoint", hint=_GGUF)
    if found := _first(directory, "*.safetensors"):
        return CheckpointError(
            f"{directory} has {found}, but neither model.safetensors nor model.safetensors.index.json",
            hint="Copy the index that came with the weights; a single file must be called model.safetensors.",
        )
    return CheckpointError(
        f"{directory / 'model.safetensors'} does not exist", hint="A checkpoint needs its safetensors weights."
    )


def of_unreadable(file: Path) -> CheckpointError:
    """The error of weights that cannot be read, or are no safetensors file."""
    if _head(file).startswith(LFS_POINTER):
        return CheckpointError(f"{file} is a Git LFS pointer, not the weights", hint="Run `git lfs pull` there.")
    try:
        with file.open("rb") as content:
            content.read(1)
    except OSError as error:
        return CheckpointError(f"{file} cannot be read ({error.strerror})", hint="Was it moved, or is it another's?")
    return CheckpointError(f"{file} is truncated or no safetensors file", hint="Download or copy it again.")


def _adapter(directory: Path) -> CheckpointError:
    base = ""
    try:
        name = json.loads((directory / ADAPTER).read_bytes())["base_model_name_or_path"]
        base = f" for {name:.80}" if isinstance(name, str) else ""
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass  # what it is for is an aside
    return CheckpointError(
        f"{directory} is an adapter{base}, not a whole model",
        hint="Give its base model, and this folder as its adapter: --adapter, or adapter= of pocketvlm.load.",
    )


def _first(directory: Path, pattern: str) -> str:
    return min((file.name for file in directory.glob(pattern) if file.is_file()), default="")


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(64)
    except OSError:
        return b""
