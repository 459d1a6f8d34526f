"""What a traced step takes: tensors without values in, bytes out. See `training.plan`."""

from __future__ import annotations

import ctypes
import sys
import weakref
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from pocketvlm.model.vlm import MiniCPMV

Part = Literal["views", "tokens"]
_ALIGNMENT = 64  # of torch's blocks on a CPU
_LARGEST_KEPT = 32 * 2**20  # of glibc on 64 bits: the largest block that may come from the heap
_BLOCK, _SCALES = 64, 256  # of NF4: values with one scale, and scales with one scale of their own
_CODES = 4 * (16 + 256) + 4  # tables and offset of a layer


class Saved:
    """Bytes that autograd keeps, each storage once, without the weights."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._seen = {id(p.untyped_storage()) for p in parameters}
        self._part: Part = "views"
        self.bytes: dict[Part, int] = {"views": 0, "tokens": 0}

    def begin(self) -> None:
        """Count from here."""
        self.bytes = {"views": 0, "tokens": 0}

    def of(self, part: Part) -> None:
        """What is kept from here on is of that part."""
        self._part = part

    def keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in self._seen:
            self._seen.add(id(storage))
            weakref.finalize(storage, self._seen.discard, id(storage))  # an id is another's once it is gone
            self.bytes[self._part] += storage.nbytes()
        return tensor


class Alive(TorchDispatchMode):
    """Most bytes at a time of what operators made within the block.

    Attributes:
        peak: those bytes.
        gradients_at_peak: the gradients among them.
        lost: bytes by which the heap grew beyond them; 0 without one.
    """

    def __init__(self, learns: Iterable[nn.Parameter], heap: Heap | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seen: set[int] = set()
        self._heap = heap
        self.now = self.peak = self._gradients = self.gradients_at_peak = 0
        for p in learns:
            if p.grad is None:
                p.register_post_accumulate_grad_hook(self._count_gradient)

    def begin(self) -> None:
        """No gradients are there, as behind a step."""
        self._gradients = 0

    @property
    def lost(self) -> int:
        return 0 if self._heap is None else max(0, self._heap.growth - self.peak)

    def _count_gradient(self, parameter: Tensor) -> None:
        self._gradients += parameter.numel() * parameter.element_size()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = {id(t.untyped_storage()) for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if id(storage) not in self._seen and id(storage) not in inputs:
                    self._add(storage)
        return result

    def _add(self, storage: Any) -> None:
        key, size = id(storage), storage.nbytes()
        self._seen.add(key)
        self.now += size
        if self.now > self.peak:
            self.peak, self.gradients_at_peak = self.now, self._gradients
        block = self._heap.take(size) if self._heap is not None else None
        weakref.finalize(storage, self._free, key, size, block)

    def _free(self, key: int, size: int, block: Any) -> None:
        self._seen.discard(key)
        self.now -= size
        if self._heap is not None:
            self._heap.give(block)


class Heap:
    """glibc's, which is asked for what a step would ask it for, so that what it loses between blocks can be read.

    It is much: half of the activations where there are many small tensors, as a block that was freed cannot hold an
    aligned one of the same size. Nothing is written to the blocks, so they take addresses and no memory.
    """

    def __init__(self, libc: Any) -> None:
        self._libc = libc
        libc.mallinfo2.restype = _Figures
        libc.free.argtypes = (ctypes.c_void_p,)
        libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
        # As after a first step: a large block that was freed has taught it to keep blocks of up to this size.
        libc.free(libc.malloc(_LARGEST_KEPT - 4096))
        self._start = self._most = self._size()

    @classmethod
    def of(cls, device: torch.device) -> Heap | None:
        """None where tensors of the device are not on such a heap."""
        if device.type != "cpu" or not sys.platform.startswith("linux"):
            return None
        libc = ctypes.CDLL(None)
        return cls(libc) if hasattr(libc, "mallinfo2") else None

    def _size(self) -> int:
        found = self._libc.mallinfo2()
        return int(found.arena + found.hblkhd)

    @property
    def growth(self) -> int:
        """Bytes by which it was larger than at first, at the most."""
        return self._most - self._start

    @property
    def used(self) -> int:
        """Bytes of all blocks that are taken, by whomever."""
        found = self._libc.mallinfo2()
        return int(found.uordblks + found.hblkhd)

    def take(self, size: int) -> Any:
        """A block of so many bytes; None where there is none."""
        block = ctypes.c_void_p()
        if not size or self._libc.posix_memalign(
            ctypes.byref(block), ctypes.c_size_t(_ALIGNMENT), ctypes.c_size_t(size)
        ):
            return None
        self._most = max(self._most, self._size())
        return block

    def give(self, block: Any) -> None:
        """Take a block back."""
        if block is not None:
            self._libc.free(block)


class _Figures(ctypes.Structure):
    """`struct mallinfo2` of glibc."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def nf4_bytes(values: int) -> int:
    """A weight in NF4 with quantised scales: 4 bits a value, 8 bits for each 64 of them, 32 for each 256 of these."""
    scales = -(-values // _BLOCK)
    return -(-values // 2) + scales + 4 * -(-scales // _SCALES) + _CODES


def stand_in_for_4bit(model: MiniCPMV, layers: Sequence[str]) -> None:
    """Put layers that can be traced in the place of those in 4 bits, whose kernels know no tensors without values: they
    make the weight in full where it is multiplied, let it go at once, and keep nothing, in place."""
    for name in layers:
        parent_name, _, child = name.rpartition(".")
        plain = model.get_submodule(name)
        assert isinstance(plain, nn.Linear)
        made = _Linear4bit(plain.in_features, plain.out_features, plain.bias is not None)
        setattr(model.get_submodule(parent_name), child, made)


class _Linear4bit(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = _Product.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return made.clone()  # as peft does, for safety


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.shape, ctx.dtype = weight.shape, x.dtype
        return F.linear(x, torch.empty(weight.shape, dtype=x.dtype, device=x.device), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        return grad @ torch.empty(ctx.shape, dtype=grad.dtype, device=grad.device), None, None
