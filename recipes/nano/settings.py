"""What nano is: shapes, and the settings of its optimisers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pocketvlm.config import ImageConfig, ModelConfig, TextConfig, VisionConfig

ASSETS = Path(__file__).resolve().parents[2] / "src/pocketvlm/assets/nano"

# What make_tokenizer.py writes, and the template.
TEXT_FILES = (
    "chat_template.jinja",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
)

# One view is 224 x 224: 256 patches, 16 visual tokens at 16x or 64 at 4x.
IMAGE = ImageConfig(scale_resolution=224)


def model_config(vocab_size: int, image_token_id: int, video_token_id: int, eos_token_id: int) -> ModelConfig:
    """MiniCPM-V 4.6 at toy width: every kind of layer, early compression after a third of them.

    The first two layers of the tower came when it could read, with heads that look at neighbours (`grow.py`). Without
    them early compression stood after a quarter, as in the published model.

    Every second layer of the decoder is full attention (every fourth in the published model): reading needs two of
    them, one to find the place in the picture and one to copy what was found. The pair in the middle came later
    (`grow.py`), for what has to be found by two names.
    """
    return ModelConfig(
        vision=VisionConfig(
            hidden_size=192, intermediate_size=512, num_hidden_layers=12, num_attention_heads=3, image_size=980
        ),
        text=TextConfig(
            hidden_size=256,
            intermediate_size=704,
            num_hidden_layers=6,
            layer_types=("linear_attention", "full_attention") * 3,
            vocab_size=vocab_size,
            max_position_embeddings=16384,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            rope_theta=10_000,
            linear_num_key_heads=4,
            linear_num_value_heads=4,
            linear_key_head_dim=64,
            linear_value_head_dim=64,
        ),
        insert_layer_id=3,
        image_token_id=image_token_id,
        video_token_id=video_token_id,
        eos_token_id=eos_token_id,
        # Nano is small enough that four times the visual tokens cost little, and it reads far better with them.
        downsample_mode="4x",
    )


@dataclass(frozen=True)
class Optimiser:
    """Muon on the matrices of the blocks, AdamW on the rest; after the warm-up the rate is constant in each stage."""

    learning_rate: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.01
    clip: float = 1.0
    momentum: float = 0.95


@dataclass(frozen=True)
class Preset:
    """Where a run happens.

    Attributes:
        patches: factor on the patches of a step.
        workers: processes that draw samples ahead of the trainer.
    """

    device: str
    workers: int
    patches: float
    optimiser: Optimiser


PRESETS = {
    # Two cores draw 7 % of the time: no workers. An afternoon.
    "cpu": Preset("cpu", workers=0, patches=1.0, optimiser=Optimiser()),
    # 25 minutes; 16 cores of which 15 draw.
    "h200": Preset("cuda", workers=15, patches=12.0, optimiser=Optimiser(learning_rate=4e-3)),
}
