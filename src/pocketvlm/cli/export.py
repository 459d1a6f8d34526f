"""pocketvlm export: a model in the files of other programs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from pocketvlm.bundle import OPERATORS, Operators, Quantization, parse_quantization
from pocketvlm.cli.common import add_adapter, add_json, directory_of, progress_bars
from pocketvlm.cli.console import put, put_json
from pocketvlm.config import DOWNSAMPLE_MODES
from pocketvlm.errors import ConfigError
from pocketvlm.machine import CACHE_VARIABLE

Progress = Callable[[int, int], None]

FORMATS = {
    "huggingface": "a checkpoint in the published layout, with --adapter merged",
    "onnx": "a bundle of ONNX graphs: for runtime='onnx', phones and browsers",
    "gguf": "two files for llama.cpp: decoder and tower",
}
STANDARD = "standard (default): runs wherever ONNX Runtime does"
COMPILED = "compiled: the products of tower and decoder are our own, faster, for machines like this one"
GGUF_TYPES = ("f32", "f16", "bf16", "q8_0")
# Options that one format has and others have not.
OPTIONS = {"huggingface": ("type",), "onnx": ("quantization", "operators"), "gguf": ("type", "downsample_mode")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("format", choices=FORMATS, help="; ".join(f"{name}: {text}" for name, text in FORMATS.items()))
    parser.add_argument("out", type=Path, metavar="OUT", help="a new directory")
    parser.add_argument("--model", default="nano", help="nano (embedded, default), a checkpoint directory or a hub id")
    add_adapter(parser)
    parser.add_argument(
        "--type", choices=GGUF_TYPES, help="huggingface, gguf: of the weights (default: the checkpoint's; gguf: bf16)"
    )
    onnx = parser.add_argument_group("onnx")
    onnx.add_argument("--quantization", help="none, int8 (default), int4, or parts such as decoder=int4,head=int8")
    onnx.add_argument("--operators", choices=OPERATORS, help=f"{STANDARD}; {COMPILED}")
    gguf = parser.add_argument_group("gguf")
    gguf.add_argument("--downsample-mode", choices=DOWNSAMPLE_MODES, help="the tower's rate for good (default: 16x)")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    for option in dict.fromkeys(option for options in OPTIONS.values() for option in options):
        if option not in OPTIONS[args.format] and getattr(args, option) is not None:
            raise ConfigError(f"--{option.replace('_', '-')} means nothing for {args.format}", hint="Leave it out.")
    write = {"huggingface": _huggingface, "onnx": _onnx, "gguf": _gguf}[args.format]
    bars: Any = nullcontext() if args.json else progress_bars()
    with bars as report:
        progress = (lambda done, total: report("Writing", done, total)) if report else None
        about, files = write(args, progress)
    size = sum(files.values())
    if args.json:
        put_json({"out": str(args.out), "format": args.format, **about, "bytes": size, "files": files})
    else:
        put(f"{args.out}: {len(files)} files, {size / 1e6:,.1f} MB; " + ", ".join(about.values()))
    return 0


def _huggingface(args: argparse.Namespace, progress: Progress | None) -> tuple[dict[str, str], dict[str, int]]:
    if args.type == "q8_0":
        raise ConfigError("--type q8_0 is for gguf", hint="Choose f32, f16 or bf16.")
    checkpoint = directory_of(args)
    from pocketvlm.export.huggingface import write_huggingface

    files = write_huggingface(checkpoint, args.out, args.type, progress)
    return {"adapter": f"adapter {args.adapter}" if args.adapter else "no adapter"}, files


def _onnx(args: argparse.Namespace, progress: Progress | None) -> tuple[dict[str, str], dict[str, int]]:
    quantization = parse_quantization(args.quantization or "int8")
    checkpoint = directory_of(args)
    operators: Operators = args.operators or "standard"
    if operators == "compiled":
        _check_compiled(quantization)
    from pocketvlm.export.onnx.bundle import write_bundle  # imports onnx_ir: after everything that can be wrong

    manifest = write_bundle(checkpoint, args.out, quantization, progress, operators)
    return {"quantization": str(quantization), "operators": str(manifest.operators)}, manifest.files


def _check_compiled(quantization: Quantization) -> None:
    """Refuse what no bundle of compiled operators could do here."""
    from pocketvlm.kernels.onnx_ops import library

    if not quantization.suits_compiled:
        raise ConfigError("there are no compiled operators for fp32", hint="Choose --quantization int8 or int4.")
    if library.compiled() is None:
        raise ConfigError(
            f"operators cannot be compiled here: Linux, a C++ compiler, a processor with AVX2 or NEON and a folder to "
            f"keep them in ({CACHE_VARIABLE}) are needed, and {library.INSTRUCTIONS_VARIABLE} must not be standard",
            hint="Leave --operators out: standard ones compute the same.",
        )


def _gguf(args: argparse.Namespace, progress: Progress | None) -> tuple[dict[str, str], dict[str, int]]:
    checkpoint = directory_of(args)
    from pocketvlm.export.gguf.files import write_gguf

    kind: Any = args.type or "bf16"
    mode: Any = args.downsample_mode or "16x"
    written = write_gguf(checkpoint, args.out, kind, mode, progress)
    sizes = {path.name: path.stat().st_size for path in (written.model, written.projector)}
    return {"type": kind, "downsample_mode": mode}, sizes
