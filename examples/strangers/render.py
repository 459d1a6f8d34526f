#!/usr/bin/env python3
"""Render the strangers again: pictures that nothing in `pocketvlm.synthetic` has drawn.

    python examples/strangers/render.py            # needs Chromium and the extra `plots`

The pages are printed by a browser with the fonts it finds, so another machine prints other pixels. `bars.png` is drawn
by matplotlib; `photo.jpg` (Grace Hopper, by the U.S. Navy, public domain) comes with matplotlib.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.cbook
from matplotlib.figure import Figure
from PIL import Image

HERE = Path(__file__).parent
TALL = 1700  # pixels: taller than every page
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def render_page(browser: str, page: Path) -> None:
    """A screenshot of `page`, cut to the width that its style gives and to what is printed."""
    width = int(re.search(r"width:(\d+)px", page.read_text())[1])  # type: ignore[index]
    height = re.search(r"height:(\d+)px", page.read_text())
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += ["--disable-background-networking", "--no-first-run", f"--user-data-dir={folder}/profile"]
        command += [f"--window-size={width},{TALL}", f"--screenshot={shot}", page.resolve().as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        picture = Image.open(shot).convert("RGB")
    if height:
        bottom = int(height[1])
    else:  # a little below the last row that is not empty
        rows = [y for y in range(picture.height) if len(picture.crop((0, y, width, y + 1)).getcolors() or ()) > 1]
        bottom = rows[-1] + 14
    picture.crop((0, 0, width, bottom)).save(page.with_suffix(".png"), optimize=True)


def draw_bars(out: Path) -> None:
    figure = Figure(figsize=(3.2, 2.8), dpi=100)
    axes = figure.add_subplot()
    bars = axes.bar(["Mon", "Tue", "Wed"], [34, 52, 19], color=["tab:blue", "tab:orange", "tab:green"])
    axes.bar_label(bars, fontsize=13)
    axes.set_ylim(0, 60)
    axes.set_title("Visitors", fontsize=15)
    axes.tick_params(labelsize=13)
    figure.tight_layout()
    figure.savefig(out)


def render_pages(folder: Path) -> None:
    """A picture beside each page of a folder."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        sys.exit(f"no browser: install one of {', '.join(BROWSERS)}")
    for page in sorted(folder.glob("*.html")):
        render_page(browser, page)


def main() -> None:
    render_pages(HERE)
    draw_bars(HERE / "bars.png")
    photo = Image.open(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)).convert("RGB")
    photo.resize((256, 300)).save(HERE / "photo.jpg", quality=85)


if __name__ == "__main__":
    main()
