"""TextVQA: as published, or as Parquet on the Hugging Face hub.

Published: `TextVQA_0.5.1_val.json` with {"data": [{question_id, question, image_id, answers: ten of them}]}, pictures
in `train_images/IMAGE_ID.jpg` (validation pictures are among those of training). Hub (lmms-lab/textvqa):
`data/validation-*.parquet` with the same fields, the picture as bytes. Answers of the test split are not public.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pocketvlm.evaluation.public_sets.files import (
    Lazy,
    Row,
    find,
    find_picture,
    missing,
    read_json_rows,
    texts,
    value,
)
from pocketvlm.evaluation.public_sets.prompts import SHORT_ANSWER
from pocketvlm.evaluation.public_sets.tables import ParquetTable, parquet_files
from pocketvlm.evaluation.tasks import Example, Media

TITLE = "TextVQA"
SPLITS = ("val", "train")
_HUB_SPLITS = {"val": "validation", "train": "train"}


def examples(folder: Path, split: str) -> Sequence[Example]:
    """The questions of `split`; `ConfigError` when its files are not in `folder`."""
    annotation = folder / f"TextVQA_0.5.1_{split}.json"
    path = find([annotation])
    if path is not None:
        rows = read_json_rows(path)
        folders = [folder / "train_images", folder / "train_val_images" / "train_images"]
        return _lazy(
            rows, path, lambda number: find_picture(TITLE, f"{value(rows[number], 'image_id', path)}.jpg", folders)
        )
    shards = parquet_files((folder, folder / "data"), (_HUB_SPLITS[split],))
    if not shards:
        shard = folder / "data" / f"{_HUB_SPLITS[split]}-*.parquet"
        raise missing(TITLE, [annotation, shard], "Give the folder that the set was unpacked in.")
    table = ParquetTable(shards)
    return _lazy(table.rows, table.path, table.picture)


def _lazy(rows: Sequence[Row], path: Path, picture: Callable[[int], Media]) -> Sequence[Example]:
    def make(number: int) -> Example:
        row = rows[number]
        return Example(
            id=str(value(row, "question_id", path)),
            task="textvqa",
            media=(picture(number),),
            question=SHORT_ANSWER(str(value(row, "question", path))),
            answers=texts(row, "answers", path),
            metric="vqa",
        )

    return Lazy(range(len(rows)), make)
