"""How a cluster is shared among engines, and what is no address of one."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.command import run
from hypothesis import given
from hypothesis import strategies as st

from pocketvlm.cli import command_parser
from pocketvlm.cli.ray_options import fleet_of, join_address
from pocketvlm.distributed import fleet
from pocketvlm.distributed.cluster import Machine, share
from pocketvlm.distributed.connection import cluster
from pocketvlm.distributed.stages import ModelSpec
from pocketvlm.errors import ConfigError
from pocketvlm.model.hub import resolve

MACHINES = st.lists(st.builds(Machine, st.integers(1, 64), st.just(0)), min_size=1, max_size=8)


@given(machines=MACHINES, engines=st.none() | st.integers(1, 64), cores=st.none() | st.integers(1, 64))
def test_engines_and_what_prepares_for_them_fit_on_the_machines(
    machines: list[Machine], engines: int | None, cores: int | None
) -> None:
    def room(many: int) -> int:
        return sum(machine.cpus // many for machine in machines)

    if room(cores or 1) < (engines or 1):
        with pytest.raises(ConfigError, match="do not fit"):
            share(machines, engines, cores)
        return
    found = share(machines, engines, cores)
    assert found.engines == (engines or found.engines)
    assert found.cores == (cores or found.cores)
    assert room(found.cores) >= found.engines >= 1
    if engines is None and cores is None:
        assert found.engines >= len(machines)
    # Two tasks that prepare run beside each engine without waiting for a core that no engine gives back.
    assert found.engine_cpus + 2 * found.preparing_cpus <= found.cores
    assert found.engine_cpus > 0


def test_an_engine_has_its_cores_on_one_machine() -> None:
    assert share([Machine(3)] * 4, 3, None).cores == 3
    for engines, cores in ((None, 8), (3, 4)):
        with pytest.raises(ConfigError, match="6 at most on one"):
            share([Machine(6)] * 2, engines, cores)


def test_each_gpu_has_an_engine_unless_fewer_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    eight = [Machine(48, 4)] * 2
    assert (share(eight, None, None).engines, share(eight, 3, None, device="cuda").engines) == (8, 3)
    assert share(eight, None, None).gpus == 1
    assert share(eight, None, None, device="cpu").gpus == 0
    assert share(eight, None, None, runtime="onnx").gpus == 0
    with monkeypatch.context() as patch:  # PyTorch is not installed
        patch.setattr("pocketvlm.distributed.cluster.find_spec", lambda _: None)
        assert share(eight, None, None).gpus == 0
    with pytest.raises(ConfigError, match="8 GPUs"):
        share(eight, 9, None)
    with pytest.raises(ConfigError, match="no GPU"):
        share([Machine(4)], None, None, device="cuda")
    with pytest.raises(ConfigError, match="sees one GPU"):
        share(eight, None, None, device="cuda:1")


@pytest.mark.parametrize(("cpus", "cores"), [(1, None), (16, None), (16, 15)])
def test_pictures_are_prepared_beside_an_engine_on_a_gpu(cpus: int, cores: int | None) -> None:
    found = share([Machine(cpus, 1)], None, cores)
    assert 0 < found.preparing_cpus <= cpus - found.engine_cpus


def test_an_engine_on_a_gpu_leaves_a_core() -> None:
    with pytest.raises(ConfigError, match="prepares pictures"):
        share([Machine(16, 1)], None, 16)


def test_windows_hold_a_number_of_rows_or_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "_MOST_BYTES", 10)
    rows = [(number, {"text": "x" * size}) for number, size in enumerate((1, 1, 1, 12, 4, 4, 4, 1))]
    windows = [list(window) for window in fleet._windows(iter(rows), 3)]
    assert windows == [[0, 1, 2], [3], [4, 5, 6], [7]]


@pytest.mark.parametrize(("ahead", "most"), [(1, 1), (2, 2), (16, 16), (17, 16)])
def test_an_engine_has_no_more_rows_at_a_time_than_it_may(ahead: int, most: int) -> None:
    made = fleet.Fleet(ModelSpec("nano", None, (), ""), share([Machine(2)], None, None), ahead)
    assert made._rows * made._calls == most


def test_a_file_that_is_called_as_the_model_is_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nano").write_text("a note")
    assert ModelSpec.of(resolve("nano"), {}).name == "nano"


@pytest.mark.parametrize("runtime", ["auto", "onnx"])
def test_gpus_that_cannot_be_used_are_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, runtime: str
) -> None:
    monkeypatch.setattr("pocketvlm.distributed.cluster.find_spec", lambda _: None)
    assert share([Machine(16, 2)], None, None, runtime=runtime).gpus == 0
    assert ("PyTorch is not installed" in caplog.text) == (runtime == "auto")


@pytest.mark.parametrize("address", ["here", "host:0", "host:99999", "host:port", "ray://head:10001"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="address"), cluster(address):
        pass


def test_an_address_where_nobody_answers_is_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        with pytest.raises(ConfigError, match="nothing listens"), cluster(f"127.0.0.1:{taken.getsockname()[1]}"):
            pass


@pytest.mark.parametrize(
    ("given_", "read"),
    [
        (["--ray", "in.jsonl", "out.jsonl"], ["--ray=", "in.jsonl", "out.jsonl"]),
        (["--ray", "auto", "in.jsonl"], ["--ray=auto", "in.jsonl"]),
        (["a.pdf", "--ray", "head:6379"], ["a.pdf", "--ray=head:6379"]),
        (["a.pdf", "--ray", "ray://head:10001"], ["a.pdf", "--ray=ray://head:10001"]),
        (["--ray=head:6379", "a.pdf"], ["--ray=head:6379", "a.pdf"]),
        (["a.pdf", "--ray"], ["a.pdf", "--ray="]),
        (["--ray", "--engines", "2"], ["--ray=", "--engines", "2"]),
        (["--ray", "./page:2"], ["--ray=", "./page:2"]),
        (["--ray", "gs://bucket/scans/"], ["--ray=", "gs://bucket/scans/"]),
        (["--ray", "https://host/a.pdf"], ["--ray=", "https://host/a.pdf"]),
    ],
)
def test_no_file_is_taken_for_an_address(given_: list[str], read: list[str]) -> None:
    assert join_address(given_) == read


@pytest.mark.parametrize("command", ["batch", "read", "extract"])
def test_engines_without_ray_are_refused(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    more = {"batch": ["in.jsonl", "out.jsonl"], "read": ["a.png", "--out", "o"]}.get(
        command, ["a.png", "--out", "o.csv", "--schema", "a: string"]
    )
    status, _, err = run(capsys, command, "--engines", "2", *more)
    assert (status, err.count("\n")) == (2, 1)
    assert "--ray" in err


def test_what_ray_prints_is_no_part_of_the_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextmanager
    def talkative(*_: object, **__: object) -> Iterator[None]:
        print("(raylet) A worker died")
        yield

    monkeypatch.setattr("pocketvlm.distributed.fleet.open_fleet", talkative)
    parser = command_parser("batch")
    with fleet_of(parser.parse_args(["--ray=", "in.jsonl", "out.jsonl"])):
        print("(raylet) A task failed")
    assert capsys.readouterr() == ("", "(raylet) A worker died\n(raylet) A task failed\n")
