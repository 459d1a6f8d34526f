"""Run by ms-swift's own Python: reads settings files as its training does, and says what it found.

python swift_rows.py FOUND.json SETTINGS.yaml …
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from pocketvlm.lenient_imports import lenient_registrations

with lenient_registrations():
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists
    from swift.arguments import RLHFArguments, SftArguments
    from swift.cli.main import parse_yaml_args
    from swift.pipelines.train.tuner import get_target_modules
    from swift.utils import parse_args
    from transformers import AutoConfig, AutoModelForImageTextToText


def read(path: str) -> dict[str, Any]:
    """What a file says to it."""
    argv = [path]
    parse_yaml_args(argv)
    argv += ["--use_cpu", "true"]  # the file is for a GPU
    is_dpo = "--rlhf_type" in argv
    args, unknown = parse_args(RLHFArguments if is_dpo else SftArguments, argv)
    assert not unknown, unknown
    _, processor = args.get_model_processor(load_model=False)
    template = args.get_template(processor)
    template.set_mode("rlhf" if is_dpo else "train")
    train, _ = args.load_dataset()
    tokenizer = processor.tokenizer

    rows, encoded = [], []
    for row in train:
        messages = [[one["role"], one["content"]] for one in row["messages"]]
        rejected = row.get("rejected_messages")
        rows.append(
            {
                "messages": messages,
                "rejected": row.get("rejected_response") or (rejected[-1]["content"] if rejected else None),
                "images": [one["path"] if isinstance(one, dict) else one for one in row.get("images") or []],
            }
        )
        found = template.encode(row)
        prefix = "chosen_" if is_dpo else ""
        ids, labels = found[f"{prefix}input_ids"], found[f"{prefix}labels"]
        learnt = tokenizer.decode([token for token in labels if token != -100])
        encoded.append({"text": tokenizer.decode(ids), "learnt": learnt, "tokens": len(ids)})

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(args.model))
    model.model_info, model.model_meta = args.model_info, args.model_meta
    if args.tuner_type == "full":
        closed, opened = tuple(args.freeze_parameters), tuple(args.trainable_parameters)
        names = [name for name, _ in model.named_parameters()]
        learn = [name for name in names if name.startswith(opened) or not name.startswith(closed)]
    else:
        targets = get_target_modules(args, model)
        config = LoraConfig(target_modules=targets)
        learn = [name for name, _ in model.named_modules() if check_target_module_exists(config, name)]
    arguments = {
        "batch": args.per_device_train_batch_size * args.gradient_accumulation_steps,
        "rate": args.learning_rate,
        "epochs": args.num_train_epochs,
        "steps": args.max_steps,
        "rank": args.lora_rank,
        "alpha": args.lora_alpha,
        "seed": args.seed,
    }
    return {"rows": rows, "encoded": encoded, "learn": learn, "arguments": arguments}


out, *files = sys.argv[1:]
Path(out).write_text(json.dumps([read(one) for one in files]), encoding="utf-8")
