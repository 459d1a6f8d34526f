"""Checkpoints: bit-identical both ways with the reference, and one clear line for everything that does not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.invariants import prefill
from helpers.tiny_models import random_text
from parity import reference
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pocketvlm.errors import CheckpointError, ConfigError, OutputError, PocketVLMError
from pocketvlm.model import checkpoint
from pocketvlm.model import weight_files as headers
from pocketvlm.model.checkpoint import (
    load_model,
    our_name,
    published_names,
    save_model,
    stored_dtype,
)
from pocketvlm.model.text.decoder import fp32_parameters
from pocketvlm.model.weight_files import INDEX, WEIGHTS, count_parameters, weight_files

Tensors = dict[str, Tensor]


@pytest.fixture
def directory(seeded_checkpoint: Callable[[int], Path], tmp_path: Path) -> Path:
    """A checkpoint of one's own, to break."""
    return shutil.copytree(seeded_checkpoint(0), tmp_path / "checkpoint")


def reference_model(directory: Path, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    return reference.transformers.MiniCPMV4_6ForConditionalGeneration.from_pretrained(directory, dtype=dtype)


def reference_state(directory: Path) -> Tensors:
    return reference_model(directory).state_dict()


def reference_logits(directory: Path, ids: list[int], dtype: torch.dtype) -> Tensor:
    return reference_model(directory, dtype)(input_ids=torch.tensor([ids])).logits[0]


def same_bits(got: Tensors, expected: Tensors) -> None:
    assert got.keys() == expected.keys()
    assert [n for n, t in expected.items() if got[n].dtype != t.dtype or not torch.equal(got[n], t)] == []


def rewrite(directory: Path, change: Callable[[Tensors], object]) -> None:
    tensors = load_file(directory / WEIGHTS)
    change(tensors)
    save_file(tensors, directory / WEIGHTS)


def shard(directory: Path, count: int) -> None:
    """Split the single file into shards and an index."""
    tensors = load_file(directory / WEIGHTS)
    names, weight_map = sorted(tensors), {}
    for i in range(count):
        file = f"model-{i + 1:05}-of-{count:05}.safetensors"
        save_file({n: tensors[n] for n in names[i::count]}, directory / file)
        weight_map |= dict.fromkeys(names[i::count], file)
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (directory / WEIGHTS).unlink()


def edit_config(directory: Path, change: Callable[[dict], object]) -> None:
    file = directory / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


def one_clear_error(directory: Path, kind: type[PocketVLMError], *parts: str) -> None:
    with pytest.raises(kind) as caught:
        load_model(directory)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


# -- what fits ---------------------------------------------------------------------------------------------------------


def test_save_and_load_round_trip_is_bit_identical_for_the_reference(directory: Path, tmp_path: Path) -> None:
    save_model(load_model(directory), tmp_path / "saved", dtype=torch.float32)
    same_bits(load_file(tmp_path / "saved" / WEIGHTS), load_file(directory / WEIGHTS))
    same_bits(reference_state(tmp_path / "saved"), reference_state(directory))


def test_half_precision_checkpoint_survives_loading_as_fp32_and_saving(directory: Path, tmp_path: Path) -> None:
    rewrite(directory, lambda tensors: tensors.update({n: t.bfloat16() for n, t in tensors.items()}))
    save_model(load_model(directory, dtype=torch.float32), tmp_path / "saved")
    same_bits(load_file(tmp_path / "saved" / WEIGHTS), load_file(directory / WEIGHTS))


def test_saved_config_reads_back_equal_in_both(directory: Path, tmp_path: Path) -> None:
    model = load_model(directory)
    save_model(model, tmp_path / "saved")
    assert load_model(tmp_path / "saved").config == model.config
    read = [reference.transformers.AutoConfig.from_pretrained(d).to_dict() for d in (directory, tmp_path / "saved")]
    assert [config.pop("_name_or_path") for config in read] == [str(directory), str(tmp_path / "saved")]
    assert read[0] == read[1]


def test_saving_leaves_no_partial_file(directory: Path, tmp_path: Path) -> None:
    save_model(load_model(directory), tmp_path / "saved")
    assert sorted(f.name for f in (tmp_path / "saved").iterdir()) == ["config.json", WEIGHTS]


def test_a_disk_that_is_full_while_saving_is_one_line(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(OutputError, match="No space left"):
        save_model(load_model(directory), tmp_path / "saved")
    assert not list((tmp_path / "saved").iterdir())


def test_our_names_and_the_published_ones_are_one_to_one(directory: Path) -> None:
    names = published_names(load_model(directory))
    assert set(names.values()) == set(load_file(directory / WEIGHTS))
    assert {our_name(published): published for published in names.values()} == names


@pytest.mark.parametrize("count", [2, 3])
def test_sharded_equals_single(directory: Path, tmp_path: Path, count: int) -> None:
    single = shutil.copytree(directory, tmp_path / "single")
    shard(directory, count)
    same_bits(load_model(directory).state_dict(), load_model(single).state_dict())


def test_trap_missing_dtype_in_the_config_the_caller_decides(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    assert not {"dtype", "torch_dtype"} & (config.keys() | config["text_config"].keys())
    assert load_model(directory).dtype == torch.float32
    assert load_model(directory, dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_trap_a_log_in_half_precision_decay_rates_stay_fp32_and_finite(directory: Path, dtype: torch.dtype) -> None:
    # A rate as small as this becomes zero, and its logarithm minus infinity, when a loader goes through half precision.
    rewrite(directory, lambda ts: [t.fill_(1e-30).log_() for n, t in ts.items() if n.endswith("A_log")])
    model = load_model(directory, dtype=dtype)
    kept = fp32_parameters(model)
    assert len(kept) == 2 * model.config.text.layer_types.count("linear_attention")
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if name in kept else dtype), name
        assert torch.isfinite(parameter).all(), name
    written = load_file(directory / WEIGHTS)
    assert all(torch.equal(model.get_parameter(our), written[published_names(model)[our]]) for our in kept)


@torch.no_grad()
def test_half_precision_model_is_no_further_from_fp32_than_the_reference_in_half_precision(directory: Path) -> None:
    ids = random_text(70)
    errors = []
    for side in (
        lambda dtype: prefill(load_model(directory, dtype=dtype), ids),
        partial(reference_logits, directory, ids),
    ):
        exact, rounded = side(torch.float32), side(torch.bfloat16)
        errors.append((rounded.float() - exact).abs().mean())
    assert errors[0] <= 2 * errors[1]


def test_a_tied_head_written_a_second_time_is_left_out_with_a_warning(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("pocketvlm.model.weight_files.logger.warning", lambda line, *values: said.append(line % values))
    load_model(directory)
    assert not [line for line in said if "lm_head" in line]
    embedding = "model.language_model.embed_tokens.weight"
    rewrite(directory, lambda tensors: tensors.update({"lm_head.weight": tensors[embedding].clone()}))
    assert "language_model.lm_head.weight" not in dict(load_model(directory).named_parameters())
    assert [line for line in said if "lm_head" in line] == [
        f"{directory}: lm_head.weight is left out: config.json ties it to the embedding"
    ]


def test_an_untied_head_round_trips(directory: Path, tmp_path: Path) -> None:
    def untie(config: dict) -> None:
        config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = False

    edit_config(directory, untie)
    head = torch.randn(load_file(directory / WEIGHTS)["model.language_model.embed_tokens.weight"].shape)
    rewrite(directory, lambda tensors: tensors.update({"lm_head.weight": head}))
    save_model(load_model(directory), tmp_path / "saved", dtype=torch.float32)
    same_bits(load_file(tmp_path / "saved" / WEIGHTS), load_file(directory / WEIGHTS))
    assert torch.equal(reference_state(tmp_path / "saved")["lm_head.weight"], head)


def test_progress_rises_to_the_end(directory: Path) -> None:
    seen: list[tuple[int, int]] = []
    load_model(directory, progress=lambda done, total: seen.append((done, total)))
    done = [d for d, _ in seen]
    assert done == sorted(done)
    assert len({total for _, total in seen}) == 1
    assert done[-1] == seen[-1][1], "or a bar would stay on the screen"


def test_a_model_with_cpu_kernels_is_not_saved_in_parts(directory: Path, tmp_path: Path) -> None:
    model = load_model(directory, cpu_kernels=True)
    assert model.use_cpu_kernels() is model, "a second time changes nothing"
    with pytest.raises(CheckpointError, match="CPU kernels"):
        save_model(model, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_loaded_model_is_in_evaluation_mode_and_nothing_is_left_on_meta(directory: Path) -> None:
    model = load_model(directory)
    assert not model.training
    assert {t.device.type for t in (*model.parameters(), *model.buffers())} == {"cpu"}


# -- what does not fit -------------------------------------------------------------------------------------------------


def test_missing_unexpected_and_misshapen_names_are_all_listed_in_one_line(directory: Path) -> None:
    def spoil(tensors: Tensors) -> None:
        del tensors["model.vision_tower.post_layernorm.bias"], tensors["model.merger.mlp.0.linear_1.weight"]
        tensors["model.language_model.layers.0.linear_attn.A_log"] = torch.zeros(7)
        tensors["model.other.weight"] = torch.zeros(2)

    rewrite(directory, spoil)
    one_clear_error(
        directory,
        CheckpointError,
        "2 missing",
        "model.vision_tower.post_layernorm.bias",
        "model.merger.mlp.0.linear_1.weight",
        "1 unexpected: model.other.weight",
        "1 of another shape: model.language_model.layers.0.linear_attn.A_log [7] instead of [4]",
    )


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.int64])
def test_weights_that_are_no_floating_point_numbers_are_refused(directory: Path, dtype: torch.dtype) -> None:
    name = "model.language_model.norm.weight"
    rewrite(directory, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    kind = str(dtype).removeprefix("torch.")
    one_clear_error(directory, CheckpointError, f"1 not of floating point: {name} ({kind})")


@pytest.mark.parametrize("shape", [(64, 3, 7, 7), (64, 588), (64, 3, 196), (64, 3, 14, 14, 1), ()])
def test_misshapen_patch_embedding_is_listed_like_any_other(directory: Path, shape: tuple[int, ...]) -> None:
    name = "model.vision_tower.embeddings.patch_embedding.weight"
    rewrite(directory, lambda tensors: tensors.update({name: torch.zeros(shape)}))
    one_clear_error(directory, CheckpointError, f"{name} {list(shape)}")


def test_many_faults_are_counted_not_all_named(directory: Path) -> None:
    rewrite(directory, lambda tensors: [tensors.pop(n) for n in list(tensors) if "layers.1." in n])
    one_clear_error(directory, CheckpointError, " missing: ", " more")


def test_weights_of_another_size_are_refused(directory: Path) -> None:
    edit_config(directory, lambda config: config["text_config"].update(intermediate_size=128))
    one_clear_error(directory, CheckpointError, "of another shape", "gate_proj.weight [96, 64] instead of [128, 64]")


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_truncated_or_empty_weights(directory: Path, size: int) -> None:
    content = (directory / WEIGHTS).read_bytes()
    (directory / WEIGHTS).write_bytes(content[:size])
    one_clear_error(directory, CheckpointError, WEIGHTS, "truncated")


def test_weights_that_are_something_else(directory: Path) -> None:
    (directory / WEIGHTS).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n" * 3)
    one_clear_error(directory, CheckpointError, WEIGHTS)


def test_missing_weights(directory: Path) -> None:
    (directory / WEIGHTS).unlink()
    one_clear_error(directory, CheckpointError, f"{WEIGHTS} does not exist")


def test_missing_directory(tmp_path: Path) -> None:
    one_clear_error(tmp_path / "nowhere", ConfigError, "config.json does not exist")


def test_missing_config(directory: Path) -> None:
    (directory / "config.json").unlink()
    one_clear_error(directory, ConfigError, "config.json does not exist")


@pytest.mark.parametrize("content", [b"", b"{", b"not json", b"\xff\xfe\x00", b"[1, 2]", b"null", b"{}"])
def test_garbage_config(directory: Path, content: bytes) -> None:
    (directory / "config.json").write_bytes(content)
    one_clear_error(directory, ConfigError)


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "llama"},
        {"text_config": None},
        {"vision_config": {"hidden_act": "relu"}},
        {"insert_layer_id": 99},
        {"drop_vision_last_layer": True},
        {"merger_times": 2},
    ],
    ids=str,
)
def test_config_values_that_cannot_be_honoured(directory: Path, change: dict[str, object]) -> None:
    edit_config(directory, lambda config: config.update(change))
    one_clear_error(directory, ConfigError)


@pytest.mark.parametrize(
    "change",
    [
        {"attn_output_gate": False},
        {"layer_types": ["convolution"] * 4},
        {"num_hidden_layers": 9},
        {"hidden_act": "relu"},
    ],
    ids=str,
)
def test_text_config_values_that_cannot_be_honoured(directory: Path, change: dict[str, object]) -> None:
    edit_config(directory, lambda config: config["text_config"].update(change))
    one_clear_error(directory, PocketVLMError)


@pytest.mark.parametrize("outside", ["../other.safetensors", "/etc/passwd", "nested/model.safetensors", "..", "."])
def test_index_that_names_a_file_outside(directory: Path, outside: str) -> None:
    shutil.copy(directory / WEIGHTS, directory.parent / "other.safetensors")
    shard(directory, 2)
    index = json.loads((directory / INDEX).read_text())
    index["weight_map"] |= {next(iter(index["weight_map"])): outside}
    (directory / INDEX).write_text(json.dumps(index))
    one_clear_error(directory, CheckpointError)


@pytest.mark.parametrize(
    "index",
    [{}, {"weight_map": {}}, {"weight_map": []}, {"weight_map": {"a": 1}}, {"weight_map": {"a": ["b"], "c": "d"}}],
    ids=str,
)
def test_index_without_a_usable_map(directory: Path, index: dict[str, object]) -> None:
    (directory / INDEX).write_text(json.dumps(index))
    one_clear_error(directory, CheckpointError)


def test_index_that_names_what_the_fingerprint_does_not_cover(directory: Path) -> None:
    names = load_file(directory / WEIGHTS)
    (directory / WEIGHTS).rename(directory / "weights.st")
    (directory / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, "weights.st")}))
    one_clear_error(directory, CheckpointError, "weights.st, expected *.safetensors")


def test_index_that_names_a_missing_shard(directory: Path) -> None:
    shard(directory, 3)
    (directory / "model-00002-of-00003.safetensors").unlink()
    one_clear_error(directory, CheckpointError, "model-00002-of-00003.safetensors does not exist")


@pytest.mark.parametrize("read", [load_model, count_parameters, stored_dtype])
def test_weights_that_go_away_before_they_are_read_are_one_line(
    directory: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], object]
) -> None:
    files = [directory / "gone.safetensors", *weight_files(directory)]
    for module in (checkpoint, headers):
        monkeypatch.setattr(module, "weight_files", lambda _: files)
    gone, stat = files[0], Path.stat
    monkeypatch.setattr(Path, "stat", lambda path, **more: stat(files[1] if path == gone else path, **more))
    with pytest.raises(CheckpointError, match=r"gone\.safetensors cannot be read") as error:
        read(directory)
    assert "\n" not in str(error.value)
