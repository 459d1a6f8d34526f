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
from recipes.nano.data import TrainingBatch
from recipes.nano.parts import PartReader
from recipes.nano.places import Pointer

PLACES_WEIGHT = 0.3
PARTS_WEIGHT = 2.0  # of what stands under the tower's own tokens: 1 and 3 both read sooner than 0, 3 a little sooner
OBJECTS_WEIGHT = 0.1  # its loss is four times that of characters, and comes from few pictures of a step


class Heads(nn.Module):
    """What is learnt beside the model: the heads on the visual tokens, inside the tower and on the decoder."""

    def __init__(self, hidden: int, tower: int) -> None:
        super().__init__()
        self.cells, self.pointer, self.parts = CellReader(hidden), Pointer(hidden), PartReader(tower)


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
        dense = dense + PLACES_WEIGHT * cells["places"]
        self._seen |= {"answers": answers.detach().mean(), "right": right.float().mean()}
        of_task = defaultdict(list)
        for sample, loss in zip(batch.samples.tolist(), answers.tolist(), strict=True):
            of_task[batch.tasks[sample]].append(loss)
        self._tasks = {task: sum(values) / len(values) for task, values in of_task.items()}
        return answers + dense

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
        states: list[Tensor] = []
        layers = model.language_model.layers
        hook = layers[len(layers) // 2].register_forward_hook(lambda _layer, _args, out: states.append(out))
        try:
            hidden = model(batch.input_ids.to(device), batch.packed(device), features)
        finally:
            hook.remove()
        cells["places"] = learner.reader.pointer(states[0], *_places(batch, model.config, device))
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


def _places(batch: TrainingBatch, config: ModelConfig, device: torch.device) -> tuple[Tensor, ...]:
    """What a `Pointer` asks for of a batch."""
    pads = torch.tensor([config.image_token_id, config.video_token_id])
    visual = torch.isin(batch.input_ids, pads).nonzero().squeeze(1)
    ends = torch.tensor(batch.lengths).cumsum(0)
    visual_samples = torch.bucketize(visual, ends, right=True)
    parts = (batch.rows, visual, batch.samples, visual_samples, batch.places)
    return tuple(part.to(device) for part in parts)
