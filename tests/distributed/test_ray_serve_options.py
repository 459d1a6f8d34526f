"""What `pocketvlm serve --ray` is asked for that it cannot do is refused in one line, before anything is started."""

from __future__ import annotations

import socket
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from helpers.command import run

from pocketvlm.distributed.serving_options import RANGES, REFUSED, Shape, check_settings, travelling
from pocketvlm.errors import ConfigError
from pocketvlm.server.settings import ServerSettings, option_of

pytest.importorskip("ray.serve", reason="needs the extra ray")


def refused(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    status, out, err = run(capsys, "serve", "--port", "0", *options)
    assert (status, out, err.count("\n")) == (2, "", 1), err
    return err


@pytest.mark.parametrize(
    "address", ["nonsense", "127.0.0.1:0", "ray://127.0.0.1:1", "127.0.0.1:x", "\x00:1", "a" * 300 + ":1"]
)
def test_an_address_that_is_none_is_refused(capsys: pytest.CaptureFixture[str], address: str) -> None:
    assert "--ray" in refused(capsys, "--ray", address)


def test_an_address_where_nothing_listens_is_refused_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    assert "nothing listens there" in refused(capsys, "--ray", f"127.0.0.1:{port}")


def test_any_port_is_refused_on_a_cluster_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each machine would take another one, and nobody would know which."""
    from pocketvlm.distributed.connection import Cluster
    from pocketvlm.distributed.serving import run as serving

    monkeypatch.setattr(serving, "_running", lambda: None)
    monkeypatch.setattr(serving.serve, "start", lambda **_: pytest.fail("it was started"))
    with pytest.raises(ConfigError, match="port 0 is another one on each machine"):
        serving._start(ServerSettings(port=0), Cluster("127.0.0.1:1", is_own=False))


@pytest.mark.parametrize("name", RANGES)
def test_options_of_replicas_are_refused_without_ray_and_out_of_range(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    option = f"--{name.replace('_', '-')}"
    assert f"{option} is for --ray" in refused(capsys, option, "1")
    assert option in refused(capsys, "--ray", "127.0.0.1:1", option, "-1")


@pytest.mark.parametrize("name", REFUSED)
def test_a_setting_that_many_replicas_cannot_honour_is_refused_wherever_it_comes_from(
    name: str, tmp_path: Path
) -> None:
    known = {one.name: one for one in fields(ServerSettings)}
    default = known[name].default
    plain, other = ServerSettings(), {bool: True, float: 7.0, int: 7, tuple: (str(tmp_path),)}[type(default)]
    check_settings(plain, {}, {})
    for settings, options, environment in (
        (ServerSettings(**{name: other}), {}, {}),  # of a file
        (plain, {name: default}, {}),
        (plain, {}, {f"POCKETVLM_{name.upper()}": "1"}),
    ):
        with pytest.raises(ConfigError, match=f"^{option_of(name)} is not possible with --ray"):
            check_settings(settings, options, environment)


def test_numbers_of_replicas_that_contradict_each_other_are_refused() -> None:
    contradictions = [{"replicas": 2, "max_replicas": 3}, {"min_replicas": 3, "max_replicas": 2}, {"replica_gpus": 2.0}]
    for values in (*contradictions, {"upscale_seconds": 1.0}, {"replicas": 2, "downscale_seconds": 0.0}):
        with pytest.raises(ConfigError):
            Shape(**values)  # type: ignore[arg-type]
    assert (Shape().least, Shape().most, Shape().scales) == (2, 2, False)
    assert (Shape(max_replicas=5).least, Shape(max_replicas=5).most) == (1, 5)
    assert (Shape(min_replicas=4).least, Shape(min_replicas=4).most) == (4, 4)


def test_more_replicas_than_this_machine_has_room_for_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "999 replicas of 7 processors" in refused(capsys, "--ray", "--replicas", "999", "--replica-cpus", "7")


def test_files_and_folders_travel_by_their_whole_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("model", "media", "adapter"):
        (tmp_path / name).mkdir()
    settings = ServerSettings(model="model", media_roots=("media",), adapters=("a=adapter",), api_key_file="keys")
    values = travelling(settings)
    assert values["model"] == str(tmp_path / "model")
    assert values["media_roots"] == (str(tmp_path / "media"),)
    assert values["adapters"] == (f"a={tmp_path / 'adapter'}",)
    assert values["api_key_file"] == str(tmp_path / "keys")
    assert ServerSettings(**values).adapter_folders == {"a": tmp_path / "adapter"}
    assert travelling(ServerSettings())["model"] == "nano"


@pytest.mark.parametrize(("given", "wanted"), [({}, (10.0, 300.0)), ({"up": 0.0, "down": 7.0}, (0.0, 7.0))])
def test_delays_of_scaling_are_those_that_were_asked_for(given: dict[str, float], wanted: tuple[float, float]) -> None:
    from pocketvlm.distributed.serving.application import application

    delays = {f"{way}scale_seconds": value for way, value in given.items()}
    app: Any = application(ServerSettings(), Shape(min_replicas=1, max_replicas=3, **delays), has_room=True)
    (replica,) = app._bound_deployment.init_args[:1]
    scaling = replica._bound_deployment._deployment_config.autoscaling_config
    assert (scaling.upscale_delay_s, scaling.downscale_delay_s) == wanted


def test_a_config_file_of_serve_makes_the_same_application_and_its_slips_are_refused() -> None:
    from pocketvlm.distributed.serving.application import build

    app = build({"model": "nano", "min_replicas": 1, "max_replicas": 4, "served_model_names": ["reader"]})
    assert app is not None
    for args, words in (({"modle": "nano"}, "'modle'"), ({"send_seconds": 9.0}, "--send-seconds")):
        with pytest.raises(ConfigError, match=words):
            build(args)
