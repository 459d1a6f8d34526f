"""A bundle answers where PyTorch is not: the same, and without looking for it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import without_torch
from helpers.adapters import ALL, write_random_adapter

from pocketvlm.api import gpu
from pocketvlm.bundle import PRESETS
from pocketvlm.export.onnx.bundle import write_bundle
from pocketvlm.model.hub import resolve


@pytest.fixture(scope="module", params=["none", "int4"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("bundles") / request.param
    write_bundle(resolve("nano"), out, PRESETS[request.param])
    return str(out)


def python(*arguments: str) -> str:
    tests = Path(__file__).parents[1]  # where `helpers` is found
    done = subprocess.run([sys.executable, *arguments], cwd=tests, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_answers_are_the_same_where_pytorch_is_out_of_reach(bundle: str) -> None:
    assert "torch" in sys.modules  # by the tests
    assert json.loads(python("-m", "helpers.without_torch", bundle)) == without_torch.answers(bundle)


@pytest.mark.parametrize(
    "command",
    [
        ("ask", without_torch.RECEIPT, "What is the total?", "--max-tokens", "4"),
        ("read", without_torch.WORD, "--max-tokens", "4"),
        ("extract", without_torch.RECEIPT, "--schema", "total: string", "--max-tokens", "16"),
    ],
)
def test_commands_do_not_import_pytorch(bundle: str, command: tuple[str, ...], tmp_path: Path) -> None:
    name = command[0]
    out = {"read": ("--out", str(tmp_path / "read")), "extract": ("--out", str(tmp_path / "rows.jsonl"))}.get(name, ())
    code = (
        "import sys; from pocketvlm.cli import main\n"
        f"try: main({[*command, *out, '--model', bundle]!r})\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print('torch' in sys.modules)"
    )
    assert python("-c", code).splitlines()[-1] == "False"


COMMANDS = (
    ("info", "--json"),
    ("plan", without_torch.WORD),
    ("ask", without_torch.WORD, "What does it say?", "--max-tokens", "4"),
    ("chat", without_torch.WORD, "--max-tokens", "4"),
    ("batch", "in.jsonl", "out.jsonl"),
    ("eval", "--list"),
    ("eval", "shapes", "--count", "1", "--max-tokens", "4"),
    ("export", "onnx", "bundle", "--quantization", "none"),
    ("bench", "offline", "--lines", "decode1", "--rounds", "1"),
    ("tune", "--help"),
    ("bench", "tuning", "--help"),
)
WANTING = {  # commands and what they name
    ("tune", "train.csv"): "pocketvlm[tune]",
    ("bench", "tuning"): "pocketvlm[tune]",
    ("bench", "offline", "--against", "transformers"): "pocketvlm[reference]",
    ("trace", without_torch.WORD, "--prompt", "?"): "pocketvlm[torch]",
    ("export", "huggingface", "copy"): "pocketvlm[torch]",
    ("export", "gguf", "copy"): "pocketvlm[gguf]",
    ("serve", "--runtime", "torch", "--port", "0"): "pocketvlm[torch]",
    ("serve", "--adapter-root", ".", "--port", "0"): "pocketvlm[torch]",
    ("ask", without_torch.WORD, "?", "--runtime", "torch"): "pocketvlm[torch]",
    ("ask", without_torch.WORD, "?", "--device", "cuda"): "pocketvlm[torch]",
    ("ask", without_torch.WORD, "?", "--dtype", "bfloat16"): "pocketvlm[torch]",
}


def test_where_pytorch_is_not_installed_commands_do_without_it_or_name_the_extra(tmp_path: Path) -> None:
    line = {"custom_id": "one", "body": {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}}
    (tmp_path / "in.jsonl").write_text(json.dumps({**line, "method": "POST", "url": "/v1/chat/completions"}) + "\n")
    code = (
        "import contextlib, io, json, os, sys\n"
        "from helpers.without_torch import take_pytorch_away\n"
        "take_pytorch_away()\n"
        "from pocketvlm.cli import main\n"
        f"os.chdir({str(tmp_path)!r})\n"
        "done = []\n"
        f"for command in {[*COMMANDS, *WANTING]!r}:\n"
        "    said, sys.stdin = io.StringIO(), io.StringIO()\n"
        "    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):\n"
        "        try: status = main(list(command))\n"
        "        except SystemExit as end: status = end.code or 0\n"
        "    done.append((command, status, said.getvalue()))\n"
        "print(json.dumps(done))"
    )
    done = {tuple(command): (status, said) for command, status, said in json.loads(python("-c", code).splitlines()[-1])}
    for command in COMMANDS:
        assert done[command][0] == 0, (command, done[command])
    for command, extra in WANTING.items():
        status, said = done[command]
        assert (status, said.count("\n")) == (2, 1), (command, said)
        assert extra in said, (command, said)


def test_an_adapter_is_not_merged_without_pytorch(seeded_checkpoint: Callable[[int], Path], tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from helpers.without_torch import take_pytorch_away\n"
        "take_pytorch_away()\n"
        "import pocketvlm\n"
        "for options in ({'adapter': sys.argv[2]}, {'adapters': {}}, {'runtime': 'torch'}):\n"
        "    try: pocketvlm.load(sys.argv[1], **options)\n"
        "    except pocketvlm.MissingExtraError as error: print(error.extra)"
    )
    model = seeded_checkpoint(0)
    adapter = write_random_adapter(tmp_path, resolve(model).config, 77, ALL)  # of which no bundle is kept
    assert python("-c", code, str(model), str(adapter)).split() == ["torch"] * 3


def test_a_checkpoint_whose_bundle_is_kept_does_not_import_pytorch() -> None:
    code = (
        "import sys, pocketvlm\n"
        "pocketvlm.load(runtime='onnx', quantization='none').close()\n"
        "print('torch' in sys.modules)"
    )
    python("-c", code)
    assert python("-c", code).split() == ["False"]


@pytest.mark.parametrize(
    ("says", "is_built"),
    [
        ("cuda: Optional[str] = None\nhip: Optional[str] = None", False),
        ("cuda: Optional[str] = '13.0'\nhip: Optional[str] = None", True),
        ("cuda = None\nhip = '7.1'", True),
        ("git_version = 'a'", True),
        (None, True),
    ],
)
def test_a_build_for_gpus_is_known_by_what_pytorch_says_of_itself(
    says: str | None, is_built: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if says is not None:
        (tmp_path / "version.py").write_text(says)
    monkeypatch.setattr(gpu, "find_spec", lambda _: SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    assert gpu._is_built_for_gpu() is is_built


def test_without_pytorch_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "find_spec", lambda _: None)
    monkeypatch.delitem(sys.modules, "torch")
    assert gpu.has_gpu() is False


def test_a_driver_that_is_missing_or_finds_no_device_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> object:
        raise OSError

    monkeypatch.setattr(gpu.ctypes, "CDLL", missing)
    monkeypatch.setattr(gpu.Path, "exists", lambda _: False)
    assert gpu._may_be_there() is False
    fake = SimpleNamespace(cuInit=lambda _: 0, cuDeviceGetCount=lambda _: 0)
    monkeypatch.setattr(gpu.ctypes, "CDLL", lambda _: fake)
    assert gpu._may_be_there() is False
