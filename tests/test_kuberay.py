"""The examples for Kubernetes keep to KubeRay's own schema, and agree with the package and with themselves.

`kuberay-schema.json` is what KubeRay says of its resources (see NOTICE); fields that it does not know are refused.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pocketvlm.distributed.serving_options import Shape, check_settings
from pocketvlm.server.settings import ServerSettings

ROOT = Path(__file__).resolve().parents[1]
SCHEMA: dict[str, Any] = json.loads((ROOT / "tests" / "kuberay-schema.json").read_text())
FILES = sorted((ROOT / "deploy" / "kuberay").glob("*.yaml"))


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "kuberay" / name).read_text())
    return found


def cluster_of(resource: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = resource["spec"]
    found: dict[str, Any] = spec.get("rayClusterConfig") or spec["rayClusterSpec"]
    return found


def pods(resource: dict[str, Any]) -> list[dict[str, Any]]:
    """The specs of its pods, that of the head first."""
    cluster = cluster_of(resource)
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def faults(resource: dict[str, Any]) -> list[str]:
    schema = {**SCHEMA["kinds"][resource["kind"]], "$defs": SCHEMA["$defs"]}
    return [
        f"{error.json_path}: {error.message[:200]}"
        for error in jsonschema.Draft202012Validator(schema).iter_errors(resource)
    ]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_an_example_keeps_to_the_schema(file: Path) -> None:
    assert faults(read(file.name)) == []


def test_the_schema_finds_slips() -> None:
    resource = read("serve.yaml")
    pods(resource)[0]["containers"][0]["imagee"] = "x"
    pods(resource)[1]["containers"][0]["ports"] = "8000"
    cluster_of(resource)["workerGroupSpecs"][0]["maxReplicas"] = "5"
    del cluster_of(resource)["headGroupSpec"]["template"]
    resource["spec"]["serveConfigV2"] = {}
    assert len(faults(resource)) == 4, faults(resource)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_pods_have_what_ray_and_an_unprivileged_user_need(file: Path) -> None:
    resource = read(file.name)
    ray = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert ray is not None
    assert cluster_of(resource)["rayVersion"] == ray[1]
    assert cluster_of(resource)["authOptions"] == {"mode": "token"}, "Ray's ports let anybody run anything"
    user = re.search(r"^USER (\d+):(\d+)$", (ROOT / "deploy" / "Containerfile").read_text(), re.MULTILINE)
    assert user is not None
    for pod in pods(resource):
        assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsGroup"]) == (
            int(user[1]),
            int(user[2]),
        )
        (container,) = pod["containers"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert {"readinessProbe", "livenessProbe", "resources"} <= container.keys()
        assert {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"} in container["env"]
        mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert set(mounted) == {volume["name"] for volume in pod["volumes"]}
        assert {"/tmp", "/cache", "/dev/shm"} <= set(mounted.values())


def test_the_configuration_of_serve_is_one() -> None:
    resource = read("serve.yaml")
    config = yaml.safe_load(resource["spec"]["serveConfigV2"])
    (app,) = config["applications"]
    module, _, name = app["import_path"].partition(":")
    assert f"def {name}(" in (ROOT / "src" / (module.replace(".", "/") + ".py")).read_text()
    shape_names = Shape.__dataclass_fields__.keys()
    shape = Shape(**{key: value for key, value in app["args"].items() if key in shape_names})
    others = {key: value for key, value in app["args"].items() if key not in shape_names and key != "has_room"}
    settings = ServerSettings.read(others, {"POCKETVLM_API_KEYS": "a"})
    check_settings(settings, others, {})
    assert settings.host == config["http_options"]["host"], "what is served beyond loopback answers to any name"
    assert settings.request_seconds <= config["http_options"]["request_timeout_s"]
    (engines,) = cluster_of(resource)["workerGroupSpecs"]
    assert shape.scales
    assert engines["maxReplicas"] > shape.most, "a new replica starts before an old one ends"
    worker = pods(resource)[1]
    assert float(worker["containers"][0]["resources"]["limits"]["cpu"]) > float(shape.replica_cpus or 0)
    assert worker["terminationGracePeriodSeconds"] > settings.drain_seconds
    ports = {port["name"]: port["containerPort"] for port in worker["containers"][0]["ports"]}
    assert ports["serve"] == config["http_options"]["port"]
    assert worker["containers"][0]["readinessProbe"]["httpGet"] == {"path": "/-/healthz", "port": ports["serve"]}


def test_serve_itself_takes_the_configuration() -> None:
    schema = pytest.importorskip("ray.serve.schema", reason="needs the extra ray")
    config = schema.ServeDeploySchema.model_validate(yaml.safe_load(read("serve.yaml")["spec"]["serveConfigV2"]))
    (app,) = config.applications
    from ray._common.utils import import_attr
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary

    assert call_user_app_builder_with_args_if_necessary(import_attr(app.import_path), app.args) is not None
