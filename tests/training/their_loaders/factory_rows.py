"""Run by LLaMA-Factory's own Python: reads settings files as its training does, and says what it found.

python factory_rows.py FOUND.json SETTINGS.yaml …
"""

from __future__ import annotations

import json
import sys
from importlib.machinery import ModuleSpec
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from pocketvlm.lenient_imports import lenient_registrations

try:
    import torchaudio  # noqa: F401
except (ImportError, OSError):  # of another build than torch; nothing is heard here
    sys.modules["torchaudio"] = ModuleType("torchaudio")
    sys.modules["torchaudio"].__spec__ = ModuleSpec("torchaudio", None)

with lenient_registrations():
    import numpy as np
    import yaml
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.data.loader import _get_merged_dataset
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer
    from llamafactory.model.model_utils.misc import find_all_linear_modules
    from llamafactory.model.model_utils.visual import get_forbidden_modules, patch_target_modules
    from PIL import Image
    from transformers import AutoConfig, AutoModelForImageTextToText, image_utils


def decode_image(source: str | torch.Tensor, **_: object) -> torch.Tensor:
    """In the place of torchvision's, whose compiled part may be of another build than torch."""
    file = source if isinstance(source, str) else BytesIO(bytes(source.tolist()))
    picture = Image.open(file).convert("RGB")
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


image_utils.decode_image = decode_image


def read(settings: dict[str, Any]) -> dict[str, Any]:
    """What a file says to it."""
    model_args, data_args, training_args, tuning_args, _ = get_train_args(
        {**settings, "use_cpu": True}
    )  # the file is for a GPU
    loaded = load_tokenizer(model_args)
    tokenizer = loaded["tokenizer"]
    template = get_template_and_fix_tokenizer(tokenizer, data_args)
    stage = "rm" if tuning_args.stage == "dpo" else tuning_args.stage  # as its preference training calls it

    rows = [
        {
            "system": row["_system"],
            "messages": [[one["role"], one["content"]] for one in row["_prompt"] + row["_response"][:1]],
            "rejected": row["_response"][1]["content"] if len(row["_response"]) > 1 else None,
            "images": row["_images"] or [],
        }
        for row in _get_merged_dataset(data_args.dataset, model_args, data_args, training_args, stage)
    ]
    encoded = []
    for row in get_dataset(template, model_args, data_args, training_args, stage=stage, **loaded)["train_dataset"]:
        prefix = "chosen_" if stage == "rm" else ""
        ids, labels = row[f"{prefix}input_ids"], row[f"{prefix}labels"]
        learnt = tokenizer.decode([token for token in labels if token != -100])
        encoded.append({"text": tokenizer.decode(ids), "learnt": learnt, "tokens": len(ids)})

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(model_args.model_name_or_path))
    if tuning_args.finetuning_type == "full":
        closed = get_forbidden_modules(model.config, tuning_args)
        learn = [name for name, _ in model.named_parameters() if not any(one in name for one in closed)]
    else:
        names = tuning_args.lora_target
        if names == ["all"]:
            names = find_all_linear_modules(model, tuning_args.freeze_vision_tower)
        learn = patch_target_modules(model, tuning_args, names)
    arguments = {
        "batch": training_args.per_device_train_batch_size * training_args.gradient_accumulation_steps,
        "rate": training_args.learning_rate,
        "epochs": training_args.num_train_epochs,
        "steps": training_args.max_steps,
        "rank": tuning_args.lora_rank,
        "alpha": tuning_args.lora_alpha,
        "seed": training_args.seed,
    }
    return {"rows": rows, "encoded": encoded, "learn": learn, "arguments": arguments}


out, *files = sys.argv[1:]
contents = [yaml.safe_load(Path(file).read_text(encoding="utf-8")) for file in files]
Path(out).write_text(json.dumps([read(one) for one in contents]), encoding="utf-8")
