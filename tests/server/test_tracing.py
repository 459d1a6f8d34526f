"""Spans of requests, as a collector gets them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from helpers.serving import NO_DECODERS, serving
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from pocketvlm.errors import ConfigError
from pocketvlm.server.tracing import STAGES, start_tracing

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECRET = "zeppelin"


@contextmanager
def collector() -> Iterator[tuple[str, list[Any]]]:
    """Takes traces: its address, and the spans so far."""
    spans: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            message = ExportTraceServiceRequest()
            body = self.rfile.read(int(self.headers["Content-Length"]))
            message.ParseFromString(body)
            assert SECRET.encode() not in body
            spans.extend(span for r in message.resource_spans for s in r.scope_spans for span in s.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1/traces", spans
        finally:
            server.shutdown()
            thread.join()


def test_a_request_is_a_span_of_its_callers_trace_with_its_stages_within_and_nothing_of_its_content() -> None:
    body = {"model": "nano", "messages": [{"role": "user", "content": SECRET}], "max_tokens": 4}
    with collector() as (endpoint, spans):
        with serving("--otlp-endpoint", endpoint, *NO_DECODERS) as server:
            headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
            assert server.ask("/v1/chat/completions", body, headers=headers)[0] == 200
            assert server.ask("/v1/chat/completions", b"{")[0] == 400
        whole, refused = (span for span in spans if span.name.startswith("POST"))
    assert (whole.trace_id.hex(), whole.parent_span_id.hex()) == (TRACE, PARENT)
    assert (refused.trace_id.hex() != TRACE, refused.parent_span_id) == (True, b"")
    facts = {one.key: one.value for one in whole.attributes}
    assert facts["http.response.status_code"].int_value == 200
    assert facts["gen_ai.usage.output_tokens"].int_value <= 4
    stages = [span for span in spans if span.parent_span_id == whole.span_id]
    assert {span.name for span in stages} <= set(STAGES)
    assert {"preprocess", "prefill"} <= {span.name for span in stages}
    for span in stages:
        assert whole.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= whole.end_time_unix_nano


@pytest.mark.parametrize("endpoint", ["127.0.0.1:4318", "ftp://127.0.0.1"])
def test_an_endpoint_that_is_no_url_is_refused(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="otlp_endpoint"):
        start_tracing(endpoint)


def test_without_an_endpoint_nothing_is_traced() -> None:
    assert start_tracing("") is None
