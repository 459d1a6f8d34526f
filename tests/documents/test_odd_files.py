"""Odd files of real programs: each page as other programs show it, or one clear line.

The files and what is expected of them are in `odd/`; its README says what made both.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pocketvlm.documents.inputs import find_files, open_documents
from pocketvlm.errors import MediaError
from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.processing.media.load_image import is_video, load_pages, probe_pages
from pocketvlm.processing.media.pdf import Resolution
from pocketvlm.processing.media.video_reader import open_video

ODD = Path(__file__).parent / "odd"
EXPECTED: dict[str, Any] = json.loads((ODD / "expected.json").read_text())
MOST = 6.0  # levels by which the mean of a field may differ
# Where more than rounding lies between two programs.
LOOSE: dict[str, float] = {
    "four-inks.pdf": 25.0,  # ink has no colour of its own
    "overlaid.pdf": 25.0,  # the same
    "lab.tif": 90.0,  # nor do numbers of CIELab whose white the file does not state
    "scanned.pdf": 12.0,  # edges of a picture that is drawn smaller
    "scan-turned.pdf": 12.0,
    "assembled.pdf": 12.0,
    "of-tiff.pdf": 12.0,
    "ten-bits.mp4": 12.0,  # which matrix its colours are of the file does not state
}
NEITHER = r" is not a JPEG, PNG, .* Convert it to one\.$"
NO_VIDEO = r" is not a video that can be read, or it is cut off\. Convert it to MP4 or WebM\.$"
LOCKED = r" is protected by a password\. Save it without, "
REFUSED = {
    "icons.ico": r" is an ICO icon, which cannot be read here\.",
    "layers.psd": r" is a Photoshop file, which cannot be read here\.",
    **dict.fromkeys(
        ("picture.dds", "picture.miff", "picture.pcx", "picture.ppm", "picture.tga", "picture.xpm"), NEITHER
    ),
    "floats.tif": r" is damaged, or a TIFF of a kind that is not known here\.",
    "webp-inside.tif": r" is damaged, or a TIFF of a kind that is not known here\.",
    "job.ps": r" is a PostScript file, which cannot be read here\.",
    "drawing.eps": r" is a PostScript file, which cannot be read here\.",
    "letter.docx": r" is a ZIP archive or an office document, which cannot be read here\.",
    "letter.doc": r" is an office document, which cannot be read here\.",
    "letter.rtf": NEITHER,
    "letter.fodt": NEITHER,
    "letter.html": r" is a web page \(HTML\), which cannot be read here\.",
    "locked-aes128.pdf": LOCKED,
    "locked-aes256.pdf": LOCKED,
    "locked-letter.pdf": LOCKED,
    "cut-off-linear.pdf": r" is damaged or cut off\.",
}
NO_CLIPS = {
    "bare.h264": NO_VIDEO,
    "cut-off.mp4": NO_VIDEO,
    "raw.y4m": NO_VIDEO,
    "song.mp3": NO_VIDEO,
    "voice.m4a": r" has no video in it\. Pass a file with moving pictures\.$",
}
PAGES = sorted(name for name, found in EXPECTED.items() if isinstance(found, list) and name not in REFUSED)
CLIPS = sorted(name for name, found in EXPECTED.items() if not isinstance(found, list))
SOURCES = {"README.md", "expected.json", "make.sh", "record.py"}


def fields(pixels: np.ndarray) -> np.ndarray:
    """The mean colours of 4 × 3 fields, as `odd/record.py` has them."""
    return np.asarray(Image.fromarray(pixels).resize((4, 3), Image.Resampling.BOX)).reshape(-1).astype(float)


def wanted(means: str) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(means), np.uint8).astype(float)


def off(pixels: np.ndarray, means: str) -> float:
    return float(np.abs(fields(pixels) - wanted(means)).max())


@pytest.mark.parametrize("name", PAGES)
def test_each_page_is_as_another_program_shows_it(name: str) -> None:
    found = list(load_pages(ODD / name, resolution=Resolution(dpi=72)))
    sizes = [[page.shape[1], page.shape[0]] for page in found]
    assert np.abs(np.subtract(sizes, [page["size"] for page in EXPECTED[name]])).max() <= 1
    for page, expected in zip(found, EXPECTED[name], strict=True):
        assert off(page, expected["means"]) <= LOOSE.get(name, MOST)
    assert [[size.width, size.height] for size in probe_pages(ODD / name, resolution=Resolution(dpi=72))] == sizes
    assert not is_video(ODD / name)


@pytest.mark.parametrize("name", CLIPS)
def test_each_frame_of_a_clip_is_as_another_program_shows_it(name: str) -> None:
    with open_video(ODD / name, None, MediaLimits(), files=True) as reader:
        assert reader.timeline.total == EXPECTED[name]["frames"]
        for time, means in EXPECTED[name]["at"].items():
            ((_, pixels),) = reader.read([reader.timeline.frame_at(float(time))])
            assert list(pixels.shape[1::-1]) == EXPECTED[name]["size"]
            assert off(pixels, means) <= LOOSE.get(name, MOST), time


def open_as_clip(path: Path) -> None:
    with open_video(path, None, MediaLimits(), files=True):
        pass


@pytest.mark.parametrize("name", [*REFUSED, *NO_CLIPS])
def test_what_cannot_be_read_is_one_clear_line(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MediaError, match={**REFUSED, **NO_CLIPS}[name]) as error:
        list(load_pages(ODD / name)) if name in REFUSED else open_as_clip(ODD / name)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(ODD / name))
    assert capfd.readouterr().err == ""


def test_a_folder_of_all_of_them_has_pages_and_reasons() -> None:
    documents = {document.path.name: document for document in open_documents(find_files([str(ODD)]))}
    assert len(documents) - len(SOURCES) >= 60
    for name in PAGES:
        assert documents[name].pages == tuple(range(1, len(EXPECTED[name]) + 1))
    assert {*PAGES, *CLIPS, *REFUSED, *NO_CLIPS, *SOURCES} == documents.keys()
    assert sum(path.stat().st_size for path in ODD.iterdir()) < 600_000
