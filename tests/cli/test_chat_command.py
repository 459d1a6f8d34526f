"""`pocketvlm chat`: commands, dropped files, Markdown on a terminal, and a server that answers instead."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.documents import RED, coloured
from helpers.serving import Serving
from helpers.terminal import run_on_terminal
from hypothesis import given
from hypothesis import strategies as st

from pocketvlm.cli import main
from pocketvlm.cli.answer_printer import AnswerPrinter, end_of_block
from pocketvlm.cli.chat import RemoteTalker, _converse, body_of
from pocketvlm.cli.console import harmless
from pocketvlm.cli.conversation import Conversation, dropped, local_parts
from pocketvlm.errors import ConfigError, MediaError, PromptError
from pocketvlm.grammar.structured_outputs import StructuredOutputs
from pocketvlm.processing.media.load_image import load_image

ROOT = Path(__file__).resolve().parents[2]
RECEIPT = ROOT / "examples" / "receipt.png"


@pytest.fixture
def talk() -> Conversation:
    return Conversation(local_parts, {})


def said(conversation: Conversation, question: str, answer: str) -> None:
    conversation.done(conversation.ask(question), answer)


def test_a_conversation_is_its_turns_with_their_pictures(talk: Conversation) -> None:
    talk.command("/system Be brief.")
    talk.command(f"/image {RECEIPT}")
    said(talk, "One?", "1")
    assert talk.messages(talk.ask("Two?")) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image", "image": RECEIPT}, {"type": "text", "text": "One?"}]},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": [{"type": "text", "text": "Two?"}]},
    ]
    talk.command("/reset")
    assert [message["role"] for message in talk.messages(talk.ask("Three?"))] == ["system", "user"]


def test_the_last_question_can_be_asked_again(talk: Conversation) -> None:
    talk.add(str(RECEIPT))
    said(talk, "One?", "1")
    for _ in range(2):  # whether an answer came or not, it is the same question
        turn = talk.command("/retry")
        assert turn is not None
        assert len(turn.parts) == 1
        assert len(talk.messages(turn)) == 1
        assert [one.answer for one in talk.turns] == ["1"]
    talk.done(turn, "2")
    assert [one.answer for one in talk.turns] == ["2"]
    talk.command("/reset")
    with pytest.raises(ConfigError, match="no question"):
        talk.command("/retry")


def test_a_question_that_was_not_answered_is_the_one_that_is_asked_again(talk: Conversation) -> None:
    said(talk, "One?", "1")
    talk.add(str(RECEIPT))
    failed = talk.ask("Two?")
    assert talk.command("/retry") is failed
    assert [message["role"] for message in talk.messages(failed)] == ["user", "assistant", "user"]
    talk.done(failed, "2")
    assert [one.question for one in talk.turns] == ["One?", "Two?"]


def test_a_picture_that_could_not_be_read_is_read_again(talk: Conversation, tmp_path: Path) -> None:
    said(talk, "One?", "1")
    late = tmp_path / "late.png"
    late.write_bytes(b"not yet")
    is_readable = False

    def parts(one: Any) -> list[dict[str, Any]]:
        if not is_readable:
            raise MediaError(f"{one} is no picture")
        return [{"type": "image", "image": one}]

    talk.parts = parts
    talk.add(str(late))
    with pytest.raises(MediaError):
        talk.ask("Two?")
    with pytest.raises(MediaError):  # not the question before
        talk.command("/retry")
    is_readable = True
    turn = talk.command("/retry")
    assert turn is not None
    assert (turn.question, len(turn.parts)) == ("Two?", 1)
    assert talk.command("/retry") is turn


def test_what_was_said_before_cannot_control_a_terminal_either(
    talk: Conversation, capsys: pytest.CaptureFixture[str]
) -> None:
    said(talk, "One?", "a\x1b[2Jb")
    talk.command("/history")
    assert "a[2Jb" in capsys.readouterr().err


def test_a_rate_holds_for_all_answers_from_now_on(talk: Conversation) -> None:
    talk.command("/rate 4x")
    assert talk.options == {"downsample_mode": "4x"}
    with pytest.raises(ConfigError, match="8x"):
        talk.command("/rate 8x")
    assert talk.options == {"downsample_mode": "4x"}


def test_a_conversation_is_saved_to_a_new_file_alone(talk: Conversation, tmp_path: Path) -> None:
    talk.add(str(RECEIPT))
    said(talk, "What is\nthe total?", "**11.60**")
    talk.command(f"/save {tmp_path / 'a b.md'}")
    text = (tmp_path / "a b.md").read_text()
    assert "> What is\n> the total?\n" in text
    assert f"[{RECEIPT}]" in text
    assert "\n**11.60**\n" in text
    with pytest.raises(ConfigError, match="exists"):
        talk.command(f"/save {tmp_path / 'a b.md'}")
    with pytest.raises(ConfigError, match="directory"):
        talk.command(f"/save {tmp_path / 'none' / 'a.md'}")
    assert [path.name for path in tmp_path.iterdir()] == ["a b.md"]


@pytest.mark.parametrize("line", ["/help", "/image", "/nonsense", "/reset now", "/rate"])
def test_what_is_no_command_shows_those_that_there_are(
    line: str, talk: Conversation, capsys: pytest.CaptureFixture[str]
) -> None:
    said(talk, "One?", "1")
    assert talk.command(line) is None
    shown = capsys.readouterr().err
    assert "/retry" in shown
    assert ("is no command" in shown) == (line != "/help")
    assert len(talk.turns) == 1


def test_a_picture_that_is_not_there_is_said_at_once(talk: Conversation) -> None:
    with pytest.raises(MediaError, match="does not exist"):
        talk.command("/image nowhere.png")
    assert talk.pending == []


@pytest.mark.parametrize("form", ["'{}'", '"{}"', "{escaped}", "file://{url}"])
def test_files_that_are_dropped_on_a_terminal_are_found(form: str, tmp_path: Path) -> None:
    path = tmp_path / "it's (a) picture.png"
    if form == "'{}'":
        path = tmp_path / "a picture.png"
    path.write_bytes(RECEIPT.read_bytes())
    escaped = "".join(c if c.isalnum() or c in "/._-" else f"\\{c}" for c in str(path))
    name = form.format(path, escaped=escaped, url=str(path).replace(" ", "%20").replace("'", "%27"))
    assert dropped(name) == ([str(path)], "")
    assert dropped(f"{name} {name}  What's this?") == ([str(path), str(path)], "What's this?")


@given(st.text(max_size=40))
def test_a_line_without_a_file_stays_as_it_is(line: str) -> None:
    assert dropped(line) == ([], line.strip())


@pytest.mark.parametrize("line", ["file://[scan].pdf what is it?", "file://[x"])
def test_what_looks_like_an_address_and_is_none_is_a_question(line: str) -> None:
    assert dropped(line) == ([], line)


def test_pages_behind_a_dropped_address_are_kept(tmp_path: Path) -> None:
    (tmp_path / "a b.pdf").write_bytes(b"%PDF-1.7")
    named = (tmp_path / "a b.pdf").as_uri()
    assert dropped(f"{named}#2-3 What?") == ([f"{tmp_path / 'a b.pdf'}#2-3"], "What?")


def test_a_conversation_about_a_file_whose_name_is_no_text_can_be_saved(talk: Conversation, tmp_path: Path) -> None:
    talk.pending.append(Path(os.fsdecode(b"caf\xe9.mp4")))
    said(talk, "One?", "1")
    talk.command(f"/save {tmp_path / 'a.md'}")
    assert "caf\\udce9.mp4" in (tmp_path / "a.md").read_text()


def test_a_line_that_is_no_text_does_not_end_a_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = iter(["\ud8ff", UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "no"), "/quit"])

    def line(_prompt: str = "") -> str:
        if isinstance(found := next(lines), str):
            return found
        raise found

    monkeypatch.setattr("builtins.input", line)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    args = argparse.Namespace(json=False, plain=True)
    assert _converse(Conversation(local_parts, {}), None, args) == 0  # type: ignore[arg-type]
    lines = iter(["\ud8ff"])
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: False))
    with pytest.raises(PromptError, match="line 1 of the input"):
        _converse(Conversation(local_parts, {}), None, args)  # type: ignore[arg-type]


def test_pages_for_a_server_are_drawn_as_fine_as_was_asked() -> None:
    """They are pictures when they get there, so that it cannot draw them again."""
    body = coloured(RED, box=(0, 0, 72, 72))

    def side(**options: Any) -> int:
        (part,) = RemoteTalker(None, options).parts(body)
        return load_image(part["image_url"]["url"]).shape[0]

    assert side(page_dpi=100) == 100
    assert side(page_dpi=300, max_slice_nums=36) == 300
    assert body_of({"page_dpi": 300, "max_slice_nums": 4}) == {"mm_processor_kwargs": {"max_slice_nums": 4}}


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_pipes_and_devices_are_not_sent_to_a_server(tmp_path: Path, kind: str) -> None:
    place = Path("/dev/zero")
    if kind == "pipe":
        os.mkfifo(place := tmp_path / "p.png")
    with pytest.raises(MediaError, match="is a device or a pipe"):
        RemoteTalker(None, {}).parts(place)


@given(st.lists(st.sampled_from(["a", "\n", "\n\n", "```\n", "x\n\ny", "- b\n"]), max_size=12).map("".join))
def test_blocks_of_markdown_do_not_cut_code_and_lose_nothing(text: str) -> None:
    rest, blocks = text, []
    while (end := end_of_block(rest)) is not None:
        blocks.append(rest[:end])
        rest = rest[end:]
    assert "".join(blocks) + rest == text
    assert all(sum(line.startswith("```") for line in block.splitlines()) % 2 == 0 for block in blocks)


def test_text_of_a_model_cannot_control_a_terminal() -> None:
    assert harmless("a\x1b[2Jb\x07\x9b1m\r\n\tc\u00e9") == "a[2Jb1m\n\tc\u00e9"


def test_markdown_is_formatted_on_a_terminal_and_stays_as_it_is_in_a_pipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "Some **bold** words.\n\n- one\n- two\n"
    for is_terminal in (False, True):
        monkeypatch.setattr(sys.stdout, "isatty", lambda is_terminal=is_terminal: is_terminal, raising=False)
        with AnswerPrinter() as printer:
            for start in range(0, len(text), 3):
                printer.add(text[start : start + 3])
            printer.end()
        out = capsys.readouterr().out
        assert ("**bold**" in out, "•" in out) == ((False, True) if is_terminal else (True, False))


def test_a_conversation_on_a_terminal(seeded_checkpoint: Callable[[int], Path]) -> None:
    model = ("--model", str(seeded_checkpoint(0)), "--max-tokens", "3")
    keys = f"{RECEIPT} What is it?\r/history\r/quit\r".encode()
    done = run_on_terminal("chat", *model, press=keys, when=lambda _, shown: b"> " in shown)
    assert done.status == 0
    assert f"> [{RECEIPT}]".encode() in done.out


def test_options_become_fields_of_a_body_or_are_refused() -> None:
    structure = StructuredOutputs(regex="a+")
    given = {"temperature": 0.0, "downsample_mode": "4x", "enable_thinking": True, "structured_outputs": structure}
    assert body_of(given) == {
        "temperature": 0.0,
        "mm_processor_kwargs": {"downsample_mode": "4x"},
        "chat_template_kwargs": {"enable_thinking": True},
        "structured_outputs": {"regex": "a+"},
    }
    for name in ("num_beams", "prompt_lookup_num_tokens", "logprobs"):
        with pytest.raises(ConfigError, match="--url"):
            body_of({name: 2})


def chat(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], lines: str, *options: str
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    status = main(["chat", *options])
    return (status, *capsys.readouterr())


@pytest.mark.parametrize("options", [(), ("--downsample-mode", "4x", "--choice", "11.60", "--choice", "no")])
def test_a_server_answers_as_the_model_itself(
    server: Serving, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    lines = f"/image {RECEIPT}\nWhat is the total?\nAnd the date?\n"
    here = chat(monkeypatch, capsys, lines, *options)
    remote = ("--url", f"{server.url}/v1", "--api-key", "secret")
    assert chat(monkeypatch, capsys, lines, *remote, *options) == here
    assert here[0] == 0
    parts = [
        json.loads(chat(monkeypatch, capsys, lines, *o, "--json", *options)[1].splitlines()[0]) for o in ((), remote)
    ]
    for name in ("text", "usage", "finish_reason"):
        assert parts[0][name] == parts[1][name]


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (("--api-key", "wrong"), 2, "key"),
        (("--api-key", "secret", "--model", "other"), 2, "no model"),
        (("--api-key", "secret", "--runtime", "onnx"), 2, "--runtime"),
        (("--api-key", "secret", "--num-beams", "2"), 2, "--num-beams"),
        (("--api-key", "secret", "--max-tokens", "1000000"), 2, "max_tokens"),
    ],
)
def test_what_a_server_refuses_is_one_line(
    server: Serving,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    status: int,
    message: str,
) -> None:
    found, out, err = chat(monkeypatch, capsys, "Hello\n", "--url", f"{server.url}/v1", *options)
    assert (found, out, err.count("\n")) == (status, "", 1)
    assert message in err


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/v1", "ftp://127.0.0.1/v1", "nonsense"])
def test_a_server_that_is_not_there_is_one_line(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = chat(monkeypatch, capsys, "Hello\n", "--url", url)
    assert (status, out, err.count("\n")) == (1 if "9" in url else 2, "", 1)


def test_a_key_without_a_server_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert chat(monkeypatch, capsys, "", "--api-key", "a")[0] == 2
