"""What `pocketvlm serve` says to people."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from pocketvlm import cli
from pocketvlm.api.vlm import VLM
from pocketvlm.cli import console
from pocketvlm.server import run
from pocketvlm.server.settings import GROUPS, ServerSettings, option_of


@pytest.mark.parametrize(("options", "has_page"), [([], True), (["--no-page"], False)])
def test_the_line_of_a_server_that_is_ready_names_api_and_page(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], has_page: bool
) -> None:
    def serve(_vlm: VLM, _settings: ServerSettings, on_ready: Callable[[str], None], _decoding: object) -> None:
        on_ready("http://127.0.0.1:8000")

    monkeypatch.setattr(run, "serve", serve)
    assert cli.main(["serve", "--port", "0", *options]) == 0
    said = "".join(capsys.readouterr())
    assert "http://127.0.0.1:8000/v1" in said
    assert ("http://127.0.0.1:8000/;" in said) == has_page


@pytest.mark.parametrize(
    ("options", "is_open"),
    [(["--host", "0.0.0.0"], True), (["--host", "0.0.0.0", "--api-key", "secret"], False), ([], False)],
)
def test_a_server_that_everybody_may_ask_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], is_open: bool
) -> None:
    monkeypatch.setattr(run, "serve", lambda *_: None)
    assert cli.main(["serve", "--port", "0", "--json", *options]) == 0
    out, errors = capsys.readouterr()
    assert (out, errors.count("Anybody who reaches"), errors.count("\n")) == ("", is_open, is_open)


def test_the_help_begins_with_what_matters_and_has_every_setting_once() -> None:
    text = cli.command_parser("serve").format_help()
    assert len(text.split("\n\n")[0].splitlines()) <= 3
    places = [re.search(f"\n  {option_of(one.name)}[ ,]", text).start() for one in fields(ServerSettings)]  # type: ignore[union-attr]
    assert places == sorted(places)
    assert all(f"\n{title}:" in text for title in GROUPS.values())
    assert places[0] < text.index("\n  --max-images")


@pytest.mark.parametrize("key", ["open sesame", " secret", "schlüssel"])
def test_a_key_that_no_client_can_send_is_refused_and_not_shown(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, key: str
) -> None:
    file = tmp_path / "keys"
    file.write_text(key.strip(), encoding="utf-8")
    given = [["--api-key", key]] + ([["--api-key-file", str(file)]] if " " not in key else [])
    for options in given:
        assert cli.main(["serve", *options]) == 2
        said = capsys.readouterr().err
        assert "no client can send" in said
        assert key not in said


def test_a_variable_of_keys_that_is_empty_does_not_open_the_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("POCKETVLM_API_KEYS", "")
    assert cli.main(["serve"]) == 2
    assert "POCKETVLM_API_KEYS is set and has no key" in capsys.readouterr().err


def test_the_model_and_the_engine_are_settings_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('runtime = "torch"\nmax_num_seqs = 3\nprefix_cache_memory = 0\n', encoding="utf-8")
    monkeypatch.setenv("POCKETVLM_MODEL", "nano")
    monkeypatch.setenv("POCKETVLM_MAX_NUM_SEQS", "2")
    found = []
    monkeypatch.setattr(run, "serve", lambda vlm, *_: found.append((vlm.name, vlm.engine.sizes, vlm.engine.config)))
    assert cli.main(["serve", "--port", "0", "--config", str(file), "--encoder-cache-memory", "1000"]) == 0
    ((name, sizes, config),) = found
    assert (name, sizes.max_num_seqs, sizes.prefix_bytes, sizes.encoder_bytes) == ("nano", 2, 0, 1000)
    assert config.cache_memory is None


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("POCKETVLM_MODEL", "there/is/no/such", "there/is/no/such"),
        ("POCKETVLM_MAX_NUM_SEQS", "0", "max_num_seqs"),
        ("POCKETVLM_CACHE_MEMORY", "much", "POCKETVLM_CACHE_MEMORY"),
        ("POCKETVLM_DEVICE", "abacus", "abacus"),
    ],
)
def test_wrong_ones_are_refused_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variable: str, value: str, words: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert cli.main(["serve", "--port", "0"]) == 2
    errors = capsys.readouterr().err
    assert words in errors
    assert "Traceback" not in errors
    assert errors.count("\n") <= 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("fault", [None, ImportError("cannot load module more than once per process")])
def test_ctrl_c_that_python_loses_counts_all_the_same(fault: Exception | None) -> None:
    class Loses:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    def lose() -> None:
        with console.interrupts_count():
            Loses()
            passed.append(1)
            if fault is not None:
                raise fault

    passed, before = list[int](), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        lose()
    assert passed
    assert signal.getsignal(signal.SIGINT) is before


def test_an_error_without_ctrl_c_stays_what_it_is() -> None:
    with pytest.raises(ImportError), console.interrupts_count():
        raise ImportError


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--device", "abacus"], "device='abacus'"),
        (["--dtype", "int3"], "dtype='int3'"),
        (["--runtime", "vllm"], "runtime='vllm'"),
        (["--quantization", "int3"], "int3"),
        (["--model", "there/is/no/such"], "there/is/no/such"),
        (["--host", "nosuchhost.invalid"], "cannot listen on nosuchhost.invalid"),
        (["--api-key-file", "no/such/file"], "No such file or directory"),
    ],
)
def test_mistakes_are_told_before_pytorch_is_imported(options: list[str], words: str) -> None:
    program = (
        "import sys\nfrom pocketvlm.cli import main\n"
        f"status = main(['serve', '--port', '0', *{options!r}])\n"
        "print(status, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["2", "False"]
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_variable_that_is_a_setting_but_for_a_slip_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("POCKETVLM_SOMETHING_ELSE", "1")  # of another program
    monkeypatch.setattr(run, "serve", lambda *_: None)
    assert cli.main(["serve", "--port", "0", "--preprocess-processes", "0"]) == 0
    monkeypatch.setenv("POCKETVLM_MAX_IMAGE", "7")
    assert cli.main(["serve", "--port", "0"]) == 2
    assert "Did you mean POCKETVLM_MAX_IMAGES?" in capsys.readouterr().err
    monkeypatch.delenv("POCKETVLM_MAX_IMAGE")
    (tmp_path / "s.toml").write_text("prot = 1\n", encoding="utf-8")
    assert cli.main(["serve", "--config", str(tmp_path / "s.toml")]) == 2
    assert "Did you mean port?" in capsys.readouterr().err
