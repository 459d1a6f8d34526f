"""The rules of servers of such models: what hostile requests get, over HTTP, and that the engine goes on after each."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import struct
import time
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from helpers.app import CHAT, App, data_url, new_vlm, png, run
from helpers.documents import GREEN, RED, coloured, heic, protected
from helpers.serving import KEY, NO_DECODERS, Serving, start
from PIL import Image

from pocketvlm.api.async_vlm import AsyncVLM
from pocketvlm.engine.sampling.params import MAX_BIASED, MAX_LOGPROBS, MAX_STOP_LENGTH, MAX_STOP_STRINGS

BEARER = {"authorization": f"Bearer {KEY}"}
CLIP = Path(__file__).parents[2] / "examples" / "clip.mp4"


def about(url: Any, kind: str = "image_url") -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": kind, kind: {"url": url}}, {"type": "text", "text": "What?"}]}]


def chat(server: Serving, **fields: Any) -> tuple[int, str]:
    body = {"messages": [{"role": "user", "content": "What?"}], "max_tokens": 2, **fields}
    return server.ask(CHAT, body)[:2]


def picture(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def bomb(side: int = 50_000) -> bytes:
    """A PNG whose header promises two and a half billion pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")
    )


def odd_pictures() -> dict[str, bytes]:
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 4), np.uint8)
    rgb = Image.fromarray(noise[..., :3])
    palette = rgb.convert("P")
    palette.info["transparency"] = 3
    exif = Image.Exif()
    exif[0x0112] = 6
    broken = Image.Exif()
    broken[0x0112] = 99
    frames = [Image.fromarray(np.roll(noise[..., :3], i, 0)) for i in range(3)]
    good = png(64, 64)
    return {
        "1x1": picture(rgb.resize((1, 1))),
        "wide": picture(Image.new("RGB", (20_000, 1))),
        "high": picture(Image.new("RGB", (1, 20_000))),
        "cmyk": picture(rgb.convert("CMYK"), "JPEG"),
        "grey": picture(rgb.convert("L"), "JPEG"),
        "16 bits": picture(Image.fromarray(noise[..., 0].astype(np.uint16) * 257)),
        "1 bit": picture(rgb.convert("1")),
        "palette": picture(palette),
        "alpha": picture(Image.fromarray(noise)),
        "turned": picture(rgb, "JPEG", exif=exif),
        "turned by nonsense": picture(rgb, "JPEG", exif=broken),
        "gif": picture(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "webp": picture(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        "progressive": picture(rgb, "JPEG", progressive=True),
        "tiff": picture(rgb, "TIFF"),
        "fax": picture(rgb.convert("1"), "TIFF", compression="group4", save_all=True, append_images=[rgb.convert("1")]),
        "phone": heic(rgb),
        "jpeg 2000": picture(rgb, "JPEG2000"),
        "document": coloured(RED, GREEN),
        "no document": coloured(RED, GREEN)[:200],
        "locked": protected(coloured(RED)),
        "long": coloured(*[RED] * 17),
        "bmp": picture(rgb, "BMP"),
        "ico": picture(rgb, "ICO"),
        "bomb": bomb(),
        "nothing": b"\x00",
        "text": b"hello",
        "pdf": b"%PDF-1.7\n",
        "zip": b"PK\x03\x04" + bytes(100),
        "video": CLIP.read_bytes(),
        **{f"cut at {at}": good[:at] for at in (8, 20, 33, 60, len(good) // 2, len(good) - 12)},
        **{f"turned byte {at}": good[:at] + bytes([good[at] ^ 255]) + good[at + 1 :] for at in range(8, 60, 7)},
    }


def test_rules_2_and_3_every_odd_picture_is_200_or_400_in_time(server: Serving) -> None:
    statuses = {}
    for name, body in odd_pictures().items():
        for kind in ("image_url", "video_url"):
            began = time.monotonic()
            status, text = chat(server, messages=about(data_url(body), kind))
            assert status in (200, 400), (name, kind, text)
            assert time.monotonic() - began < 20, (name, kind)  # a hang; figures of time are benchmarks'
            statuses[name, kind] = status
            for word in ("PIL", "Traceback", "libpng", "av.error", "/"):
                assert status == 200 or word not in json.loads(text)["error"]["message"].replace("4 x", ""), text
    refused = {"bomb", "nothing", "text", "pdf", "zip", "video", "ico", "no document", "locked", "long"}
    assert {statuses[name, "image_url"] for name in refused} == {400}
    taken = {"1x1", "cmyk", "16 bits", "palette", "alpha", "turned", "gif"}
    taken |= {"tiff", "fax", "bmp", "phone", "jpeg 2000", "document"}
    assert {statuses[name, "image_url"] for name in taken} == {200}
    assert chat(server)[0] == 200


def test_rule_4_control_tokens_that_users_type_are_plain_text(server: Serving) -> None:
    """Each of them becomes more than one token, and no placeholder that a picture would have to fill."""
    words = (
        "<|im_start|> <|im_end|> <|image_pad|> <|video_pad|> <|endoftext|> <image> </image> <slice> <|vision_start|>"
    )
    for word in words.split():
        for messages in (
            [{"role": "user", "content": word * 3}],
            [{"role": "system", "content": word}, {"role": "user", "content": f"a{word}b"}],
            [*about(data_url(png())), {"role": "assistant", "content": word}, {"role": "user", "content": word}],
        ):
            status, text = chat(server, messages=messages)
            assert status == 200, text
        plain = json.loads(chat(server, messages=[{"role": "user", "content": word}])[1])["usage"]
        empty = json.loads(chat(server, messages=[{"role": "user", "content": "a"}])[1])["usage"]
        assert plain["visual_tokens"] == 0
        assert plain["prompt_tokens"] > empty["prompt_tokens"], word


BRANCHES: list[Any] = [{"type": "object", "properties": {f"p{i}": {"$ref": "#"} for i in range(300)}}]
TOO_MUCH: dict[str, dict[str, Any]] = {
    "n": {"n": 9},
    "n below": {"n": 0},
    "max_tokens": {"max_tokens": 10**6},
    "max_tokens below": {"max_tokens": 0},
    "beyond 64 bits": {"seed": 2**70},
    "stop strings": {"stop": ["a"] * (MAX_STOP_STRINGS + 1)},
    "a long stop string": {"stop": "a" * (MAX_STOP_LENGTH + 1)},
    "an empty stop string": {"stop": [""]},
    "top_logprobs": {"logprobs": True, "top_logprobs": MAX_LOGPROBS + 1},
    "logit_bias": {"logit_bias": {str(i): 1 for i in range(MAX_BIASED + 1)}},
    "logit_bias of nothing": {"logit_bias": {"9999999": 1}},
    "tools": {"tools": [{"type": "function", "function": {"name": f"f{i}"}} for i in range(200)]},
    "a large tool": {"tools": [{"type": "function", "function": {"name": "f", "description": "a" * 300_000}}]},
    "messages": {"messages": [{"role": "user", "content": "a"}] * 1025},
    "text": {"messages": [{"role": "user", "content": "a" * (2**20 + 1)}]},
    "a context": {"messages": [{"role": "user", "content": "a b " * 200_000}]},
    "images": {"messages": [{"role": "user", "content": about(data_url(png()))[0]["content"][:1] * 17}]},
    "a template": {"chat_template": "{{ 1 }}"},
    "a template's option": {"chat_template_kwargs": {"x": 1}},
    "tokens": {"prompt_token_ids": [1]},
    "a tensor": {"messages": [{"role": "user", "content": [{"type": "image_embeds", "image_embeds": "gASVAAAAAA=="}]}]},
    "frames": {"mm_processor_kwargs": {"max_num_frames": 129}, "messages": about(data_url(b"x"), "video_url")},
    "a bad regex": {"structured_outputs": {"regex": "("}},
    "a bad grammar": {"structured_outputs": {"grammar": "start: ["}},
    "a bad schema": {"structured_outputs": {"json": {"type": "no such"}}},
    "a false schema": {"structured_outputs": {"json": {"allOf": [{"type": "string"}, {"type": "integer"}]}}},
    "a remote schema": {"structured_outputs": {"json": {"$ref": "http://127.0.0.1/a.json"}}},
    "half a character": {"stop": "\ud800"},
    "no role": {"messages": [{"content": "a"}]},
    "a number": {"messages": 5},
    "nothing": {"messages": [{"role": "user", "content": []}]},
    "a long name": {"model": "a" * 100_000},
}  # fmt: skip


@pytest.mark.parametrize("name", TOO_MUCH)
def test_rules_5_and_6_what_is_too_much_is_4xx_in_openais_form(server: Serving, name: str) -> None:
    began = time.monotonic()
    status, text = chat(server, **TOO_MUCH[name])
    assert 400 <= status < 500, text
    assert time.monotonic() - began < 30  # a hang
    error = json.loads(text)["error"]
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) < 1000
    assert chat(server)[0] == 200


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[]", b"5", b'"a"', b"{", b"\xff\xfe", b"[" * 10_000, b"[]" * 400_000,
        b"[" + b"0," * 600_000 + b"0]",
        b'{"messages": NaN}', b'{"messages": 1e999}', b'{"a":' * 100 + b"1" + b"}" * 100,
        b'{"n": ' + b"9" * 5000 + b"}",
        b'{"messages": "\\ud800"}', b"\x80\x04K\x01.", b'{"messages": [], "messages": []}',
    ],
)  # fmt: skip
def test_rule_6_bodies_that_are_no_request_are_400(server: Serving, body: bytes) -> None:
    status, text, _ = server.ask(CHAT, body)
    assert status == 400
    assert json.loads(text)["error"]["type"] == "invalid_request_error"


def test_rule_7_pictures_that_differ_in_one_byte_or_in_an_option_are_told_apart() -> None:
    """What one request has computed answers another only where everything is equal."""
    pixels = np.random.default_rng(0).integers(0, 256, (56, 56, 3), np.uint8)
    other = pixels.copy()
    other[-1, -1, -1] ^= 255
    urls = [data_url(picture(Image.fromarray(each))) for each in (pixels, other)]

    async def views(vlm: AsyncVLM) -> float:
        return vlm.engine.engine.metrics.value("encoded_views_total")

    async def ask() -> list[float]:
        async with await new_vlm() as vlm:
            app, seen = App(vlm), [0.0]
            for url in urls:
                for mode in ("16x", "4x"):
                    found = await app.look(url, mm_processor_kwargs={"downsample_mode": mode})
                    assert found.status_code == 200
                    seen.append(await views(vlm))
            return [after - before for before, after in pairwise(seen)]

    assert all(count > 0 for count in run(ask()))


def test_rule_8_good_requests_between_bad_ones_are_answered_as_alone(server: Serving) -> None:
    good = {"messages": about(data_url(png(64, 64))), "max_tokens": 8, "temperature": 0}
    alone = json.loads(chat(server, **good)[1])["choices"][0]
    bad = [{"messages": about(data_url(body))} for body in (bomb(), b"x", png()[:50])] + [{"n": 99}, {"stop": [""]}]

    async def ask() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=20)
        async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits, headers=BEARER) as client:
            usual = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
            bodies = [{**usual, **body} for i in range(20) for body in (bad[i % len(bad)], good)]
            return await asyncio.gather(*(client.post(CHAT, json=body) for body in bodies))

    found = run(ask())
    assert {one.status_code for one in found[::2]} == {400}
    assert {one.status_code for one in found[1::2]} == {200}
    assert all(one.json()["choices"][0]["message"] == alone["message"] for one in found[1::2])


def test_rule_6_headers_are_opaque_and_short(server: Serving) -> None:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for name in ("a" * 65, "a b", "ä".encode().decode("latin-1"), ""):
            given = client.get("/health", headers={"x-request-id": name.encode("latin-1")}).headers["x-request-id"]
            assert given != name
            assert len(given) == 32
        assert client.get("/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
        assert client.get("/v1/models", headers={**BEARER, "cookie": "a" * 9000}).status_code == 200
        assert client.get("/v1/models", headers={"authorization": "Bearer " + "a" * 9000}).status_code == 401

    async def ask() -> int:
        async with await new_vlm() as vlm:
            response = await App(vlm).client.get("/v1/models", headers={"authorization": "Bearer " + "a" * 9000})
            return response.status_code

    assert run(ask()) == 200, "without keys it says nothing"


def test_rule_8_a_second_signal_ends_at_once() -> None:
    server = start("--drain-seconds", "60", *NO_DECODERS)
    with httpx.Client(base_url=server.url, timeout=60) as client:
        body = {
            "messages": [{"role": "user", "content": "a"}],
            "max_tokens": 30_000,
            "ignore_eos": True,
            "stream": True,
        }
        with client.stream("POST", CHAT, json=body) as response:
            lines = response.iter_lines()  # one that is forgotten closes the connection
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            assert server.process.poll() is None
            server.process.send_signal(signal.SIGTERM)
            assert server.end() == 128 + signal.SIGTERM


HANGING = """
import sys, time
from pocketvlm.engine import engine
from pocketvlm.cli import main
step = engine.Engine.step
def hang(self):
    time.sleep(0 if not self.requests else 3600)
    return step(self)
engine.Engine.step = {what}
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""
DYING = "lambda self: (_ for _ in ()).throw(SystemExit)"


@pytest.mark.parametrize(("what", "status", "words"), [("hang", 70, "time.sleep"), (DYING, 1, "the engine failed")])
def test_rule_8_a_hang_and_the_end_of_the_engine_end_the_process_with_a_reason(
    tmp_path: Path, what: str, status: int, words: str
) -> None:
    script = tmp_path / "server.py"
    script.write_text(HANGING.replace("{what}", what))
    server = start("--watchdog-seconds", "1", *NO_DECODERS, program=(str(script),))
    with httpx.Client(base_url=server.url, timeout=60) as client:
        body = {"messages": [{"role": "user", "content": "a"}]}
        try:
            assert client.post(CHAT, json=body).status_code >= 500
        except httpx.TransportError:
            assert status == 70, "nobody was told"
    assert server.end() == status
    assert words in "\n".join(server.log())


def test_rule_8_a_decoder_that_is_killed_costs_no_other_request(server: Serving) -> None:
    assert chat(server, messages=about(data_url(png())))[0] == 200
    listed = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    if not listed.exists():
        pytest.skip("needs Linux, which lists the children of a process")
    for line in listed.read_text().split():
        children = Path(f"/proc/{line}/task/{line}/children").read_text().split()
        for child in children:
            os.kill(int(child), signal.SIGKILL)
    assert chat(server, messages=about(data_url(png(33, 33))))[0] == 200
