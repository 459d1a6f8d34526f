"""The settings under which the published scores of MiniCPM-V 4.6 were measured.

Source: VLMEvalKit, `vlmeval/vlm/minicpm_v.py`, class `MiniCPM_V_4_6`, and its entry in `vlmeval/config.py`, where
`use_upsize=True` is named as the condition for the reported scores.

`use_upsize` there: a picture of less than 1344 x 1344 pixels is enlarged, aspect kept, bicubic, to a width drawn
uniformly from its own up to the width at which it has that area; the height is scaled along and rounded down. The draw
comes from one generator seeded with 0, so a score depends on the order of the pictures. Here each picture has a
generator of its own, seeded by its name: the same distribution, and the same sizes when a run is resumed.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketvlm.config import DownsampleMode, FourXRounding, ImageConfig
from pocketvlm.evaluation.tasks import Clip, Example, Media
from pocketvlm.processing.media.load_image import ImageSource, load_image
from pocketvlm.processing.patches.image import resize
from pocketvlm.views import Size

UPSIZE_AREA = 1344 * 1344

#: The public sets (names of `public_sets.PUBLIC_SETS`) whose small pictures the published evaluation enlarges.
UPSIZED_SETS = frozenset(("docvqa", "chartqa", "ocrbench", "textvqa", "mmbench", "mmbench-circular"))


def upsize_size(size: Size, draw: random.Random | None = None) -> Size:
    """The size to which `use_upsize` enlarges a picture; its own size when it has `UPSIZE_AREA` pixels or more.

    Args:
        draw: draws the width as the published evaluation does; None takes the largest one.
    """
    if size.area >= UPSIZE_AREA:
        return size
    widest = int(size.width * math.sqrt(UPSIZE_AREA / size.area))
    width = draw.randint(size.width, widest) if draw else widest
    return Size(height=int(width / size.width * size.height), width=width)


def upsize(source: ImageSource, draw: random.Random | None = None) -> NDArray[np.uint8]:
    """A picture as uint8 RGB [H, W, 3], enlarged if it is small.

    Args:
        source: as for `processing.media.load_image`.
        draw: as for `upsize_size`.

    Raises:
        MediaError: the picture cannot be read.
    """
    pixels = load_image(source)
    size = Size(height=pixels.shape[0], width=pixels.shape[1])
    larger = upsize_size(size, draw)
    if larger == size:
        return pixels
    return resize(pixels, larger)


@dataclass(frozen=True, kw_only=True)
class PublishedSettings:
    """What reproduces the published scores.

    Attributes:
        downsample_mode, max_slice_nums: of pictures.
        video_max_slice_nums: of each frame.
        use_video_id: number videos in the prompt as pictures are.
        num_beams, repetition_penalty, temperature, max_tokens: of the answer; temperature 0 draws nothing at random.
        use_upsize: enlarge small pictures first, for the sets where the published evaluation does so.
        seed: of the sizes that `use_upsize` draws; None enlarges as far as it goes.
        four_x_rounding: how views were rounded when the scores were measured (`ImageConfig.four_x_rounding`). It
            belongs to the model, not to a request; today's default, "current", rounds views to other sizes.
    """

    downsample_mode: DownsampleMode = "4x"
    max_slice_nums: int = 9
    video_max_slice_nums: int = 1
    use_video_id: bool = False
    num_beams: int = 3
    repetition_penalty: float = 1.2
    temperature: float = 0.0
    max_tokens: int = 8192
    use_upsize: bool = True
    seed: int | None = 0
    four_x_rounding: FourXRounding = "checkpoint"

    def options(self) -> dict[str, Any]:
        """The options of one request, by the names that `VLM.chat` takes."""
        return {
            "downsample_mode": self.downsample_mode,
            "max_slice_nums": self.max_slice_nums,
            "video_max_slice_nums": self.video_max_slice_nums,
            "use_video_id": self.use_video_id,
            "num_beams": self.num_beams,
            "repetition_penalty": self.repetition_penalty,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }

    def image_config(self, config: ImageConfig) -> ImageConfig:
        """How a model with `config` cuts pictures under these settings."""
        return replace(config, four_x_rounding=self.four_x_rounding)

    def media(self, example: Example) -> tuple[Media, ...]:
        """The pictures and videos of an example as the published evaluation shows them.

        Raises:
            MediaError: a picture that is to be enlarged cannot be read.
        """
        if not self.use_upsize or example.task not in UPSIZED_SETS:
            return example.media
        pictures: list[Media] = []
        for number, source in enumerate(example.media):
            assert not isinstance(source, Clip)  # these sets hold pictures only
            # Text seeds are hashed with SHA-512, so they mean the same in every process.
            name = f"{self.seed} {example.task} {example.id} {number}"
            pictures.append(upsize(source, None if self.seed is None else random.Random(name)))
        return tuple(pictures)
