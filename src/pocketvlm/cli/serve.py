"""pocketvlm serve: the model behind OpenAI's API."""

from __future__ import annotations

import argparse
import ipaddress
import os
from contextlib import suppress
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

from pocketvlm.cli.common import PLACES, loaded
from pocketvlm.cli.console import ReaderLeftError, put_json, say
from pocketvlm.processing.media_forkserver import start_early
from pocketvlm.server.settings import GROUPS, ServerSettings, kind_of, option_of, shown_default


def add_arguments(parser: argparse.ArgumentParser) -> None:
    # Of more than forty options a usage line would fill the screen.
    parser.usage = "pocketvlm serve [--model MODEL] [--host HOST] [--port PORT] [--api-key KEY] [OPTION ...]"
    parser.epilog = (
        "Each setting of the server can also be a variable, POCKETVLM_PORT=8000, or stand in the file of --config, "
        "port = 8000. An option goes before a variable, a variable before the file. "
        "docs/serving.md has all of them with their ranges."
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="a TOML file of settings")
    parser.add_argument("--json", action="store_true", help="print one JSON line, url and pid, once it is ready")
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


def _metavar(name: str, default: Any, allowed: Any) -> str:
    """What stands for the value of an option: KEY, SECONDS, text|json."""
    if isinstance(allowed, tuple):
        return "|".join(allowed)
    unit = option_of(name).rpartition("-")[2].upper()
    if isinstance(default, int) and unit not in ("PORT", "BYTES"):
        return "N"
    return {"ROOT": "DIR", "ENDPOINT": "URL"}.get(unit, unit)


def run(args: argparse.Namespace) -> int:
    options = {one.name: getattr(args, one.name) for one in fields(ServerSettings)}
    settings = ServerSettings.read(options, file=args.config)
    if settings.preprocess_processes:
        start_early()  # the imports below take as long as its own
    from pocketvlm.server.keys import KeyCheck
    from pocketvlm.server.run import decoding_of, listen, serve

    # Before minutes are spent on loading.
    if settings.mcp:
        import_module("pocketvlm.mcp_server")  # it says which extra is missing
    KeyCheck.of(settings)
    with listen(settings) as sock:
        is_local = ipaddress.ip_address(sock.getsockname()[0]).is_loopback
    if not (is_local or settings.api_keys or settings.api_key_file):
        say(f"Anybody who reaches {settings.host} may ask: there are no keys. --api-key KEY gives one.")

    def on_ready(url: str) -> None:
        if args.json:
            with suppress(ReaderLeftError):  # whoever started it has gone; those who ask have not
                put_json({"url": url, "pid": os.getpid()})
        else:
            page = f", with a page to ask it on at {url}/" if settings.page else ""
            say(f"Serving at {url}/v1{page}; Ctrl-C ends it.")

    for name in ("model", *PLACES):
        setattr(args, name, getattr(settings, name))
    # Processes that decode start while the model is loaded.
    with decoding_of(settings) as decoding, loaded(args, settings.engine_config) as vlm:
        vlm.progress = None
        serve(vlm, settings, on_ready, decoding)
    return 0
