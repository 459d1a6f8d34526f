"""Miniature copies of each published layout: three questions about pictures of the shades 10, 20 and 30 of red."""

from __future__ import annotations

import base64
import csv
import io
import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

WIDTH, HEIGHT = 40, 20


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def put(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def put_parquet(path: Path, columns: dict[str, list[Any]], row_group_size: int = 2) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), path, row_group_size=row_group_size)


def cells(shades: Sequence[int]) -> list[dict[str, Any]]:
    return [{"bytes": png(value), "path": f"{value}.png"} for value in shades]


def put_tsv(path: Path, rows: Sequence[dict[str, str]], quoting: int = csv.QUOTE_MINIMAL) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t", quoting=quoting, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


# --- one builder a layout: each holds three questions, about pictures of shades 10, 20, 30 --------------------------

SHADES = (10, 20, 30)


def docvqa_published(folder: Path) -> None:
    rows = [
        {
            "questionId": 100 + n,
            "question": f"Q{n}?",
            "image": f"documents/p{n}_1.png",
            "docId": n,
            "answers": ["a", "A"],
        }
        for n in range(3)
    ]
    put(folder / "val_v1.0_withQT.json", {"dataset_name": "SP-DocVQA", "data": rows})
    for n, value in enumerate(SHADES):
        put(folder / "spdocvqa_images" / f"p{n}_1.png", png(value))


def docvqa_first_release(folder: Path) -> None:
    docvqa_published(folder / "val")
    (folder / "val" / "val_v1.0_withQT.json").rename(folder / "val" / "val_v1.0.json")
    (folder / "val" / "spdocvqa_images").rename(folder / "val" / "documents")


def docvqa_hub(folder: Path) -> None:
    for shard in (0, 1):
        numbers = range(3)[2 * shard : 2 * shard + 2]
        put_parquet(
            folder / "DocVQA" / f"validation-0000{shard}-of-00002.parquet",
            {
                "questionId": [str(100 + n) for n in numbers],
                "question": [f"Q{n}?" for n in numbers],
                "image": cells([SHADES[n] for n in numbers]),
                "answers": [["a", "A"] for _ in numbers],
            },
        )


def chartqa_published(folder: Path) -> None:
    put(folder / "test" / "test_human.json", [{"imgname": f"{n}.png", "query": f"Q{n}?", "label": "1"} for n in (0, 1)])
    put(folder / "test" / "test_augmented.json", [{"imgname": "2.png", "query": "Q2?", "label": "2"}])
    for n, value in enumerate(SHADES):
        put(folder / "test" / "png" / f"{n}.png", png(value))


def chartqa_in_repository(folder: Path) -> None:
    chartqa_published(folder / "ChartQA Dataset")


def chartqa_hub(folder: Path) -> None:
    columns = {"type": ["human_test", "human_test", "augmented_test"], "question": ["Q0?", "Q1?", "Q2?"]}
    put_parquet(
        folder / "data" / "test-00000-of-00001.parquet", {**columns, "answer": ["1", "1", "2"], "image": cells(SHADES)}
    )


def chartqa_other_hub(folder: Path) -> None:
    columns = {"human_or_machine": [0, 0, 1], "query": ["Q0?", "Q1?", "Q2?"]}
    labels = [["1"], ["1"], ["2"]]
    put_parquet(folder / "data" / "test-00000-of-00001.parquet", {**columns, "label": labels, "image": cells(SHADES)})


OCR_TYPES = ("Regular Text Recognition", "Doc-oriented VQA", "Handwritten Mathematical Expression Recognition")


def ocrbench_published(folder: Path) -> None:
    answers = ("WORD", ["one", "two"], "x ^ 2")
    rows = [
        {
            "dataset_name": "d",
            "id": 7,
            "image_path": f"d/{n}.png",
            "question": f"Q{n}?",
            "answers": answers[n],
            "type": t,
        }
        for n, t in enumerate(OCR_TYPES)
    ]
    put(folder / "OCRBench.json", rows)
    for n, value in enumerate(SHADES):
        put(folder / "OCRBench_Images" / "d" / f"{n}.png", png(value))


def ocrbench_hub(folder: Path) -> None:
    columns: dict[str, list[Any]] = {"dataset": ["d"] * 3, "question": ["Q0?", "Q1?", "Q2?"]}
    columns |= {"question_type": list(OCR_TYPES), "answer": [["WORD"], ["one", "two"], ["x ^ 2"]]}
    put_parquet(folder / "data" / "test-00000-of-00001.parquet", {**columns, "image": cells(SHADES)})


def textvqa_published(folder: Path) -> None:
    answers = ["red"] * 4 + ["blue"] * 6
    rows = [{"question_id": n, "question": f"Q{n}?", "image_id": f"abc{n}", "answers": answers} for n in range(3)]
    put(folder / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": rows})
    for n, value in enumerate(SHADES):
        put(folder / "train_images" / f"abc{n}.jpg", png(value))


def textvqa_hub(folder: Path) -> None:
    columns: dict[str, list[Any]] = {"question_id": [0, 1, 2], "question": ["Q0?", "Q1?", "Q2?"]}
    columns |= {"answers": [["red"] * 4 + ["blue"] * 6] * 3, "image": cells(SHADES)}
    put_parquet(folder / "data" / "validation-00000-of-00001.parquet", columns)


def mmbench_row(index: int, value: int, **other: str) -> dict[str, str]:
    row = {"index": str(index), "question": f"Q{index}?", "hint": "", "A": "cat", "B": "dog", "C": "", "D": ""}
    row |= {"answer": "B", "category": "animals", "image": base64.b64encode(png(value)).decode(), "split": "dev"}
    return row | other


def mmbench_plain(folder: Path) -> None:
    rows = [mmbench_row(n, value) for n, value in enumerate(SHADES)]
    rows[1] |= {"hint": 'Two lines,\nwith a "quote"\tand a tab', "C": "cow", "D": "None"}
    put_tsv(folder / "MMBench_DEV_EN.tsv", rows)


def refcoco_published(folder: Path) -> None:
    references, boxes, pictures = [], [], []
    for n, value in enumerate(SHADES[:2]):
        sentences = [{"sent_id": 10 * n + i, "sent": f"Q{n + i}?", "tokens": []} for i in range(2 - n)]
        reference = {"ref_id": n, "ann_id": 50 + n, "image_id": 7 + n, "split": "val", "sentences": sentences}
        references.append({**reference, "file_name": f"COCO_train2014_{n}_3.jpg"})
        boxes.append({"id": 50 + n, "bbox": [10.0, 5.0, 20.0, 10.0]})
        pictures.append({"id": 7 + n, "file_name": f"COCO_train2014_{n}.jpg", "height": HEIGHT, "width": WIDTH})
        put(folder / "images" / "mscoco" / "images" / "train2014" / f"COCO_train2014_{n}.jpg", png(value))
    references[1]["sentences"][0]["sent"] = "Q2?"
    references.append({**references[0], "split": "train"})
    put(folder / "refcoco" / "refs(unc).p", pickle.dumps(references, protocol=0))
    put(folder / "refcoco" / "instances.json", {"annotations": boxes, "images": pictures, "categories": []})


def refcoco_lines(folder: Path) -> None:
    lines = [
        {
            "sent": f"Q{n}?",
            "bbox": [10, 5, 30, 15],
            "width": WIDTH,
            "height": HEIGHT,
            "image": f"data/coco/train2014/{n}.jpg",
        }
        for n in range(3)
    ]
    put(folder / "refcoco_val.jsonl", "\n".join(map(json.dumps, lines)).encode())
    for n, value in enumerate(SHADES):
        put(folder / "train2014" / f"{n}.jpg", png(value))


def refcoco_hub(folder: Path) -> None:
    columns: dict[str, list[Any]] = {"question_id": ["5", "6"], "question": ["?", "?"]}
    columns |= {"answer": [["Q0?", "Q1?"], ["Q2?"]], "bbox": [[10.0, 5.0, 20.0, 10.0]] * 2, "image": cells(SHADES[:2])}
    put_parquet(folder / "data" / "val-00000-of-00001.parquet", columns)


def video_row(n: int) -> dict[str, Any]:
    options = ["A. One.", "B. Two.", "C. Three.", "D. Four."]
    row: dict[str, Any] = {"video_id": "001", "duration": ("short", "medium", "long")[n], "videoID": f"fF-j{n}"}
    return row | {"question_id": f"001-{n}", "question": f"Q{n}?", "options": options, "answer": "C"}


def video_mme_hub(folder: Path) -> None:
    rows = [video_row(n) for n in range(3)]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    put_parquet(folder / "videomme" / "test-00000-of-00001.parquet", columns)
    for n in range(3):
        put(folder / "data" / f"fF-j{n}.mp4", b"a film")


def video_mme_json(folder: Path) -> None:
    put(folder / "videomme.json", [video_row(n) for n in range(3)])
    for n in range(3):
        put(folder / "video" / f"fF-j{n}.mp4", b"a film")


LAYOUTS: list[tuple[str, Callable[[Path], None]]] = [
    ("docvqa", docvqa_published),
    ("docvqa", docvqa_first_release),
    ("docvqa", docvqa_hub),
    ("chartqa", chartqa_published),
    ("chartqa", chartqa_in_repository),
    ("chartqa", chartqa_hub),
    ("chartqa", chartqa_other_hub),
    ("ocrbench", ocrbench_published),
    ("ocrbench", ocrbench_hub),
    ("textvqa", textvqa_published),
    ("textvqa", textvqa_hub),
    ("mmbench", mmbench_plain),
    ("refcoco", refcoco_published),
    ("refcoco", refcoco_lines),
    ("refcoco", refcoco_hub),
    ("video-mme", video_mme_hub),
    ("video-mme", video_mme_json),
]
IDS = [build.__name__ for _, build in LAYOUTS]
PICTURE_SHADES = {"refcoco_published": (10, 10, 20), "refcoco_hub": (10, 10, 20)}
