#!/usr/bin/env python3
"""What `downsample_mode="auto"` looks at: scores of fine print compared, and which slice of a page gets 4x.

    python benchmarks/auto_rates.py [--split heldout] [--pages 100] [--budget 1.5]

Prints three tables and one JSON line. Needs no model. The constants of `processing/patches/rates` were set on --split
train.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from pocketvlm.config import ImageConfig
from pocketvlm.processing.patches.image import CutImage, cut_image
from pocketvlm.processing.patches.rates import choose_rates, count_fine_patches
from pocketvlm.synthetic import Split
from pocketvlm.synthetic.documents.page_places import Page
from pocketvlm.synthetic.documents.pages import PAGE_LEVELS, draw_page, plan_page
from pocketvlm.synthetic.drawing.fonts import families, load_face
from pocketvlm.synthetic.drawing.lines import blend, draw_background, draw_colours, print_line, set_line, wear
from pocketvlm.synthetic.sample import Picture
from pocketvlm.synthetic.words.vocabulary import draw_text

SIDE, PATCH = 448, 14
Patches = NDArray[np.uint8]
Score = Callable[[Patches], int]


def _grey(patches: Patches) -> NDArray[np.float32]:
    return patches.astype(np.float32) @ np.array([0.25, 0.5, 0.25], np.float32)


def count_high_pass(patches: Patches) -> int:
    """Patches whose mean absolute second difference is at least 40 grey levels: energy without a look at strokes."""
    grey = _grey(patches)
    energy = sum(np.abs(np.diff(grey, 2, axis)).mean((1, 2)) for axis in (1, 2))
    return int(np.count_nonzero(energy >= 40))


def count_edges(patches: Patches) -> int:
    """Patches whose mean absolute difference of neighbours is at least 20 grey levels."""
    grey = _grey(patches)
    energy = sum(np.abs(np.diff(grey, 1, axis)).mean((1, 2)) for axis in (1, 2))
    return int(np.count_nonzero(energy >= 20))


def count_stroke_pixels(patches: Patches) -> int:
    """As `count_fine_patches`, but every pixel of a stroke counts, so wide strokes count up to three times."""
    grey = _grey(patches)
    counts = []
    for rows in (grey, grey.transpose(0, 2, 1)):
        mean = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
        change = mean[..., 2:] - mean[..., :-2]
        rise, fall = change > 30, change < -30
        found = (fall[..., :-2] & rise[..., 2:]) | (rise[..., :-2] & fall[..., 2:])
        counts.append(np.count_nonzero(found, axis=(1, 2)))
    return int(np.count_nonzero(counts[0] * counts[1] >= 600))


SCORES: dict[str, Score] = {
    "strokes (in use)": count_fine_patches,
    "stroke pixels": count_stroke_pixels,
    "high-pass energy": count_high_pass,
    "edges": count_edges,
}


def to_patches(view: Picture) -> Patches:
    rows, columns = view.shape[0] // PATCH, view.shape[1] // PATCH
    parts = view.reshape(rows, PATCH, columns, PATCH, 3).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(parts).reshape(-1, PATCH, PATCH, 3)


def draw_print(rng: np.random.Generator, em: int, share: float, split: Split) -> Picture:
    """A view with lines of print of `em` pixels down to `share` of its height, coloured and worn now and then."""
    fonts = families(split)
    face = load_face(fonts[int(rng.integers(len(fonts)))].regular, em)
    coverage = np.zeros((SIDE, SIDE), np.uint8)
    for baseline in range(round(1.2 * em), max(round(share * SIDE), round(1.2 * em) + 1), round(1.3 * em)):
        words = [draw_text(rng, "word", split) for _ in range(2 * SIDE // em)]
        while words and (line := set_line(face, " ".join(words))).width > SIDE - 8:
            words.pop()
        if words and baseline + line.bottom < SIDE:
            print_line(coverage, face, line, 4, baseline)
    paper, ink = draw_colours(rng, 0.6)
    return wear(rng, blend(draw_background(rng, SIDE, SIDE, paper, 0.6), coverage, ink), 0.5)


def canvases(rng: np.random.Generator) -> dict[str, Picture]:
    """Views without print."""
    y, x = np.mgrid[:SIDE, :SIDE]
    coarse = Image.fromarray(rng.integers(0, 256, (14, 14, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC)).astype(np.int16)
    grain = {sigma: (rng.standard_normal((SIDE, SIDE, 1)) * sigma).astype(np.int16) for sigma in (4, 8, 12, 16)}
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.fftfreq(SIDE)[None])
    frequency[0, 0] = 1
    texture = np.fft.ifft2(np.fft.fft2(rng.standard_normal((SIDE, SIDE))) / frequency).real

    def grey(values: NDArray[np.generic]) -> Picture:
        return np.repeat(np.clip(values, 0, 255).astype(np.uint8)[..., None], 3, axis=2)

    return {
        "blank": grey(np.full((SIDE, SIDE), 255)),
        "gradient": grey(x * 255 // SIDE),
        "squares of 8 pixels": grey((x // 8 + y // 8) % 2 * 255),
        "stripes of 2 pixels": grey(x // 2 % 2 * 255),
        "rules of a table": grey(255 * ((x % 56 > 0) & (y % 56 > 0))),
        **{
            f"smooth, noise {sigma}": np.clip(smooth + noise, 0, 255).astype(np.uint8) for sigma, noise in grain.items()
        },
        "texture, 1/f": grey(128 + 50 * texture / texture.std()),
    }


def auc(positive: list[int], negative: list[int]) -> float:
    """Chance that a positive scores higher than a negative; ties count half."""
    p, n = np.array(positive)[:, None], np.array(negative)[None]
    return float((p > n).mean() + (p == n).mean() / 2)


def compare_scores(split: Split, count: int) -> dict[str, dict[str, float]]:
    """Score → what it gives for canvases, for print of several sizes, how well it tells small print, and its time."""
    rng = np.random.default_rng(0)
    blank = {name: to_patches(view) for name, view in canvases(rng).items()}
    sizes = {em: [to_patches(draw_print(rng, em, 1.0, split)) for _ in range(9)] for em in (8, 12, 18, 26, 40, 60)}

    def views(low: float, high: float) -> list[Patches]:
        ems = np.exp(rng.uniform(np.log(low), np.log(high), count)).astype(int)
        return [to_patches(draw_print(rng, int(em), float(rng.uniform(0.2, 0.9)), split)) for em in ems]

    small, large = views(9, 19), views(24, 64)
    result = {}
    for name, score in SCORES.items():
        seconds = []
        for view in small[:50]:
            began = time.thread_time()
            score(view)
            seconds.append(time.thread_time() - began)
        result[name] = {
            **{canvas: float(score(view)) for canvas, view in blank.items()},
            **{f"print of {em} pixels": statistics.median(map(score, drawn)) for em, drawn in sizes.items()},
            "AUC, 9–18 pixels against 24–63": auc([score(v) for v in small], [score(v) for v in large]),
            "CPU milliseconds a view": 1e3 * statistics.median(seconds),
        }
    return result


def print_in_slices(page: Page, grid: tuple[int, int]) -> NDArray[np.float64]:
    """Share of the page's small print, by area, that lies in each slice."""
    rows, columns = grid
    shares = np.zeros(rows * columns)
    for number in range(rows * columns):
        row, column = divmod(number, columns)
        top, left = row * page.height / rows, column * page.width / columns
        for _, box in page.small:
            high = min(box.bottom, top + page.height / rows) - max(box.top, top)
            wide = min(box.right, left + page.width / columns) - max(box.left, left)
            shares[number] += max(high, 0) * max(wide, 0)
    return shares / shares.sum()


def judge_pages(level: int, resolution: int, split: Split, count: int, budget: float) -> dict[str, dict[str, float]]:
    """Score → over pages of one level: is the slice with most of the small print at 4x, how much of the print is, and
    how often the overview would have come first."""
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in SCORES}
    tokens = []
    for number in range(count):
        # The same seed plans the same page twice.
        page = plan_page(np.random.default_rng([level, number]), PAGE_LEVELS[level], split)
        picture = draw_page(np.random.default_rng([level, number]), PAGE_LEVELS[level], split).images[0]
        cut: CutImage = cut_image(picture, ImageConfig(scale_resolution=resolution), "auto", None)
        if cut.plan.grid is None:
            continue
        shares = print_in_slices(page, cut.plan.grid)
        parts = np.split(cut.patches, np.cumsum([view.patches for view in cut.plan.views])[:-1])
        for name, score in SCORES.items():
            scores = [score(part) for part in parts]
            (views,) = choose_rates([cut.plan.views], [scores], budget)
            raised = np.array([view.downsample_mode == "4x" for view in views[1:]])
            best = bool(raised[shares.argmax()])
            found[name].append((best, float(shares[raised].sum()), scores[0] > max(scores[1:])))
            if score is count_fine_patches:
                tokens.append(sum(view.visual_tokens for view in views) / cut.plan.visual_tokens)
    keys = ("slice found", "print at 4x", "overview highest")
    result = {name: dict(zip(keys, map(float, np.mean(rows, axis=0)), strict=True)) for name, rows in found.items()}
    result["strokes (in use)"]["tokens"] = float(np.mean(tokens))
    return result


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--split", default="heldout", choices=("train", "heldout"))
    cli.add_argument("--pages", type=int, default=100, help="of each level")
    cli.add_argument("--budget", type=float, default=1.5)
    args = cli.parse_args()
    console = Console(width=120)

    compared = compare_scores(args.split, 200)
    table = Table("a view of 448 × 448, patches that count of 1,024", *SCORES)
    for row in next(iter(compared.values())):
        digits = 2 if row.startswith(("AUC", "CPU")) else 0
        table.add_row(row, *(f"{values[row]:.{digits}f}" for values in compared.values()))
    console.print(table)

    pages: dict[str, dict[str, dict[str, float]]] = {}
    table = Table("pages: slice with most of the small print at 4x (share of all small print)", *SCORES, "tokens / 16x")
    for level, resolution in ((2, 224), (3, 224), (4, 224), (4, 448)):
        judged = judge_pages(level, resolution, args.split, args.pages, args.budget)
        pages[f"level {level}, views of {resolution}²"] = judged
        cells = [f"{100 * r['slice found']:.0f} % ({100 * r['print at 4x']:.0f} %)" for r in judged.values()]
        table.add_row(f"level {level}, views of {resolution}²", *cells, f"{judged['strokes (in use)']['tokens']:.2f}")
    console.print(table)
    hardware = {"machine": platform.machine(), "python": platform.python_version(), "numpy": np.__version__}
    print(json.dumps({"split": args.split, "budget": args.budget, "scores": compared, "pages": pages, **hardware}))


if __name__ == "__main__":
    main()
