#!/usr/bin/env python3
"""Write nano's tokenizer and the settings that belong to it.

    python recipes/nano/make_tokenizer.py [OUT]

Files: tokenizer.json, tokenizer_config.json, generation_config.json, and the settings of pictures and videos in
preprocessor_config.json, video_preprocessor_config.json and processor_config.json alike: transformers 4, transformers 5
and the engines built on either each look for another one. Needs only tokenizers.

Ids: 0 to 255 the byte alphabet, then the merges, then the 50 published control tokens in their published order.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

DEFAULT_OUT = Path(__file__).resolve().parents[2] / "src" / "pocketvlm" / "assets" / "nano"

# The most frequent words of the questions in `pocketvlm.synthetic` (`recipes.nano.question_words` counts them). Each
# brings its beginnings along, with which other words then start, so the list is kept short; and what is asked for by
# its printed name (an item, a label) is left to letters, as it is printed.
_QUESTION_WORDS = (
    "a above address amount answer appear are at bar bars batch below bill blue bottom bought box brief button by "
    "category chart circle color colour column cost costs count customer date describe did different direction do "
    "does due each end field fifth first for fourth frame from green has heading highest how image in is it item "
    "items large larger last left line lines list long lowest many message move much name no not number of on one "
    "paid picture pictures please position price printed purchase purple question read receipt red reference right "
    "row rows same say second see serial shape shapes shop short show sixth small square star store subtotal sum "
    "tax text that the there third this ticked time title to top total triangle unit units value was were what when "
    "where which who with word words written yellow you "
)
QUESTION_WORDS = tuple(_QUESTION_WORDS.split())

PROCESSOR_CLASS = "MiniCPMV4_6Processor"

_SPECIAL = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> "
    "<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|> "
    "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|> "
    "<tool_response> </tool_response> <think> </think> <|audio_start|> <|audio_end|> <tts_pad> <tts_text_bos> "
    "<tts_text_eod> <tts_text_bos_single> <|audio_pad|> <unk> <image> </image> <ref> </ref> <box> </box> <quad> "
    "</quad> <point> </point> <slice> </slice> <image_id> </image_id> <timestamp> </timestamp> "
)
SPECIAL = tuple(_SPECIAL.split())
# Control tokens that stay visible when special tokens are skipped in decoding, as published.
VISIBLE = frozenset(
    token
    for token in SPECIAL
    if token.strip("</>") in ("tool_call", "tool_response", "think", "|repo_name|", "|file_sep|")
    or token.startswith("<|fim_")
)

# The published pre-tokenizer, alternative by alternative. Digits are split singly.
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",  # English contractions
    r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",  # letters, with at most one other character (a space) in front
    r"\p{N}",  # one digit
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",  # punctuation
    r"\s*[\r\n]+",  # line ends
    r"\s+(?!\S)",  # spaces but the last before a word
    r"\s+",
)

SPACE = "Ġ"  # how the byte alphabet writes a space


def build_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Merges that make " word" one token for each of `words`, by growing from its space one letter at a time.

    No merge starts from a letter, so text without a leading space stays one character a token. Answers start without
    a space and are mostly single words and numbers: the tiny decoder then copies what the tower shows it character by
    character, instead of having to learn how the same letters were cut elsewhere. Only the first token of a later word
    in a phrase can be longer than one letter.
    """
    merges: dict[tuple[str, str], None] = {}
    for word in sorted(words):
        grown = SPACE
        for letter in word:
            merges[grown, letter] = None
            grown += letter
    # A shorter beginning first: a merge may only join what earlier ones have made.
    return sorted(merges, key=lambda pair: (len(pair[0]), pair))


def build_tokenizer() -> Tokenizer:
    """The byte-level BPE tokenizer with its control tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = build_merges(QUESTION_WORDS)
    vocabulary = {token: i for i, token in enumerate([*alphabet, *(a + b for a, b in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("|".join(PIECES)), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_tokens([AddedToken(token, special=token not in VISIBLE, normalized=False) for token in SPECIAL])
    return tokenizer


def write(out: Path) -> dict[str, int]:
    """Write the files into `out`; returns the ids that a config.json needs and the vocabulary's size."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    tokenizer.save(str(out / "tokenizer.json"))

    def token_id(token: str) -> int:
        found = tokenizer.token_to_id(token)
        assert found is not None
        return int(found)

    def save(name: str, value: dict[str, object]) -> None:
        (out / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")

    save(
        "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "unk_token": "<unk>",
            "padding_side": "left",
            "extra_special_tokens": {
                "image_token": "<|image_pad|>",
                "video_token": "<|video_pad|>",
                "image_start_token": "<image>",
                "image_end_token": "</image>",
                "slice_start_token": "<slice>",
                "slice_end_token": "</slice>",
                "image_id_start_token": "<image_id>",
                "image_id_end_token": "</image_id>",
            },
        },
    )
    save(
        "generation_config.json",
        {
            "bos_token_id": token_id("<|im_start|>"),
            # Reading has one right answer, so the default is greedy.
            "do_sample": False,
            "eos_token_id": [token_id("<|endoftext|>"), token_id("<|im_end|>")],
            "pad_token_id": token_id("<|endoftext|>"),
        },
    )
    settings: dict[str, object] = {
        "processor_class": PROCESSOR_CLASS,
        "max_slice_nums": 9,
        "scale_resolution": 224,  # a view of 224 x 224 pixels is 256 patches
        "patch_size": 14,
        "use_image_id": True,
        "slice_mode": True,
        "downsample_mode": "4x",  # as in config.json: the processor of transformers does not look there
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    image = {"image_processor_type": "MiniCPMV4_6ImageProcessor", **settings}
    video = {"video_processor_type": "MiniCPMV4_6VideoProcessor", **settings}
    save("preprocessor_config.json", image)
    save("video_preprocessor_config.json", video)
    save(
        "processor_config.json",
        {"processor_class": PROCESSOR_CLASS, "image_processor": image, "video_processor": video},
    )
    return {
        "vocab_size": tokenizer.get_vocab_size(),
        "eos_token_id": token_id("<|endoftext|>"),
        "image_token_id": token_id("<|image_pad|>"),
        "video_token_id": token_id("<|video_pad|>"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Write nano's tokenizer and the settings that belong to it.")
    parser.add_argument("out", type=Path, nargs="?", default=DEFAULT_OUT, help="directory (default: the package's)")
    out = parser.parse_args().out
    print(f"{out}: {json.dumps(write(out))}")


if __name__ == "__main__":
    main()
