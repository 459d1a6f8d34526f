"""A settings file of another program → a run here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pocketvlm.config import ModelConfig
from pocketvlm.errors import ConfigError, MissingExtraError
from pocketvlm.text_files import is_there, read_json, read_text
from pocketvlm.training.interchange import factory, swift
from pocketvlm.training.interchange.job import Job
from pocketvlm.training.interchange.keys import Keys
from pocketvlm.training.interchange.programs import Program

# Keys that only one of them has.
_OWN: dict[Program, tuple[str, ...]] = {
    "swift": ("model", "tuner_type", "train_type", "rlhf_type", "target_modules", "max_length", "ENV", "val_dataset"),
    "llamafactory": ("model_name_or_path", "finetuning_type", "stage", "cutoff_len", "dataset_dir", "lora_target"),
}
_MODEL = {"swift": "model", "llamafactory": "model_name_or_path"}


def read_settings(path: Path) -> dict[str, Any]:
    """The content of a file of YAML or JSON.

    Raises:
        ConfigError: it cannot be read, or holds no keys and values.
        MissingExtraError: pyyaml is not installed.
    """
    if not is_there(path):
        raise ConfigError(f"{path} does not exist", hint="Check the path.")
    if path.suffix == ".json":
        return read_json(path)
    try:
        import yaml
    except ImportError:
        raise MissingExtraError("pyyaml", "tune") from None
    try:
        values = yaml.safe_load(read_text(path, "YAML"))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path} is no readable YAML{where}", hint="Write `key: value` in each line.") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path} holds no keys and values", hint="Write `key: value` in each line.")
    return values


def program_of(values: Mapping[str, Any], name: str) -> Program:
    """Whose settings these are.

    Raises:
        ConfigError: nobody's, or both.
    """
    found = [program for program, keys in _OWN.items() if any(key in values for key in keys)]
    if len(found) == 1:
        return found[0]
    what = "has keys of ms-swift and of LLaMA-Factory" if found else "is no settings file of ms-swift or LLaMA-Factory"
    raise ConfigError(f"{name} {what}", hint="Name the model by `model` (ms-swift) or `model_name_or_path`.")


def model_of(values: Mapping[str, Any], name: str) -> str | None:
    """The model that a file names, None where it names none."""
    value = values.get(_MODEL[program_of(values, name)])
    return None if value in (None, "") else str(value)


def read_job(values: Mapping[str, Any], name: str, config: ModelConfig) -> Job:
    """What a file says.

    Args:
        values: its content.
        name: of the file, for messages.
        config: of the model that is to be tuned.

    Raises:
        ConfigError: a key would change what is learnt and cannot be honoured, or is unknown.
    """
    if program_of(values, name) == "swift":
        return swift.read(values, name, config)
    return factory.read(Keys(values, name), config)
