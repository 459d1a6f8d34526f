#!/usr/bin/env python3
"""Render the second set of strangers again, each picture by a program that people use.

    python examples/strangers/second/render.py

Needs Chromium, LibreOffice Calc, pdftoppm, Xvfb, xterm, ImageMagick and the extra `plots`. Fonts differ from machine to
machine, and so do the pixels. `questions.jsonl` is in the format of `pocketvlm tune` and `pocketvlm eval --data`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageChops

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from render import render_pages  # noqa: E402  (the renderer of the first set)

MARGIN = 12  # pixels around what is printed
DISPLAY = ":97"
# Corners of a print as a hand-held camera sees them, as shares of the picture: top left, bottom left, bottom right,
# top right; and how dark the shadow at its right is.
PHOTOS = {
    "groceries": ((0.05, 0.03), (0.01, 0.96), (0.97, 0.99), (0.93, 0.06), 0.35),
    "notice": ((0.02, 0.08), (0.05, 0.95), (0.98, 0.92), (0.96, 0.02), 0.45),
    "prices": ((0.08, 0.05), (0.02, 0.90), (0.94, 0.97), (0.98, 0.09), 0.25),
}


def cut(picture: Image.Image) -> Image.Image:
    """What is printed, with a margin."""
    box = ImageChops.difference(picture, Image.new("RGB", picture.size, picture.getpixel((0, 0)))).getbbox()
    left, top, right, bottom = box or (0, 0, *picture.size)
    return picture.crop((max(0, left - MARGIN), max(0, top - MARGIN), right + MARGIN, bottom + MARGIN))


def print_sheet(table: Path, out: Path) -> None:
    """A table as LibreOffice prints it."""
    with tempfile.TemporaryDirectory() as folder:
        profile = f"-env:UserInstallation=file://{folder}/profile"
        command = ["soffice", profile, "--headless", "--convert-to", "pdf", "--outdir", folder, str(table)]
        subprocess.run(command, check=True, capture_output=True, timeout=180)
        pdf, page = Path(folder) / f"{table.stem}.pdf", Path(folder) / "page"
        subprocess.run(["pdftoppm", "-r", "120", "-png", "-singlefile", str(pdf), str(page)], check=True, timeout=60)
        picture = Image.open(page.with_suffix(".png")).convert("RGB")
    head = picture.crop((0, 0, picture.width, picture.height // 2))  # the number of the page is below
    cut(head.crop((0, picture.height // 12, picture.width, head.height))).save(out, optimize=True)  # its name above


def shoot_terminal(script: Path, out: Path) -> None:
    """What xterm shows of a script."""
    environment = {**os.environ, "DISPLAY": DISPLAY}
    server = subprocess.Popen(["Xvfb", DISPLAY, "-screen", "0", "480x300x24", "-nolisten", "tcp"])
    try:
        time.sleep(2)
        options = [
            "-fa",
            "DejaVu Sans Mono",
            "-fs",
            "12",
            "-geometry",
            "44x12+0+0",
            "-bg",
            "black",
            "-fg",
            "lightgreen",
        ]
        terminal = subprocess.Popen(["xterm", *options, "-e", f"sh {script}; sleep 30"], env=environment)
        time.sleep(4)
        subprocess.run(["import", "-window", "root", str(out)], env=environment, check=True, timeout=30)
        terminal.terminate()
    finally:
        server.terminate()
    cut(Image.open(out).convert("RGB")).save(out, optimize=True)


def draw_charts() -> None:
    figure = Figure(figsize=(3.6, 2.9), dpi=100)
    axes = figure.add_subplot()
    bars = axes.barh(["March", "April", "May", "June"], [41, 63, 37, 18], color=["C0", "C0", "C1", "C0"])
    axes.bar_label(bars, fontsize=12, padding=3)
    axes.set_xlim(0, 75)
    axes.invert_yaxis()
    axes.set_title("Rain in mm", fontsize=15)
    axes.tick_params(labelsize=12)
    figure.tight_layout()
    figure.savefig(HERE / "rain.png")
    figure = Figure(figsize=(3.4, 3.0), dpi=100)
    axes = figure.add_subplot()
    axes.pie([45, 37, 18], labels=["Rail", "Road", "Bicycle"], autopct="%1.0f %%", textprops={"fontsize": 13})
    figure.tight_layout()
    figure.savefig(HERE / "share.png")


def photograph(name: str) -> None:
    """A print of a picture in perspective, with a shadow and a little blur, as JPEG."""
    *corners, dark = PHOTOS[name]
    picture = Image.open(HERE / f"{name}.png").convert("RGB")
    width, height = round(picture.width * 1.6), round(picture.height * 1.6)
    target = [(x * width, y * height) for x, y in corners]
    source = [(0, 0), (0, picture.height), picture.size, (picture.width, 0)]
    rows, values = [], []
    for (x, y), (u, v) in zip(target, source, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    found = np.linalg.solve(np.array(rows), np.array(values))
    wood = (112, 92, 74)
    seen = picture.transform(
        (width, height), Image.Transform.PERSPECTIVE, found.tolist(), Image.Resampling.BICUBIC, fillcolor=wood
    )
    across = np.linspace(0, 1, width)[None, :, None] + np.linspace(-0.2, 0.2, height)[:, None, None]
    light = 1 - dark / (1 + np.exp(-(across - 0.6) * 14))
    noise = np.random.default_rng(0).normal(0, 3, (height, width, 1))
    shaded = np.clip(np.asarray(seen, float) * light * (0.97, 0.95, 0.88) + noise, 0, 255)
    Image.fromarray(shaded.astype(np.uint8)).save(HERE / f"photo-{name}.jpg", quality=70)


def main() -> None:
    render_pages(HERE)
    print_sheet(HERE / "stock.csv", HERE / "stock.png")
    shoot_terminal(HERE / "terminal.sh", HERE / "terminal.png")
    draw_charts()
    for name in PHOTOS:
        photograph(name)


if __name__ == "__main__":
    main()
