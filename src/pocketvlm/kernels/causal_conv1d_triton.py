"""The fast twin of `linear_attention_step.naive_slot_causal_conv1d` for GPUs: one token of the convolution, SiLU fused.

Shapes:  B sequences · C channels · W taps · x_BC · weight_CW · slots_B · state_SKC (S slots, K = W - 1 last inputs)
"""

# Kernels are no Python: mypy sees neither their arguments nor what decorates them.
# mypy: allow-untyped-defs, allow-untyped-decorators, allow-incomplete-defs

from __future__ import annotations

import torch
from torch import Tensor

from pocketvlm.errors import MissingExtraError

try:
    import triton
    import triton.language as tl
except ImportError:
    raise MissingExtraError("triton", "cuda") from None

CHANNELS = 256  # of one program


@triton.jit
def conv_kernel(
    x, weight, slots, state, out, x_row, channels, KEPT: tl.constexpr, TAPS: tl.constexpr, WIDTH: tl.constexpr
):
    """Program (b, c): WIDTH channels of one sequence; its last inputs move up by one."""
    b = tl.program_id(0)
    c = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    mask = c < channels
    slot = tl.load(slots + b).to(tl.int64)
    if slot >= 0:
        x_C = tl.load(x + b * x_row + c, mask=mask, other=0.0)
        y_C = x_C.to(tl.float32) * tl.load(weight + c * TAPS + KEPT, mask=mask, other=0.0).to(tl.float32)
        at = state + slot * KEPT * channels + c
        for tap in tl.static_range(KEPT):
            past_C = tl.load(at + tap * channels, mask=mask, other=0.0)
            y_C += past_C.to(tl.float32) * tl.load(weight + c * TAPS + tap, mask=mask, other=0.0).to(tl.float32)
            # The compiler may give a load and a store different threads: all have read before any writes.
            tl.debug_barrier()
            if tap > 0:
                tl.store(at + (tap - 1) * channels, past_C, mask=mask)
        tl.store(at + (KEPT - 1) * channels, x_C.to(state.dtype.element_ty), mask=mask)
        y_C = y_C / (1.0 + tl.exp(-y_C))
        tl.store(out + b * channels + c, y_C.to(out.dtype.element_ty), mask=mask)
    else:
        tl.store(out + b * channels + c, tl.zeros([WIDTH], out.dtype.element_ty), mask=mask)


def triton_slot_causal_conv1d(x_BC: Tensor, weight_CW: Tensor, slots_B: Tensor, state_SKC: Tensor) -> Tensor:
    """As `naive_slot_causal_conv1d`; sums in fp32. Rows of x may be parts of longer rows."""
    batch, channels = x_BC.shape
    kept = state_SKC.shape[1]
    assert weight_CW.shape == (channels, kept + 1), (weight_CW.shape, channels, kept)
    assert weight_CW.is_contiguous()
    assert state_SKC.is_contiguous()
    assert x_BC.stride(1) == slots_B.stride(0) == 1
    width = min(CHANNELS, triton.next_power_of_2(channels))
    out = x_BC.new_empty(batch, channels)
    with torch.cuda.device_of(x_BC):
        conv_kernel[batch, -(-channels // width)](
            x_BC,
            weight_CW,
            slots_B,
            state_SKC,
            out,
            x_BC.stride(0),
            channels,
            KEPT=kept,
            TAPS=kept + 1,
            WIDTH=width,
            num_warps=4,
            enable_fp_fusion=True,
        )
    return out
