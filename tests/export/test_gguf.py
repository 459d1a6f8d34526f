"""GGUF files: every weight under llama.cpp's names with its conventions, whole or not there at all."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from helpers.adapters import ALL, DECODER, write_random_adapter
from safetensors.torch import load_file

from pocketvlm.cli import main
from pocketvlm.config import DownsampleMode
from pocketvlm.errors import CheckpointError, ConfigError, OutputError
from pocketvlm.export.gguf.files import GGUFType, write_gguf
from pocketvlm.export.huggingface import write_huggingface
from pocketvlm.model.adapters.lora import HEAD
from pocketvlm.model.directory import ModelDirectory
from pocketvlm.model.hub import resolve

BLOCK = {"attn_norm", "post_attention_norm", "ffn_gate", "ffn_up", "ffn_down"}
FULL = {"attn_q", "attn_k", "attn_v", "attn_output", "attn_q_norm", "attn_k_norm"}
LINEAR = {"attn_qkv", "attn_gate", "ssm_alpha", "ssm_beta", "ssm_conv1d", "ssm_norm", "ssm_out"}
VISION = {"ln1", "ln2", "attn_q", "attn_k", "attn_v", "attn_out", "ffn_up", "ffn_down"}


def export(
    source: Path | ModelDirectory, out: Path, dtype: GGUFType = "f32", mode: DownsampleMode = "16x"
) -> list[gguf.GGUFReader]:
    files = write_gguf(source, out, dtype, mode)
    return [gguf.GGUFReader(files.model), gguf.GGUFReader(files.projector)]


def arrays(reader: gguf.GGUFReader) -> dict[str, np.ndarray]:
    return {t.name: gguf.dequantize(t.data, t.tensor_type).reshape(t.shape.tolist()[::-1]) for t in reader.tensors}


@pytest.fixture(scope="module")
def source(seeded_checkpoint: Callable[[int], Path]) -> Path:
    return seeded_checkpoint(0)


@pytest.fixture(scope="module")
def published(source: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.float() for name, tensor in load_file(source / "model.safetensors").items()}


def test_the_decoder_has_every_tensor_by_its_name(source: Path, tmp_path: Path) -> None:
    reader, _ = export(source, tmp_path / "out")
    kinds = json.loads((source / "config.json").read_text())["text_config"]["layer_types"]
    expected = {"token_embd.weight", "output_norm.weight"}
    for i, kind in enumerate(kinds):
        expected |= {f"blk.{i}.{name}.weight" for name in BLOCK | (FULL if kind == "full_attention" else LINEAR)}
        if kind == "linear_attention":
            expected |= {f"blk.{i}.ssm_dt.bias", f"blk.{i}.ssm_a"}
    assert {tensor.name for tensor in reader.tensors} == expected


@pytest.mark.parametrize("mode", ["16x", "4x"])
def test_the_tower_has_the_early_compression_only_at_16x(source: Path, tmp_path: Path, mode: DownsampleMode) -> None:
    _, reader = export(source, tmp_path / "out", mode=mode)
    layers = json.loads((source / "config.json").read_text())["vision_config"]["num_hidden_layers"]
    stems = {f"v.blk.{i}.{name}" for i in range(layers) for name in VISION}
    stems |= {"v.patch_embd", "v.post_ln", "mm.input_norm", "mm.up", "mm.down"}
    compression = {"ln1", "attn_q", "attn_k", "attn_v", "attn_out", "ds_ln", "ds_ffn_up", "ds_ffn_down"}
    if mode == "16x":
        stems |= {f"v.vit_merger.{name}" for name in compression}
    expected = {f"{stem}.{leaf}" for stem in stems for leaf in ("weight", "bias")} | {"v.position_embd.weight"}
    assert {tensor.name for tensor in reader.tensors} == expected
    assert reader.fields["clip.vision.projector.scale_factor"].contents() == (4 if mode == "16x" else 2)


def test_values_carry_the_conventions_of_the_format(
    source: Path, published: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    decoder, tower = (arrays(reader) for reader in export(source, tmp_path / "out"))
    own = {name.removeprefix("model.language_model."): tensor.numpy() for name, tensor in published.items()}
    np.testing.assert_array_equal(decoder["token_embd.weight"], own["embed_tokens.weight"])
    np.testing.assert_array_equal(decoder["output_norm.weight"], own["norm.weight"] + 1)
    linear = "layers.0.linear_attn."
    # Two key heads with two value heads each: the format counts firsts, then seconds.
    heads, dim = [0, 2, 1, 3], 32
    rows = np.concatenate([np.arange(dim) + dim * head for head in heads])
    np.testing.assert_allclose(decoder["blk.0.ssm_a"], -np.exp(own[linear + "A_log"][heads]), rtol=1e-6)
    np.testing.assert_array_equal(decoder["blk.0.ssm_dt.bias"], own[linear + "dt_bias"][heads])
    np.testing.assert_array_equal(decoder["blk.0.ssm_norm.weight"], own[linear + "norm.weight"])
    np.testing.assert_array_equal(decoder["blk.0.ssm_alpha.weight"], own[linear + "in_proj_a.weight"][heads])
    np.testing.assert_array_equal(decoder["blk.0.ssm_beta.weight"], own[linear + "in_proj_b.weight"][heads])
    np.testing.assert_array_equal(decoder["blk.0.attn_gate.weight"], own[linear + "in_proj_z.weight"][rows])
    np.testing.assert_array_equal(decoder["blk.0.ssm_out.weight"], own[linear + "out_proj.weight"][:, rows])
    for name, mixed in (
        ("ssm_conv1d", own[linear + "conv1d.weight"][:, 0]),
        ("attn_qkv", own[linear + "in_proj_qkv.weight"]),
    ):
        before, values = np.split(mixed, [len(mixed) - len(rows)])
        np.testing.assert_array_equal(decoder[f"blk.0.{name}.weight"], np.concatenate([before, values[rows]]))
    full = next(int(m[1]) for n in own if (m := re.fullmatch(r"layers\.(\d+)\.self_attn\.q_norm\.weight", n)))
    np.testing.assert_array_equal(
        decoder[f"blk.{full}.attn_q_norm.weight"], own[f"layers.{full}.self_attn.q_norm.weight"] + 1
    )
    patches = published["model.vision_tower.embeddings.patch_embedding.weight"].numpy()
    np.testing.assert_array_equal(tower["v.patch_embd.weight"], patches)
    np.testing.assert_array_equal(
        tower["v.vit_merger.ds_ffn_up.weight"], published["model.vision_tower.vit_merger.linear_1.weight"].numpy()
    )
    np.testing.assert_array_equal(tower["mm.down.weight"], published["model.merger.mlp.0.linear_2.weight"].numpy())


@pytest.mark.parametrize(("dtype", "tolerance"), [("bf16", 2**-8), ("f16", 2**-10), ("q8_0", 1 / 120)])
def test_matrices_are_narrow_and_the_rest_is_not(
    source: Path, tmp_path: Path, dtype: GGUFType, tolerance: float
) -> None:
    exact = export(source, tmp_path / "f32")
    narrow = export(source, tmp_path / "narrow", dtype)
    seen = set()
    for true, reader in zip(exact, narrow, strict=True):
        expected = arrays(true)
        for tensor in reader.tensors:
            seen.add(tensor.tensor_type.name)
            got = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(expected[tensor.name].shape)
            if tensor.tensor_type.name == "F32":
                np.testing.assert_array_equal(got, expected[tensor.name])
            else:
                scale = np.abs(expected[tensor.name]).max()
                assert np.abs(got - expected[tensor.name]).max() <= tolerance * scale
    assert dtype.upper() in seen


@pytest.mark.parametrize("layers", [ALL, f"{DECODER}|{HEAD}"], ids=["all layers", "the head"])
def test_files_with_an_adapter_are_those_of_the_merged_checkpoint(source: Path, tmp_path: Path, layers: str) -> None:
    """An adapter of the head unties it from the embedding, so that both are in the file."""
    adapted = resolve(source).with_adapter(write_random_adapter(tmp_path / "a", resolve(source).config, 1, layers))
    write_huggingface(adapted, tmp_path / "merged", "f32")
    plain, found, expected = (
        [arrays(reader) for reader in export(one, tmp_path / f"{number}" / "out")]
        for number, one in enumerate((source, adapted, tmp_path / "merged"))
    )
    for ours, merged in zip(found, expected, strict=True):
        assert ours.keys() == merged.keys()
        for name, values in ours.items():
            np.testing.assert_array_equal(values, merged[name], err_msg=name)
    for name in ("blk.0.ffn_up.weight", "blk.0.attn_qkv.weight"):
        assert not np.array_equal(found[0][name], plain[0][name]), name
    if layers == ALL:
        assert not np.array_equal(found[1]["v.blk.0.ffn_up.weight"], plain[1]["v.blk.0.ffn_up.weight"])
    else:
        assert not np.array_equal(found[0]["output.weight"], found[0]["token_embd.weight"])
        np.testing.assert_array_equal(found[0]["token_embd.weight"], plain[0]["token_embd.weight"])


def test_the_vocabulary_keeps_its_ids(source: Path, tmp_path: Path) -> None:
    reader, _ = export(source, tmp_path / "out")
    file = json.loads((source / "tokenizer.json").read_text())
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    kinds = reader.fields["tokenizer.ggml.token_type"].contents()
    for added in file["added_tokens"]:
        assert tokens[added["id"]] == added["content"]
        wanted = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        assert kinds[added["id"]] == int(wanted)
    for token, i in file["model"]["vocab"].items():
        assert tokens[i] == token
    assert tokens[reader.fields["tokenizer.ggml.eos_token_id"].contents()] == "<|im_end|>"
    assert len(tokens) == json.loads((source / "config.json").read_text())["text_config"]["vocab_size"]


def test_nothing_is_left_of_an_export_that_fails(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full)
    with pytest.raises(OutputError, match="No space left"):
        write_gguf(source, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_template_is_the_one_that_holds_wherever_it_stands(source: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(source, tmp_path / "copy"))
    template = (copy / "chat_template.jinja").read_text()
    (copy / "chat_template.jinja").unlink()
    config = json.loads((copy / "tokenizer_config.json").read_text())
    for i, stands in enumerate((template, [{"name": "default", "template": template}])):
        (copy / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": stands}))
        decoder, _ = export(copy, tmp_path / f"out{i}")
        assert decoder.fields["tokenizer.chat_template"].contents() == template
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="has no chat template"):
        write_gguf(copy, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_vocabulary_without_an_end_of_turn_is_one_line(source: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(source, tmp_path / "copy"))
    file = copy / "tokenizer.json"
    file.write_text(file.read_text().replace("<|im_end|>", "<|end|>"))
    with pytest.raises(CheckpointError, match=r"has no <\|im_end\|>"):
        write_gguf(copy, tmp_path / "out")


def test_numbers_of_every_spelling_are_written_as_what_they_mean(source: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(source, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    config["text_config"] |= {"num_hidden_layers": 4.0, "vocab_size": float(config["text_config"]["vocab_size"])}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "preprocessor_config.json").write_text(json.dumps({"image_std": [1, 0.5, 1], "image_mean": [0, 0.5, 0]}))
    decoder, tower = export(copy, tmp_path / "out")
    assert decoder.fields["qwen35.block_count"].contents() == 4
    assert tower.fields["clip.vision.image_std"].contents() == [1.0, 0.5, 1.0]
    assert tower.fields["clip.vision.image_mean"].contents() == [0.0, 0.5, 0.0]


def test_what_llama_cpp_would_compute_wrongly_is_refused(source: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(source, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    config["vision_config"]["image_size"] = 32 * config["vision_config"]["patch_size"]
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="32 positions a side"):
        write_gguf(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_writes_both_files_and_refuses_options_of_onnx(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "gguf", str(tmp_path / "m"), "--model", str(source), "--type", "q8_0", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["files"] == {file.name: file.stat().st_size for file in (tmp_path / "m").iterdir()}
    assert set(printed["files"]) == {"m-q8_0.gguf", "mmproj-m-16x-q8_0.gguf"}
    assert main(["export", "gguf", str(tmp_path / "n"), "--model", str(source), "--quantization", "int8"]) == 2
    assert "--quantization means nothing for gguf" in capsys.readouterr().err
    assert not (tmp_path / "n").exists()


def test_the_command_takes_an_adapter(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_random_adapter(tmp_path / "adapter", resolve(source).config, 1, ALL)
    options = ("--model", str(source), "--type", "f32", "--adapter", str(folder))
    assert main(["export", "gguf", str(tmp_path / "1" / "m"), *options]) == 0, capsys.readouterr().err
    expected = write_gguf(resolve(source).with_adapter(folder), tmp_path / "2" / "m", "f32")
    for file in (expected.model, expected.projector):
        assert (tmp_path / "1" / "m" / file.name).read_bytes() == file.read_bytes()
