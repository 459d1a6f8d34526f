"""`pocketvlm bench serving`: its arithmetic, its load, and a run against a server of its own."""

from __future__ import annotations

import asyncio
import io
import json
from typing import Any

import pytest
from helpers.command import run
from helpers.serving import KEY, Serving
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pocketvlm.benchmark.serving import targets
from pocketvlm.benchmark.serving.arrivals import closed_loop, open_loop
from pocketvlm.benchmark.serving.figures import Record, peak, summary
from pocketvlm.benchmark.serving.run import median_of
from pocketvlm.benchmark.serving.workload import DISTINCT, Body, Workload, jpeg
from pocketvlm.cli import main

TERMS = [f"{word}_{name}_ms" for word in ("mean", "median", "p99") for name in ("ttft", "tpot", "itl", "e2el")]


def test_times_and_rates_are_those_of_the_definitions() -> None:
    records = [
        Record(0.0, 4.0, [1.0, 2.0, 4.0], prompt_tokens=10, output_tokens=4, images=1),
        Record(1.0, 5.0, [3.0, 5.0], prompt_tokens=10, output_tokens=2, images=1),
        Record(2.0, 5.0, failure="HTTP 429"),
    ]
    found = summary(records, {"ttft": 1500.0})
    assert (found["completed"], found["failed"], found["failures"]) == (2, 1, {"HTTP 429": 1})
    assert found["duration"] == 5.0
    assert (found["mean_ttft_ms"], found["mean_e2el_ms"]) == (1500.0, 4000.0)
    assert found["mean_tpot_ms"] == 1500.0  # 3 s over 3 gaps, and 2 s over 1
    assert found["mean_itl_ms"] == pytest.approx(1000 * (1 + 2 + 2) / 3, abs=0.001)
    assert (found["request_throughput"], found["output_throughput"]) == (0.4, 1.2)
    assert (found["total_token_throughput"], found["image_throughput"]) == (5.2, 0.4)
    assert found["request_goodput"] == 0.2
    assert found["peak_concurrency"] == 3


def test_nothing_completed_has_no_times_and_no_failure_of_its_own() -> None:
    found = summary([Record(0.0, 1.0, failure="TimeoutError")], {})
    assert found["failed"] == 1
    assert all(found[term] is None for term in TERMS)
    assert "request_goodput" not in found


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 50)), min_size=1, max_size=20))
def test_the_peak_is_the_largest_number_at_any_moment(spans: list[tuple[int, int]]) -> None:
    records = [Record(float(begin), float(begin + length)) for begin, length in spans]
    at_any = max(sum(begin <= moment < begin + length for begin, length in spans) for moment in range(101))
    assert peak(records) == at_any


def test_a_median_of_rounds_adds_failures_up() -> None:
    rounds = [summary([Record(0.0, end, failure="HTTP 500"), Record(0.0, end)], {}) for end in (1.0, 5.0, 2.0)]
    one = median_of(rounds)
    assert (one["completed"], one["failed"], one["failures"]) == (3, 3, {"HTTP 500": 3})
    assert one["mean_e2el_ms"] == 2000.0


def pictures(bodies: list[dict[str, Any]]) -> list[str]:
    return [body["messages"][0]["content"][0]["image_url"]["url"] for body in bodies]


def test_cold_pictures_are_new_each_and_warm_ones_were_asked_about_before() -> None:
    cold = Workload(requests=12, side=16)
    assert len(set(pictures(cold.bodies()))) == 12
    assert not set(pictures(cold.bodies())) & set(pictures(cold.before(3)))
    warm = Workload(requests=12, side=16, cache="warm")
    assert len(set(pictures(warm.bodies()))) == DISTINCT
    assert set(pictures(warm.bodies())) <= set(pictures(warm.before(3)))
    assert cold.bodies() == Workload(requests=12, side=16).bodies()
    questions = [body["messages"][0]["content"][-1]["text"] for body in warm.bodies()]
    assert len(set(questions)) == 12


def test_noise_makes_files_of_several_times_the_size() -> None:
    natural, noise = jpeg("natural", 448, 0), jpeg("noise", 448, 0)
    assert len(noise) > 3 * len(natural)
    assert {Image.open(io.BytesIO(file)).size for file in (natural, noise)} == {(448, 448)}


class Slow:
    """Answers after a moment, and counts how many it was asked at a time."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.asked = list[Any]()

    async def ask(self, body: Any) -> Record:
        self.asked.append(body["number"])
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.002)
        self.now -= 1
        return Record(0.0, 1.0)


@pytest.mark.parametrize("concurrency", [1, 3, 50])
def test_a_closed_loop_keeps_so_many_under_way(concurrency: int) -> None:
    target, bodies = Slow(), [{"number": number} for number in range(12)]
    records = asyncio.run(closed_loop(target, bodies, concurrency, lambda *_: None))
    assert len(records) == 12
    assert target.asked == list(range(12))
    assert target.most == min(concurrency, 12)


def test_an_open_loop_sends_whatever_becomes_of_those_before() -> None:
    target, bodies = Slow(), [{"number": number} for number in range(12)]
    records = asyncio.run(open_loop(target, bodies, 100_000.0, 0, lambda *_: None))
    assert len(records) == 12
    assert target.asked == list(range(12))
    assert target.most > 3


SMALL = ("--requests", "3", "--max-tokens", "3", "--image-size", "64", "--warmup", "1", "--json")


def test_a_run_with_its_own_server_and_the_engine_beside_it_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POCKETVLM_API_KEYS", "of-another-server")
    monkeypatch.setenv("POCKETVLM_HOST", "192.0.2.1")  # which this machine does not have
    objectives = ("--goodput", "ttft:100000", "tpot:100000")
    status, out, err = run(capsys, "bench", "serving", *SMALL, "--in-process", *objectives)
    assert status == 0, err
    (line,) = out.splitlines()
    found = json.loads(line)
    for figures in (found, found["in_process"]):
        assert (figures["completed"], figures["failed"]) == (3, 0)
        assert figures["total_output_tokens"] == 9
        assert figures["request_goodput"] == figures["request_throughput"]
        assert all(figures[term] > 0 for term in TERMS)
    assert found["total_input_tokens"] == found["in_process"]["total_input_tokens"]


def test_failures_are_counted_and_told_of(server: Serving, capsys: pytest.CaptureFixture[str]) -> None:
    def bench_here(*options: str) -> tuple[int, str, str]:
        return run(capsys, "bench", "serving", "--url", f"{server.url}/v1", *SMALL, *options)

    status, out, err = bench_here("--api-key", "wrong")
    assert (status, out, err.count("\n")) == (1, "", 1)
    status, out, err = bench_here("--api-key", KEY, "--request-rate", "50")
    assert status == 0, err
    assert json.loads(out)["request_rate"] == 50
    # More than the server gives: the warm-up says so, and nothing is measured.
    status, out, err = bench_here("--api-key", KEY, "--max-tokens", "100000")
    assert (status, out) == (1, "")
    assert "HTTP 400" in err


@pytest.mark.parametrize(
    "options",
    [
        ("--requests", "0"),
        ("--request-rate", "0"),
        ("--goodput", "speed:3"),
        ("--goodput", "ttft"),
        ("--goodput", "ttft:nan"),
        ("--url", "http://127.0.0.1:1/v1", "--in-process"),
    ],
)
def test_wrong_options_are_one_line(options: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serving", *options]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1


def test_a_kept_connection_that_the_server_ends_is_no_failure_and_a_server_that_never_answers_is_one() -> None:
    chunk = json.dumps({"choices": [{"delta": {"content": "a"}}]})
    stream = f"data: {chunk}\n\ndata: [DONE]\n\n"
    asked = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One answer, and an end without a word when the next request has come."""
        for number in range(2):
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
            asked.append(number)
            if number or is_silent:
                break
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(stream)}\r\n\r\n{stream}".encode())
        writer.close()

    async def ask(count: int) -> list[str]:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        body: Body = {"messages": [{"content": []}]}
        async with server, targets.by_http(url, None) as target:
            return [(await target.ask(body)).failure for _ in range(count)]

    is_silent = False
    assert asyncio.run(ask(3)) == ["", "", ""]
    assert 1 in asked
    is_silent = True
    assert asyncio.run(ask(1)) == ["ServerDisconnectedError"]
