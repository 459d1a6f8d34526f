"""pocketvlm trace: one forward in fp32, every intermediate kept."""

from __future__ import annotations

import argparse
from pathlib import Path

from pocketvlm.cli.common import PICTURES, add_json, add_options, directory_of, files_read, options_of, read_media
from pocketvlm.cli.console import put_json
from pocketvlm.files import check_output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="pictures, in order")
    parser.add_argument("--image", action="append", default=[], help="the same, as an option")
    parser.add_argument("--prompt", required=True, help="the question")
    parser.add_argument("--model", default="nano", help="nano (embedded, default), a checkpoint directory or a hub id")
    add_options(parser, PICTURES)
    parser.add_argument("--max-tokens", type=int, default=16, help="greedy tokens (default 16)")
    parser.add_argument("--save", type=Path, metavar="OUT.npz", help="write the intermediates to this file")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    images = [*args.image, *args.images]
    if args.save is not None:
        check_output(args.save)  # before a model is looked up, maybe downloaded
    options = options_of(args, PICTURES)
    media, _ = read_media(args, images, {**options, "max_tokens": args.max_tokens})
    if args.save is not None:
        check_output(args.save, inputs=files_read(directory_of(args), images))
    from pocketvlm.api.trace import trace  # imports torch: after everything that can be wrong
    from pocketvlm.api.vlm import load, question_messages

    with load(directory_of(args), device="cpu", dtype="float32", runtime="torch") as vlm:
        result = trace(vlm, question_messages(media, args.prompt), max_tokens=args.max_tokens, **options)
    if args.save is not None:
        result.save(args.save)
    put_json(result.summary)
    return 0
