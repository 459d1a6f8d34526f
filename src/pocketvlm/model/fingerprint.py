"""What tells one model from another of the same name."""

from __future__ import annotations

import hashlib
from pathlib import Path

_SAMPLE, _SAMPLES = 2**16, 256  # bytes of a sample, samples of a file


def fingerprint(directory: Path) -> str:
    """A digest of a checkpoint's configuration and weights: the same name may stand for other weights tomorrow.

    Of large files only samples are read: training changes all of a tensor, so gigabytes need not be hashed.
    """
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted([*directory.glob("*.json"), *directory.glob("*.safetensors")]):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as content:
            for start in range(0, size, max(_SAMPLE, size // _SAMPLES)):
                content.seek(start)
                digest.update(content.read(_SAMPLE))
    return digest.hexdigest()
