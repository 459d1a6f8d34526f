"""The Python interface: what is asked is answered, streamed text adds up, options are honoured or refused."""

from __future__ import annotations

import errno
import gc
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import pocketvlm
from pocketvlm.api.trace import trace
from pocketvlm.bundle import PRESETS
from pocketvlm.engine.runners.onnx_runner import ONNXRunner
from pocketvlm.engine.runners.torch_runner import TorchRunner
from pocketvlm.errors import CheckpointError, ConfigError, MediaError, PocketVLMError, PromptError
from pocketvlm.export.onnx.bundle import write_bundle


@pytest.fixture(scope="module")
def vlm(seeded_checkpoint: Callable[[int], Path]) -> pocketvlm.VLM:
    return pocketvlm.load(seeded_checkpoint(0))


def picture(seed: int = 0, height: int = 60, width: int = 90) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


GREEDY = {"temperature": 0, "max_tokens": 8}


def test_all_kinds_of_sources_of_one_picture_give_one_answer(vlm: pocketvlm.VLM, tmp_path: Path) -> None:
    array = picture()
    path = tmp_path / "a.png"
    path.write_bytes(png(array))
    sources = [array, png(array), path, str(path), Image.fromarray(array), [path]]
    answers = [vlm.ask(source, "What is it?", **GREEDY) for source in sources]
    assert len({a.token_ids for a in answers}) == 1
    assert all(a.usage == answers[0].usage for a in answers)


def test_usage_counts_placeholders_and_tokens_and_timing_names_every_stage(vlm: pocketvlm.VLM) -> None:
    answer = vlm.ask(picture(), "What is it?", **GREEDY)
    assert answer.usage.visual_tokens == pocketvlm.plan(60, 90).visual_tokens
    assert answer.usage.prompt_tokens > answer.usage.visual_tokens
    assert answer.usage.completion_tokens == len(answer.token_ids) <= 8
    assert set(answer.timing) == {"preprocess", "queue", "encode", "prefill", "decode", "total"}
    assert answer.timing["total"] >= answer.timing["decode"] > 0


def test_4x_takes_more_tokens_and_another_picture_another_answer(vlm: pocketvlm.VLM) -> None:
    coarse = vlm.ask(picture(), "What is it?", downsample_mode="16x", **GREEDY)
    fine = vlm.ask(picture(), "What is it?", downsample_mode="4x", **GREEDY)
    assert fine.usage.visual_tokens > 3 * coarse.usage.visual_tokens
    one, other, again = (vlm.ask(picture(i), "What is it?", logprobs=0, **GREEDY) for i in (0, 1, 0))
    assert other.usage == one.usage == coarse.usage
    first = [answer.logprobs[0].logprob for answer in (one, other, again) if answer.logprobs]
    assert abs(first[2] - first[0]) < 1e-3 < abs(first[1] - first[0])


def test_streamed_pieces_add_up_to_the_answer(vlm: pocketvlm.VLM) -> None:
    messages = [{"role": "user", "content": "Say something."}]
    stream = vlm.stream(messages, temperature=1.5, seed=3, max_tokens=40)
    with pytest.raises(PromptError):
        _ = stream.answer
    pieces = list(stream)
    assert "".join(pieces) == stream.answer.text
    assert stream.answer.token_ids == vlm.chat(messages, temperature=1.5, seed=3, max_tokens=40).token_ids


def test_a_batch_answers_as_one_by_one(vlm: pocketvlm.VLM) -> None:
    content = [
        [{"type": "text", "text": "Hello"}],
        [{"type": "image", "image": picture(2)}, {"type": "text", "text": "And here?"}],
        [{"type": "image", "image": picture(3, 500, 700)}, {"type": "text", "text": "Much?"}],
    ]
    conversations = [[{"role": "user", "content": c}] for c in content]
    together = vlm.batch(conversations, **GREEDY)
    assert [a.token_ids for a in together] == [vlm.chat(c, **GREEDY).token_ids for c in conversations]


def test_a_stop_string_ends_the_answer_and_never_shows(vlm: pocketvlm.VLM) -> None:
    messages = [{"role": "user", "content": "Say something."}]
    options = {"temperature": 1.0, "seed": 11, "max_tokens": 40}
    free = vlm.chat(messages, **options).text
    stop = free[10:13]
    stream = vlm.stream(messages, stop=[stop], **options)
    shown = "".join(stream)
    assert shown == stream.answer.text == free[: free.index(stop)]
    assert stream.answer.finish_reason == "stop"


def test_several_turns_and_several_pictures(vlm: pocketvlm.VLM) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "image", "image": picture(0)},
                {"type": "image", "image": picture(1, 30, 30)},
                {"type": "text", "text": "Which one?"},
            ],
        },
        {"role": "assistant", "content": "The first."},
        {"role": "user", "content": [{"type": "image", "image": picture(4)}, {"type": "text", "text": "And now?"}]},
    ]
    answer = vlm.chat(messages, **GREEDY)
    expected = sum(pocketvlm.plan(h, w).visual_tokens for h, w in ((60, 90), (30, 30), (60, 90)))
    assert answer.usage.visual_tokens == expected


def test_frames_of_a_video_are_video_tokens(vlm: pocketvlm.VLM) -> None:
    frames = np.stack([picture(i) for i in range(3)])
    content = [{"type": "video", "video": frames, "fps": 1.0}, {"type": "text", "text": "What happens?"}]
    answer = vlm.chat([{"role": "user", "content": content}], **GREEDY)
    assert answer.usage.visual_tokens == 3 * pocketvlm.plan(60, 90, max_slice_nums=1).visual_tokens


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"downsample_mode": "8x"}, "8x"),
        ({"max_slice_nums": 0}, "max_slice_nums"),
        ({"temprature": 0.5}, "temprature"),
        ({"best_of": 0.5}, "best_of"),
        ({"max_tokens": -1}, "max_tokens"),
    ],
)
def test_an_option_that_is_not_honoured_is_refused(vlm: pocketvlm.VLM, options: dict[str, object], named: str) -> None:
    with pytest.raises(PocketVLMError, match=named):
        vlm.ask(picture(), "What is it?", **options)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"runtime": "tensorrt"}, ConfigError),
        ({"runtime": "torch", "quantization": "int8"}, ConfigError),
        ({"runtime": "onnx", "dtype": "bfloat16"}, ConfigError),
        ({"runtime": "onnx", "device": "meta"}, ConfigError),
        ({"quantization": "int3"}, ConfigError),
        ({"device": "tpu"}, ConfigError),
        ({"device": "cuda:99"}, ConfigError),
        ({"dtype": "int3"}, ConfigError),
        ({"model": "no-such-model"}, CheckpointError),
        ({"model": __file__}, CheckpointError),
    ],
)
def test_load_refuses_what_it_cannot_honour(options: dict[str, str], error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        pocketvlm.load(**options)
    assert "\n" not in str(caught.value)


def test_a_hub_id_that_is_not_cached_is_one_clear_line_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"some-owner/some-model .* not in the local cache"):
        pocketvlm.load("some-owner/some-model")


def test_a_hub_id_in_the_cache_loads_without_a_connection(
    seeded_checkpoint: Callable[[int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "models--owner--model" / "snapshots" / "abc"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(seeded_checkpoint(0))
    (tmp_path / "models--owner--model" / "refs").mkdir()
    (tmp_path / "models--owner--model" / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path))
    assert pocketvlm.load("owner/model").ask(None, "Hello", **GREEDY).usage.prompt_tokens > 0


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (RuntimeError("of whatever it fetches with"), r"could not be fetched \(RuntimeError\)"),
        (OSError(errno.ENOSPC, "No space left on device"), "could not be fetched: No space left on device"),
    ],
)
def test_a_download_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch, fault: Exception, words: str) -> None:
    def fail(*_: object, **__: object) -> str:
        raise fault

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(CheckpointError, match=f"owner/model .*{words}"):
        pocketvlm.load("owner/model")


def test_bad_media_and_questions_are_one_line(vlm: pocketvlm.VLM, tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    for source in (
        tmp_path / "missing.png",
        tmp_path,
        text,
        b"",
        b"\x89PNG\r\n\x1a\n",
        np.zeros((0, 3, 3), np.uint8),
        7,
    ):
        with pytest.raises(MediaError) as error:
            vlm.ask(source, "What is it?")
        assert "\n" not in str(error.value)
    with pytest.raises(PromptError):
        vlm.ask(picture(), "  ")


def test_plan_refuses_sizes_that_are_none() -> None:
    for height, width in ((0, 5), (5, -1), (1.5, 2), (True, 4)):
        with pytest.raises(ConfigError):
            pocketvlm.plan(height, width)  # type: ignore[arg-type]


def test_plan_counts_the_saving_of_early_compression() -> None:
    p = pocketvlm.plan(448, 448)
    assert (p.grid, p.views, p.visual_tokens) == (None, ((32, 32),), 64)
    assert 0.45 < 1 - p.vision_flops / p.vision_flops_uncompressed < 0.56
    assert pocketvlm.plan(448, 448, "4x").vision_flops == p.vision_flops_uncompressed


def test_bfloat16_answers_and_keeps_decay_parameters_in_fp32(seeded_checkpoint: Callable[[int], Path]) -> None:
    vlm = pocketvlm.load(seeded_checkpoint(0), dtype="bfloat16")
    names = dict(vlm.runner.model.named_parameters())
    assert {str(p.dtype) for n, p in names.items() if n.endswith(("A_log", "dt_bias"))} == {"torch.float32"}
    assert vlm.ask(picture(), "What is it?", **GREEDY).usage.completion_tokens > 0


def test_both_runtimes_give_the_same_answers(vlm: pocketvlm.VLM, seeded_checkpoint: Callable[[int], Path]) -> None:
    other = pocketvlm.load(seeded_checkpoint(0), runtime="torch")
    assert [type(v.runner) for v in (vlm, other)] == [ONNXRunner, TorchRunner]
    for options in ({}, {"downsample_mode": "4x"}, {"downsample_mode": "auto", "max_slice_nums": 2}, {"num_beams": 2}):
        pair = [v.ask(picture(), "What is it?", **GREEDY, **options) for v in (vlm, other)]
        assert pair[0].token_ids == pair[1].token_ids
        assert pair[0].usage == pair[1].usage


def test_what_auto_chooses(seeded_checkpoint: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(**options: Any) -> str:
        with pocketvlm.load(small, device="cpu", **options) as vlm:
            return str(vlm.runner.manifest.quantization) if isinstance(vlm.runner, ONNXRunner) else "torch"

    small, names = seeded_checkpoint(0), {name: str(PRESETS[name]) for name in ("none", "int8")}
    assert chosen() == chosen(quantization="none") == chosen(runtime="onnx") == names["none"]
    assert chosen(runtime="onnx", quantization="int8") == chosen(quantization="int8") == names["int8"]
    for asked in ({"dtype": "float32"}, {"runtime": "torch"}, {"adapters": {}}):
        assert chosen(**asked) == "torch"
    monkeypatch.setattr("pocketvlm.api.loading.LARGE", 1)
    assert chosen() == chosen(runtime="onnx") == names["int8"]
    assert chosen(quantization="none") == chosen(dtype="float32") == chosen(runtime="torch") == "torch"
    with monkeypatch.context() as patch:  # another program brought ONNX Runtime, but nothing that makes bundles
        patch.setattr("pocketvlm.api.loading.find_spec", lambda name: name != "onnx_ir" or None)
        assert chosen() == "torch"
    with monkeypatch.context() as patch:  # no PyTorch: fp32 by ONNX Runtime
        patch.setattr("pocketvlm.api.loading.find_spec", lambda name: name != "torch" or None)
        assert chosen(quantization="none") == chosen(dtype="float32") == names["none"]
    with monkeypatch.context() as patch:
        patch.setattr("onnxruntime.__version__", "1.20.0")
        assert chosen() == "torch"
        with pytest.raises(ConfigError, match=r"1\.20\.0 is installed"):
            chosen(runtime="onnx")
    monkeypatch.setattr("pocketvlm.api.loading.find_spec", lambda name: name == "torch" or None)
    assert chosen() == "torch"  # ONNX Runtime is not installed


def test_what_runs_on_a_cpu_alone_does_so_beside_a_gpu(
    seeded_checkpoint: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("pocketvlm.api.loading.has_gpu", lambda: True)
    bundle = tmp_path / "bundle"
    write_bundle(seeded_checkpoint(0), bundle, PRESETS["none"])
    asked = [
        (seeded_checkpoint(0), {"runtime": "onnx"}),
        (seeded_checkpoint(0), {"quantization": "int8"}),
        (bundle, {}),
    ]
    for model, options in asked:
        with pocketvlm.load(model, **options) as vlm:  # type: ignore[arg-type]
            assert isinstance(vlm.runner, ONNXRunner)
        with pytest.raises(ConfigError, match="runs on the CPU"):
            pocketvlm.load(model, device="cuda", **options)  # type: ignore[arg-type]


def test_a_small_model_needs_no_cache(
    vlm: pocketvlm.VLM, seeded_checkpoint: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small, places = seeded_checkpoint(0), tmp_path / "temporary"
    places.mkdir()
    (tmp_path / "file").write_text("no folder can be made below")
    monkeypatch.setenv("POCKETVLM_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(places))
    with pocketvlm.load(small, device="cpu") as other:
        assert isinstance(other.runner, ONNXRunner)
        assert len(list(places.iterdir())) == 1
        answers = [v.ask(picture(), "What is it?", **GREEDY) for v in (vlm, other)]
    assert answers[0].token_ids == answers[1].token_ids
    del other
    gc.collect()
    assert not list(places.iterdir())
    places.rmdir()  # nor is there a place for temporary files
    with pytest.raises(CheckpointError, match="no bundle can be kept"):
        pocketvlm.load(small, device="cpu")
    monkeypatch.setattr("pocketvlm.api.loading.LARGE", 1)
    with pytest.raises(CheckpointError, match="no bundle can be kept"):
        pocketvlm.load(small, device="cpu", quantization="none", runtime="onnx")


def test_a_bundle_is_a_model(seeded_checkpoint: Callable[[int], Path], tmp_path: Path) -> None:
    write_bundle(seeded_checkpoint(0), tmp_path / "bundle", PRESETS["int4"])
    vlm = pocketvlm.load(tmp_path / "bundle")
    assert vlm.ask(picture(), "What is it?", **GREEDY).usage.completion_tokens > 0
    for options in ({"runtime": "torch"}, {"quantization": "int8"}, {"dtype": "float16"}):
        with pytest.raises(ConfigError):
            pocketvlm.load(tmp_path / "bundle", **options)
    for options in ({"dtype": "float32"}, {"quantization": "int4"}):
        pocketvlm.load(tmp_path / "bundle", **options).close()
    with pytest.raises(ConfigError, match="PyTorch"):
        trace(vlm, [{"role": "user", "content": "Hm?"}])


def test_an_empty_batch_has_no_answers(vlm: pocketvlm.VLM) -> None:
    assert vlm.batch([]) == []


def test_a_trace_over_the_context_is_one_line(seeded_checkpoint: Callable[[int], Path]) -> None:
    vlm = pocketvlm.load(seeded_checkpoint(0), runtime="torch")
    messages = [{"role": "user", "content": "w" * 2 * vlm.config.text.max_position_embeddings}]
    with pytest.raises(PocketVLMError, match="context"):
        trace(vlm, messages)


def test_beams_answer_in_one_piece_and_in_a_batch_as_alone(vlm: pocketvlm.VLM) -> None:
    options = {**GREEDY, "num_beams": 3, "repetition_penalty": 1.2, "length_penalty": 0.5, "early_stopping": True}
    content = [[{"type": "image", "image": picture(i)}, {"type": "text", "text": "What?"}] for i in range(3)]
    conversations = [[{"role": "user", "content": c}] for c in content]
    alone = [vlm.chat(conversation, **options) for conversation in conversations]
    assert [a.token_ids for a in vlm.batch(conversations, **options)] == [a.token_ids for a in alone]
    stream = vlm.stream(conversations[0], **options)
    pieces = list(stream)
    assert pieces == [alone[0].text]
    assert stream.answer.usage == alone[0].usage
    assert stream.answer.usage.completion_tokens == len(alone[0].token_ids) > 0


def test_nano_answers_with_beams() -> None:
    nano = pocketvlm.load("nano")
    answer = nano.ask(picture(), "What does it say?", num_beams=3, max_tokens=6)
    assert len(answer.token_ids) <= 6
    assert nano.ask(picture(), "What does it say?", num_beams=3, max_tokens=6).token_ids == answer.token_ids
    with pytest.raises(ConfigError, match="num_beams=3"):
        nano.ask(picture(), "What does it say?", num_beams=3, temperature=0.7)
