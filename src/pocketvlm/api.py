"""The Python face: `load` a model, then `ask`, `chat`, `stream` or `batch`; `plan` needs no model at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from pocketvlm.config import (
    DownsampleMode,
    ImageConfig,
    ModelConfig,
    check_auto_token_budget,
    check_downsample_mode,
)
from pocketvlm.engine.generator import Generator, Request
from pocketvlm.engine.runner import Runner
from pocketvlm.engine.sampling_params import SamplingParams
from pocketvlm.engine.torch_runner import TorchRunner
from pocketvlm.engine.trace import Trace, trace_forward
from pocketvlm.errors import ConfigError, PromptError
from pocketvlm.loading import load_runner
from pocketvlm.model.flops import vision_flops
from pocketvlm.model.hub import resolve
from pocketvlm.processing.image import encode_image, to_reference_layout
from pocketvlm.processing.inputs import ModelInputs
from pocketvlm.processing.media import ImageSource, is_video, load_image
from pocketvlm.processing.processor import Processor
from pocketvlm.processing.rates import most_tokens
from pocketvlm.processing.slicing import plan_views
from pocketvlm.processing.tokenizer import IncrementalDetokenizer
from pocketvlm.views import Size, View

Progress = Callable[[str, int, int], None]
PROMPT_OPTIONS = (
    "downsample_mode",
    "auto_token_budget",
    "max_slice_nums",
    "max_num_frames",
    "stack_frames",
    "use_image_id",
    "use_video_id",
    "video_max_slice_nums",
    "enable_thinking",
    "tools",
)


@dataclass(frozen=True)
class Usage:
    """Tokens of one answer; `visual_tokens` is the part of the prompt that is pictures."""

    prompt_tokens: int
    visual_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Answer:
    """What the model said.

    Attributes:
        text: the answer, without reasoning, control tokens or stop string.
        usage: tokens in and out.
        timing: seconds a stage: preprocess, encode, prefill, decode, total (wall time of this answer).
        finish_reason: "stop" (end of turn or a stop string) or "length" (max_tokens or the context).
        reasoning: what the model thought first, with `enable_thinking=True`; else None.
        token_ids: the generated ids.
    """

    text: str
    usage: Usage
    timing: Mapping[str, float]
    finish_reason: str
    reasoning: str | None = None
    token_ids: tuple[int, ...] = ()

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class ViewPlan:
    """How a picture of one size is seen.

    Attributes:
        height, width: of the picture, in pixels.
        grid: (rows, columns) of slices, or None when the overview is the only view.
        views: (height, width) of each view in patches, overview first, then slices row by row.
        patches: of all views.
        visual_tokens: prompt tokens that the picture takes; with "auto" and without pixels, the most it can take.
        vision_flops: FLOPs (two a multiply-add) of tower and merger for these tokens.
        vision_flops_uncompressed: the same views without early compression.
        visual_tokens_min: the fewest tokens it can take; `visual_tokens`, unless only the pixels can tell.
        rates: "16x" or "4x" for each view; None when only the pixels can tell.
    """

    height: int
    width: int
    grid: tuple[int, int] | None
    views: tuple[tuple[int, int], ...]
    patches: int
    visual_tokens: int
    vision_flops: int
    vision_flops_uncompressed: int
    visual_tokens_min: int
    rates: tuple[DownsampleMode, ...] | None


def plan(
    height: int,
    width: int,
    downsample_mode: str = "16x",
    max_slice_nums: int = 9,
    *,
    auto_token_budget: float | None = None,
    model_config: ModelConfig | None = None,
    image_config: ImageConfig | None = None,
) -> ViewPlan:
    """What the model would make of a picture of `height` x `width` pixels, without reading one.

    Args:
        downsample_mode: "16x", "4x" or "auto", where only the pixels tell: bounds are given then, see `ViewPlan` and
            `plan_image`.
        max_slice_nums: most slices beside the overview.
        auto_token_budget: most visual tokens with "auto", as a multiple of those of 16x; 1.5 when not given.
        model_config, image_config: the published MiniCPM-V 4.6 when not given.

    Raises:
        ConfigError: an option that does not exist.
        MediaError: a size that no view can be made of.
    """
    for name, value in (("height", height), ("width", width)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name}={value!r} is not a positive number of pixels")
    mode = check_downsample_mode(downsample_mode)
    budget = check_auto_token_budget(auto_token_budget, mode == "auto")
    size = Size(height=height, width=width)
    slices = plan_views(size, image_config or ImageConfig(), mode, max_slice_nums)
    if mode != "auto":
        return _view_plan(size, slices.grid, slices.views, model_config)
    costliest = _view_plan(size, slices.grid, most_tokens(slices.views, budget), model_config)
    if costliest.visual_tokens == slices.visual_tokens:  # the budget is too small for any view, whatever its pixels
        return costliest
    return replace(costliest, visual_tokens_min=slices.visual_tokens, rates=None)


def plan_image(
    image: ImageSource,
    downsample_mode: str = "16x",
    max_slice_nums: int = 9,
    *,
    auto_token_budget: float | None = None,
    model_config: ModelConfig | None = None,
    image_config: ImageConfig | None = None,
) -> ViewPlan:
    """As `plan`, for a picture whose pixels are at hand: with "auto", the rates they lead to.

    Args:
        image: a path, URL, bytes, PIL image or array.

    Raises:
        ConfigError, MediaError: as `plan`; the picture cannot be read.
    """
    mode, pixels = check_downsample_mode(downsample_mode), load_image(image)
    encoded = encode_image(
        pixels, image_config or ImageConfig(), mode, max_slice_nums, auto_token_budget=auto_token_budget
    )
    return _view_plan(Size(height=pixels.shape[0], width=pixels.shape[1]), encoded.grid, encoded.views, model_config)


def _view_plan(
    size: Size, grid: tuple[int, int] | None, views: Sequence[View], model_config: ModelConfig | None
) -> ViewPlan:
    tokens, model_config = sum(view.visual_tokens for view in views), model_config or ModelConfig()
    return ViewPlan(
        height=size.height,
        width=size.width,
        grid=grid,
        views=tuple((v.size.height, v.size.width) for v in views),
        patches=sum(view.patches for view in views),
        visual_tokens=tokens,
        vision_flops=vision_flops(model_config, views),
        vision_flops_uncompressed=vision_flops(model_config, views, early_compression=False),
        visual_tokens_min=tokens,
        rates=tuple(view.downsample_mode for view in views),
    )


def load(
    model: str | Path = "nano",
    *,
    device: str = "auto",
    runtime: str = "auto",
    quantization: str = "auto",
    dtype: str = "auto",
    progress: Progress | None = None,
) -> VLM:
    """Load a model.

    Args:
        model: "nano" (in the package), a checkpoint directory, or a hub id such as openbmb/MiniCPM-V-4.6.
        device: "auto" (CUDA when there is one), "cpu", "cuda" or "cuda:N".
        runtime: "torch"; "onnx" (ONNX Runtime, on a CPU; the checkpoint is made into a bundle once, in the cache);
            "auto": onnx on a CPU for 100 million parameters and more, where it is installed; else torch.
        quantization: of the onnx runtime: "none", "int8", "int4" (4-bit weights in the decoder), or of each part, as in
            "vision=int8,decoder=int4,head=int8"; "auto" is int8 there.
        dtype: "auto" (float32 on a CPU, where bfloat16 is ten times slower; bfloat16 on CUDA), or one of the names.
        progress: called with (what, done, in all) while weights load or a bundle is made.

    Raises:
        ConfigError, CheckpointError: the model cannot be found or loaded, or an option cannot be honoured.
    """
    directory = resolve(model)
    options = {"device": device, "runtime": runtime, "quantization": quantization, "dtype": dtype}
    runner = load_runner(directory, **options, progress=progress)
    return VLM(runner, Processor.from_directory(directory), SamplingParams.defaults_in(directory), name=str(model))


class VLM:
    """A loaded model. Options by name everywhere: those of the pictures (`downsample_mode`, `max_slice_nums`, …) and
    those of sampling (`temperature`, `top_p`, `max_tokens`, …; see `SamplingParams`). What is not given comes from the
    checkpoint; what does not exist is refused.
    """

    def __init__(self, runner: Runner, processor: Processor, defaults: Mapping[str, Any], name: str = "") -> None:
        self.runner, self.processor, self.name = runner, processor, name
        self.config = runner.config
        self.defaults = dict(defaults)
        self.generator = Generator(runner)
        #: Called with (what, done, in all) during long prefills; None is silent.
        self.progress: Progress | None = None

    def ask(self, media: Any, question: str, **options: Any) -> Answer:
        """Answer a question about pictures or videos.

        Args:
            media: a path, URL, bytes, PIL image or array, a video's path, or a list of these.
            question: the question.
        """
        return self.chat(question_messages(media, question), **options)

    def chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> Answer:
        """Continue a conversation in OpenAI's format; images may also be given as {"type": "image", "image": …}."""
        stream = self.stream(messages, **options)
        for _ in stream:
            pass
        return stream.answer

    def stream(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> Stream:
        """As `chat`, but text comes piece by piece: iterate over the result; `.answer` is there at the end.

        With `num_beams` above 1 all text comes at the end, in one piece: until then no beam is the answer.
        """
        return Stream(self, self._prepare(messages, options))

    def batch(self, conversations: Sequence[Sequence[Mapping[str, Any]]], **options: Any) -> list[Answer]:
        """Answer several conversations together, in order; greedy answers equal those one by one."""
        jobs = [self._prepare(messages, options) for messages in conversations]
        for _ in self._run(jobs):
            pass
        return [job.answer() for job in jobs]

    def _prepare(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> _Job:
        began = time.perf_counter()
        media = {k: v for k, v in options.items() if k in PROMPT_OPTIONS and v is not None}
        sampling = {k: v for k, v in options.items() if k not in PROMPT_OPTIONS}
        params = SamplingParams.from_options(sampling, self.defaults)
        inputs = self.processor(messages, **media)
        tokenizer = self.processor.tokenizer
        request = Request(inputs.input_ids, params, tokenizer.stop_ids, inputs.patches, inputs.views)
        self.generator.check(request)
        request.timing["preprocess"] = time.perf_counter() - began
        return _Job(request, inputs, IncrementalDetokenizer(tokenizer), bool(media.get("enable_thinking")))

    def _run(self, jobs: Sequence[_Job]) -> Iterator[tuple[int, str]]:
        """Generate; yields (job, new text)."""
        began = time.perf_counter()
        progress = self.progress
        report = (lambda done, total: progress("Reading the prompt", done, total)) if progress else None
        for event in self.generator.stream([job.request for job in jobs], report):
            job = jobs[event.request]
            text = job.add(event.tokens, event.finish_reason is not None)
            if job.request.finish_reason is not None:
                job.request.timing["total"] = job.request.timing["preprocess"] + time.perf_counter() - began
            if text:
                yield event.request, text


class Stream:
    """Text of an answer as it is generated."""

    def __init__(self, vlm: VLM, job: _Job) -> None:
        self._job = job
        self._pieces = vlm._run([job])

    def __iter__(self) -> Iterator[str]:
        return (text for _, text in self._pieces)

    def __next__(self) -> str:
        return next(self._pieces)[1]

    @property
    def answer(self) -> Answer:
        """The whole answer; `PromptError` while text is still to come."""
        if self._job.request.finish_reason is None:
            raise PromptError("the answer is not complete yet", hint="Iterate over the stream first.")
        return self._job.answer()


@dataclass
class _Job:
    """A request together with its text."""

    request: Request
    inputs: ModelInputs
    detokenizer: IncrementalDetokenizer
    thinking: bool
    text: str = ""
    shown: int = field(default=0)

    def add(self, tokens: Sequence[int], finished: bool) -> str:
        """Take tokens; returns the text that may be shown now. A stop string ends the request and is cut off."""
        for token in tokens:
            self.text += self.detokenizer.add(token)
        if finished:
            self.text += self.detokenizer.flush()
        stops = self.request.params.stop
        ends = [at for stop in stops if (at := self.text.find(stop, max(0, self.shown - len(stop)))) >= 0]
        if ends:
            self.text = self.text[: min(ends)]
            self.request.finish_reason = "stop"
            finished = True
        # What could be the beginning of a stop string is held back.
        held = 0 if finished else max((_overlap(self.text, stop) for stop in stops), default=0)
        new = self.text[self.shown : len(self.text) - held]
        self.shown += len(new)
        return new

    def answer(self) -> Answer:
        assert self.request.finish_reason is not None
        text, reasoning = self.text, None
        if self.thinking:
            thought, closed, rest = text.partition("</think>")
            reasoning, text = (thought.strip(), rest.lstrip("\n")) if closed else (thought.strip(), "")
        usage = Usage(len(self.request.input_ids), self.inputs.visual_tokens, len(self.request.output_ids))
        return Answer(
            text,
            usage,
            dict(self.request.timing),
            self.request.finish_reason,
            reasoning,
            tuple(self.request.output_ids),
        )


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


def trace(vlm: VLM, messages: Sequence[Mapping[str, Any]], *, max_tokens: int = 16, **options: Any) -> Trace:
    """One prompt through the model, intermediates kept, then `max_tokens` greedy tokens (a stop id ends them).

    Args:
        options: those of pictures (`downsample_mode`, `max_slice_nums`, …).
    """
    SamplingParams(max_tokens=max_tokens)
    inputs = vlm.processor(messages, **options)
    if not isinstance(vlm.runner, TorchRunner):
        raise ConfigError("a trace goes through the PyTorch model", hint="Load it with runtime='torch'.")
    context = vlm.config.text.max_position_embeddings
    if len(inputs.input_ids) + max_tokens > context:
        raise PromptError(
            f"{len(inputs.input_ids)} tokens and {max_tokens} more are over the model's context of {context}",
            hint="Use fewer or smaller pictures, a shorter text or a lower max_tokens.",
        )
    layout = to_reference_layout(inputs.patches, vlm.processor.image_config) if inputs.views else None
    tokenizer = vlm.processor.tokenizer
    decode = partial(tokenizer.decode, skip_special=False)
    return trace_forward(
        vlm.runner.model, inputs.input_ids, inputs.patches, inputs.views, tokenizer.stop_ids, max_tokens, layout, decode
    )


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
