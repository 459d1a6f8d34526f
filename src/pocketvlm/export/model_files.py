"""What belongs to a checkpoint beside its weights, copied to what is made of it: a model directory of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from pocketvlm.config import ModelConfig
from pocketvlm.model.directory import ModelDirectory
from pocketvlm.model.fingerprint import CONFIDENCE
from pocketvlm.text_files import is_there, read_json

TEXT_FILES = ("*.json", "*.jinja", "*.md", "LICENSE*", "NOTICE*")
# Other weights, or other numbers of theirs, are right another number of times.
NOT_COPIED = ("model.safetensors.index.json", "bundle.json", "adapter_config.json", CONFIDENCE)


def copy_text_files(directory: ModelDirectory, out: Path, config: ModelConfig) -> None:
    """Copy configurations, tokenizer, template, licence and notes of a model into the folder `out`.

    Args:
        config: of the model as it was loaded. An adapter of the head unties it from the embedding, which the copied
            configuration then says too; all else of the configuration stays as it was published.
    """
    for pattern in TEXT_FILES:
        for file in sorted(directory.path.glob(pattern)):
            if file.name not in NOT_COPIED and is_there(file):
                shutil.copyfile(file, out / file.name)
    if config.text.tie_word_embeddings == directory.config.text.tie_word_embeddings:
        return
    given = read_json(out / "config.json")
    for part in (given, given["text_config"]):
        part["tie_word_embeddings"] = config.text.tie_word_embeddings
    (out / "config.json").write_text(json.dumps(given, indent=2) + "\n", encoding="utf-8")
