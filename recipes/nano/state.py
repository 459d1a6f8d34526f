#!/usr/bin/env python3
"""Where a long training stands, small enough to be kept beside its recipe: matrices in 8 bits a weight, a scale a row.

    python -m recipes.nano.state pack runs/nano recipes/nano/state.safetensors
    python -m recipes.nano.state unpack recipes/nano/state.safetensors runs/before
    python -m recipes.nano.train --init runs/before --stage "looking up" --seed 2 --out runs/nano

The error of a weight is at most 1/254 of the largest of its row, which some steps of training undo. Momenta are not
kept: a run that begins with it warms up.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pocketvlm.errors import PocketVLMError
from pocketvlm.model.checkpoint import load_model
from recipes.nano.initialise import READER
from recipes.nano.run import new_learner, write_run
from recipes.nano.settings import ASSETS

SCALE = ".scale"


def pack(run: Path, out: Path) -> None:
    """Write the weights of a run, the heads of its dense losses included, in 8 bits."""
    weights = {f"model.{name}": p.detach() for name, p in load_model(run / "model").named_parameters()}
    weights |= {f"reader.{name}": p for name, p in load_file(run / READER).items()}
    packed: dict[str, Tensor] = {}
    for name, p in weights.items():
        if p.dim() < 2:
            packed[name] = p.clone()
            continue
        rows = p.float().flatten(1)
        scale = rows.abs().amax(1).clamp(min=1e-12) / 127
        packed[name] = (rows / scale[:, None]).round().to(torch.int8).view(p.shape)
        packed[name + SCALE] = scale
    save_file(packed, out)


def unpack(packed: Path, run: Path) -> None:
    """Make the folder of a run that others can begin with."""
    found, learner = load_file(packed), new_learner(0)
    with torch.no_grad():
        for name, p in learner.named_parameters():
            scale = found.get(name + SCALE)
            p.copy_(found[name] if scale is None else (found[name].flatten(1) * scale[:, None]).view(p.shape))
    run.mkdir(parents=True, exist_ok=True)
    write_run(learner, run)


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("what", choices=("pack", "unpack"))
    cli.add_argument("source", type=Path, help="folder of a run, or what was packed")
    cli.add_argument(
        "out", type=Path, help=f"the file, or the folder, to write (tokenizer and template: {ASSETS.name})"
    )
    args = cli.parse_args()
    try:
        (pack if args.what == "pack" else unpack)(args.source, args.out)
    except PocketVLMError as error:
        raise SystemExit(str(error)) from None
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        wanted = "the folder of a run" if args.what == "pack" else "a file that `pack` wrote for nano's shapes of today"
        raise SystemExit(f"{args.source} is not {wanted} ({error})") from None


if __name__ == "__main__":
    main()
