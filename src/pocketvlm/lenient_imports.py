"""Imports of packages that do more than we ask for while they are imported.

torchvision registers shape functions for its compiled operators, and fails if those operators did not load (a wheel of
it beside a torch of another build). Nothing here needs the operators. So registrations for the `torchvision::`
namespace that find no operator are left out during the import.

bitsandbytes, on a processor with bf16, downloads a kernel from the hub where the package `kernels` is installed, and
warns where it is not. Nothing is to leave the machine, so it does not see that package during the import.

accelerate imports boto3 where it is installed, and that opens a socket to find out whether there is IPv6: it does not
see that package either.

ONNX Runtime looks for GPUs, and warns of displays that are none (WSL, Raspberry Pi) on stderr, whatever level its
loggers have (microsoft/onnxruntime issues 26763 and 27092). That warning is left out.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from glob import glob
from typing import IO, Any

_DISPLAYS = "/sys/class/drm"
_one_import = threading.RLock()  # what stderr is belongs to one thread at a time
_DISCOVERY = b"GPU device discovery failed"  # of ONNX Runtime


@contextmanager
def lenient_registrations() -> Iterator[None]:
    """Within this block, fake kernels for `torchvision::` operators that do not exist are skipped."""
    import torch

    strict = torch.library.register_fake

    def lenient(op: Any, func: Callable[..., Any] | None = None, /, **kwargs: Any) -> Any:
        if not (isinstance(op, str) and op.startswith("torchvision::")):
            return strict(op, func, **kwargs)

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            try:
                strict(op, function, **kwargs)
            except RuntimeError as error:
                if "does not exist" not in str(error):
                    raise
            return function

        return register if func is None else register(func)

    torch.library.register_fake = lenient
    try:
        yield
    finally:
        torch.library.register_fake = strict


@contextmanager
def offline() -> Iterator[None]:
    """Within this block peft and bitsandbytes can be imported without a download, a socket or a warning."""
    log = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with _unseen("kernels"), _unseen("boto3"):
            yield
    finally:
        log.setLevel(level)


@contextmanager
def quiet_discovery(displays: str = _DISPLAYS) -> Iterator[None]:
    """Within this block ONNX Runtime can be imported without a warning of a display that is no GPU.

    Args:
        displays: a folder of the kernel, with one for each display.
    """
    with ExitStack() as stack:
        stack.enter_context(_one_import)
        said = _room_for_words(stack, displays)
        if said is None:
            stack.close()  # nothing to warn of, or nobody to warn
            yield
            return
        stderr = os.dup(2)
        os.dup2(said.fileno(), 2)  # the warning is written there by C++
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            said.seek(0)
            with suppress(OSError):  # stderr may be gone
                for line in said:
                    if _DISCOVERY not in line:
                        os.write(2, line)


def _room_for_words(stack: ExitStack, displays: str) -> IO[bytes] | None:
    """A file for what the import says, if it may say something that is to be left out."""
    # These two raise nothing where a folder may not be entered.
    cards = [card for card in glob(f"{displays}/card*") if card.rpartition("/card")[2].isdecimal()]  # noqa: PTH207
    if "onnxruntime" in sys.modules or all(os.path.exists(f"{card}/device/vendor") for card in cards):  # noqa: PTH110
        return None
    try:
        os.fstat(2)
        return stack.enter_context(tempfile.TemporaryFile())
    except OSError:  # stderr is closed, or there is no place for a file
        return None


@contextmanager
def _unseen(package: str) -> Iterator[None]:
    """Within this block an import of a package is an ImportError."""
    modules: dict[str, Any] = sys.modules
    absent = object()
    before = modules.get(package, absent)
    modules[package] = None
    try:
        yield
    finally:
        del modules[package]
        if before is not absent:
            modules[package] = before
