"""What /metrics tells of HTTP: every request once, by what came of it, and what is held now."""

from __future__ import annotations

import asyncio
import re

from helpers.app import CHAT, App, new_vlm, run

HELLO = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}


def counts(text: str) -> dict[tuple[str, str, str], int]:
    line = r'pocketvlm:http_requests_total\{handler="([^"]*)",method="([^"]*)",status="([^"]*)"\} (\S+)'
    return {(handler, method, status): int(float(n)) for handler, method, status, n in re.findall(line, text)}


def test_every_request_is_counted_once_by_what_came_of_it() -> None:
    async def ask() -> tuple[str, str]:
        async with await new_vlm() as vlm:
            app = App(vlm)
            for body in (HELLO, HELLO, {**HELLO, "stream": True}, {"messages": "x"}):
                await app.client.post(CHAT, json=body)
            await app.client.get("/v1/models/of/many/names")
            leaving = asyncio.create_task(
                app.client.post(CHAT, json={**HELLO, "max_tokens": 20_000, "ignore_eos": True})
            )
            while not vlm.engine.streams:
                await asyncio.sleep(0.01)
            during = (await app.client.get("/metrics")).text
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
            return during, (await app.client.get("/metrics")).text

    during, after = run(ask())
    assert counts(after) == {
        (CHAT, "POST", "200"): 3,
        (CHAT, "POST", "400"): 1,
        (CHAT, "POST", "499"): 1,
        ("/v1/models/{model:path}", "GET", "404"): 1,
        ("/metrics", "GET", "200"): 1,
    }
    assert "pocketvlm:http_requests_in_flight 1.0" in during
    assert "pocketvlm:http_requests_in_flight 0.0" in after
    assert "pocketvlm:http_held_bytes 0.0" in after
    assert f'http_request_duration_seconds_count{{handler="{CHAT}",method="POST"}} 5.0' in after
    assert "pocketvlm:requests_total 4.0" in after  # of the engine, which never saw the refused one


def test_two_applications_of_one_model_count_their_own() -> None:
    async def ask() -> list[str]:
        async with await new_vlm() as vlm:
            apps = [App(vlm), App(vlm)]
            await apps[0].client.post(CHAT, json=HELLO)
            return [(await app.client.get("/metrics")).text for app in apps]

    first, second = run(ask())
    assert (counts(first), counts(second)) == ({(CHAT, "POST", "200"): 1}, {})
