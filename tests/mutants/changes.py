"""The changes: each is an easy mistake in logic that decides answers, with the tests that must fail when it is made."""

from __future__ import annotations

from mutants import adapters, computing, documents, interchange, serving, steps, training
from mutants.mutant import of

MUTANTS = [
    *adapters.MUTANTS,
    *computing.MUTANTS,
    *documents.MUTANTS,
    *interchange.MUTANTS,
    *serving.MUTANTS,
    *steps.MUTANTS,
    *training.MUTANTS,
    # Pictures and videos.
    *of(
        "processing/patches/slicing.py",
        "processing/test_slicing.py",
        ("min(math.ceil(ratio), max_slice_nums)", "min(math.floor(ratio), max_slice_nums)"),
        ("-grid[0]))", "grid[0]))"),
        ("largest > most:", "largest >= most:"),
        ("min(max(12 * square, 1024), MAX_VIEW_PATCHES)", "MAX_VIEW_PATCHES"),
        ("max(round(length / divisor), 1)", "max(int(length / divisor), 1)"),
        ("int(scaled_height * aspect)", "int(scale_resolution * math.sqrt(aspect))"),
        ("if 1 < n <= max_slice_nums)", "if 1 < n)"),
    ),
    *of(
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
    *of(
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
    *of(
        "processing/patches/resample.py",
        "processing/test_resample.py",
        ("centre_N1 + support + 0.5", "centre_N1 + support"),
        ("- centre_N1 + 0.5) *", "- centre_N1) *"),
        ("2.0 * max(scale, 1.0)", "2.0 * scale"),
        ("np.where(weights_NK < 0, -0.5, 0.5)", "0.5"),
        (">= 2**15), 22)", ">= 2**16), 22)"),
        ("_MIDDLE * weights_NK.sum(axis=1, keepdims=True) + 0.5", "_MIDDLE + 0.5 + 0 * first_N[:, None]"),
        ("    a = -0.5\n", "    a = -0.75\n"),
        (
            "* _MIDDLE <= 2**24 and precision <= 16",
            "> 0",
            "test_what_four_bytes_cannot_sum_up_is_summed_in_eight",
        ),
    ),
    *of(
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
    *of(
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
    *of(
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
    *of(
        "processing/prompt/expansion.py",
        "processing/test_expansion.py",
        ("if index and index % columns == 0:", "if index and index % rows == 0:"),
        ("yield from [pad] * view.visual_tokens", "yield from [pad] * slices[0].visual_tokens"),
        ("encode_plain(str(counts[piece.text] + place))", "encode_plain(str(sum(counts.values()) + place))"),
    ),
    *of(
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
    *of(
        "processing/prompt/tokenizer.py",
        "processing/test_tokenizer.py",
        ('text = self._decoder.decode(b"", final=True)', 'text = self._decoder.decode(b"")'),
        ("        if token_id in self._hidden:", "        if token_id in self._tokenizer.special_ids:"),
        ("| {self._control[END_OF_TEXT], self._control[TURN_END]}", "| {self._control[TURN_END]}"),
    ),
    *of(
        "processing/prompt/branch_points.py",
        "processing/test_branch_points.py",
        ("points.add(i + len(header))", "points.add(i)"),
    ),
    *of(
        "api/choice.py",
        "api/test_choice.py",
        ("text[: len(text) - held], text[len(text) - held :]", 'text, ""'),
        ("return min(found)[1] if found", "return found[0][1] if found"),
        ('certain, self.held = text[:stop], ""', 'certain, self.held = text, ""'),
        ("held = 0 if is_last else max(", "held = max("),
    ),
    *of(
        "api/choice.py",
        "api/test_deltas.py",
        ("(self._held + new).partition(", "(self._held + new).rpartition("),
        ("thought[: len(thought) - overlap(thought, REASONING_ENDS)]", "thought"),
    ),
    *of(
        "protocol/chat_response.py",
        "protocol/test_chat_request.py",
        ('"tool_calls" if has_calls and reason == "stop" else reason', '"tool_calls" if has_calls else reason'),
    ),
    *of(
        "protocol/responses_stream.py",
        "protocol/test_responses_stream.py",
        ('status = "incomplete" if self._reason == "length" else "completed"', 'status = "completed"'),
        ('if not (self._is_open and self._output[-1]["type"] == kind):', "if not self._is_open:"),
        ("self._waiting = []\n        return", "return"),
    ),
    *of(
        "protocol/responses_input.py",
        "protocol/test_responses_request.py",
        ('"content" in turn and "tool_calls" not in turn', '"tool_calls" not in turn'),
    ),
    # The server.
    *of(
        "server/keys.py",
        "server/test_keys.py",
        ("if hmac.compare_digest(given, key.digest)]", "if True]", "test_every_route_wants_a_key_and_tells_keys_apart"),
        (
            "self.in_flight >= self.requests",
            "self.in_flight > self.requests",
            "test_tokens_are_forgotten_after_a_minute",
        ),
        ("now - WINDOW:", "now:", "test_tokens_are_forgotten_after_a_minute"),
        (
            "    if not found:",
            "    if False:",
            "test_a_file_of_keys_that_cannot_be_honoured_is_refused_without_its_content",
        ),
        ('.encode("latin-1")', ".encode()", "test_every_route_wants_a_key_and_tells_keys_apart"),
    ),
    *of(
        "server/origins.py",
        "server/test_origins.py",
        ("if self._is_local and not self._is_own(host):", "if not self._is_own(host):"),
        ("if self._is_local and not self._is_own(host):", "if False:"),
        ("place.lower() == host.lower() or ", ""),
        ('scheme.lower() not in ("http", "https")', "True"),
        ("if self._has_keys:", "if False:"),
    ),
    *of(
        "server/guard.py",
        "server/test_back_pressure.py",
        ("            self.load.check_room()\n", "", "test_a_full_queue_is_429_before_the_body_is_read"),
    ),
    *of(
        "server/exchange.py",
        "server/test_back_pressure.py",
        ("        self.load.in_flight -= self.is_admitted\n", "", "test_a_full_queue_is_429_before_the_body_is_read"),
        ("            self.load.held_bytes -= self.held_bytes\n", "", "test_bodies_and_pictures_together_have_a_limit"),
        (
            "job.request.deadline = self.deadline",
            "pass",
            "test_a_stream_whose_time_is_over_says_so",
        ),
    ),
    *of(
        "server/exchange.py",
        "server/test_exchange.py",
        ("                job.request.deadline = time.monotonic()", "                pass"),
        ("            await stream.aclose()", "            pass"),
        ("            raise ClientLeftError\n        job.", "            pass\n        job."),
        ("            raise ClientLeftError\n        if", "            pass\n        if"),
        (
            "self.has_ended and not self.keepers",
            "self.has_ended",
            "test_what_a_thread_still_holds_counts_after_its_client_has_left",
        ),
        (
            "            self.keepers -= 1\n",
            "            pass\n",
            "test_what_a_thread_still_holds_counts_after_its_client_has_left",
        ),
    ),
    *of(
        "server/guard.py",
        "server/test_exchange.py",
        (
            "                if exchange.status:",
            "                if True:",
            "test_an_application_of_another_library_that_fails_is_an_error_of_the_api",
        ),
    ),
    *of(
        "server/agents.py",
        "server/test_exchange.py",
        (
            "            self._exchange.hold(call.file_bytes)",
            "            pass",
            "test_the_files_of_a_call_of_an_agent_are_held_and_refused_where_there_is_no_room",
        ),
    ),
    *of(
        "mcp_server/sources.py",
        "mcp_server/test_stdio.py",
        ("if len(content) > most", "if False", "test_the_files_of_a_call_have_no_more_bytes_together_than_may_be"),
    ),
    *of(
        "server/service.py",
        "server/test_exchange.py",
        (", keep=exchange.keep, ", ", ", "test_what_a_thread_still_holds_counts_after_its_client_has_left"),
        ('for name, value in message.items() if name != "content")', "for name, value in ())"),
    ),
    *of(
        "server/body.py",
        "server/test_exchange.py",
        ("    exchange.admit()\n", ""),
        ("if structure.depth > exchange.settings", "if 0 > exchange.settings"),
        ("if size > limit:", "if False:"),
    ),
    *of(
        "server/settings.py",
        "server/test_keys.py",
        ("values |= {name: value for", "values = {name: value for"),
    ),
    *of(
        "protocol/ollama_request.py",
        "protocol/test_ollama_request.py",
        ('"seed", -1)) != -1:', '"seed", -1)) != -2:'),
        ("if most > 0:", "if most > -2:"),
        ('return not re.search("[1-9]", keep_alive)', "return False"),
        ("value == one and isinstance(value, bool) == isinstance(one, bool)", "value == one"),
    ),
    *of(
        "protocol/chat_stream.py",
        "protocol/test_chat_stream.py",
        ("if delta.logprobs and number == 0 else None", "if delta.logprobs else None"),
        ("has_calls=self._calls[index] > 0", "has_calls=False"),
    ),
    *of(
        "tools/calls.py",
        "tools/test_calls.py",
        ('"\\n\\n" + certain if self._has_text else certain', "certain"),
        ("0 if is_last else overlap(self._held, _OPEN)", "0"),
    ),
    *of(
        "grammar/tool_grammar.py",
        "grammar/test_compiler.py",
        ('if parallel else "calls: call"', 'if True else "calls: call"', "test_a_tool_call_is_written_to_the_letter"),
    ),
    *of(
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
    # Files, scores and options.
    *of(
        "export/onnx/quantization.py",
        "export/test_quantization.py",
        ("/ np.float32(127)", "/ np.float32(128)"),
        ("scale = largest / np.float32(-span)", "scale = largest / np.float32(span)"),
        ("(packed[..., 1::2] << 4)", "(packed[..., 1::2] << 3)"),
    ),
    *of(
        "evaluation/scoring.py",
        "evaluation/test_scoring.py",
        ("max(len(a), len(b), 1)", "max(len(b), 1)"),
        ("if distance < ANLS_THRESHOLD", "if distance <= ANLS_THRESHOLD"),
        ("abs(given - wanted) / abs(wanted)", "abs(given - wanted) / abs(given)"),
        ("min((total - left_out) / 3, 1.0)", "min(total / 3, 1.0)"),
        (">= IOU_THRESHOLD", "> IOU_THRESHOLD"),
        ("/ len(given | wanted)", "/ len(wanted)"),
        ("(float if type(value) is int else type(value), value)", "(object, value)"),
    ),
    *of(
        "evaluation/suite.py",
        "evaluation/test_suite.py",
        ('("absent", "json")', '("absent",)'),
    ),
    *of(
        "synthetic/words/values.py",
        "synthetic/test_wordings.py",
        ('split == "heldout" and self.heldout and', "self.heldout and"),
    ),
    *of(
        "synthetic/documents/json_questions.py",
        "synthetic/test_json_questions.py",
        ('or (split == "heldout" and not', "or (not"),
        ("nullable = None in answer.values() or", "nullable ="),
    ),
    *of(
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
    *of(
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
    *of(
        "ranges.py",
        "test_ranges.py",
        ("not self.min <= value <= self.max", "not self.min < value <= self.max"),
        ("not self.min <= value <= self.max", "not self.min <= value < self.max"),
        (" or (self.is_open and value == self.min)", ""),
        ("if not -MAX_INTEGER <= number <= MAX_INTEGER:", "if not number <= MAX_INTEGER:"),
    ),
]
