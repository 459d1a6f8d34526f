"""Documents on the command line: their pages are pictures, chosen behind the name, and faults are one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.clips import animation
from helpers.command import run
from helpers.documents import BLUE, GREEN, RED, coloured, heic, protected
from helpers.pictures import encoded
from PIL import Image

from pocketvlm.cli.conversation import Conversation, dropped, local_parts
from pocketvlm.client.media import media_parts

QUESTION = "What is the total?"
THREE = coloured(RED, GREEN, BLUE)


@pytest.fixture
def document(tmp_path: Path) -> str:
    """Receipts as pages."""
    receipt = Image.open(Path(__file__).parents[2] / "examples" / "receipt.png").convert("RGB")
    path = tmp_path / "receipts.pdf"
    receipt.save(path, save_all=True, append_images=[Image.new("RGB", receipt.size, "white")])
    return str(path)


def asked(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    status, out, err = run(capsys, "ask", *arguments, "--json", "--runtime", "torch", "--max-tokens", "12")
    assert status == 0, err
    return dict(json.loads(out))


def test_a_page_is_answered_as_the_picture_it_was_made_from(capsys: pytest.CaptureFixture[str], document: str) -> None:
    answer = asked(capsys, f"{document}#1", QUESTION)
    picture = asked(capsys, "examples/receipt.png", QUESTION)
    assert answer["text"] == picture["text"] == "11.60"
    assert answer["usage"] == picture["usage"]
    assert asked(capsys, "--image", f"{document}#page=1", QUESTION)["text"] == "11.60"
    both = asked(capsys, document, QUESTION, "--max-slice-nums", "1")
    assert (
        both["usage"]["visual_tokens"]
        == 2 * asked(capsys, f"{document}#2", QUESTION, "--max-slice-nums", "1")["usage"]["visual_tokens"]
    )


def test_dots_an_inch_are_an_option(capsys: pytest.CaptureFixture[str], document: str) -> None:
    status, out, _ = run(capsys, "plan", document, "--json", "--page-dpi", "36")
    assert status == 0
    assert [(plan["height"], plan["width"]) for plan in json.loads(out)["plans"]] == [(196, 140)] * 2
    _, out, _ = run(capsys, "plan", f"{document}#2", "--json", "--downsample-mode", "auto")
    assert [(plan["height"], plan["width"]) for plan in json.loads(out)["plans"]] == [(392, 280)]
    status, _, err = run(capsys, "ask", document, QUESTION, "--page-dpi", "5")
    assert (status, err) == (2, "pocketvlm ask: page_dpi=5 is not an integer of 10 to 1200\n")


def test_slices_are_drawn_over_a_page(capsys: pytest.CaptureFixture[str], document: str, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    assert run(capsys, "plan", f"{document}#1", "--draw", str(out))[0] == 0
    with Image.open(out) as image:
        assert image.size == (280, 392)
    status, _, err = run(capsys, "plan", document, "--draw", str(tmp_path / "two.png"))
    assert status == 2
    assert "2 pages" in err
    assert run(capsys, "plan", f"{document}#1", "--draw", document)[0] == 2  # the file it reads
    assert Path(document).read_bytes().startswith(b"%PDF-")


@pytest.mark.parametrize(
    ("body", "choice", "message"),
    [
        (THREE, "#4", "has 3 pages, there is no page 4"),
        (THREE, "#x", "'x' behind the # names no pages"),
        (THREE, "#3-2", "runs backwards"),
        (coloured(*[RED] * 17), "", "has 17 pages, at most 16 pictures and pages"),
        (protected(THREE), "", "is protected by a password"),
        (THREE[:200], "", "is damaged or cut off"),
        (b"%PDF-1.7", "#1", "is damaged or cut off"),
    ],
)
def test_what_cannot_be_read_is_one_line(
    capsys: pytest.CaptureFixture[str], body: bytes, choice: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(body)
    for command in (("ask", f"{path}{choice}", QUESTION), ("plan", f"{path}{choice}")):
        status, out, err = run(capsys, *command)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert message in err


def test_a_question_that_was_forgotten_and_a_missing_file_are_told(
    capsys: pytest.CaptureFixture[str], document: str
) -> None:
    status, _, err = run(capsys, "ask", f"{document}#2")
    assert status == 2
    assert "no question was given about" in err
    status, _, err = run(capsys, "ask", "missing.pdf#2", QUESTION)
    assert (status, "there is no file 'missing.pdf#2'" in err) == (2, True)


def test_pages_of_several_files_count_together(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(coloured(*[RED] * 9))
    status, _, err = run(capsys, "ask", str(path), str(path), QUESTION)
    assert (status, "The request has more than 16 pictures and pages" in err) == (2, True)


def test_a_conversation_takes_pages(document: str) -> None:
    conversation = Conversation(local_parts, {})
    conversation.command(f"/image {document}#2")
    assert dropped(f"{document}#1 What?") == ([f"{document}#1"], "What?")
    turn = conversation.ask("What?")
    assert [part["type"] for part in turn.parts] == ["image"]
    assert str(turn.parts[0]["image"]).endswith("#2")


def test_an_endpoint_gets_pages_as_pictures(document: str, tmp_path: Path) -> None:
    for medium, count in ((Path(document), 2), (Path(f"{document}#2"), 1), (Path(document).read_bytes(), 2)):
        parts = media_parts(medium)
        assert len(parts) == count
        assert all(part["image_url"]["url"].startswith("data:image/png;base64,") for part in parts)
    png = tmp_path / "a.png"
    png.write_bytes(encoded(Image.new("RGB", (9, 9))))
    assert len(media_parts(png)) == len(media_parts(Path(f"{png}#1"))) == 1


def test_batches_find_pages_beside_their_file(
    capsys: pytest.CaptureFixture[str], document: str, tmp_path: Path
) -> None:
    def line(custom_id: str, name: str) -> str:
        content = [{"type": "image_url", "image_url": {"url": name}}, {"type": "text", "text": QUESTION}]
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": 12}
        return json.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body})

    name = Path(document).name
    requests = tmp_path / "in.jsonl"
    requests.write_text(f"{line('a', f'{name}#1')}\n{line('b', f'{name}#3')}\n")
    out = tmp_path / "out.jsonl"
    run(capsys, "batch", str(requests), str(out), "--runtime", "torch")
    first, second = (json.loads(text)["response"] for text in out.read_text().splitlines())
    assert first["body"]["choices"][0]["message"]["content"] == "11.60"
    assert second["status_code"] == 400
    assert "receipts.pdf has 2 pages, there is no page 3" in second["body"]["error"]["message"]


def test_an_animation_is_a_clip_on_request(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for format in ("GIF", "WEBP", "PNG"):
        path = tmp_path / f"a.{format.lower()}"
        path.write_bytes(animation(format, [500] * 6))
        picture = asked(capsys, str(path), QUESTION)
        clip = asked(capsys, "--video", str(path), QUESTION)
        assert clip["usage"]["visual_tokens"] == 3 * picture["usage"]["visual_tokens"]
        conversation = Conversation(local_parts, {})
        conversation.command(f"/video {path}")
        assert conversation.ask("What?").parts == [{"type": "video", "video": path}]
        (part,) = media_parts(path, as_video=True)
        assert part["video_url"]["url"].startswith(f"data:image/{format.lower()};base64,")
    status, _, err = run(capsys, "ask", "--video", "missing.gif", QUESTION)
    assert (status, "there is no file 'missing.gif'" in err) == (2, True)
    still = tmp_path / "still.png"
    still.write_bytes(encoded(Image.new("RGB", (9, 9))))
    status, _, err = run(capsys, "ask", "--video", str(still), QUESTION)
    assert (status, "is a picture, expected a video" in err) == (2, True)


def test_tiff_and_the_pictures_of_phones_are_answered(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with Image.open("examples/receipt.png") as file:
        receipt = file.convert("RGB")
    blank = Image.new("1", receipt.size, 1)
    (tmp_path / "a.tif").write_bytes(encoded(blank, "TIFF", save_all=True, append_images=[receipt.convert("1")]))
    (tmp_path / "a.heic").write_bytes(heic(receipt))
    for name in ("a.tif#2", "a.heic"):
        assert asked(capsys, str(tmp_path / name), QUESTION)["text"] == "11.60", name
