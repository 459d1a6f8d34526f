"""A bundle answers where PyTorch is not: the same, and without looking for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import without_torch

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
