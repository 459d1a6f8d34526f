"""Traces by OpenTelemetry: a span for each request, with its stages as spans within it; nothing of its content.

Off unless `otlp_endpoint` names where they are to be sent. Names of attributes are those of OpenTelemetry's semantic
conventions for HTTP and for generative models.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pocketvlm.errors import ConfigError, MissingExtraError
from pocketvlm.server.exchange import Exchange

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

# As they follow one another; prefill and decode are the steps of the engine that a request took part in.
STAGES = ("preprocess", "queue", "encode", "prefill", "decode")
_MAX_PARENT = 200  # characters of a traceparent header, which has 55


class Tracing:
    """Spans of requests, sent in the background.

    Args:
        provider: of the SDK, with its exporter.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("pocketvlm.server")

    def ended(self, exchange: Exchange) -> None:
        """Make the spans of a request that has ended."""
        from opentelemetry.trace import SpanKind, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        from opentelemetry.trace.status import Status, StatusCode

        now, nanoseconds = time.monotonic(), time.time_ns()

        def at(moment: float) -> int:
            return nanoseconds - round((now - moment) * 1e9)

        carrier = {"traceparent": exchange.traceparent[:_MAX_PARENT]} if exchange.traceparent else {}
        span = self._tracer.start_span(
            f"{exchange.method} {exchange.path}",
            context=TraceContextTextMapPropagator().extract(carrier),
            kind=SpanKind.SERVER,
            start_time=at(exchange.arrived),
            attributes=attributes_of(exchange),
        )
        if exchange.status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        inside = set_span_in_context(span)
        for job in exchange.jobs:
            moment = exchange.arrived
            timing = {"preprocess": job.preprocess, **job.request.timing}
            for stage in STAGES:
                seconds = timing.get(stage, 0.0)
                if seconds > 0:
                    child = self._tracer.start_span(stage, context=inside, start_time=at(moment))
                    moment = min(moment + seconds, now)
                    child.end(at(moment))
        span.end(nanoseconds)

    def close(self) -> None:
        """Send what has not been sent yet."""
        self._provider.shutdown()


def attributes_of(exchange: Exchange) -> Mapping[str, Any]:
    """What a span says of a request."""
    found: dict[str, Any] = {
        "http.request.method": exchange.method,
        "http.route": exchange.path,
        "http.response.status_code": exchange.logged_status,
        "pocketvlm.request_id": exchange.request_id,
    }
    if exchange.jobs:
        found |= {
            "gen_ai.usage.input_tokens": exchange.prompt_tokens,
            "gen_ai.usage.output_tokens": exchange.answer_tokens,
            "gen_ai.response.finish_reasons": exchange.finish_reasons,
            "pocketvlm.images": exchange.images,
        }
    return found


def start_tracing(endpoint: str) -> Tracing | None:
    """Traces to `endpoint`, a URL such as http://127.0.0.1:4318/v1/traces; None for an empty one.

    Raises:
        ConfigError: it is no URL.
        MissingExtraError: the packages of OpenTelemetry are missing.
    """
    if not endpoint:
        return None
    if not endpoint.startswith(("http://", "https://")):
        raise ConfigError(f"otlp_endpoint is {endpoint!r:.80}, expected a URL", hint="http://127.0.0.1:4318/v1/traces")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError:
        raise MissingExtraError("opentelemetry-sdk", "otel") from None
    provider = TracerProvider(resource=Resource.create({"service.name": "pocketvlm"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return Tracing(provider)
