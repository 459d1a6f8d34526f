"""What `tune --emit` writes is read by the other programs themselves, without training: their arguments know every key,
their loaders find every sample, their templates make the text that is learnt here, and the same layers learn.

`make peers-env` installs both, each in an environment of its own; the two variables below name others.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from helpers.app import png

from pocketvlm.model.directory import ModelDirectory
from pocketvlm.model.hub import resolve
from pocketvlm.model.names import published_names
from pocketvlm.model.vlm import MiniCPMV
from pocketvlm.processing.processor import Processor
from pocketvlm.training.data.dataset import Dataset, open_datasets
from pocketvlm.training.examples import IGNORED, Example, ExampleEncoder
from pocketvlm.training.interchange.programs import Program
from pocketvlm.training.interchange.targets import layers_of
from pocketvlm.training.interchange.write import emit_job
from pocketvlm.training.parts import part_of
from pocketvlm.training.settings import TuneSettings

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(__file__).parent / "their_loaders"
PYTHONS: dict[Program, Path] = {
    "swift": Path(os.environ.get("POCKETVLM_SWIFT_PYTHON", ROOT / ".peers" / "swift" / "bin" / "python")),
    "llamafactory": Path(os.environ.get("POCKETVLM_FACTORY_PYTHON", ROOT / ".peers" / "factory" / "bin" / "python")),
}
NAMES: dict[Program, str] = {"swift": "swift_rows.py", "llamafactory": "factory_rows.py"}
BLOCK = "<think>\n\n</think>\n\n"
RUNS = {
    "lora": TuneSettings(batch_size=6, rank=4, alpha=8.0, seed=3, max_tokens=4096),
    "all": TuneSettings(tune=("decoder", "merger", "compression", "tower"), steps=7, dora=True),
    "merger": TuneSettings(tune=("decoder", "merger"), rslora=True),
    "one": TuneSettings(tune=("compression",)),
    "tower": TuneSettings(tune=("decoder", "tower")),
    "full": TuneSettings(method="full", learning_rate=3e-5, optimiser="adamw8bit", eval_every=20, result="best"),
    "vision": TuneSettings(method="full", tune=("tower", "compression", "merger")),
    "dpo": TuneSettings(objective="dpo", beta=0.2),
}
PROGRAMS = [
    pytest.param(program, marks=pytest.mark.skipif(not path.exists(), reason=f"{program} is missing: make peers-env"))
    for program, path in PYTHONS.items()
]


def data(folder: Path, *, preferences: bool) -> Dataset:
    """Conversations with no, one and two pictures, of one and of two turns, with a system message and without."""
    for i in range(3):
        (folder / f"{i}.png").write_bytes(png(60 + 20 * i, 80, i))
    more = {"rejected_response": "Nothing."} if preferences else {}

    def row(*texts: str, images: tuple[str, ...] = (), system: str = "") -> dict[str, Any]:
        messages = [{"role": "system", "content": system}] if system else []
        messages += [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
        return {"messages": messages, "images": list(images), **more}

    rows = [
        row("<image>What is it?", "A cat: é, 猫.", images=("0.png",)),
        row("No picture?", "None.", "<image>And <image>now?", "Two.", images=("1.png", "2.png"), system="Be short."),
        row("How many?", "Three\nlines\nof text."),
    ]
    path = folder / f"data{preferences}.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return open_datasets([path])


@pytest.fixture(scope="module")
def nano() -> ModelDirectory:
    return resolve("nano")


@pytest.fixture(scope="module", params=PROGRAMS)
def found(
    request: pytest.FixtureRequest, nano: ModelDirectory, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Program, dict[str, Any]]:
    """What a program read, by run. All in one process of it: its imports take the time."""
    program, folder = request.param, tmp_path_factory.mktemp("emitted")
    files, names, environment = list[str](), list[str](), dict(os.environ)
    for name, settings in RUNS.items():
        samples = data(folder, preferences=settings.objective == "dpo")
        emitted = emit_job(
            program, folder / name, samples, settings, nano, validation=samples, options={"downsample_mode": "16x"}
        )
        assert (emitted.samples, emitted.validation, emitted.bad) == (3, 3, {})
        files.append(emitted.settings)
        names.append(name)
    if program == "llamafactory":  # as the command says that is printed
        assert "DOWNSAMPLE_MODE=16x " in emitted.command
        environment["DOWNSAMPLE_MODE"] = "16x"
    environment |= {"PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1", "DISABLE_VERSION_CHECK": "1"}
    environment |= {"HF_DATASETS_CACHE": str(folder / "cache"), "MODELSCOPE_CACHE": str(folder / "cache")}
    out = folder / "found.json"
    command = [str(PYTHONS[program]), str(SCRIPTS / NAMES[program]), str(out), *files]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=folder)
    assert result.returncode == 0, result.stderr[-4000:]
    return program, dict(zip(names, json.loads(out.read_text(encoding="utf-8")), strict=True))


def ours(nano: ModelDirectory, samples: Dataset, *, pairs: bool) -> list[tuple[str, str]]:
    """(the whole text, what is learnt of it) of each sample, sorted. At 16x: how sides are rounded at 4x has changed
    from one version of transformers to another."""
    processor = Processor.from_directory(nano.path)
    encoder = ExampleEncoder(processor, options={"downsample_mode": "16x"})
    decode = processor.tokenizer.decode

    def texts(one: Example) -> tuple[str, str]:
        learnt = one.targets[one.targets != IGNORED]
        whole = [*one.input_ids.tolist(), int(one.targets[-1])]
        return decode(whole, False), decode(learnt.tolist(), False)

    return sorted(texts(encoder.pair(one)[0] if pairs else encoder(one)) for one in samples)


def test_every_sample_is_found_with_its_pictures(found: tuple[Program, dict[str, Any]], tmp_path: Path) -> None:
    _, runs = found
    for name, run in runs.items():
        is_dpo = RUNS[name].objective == "dpo"
        expected = data(tmp_path, preferences=is_dpo)
        assert len(run["rows"]) == len(expected)
        pictures = sorted(len(row["images"]) for row in run["rows"])
        assert pictures == [0, 1, 2]
        assert all(Path(path).read_bytes().startswith(b"\x89PNG") for row in run["rows"] for path in row["images"])
        answers = sorted(row["messages"][-1][1] for row in run["rows"])
        assert answers == sorted(sample.messages[-1]["content"] for sample in expected)
        assert {row["rejected"] for row in run["rows"]} == {"Nothing." if is_dpo else None}


def test_what_is_learnt_there_is_the_text_that_is_learnt_here(
    found: tuple[Program, dict[str, Any]], nano: ModelDirectory, tmp_path: Path
) -> None:
    """But for two things: both learn the end of the line behind an answer too, and LLaMA-Factory's template sets no
    empty block of reasoning."""
    program, runs = found
    for name in ("lora", "dpo"):
        is_dpo = name == "dpo"
        expected = ours(nano, data(tmp_path, preferences=is_dpo), pairs=is_dpo)
        theirs = sorted((one["text"].rstrip("\n"), one["learnt"]) for one in runs[name]["encoded"])
        if program == "llamafactory":
            expected = sorted((text.replace(BLOCK, ""), learnt) for text, learnt in expected)
        assert [text for text, _ in theirs] == [text.rstrip("\n") for text, _ in expected]
        for (_, there), (_, here) in zip(theirs, expected, strict=True):
            there, here = there.replace("\n", ""), here.replace("\n", "")
            assert there == here


def test_the_same_layers_and_weights_learn(found: tuple[Program, dict[str, Any]], nano: ModelDirectory) -> None:
    _, runs = found
    names = published_names(MiniCPMV(nano.config))
    for name, run in runs.items():
        settings = RUNS[name]
        if settings.method == "full":
            expected = {theirs for mine, theirs in names.items() if part_of(mine) in settings.tune}
        else:
            expected = set(layers_of(settings.tune, nano.config))
        assert set(run["learn"]) - {"lm_head.weight"} == expected, name


def test_numbers_arrive(found: tuple[Program, dict[str, Any]], nano: ModelDirectory) -> None:
    _, runs = found
    for name, run in runs.items():
        settings, there = RUNS[name], run["arguments"]
        assert there["batch"] == settings.batch_size
        assert there["rate"] == pytest.approx(settings.rate(nano.config.text))
        assert there["seed"] == settings.seed
        assert (there["steps"] if settings.steps else there["epochs"]) == (settings.steps or settings.epochs)
        if settings.method != "full":
            assert (there["rank"], there["alpha"]) == (settings.rank, settings.alpha)
