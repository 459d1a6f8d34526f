"""pocketvlm serve: the model behind OpenAI's API."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from pocketvlm.cli.common import add_json, add_model, loaded
from pocketvlm.cli.console import put_json, say
from pocketvlm.errors import MissingExtraError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--host", help="address to listen on (default 127.0.0.1, this machine alone)")
    parser.add_argument("--port", type=int, help="port to listen on; 0 takes a free one (default 8000)")
    parser.add_argument("--api-key", action="append", help="a key that clients must give; may be given several times")
    parser.add_argument("--served-model-name", action="append", help="what requests call the model; may be several")
    parser.add_argument("--config", type=Path, help="a TOML file of settings")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    try:
        from pocketvlm.server.run import listen, serve
        from pocketvlm.server.settings import ServerSettings
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "fastapi", "serve") from None
    options = {
        "host": args.host,
        "port": args.port,
        "api_keys": args.api_key,
        "served_model_names": args.served_model_name,
    }
    settings = ServerSettings.read(options, file=args.config)
    listen(settings).close()  # before minutes are spent on loading

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
