"""POST /v1/pages: how many pages a document has, and small pictures of them, without running the model."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from pocketvlm.processing.media.encode import encode_jpeg
from pocketvlm.processing.media.fetch import has_urls
from pocketvlm.processing.media.pages import PageChoice, split_pages
from pocketvlm.processing.media_encoding import MediaTask
from pocketvlm.processing.page_previews import pixels_of
from pocketvlm.processing.picture_options import PictureOptions
from pocketvlm.processing.processor import Processor
from pocketvlm.processing.prompt.messages import MediaPart
from pocketvlm.protocol.page_previews import PagesRequest, Preview, pages_response, parse_pages
from pocketvlm.server.body import json_response, read_json
from pocketvlm.server.exchange import exchange_of
from pocketvlm.server.service import Service


async def pages(service: Service, request: Request) -> Response:
    """The response to one request; errors are for `response_of`."""
    asked = await read_json(request, parse_pages)
    adapter = service.check_model(asked.model)
    exchange = exchange_of(request)
    exchange.images = 1
    processor = service.vlm.vlm.processor
    keep, hold, fetches = exchange.keep, exchange.lend, has_urls(asked.document)
    work = service.vlm.in_worker(previewed, processor, asked, keep=keep, hold=hold, fetches=fetches)
    total, previews = await service.while_there(request, work)
    return json_response(pages_response(total, previews, model=service.said(adapter)))


def previewed(processor: Processor, asked: PagesRequest) -> tuple[int, list[Preview]]:
    """Pages of the document, and previews of those chosen, or of its first ones; they are decoded where those of a chat
    are, by the same rules.

    Raises:
        MediaError: it cannot be read, or is over a limit.
    """
    part = MediaPart("image", asked.document, "document")
    options = (PictureOptions(), processor.image_config, processor.video_config, processor.limits, processor.files)
    (units,) = processor.encode(MediaTask((part,), ("16x",), 1.0, *options, preview=asked.side))
    total = units[0].pages
    _, choice = split_pages(asked.document, files=False)
    # What an address of a picture has behind its # chooses nothing.
    is_choice = choice is not None and (total > 1 or len(units) > 1)
    numbers = PageChoice.parse(choice).indices(total, "document") if is_choice and choice else range(len(units))
    previews = []
    for index, unit in zip(numbers, units, strict=True):
        pixels = pixels_of(unit)
        if pixels is None:
            previews.append(Preview(index + 1, None, None))
        else:
            previews.append(Preview(index + 1, (pixels.shape[0], pixels.shape[1]), encode_jpeg(pixels)))
    return total, previews
