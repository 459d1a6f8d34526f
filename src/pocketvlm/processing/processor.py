"""Messages → `ModelInputs`: the one entry to processing.

`Processor.from_directory(path)` reads what a checkpoint directory says about strings and pixels; calling it loads the
media, renders and expands the prompt and counts everything once more. It knows nothing of weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from pocketvlm.config import (
    DownsampleOption,
    ImageConfig,
    ModelConfig,
    check_auto_token_budget,
    check_downsample_mode,
)
from pocketvlm.config_files import ConfigFiles
from pocketvlm.errors import CheckpointError, ConfigError
from pocketvlm.processing.inputs import ModelInputs
from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.processing.media_budget import within_context
from pocketvlm.processing.media_encoding import MediaEncoder, MediaTask, encode_media
from pocketvlm.processing.patches.video import check_sampling, within_limits
from pocketvlm.processing.picture_options import PictureOptions
from pocketvlm.processing.prompt.expansion import Units, expand_pieces
from pocketvlm.processing.prompt.template import ChatTemplate, RenderedPrompt
from pocketvlm.processing.prompt.tokenizer import IMAGE_PAD, VIDEO_PAD, Tokenizer
from pocketvlm.ranges import show
from pocketvlm.text_files import read_json


class Processor:
    """Turns a conversation into what the model takes.

    Args:
        tokenizer, chat_template: the string half.
        image_config: how pictures are cut.
        video_config: how videos are; as pictures when None. What it says of frames is lowered to the limits.
        model_config: whose placeholder ids the tokenizer must share.
        limits: what pictures and videos are refused.
        files: False refuses paths as sources of media, for callers whose messages come from strangers.

    Attributes:
        encode: what makes views of pictures and videos; may be replaced by what does so elsewhere.

    Raises:
        CheckpointError: tokenizer and model do not belong together.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        chat_template: ChatTemplate,
        image_config: ImageConfig,
        model_config: ModelConfig,
        *,
        video_config: ImageConfig | None = None,
        limits: MediaLimits | None = None,
        files: bool = True,
    ) -> None:
        for name, expected in ((IMAGE_PAD, model_config.image_token_id), (VIDEO_PAD, model_config.video_token_id)):
            if tokenizer.control_id(name) != expected:
                raise CheckpointError(
                    f"{name} is {tokenizer.control_id(name)} in the tokenizer and {expected} in config.json",
                    hint="Use the tokenizer that came with the weights.",
                )
        if tokenizer.vocab_size > model_config.text.vocab_size:
            raise CheckpointError(
                f"the tokenizer has {tokenizer.vocab_size} ids, the model embeds {model_config.text.vocab_size}",
                hint="Use the tokenizer that came with the weights.",
            )
        if image_config.patch_size != model_config.vision.patch_size:
            raise ConfigError(
                f"the settings of pictures cut patches of {image_config.patch_size} pixels, the tower takes "
                f"{model_config.vision.patch_size}",
                hint="Use the processor_config.json or preprocessor_config.json that came with the weights.",
            )
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self.image_config = image_config
        self.model_config = model_config
        self.limits = limits or MediaLimits()
        self.video_config = within_limits(video_config or image_config, self.limits)
        self.files = files
        self.encode: MediaEncoder = encode_media

    def restrict(self, limits: MediaLimits) -> None:
        """From now on messages come from strangers: within these limits, and no path is opened."""
        self.limits, self.files = limits, False
        self.video_config = within_limits(self.video_config, limits)

    @classmethod
    def from_directory(
        cls,
        path: str | Path,
        *,
        configs: ConfigFiles | None = None,
        limits: MediaLimits | None = None,
        files: bool = True,
    ) -> Self:
        """Read tokenizer, template and configurations of a checkpoint directory; weights are not touched.

        Args:
            path: the directory.
            configs: its configuration files, where they have been read already.
            limits, files: see the class.

        Raises:
            CheckpointError, ConfigError: a file is missing or does not fit; the message names it.
        """
        directory = Path(path)
        if not directory.is_dir():
            raise CheckpointError(f"{directory} is not a directory", hint="Point at a MiniCPM-V 4.6 checkpoint.")
        configs = configs or ConfigFiles.read(directory)
        config = read_json(directory / "tokenizer_config.json")
        tokenizer = Tokenizer.from_directory(directory, config=config, generation=configs.generation)
        chat_template = ChatTemplate.from_directory(directory, tokenizer.control_tokens, config=config)
        options: dict[str, Any] = {"video_config": configs.video, "limits": limits, "files": files}
        return cls(tokenizer, chat_template, configs.image, configs.model, **options)

    def __call__(
        self,
        messages: Any,
        *,
        tools: Any = None,
        enable_thinking: bool = False,
        add_generation_prompt: bool = True,
        **options: Any,
    ) -> ModelInputs:
        """Process one conversation.

        Args:
            messages: OpenAI-style messages, see `pocketvlm.processing.prompt.messages`.
            tools: OpenAI tool definitions.
            enable_thinking: let the model reason before it answers.
            add_generation_prompt: end with the opening of an assistant message.
            options: those of `PictureOptions`, by name.

        Raises:
            PromptError: messages, tools or template options do not form a prompt.
            MediaError: a picture or video cannot be read or is over a limit; the message names its place.
            ConfigError: an option has a value that cannot be honoured.
        """
        prompt = self.chat_template.render(
            messages, tools=tools, enable_thinking=enable_thinking, add_generation_prompt=add_generation_prompt
        )
        return self.encode_prompt(prompt, **options)[0]

    def encode_prompt(self, prompt: RenderedPrompt, **options: Any) -> tuple[ModelInputs, list[int]]:
        """What a call makes of a rendered prompt, and the number of tokens that each of its pieces became."""
        how = PictureOptions(**options)
        kinds = [part.kind for part in prompt.media]
        self.limits.check_counts(kinds.count("image"), kinds.count("video"))
        if "video" in kinds:
            check_sampling(self.video_config, how.max_num_frames, how.stack_frames, self.limits)
        modes = self._modes(how.downsample_mode, len(prompt.media))
        only = how.downsample_mode if isinstance(how.downsample_mode, str) else self.model_config.downsample_mode
        budget = check_auto_token_budget(how.auto_token_budget, "auto" in (modes or (only,)))
        task = MediaTask(
            prompt.media,
            tuple(modes),
            budget,
            how,
            self.image_config,
            self.video_config,
            self.limits,
            self.files,
        )
        with within_context(self.model_config.text.max_position_embeddings):
            encoded = self.encode(task)
        image_id = _flag("use_image_id", how.use_image_id, self.image_config.use_image_id)
        return self.assemble(
            prompt,
            encoded,
            use_image_id=image_id,
            use_video_id=_flag("use_video_id", how.use_video_id, image_id),
        )

    def assemble(
        self,
        prompt: RenderedPrompt,
        media: Sequence[Units],
        *,
        use_image_id: bool = True,
        use_video_id: bool = True,
    ) -> tuple[ModelInputs, list[int]]:
        """Join a rendered prompt and its media, already encoded and in prompt order; returns as `encode_prompt`."""
        pieces = expand_pieces(self.tokenizer, prompt, media, use_image_id=use_image_id, use_video_id=use_video_id)
        ids = list(itertools.chain.from_iterable(pieces))
        units = [unit for medium in media for unit in medium]
        patch = self.image_config.patch_size
        patches = [unit.patches for unit in units] or [np.empty((0, patch, patch, 3), np.uint8)]
        inputs = ModelInputs(
            input_ids=np.array(ids, np.int64),
            patches=np.concatenate(patches) if len(patches) > 1 else patches[0],
            views=tuple(view for unit in units for view in unit.views),
            placeholder_ids=(self.model_config.image_token_id, self.model_config.video_token_id),
        )
        return inputs, [len(piece) for piece in pieces]

    def _modes(self, given: DownsampleOption | Sequence[DownsampleOption] | None, count: int) -> list[DownsampleOption]:
        """One mode for each medium."""
        if given is None or isinstance(given, str):
            return [check_downsample_mode(self.model_config.downsample_mode if given is None else given)] * count
        if not isinstance(given, (list, tuple)) or len(given) != count:
            raise ConfigError(
                f"downsample_mode={show(given, 60)} does not fit a prompt with {count} pictures and videos",
                hint="Give one mode, or one for each of them in order.",
            )
        return [check_downsample_mode(mode) for mode in given]


def _flag(name: str, value: bool | None, default: bool) -> bool:
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ConfigError(f"{name}={show(value)} is not true or false")
    return value
