"""Who is asked: a server by HTTP, or the engine in this process, which shows what HTTP costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Protocol

import aiohttp

from pocketvlm.api.async_vlm import AsyncVLM
from pocketvlm.api.vlm import VLM
from pocketvlm.benchmark.serving.figures import Record
from pocketvlm.benchmark.serving.workload import Body
from pocketvlm.errors import EngineError, PocketVLMError
from pocketvlm.protocol.chat_request import parse_chat_completion
from pocketvlm.server.settings import PREFIX

PATIENCE = 600.0  # seconds that one answer may take
STOPPING = 60.0  # seconds for a server that failed to end
OTHERS = tuple(f"{PREFIX}{name}" for name in ("API_KEYS", "API_KEY_FILE", "HOST"))
_SAID = 300  # characters of what a server says about a failure


class Target(Protocol):
    """Something that answers."""

    async def ask(self, body: Body) -> Record:
        """Answer one request; what goes wrong is a failure of its record."""
        ...


class HTTPTarget:
    """A server with OpenAI's API.

    Args:
        url: up to and with the version, as in http://127.0.0.1:8000/v1.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session, self._url = session, f"{url.rstrip('/')}/chat/completions"

    async def ask(self, body: Body) -> Record:
        data = json.dumps(body).encode()  # before the clock starts
        try:
            return await self._ask(data, images_of(body))
        except aiohttp.ClientConnectionError:
            # Some servers close a kept connection at the moment at which the next request comes. Clients ask again.
            return await self._ask(data, images_of(body), is_last=True)

    async def _ask(self, data: bytes, images: int, *, is_last: bool = False) -> Record:
        """`ClientConnectionError` where a connection fails before any response, unless this is the last attempt."""
        record, has_begun = Record(time.perf_counter(), images=images), False
        try:
            async with self._session.post(self._url, data=data) as response:
                has_begun = True
                if response.status != 200:
                    record.failure = f"HTTP {response.status}"
                    await response.read()
                else:
                    await self._read(response, record)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            if isinstance(error, aiohttp.ClientConnectionError) and not (has_begun or is_last):
                raise
            record.failure = type(error).__name__
        record.ended = time.perf_counter()
        return record

    async def _read(self, response: aiohttp.ClientResponse, record: Record) -> None:
        complete = False
        async for line in response.content:
            if not line.startswith(b"data:"):
                continue
            now, data = time.perf_counter(), line[5:].strip()
            if data == b"[DONE]":
                complete = True
                continue
            chunk = json.loads(data)
            if "error" in chunk:
                record.failure = "broken off by the server"
                return
            if usage := chunk.get("usage"):
                record.prompt_tokens, record.output_tokens = usage["prompt_tokens"], usage["completion_tokens"]
            delta = chunk["choices"][0]["delta"] if chunk["choices"] else {}
            if delta.get("content") or delta.get("reasoning_content") or delta.get("tool_calls"):
                record.pieces.append(now)
        if not complete:
            record.failure = "a stream without an end"


class EngineTarget:
    """The engine itself, behind the same threads that prepare pictures for a server."""

    def __init__(self, vlm: AsyncVLM) -> None:
        self._vlm = vlm

    async def ask(self, body: Body) -> Record:
        record = Record(time.perf_counter(), images=images_of(body))
        try:
            asked = parse_chat_completion(body)
            job = await self._vlm.prepare(asked.messages, **asked.options)
            async for delta in self._vlm.run(job):
                if delta.text or delta.reasoning or delta.tool_calls:
                    record.pieces.append(time.perf_counter())
            usage = job.answer().usage
            record.prompt_tokens, record.output_tokens = usage.prompt_tokens, usage.completion_tokens
        except (PocketVLMError, EngineError) as error:
            record.failure = type(error).__name__
        record.ended = time.perf_counter()
        return record


def images_of(body: Body) -> int:
    return sum(part.get("type") == "image_url" for message in body["messages"] for part in message["content"])


@asynccontextmanager
async def by_http(url: str, api_key: str | None) -> AsyncIterator[Target]:
    """Ask a server, on as many connections as there are requests under way."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {api_key}"} if api_key else {})
    timeout = aiohttp.ClientTimeout(total=PATIENCE)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers, trust_env=False) as session:
        yield HTTPTarget(session, url)


@asynccontextmanager
async def in_process(vlm: VLM) -> AsyncIterator[Target]:
    """Ask the engine of this process."""
    async with AsyncVLM(vlm) as model:
        yield EngineTarget(model)


@contextmanager
def own_server(options: Sequence[str]) -> Iterator[str]:
    """Start `pocketvlm serve` on a free port of this machine; gives its URL up to /v1, and ends it afterwards.

    Raises:
        EngineError: it did not start; the message is its own.
    """
    command = [sys.executable, "-m", "pocketvlm", "serve", "--port", "0", "--json", *options]
    # Keys and address of this machine's own server are not for one that is started to be measured.
    environment = {name: value for name, value in os.environ.items() if name not in OTHERS}
    # A pipe that nobody empties would stop the server once its log has filled it.
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                process.wait(STOPPING)
                log.seek(0)
                raise EngineError(f"the server did not start: {log.read().strip()[-_SAID:]}")
            yield f"{json.loads(line)['url']}/v1"
        finally:
            process.terminate()


async def name_of_model(url: str, api_key: str | None) -> str:
    """What a server calls its model.

    Raises:
        EngineError: it cannot be asked.
    """
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        timeout = aiohttp.ClientTimeout(total=30)
        async with (
            aiohttp.ClientSession(timeout=timeout, headers=headers) as session,
            session.get(f"{url.rstrip('/')}/models") as response,
        ):
            if response.status == 401:
                raise EngineError(f"{url} wants a key: give --api-key")
            found: Any = await response.json()
            return str(found["data"][0]["id"])
    except (TimeoutError, aiohttp.ClientConnectionError):
        raise EngineError(f"{url} does not answer: is a server running there?") from None
    except (aiohttp.ClientError, ValueError, LookupError, TypeError):
        raise EngineError(f"{url} does not name its models: give the URL up to and with /v1") from None
