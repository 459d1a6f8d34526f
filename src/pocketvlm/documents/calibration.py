"""How often fields of a confidence were right: what was measured of a model, from a file in its folder.

`benchmarks/confidence.py --save` writes it, where it tells more than the plain number does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from pocketvlm.errors import CheckpointError
from pocketvlm.model.directory import ModelDirectory
from pocketvlm.model.fingerprint import CONFIDENCE

_OTHER = ("adapter", "temperature", "max_slice_nums", "page_dpi")  # options of which it says nothing


@dataclass(frozen=True)
class Calibration:
    """A curve that never falls, through points.

    Attributes:
        confidence: geometric means of the probabilities of a field's tokens, from 0 to 1.
        right: the share of the fields of each that was right.
    """

    confidence: tuple[float, ...]
    right: tuple[float, ...]

    @classmethod
    def of(cls, directory: ModelDirectory | None, options: Mapping[str, Any] | None = None) -> Calibration | None:
        """That of a model; None where nobody measured it: also with an adapter, at another rate of compression than the
        model's own, with other slices or sizes of pages, or with a temperature.

        Args:
            options: of requests.

        Raises:
            CheckpointError: the file is no such curve.
        """
        options = options or {}
        if directory is None or directory.adapter is not None or any(options.get(name) for name in _OTHER):
            return None
        own_mode = directory.config.downsample_mode
        if (options.get("downsample_mode") or own_mode) != own_mode:
            return None
        path = directory.path / CONFIDENCE
        if not path.is_file():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            made = cls(_shares(found["confidence"]), _shares(found["right"]))
        except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise _unusable(path, error) from None
        if not made.confidence or len(made.confidence) != len(made.right):
            raise _unusable(path, f"{len(made.confidence)} points have {len(made.right)} shares")
        return made

    def __call__(self, confidence: float) -> float:
        return round(float(np.interp(confidence, self.confidence, self.right)), 4)


def _shares(values: Any) -> tuple[float, ...]:
    if not isinstance(values, list):
        raise TypeError("its numbers are no list")
    shares = tuple(float(value) for value in values)
    if any(not 0 <= share <= 1 for share in shares) or any(a > b for a, b in pairwise(shares)):
        raise ValueError("its numbers are not from 0 to 1, none less than the one before")
    return shares


def _unusable(path: object, error: object) -> CheckpointError:
    hint = f"Make it with benchmarks/confidence.py --save, or remove it. ({error})"
    return CheckpointError(f"{path} is no calibration of confidence", hint=hint)
