"""Replicas of the server on a cluster of Ray of their own, and clients that ask them all the time."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai

from helpers.app import CHAT
from helpers.serving import NO_DECODERS, Serving, start

KEY = "secret"
# Three replicas find room on one processor: a new one starts before an old one ends.
OPTIONS = ("--replica-cpus", "0.25", "--api-key", KEY, "--drain-seconds", "60", *NO_DECODERS)
REPLICA = "x-pocketvlm-replica"
RUNNING = "pocketvlm:num_requests_running"


@contextmanager
def own_ray() -> Iterator[dict[str, str]]:
    """An environment with Ray's token and files in a folder of their own, whose name is short: sockets lie in it."""
    folder = tempfile.mkdtemp(prefix="pv-", dir="/tmp")
    patience = dict.fromkeys(
        ("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S"), "60"
    )  # of a machine that is busy
    own = {"HOME": folder, "RAY_TMPDIR": folder, "RAY_AUTH_MODE": "token", "RAY_worker_niceness": "0"}
    try:
        yield {**os.environ, **patience, **own}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Fleet:
    """A server with replicas.

    Attributes:
        address: of its cluster.
    """

    serving: Serving
    address: str
    environment: dict[str, str]

    def chat(self, text: str, **more: Any) -> tuple[int, str, Any]:
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": 4, **more}
        return self.serving.ask(CHAT, body)

    def client(self) -> Any:
        return openai.OpenAI(base_url=f"{self.serving.url}/v1", api_key=KEY, max_retries=0, timeout=300)

    def metric(self, name: str) -> dict[str, float]:
        """Values by replicas."""
        status, text, _ = self.serving.ask("/metrics")
        assert status == 200, text
        lines = [line for line in text.splitlines() if line.startswith(f"{name}{{")]
        return {line.split('replica="')[1].split('"')[0]: float(line.split()[-1]) for line in lines}

    def replicas(self) -> list[int]:
        """Their processes."""
        replica = "ray::ServeReplica:pocketvlm:Replica"  # and what it is at, behind that
        return [pid for pid, name in descendants(self.serving.process.pid) if name.startswith(replica)]


def descendants(root: int) -> list[tuple[int, str]]:
    """Processes that a process has started, and theirs, with what they call themselves."""
    parents = dict[int, int]()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(") ")[2].split()[1])
            except OSError:  # it has ended
                continue
    found, waiting = [], [root]
    while waiting:
        parent = waiting.pop()
        waiting += (children := [pid for pid, above in parents.items() if above == parent])
        for pid in children:
            try:
                found.append((pid, Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()))
            except OSError:
                continue
    return found


@contextmanager
def replicas_of(environment: dict[str, str], *options: str) -> Iterator[Fleet]:
    """`serve --ray` with a cluster of its own, of which nothing is left behind the block."""
    started = start("--ray", *OPTIONS, *options, environment=environment)
    started.key = KEY
    try:
        yield Fleet(started, started.said["ray"], environment)
        begun = descendants(started.process.pid)
        assert any(name.startswith("ray::") for _, name in begun)
    finally:
        started.process.send_signal(signal.SIGTERM)
        status = started.end()
    assert status == 0
    assert eventually(lambda: [one for one in begun if Path(f"/proc/{one[0]}").exists()] == []), "processes are left"


def eventually(holds: Callable[[], bool], seconds: float = 120.0) -> bool:
    """Whether something comes true; the limit is there to end, not to measure."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


@dataclass
class Load:
    """Clients that each ask about their own conversation, in turns whole and streamed.

    Attributes:
        seen: how requests ended.
        faults: what was wrong with those that ended badly.
    """

    seen: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def ask(self, url: str, number: int, turn: int, tokens: int) -> None:
        stream = (number + turn) % 2 == 0
        messages = [{"role": "user", "content": f"conversation {number}"}]
        body = {"messages": messages, "max_tokens": tokens, "ignore_eos": True, "stream": stream}
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{url}{CHAT}", json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=300) as response:
                text = response.read().decode()
            if not stream:
                how = "whole" if json.loads(text)["choices"][0]["finish_reason"] == "length" else "half"
            elif '"code": "unavailable"' in text and text.endswith("data: [DONE]\n\n"):
                how = "lost"
            else:
                how = "stream" if '"length"' in text and text.endswith("data: [DONE]\n\n") else "cut"
        except urllib.error.HTTPError as error:
            with error:
                how, text = f"status {error.code}", error.read().decode()
        except OSError as error:
            how, text = "broken", str(error)
        self.seen[how] += 1
        if how not in ("whole", "stream"):
            self.faults.append(f"{how}: {text[-300:]}")


@contextmanager
def load(url: str, clients: int, tokens: int) -> Iterator[Load]:
    """Clients that ask within the block, and end with the request that they have then."""
    found, is_over = Load(), threading.Event()

    def ask(number: int) -> None:
        turn = 0
        while not is_over.is_set():
            found.ask(url, number, turn, tokens)
            turn += 1

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield found
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
