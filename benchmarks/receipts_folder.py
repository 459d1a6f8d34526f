#!/usr/bin/env python3
"""A folder of receipts in five kinds of files, some broken → `pocketvlm extract`, killed again and again.

    python benchmarks/receipts_folder.py [--count 200] [--kills 10] [--model DIR] [--keep FOLDER]

Draws held-out receipts (PNG, JPEG turned by EXIF, PDF of two pages, TIFF in G4 as a fax, HEIC) with six broken files
among them, extracts the total of each once undisturbed and once with SIGKILL at random moments and a new start after
each, and exits with 1 where something does not hold:

- the table of the run that was killed is that of the other one, byte for byte, and its journal has no page twice;
- exactly the six broken files failed, each with its reason;
- of all receipts the total is right as often as in answers to the single question of the suite about the same pictures,
  within `--points` (3). Faxes have one bit a pixel and so may differ; the table tells the kinds apart.

A table for people, then one line of JSON. Wants `pip install 'pocketvlm[documents,structured]'`; with the extra
`synthetic` the receipts have the fonts of the suite's published figures.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pillow_heif
from PIL import Image

import pocketvlm
from pocketvlm.evaluation.suite import SyntheticSuite
from pocketvlm.synthetic import make_sample

KINDS = ("png", "jpg", "pdf", "tif", "heic")
# Bounded, so that every answer has an end, whatever the model: what is cut off would be a failure of its own.
SCHEMA = {
    "type": "object",
    "properties": {"total": {"type": "string", "maxLength": 16}},
    "required": ["total"],
    "additionalProperties": False,
}
# Name → what the reason must say. Each is a way in which a file of an office is broken.
BROKEN = {
    "cut-off.png": "is damaged or cut off",
    "empty.jpg": "is empty",
    "locked.pdf": "protected by a password",
    "words.tif": "is not a JPEG, PNG",
    "half.heic": "is damaged",
    "letter.docx": "office document",
}
# What is stored for each value of the tag, so that the picture is upright when the tag is heeded (EXIF 2.32, 4.6.5).
_STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
# A page that only its password opens: PDFium looks at the entry before it draws anything.
_LOCKED = b"/Encrypt<</Filter/Standard/V 1/R 2/P -4/O<" + b"5a" * 32 + b">/U<" + b"00" * 32 + b">>>/ID[<00><00>]"


@dataclass(frozen=True)
class Receipt:
    """One of the folder.

    Attributes:
        file: its name there.
        total: as it is printed.
        question: which the suite asks for it.
        picture: as the suite shows it.
    """

    file: str
    total: str
    question: str
    picture: Image.Image


def make_folder(folder: Path, count: int, seed: int) -> list[Receipt]:
    """Write `count` receipts and the broken files, in an order that mixes them."""
    task, made = SyntheticSuite().task("receipt"), []
    for number in range(count):
        example = task.example(number, seed)
        picture, kind = Image.fromarray(np.asarray(example.media[0])), KINDS[number % len(KINDS)]
        name = f"{number:04}.{kind}"
        (folder / name).write_bytes(encoded(picture, kind, number, seed))
        made.append(Receipt(name, example.answers[0], example.question, picture))
    for number, (name, body) in enumerate(broken_files(made[0].picture).items()):
        (folder / f"{number * count // len(BROKEN):04}-{name}").write_bytes(body)
    return made


def encoded(picture: Image.Image, kind: str, number: int, seed: int) -> bytes:
    """A file of one kind that shows the picture upright."""
    file = io.BytesIO()
    if kind == "jpg":
        orientation = number // len(KINDS) % 8 + 1
        exif, turn = Image.Exif(), _STORED[orientation]
        exif[0x0112] = orientation
        stored = picture if turn is None else picture.transpose(turn)
        stored.save(file, "JPEG", quality=95, subsampling=0, exif=exif)
    elif kind == "pdf":
        # What stands on its back: text without an amount.
        back = Image.fromarray(make_sample("paragraph", (seed, number), "heldout", 0).image)
        picture.save(file, "PDF", save_all=True, append_images=[back], quality=95, resolution=72)
    elif kind == "tif":
        # A fax has many dots a letter: in the pixels of the original, one bit each leaves too little of thin strokes.
        grey = np.asarray(
            picture.convert("L").resize((2 * picture.width, 2 * picture.height), Image.Resampling.LANCZOS)
        )
        middle = (int(np.percentile(grey, 2)) + int(np.median(grey))) // 2
        Image.fromarray(grey > middle).save(file, "TIFF", compression="group4")
    elif kind == "heic":
        made = pillow_heif.HeifFile()
        made.add_from_pillow(picture)
        made.save(file, quality=90)
    else:
        picture.save(file, "PNG")
    return file.getvalue()


def broken_files(picture: Image.Image) -> dict[str, bytes]:
    """By the names in `BROKEN`."""
    png, heic, pdf = encoded(picture, "png", 0, 0), encoded(picture, "heic", 0, 0), io.BytesIO()
    picture.save(pdf, "PDF")
    locked = re.sub(rb"(/Root \d+ 0 R)", lambda match: match[1] + _LOCKED, pdf.getvalue())
    bodies = (
        png[: len(png) // 3],
        b"",
        locked,
        b"Total: see the other file\n",
        heic[: len(heic) // 2],
        b"PK\x03\x04" + bytes(60),
    )
    return dict(zip(BROKEN, bodies, strict=True))


def amount(text: object) -> str:
    """Digits and points of an amount, however its currency is written."""
    return re.sub(r"[^0-9.]", "", str(text or ""))


def totals(table: Path) -> dict[str, str]:
    """File name → the total that its row has; "" where there is none."""
    with table.open(newline="", encoding="utf-8") as file:
        return {Path(row["file"]).name: amount(row.get("data.total")) for row in csv.DictReader(file)}


def wrong_failures(path: Path) -> Iterator[str]:
    """What is not as it should be in the list of files that failed."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    found = {Path(row["file"]).name.partition("-")[2]: str(row["error"]) for row in rows}
    if len(rows) != len(BROKEN):
        yield f"{len(rows)} files failed, expected the {len(BROKEN)} that are broken; the first is {rows[:1]}"
    for name, reason in BROKEN.items():
        if not re.search(reason, found.get(name, "")) or "\n" in found.get(name, ""):
            yield f"{name}: expected one line with {reason!r}, got {found.get(name)!r}"


def wrong_journal(journal: Path) -> Iterator[str]:
    keys = [(entry["file"], entry["page"]) for entry in map(json.loads, journal.read_bytes().splitlines()[1:])]
    if len(keys) != len(set(keys)):
        yield f"{len(keys) - len(set(keys))} pages were answered twice"


def lines(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def killed_again_and_again(command: Sequence[str], table: Path, pages: int, kills: int, rng: random.Random) -> int:
    """Start, kill after a random number of pages and a random while, and so on; how many runs were killed at work."""
    journal, done = table.with_name(f"{table.name}.journal"), 0
    for left in range(kills, 0, -1):
        wanted = lines(journal) + rng.randint(0, max(0, pages - lines(journal)) // (left + 1))
        process = subprocess.Popen(
            [*command, "--out", str(table)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and lines(journal) < max(wanted, 1):
            time.sleep(0.005)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0, 1.0))
        if process.poll() is None:
            process.kill()  # SIGKILL
            done += 1
        process.wait()
        print(f"killed after {lines(journal)} lines of the journal", file=sys.stderr)
    return done


def asked_alone(model: str, pictures: Sequence[tuple[object, str]]) -> list[str]:
    """Answers to (picture, question)."""
    with pocketvlm.load(model) as vlm:
        vlm.progress = None
        return [answer.text for answer in vlm.batch([_about(*one) for one in pictures], temperature=0, max_tokens=64)]


def _about(picture: object, question: str) -> list[dict[str, object]]:
    content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


def main() -> int:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--count", type=int, default=200, help="receipts, beside the broken files (default 200)")
    cli.add_argument("--kills", type=int, default=10, help="default 10")
    cli.add_argument("--model", default="nano", help="a name or a directory (default nano)")
    cli.add_argument("--schema", help="with a field total, as `extract` takes it; by default text of 16 characters")
    cli.add_argument("--seed", type=int, default=2026, help="of pictures and moments (default 2026)")
    cli.add_argument("--points", type=float, default=3.0, help="by which shares may differ, of 100 (default 3)")
    cli.add_argument("--keep", type=Path, help="a new folder for files and tables, instead of one that goes")
    args = cli.parse_args()
    with contextlib.ExitStack() as stack:
        if args.keep:
            args.keep.mkdir(parents=True)
        place = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        return measured(args, place)


def measured(args: argparse.Namespace, place: Path) -> int:
    folder, whole, cut = place / "in", place / "whole.csv", place / "cut.csv"
    folder.mkdir()
    receipts = make_folder(folder, args.count, args.seed)
    pages = args.count + sum(receipt.file.endswith(".pdf") for receipt in receipts)
    schema = place / "schema.json"
    schema.write_text(json.dumps(SCHEMA))
    command = [sys.executable, "-m", "pocketvlm", "extract", str(folder), "--schema", args.schema or str(schema)]
    command += ["--model", args.model, "--max-tokens", "128"]
    began = time.perf_counter()
    first = subprocess.run([*command, "--out", str(whole)], check=False, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if not whole.exists():
        print(first.stderr, file=sys.stderr)
        return 1
    kills = killed_again_and_again(command, cut, pages, args.kills, random.Random(args.seed))
    # The last kill may have come behind the table: the journal is what has to be whole.
    last = subprocess.run([*command, "--out", str(cut), "--overwrite"], check=False, capture_output=True, text=True)
    wrong = [
        f"{name} ended with status {done.returncode}, not 1"
        for name, done in (("the whole run", first), ("the last run", last))
        if done.returncode != 1
    ]
    if kills != args.kills:
        wrong.append(f"{kills} runs were killed at work, not {args.kills}")
    if not cut.exists() or cut.read_bytes() != whole.read_bytes():
        wrong.append(f"the table of the run that was killed is not that of the other one; its errors: {last.stderr}")
    for table in (whole, cut):
        wrong += wrong_failures(table.with_name(f"{table.name}.failed.jsonl"))
        wrong += wrong_journal(table.with_name(f"{table.name}.journal"))

    found = totals(whole)
    alone = asked_alone(args.model, [(receipt.picture, receipt.question) for receipt in receipts])
    right = {receipt.file: amount(receipt.total) == found[receipt.file] for receipt in receipts}
    suite = {receipt.file: amount(receipt.total) == amount(text) for receipt, text in zip(receipts, alone, strict=True)}
    print("| kind | receipts | right in the table | right asked alone |\n| --- | --- | --- | --- |")
    for kind in (*KINDS, ""):
        names = [receipt.file for receipt in receipts if receipt.file.endswith(kind)]
        shares = " | ".join(f"{100 * share(known, names):.1f} %" for known in (right, suite))
        print(f"| {kind or 'all'} | {len(names)} | {shares} |")
    by_table, by_suite = share(right, list(right)), share(suite, list(suite))
    if abs(by_table - by_suite) * 100 > args.points:
        wrong.append(f"totals are right in {by_table:.1%} of the rows and {by_suite:.1%} of the answers asked alone")
    for line in wrong:
        print(f"does not hold: {line}", file=sys.stderr)
    figures = {
        "receipts": args.count,
        "pages": pages,
        "seconds": round(seconds, 1),
        "kills": kills,
        "right_in_table": round(by_table, 4),
        "right_asked_alone": round(by_suite, 4),
        "wrong": wrong,
    }
    print(json.dumps(figures))
    return int(bool(wrong))


def share(known: dict[str, bool], names: Sequence[str]) -> float:
    return sum(known[name] for name in names) / max(len(names), 1)


if __name__ == "__main__":
    sys.exit(main())
