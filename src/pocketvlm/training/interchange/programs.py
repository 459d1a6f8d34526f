"""The other programs, and what their settings files are called here."""

from __future__ import annotations

from typing import Literal

Program = Literal["swift", "llamafactory"]
PROGRAMS: tuple[Program, ...] = ("swift", "llamafactory")
NAMES: dict[Program, str] = {"swift": "ms-swift", "llamafactory": "LLaMA-Factory"}
EMITTED = ("train.jsonl", "validation.jsonl", "dataset_info.json")  # the data, in the folder of such a file
FILES: dict[Program, str] = {"swift": "swift.yaml", "llamafactory": "llamafactory.yaml"}
