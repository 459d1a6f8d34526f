"""The fork server of the processes that decode media: started early, as it imports PyTorch, and replaced if it hangs.

Nothing here imports PyTorch, so that a server can start the fork server before it imports PyTorch itself.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pocketvlm.errors import ConfigError

logger = logging.getLogger(__name__)
WORKER = "pocketvlm.processing.media_worker"  # with all that a new worker needs


def has_forkserver() -> bool:
    """Whether it can be used: Windows has none, and libraries of macOS cannot be forked once they are loaded."""
    return sys.platform != "darwin" and "forkserver" in multiprocessing.get_all_start_methods()


def context() -> Any:
    """What starts workers: a fork of a process that has imported everything, where there are forks."""
    found: Any = multiprocessing.get_context("forkserver" if has_forkserver() else "spawn")
    if has_forkserver():
        # PyTorch, where it is installed, resizes several times as fast as what workers have without it, for hours: they
        # share one import of it, which is over before the first picture.
        found.set_forkserver_preload([*(["torch"] if find_spec("torch") else []), WORKER])
    return found


def start_early() -> None:
    """Have the process started, which goes on importing by itself. It ends with this one.

    Where it cannot be started now, the first worker tries again, and says why it cannot.

    Raises:
        ConfigError: it never can: its socket needs a folder for temporary files, and it a current directory.
    """
    context()
    if not has_forkserver():
        return
    from multiprocessing import forkserver, resource_tracker

    try:
        Path.cwd()  # what it starts begins there
    except OSError:
        raise ConfigError(
            "the current directory does not exist any more", hint="Change to one that does, and try again."
        ) from None
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        resource_tracker.ensure_running()  # first: it would let Ctrl-C through again
        # Ctrl-C goes to all processes of a terminal and is the server's to answer. This one, which inherits what is
        # held back here, would show where its imports were interrupted.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        forkserver.ensure_running()
    except FileNotFoundError:  # of `tempfile`
        raise ConfigError(
            "no process can be started that decodes media (no folder for temporary files can be written to)",
            hint="Name a folder in TMPDIR, or decode in threads with --preprocess-processes 0.",
        ) from None
    except OSError:
        pass
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_forkserver() -> None:
    """Kill it; the next worker starts another one. Workers that live go on."""
    if not has_forkserver():
        return
    from multiprocessing import forkserver

    pid = getattr(getattr(forkserver, "_forkserver", None), "_forkserver_pid", None)
    if pid is not None:
        logger.error("the process that starts those that decode media hangs, and is replaced")
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)
