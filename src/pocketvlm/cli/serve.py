"""pocketvlm serve: the model behind OpenAI's API."""

from __future__ import annotations

import argparse
import os
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

from pocketvlm.cli.common import add_json, add_model, loaded
from pocketvlm.cli.console import put_json, say
from pocketvlm.server.settings import ServerSettings, option_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    for one in fields(ServerSettings):
        default, text = one.default, one.metadata["help"]
        if isinstance(default, tuple):
            how: dict[str, Any] = {"action": "append", "help": f"{text}; may be given several times"}
        elif isinstance(default, bool):
            how = {"action": argparse.BooleanOptionalAction, "default": None, "help": text}
        else:
            how = {"type": type(default), "help": f"{text} (default {default})" if default != "" else text}
        parser.add_argument(option_of(one.name), dest=one.name, **how)
    parser.add_argument("--config", type=Path, help="a TOML file of settings")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from pocketvlm.server.run import listen, serve

    options = {one.name: getattr(args, one.name) for one in fields(ServerSettings)}
    settings = ServerSettings.read(options, file=args.config)
    # Before minutes are spent on loading.
    if settings.mcp:
        import_module("pocketvlm.mcp_server")  # it says which extra is missing
    listen(settings).close()

    def on_ready(url: str) -> None:
        if args.json:
            put_json({"url": url, "pid": os.getpid()})
        else:
            page = f", with a page to ask it on at {url}/" if settings.page else ""
            say(f"Serving at {url}/v1{page}; Ctrl-C ends it.")

    with loaded(args) as vlm:
        vlm.progress = None
        serve(vlm, settings, on_ready)
    return 0
