"""`batch`, `read` and `extract` on two engines of a Ray cluster: the same rows, each once, whatever ends on the way."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from helpers.command import run
from PIL import Image

from pocketvlm.distributed.cluster import Shares
from pocketvlm.distributed.fleet import Fleet
from pocketvlm.distributed.stages import ModelSpec, Outcome, Row
from pocketvlm.errors import EngineError, PromptError
from pocketvlm.model.hub import resolve

RECEIPT = Path("examples/receipt.png").resolve()
SHARES = Shares(engines=2, cores=1, gpus=0, engine_cpus=0.5, preparing_cpus=0.25)
QUESTION = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module", autouse=True)
def _cluster(_own_cache: None) -> Iterator[None]:
    """One for all tests here, of this machine alone."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(address="local", num_cpus=2, object_store_memory=200_000_000, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def fleet() -> Fleet:
    places = {"device": "cpu", "dtype": "auto", "runtime": "torch", "quantization": "auto"}
    return Fleet(ModelSpec.of(resolve("nano"), places), SHARES, ahead=8)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_batch_on_ray_answers_as_one_engine_does(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    requests = tmp_path / "in.jsonl"
    Image.open(RECEIPT).save(tmp_path / "receipt.png")
    with requests.open("w") as file:
        for number in range(14):
            picture = {"type": "image", "image": "absent.png" if number % 5 == 3 else "receipt.png"}
            text = {"type": "text", "text": f"What is the total?{' ' * number}"}
            body = {"messages": [{"role": "user", "content": [picture, text]}], "max_tokens": 6}
            if number == 6:
                body["stream"] = True
            line = {"custom_id": f"n{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")
    there, here = tmp_path / "there.jsonl", tmp_path / "here.jsonl"
    status, out, _ = run(capsys, "batch", "--ray", "--engines", "2", "--json", str(requests), str(there))
    counts = json.loads(out)
    assert (status, counts["requests"], counts["failed"]) == (1, 14, 4)
    run(capsys, "batch", str(requests), str(here))
    for one, other in zip(lines_of(there), lines_of(here), strict=True):
        assert one["custom_id"] == other["custom_id"]
        mine, theirs = one["response"], other["response"]
        assert mine["status_code"] == theirs["status_code"]
        if mine["status_code"] == 200:
            assert mine["body"]["choices"] == theirs["body"]["choices"]


def test_extract_on_ray_writes_the_same_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    picture = Image.open(RECEIPT).convert("RGB")
    picture.save(folder / "a.pdf", save_all=True, append_images=[picture.rotate(180)])
    picture.save(folder / "b.png")
    (folder / "c.png").write_text("broken")
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"type": "object", "properties": {"total": {"enum": ["11.60", "7.20"]}}}))
    outs = [tmp_path / "there.jsonl", tmp_path / "here.jsonl"]
    for out, more in zip(outs, (["--ray", "--engines", "2"], []), strict=True):
        status, _, _ = run(capsys, "extract", str(folder), "--schema", str(schema), "--out", str(out), *more)
        assert status == 1
    there, here = map(lines_of, outs)
    for one, other in zip(there, here, strict=True):
        assert {**one, "confidence": None} == {**other, "confidence": None}
        assert one["confidence"] == pytest.approx(other["confidence"], abs=0.01)


def test_rows_come_out_once_though_engines_are_killed(fleet: Fleet, tmp_path: Path) -> None:
    killed = str(tmp_path)

    class DeadlyTwice:
        """Ends its process twice, with rows 5 and 17."""

        def request(self, row: Row) -> tuple[Any, Any]:
            if row["bad"]:
                raise PromptError("a bad row")
            return QUESTION, {"max_tokens": 1}

        def value(self, row: Row, outcome: Outcome) -> dict[str, Any]:
            mark = Path(killed, f"{row['number']}")
            if row["number"] in (5, 17) and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            error = str(outcome) if isinstance(outcome, Exception) else None
            return {"number": row["number"], "error": error}

    rows = [(number, {"number": number, "bad": number % 10 == 9}) for number in range(40)]
    found = list(fleet.answer(rows, DeadlyTwice()))
    assert sorted(number for number, _ in found) == list(range(40))
    assert len(list(tmp_path.iterdir())) == 2
    for number, value in found:
        assert value == {"number": number, "error": "a bad row" if number % 10 == 9 else None}


def test_a_row_that_ends_every_engine_costs_itself_only(fleet: Fleet) -> None:
    class Poisonous:
        def request(self, row: Row) -> tuple[Any, Any]:  # noqa: ARG002
            return QUESTION, {"max_tokens": 1}

        def value(self, row: Row, outcome: Outcome) -> str | None:
            if not isinstance(outcome, Exception) and row["poison"]:
                os.kill(os.getpid(), signal.SIGKILL)
            return str(outcome) if isinstance(outcome, Exception) else None

    found = dict(fleet.answer([(n, {"poison": n == 2}) for n in range(6)], Poisonous()))
    assert set(found) == set(range(6))
    assert [number for number, error in found.items() if error] == [2]
    assert "ended" in str(found[2])


def test_machines_with_other_weights_refuse(fleet: Fleet) -> None:
    class Whatever:
        def request(self, row: Row) -> tuple[Any, Any]:  # noqa: ARG002
            return QUESTION, {"max_tokens": 1}

        def value(self, row: Row, outcome: Outcome) -> str:  # noqa: ARG002
            return str(outcome)

    other = ModelSpec("nano", None, fleet.spec.places, "0" * 64)
    with pytest.raises(Exception, match="other weights"):
        list(Fleet(other, SHARES, ahead=8).answer([(0, {})], Whatever()))


@pytest.mark.parametrize("stage", ["request", "value"])
def test_a_fault_in_the_program_ends_the_run_and_is_said(fleet: Fleet, stage: str) -> None:
    """Ray would drop it, and blame processes that ended."""

    class Faulty:
        def request(self, row: Row) -> tuple[Any, Any]:  # noqa: ARG002
            if stage == "request":
                raise ZeroDivisionError("no such number")
            return QUESTION, {"max_tokens": 1}

        def value(self, row: Row, outcome: Outcome) -> str:  # noqa: ARG002
            raise ZeroDivisionError("no such number")

    with pytest.raises(EngineError, match="ZeroDivisionError: no such number") as caught:
        list(fleet.answer([(0, {})], Faulty()))
    assert "\n" not in str(caught.value)
