"""What a sequence leaves behind between forwards, and what every cache that holds it can do.

`ContiguousCache` and `PagedCache` are the two ways to lay out keys and values; nothing else knows which one it has.

Shapes:  slots (one a sequence) · Hk KV heads · D head_dim
         conv [slots, taps - 1, channels], recurrent [slots, Hv, K, V] (fp32) a linear-attention layer
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from pocketvlm.config import TextConfig
from pocketvlm.errors import ConfigError
from pocketvlm.model.cache.block_pool import BlockPool, Holding
from pocketvlm.model.cache.memory import Array, Memory
from pocketvlm.model.segments import Batch

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pocketvlm.model.packing import PackedBatch

State = list[Array]  # of one sequence: conv inputs and recurrent states of all linear-attention layers


def token_bytes(config: TextConfig, memory: Memory) -> int:
    """Return the bytes of the keys and values that one token leaves behind."""
    layers = sum(kind == "full_attention" for kind in config.layer_types)
    return 2 * layers * config.num_key_value_heads * config.head_dim * memory.itemsize


def state_bytes(config: TextConfig, memory: Memory) -> int:
    """Return the bytes of one sequence's conv inputs and recurrent states."""
    layers = sum(kind != "full_attention" for kind in config.layer_types)
    conv = (config.linear_conv_kernel_dim - 1) * config.linear_conv_dim * memory.itemsize
    recurrent = config.linear_num_value_heads * config.linear_key_head_dim * config.linear_value_head_dim * 4
    return layers * (conv + recurrent)


class LayerCache(Protocol):
    """Says what a layer asks of a cache during the forward of one batch, whichever way the cache is laid out."""

    def write(self, layer: int, k_THE: Tensor, v_THE: Tensor) -> None:
        """Put new keys and values behind those of each segment's slot."""
        ...

    def attend(self, layer: int, q_THE: Tensor) -> Tensor:
        """Attend from new tokens to their sequence up to themselves, which must be written; [T, heads, head dim]."""
        ...

    def step_conv(self, layer: int, x_BC: Tensor, weight_CW: Tensor) -> Tensor:
        """Take one token of each sequence through the convolution and SiLU; its states move on."""
        ...

    def step_delta(self, layer: int, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
        """Take one token of each sequence through the delta rule, q and k as the convolution left them; [B, H, V]."""
        ...

    def states(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return the conv inputs and recurrent states that the segments continue from."""
        ...

    def set_states(self, layer: int, conv: Tensor, recurrent: Tensor) -> None:
        """Store what the segments leave behind."""
        ...


class RecordableCache(Protocol):
    """Says what a recorded decode step (a CUDA graph) asks of a cache: a forward split into host and device."""

    @property
    def device(self) -> torch.device: ...

    @property
    def allocated(self) -> tuple[int, ...]:
        """A value that changes whenever a tensor of the cache is replaced by a larger one."""
        ...

    def extend(self, batch: PackedBatch) -> None:
        """Make room for every segment's new tokens, and let the device know where it is."""
        ...

    def decode_indices(self, batch: PackedBatch, size: int = 0) -> Tensor:
        """Return all that a decode step reads of the host, int32 [4, max(B, size)]; `extend` goes first."""
        ...

    def decode_step(self, batch: PackedBatch, indices: Tensor) -> LayerCache:
        """Begin the forward of a decode batch from its `decode_indices`, on the device: work of the device alone."""
        ...

    def advance(self, batch: Batch) -> None: ...


class Cache(ABC):
    """Holds the state of up to `slots` sequences. A slot holds one sequence; slots are numbered from 0.

    Args:
        config: shapes of the decoder.
        slots: sequences that there is room for at first.
        max_slots: sequences that `make_room` may make room for.
        max_tokens: tokens that all slots together may hold.
        blocks: where prefixes are kept, in the memory in which everything is.

    Attributes:
        capacity: tokens that one slot can hold now.
        lengths: tokens that each slot holds.
        keys, values: by full-attention layer.
        conv, recurrent: by linear-attention layer.
    """

    capacity: int

    def __init__(self, config: TextConfig, slots: int, max_slots: int, max_tokens: int, blocks: BlockPool) -> None:
        self.config, self.blocks = config, blocks
        self.memory = blocks.memory
        self.dtype, self.device = self.memory.dtype, self.memory.device
        self.max_capacity = config.max_position_embeddings
        self.slots, self.max_slots, self.max_tokens = slots, max_slots, max_tokens
        self.lengths = [0] * slots
        self.keys: dict[int, Array] = {}
        self.values: dict[int, Array] = {}
        self.conv: dict[int, Array] = {}
        self.recurrent: dict[int, Array] = {}
        heads, key_dim = config.linear_num_value_heads, config.linear_key_head_dim
        conv_shape = (slots, config.linear_conv_kernel_dim - 1, config.linear_conv_dim)
        state_shape = (slots, heads, key_dim, config.linear_value_head_dim)
        for layer, kind in enumerate(config.layer_types):
            if kind != "full_attention":
                self.conv[layer] = self.memory.zeros(conv_shape)
                self.recurrent[layer] = self.memory.zeros(state_shape, is_fp32=True)

    # Memory.

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` tokens in every slot; `ConfigError` beyond the model's context."""
        if tokens > self.max_capacity:
            raise ConfigError(
                f"a sequence of {tokens} tokens is over the model's context of {self.max_capacity}",
                hint="Shorten the prompt or ask for fewer tokens.",
            )

    @abstractmethod
    def resize(self, slots: int, capacity: int, kept: int) -> None:
        """Change how many sequences of how many tokens there is room for; the first `kept` slots stay."""

    @abstractmethod
    def max_length(self, slots: int = 1) -> int:
        """Return how many tokens each of `slots` sequences can have when nothing else is held."""

    @abstractmethod
    def fits(self, tokens: Sequence[int]) -> bool:
        """Say whether the limits allow slots 0, 1, … to hold so many tokens each."""

    @abstractmethod
    def make_room(self, tokens: Sequence[int]) -> None:
        """Make room for that, which must fit."""

    @abstractmethod
    def shrink(self) -> None:
        """Give back what is far more than is needed; called when no slot is in use."""

    @abstractmethod
    def clear(self) -> None:
        """Let no slot and no prefix hold anything any more, whatever was held: after a failure."""

    @abstractmethod
    def usage(self, slots: int) -> float:
        """Return the share of `max_tokens` that the first `slots` slots, those in use, take."""

    # Slots.

    @abstractmethod
    def reset(self, slot: int) -> None:
        """Forget the sequence in `slot`. Its old keys are unreachable (length 0); its states must read as zero."""

    @abstractmethod
    def erase(self, slot: int) -> None:
        """Forget the sequence in `slot`, so that not even a NaN of it can reach another."""

    @abstractmethod
    def release_slot(self, slot: int) -> None:
        """Let go of what is in `slot`, which nobody needs any more."""

    @abstractmethod
    def move_slot(self, source: int, target: int) -> None:
        """Move a sequence to where nobody needs what is there; what `source` holds then is undefined."""

    @abstractmethod
    def swap_slots(self, one: int, other: int) -> None:
        """Exchange two sequences."""

    @abstractmethod
    def copy_slot(self, source: int, target: int, start: int = 0) -> None:
        """Make `target` continue from where `source` is (several answers to one prompt share its prefill).

        Args:
            start: tokens of the common prefix that `target` holds already: beams share their prompt.
        """

    @abstractmethod
    def tokens_of_copy(self, source: int, tokens: int) -> int:
        """Return how many tokens `fits` must count for a copy of `source` that will hold `tokens` of them."""

    # States and prefixes.

    @abstractmethod
    def _own_states(self, slot: int) -> list[Array]:
        """Return views of the states of one sequence."""

    def save_state(self, slot: int) -> State:
        """Copy the states, which know the newest token only. Keys and values need no copy: those of the first tokens
        stay where they are."""
        return [self.memory.copy(array) for array in self._own_states(slot)]

    def restore_state(self, slot: int, state: State, length: int) -> None:
        """Go back to where the sequence had `length` tokens and `state` was saved."""
        for array, saved in zip(self._own_states(slot), state, strict=True):
            array[...] = saved
        self.lengths[slot] = length

    @abstractmethod
    def save_prefix(
        self, slot: int, holding: Holding, shared: Sequence[int], make_room: Callable[[int], bool]
    ) -> list[int] | None:
        """Keep the keys and values that `slot` holds now, for later.

        Args:
            holding: who keeps them.
            shared: full blocks that `holding` has, and that hold the first tokens of this sequence already.
            make_room: takes the number of blocks that come on top of those in `holding`; whether they may.

        Returns:
            the blocks, now held by `holding`; None when there is no room for them.
        """

    @abstractmethod
    def restore_prefix(self, slot: int, blocks: Sequence[int], state: State, length: int) -> None:
        """Make `slot` continue behind the first `length` tokens that `blocks` hold, from `state`."""

    def block_references(self) -> Mapping[int, int]:
        """Return how often slots hold each of `blocks`; a block that none holds is not in it."""
        return {}

    # Forwards.

    @abstractmethod
    def at(self, batch: PackedBatch) -> LayerCache:
        """Return what the layers work on in the forward of a batch."""

    def advance(self, batch: Batch) -> None:
        """Count the new tokens, when the forward of a batch is over."""
        for s in batch.segments:
            self.lengths[s.slot] = s.start + s.length

    @property
    def recordable(self) -> RecordableCache | None:
        """The cache itself where a decode step over it can be recorded, else None."""
        return None

    def check_integrity(self) -> None:
        """Check that everything is counted right; for tests."""
        self.blocks.check_integrity()
        assert len(self.lengths) == self.slots, "a slot without a length"
