"""Settings → an application of Ray Serve: replicas of our server, and the process in front of them.

`build` is what a config file of Serve names (`import_path: pocketvlm.distributed.serving.application:build`).
"""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig

from pocketvlm import __version__
from pocketvlm.distributed.serving.autoscaling import replicas_for_requests
from pocketvlm.distributed.serving.ingress import Ingress
from pocketvlm.distributed.serving.replica import Replica
from pocketvlm.distributed.serving.router import ConversationRouter
from pocketvlm.distributed.serving_options import (
    DOWNSCALE_SECONDS,
    UPSCALE_SECONDS,
    Shape,
    check_settings,
    travelling,
)
from pocketvlm.errors import ConfigError
from pocketvlm.ranges import show
from pocketvlm.server.settings import ServerSettings

NAME = "pocketvlm"
HEALTH_SECONDS = 5.0  # between two questions whether a replica is well
DRAIN_LOOK_SECONDS = 0.5  # between two looks at whether a replica's last request has ended
ROOM = 5.0  # seconds that the process in front has more than the replicas, to pass on their ends
MANY = 100_000  # requests that Serve lets into the process in front; it refuses by its own limits
QUIET = {"log_level": "WARNING", "enable_access_log": False}  # our own log has a line for each request
FAILURES = 3  # of a replica's start, in a row, before the deployment is given up


def application(settings: ServerSettings, shape: Shape, *, has_room: bool) -> serve.Application:
    """The application, for `serve.run`.

    Args:
        has_room: whether the cluster has room for one more replica; a new one is then started before an old one is
            ended when settings change.
    """
    values = travelling(settings)
    cpus = 1.0 if shape.replica_cpus is None else shape.replica_cpus
    gpus = float(settings.device == "cuda") if shape.replica_gpus is None else shape.replica_gpus
    routing: dict[str, Any] = {"request_router_class": ConversationRouter}
    routing["request_router_kwargs"] = {"slack": shape.target_requests}
    number: dict[str, Any] = {"num_replicas": shape.least}
    if shape.scales:
        number = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=shape.least,
                max_replicas=shape.most,
                target_ongoing_requests=shape.target_requests,
                upscale_delay_s=_given_or(shape.upscale_seconds, UPSCALE_SECONDS),
                downscale_delay_s=_given_or(shape.downscale_seconds, DOWNSCALE_SECONDS),
                policy=AutoscalingPolicy(policy_function=replicas_for_requests),
            )
        }
    replica: Any = serve.deployment(
        Replica,
        name="Replica",
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        max_ongoing_requests=settings.max_in_flight,
        max_queued_requests=settings.max_in_flight,
        request_router_config=RequestRouterConfig(**routing),
        health_check_period_s=HEALTH_SECONDS,
        graceful_shutdown_wait_loop_s=DRAIN_LOOK_SECONDS,
        graceful_shutdown_timeout_s=settings.drain_seconds,
        max_constructor_retry_count=FAILURES,
        max_surge_percent=1 if has_room else 0,  # of any number of replicas: one
        logging_config=QUIET,
        **number,
    )
    ingress: Any = serve.deployment(
        serve.ingress()(Ingress),
        name="Ingress",
        num_replicas=shape.ingresses,
        ray_actor_options={"num_cpus": 0.0},
        max_ongoing_requests=MANY,
        health_check_period_s=HEALTH_SECONDS,
        graceful_shutdown_wait_loop_s=DRAIN_LOOK_SECONDS,
        graceful_shutdown_timeout_s=settings.drain_seconds + ROOM,
        max_constructor_retry_count=FAILURES,
        max_surge_percent=100,
        logging_config=QUIET,
    )
    replicas = replica.bind(values, max(1, math.floor(cpus)), __version__)
    found: serve.Application = ingress.bind(replicas, values, shape.most)
    return found


def _given_or(value: float | None, default: float) -> float:
    return default if value is None else value


def build(args: dict[str, Any]) -> serve.Application:
    """The application of a config file of Ray Serve.

    Args:
        args: settings of the server and of `Shape` by their names, and `has_room`; settings may also be variables of
            the environment (keys, from a secret).

    Raises:
        ConfigError: one that does not exist, or that cannot be honoured.
    """
    shape_names, known = ({one.name for one in fields(kind)} for kind in (Shape, ServerSettings))
    unknown = args.keys() - shape_names - known - {"has_room"}
    if unknown:
        raise ConfigError(f"args has {show(sorted(unknown)[0])}, which is no setting of the server or of its replicas")
    options = {
        name: tuple(value) if isinstance(value, list) else value for name, value in args.items() if name in known
    }
    settings = ServerSettings.read(options)
    check_settings(settings, options)
    shape = Shape(**{name: value for name, value in args.items() if name in shape_names})
    return application(settings, shape, has_room=bool(args.get("has_room", False)))
