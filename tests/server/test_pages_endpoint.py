"""POST /v1/pages: pages of a document to choose from, by the rules of all media."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from helpers.app import App, data_url, error_of, new_vlm, run
from helpers.documents import BLUE, GREEN, RED, coloured, heic, protected
from helpers.pictures import encoded
from PIL import Image

from pocketvlm.config import ImageConfig
from pocketvlm.errors import ConfigError
from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.processing.media_encoding import MediaTask, encode_media
from pocketvlm.processing.media_workers import MediaWorkers
from pocketvlm.processing.page_previews import pixels_of
from pocketvlm.processing.picture_options import PictureOptions
from pocketvlm.processing.prompt.messages import MediaPart
from pocketvlm.protocol.page_previews import parse_pages

THREE = coloured(RED, GREEN, BLUE)
KIND = "application/pdf"


def picture_of(preview: dict[str, Any]) -> np.ndarray:
    head, _, body = preview["image"].partition(",")
    assert head == "data:image/jpeg;base64"
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(body))))
    assert list(pixels.shape) == [preview["height"], preview["width"], 3]
    return pixels


def test_pages_are_counted_and_shown_small() -> None:
    async def test() -> None:
        app = App(await new_vlm())
        for choice, numbers in (("", [1, 2, 3]), ("#3,1", [3, 1]), ("#page=2", [2])):
            body = {"document": data_url(THREE, KIND) + choice}
            response = await app.client.post("/v1/pages", json=body)
            found = response.json()
            assert response.status_code == 200, response.text
            assert (found["object"], found["pages"]) == ("pages", 3)
            assert [one["page"] for one in found["previews"]] == numbers
            for one in found["previews"]:
                assert np.argmax(picture_of(one).mean((0, 1))) == one["page"] - 1
        large = (await app.client.post("/v1/pages", json={**body, "preview_side": 560})).json()["previews"][0]
        assert large["height"] * large["width"] > 4 * 224 * 224
        await app.vlm.close()

    run(test())


def test_of_a_long_document_the_first_pages_come_and_others_are_asked_for() -> None:
    async def test() -> None:
        app = App(await new_vlm(), max_images=4)
        url = data_url(coloured(*[RED] * 6), KIND)
        found = (await app.client.post("/v1/pages", json={"document": url})).json()
        assert (found["pages"], [one["page"] for one in found["previews"]]) == (6, [1, 2, 3, 4])
        found = (await app.client.post("/v1/pages", json={"document": f"{url}#5-6"})).json()
        assert (found["pages"], [one["page"] for one in found["previews"]]) == (6, [5, 6])
        refused = await app.client.post("/v1/pages", json={"document": f"{url}#1-6"})
        assert (refused.status_code, "at most 4" in error_of(refused)) == (400, True)
        await app.vlm.close()

    run(test())


def test_a_page_that_is_damaged_keeps_none_away() -> None:
    first, second = Image.new("RGB", (64, 48)), Image.effect_noise((64, 48), 80)
    body = bytearray(encoded(first, "TIFF", save_all=True, append_images=[second], compression="tiff_lzw"))
    with Image.open(io.BytesIO(body)) as image:
        image.seek(1)
        (place,) = image.tag_v2[273]
    body[place : place + 400] = bytes(400)

    async def test() -> None:
        app = App(await new_vlm())
        found = (await app.client.post("/v1/pages", json={"document": data_url(bytes(body), "image/tiff")})).json()
        assert (found["pages"], [one["image"] is None for one in found["previews"]]) == (2, [False, True])
        await app.vlm.close()

    run(test())


def test_a_picture_is_one_page() -> None:
    async def test() -> None:
        app = App(await new_vlm())
        for body in (heic(Image.new("RGB", (60, 40), (250, 0, 0))), encoded(Image.new("RGB", (60, 40), (250, 0, 0)))):
            found = (await app.client.post("/v1/pages", json={"document": data_url(body)})).json()
            assert (found["pages"], len(found["previews"])) == (1, 1)
            assert picture_of(found["previews"][0])[:, :, 0].mean() > 200
        await app.vlm.close()

    run(test())


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (data_url(THREE, KIND) + "#9", "has 3 pages, there is no page 9"),
        (data_url(protected(THREE), KIND), "is protected by a password"),
        (data_url(THREE[:99], KIND), "is damaged or cut off"),
        (data_url(encoded(Image.new("RGB", (9, 9)))[:40]), "is damaged or cut off"),
        ("/etc/passwd", "Paths are not accepted here"),
        ("file:///etc/passwd", "Paths are not accepted here"),
    ],
)
def test_what_cannot_be_read_is_a_400_of_one_line(document: str, message: str) -> None:
    async def test() -> None:
        app = App(await new_vlm())
        response = await app.client.post("/v1/pages", json={"document": document})
        assert (response.status_code, message in error_of(response)) == (400, True), response.text
        assert "\n" not in error_of(response)
        await app.vlm.close()

    run(test())


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ([], "body"),
        ({}, "document"),
        ({"document": ""}, "document"),
        ({"document": ["data:,x"]}, "document"),
        ({"document": "data:,x", "preview_side": 55}, "preview_side"),
        ({"document": "data:,x", "preview_side": 1121}, "preview_side"),
        ({"document": "data:,x", "preview_side": "large"}, "preview_side"),
        ({"document": "data:,x", "pages": "1"}, "pages"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_its_name(body: Any, names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        parse_pages(body)


def test_pages_are_drawn_in_the_processes_that_decode_media() -> None:
    config = ImageConfig()
    part = MediaPart("image", THREE, "document")
    how = (PictureOptions(), config, config, MediaLimits(max_images=2), False)
    task = MediaTask((part,), ("16x",), 1.0, *how, preview=112)
    workers = MediaWorkers(1, 60)
    try:
        ((one, two),) = workers.encode(task)
    finally:
        workers.close()
    assert (one.pages, two.pages) == (3, 3)
    for unit, expected in zip((one, two), encode_media(task)[0], strict=True):
        assert np.array_equal(pixels_of(unit), pixels_of(expected))
