"""What a dry run found, as a page to look at: numbers, what is wrong, and some samples as the model gets them."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator

import numpy as np

from pocketvlm.processing.media.encode import encode_png
from pocketvlm.processing.prompt.tokenizer import Tokenizer
from pocketvlm.training.check import Check, stretches
from pocketvlm.training.examples import Example

MOST_BAD = 1000  # of which the page tells
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #1c1c1c }
table { border-collapse: collapse } td, th { border: 1px solid #bbb; padding: .2rem .6rem; text-align: right }
th:first-child, td:first-child { text-align: left }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f5f4f1; padding: .8rem }
img { outline: 1px solid #bbb }
mark { background: #b9e4c9 } figure { display: inline-block; margin: .3rem } figcaption { font-size: .8rem }
"""


def check_page(found: Check, tokenizer: Tokenizer, title: str) -> str:
    """HTML without anything from elsewhere; samples are shown with what is learnt of them marked."""
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{found.counts}</p>",
        *_statistics(found),
        *_bad(found),
    ]
    for example in found.shown:
        parts += _sample(example, tokenizer)
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def _statistics(found: Check) -> Iterator[str]:
    rows = found.statistics()
    if rows:
        names = list(next(iter(rows.values())))
        yield f"<table><tr><th>of a sample</th>{''.join(f'<th>{name}</th>' for name in names)}</tr>"
        for name, row in rows.items():
            yield f"<tr><td>{name}</td>{''.join(f'<td>{value:g}</td>' for value in row.values())}</tr>"
        yield "</table>"


def _bad(found: Check) -> Iterator[str]:
    if found.bad:
        yield "<h2>What is wrong</h2><ul>"
        for text in list(found.bad.values())[:MOST_BAD]:
            yield f"<li>{html.escape(text)}</li>"
        yield "</ul>"
        if len(found.bad) > MOST_BAD:
            yield f"<p>And {len(found.bad) - MOST_BAD} more.</p>"


def _sample(example: Example, tokenizer: Tokenizer) -> Iterator[str]:
    yield f"<h2>{html.escape(example.source)}</h2>"
    yield f"<p>{len(example.input_ids)} tokens, of which {example.learnt} are learnt: those that are marked.</p><pre>"
    for text, learnt, _ in stretches(example, tokenizer):
        yield f"<mark>{html.escape(text)}</mark>" if learnt else html.escape(text)
    yield "</pre>"
    place = 0
    for view in example.views:
        patches = example.patches[place : place + view.patches].numpy()
        place += view.patches
        side = patches.shape[1]
        grid = patches.reshape(view.size.height, view.size.width, side, side, 3)
        pixels = np.ascontiguousarray(grid.transpose(0, 2, 1, 3, 4)).reshape(view.size.height * side, -1, 3)
        source = base64.b64encode(encode_png(pixels)).decode()
        caption = f"{view.downsample_mode}, {view.visual_tokens} tokens"
        yield (
            f'<figure><img alt="a view of the picture" width="{view.size.width * 8}" '
            f'src="data:image/png;base64,{source}"><figcaption>{caption}</figcaption></figure>'
        )
