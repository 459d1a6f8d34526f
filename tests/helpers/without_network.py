"""A program that runs commands of ours where opening a socket is found out: `python without_network.py COMMANDS`.

COMMANDS is a JSON list of {"arguments": [...], "stdin": "..."}. It prints one JSON line: the exit statuses, what Python
code asked the network for, and whether native code is watched as well.

Python's audit events tell of Python code on every system. Native code passes them by: on Linux, a filter of system
calls ends the process at once (SIGSYS) when it, or any process that it starts, asks for an internet socket. Neither
needs rights that an ordinary user has not.
"""

from __future__ import annotations

import ctypes
import errno
import io
import json
import platform
import socket
import struct
import sys
from contextlib import redirect_stdout

# Processor → how the kernel calls it, and the number of socket(2) there.
SYSTEM_CALLS = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}
NETWORK_EVENTS = ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")

# struct sock_filter: operation, jump if true, jump if false, operand.
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_KILL_PROCESS, _ALLOW = 0x80000000, 0x7FFF0000
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, _PR_SET_NO_NEW_PRIVS = 22, 2, 38


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def watch_native_code() -> bool:
    """End this process, and those that it starts, where one asks for an internet socket; False where that cannot be."""
    if not sys.platform.startswith("linux") or platform.machine() not in SYSTEM_CALLS:
        return False
    architecture, call = SYSTEM_CALLS[platform.machine()]
    rules = (
        (_LOAD, 0, 0, 4),
        (_JUMP_EQUAL, 0, 5, architecture),
        (_LOAD, 0, 0, 0),
        (_JUMP_EQUAL, 0, 3, call),
        (_LOAD, 0, 0, 16),
        (_JUMP_EQUAL, 2, 0, socket.AF_INET),
        (_JUMP_EQUAL, 1, 0, socket.AF_INET6),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _KILL_PROCESS),
    )
    program = _Program(len(rules), b"".join(struct.pack("HBBI", *rule) for rule in rules))
    control = ctypes.CDLL(None, use_errno=True).prctl
    if control(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or control(
        _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0
    ):
        assert ctypes.get_errno() in (errno.EINVAL, errno.EACCES, errno.EPERM, errno.ENOSYS)
        return False
    return True


def watch_python_code() -> list[str]:
    """What asks for the network from now on, in a list that grows."""
    seen: list[str] = []

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        is_unix = event in ("socket.connect", "socket.bind") and isinstance(arguments[1], str | bytes)
        if event in NETWORK_EVENTS and not is_unix:
            seen.append(f"{event}{arguments[1:]!r:.200}")

    sys.addaudithook(hook)
    return seen


def main() -> None:
    seen, is_native_watched = watch_python_code(), watch_native_code()
    from pocketvlm.cli import main as command

    statuses = []
    for given in json.loads(sys.argv[1]):
        # With bytes beneath, which the Model Context Protocol is read from and written to.
        sys.stdin = io.TextIOWrapper(io.BytesIO(given.get("stdin", "").encode()), "utf-8")
        print(*given["arguments"], file=sys.stderr, flush=True)  # says which one it was that ended the process
        with redirect_stdout(io.TextIOWrapper(io.BytesIO(), "utf-8")):
            statuses.append(command(given["arguments"]))
    print(json.dumps({"statuses": statuses, "asked": seen, "native": is_native_watched}))


if __name__ == "__main__":
    main()
