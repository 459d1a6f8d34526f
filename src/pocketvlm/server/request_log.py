"""One line a request, as text or as JSON: what it was and what came of it, and nothing of its content unless asked."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

from pocketvlm.server.exchange import Exchange
from pocketvlm.server.log_writer import LogWriter
from pocketvlm.server.settings import ServerSettings

logger = logging.getLogger("pocketvlm.requests")
MAX_CONTENT = 2000  # characters of a question or an answer


def log_exchange(exchange: Exchange) -> None:
    """Write the line of a request that has ended."""
    if not logger.isEnabledFor(logging.INFO):
        return
    facts: dict[str, Any] = {
        "method": exchange.method,
        "path": exchange.path,
        "status": exchange.logged_status,
        "seconds": round(time.monotonic() - exchange.arrived, 4),
        "request_id": exchange.request_id,
    }
    if exchange.error:
        facts["error"] = exchange.error
    if exchange.key is not None:
        facts["key"] = exchange.key.name
    if exchange.jobs:
        facts |= {
            "images": exchange.images,
            "prompt_tokens": exchange.prompt_tokens,
            "answer_tokens": exchange.answer_tokens,
            "finish_reason": ",".join(exchange.finish_reasons),
        }
        if exchange.settings.log_content:
            texts = [choice.text for job in exchange.jobs for choice in job.choices]
            facts |= {"question": exchange.question[:MAX_CONTENT], "answers": [text[:MAX_CONTENT] for text in texts]}
    logger.info("request", extra={"facts": facts})


class TextFormat(logging.Formatter):
    """For people: the time, the level, and the facts by name."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        facts = getattr(record, "facts", None)
        if facts is not None:
            head = f"{facts['method']} {facts['path']} {facts['status']} {facts['seconds']:.3f}s"
            rest = {name: value for name, value in facts.items() if name not in _HEAD}
            record.message = " ".join([head, *(f"{name}={_shown(value)}" for name, value in rest.items())])
        return super().formatMessage(record)


class JSONFormat(logging.Formatter):
    """For programs: one object a line, whatever is logged."""

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {"time": f"{when}.{int(record.msecs):03d}Z", "level": record.levelname, "logger": record.name}
        facts = getattr(record, "facts", None)
        line |= facts if facts is not None else {"message": record.getMessage()}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def start_logging(settings: ServerSettings) -> None:
    """Send warnings of all, and a line a request, to stderr in the form that was chosen."""
    handler = LogWriter(sys.stderr)
    handler.setFormatter(JSONFormat() if settings.log_format == "json" else TextFormat())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logger.setLevel(logging.INFO)
    if settings.log_content:
        logger.warning("--log-content: the questions and answers of all users are written into this log")


_HEAD = ("method", "path", "status", "seconds")


def _shown(value: Any) -> str:
    # Quoted, so that no text of a user can look like another line or another fact.
    return json.dumps(value) if isinstance(value, str | list) and not _is_plain(value) else str(value)


def _is_plain(value: Any) -> bool:
    return isinstance(value, str) and value.replace(",", "").replace("-", "").replace("_", "").isalnum()
