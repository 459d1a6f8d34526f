"""Adapters that PEFT has written for the reference change our model's numbers as they change the reference's."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
from helpers.adapters import write_random_adapter
from helpers.checkpoints import write_checkpoint
from helpers.in_fp64 import in_fp64
from helpers.invariants import assert_close, assert_same_decoding
from helpers.tiny_models import random_patches, random_text, view

from pocketvlm.config import ImageConfig
from pocketvlm.export.huggingface import write_huggingface
from pocketvlm.model.adapters.merge import merge
from pocketvlm.model.adapters.peft_folder import read_adapter
from pocketvlm.model.checkpoint import load_model
from pocketvlm.model.hub import resolve
from pocketvlm.model.packing import PackedBatch
from pocketvlm.model.segments import Segment
from pocketvlm.model.vision.pixels import to_reference_layout
from pocketvlm.model.vlm import MiniCPMV

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peft = pytest.importorskip("peft", reason="the extra tune brings it")

KINDS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": "all-linear"},
    "rslora": {"target_modules": "all-linear", "use_rslora": True},
    "dora": {"target_modules": "all-linear", "use_dora": True},
    "patterns": {
        "target_modules": "all-linear",
        "rank_pattern": {"q_proj": 2, "^model.merger.mlp.0.linear_1": 7},
        "alpha_pattern": {"mlp.down_proj": 5, "vit_merger.linear_1": 1},
    },
    "pictures": {"target_modules": ["patch_embedding", "fc1", "linear_1"]},
    # As ms-swift writes them (a pattern of whole names), and LLaMA-Factory (every name, and a kind of task).
    "swift": {
        "target_modules": r"^(model\.language_model(?=\.).*\.(q_proj|in_proj_qkv|out_proj)"
        r"|model\.vision_tower(?=\.).*\.(out_proj|linear_1))$",
        "lora_dropout": 0.05,
        "task_type": "CAUSAL_LM",
    },
    "llamafactory": {
        "target_modules": ["model.language_model.layers.0.mlp.up_proj", "model.merger.mlp.0.linear_2"],
        "task_type": "CAUSAL_LM",
        "exclude_modules": ["lm_head"],
    },
    "head": {"target_modules": ["lm_head", "v_proj"]},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("base"), seed=3)


def their_model(checkpoint: Path) -> Any:
    model = reference.transformers.AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
    return model.eval()


def their_adapter(checkpoint: Path, folder: Path, **options: Any) -> Any:
    """Their model with a random adapter, which is written as well."""
    torch.manual_seed(5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(
            their_model(checkpoint), peft.LoraConfig(r=4, lora_alpha=2, init_lora_weights=False, **options)
        )
        for name, parameter in model.named_parameters():
            if "magnitude" in name:  # PEFT begins with the norm of the weight itself
                parameter.data.mul_(1 + 0.3 * torch.randn_like(parameter))
        model.save_pretrained(folder)
    return model.eval()


VIEWS = [view(8, 8), view(8, 12)]


@torch.no_grad()
def ours(model: MiniCPMV) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and logits."""
    features = model.encode_views(random_patches(VIEWS, 1), VIEWS)
    ids = torch.tensor(prompt(model.config.image_token_id))
    return features, model.logits(model(ids, PackedBatch.of([Segment(len(ids))]), features))


def prompt(image_id: int) -> list[int]:
    ids = random_text(5, 1)
    for one in VIEWS:
        ids += [image_id] * one.visual_tokens + random_text(2, 2)
    return ids


@torch.no_grad()
def theirs(model: Any) -> torch.Tensor:
    """Logits; their model is asked as in the parity test of the whole model."""
    pixels = to_reference_layout(random_patches(VIEWS, 1), ImageConfig())
    sizes = torch.tensor([[one.size.height, one.size.width] for one in VIEWS])
    ids = torch.tensor([prompt(model.config.image_token_id)])
    found = model(
        input_ids=ids, pixel_values=pixels.to(model.dtype), target_sizes=sizes, use_cache=False, downsample_mode="16x"
    )
    return found.logits[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_adapter_of_peft_has_the_logits_of_peft(checkpoint: Path, tmp_path: Path, kind: str) -> None:
    their = their_adapter(checkpoint, tmp_path / "adapter", **KINDS[kind])
    model = load_model(checkpoint)
    before = ours(model)[1]
    adapter = read_adapter(tmp_path / "adapter", model.config)
    merge(model, adapter)
    after = ours(model)[1]
    assert (after - before).abs().max() > 0.05 * before.abs().max(), "the adapter changes nothing"
    assert_same_decoding(after, theirs(their))
    exact = load_model(checkpoint).double()
    with in_fp64():  # where rounding hides no small mistake, but for that of B A, whose halves are fp32
        merge(exact, adapter, dtype=torch.float64)
        assert_close(ours(exact)[1], theirs(their.double()), 1e-6)


@pytest.mark.parametrize("kind", ["plain", "head"])
def test_a_merged_checkpoint_loads_in_the_reference(checkpoint: Path, tmp_path: Path, kind: str) -> None:
    their = their_adapter(checkpoint, tmp_path / "adapter", **KINDS[kind])
    write_huggingface(resolve(checkpoint).with_adapter(tmp_path / "adapter"), tmp_path / "m")
    assert_close(theirs(their_model(tmp_path / "m")), theirs(their), 1e-4)
    assert_close(ours(load_model(tmp_path / "m"))[1], theirs(their), 1e-4)


@pytest.mark.parametrize("dora", [False, True])
def test_peft_reads_what_we_write(checkpoint: Path, tmp_path: Path, dora: bool) -> None:
    model = load_model(checkpoint)
    write_random_adapter(tmp_path, model.config, 7, "", dora=dora)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        their = peft.PeftModel.from_pretrained(their_model(checkpoint), str(tmp_path)).eval()
    merge(model, read_adapter(tmp_path, model.config))
    assert_close(ours(model)[1], theirs(their), 1e-4)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "LORA"
