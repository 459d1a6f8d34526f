"""Mistakes between a run here and the settings files of other programs: a default that is not theirs, a key misread."""

from __future__ import annotations

from mutants.mutant import of

DEFAULTS = "test_defaults_are_those_of_the_program"
BACK = "test_settings_come_back_as_they_were"
NUMBERS = "test_numbers_may_be_text_and_batches_are_of_all_processes"
REFUSED = "test_keys_that_would_change_the_result_are_refused_by_name"
DATA = "test_data_is_as_much_as_they_say"
SWITCHES = "test_switches_and_lengths_say_what_they_say_there"

MUTANTS = [
    *of(
        "training/interchange/factory.py",
        "training/interchange/test_both_ways.py",
        ("schedule.Defaults(8, None, 0.0, 5e-5,", "schedule.Defaults(1, None, 0.0, 5e-5,", SWITCHES),
        ("schedule.Defaults(8, None, 0.0, 5e-5,", "schedule.Defaults(8, 8, 0.0, 5e-5,", DEFAULTS),
        ("schedule.Defaults(8, None, 0.0, 5e-5,", "schedule.Defaults(8, None, 0.1, 5e-5,", SWITCHES),
        ("schedule.Defaults(8, None, 0.0, 5e-5,", "schedule.Defaults(8, None, 0.0, 1e-4,", DEFAULTS),
        ("_CUTOFF = 2048", "_CUTOFF = 1024", DEFAULTS),
        ('keys.whole("lora_rank", 8) or 8', 'keys.whole("lora_rank", 16) or 16', DEFAULTS),
        ('keys.number("lora_alpha") or 2.0 * rank', 'keys.number("lora_alpha") or 16.0', SWITCHES),
        ('keys.number("lora_dropout", 0.0)', 'keys.number("lora_dropout", 0.05)', DEFAULTS),
        ('keys.flag("freeze_vision_tower", True)', 'keys.flag("freeze_vision_tower", False)', SWITCHES),
        ('keys.flag("freeze_multi_modal_projector", True)', 'keys.flag("freeze_multi_modal_projector")', SWITCHES),
        ('not keys.flag("disable_gradient_checkpointing")', 'keys.flag("disable_gradient_checkpointing")', BACK),
        ('"truncate": True}', '"truncate": False}', BACK),
        ('keys.number("pref_beta", 0.1)', 'keys.number("pref_beta", 0.01)', SWITCHES),
        ("share if share < 1 else int(share)", "share", DATA),
        ("if bits != 4 or", "if bits not in (4, 8) or", REFUSED),
        ('"double_quantization": True,\n}', '"double_quantization": False,\n}', BACK),
        (
            'media, first = keys.text("media_dir"), keys.whole("max_samples")',
            'media, first = keys.text("media_dir"), None',
            DATA,
        ),
        ("without = (MERGER, TOWER) if frozen[TOWER] else (MERGER,)", "without = ()", SWITCHES),
    ),
    *of(
        "training/interchange/swift.py",
        "training/interchange/test_both_ways.py",
        ('_RATES = {"full": 1e-5}', "_RATES: dict[str, float] = {}", DEFAULTS),
        (
            "schedule.Defaults(1, 16, 0.1, _RATES.get(method, 1e-4),",
            "schedule.Defaults(1, 8, 0.1, _RATES.get(method, 1e-4),",
            DEFAULTS,
        ),
        (
            "schedule.Defaults(1, 16, 0.1, _RATES.get(method, 1e-4),",
            "schedule.Defaults(1, 16, 0.0, _RATES.get(method, 1e-4),",
            DEFAULTS,
        ),
        ("_RATES.get(method, 1e-4)", "_RATES.get(method, 2e-4)", DEFAULTS),
        ('keys.whole("lora_rank", 8)', 'keys.whole("lora_rank", 16)', DEFAULTS),
        ('keys.number("lora_alpha", 32.0)', 'keys.number("lora_alpha", 16.0)', DEFAULTS),
        ('keys.number("lora_dropout", 0.05)', 'keys.number("lora_dropout", 0.0)', DEFAULTS),
        ('keys.number("beta", 0.1)', 'keys.number("beta", 0.5)', SWITCHES),
        ('keys.flag("freeze_vit", True)', 'keys.flag("freeze_vit")', DEFAULTS),
        ('keys.flag("freeze_aligner", True)', 'keys.flag("freeze_aligner")', DEFAULTS),
        ('keys.flag("freeze_llm")', 'keys.flag("freeze_llm", True)', DEFAULTS),
        ('"delete") == "right"', '"delete") == "delete"', BACK),
        ('"stop" if keys.flag("strict") else "skip"', '"skip" if keys.flag("strict") else "stop"', SWITCHES),
        ('{"last_round"} if objective == "dpo" else set()', '{"last_round"}', REFUSED),
        ("drawn = int(count) if count else None", "drawn = None", DATA),
        ('("bnb_4bit_use_double_quant", "true")', '("bnb_4bit_use_double_quant", "false")', BACK),
        (
            '"MAX_SLICE_NUMS": "max_slice_nums"}',
            '"MAX_SLICE_NUMS": "max_num_frames"}',
            "test_options_of_pictures_come_back_as_they_were",
        ),
        (
            'environment.pop("VIDEO_MAX_SLICE_NUMS", "1")) != "1"',
            'environment.pop("VIDEO_MAX_SLICE_NUMS", "1")) == "0"',
            REFUSED,
        ),
    ),
    *of(
        "training/interchange/schedule.py",
        "training/interchange/test_both_ways.py",
        (
            "times = 1 if defaults.per_step is None else max(1, -(-defaults.per_step // (each * processes)))",
            "times = 1",
            DEFAULTS,
        ),
        ('found["batch_size"] = each * times * processes', 'found["batch_size"] = each * times', NUMBERS),
        ('found["clip"] = clip if clip else _NONE', 'found["clip"] = clip', SWITCHES),
        ('keys.number("max_grad_norm", 1.0)', 'keys.number("max_grad_norm", 0.5)', SWITCHES),
        ("if steps is not None and steps > 0:", "if steps is not None:", DEFAULTS),
        (
            'found["epochs"] = keys.number("num_train_epochs", 3.0)',
            'found["epochs"] = keys.number("num_train_epochs", 1.0)',
            DEFAULTS,
        ),
        ('keys.whole("seed", 42)', 'keys.whole("seed", 0)', SWITCHES),
        ('keys.whole("save_steps", 500)', 'keys.whole("save_steps", 100)', SWITCHES),
        (
            'keys.flag("gradient_checkpointing", defaults.checkpointing)',
            'keys.flag("gradient_checkpointing", False)',
            SWITCHES,
        ),
        ("    if count < 1:  #", "    if False:  #", SWITCHES),
        ("return min(1.0, count / steps)", "return count", NUMBERS),
        ('if strategy == "steps" and every is not None:', "if every is not None:", SWITCHES),
        (
            '"metric_for_best_model", ["loss", "eval_loss"], "loss")',
            '"metric_for_best_model", ["loss", "accuracy"], "loss")',
            SWITCHES,
        ),
        ('"adamw8bit": ("adamw_8bit", "adamw_bnb_8bit")', '"adamw8bit": ("adamw_8bit",)', SWITCHES),
        ('"adam_epsilon": 1e-8}', '"adam_epsilon": 1e-6}', REFUSED),
    ),
    *of(
        "training/interchange/keys.py",
        "training/interchange/test_both_ways.py",
        ("if str(value).lower() not in _OFF:", "if False:", REFUSED),
        ("                if not _same(value, fixed[key]):", "                if False:", REFUSED),
        ('"yes": True, "no": False}', '"yes": True, "no": True}', SWITCHES),
    ),
    *of(
        "training/interchange/job.py",
        "training/interchange/test_both_ways.py",
        ("if any(name in given for name in _LENGTHS):", "if False:", "test_options_of_the_command_win"),
        (
            "return TuneSettings(**{**own, **given})",
            "return TuneSettings(**{**given, **own})",
            "test_options_of_the_command_win",
        ),
        ("and value != one.default:", "and False:", "test_what_has_no_place_there_is_refused"),
    ),
]
