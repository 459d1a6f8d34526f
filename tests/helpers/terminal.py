"""The command as a process of its own, with descriptors of its own: files, pipes that nobody reads, terminals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

TIMEOUT = 300  # seconds after which a process is taken to hang
REACTION = 0.5  # seconds from what is seen to the keys
COMMAND = (sys.executable, "-m", "pocketvlm.cli")


class Done(NamedTuple):
    """What became of a process: its exit status, and what it wrote (empty where it wrote elsewhere)."""

    status: int
    out: bytes
    err: bytes


def run_process(*arguments: str, shell: str = "", stdin: bytes = b"", **environment: str) -> Done:
    """Run the command.

    Args:
        arguments: of the command.
        shell: redirections behind it, such as "2>&-".
        environment: what differs from that of this process; an empty value takes a variable away.
    """
    env = {name: value for name, value in {**os.environ, **environment}.items() if value}
    line = ["sh", "-c", f'exec "$@" {shell}', "sh", *COMMAND, *arguments]
    done = subprocess.run(line, input=stdin, capture_output=True, env=env, check=False, timeout=TIMEOUT)
    return Done(done.returncode, done.stdout, done.stderr)


def run_unread(*arguments: str) -> Done:
    """Run the command with stdout on a pipe whose reader has gone."""
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [*COMMAND, *arguments], stdout=write, stderr=subprocess.PIPE, check=False, timeout=TIMEOUT
        )
    finally:
        os.close(write)
    return Done(done.returncode, b"", done.stderr)


def run_on_terminal(*arguments: str, press: bytes, when: Callable[[int, bytes], bool]) -> Done:
    """Run the command on a terminal of its own, and press keys as a person does: a moment later.

    A signal between the system calls that print the prompt and wait for a line does not end the waiting: Python only
    notes it. On a busy machine, whoever reads the prompt runs just then.

    Args:
        press: the keys; b"\\x03" is Ctrl-C.
        when: asked again and again with the process id and what was shown so far.
    """
    import pty
    import select

    process, terminal = pty.fork()
    if process == 0:
        # As on a terminal: a suite that was started in the background passes on that Ctrl-C is ignored.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.execvp(COMMAND[0], [*COMMAND, *arguments])
    shown, is_pressed, deadline = b"", False, time.monotonic() + TIMEOUT
    while True:
        if time.monotonic() > deadline:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            raise AssertionError(f"{arguments} did not end in {TIMEOUT} s; it showed {shown[-500:]!r}")
        if select.select([terminal], [], [], 0.02)[0]:
            try:
                new = os.read(terminal, 4096)
            except OSError:  # how Linux says that the terminal is closed
                break
            if not new:
                break
            shown += new
        if not is_pressed and when(process, shown):
            time.sleep(REACTION)
            os.write(terminal, press)
            is_pressed = True
    os.close(terminal)
    return Done(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), shown, b"")
