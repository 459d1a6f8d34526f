"""What nano is and what it sees while it learns: shapes, curriculum, optimiser settings."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from pocketvlm.config import ImageConfig, ModelConfig, TextConfig, VisionConfig
from pocketvlm.synthetic import LEVELS, Difficulty

# One view is 224 x 224: 256 patches, 16 visual tokens at 16x or 64 at 4x.
IMAGE = ImageConfig(scale_resolution=224)


def model_config(vocab_size: int, image_token_id: int, video_token_id: int, eos_token_id: int) -> ModelConfig:
    """MiniCPM-V 4.6 at toy width: every kind of layer, early compression at the same relative depth (a quarter).

    Every second layer is full attention (every fourth in the published model): with four layers, reading needs two of
    them, one to find the place in the picture and one to copy what was found.
    """
    return ModelConfig(
        vision=VisionConfig(
            hidden_size=128, intermediate_size=256, num_hidden_layers=6, num_attention_heads=4, image_size=448
        ),
        text=TextConfig(
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=4,
            layer_types=("linear_attention", "full_attention") * 2,
            vocab_size=vocab_size,
            max_position_embeddings=16384,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            rope_theta=10_000,
            linear_num_key_heads=4,
            linear_num_value_heads=4,
            linear_key_head_dim=48,
            linear_value_head_dim=48,
        ),
        insert_layer_id=1,
        image_token_id=image_token_id,
        video_token_id=video_token_id,
        eos_token_id=eos_token_id,
    )


@dataclass(frozen=True)
class Stage:
    """One step of the curriculum.

    Attributes:
        tasks: (task, level or difficulty, weight): what the pictures of a batch are drawn from.
        batch: pictures a process and step.
        mark: the stage ends when the moving average of the loss falls under this; 0 never ends.
        language: the decoder learns in every n-th step, 0 is never. In the steps between, the tower alone learns
            from the character boxes, on twice the pictures: reading is what takes longest, and costs a quarter then.
        characters: weight of the tower's dense loss.
    """

    name: str
    tasks: tuple[tuple[str, int | Difficulty, float], ...]
    batch: int
    mark: float
    language: int = 1
    characters: float = 0.5


# One word, number or phrase anywhere on a page: what people try first.
ONE_LINE = dataclasses.replace(LEVELS[3], lines=(1, 1))
# The same print on a canvas that is little larger: a quarter of the patches, so four times the reading for the money.
SNIPPET = dataclasses.replace(LEVELS[3], lines=(1, 2), sizes=((56, 224), (56, 168), (112, 112), (112, 224), (112, 168)))

# Full difficulty from the first step learns nothing: each stage starts where the one before it can already read, and
# a stage ends on the loss, never on the clock.
CURRICULUM: tuple[Stage, ...] = (
    Stage("tower", (("words", 0, 1.0),), 24, 0.60, language=0, characters=1.0),
    Stage("first words", (("words", 0, 1.0),), 24, 0.50),
    Stage("strips", (("words", 1, 0.8), ("words", 0, 0.2)), 24, 1.00, language=3),
    Stage("small pictures", (("words", 2, 0.7), ("words", 1, 0.3)), 24, 1.25, language=3),
    Stage(
        "pages",
        (
            ("words", SNIPPET, 0.5),
            ("words", ONE_LINE, 0.3),
            ("words", 3, 0.05),
            ("receipt", 0, 0.1),
            ("receipt", 1, 0.05),
        ),
        24,
        0.70,
    ),
    Stage(
        "receipts",
        (
            ("words", ONE_LINE, 0.45),
            ("words", SNIPPET, 0.15),
            ("words", 3, 0.1),
            ("words", 4, 0.05),
            ("receipt", 0, 0.25),
        ),
        16,
        0.0,
    ),
)


# Most pictures are seen at 4x: 16x follows, and costs reading most.
SHARE_4X = 0.75


@dataclass(frozen=True)
class Optimiser:
    """Muon on the matrices of the blocks, AdamW on the rest; constant rate after the warm-up, linear cool-down."""

    learning_rate: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.01
    clip: float = 1.0
    momentum: float = 0.95
