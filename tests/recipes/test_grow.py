"""More layers: the new first ones look at neighbours, and halves of layers compute what the whole did."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pocketvlm.model.checkpoint import load_model
from pocketvlm.model.packing import PackedBatch
from pocketvlm.model.segments import Segment
from pocketvlm.model.vision.view_packing import pack_views
from pocketvlm.model.vlm import MiniCPMV
from pocketvlm.views import Size, View
from recipes.nano.grow import ECHO, OUTPUTS, grow, look_at, main, some_views
from recipes.nano.run import new_learner, write_run
from recipes.nano.settings import ASSETS, IMAGE

LEFT, BELOW = (0, -1), (1, 0)


@pytest.fixture(scope="module")
def nano() -> MiniCPMV:
    return load_model(ASSETS)


def larger(model: MiniCPMV, more: int, pairs: int = 0) -> MiniCPMV:
    """With more layers of the tower, and more pairs of those of the decoder."""
    config = model.config
    vision = dataclasses.replace(config.vision, num_hidden_layers=config.vision.num_hidden_layers + more)
    types = config.text.layer_types + config.text.layer_types[:2] * pairs
    text = dataclasses.replace(config.text, num_hidden_layers=len(types), layer_types=types)
    torch.manual_seed(0)
    return MiniCPMV(dataclasses.replace(config, vision=vision, text=text), IMAGE.image_mean, IMAGE.image_std)


def states(model: MiniCPMV) -> Tensor:
    ids = torch.arange(30, 120)
    with torch.no_grad():
        return model(ids, PackedBatch.of([Segment(len(ids), 0)]))


def features(model: MiniCPMV) -> Tensor:
    view = View(Size(height=8, width=12), "4x")
    patches = torch.rand(96, 588, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.vision_tower(patches, pack_views([view], model.config.vision.positions_per_side))


def test_half_a_layer_twice_is_nearly_the_layer(nano: MiniCPMV) -> None:
    grown = larger(nano, 2)
    grow(nano, grown, neighbours=(), halved=(3, 5))
    one = features(nano)
    halves = (one - features(grown)).norm() / one.norm()
    assert halves < 0.1
    with torch.no_grad():  # a whole layer twice is not
        for layer in (3, 4, 6, 7):
            for name, p in grown.vision_tower.layers[layer].named_parameters():
                p.mul_(2 if name.startswith(OUTPUTS) else 1)
    assert (one - features(grown)).norm() / one.norm() > 1.2 * halves


def test_a_pair_of_the_decoder_that_comes_again_changes_little(nano: MiniCPMV) -> None:
    grown = larger(nano, 0, pairs=1)
    grow(nano, grown, neighbours=(), halved=(), again=(0, 1))
    assert torch.equal(features(nano), features(grown))
    one = states(nano)
    echo = (one - states(grown)).norm() / one.norm()
    assert 0 < echo < 0.25
    for here, there in ((0, 0), (1, 1), (2, 4), (3, 5)):
        for name, p in nano.language_model.layers[here].named_parameters():
            assert torch.equal(p, grown.language_model.layers[there].get_parameter(name)), name
    with torch.no_grad():  # the whole pair again does not
        for layer in (2, 3):
            for name, p in grown.language_model.layers[layer].named_parameters():
                p.mul_(1 / ECHO if name.startswith(OUTPUTS) else 1)
    assert (one - states(grown)).norm() / one.norm() > 2 * echo


def test_new_layers_come_first_and_the_others_keep_their_weights(nano: MiniCPMV) -> None:
    grown = larger(nano, 1)
    grow(nano, grown, neighbours=((LEFT, LEFT, BELOW),), halved=(), steps=2)
    for old, new in zip(nano.vision_tower.layers, list(grown.vision_tower.layers)[1:], strict=True):
        for name, p in old.named_parameters():
            assert torch.equal(p, new.get_parameter(name)), name
    assert torch.equal(nano.merger.state_dict()["linear_1.weight"], grown.merger.state_dict()["linear_1.weight"])


@pytest.mark.parametrize("offset", [LEFT, BELOW])
def test_a_head_learns_to_look_at_its_neighbour(nano: MiniCPMV, offset: tuple[int, int]) -> None:
    views = list(some_views(nano, 16))
    torch.manual_seed(0)
    head = look_at(views[:12], offset, 64, steps=300)
    paid = []
    for view in views[12:]:
        here, there = view.beside(offset)
        scores = head["q_proj"](view.tokens[here]) @ head["k_proj"](view.tokens).T / 8
        paid.append(scores.softmax(-1)[torch.arange(len(here)), there].mean().item())
    assert sum(paid) / len(paid) > 0.4  # spread evenly it is less than a hundredth


def test_numbers_of_layers_that_do_not_fit_are_said(nano: MiniCPMV) -> None:
    with pytest.raises(ValueError, match="grow to"):
        grow(nano, larger(nano, 1), neighbours=(), halved=(3, 5))


def test_neighbours_are_those_of_the_grid(nano: MiniCPMV) -> None:
    view = next(some_views(nano, 1))
    rows, columns = view.grid.shape
    here, there = view.beside(LEFT)
    assert len(here) == rows * (columns - 1)
    assert (here - there == 1).all()
    here, there = view.beside(BELOW)
    assert (there - here == columns).all()


def test_a_run_grows_to_the_shapes_of_today_and_one_of_these_has_nothing_to_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = new_learner(1)
    write_run(learner, tmp_path / "today")
    text = learner.model.config.text
    short = dataclasses.replace(text, num_hidden_layers=len(text.layer_types) - 2, layer_types=text.layer_types[:-2])
    model = MiniCPMV(dataclasses.replace(learner.model.config, text=short), IMAGE.image_mean, IMAGE.image_std)
    known = dict(learner.model.named_parameters())
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(known[name])
    learner.model = model
    write_run(learner, tmp_path / "short")
    for run, ends in (("short", None), ("today", "has all their layers")):
        monkeypatch.setattr(sys, "argv", ["grow", "--run", str(tmp_path / run), "--out", str(tmp_path / "grown")])
        if ends is None:
            main()
            grown = load_model(tmp_path / "grown/model")
            first, old = grown.language_model.layers[0], load_model(tmp_path / "short/model").language_model.layers[0]
            assert torch.equal(first.mlp.up_proj.weight, old.mlp.up_proj.weight)
            assert len(grown.language_model.layers) == len(text.layer_types)
        else:
            with pytest.raises(SystemExit, match=ends):
                main()
