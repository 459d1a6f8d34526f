"""pocketvlm plan HEIGHTxWIDTH… | FILE…"""

from __future__ import annotations

import argparse
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketvlm.cli.common import PICTURES, add_json, add_options, options_of, print_json
from pocketvlm.config import check_downsample_mode, load_configs
from pocketvlm.errors import ConfigError
from pocketvlm.model.hub import resolve
from pocketvlm.processing.slicing import plan_views
from pocketvlm.views import Size

if TYPE_CHECKING:
    from pocketvlm.api import ViewPlan

PUBLISHED = "openbmb/MiniCPM-V-4.6"
_SIZE = re.compile(r"(\d{1,7})x(\d{1,7})")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "pocketvlm plan [options] HEIGHTxWIDTH|FILE ..."
    parser.add_argument("sizes", nargs="*", metavar="HEIGHTxWIDTH|FILE", help="sizes in pixels, or picture files")
    parser.add_argument("--image", action="append", default=[], help="a picture file; may be given several times")
    parser.add_argument("--model", default=None, help=f"whose settings (default: those of {PUBLISHED})")
    add_options(parser, PICTURES)
    parser.add_argument("--draw", type=Path, metavar="OUT.png", help="draw the slices over the (one) picture")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    given = [*args.image, *args.sizes] or ["448x448", "1344x1344"]
    sizes = [_size(text) for text in given]
    model_config, image_config = load_configs(None if args.model is None else resolve(args.model))
    own = {"downsample_mode": model_config.downsample_mode, "max_slice_nums": image_config.max_slice_nums}
    options = {**own, **options_of(args, PICTURES)}
    mode = check_downsample_mode(options["downsample_mode"])
    for height, width in sizes:
        plan_views(Size(height=height, width=width), image_config, mode, options["max_slice_nums"])
    from pocketvlm.api import plan  # imports torch: after everything that can be wrong without it

    plans = [
        plan(height, width, **options, model_config=model_config, image_config=image_config) for height, width in sizes
    ]
    if args.draw is not None:
        _draw(given, plans, args.draw)
    if args.json:
        print_json({"plans": [_entry(p) for p in plans]})
    else:
        _print_table(plans)
    return 0


def _size(text: str) -> tuple[int, int]:
    """(height, width) of a size or of a picture file."""
    if match := _SIZE.fullmatch(text):
        height, width = int(match[1]), int(match[2])
        if not height or not width:
            raise ConfigError(f"{text!r} has no area", hint="Write HEIGHTxWIDTH in pixels, such as 1080x1920.")
        return height, width
    from pocketvlm.processing.media import probe_size

    if re.fullmatch(r"[\d.x-]+", text) and (len(text) > 100 or not Path(text).exists()):
        raise ConfigError(f"{text!r:.40} is not a size", hint="Write HEIGHTxWIDTH in pixels, such as 1080x1920.")
    size = probe_size(Path(text))
    return size.height, size.width


def _entry(p: ViewPlan) -> dict[str, Any]:
    return asdict(p)


def _print_table(plans: list[ViewPlan]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("height x width", "grid", "views (patches)", "patches", "visual tokens", "TFLOP", "uncompressed")
    for p in plans:
        shapes = [f"{h}x{w}" for h, w in p.views]
        views = shapes[0] if len(shapes) == 1 else f"{shapes[0]} + {len(shapes) - 1} of {shapes[1]}"
        table.add_row(
            f"{p.height} x {p.width}",
            "-" if p.grid is None else f"{p.grid[0]} x {p.grid[1]}",
            views,
            str(p.patches),
            str(p.visual_tokens),
            f"{p.vision_flops / 1e12:.3f}",
            f"{p.vision_flops_uncompressed / 1e12:.3f}",
        )
    Console().print(table)


def _draw(given: list[str], plans: list[ViewPlan], out: Path) -> None:
    from pocketvlm.processing.media import draw_grid

    if len(given) != 1 or _SIZE.fullmatch(given[0]):
        raise ConfigError("--draw needs exactly one picture file")
    draw_grid(Path(given[0]), plans[0].grid, out)
