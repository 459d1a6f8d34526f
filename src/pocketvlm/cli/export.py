"""pocketvlm export: a model in the files of other programs."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from pocketvlm.bundle import parse_quantization
from pocketvlm.cli.common import add_json, print_json, progress_bars
from pocketvlm.model.hub import resolve

FORMATS = {"onnx": "a bundle of ONNX graphs: for runtime='onnx', phones and browsers"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("format", choices=FORMATS, help="; ".join(f"{name}: {text}" for name, text in FORMATS.items()))
    parser.add_argument("out", type=Path, metavar="OUT", help="a new directory")
    parser.add_argument("--model", default="nano", help="nano (embedded, default), a checkpoint directory or a hub id")
    parser.add_argument(
        "--quantization",
        default="int8",
        help="none, int8 (default), int4, or parts such as decoder=int4,head=int8",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    quantization = parse_quantization(args.quantization)
    checkpoint = resolve(args.model)
    from pocketvlm.export.bundle import write_bundle  # imports torch: after everything that can be wrong

    bars: Any = nullcontext() if args.json else progress_bars()
    with bars as report:
        progress = (lambda done, total: report("Writing the bundle", done, total)) if report else None
        manifest = write_bundle(checkpoint, args.out, quantization, progress)
    size = sum(manifest.files.values())
    if args.json:
        print_json({"out": str(args.out), "quantization": str(quantization), "bytes": size, "files": manifest.files})
    else:
        print(f"{args.out}: {len(manifest.files)} files, {size / 1e6:,.1f} MB; {quantization}")
    return 0
