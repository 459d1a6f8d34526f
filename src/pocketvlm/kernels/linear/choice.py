"""Which kind of linear layer a model gets for fp32 inference on a CPU.

Layers that see many rows at once (the tower) go through oneDNN, which fuses what follows. Those of the decoder see one
row a sequence and step, where only the bytes of the weights count: they go to fp16 where nothing is lost by it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor, nn

from pocketvlm.kernels.linear import fp16_linear, onednn_linear
from pocketvlm.kernels.linear.cpu_linear import CPULinear, PlainLinear
from pocketvlm.kernels.linear.fp16_linear import FP16Linear, pack_part
from pocketvlm.kernels.linear.onednn_linear import OneDNNLinear

is_available = onednn_linear.is_available


def for_prompts(linear: nn.Linear) -> CPULinear:
    """The layer that computes many rows at once fastest, as those of the tower do."""
    if is_small(linear.weight):
        return PlainLinear(linear.weight, linear.bias)
    return OneDNNLinear(linear.weight, linear.bias)


def for_decoding(*linears: nn.Linear) -> CPULinear:
    """The layer that computes one row a sequence fastest, with the outputs of all `linears` side by side.

    Products of one input read it, and start, once. The linears must have no biases.
    """
    weights = [linear.weight for linear in linears]
    weight = weights[0] if len(weights) == 1 else torch.cat(weights)
    return PlainLinear(weight, None) if is_small(weight) else for_weight(weight)


def for_weight(weight: Tensor, *, keep_plain: bool = False) -> CPULinear:
    """The layer of these [N, K] weights (any floats) that decodes fastest; `keep_plain` as in `OneDNNLinear`."""
    if fp16_linear.is_available() and fp16_linear.is_lossless(weight):
        return FP16Linear(weight)
    return OneDNNLinear(weight.float(), None, keep_plain=keep_plain)


def is_small(weight: Tensor) -> bool:
    """Whether the product is too small for its kind to matter."""
    return min(weight.shape) < 64


def pack(module: nn.Module, progress: Callable[[int, int], None] | None = None) -> None:
    """Pack every `FP16Linear` below `module`, as many at a time as torch has threads.

    Args:
        progress: called with (layers done, layers in all).
    """
    layers = [child for child in module.modules() if isinstance(child, FP16Linear)]
    threads = torch.get_num_threads()
    waiting: deque[tuple[FP16Linear, Future[torch.ScriptObject]]] = deque()

    def settle(max_waiting: int) -> None:
        while len(waiting) > max_waiting:
            layer, packed = waiting.popleft()
            layer.parts.append(packed.result())

    with ThreadPoolExecutor(threads) as pool:
        for done, layer in enumerate(layers, 1):
            for part in layer.take():
                waiting.append((layer, pool.submit(pack_part, part)))
                settle(threads)
            if progress is not None:
                progress(done, len(layers))
        settle(0)


def cpu_linears(module: nn.Module) -> Iterator[CPULinear]:
    """Every layer of this kind below `module`."""
    return (child for child in module.modules() if isinstance(child, CPULinear))
