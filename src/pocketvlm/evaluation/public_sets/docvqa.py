"""DocVQA (single page): as published by its challenge, or as Parquet on the Hugging Face hub.

Published: `val_v1.0_withQT.json` or `val_v1.0.json` with {"data": [{questionId, question, image: "documents/….png",
docId, answers, question_types}]}, pictures in `documents/` (first release) or `spdocvqa_images/`. Hub (lmms-lab/DocVQA,
HuggingFaceM4/DocumentVQA): `DocVQA/validation-*.parquet` or `data/validation-*.parquet` with the same fields, the
picture as bytes. Answers of the test split are not public.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pocketvlm.evaluation.public_sets.files import (
    find,
    find_picture,
    missing,
    read_json_rows,
    short_answers,
    value,
)
from pocketvlm.evaluation.public_sets.tables import ParquetTable, parquet_files
from pocketvlm.evaluation.tasks import Example

TITLE = "DocVQA"
SPLITS = ("val", "train")
_HUB_SPLITS = {"val": ("validation", "val"), "train": ("train",)}
_questions = partial(short_answers, "docvqa", "anls", "questionId")


def examples(folder: Path, split: str) -> Sequence[Example]:
    """The questions of `split`; `ConfigError` when its files are not in `folder`."""
    annotations = [
        base / f"{split}_v1.0{ending}.json"
        for base in (folder, folder / "spdocvqa_qas", folder / split)
        for ending in ("_withQT", "")
    ]
    path = find(annotations)
    if path is not None:
        bases = (path.parent, folder)
        folders = [base / name for base in bases for name in ("documents", "spdocvqa_images", "images")]
        rows = read_json_rows(path)

        def picture(number: int) -> Path:
            # The annotations say "documents/NAME" whatever the folder is called.
            name = str(value(rows[number], "image", path)).removeprefix("documents/")
            return find_picture(TITLE, name, folders)

        return _questions(rows, path, picture)
    shards = parquet_files((folder, folder / "DocVQA", folder / "data"), _HUB_SPLITS[split])
    if not shards:
        shard = folder / "DocVQA" / f"{_HUB_SPLITS[split][0]}-*.parquet"
        raise missing(TITLE, [*annotations, shard], "Give the folder that the set was unpacked in.")
    table = ParquetTable(shards)
    return _questions(table.rows, table.path, table.picture)
