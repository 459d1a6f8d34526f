"""The process that forks those that decode media: started early, as it imports PyTorch first, and replaced if it hangs.

Nothing here imports PyTorch, so that a server can start this process before it does so itself.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
from contextlib import suppress
from typing import Any

from pocketvlm.errors import ConfigError

logger = logging.getLogger(__name__)
WORKER = "pocketvlm.processing.media_worker"  # with all that a new worker needs


def has_forkserver() -> bool:
    return "forkserver" in multiprocessing.get_all_start_methods()


def context() -> Any:
    """What starts workers: a fork of a process that has imported everything, where there are forks."""
    found: Any = multiprocessing.get_context("forkserver" if has_forkserver() else "spawn")
    if has_forkserver():
        found.set_forkserver_preload([WORKER])
    return found


def start_early() -> None:
    """Have the process started, which goes on importing by itself. It ends with this one.

    Raises:
        ConfigError: it cannot be; its socket needs a folder for temporary files.
    """
    context()
    if not has_forkserver():
        return
    from multiprocessing import forkserver, resource_tracker

    resource_tracker.ensure_running()  # it lets Ctrl-C through again once it has started
    # Ctrl-C goes to all processes of a terminal and is the server's to answer. This one, which inherits what is held
    # back here, would show where its imports were interrupted.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        forkserver.ensure_running()
    except OSError as error:
        is_folder = isinstance(error, FileNotFoundError)  # what `tempfile` raises; its message lists folders
        reason = "no folder for temporary files can be written to" if is_folder else error.strerror or str(error)
        raise ConfigError(
            f"no process can be started that decodes media ({reason})",
            hint="Name a folder in TMPDIR, or decode in threads with --preprocess-processes 0.",
        ) from None
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
