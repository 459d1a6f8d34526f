"""PDF documents: each page a picture as a printer would draw it, and one clear line about those that cannot be."""

from __future__ import annotations

import base64
import io
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.documents import BLUE, GREEN, RED, coloured, pdf, protected, rectangle, stream, words, write_pdf
from helpers.pictures import content_of, encoded
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pocketvlm.config import ImageConfig
from pocketvlm.errors import MediaError
from pocketvlm.processing.media.kinds import is_pdf
from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.processing.media.load_image import is_video, load_image, load_pages, probe_pages, probe_size
from pocketvlm.processing.media.pdf import PdfReader, Resolution, page_text
from pocketvlm.processing.media.sources import NamedBytes
from pocketvlm.processing.media.video_reader import open_video
from pocketvlm.processing.media_encoding import MediaTask, encode_media
from pocketvlm.processing.media_workers import MediaWorkers
from pocketvlm.processing.picture_options import PictureOptions
from pocketvlm.processing.processor import Processor
from pocketvlm.processing.prompt.messages import MediaPart
from pocketvlm.views import Size

COLOURS = {"red": [255, 0, 0], "green": [0, 255, 0], "blue": [0, 0, 255], "white": [255, 255, 255]}
THREE = coloured(RED, GREEN, BLUE)
AT_72 = Resolution(dpi=72)


def colours(source: Any, **options: Any) -> list[list[int]]:
    """The colour in the middle of each page."""
    return [page[page.shape[0] // 2, page.shape[1] // 2].tolist() for page in load_pages(source, **options)]


def names(source: Any, **options: Any) -> list[str]:
    return [next(name for name, rgb in COLOURS.items() if rgb == one) for one in colours(source, **options)]


# --- pages -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["path", "str", "bytes", "data URL", "rubbish in front", "table of objects elsewhere"])
def test_every_page_is_a_picture(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(THREE)
    source: Any = {
        "path": path,
        "str": str(path),
        "bytes": THREE,
        "data URL": "data:application/pdf;base64," + base64.b64encode(THREE).decode(),
        "rubbish in front": b"\r\n HTTP header \n" + THREE,
        "table of objects elsewhere": THREE.replace(b"startxref\n", b"startxref\n9"),
    }[kind]
    assert names(source) == ["red", "green", "blue"]
    assert probe_pages(source) == [Size(height=page.shape[0], width=page.shape[1]) for page in load_pages(source)]
    assert not is_video(source)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [("#2", ["green"]), ("#3,1", ["blue", "red"]), ("#2-", ["green", "blue"]), ("#page=2", ["green"])],
)
def test_pages_are_chosen_behind_the_name(choice: str, expected: list[str], tmp_path: Path) -> None:
    path = tmp_path / "a b#c.pdf"
    path.write_bytes(THREE)
    assert names(f"{path}{choice}") == names(Path(f"{path}{choice}")) == expected
    assert names(NamedBytes(THREE, "a.pdf", choice[1:])) == expected


def test_one_picture_is_the_page_that_was_chosen(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(THREE)
    assert load_image(f"{path}#2")[0, 0].tolist() == COLOURS["green"]
    assert probe_size(f"{path}#2") == probe_size(coloured(RED))
    for read in (load_image, probe_size):
        with pytest.raises(MediaError, match=r"a\.pdf has 3 pages, one is expected here\. Choose it with #1"):
            read(path)


def test_a_picture_has_one_page(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.new("RGB", (30, 20), (255, 0, 0))))
    assert names(path) == names(f"{path}#1") == ["red"]
    with pytest.raises(MediaError, match=r"a\.png has one page, there is no page 2"):
        load_image(f"{path}#2")
    with pytest.raises(MediaError, match="names no pages"):
        load_image(f"{path}#middle")


def test_a_page_is_turned_as_it_says() -> None:
    content = rectangle(RED, 0, 40, 60, 40)  # the upper left quarter
    corners = {0: (0, 0), 90: (0, -1), 180: (-1, -1), 270: (-1, 0)}
    for degrees, corner in corners.items():
        page = load_image(pdf(content, page=b"/Rotate %d" % degrees), resolution=AT_72)
        assert page.shape == ((80, 120, 3) if degrees in (0, 180) else (120, 80, 3))
        assert page[corner].tolist() == COLOURS["red"]
        assert page[-1 - corner[0], -1 - corner[1]].tolist() == COLOURS["white"]


def test_the_crop_box_is_what_is_seen() -> None:
    body = pdf(rectangle(RED, 0, 0, 120, 80) + rectangle(BLUE, 20, 20, 40, 30), page=b"/CropBox[20 20 60 50]")
    page = load_image(body, resolution=AT_72)
    assert page.shape == (30, 40, 3)
    assert (page == COLOURS["blue"]).all()


APPEARANCE = stream(rectangle(GREEN, 0, 0, 40, 20), b"/Type/XObject/Subtype/Form/BBox[0 0 40 20]")
FIELD = b"<</Type/Annot/Subtype/Widget/FT/Tx/T(total)/V(1)/F 4/Rect[40 30 80 50]/AP<</N 4 0 R>>>>"
STAMP = b"<</Type/Annot/Subtype/Stamp/F 4/Rect[40 30 80 50]/AP<</N 4 0 R>>>>"


@pytest.mark.parametrize(
    ("thing", "catalogue"),
    [
        (FIELD, b"/AcroForm<</Fields[5 0 R]>>"),
        (FIELD, b"/AcroForm<</Fields[5 0 R]/XFA[(a) 4 0 R]>>"),
        (STAMP, b""),
    ],
    ids=["field", "field of a form in XFA", "stamp"],
)
def test_fields_of_forms_and_annotations_are_drawn(
    thing: bytes, catalogue: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    body = pdf(b"", page=b"/Annots[5 0 R]", others=[APPEARANCE, thing], catalogue=catalogue)
    page = load_image(body, resolution=AT_72)
    assert page[40, 60].tolist() == COLOURS["green"]
    assert page[10, 10].tolist() == COLOURS["white"]
    assert not caplog.records


def test_a_page_is_white_paper() -> None:
    page = load_image(pdf(b""), resolution=AT_72)
    assert (page == 255).all()
    assert page.flags.c_contiguous
    assert page.dtype == np.uint8


# --- resolution ------------------------------------------------------------------------------------------------------


def picture_page(pixels: np.ndarray, width: float, height: float, more: bytes = b"") -> bytes:
    """A page of so many points that a picture fills."""
    high, wide = pixels.shape[:2]
    entries = b"/Type/XObject/Subtype/Image/Width %d/Height %d/ColorSpace/DeviceRGB/BitsPerComponent 8" % (wide, high)
    content = b"q %g 0 0 %g 0 0 cm /X Do Q\n" % (width, height) + more
    return pdf(content, box=(0, 0, width, height), others=[stream(pixels.tobytes(), entries)])


def test_a_scan_has_the_pixels_it_was_scanned_with() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (150, 100, 3), dtype=np.uint8)
    for points in (24, 48, 100, 200):
        scan = picture_page(pixels, points, points * 1.5)
        assert np.array_equal(load_image(scan), pixels)
        recognised = picture_page(pixels, points, points * 1.5, words("Total 5", 1, 1, 5, mode=3))
        assert np.array_equal(load_image(recognised), pixels)
    # Points are rounded by whoever made the page.
    assert np.array_equal(load_image(picture_page(pixels, 48, 73)), pixels)
    turned = picture_page(pixels, 48, 72).replace(b"/Parent", b"/Rotate 90/Parent")
    assert np.array_equal(load_image(turned), np.rot90(pixels, -1))
    # One that is stretched keeps the shape of its page.
    assert load_image(picture_page(pixels, 100, 300)).shape == (300, 100, 3)
    # What is written over it is drawn in the resolution of print.
    assert load_image(picture_page(pixels, 100, 150, words("Total 5"))).shape[0] > 300


@pytest.mark.parametrize("side", [1, 40])
def test_a_mask_may_be_finer_than_the_colours_that_it_is_for(side: int) -> None:
    """As compressed scans have them: a small layer of colours, and the print as its mask."""
    mask = np.zeros((300, 200), np.uint8)
    mask[::3] = 255  # lines that are gone in fewer pixels
    shape = b"/Type/XObject/Subtype/Image/Width %d/Height %d/BitsPerComponent 8/ColorSpace/Device"
    layer = stream(bytes(3 * side * side), shape % (side, side) + b"RGB/SMask 5 0 R")
    others = [layer, stream(mask.tobytes(), shape % (200, 300) + b"Gray")]
    page = load_image(pdf(b"q 100 0 0 150 0 0 cm /X Do Q\n", box=(0, 0, 100, 150), others=others))
    assert page.shape[0] >= 300
    rows = page[:, :, 0].mean(1)
    assert rows.max() > 200
    assert rows.min() < 90


def test_a_large_scan_has_no_more_pixels_than_the_slices_hold() -> None:
    pixels = np.zeros((900, 600, 3), np.uint8)
    most = Resolution.of(ImageConfig(scale_resolution=100, max_slice_nums=6))
    page = load_image(picture_page(pixels, 60, 90), resolution=most)
    assert page.shape == (300, 200, 3)


@pytest.mark.parametrize(
    ("box", "size"),
    [
        ((595, 842), (1598, 1129)),  # A4: bounded by nine slices
        ((226, 400), (1111, 627)),  # a receipt: 200 dots an inch
        ((30, 30), (448, 448)),  # a label: one view
    ],
    ids=["page", "receipt", "label"],
)
def test_the_default_resolution_suits_the_slices(box: tuple[int, int], size: tuple[int, int]) -> None:
    page = probe_size(pdf(words("a"), box=(0, 0, *box)), resolution=Resolution.of(ImageConfig()))
    assert (page.height, page.width) == size


def test_slices_and_dots_an_inch_can_be_chosen() -> None:
    a4 = pdf(words("a"), box=(0, 0, 595, 842))
    fine = probe_size(a4, resolution=Resolution.of(ImageConfig(), 36))
    assert (fine.height, fine.width) == (2338, 1652)  # 200 dots an inch are enough
    few = probe_size(a4, resolution=Resolution.of(ImageConfig(), 1))
    assert abs(few.area - 448 * 448) < 1000
    unsliced = probe_size(a4, resolution=Resolution.of(ImageConfig(slice_mode=False)))
    assert unsliced == few
    assert probe_size(a4, resolution=Resolution(dpi=300)) == Size(height=3508, width=2479)


@pytest.mark.parametrize("box", [(0, 0, 10**7, 10**7), (0, 0, 14_400, 1), (0, 0, 1e-3, 1e-3), (0, 0, 1, 10**30)])
def test_absurd_sizes_are_drawn_within_bounds_or_refused(box: tuple[float, ...]) -> None:
    body = pdf(rectangle(RED, 0, 0, 100, 100), box=box)
    for resolution in (Resolution(), Resolution(dpi=1200)):
        try:
            said, size = "", load_image(body, MediaLimits(max_pixels=3_000_000), resolution=resolution).size
        except MediaError as error:
            said, size = str(error), 0
        assert not said or said.startswith("page 1 of The given data is")
        assert size <= 3 * 3_000_000


@pytest.mark.parametrize("box", [b"[0 0 0 0]", b"[5 5 -5 -5]", b"[0 0 (a) 1]", b"null", b"[]", b"[1 2]"])
def test_a_page_without_a_size_is_an_ordinary_one(box: bytes) -> None:
    assert load_image(pdf(b"", box=box), resolution=AT_72).size > 0


def test_more_dots_than_are_accepted_are_refused_with_what_to_do() -> None:
    body = pdf(words("a"), box=(0, 0, 3000, 3000))
    with pytest.raises(MediaError, match=r"page 1 of .* is 3000 x 3000 points, .*\. Lower page_dpi"):
        load_image(body, resolution=Resolution(dpi=1200))


# --- text ------------------------------------------------------------------------------------------------------------


def test_the_text_layer_of_a_page_stands_beside_it() -> None:
    mixed = words("Seen", 10, 60) + words("hidden", 10, 20, mode=3)
    body = pdf(words("Total: 5.60"), mixed, rectangle(RED, 0, 0, 9, 9))
    assert page_text(body, 1).strip() == "Total: 5.60"
    assert page_text(body, 2).split() == ["Seen", "hidden"]
    assert page_text(body, 3) == ""
    for page in (0, 4, -1):
        with pytest.raises(MediaError, match=f"has 3 pages, there is no page {page}"):
            page_text(body, page)
    with pytest.raises(MediaError, match=r"^scan\.pdf is protected by a password"):
        page_text(NamedBytes(protected(body), "scan.pdf"), 1)


# --- what cannot be read ---------------------------------------------------------------------------------------------

BAD = {
    "password": (protected(THREE), r"is protected by a password\. Save it without, .*qpdf --decrypt"),
    "other protection": (
        THREE.replace(b"/Root 1 0 R", b"/Root 1 0 R/Encrypt<</Filter/Other/V 1/R 2>>"),
        "is protected in a way that is not known here|damaged",
    ),
    "no pages": (write_pdf([b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Count 0/Kids[]>>"]), "has no pages"),
    "head only": (b"%PDF-1.7\n", "is damaged or cut off"),
    "cut off": (THREE[:300], "is damaged or cut off"),
    "too many": (coloured(*[RED] * 17), r"has 17 pages, at most 16 .* Choose some with #1-16 behind its name"),
    "a promise": (THREE.replace(b"/Count 3", b"/Count 999999"), "has 999999 pages, at most 16|damaged"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_document_that_cannot_be_read_says_why_in_one_line(name: str, tmp_path: Path) -> None:
    body, message = BAD[name]
    path = tmp_path / "a.pdf"
    path.write_bytes(body)
    for source in (path, body):
        with pytest.raises(MediaError, match=message) as error:
            list(load_pages(source))
        assert str(error.value).startswith(str(path) if source == path else "The given data")
        assert "\n" not in str(error.value)


def test_a_document_that_only_limits_what_readers_may_do_is_read() -> None:
    assert names(protected(THREE, b"")) == ["red", "green", "blue"]


def test_a_page_that_is_promised_and_not_there_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(THREE.replace(b"/Count 3", b"/Count 9"))
    assert names(f"{path}#1-3") == ["red", "green", "blue"]
    with pytest.raises(MediaError, match=r"^page 7 of .*a\.pdf is damaged|has .* pages"):
        load_image(f"{path}#7")


@given(st.integers(0, len(THREE) - 1))
def test_a_document_that_is_cut_off_anywhere_is_read_or_refused(length: int) -> None:
    with suppress(MediaError):
        assert set(names(THREE[:length])) <= set(COLOURS)


def test_a_document_is_no_video_and_a_video_no_document() -> None:
    with (
        pytest.raises(MediaError, match="is a PDF document, expected a video"),
        open_video(THREE, None, MediaLimits(), True),
    ):
        pass
    assert is_pdf(THREE)
    assert not is_pdf(encoded(Image.new("RGB", (9, 9)), "JPEG", comment=b"%PDF-1.4"))
    assert not is_pdf(b"PK\x03\x04" + THREE)


def test_without_its_package_the_message_names_file_and_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(THREE)
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    message = r"a\.pdf is a PDF document, and pypdfium2 is not installed\. Install it with: .*'pocketvlm\[documents\]'"
    with pytest.raises(MediaError, match=message):
        load_image(path)


def test_documents_are_read_from_several_threads() -> None:
    """PDFium itself has no threads."""
    body = pdf(*(words(f"page {number}", size=8) for number in range(8)))
    alone = list(load_pages(body))
    with ThreadPoolExecutor(4) as pool:
        for pages in pool.map(lambda _: list(load_pages(body)), range(8)):
            assert all(np.array_equal(one, other) for one, other in zip(pages, alone, strict=True))


def test_a_reader_leaves_the_file_of_its_caller_open() -> None:
    file = io.BytesIO(THREE)
    with closing(PdfReader(file, "a.pdf", MediaLimits(), Resolution())) as reader:
        assert reader.count == 3
    assert file.seek(0) == 0


# --- in a prompt -----------------------------------------------------------------------------------------------------


def message(*sources: Any, **part: Any) -> list[dict[str, Any]]:
    content = [{"type": "image", "image": source, **part} for source in sources]
    return [{"role": "user", "content": [*content, {"type": "text", "text": "?"}]}]


@pytest.mark.parametrize("numbered", [True, False])
def test_the_pages_of_a_document_are_pictures_given_one_by_one(checkpoint: Path, numbered: bool) -> None:
    processor = Processor.from_directory(checkpoint)
    picture = encoded(Image.new("RGB", (300, 200), (9, 9, 9)))
    resolution = Resolution.of(processor.image_config)
    one, two, three = load_pages(THREE, resolution=resolution)
    together = processor(message(picture, THREE, picture), use_image_id=numbered)
    apart = processor(message(picture, one, two, three, picture), use_image_id=numbered)
    assert together.input_ids.tolist() == apart.input_ids.tolist()
    assert content_of(together) == content_of(apart)
    assert processor(message(THREE), page_dpi=30).visual_tokens != processor(message(THREE), page_dpi=300).visual_tokens


def test_each_document_has_one_rate_and_its_own_slices(checkpoint: Path) -> None:
    processor = Processor.from_directory(checkpoint)
    mixed = processor(message(THREE, coloured(RED)), downsample_mode=["4x", "16x"])
    assert [view.downsample_mode for view in mixed.views if view.downsample_mode == "4x"]
    few = processor(message(THREE, max_slice_nums=1))
    assert len(few.views) == 3


def test_all_pages_of_a_request_count(checkpoint: Path) -> None:
    processor = Processor.from_directory(checkpoint, limits=MediaLimits(max_images=5))
    assert len(processor(message(THREE, max_slice_nums=1)).views) == 3
    with pytest.raises(MediaError, match=r"^The request has more than 5 pictures and pages"):
        processor(message(THREE, THREE))
    with pytest.raises(MediaError, match=r"^messages\[0\]\.content\[1\]: The given data has 6 pages, at most 5"):
        processor(message(THREE, coloured(*[RED] * 6)))
    with pytest.raises(MediaError, match=r"^messages\[0\]\.content\[0\]: .* protected by a password"):
        processor(message(protected(THREE)))


def test_the_processes_that_decode_media_open_documents(checkpoint: Path) -> None:
    config = Processor.from_directory(checkpoint).image_config
    parts = tuple(
        MediaPart("image", source, f"place {i}") for i, source in enumerate((THREE, NamedBytes(THREE, "a", "2")))
    )
    task = MediaTask(parts, ("16x",) * 2, 1.5, PictureOptions(page_dpi=100), config, config, MediaLimits(), False)
    with closing(MediaWorkers(1, 60)) as workers:
        there, here = workers.encode(task), encode_media(task)
    assert [len(units) for units in there] == [3, 1]
    for found, expected in zip(there, here, strict=True):
        for unit, other in zip(found, expected, strict=True):
            assert content_of(unit) == content_of(other)
