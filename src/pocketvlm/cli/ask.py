"""pocketvlm ask IMAGE… QUESTION"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from pocketvlm.cli.answer_options import add_groups, add_logprobs, answer_options
from pocketvlm.cli.common import (
    PICTURES,
    SAMPLING,
    VIDEO,
    add_json,
    answer_json,
    check_text,
    is_file,
    loaded,
    options_of,
    read_media,
    source,
)
from pocketvlm.cli.console import harmless, put, put_json, say, say_aside
from pocketvlm.cli.conversation import AsVideo, local_parts
from pocketvlm.errors import PromptError
from pocketvlm.processing.media.pages import file_named


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "pocketvlm ask [options] [IMAGE ...] QUESTION"
    words = "pictures, documents (a.pdf#2-5: these pages; TIFF too) or videos, then the question"
    parser.add_argument("words", nargs="*", metavar="IMAGE QUESTION", help=words)
    image = "a picture, a document or a video; may be given several times"
    parser.add_argument("--image", action="append", default=[], help=image)
    parser.add_argument(
        "--video", action="append", default=[], help="a video, or an animation (GIF, WebP, PNG) to be seen as one"
    )
    parser.add_argument("--prompt", help="the question; all other words are then pictures")
    parser.add_argument("--enable-thinking", action="store_true", help="let the model reason first, on stderr")
    add_json(parser)
    answer = add_groups(parser)
    answer.add_argument("--stop", action="append", default=None, help="a string that ends the answer")
    answer.add_argument("--n", type=int, default=None, help="several answers to one question; with --json")
    add_logprobs(answer)


def run(args: argparse.Namespace) -> int:
    images, question = [*args.image, *args.words], args.prompt
    if question is None:
        if not args.words:
            raise PromptError("no question was given", hint='Example: pocketvlm ask receipt.png "What is the total?"')
        question = images.pop()
        if is_file(Path(file_named(question))):  # a picture whose question was forgotten
            raise PromptError(f"no question was given about {question}", hint="Put it behind the picture, in quotes.")
    check_text("the question", question)
    if not question.strip():
        raise PromptError("the question is empty", hint="Say what you want to know.")
    for word in (*images, *args.video):
        if isinstance(source(word), Path) and not os.path.lexists(file_named(word)):
            raise PromptError(
                f"there is no file {word!r}", hint="Pictures come first, and the question last, in quotes."
            )
    options = options_of(args, PICTURES, VIDEO, SAMPLING) | (structure := answer_options(args))
    if args.stop:
        options["stop"] = tuple(args.stop)
    media, seconds = read_media(args, images, options)
    if args.enable_thinking:
        options["enable_thinking"] = True
    media += [AsVideo(source(word)) for word in args.video]
    content = [part for one in media for part in local_parts(one)]
    with loaded(args) as vlm:
        answer = vlm.chat([{"role": "user", "content": [*content, {"type": "text", "text": question}]}], **options)
    if args.json:
        put_json(answer_json(answer, media=seconds))
    else:
        if answer.reasoning:
            say_aside(answer.reasoning)
            say("")  # the answer begins on a line of its own
        put(harmless(answer.text) if sys.stdout.isatty() else answer.text)
        if answer.finish_reason == "length" and (structure or sys.stderr.isatty()):
            say("the answer was cut off; --max-tokens allows longer ones")
    return 0
