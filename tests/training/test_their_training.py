"""Jobs of `tune --emit` are run by the other programs themselves, on the CPU, by the command that is printed: they
begin with our loss and our gradients, and what they write is read here with the numbers that it has in `peft` and
`transformers`.

`make peers-env` installs both, each in an environment of its own; the variables of `test_their_loaders.py` name others.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import subprocess
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.app import png
from parity import reference
from training.test_their_loaders import BLOCK, PYTHONS

from pocketvlm.cli import main
from pocketvlm.model.adapters.merge import merge
from pocketvlm.model.adapters.peft_folder import read_adapter
from pocketvlm.model.checkpoint import load_model
from pocketvlm.model.directory import ModelDirectory
from pocketvlm.model.hub import resolve
from pocketvlm.model.vision.pixels import to_reference_layout
from pocketvlm.model.vlm import MiniCPMV
from pocketvlm.processing.processor import Processor
from pocketvlm.training.batches import Batch
from pocketvlm.training.data.dataset import open_datasets
from pocketvlm.training.examples import IGNORED, Example, ExampleEncoder
from pocketvlm.training.interchange.programs import Program
from pocketvlm.training.losses import answer_losses

STEPS = 3
ALPHA = 0.5
RUNS: dict[str, tuple[str, ...]] = {
    "lora": ("--rank", "4", "--dropout", "0", "--downsample-mode", "4x"),
    "everywhere": ("--rank", "2", "--dropout", "0", "--rslora", "--dora", "--tune", "decoder,merger,compression,tower"),
    "parts": ("--rank", "2", "--dropout", "0", "--tune", "merger,compression"),
    "full": ("--method", "full", "--tune", "decoder,merger,compression,tower"),
    "preferences": ("--objective", "dpo", "--rpo-alpha", str(ALPHA), "--rank", "4", "--dropout", "0"),
}


@dataclass(frozen=True)
class Run:
    """Attributes: its files; what it logged behind the first step; its options here."""

    out: Path
    first: dict[str, float]
    settings: Path
    data: Path
    mode: str


def write_data(folder: Path, mode: str, *, has_text: bool, has_pairs: bool) -> Path:
    """Four samples: with no picture, one that is cut, one that is not, and two in two turns behind a system message;
    with a rejected answer each, if that is asked for."""
    sizes = {"small": (90, 130), "other": (150, 70), "cut": (300, 470)}
    if mode == "4x":  # sides that are rounded there as here: to 56 pixels before transformers 5.23, to 28 since then
        sizes = {"small": (112, 112), "other": (112, 168), "cut": (168, 112)}
    for name, (height, width) in sizes.items():
        (folder / f"{name}.png").write_bytes(png(height, width, height))

    def row(*texts: str, images: tuple[str, ...] = (), system: str = "") -> dict[str, Any]:
        messages = [{"role": "system", "content": system}] if system else []
        messages += [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
        found = {"messages": messages, "images": [f"{name}.png" for name in images]}
        return {**found, "rejected_response": "Something else."} if has_pairs else found

    rows = [
        row("How many?", "Three\nlines of text."),
        row("<image>What is it?", "Noise, and a long answer about it.", images=("cut",)),
        row("<image>What?", "No.", images=("small",)),
        row("<image>One?", "Yes.", "<image>Two?", "Two of them.", images=("small", "other"), system="Be short."),
    ]
    path = folder / "data.jsonl"
    rows = rows if has_text else [*rows[1:], rows[1]]
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ModelDirectory:
    """Nano as a directory that transformers reads."""
    out = tmp_path_factory.mktemp("base") / "nano"
    assert main(["export", "huggingface", str(out)]) == 0
    return resolve(str(out))


@pytest.fixture(scope="module", params=[(program, name) for program in PYTHONS for name in RUNS], ids="-".join)
def job(
    request: pytest.FixtureRequest, base: ModelDirectory, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Program, str, Run]:
    """A job that was emitted and run."""
    program, name = request.param
    if not PYTHONS[program].exists():
        pytest.skip(f"{program} is missing: make peers-env")
    folder = tmp_path_factory.mktemp(f"{program}_{name}")
    mode = "4x" if "4x" in RUNS[name] else "16x"
    # Where parts of the tower alone learn, ms-swift ends with an error at a sample without a picture.
    data, out = write_data(folder, mode, has_text=name != "parts", has_pairs=name == "preferences"), folder / "job"
    options = ["--model", str(base.path), "--emit", program, "--device", "cpu", "--out", str(out), "--json"]
    options += ["--steps", str(STEPS), "--batch-size", "4", "--learning-rate", "1e-3", "--save-every"]
    options += [str(STEPS), "--downsample-mode", mode, *RUNS[name]]
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("pocketvlm.cli.tune_job.put_json", lambda found: printed.append(found["command"]))
        assert main(["tune", str(data), *options]) == 0
    [command] = printed
    log = ("--logging_steps", "1") if program == "swift" else ("logging_steps=1",)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{PYTHONS[program].parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        f"{command} {shlex.join(log)}",
        shell=True,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    result = out / "output" / f"checkpoint-{STEPS}"
    first = json.loads((result / "trainer_state.json").read_text(encoding="utf-8"))["log_history"][0]
    assert first["step"] == 1
    settings = result / "args.json" if program == "swift" else out / "llamafactory.yaml"
    return program, name, Run(result, first, settings, data, mode)


def examples(base: ModelDirectory, run: Run) -> list[Example]:
    """What is learnt; of two answers the one that is preferred."""
    processor = Processor.from_directory(base.path)
    encoder = ExampleEncoder(processor, options={"downsample_mode": run.mode})
    return [encoder(one) if one.rejected is None else encoder.pair(one)[0] for one in open_datasets([run.data])]


def as_there(example: Example, processor: Processor, program: Program) -> Example:
    """The example with what is documented to be different: both learn the end of the line behind an answer, and
    LLaMA-Factory sets no empty block of reasoning in front of it."""
    ids = [*example.input_ids.tolist(), int(example.targets[-1])]
    learnt = [False, *(example.targets != IGNORED).tolist()]
    encode = processor.tokenizer.encode_trusted
    [end], block, line = encode("<|im_end|>"), encode(BLOCK), encode("\n")
    ids, learnt = ids + line, [*learnt, False]
    learnt = [one or (i > 0 and learnt[i - 1] and ids[i - 1] == end) for i, one in enumerate(learnt)]
    if program == "llamafactory":
        i = 0
        while i < len(ids):
            if ids[i : i + len(block)] == block:
                del ids[i : i + len(block)], learnt[i : i + len(block)]
            i += 1
    targets = [token if one else IGNORED for token, one in zip(ids, learnt, strict=True)]
    return Example(torch.tensor(ids[:-1]), torch.tensor(targets[1:]), example.patches, example.views, example.source)


def of_step(losses: list[torch.Tensor], program: Program, name: str) -> torch.Tensor:
    """ms-swift weighs learnt tokens as we do; LLaMA-Factory takes the mean of each sample, and the mean of those. Where
    answers are preferred, the policy is its own reference at first, so that DPO's part is the logarithm of 2."""
    means = torch.stack([one.mean() for one in losses]).mean()
    if name == "preferences":
        return math.log(2) + ALPHA * means
    return torch.cat(losses).mean() if program == "swift" else means


def test_the_first_loss_there_is_ours_and_so_are_the_gradients(
    job: tuple[Program, str, Run], base: ModelDirectory
) -> None:
    program, name, run = job
    processor = Processor.from_directory(base.path)
    model = load_model(base.path).requires_grad_(name == "full")
    there = [as_there(one, processor, program) for one in examples(base, run)]
    loss = of_step([answer_losses(model, Batch.of([one])) for one in there], program, name)
    # LLaMA-Factory's frozen weights are bfloat16 beside adapters, on a CPU too.
    close = 1.5e-3 if program == "llamafactory" and name != "full" else 1e-4
    assert run.first["loss"] == pytest.approx(loss.item(), rel=close)
    if name == "full":
        loss.backward()
        gradients = [one.grad.norm() for one in model.parameters() if one.grad is not None]
        assert run.first["grad_norm"] == pytest.approx(torch.stack(gradients).norm().item(), rel=1e-3)


@torch.no_grad()
def theirs(model: Any, example: Example, base: ModelDirectory, mode: str) -> torch.Tensor:
    pixels: dict[str, Any] = {}
    if example.views:
        sizes = [[view.size.height, view.size.width] for view in example.views]
        pixels["pixel_values"] = to_reference_layout(example.patches, base.image_config)
        pixels["target_sizes"] = torch.tensor(sizes)
    found: torch.Tensor = model(input_ids=example.input_ids[None], downsample_mode=mode, **pixels).logits[0]
    return found


@torch.no_grad()
def ours(model: MiniCPMV, example: Example) -> torch.Tensor:
    batch = Batch.of([example])
    features = model.encode_views(batch.patches, batch.views) if batch.views else None
    return model.logits(model(batch.input_ids, batch.packed("cpu"), features))


def test_what_they_wrote_has_here_the_logits_that_it_has_in_transformers(
    job: tuple[Program, str, Run], base: ModelDirectory
) -> None:
    _, name, run = job
    kind = reference.transformers.MiniCPMV4_6ForConditionalGeneration
    if name == "full":
        mine, reference_model = load_model(run.out), kind.from_pretrained(run.out, dtype=torch.float32)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peft = pytest.importorskip("peft", reason="the extra tune brings it")
            reference_model = kind.from_pretrained(base.path, dtype=torch.float32)
            reference_model = peft.PeftModel.from_pretrained(reference_model, run.out)
        mine = load_model(base.path)
        merge(mine, read_adapter(run.out, mine.config))
    before = load_model(base.path)
    for example in examples(base, run):
        found, expected = ours(mine, example), theirs(reference_model.eval(), example, base, run.mode)
        assert (found - expected).abs().max() < 1e-3 * expected.abs().max()
        if example.views or name != "parts":
            assert (found - ours(before, example)).abs().max() > 1e-2, "nothing was learnt there"


def test_their_run_is_read_as_the_run_that_was_emitted(
    job: tuple[Program, str, Run], base: ModelDirectory, tmp_path: Path
) -> None:
    _, name, run = job
    extra = ["--downsample-mode", "4x"] if run.mode == "4x" else []  # neither program writes it down
    assert main(["tune", "--config", str(run.settings), "--out", str(tmp_path / "here"), *extra]) == 0
    lines = (tmp_path / "here" / "training.jsonl").read_text(encoding="utf-8").splitlines()
    begun, logged = json.loads(lines[0])["settings"], [json.loads(line) for line in lines]
    assert (begun["steps"], begun["batch_size"], begun["learning_rate"]) == (STEPS, 4, 1e-3)
    losses = [line["loss"] for line in logged if "loss" in line and line.get("step") == 1]
    model = load_model(base.path)
    expected = of_step([answer_losses(model, Batch.of([one])) for one in examples(base, run)], "swift", name)
    assert losses == [pytest.approx(expected.item(), rel=1e-4)]
