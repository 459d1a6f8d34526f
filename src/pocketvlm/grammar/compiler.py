"""Grammars that answers keep to: `StructuredOutputs` and a vocabulary → masks of the tokens that may come next.

`GrammarCompiler.compile` gives a `Grammar`, `Grammar.start` the `GrammarState` of one answer, which fills a mask before
each token is drawn and takes the token after it. llguidance does the work, lazily: with the published vocabulary a
token takes some 50 µs, the first few of an answer up to 5 ms. It needs neither PyTorch nor transformers, and its limits
bound a mask; what they leave open, `trial_worker` does.

Shapes:  V vocabulary · W = ceil(V / 32) words of a mask, bit t % 32 of word t // 32 set where token t is allowed
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pocketvlm.errors import CheckpointError, ConfigError, MissingExtraError, QueueFullError, UnavailableError
from pocketvlm.grammar.source import grammar_text
from pocketvlm.grammar.structured_outputs import StructuredOutputs
from pocketvlm.grammar.trial_worker import (
    LIMITS,
    TO_START,
    TO_TRY,
    TRIAL_SECONDS,
    GrammarWorker,
    NotStartedError,
    make_tokenizer,
)

try:
    import llguidance
except ImportError:
    raise MissingExtraError("llguidance", "structured") from None

if TYPE_CHECKING:
    from torch import Tensor

Words = np.ndarray[Any, np.dtype[np.int32]]  # [W]

KEPT = 64  # compiled grammars
# Seconds for the grammar of another, whose trial may need a new process first; compiling it here takes as long again as
# the trial's processor time. Whoever waits longer waits for several.
TO_WAIT = TO_START + TO_TRY + TRIAL_SECONDS
LOOK_SECONDS = 0.25  # between two looks at whether anybody waits for it
THINKING_ENDS = "</think>"
TOOL_CALL = ("<tool_call>", "</tool_call>")
MAX_GAP = 4  # tokens of white space between the reasoning and the answer
GAP_BYTES = 8  # in each of them at most

# Phases of an answer.
_THINKING, _GAP, _ANSWER, _ENDED = range(4)


class Tokens(Protocol):
    """What the compiler asks of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, control tokens included."""

    @property
    def control_tokens(self) -> Mapping[str, int]:
        """Names and ids of the control tokens."""

    def token_bytes(self, token_id: int) -> bytes:
        """Return the UTF-8 bytes that a token stands for, possibly none."""


class GrammarCompiler:
    """Compiles for one vocabulary; it is thread-safe and keeps the last `KEPT` grammars.

    Args:
        tokenizer: whose words the masks speak of.
        vocab_size: V, of the scores; ids that the tokenizer does not have are never allowed.
        stop_ids: tokens that end an answer, allowed only where the grammar may end.

    Raises:
        CheckpointError: the tokenizer has tokens beyond `vocab_size`, or not every byte.
    """

    def __init__(self, tokenizer: Tokens, vocab_size: int, stop_ids: Collection[int]) -> None:
        if tokenizer.vocab_size > vocab_size:
            raise CheckpointError(f"the tokenizer has {tokenizer.vocab_size} tokens, the model scores {vocab_size}")
        words = [tokenizer.token_bytes(token) if token < tokenizer.vocab_size else b"" for token in range(vocab_size)]
        control = tokenizer.control_tokens
        control_ids, stops = frozenset(control.values()), sorted(stop_ids)
        bytes_by_id = {t: word[0] for t, word in enumerate(words) if len(word) == 1 and t not in control_ids}
        if len(set(bytes_by_id.values())) < 256:
            raise CheckpointError("the vocabulary lacks some of the 256 bytes as tokens of their own")
        self.vocabulary = _Vocabulary(words, control, stops)
        self.tokenizer = make_tokenizer(words, sorted(control_ids), stops)
        self._worker = GrammarWorker(vocab_size, bytes_by_id, control, stops)
        self._compiling, self._lock = threading.Lock(), threading.Lock()
        self._kept: OrderedDict[StructuredOutputs, Any] = OrderedDict()

    def compile(
        self,
        spec: StructuredOutputs,
        *,
        after_thinking: bool = False,
        check: Callable[[], None] = lambda: None,
    ) -> Grammar:
        """Return the grammar of answers.

        Args:
            after_thinking: it begins after `</think>`; before that everything but the end of the answer is allowed, and
                between them a little white space.
            check: asked before anything is compiled, and while this waits for its turn; it raises where nobody waits
                for the grammar any more.

        Raises:
            ConfigError: what was asked for is not valid, cannot be satisfied or takes too much to compile. What only an
                endless answer would satisfy is not noticed.
            QueueFullError: others are being compiled all the time.
            UnavailableError: the process that tries grammars does not start.
            RuntimeError: the compiler is closed.
        """
        if after_thinking and self.vocabulary.thinking_ends is None:
            raise ConfigError(f"this vocabulary has no {THINKING_ENDS}, after which the answer would begin")
        matcher = self._known(spec)
        if matcher is None:
            text = grammar_text(spec, self.vocabulary.control)
            if not any(self._compiling.acquire(timeout=LOOK_SECONDS) for _ in _turns(check)):
                raise QueueFullError("other grammars are being compiled", hint="Try again later.")
            try:
                check()
                matcher = self._known(spec) or self._compile(text)
            finally:
                self._compiling.release()
            with self._lock:
                self._kept[spec] = matcher
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
        return Grammar(matcher, self.vocabulary, is_tools=spec.tools is not None, after_thinking=after_thinking)

    def close(self) -> None:
        """End the process that tries grammars, from any thread; what is compiled stays usable, others are refused."""
        self._worker.close()

    def _known(self, spec: StructuredOutputs) -> Any:
        with self._lock:
            if (matcher := self._kept.get(spec)) is not None:
                self._kept.move_to_end(spec)
            return matcher

    def _compile(self, text: str) -> Any:
        try:
            fault = self._worker.try_out(text)
        except NotStartedError as error:
            raise UnavailableError(str(error)) from None
        if not fault:
            matcher = llguidance.LLMatcher(
                self.tokenizer, text, log_level=0, limits=llguidance.LLParserLimits(**LIMITS)
            )
            fault = matcher.get_error()
        if fault:
            raise ConfigError(f"structured outputs cannot be compiled: {_reason(fault)}")
        return matcher


def _turns(check: Callable[[], None]) -> Iterator[None]:
    """As often as one may wait for `LOOK_SECONDS`, with a look each time."""
    for _ in range(math.ceil(TO_WAIT / LOOK_SECONDS)):
        check()
        yield


def _reason(fault: str) -> str:
    """Return a fault in one line; the reason why a regular expression is bad stands in a later one."""
    first, *others = fault.splitlines()
    reason = next((line.removeprefix("error: ") for line in others if line.startswith("error: ")), "")
    return f"{first:.160} {reason:.160}" if reason else f"{first:.200}"


class _Vocabulary:
    """What every grammar of a vocabulary asks of it; masks are int32 [W]."""

    def __init__(self, words: list[bytes], control: Any, stops: list[int]) -> None:
        self.size, self.control = len(words), control
        self.stops, self.thinking_ends = frozenset(stops), control.get(THINKING_ENDS)
        control_ids = frozenset(control.values())
        text = [token for token, word in enumerate(words) if word and token not in control_ids]
        spaces = [t for t in text if len(words[t]) <= GAP_BYTES and not words[t].strip(b" \t\r\n")]
        tools = [control[name] for name in TOOL_CALL if name in control]
        self.spaces = frozenset(spaces)
        self.stops_W, self.spaces_W = self._mask(stops), self._mask(spaces)
        self.answers_W = self._mask([*text, *stops])
        self.tools_W = self._mask([*text, *stops, *tools])
        self.thoughts_W = self._mask([*text, *(token for token in control_ids if token not in self.stops)])

    def _mask(self, tokens: list[int]) -> Words:
        bits = np.zeros(-(-self.size // 32) * 32, np.uint8)
        bits[tokens] = 1
        return np.packbits(bits, bitorder="little").view("<i4").astype(np.int32)


class Grammar:
    """A compiled grammar; any number of answers may follow it at once."""

    def __init__(self, matcher: Any, vocabulary: _Vocabulary, *, is_tools: bool, after_thinking: bool) -> None:
        self._matcher, self._vocabulary = matcher, vocabulary
        self._allowed_W = vocabulary.tools_W if is_tools else vocabulary.answers_W
        self._phase = _THINKING if after_thinking else _ANSWER

    def start(self) -> GrammarState:
        """Return the state of an answer before its first token."""
        return GrammarState(self._matcher.deep_copy(), self._vocabulary, self._allowed_W, [self._phase])


class GrammarState:
    """Where one answer is in its grammar; for one thread at a time. Made by `Grammar.start`."""

    def __init__(self, matcher: Any, vocabulary: _Vocabulary, allowed_W: Words, phases: list[int]) -> None:
        self._matcher, self._vocabulary, self._allowed_W = matcher, vocabulary, allowed_W
        self._phases = phases  # after each token, the first one before any

    def fill_mask(self, mask_W: Tensor | Words) -> None:
        """Write which tokens may come next over `mask_W`, int32 on the CPU.

        If the grammar turned out too complex, a stop id alone is allowed, and `accept` will not take it.
        """
        words_W = mask_W if isinstance(mask_W, np.ndarray) else mask_W.numpy()
        vocabulary, phase = self._vocabulary, self._phases[-1]
        if words_W.dtype != np.int32 or words_W.shape != vocabulary.stops_W.shape or not words_W.flags.c_contiguous:
            raise ValueError(
                f"mask_W is {words_W.dtype} {words_W.shape}, expected int32 {vocabulary.stops_W.shape} in a row"
            )
        if phase == _THINKING:
            words_W[:] = vocabulary.thoughts_W
        elif phase == _ENDED:
            words_W[:] = vocabulary.stops_W
        else:
            self._matcher.unsafe_compute_mask_ptr(words_W.ctypes.data, words_W.nbytes)
            words_W &= self._allowed_W
            if phase == _GAP and self._has_room_for_space():
                words_W |= vocabulary.spaces_W

    def accept(self, token: int) -> bool:
        """Take the next token; return False, and change nothing, where it is not allowed."""
        phase = self._phase_after(token)
        if phase is not None:
            self._phases.append(phase)
        return phase is not None

    @property
    def is_finished(self) -> bool:
        """Nothing but a stop id may follow."""
        return self._phases[-1] == _ENDED or (
            self._phases[-1] == _ANSWER and self._matcher.is_stopped() and not self._matcher.is_error()
        )

    def copy(self) -> GrammarState:
        """Return a state of its own at the same place."""
        return GrammarState(self._matcher.deep_copy(), self._vocabulary, self._allowed_W, self._phases.copy())

    def rollback(self, n: int) -> None:
        """Take the last `n` accepted tokens back."""
        if not 0 <= n < len(self._phases):
            raise ValueError(f"{n} tokens cannot be taken back of {len(self._phases) - 1}")
        taken = sum(phase == _ANSWER for phase in self._phases[len(self._phases) - n :])
        if taken and not self._matcher.rollback(taken):
            raise RuntimeError(self._matcher.get_error())
        del self._phases[len(self._phases) - n :]

    def _phase_after(self, token: int) -> int | None:
        """Return the phase after `token`, which the matcher has then taken; None where it is not allowed."""
        vocabulary, phase = self._vocabulary, self._phases[-1]
        if not 0 <= token < vocabulary.size:
            return None
        if phase == _ENDED:
            return _ENDED if token in vocabulary.stops else None
        if phase == _THINKING:
            is_allowed = _is_set(vocabulary.thoughts_W, token)
            return (_GAP if token == vocabulary.thinking_ends else _THINKING) if is_allowed else None
        if token in vocabulary.stops:
            return _ENDED if self._matcher.is_accepting() else None
        if self._matcher.try_consume_tokens([token]) == 1:
            return _ANSWER
        is_space = phase == _GAP and token in vocabulary.spaces and self._has_room_for_space()
        return _GAP if is_space else None

    def _has_room_for_space(self) -> bool:
        return self._phases[-MAX_GAP - 1 :].count(_GAP) <= MAX_GAP


def _is_set(mask_W: Words, token: int) -> bool:
    return bool(mask_W[token >> 5] >> (token & 31) & 1)
