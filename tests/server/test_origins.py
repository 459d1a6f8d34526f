"""Pages of other sites do not use a server without keys, whatever name they have it by."""

from __future__ import annotations

import httpx
import pytest
from helpers.app import App, new_vlm, run
from starlette.requests import Request

from pocketvlm.server.errors import HTTPError
from pocketvlm.server.origins import OriginCheck
from pocketvlm.server.settings import ServerSettings

LOCAL = {"host": "127.0.0.1"}


def is_let_in(settings: dict[str, object], host: str, origin: str | None = None, method: str = "POST") -> bool:
    headers = [(b"host", host.encode())] + ([(b"origin", origin.encode())] if origin is not None else [])
    request = Request({"type": "http", "method": method, "headers": headers})
    try:
        OriginCheck(ServerSettings(**settings))(request)  # type: ignore[arg-type]
    except HTTPError:
        return False
    return True


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8000", "localhost", "LOCALHOST:8000", "[::1]:8000", "a.localhost:80", "192.168.1.2:8000"]
)
def test_a_server_is_known_by_addresses_and_localhost(host: str) -> None:
    assert is_let_in(LOCAL, host)


@pytest.mark.parametrize("host", ["evil.example:8000", "localhost.evil.example", "", "[", "127.0.0.1.evil.example"])
def test_a_name_that_was_made_to_lead_here_is_refused(host: str) -> None:
    assert not is_let_in(LOCAL, host)
    assert not is_let_in(LOCAL, host, method="GET")
    assert not is_let_in({"host": "127.1"}, host), "it listens on 127.0.0.1, however that is written"
    # With keys no page can ask, and a server for others has names that it does not know.
    assert is_let_in({**LOCAL, "api_keys": ("secret",)}, host)
    assert is_let_in({"host": "0.0.0.0"}, host)


def test_names_can_be_allowed() -> None:
    assert is_let_in({**LOCAL, "allowed_hosts": ("Reader.lan",)}, "reader.lan:8000")


def test_who_is_refused_is_told_the_name_that_can_be_allowed() -> None:
    request = Request({"type": "http", "method": "GET", "headers": [(b"host", b"Reader.lan:8000")]})
    with pytest.raises(HTTPError, match=r"not known as 'reader\.lan'"):
        OriginCheck(ServerSettings(host="127.0.0.1"))(request)


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (None, True),
        ("http://127.0.0.1:8000", True),
        ("app://obsidian.md", True),
        ("file://", True),
        ("https://evil.example", False),
        ("http://127.0.0.1:9000", False),
        ("http://evil.example/http://127.0.0.1:8000", False),
        ("null", False),
        ("", False),
    ],
)
def test_what_costs_something_is_for_pages_of_its_own_and_for_programs(origin: str | None, allowed: bool) -> None:
    assert is_let_in(LOCAL, "127.0.0.1:8000", origin) == allowed
    assert is_let_in({"host": "0.0.0.0"}, "127.0.0.1:8000", origin) == allowed
    assert is_let_in(LOCAL, "127.0.0.1:8000", origin, method="GET")
    assert is_let_in({**LOCAL, "api_keys": ("secret",)}, "127.0.0.1:8000", origin)
    if origin and not origin.endswith("/http://127.0.0.1:8000"):  # which no browser sends
        assert is_let_in({**LOCAL, "cors_origins": (origin,)}, "127.0.0.1:8000", origin)
        assert is_let_in({**LOCAL, "cors_origins": ("*",)}, "127.0.0.1:8000", origin)


def test_a_script_of_an_allowed_origin_can_read_what_it_needs_to_report_and_to_try_again() -> None:
    async def ask() -> list[httpx.Response]:
        async with await new_vlm() as vlm:
            app, headers = App(vlm, cors_origins=("https://app.example",)), {"Origin": "https://app.example"}
            paths = ("/v1/models", f"/v1/models/{'a' * 10_000}")
            return [await app.client.get(path, headers=headers) for path in paths]

    for response, status in zip(run(ask()), (200, 414), strict=True):
        assert response.status_code == status
        assert response.headers["access-control-allow-origin"] == "https://app.example"
        assert response.headers["x-request-id"]
        exposed = response.headers["access-control-expose-headers"].lower()
        assert {name.strip() for name in exposed.split(",")} >= {"x-request-id", "retry-after"}


@pytest.mark.parametrize("page", [True, False])
def test_whoever_looks_whether_a_server_is_there_finds_one(page: bool) -> None:
    async def ask() -> None:
        async with await new_vlm() as vlm:
            app = App(vlm, page=page)
            assert (await app.client.head("/")).status_code == 200
            found = await app.client.get("/")
            assert found.status_code == 200
            assert ("<html" in found.text) == page

    run(ask())
