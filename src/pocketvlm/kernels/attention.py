"""Softmax attention over whole sequences: the library's kernel, and a twin for training in bfloat16 on a CPU.

The library's fused CPU kernel is the right one for inference. Its backward pass is slow in bfloat16: forward and
backward of 64 heads of 256 tokens x 32 take 198 ms, as five batched products 111 ms; at 64 tokens 10.8 and 1.8 ms (one
thread, AVX-512-BF16). The twin keeps the probabilities, so it is for the short sequences of small models.

Shapes:  B sequences or views · H heads · L tokens · E head dim
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def attend(q_BHLE: Tensor, k_BHLE: Tensor, v_BHLE: Tensor, *, is_causal: bool = False) -> Tensor:
    """Attention of all tokens to all tokens, or to those before them; [B, H, L, E]. Keys may have fewer heads."""
    heads, kv_heads = q_BHLE.shape[1], k_BHLE.shape[1]
    if _trains_in_bfloat16(q_BHLE):
        if heads != kv_heads:
            k_BHLE, v_BHLE = (x.repeat_interleave(heads // kv_heads, dim=1) for x in (k_BHLE, v_BHLE))
        q, k, v = (x.to(torch.bfloat16).flatten(0, 1) for x in (q_BHLE, k_BHLE, v_BHLE))
        out: Tensor = _BFloat16Attention.apply(q, k, v, is_causal)  # type: ignore[no-untyped-call]
        return out.unflatten(0, q_BHLE.shape[:2])
    return F.scaled_dot_product_attention(q_BHLE, k_BHLE, v_BHLE, is_causal=is_causal, enable_gqa=heads != kv_heads)


def _trains_in_bfloat16(q: Tensor) -> bool:
    if q.device.type != "cpu" or not (torch.is_grad_enabled() and q.requires_grad):
        return False
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") == torch.bfloat16
    return q.dtype == torch.bfloat16


class _BFloat16Attention(torch.autograd.Function):
    """q, k, v [B * H, L, E] in bfloat16; sums inside each product are fp32."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
        scores = torch.bmm(q * q.shape[-1] ** -0.5, k.transpose(1, 2))
        if is_causal:
            hidden = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
            scores.masked_fill_(hidden, float("-inf"))
        share = torch.softmax(scores, dim=-1)
        ctx.save_for_backward(q, k, v, share)
        return torch.bmm(share, v)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, share = ctx.saved_tensors
        grad = grads[0].to(torch.bfloat16)
        dshare = torch.bmm(grad, v.transpose(1, 2))
        # Softmax's own gradient is zero wherever a share is, so what the mask hid stays hidden.
        dscores = torch._softmax_backward_data(dshare, share, -1, share.dtype)
        scale = q.shape[-1] ** -0.5
        dq, dk = torch.bmm(dscores, k) * scale, torch.bmm(dscores.transpose(1, 2), q) * scale
        return dq, dk, torch.bmm(share.transpose(1, 2), grad), None
