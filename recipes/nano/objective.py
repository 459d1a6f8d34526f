"""What nano learns from: the answers, and what stands in the cell of each visual token."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pocketvlm.config import ModelConfig
from pocketvlm.model.vision.view_packing import pack_views
from pocketvlm.model.vlm import MiniCPMV
from pocketvlm.training.objectives import Objective
from pocketvlm.training.processes import Processes
from recipes.nano.cells import PARTS, CellReader
from recipes.nano.data import NOWHERE, TrainingBatch
from recipes.nano.guided import Watched
from recipes.nano.parts import PartReader

PLACES_WEIGHT = 0.5
# Heads that are told where to look: of the first layer of full attention to what a question names, of the last one (a
# head of each group of keys and values) to where the answer stands.
NAMING, ANSWERING = (0,), (0, 2)
PARTS_WEIGHT = 2.0  # of what stands under the tower's own tokens: 1 and 3 both read sooner than 0, 3 a little sooner
OBJECTS_WEIGHT = 0.1  # its loss is four times that of characters, and comes from few pictures of a step


class Heads(nn.Module):
    """What is learnt beside the model: the heads on the visual tokens and inside the tower."""

    def __init__(self, hidden: int, tower: int) -> None:
        super().__init__()
        self.cells, self.parts = CellReader(hidden), PartReader(tower)


class Learner(nn.Module):
    """The model, and the heads that ask it for what it sees and where, which are not published."""

    def __init__(self, model: MiniCPMV) -> None:
        super().__init__()
        self.model = model
        self.reader = Heads(model.config.text.hidden_size, model.config.vision.hidden_size)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def config(self) -> ModelConfig:
        return self.model.config


class CellsAndAnswers(Objective):
    """One loss for each answer token, and in steps without the decoder one for all; the mean loss of the cells is
    added to each."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self._seen: dict[str, Tensor] = {}
        self._tasks: dict[str, float] = {}
        self._samples = 0

    def weight(self, item: tuple[Any, ...]) -> int:
        (batch,) = item
        return len(batch.rows) if batch.language else 1

    def batches(
        self,
        items: Sequence[Any],
        max_tokens: int,  # noqa: ARG002
        max_patches: int,  # noqa: ARG002
    ) -> Iterable[TrainingBatch]:
        """A step is packed where it is drawn, as large as its stage says."""
        return [batch for (batch,) in items]

    def source_of(self, batch: Any, loss: int) -> str:
        return str(batch.sources[int(batch.samples[loss])]) if batch.language else f"one of {', '.join(batch.sources)}"

    def losses(self, model: Any, batch: Any) -> Tensor:
        """Of a learner: fp32 [R], or [1] without the decoder."""
        cells, answers, right = self.parts(model, batch)
        self._seen = {name: loss.detach() for name, loss in cells.items()}
        self._tasks, self._samples = {}, len(batch.tasks)
        dense = cells["characters"] + PARTS_WEIGHT * cells["parts"] + OBJECTS_WEIGHT * cells["objects"]
        dense = batch.cells_weight * dense
        if answers is None or right is None:
            return dense[None]
        dense = dense + PLACES_WEIGHT * (cells["places"] + cells["names"])
        self._seen |= {"answers": answers.detach().mean(), "right": right.float().mean()}
        of_task = defaultdict(list)
        for sample, loss in zip(batch.samples.tolist(), answers.tolist(), strict=True):
            of_task[batch.tasks[sample]].append(loss)
        self._tasks = {task: sum(values) / len(values) for task, values in of_task.items()}
        return answers * batch.weights.to(answers.device) + dense

    @staticmethod
    def parts(learner: Learner, batch: TrainingBatch) -> tuple[dict[str, Tensor], Tensor | None, Tensor | None]:
        """The mean losses of the cells; and of the answer tokens their losses, and whether each was the most likely
        one, [R], None without the decoder."""
        model, device = learner.model, learner.device
        with torch.set_grad_enabled(torch.is_grad_enabled() and not batch.tower_rests):
            packing = pack_views(batch.views, model.config.vision.positions_per_side, device)
            tower = model.vision_tower(model.normalise(batch.patches.to(device)), packing)
            features = model.merger(tower).index_select(0, packing.output_index)
            cells = learner.reader.cells(features, batch.cells.to(device))
            tokens = tower.view(len(features), PARTS, -1).index_select(0, packing.output_index)
            cells["parts"] = learner.reader.parts(tokens, batch.parts.to(device))
        if not batch.language:
            return cells, None, None
        text, packed = model.config.text, batch.packed(device)
        full = [layer.self_attn for layer in model.language_model.layers if not layer.is_linear]
        with Watched(full[0], NAMING) as naming, Watched(full[-1], ANSWERING) as answering:
            hidden = model(batch.input_ids.to(device), packed, features)
        samples, names, places = _places(batch, model.config, device)
        cells["names"] = naming.loss(text, packed, samples, *names)
        cells["places"] = answering.loss(text, packed, samples, *places)
        logits, targets = model.logits(hidden.index_select(0, batch.rows.to(device))).float(), batch.targets.to(device)
        right = logits.detach().argmax(-1) == targets
        return cells, F.cross_entropy(logits, targets, reduction="none"), right

    def figures(self) -> Mapping[str, float]:
        """Means over the processes, and the samples of all; and of this process alone the loss of each task as
        "tasks/NAME"."""
        world = self.processes.world
        means = (torch.stack([*self._seen.values()]) / world).double()
        self.processes.add(means)
        tasks = {f"tasks/{task}": loss for task, loss in self._tasks.items()}
        return {**dict(zip(self._seen, means.tolist(), strict=True)), "samples": self._samples * world, **tasks}


def _places(
    batch: TrainingBatch, config: ModelConfig, device: torch.device
) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """[T] samples of the tokens; what questions name, and where answers stand, as pairs of tokens (`Watched.loss`)."""
    pads = torch.tensor([config.image_token_id, config.video_token_id])
    visual = torch.isin(batch.input_ids, pads).nonzero().squeeze(1)
    ends = torch.tensor(batch.lengths).cumsum(0)
    samples = torch.bucketize(torch.arange(len(batch.input_ids)), ends, right=True)
    # What is not there is looked for at the beginning of the sample, which shows nothing.
    beginnings = (ends - torch.tensor(batch.lengths))[samples[batch.names[0]]]
    where = torch.where(batch.names[1] == NOWHERE, beginnings, visual[batch.names[1]])
    names = (batch.names[0].to(device), where.to(device))
    places = (batch.rows[batch.places[0]].to(device), visual[batch.places[1]].to(device))
    return samples.to(device), names, places
