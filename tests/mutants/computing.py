"""Changes of what computes: the engine, its caches, the model."""

from __future__ import annotations

from mutants.mutant import of

MUTANTS = [
    # Operators of our own.
    *of(
        "kernels/onnx_ops/tiles.h",
        "export/test_tile_product.py",
        ("        sum += static_cast<int8_t>", "        sum -= static_cast<int8_t>", "test_tiles_change_no_bit"),
    ),
    *of(
        "kernels/onnx_ops/tile_product.h",
        "export/test_tile_product.py",
        ("last + 128 * half, count, k == 0,", "last + 128 * half, count, true,", "test_tiles_change_no_bit"),
        ("(place_of ^= 1)", "place_of", "test_tiles_change_no_bit"),
    ),
    *of(
        "kernels/onnx_ops/view_tiles.h",
        "export/test_tile_attention.py",
        ("tiles::dot<2, 7, 5>(), tiles::dot<1, 7, 4>();", "tiles::dot<2, 7, 5>();", "test_tiles_change_no_bit"),
        (
            "Floats total = multiply(factor, all(0.0f));",
            "Floats total = all(0.0f);",
            "test_what_is_not_finite_reaches_all_that_see_it",
        ),
    ),
    *of(
        "kernels/onnx_ops/prompt_tiles.h",
        "export/test_tile_prompts.py",
        ("store(at, is_upper ?", "store(at, !is_upper ?", "test_tiles_are_near_vectors"),
        ("if (c) join(c - 1);", "if (c > 1) join(c - 1);", "test_tiles_are_near_vectors"),
        ("tiles::dot_signed<3, 4, 5>();", "tiles::dot_signed<2, 4, 5>();", "test_so_are_rows_that_see_many_keys"),
        ("_mm512_srai_epi32(middle, 7)", "_mm512_srli_epi32(middle, 7)", "test_tiles_are_near_vectors"),
    ),
    *of(
        "kernels/onnx_ops/delta_rule.h",
        "export/test_delta_rule.py",
        ("        decay *= decays[j];\n", "", "test_it_is_the_plain_rule"),
        ("for (int j = 0; j < i; ++j) value", "for (int j = 1; j < i; ++j) value", "test_it_is_the_plain_rule"),
        ("first < count; first += kTokens, from = to", "first < count; first += kTokens", "test_it_is_the_plain_rule"),
        ("all(group.after[i]), updates", "all(1.0f), updates", "test_it_is_the_plain_rule"),
        ("first + some - left + i, h", "first + i, h", "test_it_is_the_plain_rule"),
        ("count > kFewTokens ? some / kTogether : 0", "some / kTogether", "test_two_chunks_are_one"),
        ("from == to ? 0 : keys * values", "0", "test_no_tokens_leave_the_state_as_it_was"),
        ("h / (heads_ / key_heads_);", "h % key_heads_;", "test_it_is_the_plain_rule"),
    ),
    *of(
        "kernels/onnx_ops/causal_conv.h",
        "export/test_compiled_conv.py",
        ("if (stretches != 1)\n", "if (stretches > 2)\n", "test_it_is_the_plain_convolution"),
        ("if (stretches == 1) remember", "if (stretches == 2) remember", "test_it_is_the_plain_convolution"),
        ("const int64_t at = s + w - keep;", "const int64_t at = s % kTokens + w - keep;", "test_two_chunks_are_one"),
        ("heads * (part + 1) / parts", "heads * part / parts + 1", "test_it_is_the_plain_convolution"),
    ),
    *of(
        "kernels/onnx_ops/products_avx2.h",
        "export/test_instructions.py",
        ("_mm256_srli_epi16(bytes, 8)}", "_mm256_srai_epi16(bytes, 8)}", "test_products_are_exact_on_every_kind"),
        (
            "x < end; x += 2, w += kColumns",
            "x + 2 < end; x += 2, w += kColumns",
            "test_attention_is_that_of_every_kind",
        ),
    ),
    # The engine.
    *of(
        "engine/scheduler.py",
        "engine/test_reliability.py",
        (
            "request.arrival + request.priority * self.config.aging_seconds",
            "request.priority * 1e9 + request.arrival",
            "test_priorities_go_first_but_nobody_waits_forever",
        ),
        (
            "request.arrival + request.priority * self.config.aging_seconds",
            "request.arrival",
            "test_priorities_go_first_but_nobody_waits_forever",
        ),
    ),
    *of(
        "engine/scheduler.py",
        "engine/test_scheduler.py",
        (
            "self.preempt(max(self.pool.sequences",
            "self.preempt(min(self.pool.sequences",
            "test_who_came_last_gives_up_its_slot_first",
        ),
        (
            "                tokens -= length\n",
            "                pass\n",
            "test_no_step_takes_more_tokens_and_patches_than_its_budgets",
        ),
        (
            "            patches -= self._plan_views(",
            "            self._plan_views(",
            "test_no_step_takes_more_tokens_and_patches_than_its_budgets",
        ),
        (
            "if spent + size > patches and plan.views:",
            "if spent + size >= patches and plan.views:",
            "test_a_step_encodes_as_many_views_as_its_budget_holds",
        ),
        (
            "min(sequence.tokens, start + tokens)",
            "sequence.tokens",
            "test_no_step_takes_more_tokens_and_patches_than_its_budgets",
        ),
    ),
    *of(
        "engine/caches/prefix_cache.py",
        "engine/test_prefix_cache.py",
        ("for digest in reversed(digests):", "for digest in digests:", "test_a_hit_is_a_miss_number_for_number"),
        ("parent.blocks[: parent.length // BLOCK]", "parent.blocks", "test_blocks_are_shared_counted_and_given_back"),
        (
            "self.prefixes.popitem(last=False)",
            "self.prefixes.popitem(last=True)",
            "test_what_was_not_used_for_longest_goes_first",
        ),
    ),
    *of(
        "model/cache/base.py",
        "engine/test_prefix_cache.py",
        (
            "            array[...] = saved",
            "            pass",
            "test_blocks_are_shared_counted_and_given_back",
        ),
    ),
    *of(
        "engine/prompt_layout.py",
        "engine/test_prefix_cache.py",
        (
            "digest.update(_PICTURE + view_keys[view])",
            "digest.update(_PICTURE)",
            "test_trap_first_picture_answers_for_the_second_what_differs_is_no_hit",
        ),
        (
            "digest.update(_PICTURE + view_keys[view])",
            "digest.update(view_keys[view])",
            "test_trap_tokens_whose_bytes_are_a_pictures_key_are_not_that_picture",
        ),
        (
            'hashlib.blake2b(len(salt).to_bytes(8, "little") + salt, digest_size=32)',
            "hashlib.blake2b(digest_size=32)",
            "test_trap_first_picture_answers_for_the_second_what_differs_is_no_hit",
        ),
    ),
    *of(
        "engine/caches/encoder_cache.py",
        "engine/test_prefix_cache.py",
        ("if key not in self.pins]", "]", "test_features_within_their_budget_stay_while_they_are_pinned"),
        ("        self.features.move_to_end(key)\n", "", "test_what_was_not_used_for_longest_goes_first"),
    ),
    *of(
        "engine/request.py",
        "engine/test_prefix_cache.py",
        ("{view.size.height},{view.size.width},{view.downsample_mode},", "", "test_keys_of_views_frame_what_they_hash"),
    ),
    *of(
        "engine/sampling/sampler.py",
        "engine/test_sampler.py",
        (
            "where(scores > 0, scores / repetition, scores * repetition)",
            "scores / repetition",
            "test_repetition_penalty_makes_negative_scores_worse_too",
        ),
        (
            "- presence * (times > 0)",
            "+ presence * (times > 0)",
            "test_frequency_and_presence_penalty_count_the_answer_only",
        ),
        (
            "- frequency * times",
            "- frequency * (times > 0)",
            "test_frequency_and_presence_penalty_count_the_answer_only",
        ),
        ('f"{seed % 2**64} {index}"', 'f"{seed % 2**64}"', "test_a_seed_gives_the_same_tokens_and_each_index_others"),
        (
            "if len(self.output_ids) < self.params.min_tokens",
            "if len(self.output_ids) + 1 < self.params.min_tokens",
            "test_no_answer_ends_before_min_tokens",
        ),
    ),
    *of(
        "engine/sampling/device_sampler.py",
        "engine/test_sampler.py",
        (
            "kept_GK * (before_GK < wanted_G1)",
            "kept_GK * (sums_GK < wanted_G1)",
            "test_top_p_stops_where_the_sum_is_reached_exactly",
        ),
    ),
    *of(
        "engine/sampling/draw.py",
        "engine/test_sampler.py",
        (
            'weights_P[best_K].cumsum(dtype=np.float64), wanted, side="left"',
            'weights_P[best_K].cumsum(dtype=np.float64), wanted, side="right"',
            "test_top_p_stops_where_the_sum_is_reached_exactly",
        ),
        (
            "weights_P[: len(scores_V)] >= np.float32(params.min_p)",
            "weights_P[: len(scores_V)] > np.float32(params.min_p)",
            "test_a_draw_is_that_of_plain_loops",
            "test_what_is_kept_of_equal_scores_is_that_of_plain_loops",
        ),
        (
            "if 0 < params.top_k < len(scores_V):",
            "if 1 < params.top_k < len(scores_V):",
            "test_a_draw_is_that_of_plain_loops",
            "test_what_is_kept_of_equal_scores_is_that_of_plain_loops",
        ),
    ),
    *of(
        "engine/sampling/beam_search.py",
        "engine/test_beam_search.py",
        ("total / self.length**self.params.length_penalty)", "total * self.length**self.params.length_penalty)"),
        ("-hypothesis.score)", "hypothesis.score)"),
        ("if rank < width:", "if True:", "test_an_end_that_ranks_below_the_beams_is_no_answer"),
        (
            "if any(math.isnan(total) for *_, total in candidates):",
            "if False:",
            "test_scores_that_are_none_of_any_beam_are_noticed_and_change_nothing",
        ),
    ),
    *of(
        "engine/sampling/prompt_lookup.py",
        "engine/test_prompt_lookup.py",
        ("first = int(matches[-1]) + n", "first = int(matches[0]) + n", "test_what_followed_the_same_tokens"),
        ("cache.restore_state(0, self._before, self._start)", "pass", "test_drafts_right_and_wrong_in_any_places"),
    ),
    # Cache and model.
    *of(
        "model/cache/contiguous.py",
        "model/test_cache.py",
        (
            "        self.lengths[target] = length",
            "        self.lengths[target] = length - start",
            "test_a_slot_that_holds_the_prefix_already_is_copied_from_there_on",
        ),
        (
            "array[target, :, start:length] = array[source, :, start:length]",
            "pass",
            "test_a_copied_slot_continues_on_its_own",
        ),
    ),
    *of(
        "model/cache/block_tables.py",
        "model/test_paged_cache.py",
        (
            "if start % BLOCK and self.pool.references[blocks[-1]] > 1:",
            "if False:",
            "test_forks_share_all_blocks_until_one_of_them_writes",
        ),
    ),
    *of(
        "model/cache/block_pool.py",
        "engine/test_prefix_cache.py",
        (
            "            if not self.references[block]:\n",
            "            if True:\n",
            "test_blocks_are_shared_counted_and_given_back",
        ),
    ),
    *of(
        "model/vision/early_compression.py",
        "model/test_vision_tower.py",
        (
            "[ViewGroup(windows, WINDOW)]",
            "[ViewGroup(1, windows * WINDOW)]",
            "test_early_compression_equals_its_definition_window_by_window",
        ),
        (
            "x_TD.view(windows, WINDOW, -1).mean(1)",
            "x_TD.view(WINDOW, windows, -1).mean(0)",
            "test_early_compression_equals_its_definition_window_by_window",
        ),
    ),
    *of(
        "model/vision/merger.py",
        "model/test_vision_tower.py",
        (
            "F.gelu(self.linear_1(folded))",
            'F.gelu(self.linear_1(folded), approximate="tanh")',
            "test_trap_two_gelus_the_projector_has_the_exact_one",
        ),
    ),
    *of(
        "model/text/gated_delta_net.py",
        "model/test_gated_delta_net.py",
        (" + self.dt_bias.float())", ")"),
        ("-self.A_log.float().exp() * F", "-self.A_log.float() * F"),
        ("beta_TH = b.float().sigmoid()", "beta_TH = a.float().sigmoid()", "test_it_equals_its_definition"),
    ),
    *of(
        "model/text/rotary.py",
        "model/test_decoder.py",
        (
            "second * cos + first * sin, rest]",
            "second * cos - first * sin, rest]",
            "test_partial_rotary_turns_the_leading_dimensions_only_and_keeps_lengths",
        ),
        (
            "device=positions_T.device) / rotary_dim",
            "device=positions_T.device) / (2 * rotary_dim)",
            "test_partial_rotary_turns_the_leading_dimensions_only_and_keeps_lengths",
            "test_rotary_keeps_its_phase_at_the_end_of_the_context",
        ),
    ),
    *of(
        "model/text/norm.py",
        "model/test_decoder.py",
        (
            "1.0 + self.weight.float()",
            "self.weight.float()",
            "test_decoder_norm_is_zero_centred_and_the_gated_norm_is_plain",
        ),
        (
            "normed * F.silu(gate.float())",
            "normed * torch.sigmoid(gate.float())",
            "test_decoder_norm_is_zero_centred_and_the_gated_norm_is_plain",
        ),
    ),
    *of(
        "model/text/gated_attention.py",
        "model/test_decoder.py",
        ("(out * torch.sigmoid(gate))", "out"),
        ("is_causal=True", "is_causal=False", "test_a_later_token_never_changes_an_earlier_one"),
    ),
]
