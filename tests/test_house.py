"""The house keeps its own rules: layers and fences, a light import, short files, documents that match the code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.checkpoints import write_checkpoint
from importlinter.cli import lint_imports

import pocketvlm

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))

# Modules that miss PyTorch by its own name where it is not installed: no command that answers on a CPU needs them.
WITH_TORCH = (
    "pocketvlm.kernels.",
    "pocketvlm.model.",
    "pocketvlm.training.",
    "pocketvlm.benchmark.tuning.",
    "pocketvlm.benchmark.transformers_peer",
    "pocketvlm.engine.runners.torch_runner",
    "pocketvlm.engine.runners.cuda_graphs",
    "pocketvlm.engine.sampling.device_sampler",
    "pocketvlm.export.gguf.",
    "pocketvlm.export.huggingface",
    "pocketvlm.api.torch_devices",
    "pocketvlm.api.trace",
)
# Of those rooms, what the base needs.
WITHOUT_TORCH = (
    "pocketvlm.kernels.onnx_ops",
    "pocketvlm.model.adapters.placed",
    "pocketvlm.model.adapters.settings",
    "pocketvlm.model.cache.contiguous",
    "pocketvlm.model.cache.memory",
    "pocketvlm.model.directory",
    "pocketvlm.model.hub",
    "pocketvlm.model.parameter_shapes",
    "pocketvlm.model.segments",
    "pocketvlm.model.vision.view_order",
    "pocketvlm.model.weight_files",
    "pocketvlm.model.weights",
    "pocketvlm.training.data.dataset",
    "pocketvlm.training.data.sample",
    "pocketvlm.training.settings",
)
# Imports every module while a finder refuses whatever only an extra would install: it works, or says which extra.
IMPORT_ALL = """
import importlib, pkgutil, re, sys
at = sys.argv.index("--")
with_torch, without_torch = tuple(sys.argv[1:at]), set(sys.argv[at + 1 :])
from importlib.metadata import distribution, packages_distributions, PackageNotFoundError

def key(name):
    return re.sub(r"[-_.]+", "-", name).lower()

base, waiting = set(), ["pocketvlm"]
while waiting:
    name = key(waiting.pop())
    if name in base:
        continue
    try:
        needs = distribution(name).requires or []
    except PackageNotFoundError:
        continue  # for another platform or Python
    base.add(name)
    waiting += [re.match(r"[\\w.-]+", need)[0] for need in needs if "extra ==" not in need]

extras = {module for module, owners in packages_distributions().items() if base.isdisjoint(map(key, owners))}

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name in extras:
            raise ModuleNotFoundError(f"{name} is not a base dependency", name=name)

sys.meta_path.insert(0, Refuse())
assert {"pytest", "transformers"} <= extras and not {"onnxruntime", "numpy"} & extras
extras.add("torch")  # which the metadata of an older installation still names
import pocketvlm
from pocketvlm.errors import MissingExtraError

def says_which_extra(name):
    error = sys.exc_info()[1]
    if not isinstance(error, MissingExtraError) and getattr(error, "name", "") != "torch":
        raise error

for module in pkgutil.walk_packages(pocketvlm.__path__, "pocketvlm.", says_which_extra):
    if not module.name.endswith(".__main__"):
        try:
            importlib.import_module(module.name)
        except MissingExtraError:
            says_which_extra(module.name)
        except ModuleNotFoundError as error:
            is_known = module.name.startswith(with_torch) and module.name not in without_torch
            assert error.name == "torch" and is_known, (module.name, error)
"""


@pytest.fixture(scope="module")
def checkpoint_with_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("weights"), seed=0)


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


def test_imports_keep_to_the_layers_and_fences(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # It would switch off all loggers that there are, also for the tests behind this one.
    monkeypatch.setattr("logging.config.dictConfig", lambda _: None)
    status = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True, no_logo=True)
    assert status == 0, capsys.readouterr().out


def test_every_module_imports_with_the_base_dependencies_only() -> None:
    result = python(IMPORT_ALL, *WITH_TORCH, "--", *WITHOUT_TORCH)
    assert result.returncode == 0, result.stderr


def test_importing_the_package_or_its_command_line_does_not_import_torch() -> None:
    result = python("import sys, pocketvlm, pocketvlm.cli; print('torch' in sys.modules)")
    assert result.stdout == "False\n", result.stderr


def test_asking_the_embedded_model_imports_no_compiler_and_nothing_that_only_exports_need() -> None:
    """Each of these costs as much time as the whole answer."""
    pocketvlm.load("nano").close()  # so that its bundle is kept
    code = (
        "import sys, pocketvlm; vlm = pocketvlm.load('nano', runtime=sys.argv[1]); "
        "vlm.ask('examples/word.png', 'What does it say?', max_tokens=4); "
        "print([name for name in ('torch', 'torch._dynamo', 'torch._inductor', 'av', 'sympy', 'onnx_ir', "
        "'huggingface_hub', 'llguidance', 'triton', 'transformers') if name in sys.modules])"
    )
    for runtime, imported in (("auto", "[]\n"), ("torch", "['torch']\n")):
        command = [sys.executable, "-c", code, runtime]
        result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        assert result.stdout == imported, result.stdout + result.stderr


def test_every_public_name_resolves_and_dir_lists_them_all() -> None:
    assert dir(pocketvlm) == sorted(pocketvlm.__all__)
    assert len(set(pocketvlm.__all__)) == len(pocketvlm.__all__)
    for name in pocketvlm.__all__:
        assert getattr(pocketvlm, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = pocketvlm.no_such_name


def test_no_source_file_is_over_400_lines() -> None:
    assert SOURCES
    assert not [file.name for file in SOURCES if len(file.read_text(encoding="utf-8").splitlines()) > 400]


def test_generated_parts_of_the_documents_match_the_code() -> None:
    command = [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "<!-- generated: tree -->" in (ROOT / "README.md").read_text(encoding="utf-8")


def stale_names(text: str) -> list[str]:
    """Names of modules in backticks (`room.module.name`, `room/module`) that are nowhere in the package.

    Only what can be nothing else: it begins with a folder of ours, or with one of the rooms and dots follow. Files such
    as `model.safetensors` are not ours.
    """
    folders = {file.parent.name for file in SOURCES} | {"docs", "tests", "benchmarks", "recipes", "examples"}
    rooms = {path.stem for path in (ROOT / "src" / "pocketvlm").iterdir()} | {"pocketvlm"}
    found = []
    for name in re.findall(r"`([a-z]\w*(?:[./]\w+)+)`", text):
        first, is_path = re.split(r"[./]", name)[0], "/" in name
        is_file = name.endswith((".json", ".jsonl", ".jinja", ".onnx", ".safetensors")) and not is_path
        if first in (folders if is_path else rooms) and not is_file and not _is_here(name):
            found.append(name)
    return found


def _is_here(name: str) -> bool:
    """Whether a module, a name in one, or a file ends like this."""
    if "/" in name and any((folder / name).exists() for folder in (ROOT, ROOT / "src", ROOT / "src" / "pocketvlm")):
        return True
    parts = re.split(r"[./]", name)
    for n in range(len(parts), 0, -1):
        path, inside = "/".join(parts[:n]), parts[n : n + 1]  # names further inside may come from a base class
        modules = [file for file in SOURCES if file.as_posix().endswith((f"/{path}.py", f"/{path}/__init__.py"))]
        patterns = [re.compile(rf"(?:def|class) {one}\b|\b{one}\b\s*[:=]|\"{one}\"") for one in inside]
        if any(all(pattern.search(file.read_text(encoding="utf-8")) for pattern in patterns) for file in modules):
            return True
    return False


def test_modules_that_comments_and_documents_name_exist() -> None:
    pages = [page for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")) if page.name != "log.md"]
    texts = {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in (*SOURCES, *pages)}
    assert {file: found for file, text in texts.items() if (found := stale_names(text))} == {}
    assert stale_names("`engine/gone` `kernels.gone.name` `engine/engine.Gone`") == [
        "engine/gone",
        "kernels.gone.name",
        "engine/engine.Gone",
    ]
    others = "`engine/engine.Engine` `model.safetensors` `vlm.chat` `torch.nn` `tests/test_house.py` `pocketvlm.load`"
    assert stale_names(others) == []


def test_a_stale_part_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import generate

    page = "before\n<!-- generated: help -->\nold\n<!-- end -->\nafter\n"
    fresh = generate.generated(page)
    assert fresh.startswith("before\n<!-- generated: help -->\n```\npocketvlm ask")
    assert fresh.endswith("<!-- end -->\nafter\n")
    assert generate.generated(fresh) == fresh


def test_the_python_of_the_readme_runs(checkpoint_with_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = (ROOT / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    load = pocketvlm.load  # any weights will do here; whether nano reads well is measured elsewhere
    monkeypatch.setattr(pocketvlm, "load", lambda _name: load(checkpoint_with_weights), raising=False)
    monkeypatch.chdir(ROOT)
    exec(compile(block, "README.md", "exec"), {})
