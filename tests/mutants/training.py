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
            "options, processor = sample.with_options(self.options)",
            "options, processor = dict(self.options)",
        ),
        ("has_pictures or not is_learnt[:most].any()", "has_pictures"),
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
        ("loss = losses.sum() / weight", "loss = losses.mean()", "test_a_step_is_the_same_in_one_batch_and_in_many"),
        (
            "if not isinstance(one, SampleError):\n                good",
            "if True:\n                good",
            "test_bad_samples_are_named_and_counted_or_stop_the_run",
        ),
        (
            "        if bool(torch.isfinite(losses).all()):",
            "        if True:",
            "test_a_loss_that_is_no_number_names_its_sample",
        ),
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
        ("counts.tolist(), strict=True) if count]", "counts.tolist(), strict=True)]"),
    ),
    *of(
        "training/checkpoints.py",
        "training/test_own_schedules.py",
        ("for name, p in learns.items()}, file)", "for name, p in learns.items() if p.requires_grad}, file)"),
    ),
    *of(
        "training/feed.py",
        "training/test_trainer.py",
        (
            "begin = first * batch_size",
            "begin = 0",
            "test_a_run_that_was_killed_goes_on_to_the_same_weights_bit_by_bit",
        ),
        ("[rank::world]", "", "test_processes_share_the_samples_of_a_step"),
        ("signal.signal(signal.SIGCHLD, signal.SIG_DFL)", "pass", "test_a_worker_that_was_killed_is_one_line"),
    ),
    *of(
        "training/checkpoints.py",
        "training/test_trainer.py",
        (
            "        optimiser.load_state_dict(",
            "        len(",
            "test_a_run_that_was_killed_goes_on_to_the_same_weights_bit_by_bit",
        ),
    ),
    *of(
        "training/reference_policy.py",
        "training/test_trainer.py",
        ("before = copy.deepcopy(model)", "before = model", "test_preferences_widen"),
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
        ("(1 + step) / (10 + step)", "1.0", "test_an_average_weighs_older_weights_less_and_less"),
        ("average.copy_(values[name])", "pass", "test_a_run_that_was_killed_goes_on_with_its_average_and_its_moments"),
        (
            "weights.data, self.values[name] = average, weights.data",
            "weights.data = average",
            "test_an_average_weighs_older_weights_less_and_less",
        ),
    ),
    *of(
        "training/trainer.py",
        "training/test_averaging.py",
        ("self.average.update(done.step)", "pass", "test_an_average_is_measured_and_is_the_result"),
        (
            "torch.no_grad(), self.average.applied():",
            "torch.no_grad():",
            "test_an_average_is_measured_and_is_the_result",
        ),
        (
            "and done.evaluated != done.step",
            "and not done.evaluated",
            "test_an_evaluation_that_was_stopped_is_made_when_the_run_goes_on",
        ),
        ('self.settings.result == "best"', "False", "test_the_best_weights_are_kept_and_can_be_the_result"),
        (
            "            self._evaluate_if_due(on_evaluation)  # a",
            "            # a",
            "test_an_evaluation_that_was_stopped_is_made_when_the_run_goes_on",
        ),
    ),
    *of(
        "training/interrupts.py",
        "training/test_averaging.py",
        (
            "        if self.is_set:\n            raise KeyboardInterrupt",
            "        raise KeyboardInterrupt",
            "test_a_signal_in_a_step_stops_behind_it_and_a_second_one_at_once",
        ),
        (
            "        if self.is_set:\n            raise KeyboardInterrupt\n",
            "",
            "test_a_signal_in_a_step_stops_behind_it_and_a_second_one_at_once",
        ),
    ),
    *of(
        "training/optimisers.py",
        "training/test_averaging.py",
        (
            'settings.optimiser == "adamw8bit":\n        made',
            "False:\n        made",
            "test_moments_in_8_bits_learn_alike_in_a_quarter_of_the_memory",
        ),
    ),
    *of(
        "training/random_rates.py",
        "training/test_random_rates.py",
        ("generator.randint(2, size=len(unit.views))", "[1] * len(unit.views)"),
    ),
    *of(
        "training/feed.py",
        "training/test_random_rates.py",
        (
            "self.encoder(sample, position)",
            "self.encoder(sample, 0)",
            "test_a_feed_draws_anew_every_time_that_it_shows_a_sample",
        ),
    ),
    *of(
        "processing/media/video_file.py",
        "training/data/test_broken_data.py",
        (
            "            if not self._limits.damaged_clips:\n                raise self._damaged()",
            "            if False:\n                raise self._damaged()",
            "test_a_clip_that_can_only_be_answered_about_is_not_learnt",
        ),
        (
            "            if not self._limits.damaged_clips:\n                raise MediaError",
            "            if False:\n                raise MediaError",
            "test_a_clip_that_can_only_be_answered_about_is_not_learnt",
        ),
    ),
    *of(
        "training/trackers.py",
        "training/test_trackers.py",
        ("purge_step=step + 1", "purge_step=None"),
        ("if not number:", "if True:"),
        ("if not number:", "if not known.exists():", "test_an_empty_number_of_a_run_is_drawn_anew"),
    ),
]
