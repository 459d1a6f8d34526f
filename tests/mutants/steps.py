"""Mistakes that spoil a training without a word: what a step weighs, what is compared, and where a run goes on."""

from __future__ import annotations

from mutants.mutant import of

STEP = "test_each_step_goes_down_the_mean_over_its_learnt_tokens_no_longer_than_the_limit"
SHARED = "test_processes_with_unlike_shares_take_the_steps_of_one"
VALIDATION = "test_the_loss_of_validation_is_the_mean_over_its_tokens_without_dropout"
MADE = "test_adapters_are_made_as_asked_in_fp32_and_nothing_else_learns"
DROPOUT = "test_a_run_with_dropout_that_was_killed_goes_on_to_the_same_weights_bit_by_bit"
COMPARED = "test_preferences_are_compared_with_the_model_before"
BEST = "test_the_best_weights_are_still_known_to_a_run_that_goes_on"
LEARNT = "test_answers_are_learnt_and_nothing_else"
GOES_ON = "test_an_order_goes_on_at_any_position"
PACKED = "test_packed_samples_have_the_losses_and_gradients_of_each_alone"
TRL = "test_the_loss_of_preferences_is_that_of_dpo_trainer"

MUTANTS = [
    # What products are computed in, and what is kept in it.
    *of(
        "training/precision.py",
        "training/test_precision.py",
        (
            "is_fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()",
            "is_fast = torch.cpu._is_amx_tile_supported()",
            "test_products_are_bfloat16_where_that_is_fast_and_the_model_wide",
        ),
        (" or width < _WIDE:", ":", "test_products_are_bfloat16_where_that_is_fast_and_the_model_wide"),
        (
            "return out if torch.is_autocast_enabled(input.device.type) else out.to(input.dtype)",
            "return out",
            "test_what_is_halved_stays_what_it_is",
        ),
        (
            "layer.to(torch.bfloat16).requires_grad_(False)",
            "layer.to(torch.float16).requires_grad_(False)",
            "test_a_base_in_bfloat16_learns_what_autocast_would",
        ),
    ),
    *of(
        "training/trainer.py",
        "training/test_trainer.py",
        (
            "        if has_seen_all or self._idle in (_MOST_IDLE, self.schedule.steps):",
            "        if True:",
            "test_a_run_whose_first_samples_have_no_picture_waits_for_one_that_has",
        ),
    ),
    # What is learnt of a sample.
    *of(
        "training/examples.py",
        "training/test_examples.py",
        ("torch.where(is_learnt[1 : last + 1],", "torch.where(is_learnt[:last],", LEARNT),
        ("ids[1 : last + 1], IGNORED)", "ids[:last], IGNORED)", LEARNT),
        ("            yield piece, True\n", "            yield piece, not piece.is_control\n", LEARNT),
        ("last = int(is_learnt.nonzero()[-1])", "last = int(is_learnt.nonzero()[-1]) - 1", LEARNT),
        ('"\\n" if not is_empty else names[1])', '"" if not is_empty else names[1])', LEARNT),
        (
            '            yield from _from(pieces[place + 1], "\\n\\n")',
            "            yield pieces[place + 1], True",
            LEARNT,
        ),
        ("        yield Piece(opening, False), False\n", "        yield Piece(opening, False), True\n", LEARNT),
        (
            "return self._example(sample, draw, last_only=True), self._example(worse",
            "return self._example(worse, draw, last_only=True), self._example(sample",
            "test_a_pair_differs_in_its_last_answer_alone",
        ),
        (
            "        if last_only:  #",
            "        if False:  #",
            "test_of_a_pair_in_several_turns_the_last_answers_alone_are_learnt",
        ),
        (
            "(zlib.crc32(sample.source.encode()), draw % 2**32)",
            "(draw % 2**32,)",
            "test_rates_come_from_the_sample_then_the_run_and_random_ones_from_the_source",
        ),
    ),
    *of(
        "training/examples.py",
        "training/test_random_rates.py",
        (
            "self._example(worse, draw, last_only=True)",
            "self._example(worse, draw + 1, last_only=True)",
            "test_both_answers_of_a_preference_see_the_same",
        ),
    ),
    # What a step weighs.
    *of(
        "training/trainer.py",
        "training/test_exact_steps.py",
        ("            if loss.requires_grad:", "            if True:", STEP),
        ("loss.backward()", "self.optimiser.zero_grad(); loss.backward()", STEP),
        ("        self.optimiser.zero_grad(set_to_none=True)\n", "", STEP),
        ("            sources += batch.sources\n", "            self.optimiser.step()\n", STEP),
        ("(self.parameters, self.settings.clip)", "(self.parameters, 1e9)", STEP),
        ('            group["lr"] = rate', "            pass", STEP),
        ("rate = self.highest_rate * self.schedule", "rate = self.schedule", STEP),
        ("        done.step += 1\n        self.average", "        self.average", STEP),
        (
            "weight = self.processes.total(sum(self.objective.weight(example) for example in examples))",
            "weight = sum(self.objective.weight(example) for example in examples)",
            SHARED,
        ),
        (
            "        self.processes.add_gradients(self.parameters)\n",
            "        nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)\n"
            "        self.processes.add_gradients(self.parameters)\n",
            SHARED,
        ),
        ("        self.processes.add_gradients(self.parameters)\n", "", SHARED),
        ("loss_mean = self.processes.total(total)", "loss_mean = total", SHARED),
        ("math.ceil(settings.epochs *", "math.floor(settings.epochs *", "test_an_epoch_ends_behind_its_last_samples"),
        ("weight += len(losses)", "weight += len(batch.lengths)", VALIDATION),
        ("        self.model.eval()\n", "", VALIDATION),
    ),
    *of(
        "training/objectives.py",
        "training/test_exact_steps.py",
        ("return item[0].learnt", "return 1", STEP),
    ),
    *of(
        "training/optimisers.py",
        "training/test_exact_steps.py",
        (
            "optim.AdamW(parameters, rate, weight_decay=settings.weight_decay)",
            "optim.AdamW(parameters, rate)",
            "test_weights_decay_as_asked_and_by_default_not_at_all",
        ),
        (
            "AdamW8bit(list(parameters), rate, weight_decay=settings.weight_decay)",
            "AdamW8bit(list(parameters), rate)",
            "test_weights_decay_as_asked_and_by_default_not_at_all",
        ),
    ),
    *of(
        "training/losses.py",
        "parity/test_gradients_parity.py",
        ("index_select(0, batch.rows.to(device))", "index_select(0, batch.rows.to(device) - 1)"),
    ),
    *of(
        "training/settings.py",
        "training/test_trainer.py",
        ("return (step + 1) / rising", "return step / rising", "test_rates_rise_and_fall_to_zero"),
        ("(step - rising) / max(1, steps - rising)", "step / steps", "test_rates_rise_and_fall_to_zero"),
        ("0.5 * (1 + math.cos(math.pi", "0.5 * (1 + math.cos(0.5 * math.pi", "test_rates_rise_and_fall_to_zero"),
    ),
    *of(
        "training/schedules.py",
        "training/test_own_schedules.py",
        (
            "(share + _BEGUN) / warmup if",
            "share / warmup if",
            "test_a_run_ends_by_what_comes_first_and_its_rate_with_it",
        ),
        ("math.cos(math.pi * share)", "math.cos(share)", "test_a_run_ends_by_what_comes_first_and_its_rate_with_it"),
    ),
    # Numbers that are none.
    *of(
        "training/trainer.py",
        "training/test_lora_training.py",
        (
            "        if not torch.isfinite(norm):",
            "        if False:",
            "test_gradients_that_are_no_numbers_stop_the_run_before_its_weights_change",
        ),
    ),
    *of(
        "training/objectives.py",
        "training/test_lora_training.py",
        ("batch.sources[2 * loss]", "batch.sources[loss]", "test_a_preference_without_a_loss_names_its_sample"),
    ),
    *of(
        "training/objectives.py",
        "training/test_trainer.py",
        (
            "batch.sources[int(batch.samples[loss])]",
            "batch.sources[0]",
            "test_a_loss_that_is_no_number_names_its_sample",
        ),
    ),
    # Packing: positions, convolution, states and rows of each sample begin anew.
    *of(
        "training/batches.py",
        "training/test_batches.py",
        (
            ".cumsum(0), right=True)",
            ".cumsum(0), right=False)",
            "test_every_sample_is_in_one_batch_pairs_together_and_none_is_over_the_limits",
        ),
    ),
    *of(  # where positions begin is nothing to rotary attention, so only their order shows
        "model/packing.py",
        "parity/test_gradients_parity.py",
        ("[torch.arange(s.start, s.start + s.length) for", "[torch.arange(s.start, s.start + s.length).flip(0) for"),
    ),
    *of(
        "model/packing.py",
        "training/test_gradients.py",
        (
            "index[row, :length] = torch.arange(first, first + length)",
            "index[row, :length] = torch.arange(length)",
            PACKED,
        ),
        (
            "back[first : first + length] = torch.arange(start, start + length)",
            "back[first : first + length] = torch.arange(start, start + length).flip(0)",
            PACKED,
        ),
    ),
    *of(
        "kernels/causal_conv1d.py",
        "training/test_gradients.py",
        ("        row += keep + length\n", "        row += length\n", PACKED),
    ),
    *of(
        "kernels/causal_conv1d.py",
        "kernels/test_causal_conv1d.py",
        ("range(states + token, states + token + length)", "range(token, token + length)"),
        ("        state += range(row - keep, row)\n", "        state += range(row - length, row - length + keep)\n"),
    ),
    # Preferences.
    *of(
        "training/losses.py",
        "training/test_gradients.py",
        (
            "F.logsigmoid(beta * (chosen_B - rejected_B",
            "F.logsigmoid(beta * (rejected_B - chosen_B",
            "test_preferences_have_the_losses_of_their_paper",
        ),
        ("-F.logsigmoid(beta * (", "-F.logsigmoid((", "test_preferences_have_the_losses_of_their_paper"),
        (
            "index_add(0, samples, -losses_R)",
            "index_add(0, samples, losses_R)",
            "test_rows_know_their_sample_and_sequences_add_up_their_tokens",
        ),
    ),
    *of(
        "training/objectives.py",
        "training/test_lora_training.py",
        ("old[0::2] - old[1::2], self.beta", "old[1::2] - old[0::2], self.beta", COMPARED),
        ("old[0::2] - old[1::2], self.beta", "old[0::2] - old[1::2], 1.0", COMPARED),
        ("dpo_losses(new[0::2], new[1::2],", "dpo_losses(new[1::2], new[0::2],", COMPARED),
        ("answer_losses(before, batch)", "answer_losses(model, batch)", COMPARED),
    ),
    *of(
        "training/reference_policy.py",
        "training/test_lora_training.py",
        ("layer.enable_adapters(False)", "layer.enable_adapters(True)", COMPARED),
        ("        for layer in layers:\n            layer.enable_adapters(True)\n", "        pass\n", COMPARED),
        ('if settings.method == "full":', "if False:", COMPARED),
    ),
    # What learns, and how adapters are scaled.
    *of(
        "training/parts.py",
        "training/test_trainer.py",
        ("return max(found)[1]", "return min(found)[1]", "test_only_the_parts_that_were_named_change"),
        (
            "requires_grad_(part_of(name) in wanted)",
            "requires_grad_(True)",
            "test_only_the_parts_that_were_named_change",
        ),
        (
            "and not name.endswith(without) and part_of(name) in wanted",
            "and not name.endswith(without)",
            "test_adapters_stand_beside_every_linear_layer_of_attention_linear_attention_and_mlps",
        ),
    ),
    *of(
        "training/lora.py",
        "training/test_lora_training.py",
        ("lora_alpha=settings.alpha", "lora_alpha=settings.rank", MADE),
        ("use_rslora=settings.rslora", "use_rslora=False", MADE),
        ("use_dora=settings.dora", "use_dora=False", MADE),
        ("lora_dropout=settings.dropout", "lora_dropout=0.0", MADE),
        ("parameter.data = parameter.data.float()", "pass", MADE),
    ),
    *of(
        "training/lora.py",
        "parity/test_trained_adapter_parity.py",
        ("float(layer.scaling[_NAME])", "1.0"),
        ("magnitudes[_NAME].weight.detach() if _NAME in magnitudes else None", "None"),
    ),
    # Where a run goes on.
    *of(
        "training/trainer.py",
        "training/test_lora_training.py",
        ("torch.manual_seed(self.settings.seed * 1_000_003 + done.step)", "pass", DROPOUT),
        ("self.settings.seed * 1_000_003 + done.step", "self.settings.seed", DROPOUT),
        ("        self.model.train()\n", "        self.model.eval()\n", DROPOUT),
        ("if loss < (math.inf", "if loss > (-math.inf", BEST),
    ),
    *of(
        "training/checkpoints.py",
        "training/test_lora_training.py",
        ('Progress(**state["progress"])', 'Progress(step=state["progress"]["step"])', BEST),
        ("            parameter.copy_(weights[name])", "            pass", DROPOUT),
    ),
    *of(
        "training/checkpoints.py",
        "training/test_trainer.py",
        (
            "last = self._all()[-1]",
            "last = self._all()[0]",
            "test_a_run_that_was_killed_goes_on_to_the_same_weights_bit_by_bit",
        ),
        ("if differing := [name for", "if differing := [] and [name for", "test_a_folder_of_another_run_is_refused"),
    ),
    *of(
        "training/feed.py",
        "training/test_random_rates.py",
        ("self.seed, begin), begin)", "self.seed, begin))", "test_a_feed_draws_anew_every_time_that_it_shows_a_sample"),
    ),
    *of(
        "training/data/order.py",
        "training/data/test_dataset.py",
        ("skipped = start - _begin(dataset, low)", "skipped = 0", GOES_ON),
        ("low, skipped = low + 1, 0", "low += 1", GOES_ON),
        (
            "seeds(seed, _SHUFFLE, epoch)",
            "seeds(seed, _SHUFFLE, 0)",
            "test_an_epoch_goes_through_each_set_as_often_as_its_weight_says",
        ),
        ("seeds(seed, number, turn)", "seeds(seed, number)", "test_the_order_is_the_same_for_ever"),
        ("last - turn * size]", "last]", "test_an_epoch_goes_through_each_set_as_often_as_its_weight_says"),
        (
            "floor(Fraction(weight).limit_denominator(10**6) * size * epoch)",
            "floor(weight * size) * epoch",
            "test_an_epoch_goes_through_each_set_as_often_as_its_weight_says",
        ),
    ),
]
