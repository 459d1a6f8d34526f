#!/usr/bin/env python3
"""More layers for a model that reads already.

    python -m recipes.nano.grow --run runs/before --out runs/grown
    python -m recipes.nano.train --init runs/grown --stage print --seed 2 --out runs/nano

Trained from nothing, the first layers of nano's tower attend evenly over the whole picture: a patch learns late, and
only blurred, what stands in the patch beside it, though most letters reach into several (docs/log.md). So new layers
come first, whose heads look at one neighbour each from the start. Layers in the middle are cut in two halves: the same
layer twice, each with half of its output, compute nearly what the one did. In the decoder the first pair of layers
comes again behind itself, with a small output: what is looked up by two names wants one more look. (A pair of the
decoder in halves is far from the whole: of its four layers each adds too much.)

Shapes:  P patches of a view · D hidden size of the tower · E of a head
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pocketvlm.errors import PocketVLMError
from pocketvlm.model.checkpoint import load_model
from pocketvlm.model.vision.view_order import nearest_positions
from pocketvlm.model.vlm import MiniCPMV
from pocketvlm.synthetic import make_sample
from recipes.nano.initialise import READER
from recipes.nano.run import new_learner, write_run
from recipes.nano.settings import IMAGE
from recipes.nano.views import encode_picture

# (down, right) of the patch that each head of each new layer looks at.
NEIGHBOURS = (((0, -1), (0, 1), (1, 0)), ((-1, 0), (0, -1), (0, 1)))
HALVED = (3, 5)  # layers, counted before there are new ones
AGAIN = (0, 1)  # layers of the decoder that come again behind the last of them
OUTPUTS = ("self_attn.out_proj.", "mlp.fc2.", "linear_attn.out_proj.", "self_attn.o_proj.", "mlp.down_proj.")
START = 0.3  # of the usual size of weights: what new layers add to the residual stream
ECHO = 0.2  # of their first outputs: what layers of the decoder add where they come again

PICTURES = ("words", "paragraph", "receipt", "table")  # of several shapes


@dataclass(frozen=True, slots=True, eq=False)
class Patches:
    """One view: what enters the first layer, [P, D], and the number of each patch, int64 [rows, columns]."""

    tokens: Tensor
    grid: Tensor

    def beside(self, offset: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Numbers of all patches that have a neighbour at `offset`, and of these neighbours."""
        rows, columns = self.grid.shape
        down, right = offset
        here = self.grid[max(0, -down) : rows - max(0, down), max(0, -right) : columns - max(0, right)]
        there = self.grid[max(0, down) : rows + min(0, down), max(0, right) : columns + min(0, right)]
        return here.flatten(), there.flatten()


@torch.no_grad()
def some_views(model: MiniCPMV, count: int, seed: int = 0) -> Iterator[Patches]:
    """Views of a whole picture each, as they enter the first layer."""
    tower = model.vision_tower
    for number in range(count):
        sample = make_sample(PICTURES[number % len(PICTURES)], (seed, number), "train", 0)
        picture = encode_picture(sample.images[0], IMAGE, "4x", np.random.default_rng(number), 0.0, 1)
        rows, columns = picture.views[0].size.height, picture.views[0].size.width
        positions = torch.tensor(nearest_positions(rows, columns, model.config.vision.positions_per_side))
        tokens = tower.patch_embedding(model.normalise(picture.patches)) + tower.position_embedding(positions)
        yield Patches(tower.layers[0].layer_norm1(tokens), torch.arange(rows * columns).view(rows, columns))


def look_at(views: Sequence[Patches], offset: tuple[int, int], width: int, steps: int = 400) -> nn.ModuleDict:
    """Projections D → E of queries and keys with which a head attends to the neighbour at `offset`."""
    hidden = views[0].tokens.shape[1]
    head = nn.ModuleDict({name: nn.Linear(hidden, width) for name in ("q_proj", "k_proj")})
    optimiser = torch.optim.Adam(head.parameters(), 5e-3)
    fall = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, steps)
    for step in range(steps):
        view = views[step % len(views)]
        here, there = view.beside(offset)
        queries, keys = head["q_proj"](view.tokens[here]), head["k_proj"](view.tokens)
        loss = nn.functional.cross_entropy(queries @ keys.T * width**-0.5, there)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        fall.step()
    return head


def grow(
    before: MiniCPMV,
    after: MiniCPMV,
    *,
    neighbours: Sequence[Sequence[tuple[int, int]]] = NEIGHBOURS,
    halved: Sequence[int] = HALVED,
    again: Sequence[int] = (),
    steps: int = 400,
) -> None:
    """Give `after`, of the same widths but with more layers, the weights of `before`.

    Args:
        neighbours: of the heads of new first layers of the tower.
        halved: layers of the tower that are cut in two.
        again: layers of the decoder, one behind the other, that come again behind the last of them.

    Raises:
        ValueError: the numbers of layers do not fit.
    """
    old, new = before.vision_tower.layers, after.vision_tower.layers
    text = before.language_model.layers
    end = max(again, default=-1) + 1
    with torch.no_grad():
        known = {name: p for name, p in before.named_parameters() if ".layers." not in name}
        for name, p in after.named_parameters():
            if name in known:
                p.copy_(known[name])
        order = [(i, 0.5 if i in halved else 1.0) for i in sorted([*range(len(old)), *halved])]
        _take_layers(old, list(new)[len(neighbours) :], order)
        parts = ((range(end), 1.0), (again, ECHO), (range(end, len(text)), 1.0))
        _take_layers(text, list(after.language_model.layers), [(i, share) for some, share in parts for i in some])
    if not neighbours:
        return
    views = list(some_views(before, 24))
    width = before.config.vision.hidden_size // before.config.vision.num_attention_heads
    for layer, offsets in zip(new, neighbours, strict=False):
        heads = [look_at(views, offset, width, steps) for offset in offsets]
        with torch.no_grad():
            _begin(layer)
            layer.layer_norm1.load_state_dict(old[0].layer_norm1.state_dict())
            for name in ("q_proj", "k_proj"):
                projection = getattr(layer.self_attn, name)
                projection.weight.copy_(torch.cat([head[name].weight for head in heads]))
                projection.bias.copy_(torch.cat([head[name].bias for head in heads]))


def _take_layers(old: nn.ModuleList, new: Sequence[nn.Module], order: Sequence[tuple[int, float]]) -> None:
    """Layers of `old` into `new`, each with a share of its outputs: `order` is (number, share)."""
    if len(new) != len(order):
        raise ValueError(f"{len(old)} layers grow to {len(order)}, not to {len(new)}")
    for layer, (number, share) in zip(new, order, strict=True):
        layer.load_state_dict(old[number].state_dict())
        for name, p in layer.named_parameters():
            p.mul_(share if name.startswith(OUTPUTS) else 1.0)


def _begin(layer: nn.Module) -> None:
    """Fan-in scaled normal weights, smaller ones where a layer adds to the residual stream."""
    for name, p in layer.named_parameters():
        if p.dim() < 2:
            p.fill_(1.0 if name.endswith("norm2.weight") else 0.0)
        else:
            p.normal_(std=p.shape[1] ** -0.5 * (START if name.startswith(OUTPUTS) else 1.0))


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument(
        "--run",
        type=Path,
        required=True,
        help="the --out folder of a training with fewer layers",
    )
    cli.add_argument("--out", type=Path, required=True, help="folder that a training can begin with (--init)")
    cli.add_argument("--seed", type=int, default=0, help="of the new weights")
    args = cli.parse_args()
    learner = new_learner(args.seed)
    try:
        before = load_model(args.run / "model")
        is_seeing = len(before.vision_tower.layers) == len(learner.model.vision_tower.layers)
        is_finding = len(before.language_model.layers) == len(learner.model.language_model.layers)
        if is_seeing and is_finding:
            raise ValueError("it has all their layers")
        grow(
            before,
            learner.model,
            neighbours=() if is_seeing else NEIGHBOURS,
            halved=() if is_seeing else HALVED,
            again=() if is_finding else AGAIN,
        )
        learner.reader.load_state_dict(load_file(args.run / READER))
    except (PocketVLMError, OSError, ValueError, RuntimeError) as error:  # of other widths, or another vocabulary
        reason = " ".join(str(error).split())
        raise SystemExit(f"{args.run} does not grow to nano's shapes of today: {reason:.300}") from None
    write_run(learner, args.out)


if __name__ == "__main__":
    main()
