"""Many requests → tokens: `Engine.step` is schedule → run → update, and the place to start reading.

The engine knows ids, patches and scores, never strings. One thread drives it: `add`, `abort` and `finish` between
steps, `step` as long as `has_work`. `async_engine` puts it into a thread of its own.

An interrupt (Ctrl-C) may break any of these off anywhere. Nobody knows then what slots and caches hold: whatever was
running fails, at once or with the next call, and what only waits stays.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Set

from pocketvlm.engine.caches.encoder_cache import EncoderCache
from pocketvlm.engine.caches.pool import CachePool, make_cache
from pocketvlm.engine.caches.prefix_cache import PrefixCache
from pocketvlm.engine.config import EngineConfig, Sizes
from pocketvlm.engine.executor import Executor, reason
from pocketvlm.engine.metrics import Metrics
from pocketvlm.engine.request import Output, Request, Sequence
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

    Attributes:
        outputs: what is new and was not taken yet.
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
        self.outputs: deque[Output] = deque()
        # Whether each had ended when what is under way began: those of requests that it touches. Most only wait.
        self._before: dict[Sequence, bool] = {}
        self.scheduler.on_admission = self._remember
        self._is_broken = False  # something is under way, or was broken off

    @property
    def pool(self) -> CachePool:
        return self.scheduler.pool

    @property
    def has_work(self) -> bool:
        return bool(self.requests or self.outputs or self._is_broken)

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
        try:
            self.scheduler.add_request(request)
            self.requests[request.request_id] = request
        except BaseException:
            self.requests.pop(request.request_id, None)
            self.scheduler.forget(request.sequences[0])
            raise
        self.metrics.received(request)

    def abort(self, request: Request) -> None:
        """Give a request up, whatever it is doing. No more outputs come of it."""
        if self.requests.get(request.request_id) is request:
            with self.runner.working():
                self._begin(request)
                self.updater.end_all(request, "abort")
                self._end()

    def finish(self, request: Request, index: int) -> None:
        """End one answer whose reader saw a stop string."""
        with self.runner.working():
            self._begin(request)
            for sequence in request.sequences:
                if sequence.index == index and sequence.finish_reason is None:
                    self.updater.end(sequence, "stop")
            self._end()

    def step(self) -> list[Output]:
        """Schedule → run → update; returns what is new. A request that fails has an output too, and harms no other."""
        self.run_step()
        taken = list(self.outputs)
        self.outputs.clear()
        return taken

    def run_step(self) -> None:
        """Do the same, and leave what is new in `outputs`, of which an interrupt takes nothing."""
        with self.runner.working():
            self._run_step()
        self._trim()
        self.set_gauges()

    def _run_step(self) -> None:
        self._begin()
        try:
            self._expire()
            plan = self.scheduler.schedule()
            scores = self.executor.run(plan)
            self.updater.update(scores, self.outputs)
        except Exception as error:  # ours, or out of memory: all that ran is lost, what waits is not
            logger.exception("a step failed")
            self._fail_running(error)
        except BaseException:
            self._fail_running(None)
            raise
        self._end()

    def _begin(self, touched: Request | None = None) -> None:
        """Note that something is under way, after making good what was broken off before."""
        if self._is_broken:
            self._fail_running(None)
        self._before = {}
        for request in dict.fromkeys(sequence.request for sequence in self.pool.sequences):
            self._remember(request)
        if touched is not None:
            self._remember(touched)
        self._is_broken = True

    def _end(self) -> None:
        """Note that nothing is under way any more; nothing of the requests that were touched is kept."""
        self._is_broken = False
        self._before = {}

    def _remember(self, request: Request) -> None:
        """Keep what a request is like before it is touched."""
        for sequence in request.sequences:
            self._before.setdefault(sequence, sequence.finish_reason is not None)

    def _trim(self) -> None:
        """Give free memory back to the system now and then."""
        if self.updater.closed >= REQUESTS_BETWEEN_TRIMS:
            self.updater.closed = 0
            release_free_memory()

    def set_gauges(self) -> None:
        """Say what slots and queue hold now."""
        self.metrics.stepped(
            running=len({sequence.request for sequence in self.pool.sequences}),
            waiting=len(self.scheduler.waiting),
            cache_usage=self.pool.usage,
            prefix_bytes=self.prefixes.used_bytes,
        )

    def _expire(self) -> None:
        """End the requests whose time is over."""
        now = time.monotonic()
        for request in list(self.requests.values()):
            if request.deadline is not None and now >= request.deadline:
                self._remember(request)
                self.outputs += self.updater.end_all(request, "abort", "the deadline has passed")

    def _fail_running(self, error: Exception | None) -> None:
        """End everything but what only waits, and empty the caches: nobody knows what is in them.

        It takes nothing for granted but the queue's entries, and may be broken off itself and begun again.
        """
        why = f"the engine failed: {reason(error)}" if error is not None else "interrupted"
        waiting = {*self.scheduler.in_order()}
        own: dict[Request, list[Sequence]] = {sequence.request: [] for sequence in self._before}
        for sequence in dict.fromkeys([*self._before, *(s for request in own for s in request.sequences)]):
            own[sequence.request].append(sequence)
        reported = {(output.request, output.index) for output in self.outputs if output.finish_reason is not None}
        lost = [request for request in own if not self._only_waits(request, waiting, reported)]
        if error is not None and not lost and waiting:  # it was not even admitted, and would fail for ever
            lost = [next(self.scheduler.in_order()).request]
            own.setdefault(lost[0], list(lost[0].sequences))
        self.scheduler.reset([s for request in lost for s in own[request]])
        for request in lost:
            for sequence in own[request]:
                index = 0 if request.width > 1 else sequence.index
                if not self._before.get(sequence) and (request, index) not in reported:  # it may have ended, unheard
                    reported.add((request, index))
                    self.outputs.append(Output(request, index, finish_reason="error", error=why))
            self.updater.end_all(request, "error", why)
        self._end()

    def _only_waits(self, request: Request, waiting: Set[Sequence], reported: Set[tuple[Request, int]]) -> bool:
        """Whether all that is left of a request waits, as it was when the step began or after it lost its slot, and of
        all that has ended the ends are known."""
        left = [s for s in request.sequences if s.finish_reason is None]
        ended = [s for s in request.sequences if s.finish_reason is not None]
        return (
            bool(left)
            and all(s in self._before and s in waiting and s.slot is None for s in left)
            and all(self._before.get(s) or (request, s.index) in reported for s in ended)
        )

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
