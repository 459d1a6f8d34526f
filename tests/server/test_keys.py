"""Rule 6: keys, from options, a file or the environment, each with limits of its own."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from helpers.app import App, error_of, new_vlm, run

from pocketvlm.errors import ConfigError
from pocketvlm.server.keys import WINDOW, Key, read_keys
from pocketvlm.server.settings import ServerSettings


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def test_keys_of_a_file_are_plain_or_hashed_and_may_have_a_name_and_limits(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(
        f"# ours\n\nplain  # a remark\nsha256:{digest('hashed')} name=ann requests=2 tokens_per_minute=50\n"
    )
    plain, hashed = read_keys(file)
    assert plain.digest.hex() == digest("plain")
    assert plain.name == f"key-{digest('plain')[:8]}"
    assert (hashed.digest.hex(), hashed.name, hashed.requests, hashed.tokens_per_minute) == (
        digest("hashed"), "ann", 2, 50,
    )  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing\n",
        "sha256:12",
        "secret name=",
        "secret requests=0",
        "secret requests=-1",
        "secret other",
        "\xff\xfe",
    ],
)
def test_a_file_of_keys_that_cannot_be_honoured_is_refused_without_its_content(tmp_path: Path, text: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError) as error:
        list(read_keys(file))
    assert "secret" not in str(error.value)
    assert "other" not in str(error.value)


def is_open(path: str) -> bool:
    """Readiness, and the page, which holds nothing that is not in the package."""
    return path in ("/", "/health", "/ready") or path.startswith("/page/")


def test_every_route_wants_a_key_and_tells_keys_apart(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"sha256:{digest('of-the-file')}\nsha256:{digest('schlüssel')}\n")

    async def ask() -> dict[str, list[int]]:
        async with await new_vlm() as vlm:
            app = App(vlm, api_keys=("given",), api_key_file=str(file))
            found: dict[str, list[int]] = {}
            headers = {
                "none": {}, "given": {"Authorization": "Bearer given"},
                "bytes": {"Authorization": "Bearer schlüssel".encode()},
                "file": {"Authorization": "bearer  of-the-file"}, "wrong": {"Authorization": "Bearer Given"},
                "scheme": {"Authorization": "Basic given"},
                "hash": {"Authorization": f"Bearer sha256:{digest('of-the-file')}"},
                "long": {"Authorization": "Bearer given" + " " * 5000},
                "latin": {"Authorization": "Bearer gïven".encode("latin-1")},
            }  # fmt: skip
            for name, one in headers.items():
                routes = [(path, method) for path, method in app.routes() if not is_open(path)]
                found[name] = [
                    (await app.client.request(method, path, headers=one, content=b"{}")).status_code
                    for path, method in routes
                ]
            return found

    found = run(ask())
    for name in ("given", "file", "bytes"):
        assert 401 not in found.pop(name)
    for name, statuses in found.items():
        assert statuses, name
        assert set(statuses) == {401}, name


def test_limits_of_a_key_are_429_with_the_time_to_wait_and_hold_no_other_key_up(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("small tokens_per_minute=10\nlarge\n")

    async def ask() -> list[Any]:
        async with await new_vlm() as vlm:
            app = App(vlm, api_key_file=str(file))
            return [await app.chat(key=key) for key in ("small", "small", "large")]

    first, second, other = run(ask())
    assert [one.status_code for one in (first, second, other)] == [200, 429, 200]
    assert 0 < int(second.headers["Retry-After"]) <= WINDOW
    assert "10 tokens a minute" in error_of(second)


def test_tokens_are_forgotten_after_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("pocketvlm.server.keys.time.monotonic", lambda: now)
    key = Key("one", b"", requests=1, tokens_per_minute=10)
    key.begin()
    with pytest.raises(Exception, match="1 requests in flight"):
        key.begin()
    key.end(6)
    now += 20
    key.begin()
    key.end(6)
    with pytest.raises(Exception, match="10 tokens a minute") as error:
        key.begin()
    assert error.value.retry_after == 40  # type: ignore[attr-defined]
    now += 40
    key.begin()


def test_settings_come_from_options_then_variables_then_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("max_n = 2\nmax_images = 2\nmax_videos = 2\n")
    environment = {"POCKETVLM_MAX_IMAGES": "3", "POCKETVLM_MAX_VIDEOS": "3", "POCKETVLM_FETCH_URLS": "false"}
    settings = ServerSettings.read({"max_videos": 4}, environment, file)
    assert (settings.max_n, settings.max_images, settings.max_videos, settings.fetch_urls) == (2, 3, 4, False)


@pytest.mark.parametrize(
    "options",
    [
        {"log_format": "xml"},
        {"media_roots": ("/no/such/folder",)},
        {"max_n": 0},
        {"api_keys": ("",)},
        {"allowed_hosts": ("reader.lan:8000",)},
        {"allowed_hosts": ("http://reader.lan",)},
        {"private_hosts": ("media.lan:9000",)},
        {"private_hosts": ("[::1]",)},
        {"allowed_hosts": ("*.lan",)},
        {"allowed_hosts": ("[]",)},
        {"cors_origins": ("https://reader.example/",)},
        {"cors_origins": ("https://*.example.com",)},
        {"cors_origins": ("https://reader.example:443",)},
        {"cors_origins": ("https://reader.example?x",)},
        {"cors_origins": (" https://reader.example",)},
        {"cors_origins": ("reader.example",)},
        {"max_held_bytes": 2**20},
    ],
)
def test_settings_that_cannot_be_honoured_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        ServerSettings(**options)


def test_what_browsers_and_clients_send_can_be_allowed() -> None:
    settings = ServerSettings(
        allowed_hosts=("reader.lan", "::1", "[::1]", "10.0.0.3"),
        private_hosts=("media.lan", "10.0.0.4", "fd00::1"),
        cors_origins=("*", "null", "https://reader.example:8443", "app://obsidian.md", "file://"),
    )
    assert len(settings.allowed_hosts) == 4


@pytest.mark.parametrize("keys", ["tok_very_secret", ("tok_very_secret", "")])
def test_no_key_is_shown_where_the_list_of_them_is_wrong(keys: Any) -> None:
    with pytest.raises(ConfigError, match="api_keys") as error:
        ServerSettings(api_keys=keys)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("where", ["option", "variable", "file"])
def test_a_file_of_keys_without_a_name_does_not_open_the_server(tmp_path: Path, where: str) -> None:
    file = tmp_path / "a.toml"
    file.write_text('api_key_file = ""\n' if where == "file" else "")
    environment = {"POCKETVLM_API_KEY_FILE": ""} if where == "variable" else {}
    with pytest.raises(ConfigError, match="api_key_file is given and names no file"):
        ServerSettings.read({"api_key_file": "" if where == "option" else None}, environment, file)
