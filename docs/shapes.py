"""The tables of docs/model.md: one 448 x 448 picture through the published model.

The model is built on PyTorch's meta device, where tensors have shapes but no values, and is run as it is; forward hooks
write down what comes out of each part. So the tables say what the code does.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from pocketvlm.config import DOWNSAMPLE_MODES, DownsampleMode, ImageConfig, ModelConfig
from pocketvlm.model.cache.base import Cache
from pocketvlm.model.cache.contiguous import ContiguousCache
from pocketvlm.model.cache.torch_memory import TorchMemory
from pocketvlm.model.flops import vision_flops
from pocketvlm.model.packing import PackedBatch, Segment
from pocketvlm.model.vlm import MiniCPMV
from pocketvlm.processing.patches.slicing import plan_views
from pocketvlm.views import Size

SIDE, TEXT = 448, 36  # pixels of the picture; tokens of the prompt besides the visual ones


def rows(config: ModelConfig) -> dict[str, str]:
    """Module → what it is, in the order of the forward; the first layer of each kind stands for its kind."""
    insert, depth, side = config.insert_layer_id, config.vision.num_hidden_layers, config.vision.positions_per_side
    kinds = config.text.layer_types
    linear, full = (f"language_model.layers.{kinds.index(k)}" for k in ("linear_attention", "full_attention"))
    layers, merger = "vision_tower.layers", "vision_tower.vit_merger"
    return {
        "vision_tower.patch_embedding": f"patch embedding, plus the nearest of {side} × {side} positions",
        f"{layers}.0.mlp.fc1": "tower layer: inside the MLP",
        f"{layers}.{insert}": f"after tower layers 0 to {insert}",
        f"{merger}.self_attn": "early compression: attention within 2 × 2 windows",
        f"{merger}.pre_norm": "early compression: a window's four tokens side by side",
        f"{merger}.linear_1": "early compression: inside the MLP",
        merger: "early compression: out, the mean of the window added",
        f"{layers}.{depth - 1}": f"after tower layers {insert + 1} to {depth - 1}",
        "merger.pre_norm": "merger: 2 × 2 features side by side",
        "merger": "merger: visual tokens",
        "language_model.embed_tokens": f"token ids ({TEXT} of text here) to embeddings; visual tokens put in place",
        f"{linear}.linear_attn.in_proj_qkv": "linear attention: queries, keys, values, into the convolution",
        f"{linear}.linear_attn.norm": "linear attention: out of the delta rule, by head",
        f"{linear}.mlp.gate_proj": "inside the SwiGLU",
        linear: f"a linear-attention layer ({kinds.count('linear_attention')} of {len(kinds)})",
        f"{full}.self_attn.q_proj": "full attention: queries and output gates",
        f"{full}.self_attn.q_norm": "full attention: queries, by head",
        f"{full}.self_attn.k_norm": "full attention: keys, by KV head; values likewise",
        full: f"a full-attention layer ({kinds.count('full_attention')} of {len(kinds)})",
        "language_model.norm": "hidden states",
    }


def shape(tensor: Tensor) -> str:
    return " × ".join(f"{n:,}" for n in tensor.shape)


def run(model: MiniCPMV, mode: DownsampleMode) -> tuple[dict[str, str], Cache]:
    """Module → shape of what came out of it, and the cache that the prompt left."""
    seen: dict[str, str] = {}
    handles = [
        module.register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: shape(out)}))
        for name, module in model.named_modules()
    ]
    views = plan_views(Size(height=SIDE, width=SIDE), ImageConfig(), mode)
    patches = torch.empty(views.patches, *(model.config.vision.patch_size,) * 2, 3, dtype=torch.uint8, device="meta")
    seen["patches"] = shape(patches) + " (uint8)"
    features = model.encode_views(patches, views.views)
    tokens = views.visual_tokens + TEXT
    cache = ContiguousCache(model.config.text, slots=1, capacity=tokens, memory=TorchMemory(torch.bfloat16, "meta"))
    batch = PackedBatch.of([Segment(tokens)], "meta")
    hidden = model(torch.empty(tokens, dtype=torch.long, device="meta"), batch, features, cache)
    seen["logits"] = shape(model.logits(hidden[-1:]))
    for handle in handles:
        handle.remove()
    return seen, cache


def table(header: list[str], lines: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *lines]]


def parameters(module: nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters()):,}"


def parameter_table(model: MiniCPMV) -> list[str]:
    def count(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    tower, inner = count(model.vision_tower), count(model.vision_tower.vit_merger)
    lines = {
        "vision tower": tower - inner,
        "early compression": inner,
        "merger": count(model.merger),
        "decoder": count(model.language_model),
        "of which embedding, also the head": count(model.language_model.embed_tokens),
        "all": count(model),
    }
    return table(["part", "parameters"], [[what, f"{n:,}"] for what, n in lines.items()])


def cache_table(cache: Cache) -> list[str]:
    def line(what: str, per: str, *stores: dict[int, Tensor], divisor: int = 1) -> list[str]:
        each = shape(next(iter(stores[0].values()))[0]) if divisor == 1 else "–"
        size = sum(t.nbytes for store in stores for t in store.values()) // divisor
        return [what, each, f"{len(stores[0])}", f"{size:,} {per}"]

    lines = [
        line("keys and values, bf16", "a token", cache.keys, cache.values, divisor=cache.capacity),
        line("inputs of the convolution, bf16", "a sequence", cache.conv),
        line("recurrent state, fp32", "a sequence", cache.recurrent),
    ]
    return table(["what", "shape a layer", "layers", "bytes, all layers"], lines)


def cost_table(config: ModelConfig) -> list[str]:
    lines = []
    for side in (448, 1344):
        for mode in DOWNSAMPLE_MODES:
            p = plan_views(Size(height=side, width=side), ImageConfig(), mode)
            flops = vision_flops(config, p.views) / 1e9
            lines.append(
                [f"{side} × {side}", mode, f"{len(p.views)}", f"{p.patches:,}", f"{p.visual_tokens:,}", f"{flops:,.0f}"]
            )
    return table(["picture", "rate", "views", "patches", "visual tokens", "GFLOP, tower and merger"], lines)


@cache
@torch.inference_mode()
def tables() -> dict[str, list[str]]:
    """Name of a generated part → its lines."""
    config = ModelConfig()
    with torch.device("meta"):
        model = MiniCPMV(config)
    runs = {mode: run(model, mode) for mode in DOWNSAMPLE_MODES}
    labels = {"patches": "patches of the one view", **rows(config), "logits": "scores of the last token"}
    steps = [[text, *(seen.get(name, "–") for seen, _ in runs.values())] for name, text in labels.items()]
    return {
        "shapes": table(["step", *DOWNSAMPLE_MODES], steps),
        "parameters": parameter_table(model),
        "cache": cache_table(runs["16x"][1]),
        "costs": cost_table(config),
    }
