"""RefCOCO, RefCOCO+ and RefCOCOg: where is what an expression describes?

Layouts:
- as published (lichengunc/refer): `refs(unc).p` (RefCOCOg also umd or google), a pickle of [{ref_id, ann_id, image_id,
  split, sentences: [{sent_id, sent}]}], with `instances.json`, COCO annotations whose bbox is x, y, width, height in
  pixels. Pictures of COCO's train2014. The "file_name" of a reference names a crop that is not published;
- lines of JSON (of Qwen-VL, also for InternVL): `refcoco_val.jsonl` with image, sent, bbox (x1, y1, x2, y2 in pixels),
  width, height;
- Parquet on the Hugging Face hub (lmms-lab/RefCOCO): `data/val-*.parquet` with question_id, answer (the list of
  expressions), bbox (x, y, width, height), the picture as bytes.

Every expression is an example, as in the published precision.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from pocketvlm.errors import ConfigError
from pocketvlm.evaluation.public_sets.files import (
    Lazy,
    Row,
    find,
    find_picture,
    missing,
    read_json_lines,
    read_json_object,
    texts,
    value,
)
from pocketvlm.evaluation.public_sets.prompts import BOX
from pocketvlm.evaluation.public_sets.tables import ParquetTable, parquet_files
from pocketvlm.evaluation.tasks import Example, Media
from pocketvlm.processing.media.load_image import probe_size
from pocketvlm.synthetic.sample import box_answer
from pocketvlm.views import Size

SPLITS = ("val", "testA", "testB", "test", "train")
TITLES = {"refcoco": "RefCOCO", "refcoco+": "RefCOCO+", "refcocog": "RefCOCOg"}
_SPLIT_BY = ("unc", "umd", "google")


class _Expression(NamedTuple):
    """What is asked: an expression and its box (left, top, right, bottom in pixels) in a picture."""

    id: str
    text: str
    box: tuple[float, float, float, float]
    picture: str | int  # a file name, or the row of a table
    size: Size | None = None  # of the picture; None where only the picture says


def examples(name: str, folder: Path, split: str) -> Sequence[Example]:
    """The expressions of `split` of the set `name`; `ConfigError` when its files are not in `folder`."""
    title = TITLES[name]
    references = [base / f"refs({by}).p" for base in (folder, folder / name) for by in _SPLIT_BY]
    lines = [base / f"{name}_{split}.jsonl" for base in (folder, folder / name)]
    path = find(references)
    if path is not None:
        instances = path.parent / "instances.json"
        if not instances.is_file():
            raise missing(title, [instances], f"It belongs to {path.name}.")
        return _in_files(name, folder, _published(path, instances, split))
    path = find(lines)
    if path is not None:
        return _in_files(name, folder, [_of_line(row, n, path) for n, row in enumerate(read_json_lines(path))])
    shards = parquet_files((folder, folder / "data"), (split,))
    if not shards:
        places = [*references, *lines, folder / "data" / f"{split}-*.parquet"]
        raise missing(title, places, "Give the folder that the set was unpacked in.")
    table = ParquetTable(shards)
    expressions = [e for number, row in enumerate(table.rows) for e in _of_row(row, number, table.path)]

    def make(expression: _Expression) -> Example:
        assert isinstance(expression.picture, int)
        body = table.picture(expression.picture)
        return _example(name, expression, body, probe_size(body))

    return Lazy(expressions, make)


def _in_files(name: str, folder: Path, expressions: Sequence[_Expression]) -> Sequence[Example]:
    coco = ("images/mscoco/images/train2014", "train2014", "coco/train2014", "images", ".")
    folders = [base / place for base in (folder, folder.parent) for place in coco]

    def make(expression: _Expression) -> Example:
        file = str(expression.picture)
        # Lines of JSON may name a URL or a folder of their author's machine; the file's own name is unique in COCO.
        path = find_picture(TITLES[name], file.replace("\\", "/").rsplit("/", 1)[-1], folders)
        return _example(name, expression, path, expression.size or probe_size(path))

    return Lazy(expressions, make)


def _example(name: str, expression: _Expression, picture: Media, size: Size) -> Example:
    return Example(
        id=expression.id,
        task=name,
        media=(picture,),
        question=BOX(expression.text),
        answers=(box_answer(*expression.box, size.height, size.width),),
        metric="iou",
    )


def _published(path: Path, instances: Path, split: str) -> list[_Expression]:
    content = read_json_object(instances)
    boxes = {row.get("id"): row for row in content.get("annotations", ())}
    pictures = {row.get("id"): row for row in content.get("images", ())}
    expressions = []
    references = read_plain_pickle(path)
    for reference in references:
        if reference.get("split") != split:
            continue
        annotation = boxes.get(value(reference, "ann_id", path))
        picture = pictures.get(value(reference, "image_id", path))
        if annotation is None or picture is None:
            raise ConfigError(
                f"{instances} lacks annotation {reference['ann_id']} or image {reference['image_id']} of {path.name}",
                hint="Take both files from the same download.",
            )
        size = Size(height=value(picture, "height", instances), width=value(picture, "width", instances))
        for sentence in value(reference, "sentences", path):
            expressions.append(
                _Expression(
                    str(value(sentence, "sent_id", path)),
                    str(value(sentence, "sent", path)),
                    _corners(value(annotation, "bbox", instances), instances),
                    str(value(picture, "file_name", instances)),
                    size,
                )
            )
    if not expressions:
        there = ", ".join(sorted({str(reference.get("split")) for reference in references})) or "nothing"
        raise ConfigError(f"{path} has no references of split {split!r}", hint=f"It has {there}.")
    return expressions


def _of_line(row: Row, number: int, path: Path) -> _Expression:
    left, top, right, bottom = _four(value(row, "bbox", path), path)
    size = Size(height=value(row, "height", path), width=value(row, "width", path))
    picture = str(value(row, "image", path))
    return _Expression(str(number), str(value(row, "sent", path)), (left, top, right, bottom), picture, size)


def _of_row(row: Row, number: int, path: Path) -> list[_Expression]:
    box = _corners(value(row, "bbox", path), path)
    name = value(row, "question_id", path)
    return [_Expression(f"{name}-{i}", text, box, number) for i, text in enumerate(texts(row, "answer", path))]


def _corners(box: Any, path: Path) -> tuple[float, float, float, float]:
    left, top, width, height = _four(box, path)
    return left, top, left + width, top + height


def _four(box: Any, path: Path) -> tuple[float, float, float, float]:
    if not (isinstance(box, list | tuple) and len(box) == 4 and all(isinstance(at, int | float) for at in box)):
        raise ConfigError(f"{path} has a bbox that is not four numbers: {box!r:.80}", hint="Download it again.")
    left, top, right, bottom = box
    return left, top, right, bottom


class _PlainUnpickler(pickle.Unpickler):
    """Builds lists, dictionaries, tuples, text and numbers, for which a pickle needs no name; refuses every name, so
    that nothing in the file is ever called.
    """

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_plain_pickle(path: Path) -> list[Row]:
    """The records of a pickle of plain values (Python 2's too).

    Raises:
        ConfigError: it holds anything else, such as an object of a class; nothing of it is run.
    """
    try:
        with path.open("rb") as file:
            rows = _PlainUnpickler(file, encoding="utf-8", errors="replace").load()
    except Exception as error:  # damaged pickles raise nearly everything, by the module's own documentation
        raise ConfigError(
            f"{path} is not a pickle of plain values: {error}", hint="Take the file of the published archive."
        ) from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{path} does not hold a list of references", hint="Take the file of the published archive.")
    return rows
