"""Settings that are written for another program say the same when they are read back; what has no place is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketvlm.errors import ConfigError
from pocketvlm.model.hub import resolve
from pocketvlm.training.interchange import factory, swift
from pocketvlm.training.interchange.job import Job
from pocketvlm.training.interchange.programs import PROGRAMS, Program
from pocketvlm.training.interchange.read import read_job
from pocketvlm.training.settings import PARTS, TuneSettings

NANO = resolve("nano")
WIDTH_RATE = 1e-4


def written(program: Program, one: TuneSettings, on_cpu: bool = False, **options: Any) -> dict[str, Any]:
    """The keys of a file, through YAML."""
    if program == "swift":
        images = (NANO.image_config, NANO.configs.video)
        keys, _ = swift.write(one, images, options, "16x", "model", "/data", WIDTH_RATE, True, on_cpu=on_cpu)
    else:
        keys, _ = factory.write(one, NANO.config, "model", "/data", WIDTH_RATE, True, on_cpu=on_cpu)
    again = yaml.safe_load(yaml.safe_dump(keys, sort_keys=False))
    assert again == keys
    return again


def read(keys: dict[str, Any]) -> Job:
    keys = {key: value for key, value in keys.items() if key not in ("dataset", "val_dataset")}
    return read_job(keys, "file.yaml", NANO.config)


@st.composite
def drawn_settings(draw: st.DrawFn) -> TuneSettings:
    method = draw(st.sampled_from(["lora", "qlora", "full"]))
    eval_every = draw(st.none() | st.integers(1, 10**4))
    adapters = method != "full"
    return TuneSettings(
        method=method,
        objective=draw(st.sampled_from(["sft", "dpo"])),
        tune=tuple(draw(st.sets(st.sampled_from(PARTS), min_size=1))),
        steps=draw(st.none() | st.integers(1, 10**6)),
        epochs=draw(st.floats(0.01, 100)),
        batch_size=draw(st.integers(1, 512)),
        learning_rate=draw(st.none() | st.floats(1e-7, 1)),
        warmup=draw(st.floats(0, 0.99)),
        weight_decay=draw(st.floats(0, 1)),
        clip=draw(st.floats(1e-3, 1e6)),
        rank=draw(st.integers(1, 1024)) if adapters else 16,
        alpha=float(draw(st.integers(1, 2048))) if adapters else 32.0,
        dropout=draw(st.floats(0, 0.9)) if adapters else 0.0,
        dora=draw(st.booleans()) if adapters else False,
        rslora=draw(st.booleans()) if adapters else False,
        beta=draw(st.floats(0.01, 10)),
        rpo_alpha=draw(st.floats(0, 10)),
        max_tokens=draw(st.none() | st.integers(16, 10**5)),
        truncate=draw(st.booleans()),
        gradient_checkpointing=draw(st.booleans()),
        save_every=draw(st.integers(1, 10**4)),
        eval_every=eval_every,
        result=draw(st.sampled_from(["last", "best"])) if eval_every else "last",
        optimiser=draw(st.sampled_from(["adamw", "adamw8bit"])),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


def expected(program: Program, one: TuneSettings) -> TuneSettings:
    """What comes back: what a program has no word for is as by default, and what depends on a model is a number."""
    one = replace(one, learning_rate=WIDTH_RATE, tune=tuple(part for part in PARTS if part in one.tune))
    if one.steps:
        one = replace(one, epochs=1.0)
    if one.objective == "sft":
        one = replace(one, beta=0.1, rpo_alpha=0.0)
    if one.result == "best":  # weights can be taken back there where they were saved only
        one = replace(one, save_every=one.eval_every)
    if program == "llamafactory":  # it cuts, and has a number for the longest sample
        one = replace(one, truncate=True, max_tokens=one.max_tokens or NANO.config.text.max_position_embeddings)
    return one


@pytest.mark.parametrize("program", PROGRAMS)
@settings(max_examples=150, deadline=None)
@given(one=drawn_settings())
def test_settings_come_back_as_they_were(program: Program, one: TuneSettings) -> None:
    vision = set(one.tune) & {"tower", "compression"}
    if program == "llamafactory" and one.method == "full" and len(vision) == 1:
        with pytest.raises(ConfigError, match="has no place for"):
            written(program, one)
        return
    assert read(written(program, one)).settings_with({}) == expected(program, one)


def test_options_of_pictures_come_back_as_they_were() -> None:
    options = {"downsample_mode": "4x", "max_slice_nums": 3, "max_num_frames": 7, "stack_frames": 2}
    assert read(written("swift", TuneSettings(), **options)).options == options


def test_pictures_are_as_by_default_there_where_nothing_is_said() -> None:
    """Whatever the checkpoint says: nano's own rate is 4x. The args.json of ms-swift does not name its environment."""
    job = read({**SWIFT, "ENV": {"MAX_SLICE_NUMS": "4"}})
    assert job.options == {"downsample_mode": "16x", "max_slice_nums": 4, "max_num_frames": 128, "stack_frames": 1}
    assert any("DOWNSAMPLE_MODE=16x, MAX_NUM_FRAMES=128" in note for note in job.notes)
    assert read(FACTORY).options == {"downsample_mode": "16x"}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_job_for_a_cpu_needs_no_card(program: Program) -> None:
    keys = written(program, TuneSettings(), on_cpu=True)
    assert keys["use_cpu"] is True
    assert "bfloat16" not in keys.values()
    assert not any(keys.get(name) for name in ("bf16", "fp16"))
    assert "use_cpu" not in written(program, TuneSettings())
    assert read(keys).settings == read(written(program, TuneSettings())).settings


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_has_no_place_there_is_refused(program: Program) -> None:
    for one in (TuneSettings(minutes=3), TuneSettings(alpha=1.5), TuneSettings(ema=0.9)):
        with pytest.raises(ConfigError, match=r"minutes|alpha|ema"):
            written(program, one)


FACTORY = {"model_name_or_path": "nano", "lr_scheduler_type": "cosine"}
SWIFT = {"model": "nano"}


def test_defaults_are_those_of_the_program() -> None:
    found = read(FACTORY).settings_with({})
    assert (found.rank, found.alpha, found.dropout, found.batch_size) == (8, 16.0, 0.0, 8)
    assert (found.learning_rate, found.epochs, found.max_tokens, found.warmup) == (5e-5, 3.0, 2048, 0.0)
    found = read(SWIFT).settings_with({})
    assert (found.rank, found.alpha, found.dropout, found.batch_size) == (8, 32.0, 0.05, 16)
    assert (found.learning_rate, found.weight_decay, found.max_tokens) == (1e-4, 0.1, None)
    assert read({**SWIFT, "tuner_type": "full"}).settings["learning_rate"] == 1e-5
    assert found.tune == ("decoder",)


DPO8 = {"optim": "adamw_bnb_8bit", "rlhf_type": "dpo"}
CHOSEN = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 5}


@pytest.mark.parametrize(
    ("keys", "name", "value"),
    [
        ({**FACTORY, "gradient_accumulation_steps": 2}, "batch_size", 16),
        ({**FACTORY, "per_device_train_batch_size": 1}, "batch_size", 1),
        ({**FACTORY, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}, "batch_size", 6),
        ({**SWIFT, "per_device_train_batch_size": 2}, "batch_size", 16),
        ({**FACTORY, "lora_rank": 4}, "alpha", 8.0),
        ({**FACTORY, "stage": "dpo"}, "beta", 0.1),
        ({**FACTORY, "stage": "dpo", "pref_ftx": 0.5}, "rpo_alpha", 0.5),
        ({**FACTORY, "finetuning_type": "full"}, "tune", ("decoder",)),
        ({**FACTORY, "freeze_multi_modal_projector": False}, "tune", ("decoder",)),
        ({**FACTORY, "freeze_vision_tower": False}, "tune", ("decoder", "compression", "tower")),
        ({**FACTORY, "use_dora": "no"}, "dora", False),
        (FACTORY, "weight_decay", 0.0),
        (FACTORY, "gradient_checkpointing", True),
        ({**SWIFT, "rlhf_type": "dpo"}, "beta", 0.1),
        ({**SWIFT, "rlhf_type": "dpo", "rpo_alpha": "0.5"}, "rpo_alpha", 0.5),
        ({**SWIFT, "strict": True}, "bad_samples", "stop"),
        (SWIFT, "bad_samples", "skip"),
        (SWIFT, "gradient_checkpointing", True),
        (SWIFT, "clip", 1.0),
        ({**SWIFT, "max_grad_norm": 0}, "clip", 1e6),
        (SWIFT, "seed", 42),
        (SWIFT, "save_every", 500),
        ({**SWIFT, "warmup_steps": 0.1}, "warmup", 0.1),
        ({**SWIFT, "eval_strategy": "epoch", "eval_steps": 50}, "eval_every", None),
        ({**SWIFT, **CHOSEN, "metric_for_best_model": "eval_loss"}, "result", "best"),
        ({**SWIFT, **CHOSEN}, "result", "best"),
        ({**SWIFT, **DPO8}, "optimiser", "adamw8bit"),
    ],
)
def test_switches_and_lengths_say_what_they_say_there(keys: dict[str, Any], name: str, value: Any) -> None:
    assert getattr(read(keys).settings_with({}), name) == value


def test_data_is_as_much_as_they_say() -> None:
    assert read({**FACTORY, "val_size": 0.2}).split == 0.2
    count = read({**FACTORY, "val_size": 5}).split
    assert count == 5
    assert isinstance(count, int)
    (sets,) = read_job({**FACTORY, "dataset": "a,b", "max_samples": 3}, "file.yaml", NANO.config).data
    assert (sets.names, sets.first, sets.drawn) == (("a", "b"), 3, None)
    (sets,) = read_job({**SWIFT, "dataset": f"{__file__}#2"}, "file.yaml", NANO.config).data
    assert (sets.sources, sets.first, sets.drawn) == ((__file__,), None, 2)


def test_a_system_message_is_text_or_a_file_of_it(tmp_path: Path) -> None:
    def system(text: str) -> str:
        (sets,) = read_job({**SWIFT, "dataset": __file__, "system": text}, "file.yaml", NANO.config).data
        return sets.system

    (tmp_path / "system.txt").write_bytes(b"Be short.\r\n\\n")
    assert system(r"Be\nshort.") == "Be\nshort."
    assert system(str(tmp_path / "system.txt")) == "Be short.\n\\n"
    for missing in (str(tmp_path / "none.txt"), "Write into a file " + "x" * 300 + ".txt"):
        with pytest.raises(ConfigError, match=r"file.yaml: system is .*the file of that name cannot be read"):
            system(missing)


def test_numbers_may_be_text_and_batches_are_of_all_processes() -> None:
    keys = {"per_device_train_batch_size": "2", "gradient_accumulation_steps": 3, "learning_rate": "1e-4"}
    assert read({**FACTORY, **keys}).settings["batch_size"] == 6
    assert read({**FACTORY, **keys}).settings["learning_rate"] == 1e-4
    assert read({**SWIFT, **keys, "ENV": {"NPROC_PER_NODE": "4"}}).settings["batch_size"] == 24
    assert read({**SWIFT, "max_steps": 50, "warmup_steps": 5}).settings["warmup"] == 0.1


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({**FACTORY, "stage": "ppo"}, "stage"),
        ({**FACTORY, "load_best_model_at_end": True}, "load_best_model_at_end"),
        ({**FACTORY, "finetuning_type": "freeze"}, "finetuning_type"),
        ({**FACTORY, "lora_target": "q_proj,v_proj"}, "lora_target"),
        ({**FACTORY, "quantization_bit": 8}, "quantization_bit"),
        ({**FACTORY, "neat_packing": True}, "neat_packing"),
        ({**FACTORY, "lr_scheduler_type": "constant"}, "lr_scheduler_type"),
        ({**FACTORY, "optim": "adafactor"}, "optim"),
        ({**FACTORY, "pref_loss": "simpo"}, "pref_loss"),
        ({**FACTORY, "adapter_name_or_path": "there"}, "adapter_name_or_path"),
        ({**FACTORY, "lora_rnak": 4}, "lora_rnak"),
        ({**FACTORY, "lora_rank": "many"}, "lora_rank"),
        ({**FACTORY, "freeze_language_model": True}, "frozen"),
        ({**FACTORY, "warmup_steps": 20}, "warmup_steps"),
        ({**SWIFT, "rlhf_type": "grpo"}, "rlhf_type"),
        ({**SWIFT, "tuner_type": "adalora"}, "tuner_type"),
        ({**SWIFT, "train_type": "lora_llm"}, "train_type"),
        ({**SWIFT, "target_modules": ["q_proj", "v_proj"]}, "target_modules"),
        ({**SWIFT, "target_regex": "("}, "target_regex"),
        ({**SWIFT, "loss_scale": "last_round"}, "loss_scale"),
        ({**SWIFT, "truncation_strategy": "left"}, "truncation_strategy"),
        ({**SWIFT, "vit_lr": 1e-5}, "vit_lr"),
        ({**SWIFT, "adam_beta2": 0.95}, "adam_beta2"),
        ({**SWIFT, "adam_epsilon": 1e-6}, "adam_epsilon"),
        ({**SWIFT, "ENV": {"VIDEO_MAX_SLICE_NUMS": "4"}}, "VIDEO_MAX_SLICE_NUMS"),
        ({**SWIFT, "model_kwargs": "no json"}, "model_kwargs"),
        ({**SWIFT, "stage": "sft"}, "keys of ms-swift and of LLaMA-Factory"),
        ({"lr": 1}, "no settings file"),
    ],
)
def test_keys_that_would_change_the_result_are_refused_by_name(keys: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        read(keys)
    assert "\n" not in str(caught.value)


def test_keys_that_change_nothing_are_named_in_one_line() -> None:
    job = read({**FACTORY, "logging_steps": 10, "deepspeed": "zero.json", "plot_loss": True, "neat_packing": False})
    (line,) = [note for note in job.notes if "left out" in note]
    assert "logging_steps" in line
    assert "deepspeed" in line
    assert "neat_packing" not in line
    job = read({**SWIFT, "adam_beta2": 0.999, "model_author": "me", "lora_bias": "none", "max_pixels": None})
    (line,) = [note for note in job.notes if "left out" in note]
    assert "model_author" in line


def test_what_is_not_given_and_differs_there_is_told() -> None:
    assert any("linear" in note for note in read({"model_name_or_path": "nano"}).notes)
    assert any("adam_beta2" in note for note in read(SWIFT).notes)
    job = read({**FACTORY, "template": "minicpm_v_4_6"})
    assert any("helpful assistant" in note for note in job.notes)


def test_what_swift_writes_beside_a_run_is_read() -> None:
    """Its args.json holds every argument, most of them switched off, and objects as text."""
    more = {"tuner_backend": "peft", "template_meta": "Meta(...)", "training_args": "Arguments(...)", "rlhf_type": None}
    more |= {"use_galore": False, "lisa_activated_layers": 0, "decision_shuffle_fields": False, "init_weights": True}
    more |= {"loss_scale": "default+ignore_empty_think", "train_sampling_strategy": "random", "lora_bias": "none"}
    more |= {"target_modules": ["all-linear"], "max_steps": -1, "eval_strategy": "epoch", "adam_beta2": 0.999}
    assert read({**SWIFT, **more, "lora_rank": 3}).settings_with({}).rank == 3
    with pytest.raises(ConfigError, match="lisa_activated_layers"):
        read({**SWIFT, **more, "lisa_activated_layers": 2})


def test_options_of_the_command_win() -> None:
    job = read({**SWIFT, "max_steps": 50, "lora_rank": 4})
    found = job.settings_with({"rank": 2, "epochs": None})
    assert (found.steps, found.rank) == (50, 2)
    found = job.settings_with({"epochs": 2.0})
    assert (found.steps, found.epochs, found.rank) == (None, 2.0, 4)
