"""The Python face: `load` a model, then `ask`, `chat`, `stream` or `batch`."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from pocketvlm.api.answers import Answer, EngineError
from pocketvlm.api.job import Job
from pocketvlm.api.loading import load_runner
from pocketvlm.engine.config import EngineConfig
from pocketvlm.engine.engine import Engine
from pocketvlm.engine.request import Request
from pocketvlm.engine.runners.base import Runner
from pocketvlm.engine.sampling.params import SamplingParams
from pocketvlm.errors import ConfigError, PocketVLMError, PromptError
from pocketvlm.machine import usable_cores
from pocketvlm.model.directory import ModelDirectory
from pocketvlm.model.hub import resolve
from pocketvlm.processing.media.load_image import is_video
from pocketvlm.processing.picture_options import PICTURE_OPTIONS
from pocketvlm.processing.processor import Processor
from pocketvlm.processing.prompt.branch_points import branch_points

if TYPE_CHECKING:
    from pocketvlm.grammar.compiler import Grammar, GrammarCompiler

logger = logging.getLogger(__name__)
Progress = Callable[[str, int, int], None]
Key = TypeVar("Key", bound=Hashable)
PROMPT_OPTIONS = (*PICTURE_OPTIONS, "enable_thinking", "tools")


def load(
    model: str | Path | ModelDirectory = "nano",
    *,
    device: str = "auto",
    runtime: str = "auto",
    quantization: str = "auto",
    dtype: str = "auto",
    engine_config: EngineConfig | None = None,
    progress: Progress | None = None,
) -> VLM:
    """Load a model.

    Args:
        model: "nano" (in the package), a checkpoint directory, or a hub id such as openbmb/MiniCPM-V-4.6; or what
            `resolve` made of one of these.
        device: "auto" (CUDA when there is one), "cpu", "cuda" or "cuda:N".
        runtime: "torch"; "onnx" (ONNX Runtime, on a CPU; the checkpoint is made into a bundle once, in the cache);
            "auto": onnx on a CPU for 100 million parameters and more, where it is installed; else torch.
        quantization: of the onnx runtime: "none", "int8", "int4" (4-bit weights in the decoder), or of each part, as in
            "vision=int8,decoder=int4,head=int8"; "auto" is int8 there.
        dtype: "auto" (float32 on a CPU, where bfloat16 is ten times slower; bfloat16 on CUDA), or one of the names.
        engine_config: budgets of the engine (`EngineConfig`); chosen for the machine when None.
        progress: called with (what, done, in all) while weights load or a bundle is made.

    Raises:
        ConfigError, CheckpointError: the model cannot be found or loaded, or an option cannot be honoured.
    """
    directory = resolve(model)
    options = {"device": device, "runtime": runtime, "quantization": quantization, "dtype": dtype}
    runner = load_runner(directory, **options, progress=progress)
    processor = Processor.from_directory(directory.path, configs=directory.configs)
    defaults = SamplingParams.defaults_of(directory.configs.generation)
    return VLM(runner, processor, defaults, name=str(model), engine_config=engine_config)


class VLM:
    """A loaded model. Options by name everywhere: those of the pictures (`downsample_mode`, `max_slice_nums`, …) and
    those of sampling (`temperature`, `top_p`, `max_tokens`, …; see `SamplingParams`). What is not given comes from the
    checkpoint; what does not exist is refused. `with pocketvlm.load() as vlm` closes it at the end.
    """

    def __init__(
        self,
        runner: Runner,
        processor: Processor,
        defaults: Mapping[str, Any],
        name: str = "",
        *,
        engine_config: EngineConfig | None = None,
    ) -> None:
        self.runner, self.processor, self.name = runner, processor, name
        self.config = runner.config
        self.defaults = dict(defaults)
        self.engine = Engine(runner, engine_config)
        #: Called with (what, done, in all) during long prefills; None is silent.
        self.progress: Progress | None = None
        self._jobs: dict[Request, Job] = {}
        self._given_up: deque[Job] = deque()
        self._one_at_a_time = threading.Lock()
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

        With `num_beams` above 1 all text comes at the end, in one piece: until then no beam is the answer. With `n`
        above 1 it is the text of the first answer. Several streams may be read in turns or from several threads: they
        run together.
        """
        return Stream(self, self.prepare(messages, options))

    def batch(self, conversations: Sequence[Sequence[Mapping[str, Any]]], **options: Any) -> list[Answer]:
        """Answer several conversations together, in order; greedy answers equal those one by one."""
        found: dict[int, Answer] = {}
        requests = ((i, messages, options) for i, messages in enumerate(conversations))
        with closing(self.as_completed(requests)) as completed:
            for i, answers in completed:
                if isinstance(answers, Exception):
                    raise answers
                first, *others = answers
                found[i] = replace(first, alternatives=tuple(others)) if others else first
        return [found[i] for i in range(len(found))]

    def as_completed(
        self,
        requests: Iterable[tuple[Key, Sequence[Mapping[str, Any]], Mapping[str, Any]]],
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
        """
        if ahead < 1:
            raise ConfigError(f"ahead={ahead} is below 1")
        source = iter(requests)
        preparing: dict[Future[Job], Key] = {}
        running: dict[Job, Key] = {}
        exhausted = False
        workers = ThreadPoolExecutor(max(1, min(4, usable_cores())), "pocketvlm-prepare")
        try:
            while True:
                while not exhausted and len(preparing) + len(running) < ahead:
                    if (following := next(source, None)) is None:
                        exhausted = True
                        break
                    key, messages, options = following
                    preparing[workers.submit(self.prepare, messages, options)] = key
                for future in [future for future in preparing if future.done()]:
                    key = preparing.pop(future)
                    try:
                        job = future.result()
                        self._submit(job)
                    except Exception as error:  # of this request alone, whatever it is
                        if not isinstance(error, PocketVLMError):
                            logger.exception("a request could not be prepared")
                        yield key, error
                    else:
                        running[job] = key
                if running:
                    oldest = next(iter(running))
                    oldest.pieces.clear()  # nobody reads them here
                    self._advance(oldest)
                    for job in [job for job in running if job.is_done]:
                        yield running.pop(job), job.error or job.answers()
                elif preparing:
                    wait(preparing, return_when=FIRST_COMPLETED)
                elif exhausted:
                    return
        finally:
            workers.shutdown(wait=False, cancel_futures=True)
            self._given_up.extend(running)

    def prepare(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> Job:
        """Check a conversation and make it ready for the engine; safe in any thread. `RuntimeError` once closed."""
        self._check_open()
        began = time.perf_counter()
        media = {k: v for k, v in options.items() if k in PROMPT_OPTIONS and v is not None}
        sampling = {k: v for k, v in options.items() if k not in PROMPT_OPTIONS}
        params = SamplingParams.from_options(sampling, self.defaults)
        inputs = self.processor(messages, **media)
        tokenizer = self.processor.tokenizer
        thinking = bool(media.get("enable_thinking"))
        request = Request(
            f"{next(self._numbers)}",
            inputs.input_ids,
            params,
            tokenizer.stop_ids,
            inputs.patches,
            inputs.views,
            inputs.placeholder_ids,
            branch_points(inputs.input_ids, tokenizer),
            grammar=self._grammar(params, thinking),
        )
        self.engine.check(request)
        spent = time.perf_counter() - began
        return Job(request, tokenizer, visual_tokens=inputs.visual_tokens, thinking=thinking, preprocess=spent)

    def _grammar(self, params: SamplingParams, thinking: bool) -> Grammar | None:
        if params.structured_outputs is None:
            return None
        from pocketvlm.grammar.compiler import GrammarCompiler

        with self._making_grammars:
            self._check_open()
            if self._grammars is None:
                tokenizer = self.processor.tokenizer
                self._grammars = GrammarCompiler(tokenizer, self.config.text.vocab_size, tokenizer.stop_ids)
        return self._grammars.compile(params.structured_outputs, after_thinking=thinking)

    def close(self) -> None:
        """Take no more requests and end the processes that were started for them; safe from any thread, and again.

        A stream that is under way may still be read to its end.
        """
        with self._making_grammars:
            self._closed = True
            if self._grammars is not None:
                self._grammars.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the model is closed")

    def _submit(self, job: Job) -> None:
        with self._one_at_a_time:
            job.request.arrival = time.monotonic()
            self.engine.add(job.request)
            self._jobs[job.request] = job

    def _advance(self, job: Job) -> None:
        """One step of the engine, unless another thread's step has brought `job` further meanwhile."""
        with self._one_at_a_time:
            while self._given_up:
                lost = self._given_up.popleft()
                self.engine.abort(lost.request)
                self._jobs.pop(lost.request, None)
            if job.is_done or job.pieces:
                return
            if not self.engine.has_work:
                job.error = EngineError("the engine lost this request")
            for output in self.engine.step():
                if (owner := self._jobs.get(output.request)) is None:
                    continue
                stopped, new = owner.take(output)
                if stopped:
                    self.engine.finish(output.request, output.index)
                if new and output.index == 0:
                    owner.pieces.append(new)
                if owner.is_done:
                    del self._jobs[output.request]
                    if owner.error is not None:
                        self.engine.abort(owner.request)
        if self.progress is not None and not job.is_done:
            first, total = job.request.sequences[0], job.request.prompt_tokens
            if not first.output_ids:
                self.progress("Reading the prompt", min(first.computed, total), total)

    def _complete(self, job: Job) -> Answer:
        stream = Stream(self, job)
        for _ in stream:
            pass
        return stream.answer


class Stream:
    """Text of an answer as it is generated. One that is not read to its end is given up with its object."""

    def __init__(self, vlm: VLM, job: Job) -> None:
        self._vlm, self._job = vlm, job
        vlm._submit(job)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        job = self._job
        while not job.pieces and not job.is_done:
            self._vlm._advance(job)
        if job.pieces:
            return job.pieces.popleft()
        if job.error is not None:
            raise job.error
        raise StopIteration

    def close(self) -> None:
        """Give the answer up."""
        if not self._job.is_done:
            self._vlm._given_up.append(self._job)  # taken up with the next step: this may run in the middle of one

    def __del__(self) -> None:
        self.close()

    @property
    def answer(self) -> Answer:
        """The whole answer; `PromptError` while text is still to come."""
        if not self._job.is_done:
            raise PromptError("the answer is not complete yet", hint="Iterate over the stream first.")
        return self._job.answer()


def question_messages(media: Any, question: str) -> list[dict[str, Any]]:
    """One user message: pictures and videos first, then the question."""
    if not isinstance(question, str) or not question.strip():
        raise PromptError(f"question={question!r} is not a text", hint="Say what you want to know.")
    sources = list(media) if isinstance(media, list | tuple) else [] if media is None else [media]
    content: list[dict[str, Any]] = []
    for source in sources:
        kind = "video" if is_video(source) else "image"
        content.append({"type": kind, kind: source})
    return [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
