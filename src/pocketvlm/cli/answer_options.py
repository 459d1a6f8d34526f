"""Options of `ask` and `chat` that say what answers must be, and what is told of them: arguments → options of `VLM`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pocketvlm.cli.common import PICTURES, SAMPLING, VIDEO, add_adapter, add_model, add_options
from pocketvlm.errors import ConfigError
from pocketvlm.grammar.structured_outputs import MAX_TEXT, StructuredOutputs


def add_groups(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the options that `ask` and `chat` share, in groups, the most used first; returns the group of the answer."""
    model = parser.add_argument_group("the model")
    add_model(model)
    add_adapter(model)
    answer = parser.add_argument_group("the answer")
    add_options(answer, {"max_tokens": SAMPLING["max_tokens"]})
    add_structure(answer)
    add_options(parser.add_argument_group("pictures and videos"), PICTURES, VIDEO)
    sampling = {name: option for name, option in SAMPLING.items() if name != "max_tokens"}
    add_options(parser.add_argument_group("sampling"), sampling)
    return answer


def add_structure(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add --json-schema, --regex, --choice and --grammar, of which one may be given."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--json-schema", metavar="SCHEMA", help="the answer is JSON of this schema: a file, or the schema itself"
    )
    group.add_argument("--regex", help="the whole answer matches this regular expression")
    group.add_argument("--choice", action="append", help="the answer is one of these; given once for each")
    group.add_argument(
        "--grammar", type=Path, metavar="FILE", help="the answer follows the grammar in this file (Lark)"
    )


def add_logprobs(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add --logprobs and --top-logprobs."""
    parser.add_argument("--logprobs", action="store_true", help="how likely each token was; with --json")
    parser.add_argument(
        "--top-logprobs", type=int, metavar="N", help="the N most likely tokens in its place too; with --logprobs"
    )


def answer_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options that were given, checked.

    Raises:
        ConfigError: a file that cannot be read, a structure that is none, or what only a JSON line has a place for.
    """
    options: dict[str, Any] = {}
    if (structure := _structure(args)) is not None:
        options["structured_outputs"] = structure
    if args.top_logprobs is not None and not args.logprobs:
        raise ConfigError(
            f"--top-logprobs {args.top_logprobs} means nothing without --logprobs", hint="Add --logprobs."
        )
    if args.logprobs:
        options["logprobs"] = args.top_logprobs or 0
    if (n := getattr(args, "n", None)) is not None:
        options["n"] = n
    for name, wanted in (("--logprobs", args.logprobs), (f"--n {n}", n not in (None, 1))):
        if wanted and not args.json:
            raise ConfigError(f"{name} has no place in plain text", hint="Add --json.")
    return options


def _structure(args: argparse.Namespace) -> StructuredOutputs | None:
    if args.json_schema is not None:
        is_schema = args.json_schema.lstrip().startswith("{")
        text = args.json_schema if is_schema else _read("--json-schema", Path(args.json_schema))
        return _checked("--json-schema", json=text)
    if args.regex is not None:
        return _checked("--regex", regex=args.regex)
    if args.choice is not None:
        return _checked("--choice", choice=tuple(args.choice))
    return None if args.grammar is None else _checked("--grammar", grammar=_read("--grammar", args.grammar))


def _checked(option: str, **kind: Any) -> StructuredOutputs:
    try:
        return StructuredOutputs(**kind)
    except ConfigError as error:
        raise ConfigError(f"{option}: {error}") from None


def _read(option: str, path: Path) -> str:
    """Read the text of a file; one that is longer than any schema or grammar may be is not read to its end."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TEXT + 1)
    except (OSError, ValueError) as error:  # a path with a null byte is a ValueError
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{option}: {str(path)!r:.80} cannot be read: {reason}", hint="Check the path.") from None
    if len(data) > MAX_TEXT:
        raise ConfigError(f"{option}: {path} is over {MAX_TEXT} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{option}: {path} is not UTF-8 text") from None
