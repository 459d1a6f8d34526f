"""How an answer is drawn: options by the names of vLLM and transformers, checked without importing torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self

from pocketvlm.errors import ConfigError

if TYPE_CHECKING:
    from pocketvlm.grammar.structured_outputs import StructuredOutputs

MAX_BEAMS = 64
MAX_ANSWERS = 64
MAX_LOOKUP = 64
MAX_LOGPROBS = 20
MAX_BIASED = 1024
MAX_STOP_STRINGS, MAX_STOP_LENGTH = 16, 256
MAX_STOP_TOKEN_IDS = 1024

# What beam search cannot honour, each with the value that asks for nothing.
BESIDE_BEAMS: dict[str, Any] = {
    "prompt_lookup_num_tokens": 0,
    "n": 1,
    "logprobs": None,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "logit_bias": None,
    "min_tokens": 0,
    "structured_outputs": None,
}


def _is_token(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How one answer is drawn; names and meanings are vLLM's, those of beam search transformers'.

    Attributes:
        temperature: 0 is greedy.
        top_k: keep the k best tokens; 0 or -1 keeps all.
        top_p: keep the smallest set of best tokens whose probabilities reach this sum.
        min_p: keep tokens at least this fraction as probable as the best one.
        repetition_penalty: above 1 makes tokens of the prompt and the answer so far less likely.
        frequency_penalty: taken from a token's score once for each time that the answer so far holds it.
        presence_penalty: taken once from the score of every token that the answer so far holds.
        logit_bias: numbers added to the scores of tokens, by id; kept as pairs in order of the ids.
        seed: the same seed gives the same answer, alone or in a batch; None draws one.
        n: answers to the one prompt, each drawn by itself.
        stop: strings that end the answer; they are not part of it.
        stop_token_ids: tokens that end the answer, besides the checkpoint's own.
        ignore_eos: go on where the checkpoint would end the answer; `stop` and `stop_token_ids` still end it.
        max_tokens: at most this many tokens are generated.
        min_tokens: no token that ends the answer is chosen before it has this many.
        logprobs: log probabilities of each token of the answer, and of this many most probable ones in its place, as
            the model gives them, before any other option; 0 is the answer's alone, None is none.
        structured_outputs: a grammar that the answer keeps to (`engine/structured_outputs`).
        num_beams: above 1, keep this many beginnings of an answer and give the best whole answer (beam search), with
            temperature 0 and without `stop`; each takes the memory of a sequence. 1 keeps one.
        length_penalty: beams compare by the sum of their log probabilities divided by their length to this power:
            above 0 favours long answers, below 0 short ones.
        early_stopping: end as soon as `num_beams` answers are complete, even where a running beam scores better.
        prompt_lookup_num_tokens: try up to this many tokens at once that followed the newest ones before, in the prompt
            or the answer (`engine/prompt_lookup`). The answer stays the same; one that repeats what was there comes
            sooner. For single answers, without beams; 0 tries none.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] | None = None
    seed: int | None = None
    n: int = 1
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    max_tokens: int = 1024
    min_tokens: int = 0
    logprobs: int | None = None
    structured_outputs: StructuredOutputs | None = None
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool = False
    prompt_lookup_num_tokens: int = 0

    def __post_init__(self) -> None:
        self._check("temperature", self.temperature, 0, 100)
        self._check("top_p", self.top_p, 0, 1, above=True)
        self._check("min_p", self.min_p, 0, 1)
        self._check("repetition_penalty", self.repetition_penalty, 0, 100, above=True)
        self._check("frequency_penalty", self.frequency_penalty, -2, 2)
        self._check("presence_penalty", self.presence_penalty, -2, 2)
        self._check("length_penalty", self.length_penalty, -10, 10)
        for name, least, most in (
            ("top_k", -1, 2**31),
            ("max_tokens", 1, 2**31),
            ("min_tokens", 0, 2**31),
            ("n", 1, MAX_ANSWERS),
            ("num_beams", 1, MAX_BEAMS),
            ("prompt_lookup_num_tokens", 0, MAX_LOOKUP),
        ):
            self._check_integer(name, getattr(self, name), least, most)
        if self.logprobs is not None:
            self._check_integer("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        if self.seed is not None and (isinstance(self.seed, bool) or not isinstance(self.seed, int)):
            raise ConfigError(f"seed={self.seed!r:.40} is not an integer")
        for name in ("early_stopping", "ignore_eos"):
            if not isinstance(value := getattr(self, name), bool):
                raise ConfigError(f"{name}={value!r:.40} is neither True nor False")
        if self.min_tokens > self.max_tokens:
            raise ConfigError(f"min_tokens={self.min_tokens} is more than max_tokens={self.max_tokens}")
        self._check_stop()
        self._check_bias()
        self._check_structure()
        if self.n > 1 and self.prompt_lookup_num_tokens:
            raise ConfigError(
                f"n={self.n} leaves no place for prompt_lookup_num_tokens={self.prompt_lookup_num_tokens}",
                hint="Leave one of them out.",
            )
        self._check_beams()

    def _check_stop(self) -> None:
        if not (self.stop is None or isinstance(self.stop, str | list | tuple)):
            raise ConfigError(f"stop={self.stop!r:.80} is neither a string nor a list of strings")
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        for string in stop:
            if not isinstance(string, str) or not string or len(string) > MAX_STOP_LENGTH:
                raise ConfigError(f"stop={string!r:.80} is not a string of 1 to {MAX_STOP_LENGTH} characters")
        if len(stop) > MAX_STOP_STRINGS:
            raise ConfigError(f"{len(stop)} stop strings were given, at most {MAX_STOP_STRINGS} are allowed")
        ids = self.stop_token_ids
        if not isinstance(ids, list | tuple) or not all(map(_is_token, ids)):
            raise ConfigError(f"stop_token_ids={ids!r:.80} is not a list of token ids")
        if len(ids) > MAX_STOP_TOKEN_IDS:
            raise ConfigError(f"stop_token_ids has {len(ids)} entries, at most {MAX_STOP_TOKEN_IDS} are allowed")
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_token_ids", tuple(ids))

    def _check_bias(self) -> None:
        if self.logit_bias is None:
            return
        try:
            bias = dict(self.logit_bias)
        except (TypeError, ValueError):
            bias = None
        if bias is None or not all(map(_is_token, bias)):
            raise ConfigError(f"logit_bias={self.logit_bias!r:.80} does not give numbers by token id")
        if len(bias) > MAX_BIASED:
            raise ConfigError(f"logit_bias has {len(bias)} entries, at most {MAX_BIASED} are allowed")
        for token, value in bias.items():
            self._check(f"logit_bias of token {token}", value, -100, 100)
        object.__setattr__(self, "logit_bias", tuple(sorted(bias.items())) or None)

    def _check_structure(self) -> None:
        if self.structured_outputs is None:
            return
        from pocketvlm.grammar.structured_outputs import StructuredOutputs  # it may need an extra

        if not isinstance(self.structured_outputs, StructuredOutputs):
            raise ConfigError(
                f"structured_outputs={self.structured_outputs!r:.80} is not a StructuredOutputs",
                hint="Make one of a JSON schema, a regular expression, a list of choices or a grammar.",
            )

    def check_vocabulary(self, vocab_size: int) -> None:
        """`ConfigError` when an option names a token that a vocabulary of this size has not."""
        for name, ids in (("logit_bias", dict(self.logit_bias or ())), ("stop_token_ids", self.stop_token_ids)):
            if ids and max(ids) >= vocab_size:
                raise ConfigError(f"{name} names token {max(ids)}, but the vocabulary ends at {vocab_size - 1}")

    def _check_beams(self) -> None:
        """Refuse what beam search cannot honour, and its options without it."""
        if self.num_beams == 1:
            for name, neutral in (("length_penalty", 1.0), ("early_stopping", False)):
                if getattr(self, name) != neutral:
                    raise ConfigError(
                        f"{name}={getattr(self, name)!r} means nothing with num_beams=1",
                        hint="Leave it out, or set num_beams to 2 or more.",
                    )
            return
        if self.temperature > 0:
            raise ConfigError(
                f"num_beams={self.num_beams} draws nothing at random, so temperature={self.temperature!r} has no place",
                hint="Set temperature=0, or num_beams=1.",
            )
        for name, neutral in BESIDE_BEAMS.items():
            if (value := getattr(self, name)) != neutral:
                raise ConfigError(
                    f"num_beams={self.num_beams} leaves no place for {name}={value!r:.80}",
                    hint="Leave one of them out.",
                )
        if self.stop:
            raise ConfigError(
                f"num_beams={self.num_beams} compares whole answers, so stop={self.stop!r:.80} cannot end one",
                hint="Leave stop out, or set num_beams=1.",
            )

    @staticmethod
    def _check(name: str, value: Any, low: float, high: float, *, above: bool = False) -> None:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        # Compared the right way round, NaN fails too.
        if not number or not low <= value <= high or (above and value == low):
            raise ConfigError(f"{name}={value!r:.40} is not a number {'above' if above else 'from'} {low} to {high}")

    @staticmethod
    def _check_integer(name: str, value: Any, least: int, most: int) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            wanted = f"at least {least}" if most == 2**31 else f"{least} to {most}"
            raise ConfigError(f"{name}={value!r:.40} is not an integer of {wanted}")

    @classmethod
    def from_options(cls, options: Mapping[str, Any], defaults: Mapping[str, Any]) -> Self:
        """Options over a checkpoint's defaults; `ConfigError` names an option that does not exist."""
        known = {f.name for f in fields(cls)}
        for name in options:
            if name not in known:
                raise ConfigError(f"option {name!r} is unknown", hint=f"Sampling options: {', '.join(sorted(known))}.")
        return cls(**{**defaults, **{k: v for k, v in options.items() if v is not None}})

    @staticmethod
    def defaults_of(generation_config: Mapping[str, Any]) -> dict[str, Any]:
        """What a `generation_config.json` asks for; without `do_sample` it asks for greedy decoding."""
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        picked = {k: generation_config[k] for k in names if generation_config.get(k) is not None}
        if not generation_config.get("do_sample", False):
            picked["temperature"] = 0.0
        return picked
