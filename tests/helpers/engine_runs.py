"""Requests run by an engine to their end, everything counted again after each step."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

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
    patches: Tensor | None = None,
    views: Sequence[View] = (),
    **more: Any,
) -> Request:
    config = runner.config
    pads = (config.image_token_id, config.video_token_id)
    ids = torch.as_tensor(ids)
    return Request(
        f"request {next(_numbers)}", ids, params, stop_ids, patches, tuple(views), placeholder_ids=pads, **more
    )


def drive(
    engine: Engine, on_output: Callable[[Output], None] | None = None, *, may_fail: bool = False
) -> dict[Request, list[list[int]]]:
    """Step until nothing is left; returns the tokens that were told, for each request and each of its choices."""
    told: dict[Request, list[list[int]]] = {}
    while engine.has_work:
        for output in engine.step():
            assert may_fail or output.error is None, output.error
            choices = told.setdefault(output.request, [])
            choices += [[] for _ in range(output.index + 1 - len(choices))]
            choices[output.index] += output.tokens
            if on_output is not None:
                on_output(output)
        engine.check_integrity()
    return told


def run(runner: Runner, requests: Sequence[Request], **config: Any) -> list[list[int]]:
    """The first answer of each, all of them running together on a fresh engine."""
    engine = Engine(runner, EngineConfig(**config))
    for request in requests:
        engine.add(request)
    told = drive(engine)
    return [told.get(request, [[]])[0] for request in requests]


def limit_cache(engine: Engine, tokens: int) -> None:
    """Leave room for so many tokens of all that run together, whole blocks of them."""
    engine.pool.cache.max_tokens = blocks_for(tokens) * BLOCK if engine.sizes.layout == "paged" else tokens
