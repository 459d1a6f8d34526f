"""nano's tokenizer and the example pictures: what the scripts write is what is committed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer

from pocketvlm.processing.media.limits import MediaLimits
from pocketvlm.processing.media.video_reader import open_video
from pocketvlm.synthetic.words.vocabulary import is_heldout

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "src" / "pocketvlm" / "assets" / "nano"


def load_script(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def maker():
    return load_script(ROOT / "recipes" / "nano" / "make_tokenizer.py")


@pytest.fixture(scope="module")
def tokenizer(maker):
    return maker.build_tokenizer()


def test_the_committed_files_are_what_the_script_writes(maker, tmp_path):
    maker.write(tmp_path)
    for path in sorted(tmp_path.iterdir()):
        assert json.loads(path.read_text()) == json.loads((ASSETS / path.name).read_text()), path.name


def test_control_tokens_follow_the_merges_in_the_published_order(tokenizer):
    first = tokenizer.token_to_id("<|endoftext|>")
    assert tokenizer.get_vocab_size() == first + 50
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|video_pad|>", "<think>", "<image>")
    assert [tokenizer.token_to_id(name) - first for name in names] == [0, 1, 2, 12, 13, 24, 34]
    assert tokenizer.token_to_id("</timestamp>") == first + 49


@pytest.mark.parametrize("answer", ["knife", "12.50", "THE", "the", "2026-03-14", "$4.99", "A7-93"])
def test_an_answer_is_one_character_a_token(tokenizer, answer):
    assert tokenizer.encode(answer).tokens == list(answer)


def test_words_of_questions_are_one_token(tokenizer):
    assert tokenizer.encode("What is the total?").tokens[4:] == ["Ġis", "Ġthe", "Ġtotal", "?"]


@pytest.mark.parametrize("text", ["", " a  b\n\n c", "naïve café 東京 🙂", "line 12, the\tprice\r\n", "it's £5"])
def test_any_text_survives(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_the_committed_tokenizer_knows_control_tokens():
    committed = Tokenizer.from_file(str(ASSETS / "tokenizer.json"))
    assert committed.encode("<|im_start|>user").tokens[0] == "<|im_start|>"


def test_the_committed_examples_are_what_the_script_draws(tmp_path, monkeypatch):
    script = load_script(ROOT / "examples" / "make_examples.py")
    monkeypatch.setattr("sys.argv", ["make_examples.py", str(tmp_path)])
    script.main()
    total = script.RECEIPT.price(script.RECEIPT.total_cents)
    assert total == "11.60"
    assert all(is_heldout(text) for text in (total, script.WORD, script.NUMBER))
    for path in sorted(tmp_path.iterdir()):
        pairs = zip(pixels_of(path), pixels_of(ROOT / "examples" / path.name), strict=True)
        for drawn, committed in pairs:
            assert drawn.shape == committed.shape
            # Another Pillow may round the edges of letters differently.
            assert np.abs(drawn.astype(int) - committed).mean() < 2


def pixels_of(path):
    """The pictures of a file: one, or the frames of a clip."""
    if path.suffix != ".mp4":
        return [np.asarray(Image.open(path))]
    with open_video(path, None, MediaLimits(), files=True) as reader:
        return [np.asarray(pixels) for _, pixels in reader.read(range(reader.timeline.total))]
