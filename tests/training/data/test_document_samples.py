"""Samples whose pictures are documents, or pages of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import pytest
from helpers.documents import BLUE, GREEN, RED, coloured
from helpers.training import learn
from helpers.training_data import chat, write_lines

from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.remote_files import forget_contents
from pocketvlm.training.data.dataset import open_datasets
from pocketvlm.training.data.emit import emit
from pocketvlm.training.data.sample import Sample, SampleError


def read(folder: Path, *images: str) -> Sample:
    (folder / "a.pdf").write_bytes(coloured(RED, GREEN, BLUE))
    marks = "<image>\n" * len(images)
    (sample,) = open_datasets([write_lines(folder / "in.jsonl", chat(f"{marks}q", images=list(images)))])
    return sample


def urls(sample: Sample) -> list[Any]:
    return [part["image_url"]["url"] for part in sample.messages[0]["content"] if part["type"] == "image_url"]


def test_pages_are_named_as_elsewhere(tmp_path: Path) -> None:
    sample = read(tmp_path, "a.pdf", "a.pdf#2")
    assert urls(sample) == [f"{tmp_path}/a.pdf", f"{tmp_path}/a.pdf#2"]
    assert learn(sample).views
    with pytest.raises(SampleError, match="there is no page 4"):
        learn(read(tmp_path, "a.pdf#4"))
    with pytest.raises(SampleError, match="The request has more than 5 pictures and pages"):
        learn(read(tmp_path, "a.pdf", "a.pdf"), MediaLimits(max_images=5))
    with pytest.raises(SampleError, match=r"b\.pdf#2 does not exist"):
        read(tmp_path, "b.pdf#2")


def test_what_is_elsewhere_may_be_learnt_from(tmp_path: Path) -> None:
    """As a review of documents on a storage names its pages."""
    store = fsspec.filesystem("memory")
    try:
        with store.open("samples/a.pdf", "wb") as file:
            file.write(coloured(RED, GREEN))
        sample = read(tmp_path, "memory://samples/a.pdf#2")
        assert urls(sample) == ["memory://samples/a.pdf#2"]
        with pytest.raises(SampleError, match="has no place for media on a storage"):
            emit([sample], tmp_path / "out", "swift")
        assert learn(sample).views
        with pytest.raises(SampleError, match="there is no page 4"):
            learn(read(tmp_path, "memory://samples/a.pdf#4"))
        with pytest.raises(SampleError, match="there is no file"):
            learn(read(tmp_path, "memory://samples/b.pdf"))
    finally:
        store.store.clear()
        forget_contents()


@pytest.mark.parametrize("name", ["a.pdf", "a.pdf#1"])
def test_other_programs_take_no_documents(tmp_path: Path, name: str) -> None:
    with pytest.raises(SampleError, match="has no place for pages of a document"):
        emit([read(tmp_path, name)], tmp_path / "out", "swift")
