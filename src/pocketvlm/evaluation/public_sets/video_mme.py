"""Video-MME without subtitles: questions with four options about videos.

Hub (lmms-lab/Video-MME): `videomme/test-*.parquet` with videoID, question_id, question, options ("A. …"), answer,
duration (short, medium or long), or the same records in `videomme.json`; videos as `VIDEO_ID.mp4` in `data`, from
`videos_chunked_*.zip` (some tools unpack them to `video/`). The durations are also counted by themselves.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pocketvlm.errors import MediaError
from pocketvlm.evaluation.public_sets.files import (
    Lazy,
    Row,
    find,
    inside,
    missing,
    read_json_rows,
    texts,
    value,
)
from pocketvlm.evaluation.public_sets.prompts import VIDEO_LETTER
from pocketvlm.evaluation.public_sets.tables import ParquetTable, parquet_files
from pocketvlm.evaluation.tasks import Example

TITLE = "Video-MME"
SPLITS = ("test",)
_LETTER = re.compile(r"^[A-Z][.)]\s*")


def examples(folder: Path, split: str) -> Sequence[Example]:
    """All questions; `ConfigError` when their files are not in `folder`."""
    shards = parquet_files((folder / "videomme", folder, folder / "data"), (split,))
    if shards:
        table = ParquetTable(shards, image=None)
        rows, path = table.rows, table.path
    else:
        annotations = [folder / "videomme.json", folder / "Video-MME.json"]
        found = find(annotations)
        if found is None:
            places = [folder / "videomme" / f"{split}-*.parquet", *annotations]
            raise missing(TITLE, places, "Give the folder that the set was unpacked in.")
        rows, path = read_json_rows(found), found
    return Lazy(rows, lambda row: _example(row, path, folder))


def _example(row: Row, path: Path, folder: Path) -> Example:
    options = texts(row, "options", path)
    return Example(
        id=str(value(row, "question_id", path)),
        task="video-mme",
        media=(_video(str(value(row, "videoID", path)), folder),),
        question=VIDEO_LETTER("\n".join((str(value(row, "question", path)), *options))),
        answers=texts(row, "answer", path),
        metric="choice",
        subset=str(row.get("duration") or ""),
        choices=tuple(_LETTER.sub("", option) for option in options),
    )


def _video(name: str, folder: Path) -> Path:
    inside(TITLE, name)
    files = [f"{name}{ending}" for ending in (".mp4", ".MP4", ".mkv")]
    places = [folder / place / file for place in ("data", "video", "videos") for file in files]
    found = find(places)
    if found is None:
        packed = " Unpack videos_chunked_*.zip there." if any(folder.glob("videos_chunked_*.zip")) else ""
        raise MediaError(f"{TITLE}: the video {name} is missing", hint=f"It was looked for as {places[0]}.{packed}")
    return found
