"""The language model: token embeddings, layers of linear or full attention with SwiGLU, final norm, tied head.

Source of the architecture: Qwen3.5 (text). Shapes:  T tokens of all sequences, packed · D hidden · V vocabulary
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from pocketvlm.config import TextConfig
from pocketvlm.model.cache.base import Cache, LayerCache
from pocketvlm.model.embedding import Embedding
from pocketvlm.model.packing import PackedBatch
from pocketvlm.model.text.gated_attention import GatedAttention
from pocketvlm.model.text.gated_delta_net import GatedDeltaNet
from pocketvlm.model.text.norm import ZeroCentredRMSNorm
from pocketvlm.model.text.rotary import rotary_cos_sin


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x) (Shazeer, arXiv 2002.05202)."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_TD: Tensor, residual_TD: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x_TD)) * self.up_proj(x_TD)) + residual_TD


class DecoderLayer(nn.Module):
    """Pre-norm residual block around one token mixer and one SwiGLU."""

    def __init__(self, config: TextConfig, layer: int) -> None:
        super().__init__()
        self.is_linear = config.layer_types[layer] == "linear_attention"
        if self.is_linear:
            self.linear_attn = GatedDeltaNet(config, layer)
        else:
            self.self_attn = GatedAttention(config, layer)
        self.mlp = SwiGLU(config)
        self.input_layernorm = ZeroCentredRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = ZeroCentredRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x_TD: Tensor, rotary: tuple[Tensor, Tensor], batch: PackedBatch, cache: LayerCache | None
    ) -> Tensor:
        normed = self.input_layernorm(x_TD)
        if self.is_linear:
            x_TD = self.linear_attn(normed, batch, cache, x_TD)
        else:
            x_TD = self.self_attn(normed, rotary, batch, cache, x_TD)
        return self.mlp(self.post_attention_layernorm(x_TD), x_TD)


class Decoder(nn.Module):
    """Embeddings in, normalised hidden states out; `logits` applies the (tied) head."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = ZeroCentredRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head: nn.Module | None
        self.register_module("lm_head", None)  # tied: the table of embeddings is the head
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, x_TD: Tensor, positions_T: Tensor, batch: PackedBatch, cache: Cache | None = None) -> Tensor:
        """[T, D] embeddings to [T, D] hidden states.

        Args:
            positions_T: rotary positions, an input because later models of the family count differently.
            cache: continued and updated in place; its capacity must already hold every segment's end.
        """
        x_TD = self.run_layers(x_TD, positions_T, batch, None if cache is None else cache.at(batch))
        if cache is not None:
            cache.advance(batch)
        return x_TD

    def run_layers(self, x_TD: Tensor, positions_T: Tensor, batch: PackedBatch, cache: LayerCache | None) -> Tensor:
        """The part of `forward` that is work of the device alone: a CUDA graph can hold it where the cache's can."""
        rotary = rotary_cos_sin(positions_T, self.config.rotary_dim, self.config.rope_theta)
        for layer in self.layers:
            x_TD = layer(x_TD, rotary, batch, cache)
        return self.norm(x_TD)

    def logits(self, x_TD: Tensor) -> Tensor:
        """[T, D] hidden states to [T, V]."""
        if self.lm_head is None:
            return F.linear(x_TD, self.embed_tokens.weight)
        return self.lm_head(x_TD)


def fp32_parameters(model: nn.Module) -> set[str]:
    """Names of the parameters that stay in fp32 in a half-precision model."""
    return {name for name, _ in model.named_parameters() if name.endswith((".A_log", ".dt_bias"))}
