"""POST /v1/view_plan: which views pictures would become, and their tokens, without running the model."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from pocketvlm.api.view_plan import ViewPlan, plan, plan_image
from pocketvlm.errors import MediaError
from pocketvlm.processing.media.load_image import load_image
from pocketvlm.processing.processor import Processor
from pocketvlm.protocol.chat_response import to_json
from pocketvlm.protocol.view_plan import ViewPlanRequest, parse_view_plan, view_plan_response
from pocketvlm.server.body import read_json
from pocketvlm.server.exchange import exchange_of
from pocketvlm.server.service import Service


async def view_plan(service: Service, request: Request) -> Response:
    """The response to one request; errors are for `response_of`."""
    asked = await read_json(request, service.settings, parse_view_plan)
    service.check_model(asked.model)
    exchange_of(request, service.settings).images = len(asked.images)
    plans = await service.while_there(request, service.vlm.in_worker(plan_pictures, service.vlm.vlm.processor, asked))
    return Response(to_json(view_plan_response(plans, model=service.names[0])), media_type="application/json")


def plan_pictures(processor: Processor, asked: ViewPlanRequest) -> list[dict[str, ViewPlan]]:
    """The plans of each picture by their mode; pictures are read by the same rules as those of a chat.

    Raises:
        MediaError: a picture cannot be read or is over a limit; the message names its place.
    """
    processor.limits.check_counts(len(asked.images))
    found = []
    for number, source in enumerate(asked.images):
        try:
            found.append(_plans(processor, source, asked))
        except MediaError as error:
            raise MediaError(f"images[{number}]: {error}") from None
    return found


def _plans(processor: Processor, source: str, asked: ViewPlanRequest) -> dict[str, ViewPlan]:
    config, image_config = processor.model_config, processor.image_config
    pixels = load_image(source, processor.limits, files=processor.files)
    slices = asked.max_slice_nums or image_config.max_slice_nums
    plans = {}
    for mode in asked.modes or (config.downsample_mode,):
        if mode == "auto":  # only the pixels can tell
            plans[mode] = plan_image(
                pixels,
                mode,
                slices,
                auto_token_budget=asked.auto_token_budget,
                model_config=config,
                image_config=image_config,
            )
        else:
            height, width = pixels.shape[:2]
            plans[mode] = plan(height, width, mode, slices, model_config=config, image_config=image_config)
    return plans
