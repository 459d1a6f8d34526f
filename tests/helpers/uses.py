"""What the tests of clients share: examples as data: URLs, and what the server is doing."""

from __future__ import annotations

import base64
import io
import re
import time

from PIL import Image

from helpers.serving import EXAMPLES, Serving


def data_url(name: str) -> str:
    """An example as a data: URL."""
    kind = {"png": "image/png", "mp4": "video/mp4"}[name.rpartition(".")[2]]
    return f"data:{kind};base64,{base64.b64encode((EXAMPLES / name).read_bytes()).decode()}"


def document(*names: str) -> str:
    """Examples as the pages of a TIFF, in base64: every pixel is as in the examples."""
    first, *others = (Image.open(EXAMPLES / name).convert("RGB") for name in names)
    file = io.BytesIO()
    first.save(file, "TIFF", save_all=True, append_images=others)
    return base64.b64encode(file.getvalue()).decode()


def running(server: Serving) -> int:
    """Requests that the engine works on, as /metrics tells."""
    text = server.ask("/metrics")[1]
    found = re.search(r"^pocketvlm:num_requests_running ([\d.]+)$", text, re.MULTILINE)
    assert found is not None
    return round(float(found[1]))


def wait_for(server: Serving, count: int) -> None:
    """Return once so many requests run; fails where that never happens."""
    ends = time.monotonic() + 30
    while running(server) != count:
        assert time.monotonic() < ends, f"{running(server)} requests run, not {count}"
        time.sleep(0.02)
