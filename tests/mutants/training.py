"""Mistakes in training: what is learnt of a sample, what a step weighs, and where a run goes on."""

from __future__ import annotations

from mutants.mutant import of

MUTANTS = [
    *of(
        "training/examples.py",
        "training/test_examples.py",
        ("is_empty = names[2] == THOUGHT and not names[1].strip()", "is_empty = False"),
        ("inside = not (piece.is_control and piece.text == END)", "inside = not piece.is_control"),
        ("options = {**self.options, **sample.options}", "options = {**sample.options, **self.options}"),
        ("has_pictures or not is_learnt[: self.max_tokens].any()", "has_pictures"),
    ),
    *of(
        "training/batches.py",
        "training/test_gradients.py",
        ("[Segment(length) for length in self.lengths]", "[Segment(sum(self.lengths))]"),
        ("tokens + more_tokens > max_tokens", "tokens > max_tokens"),
    ),
    *of(
        "training/losses.py",
        "training/test_gradients.py",
        ("chosen_B - rejected_B - reference_B", "chosen_B - rejected_B + reference_B"),
    ),
    *of(
        "training/trainer.py",
        "training/test_trainer.py",
        ("loss = losses.sum() / weight", "loss = losses.mean()"),
        ("if not isinstance(one, SampleError):\n                good", "if True:\n                good"),
        ("        if bool(torch.isfinite(losses).all()):", "        if True:"),
    ),
    *of(
        "training/feed.py",
        "training/test_trainer.py",
        ("first * batch_size)", "0)"),
        ("[rank::world]", ""),
    ),
    *of(
        "training/checkpoints.py",
        "training/test_trainer.py",
        ("        optimiser.load_state_dict(", "        len("),
    ),
    *of(
        "training/reference_policy.py",
        "training/test_trainer.py",
        ("before = copy.deepcopy(model)", "before = model"),
    ),
]
