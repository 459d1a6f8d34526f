"""OCRBench (the first version): as published, or as Parquet on the Hugging Face hub.

Published (Yuliang-Liu/MultimodalOCR): `OCRBench.json`, a list of {dataset_name, id, type, question, answers: a text or
a list, image_path}, pictures in `OCRBench_Images/`. Hub (echo840/OCRBench): `data/test-*.parquet` with dataset,
question, question_type, answer, the picture as bytes. Its ten types are also counted by themselves.
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
from pocketvlm.evaluation.public_sets.prompts import OCR
from pocketvlm.evaluation.public_sets.tables import ParquetTable, parquet_files
from pocketvlm.evaluation.tasks import Example, Media

TITLE = "OCRBench"
SPLITS = ("test",)
_FORMULAS = "Handwritten Mathematical Expression Recognition"


def examples(folder: Path, split: str) -> Sequence[Example]:
    """All questions; `ConfigError` when their files are not in `folder`."""
    annotations = [folder / "OCRBench.json", folder / "OCRBench" / "OCRBench.json"]
    path = find(annotations)
    if path is not None:
        rows = read_json_rows(path)
        folders = [base / name for base in (folder, path.parent) for name in ("OCRBench_Images", "images", ".")]

        def picture(number: int) -> Path:
            return find_picture(TITLE, str(value(rows[number], "image_path", path)), folders)

        return _lazy(rows, path, "type", "answers", picture)
    shards = parquet_files((folder, folder / "data"), (split,))
    if not shards:
        hint = "Give the folder that the set was unpacked in."
        raise missing(TITLE, [*annotations, folder / "data" / f"{split}-*.parquet"], hint)
    table = ParquetTable(shards)
    return _lazy(table.rows, table.path, "question_type", "answer", table.picture)


def _lazy(
    rows: Sequence[Row], path: Path, kind: str, answer: str, picture: Callable[[int], Media]
) -> Sequence[Example]:
    def make(number: int) -> Example:
        row = rows[number]
        return Example(
            id=str(number),  # the published "id" repeats between the sets that it was put together from
            task="ocrbench",
            media=(picture(number),),
            question=OCR(str(value(row, "question", path))),
            answers=texts(row, answer, path),
            metric="contains_formula" if value(row, kind, path) == _FORMULAS else "contains",
            subset=str(value(row, kind, path)),
        )

    return Lazy(range(len(rows)), make)
