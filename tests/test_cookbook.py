"""Every block of the recipes and of docs/finetuning.md runs, in the order of its page, with fewer samples and steps.

The rule for fewer: options of `FEWER` take its numbers where a block has others than 0; `--minutes` becomes
`--steps`, and a training without an end gets one; `steps=` in Python likewise. What installs or serves is parsed, not
run. Blocks of text that do not begin with a command of `.venv/bin` are outputs.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from cookbook import data, measure
from cookbook.draw import DRAWS
from pocketvlm import cli
from pocketvlm.synthetic import NOT_THERE

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "cookbook").glob("[0-9]*.md"))
STEPS = "2"
FEWER = {"--train": "12", "--held-out": "4", "--count": "2", "--eval-count": "2", "--batch-size": "2", "--rank": "4"}
BLOCK = re.compile(r"^```(console|python|)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def fewer(words: list[str]) -> list[str]:
    """The words of a command with fewer samples and steps."""
    found = list(words)
    for i, word in enumerate(words[:-1]):
        if word in FEWER and words[i + 1] != "0":
            found[i + 1] = FEWER[word]
        elif word in ("--minutes", "--steps", "--epochs"):
            found[i : i + 2] = ["--steps", STEPS]
    if found[:2] == ["pocketvlm", "tune"] and not {"--steps", "--check", "--plan", "--emit"} & set(found):
        found += ["--steps", STEPS, "--batch-size", "2"]
    return found


def commands(text: str) -> list[list[str]]:
    """The commands of a block as words, without the folder of the environment; none where it is an output."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines[0].startswith(".venv/bin/"):
        return []
    assert all(line.startswith(".venv/bin/") for line in lines), text
    return [shlex.split(line.removeprefix(".venv/bin/"), comments=True) for line in lines]


def run_command(words: list[str]) -> None:
    program, *rest = fewer(words)
    if program == "pip":
        assert rest[0] == "install"
    elif program == "pocketvlm":
        if rest[0] == "serve":
            cli.command_parser("serve").parse_args(rest[1:])
        else:
            assert cli.main(rest) == 0, words
    else:
        assert (program, rest[0]) == ("python", "-m"), words
        assert {"cookbook.data": data.main, "cookbook.measure": measure.main}[rest[1]](rest[2:]) == 0


def run_page(page: Path) -> int:
    """Run the blocks of a page in the working directory; the number of commands and pieces of Python that ran."""
    names: dict[str, object] = {}
    ran = 0
    for language, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(re.sub(r"steps=\d+", f"steps={STEPS}", text), page.name, "exec"), names)
            ran += 1
            continue
        for words in commands(text):
            run_command(words)
            ran += 1
    return ran


@pytest.mark.parametrize("page", RECIPES, ids=[page.stem for page in RECIPES])
def test_every_block_of_a_recipe_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_page(page) >= 4


# torch reads it of tensors of its own while `--plan` counts, and hides this in its own way.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_every_block_of_the_page_about_fine_tuning_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data.write("dots", tmp_path, {"train": 12, "held_out": 4})
    data.write("dots", tmp_path / "scans", {"train": 4})
    shutil.copy(tmp_path / "media" / "train0.png", tmp_path / "picture.png")
    assert cli.main(["tune", "train.jsonl", "--emit", "llamafactory", "--out", "job"]) == 0
    shutil.copy(tmp_path / "job" / "llamafactory.yaml", tmp_path / "lora_sft.yaml")
    (tmp_path / "their_output").mkdir()
    trained = str(Path("their_output") / "checkpoint-100")
    assert cli.main(["tune", "train.jsonl", "--steps", "1", "--rank", "4", "--out", trained]) == 0
    assert run_page(ROOT / "docs" / "finetuning.md") >= 7


def test_all_recipes_are_in_the_list_and_no_command_is_left_out() -> None:
    listed = re.findall(r"\]\((\d_\w+\.md)\)", (ROOT / "cookbook" / "README.md").read_text(encoding="utf-8"))
    assert listed == [page.name for page in RECIPES]
    for page in [*RECIPES, ROOT / "docs" / "finetuning.md"]:
        text = page.read_text(encoding="utf-8")
        blocks = "".join(block for _, block in BLOCK.findall(text))
        assert text.count("\n.venv/bin/") == f"\n{blocks}".count("\n.venv/bin/")


@pytest.mark.parametrize("kind", data.KINDS)
def test_samples_are_functions_of_their_seeds_and_splits_differ(kind: str, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        data.write(kind, tmp_path / folder, {"train": 6, "held_out": 6})
    for split in ("train", "held_out"):
        assert (tmp_path / "one" / f"{split}.jsonl").read_bytes() == (tmp_path / "two" / f"{split}.jsonl").read_bytes()
    assert all(data.draw(kind, (0, 0, i)).frames != data.draw(kind, (0, 1, i)).frames for i in range(6))


@pytest.mark.parametrize("kind", DRAWS)
def test_answers_are_evenly_many(kind: str) -> None:
    """A model that says one thing always is right about no more than chance."""
    answers = [data.draw(kind, (0, 0, i)).answer for i in range(120)]
    assert max(answers.count(one) for one in set(answers)) <= 48


def test_half_of_the_pairs_ask_for_what_is_not_there(tmp_path: Path) -> None:
    data.write("absent", tmp_path, {"train": 40})
    lines = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    answers = [(line["messages"][-1]["content"], line["rejected_response"]) for line in lines]
    assert all((chosen == NOT_THERE) != (rejected == NOT_THERE) for chosen, rejected in answers)
    assert 10 <= sum(chosen == NOT_THERE for chosen, _ in answers) <= 30
