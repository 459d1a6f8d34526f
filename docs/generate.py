#!/usr/bin/env python3
"""Rewrite the generated parts of README.md and docs/*.md from the code, so that no fact has two homes.

    python docs/generate.py            # or `make format`
    python docs/generate.py --check    # exit status 1, and a line a file, when something is out of date

A part stands between `<!-- generated: NAME -->` and `<!-- end -->`; NAME is one of the keys of `parts()`.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "pocketvlm"
PART = re.compile(r"(<!-- generated: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)

# What is not Python says nothing about itself; every folder at the top has its line here or is a package above.
FOLDERS = {
    "recipes/nano/": "how the embedded model is made: data, curriculum, training",
    "cookbook/": "recipes of fine-tuning, each with data that it draws itself",
    "benchmarks/": "measurements that print a table and one JSON line",
    "deploy/": "a container file, a systemd unit, settings and a dashboard for `pocketvlm serve`; Kubernetes",
    "examples/": "pictures, and the script that draws them",
    "tests/": "mirrors src/; tests/parity/ compares with the reference",
    "docs/": "architecture, shapes, figures, log; generate.py writes what the code knows",
}


def docstring(module: Path) -> str:
    """First sentence of a module's docstring, without the full stop."""
    text = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
    return re.split(r"[.;](?:\s|$)", text.split("\n\n")[0].replace("\n", " "), maxsplit=1)[0]


def tree() -> Iterator[str]:
    """The file tree: packages with their modules, then the other folders."""
    yield "```"
    yield "src/pocketvlm/"
    for module in sorted(PACKAGE.glob("*.py")):
        if module.stem != "__init__":
            yield f"  {module.name:<16} {docstring(module)}"
    for package in sorted(PACKAGE.glob("*/__init__.py")):
        yield f"  {package.parent.name + '/':<16} {docstring(package)}".rstrip()
        inner = sorted(package.parent.glob("*/__init__.py"))
        width = max((len(room.parent.name) for room in inner), default=0) + 3
        for where in (package, *inner):
            names = " · ".join(sorted(m.stem for m in where.parent.glob("*.py") if not m.stem.startswith("__")))
            first = " " * 4 + ("" if where == package else f"{where.parent.name + '/':<{width}}")
            yield from textwrap.wrap(names, 100, initial_indent=first, subsequent_indent=" " * len(first))
    for asset in sorted(p for p in (PACKAGE / "assets").iterdir() if p.is_dir()):
        yield f"  {'assets/' + asset.name + '/':<16} the embedded model"
    for folder, what in FOLDERS.items():
        if (ROOT / folder).is_dir():
            yield f"{folder:<18} {what}"
    yield "```"


def help_text() -> Iterator[str]:
    """`pocketvlm --help` in the words of its parser, free of a terminal's width and of Python's own layout."""
    from pocketvlm.cli import COMMANDS

    yield "```"
    for name, text in COMMANDS.items():
        yield f"pocketvlm {name:<7} {text}"
    yield "```"


def settings() -> Iterator[str]:
    """Every setting of `pocketvlm serve`."""
    from dataclasses import fields

    from pocketvlm.server.settings import GROUPS, PREFIX, ServerSettings, option_of, shown_default

    yield "| setting (in TOML) | option | default | what it is |"
    yield "| --- | --- | --- | --- |"
    for one in fields(ServerSettings):
        if one.name in GROUPS:
            yield f"| **{GROUPS[one.name]}** | | | |"
        default = shown_default(one.default)
        allowed = one.metadata["allowed"]
        values = " or ".join(allowed) if isinstance(allowed, tuple) else str(allowed or "")
        text = f"{one.metadata['help']} ({values})" if values else one.metadata["help"]
        yield f"| `{one.name}` | `{option_of(one.name)}` | {default} | {text} |"
    yield ""
    yield f"A variable is `{PREFIX}` and the name in capitals: `{PREFIX}MAX_IMAGES=4`. Commas separate items of lists."


def replicas() -> Iterator[str]:
    """Options of `pocketvlm serve --ray`."""
    from pocketvlm.cli.serve_ray import OPTIONS

    yield "| option | what it is |"
    yield "| --- | --- |"
    for name, (_, metavar, text) in OPTIONS.items():
        yield f"| `--{name.replace('_', '-')} {metavar}` | {text} |"


def uses() -> Iterator[str]:
    """What clients do with the server, by the tests that do it."""
    yield "| client | uses |"
    yield "| --- | --- |"
    for file in sorted((ROOT / "tests" / "server" / "uses").glob("test_*.py")):
        tests = [node for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)]
        names = [test.name.removeprefix("test_").replace("_", " ") for test in tests if test.name.startswith("test_")]
        link = f"[{docstring(file)}](../{file.relative_to(ROOT).as_posix()})"
        yield f"| {link} | {' · '.join(names)} |"


def parts(name: str) -> list[str]:
    """Lines of one generated part."""
    simple: dict[str, Callable[[], Iterator[str]]] = {
        "tree": tree,
        "help": help_text,
        "settings": settings,
        "replicas": replicas,
        "uses": uses,
    }
    if name in simple:
        return list(simple[name]())
    from shapes import tables  # builds the model's skeleton, so only when it is asked for

    return tables()[name]


def generated(text: str) -> str:
    """`text` with every generated part as the code would have it today."""
    return PART.sub(lambda m: "".join([m[1], *(f"{line}\n" for line in parts(m[2])), m[3]]), text)


def main() -> int:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--check", action="store_true", help="write nothing; exit status 1 when something would change")
    check = cli.parse_args().check
    stale = 0
    for file in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        old = file.read_text(encoding="utf-8")
        if (new := generated(old)) != old:
            stale += 1
            print(f"{file.relative_to(ROOT)}: {'out of date; run `make format`' if check else 'rewritten'}")
            if not check:
                file.write_text(new, encoding="utf-8")
    return int(check and stale > 0)


if __name__ == "__main__":
    sys.exit(main())
