"""A process of its own that tries grammars first: text of a grammar → what is wrong with it, if anything.

The compiler bounds most of its work, not all: some schemas keep it busy for minutes, some overflow its stack, which
ends the process it runs in. No thread could be given up then. So a grammar is tried here, on single bytes in place of
the whole vocabulary, with less stack, memory and time than the serving process has, which compiles only what came
through. The first tokens of a random answer are tried as well. The time is that of the processor, so that a busy
machine takes whatever a quiet one takes.

Run as a script (it imports nothing of this package): JSON lines in, JSON lines out, until its input ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from typing import IO, Any

TRIAL_SECONDS = 0.5  # of processor time; compiling again takes as long again
TO_TRY = 10.0  # seconds for a trial, whatever the machine is doing
STEP_SECONDS = 0.05  # of processor time for a mask, which all other answers wait for
TO_START = 30.0  # seconds for the process itself, whatever the machine is doing
STACK = 2 * 1024 * 1024  # bytes; threads of the serving process have 8 MiB
MEMORY = 1024 * 1024 * 1024  # bytes of address space
STEPS = 64  # bytes of a random answer that are tried too
# Beside llguidance's own, which allow a mask some 20 ms.
LIMITS: Mapping[str, Any] = {
    "verbose_errors": False,
    "precompute_large_lexemes": False,  # of the whole vocabulary, which a trial does not have
    "max_lexer_states": 100_000,
}


class NotStartedError(RuntimeError):
    """The process does not start, which says nothing of a grammar."""


class GrammarWorker:
    """One such process, started anew when a trial ended it; for one thread at a time, but for `close`.

    Args:
        vocab_size, bytes_by_id, control_tokens, stop_ids: the vocabulary; of its words the process gets single bytes.
    """

    def __init__(
        self, vocab_size: int, bytes_by_id: Mapping[int, int], control_tokens: Mapping[str, int], stop_ids: list[int]
    ) -> None:
        self._vocabulary = [vocab_size, dict(bytes_by_id), dict(control_tokens), stop_ids]
        self._closed, self._ready, self._timed_out, self._lock = False, False, False, threading.Lock()
        self._start()

    def try_out(self, grammar: str) -> str:
        """Return what is wrong with `grammar`, empty if nothing is; raise `RuntimeError` once closed, and
        `NotStartedError` where there is no process to ask.

        A process that died without running out of time is replaced and asked again: somebody else may have ended it.
        """
        fault = ""
        for _ in range(2):
            self._check_open()
            if self._process.poll() is not None:
                self._restart()
            if not self._ready and self._ask(self._vocabulary, TO_START) is None:
                fault = ""
            else:
                self._ready = True
                # Where no timer of processor time ends it (Windows), the clock does.
                answer = self._ask([grammar, TRIAL_SECONDS], TO_TRY if hasattr(signal, "setitimer") else TRIAL_SECONDS)
                if answer is not None:
                    return str(answer)
                fault = "it takes too much time or memory to compile"
            process = self._process
            self._restart()
            if self._timed_out or process.returncode == -getattr(signal, "SIGPROF", 0):
                break
        if not fault:
            raise NotStartedError("the process that tries grammars did not start")
        return fault

    def close(self) -> None:
        """End the process for good, whatever it is doing; safe from any thread, and again."""
        with self._lock:
            self._closed = True
            self._end()

    def _restart(self) -> None:
        with self._lock:
            self._end()
            self._check_open()
            self._start()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the process that tries grammars is closed")

    def _start(self) -> None:
        process = subprocess.Popen(
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,
        )
        self._end = weakref.finalize(self, _end, process, os.getpid())
        self._process, self._ready = process, False

    def _ask(self, question: Any, seconds: float) -> Any:
        """Return the answer; None where the process died, or took too long and was killed."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        self._timed_out = False

        def end() -> None:
            self._timed_out = True
            process.kill()

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()
        try:
            process.stdin.write(json.dumps(question).encode() + b"\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline() or b"null")
        except (OSError, ValueError):
            return None
        finally:
            timer.cancel()


def _end(process: subprocess.Popen[bytes], parent: int) -> None:
    if os.getpid() != parent:  # a fork that ends leaves the process to those that started it
        return
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # what was not read any more
                pipe.close()
    process.wait()


def make_tokenizer(words: list[bytes], control_ids: list[int], stop_ids: list[int]) -> Any:
    """Return an `LLTokenizer` of the bytes of every id; an id without bytes is never allowed."""
    import llguidance

    class Vocabulary:
        eos_token_id, bos_token_id = stop_ids[0], None
        tokens, special_token_ids = words, control_ids

        def __call__(self, *_: bytes) -> list[int]:
            return []  # text is only encoded to force tokens, which our grammars switch off

    wrapper = llguidance.TokenizerWrapper(Vocabulary())
    tokenizer = llguidance.LLTokenizer(wrapper, eos_token=stop_ids)
    wrapper.tokens = Vocabulary.tokens = []  # kept for as long as the tokenizer is, and not needed again
    return tokenizer


def _try_out(tokenizer: Any, tokens: list[int], grammar: str) -> str:
    import llguidance

    matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=llguidance.LLParserLimits(**LIMITS))
    rng = random.Random(0)
    for step in range(STEPS):
        if matcher.is_error():
            return str(matcher.get_error())
        began = time.thread_time()
        mask = matcher.compute_bitmask()
        if time.thread_time() - began > STEP_SECONDS:
            return "it takes too much time for each token"
        if matcher.is_error():
            return "nothing satisfies it" if step == 0 else str(matcher.get_error())
        matcher.consume_token(rng.choice([token for token in tokens if mask[token >> 3] >> (token & 7) & 1]))
        if matcher.is_stopped() and not matcher.is_error():
            break
    return ""


def _serve(lines: IO[str], out: IO[str]) -> None:
    vocab_size, bytes_by_id, control, stop_ids = json.loads(next(lines))
    words = {int(token): bytes([byte]) for token, byte in bytes_by_id.items()}
    words |= {token: name.encode() for name, token in control.items()}
    tokenizer = make_tokenizer([words.get(token, b"") for token in range(vocab_size)], list(control.values()), stop_ids)
    print("true", file=out, flush=True)
    for line in lines:
        grammar, seconds = json.loads(line)
        _end_after(seconds)
        fault = _try_out(tokenizer, sorted(words), grammar)
        _end_after(0)
        print(json.dumps(fault), file=out, flush=True)


def _end_after(seconds: float) -> None:
    """Let the system end this process after so much processor time, whatever it is doing then; 0 calls that off."""
    if hasattr(signal, "setitimer"):  # not on Windows
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _main() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):  # not on every system
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if hasattr(signal, "SIGPROF"):
        signal.signal(signal.SIGPROF, signal.SIG_DFL)  # whoever started us may ignore it
    threading.stack_size(STACK)
    thread = threading.Thread(target=_serve, args=(sys.stdin, sys.stdout))
    thread.start()
    thread.join()


if __name__ == "__main__":
    _main()
