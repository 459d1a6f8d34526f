#!/usr/bin/env python3
"""Put a trained model into the package.

    python -m recipes.nano.publish --run runs/nano
    python -m recipes.nano.publish --run runs/first runs/next    # of runs that began with each other's weights
    python -m recipes.nano.publish --run runs/more --append      # of one that began with the weights in the package

Weights and configuration go to `src/pocketvlm/assets/nano`, reports of its training to `recipes/nano/log.jsonl`.

Weights are bfloat16. Of their eight significant bits matrices keep six, an error of at most 1.6 % each, about that of
8-bit integers: the file has its usual form, and a wheel, which is compressed, a sixth less to hold.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from pocketvlm.errors import PocketVLMError
from pocketvlm.model.checkpoint import load_model, save_model
from pocketvlm.model.fingerprint import CONFIDENCE
from recipes.nano.logs import read_run
from recipes.nano.settings import ASSETS

SIGNIFICANT_BITS = 6  # of a weight in a matrix; bfloat16 has 8


def rounded(weights: Tensor, bits: int = SIGNIFICANT_BITS) -> Tensor:
    """The nearest numbers with so many significant bits."""
    fraction, exponent = torch.frexp(weights)
    return torch.ldexp((fraction * 2**bits).round() / 2**bits, exponent)


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument(
        "--run",
        type=Path,
        nargs="+",
        required=True,
        help="the --out folder of the training; after those of the runs before it",
    )
    cli.add_argument("--append", action="store_true", help="keep the log that is there, and let this run's follow it")
    args = cli.parse_args()
    try:
        model = load_model(args.run[-1] / "model")
    except PocketVLMError as error:
        raise SystemExit(str(error)) from None
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() >= 2:
                p.copy_(rounded(p))
    save_model(model, ASSETS)
    (ASSETS / CONFIDENCE).unlink(missing_ok=True)  # of the model before: benchmarks/confidence.py measures it again
    with Path(__file__).with_name("log.jsonl").open("a" if args.append else "w", encoding="utf-8") as log:
        log.writelines(json.dumps(report) + "\n" for run in args.run for report in read_run(run))
    size = (ASSETS / "model.safetensors").stat().st_size
    print(f"{ASSETS}: {sum(p.numel() for p in model.parameters()):,} parameters, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
