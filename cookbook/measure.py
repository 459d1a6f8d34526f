"""Ask a model held-out samples: python -m cookbook.measure FILE [--model M] [--adapter DIR] [--downsample-mode MODE]
[--max-slice-nums N]

Prints the share of exact answers as JSON. Where some questions ask for what is not there, it also counts them apart:
`there` is the share of right answers about what the picture shows, `invented` the share of other answers than "It is
not there." about what it does not.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

import pocketvlm
from pocketvlm.synthetic import NOT_THERE
from pocketvlm.training.data.dataset import open_datasets

MAX_TOKENS = 64


def measure(vlm: pocketvlm.VLM, file: str, count: int | None = None, **options: object) -> dict[str, float]:
    """Shares of exact answers, 0 to 1, to the first `count` samples of a file (all when None), answered greedily."""
    samples = open_datasets([file])
    samples_asked = [samples[i] for i in range(min(len(samples), count or len(samples)))]
    asked = [sample.messages[:-1] for sample in samples_asked]
    wanted = [str(sample.messages[-1]["content"]) for sample in samples_asked]
    answers = vlm.batch(asked, temperature=0.0, max_tokens=MAX_TOKENS, **options)
    right = [answer.text.strip() == one for answer, one in zip(answers, wanted, strict=True)]
    found = {"exact": _share(right)}
    absent = [one == NOT_THERE for one in wanted]
    if any(absent):
        found["there"] = _share([one for one, is_absent in zip(right, absent, strict=True) if not is_absent])
        found["invented"] = _share([not one for one, is_absent in zip(right, absent, strict=True) if is_absent])
    return found


def _share(right: Sequence[bool]) -> float:
    return round(sum(right) / max(1, len(right)), 4)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cookbook.measure", description="Ask a model held-out samples.")
    parser.add_argument("file", help="samples in any format that `pocketvlm tune` reads")
    parser.add_argument("--model", default="nano", help="nano (default) or a checkpoint directory")
    parser.add_argument("--adapter", help="a folder that `pocketvlm tune` wrote")
    parser.add_argument("--downsample-mode", default="16x", help="16x (default) or 4x")
    parser.add_argument("--max-slice-nums", type=int, help="most slices of a picture (default the model's)")
    parser.add_argument("--count", type=int, help="samples to ask, from the first on (default all)")
    args = parser.parse_args(arguments)
    options: dict[str, object] = {"downsample_mode": args.downsample_mode}
    if args.max_slice_nums is not None:
        options["max_slice_nums"] = args.max_slice_nums
    with pocketvlm.load(args.model, adapter=args.adapter) as vlm:
        print(json.dumps(measure(vlm, args.file, args.count, **options)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
