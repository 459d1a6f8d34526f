"""What a run minimises: the cross-entropy of answers, or how often the rejected ones are preferred."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from pocketvlm.model.vlm import MiniCPMV
from pocketvlm.training.batches import Batch, bucketed
from pocketvlm.training.examples import Example
from pocketvlm.training.losses import answer_losses, dpo_losses, sequence_log_probs

Item = tuple[Example, ...]


class Objective(ABC):
    """What the trainer knows of it: its losses, and how many one item has. What is not among the losses of a step does
    not learn in it."""

    @abstractmethod
    def weight(self, item: Item) -> int:
        """Number of losses of an item."""

    @abstractmethod
    def losses(self, model: MiniCPMV, batch: Batch) -> Tensor:
        """All of them; the mean over a whole step is minimised."""

    @abstractmethod
    def source_of(self, batch: Batch, loss: int) -> str:
        """The sample that one of the losses belongs to."""

    def batches(self, items: Sequence[Item], max_tokens: int, max_patches: int) -> Iterable[Batch]:
        """What a step's forward and backward passes work on, one after the other."""
        return bucketed(items, max_tokens, max_patches)

    def figures(self) -> Mapping[str, float]:
        """What else is known of the losses of the step that was taken, by name."""
        return {}


class Answers(Objective):
    """Supervised fine-tuning: one loss for each learnt token, so that long and short answers weigh as their tokens."""

    def weight(self, item: Item) -> int:
        return item[0].learnt

    def losses(self, model: MiniCPMV, batch: Batch) -> Tensor:
        return answer_losses(model, batch)

    def source_of(self, batch: Batch, loss: int) -> str:
        return batch.sources[int(batch.samples[loss])]


class Preferences(Objective):
    """Direct preference optimisation: one loss for each pair; a batch has the chosen answer before the rejected one.

    Args:
        reference: within it, the model is the one that the run began with.
        rpo_alpha: weight of the mean loss of the chosen answer's tokens, which is added to that of its pair. Without it
            both answers may become less probable, the rejected one only more so (RPO, arXiv 2404.19733, equation 4).
    """

    def __init__(
        self, beta: float, reference: Callable[[MiniCPMV], AbstractContextManager[MiniCPMV]], rpo_alpha: float = 0.0
    ) -> None:
        self.beta, self.reference, self.rpo_alpha = beta, reference, rpo_alpha

    def weight(self, item: Item) -> int:  # noqa: ARG002
        return 1

    def losses(self, model: MiniCPMV, batch: Batch) -> Tensor:
        with torch.no_grad(), self.reference(model) as before:
            old = sequence_log_probs(answer_losses(before, batch), batch)
        new = sequence_log_probs(answer_losses(model, batch), batch)
        losses = dpo_losses(new[0::2], new[1::2], old[0::2] - old[1::2], self.beta)
        if not self.rpo_alpha:
            return losses
        lengths = torch.bincount(batch.samples, minlength=len(batch.lengths)).to(new.device)
        return losses - self.rpo_alpha * new[0::2] / lengths[0::2]

    def source_of(self, batch: Batch, loss: int) -> str:
        return batch.sources[2 * loss]
