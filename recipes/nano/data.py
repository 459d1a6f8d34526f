"""Samples → one packed training batch.

Shapes:  P patches of all pictures · N visual tokens of all sequences · T tokens of all sequences
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pocketvlm.config import DownsampleMode, ImageConfig
from pocketvlm.model.packing import PackedBatch, Segment
from pocketvlm.processing.image import encode_image
from pocketvlm.processing.slicing import plan_views
from pocketvlm.processing.tokenizer import Tokenizer
from pocketvlm.synthetic import Sample, make_sample
from pocketvlm.views import Size, View
from recipes.nano.settings import SHARE_4X, Stage

SLOTS = 8  # characters of one visual token that the tower's dense loss asks for
CLASSES = 96  # printable ASCII, and 0 for "no more characters"
QUESTIONS = 2  # of each picture, at most


@dataclass
class TrainingBatch:
    patches: Tensor  # uint8 [P, patch, patch, 3]
    views: list[View]
    feature_index: Tensor  # [N] rows of the features of all views, for each sequence in turn
    input_ids: Tensor  # [T]
    targets: Tensor  # [T] id of the next token where it is part of an answer, else -100
    batch: PackedBatch
    characters: Tensor  # [features, SLOTS] classes, for the dense loss


def character_targets(sample: Sample, views: list[View], grid: tuple[int, int] | None, sizes: list[Size]) -> Tensor:
    """[features, SLOTS] the printed characters whose middle falls into each visual token's cell, in reading order.

    Args:
        sizes: pixels of the resized overview, and of the resized picture before slicing.
    """
    height, width = sample.image.shape[:2]
    columns = grid[1] if grid else 0
    targets = []
    for number, view in enumerate(views):
        side = 4 if view.downsample_mode == "16x" else 2
        h, w = view.size.height // side, view.size.width // side
        # Cells of this view, counted over the whole resized picture.
        first_row, first_column, size = 0, 0, sizes[0]
        if number:
            first_row, first_column = (number - 1) // columns * h, (number - 1) % columns * w
            size = sizes[1]
        cells: dict[tuple[int, int], list[int]] = {}
        for box in sample.characters[0]:
            y = (box.top + box.bottom) / 2 * size.height / height / (14 * side) - first_row
            x = (box.left + box.right) / 2 * size.width / width / (14 * side) - first_column
            if 0 <= y < h and 0 <= x < w:
                cells.setdefault((int(y), int(x)), []).append(ord(box.character) - 31)
        target = torch.zeros(h, w, SLOTS, dtype=torch.long)
        for (y, x), classes in cells.items():
            kept = torch.tensor(classes[:SLOTS])
            target[int(y), int(x), : len(kept)] = kept
        targets.append(target.flatten(0, 1))
    return torch.cat(targets)


class Collator:
    """Draws the pictures of a step and packs them."""

    def __init__(self, tokenizer: Tokenizer, config: ImageConfig) -> None:
        self.tokenizer, self.config = tokenizer, config
        self.end = tokenizer.control_id("<|im_end|>")

    def __call__(self, stage: Stage, seed: tuple[int, ...], pictures: int, share_4x: float = SHARE_4X) -> TrainingBatch:
        rng = np.random.default_rng(seed)
        weights = np.array([weight for *_, weight in stage.tasks])
        samples = []
        for i in range(pictures):
            task, difficulty, _ = stage.tasks[int(rng.choice(len(weights), p=weights / weights.sum()))]
            sample = make_sample(task, (*seed, i), "train", difficulty)
            mode: DownsampleMode = "4x" if rng.random() < share_4x else "16x"
            samples.append((sample, mode, self.choose(sample, rng)))
        return self.pack(samples)

    @staticmethod
    def choose(sample: Sample, rng: np.random.Generator) -> list[int]:
        """A few questions in random order, each with another answer: asking for the same word twice teaches little."""
        chosen: dict[str, int] = {}
        for q in rng.permutation(len(sample.questions)).tolist():
            chosen.setdefault(sample.questions[q][1], q)
        return list(chosen.values())[:QUESTIONS]

    def views(
        self, sample: Sample, mode: DownsampleMode
    ) -> tuple[Tensor, list[View], tuple[int, int] | None, list[Size]]:
        """Small strips go in as they are (early stages see few patches); everything else as at inference."""
        height, width = sample.image.shape[:2]
        if height * width < 200 * 200 and height % 56 == 0 and width % 56 == 0:
            size = Size(height=height, width=width)
            view = View(Size(height=height // 14, width=width // 14), mode)
            pixels = torch.from_numpy(sample.image.copy()).view(height // 14, 14, width // 14, 14, 3)
            return pixels.permute(0, 2, 1, 3, 4).reshape(-1, 14, 14, 3), [view], None, [size]
        size = Size(height=height, width=width)
        plan = plan_views(size, self.config, mode)
        encoded = encode_image(sample.image, self.config, mode)
        return encoded.patches, list(encoded.views), encoded.grid, [plan.overview, plan.refined or plan.overview]

    def prompt(self, views: list[View], grid: tuple[int, int] | None, question: str) -> str:
        """The chat template's text for one picture and one question."""
        pads = ["<|image_pad|>" * view.visual_tokens for view in views]
        picture = f"<image_id>0</image_id><image>{pads[0]}</image>"
        if grid:
            slices = [f"<slice>{pad}</slice>" for pad in pads[1:]]
            rows, columns = grid
            picture += "\n".join("".join(slices[r * columns : (r + 1) * columns]) for r in range(rows))
        return f"<|im_start|>user\n{picture}\n{question}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"

    def pack(self, samples: list[tuple[Sample, DownsampleMode, list[int]]]) -> TrainingBatch:
        patches, all_views, characters, index, ids, targets, segments = [], [], [], [], [], [], []
        features = 0
        for sample, mode, chosen in samples:
            pixels, views, grid, sizes = self.views(sample, mode)
            patches.append(pixels)
            all_views += views
            characters.append(character_targets(sample, views, grid, sizes))
            count = sum(view.visual_tokens for view in views)
            for question, answer, _ in (sample.questions[q] for q in chosen):
                prompt = self.tokenizer.encode_trusted(self.prompt(views, grid, question))
                reply = [*self.tokenizer.encode_plain(answer), self.end]
                ids += prompt + reply[:-1]
                targets += [-100] * (len(prompt) - 1) + reply
                segments.append(Segment(len(prompt) + len(reply) - 1))
                index.append(torch.arange(features, features + count))
            features += count
        return TrainingBatch(
            torch.cat(patches),
            all_views,
            torch.cat(index),
            torch.tensor(ids),
            torch.tensor(targets),
            PackedBatch.of(segments),
            torch.cat(characters),
        )
