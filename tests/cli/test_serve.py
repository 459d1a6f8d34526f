"""What `pocketvlm serve` says to people."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pocketvlm import cli
from pocketvlm.api.vlm import VLM
from pocketvlm.server import run
from pocketvlm.server.settings import ServerSettings


@pytest.mark.parametrize(("options", "has_page"), [([], True), (["--no-page"], False)])
def test_the_line_of_a_server_that_is_ready_names_api_and_page(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], has_page: bool
) -> None:
    def serve(_vlm: VLM, _settings: ServerSettings, on_ready: Callable[[str], None]) -> None:
        on_ready("http://127.0.0.1:8000")

    monkeypatch.setattr(run, "serve", serve)
    assert cli.main(["serve", "--port", "0", *options]) == 0
    said = "".join(capsys.readouterr())
    assert "http://127.0.0.1:8000/v1" in said
    assert ("http://127.0.0.1:8000/;" in said) == has_page
