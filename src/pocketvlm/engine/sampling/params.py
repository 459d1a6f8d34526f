"""How an answer is drawn: options by the names of vLLM and transformers, checked without importing torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self

from pocketvlm.errors import ConfigError
from pocketvlm.ranges import Range, as_integer, check_all, show

if TYPE_CHECKING:
    from pocketvlm.grammar.structured_outputs import StructuredOutputs

MAX_LOGPROBS = 20
MAX_BIASED = 1024
MAX_STOP_STRINGS, MAX_STOP_LENGTH = 16, 256
MAX_STOP_TOKEN_IDS = 1024

# Every option that is a number or a flag. What the others may be stands in their own checks below.
RANGES: Mapping[str, Range] = {
    "temperature": Range(float, 0, 100),
    "top_k": Range(int, -1),
    "top_p": Range(float, 0, 1, is_open=True),
    "min_p": Range(float, 0, 1),
    # Scores are divided by it: further down they are no numbers any more.
    "repetition_penalty": Range(float, 0.01, 100),
    "frequency_penalty": Range(float, -2, 2),
    "presence_penalty": Range(float, -2, 2),
    "seed": Range(int, -(2**63), nullable=True),
    "n": Range(int, 1, 64),
    "ignore_eos": Range(bool),
    "skip_special_tokens": Range(bool),
    "max_tokens": Range(int, 1),
    "min_tokens": Range(int, 0),
    "logprobs": Range(int, 0, MAX_LOGPROBS, nullable=True),
    "num_beams": Range(int, 1, 64),
    "length_penalty": Range(float, -10, 10),
    "early_stopping": Range(bool),
    "prompt_lookup_num_tokens": Range(int, 0, 64),
}
TOKEN_ID = Range(int, 0, 2**31 - 1)
BIAS = Range(float, -100, 100)

# What a `generation_config.json` may say that is not honoured here, each with the values that ask for nothing (None
# always does): they are the defaults of transformers.
NOT_HONOURED: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0,),
    "length_penalty": (1,),
    "early_stopping": (False,),
    "num_return_sequences": (1,),
    "max_new_tokens": (),
    "max_length": (20,),
    "min_new_tokens": (0,),
    "min_length": (0,),
    "max_time": (),
    "stop_strings": ([], ""),
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "top_h": (),
    "penalty_alpha": (0,),
    "dola_layers": (),
    "guidance_scale": (1,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "exponential_decay_length_penalty": (),
    "bad_words_ids": ([],),
    "force_words_ids": ([],),
    "constraints": ([],),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "sequence_bias": ([], {}),
    "forced_bos_token_id": (),
    "forced_eos_token_id": ([],),
    "renormalize_logits": (False,),
    "watermarking_config": ({},),
    "prompt_lookup_num_tokens": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
}

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
        skip_special_tokens: leave tokens of the tokenizer's own that are marked special out of the text; False shows
            them: `<box>` and `<point>` around coordinates, `<ref>` around what they are of.
        max_tokens: at most this many tokens are generated.
        min_tokens: no token that ends the answer is chosen before it has this many.
        logprobs: log probabilities of each token of the answer, and of this many most probable ones in its place, as
            the model gives them, before any other option; 0 is the answer's alone, None is none.
        structured_outputs: a grammar that the answer keeps to (`grammar/structured_outputs`).
        num_beams: above 1, keep this many candidates of an answer and give the best whole answer (beam search), with
            temperature 0 and without `stop`; each takes the memory of a sequence. 1 keeps one.
        length_penalty: beams compare by the sum of their log probabilities divided by their length to this power:
            above 0 favours long answers, below 0 short ones.
        early_stopping: end as soon as `num_beams` answers are complete, even where a running beam scores better.
        prompt_lookup_num_tokens: try up to this many tokens at once that followed the newest ones before, in the prompt
            or the answer (`engine/sampling/prompt_lookup`). The answer stays the same; one that repeats what was there
            comes sooner. For single answers, without beams; 0 tries none.
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
    skip_special_tokens: bool = True
    max_tokens: int = 1024
    min_tokens: int = 0
    logprobs: int | None = None
    structured_outputs: StructuredOutputs | None = None
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool = False
    prompt_lookup_num_tokens: int = 0

    def __post_init__(self) -> None:
        check_all(RANGES, self)
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
            raise ConfigError(f"stop={show(self.stop, 80)} is neither a string nor a list of strings")
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        for string in stop:
            if not isinstance(string, str) or not string or len(string) > MAX_STOP_LENGTH:
                raise ConfigError(f"stop={show(string, 80)} is not a string of 1 to {MAX_STOP_LENGTH} characters")
        if len(stop) > MAX_STOP_STRINGS:
            raise ConfigError(f"{len(stop)} stop strings were given, at most {MAX_STOP_STRINGS} are allowed")
        ids = self.stop_token_ids
        if not isinstance(ids, list | tuple):
            raise ConfigError(f"stop_token_ids={show(ids, 80)} is not a list of token ids")
        if len(ids) > MAX_STOP_TOKEN_IDS:
            raise ConfigError(f"stop_token_ids has {len(ids)} entries, at most {MAX_STOP_TOKEN_IDS} are allowed")
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_token_ids", tuple(TOKEN_ID.check("a token of stop_token_ids", t) for t in ids))

    def _check_bias(self) -> None:
        if self.logit_bias is None:
            return
        given: Any = self.logit_bias
        try:
            pairs = [(token, value) for token, value in (given.items() if isinstance(given, Mapping) else given)]
        except (TypeError, ValueError):
            raise ConfigError(f"logit_bias={show(given, 80)} does not give numbers by token id") from None
        bias = {TOKEN_ID.check("a token of logit_bias", token): value for token, value in pairs}
        if len(bias) > MAX_BIASED:
            raise ConfigError(f"logit_bias has {len(bias)} entries, at most {MAX_BIASED} are allowed")
        if len(bias) < len(pairs):
            raise ConfigError("logit_bias names a token twice")
        checked = {token: BIAS.check(f"logit_bias of token {token}", value) for token, value in bias.items()}
        object.__setattr__(self, "logit_bias", tuple(sorted(checked.items())) or None)

    def _check_structure(self) -> None:
        if self.structured_outputs is None:
            return
        from pocketvlm.grammar.structured_outputs import StructuredOutputs  # it may need an extra

        if not isinstance(self.structured_outputs, StructuredOutputs):
            raise ConfigError(
                f"structured_outputs={show(self.structured_outputs, 80)} is not a StructuredOutputs",
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

    @classmethod
    def from_options(cls, options: Mapping[str, Any], defaults: Mapping[str, Any]) -> Self:
        """Options over a checkpoint's defaults; `ConfigError` names an option that does not exist."""
        known = {f.name for f in fields(cls)}
        for name in options:
            if name not in known:
                raise ConfigError(
                    f"option {show(name)} is unknown", hint=f"Sampling options: {', '.join(sorted(known))}."
                )
        return cls(**{**defaults, **{k: v for k, v in options.items() if v is not None}})

    @classmethod
    def defaults_of(cls, generation_config: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a `generation_config.json` asks for; without `do_sample` it asks for greedy decoding.

        Raises:
            ConfigError: values that no request could be answered with.
        """
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        picked = {k: generation_config[k] for k in names if generation_config.get(k) is not None}
        if "top_k" in picked:
            picked["top_k"] = as_integer(picked["top_k"])
        do_sample = generation_config.get("do_sample")
        if not (do_sample is None or isinstance(do_sample, bool)):
            raise ConfigError(f"generation_config.json: do_sample is {show(do_sample)}, expected true, false or null")
        try:
            cls(**picked)  # now, not with every request
        except ConfigError as error:
            raise ConfigError(f"generation_config.json: {error}") from None
        if not do_sample:
            picked["temperature"] = 0.0
        return picked

    @staticmethod
    def not_honoured(generation_config: Mapping[str, Any]) -> list[str]:
        """Return the names of what a `generation_config.json` asks for and does not get here, sorted."""
        asked = ((name, generation_config.get(name)) for name in NOT_HONOURED)
        return sorted(name for name, value in asked if value is not None and value not in NOT_HONOURED[name])
