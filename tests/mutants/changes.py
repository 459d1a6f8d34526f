"""The changes: each is an easy mistake in logic that decides answers, with the tests that must fail when it is made."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """One change of one file.

    Attributes:
        file: under src/pocketvlm.
        old: text that stands there exactly once.
        new: what it becomes.
        tests: under tests/, files or single tests (FILE::NAME); at least one must fail.
    """

    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def _of(file: str, test_file: str, *changes: tuple[str, ...]) -> list[Mutant]:
    """Changes of one file, as (old, new, names of tests); without names all tests of the file are run."""
    return [
        Mutant(file, old, new, tuple(f"{test_file}::{name}" for name in names) or (test_file,))
        for old, new, *names in changes
    ]


# Pictures and videos.
MUTANTS = [
    *_of(
        "processing/patches/slicing.py",
        "processing/test_slicing.py",
        ("min(math.ceil(ratio), max_slice_nums)", "min(math.floor(ratio), max_slice_nums)"),
        ("-grid[0]))", "grid[0]))"),
        ("largest > MAX_VIEW_PATCHES:", "largest >= MAX_VIEW_PATCHES:"),
        ("max(round(length / divisor), 1)", "max(int(length / divisor), 1)"),
        ("int(scaled_height * aspect)", "int(scale_resolution * math.sqrt(aspect))"),
        ("if 1 < n <= max_slice_nums)", "if 1 < n)"),
    ),
    *_of(
        "processing/patches/rates.py",
        "processing/test_rates.py",
        (
            "        if left < 0:",
            "        if left <= 0:",
            "test_most_fine_print_first_then_in_order_and_the_overview_last",
            "test_the_most_tokens_are_reached_by_some_picture",
        ),
        (
            "(len(views) > 1 and i == 0, -scores",
            "(i == 0, -scores",
            "test_the_only_view_of_a_frame_does_not_come_last_as_an_overview_does",
        ),
        (
            "(len(views) > 1 and i == 0, -scores",
            "(False, -scores",
            "test_most_fine_print_first_then_in_order_and_the_overview_last",
        ),
        (
            "int(Decimal(repr(token_budget)) * tokens)",
            "int(token_budget * tokens)",
            "test_a_budget_pays_to_the_last_token_what_it_is_written_as",
        ),
    ),
    *_of(
        "processing/patches/image.py",
        "processing/test_image.py",
        (
            "source.transpose(0, 3, 1, 4, 2, 5)",
            "source.transpose(3, 0, 1, 4, 2, 5)",
            "test_patches_are_row_major_inside_views_and_views_follow_the_grid",
        ),
        (
            "size=[size.height, size.width], mode",
            "size=[size.width, size.height], mode",
            "test_resize_keeps_height_and_width_apart",
        ),
    ),
    *_of(
        "processing/media/limits.py",
        "processing/test_media.py",
        (
            "height * width > self.max_pixels",
            "height * width >= self.max_pixels",
            "test_exactly_as_many_bytes_and_pixels_as_allowed_are_accepted",
        ),
        (
            "count > self.max_bytes",
            "count >= self.max_bytes",
            "test_exactly_as_many_bytes_and_pixels_as_allowed_are_accepted",
        ),
    ),
    *_of(
        "processing/media/sources.py",
        "processing/test_media.py",
        (
            "    limits.check_bytes(len(payload) // 3, name)",
            "    pass",
            "test_an_oversized_data_url_is_refused_before_it_is_decoded",
        ),
        (
            'len(compact) * 3 // 4 - compact[-2:].count(b"=")',
            "len(compact) * 3 // 4",
            "test_data_urls_of_exactly_the_limit_are_read",
        ),
    ),
    *_of(
        "processing/media/timeline.py",
        "processing/test_video_time.py",
        (
            "bisect_right(self.times, seconds + _ROUNDING) - 1",
            "bisect_right(self.times, seconds + _ROUNDING)",
            "test_a_frame_that_stands_still_is_a_unit_of_every_second",
        ),
        (
            "<= 0.5 + _ROUNDING for",
            "<= 1.5 + _ROUNDING for",
            "test_what_is_evenly_spaced_is_counted_as_the_reference_counts",
        ),
    ),
    # Prompts and answers' text.
    *_of(
        "processing/prompt/expansion.py",
        "processing/test_expansion.py",
        ("if index and index % columns == 0:", "if index and index % rows == 0:"),
        ("yield from [pad] * view.visual_tokens", "yield from [pad] * slices[0].visual_tokens"),
        ("encode_plain(str(counts[piece.text]))", "encode_plain(str(sum(counts.values())))"),
    ),
    *_of(
        "processing/prompt/template.py",
        "processing/test_chat.py",
        (
            "guard + beside.get(ord(char), char)",
            "beside.get(ord(char), char)",
            "test_no_control_token_forms_across_the_seam_of_user_and_template_text",
        ),
        (
            "{self._guard_text(key, guard): self",
            "{key: self",
            "test_control_tokens_typed_by_users_are_ordinary_characters",
        ),
        (
            "part if i % 2 else self._guard_text(part, guard)",
            "part",
            "test_assistant_text_may_reason_and_call_but_nothing_else",
        ),
        (
            '== "assistant" else self._guard_text\n',
            '!= "tool" else self._guard_text\n',
            "test_control_tokens_typed_by_users_are_ordinary_characters",
        ),
    ),
    *_of(
        "processing/prompt/tokenizer.py",
        "processing/test_tokenizer.py",
        ('text = self._decoder.decode(b"", final=True)', 'text = self._decoder.decode(b"")'),
        ("        if token_id in self._hidden:", "        if token_id in self._tokenizer.special_ids:"),
        ("| {self._control[END_OF_TEXT], self._control[TURN_END]}", "| {self._control[TURN_END]}"),
    ),
    *_of(
        "processing/prompt/branch_points.py",
        "processing/test_branch_points.py",
        ("points.add(i + len(header))", "points.add(i)"),
    ),
    *_of(
        "api/choice.py",
        "api/test_choice.py",
        ("text[: len(text) - held], text[len(text) - held :]", 'text, ""'),
        ("return min(found)[1] if found", "return found[0][1] if found"),
        ('certain, self.held = text[:stop], ""', 'certain, self.held = text, ""'),
        ("held = 0 if is_last else max(", "held = max("),
    ),
    *_of(
        "api/choice.py",
        "api/test_deltas.py",
        ("(self._held + new).partition(", "(self._held + new).rpartition("),
        ("thought[: len(thought) - overlap(thought, REASONING_ENDS)]", "thought"),
    ),
    *_of(
        "protocol/chat_response.py",
        "protocol/test_chat_request.py",
        ('"tool_calls" if finish_reason == "stop" else finish_reason', '"tool_calls"'),
    ),
    *_of(
        "grammar/json_numbers.py",
        "grammar/test_json_numbers.py",
        ("or (reading == limit and not is_exclusive)", "or reading == limit", "test_bounds_hold_to_the_last_digit"),
        (
            "float(value) if value or not is_exclusive else",
            "float(value) if True else",
            "test_bounds_hold_to_the_last_digit",
        ),
        ("if not abs(value) <= _BEYOND:", "if False:", "test_what_would_be_changed_is_refused_in_one_line"),
    ),
    # The engine.
    *_of(
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
    *_of(
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
    *_of(
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
    *_of(
        "model/cache/base.py",
        "engine/test_prefix_cache.py",
        (
            "            tensor.copy_(saved)",
            "            pass",
            "test_blocks_are_shared_counted_and_given_back",
        ),
    ),
    *_of(
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
    *_of(
        "engine/caches/encoder_cache.py",
        "engine/test_prefix_cache.py",
        ("if key not in self.pins]", "]", "test_features_within_their_budget_stay_while_they_are_pinned"),
        ("        self.features.move_to_end(key)\n", "", "test_what_was_not_used_for_longest_goes_first"),
    ),
    *_of(
        "engine/request.py",
        "engine/test_prefix_cache.py",
        ("{view.size.height},{view.size.width},{view.downsample_mode},", "", "test_keys_of_views_frame_what_they_hash"),
    ),
    *_of(
        "engine/sampling/sampler.py",
        "engine/test_sampler.py",
        (
            "torch.where(scores > 0, scores / penalty, scores * penalty)",
            "scores / penalty",
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
    *_of(
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
            "kept_GK * (before_GK < wanted_G1)",
            "kept_GK * (sums_GK < wanted_G1)",
            "test_top_p_stops_where_the_sum_is_reached_exactly",
        ),
        (
            "if 0 < params.top_k < len(scores_V):",
            "if 1 < params.top_k < len(scores_V):",
            "test_a_draw_is_that_of_plain_loops",
            "test_what_is_kept_of_equal_scores_is_that_of_plain_loops",
        ),
    ),
    *_of(
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
    *_of(
        "engine/sampling/prompt_lookup.py",
        "engine/test_prompt_lookup.py",
        ("first = int(matches[-1]) + n", "first = int(matches[0]) + n", "test_what_followed_the_same_tokens"),
        ("cache.restore_state(0, self._before, self._start)", "pass", "test_drafts_right_and_wrong_in_any_places"),
    ),
    # Cache and model.
    *_of(
        "model/cache/contiguous.py",
        "model/test_cache.py",
        (
            "        self.lengths[target] = length",
            "        self.lengths[target] = length - start",
            "test_a_slot_that_holds_the_prefix_already_is_copied_from_there_on",
        ),
        (
            "tensor[target, :, start:length] = tensor[source, :, start:length]",
            "pass",
            "test_a_copied_slot_continues_on_its_own",
        ),
    ),
    *_of(
        "model/cache/block_tables.py",
        "model/test_paged_cache.py",
        (
            "if start % BLOCK and self.pool.references[blocks[-1]] > 1:",
            "if False:",
            "test_forks_share_all_blocks_until_one_of_them_writes",
        ),
    ),
    *_of(
        "model/cache/block_pool.py",
        "engine/test_prefix_cache.py",
        (
            "            if not self.references[block]:\n",
            "            if True:\n",
            "test_blocks_are_shared_counted_and_given_back",
        ),
    ),
    *_of(
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
    *_of(
        "model/vision/merger.py",
        "model/test_vision_tower.py",
        (
            "F.gelu(self.linear_1(folded))",
            'F.gelu(self.linear_1(folded), approximate="tanh")',
            "test_trap_two_gelus_the_projector_has_the_exact_one",
        ),
    ),
    *_of(
        "model/text/gated_delta_net.py",
        "model/test_gated_delta_net.py",
        (" + self.dt_bias.float())", ")"),
        ("-self.A_log.float().exp() * F", "-self.A_log.float() * F"),
        ("beta_TH = b.float().sigmoid()", "beta_TH = a.float().sigmoid()", "test_it_equals_its_definition"),
    ),
    *_of(
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
    *_of(
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
    *_of(
        "model/text/gated_attention.py",
        "model/test_decoder.py",
        ("(out * torch.sigmoid(gate))", "out"),
        ("is_causal=True", "is_causal=False", "test_a_later_token_never_changes_an_earlier_one"),
    ),
    # Files, scores and options.
    *_of(
        "export/onnx/quantization.py",
        "export/test_quantization.py",
        (".clamp(min=1e-12) / 127", ".clamp(min=1e-12) / 128"),
        ("scale = largest / -span", "scale = largest / span"),
        ("(packed[..., 1::2] << 4)", "(packed[..., 1::2] << 3)"),
    ),
    *_of(
        "evaluation/scoring.py",
        "evaluation/test_scoring.py",
        ("max(len(a), len(b), 1)", "max(len(b), 1)"),
        ("if distance < ANLS_THRESHOLD", "if distance <= ANLS_THRESHOLD"),
        ("abs(given - wanted) / abs(wanted)", "abs(given - wanted) / abs(given)"),
        ("min((total - left_out) / 3, 1.0)", "min(total / 3, 1.0)"),
        (">= IOU_THRESHOLD", "> IOU_THRESHOLD"),
    ),
    *_of(
        "files.py",
        "test_written_files.py",
        (
            "            shutil.copymode(path, partial)",
            "            pass",
            "test_a_file_appears_complete_and_keeps_the_permissions_of_the_one_before",
        ),
        (
            "        partial.unlink(missing_ok=True)",
            "        pass",
            "test_a_full_disk_is_one_line_and_keeps_what_is_whole",
        ),
        ('partial.open("xb")', 'partial.open("wb")', "test_files_named_like_our_partial_ones_are_left_alone"),
    ),
    *_of(
        "model/fingerprint.py",
        "model/test_fingerprint.py",
        ('"*.jinja", ', "", "test_any_byte_changed_in_any_file_changes_it"),
        ("        content.seek(start)", "        pass", "test_every_byte_of_a_large_file_counts_whatever_the_chunks"),
        (
            "{before.st_mtime_ns} {before.st_ctime_ns}",
            "{before.st_mtime_ns}",
            "test_a_rewrite_with_its_old_size_and_time_of_writing_is_noticed",
        ),
        ("> _YOUNG_NS", "> 0", "test_a_file_that_was_written_a_moment_ago_is_not_kept"),
    ),
    *_of(
        "ranges.py",
        "test_ranges.py",
        ("not self.min <= value <= self.max", "not self.min < value <= self.max"),
        ("not self.min <= value <= self.max", "not self.min <= value < self.max"),
        (" or (self.is_open and value == self.min)", ""),
        ("if not -MAX_INTEGER <= number <= MAX_INTEGER:", "if not number <= MAX_INTEGER:"),
    ),
]
