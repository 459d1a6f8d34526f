"""Warm start: early compression begins as the layer in front of it, applied to each token and averaged."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.invariants import assert_close, relative_error
from helpers.tiny_models import CONFIG, tiny_model, view

from pocketvlm.config import DownsampleMode
from pocketvlm.model.vision.early_compression import WINDOW
from pocketvlm.model.vision.tower import VisionLayer, VisionTower
from pocketvlm.model.vision.view_order import window_order
from pocketvlm.model.vision.view_packing import ViewGroup, pack_views
from pocketvlm.model.vision.warm_start import warm_start_compression


@pytest.fixture
def tower() -> VisionTower:
    started = copy.deepcopy(tiny_model().vision_tower)
    warm_start_compression(started)
    return started


@pytest.fixture
def layer(tower: VisionTower) -> VisionLayer:
    return tower.layers[CONFIG.insert_layer_id]


def test_attention_and_its_norm_are_bit_copies(tower: VisionTower, layer: VisionLayer) -> None:
    for part in ("self_attn", "layer_norm1"):
        source = getattr(layer, part).state_dict()
        for name, value in getattr(tower.vit_merger, part).state_dict().items():
            assert torch.equal(value, source[name]), (part, name)
            assert value.data_ptr() != source[name].data_ptr(), "shared, not copied"


def test_block_structure_is_exact(tower: VisionTower, layer: VisionLayer) -> None:
    merger, (width, hidden) = tower.vit_merger, layer.mlp.fc1.weight.shape
    blocks = merger.linear_1.weight.view(WINDOW, width, WINDOW, hidden)
    for i in range(WINDOW):
        for j in range(WINDOW):
            expected = layer.mlp.fc1.weight if i == j else torch.zeros_like(layer.mlp.fc1.weight)
            assert torch.equal(blocks[i, :, j], expected), (i, j)
    for quarter in merger.linear_2.weight.chunk(WINDOW, dim=1):
        assert torch.equal(quarter, layer.mlp.fc2.weight / 4)


def test_biases_are_unscaled_and_the_norm_is_tiled(tower: VisionTower, layer: VisionLayer) -> None:
    merger = tower.vit_merger
    assert torch.equal(merger.linear_1.bias, layer.mlp.fc1.bias.repeat(WINDOW))
    assert torch.equal(merger.linear_2.bias, layer.mlp.fc2.bias)
    assert torch.equal(merger.pre_norm.weight, layer.layer_norm2.weight.repeat(WINDOW))
    assert torch.equal(merger.pre_norm.bias, layer.layer_norm2.bias.repeat(WINDOW))


def test_four_equal_tokens_get_what_the_layer_itself_makes_of_one(tower: VisionTower, layer: VisionLayer) -> None:
    tokens = torch.randn(5, CONFIG.vision.hidden_size, generator=torch.Generator().manual_seed(1))
    got = tower.vit_merger(tokens.repeat_interleave(WINDOW, dim=0))
    # Attention over four equal tokens is attention of one token to itself; a mean of four equal ones is that one.
    assert_close(got, layer(tokens, [ViewGroup(len(tokens), 1)]))


def test_different_tokens_get_the_mean_of_the_layers_mlp(tower: VisionTower, layer: VisionLayer) -> None:
    tokens = torch.randn(WINDOW, CONFIG.vision.hidden_size, generator=torch.Generator().manual_seed(2))
    attended = layer.self_attn(layer.layer_norm1(tokens), [ViewGroup(1, WINDOW)], tokens)
    # One norm over the four tokens together, the layer's weights on each.
    joint = torch.nn.functional.layer_norm(attended, attended.shape, eps=CONFIG.vision.layer_norm_eps)
    normed = joint * layer.layer_norm2.weight + layer.layer_norm2.bias
    assert_close(tower.vit_merger(tokens)[0], layer.mlp(normed, attended).mean(0))


def test_the_other_layers_are_left_alone(tower: VisionTower) -> None:
    before = tiny_model().vision_tower.state_dict()
    for name, value in tower.state_dict().items():
        assert torch.equal(value, before[name]) or name.startswith("vit_merger."), name


def test_just_compressed_tower_is_close_to_the_uncompressed_one_on_smooth_input() -> None:
    trained, side = copy.deepcopy(tiny_model().vision_tower), CONFIG.vision.positions_per_side
    for layer in trained.layers:  # as in a trained tower, a layer changes its input a little
        for last in (layer.self_attn.out_proj, layer.mlp.fc2):
            last.weight.mul_(0.05)
            last.bias.mul_(0.05)
    one, other = torch.randn(2, CONFIG.vision.hidden_size, generator=torch.Generator().manual_seed(3))
    slope = torch.linspace(0, 1, side)
    slopes = (slope[:, None] + slope).view(-1, 1)
    trained.position_embedding.weight.copy_(one + slopes * other)  # neighbours look alike
    warm = copy.deepcopy(trained)
    warm_start_compression(warm)

    def features(tower: VisionTower, mode: DownsampleMode) -> torch.Tensor:
        return tower(torch.zeros(32 * 32, CONFIG.vision.patch_dim), pack_views([view(32, 32, mode)], side))

    # In 16x order, each 2 x 2 window of a view is one row; in 4x order it is four neighbouring rows.
    windows = features(trained, "4x").view(-1, WINDOW, CONFIG.vision.hidden_size).mean(1)
    expected = windows[torch.tensor(window_order(16, 16, "4x"))]
    assert relative_error(features(warm, "16x"), expected) < 0.1
    assert relative_error(features(trained, "16x"), expected) > 0.3, "a random start would do as well"
