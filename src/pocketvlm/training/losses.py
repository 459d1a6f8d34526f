"""Hidden states of a batch → losses: cross-entropy of answers, and preferences (DPO).

The head has 248,094 entries in the published model: the scores of 1,000 tokens are a gigabyte in fp32. So losses are
computed some rows at a time, and their scores once more in the backward pass instead of being kept.

Shapes: R learnt tokens · D hidden · B pairs
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pocketvlm.model.vlm import MiniCPMV
from pocketvlm.training.batches import Batch

ROWS = 512  # whose scores are in memory at a time


def answer_losses(model: MiniCPMV, batch: Batch) -> Tensor:
    """fp32 [R]: minus the log probability of each learnt token of a batch, in order of the rows."""
    device = model.device
    features = model.encode_views(batch.patches, batch.views)
    hidden_TD = model(batch.input_ids.to(device), batch.packed(device), features)
    hidden_RD = hidden_TD.index_select(0, batch.rows.to(device))
    parts = zip(hidden_RD.split(ROWS), batch.targets.to(device).split(ROWS), strict=True)
    return torch.cat([checkpoint(_cross_entropy, model, h, t, use_reentrant=False) for h, t in parts])


def _cross_entropy(model: MiniCPMV, hidden_RD: Tensor, targets_R: Tensor) -> Tensor:
    return F.cross_entropy(model.logits(hidden_RD).float(), targets_R, reduction="none")


def sequence_log_probs(losses_R: Tensor, batch: Batch) -> Tensor:
    """[samples]: the log probability of all that is learnt of each sample."""
    samples = batch.samples.to(losses_R.device)
    return losses_R.new_zeros(len(batch.lengths)).index_add(0, samples, -losses_R)


def dpo_losses(chosen_B: Tensor, rejected_B: Tensor, reference_B: Tensor, beta: float) -> Tensor:
    """[B] losses of direct preference optimisation (Rafailov et al., arXiv 2305.18290, equation 7).

    Args:
        chosen_B, rejected_B: log probabilities of the answers under the model that learns.
        reference_B: how much more probable the chosen ones are under the model before.
        beta: how far the model may go from that.
    """
    return -F.logsigmoid(beta * (chosen_B - rejected_B - reference_B))
