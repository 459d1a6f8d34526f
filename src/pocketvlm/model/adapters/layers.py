"""Adapters beside a model's weights: each row of a batch follows the one that it belongs to, or none.

The linear layers that an adapter updates are wrapped, once; a wrapper adds `scale B (A x)` to the rows of each adapter
that is active. Where none is, it costs one look. An adapter's own matrices are its own, so that one comes or goes
without anything of the model being touched, also between the steps of an engine that runs.

Shapes:  T rows · K inputs · N outputs · n outputs of one part of a joined product · R rank
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pocketvlm.errors import CheckpointError
from pocketvlm.kernels.linear.cpu_linear import CPULinear
from pocketvlm.model.adapters.lora import HEAD, Adapter, LowRankUpdate
from pocketvlm.model.adapters.names import linear_shapes
from pocketvlm.model.adapters.placed import ActiveRows, PlacedAdapter, PlacedPart, Rows
from pocketvlm.model.cpu_layers import JOINED

if TYPE_CHECKING:
    from pocketvlm.model.vlm import MiniCPMV

_BLOCK = 512  # columns of a weight that are read at a time


class AdaptedLinear(CPULinear):
    """A linear layer of any kind, and what active adapters add to it.

    Args:
        inner: the layer; its own fused ways are used where no adapter updates it.
        path: its name in the model.
        active: shared by all wrappers of the model.
    """

    def __init__(self, inner: nn.Module, path: str, active: ActiveRows) -> None:
        super().__init__()
        self.inner, self.path, self.active = inner, path, active

    def forward(self, x: Tensor) -> Tensor:
        """[T, K] to [T, N]."""
        y: Tensor = self.inner(x)
        for adapter, rows in self.active.groups:
            for part in adapter.parts.get(self.path, ()):
                self._update(part, x, y, rows)
        return y

    def _update(self, part: PlacedPart, x: Tensor, y: Tensor, rows: Rows) -> None:
        delta = F.linear(F.linear(x[rows], part.a_RK), part.b_nR)
        if part.factor_n is not None:
            plain = y[rows, part.start : part.end]
            bias = getattr(self.inner, "bias", None)
            if bias is not None:
                plain = plain - bias[part.start : part.end]
            delta = part.factor_n * delta + (part.factor_n - 1) * plain
        y[rows, part.start : part.end] += delta

    @property
    def _is_plain(self) -> bool:
        return not any(self.path in adapter.parts for adapter, _ in self.active.groups)

    def gelu_tanh(self, x: Tensor) -> Tensor:
        return _fused(self.inner).gelu_tanh(x) if self._is_plain else super().gelu_tanh(x)

    def silu(self, x: Tensor) -> Tensor:
        return _fused(self.inner).silu(x) if self._is_plain else super().silu(x)

    def add(self, x: Tensor, other: Tensor) -> Tensor:
        return _fused(self.inner).add(x, other) if self._is_plain else super().add(x, other)

    def mul(self, x: Tensor, other: Tensor) -> Tensor:
        return _fused(self.inner).mul(x, other) if self._is_plain else super().mul(x, other)


def _fused(inner: nn.Module) -> CPULinear:
    assert isinstance(inner, CPULinear), "only layers for the CPU fuse what follows a product"
    return inner


@torch.no_grad()
def place(adapter: Adapter, model: MiniCPMV, active: ActiveRows) -> PlacedAdapter:
    """Make rows of `model` able to follow an adapter; its layers are wrapped where they are not yet.

    Raises:
        CheckpointError: its numbers leave the range of the model's type.
    """
    shapes = linear_shapes(model.config)
    parts: dict[str, list[PlacedPart]] = {}
    left = dict(adapter.updates)
    for path, names in _products(model).items():
        if not left.keys() & set(names):
            continue
        start, inner = 0, _wrapped(model, path, active).inner
        for name in names:
            end = start + shapes[name][0]
            if (update := left.pop(name, None)) is not None:
                if (part := _placed(update, inner, start, end, model)) is None:
                    hint = "Its alpha is too large for these weights, or they are damaged."
                    raise CheckpointError(f"{adapter.path} makes values of {name} that are no numbers", hint=hint)
                parts.setdefault(path, []).append(part)
            start = end
    assert not left, f"no product of {next(iter(left))}"
    return PlacedAdapter(adapter.digest, parts, adapter.touches_vision)


def _products(model: MiniCPMV) -> dict[str, tuple[str, ...]]:
    """The path of each product that the model computes → our names of the weights in it, side by side."""
    products: dict[str, tuple[str, ...]] = {HEAD.removesuffix(".weight"): (HEAD,)}
    for path, module in model.named_modules():
        for child, linear in module.named_children():
            if isinstance(linear, nn.Linear | CPULinear) and not isinstance(module, AdaptedLinear):
                sources = JOINED.get(type(module), {}).get(child, (child,))
                products[f"{path}.{child}"] = tuple(f"{path}.{source}.weight" for source in sources)
    return products


def _wrapped(model: MiniCPMV, path: str, active: ActiveRows) -> AdaptedLinear:
    """The wrapper of a layer, in its place."""
    owner, _, child = path.rpartition(".")
    parent = model.get_submodule(owner)
    linear = getattr(parent, child)
    if isinstance(linear, AdaptedLinear):
        return linear
    if linear is None:  # a head that is tied to the embedding is a layer from now on, of the same memory
        table = model.language_model.embed_tokens.weight
        linear = nn.Linear(table.shape[1], table.shape[0], bias=False, device="meta")
        linear.weight = table
    wrapper = AdaptedLinear(linear, path, active)
    wrapper.eval()
    setattr(parent, child, wrapper)  # at once: a forward that is under way sees the one or the other
    return wrapper


def _placed(update: LowRankUpdate, inner: nn.Module, start: int, end: int, model: MiniCPMV) -> PlacedPart | None:
    """The part of one product; None where its values leave the range of the model's type."""
    device, dtype = model.device, model.dtype
    a, b = update.a_RK.to(device), update.scale * update.b_NR.to(device)
    factor = None
    if update.magnitude_N is not None:
        norms = _squares(inner, a, b, start, end).sqrt()
        factor = (update.magnitude_N.to(device) / norms).to(dtype)
    part = PlacedPart(start, end, a.to(dtype), b.to(dtype), factor)
    reach = b.abs() @ a.abs().amax(1)  # no value of the product is larger
    # The scale may be large, the model's type narrow, and the norm of a row 0.
    values = (part.a_RK, part.b_nR, reach, factor)
    return part if all(torch.isfinite(x).all() for x in values if x is not None) else None


def _squares(inner: nn.Module, a_RK: Tensor, b_nR: Tensor, start: int, end: int) -> Tensor:
    """[n] squared norms of the rows of W + B A. Layers for the CPU keep weights in forms of their own, so columns of W
    are taken from what the layer makes of the rows of the identity: sums of one product, which round nothing."""
    inputs = a_RK.shape[1]
    bias, weight = getattr(inner, "bias", None), getattr(inner, "weight", None)
    total = torch.zeros(end - start, device=a_RK.device)
    for first in range(0, inputs, _BLOCK):
        last = min(first + _BLOCK, inputs)
        if weight is not None:
            columns = weight[start:end, first:last].float()
        else:
            identity = torch.eye(last - first, inputs, device=a_RK.device)
            identity = torch.roll(identity, first, 1)
            product = inner(identity) if bias is None else inner(identity) - bias
            columns = product[:, start:end].T
        total += (columns + b_nR @ a_RK[:, first:last]).square().sum(1)
    return total
