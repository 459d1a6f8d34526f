"""Output that nobody reads, before the server is ready too, and disks that are full: requests do not notice."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.serving import NO_DECODERS, Serving

QUESTION = {"messages": [{"role": "user", "content": "Say it."}], "max_tokens": 2}
COMMAND = (sys.executable, "-m", "pocketvlm.cli", "serve", "--json", *NO_DECODERS, "--port")


def assert_serves_and_ends_well(server: Serving) -> None:
    for number in range(4):  # both lines of requests and warnings find nobody
        assert server.ask("/v1/chat/completions", QUESTION if number % 2 else b"{")[0] == (200 if number % 2 else 400)
    server.process.terminate()
    assert server.process.wait(60) == 0


def test_a_server_goes_on_whose_output_nobody_reads_any_more() -> None:
    """As with `pocketvlm serve --json 2>&1 | head -1`."""
    reading, writing = os.pipe()
    process = subprocess.Popen((*COMMAND, "0"), stdout=writing, stderr=subprocess.STDOUT, text=True)
    os.close(writing)
    with os.fdopen(reading) as lines:
        url = lines.readline().split('"')[3]
    assert_serves_and_ends_well(Serving(process, url, Path(os.devnull)))


def test_a_server_goes_on_whose_output_nobody_has_ever_read() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.Popen((*COMMAND, str(port)), stdout=writing, stderr=subprocess.STDOUT, text=True)
    os.close(writing)
    while process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except OSError:
            time.sleep(0.05)
    assert_serves_and_ends_well(Serving(process, f"http://127.0.0.1:{port}", Path(os.devnull)))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which Linux has")
def test_a_server_whose_one_line_cannot_be_written_ends_with_the_reason_alone() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run((*COMMAND, "0"), stdout=full, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["pocketvlm serve: the output could not be written: No space left on device"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of what a process may write to files")
def test_a_server_without_any_folder_to_write_to_says_what_to_do() -> None:
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); "
        "from pocketvlm.cli import main; sys.exit(main())"
    )
    command = (sys.executable, "-c", limited, "serve", "--port", "0")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert "no folder for temporary files" in line
    assert "--preprocess-processes 0" in line
