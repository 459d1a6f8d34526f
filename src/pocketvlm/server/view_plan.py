"""POST /v1/view_plan: which views pictures would become, and their tokens, without running the model."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from pocketvlm.api.view_plan import ViewPlan, plan, plan_of
from pocketvlm.config import DownsampleOption, check_auto_token_budget, check_downsample_mode
from pocketvlm.processing.media.fetch import has_urls
from pocketvlm.processing.media_encoding import MediaTask
from pocketvlm.processing.patches.image import ImageViews
from pocketvlm.processing.picture_options import PictureOptions
from pocketvlm.processing.processor import Processor
from pocketvlm.processing.prompt.messages import MediaPart
from pocketvlm.protocol.view_plan import ViewPlanRequest, parse_view_plan, view_plan_response
from pocketvlm.server.body import json_response, read_json
from pocketvlm.server.exchange import exchange_of
from pocketvlm.server.service import Service


async def view_plan(service: Service, request: Request) -> Response:
    """The response to one request; errors are for `response_of`."""
    asked = await read_json(request, parse_view_plan)
    adapter = service.check_model(asked.model)
    exchange = exchange_of(request)
    exchange.images = len(asked.images)
    processor = service.vlm.vlm.processor
    keep, hold, fetches = exchange.keep, exchange.lend, has_urls(asked.images)
    work = service.vlm.in_worker(plan_pictures, processor, asked, keep=keep, hold=hold, fetches=fetches)
    plans = await service.while_there(request, work)
    return json_response(view_plan_response(plans, model=service.said(adapter)))


def plan_pictures(processor: Processor, asked: ViewPlanRequest) -> list[dict[str, ViewPlan]]:
    """The plans of each picture, and of each page of a document, by their mode; they are decoded where those of a chat
    are, by the same rules.

    Raises:
        MediaError: a picture cannot be read or is over a limit; the message names its place.
    """
    processor.limits.check_counts(len(asked.images))
    config, image_config = processor.model_config, processor.image_config
    modes = [check_downsample_mode(mode) for mode in asked.modes or (config.downsample_mode,)]
    seen: DownsampleOption = "auto" if "auto" in modes else modes[0]  # of others a size tells
    encoded = processor.encode(
        MediaTask(
            tuple(MediaPart("image", source, f"images[{i}]") for i, source in enumerate(asked.images)),
            (seen,) * len(asked.images),
            check_auto_token_budget(asked.auto_token_budget, seen == "auto"),
            PictureOptions(max_slice_nums=asked.max_slice_nums),
            image_config,
            processor.video_config,
            processor.limits,
            processor.files,
            patches=False,
        )
    )
    slices = asked.max_slice_nums or image_config.max_slice_nums

    def planned(views: ImageViews, mode: DownsampleOption) -> ViewPlan:
        if mode == seen:
            return plan_of(views.image, views.grid, views.views, config)
        height, width = views.image.height, views.image.width
        return plan(height, width, mode, slices, model_config=config, image_config=image_config)

    return [{mode: planned(views, mode) for mode in modes} for pages in encoded for views in pages]
