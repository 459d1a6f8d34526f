"""A checkpoint in the published layout, with an adapter in its weights: what transformers and its relatives load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import torch

from pocketvlm.export.model_files import copy_text_files
from pocketvlm.export.new_directory import new_directory, unchanged
from pocketvlm.model.checkpoint import load_model, save_model, stored_dtype
from pocketvlm.model.directory import ModelDirectory
from pocketvlm.model.hub import resolve

WeightType = Literal["f32", "f16", "bf16"]
TYPES: tuple[WeightType, ...] = get_args(WeightType)
_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
Progress = Callable[[int, int], None]


def write_huggingface(
    checkpoint: Path | ModelDirectory, out: Path, dtype: WeightType | None = None, progress: Progress | None = None
) -> dict[str, int]:
    """Write `config.json`, `model.safetensors` and all that belongs to them into the new directory `out`, complete or
    not at all.

    Args:
        checkpoint: the model; its adapter, if it has one, is merged.
        dtype: of the weights; None is what the checkpoint has, bf16 or f32.
        progress: called with (done, in all), in bytes read.

    Returns:
        sizes of the files.

    Raises:
        ConfigError: `out` is there already or cannot be made.
        CheckpointError: the checkpoint or the adapter cannot be read, do not fit, or change meanwhile.
        OutputError: the files cannot be written to their end.
    """
    directory = resolve(checkpoint)
    stored = stored_dtype(directory.path)
    kind = stored if dtype is None else _DTYPES[dtype]
    with new_directory(out) as partial, unchanged(directory):
        # Updates are added in fp32 and rounded once, when they are written.
        model = load_model(directory, dtype=stored, merged_dtype=torch.float32, progress=progress)
        save_model(model, partial, dtype=kind)
        copy_text_files(directory, partial, model.config)
        if directory.adapter is not None:
            _say_in_card(partial / "README.md", directory.adapter)
        return {file.name: file.stat().st_size for file in sorted(partial.iterdir())}


def _say_in_card(card: Path, adapter: Path) -> None:
    """Say in the card, which is that of the model before, what its weights hold now."""
    text = card.read_text(encoding="utf-8", errors="replace") if card.exists() else ""
    front, body = "", text
    if text.startswith("---\n") and (end := text.find("\n---\n", 3)) > 0:
        front, body = text[: end + 5], text[end + 5 :]
    said = (
        f"> These weights hold the adapter `{adapter.name}` too. What follows was written of the model before it.\n\n"
    )
    card.write_text(front + said + body, encoding="utf-8")
