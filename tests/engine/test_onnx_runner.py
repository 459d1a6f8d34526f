"""The second runtime gives what the first one gives: features, scores, states and greedy tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.engine_runs import assert_same_answers, make_request
from helpers.engine_runs import run as run_engine
from helpers.invariants import TIE, assert_close, assert_same_decoding, relative_error, same_cache
from helpers.tiny_models import MODES, prompt_with_views, random_patches, random_text, view, view_lists
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketvlm.bundle import PRESETS, Operators
from pocketvlm.engine.request import Request
from pocketvlm.engine.runners.base import Runner
from pocketvlm.engine.runners.onnx_runner import ONNXRunner
from pocketvlm.engine.runners.torch_runner import TorchRunner
from pocketvlm.engine.sampling.params import SamplingParams
from pocketvlm.errors import PromptError
from pocketvlm.export.onnx.bundle import write_bundle
from pocketvlm.model.cache.base import Cache
from pocketvlm.model.checkpoint import load_model
from pocketvlm.model.hub import resolve
from pocketvlm.model.segments import Segment
from pocketvlm.views import View


@pytest.fixture(scope="module")
def checkpoint0(seeded_checkpoint: Callable[[int], Path]) -> Path:
    return seeded_checkpoint(0)


@pytest.fixture(scope="module")
def plain(checkpoint0: Path) -> TorchRunner:
    return TorchRunner(load_model(checkpoint0))


@pytest.fixture(scope="module")
def onnx(checkpoint0: Path, tmp_path_factory: pytest.TempPathFactory) -> ONNXRunner:
    out = tmp_path_factory.mktemp("bundles") / "none"
    write_bundle(checkpoint0, out, PRESETS["none"])
    return ONNXRunner(out, threads=1)


@pytest.fixture(autouse=True)
def _no_gradients():  # type: ignore[no-untyped-def]
    with torch.inference_mode():
        yield


def run(runner: Runner, cache: Cache, segments: list[Segment], ids: list[list[int]], rows: list[int]) -> torch.Tensor:
    """Scores of `rows` after the new tokens of each segment."""
    cache.reserve(max(s.start + s.length for s in segments))
    x = runner.embed(np.array([i for part in ids for i in part]), None)
    return torch.as_tensor(runner.forward(x, runner.batch(segments), cache, rows))


def features_of(runner: Runner, patches: torch.Tensor, views: list[View]) -> torch.Tensor:
    return torch.as_tensor(runner.encode_views(patches.numpy(), views))


@settings(max_examples=15)
@given(views=view_lists(), seed=st.integers(0, 3))
def test_features_of_views_of_any_shapes_and_rates(
    plain: TorchRunner, onnx: ONNXRunner, views: list[View], seed: int
) -> None:
    patches = random_patches(views, seed)
    assert_close(features_of(onnx, patches, views), features_of(plain, patches, views))


def test_many_views_are_encoded_a_few_at_a_time(
    plain: TorchRunner, onnx: ONNXRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pocketvlm.engine.runners.onnx_runner.PATCHES_AT_ONCE", 100)
    views = [view(8, 8, mode) for mode in ("4x", "16x", "4x", "4x", "16x")]
    patches = random_patches(views)
    assert_close(features_of(onnx, patches, views), features_of(plain, patches, views))


def test_no_views_and_wrong_patches(onnx: ONNXRunner) -> None:
    assert onnx.encode_views(random_patches([]).numpy(), []).shape == (0, onnx.config.text.hidden_size)
    with pytest.raises(PromptError, match="16 patches were given for views of 64"):
        onnx.encode_views(random_patches([view(4, 4)]).numpy(), [view(8, 8)])


@settings(max_examples=15)
@given(
    lengths=st.lists(st.sampled_from([1, 2, 3, 17, 63, 64, 65, 90]), min_size=1, max_size=4),
    cut=st.integers(1, 60),
    steps=st.integers(1, 4),
)
def test_prompts_in_chunks_and_steps_of_unequal_sequences(
    plain: TorchRunner, onnx: ONNXRunner, lengths: list[int], cut: int, steps: int
) -> None:
    caches = [runner.make_cache(len(lengths), 8) for runner in (plain, onnx)]
    prompts = [random_text(n, seed=n + b) for b, n in enumerate(lengths)]

    def both(segments: list[Segment], ids: list[list[int]], rows: list[int]) -> None:
        expected, got = (run(r, c, segments, ids, rows) for r, c in zip((plain, onnx), caches, strict=True))
        if rows:
            assert_same_decoding(got, expected)

    first = [Segment(min(cut, n), 0, b) for b, n in enumerate(lengths)]
    both(first, [p[:cut] for p in prompts], [])
    rest = [Segment(n - cut, cut, b) for b, n in enumerate(lengths) if n > cut]
    if rest:
        both(rest, [p[cut:] for p in prompts if len(p) > cut], list(range(sum(s.length for s in rest))))
    for step in range(steps):
        new = [Segment(1, n + step, b) for b, n in enumerate(lengths)]
        both(new, [random_text(1, seed=b + step) for b in range(len(lengths))], list(range(len(lengths))))
    assert caches[0].lengths == caches[1].lengths
    for slot in range(len(lengths)):
        same_cache(caches[1], caches[0], slot)


def test_a_step_of_slots_that_are_no_neighbours(plain: TorchRunner, onnx: ONNXRunner) -> None:
    outs = []
    for runner in (plain, onnx):
        cache = runner.make_cache(3, 16)
        run(runner, cache, [Segment(5, 0, slot) for slot in range(3)], [random_text(5, s) for s in range(3)], [0])
        outs.append(run(runner, cache, [Segment(1, 5, 2), Segment(1, 5, 0)], [[7], [9]], [0, 1]))
    assert_same_decoding(outs[1], outs[0])


def requests(runner: Runner, seeds: list[int], picture: View | None, tokens: int = 6) -> list[Request]:
    made = []
    for seed in seeds:
        params = SamplingParams(temperature=0, max_tokens=tokens)
        views = [picture] if picture else []
        ids = prompt_with_views(views, before=3 + seed % 20, after=5, seed=seed, pad=runner.config.image_token_id)
        patches = random_patches(views, seed) if views else None
        made.append(make_request(runner, ids, params, frozenset(), patches, views))
    return made


@settings(max_examples=10)
@given(
    seeds=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    picture=st.one_of(st.none(), st.builds(view, st.sampled_from([4, 8]), st.sampled_from([4, 8]), MODES)),
    max_batch=st.integers(1, 4),
    chunk=st.sampled_from([7, 512]),
)
def test_greedy_tokens(
    plain: TorchRunner, onnx: ONNXRunner, seeds: list[int], picture: View | None, max_batch: int, chunk: int
) -> None:
    answers = []
    for runner in (plain, onnx):
        asked = requests(runner, seeds, picture)
        answers.append(run_engine(runner, asked, max_num_seqs=max_batch, max_num_batched_tokens=chunk))
    assert_same_answers(plain.model, requests(plain, seeds, picture), answers[1], answers[0])


def test_beams(plain: TorchRunner, onnx: ONNXRunner) -> None:
    scores = []
    for runner in (plain, onnx):
        (asked,) = requests(runner, [3], view(8, 8))
        asked.params = SamplingParams(temperature=0, max_tokens=6, num_beams=3)
        run_engine(runner, [asked])
        scores.append(asked.score)
    assert scores[1] == pytest.approx(scores[0], rel=TIE)


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0))


@pytest.mark.parametrize(("name", "features", "scores"), [("int8", 0.996, 0.985), ("int4", 0.996, 0.96)])
def test_quantised_bundles_stay_near(
    tmp_path: Path, name: str, features: float, scores: float, operators: Operators
) -> None:
    write_bundle(resolve("nano"), tmp_path / name, PRESETS[name], operators=operators)
    small, full = ONNXRunner(tmp_path / name, threads=1), TorchRunner(load_model(resolve("nano")))
    views = [view(8, 8), view(8, 12, "4x")]
    patches = random_patches(views)
    assert cosine(features_of(small, patches, views), features_of(full, patches, views)) > features
    ids = random_text(60, 5)
    got, expected = (run(r, r.make_cache(1, 64), [Segment(60)], [ids], list(range(60))) for r in (small, full))
    assert cosine(got, expected) > scores
    assert relative_error(got, expected) > 1e-5  # it is really quantised


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_a_quantised_answer_does_not_depend_on_its_company(tmp_path: Path, name: str, operators: Operators) -> None:
    write_bundle(resolve("nano"), tmp_path / name, PRESETS[name], operators=operators)
    runner = ONNXRunner(tmp_path / name, threads=1)
    views = [view(8, 8), view(8, 8), view(8, 8)]
    patches = random_patches(views)
    patches[64:128] //= 50  # a dark one between two others
    together = features_of(runner, patches, views).split(4)
    for part, alone in zip(patches.split(64), together, strict=True):
        assert torch.equal(features_of(runner, part, views[:1]), alone)

    prompts = [random_text(n, n) for n in (40, 33, 61)]
    cache = runner.make_cache(3, 80)
    whole = [Segment(len(p), 0, b) for b, p in enumerate(prompts)]
    last = [sum(map(len, prompts[: b + 1])) - 1 for b in range(3)]
    both = run(runner, cache, whole, prompts, last)
    steps = run(runner, cache, [Segment(1, len(p), b) for b, p in enumerate(prompts)], [[7], [8], [9]], [0, 1, 2])
    errors = list[float]()
    for b, prompt in enumerate(prompts):
        own = runner.make_cache(1, 80)
        assert_close(run(runner, own, [Segment(len(prompt))], [prompt], [len(prompt) - 1])[0], both[b], 1e-5)
        errors.append(relative_error(run(runner, own, [Segment(1, len(prompt))], [[7 + b]], [0])[0], steps[b]))
    # A value that lies between two steps may be rounded to the other one where a sum has another order, as in a product
    # of one row: by chance, in one sequence. What depends on its company does in all of them.
    assert sorted(errors)[1] < 1e-5, errors
    assert max(errors) < 0.02, errors


@pytest.mark.parametrize("name", ["none", "int8"])
def test_the_embedding_graph_gives_the_rows_that_the_runner_reads(
    checkpoint0: Path, plain: TorchRunner, tmp_path: Path, name: str
) -> None:
    import onnxruntime

    write_bundle(checkpoint0, tmp_path / "bundle", PRESETS[name])
    runner, ids = ONNXRunner(tmp_path / "bundle", threads=1), np.array(random_text(9))
    session = onnxruntime.InferenceSession(str(tmp_path / "bundle" / "embedding.onnx"))
    (rows,) = session.run(None, {"input_ids": ids[None]})
    assert np.array_equal(runner.embed(ids, None), rows[0])
    assert_close(torch.as_tensor(runner.embed(ids, None)), plain.embed(ids, None), 1e-6 if name == "none" else 1e-3)
