"""Requests run by an engine to their end, everything counted again after each step."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from helpers.invariants import is_tie, prefill
from pocketvlm.engine.config import EngineConfig
from pocketvlm.engine.engine import Engine
from pocketvlm.engine.request import Output, Request
from pocketvlm.engine.runners.base import Runner
from pocketvlm.engine.runners.torch_runner import TorchRunner
from pocketvlm.engine.sampling.params import SamplingParams
from pocketvlm.model.cache.block_pool import BLOCK, blocks_for
from pocketvlm.model.vlm import MiniCPMV
from pocketvlm.views import View

_numbers = itertools.count()
# How a PyTorch runner may keep what runs, and replay its steps.
LAYOUTS = ("contiguous", "paged", "recorded")


def torch_runner(model: MiniCPMV, layout: str) -> TorchRunner:
    """A runner whose engines have this layout. "recorded" is paged, with the buffers and padding of CUDA graphs."""
    runner = TorchRunner(model, graphs=layout == "recorded")
    if layout != "contiguous":
        runner.cache_layouts = ("paged", "contiguous")
    return runner


def make_request(
    runner: Runner,
    ids: Sequence[int] | Tensor,
    params: SamplingParams,
    stop_ids: frozenset[int] = frozenset(),
    patches: Any = None,
    views: Sequence[View] = (),
    **more: Any,
) -> Request:
    config = runner.config
    pads = (config.image_token_id, config.video_token_id)
    ids = np.asarray(ids, np.int64)
    patches = patches if patches is None else np.asarray(patches)
    return Request(
        f"request {next(_numbers)}", ids, params, stop_ids, patches, tuple(views), placeholder_ids=pads, **more
    )


def drive(
    engine: Engine, on_output: Callable[[Output], None] | None = None, *, may_fail: bool = False
) -> dict[Request, list[list[int]]]:
    """Step until nothing is left; returns the tokens of its outputs, for each request and each of its choices."""
    answers: dict[Request, list[list[int]]] = {}
    while engine.has_work:
        for output in engine.step():
            assert may_fail or output.error is None, output.error
            choices = answers.setdefault(output.request, [])
            choices += [[] for _ in range(output.index + 1 - len(choices))]
            choices[output.index] += output.tokens
            if on_output is not None:
                on_output(output)
        engine.check_integrity()
    return answers


def run(runner: Runner, requests: Sequence[Request], **config: Any) -> list[list[int]]:
    """The first answer of each, all of them running together on a fresh engine."""
    engine = Engine(runner, EngineConfig(**config))
    for request in requests:
        engine.add(request)
    answers = drive(engine)
    return [answers.get(request, [[]])[0] for request in requests]


def assert_same_answers(
    model: MiniCPMV, requests: Sequence[Request], got: Sequence[Sequence[int]], expected: Sequence[Sequence[int]]
) -> None:
    """Greedy answers are equal, or the first token that differs is a tie: where two scores lie within rounding of each
    other, a processor may choose one of them in one shape of a batch and the other in another.

    Args:
        requests: as they were asked, not the ones that ran: those have given up their pictures.
    """
    for request, one, other in zip(requests, got, expected, strict=True):
        if list(one) != list(other):
            assert is_tie(_scores_where_they_part(model, request, one, other)), (list(one), list(other))


def _scores_where_they_part(model: MiniCPMV, request: Request, one: Sequence[int], other: Sequence[int]) -> Tensor:
    """Scores [V] of the first token that two answers do not share, or that one of them does not have."""
    at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    ids = [*request.input_ids.tolist(), *other[:at]]
    with torch.inference_mode():
        features = model.encode_views(request.patches, request.views) if request.patches is not None else None
        scores_V = prefill(model, ids, features)[-1]
        seen, penalty = scores_V[ids], request.params.repetition_penalty
        scores_V[ids] = torch.where(seen > 0, seen / penalty, seen * penalty)
        return scores_V


def limit_cache(engine: Engine, tokens: int) -> None:
    """Leave room for so many tokens of all that run together, whole blocks of them."""
    engine.pool.cache.max_tokens = blocks_for(tokens) * BLOCK if engine.sizes.layout == "paged" else tokens
