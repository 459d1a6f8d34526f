"""TextVQA: as published, or as Parquet on the Hugging Face hub.

Published: `TextVQA_0.5.1_val.json` with {"data": [{question_id, question, image_id, answers: ten of them}]}, pictures
in `train_images/IMAGE_ID.jpg` (validation pictures are among those of training). Hub (lmms-lab/textvqa):
`data/validation-*.parquet` with the same fields, the picture as bytes. Answers of the test split are not public.
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

TITLE = "TextVQA"
SPLITS = ("val", "train")
_HUB_SPLITS = {"val": "validation", "train": "train"}
_questions = partial(short_answers, "textvqa", "vqa", "question_id")


def examples(folder: Path, split: str) -> Sequence[Example]:
    """The questions of `split`; `ConfigError` when its files are not in `folder`."""
    annotation = folder / f"TextVQA_0.5.1_{split}.json"
    path = find([annotation])
    if path is not None:
        rows = read_json_rows(path)
        folders = [folder / "train_images", folder / "train_val_images" / "train_images"]
        return _questions(
            rows, path, lambda number: find_picture(TITLE, f"{value(rows[number], 'image_id', path)}.jpg", folders)
        )
    shards = parquet_files((folder, folder / "data"), (_HUB_SPLITS[split],))
    if not shards:
        shard = folder / "data" / f"{_HUB_SPLITS[split]}-*.parquet"
        raise missing(TITLE, [annotation, shard], "Give the folder that the set was unpacked in.")
    table = ParquetTable(shards)
    return _questions(table.rows, table.path, table.picture)
