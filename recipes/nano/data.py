"""Samples → one packed training batch: a sequence a sample, in which its questions follow each other.

Shapes:  P patches of all views · N visual tokens of all views · T tokens of all sequences
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from pocketvlm.config import ImageConfig
from pocketvlm.processing.prompt.tokenizer import Tokenizer
from pocketvlm.synthetic import Question, Sample, make_sample
from pocketvlm.training.batches import Batch
from recipes.nano.cells import CellTargets, cell_targets
from recipes.nano.collage import CollageLevel, draw_collage
from recipes.nano.curriculum import Share, Stage
from recipes.nano.lookup import LookupLevel, draw_lookup
from recipes.nano.parts import PartTargets, part_targets
from recipes.nano.places import named, places
from recipes.nano.rewording import reword
from recipes.nano.views import EncodedPicture, encode_picture

# Kinds of questions that are always asked: a picture has few of them, and all others outnumber them.
RARE = frozenset({"absent", "box"})
NOWHERE = -1  # of `TrainingBatch.names`
TURN = 32  # tokens behind a question, and some more: the end of its turn, and the opening of the answer


@dataclass(frozen=True, slots=True, eq=False)
class TrainingBatch(Batch):
    """What one process learns from in one step.

    Attributes:
        weights: float [R], of the losses of the `rows`: with a mean of 1, and less for each token of a longer answer.
        cells: of the N visual tokens, for the dense losses, which are multiplied by `cells_weight`.
        parts: of the tower's tokens, four for each of the N visual tokens.
        places: int64 [2, K], which of the `rows` is shown by which of the N visual tokens, where that is known.
        names: int64 [2, K], which of the `input_ids`, of a question, names what which of the N visual tokens shows;
            `NOWHERE` in the place of a visual token where it is not there.
        tasks: of each sample.
        language: whether the decoder takes part.
        tower_rests: whether nothing but the decoder learns.
    """

    weights: Tensor
    cells: CellTargets
    parts: PartTargets
    places: Tensor
    names: Tensor
    tasks: list[str]
    language: bool
    cells_weight: float
    tower_rests: bool = False


class Collator:
    """Draws the samples of a step and packs them."""

    def __init__(self, tokenizer: Tokenizer, config: ImageConfig) -> None:
        self.tokenizer, self.config = tokenizer, config
        self.end = tokenizer.control_id("<|im_end|>")

    def __call__(
        self,
        stage: Stage,
        seed: tuple[int, ...],
        patches: int | None = None,
        step: int = 0,
        mix: Mapping[str, float] = MappingProxyType({}),
    ) -> TrainingBatch:
        """Samples of `stage` at its `step` until they have `patches` patches (that step's number when None). Where the
        decoder learns the shares of kinds of pictures are multiplied by those of `mix`."""
        rng = np.random.default_rng(seed)
        tasks, mix = stage.tasks_at(step), mix if stage.has_language(step) else {}
        weights = np.array([share.weight * mix.get(share.task, 1.0) for share in tasks])
        drawn: list[tuple[Sample, list[EncodedPicture], list[Question]]] = []
        brief: list[bool] = []
        wanted = stage.patches_at(step) if patches is None else patches
        while wanted > 0:
            share = tasks[int(rng.choice(len(weights), p=weights / weights.sum()))]
            sample = self.draw(share, (*seed, len(drawn)))
            pictures = self.encode(sample, stage, rng)
            questions = [reword(rng, question) for question in self.choose(sample, rng, stage.questions)]
            drawn.append((sample, pictures, questions))
            brief.append(bool(rng.random() < stage.brief))
            wanted -= sum(len(picture.patches) for picture in pictures)
        batch = self.pack(drawn, seed, stage.has_language(step), stage.cells, brief)
        return dataclasses.replace(batch, tower_rests=batch.language and stage.tower_rests)

    @staticmethod
    def draw(share: Share, seed: tuple[int, ...]) -> Sample:
        fonts = (*seed[:1], sum(seed[1:2]) // 16, *seed[2:-1])  # of 16 steps
        if isinstance(share.level, CollageLevel):
            return draw_collage(seed, share.level, fonts=fonts)
        if isinstance(share.level, LookupLevel):
            return draw_lookup(seed, share.level, fonts=fonts)
        return make_sample(share.task, seed, "train", share.level)

    def encode(self, sample: Sample, stage: Stage, rng: np.random.Generator) -> list[EncodedPicture]:
        """The pictures or frames of a sample as views."""
        mode = stage.rates.draw(rng)
        as_is = float(rng.random() < stage.as_is)  # frames and pictures of one sample alike
        slices = None if sample.fps is None else 1  # frames are not sliced, as at inference
        return [encode_picture(picture, self.config, mode, rng, as_is, slices) for picture in sample.images]

    @staticmethod
    def choose(sample: Sample, rng: np.random.Generator, most: int) -> list[Question]:
        """A few questions in random order, each with another answer: asking for the same word twice teaches little."""
        drawn = [sample.questions[q] for q in rng.permutation(len(sample.questions)).tolist()]
        drawn.sort(key=lambda question: question.kind not in RARE)
        chosen: dict[str, Question] = {}
        for question in drawn:
            chosen.setdefault(question.answer, question)
        kept = list(chosen.values())[:most]
        return [kept[i] for i in rng.permutation(len(kept)).tolist()]

    def opening(self, sample: Sample, pictures: Sequence[EncodedPicture]) -> str:
        """The chat template's text up to the first question: the user's turn with its pictures or its clip."""
        pad = "<|image_pad|>" if sample.fps is None else "<|video_pad|>"
        blocks = []
        for picture in pictures:
            overview, *slices = (pad * view.visual_tokens for view in picture.views)
            block = f"<image>{overview}</image>"
            if picture.plan.grid:
                rows, columns = picture.plan.grid
                parts = [f"<slice>{part}</slice>" for part in slices]
                block += "\n".join("".join(parts[r * columns : (r + 1) * columns]) for r in range(rows))
            blocks.append(block)
        if sample.fps is not None:
            blocks = ["".join(blocks)]
        return "<|im_start|>user\n" + "".join(f"<image_id>{i}</image_id>{block}\n" for i, block in enumerate(blocks))

    def turn(self, question: str, first: bool, brief: bool = False) -> str:
        """A question and the opening of its answer. In training every answer is opened as the last one is at
        inference; there, earlier turns have lost their (empty) reasoning. A later one may be `brief`."""
        if brief and not first:
            return f"\n{question}</think>\n\n"
        start = "" if first else "\n<|im_start|>user\n"
        return f"{start}{question}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"

    def pack(
        self,
        drawn: Sequence[tuple[Sample, Sequence[EncodedPicture], Sequence[Question]]],
        seed: tuple[int, ...] = (),
        language: bool = True,
        cells_weight: float = 0.5,
        brief: Sequence[bool] = (),
    ) -> TrainingBatch:
        """One sequence a sample: nothing passes from one to the next. `seed` is said of them in errors; `brief` are
        those of `Stage.brief`, none when empty."""
        ids: list[int] = []
        rows: list[int] = []
        targets: list[int] = []
        weights: list[float] = []
        lengths, cells, parts = [], [], []
        shown: list[tuple[int, int]] = []
        names: list[tuple[int, int]] = []
        visual = 0
        for place, (sample, pictures, questions) in enumerate(drawn):
            is_brief = bool(brief) and brief[place]
            began = len(ids)
            text = self.opening(sample, pictures)
            for number, question in enumerate(questions):
                prompt = self.tokenizer.encode_trusted(text + self.turn(question.text, number == 0, is_brief))
                reply = [*self.tokenizer.encode_trusted(question.answer), self.end]
                # The end of an answer is only an input when another turn follows it.
                if language:
                    shown += self.shown(sample, pictures, reply[:-1], len(rows), visual)
                    names += self.named(sample, pictures, prompt, question, len(ids), visual)
                rows += range(len(ids) + len(prompt) - 1, len(ids) + len(prompt) + len(reply) - 1)
                targets += reply
                weights += [len(reply) ** -0.5] * len(reply)
                ids += prompt + reply[:-1]
                if number + 1 < len(questions):
                    ids.append(self.end)
                text = ""
            lengths.append(len(ids) - began)
            objects = sample.objects or ((),) * len(pictures)
            for picture, print_, things in zip(pictures, sample.characters, objects, strict=True):
                cells.append(cell_targets(print_, things, picture.plan, self.config.patch_size))
                parts.append(part_targets(print_, picture.plan, self.config.patch_size))
                visual += sum(view.visual_tokens for view in picture.views)
        pictures_of_all = [picture for _, pictures, _ in drawn for picture in pictures]
        tasks = [sample.task for sample, *_ in drawn]
        return TrainingBatch(
            input_ids=torch.tensor(ids),
            rows=torch.tensor(rows),
            targets=torch.tensor(targets),
            patches=torch.cat([picture.patches for picture in pictures_of_all]),
            views=[view for picture in pictures_of_all for view in picture.views],
            lengths=lengths,
            sources=[f"{task} of seed {(*seed, number)}" for number, task in enumerate(tasks)],
            weights=torch.tensor(weights) * (len(weights) / sum(weights)),
            cells=CellTargets(*(torch.cat(part) for part in zip(*cells, strict=True))),
            parts=PartTargets(*(torch.cat(part) for part in zip(*parts, strict=True))),
            places=torch.tensor(shown, dtype=torch.long).reshape(-1, 2).T,
            names=torch.tensor(names, dtype=torch.long).reshape(-1, 2).T,
            tasks=tasks,
            language=language,
            cells_weight=cells_weight,
        )

    def shown(
        self, sample: Sample, pictures: Sequence[EncodedPicture], reply: Sequence[int], row: int, visual: int
    ) -> list[tuple[int, int]]:
        """Pairs of `TrainingBatch.places` for an answer, whose rows begin at `row`, and the visual tokens of whose
        pictures begin at `visual`; none where the answer stands in several pictures."""
        tokens = [self.tokenizer.decode([token], skip_special=False) for token in reply]
        objects = sample.objects or ((),) * len(pictures)
        found: list[tuple[int, int]] = []
        for picture, print_, things in zip(pictures, sample.characters, objects, strict=True):
            where = places(tokens, print_, things, picture.plan, self.config.patch_size)
            if where is not None and found:
                return []
            found += [(row + i, visual + cell) for i, cells in enumerate(where or ()) for cell in cells]
            visual += sum(view.visual_tokens for view in picture.views)
        return found

    def named(
        self,
        sample: Sample,
        pictures: Sequence[EncodedPicture],
        prompt: Sequence[int],
        question: Question,
        position: int,
        visual: int,
    ) -> list[tuple[int, int]]:
        """Pairs of `TrainingBatch.names` for the question that ends `prompt`, which begins at `position`."""
        first = max(0, len(prompt) - len(question.text) - TURN)
        tokens = [self.tokenizer.decode([token], skip_special=False) for token in prompt[first:]]
        ends = np.cumsum([len(token) for token in tokens])
        began = "".join(tokens).rfind(question.text)
        inside = [i for i, end in enumerate(ends) if began < end <= began + len(question.text)]
        objects = sample.objects or ((),) * len(pictures)
        found: dict[int, list[int]] = {}
        missed: set[int] = set()
        assert began >= 0, question
        words = [tokens[i] for i in inside]
        for picture, print_, things in zip(pictures, sample.characters, objects, strict=True):
            where = named(words, print_, things, picture.plan, self.config.patch_size, question.kind)
            for i, cells in zip(inside, where, strict=True):
                if cells is None:
                    missed.add(i)
                elif cells:
                    found.setdefault(i, []).extend(visual + cell for cell in cells)
            visual += sum(view.visual_tokens for view in picture.views)
        nowhere = {i: [NOWHERE] for i in missed - found.keys()}
        return [(position + first + i, cell) for i, cells in (found | nowhere).items() for cell in cells]
