"""pocketvlm serve: the model behind OpenAI's API."""

from __future__ import annotations

import argparse
import ipaddress
import os
from contextlib import ExitStack, suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketvlm.cli import serve_ray
from pocketvlm.cli.common import PLACES, directory_of, loaded
from pocketvlm.cli.console import ReaderLeftError, interrupts_count, put_json, say
from pocketvlm.config import check_device_name, check_dtype_name, check_runtime_name
from pocketvlm.errors import ConfigError, need
from pocketvlm.machine import use_one_heap
from pocketvlm.processing.media_forkserver import start_early
from pocketvlm.server.settings import GROUPS, ServerSettings, bare_name, kind_of, option_of, shown_default

if TYPE_CHECKING:
    from pocketvlm.api.vlm import VLM
    from pocketvlm.server.run import Decoding


def add_arguments(parser: argparse.ArgumentParser) -> None:
    # A usage line with all options would fill the screen.
    parser.usage = "pocketvlm serve [--model MODEL] [--host HOST] [--port PORT] [--api-key KEY] [OPTION ...]"
    parser.epilog = (
        "Every setting can also be an environment variable (POCKETVLM_PORT=8000) or a line of the --config file "
        "(port = 8000). Options override variables, and variables override the file. "
        "docs/serving.md lists all settings with their ranges."
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file with settings")
    parser.add_argument("--json", action="store_true", help="print one JSON line with url and pid when ready")
    group: Any = parser
    for one in fields(ServerSettings):
        if one.name in GROUPS:
            group = parser.add_argument_group(GROUPS[one.name])
        default, text = one.default, one.metadata["help"]
        how: dict[str, Any] = {"help": f"{text} (default {shown_default(default)})"}
        if isinstance(default, bool):
            how |= {"action": argparse.BooleanOptionalAction, "default": None}
        else:
            how["metavar"] = _metavar(one.name, default, one.metadata["allowed"])
            if isinstance(default, tuple):
                how |= {"action": "append", "help": f"{text}; may be given several times"}
            elif default == "":
                how["help"] = text
            how |= {} if isinstance(default, tuple) else {"type": kind_of(one)}
        group.add_argument(option_of(one.name), dest=one.name, **how)
    serve_ray.add_arguments(parser)


def _metavar(name: str, default: Any, allowed: Any) -> str:
    """What stands for the value of an option: KEY, SECONDS, text|json."""
    if isinstance(allowed, tuple):
        return "|".join(allowed)
    unit = option_of(name).rpartition("-")[2].upper()
    if name.endswith("memory"):
        return "BYTES"
    if name == "adapters":
        return "NAME=DIR"
    if isinstance(default, int | None) and unit not in ("PORT", "BYTES"):
        return "N"
    return {"ROOT": "DIR", "ENDPOINT": "URL"}.get(unit, unit)


def run(args: argparse.Namespace) -> int:
    shape = serve_ray.shape_of(args)
    with interrupts_count():
        settings = _settings(args, listens=shape is None)
    if shape is not None:
        return serve_ray.run(args, settings, shape)
    with ExitStack() as stack:
        with interrupts_count():
            vlm, decoding = _made_ready(args, settings, stack)
        from pocketvlm.server.run import serve

        def on_ready(url: str) -> None:
            if args.json:
                with suppress(ReaderLeftError):  # whoever started it has gone; those who ask have not
                    put_json({"url": url, "pid": os.getpid()})
            else:
                page = f", with a page to ask it on at {url}/" if settings.page else ""
                say(f"Serving at {url}/v1{page}; Ctrl-C ends it.")

        serve(vlm, settings, on_ready, decoding)
    return 0


def _settings(args: argparse.Namespace, *, listens: bool) -> ServerSettings:
    """Of all sources, checked as far as they can be before anything is loaded."""
    options = {one.name: getattr(args, one.name) for one in fields(ServerSettings)}
    settings = ServerSettings.read(options, file=args.config)
    for name in ("model", *PLACES):
        setattr(args, name, getattr(settings, name))
    _check(args, settings, listens=listens)
    return settings


def _made_ready(args: argparse.Namespace, settings: ServerSettings, stack: ExitStack) -> tuple[VLM, Decoding]:
    """Model and decoders, until `stack` ends."""
    use_one_heap()
    if settings.preprocess_processes:
        start_early()  # the imports below take as long as its own
    from pocketvlm.server.run import decoding_of

    # None would let the model go to a runtime that takes none later either.
    adapters = settings.adapter_folders if settings.adapters or settings.adapter_roots else None
    vlm = stack.enter_context(loaded(args, settings.engine_config, adapters))
    vlm.progress = None
    return vlm, stack.enter_context(decoding_of(settings))


def _check(args: argparse.Namespace, settings: ServerSettings, *, listens: bool) -> None:
    """Refuse what can be seen to be wrong before seconds are spent on imports, and minutes on loading.

    Args:
        listens: whether the address is ours to listen on; a cluster may do so already.
    """
    from pocketvlm.bundle import parse_quantization
    from pocketvlm.server.keys import KeyCheck
    from pocketvlm.server.listening import listen
    from pocketvlm.server.origins import is_local

    check_device_name(settings.device)
    check_dtype_name(settings.dtype)
    check_runtime_name(settings.runtime)
    if settings.quantization != "auto":
        parse_quantization(settings.quantization)
    if settings.runtime == "onnx":
        need("onnxruntime", "onnxruntime", "onnx")
    if settings.runtime == "onnx" and (settings.adapters or settings.adapter_roots):
        raise ConfigError("the onnx runtime takes no adapters beside its weights", hint="Use --runtime torch.")
    if settings.runtime == "torch" or settings.device.startswith("cuda") or settings.adapters or settings.adapter_roots:
        need("torch", "torch", "torch")
    if settings.mcp:
        need("mcp", "mcp", "mcp")
    if settings.otlp_endpoint:
        need("opentelemetry.sdk", "opentelemetry-sdk", "otel")
    directory = directory_of(args)
    served = settings.served_model_names or (settings.model,)
    for name, folder in settings.adapter_folders.items():
        if bare_name(name) in map(bare_name, served):
            raise ConfigError(f"--adapter {name!r:.80} has the name of the model itself", hint="Give it another name.")
        directory.with_adapter(folder)
    KeyCheck.of(settings)
    if listens:
        with listen(settings) as sock:
            is_reached = not ipaddress.ip_address(sock.getsockname()[0]).is_loopback
    else:
        is_reached = not is_local(settings.host)
    if is_reached and not (settings.api_keys or settings.api_key_file):
        say(f"Anybody who reaches {settings.host} may ask: no API key is set. Set one with --api-key KEY.")
