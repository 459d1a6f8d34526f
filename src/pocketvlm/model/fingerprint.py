"""What tells one model from another of the same name: a digest of every byte that can change an answer.

Weights are gigabytes, so the digest of each large file is kept in the user's cache, by device, inode, size, time of
writing and time of change. A file that was written again has another of these, also where its time of writing was set
back: the time of change cannot be set. Where the system has none (on Windows it is the time of creation), a file of the
same size that was written in place with its old time of writing passes for the old one.

SHA-256 is what processors have instructions for; the chunks of a file are hashed in threads. The published weights
(2.6 GB) take 2.1 s of processor time so, where BLAKE2b takes 3.9, and some milliseconds once they are kept.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from pocketvlm.errors import CheckpointError
from pocketvlm.machine import cache_directory, usable_processors

# Configurations, tokenizer and defaults; chat template; weights; graphs of a bundle, and theirs.
PATTERNS = ("*.json", "*.jinja", "*.safetensors", "*.onnx", "*.data")
CONFIDENCE = "confidence.json"  # how often a model was right changes none of its answers
_CHUNK, _BUFFER = 2**26, 2**20
_KEPT_FROM = 2**20  # bytes: what is smaller is hashed sooner than looked up
# A file may be written twice within the tick of the system's clock, so what is that young is not kept.
_YOUNG_NS = 2_000_000_000
_ENTRY = re.compile(r"([0-9a-f]{64}) ([0-9a-f]{64})\n")


def fingerprint(directory: Path, patterns: Sequence[str] = PATTERNS) -> str:
    """32 hex digits of a checkpoint, a bundle or an adapter, from the names and contents of all its files that
    `patterns` names.

    Raises:
        CheckpointError: a file cannot be read.
    """
    whole = hashlib.sha256()
    files = sorted({file for pattern in patterns for file in directory.glob(pattern) if file.is_file()})
    files = [file for file in files if file.name != CONFIDENCE]
    try:
        with ThreadPoolExecutor(usable_processors(), "pocketvlm-fingerprint") as threads:
            for file in files:
                whole.update(f"{file.name}\0{_digest(file, threads)}\n".encode(errors="surrogateescape"))
    except OSError as error:
        raise CheckpointError(f"{error.filename or directory} cannot be read ({error.strerror})") from None
    return whole.hexdigest()[:32]


def _digest(file: Path, threads: ThreadPoolExecutor) -> str:
    """Of one file, from the cache where it is there."""
    before = file.stat()
    if before.st_size < _KEPT_FROM:
        return _of_chunks(file, before.st_size, threads)
    key = f"{before.st_dev} {before.st_ino} {before.st_size} {before.st_mtime_ns} {before.st_ctime_ns}"
    place = _place(key)
    if place is not None and (kept := _kept(place, key)) is not None:
        return kept
    digest, after = _of_chunks(file, before.st_size, threads), file.stat()
    is_same = (before.st_size, before.st_mtime_ns, before.st_ctime_ns) == (
        after.st_size,
        after.st_mtime_ns,
        after.st_ctime_ns,
    )
    if place is not None and is_same and time.time_ns() - max(after.st_mtime_ns, after.st_ctime_ns) > _YOUNG_NS:
        _keep(place, key, digest)
    return digest


def _of_chunks(file: Path, size: int, threads: ThreadPoolExecutor) -> str:
    digest = hashlib.sha256(str(size).encode())
    for chunk in threads.map(lambda start: _of_chunk(file, start), range(0, size, _CHUNK)):
        digest.update(chunk)
    return digest.hexdigest()


def _of_chunk(file: Path, start: int) -> bytes:
    digest, buffer, left = hashlib.sha256(), memoryview(bytearray(_BUFFER)), _CHUNK
    with file.open("rb", buffering=0) as content:
        content.seek(start)
        while left > 0 and (count := content.readinto(buffer[: min(left, _BUFFER)])):  # which may read less
            digest.update(buffer[:count])
            left -= count
    return digest.digest()


def _place(key: str) -> Path | None:
    """Where the digest of a file is kept; None for a user without a home."""
    try:
        return cache_directory() / "fingerprints" / hashlib.sha256(key.encode()).hexdigest()[:32]
    except OSError:
        return None


def _check(key: str, digest: str) -> str:
    """An entry ends with this: one that is damaged, or of another file, is not believed."""
    return hashlib.sha256(f"{key} {digest}".encode()).hexdigest()


def _kept(place: Path, key: str) -> str | None:
    try:
        entry = _ENTRY.fullmatch(place.read_text(encoding="ascii"))
    except (OSError, UnicodeDecodeError):
        return None
    return entry[1] if entry and entry[2] == _check(key, entry[1]) else None


def _keep(place: Path, key: str, digest: str) -> None:
    """In a file of its own; where nothing can be kept, it is made again next time."""
    partial = place.with_name(f"{place.name}.{os.getpid()}.partial")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(f"{digest} {_check(key, digest)}\n", encoding="ascii")
        partial.replace(place)
    except OSError:
        with suppress(OSError):
            partial.unlink()
