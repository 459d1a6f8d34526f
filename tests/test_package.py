"""What is published: the wheel and the sdist, their metadata, and the files around them that name a version."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.command import run

import pocketvlm
from pocketvlm.cli import version

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "pocketvlm"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def build(root: Path, target: str, out: Path) -> Path:
    """What `python -m build` gets from the backend for the tree at `root`."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(out)]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def unpacked_sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one folder that a fresh sdist unpacks to."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build(ROOT, "sdist", folder / "built")) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (root,) = (folder / "unpacked").iterdir()
    return root


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        return message_from_bytes(archive.read(name))


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    ours = {f.relative_to(PACKAGE.parent).as_posix() for f in PACKAGE.rglob("*") if f.is_file()}
    ours = {name for name in ours if "__pycache__" not in name}
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held - {"pocketvlm/commit.txt"} == ours
    assert {"pocketvlm/py.typed", "pocketvlm/assets/nano/model.safetensors"} < held
    assert wheel.stat().st_size < 20_000_000


def test_the_sdist_builds_the_same_wheel(wheel: Path, unpacked_sdist: Path, tmp_path: Path) -> None:
    again = build(unpacked_sdist, "wheel", tmp_path / "again")
    assert again.name == wheel.name
    assert again.read_bytes() == wheel.read_bytes()


def test_metadata_says_what_the_package_is(wheel: Path) -> None:
    about = metadata(wheel)
    assert (about["Name"], about["Version"]) == ("pocketvlm", pocketvlm.__version__)
    assert about["License-Expression"] == "Apache-2.0"
    assert about.get_all("License-File") == ["LICENSE", "NOTICE"]
    assert about.get_payload(decode=True) == (ROOT / "README.md").read_bytes()
    assert set(about.get_all("Provides-Extra", [])) == set(EXTRAS)
    with zipfile.ZipFile(wheel) as archive:
        (scripts,) = [n for n in archive.namelist() if n.endswith("entry_points.txt")]
        assert "pocketvlm = pocketvlm.cli:main" in archive.read(scripts).decode()


def test_a_wheel_records_the_commit_that_the_checkout_names(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = "pocketvlm/commit.txt" in archive.namelist()
        recorded = archive.read("pocketvlm/commit.txt").decode().strip() if held else ""
    assert recorded == version.commit()


def test_a_build_without_git_keeps_the_record_or_has_none(unpacked_sdist: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    needed = ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", "NOTICE", "src/pocketvlm/__init__.py")
    for name in needed:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(unpacked_sdist / name, tree / name)
    with zipfile.ZipFile(build(tree, "wheel", tmp_path / "none")) as archive:
        assert "pocketvlm/commit.txt" not in archive.namelist()
    (tree / "commit.txt").write_text("v1-0-g0123\n", encoding="utf-8")
    with zipfile.ZipFile(build(tree, "wheel", tmp_path / "kept")) as archive:
        assert archive.read("pocketvlm/commit.txt") == b"v1-0-g0123\n"


def test_the_version_is_printed_with_the_commit_that_is_known(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(version, "_PACKAGE", tmp_path / "site-packages" / "pocketvlm")
    (tmp_path / "site-packages" / "pocketvlm").mkdir(parents=True)
    assert run(capsys, "--version") == (0, f"pocketvlm {pocketvlm.__version__}\n", "")
    (tmp_path / "site-packages" / "pocketvlm" / "commit.txt").write_text("v1-0-g0123\n", encoding="utf-8")
    assert run(capsys, "--version")[1] == f"pocketvlm {pocketvlm.__version__} (v1-0-g0123)\n"


def test_a_checkout_that_git_cannot_read_has_a_version_without_a_commit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".git").write_text("no repository\n", encoding="utf-8")
    monkeypatch.setattr(version, "_PACKAGE", tmp_path / "src" / "pocketvlm")
    assert version.version_text() == pocketvlm.__version__
    monkeypatch.setenv("PATH", "")  # no git at all
    assert version.version_text() == pocketvlm.__version__


def test_the_module_runs_as_the_command_does() -> None:
    command = [sys.executable, "-m", "pocketvlm", "--version"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stdout == f"pocketvlm {version.version_text()}\n", result.stderr


def test_changes_and_citation_name_the_version() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (\S+)", changes, re.MULTILINE)
    assert "Unreleased" in headings or pocketvlm.__version__ in headings
    assert len(headings) == len(set(headings))
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == pocketvlm.__version__
    assert citation["license"] == PROJECT["project"]["license"]


def test_classifiers_name_the_pythons_that_wheels_are_checked_with() -> None:
    wheels = yaml.safe_load((ROOT / ".github" / "workflows" / "wheels.yml").read_text(encoding="utf-8"))
    checked = wheels["jobs"]["install"]["strategy"]["matrix"]["python"]
    prefix = "Programming Language :: Python :: "
    named = [c.removeprefix(prefix) for c in PROJECT["project"]["classifiers"] if c.startswith(f"{prefix}3.")]
    assert named == checked
    assert PROJECT["project"]["requires-python"] == f">={checked[0]}"


def test_constraints_pin_every_direct_dependency_once() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line.split("==")[0] for line in lines if line and not line.startswith("#")]
    assert len(pinned) == len(set(pinned))
    needed = [*PROJECT["project"]["dependencies"], *(need for name in EXTRAS for need in EXTRAS[name])]
    names = {re.match(r"[\w.-]+", need)[0] for need in needed if "==" not in need.partition(";")[0]}  # type: ignore[index]
    assert names - {"pocketvlm", "fla-core"} <= set(pinned)  # fla-core: for a GPU only


RAISING = ("MissingExtraError", "need")  # functions whose last two arguments are a package and its extra


def test_an_error_about_a_missing_extra_names_the_one_that_brings_it() -> None:
    raised: set[tuple[str, str]] = set()
    for file in set(PACKAGE.rglob("*.py")) - {PACKAGE / "errors.py"}:  # which defines them
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in RAISING:
                package, extra = (ast.literal_eval(argument) for argument in node.args[-2:])
                raised.add((package, extra))
    assert {extra for _, extra in raised} == set(EXTRAS) - {"dev"}
    for package, extra in raised:
        brought = {re.match(r"[\w.-]+", need)[0] for need in EXTRAS[extra]}  # type: ignore[index]
        assert brought & set(re.findall(r"[\w.-]+", package)), f"{extra} does not bring {package}"


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_workflows_end_pin_their_actions_and_may_only_read(file: Path) -> None:
    workflow = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        granted = {"id-token": "write"} if (file.stem, name) == ("release", "publish") else None
        assert job.get("permissions") == granted
        if "uses" in job:
            assert (ROOT / job["uses"]).is_file()
            continue
        assert job["timeout-minutes"] <= 90
        for step in job["steps"]:
            if "uses" in step:
                assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", step["uses"])
            for path in re.findall(r"[\w./-]+\.py\b", step.get("run", "")):
                assert (ROOT / path).is_file()
            for target in re.findall(r"^make ([\w-]+)", step.get("run", ""), re.MULTILINE):
                assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def test_workflows_have_no_known_weakness() -> None:
    command = [Path(sys.executable).with_name("zizmor"), "--offline", "--no-progress", ".github"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
