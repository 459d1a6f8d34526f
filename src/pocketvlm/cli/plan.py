"""pocketvlm plan HEIGHTxWIDTH… | FILE…"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketvlm.cli.common import PICTURES, add_json, add_options, files_read, is_file, options_of
from pocketvlm.cli.console import put_json, put_rich
from pocketvlm.config import check_auto_token_budget, check_downsample_mode
from pocketvlm.config_files import ConfigFiles
from pocketvlm.errors import ConfigError
from pocketvlm.files import check_output
from pocketvlm.model.hub import resolve
from pocketvlm.processing.media.pdf import Resolution
from pocketvlm.processing.patches.slicing import plan_views
from pocketvlm.views import Size

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pocketvlm.api.view_plan import ViewPlan

PUBLISHED = "openbmb/MiniCPM-V-4.6"
_SIZE = re.compile(r"\s*(\d{1,7})\s*[xX×]\s*(\d{1,7})\s*")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "pocketvlm plan [options] HEIGHTxWIDTH|FILE ..."
    words = "sizes in pixels, or picture files; of a.pdf#2-5 each page"
    parser.add_argument("sizes", nargs="*", metavar="HEIGHTxWIDTH|FILE", help=words)
    parser.add_argument("--image", action="append", default=[], help="a picture file; may be given several times")
    parser.add_argument("--model", default=None, help=f"whose settings (default: {PUBLISHED}, the published model)")
    add_options(parser, PICTURES)
    parser.add_argument("--draw", type=Path, metavar="OUT.png", help="draw the slices over the (one) picture")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    given = [*args.image, *args.sizes] or ["448x448", "1344x1344"]
    if args.draw is not None:
        if len(given) != 1 or _SIZE.fullmatch(given[0]):
            raise ConfigError("--draw needs exactly one picture file")
        check_output(args.draw)  # before a model is looked up, maybe downloaded
    for text in given:  # all that can be wrong with them, before a model is looked up
        _sizes(text, Resolution())
    directory = None if args.model is None else resolve(args.model)
    if args.draw is not None:
        check_output(args.draw, inputs=files_read(directory, given))
    configs = ConfigFiles() if directory is None else directory.configs
    model_config, image_config = configs.model, configs.image
    own = {"downsample_mode": model_config.downsample_mode, "max_slice_nums": image_config.max_slice_nums}
    options = {**own, **options_of(args, PICTURES)}
    mode = check_downsample_mode(options["downsample_mode"])
    check_auto_token_budget(options.get("auto_token_budget"), mode == "auto")
    resolution = Resolution.of(image_config, options["max_slice_nums"], options.pop("page_dpi", None))
    sizes = [size for text in given for size in _sizes(text, resolution)]
    if args.draw is not None and len(sizes) != 1:
        raise ConfigError(f"--draw needs one picture, {given[0]!r:.40} has {len(sizes)} pages", hint="Choose with #1.")
    for size in sizes:
        plan_views(size, image_config, mode, options["max_slice_nums"])
    # Only auto looks at pixels. Read, as all that can be wrong without torch is found, before it is imported.
    pictures = [page for text in given for page in _pages(text, resolution)] if mode == "auto" else [None] * len(sizes)
    from pocketvlm.api.view_plan import plan, plan_image

    options |= {"model_config": model_config, "image_config": image_config}
    plans = [
        plan(size.height, size.width, **options) if picture is None else plan_image(picture, **options)
        for size, picture in zip(sizes, pictures, strict=True)
    ]
    if args.draw is not None:
        _draw(given[0], resolution, plans[0], args.draw, mark_rates=mode == "auto")
    if args.json:
        put_json({"plans": [_entry(p) for p in plans]})
    else:
        _print_table(plans, show_rates=mode == "auto")
    return 0


def _sizes(text: str, resolution: Resolution) -> list[Size]:
    """Return the size that is written, or those of a picture file: one for each page."""
    if match := _SIZE.fullmatch(text):
        height, width = int(match[1]), int(match[2])
        if not height or not width:
            raise ConfigError(f"{text!r} has no area", hint="Write HEIGHTxWIDTH in pixels, such as 1080x1920.")
        return [Size(height=height, width=width)]
    from pocketvlm.processing.media.load_image import probe_pages

    if re.fullmatch(r"[\d.xX×\s-]+", text) and not is_file(Path(text)):
        raise ConfigError(f"{text!r:.40} is not a size", hint="Write HEIGHTxWIDTH in pixels, such as 1080x1920.")
    return probe_pages(Path(text), resolution=resolution)


def _pages(text: str, resolution: Resolution) -> Iterator[NDArray[np.uint8] | None]:
    """Yield the pixels of each page of a picture file; None for a size."""
    if _SIZE.fullmatch(text):
        yield None
        return
    from pocketvlm.processing.media.load_image import load_pages

    yield from load_pages(Path(text), resolution=resolution)


def _entry(p: ViewPlan) -> dict[str, Any]:
    return asdict(p)


def _print_table(plans: list[ViewPlan], *, show_rates: bool) -> None:
    from rich.table import Table

    table = Table("height x width", "grid", "views (patches)", "patches", "visual tokens", "TFLOP", "uncompressed")
    if show_rates:
        table.add_column("rates", no_wrap=True)
    for p in plans:
        shapes = [f"{h}x{w}" for h, w in p.views]
        views = shapes[0] if len(shapes) == 1 else f"{shapes[0]} + {len(shapes) - 1} of {shapes[1]}"
        table.add_row(
            f"{p.height} x {p.width}",
            "-" if p.grid is None else f"{p.grid[0]} x {p.grid[1]}",
            views,
            str(p.patches),
            str(p.visual_tokens) if p.rates else f"{p.visual_tokens_min} to {p.visual_tokens}",
            f"{p.vision_flops / 1e12:.3f}",
            f"{p.vision_flops_uncompressed / 1e12:.3f}",
            *([_rates(p)] if show_rates else []),
        )
    put_rich(table)


def _rates(p: ViewPlan) -> str:
    """Show one rate for all views, or the overview's and below it those of the slices as they lie."""
    if p.rates is None:
        return "by pixels"
    if len(set(p.rates)) == 1 or p.grid is None:
        return p.rates[0]
    overview, *slices = p.rates
    columns = p.grid[1]
    rows = (slices[i : i + columns] for i in range(0, len(slices), columns))
    return "\n".join([overview, *(" ".join(f"{rate:>3}" for rate in row) for row in rows)])


def _draw(picture: str, resolution: Resolution, plan: ViewPlan, out: Path, *, mark_rates: bool) -> None:
    rates = (plan.rates or ())[1:] if mark_rates else ()
    from pocketvlm.processing.media.load_image import draw_grid, load_image

    draw_grid(load_image(Path(picture), resolution=resolution), plan.grid, out, fine=[rate == "4x" for rate in rates])
