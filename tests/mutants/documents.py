"""Changes of documents: files of a folder → text and rows."""

from __future__ import annotations

from mutants.mutant import of

MUTANTS = [
    *of(
        "documents/merging.py",
        "documents/test_rows_and_tables.py",
        ("isinstance(value, bool) or value not in", "value not in", "test_pages_merge_by_the_stated_rules"),
        ("    out.pop(name, None)\n", "", "test_a_value_stands_where_a_later_page_has_none"),
    ),
    *of(
        "documents/fields.py",
        "documents/test_rows_and_tables.py",
        ('.replace(".", "\\\\.")', "", "test_no_property_name_takes_the_place_of_another"),
    ),
    *of(
        "documents/tables.py",
        "documents/test_rows_and_tables.py",
        ('lineterminator="\\r\\n"', 'lineterminator="\\n"', "test_no_cell_breaks_a_row"),
        ("[_harmless(row.get(name)) for", "[row.get(name) for", "test_no_cell_is_a_formula"),
    ),
    *of(
        "documents/calibration.py",
        "documents/test_calibration.py",
        (" or directory.adapter is not None", "", "test_other_weights_and_options_are_not_what_was_measured"),
        ("any(a > b for", "any(a > 2 for", "test_what_is_no_curve_is_refused_in_a_line"),
    ),
    *of(
        "remote_files.py",
        "batch/test_elsewhere.py",
        ('"_" if part in (".", "..") else part', "part", "test_names_in_a_bucket_may_be_any_text"),
    ),
    *of(
        "api/retry.py",
        "api/test_retry.py",
        ("faults > FAULTS + at_a_time", "faults > 999", "test_faults_that_last_end_the_run"),
        ("(True, lost, 1)", "(True, lost, ahead)", "test_what_was_lost_is_asked_again_behind_the_others"),
        ("isinstance(outcome, UnavailableError) or ", "", "test_an_engine_that_is_gone_ends_it_at_once"),
    ),
    *of(
        "documents/pages.py",
        "documents/test_faults.py",
        (
            "keep and not read_from.pop(key).has_changed",
            "keep",
            "test_the_answer_about_a_file_that_has_changed_is_not_kept_under_its_old_content",
        ),
    ),
    *of(
        "cli/read.py",
        "documents/test_read_command.py",
        ("or out in ours", "or was_stopped", "test_a_stopped_run_does_not_vouch_for_files_of_the_user"),
        (" or is_partial(path)", "", "test_what_a_kill_left_of_a_file_is_no_document"),
    ),
    *of(
        "documents/merging.py",
        "documents/test_rows_and_tables.py",
        (
            "        out.pop(name, None)  # of",
            "        # of",
            "test_a_container_takes_the_place_of_nothing_with_its_confidence",
        ),
    ),
    *of(
        "documents/tables.py",
        "documents/test_rows_and_tables.py",
        (
            "chain([columns], ([_harmless(row.get(name)) for name in columns] for row in table()))",
            "(columns, *([_harmless(row.get(name)) for name in columns] for row in table()))",
            "test_a_csv_never_holds_all_rows",
        ),
    ),
    *of(
        "cli/elsewhere.py",
        "batch/test_elsewhere.py",
        ("    if is_dry:\n        return\n", "", "test_a_dry_run_sends_nothing_and_leaves_what_resumes_a_run"),
    ),
    *of(
        "documents/extracting.py",
        "documents/test_rows_and_tables.py",
        (
            "not math.isfinite(number := float(text))",
            "(number := float(text)) is None",
            "test_numbers_that_no_table_holds_are_errors_of_their_page",
        ),
    ),
    *of(
        "documents/reading.py",
        "documents/test_read_command.py",
        ('{"html": False}', '{"html": True}', "test_html_of_a_model_does_nothing"),
        (
            "if others and first.lower() in OWN_FILES",
            "if False",
            "test_names_leave_room_for_folders_and_for_our_own_files",
        ),
    ),
    *of(
        "documents/inputs.py",
        "documents/test_read_command.py",
        ("for way in ways if not os.path.lexists(way))", "for way in ways)", "test_a_file_may_be_called_as_anything"),
    ),
    *of(
        "documents/journal.py",
        "documents/test_extract_command.py",
        ("            if is_ours:\n", "            if True:\n", "test_an_unchanged_page_is_not_read_again"),
    ),
]
