"""Heads that are told where to look: the loss is that of the attention that the layer itself gives."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from pocketvlm.kernels import attention as kernel
from pocketvlm.model.packing import PackedBatch
from pocketvlm.model.segments import Segment
from pocketvlm.model.text import gated_attention
from pocketvlm.model.text.gated_attention import GatedAttention
from pocketvlm.model.text.rotary import rotary_cos_sin
from recipes.nano.guided import Watched
from recipes.nano.settings import model_config

TEXT = dataclasses.replace(model_config(300, 1, 2, 3).text, hidden_size=32)
LENGTHS = (5, 4)
PACKED = PackedBatch.of([Segment(length) for length in LENGTHS])
SAMPLES = torch.tensor([0] * 5 + [1] * 4)


@pytest.fixture
def attention() -> GatedAttention:
    torch.manual_seed(0)
    return GatedAttention(TEXT, 1)


def loss(attention: GatedAttention, x: Tensor, pairs: list[tuple[int, int]], heads: tuple[int, ...] = (0, 2)) -> Tensor:
    rotary = rotary_cos_sin(PACKED.positions, TEXT.rotary_dim, TEXT.rope_theta)
    with Watched(attention, heads) as watched:
        attention(x, rotary, PACKED, None, x)
    tokens, visual = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T
    return watched.loss(TEXT, PACKED, SAMPLES, tokens, visual)


def test_it_is_the_attention_of_the_layer(attention: GatedAttention, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values that are one at a single place and zero elsewhere give the attention that the kernel pays to it."""
    x = torch.randn(9, TEXT.hidden_size)
    given: list[Tensor] = []

    def spy(q: Tensor, k: Tensor, v: Tensor, **options: bool) -> Tensor:
        one = torch.zeros_like(v)
        one[:, :, 1] = 1.0
        given.append(kernel.attend(q, k, one, **options))
        return kernel.attend(q, k, v, **options)

    monkeypatch.setattr(gated_attention, "attend", spy)
    found = loss(attention, x, [(4, 1)])
    first = next(out for out in given if out.shape[2] >= 5)  # the sample of five tokens
    wanted = -torch.stack([first[0, head, 4, 0] for head in (0, 2)]).log().mean()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_other_samples_and_later_tokens_do_not_count(attention: GatedAttention) -> None:
    x = torch.randn(9, TEXT.hidden_size)
    found = loss(attention, x, [(3, 0)])
    changed = x.clone()
    changed[4:] = torch.randn(5, TEXT.hidden_size)
    torch.testing.assert_close(loss(attention, changed, [(3, 0)]), found)
    torch.testing.assert_close(
        loss(attention, x, [(3, place) for place in range(4)]), torch.tensor(0.0), atol=1e-5, rtol=0
    )
    assert found > 0
    assert loss(attention, x, []) == 0


def test_hooks_end_with_the_context(attention: GatedAttention) -> None:
    loss(attention, torch.randn(9, TEXT.hidden_size), [])
    assert not attention.q_norm._forward_hooks
    assert not attention.k_norm._forward_hooks
