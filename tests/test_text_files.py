"""A file that is there and cannot be read is never taken for one that is missing, and says what it is."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import pytest

from pocketvlm.bundle import PRESETS
from pocketvlm.errors import CheckpointError, ConfigError, PocketVLMError
from pocketvlm.export.onnx.bundle import write_bundle
from pocketvlm.model.hub import resolve
from pocketvlm.model.weight_files import weight_files
from pocketvlm.processing.processor import Processor
from pocketvlm.processing.prompt.template import template_source
from pocketvlm.text_files import is_there, read_json

JSON_FILES = ("config.json", "processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
NAMES = (
    *(*JSON_FILES, "generation_config.json", "tokenizer_config.json", "tokenizer.json", "chat_template.jinja"),
    *("bundle.json", "model.safetensors", "model.safetensors.index.json"),
)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"


def link_to_nothing(path: Path) -> None:
    path.symlink_to("nowhere")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/null")


KINDS: dict[str, Callable[[Path], None]] = {
    "a link that leads nowhere": link_to_nothing,
    "a link ": link_to_itself,
    "a directory": Path.mkdir,
}
if sys.platform != "win32":
    KINDS |= {"a pipe": os.mkfifo, "a device": link_to_a_device}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    with resources.as_file(resources.files("pocketvlm").joinpath("assets/nano")) as nano:
        return Path(shutil.copytree(nano, tmp_path / "model"))


def read(directory: Path) -> None:
    """All that is read of a directory before its weights."""
    found = resolve(directory)
    Processor.from_directory(found.path, configs=found.configs)
    weight_files(directory)


def older_files_only(directory: Path, but: str) -> None:
    """Settings of pictures stand in `processor_config.json` or in the older files: leave those where `but` is read."""
    if but in JSON_FILES[2:]:
        (directory / "processor_config.json").unlink()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_ordinary_file_is_refused_and_not_waited_for(model: Path, name: str, kind: str) -> None:
    older_files_only(model, name)
    (model / name).unlink(missing_ok=True)
    KINDS[kind](model / name)
    with pytest.raises(PocketVLMError) as error:
        read(model)
    assert f"{name} is {kind}" in str(error.value)
    assert "expected a file" in str(error.value)


def test_an_export_leaves_out_nothing_in_silence(model: Path, tmp_path: Path) -> None:
    (model / "README.md").unlink()
    link_to_nothing(model / "README.md")
    with pytest.raises(ConfigError, match=r"README\.md is a link that leads nowhere"):
        write_bundle(model, tmp_path / "out", PRESETS["none"])
    assert not (tmp_path / "out").exists()


def test_links_to_files_are_followed(model: Path, tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    for file in sorted(model.iterdir()):
        file.rename(tmp_path / "blobs" / file.name)
        file.symlink_to(Path("..") / "blobs" / file.name)
    read(model)
    assert not is_there(model / "config.json" / "inside")
    with pytest.raises(ConfigError, match="cannot be read"):
        is_there(model / ("n" * 300))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (POINTER, "is a Git LFS pointer.* `git lfs pull`"),
        (b"", "is empty.* again"),
        (b" \n", "is empty"),
        ("{}".encode("utf-16"), "is UTF-16.* UTF-8"),
        ("{}".encode("utf-16-le"), "is UTF-16"),
        (b'{"a": "\xff"}', "is not UTF-8 from byte 7"),
    ],
    ids=["pointer", "empty", "blank", "utf-16", "utf-16 without mark", "bytes"],
)
@pytest.mark.parametrize("name", NAMES[:8])
def test_a_file_that_is_no_text_says_what_it_is(model: Path, name: str, content: bytes, said: str) -> None:
    older_files_only(model, name)
    (model / name).write_bytes(content)
    with pytest.raises(PocketVLMError, match=rf"{name} is not .*{said}") as error:
        read(model)
    assert "Error)" not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", NAMES[:7])
def test_a_byte_order_mark_of_json_is_named(model: Path, name: str) -> None:
    older_files_only(model, name)
    (model / name).write_bytes(b"\xef\xbb\xbf" + (model / name).read_bytes())
    with pytest.raises(PocketVLMError, match=rf"{name} is not .* begins with a byte order mark. Save it"):
        read(model)


def test_a_fault_of_json_has_its_place(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": 1,\n "b" 2}')
    with pytest.raises(ConfigError, match=r"a\.json is not readable JSON \(line 2, column 6: "):
        read_json(tmp_path / "a.json")


def test_a_byte_order_mark_of_a_template_stands_in_no_prompt(model: Path) -> None:
    question = [{"role": "user", "content": "Which?"}]
    file = model / "chat_template.jinja"
    expected = Processor.from_directory(model)(question).input_ids.tolist()
    source = template_source(model)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert template_source(model) == source
    assert Processor.from_directory(model)(question).input_ids.tolist() == expected


@pytest.mark.parametrize("content", ["", "null", "\ufeff", "404: Not Found", "{{ bos_token }}", "all messages"])
def test_a_template_that_takes_no_messages_is_refused_at_load(model: Path, content: str) -> None:
    (model / "chat_template.jinja").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja (is not|holds no)"):
        Processor.from_directory(model)
    (model / "chat_template.jinja").unlink()
    config = read_json(model / "tokenizer_config.json") | {"chat_template": content}
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json holds no chat template"):
        template_source(model, config=config)
