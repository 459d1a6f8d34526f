"""Many requests → tokens: `Engine.step` is schedule → run → update, and the place to start reading.

The engine knows ids, patches and tensors, never strings. One thread drives it: `add`, `abort` and `finish` between
steps, `step` as long as `has_work`. `async_engine` puts it into a thread of its own.
"""

from __future__ import annotations

import logging
import time

import torch

from pocketvlm.engine.caches.encoder_cache import EncoderCache
from pocketvlm.engine.caches.pool import CachePool, make_cache
from pocketvlm.engine.caches.prefix_cache import PrefixCache
from pocketvlm.engine.config import EngineConfig, Sizes
from pocketvlm.engine.executor import Executor, reason
from pocketvlm.engine.metrics import Metrics
from pocketvlm.engine.request import Output, Request
from pocketvlm.engine.runners.base import Runner
from pocketvlm.engine.scheduler import Scheduler, SchedulerConfig
from pocketvlm.engine.updater import Updater
from pocketvlm.errors import ConfigError, QueueFullError
from pocketvlm.machine import release_free_memory

logger = logging.getLogger(__name__)

REQUESTS_BETWEEN_TRIMS = 256  # giving free memory back takes some milliseconds


class Engine:
    """Runs requests on `runner`.

    Args:
        config: budgets; what is None there is chosen for the runner and the machine.
    """

    def __init__(self, runner: Runner, config: EngineConfig | None = None) -> None:
        self.runner = runner
        self.config = config or EngineConfig()
        self.sizes = sizes = Sizes.of(runner, self.config)
        if self.config.enforce_eager:
            runner.enforce_eager()
        self.metrics = Metrics()
        self.features = EncoderCache(sizes.encoder_bytes)
        budgets = SchedulerConfig(max_num_batched_tokens=sizes.batched_tokens, max_patches=sizes.patches)
        cache = make_cache(runner, sizes)
        self.prefixes = PrefixCache(cache, sizes.prefix_bytes)
        self.scheduler = Scheduler(CachePool(cache), self.prefixes, self.features, self.metrics, budgets)
        self.executor = Executor(runner, cache, self.prefixes, self.features, self.metrics)
        self.updater = Updater(self.scheduler, self.metrics, runner.config.text.vocab_size)
        self.requests = self.updater.requests
        self._lost: list[Output] = []  # what an interrupted step said; goes out with the next

    @property
    def pool(self) -> CachePool:
        return self.scheduler.pool

    @property
    def has_work(self) -> bool:
        return bool(self.requests or self._lost)

    @property
    def has_room(self) -> bool:
        """Whether the queue takes one more request."""
        return len(self.scheduler.waiting) < self.config.max_waiting

    def check(self, request: Request) -> None:
        """Raise the user's mistakes: a prompt that cannot fit, more beams than slots, a token that does not exist."""
        params = request.params
        if params.num_beams > self.sizes.max_num_seqs:
            raise ConfigError(
                f"num_beams={params.num_beams}, the engine runs {self.sizes.max_num_seqs} sequences at a time",
                hint="Use fewer, or a larger max_num_seqs.",
            )
        params.check_vocabulary(self.runner.config.text.vocab_size)
        self.pool.check_fits(request.prompt_tokens, request.width)

    def add(self, request: Request) -> None:
        """Take a request; its outputs come with `step`. `QueueFullError` when too many wait."""
        self.check(request)
        if request.request_id in self.requests:
            raise ConfigError(f"a request {request.request_id!r} is already here")
        if not self.has_room:
            self.metrics.rejections.labels("queue_full").inc()
            raise QueueFullError(f"{self.config.max_waiting} requests are waiting", hint="Try again later.")
        self.scheduler.add_request(request)
        self.requests[request.request_id] = request
        self.metrics.received(request)

    @torch.inference_mode()
    def abort(self, request: Request) -> None:
        """Give a request up, whatever it is doing. No more outputs come of it."""
        if self.requests.get(request.request_id) is request:
            for sequence in list(request.sequences):
                self.updater.end(sequence, "abort")

    @torch.inference_mode()
    def finish(self, request: Request, index: int) -> None:
        """End one answer whose reader saw a stop string."""
        for sequence in request.sequences:
            if sequence.index == index and sequence.finish_reason is None:
                self.updater.end(sequence, "stop")

    @torch.inference_mode()
    def step(self) -> list[Output]:
        """Schedule → run → update; returns what is new. A request that fails has an output too, and harms no other."""
        outputs, self._lost = self._lost + self._expire(), []
        try:
            with self.runner.working():
                plan = self.scheduler.schedule()
                scores = self.executor.run(plan)
                self.updater.update(scores, outputs)
        except Exception as error:  # ours, or out of memory: all that ran is lost, what waits is not
            logger.exception("a step failed")
            outputs += self._fail_running(error)
        except BaseException:  # an interrupt in the middle: slots and caches may disagree
            self._lost += outputs + self._fail_running(None)
            raise
        self._trim()
        self._set_gauges()
        return outputs

    def _trim(self) -> None:
        """Give free memory back to the system now and then."""
        if self.updater.closed >= REQUESTS_BETWEEN_TRIMS:
            self.updater.closed = 0
            release_free_memory()

    def _set_gauges(self) -> None:
        self.metrics.stepped(
            running=len({sequence.request for sequence in self.pool.sequences}),
            waiting=len(self.scheduler.waiting),
            cache_usage=self.pool.usage,
            prefix_bytes=self.prefixes.used_bytes,
        )

    def _expire(self) -> list[Output]:
        """End the requests whose time is over."""
        now, outputs = time.monotonic(), []
        for request in list(self.requests.values()):
            if request.deadline is not None and now >= request.deadline:
                for sequence in list(request.sequences):
                    if sequence.finish_reason is None:
                        self.updater.end(sequence, "abort")
                        error = "the deadline has passed"
                        outputs.append(Output(request, sequence.index, finish_reason="abort", error=error))
        return outputs

    def _fail_running(self, error: Exception | None) -> list[Output]:
        """End everything that has a slot and empty the caches: nobody knows what is in them."""
        why = f"the engine failed: {reason(error)}" if error is not None else "interrupted"
        lost = list(dict.fromkeys(sequence.request for sequence in self.pool.sequences))
        if not lost and self.scheduler.waiting:  # it was not even admitted, and would fail for ever
            lost = [next(self.scheduler.in_order()).request]
        outputs = [output for request in lost for output in self.updater.fail(request, why)]
        assert not self.pool.sequences
        self.pool.cache.clear()
        self.prefixes.forget()
        self.features.clear()
        return outputs

    def describe(self) -> str:
        """Describe the runtime and the sizes, for people."""
        return f"{self.runner.describe()}; {self.sizes.describe()}"

    def check_integrity(self) -> None:
        """Count everything that is counted again; tests call it after each step."""
        self.scheduler.check_integrity()
        for sequence in self.pool.sequences:
            assert self.requests.get(sequence.request.request_id) is sequence.request, "a slot of an unknown request"
        if not self.requests:
            assert not self.pool.sequences, "slots without requests"
            assert not self.scheduler.waiting, "a queue without requests"
