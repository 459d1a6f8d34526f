"""What `adapter_config.json` says of an adapter: its kind, ranks and scales. Whatever would change numbers and is not
honoured is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pocketvlm.errors import CheckpointError
from pocketvlm.ranges import show
from pocketvlm.text_files import is_there, read_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ADAPTER_FILES = (CONFIG, WEIGHTS)  # all that it consists of, whatever else lies in its folder
_PICKLED = "adapter_model.bin"
MAX_ALPHA = 1e6
MAX_CONFIG = 2**20  # bytes; PEFT's with the names of all layers has some thousands
# They say how it was trained, or for what; what came of that is in the weights.
_SAYS_NOTHING = frozenset(
    (
        *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision"),
        *("task_type", "lora_dropout", "init_lora_weights", "target_modules", "exclude_modules", "loftq_config"),
        *("layers_to_transform", "layers_pattern", "megatron_core", "megatron_config", "qalora_group_size"),
        *("corda_config", "eva_config", "lora_ga_config", "ensure_weight_tying", "runtime_config", "lora_dtype"),
        *("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "bias"),
    )
)
# Ways to begin that change the base's weights as well, so that what was trained does not fit the published ones.
_CHANGES_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")
_PLAIN = re.compile(r"\^?[\w.-]+")


@dataclass(frozen=True)
class AdapterSettings:
    """Rank and scale of each layer.

    Attributes:
        base: name of the model that it was made for; only shown.
    """

    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    use_rslora: bool
    use_dora: bool
    base: str

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read `adapter_config.json` of `directory`.

        Raises:
            CheckpointError, ConfigError: it is missing, no JSON, or asks for what is not honoured.
        """
        file = directory / CONFIG
        if is_there(file) and (size := file.stat().st_size) > MAX_CONFIG:
            raise CheckpointError(f"{file} has {size} bytes, expected at most {MAX_CONFIG}", hint="Is it another file?")
        given = read_json(file)
        if given.get("peft_type") != "LORA":
            raise CheckpointError(f"{file} has the peft_type {show(given.get('peft_type'))}, expected 'LORA'")
        _refuse(file, given)
        flags = {name: given.get(name) or False for name in ("use_rslora", "use_dora")}
        for name, value in flags.items():
            if not isinstance(value, bool):
                raise CheckpointError(f"{name} in {file} is {show(value)}, expected true or false")
        base = given.get("base_model_name_or_path")
        return cls(
            _rank(file, "r", given.get("r")),
            _alpha(file, "lora_alpha", given.get("lora_alpha")),
            {key: _rank(file, "rank_pattern", value) for key, value in _pattern(file, "rank_pattern", given).items()},
            {
                key: _alpha(file, "alpha_pattern", value)
                for key, value in _pattern(file, "alpha_pattern", given).items()
            },
            **flags,
            base=base if isinstance(base, str) else "",
        )

    def rank_of(self, layer: str) -> int:
        """The rank of a layer, by its name in the file."""
        return next((rank for key, rank in self.rank_pattern.items() if _is_meant(key, layer)), self.rank)

    def scale_of(self, layer: str) -> float:
        """What its product is multiplied by."""
        alpha = next((alpha for key, alpha in self.alpha_pattern.items() if _is_meant(key, layer)), self.alpha)
        rank = self.rank_of(layer)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def adapter_folder(given: object) -> Path:
    """The path of an adapter's folder, both of whose files are there.

    Raises:
        CheckpointError: it is no such folder, or its weights are missing or pickled.
    """
    if not isinstance(given, str | Path):
        raise CheckpointError(f"adapter={show(given)} is no path", hint="Give the folder that PEFT wrote.")
    try:
        folder = Path(given).expanduser()
        is_folder, exists = folder.is_dir(), folder.exists()
    except (OSError, RuntimeError, ValueError):  # too long a name, no such user, a zero byte
        folder, is_folder, exists = Path(), False, False
    if not is_folder or str(given) == "":
        what = "is a file" if exists and str(given) else "does not exist"
        hint = f"An adapter is a folder with {CONFIG} and {WEIGHTS}."
        raise CheckpointError(f"the adapter {show(str(given), 200)} {what}", hint=hint)
    if not is_there(folder / CONFIG):
        hint = "Give the folder that PEFT's save_pretrained or `pocketvlm tune` wrote."
        if (folder / "checkpoints").is_dir():  # of a run of ours, which writes the adapter at its end
            hint = "Its run has not come to its end: give the same `pocketvlm tune` command again."
        raise CheckpointError(f"the adapter {folder} has no {CONFIG}", hint=hint)
    if not is_there(folder / WEIGHTS):
        if (folder / _PICKLED).exists():
            hint = "A pickle can run any program. Save it again from PEFT: save_pretrained writes safetensors."
            raise CheckpointError(f"{folder} has pickled weights only ({_PICKLED}), expected {WEIGHTS}", hint=hint)
        raise CheckpointError(f"{folder / WEIGHTS} does not exist", hint="Copy the whole folder that PEFT wrote.")
    return folder


def _refuse(file: Path, given: Mapping[str, Any]) -> None:
    """`CheckpointError` for the first thing that would change numbers and is not honoured."""
    if saved := given.get("modules_to_save"):
        hint = "Train without modules_to_save, or merge it in PEFT: merge_and_unload() and save_pretrained()."
        raise CheckpointError(f"{file} has modules_to_save {show(saved)}: whole layers are no adapter", hint=hint)
    if (bias := given.get("bias")) not in (None, "none"):
        hint = "Train with bias='none', or merge it in PEFT."
        raise CheckpointError(f"{file} has bias {show(bias)}, expected 'none'", hint=hint)
    begin = given.get("init_lora_weights")
    if isinstance(begin, str) and begin.lower().startswith(_CHANGES_BASE):
        hint = "Save it from PEFT with path_initial_model_for_weight_conversion, which makes it an ordinary LoRA."
        raise CheckpointError(f"{file} has init_lora_weights {show(begin)}, which changes the base model", hint=hint)
    for name, value in given.items():
        if name not in _SAYS_NOTHING and value:
            hint = "Merge it in PEFT: merge_and_unload() and save_pretrained()."
            raise CheckpointError(f"{file} has {show(name)}: {show(value)}, which is not supported", hint=hint)


def _rank(file: Path, name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise CheckpointError(f"{name} in {file} is {show(value)}, expected a rank of 1 or more")
    return value


def _alpha(file: Path, name: str, value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not -MAX_ALPHA <= value <= MAX_ALPHA:
        raise CheckpointError(f"{name} in {file} is {show(value)}, expected a number up to {MAX_ALPHA:g}")
    return float(value)


def _pattern(file: Path, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Layers with a rank or scale of their own. PEFT reads the keys as regular expressions; here they are names, since
    an expression of a stranger may take for ever."""
    pattern = given.get(name) or {}
    if not isinstance(pattern, dict):
        raise CheckpointError(f"{name} in {file} is {show(pattern)}, expected an object")
    plain = {key.replace("\\.", ".").removesuffix("$"): value for key, value in pattern.items()}
    if odd := next((key for key in plain if not _PLAIN.fullmatch(key)), None):
        hint = "Write the layers' names in its place."
        raise CheckpointError(f"{name} in {file} has the expression {show(odd)}, expected a name", hint=hint)
    return plain


def _is_meant(key: str, layer: str) -> bool:
    """Whether the end of a layer's name is `key`; the whole of it behind `^`."""
    return layer == key.removeprefix("^") or (not key.startswith("^") and layer.endswith(f".{key}"))
