"""GET /metrics: the metrics of HTTP and of the engine, in Prometheus' text format."""

from __future__ import annotations

import time

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client import generate_latest as text_of
from starlette.requests import Request
from starlette.responses import Response

from pocketvlm.engine.metrics import PREFIX, SECONDS
from pocketvlm.server.exchange import Exchange, Load
from pocketvlm.server.service import Service


class HTTPMetrics:
    """Metrics of HTTP requests, and of the memory, files and CPU time of this process (on Linux).

    Args:
        load: what the requests in flight hold.
    """

    def __init__(self, load: Load) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            f"{PREFIX}:http_requests",
            "HTTP requests that have ended; status 499 if the client left before its response",
            ("method", "handler", "status"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            f"{PREFIX}:http_request_duration_seconds",
            "Time from the headers of a request to the last byte of its response",
            ("method", "handler"),
            buckets=SECONDS,
            registry=self.registry,
        )
        in_flight = Gauge(
            f"{PREFIX}:http_requests_in_flight",
            "HTTP requests whose body has arrived and whose response has not been sent",
            registry=self.registry,
        )
        in_flight.set_function(lambda: load.in_flight)
        held = Gauge(
            f"{PREFIX}:http_held_bytes",
            "Bytes of request bodies, downloads and preprocessed pictures in flight",
            registry=self.registry,
        )
        held.set_function(lambda: load.held_bytes)

    def ended(self, exchange: Exchange) -> None:
        """Count one. `handler` is the path in the table of routes, so that no client can create new time series."""
        self._requests.labels(exchange.method, exchange.path, str(exchange.logged_status)).inc()
        self._seconds.labels(exchange.method, exchange.path).observe(time.monotonic() - exchange.arrived)

    async def respond(self, service: Service, _request: Request) -> Response:
        """GET /metrics."""
        text = text_of(service.vlm.engine.engine.metrics.registry) + text_of(self.registry)
        return Response(text, media_type=CONTENT_TYPE_LATEST)
