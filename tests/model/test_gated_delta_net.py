"""Linear attention as a whole equals its definition, written out token by token."""

from __future__ import annotations

import pytest
import torch
from helpers.invariants import assert_close
from helpers.tiny_models import CONFIG, tiny_model
from torch.nn import functional as F

from pocketvlm.kernels.causal_conv1d import naive_causal_conv1d
from pocketvlm.kernels.gated_delta_rule import naive_gated_delta_rule, normalise_query_key
from pocketvlm.model.packing import PackedBatch
from pocketvlm.model.segments import Segment


@pytest.mark.parametrize("lengths", [[1], [70], [3, 66]])
def test_it_equals_its_definition(lengths: list[int]) -> None:
    """The decay of a head is exp(-exp(A_log) softplus(a + dt_bias)): both vectors are in it, each in its place."""
    net, text = tiny_model(1).language_model.layers[0].linear_attn, CONFIG.text
    tokens, count = sum(lengths), len(lengths)
    x, residual = torch.randn(2, tokens, text.hidden_size, generator=torch.Generator().manual_seed(tokens))
    got = net(x, PackedBatch.of([Segment(n, slot=i) for i, n in enumerate(lengths)]), None, residual)

    channels = net.in_proj_qkv(x)
    state = torch.zeros(count, text.linear_conv_kernel_dim - 1, channels.shape[1])
    mixed, _ = naive_causal_conv1d(channels, net.conv1d.weight[:, 0], lengths, state)
    width = text.linear_num_key_heads * text.linear_key_head_dim
    heads = text.linear_num_value_heads
    q, k, v = mixed.split([width, width, heads * text.linear_value_head_dim], 1)
    q, k = normalise_query_key(*(part.unflatten(1, (-1, text.linear_key_head_dim)) for part in (q, k)))
    q, k = (part.repeat_interleave(heads // text.linear_num_key_heads, dim=1) for part in (q, k))
    decay = -net.A_log.exp() * torch.log1p((net.in_proj_a(x) + net.dt_bias).exp())
    empty = torch.zeros(count, heads, text.linear_key_head_dim, text.linear_value_head_dim)
    v = v.unflatten(1, (heads, -1))
    out, _ = naive_gated_delta_rule(q, k, v, decay, net.in_proj_b(x).sigmoid(), lengths, empty)
    root = (out.square().mean(-1, keepdim=True) + text.rms_norm_eps).rsqrt()
    gated = net.norm.weight * out * root * F.silu(net.in_proj_z(x).unflatten(1, (heads, -1)))
    # Its norm magnifies the last digits of an output that is nearly zero, as in `helpers.invariants`.
    assert_close(got, residual + net.out_proj(gated.flatten(1)), 1e-4)
