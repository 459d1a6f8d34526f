"""Counters and histograms of one engine, by vLLM's names; no server needed to read them.

`prometheus_client` keeps them, in a registry of the engine's own: `generate_latest(engine.metrics.registry)` is the
text that a scraper takes, `value` reads one number.
"""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from pocketvlm.engine.request import FinishReason, Request, Sequence

PREFIX = "pocketvlm"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 120.0)


class Metrics:
    """Counts what has happened in an engine so far. Times are seconds."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.running = self._gauge("num_requests_running", "Requests that have a slot of the cache")
        self.waiting = self._gauge("num_requests_waiting", "Sequences in the queue")
        self.cache_usage = self._gauge("kv_cache_usage_perc", "Share of the cache's tokens that slots in use hold")
        self.prefix_bytes = self._gauge("prefix_cache_bytes", "Memory of the prefixes of prompts that are kept")
        self.prefix_queries = self._counter("prefix_cache_queries", "Prompt tokens that were looked up")
        self.prefix_hits = self._counter("prefix_cache_hits", "Prompt tokens that were found")
        self.encoder_queries = self._counter("encoder_cache_queries", "Views that were looked up")
        self.encoder_hits = self._counter("encoder_cache_hits", "Views that were found")
        self.encoded_views = self._counter("encoded_views", "Views that went through the tower")
        self.preemptions = self._counter("num_preemptions", "Sequences that gave up their slot")
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts")
        self.prompt_tokens_computed = self._counter("prompt_tokens_computed", "Tokens that prefill has computed")
        self.generation_tokens = self._counter("generation_tokens", "Tokens of answers")
        self.requests = self._counter("requests", "Requests taken")
        self.rejections = self._counter("admission_rejections", "Requests refused", "reason")
        self.success = self._counter("request_success", "Answers that ended", "finished_reason")
        self.first_token_seconds = self._histogram("time_to_first_token_seconds", "From arrival to the first token")
        self.inter_token_seconds = self._histogram("inter_token_latency_seconds", "Between tokens of an answer")
        self.e2e_seconds = self._histogram("e2e_request_latency_seconds", "From arrival to the end")
        self.queue_seconds = self._histogram("request_queue_time_seconds", "From arrival to a slot")
        self.prefill_seconds = self._histogram("request_prefill_time_seconds", "Steps that read the prompt")
        self.decode_seconds = self._histogram("request_decode_time_seconds", "Steps that made the answer")

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"{PREFIX}:{name}", text, registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"{PREFIX}:{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(f"{PREFIX}:{name}", text, buckets=SECONDS, registry=self.registry)

    def value(self, name: str, **labels: str) -> float:
        """Read one number, as `value("prefix_cache_hits_total")`; 0 where nothing has happened yet.

        Raises:
            KeyError: there is no metric of this name.
        """
        found = self.registry.get_sample_value(f"{PREFIX}:{name}", labels)
        if found is None:
            families = {family.name.removeprefix(f"{PREFIX}:") for family in self.registry.collect()}
            endings = ("", "_total", "_sum", "_count", "_bucket")
            if families.isdisjoint(name.removesuffix(ending) for ending in endings):
                raise KeyError(name)
        return 0.0 if found is None else found

    def received(self, request: Request) -> None:
        self.requests.inc()
        self.prompt_tokens.inc(request.prompt_tokens)

    def started(self, request: Request, views: int, views_found: int) -> None:
        """Count a request that has its first slot."""
        self.queue_seconds.observe(request.timing["queue"])
        self.prefix_queries.inc(request.prompt_tokens)
        self.prefix_hits.inc(request.cached_tokens)
        self.encoder_queries.inc(views)
        self.encoder_hits.inc(views_found)

    def token(self, sequence: Sequence, now: float) -> None:
        """Count a new token of an answer."""
        request = sequence.request
        self.generation_tokens.inc()
        if sequence.last_token_at is not None:
            self.inter_token_seconds.observe(now - sequence.last_token_at)
        elif request.first_token_at is None:
            request.first_token_at = now
            self.first_token_seconds.observe(now - request.arrival)
        sequence.last_token_at = now

    def finished(self, reason: FinishReason) -> None:
        """Count an answer that has ended."""
        self.success.labels(reason).inc()

    def closed(self, request: Request) -> None:
        """Count a request all of whose answers have ended."""
        self.e2e_seconds.observe(time.monotonic() - request.arrival)
        self.prefill_seconds.observe(request.timing["prefill"])
        self.decode_seconds.observe(request.timing["decode"])

    def stepped(self, *, running: int, waiting: int, cache_usage: float, prefix_bytes: int) -> None:
        """Set the gauges after a step."""
        self.running.set(running)
        self.waiting.set(waiting)
        self.cache_usage.set(cache_usage)
        self.prefix_bytes.set(prefix_bytes)
