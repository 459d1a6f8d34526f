"""How pictures would be seen: the body of POST /v1/view_plan → pictures and options, and plans → its response.

An addition of ours: OpenAI has no such request. Nothing runs the model, so it costs no more than decoding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pocketvlm.config import DOWNSAMPLE_OPTIONS, check_auto_token_budget, check_downsample_mode
from pocketvlm.errors import ConfigError
from pocketvlm.processing.picture_options import PictureOptions
from pocketvlm.protocol.fields import check, given_fields, only_kinds
from pocketvlm.ranges import show_json
from pocketvlm.views import Size, View

if TYPE_CHECKING:
    from pocketvlm.api.view_plan import ViewPlan

VIEW_PLAN_FIELDS = ("model", "images", "downsample_modes", "mm_processor_kwargs")
VIEW_PLAN_OPTIONS = {"downsample_mode": "string", "auto_token_budget": "number", "max_slice_nums": "integer"}


@dataclass(frozen=True, slots=True)
class ViewPlanRequest:
    """What a body asks for.

    Attributes:
        model: the name it gives, or None.
        images: URLs, data: or http(s).
        modes: each is planned for each picture; None for the model's own.
        auto_token_budget, max_slice_nums: as in `mm_processor_kwargs` of a chat completion, or None.
    """

    model: str | None
    images: tuple[str, ...]
    modes: tuple[str, ...] | None
    auto_token_budget: float | None
    max_slice_nums: int | None


def parse_view_plan(body: Mapping[str, Any]) -> ViewPlanRequest:
    """Check a body and translate it.

    Raises:
        ConfigError: a field that is missing, unknown, of another type, or cannot be honoured; the message names it.
    """
    given = given_fields(body, VIEW_PLAN_FIELDS)
    images = check("images", given.get("images", []), "list of strings")
    if not images:
        raise ConfigError("images is missing or empty", hint="Give a list of data: or http(s) URLs of pictures.")
    field = "mm_processor_kwargs"
    kwargs = only_kinds(field, given.get(field), VIEW_PLAN_OPTIONS)
    options = {name: check(f"{field}.{name}", value, VIEW_PLAN_OPTIONS[name]) for name, value in kwargs.items()}
    PictureOptions(**options)  # ranges
    modes = [options["downsample_mode"]] if "downsample_mode" in options else None
    if "downsample_modes" in given:
        if modes is not None:
            raise ConfigError(f"downsample_modes and {field}.downsample_mode were both given", hint="Give one of them.")
        modes = check("downsample_modes", given["downsample_modes"], "list of strings")
        if not 1 <= len(modes) <= len(DOWNSAMPLE_OPTIONS) or len(set(modes)) < len(modes):
            hint = f"Give some of {', '.join(DOWNSAMPLE_OPTIONS)}, each once."
            raise ConfigError(f"downsample_modes is {show_json(modes)}", hint=hint)
    for mode in modes or ():
        check_downsample_mode(mode)
    check_auto_token_budget(options.get("auto_token_budget"), "auto" in (modes or ()))
    return ViewPlanRequest(
        model=check("model", given["model"], "string") if "model" in given else None,
        images=tuple(images),
        modes=None if modes is None else tuple(modes),
        auto_token_budget=options.get("auto_token_budget"),
        max_slice_nums=options.get("max_slice_nums"),
    )


def view_plan_response(images: Sequence[Mapping[str, ViewPlan]], *, model: str) -> dict[str, Any]:
    """Return the body of a response.

    Args:
        images: the plans of each picture by their mode.
        model: the name to state.
    """
    return {"object": "view_plan", "model": model, "images": [_image(plans) for plans in images]}


def view_entry(view: View) -> dict[str, Any]:
    """Return one view: rows and columns of patches, rate, and tokens."""
    return {
        "rows": view.size.height,
        "columns": view.size.width,
        "downsample_mode": view.downsample_mode,
        "visual_tokens": view.visual_tokens,
    }


def _image(plans: Mapping[str, ViewPlan]) -> dict[str, Any]:
    any_of_them = next(iter(plans.values()))
    return {
        "height": any_of_them.height,
        "width": any_of_them.width,
        "plans": [_plan(mode, plan) for mode, plan in plans.items()],
    }


def _plan(mode: str, plan: ViewPlan) -> dict[str, Any]:
    assert plan.rates is not None  # they are open only where no pixels were read
    views = [
        View(Size(height=rows, width=columns), rate)
        for (rows, columns), rate in zip(plan.views, plan.rates, strict=True)
    ]
    return {
        "downsample_mode": mode,
        "grid": plan.grid,
        "patches": plan.patches,
        "visual_tokens": plan.visual_tokens,
        "vision_flops": plan.vision_flops,
        "views": [{"box": box, **view_entry(view)} for box, view in zip(plan.boxes, views, strict=True)],
    }
