"""The Python interface: `load` a model, then `ask`, `chat`, `stream` or `batch`."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Generator, Hashable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar

from pocketvlm.api.adapters import Adapters, check_name
from pocketvlm.api.answers import Answer, with_alternatives
from pocketvlm.api.job import Job
from pocketvlm.api.loading import load_runner
from pocketvlm.api.many import answer_many
from pocketvlm.api.processed import PROMPT_OPTIONS, Conversation, Processed, process
from pocketvlm.api.shared_engine import Progress, SharedEngine, refuse_to_travel
from pocketvlm.api.stream import Stream
from pocketvlm.engine.config import EngineConfig
from pocketvlm.engine.engine import Engine
from pocketvlm.engine.request import Request
from pocketvlm.engine.runners.base import Runner
from pocketvlm.engine.sampling.params import SamplingParams
from pocketvlm.errors import ConfigError, PromptError
from pocketvlm.model.directory import ModelDirectory
from pocketvlm.model.hub import resolve
from pocketvlm.processing.abandonment import check_wanted
from pocketvlm.processing.media.load_image import is_video
from pocketvlm.processing.processor import Processor
from pocketvlm.processing.prompt.branch_points import branch_points
from pocketvlm.ranges import Range, show

if TYPE_CHECKING:
    from pocketvlm.grammar.compiler import Grammar, GrammarCompiler

logger = logging.getLogger(__name__)

Key = TypeVar("Key", bound=Hashable)


def load(
    model: str | Path | ModelDirectory = "nano",
    *,
    device: str = "auto",
    runtime: str = "auto",
    quantization: str = "auto",
    dtype: str = "auto",
    adapter: str | Path | None = None,
    adapters: Mapping[str, str | Path] | None = None,
    engine_config: EngineConfig | None = None,
    progress: Progress | None = None,
) -> VLM:
    """Load a model.

    Args:
        model: "nano" (in the package), a checkpoint directory, or a hub id such as openbmb/MiniCPM-V-4.6; or what
            `resolve` made of one of these.
        device: "auto" (CUDA when there is one), "cpu", "cuda" or "cuda:N".
        runtime: "torch" (extra `torch`); "onnx" (ONNX Runtime, on a CPU; the checkpoint is made into a bundle once, in
            the cache); "auto": onnx on a CPU, torch on a GPU and for what onnx cannot do (docs/onnx.md).
        quantization: of the onnx runtime: "none", "int8", "int4" (4-bit weights in the decoder), or of each part, as in
            "vision=int8,decoder=int4,head=int8"; "auto" is int8 from 100 million parameters on, else none.
        dtype: "auto" (float32 on a CPU, bfloat16 on CUDA), or one of the names. On a CPU with instructions for it
            bfloat16 reads pictures faster and writes answers more slowly; without them all is many times slower.
        adapter: a folder that PEFT wrote for this model; it becomes part of the weights, as if the model had been
            trained so. With `adapters` it is the name of the one that requests follow which name none.
        adapters: folders that PEFT wrote, by names; each request chooses one (`adapter="name"`), or none, and a batch
            may mix them. PyTorch only. More come and go by `load_adapter` and `unload_adapter`.
        engine_config: budgets of the engine (`EngineConfig`); chosen for the machine when None.
        progress: called with (what, done, in all) while weights load or a bundle is made.

    Raises:
        ConfigError, CheckpointError: the model cannot be found or loaded, or an option cannot be honoured.
    """
    _check_engine_config(engine_config)
    _check_progress(progress)
    directory = resolve(model)
    if adapters is not None:
        runtime = _check_adapters(adapters, adapter, runtime)
    elif adapter is not None:
        directory = directory.with_adapter(adapter)
    options = {"device": device, "runtime": runtime, "quantization": quantization, "dtype": dtype}
    runner = load_runner(directory, **options, progress=progress)
    processor = Processor.from_directory(directory.path, configs=directory.configs)
    defaults = SamplingParams.defaults_of(directory.configs.generation)
    if names := SamplingParams.not_honoured(directory.configs.generation):
        logger.warning("%s: generation_config.json asks for what is not done: %s", directory, ", ".join(names))
    vlm = VLM(runner, processor, defaults, name=str(model), engine_config=engine_config)
    vlm.directory = directory
    for one, folder in (adapters or {}).items():
        vlm.adapters.load(one, folder)
    if adapters is not None and adapter is not None:
        vlm.adapters.default = str(adapter)
    return vlm


class VLM:
    """A loaded model. Options by name everywhere: those of the pictures (`downsample_mode`, `max_slice_nums`, …) and
    those of sampling (`temperature`, `top_p`, `max_tokens`, …; see `SamplingParams`); and `adapter`, the name of one
    that was loaded, "" for the model as it is. What is not given comes from the
    checkpoint; what does not exist is refused. `with pocketvlm.load() as vlm` closes it at the end.

    Attributes:
        directory: what it was loaded from; None where it was put together by hand.
        adapters: those that requests can name.
    """

    directory: ModelDirectory | None = None

    def __init__(
        self,
        runner: Runner,
        processor: Processor,
        defaults: Mapping[str, Any],
        name: str = "",
        *,
        engine_config: EngineConfig | None = None,
    ) -> None:
        _check_engine_config(engine_config)
        self.runner, self.processor, self.name = runner, processor, name
        self.config = runner.config
        self.defaults = dict(defaults)
        self.engine = Engine(runner, engine_config)
        self.shared = SharedEngine(self.engine)
        self.adapters = Adapters(runner)
        self._numbers = itertools.count()
        self._grammars: GrammarCompiler | None = None
        self._making_grammars, self._closed = threading.Lock(), False

    def ask(self, media: Any, question: str, **options: Any) -> Answer:
        """Answer a question about pictures or videos.

        Args:
            media: a path, URL, bytes, PIL image or array, a video's path, or a list of these.
            question: the question.
        """
        return self.chat(question_messages(media, question), **options)

    def chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> Answer:
        """Continue a conversation in OpenAI's format; images may also be given as {"type": "image", "image": …}.

        What earlier turns computed is taken up again where the cache still has it.
        """
        return self._complete(self.prepare(messages, options))

    def stream(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> Stream:
        """As `chat`, but text comes piece by piece: iterate over the result; `.answer` is there at the end.

        Reasoning (`enable_thinking=True`) and tool calls are no part of that text: iterate over `.deltas()` of the
        result for them, for log probabilities and for the other answers with `n` above 1. With `num_beams` above 1
        everything comes at the end, in one piece: until then no beam is the answer. Several streams may be read in
        turns or from several threads: they run together.
        """
        return Stream(self.shared, self.prepare(messages, options))

    def batch(self, conversations: Sequence[Sequence[Mapping[str, Any]]], **options: Any) -> list[Answer]:
        """Answer several conversations together, in order; greedy answers equal those one by one."""
        if isinstance(conversations, str | Mapping) or not isinstance(conversations, Iterable):
            kind = type(conversations).__name__
            raise PromptError(f"conversations are of type {kind}", hint="Give a list of lists of messages.")
        found: dict[int, Answer] = {}
        requests = ((i, messages, options) for i, messages in enumerate(conversations))
        with closing(self.as_completed(requests)) as completed:
            for i, answers in completed:
                if isinstance(answers, Exception):
                    raise answers
                found[i] = with_alternatives(answers)
        return [found[i] for i in range(len(found))]

    def as_completed(
        self,
        requests: Iterable[tuple[Key, Conversation, Mapping[str, Any]]],
        *,
        ahead: int = 32,
    ) -> Generator[tuple[Key, list[Answer] | Exception], None, None]:
        """Answer many conversations, each as soon as it is complete.

        Pictures are read and cut in threads of their own while the engine runs, for the next requests already.

        Args:
            requests: (key, messages, options) of each, read as they are needed.
            ahead: most requests that are prepared or running at a time.

        Yields:
            each key with its answers (`n` of them), or with the error of that request alone: `PocketVLMError` where it
            cannot be honoured, `EngineError` or what else went wrong where it was lost.

        Raises:
            PromptError: an item of `requests` is no such triple; all that were read before it are answered first.
        """
        ahead = Range(int, 1).check("ahead", ahead)
        self.shared.process.check()
        return answer_many(self.shared, self.prepare, requests, ahead)

    def load_adapter(self, name: str, folder: str | Path) -> None:
        """Let requests name an adapter that PEFT wrote, from now on; safe in any thread, while others are answered. Of
        a model on PyTorch, as `load` makes it with `adapters` (an empty mapping will do) or `runtime="torch"`.

        Raises:
            ConfigError, CheckpointError: see `Adapters.load`.
        """
        self._check_open()
        self.adapters.load(name, folder)

    def unload_adapter(self, name: str) -> None:
        """Take no more requests for an adapter; those that run end as they began."""
        self._check_open()
        self.adapters.unload(name)

    def prepare(self, messages: Conversation, options: Mapping[str, Any]) -> Job:
        """Check a conversation and make it ready for the engine; safe in any thread. `RuntimeError` once closed.

        Args:
            messages: or what `process` made of them and the same options, maybe elsewhere.
        """
        self._check_open()
        began = time.perf_counter()
        if not isinstance(options, Mapping):
            raise ConfigError(f"options are of type {type(options).__name__}, expected values by name")
        sampling = {k: v for k, v in options.items() if k not in PROMPT_OPTIONS and k != "adapter"}
        adapter = self.adapters.chosen(options.get("adapter"))
        params = SamplingParams.from_options(sampling, self.defaults)
        made = messages if isinstance(messages, Processed) else process(self.processor, messages, options)
        inputs = made.inputs
        tokenizer = self.processor.tokenizer
        thinking = bool(options.get("enable_thinking"))
        request = Request(
            f"{next(self._numbers)}",
            inputs.input_ids,
            params,
            tokenizer.stop_ids,
            inputs.patches,
            inputs.views,
            inputs.placeholder_ids,
            branch_points(inputs.input_ids, tokenizer),
            adapter=adapter,
        )
        self.engine.check(request)  # before a grammar is compiled for a prompt that no cache would hold
        request.grammar = self._grammar(params, thinking)
        spent = time.perf_counter() - began + (made.seconds if made is messages else 0.0)
        return Job(
            request,
            tokenizer,
            visual_tokens=inputs.visual_tokens,
            thinking=thinking,
            preprocess=spent,
            tools=options.get("tools"),
        )

    def _grammar(self, params: SamplingParams, thinking: bool) -> Grammar | None:
        if params.structured_outputs is None:
            return None
        from pocketvlm.grammar.compiler import GrammarCompiler

        with self._making_grammars:
            self._check_open()
            if self._grammars is None:
                tokenizer = self.processor.tokenizer
                self._grammars = GrammarCompiler(tokenizer, self.config.text.vocab_size, tokenizer.stop_ids)
        return self._grammars.compile(params.structured_outputs, after_thinking=thinking, check=check_wanted)

    def close(self) -> None:
        """Take no more requests and end the processes that were started for them; safe from any thread, and again.

        A stream that is under way may still be read to its end. In a forked child it does nothing: all is the parent's.
        """
        if not self.shared.process.is_here:
            return
        with self._making_grammars:
            self._closed = True
            if self._grammars is not None:
                self._grammars.close()

    def __reduce__(self) -> NoReturn:
        refuse_to_travel(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def progress(self) -> Progress | None:
        """Called with (what, done, in all) during long prefills; None is silent."""
        return self.shared.progress

    @progress.setter
    def progress(self, report: Progress | None) -> None:
        _check_progress(report)
        self.shared.progress = report

    def _check_open(self) -> None:
        self.shared.process.check()
        if self._closed:
            raise RuntimeError("the model is closed")

    def _complete(self, job: Job) -> Answer:
        with closing(Stream(self.shared, job)) as stream:  # an interrupt's traceback may keep it for long
            for _ in stream:
                pass
            return stream.answer


def question_messages(media: Any, question: str) -> list[dict[str, Any]]:
    """One user message: pictures and videos first, then the question."""
    if not isinstance(question, str) or not question.strip():
        raise PromptError(f"question={show(question)} is not a text", hint="Say what you want to know.")
    sources = list(media) if isinstance(media, list | tuple) else [] if media is None else [media]
    content: list[dict[str, Any]] = []
    for source in sources:
        kind = "video" if is_video(source) else "image"
        content.append({"type": kind, kind: source})
    return [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]


def _check_adapters(adapters: object, default: object, runtime: str) -> str:
    """Refuse names and runtimes that cannot be; returns the runtime that takes adapters beside its weights."""
    if not isinstance(adapters, Mapping):
        raise ConfigError(f"adapters={show(adapters)} is no mapping", hint="Give folders by names: {'name': 'folder'}.")
    for name in adapters:
        check_name(name)
    if default is not None and default not in adapters:
        hint = "With adapters=…, adapter= is the name of the one that requests follow which name none."
        raise ConfigError(f"adapter={show(default)} is none of adapters", hint=hint)
    if runtime == "onnx":
        hint = "Use runtime='torch', or load the model with one adapter alone: adapter=…"
        raise ConfigError("runtime='onnx' takes no adapters beside its weights", hint=hint)
    return "torch" if runtime == "auto" else runtime


def _check_engine_config(value: object) -> None:
    if not (value is None or isinstance(value, EngineConfig)):
        raise ConfigError(f"engine_config is of type {type(value).__name__}, expected an EngineConfig")


def _check_progress(value: object) -> None:
    if not (value is None or callable(value)):
        raise ConfigError(f"progress={show(value)} cannot be called", hint="Give a function of (what, done, in all).")
