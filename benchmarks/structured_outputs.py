#!/usr/bin/env python3
"""What structured outputs cost, and whether every answer is valid: random schemas, random answers drawn from the masks.

    python benchmarks/structured_outputs.py [--count 1000] [--words 248044]

The vocabulary is of the published size by default, its words random letters, signs and ideographs. A table for people,
then one line of JSON. Wants `pip install 'pocketvlm[dev]'`.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import tokenizers
from jsonschema import Draft202012Validator, ValidationError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from helpers.checkpoints import NAMES, build_tokenizer
from helpers.random_structures import Walker, random_schema, random_tool, read_json

from pocketvlm.grammar.compiler import GrammarCompiler
from pocketvlm.grammar.structured_outputs import StructuredOutputs
from pocketvlm.processing.prompt.tokenizer import Tokenizer

PUBLISHED = 248_044  # words before the control tokens
LETTERS = "etaoinshrdlucmfwypvbgkqjxz"
SIGNS = '"{}[]:,;.()<>=+-*/\\_#'


def large_tokenizer(words: int, seed: int = 0) -> Tokenizer:
    """The published control tokens behind `words` words: 256 bytes, and random ones of all lengths."""
    rng, spelt = random.Random(seed), json.loads(build_tokenizer(merges=False).to_str())
    to_bytes = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocabulary = spelt["model"]["vocab"]
    while len(vocabulary) < words:
        kind = rng.random()
        if kind < 0.75:
            word = rng.choice(("", " ")) + "".join(rng.choices(LETTERS, k=rng.randrange(2, 11)))
        elif kind < 0.85:
            word = rng.choice(("", " ")) + "".join(rng.choices(SIGNS, k=rng.randrange(2, 5))) + rng.choice(("", "\n"))
        else:
            word = "".join(chr(rng.randrange(0x4E00, 0x9FA5)) for _ in range(rng.randrange(1, 4)))
        vocabulary.setdefault(to_bytes.pre_tokenize_str(word)[0][0], len(vocabulary))
    for index, token in enumerate(spelt["added_tokens"]):
        token["id"] = words + index
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(spelt)))


def milliseconds(seconds: list[float], share: float) -> float:
    return float(np.quantile(seconds, share)) * 1e3


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--count", type=int, default=1000, help="random schemas (default 1000)")
    cli.add_argument("--words", type=int, default=PUBLISHED, help=f"of the vocabulary (default {PUBLISHED})")
    args = cli.parse_args()
    tokenizer = large_tokenizer(args.words)
    began = time.perf_counter()
    compiler = GrammarCompiler(tokenizer, args.words + len(NAMES), tokenizer.stop_ids)
    setup = time.perf_counter() - began
    walker = Walker(tokenizer, args.words + len(NAMES))
    compiler.compile(StructuredOutputs(regex="a"))  # the process that tries grammars has started then

    valid, compiling, steps, starts, longest = 0, list[float](), list[float](), list[float](), 0
    for seed in range(args.count):
        rng = random.Random(seed)
        schema = random_schema(rng)
        began = time.perf_counter()
        grammar = compiler.compile(StructuredOutputs(json=schema))
        compiling.append(time.perf_counter() - began)
        began = time.perf_counter()
        grammar.start()
        starts.append(time.perf_counter() - began)
        ids, seconds = walker.timed(grammar, rng)
        steps += seconds
        longest = max(longest, len(ids))
        text = tokenizer.decode(ids, skip_special=False)
        try:
            Draft202012Validator(schema).validate(read_json(text))
            valid += 1
        except (ValueError, ValidationError) as error:
            print(f"schema {seed}: {str(error).splitlines()[0]}: {text!r}", file=sys.stderr)
    kinds = {
        "text in quotes": {"json": {"type": "string"}},
        "tools, auto": {"tools": [random_tool(random.Random(i), f"tool_{i}") for i in (3, 5, 8)]},
        "regex": {"regex": r"\w{3,40}( \w{1,40}){0,30}"},
    }
    others = dict[str, list[float]]()
    for name, kind in kinds.items():
        grammar = compiler.compile(StructuredOutputs(**kind))
        others[name] = [s for seed in range(20) for s in walker.timed(grammar, random.Random(seed))[1]]
    compiler.close()

    figures = {
        "vocabulary": args.words + len(NAMES),
        "schemas": args.count,
        "valid_share": valid / args.count,
        "tokens": len(steps),
        "step_us_mean": round(statistics.fmean(steps) * 1e6, 1),
        "step_us_p99": round(milliseconds(steps, 0.99) * 1e3, 1),
        "step_us_max": round(max(steps) * 1e6, 1),
        "compile_ms_p50": round(milliseconds(compiling, 0.5), 2),
        "compile_ms_p99": round(milliseconds(compiling, 0.99), 2),
        "compile_ms_max": round(max(compiling) * 1e3, 2),
        "start_us_mean": round(statistics.fmean(starts) * 1e6, 1),
        "setup_ms": round(setup * 1e3),
        "others_us_mean": {name: round(statistics.fmean(seconds) * 1e6, 1) for name, seconds in others.items()},
        "others_us_p99": {name: round(milliseconds(seconds, 0.99) * 1e3, 1) for name, seconds in others.items()},
    }
    print("| what | mean | P99 | most |\n| --- | --- | --- | --- |")
    print("| mask and token, µs | {step_us_mean} | {step_us_p99} | {step_us_max} |".format(**figures))
    print("| compile, ms | {compile_ms_p50} (median) | {compile_ms_p99} | {compile_ms_max} |".format(**figures))
    for name in kinds:
        print(f"| {name}, µs | {figures['others_us_mean'][name]} | {figures['others_us_p99'][name]} | |")
    print(
        f"\n{valid} of {args.count} answers are valid, of {longest} tokens at most; vocabulary {figures['vocabulary']}"
    )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
