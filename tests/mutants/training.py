"""Mistakes in training: what is learnt of a sample, what a step weighs, and where a run goes on."""

from __future__ import annotations

from mutants.mutant import of

MUTANTS = [
    *of(
        "training/examples.py",
        "training/test_examples.py",
        ("is_empty = names[2] == THOUGHT and not names[1].strip()", "is_empty = False"),
        ("inside = not (piece.is_control and piece.text == END)", "inside = not piece.is_control"),
        (
            "options, processor = {**self.options, **sample.options}",
            "options, processor = {**sample.options, **self.options}",
        ),
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
        "training/trainer.py",
        "training/test_own_schedules.py",
        ("self.optimiser = optimiser or make", "self.optimiser = make"),
        ("self.schedule = schedule or _schedule", "self.schedule = _schedule"),
        ("            self.objective.figures(),\n", ""),
    ),
    *of(
        "training/schedules.py",
        "training/test_own_schedules.py",
        ("min(1.0, max(by_time, by_steps))", "min(1.0, by_steps)"),
    ),
    *of(
        "training/processes.py",
        "training/test_own_schedules.py",
        ("grad.view_as(p) if count else None", "grad.view_as(p)"),
    ),
    *of(
        "training/checkpoints.py",
        "training/test_own_schedules.py",
        ("for name, p in learns.items()}, file)", "for name, p in learns.items() if p.requires_grad}, file)"),
    ),
    *of(
        "training/feed.py",
        "training/test_trainer.py",
        ("begin = first * batch_size", "begin = 0"),
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
    *of(
        "training/batches.py",
        "training/test_batches.py",
        ("tokens + sizes[i][0] <= max_tokens and", "tokens <= max_tokens and"),
        ("kept.extend(items[i])", "kept.extend(items[i][:1])"),
    ),
    *of(
        "training/averaging.py",
        "training/test_averaging.py",
        ("(1 + step) / (10 + step)", "1.0"),
        ("average.copy_(values[name])", "pass"),
        ("weights.data, self.values[name] = average, weights.data", "weights.data = average"),
    ),
    *of(
        "training/trainer.py",
        "training/test_averaging.py",
        ("self.average.update(done.step)", "pass"),
        ("torch.no_grad(), self.average.applied():", "torch.no_grad():"),
        ("and done.evaluated != done.step", "and not done.evaluated"),
        ('self.settings.result == "best"', "False"),
        ("            self._evaluate_if_due(on_evaluation)  # a", "            # a"),
    ),
    *of(
        "training/interrupts.py",
        "training/test_averaging.py",
        ("        if self.is_set:\n            raise KeyboardInterrupt", "        raise KeyboardInterrupt"),
        ("        if self.is_set:\n            raise KeyboardInterrupt\n", ""),
    ),
    *of(
        "training/optimisers.py",
        "training/test_averaging.py",
        ('settings.optimiser == "adamw8bit"', "False"),
    ),
    *of(
        "training/random_rates.py",
        "training/test_random_rates.py",
        ("generator.randint(2, size=len(unit.views))", "[1] * len(unit.views)"),
    ),
    *of(
        "training/feed.py",
        "training/test_random_rates.py",
        ("self.encoder(sample, position)", "self.encoder(sample, 0)"),
    ),
    *of(
        "training/trackers.py",
        "training/test_trackers.py",
        ("purge_step=step + 1", "purge_step=None"),
        ("if not known.exists():", "if True:"),
    ),
]
