"""`tune --emit` and `tune --config` as people use them, with files like those that the two programs publish."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.app import png
from helpers.command import run

EXAMPLES = Path(__file__).parents[3] / "examples"
SMALL = ("--max-slice-nums", "1", "--downsample-mode", "16x")


@pytest.fixture
def sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `data` as LLaMA-Factory has it: pictures, a conversation in ShareGPT's form, and Alpaca's."""
    folder = tmp_path / "data"
    (folder / "pictures").mkdir(parents=True)
    for i in range(2):
        (folder / "pictures" / f"{i}.png").write_bytes(png(60, 80, i))
    rows: list[dict[str, Any]] = [
        {
            "messages": [
                {"content": "<image>What is this?", "role": "user"},
                {"content": "A shelf.", "role": "assistant"},
                {"content": "And here?<image>", "role": "user"},
                {"content": "Noise.", "role": "assistant"},
            ],
            "images": ["pictures/0.png", "pictures/1.png"],
        },
        {
            "messages": [
                {"content": "<image>Count.", "role": "user"},
                {"content": "One.", "role": "assistant"},
            ],
            "images": ["pictures/1.png"],
        },
    ]
    (folder / "shelf.json").write_text(json.dumps([*rows, *rows]), encoding="utf-8")
    plain = [{"instruction": "Who are you?", "input": "", "output": f"Number {i}."} for i in range(4)]
    (folder / "self.json").write_text(json.dumps(plain), encoding="utf-8")
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    info = {
        "shelf": {
            "file_name": "shelf.json",
            "formatting": "sharegpt",
            "columns": {"messages": "messages", "images": "images"},
            "tags": tags,
        },
        "self": {"file_name": "self.json"},
        "elsewhere": {"hf_hub_url": "somebody/something"},
    }
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


FACTORY = {
    "model_name_or_path": "Somebody/Another-Model",
    "image_max_pixels": 262144,
    "trust_remote_code": True,
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "lora",
    "lora_rank": 4,
    "lora_target": "all",
    "dataset": "shelf,self",
    "template": "another_template",
    "cutoff_len": 2048,
    "max_samples": 3,
    "preprocessing_num_workers": 16,
    "dataloader_num_workers": 0,
    "output_dir": "saves/there",
    "logging_steps": 10,
    "save_steps": 500,
    "plot_loss": True,
    "overwrite_output_dir": True,
    "save_only_model": False,
    "report_to": "none",
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1.0e-4,
    "num_train_epochs": 3.0,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.1,
    "bf16": True,
    "ddp_timeout": 180000000,
    "resume_from_checkpoint": None,
}


def write(path: Path, keys: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(keys, sort_keys=False), encoding="utf-8")
    return str(path)


def settings_of(out: Path) -> dict[str, Any]:
    """What a run's log says that it was begun with."""
    found: dict[str, Any] = json.loads((out / "training.jsonl").read_text(encoding="utf-8").splitlines()[0])["settings"]
    return found


def test_a_file_like_llamafactorys_examples_runs(sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write(sets / "lora_sft.yaml", FACTORY)
    given = ("--model", "nano", "--steps", "2", "--out", "out", "--json", *SMALL)
    status, out, err = run(capsys, "tune", "--config", config, *given)
    assert status == 0, err
    assert json.loads(out.splitlines()[-1])["steps"] == 2
    assert "output_dir" in err
    found = settings_of(sets / "out")
    assert (found["rank"], found["alpha"], found["batch_size"], found["warmup"]) == (4, 8.0, 2, 0.1)
    assert (found["steps"], found["learning_rate"], found["max_tokens"]) == (2, 1e-4, 2048)


def test_a_file_like_swifts_examples_runs(sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"messages": [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "Noise."}]}
    lines = [json.dumps({**row, "images": [f"data/pictures/{i}.png"]}) for i in (0, 1, 0, 1)]
    (sets / "train.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    text = f"""
# model args
model: Somebody/Another-Model
torch_dtype: bfloat16

tuner_type: lora
lora_rank: 8
lora_alpha: 32
target_modules: all-linear

dataset:
  - '{sets}/train.jsonl#2'
split_dataset_ratio: 0.5
max_length: 2048
system: 'Be short.'
num_train_epochs: 1
per_device_train_batch_size: 1
per_device_eval_batch_size: 1
learning_rate: 1e-4
gradient_accumulation_steps: 2
eval_steps: 50
save_steps: 50
save_total_limit: 2
logging_steps: 5
output_dir: output
warmup_ratio: 0.05
dataloader_num_workers: 0
dataset_num_proc: 4
deepspeed: zero2
"""
    (sets / "sft.yaml").write_text(text, encoding="utf-8")
    given = ("--model", "nano", "--out", "out", "--json", *SMALL)
    status, out, err = run(capsys, "tune", "--config", "sft.yaml", *given)
    assert status == 0, err
    found = json.loads(out.splitlines()[-1])
    assert found["steps"] == 1
    assert found["validation"]["loss"] > 0
    assert settings_of(sets / "out")["learning_rate"] == 1e-4
    assert "0.95" in err


def test_what_was_emitted_runs_here_as_it_would_have(sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Written for either program and read again, a run comes to the same loss as without the detour. Of one set:
    the order of samples depends on the sets that they are in."""
    write(sets / "one.yaml", {**FACTORY, "num_train_epochs": 1.0, "dataset": "shelf", "max_samples": 4})
    given = ("--config", "one.yaml", "--model", "nano", "--split", "0.4", "--downsample-mode", "16x")
    losses = {}
    for program in ("swift", "llamafactory"):
        status, out, err = run(capsys, "tune", *given, "--emit", program, "--out", program, "--json")
        assert status == 0, err
        emitted = json.loads(out)
        assert (emitted["samples"], emitted["validation"], emitted["bad"]) == (2, 2, {})
        assert Path(emitted["settings"]).parent == sets / program
        again = ("--config", emitted["settings"], "--out", f"{program}_run", "--json", "--downsample-mode", "16x")
        status, out, err = run(capsys, "tune", *again)
        assert status == 0, err
        losses[program] = json.loads(out.splitlines()[-1])
    status, out, err = run(capsys, "tune", *given, "--out", "here", "--json")
    here = json.loads(out.splitlines()[-1])
    for found in losses.values():
        assert (found["steps"], found["loss"]) == (here["steps"], here["loss"])
        assert found["validation"] == here["validation"]


def test_bad_samples_are_left_out_and_named(sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = {"messages": [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "B."}]}
    (sets / "bad.jsonl").write_text(f"{json.dumps(good)}\nno json\n", encoding="utf-8")
    status, _, err = run(capsys, "tune", "bad.jsonl", "--emit", "swift", "--out", "out")
    assert status == 1
    assert "bad.jsonl:2" in err
    assert len((sets / "out" / "train.jsonl").read_text(encoding="utf-8").splitlines()) == 1
    status, _, err = run(capsys, "tune", "bad.jsonl", "--emit", "swift", "--out", "out2", "--bad-samples", "stop")
    assert status == 2
    assert "bad.jsonl:2" in err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--emit", "swift", "--minutes", "3"), "no place for --minutes"),
        (("--emit", "llamafactory", "--max-slice-nums", "5"), "no place for --max-slice-nums"),
        (("--emit", "swift", "--downsample-mode", "auto"), "no place for --downsample-mode auto"),
        (("--emit", "swift", "--objective", "dpo", "--bad-samples", "stop"), "no rejected answer"),
        (("--emit", "swift", "--check"), "are two things"),
        (("--emit", "swift", "--plan"), "are two things"),
    ],
)
def test_what_cannot_be_emitted_is_one_line(
    options: tuple[str, ...], words: str, sets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = run(capsys, "tune", "data/self.json", "--out", "out", *options)
    assert status == 2
    assert words in err
    assert err.count("\n") == 1
    assert not (sets / "out" / "swift.yaml").exists()


def test_options_of_one_sample_have_no_place(sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"messages": [{"role": "user", "content": "<image>A?"}, {"role": "assistant", "content": "B."}]}
    row |= {"images": ["data/pictures/0.png"], "downsample_mode": "4x"}
    (sets / "own.jsonl").write_text(json.dumps(row), encoding="utf-8")
    status, _, err = run(capsys, "tune", "own.jsonl", "--emit", "swift", "--out", "out")
    assert status == 2
    assert "options of one sample: downsample_mode" in err


def test_the_rate_is_told_to_llamafactory_by_the_environment(sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """16x too: where it is not told, files of pictures that say 4x, as nano's do, decide."""
    commands = []
    for mode in ("16x", "4x"):
        options = ("--emit", "llamafactory", "--downsample-mode", mode, "--json", "--out", str(sets / mode))
        _, out, _ = run(capsys, "tune", "data/self.json", *options)
        commands.append(json.loads(out)["command"].partition(" llamafactory-cli")[0])
    always = "DISABLE_VERSION_CHECK=1"
    assert commands == [f"DOWNSAMPLE_MODE=16x {always}", f"DOWNSAMPLE_MODE=4x {always}"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("- a\n- b\n", "no keys and values"),
        ("a: [1\n", "no readable YAML"),
        ("lr: 1\n", "no settings file of"),
        ("model: nano\ndataset: there.jsonl\n", "not on this machine"),
        ("model_name_or_path: nano\n", "no data is named"),
        ("model_name_or_path: nano\ndataset: nothing\ndataset_dir: data\n", "describes no set 'nothing'"),
        ("model_name_or_path: nano\ndataset: elsewhere\ndataset_dir: data\n", "nothing is downloaded"),
    ],
)
def test_files_that_cannot_be_used_are_one_line(
    text: str, words: str, sets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (sets / "file.yaml").write_text(text, encoding="utf-8")
    status, _, err = run(capsys, "tune", "--config", "file.yaml", "--out", "out")
    assert status == 2
    assert words in err.splitlines()[-1]
    assert "Traceback" not in err


def test_a_settings_file_in_the_place_of_data_is_told(sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--config some.yaml" in run(capsys, "tune", "some.yaml")[2]
    assert "no DATA is given" in run(capsys, "tune", "--out", str(sets / "out"))[2]


@pytest.mark.parametrize("name", ["gone.yaml", "gone.json"])
def test_a_settings_file_that_is_missing_is_named(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _out, err = run(capsys, "tune", "--config", str(tmp_path / name), "--out", str(tmp_path / "out"))
    assert status == 2
    assert err.strip().endswith(f"{name} does not exist. Check the path.")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("program", ["swift", "llamafactory"])
def test_a_job_for_a_cpu_asks_for_no_bfloat16(sets: Path, capsys: pytest.CaptureFixture[str], program: str) -> None:
    for device, is_cpu in (("auto", False), ("cpu", True)):
        out = sets / device
        given = ("data", "--sets", "shelf", "--emit", program, "--device", device, "--out", str(out))
        status, _, err = run(capsys, "tune", *given, "--downsample-mode", "16x")
        assert status == 0, err
        keys = yaml.safe_load((out / f"{program}.yaml").read_text(encoding="utf-8"))
        assert (keys["bf16"], keys.get("use_cpu", False)) == (not is_cpu, is_cpu)
        if program == "swift":
            assert keys["torch_dtype"] == ("float32" if is_cpu else "bfloat16")


def test_videos_are_told_of_where_llamafactory_cannot_learn_them(
    sets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"messages": [{"role": "user", "content": "<video>A?"}, {"role": "assistant", "content": "B."}]}
    (sets / "clip.mp4").write_bytes(EXAMPLES.joinpath("clip.mp4").read_bytes())
    (sets / "clips.jsonl").write_text(json.dumps({**row, "videos": ["clip.mp4"]}) + "\n", encoding="utf-8")
    for source, count in (("clips.jsonl", 1), ("data/shelf.json", 0)):
        options = ("--emit", "llamafactory", "--json", "--out", str(sets / f"out{count}"))
        _, out, _ = run(capsys, "tune", source, *options)
        notes = [note for note in json.loads(out)["notes"] if "video" in note]
        assert len(notes) == count
    assert run(capsys, "tune", "clips.jsonl", "--emit", "swift", "--out", str(sets / "swift"))[0] == 0


def test_a_job_is_for_a_card_unless_it_is_asked_for_a_cpu(sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for program in ("swift", "llamafactory"):
        options = ("--emit", program, "--out", str(sets / program))
        _, _, err = run(capsys, "tune", "data/self.json", *options, "--device", "cpu")
        keys = yaml.safe_load((sets / program / f"{program}.yaml").read_text(encoding="utf-8"))
        assert (keys["use_cpu"], keys["bf16"]) == (True, False)
        assert "graphics card" not in err
