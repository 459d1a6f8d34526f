"""A bundle: a checkpoint made ready for ONNX Runtime, as a directory of graphs and their weights.

`bundle.json` says what is in it; every other file is listed there with its size, so that a bundle that was cut short is
found out before it is loaded. `export.onnx.bundle` writes bundles, `engine.runners.onnx_runner` runs them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from pocketvlm.errors import CheckpointError, ConfigError
from pocketvlm.ranges import show
from pocketvlm.text_files import is_there, read_json

FORMAT = 9  # changes whenever bundles written before must be made anew
MANIFEST = "bundle.json"
GRAPHS = ("vision", "embedding", "decoder")
OLDEST_RUNTIME = (1, 32)  # LinearAttention, GroupQueryAttention and MatMulNBits as the graphs use them

Scheme = Literal["fp32", "int8", "int4"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
# "standard": those of ONNX and ONNX Runtime. "compiled": some of ours (`kernels.onnx_ops`), on this machine.
Operators = Literal["standard", "compiled"]
OPERATORS: tuple[Operators, ...] = get_args(Operators)


@dataclass(frozen=True)
class PartOperators:
    """Which operators the graphs of a bundle are made of.

    Attributes:
        vision: tower and merger.
        decoder: the decoder's layers and the head.
    """

    vision: Operators = "standard"
    decoder: Operators = "standard"

    def __post_init__(self) -> None:
        for part in fields(self):
            if getattr(self, part.name) not in OPERATORS:
                raise ConfigError(
                    f"{part.name}={getattr(self, part.name)!r} are no operators", hint=f"Use {' or '.join(OPERATORS)}."
                )

    @classmethod
    def of(cls, operators: Operators | PartOperators) -> PartOperators:
        """One kind for both parts, or what is given for each."""
        return operators if isinstance(operators, PartOperators) else cls(operators, operators)

    @property
    def has_compiled(self) -> bool:
        return "compiled" in (self.vision, self.decoder)

    def __str__(self) -> str:
        if self.vision == self.decoder:
            return f"{self.vision} operators"
        return f"{self.vision} operators for vision and {self.decoder} operators for the decoder"


@dataclass(frozen=True)
class Quantization:
    """How the products of each part are computed.

    Attributes:
        vision: of tower and merger.
        decoder: of the decoder's layers.
        head: of the scores over the vocabulary.
    """

    vision: Scheme = "fp32"
    decoder: Scheme = "fp32"
    head: Scheme = "fp32"

    def __post_init__(self) -> None:
        for part in fields(self):
            if getattr(self, part.name) not in SCHEMES:
                raise ConfigError(
                    f"{part.name}={getattr(self, part.name)!r} is no quantization", hint=f"Use {', '.join(SCHEMES)}."
                )

    @property
    def suits_compiled(self) -> bool:
        """Whether there are compiled operators for anything in it."""
        return any(getattr(self, part.name) != "fp32" for part in fields(self))

    def __str__(self) -> str:
        return f"vision {self.vision}, decoder {self.decoder}, head {self.head}"


# Named choices. A head of 4 bits is read in half the time, and the scores that can win are made again from the
# embeddings (`engine.runners.exact_scores`). The tower stays at 8 bits in "int4": it is read once a picture, not once a
# token, and at 4 bits its features lose more than its memory is worth.
PRESETS: dict[str, Quantization] = {
    "none": Quantization(),
    "int8": Quantization("int8", "int8", "int4"),
    "int4": Quantization("int8", "int4", "int4"),
}


def parse_quantization(text: str) -> Quantization:
    """A name of `PRESETS`, or parts such as "vision=int8,decoder=int4" (the others stay fp32)."""
    if isinstance(text, str) and text in PRESETS:
        return PRESETS[text]
    pairs = [part.partition("=")[::2] for part in text.split(",")] if isinstance(text, str) else []
    parts, known = dict(pairs), {part.name for part in fields(Quantization)}
    if len(parts) < len(pairs):
        raise ConfigError(f"quantization={show(text)} names a part twice", hint="Give each part once.")
    if not parts or not known.issuperset(parts):
        raise ConfigError(
            f"quantization={show(text)} is unknown",
            hint=f"Use auto, {', '.join(PRESETS)}, or parts such as vision=int8,decoder=int4,head=int8.",
        )
    return Quantization(**parts)  # type: ignore[arg-type]  # checked there


@dataclass(frozen=True)
class Manifest:
    """What `bundle.json` says.

    Attributes:
        source: fingerprint of the checkpoint it was made from.
        files: name → bytes of every other file.
        operators: that the graphs are made of.
    """

    quantization: Quantization
    source: str
    files: dict[str, int]
    operators: PartOperators = PartOperators()

    def write(self, directory: Path) -> None:
        data = {"format": FORMAT, **asdict(self)}
        (directory / MANIFEST).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """The manifest of a whole bundle; `CheckpointError` where it is not one."""
        data: dict[str, Any] = read_json(directory / MANIFEST)
        if data.get("format") != FORMAT:
            raise CheckpointError(
                f"the bundle {directory} has format {data.get('format')!r}, this version reads {FORMAT}",
                hint="Export it again.",
            )
        try:
            quantization, made_of = Quantization(**data["quantization"]), data["operators"]
            operators = PartOperators(made_of["vision"], made_of["decoder"])
            manifest = cls(quantization, data["source"], dict(data["files"]), operators)
        except (KeyError, TypeError, ValueError):
            raise CheckpointError(f"{directory / MANIFEST} is damaged", hint="Export the bundle again.") from None
        for name, size in manifest.files.items():
            path = directory / name
            found = path.stat().st_size if path.is_file() else None
            if found != size:
                state = "missing" if found is None else f"{found} bytes long instead of {size}"
                raise CheckpointError(f"{path} is {state}", hint="Export or copy the bundle again.")
        return manifest


def is_bundle(directory: Path) -> bool:
    """Whether `directory` says that it is a bundle (it may be a damaged one)."""
    return is_there(directory / MANIFEST)
