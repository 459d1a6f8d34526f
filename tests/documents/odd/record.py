#!/usr/bin/env python3
"""Writes expected.json: what other programs show of the files of this folder (see README.md).

    python record.py FOLDER

Poppler draws PDF with 72 dots an inch, ImageMagick reads pictures, FFmpeg's command clips. Of each page, and of the
frame that is shown at each of some times, the size and the mean colours of 4 × 3 fields are kept.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

CLIPS = (".mp4", ".mov", ".mkv", ".webm", ".ts", ".ogv", ".wmv", ".avi", ".gif", ".h264")
TIMES = (0.05, 1.25, 2.05)  # seconds, in the middle of how long a frame is shown
# What is shown with pixels that are not square, or what is none of ours to show, as options of ImageMagick.
OPTIONS = {
    "fax-coarse.tif": ["-filter", "box", "-resample", "204x204"],
    "received.tif": ["-filter", "box", "-resample", "204x204"],
    "album.heic": ["-delete", "1--1"],
    "offset-frames.gif": ["-coalesce", "-delete", "1--1"],
    "moving.webp": ["-coalesce", "-delete", "1--1"],
}
# What ImageMagick reads and we do not, is named by the test.
NOT_OURS = (".dds", ".ico", ".miff", ".pcx", ".ppm", ".psd", ".tga", ".xpm")


def run(*command: str | Path) -> str:
    return subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True).stdout


def means(picture: Image.Image) -> str:
    """Of 4 × 3 fields, in hex, row by row."""
    return picture.convert("RGB").resize((4, 3), Image.Resampling.BOX).tobytes().hex()


def described(picture: Image.Image) -> dict[str, Any]:
    return {"size": list(picture.size), "means": means(picture)}


def pages(file: Path) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        if file.suffix in (".heic", ".avif"):  # whose transparency ImageMagick does not know
            run("heif-convert", file, f"{folder}/a.png")
            first = min(Path(folder).iterdir(), key=lambda one: (len(one.name), one.name))
            white = Image.new("RGBA", Image.open(first).size, "white")
            return [described(Image.alpha_composite(white, Image.open(first).convert("RGBA")))]
        if file.suffix == ".pdf":
            run("pdftoppm", "-r", "72", "-cropbox", "-png", file, Path(folder, "p"))
        else:
            white = ["-auto-orient", "-background", "white", "-alpha", "remove", "-colorspace", "sRGB", "-depth", "8"]
            run("convert", file, *OPTIONS.get(file.name, []), *white, f"png24:{folder}/p-%03d.png")
        return [described(Image.open(one)) for one in sorted(Path(folder).iterdir())]


def clip(file: Path) -> dict[str, Any]:
    entries = ("-select_streams", "V:0", "-show_entries", "frame=best_effort_timestamp_time", "-of", "csv=p=0")
    shown = [float(line.strip(",")) for line in run("ffprobe", "-v", "error", *entries, file).split()]
    square = "scale=w='trunc(iw*sar+0.5)':h=ih,setsar=1"
    with tempfile.TemporaryDirectory() as folder:
        frames = ("-map", "0:V:0", "-vsync", "passthrough", "-vf", square, "-pix_fmt", "rgb24")
        run("ffmpeg", "-v", "error", "-i", file, *frames, f"{folder}/%04d.png")
        pictures = [Image.open(one) for one in sorted(Path(folder).iterdir())]
        at = [max(number for number, time in enumerate(shown) if time - shown[0] <= wanted) for wanted in TIMES]
        looks = {str(time): means(pictures[number]) for time, number in zip(TIMES, at, strict=True)}
        return {"frames": len(shown), "size": list(pictures[0].size), "at": looks}


def main() -> None:
    folder, found = Path(sys.argv[1]), dict[str, Any]()
    for file in sorted(file for file in folder.iterdir() if file.suffix not in NOT_OURS):
        is_clip = file.suffix in CLIPS and file.name != "offset-frames.gif"
        if file.name == "moving.png":
            is_clip = True
        try:
            found[file.name] = clip(file) if is_clip else pages(file)
        except (subprocess.CalledProcessError, OSError, ValueError) as error:
            said = getattr(error, "stderr", "") or str(error)
            print(f"{file.name}: {said.strip().splitlines()[-1]}", file=sys.stderr)
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in found.items())
    (folder / "expected.json").write_text("{\n" + lines + "\n}\n")


if __name__ == "__main__":
    main()
