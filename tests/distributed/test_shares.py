"""How a cluster is shared among engines, and what is no address of one."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from helpers.command import run
from hypothesis import given
from hypothesis import strategies as st

from pocketvlm.cli import command_parser
from pocketvlm.cli.ray_options import fleet_of, join_address
from pocketvlm.distributed.cluster import share
from pocketvlm.distributed.connection import cluster
from pocketvlm.errors import ConfigError


@given(
    cpus=st.integers(1, 512),
    machines=st.integers(1, 16),
    engines=st.none() | st.integers(1, 64),
    cores=st.none() | st.integers(1, 64),
)
def test_engines_and_what_prepares_for_them_fit_into_the_cores(
    cpus: int, machines: int, engines: int | None, cores: int | None
) -> None:
    if (engines or 1) * (cores or 1) > cpus or (engines is None and cores is None and machines > cpus):
        with pytest.raises(ConfigError, match="do not fit"):
            share({"CPU": cpus}, machines, engines, cores, "auto")
        return
    found = share({"CPU": cpus}, machines, engines, cores, "auto")
    assert found.engines == (engines or found.engines)
    assert found.cores == (cores or found.cores)
    assert found.engines * found.cores <= cpus
    # Two tasks that prepare run beside each engine without waiting for a core that no engine gives back.
    assert found.engines * (found.engine_cpus + 2 * found.preparing_cpus) <= cpus
    assert found.engine_cpus > 0


def test_each_gpu_has_an_engine_unless_fewer_are_asked_for() -> None:
    eight = {"CPU": 96.0, "GPU": 8.0}
    assert (share(eight, 2, None, None, "auto").engines, share(eight, 2, 3, None, "cuda").engines) == (8, 3)
    assert share(eight, 2, None, None, "auto").gpus == 1
    assert share(eight, 2, None, None, "cpu").gpus == 0
    with pytest.raises(ConfigError, match="8 GPUs"):
        share(eight, 2, 9, None, "auto")
    with pytest.raises(ConfigError, match="no GPU"):
        share({"CPU": 4.0}, 1, None, None, "cuda")


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
